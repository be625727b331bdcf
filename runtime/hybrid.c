/* A ring with an epoll set beside it, on kernels before 5.19.
 *
 * Without COOP_TASKRUN a completion interrupts the worker: each poll request that comes true sends an
 * interrupt to a worker that runs, and with a poll request per wait that is one for each message, dearer than
 * the poll itself (measured: an echo costs half as much again as over plain epoll). An epoll set gathers
 * events without a word. So here POLL_ADD goes to the epoll driver, everything else to the ring, and the
 * worker waits in epoll_wait, with the ring's own descriptor in the set. Where streams have multishot
 * receives, few requests are polls, and the ring is left alone. */
#include "hybrid.h"
#include "caps.h"
#include "poll.h"

#include <poll.h>
#include <stdlib.h>

struct hybrid {
    struct coil__driver d;
    struct coil__driver *ring, *set;
    struct coil__req ring_poll; /* the ring's descriptor, in the set */
    bool watching;              /* ring_poll is under way */
};

static struct hybrid *hybrid_of(struct coil__driver *d) {
    return CONTAINER_OF(d, struct hybrid, d);
}

static struct coil__driver *home_of(struct coil__driver *d, const struct coil__req *r) {
    struct hybrid *h = hybrid_of(d);
    return r->sqe.opcode == IORING_OP_POLL_ADD ? h->set : h->ring;
}

static void hybrid_queue(struct coil__driver *d, struct coil__req *r) {
    struct coil__driver *home = home_of(d, r);
    home->ops->queue(home, r);
}

static void hybrid_cancel(struct coil__driver *d, struct coil__req *r) {
    struct coil__driver *home = home_of(d, r);
    home->ops->cancel(home, r);
}

static void watch_ring(struct hybrid *h) {
    if (h->watching) return;
    h->set->ops->queue(h->set, &h->ring_poll);
    h->watching = true;
}

static void count(struct hybrid *h) {
    h->d.stats.enters = h->ring->stats.enters + h->set->stats.enters;
    h->d.stats.sq_full = h->ring->stats.sq_full;
    h->d.stats.cq_overflow = h->ring->stats.cq_overflow;
}

/* A completion that comes between the two calls makes the ring's descriptor readable, so that the second
 * doesn't wait. */
static void hybrid_enter(struct coil__driver *d, int64_t until_ns) {
    struct hybrid *h = hybrid_of(d);
    h->ring->ops->enter(h->ring, 0);
    if (!coil__ring_idle(h->ring) || h->ring->ops->ready(h->ring)) until_ns = 0;
    watch_ring(h);
    h->set->ops->enter(h->set, until_ns);
    count(h);
}

static bool hybrid_ready(struct coil__driver *d) {
    struct hybrid *h = hybrid_of(d);
    return h->ring->ops->ready(h->ring) || h->set->ops->ready(h->set);
}

/* The set's completions, without the driver's own. */
static unsigned reap_set(struct hybrid *h, struct io_uring_cqe *out, unsigned max) {
    unsigned n = h->set->ops->reap(h->set, out, max);
    for (unsigned i = 0; h->watching && i < n; i++) {
        if (out[i].user_data != COIL__TAG_DRIVER) continue;
        h->watching = false;
        out[i] = out[--n];
    }
    return n;
}

static unsigned hybrid_reap(struct coil__driver *d, struct io_uring_cqe *out, unsigned max) {
    struct hybrid *h = hybrid_of(d);
    unsigned n = h->ring->ops->reap(h->ring, out, max);
    if (n < max) n += reap_set(h, out + n, max - n);
    count(h);
    return n;
}

static void hybrid_wake(struct coil__driver *d) {
    struct hybrid *h = hybrid_of(d);
    h->set->ops->wake(h->set);
}

static void hybrid_give(struct coil__driver *d, uint32_t buffer) {
    (void)d;
    (void)buffer;
    CHECK(!"a driver without a pool is given a buffer");
}

static void hybrid_destroy(struct coil__driver *d) {
    struct hybrid *h = hybrid_of(d);
    struct io_uring_cqe cqes[4];
    if (h->watching) {
        h->set->ops->cancel(h->set, &h->ring_poll);
        h->set->ops->enter(h->set, 0);
        CHECK(reap_set(h, cqes, ARRAY_SIZE(cqes)) == 0 && !h->watching);
    }
    h->ring->ops->destroy(h->ring);
    h->set->ops->destroy(h->set);
    free(h);
}

static const struct coil__driver_ops hybrid_ops = {
    .destroy = hybrid_destroy,
    .queue = hybrid_queue,
    .cancel = hybrid_cancel,
    .enter = hybrid_enter,
    .ready = hybrid_ready,
    .reap = hybrid_reap,
    .wake = hybrid_wake,
    .give = hybrid_give,
};

static void watch_with(struct hybrid *h, struct coil__driver *ring, struct coil__driver *set) {
    struct io_uring_sqe *sqe = &h->ring_poll.sqe;
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = coil__ring_fd(ring);
    sqe->poll_events = POLLIN;
    sqe->user_data = COIL__TAG_DRIVER;
    h->ring = ring;
    h->set = set;
    h->d.ops = &hybrid_ops;
    h->d.sys = ring->sys;
    h->d.kind = ring->kind;
    /* The set knows one kind of poll. */
    h->d.caps = ring->caps & ~COIL__CAP_BIT(POLL_MULTI);
}

int coil__hybrid_open(const struct coil__ring_opts *o, struct coil__driver **out,
                      struct coil__driver_error *err) {
    struct coil__driver *ring, *set;
    int code = coil__ring_open(o, &ring, err);
    if (code) return code;
    *out = ring;
    if (ring->caps & (COIL__CAP_BIT(COOP_TASKRUN) | COIL__CAP_BIT(RECV_MULTI))) return 0;
    struct hybrid *h = calloc(1, sizeof *h);
    if (!h || coil__poll_open(o->caps_unused, &set, err)) {
        free(h);
        return 0; /* the ring alone does it too */
    }
    watch_with(h, ring, set);
    *out = &h->d;
    return 0;
}
