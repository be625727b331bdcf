/* Growable FIFO of pointers in one array. Room is made by reserving, so that putting something in never
 * fails. */
#ifndef COIL__RING_QUEUE_H
#define COIL__RING_QUEUE_H

#include "base.h"

#include <stdlib.h>

struct coil__ring_queue {
    void **at;
    uint32_t mask;       /* capacity - 1; the capacity is a power of two */
    uint32_t head, tail; /* count up for ever; tail - head is the number of items */
};

static inline uint32_t coil__ring_queue_count(const struct coil__ring_queue *q) {
    return q->tail - q->head;
}

/* Room for at least `count` items. 0 or -ENOMEM, and then nothing has changed. */
static inline int coil__ring_queue_reserve(struct coil__ring_queue *q, uint32_t count) {
    if (q->at && count <= q->mask + 1) return 0;
    uint32_t capacity = q->at ? (q->mask + 1) * 2 : 64;
    while (capacity < count)
        capacity *= 2;
    void **at = calloc(capacity, sizeof *at);
    if (!at) return -ENOMEM;
    uint32_t n = coil__ring_queue_count(q);
    CHECK(q->at || n == 0);
    for (uint32_t i = 0; i < n; i++)
        at[i] = q->at[(q->head + i) & q->mask];
    free(q->at);
    *q = (struct coil__ring_queue){.at = at, .mask = capacity - 1, .head = 0, .tail = n};
    return 0;
}

static inline void coil__ring_queue_free(struct coil__ring_queue *q) {
    free(q->at);
    *q = (struct coil__ring_queue){0};
}

static inline void coil__ring_queue_push(struct coil__ring_queue *q, void *item) {
    CHECK(coil__ring_queue_count(q) <= q->mask);
    q->at[q->tail++ & q->mask] = item;
}

static inline void *coil__ring_queue_pop(struct coil__ring_queue *q) {
    if (q->head == q->tail) return NULL;
    return q->at[q->head++ & q->mask];
}

/* The item `ahead` places behind the head; NULL where there is none. */
static inline void *coil__ring_queue_peek(const struct coil__ring_queue *q, uint32_t ahead) {
    return ahead < coil__ring_queue_count(q) ? q->at[(q->head + ahead) & q->mask] : NULL;
}

#endif
