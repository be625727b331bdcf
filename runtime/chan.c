/* Channels. Whoever finds somebody waiting on the other side serves the first one there and then: the item is
 * copied between the two tasks' memories, and the waiter leaves its list before it is readied. Hence
 *   - a buffer with items in it has no receivers waiting, one with room no senders;
 *   - both kinds wait at once only where it is one select, for both on an unbuffered channel;
 *   - on a closed channel nobody waits.
 * A waiter that is cancelled only leaves its list: no item is on its way to it. */
#include "chan.h"
#include "timer.h"
#include "worker.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(struct coil__chan) == sizeof(coil_chan), "a channel fits its public type");
_Static_assert(offsetof(struct coil__chan, flags) == offsetof(coil_chan, opaque),
               "as COIL_CHAN_INIT_ has it");

static bool waited_for(const struct coil__chan *c) {
    return !coil__list_empty(&c->receivers) || !coil__list_empty(&c->senders);
}

static void is_there(struct coil__worker *w, void *arg) {
    (void)w;
    (void)arg;
}

/* The first use by this worker. */
void coil__chan_adopt(struct coil__chan *c, struct coil__sched *s, const char *call) {
    if (!(c->flags & COIL__CHAN_OPEN)) MISUSE(call, "this channel is not open");
    if (c->worker && (c->count || waited_for(c)) && coil__worker_with(c->worker, is_there, NULL))
        MISUSE(call, "this channel is in use by tasks of another worker");
    coil__list_init(&c->receivers);
    coil__list_init(&c->senders);
    c->worker = s->worker;
}

/* Most items are a pointer or a number. */
static inline void copy(void *to, const void *from, size_t n) {
    if (LIKELY(n == sizeof(uint64_t))) {
        memcpy(to, from, sizeof(uint64_t));
    } else if (n) {
        memcpy(to, from, n);
    }
}

static inline struct coil__waiter *first(struct coil__list *l) {
    return CONTAINER_OF(coil__list_pop(l), struct coil__waiter, node);
}

static inline void put(struct coil__chan *c, const void *item) {
    size_t at = c->head + c->count;
    if (at >= c->capacity) at -= c->capacity;
    copy((char *)c->buf + at * c->item_size, item, c->item_size);
    c->count++;
}

static inline void take(struct coil__chan *c, void *item) {
    copy(item, (char *)c->buf + c->head * c->item_size, c->item_size);
    if (++c->head == c->capacity) c->head = 0;
    c->count--;
}

static inline __attribute__((always_inline)) int send_now(struct coil__chan *c, const void *item) {
    if (UNLIKELY(c->flags & COIL__CHAN_CLOSED)) return -EPIPE;
    if (!coil__list_empty(&c->receivers)) {
        struct coil__waiter *e = first(&c->receivers);
        copy(e->item, item, c->item_size);
        coil__waiter_ready(e, 1);
        return 0;
    }
    if (c->count == c->capacity) return -EAGAIN;
    put(c, item);
    return 0;
}

static inline __attribute__((always_inline)) int recv_now(struct coil__chan *c, void *item) {
    if (c->count) {
        take(c, item);
        if (coil__list_empty(&c->senders)) return 1;
        struct coil__waiter *e = first(&c->senders);
        put(c, e->item);
        coil__waiter_ready(e, 0);
        return 1;
    }
    if (!coil__list_empty(&c->senders)) {
        struct coil__waiter *e = first(&c->senders);
        copy(item, e->item, c->item_size);
        coil__waiter_ready(e, 0);
        return 1;
    }
    return c->flags & COIL__CHAN_CLOSED ? 0 : -EAGAIN;
}

int coil__chan_send(struct coil__chan *c, const void *item) {
    return send_now(c, item);
}

int coil__chan_recv(struct coil__chan *c, void *item) {
    return recv_now(c, item);
}

/* Field by field: an initializer would have the whole record cleared first, which costs more than all the
 * rest of a hand-over. */
static int wait_in(struct coil__list *l, struct coil__task *t, const void *item, const char *what,
                   const struct coil__chan *c) {
    struct coil__wait w;
    w.abort = coil__wait_leave;
    w.entry.node.next = NULL;
    w.entry.won = NULL;
    w.entry.item = (void *)(uintptr_t)item;
    w.what = what;
    w.fd = -1;
    w.on = c;
    w.blocker = NULL;
    w.outside = w.interrupted = false;
    coil__list_push(l, &w.entry.node);
    coil__park_until(t, &w, t->limit_ns);
    return UNLIKELY(w.interrupted) ? coil__stop_error(t) : w.result;
}

int coil_chan_send(coil_chan *chan, const void *item) {
    struct coil__task *t = coil__current("coil_chan_send");
    int err = coil__admit(t);
    if (err) return err;
    struct coil__chan *c = coil__chan_of(chan, t->sched, "coil_chan_send");
    err = send_now(c, item);
    if (err == -EAGAIN) return wait_in(&c->senders, t, item, "channel send", c);
    coil__charge(t);
    return err;
}

int coil_chan_recv(coil_chan *chan, void *item) {
    struct coil__task *t = coil__current("coil_chan_recv");
    int err = coil__admit(t);
    if (err) return err;
    struct coil__chan *c = coil__chan_of(chan, t->sched, "coil_chan_recv");
    int got = recv_now(c, item);
    if (got == -EAGAIN) return wait_in(&c->receivers, t, item, "channel receive", c);
    coil__charge(t);
    return got;
}

int coil_chan_trysend(coil_chan *chan, const void *item) {
    struct coil__sched *s = coil__current("coil_chan_trysend")->sched;
    return send_now(coil__chan_of(chan, s, "coil_chan_trysend"), item);
}

int coil_chan_tryrecv(coil_chan *chan, void *item) {
    struct coil__sched *s = coil__current("coil_chan_tryrecv")->sched;
    return recv_now(coil__chan_of(chan, s, "coil_chan_tryrecv"), item);
}

int coil_chan_open(coil_chan *chan, size_t item_size, size_t capacity) {
    struct coil__chan *c = (struct coil__chan *)(void *)chan;
    size_t bytes;
    coil__current("coil_chan_open");
    memset(c, 0, sizeof *c);
    if (__builtin_mul_overflow(item_size, capacity, &bytes)) return -ENOMEM;
    void *buf = bytes ? malloc(bytes) : NULL;
    if (bytes && !buf) return -ENOMEM;
    c->buf = buf ? buf : c; /* never NULL: items of no size have places in it, too */
    c->item_size = item_size;
    c->capacity = capacity;
    c->flags = COIL__CHAN_OPEN | (buf ? COIL__CHAN_ALLOCATED : 0);
    return 0;
}

void coil_chan_close(coil_chan *chan) {
    struct coil__sched *s = coil__current("coil_chan_close")->sched;
    struct coil__chan *c = coil__chan_of(chan, s, "coil_chan_close");
    c->flags |= COIL__CHAN_CLOSED;
    while (!coil__list_empty(&c->receivers))
        coil__waiter_ready(first(&c->receivers), 0);
    while (!coil__list_empty(&c->senders))
        coil__waiter_ready(first(&c->senders), -EPIPE);
}

void coil_chan_destroy(coil_chan *chan) {
    struct coil__sched *s = coil__current("coil_chan_destroy")->sched;
    struct coil__chan *c = (struct coil__chan *)(void *)chan;
    if (c->flags & COIL__CHAN_OPEN) coil__chan_of(chan, s, "coil_chan_destroy");
    if (c->worker && waited_for(c)) MISUSE("coil_chan_destroy", "tasks wait on this channel");
    if (c->flags & COIL__CHAN_ALLOCATED) free(c->buf);
    memset(c, 0, sizeof *c);
}
