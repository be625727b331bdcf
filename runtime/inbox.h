/* Queue with many writers (threads, and signal handlers) and one reader, the worker. Writing is one
 * compare-and-swap and never allocates; the reader takes everything at once, in the order in which it was
 * written. */
#ifndef COIL__INBOX_H
#define COIL__INBOX_H

#include "base.h"

#include <stdatomic.h>

/* A letter lies inside the object that it is about; that object sees to it that it is posted once at a time.
 */
struct coil__letter {
    struct coil__letter *next;
    void (*deliver)(
        struct coil__letter *l); /* runs in the worker; the letter may be posted again from then on */
};

struct coil__inbox {
    _Atomic(struct coil__letter *) newest;
};

static inline void coil__inbox_post(struct coil__inbox *in, struct coil__letter *l) {
    struct coil__letter *old = atomic_load_explicit(&in->newest, memory_order_relaxed);
    do {
        l->next = old;
    } while (!atomic_compare_exchange_weak_explicit(&in->newest, &old, l, memory_order_seq_cst,
                                                    memory_order_relaxed));
}

static inline bool coil__inbox_empty(struct coil__inbox *in) {
    return atomic_load(&in->newest) == NULL;
}

/* All letters, oldest first, linked by next. */
static inline struct coil__letter *coil__inbox_take(struct coil__inbox *in) {
    struct coil__letter *l = atomic_exchange_explicit(&in->newest, NULL, memory_order_acquire);
    struct coil__letter *oldest = NULL;
    while (l) {
        struct coil__letter *older = l->next;
        l->next = oldest;
        oldest = l;
        l = older;
    }
    return oldest;
}

#endif
