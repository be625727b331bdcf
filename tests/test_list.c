/* The intrusive list, against an array that does the same slowly. */
#include "check.h"

#include "list.h"

#include <stdlib.h>

enum { NODES = 24 };

struct model {
    struct coil__list list;
    struct coil__node nodes[NODES];
    int order[NODES], count;
};

static void model_remove(struct model *m, int node) {
    int at = 0;
    while (m->order[at] != node)
        at++;
    m->count--;
    for (; at < m->count; at++)
        m->order[at] = m->order[at + 1];
}

static void expect_same(struct model *m) {
    int i = 0;
    LIST_EACH(n, &m->list) {
        cr_assert_lt(i, m->count);
        cr_assert(n == &m->nodes[m->order[i]], "place %d", i);
        i++;
    }
    cr_assert_eq(i, m->count);
    cr_assert_eq(coil__list_empty(&m->list), m->count == 0);
    struct coil__node *first = coil__list_first(&m->list);
    cr_assert(first == (m->count ? &m->nodes[m->order[0]] : NULL));
}

static void step(struct model *m) {
    int node = rand() % NODES;
    if (rand() % 4 == 0) {
        struct coil__node *popped = coil__list_pop(&m->list);
        cr_assert(popped == (m->count ? &m->nodes[m->order[0]] : NULL));
        if (popped) model_remove(m, m->order[0]);
    } else if (coil__node_linked(&m->nodes[node])) {
        coil__node_unlink(&m->nodes[node]);
        model_remove(m, node);
    } else {
        coil__list_push(&m->list, &m->nodes[node]);
        m->order[m->count++] = node;
    }
}

Test(list, random_pushes_pops_and_unlinks_keep_the_order) {
    for (int seed = 0; seed < check_rounds(50); seed++) {
        struct model m = {.count = 0};
        srand((unsigned)seed);
        coil__list_init(&m.list);
        for (int i = 0; i < 500; i++) {
            step(&m);
            expect_same(&m);
        }
    }
}

Test(list, a_node_that_was_taken_off_is_not_linked) {
    struct coil__list l;
    struct coil__node n = {0};
    coil__list_init(&l);
    cr_assert_not(coil__node_linked(&n));
    coil__list_push(&l, &n);
    cr_assert(coil__node_linked(&n));
    cr_assert(coil__list_pop(&l) == &n);
    cr_assert_not(coil__node_linked(&n));
    cr_assert_null(coil__list_pop(&l));
}

static int push_twice(void *arg) {
    struct coil__list l;
    (void)arg;
    struct coil__node n = {0};
    coil__list_init(&l);
    coil__list_push(&l, &n);
    coil__list_push(&l, &n);
    return 0;
}

static int unlink_unlinked(void *arg) {
    (void)arg;
    struct coil__node n = {0};
    coil__node_unlink(&n);
    return 0;
}

Test(list, a_node_can_be_on_one_list_once) {
    cr_assert(check_aborts(push_twice, NULL, "internal check failed"));
    cr_assert(check_aborts(unlink_unlinked, NULL, "internal check failed"));
}
