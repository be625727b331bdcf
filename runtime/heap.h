/* 4-ary min-heap of nodes with a 64-bit key; nodes with the same key come out in the order in which they were
 * put in. Its tables grow only when a seat is taken, so that putting a node in, moving it and taking it out
 * can never fail.
 *
 * A node that is in the heap has a number, and the heap moves numbers: with many timers, records of tasks are
 * far apart, and sifting through them would miss the cache at each step. Nodes that are put in one after the
 * other with the same key (tasks under one limit) form a chain, whose first one alone stands in the heap: so
 * that any number of them that are due together come out without sifting. */
#ifndef COIL__HEAP_H
#define COIL__HEAP_H

#include "base.h"

#include <stdlib.h>

struct coil__heap_node {
    int64_t key;
    uint32_t number; /* + 1; 0: not in the heap */
};

struct coil__heap_entry {
    int64_t key;
    uint32_t order;  /* of putting in; wraps */
    uint32_t number; /* of the chain's first */
};

struct coil__heap_seat {
    struct coil__heap_node *node;
    uint32_t next, prev; /* in its chain, a ring; `next` of a free one: the next free one */
};

struct coil__heap {
    struct coil__heap_entry *at;
    uint32_t *pos; /* of a number: index in `at` + 1; 0: in a chain behind its first */
    struct coil__heap_seat *seat;
    uint32_t entries; /* in `at` */
    uint32_t count, seats, capacity;
    uint32_t free, numbers; /* the first free number given before; how many were given at all */
    uint32_t last;          /* first of the chain that the last node went to, if that is still there, + 1 */
    uint32_t order;
};

static inline bool coil__heap_has(const struct coil__heap_node *n) {
    return n->number != 0;
}

static inline int coil__heap_grow(struct coil__heap *h) {
    uint32_t grown = h->capacity ? h->capacity * 2 : 64;
    void *at = realloc(h->at, grown * sizeof *h->at);
    if (at) h->at = at;
    void *pos = realloc(h->pos, grown * sizeof *h->pos);
    if (pos) h->pos = pos;
    void *seat = realloc(h->seat, grown * sizeof *h->seat);
    if (seat) h->seat = seat;
    if (!at || !pos || !seat) return -ENOMEM;
    h->capacity = grown;
    return 0;
}

/* Makes room for one more node, for as long as the seat is kept. 0 or -ENOMEM. */
static inline int coil__heap_take_seat(struct coil__heap *h) {
    if (UNLIKELY(h->seats == h->capacity) && coil__heap_grow(h)) return -ENOMEM;
    h->seats++;
    return 0;
}

static inline void coil__heap_give_seat(struct coil__heap *h) {
    CHECK(h->seats > h->count);
    h->seats--;
}

static inline void coil__heap_free(struct coil__heap *h) {
    free(h->at);
    free(h->pos);
    free(h->seat);
    *h = (struct coil__heap){0};
}

static inline bool coil__heap_before(const struct coil__heap_entry *a, const struct coil__heap_entry *b) {
    if (LIKELY(a->key != b->key)) return a->key < b->key;
    return (int32_t)(a->order - b->order) < 0;
}

static inline void coil__heap_set(struct coil__heap *h, uint32_t i, struct coil__heap_entry e) {
    h->at[i] = e;
    h->pos[e.number] = i + 1;
}

static inline void coil__heap_up(struct coil__heap *h, uint32_t i, struct coil__heap_entry e) {
    while (i > 0) {
        uint32_t parent = (i - 1) / 4;
        if (!coil__heap_before(&e, &h->at[parent])) break;
        coil__heap_set(h, i, h->at[parent]);
        i = parent;
    }
    coil__heap_set(h, i, e);
}

static inline void coil__heap_down(struct coil__heap *h, uint32_t i, struct coil__heap_entry e) {
    for (;;) {
        uint32_t first = i * 4 + 1, least = first;
        if (first >= h->entries) break;
        uint32_t end = MIN(first + 4, h->entries);
        for (uint32_t c = first + 1; c < end; c++) {
            if (coil__heap_before(&h->at[c], &h->at[least])) least = c;
        }
        if (!coil__heap_before(&h->at[least], &e)) break;
        coil__heap_set(h, i, h->at[least]);
        i = least;
    }
    coil__heap_set(h, i, e);
}

static inline uint32_t coil__heap_take_number(struct coil__heap *h) {
    if (h->free == 0) return h->numbers++;
    uint32_t number = h->free - 1;
    h->free = h->seat[number].next;
    return number;
}

static inline void coil__heap_put(struct coil__heap *h, struct coil__heap_node *n, int64_t key) {
    CHECK(!coil__heap_has(n));
    CHECK(h->count < h->seats);
    h->count++;
    uint32_t number = coil__heap_take_number(h);
    struct coil__heap_seat *seat = &h->seat[number];
    *n = (struct coil__heap_node){.key = key, .number = number + 1};
    seat->node = n;
    if (h->last && h->at[h->pos[h->last - 1] - 1].key == key) {
        struct coil__heap_seat *head = &h->seat[h->last - 1];
        seat->next = h->last - 1;
        seat->prev = head->prev;
        h->seat[head->prev].next = number;
        head->prev = number;
        h->pos[number] = 0;
        return;
    }
    seat->next = seat->prev = number;
    h->last = number + 1;
    coil__heap_up(h, h->entries++, (struct coil__heap_entry){key, h->order++, number});
}

static inline void coil__heap_remove_at(struct coil__heap *h, uint32_t i) {
    struct coil__heap_entry last = h->at[--h->entries];
    if (i == h->entries) return;
    if (i > 0 && coil__heap_before(&last, &h->at[(i - 1) / 4])) {
        coil__heap_up(h, i, last);
    } else {
        coil__heap_down(h, i, last);
    }
}

static inline void coil__heap_remove(struct coil__heap *h, struct coil__heap_node *n) {
    CHECK(coil__heap_has(n));
    uint32_t number = n->number - 1, pos = h->pos[number];
    struct coil__heap_seat *seat = &h->seat[number];
    uint32_t next = seat->next;
    CHECK(seat->node == n);
    n->number = 0;
    h->count--;
    if (next == number) {
        if (h->last == number + 1) h->last = 0;
        coil__heap_remove_at(h, pos - 1);
    } else {
        h->seat[seat->prev].next = next;
        h->seat[next].prev = seat->prev;
        if (pos) { /* it was the chain's first */
            h->at[pos - 1].number = next;
            h->pos[next] = pos;
            if (h->last == number + 1) h->last = next + 1;
        }
    }
    seat->next = h->free;
    h->free = number + 1;
}

/* The node with the least key; NULL in an empty heap. */
static inline struct coil__heap_node *coil__heap_first(const struct coil__heap *h) {
    return h->entries ? h->seat[h->at[0].number].node : NULL;
}

#endif
