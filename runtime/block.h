/* Cache of 4 KiB blocks, one per worker: what streams buffer their output in. The block that was given back
 * last is taken first, so that a thousand streams that are flushed every turn share the few blocks that are
 * in the processor's cache. */
#ifndef COIL__BLOCK_H
#define COIL__BLOCK_H

#include "base.h"

#include <stdlib.h>

enum { COIL__BLOCK_SIZE = 4096, COIL__BLOCKS_KEPT = 256 };

struct coil__block {
    struct coil__block *next;
};

struct coil__block_cache {
    struct coil__block *first;
    unsigned count;
};

static inline void *coil__block_get(struct coil__block_cache *c) {
    struct coil__block *b = c->first;
    if (!b) return malloc(COIL__BLOCK_SIZE);
    c->first = b->next;
    c->count--;
    return b;
}

static inline void coil__block_put(struct coil__block_cache *c, void *block) {
    struct coil__block *b = block;
    if (c->count == COIL__BLOCKS_KEPT) {
        free(b);
        return;
    }
    b->next = c->first;
    c->first = b;
    c->count++;
}

static inline void coil__block_cache_free(struct coil__block_cache *c) {
    while (c->first) {
        struct coil__block *b = c->first;
        c->first = b->next;
        free(b);
    }
    c->count = 0;
}

#endif
