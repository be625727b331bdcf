/* Task-local values: a list per task, the newest key first. A task has few of them or none, so that looking
 * through a list is quicker than anything better. */
#include "task.h"

#include <stdlib.h>

enum { ROUNDS = 4 };

struct value {
    struct value *next;
    const coil_key *key;
    void *value;
    int round; /* in which it is destroyed: 0, or the one after that in which it was set */
};

struct values {
    struct coil__locals head;
    struct value *first;
    int round; /* of values that are set now */
};

static struct values *values_of(const struct coil__task *t) {
    return t->locals ? CONTAINER_OF(t->locals, struct values, head) : NULL;
}

/* Where the pointer to the key's entry is, or would be at the end. */
static struct value **find(struct values *v, const coil_key *k) {
    struct value **at = &v->first;
    while (*at && (*at)->key != k)
        at = &(*at)->next;
    return at;
}

/* Takes it off the list; its value. */
static void *take(struct value **at) {
    struct value *e = *at;
    void *value = e->value;
    *at = e->next;
    free(e);
    return value;
}

/* A value that is being destroyed is no longer there, as its destructor sees it. */
static void destroy_round(struct values *v) {
    for (struct value **at = &v->first; *at;) {
        if ((*at)->round >= v->round) {
            at = &(*at)->next;
            continue;
        }
        const coil_key *k = (*at)->key;
        void *value = take(at);
        if (k->destroy) k->destroy(value);
        at = &v->first; /* the call may have changed the list anywhere */
    }
}

static void destroy_all(struct coil__task *t) {
    struct values *v = values_of(t);
    while (v->first && v->round < ROUNDS) {
        v->round++;
        destroy_round(v);
    }
    while (v->first)
        take(&v->first);
    t->locals = NULL; /* the record will be used again */
    free(v);
}

static struct values *first_use(struct coil__task *t) {
    struct values *v = calloc(1, sizeof *v);
    if (!v) return NULL;
    v->head.end = destroy_all;
    t->locals = &v->head;
    return v;
}

static int add(struct values *v, const coil_key *k, void *value) {
    struct value *e = malloc(sizeof *e);
    if (!e) return -ENOMEM;
    *e = (struct value){.next = v->first, .key = k, .value = value, .round = v->round};
    v->first = e;
    return 0;
}

int coil_local_set(const coil_key *k, void *value) {
    struct coil__task *t = coil__current("coil_local_set");
    struct values *v = values_of(t);
    if (!v && !value) return 0;
    if (!v && !(v = first_use(t))) return -ENOMEM;
    struct value **at = find(v, k);
    if (!*at) return value ? add(v, k, value) : 0;
    if (value) {
        (*at)->value = value;
    } else {
        take(at);
    }
    return 0;
}

void *coil_local(const coil_key *k) {
    struct values *v = values_of(coil__current("coil_local"));
    const struct value *e = v ? *find(v, k) : NULL;
    return e ? e->value : NULL;
}
