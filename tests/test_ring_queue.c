/* The growable queue, against counters: what goes in are numbers in order, so what comes out must be too. */
#include "check.h"

#include "ring_queue.h"

#include <stdlib.h>

static void *item(uint64_t number) {
    return (void *)(uintptr_t)(number + 1);
}

static void random_steps(struct coil__ring_queue *q) {
    uint64_t in = 0, out = 0;
    int bias = 0;
    for (int i = 0; i < 20000; i++) {
        if (i % 1000 == 0) bias = rand() % 100;
        if (rand() % 100 < bias) {
            cr_assert_eq(coil__ring_queue_reserve(q, (uint32_t)(in - out) + 1), 0);
            coil__ring_queue_push(q, item(in++));
        } else {
            void *got = coil__ring_queue_pop(q);
            cr_assert(got == (in == out ? NULL : item(out)));
            if (got) out++;
        }
        uint32_t count = (uint32_t)(in - out), ahead = (uint32_t)rand() % 5;
        cr_assert_eq(coil__ring_queue_count(q), count);
        cr_assert(coil__ring_queue_peek(q, ahead) == (ahead < count ? item(out + ahead) : NULL));
    }
}

Test(ring_queue, random_pushes_and_pops_keep_the_order) {
    for (int seed = 0; seed < check_rounds(20); seed++) {
        struct coil__ring_queue q = {0};
        srand((unsigned)seed);
        random_steps(&q);
        coil__ring_queue_free(&q);
        cr_assert_null(q.at);
    }
}

Test(ring_queue, its_counters_may_wrap_around) {
    struct coil__ring_queue q = {0};
    cr_assert_eq(coil__ring_queue_reserve(&q, 10), 0);
    q.head = q.tail = UINT32_MAX - 3;
    for (uint64_t i = 0; i < 8; i++)
        coil__ring_queue_push(&q, item(i));
    cr_assert_eq(coil__ring_queue_count(&q), 8);
    cr_assert(coil__ring_queue_peek(&q, 7) == item(7));
    cr_assert_eq(coil__ring_queue_reserve(&q, 1000), 0, "it grows across the wrap");
    for (uint64_t i = 0; i < 8; i++)
        cr_assert(coil__ring_queue_pop(&q) == item(i));
    cr_assert_null(coil__ring_queue_pop(&q));
    coil__ring_queue_free(&q);
}

Test(ring_queue, reserving_what_is_there_moves_nothing) {
    struct coil__ring_queue q = {0};
    cr_assert_eq(coil__ring_queue_reserve(&q, 1), 0);
    void **at = q.at;
    cr_assert_eq(coil__ring_queue_reserve(&q, q.mask + 1), 0);
    cr_assert(q.at == at);
    cr_assert_eq(coil__ring_queue_reserve(&q, 1), 0);
    cr_assert(q.at == at);
    coil__ring_queue_free(&q);
}

static int push_into_a_full_one(void *arg) {
    struct coil__ring_queue q = {0};
    if (coil__ring_queue_reserve(&q, 1)) return 1;
    for (uint32_t i = 0, n = q.mask + 2; i < n; i++)
        coil__ring_queue_push(&q, arg);
    return 0;
}

Test(ring_queue, never_drops_an_item_for_want_of_room) {
    cr_assert(check_aborts(push_into_a_full_one, NULL, "internal check failed"));
}
