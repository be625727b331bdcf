/* Channels, for select: what can be had now, and the lists to wait in. */
#ifndef COIL__CHAN_H
#define COIL__CHAN_H

#include "task.h"

#include "coil/chan.h"

/* Behind coil_chan. */
struct coil__chan {
    void *buf; /* `count` items from place `head` on, round the end */
    size_t item_size, capacity;
    uint64_t flags;
    size_t head, count;
    struct coil__list receivers, senders; /* of coil__waiter; set up by the first use */
    uint32_t worker;                      /* whose tasks use it; 0: nobody has yet */
};

enum { COIL__CHAN_OPEN = COIL_CHAN_OPEN_, COIL__CHAN_CLOSED = 2, COIL__CHAN_ALLOCATED = 4 };

COLD void coil__chan_adopt(struct coil__chan *c, struct coil__sched *s, const char *call);

/* The channel, for a task of this worker. */
static inline struct coil__chan *coil__chan_of(coil_chan *chan, struct coil__sched *s, const char *call) {
    struct coil__chan *c = (struct coil__chan *)(void *)chan;
    if (UNLIKELY(c->worker != s->worker)) coil__chan_adopt(c, s, call);
    return c;
}

/* Whether a receive or a send would be over at once; a closed channel keeps nobody waiting. */
static inline bool coil__chan_can_recv(const struct coil__chan *c) {
    return c->count || !coil__list_empty(&c->senders) || c->flags & COIL__CHAN_CLOSED;
}

static inline bool coil__chan_can_send(const struct coil__chan *c) {
    return c->count < c->capacity || !coil__list_empty(&c->receivers) || c->flags & COIL__CHAN_CLOSED;
}

/* What coil_chan_tryrecv and coil_chan_trysend return. */
int coil__chan_recv(struct coil__chan *c, void *item);
int coil__chan_send(struct coil__chan *c, const void *item);

#endif
