/* The 4-ary heap, against a search through all nodes. */
#include "check.h"

#include "heap.h"

#include <stdlib.h>

enum { NODES = 300 };

static struct coil__heap_node nodes[NODES];

/* The least key of all that are in; the model's answer. */
static int64_t least_key(void) {
    int64_t least = INT64_MAX;
    for (int i = 0; i < NODES; i++) {
        if (coil__heap_has(&nodes[i]) && nodes[i].key < least) least = nodes[i].key;
    }
    return least;
}

/* When it was put in. */
static uint64_t put_at[NODES], put_count;

static void put(struct coil__heap *h, struct coil__heap_node *n, int64_t key) {
    coil__heap_put(h, n, key);
    put_at[n - nodes] = ++put_count;
}

/* Each node is in one chain; chains are of one key, and in the order of the heap. */
static void expect_sound(const struct coil__heap *h, uint32_t count) {
    uint32_t found = 0;
    cr_assert_eq(h->count, count);
    for (uint32_t i = 0; i < h->entries; i++) {
        const struct coil__heap_node *head = h->at[i].node, *n = head;
        if (i) cr_assert(!coil__heap_before(&h->at[i], &h->at[(i - 1) / 4]));
        do {
            cr_assert_eq(n->key, h->at[i].key);
            cr_assert_eq(n->next->prev, n);
            cr_assert_eq(n->pos, n == head ? i + 1 : 0);
            n = n->next;
            found++;
        } while (n != head);
    }
    cr_assert_eq(found, count);
    struct coil__heap_node *first = coil__heap_first(h);
    cr_assert_eq(first == NULL, count == 0);
    if (first) cr_assert_eq(first->key, least_key());
}

/* Keys come in runs, or chains would be short. */
static void random_steps(struct coil__heap *h, int keys) {
    uint32_t count = 0;
    int64_t key = 0;
    for (int i = 0; i < 3000; i++) {
        struct coil__heap_node *n = &nodes[rand() % NODES];
        if (rand() % 3 == 0) key = rand() % keys - keys / 2;
        if (coil__heap_has(n)) {
            coil__heap_remove(h, n);
            cr_assert_not(coil__heap_has(n));
            count--;
        } else {
            put(h, n, key);
            count++;
        }
        if (i % 16 == 0) expect_sound(h, count);
    }
    int64_t last = INT64_MIN;
    uint64_t last_put = 0;
    for (struct coil__heap_node *n; (n = coil__heap_first(h)); count--) {
        cr_assert_geq(n->key, last);
        if (n->key == last) cr_assert_gt(put_at[n - nodes], last_put, "equal keys come out in order");
        last = n->key;
        last_put = put_at[n - nodes];
        coil__heap_remove(h, n);
    }
    expect_sound(h, 0);
    cr_assert_eq(count, 0);
}

Test(heap, random_puts_and_removes_keep_the_least_key_first_and_equal_ones_in_order) {
    for (int seed = 0; seed < check_rounds(40); seed++) {
        struct coil__heap h = {.order = UINT32_MAX - 500}; /* which wraps on the way */
        srand((unsigned)seed);
        for (int i = 0; i < NODES; i++)
            cr_assert_eq(coil__heap_take_seat(&h), 0);
        random_steps(&h, seed % 2 ? 7 : 1 << 30);
        for (int i = 0; i < NODES; i++)
            coil__heap_give_seat(&h);
        cr_assert_eq(h.seats, 0);
        coil__heap_free(&h);
    }
}

Test(heap, takes_the_least_and_the_greatest_key) {
    struct coil__heap h = {0};
    cr_assert_eq(coil__heap_take_seat(&h) | coil__heap_take_seat(&h), 0);
    coil__heap_put(&h, &nodes[0], INT64_MAX);
    coil__heap_put(&h, &nodes[1], INT64_MIN);
    cr_assert(coil__heap_first(&h) == &nodes[1]);
    coil__heap_remove(&h, &nodes[1]);
    cr_assert(coil__heap_first(&h) == &nodes[0]);
    coil__heap_free(&h);
}

static int put_without_seat(void *arg) {
    struct coil__heap h = {0};
    (void)arg;
    coil__heap_put(&h, &nodes[0], 1);
    return 0;
}

static int give_a_seat_in_use(void *arg) {
    struct coil__heap h = {0};
    (void)arg;
    if (coil__heap_take_seat(&h)) return 1;
    coil__heap_put(&h, &nodes[0], 1);
    coil__heap_give_seat(&h);
    return 0;
}

Test(heap, nothing_is_put_in_without_a_seat) {
    cr_assert(check_aborts(put_without_seat, NULL, "internal check failed"));
    cr_assert(check_aborts(give_a_seat_in_use, NULL, "internal check failed"));
}
