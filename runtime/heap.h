/* 4-ary min-heap of nodes with a 64-bit key; nodes with the same key come out in the order in which they were
 * put in. Its array grows only when a seat is taken, so that putting a node in, moving it and taking it out
 * can never fail.
 *
 * Nodes that are put in one after the other with the same key (tasks under one limit) form a chain, a ring
 * whose first one alone stands in the heap: so that any number of them that are due together come out without
 * sifting. Of two chains with the same key the one that was begun earlier comes first. */
#ifndef COIL__HEAP_H
#define COIL__HEAP_H

#include "base.h"

#include <stdlib.h>

struct coil__heap_node {
    int64_t key;
    uint32_t pos;   /* index + 1; 0: it stands in a chain behind the first, or not at all */
    uint32_t order; /* of a chain's first: when it was begun; wraps */
    struct coil__heap_node *next, *prev; /* in its chain; NULL: not in the heap */
};

/* The key stands beside the pointer so that sifting doesn't touch the nodes it compares with, unless they are
 * equal. */
struct coil__heap_entry {
    int64_t key;
    struct coil__heap_node *node;
};

struct coil__heap {
    struct coil__heap_entry *at;
    struct coil__heap_node
        *last;        /* first of the chain that the last node went to; NULL: it is no longer there */
    uint32_t entries; /* in `at`: chains */
    uint32_t count, seats, capacity;
    uint32_t order;
};

static inline bool coil__heap_has(const struct coil__heap_node *n) {
    return n->next != NULL;
}

/* Makes room for one more node, for as long as the seat is kept. 0 or -ENOMEM. */
static inline int coil__heap_take_seat(struct coil__heap *h) {
    if (UNLIKELY(h->seats == h->capacity)) {
        uint32_t grown = h->capacity ? h->capacity * 2 : 64;
        struct coil__heap_entry *at = realloc(h->at, grown * sizeof *at);
        if (!at) return -ENOMEM;
        h->at = at;
        h->capacity = grown;
    }
    h->seats++;
    return 0;
}

static inline void coil__heap_give_seat(struct coil__heap *h) {
    CHECK(h->seats > h->count);
    h->seats--;
}

static inline void coil__heap_free(struct coil__heap *h) {
    free(h->at);
    *h = (struct coil__heap){0};
}

static inline bool coil__heap_before(const struct coil__heap_entry *a, const struct coil__heap_entry *b) {
    if (LIKELY(a->key != b->key)) return a->key < b->key;
    return (int32_t)(a->node->order - b->node->order) < 0;
}

static inline void coil__heap_set(struct coil__heap *h, uint32_t i, struct coil__heap_entry e) {
    h->at[i] = e;
    e.node->pos = i + 1;
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

static inline void coil__heap_put(struct coil__heap *h, struct coil__heap_node *n, int64_t key) {
    CHECK(!coil__heap_has(n));
    CHECK(h->count < h->seats);
    h->count++;
    n->key = key;
    struct coil__heap_node *first = h->last;
    if (first && first->key == key) {
        n->pos = 0;
        n->next = first;
        n->prev = first->prev;
        first->prev->next = n;
        first->prev = n;
        return;
    }
    n->order = h->order++;
    n->next = n->prev = n;
    h->last = n;
    coil__heap_up(h, h->entries++, (struct coil__heap_entry){key, n});
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
    struct coil__heap_node *next = n->next;
    h->count--;
    if (next == n) {
        if (h->last == n) h->last = NULL;
        coil__heap_remove_at(h, n->pos - 1);
    } else {
        n->prev->next = next;
        next->prev = n->prev;
        if (n->pos) { /* it was the chain's first */
            next->pos = n->pos;
            next->order = n->order;
            h->at[n->pos - 1].node = next;
            if (h->last == n) h->last = next;
        }
    }
    n->next = n->prev = NULL;
    n->pos = 0;
}

/* The node with the least key; NULL in an empty heap. */
static inline struct coil__heap_node *coil__heap_first(const struct coil__heap *h) {
    return h->entries ? h->at[0].node : NULL;
}

#endif
