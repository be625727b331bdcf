/* The inbox: several threads write, one reads. Nothing is lost, and each writer's letters come in the order
 * in which it wrote them. */
#include "check.h"

#include "inbox.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

enum { WRITERS = 4 };

struct numbered {
    struct coil__letter letter;
    int writer, number;
};

struct writer {
    pthread_t thread;
    struct numbered *letters;
    int id, count;
};

static struct coil__inbox inbox;

static void *write_letters(void *arg) {
    struct writer *w = arg;
    for (int i = 0; i < w->count; i++) {
        w->letters[i] = (struct numbered){.writer = w->id, .number = i};
        coil__inbox_post(&inbox, &w->letters[i].letter);
    }
    return NULL;
}

/* Takes until all have come; the number of letters that came out of order. */
static int read_letters(int total) {
    int next[WRITERS] = {0}, wrong = 0;
    for (int got = 0; got < total;) {
        struct coil__letter *l = coil__inbox_take(&inbox);
        if (!l) sched_yield();
        for (; l; l = l->next, got++) {
            struct numbered *n = CONTAINER_OF(l, struct numbered, letter);
            wrong += n->number != next[n->writer]++;
        }
    }
    return wrong;
}

Test(inbox, letters_of_each_writer_come_once_and_in_order) {
    struct writer writers[WRITERS];
    int count = check_rounds(20000);
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){
            .id = i, .count = count, .letters = calloc((size_t)count, sizeof(struct numbered))};
        cr_assert_not_null(writers[i].letters);
        cr_assert_eq(pthread_create(&writers[i].thread, NULL, write_letters, &writers[i]), 0);
    }
    int wrong = read_letters(WRITERS * count);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i].thread, NULL);
    cr_assert_eq(wrong, 0);
    cr_assert(coil__inbox_empty(&inbox));
    cr_assert_null(coil__inbox_take(&inbox), "nothing comes twice");
    for (int i = 0; i < WRITERS; i++)
        free(writers[i].letters);
}

/* One letter that anybody may post, once at a time, as an object's own is. */
static struct {
    struct coil__letter letter;
    atomic_bool posted;
    atomic_int asked;
    int delivered, seen;
} shared;

static void deliver_shared(struct coil__letter *l) {
    cr_expect(l == &shared.letter);
    atomic_store(&shared.posted, false);
    shared.delivered++;
    shared.seen = atomic_load(&shared.asked);
}

static void *post_shared(void *arg) {
    for (int i = 0; i < *(int *)arg; i++) {
        atomic_fetch_add(&shared.asked, 1);
        if (!atomic_exchange(&shared.posted, true)) coil__inbox_post(&inbox, &shared.letter);
    }
    return NULL;
}

Test(inbox, a_letter_may_be_posted_again_as_soon_as_it_is_delivered) {
    pthread_t threads[WRITERS];
    int count = check_rounds(20000);
    shared.letter.deliver = deliver_shared;
    for (int i = 0; i < WRITERS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, post_shared, &count), 0);
    while (shared.seen < WRITERS * count) {
        struct coil__letter *l = coil__inbox_take(&inbox);
        if (!l) sched_yield();
        for (struct coil__letter *next; l; l = next) {
            next = l->next;
            l->deliver(l);
        }
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    cr_assert_geq(shared.delivered, 1);
    cr_assert_leq(shared.delivered, WRITERS * count);
}
