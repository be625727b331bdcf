/* 4-ary min-heap of nodes with a 64-bit key. Its array grows only when a seat is taken, so that putting a
 * node in, moving it and taking it out can never fail. */
#ifndef COIL__HEAP_H
#define COIL__HEAP_H

#include "base.h"

#include <stdlib.h>

struct coil__heap_node {
    int64_t key;
    uint32_t pos; /* index + 1; 0: not in the heap */
};

/* The key stands beside the pointer so that sifting doesn't touch the nodes it compares with. */
struct coil__heap_entry {
    int64_t key;
    struct coil__heap_node *node;
};

struct coil__heap {
    struct coil__heap_entry *at;
    uint32_t count, seats, capacity;
};

static inline bool coil__heap_has(const struct coil__heap_node *n) {
    return n->pos != 0;
}

/* Makes room for one more node, for as long as the seat is kept. 0 or -ENOMEM. */
static inline int coil__heap_take_seat(struct coil__heap *h) {
    if (h->seats == h->capacity) {
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

static inline void coil__heap_set(struct coil__heap *h, uint32_t i, struct coil__heap_entry e) {
    h->at[i] = e;
    e.node->pos = i + 1;
}

static inline void coil__heap_up(struct coil__heap *h, uint32_t i, struct coil__heap_entry e) {
    while (i > 0) {
        uint32_t parent = (i - 1) / 4;
        if (h->at[parent].key <= e.key) break;
        coil__heap_set(h, i, h->at[parent]);
        i = parent;
    }
    coil__heap_set(h, i, e);
}

static inline void coil__heap_down(struct coil__heap *h, uint32_t i, struct coil__heap_entry e) {
    for (;;) {
        uint32_t first = i * 4 + 1, least = first;
        if (first >= h->count) break;
        uint32_t end = MIN(first + 4, h->count);
        for (uint32_t c = first + 1; c < end; c++) {
            if (h->at[c].key < h->at[least].key) least = c;
        }
        if (h->at[least].key >= e.key) break;
        coil__heap_set(h, i, h->at[least]);
        i = least;
    }
    coil__heap_set(h, i, e);
}

static inline void coil__heap_put(struct coil__heap *h, struct coil__heap_node *n, int64_t key) {
    CHECK(!coil__heap_has(n));
    CHECK(h->count < h->seats);
    n->key = key;
    coil__heap_up(h, h->count++, (struct coil__heap_entry){key, n});
}

static inline void coil__heap_remove(struct coil__heap *h, struct coil__heap_node *n) {
    CHECK(coil__heap_has(n));
    uint32_t i = n->pos - 1;
    struct coil__heap_entry last = h->at[--h->count];
    n->pos = 0;
    if (i == h->count) return;
    if (i > 0 && h->at[(i - 1) / 4].key > last.key) {
        coil__heap_up(h, i, last);
    } else {
        coil__heap_down(h, i, last);
    }
}

/* The node with the least key; NULL in an empty heap. */
static inline struct coil__heap_node *coil__heap_first(const struct coil__heap *h) {
    return h->count ? h->at[0].node : NULL;
}

#endif
