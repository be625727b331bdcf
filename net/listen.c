/* Listening and accepting.
 *
 * The listener owns one request: a multishot accept, or a poll after which accept4 empties the backlog. What
 * it brings waits in a queue until a task takes it; with enough in the queue the request is taken back, and
 * the kernel's backlog holds the rest. Where descriptors or memory run out, the listener rests for a while:
 * asking again at once would fail at once.
 *
 * Tasks that are inside keep the listener alive: a close marks it, wakes them, and waits until the last one
 * has left. */
#include "listen.h"
#include "caps.h"
#include "ring_queue.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

enum {
    BACKLOG = 4096,
    QUEUE_ENOUGH = 128,       /* connections accepted and not yet taken */
    ACCEPTS_PER_TURN = 64,    /* by accept4, before others have a turn */
    PORT_TRIES = 100,         /* for a port that its last user is still letting go of */
    PORT_RETRY_NS = 10000000, /* between them */
};

static const int64_t rest_first_ns = 10000000, rest_max_ns = 500000000;

struct coil_listener {
    struct coil__worker *w;
    int fd;
    bool multishot;
    bool closing;
    bool abandoned;  /* left open at the end of the run */
    int err;         /* of an accept, for the next task that asks */
    int64_t rest_ns; /* how long the next rest is */
    uint32_t inside; /* tasks in accept, or in serve */
    struct coil__list waiters;
    struct coil__list watchers; /* wait for something else, but not beyond a close */
    struct coil__list closers;  /* wait until nobody is inside, or until op has ended */
    struct coil__op op;
    struct coil__timer rest; /* armed: it rests */
    struct coil__object object;
    struct coil__ring_queue queue; /* of descriptors */
};

bool coil__is_shortage(int err) {
    return err == -EMFILE || err == -ENFILE || err == -ENOBUFS || err == -ENOMEM;
}

/* Errors of one connection that broke before it was taken: see accept(2). */
static bool is_passing(int err) {
    return err == -ECONNABORTED || err == -EPROTO || err == -ENETDOWN || err == -EINTR || err == -EPERM ||
           err == -ENOPROTOOPT || err == -EHOSTDOWN || err == -EHOSTUNREACH || err == -ENETUNREACH;
}

/* ---- accepting ---- */

static void wake_one(struct coil__list *waiting) {
    struct coil__node *n = coil__list_pop(waiting);
    if (n) coil__ready(CONTAINER_OF(n, struct coil__wait, entry.node), 0);
}

static void wake_all(struct coil__list *waiting) {
    while (!coil__list_empty(waiting))
        wake_one(waiting);
}

static int arm(coil_listener *l) {
    if (l->multishot) {
        coil__op_prep(&l->op, IORING_OP_ACCEPT, l->fd, NULL, 0, 0);
        l->op.req.sqe.ioprio = IORING_ACCEPT_MULTISHOT;
        l->op.req.sqe.accept_flags = SOCK_CLOEXEC;
    } else {
        coil__op_prep(&l->op, IORING_OP_POLL_ADD, l->fd, NULL, 0, 0);
        l->op.req.sqe.poll32_events = coil__poll_mask(POLLIN);
    }
    return coil__op_begin(l->w, &l->op);
}

static bool rests(const coil_listener *l) {
    return coil__heap_has(&l->rest.node);
}

static uint32_t queued(const coil_listener *l) {
    return coil__ring_queue_count(&l->queue);
}

static void take_rest(coil_listener *l) {
    coil__timer_arm(&l->w->s, &l->rest, coil__add_ns(coil__clock(&l->w->s), l->rest_ns));
    l->rest_ns = MIN(l->rest_ns * 2, rest_max_ns);
}

static void failed(coil_listener *l, int err) {
    if (err == -ECANCELED || err == -EAGAIN || is_passing(err)) return;
    if (coil__is_shortage(err)) take_rest(l);
    l->err = err;
    wake_one(&l->waiters);
}

/* Goes on where tasks wait and nothing is armed. */
static void go_on(coil_listener *l) {
    if (l->op.live || l->closing || queued(l) || l->err || rests(l) || coil__list_empty(&l->waiters)) return;
    int err = arm(l);
    if (err) failed(l, err);
}

static void rest_over(struct coil__timer *timer) {
    go_on(CONTAINER_OF(timer, struct coil_listener, rest));
}

/* How many a multishot accept brings before it can be taken back is the kernel's affair, so the queue grows.
 */
static void accepted(coil_listener *l, int fd) {
    if (coil__ring_queue_reserve(&l->queue, queued(l) + 1)) {
        coil__sys_of(l->w)->close(fd);
        failed(l, -ENOMEM);
        return;
    }
    coil__ring_queue_push(&l->queue, (void *)(intptr_t)fd);
    l->rest_ns = rest_first_ns;
    wake_one(&l->waiters);
}

static void accept_ready(coil_listener *l) {
    for (int i = 0; i < ACCEPTS_PER_TURN && queued(l) < QUEUE_ENOUGH; i++) {
        int fd = coil__sys_of(l->w)->accept(l->fd, 0);
        if (fd >= 0) {
            accepted(l, fd);
        } else if (!is_passing(fd)) {
            failed(l, fd);
            return;
        }
    }
}

static void close_abandoned(coil_listener *l);

static void settled(coil_listener *l) {
    wake_all(&l->closers);
    if (l->abandoned) close_abandoned(l);
}

static void done(struct coil__op *op, int res, uint32_t flags) {
    coil_listener *l = CONTAINER_OF(op, struct coil_listener, op);
    if (res < 0) {
        failed(l, res);
    } else if (l->multishot) {
        accepted(l, res);
    } else {
        accept_ready(l);
    }
    if (l->op.live && queued(l) >= QUEUE_ENOUGH) coil__op_abort(l->w, &l->op);
    if (flags & IORING_CQE_F_MORE) return;
    go_on(l);
    settled(l);
}

/* ---- a task accepts ---- */

static int await_connection(coil_listener *l, struct coil__task *t) {
    struct coil__wait w = {.abort = coil__wait_leave, .what = "accept", .fd = l->fd, .outside = true};
    int err = l->op.live || rests(l) ? 0 : arm(l);
    if (err) return err;
    coil__list_push(&l->waiters, &w.entry.node);
    coil__park_until(t, &w, t->limit_ns);
    return w.interrupted ? coil__stop_error(t) : 0;
}

/* Where there is no memory for the stream, the connection stays the first in the queue. */
static int take(coil_listener *l, coil_stream **out) {
    int fd = (int)(intptr_t)coil__ring_queue_peek(&l->queue, 0);
    int err = coil__stream_new(l->w, fd, true, out);
    if (err) return err;
    coil__ring_queue_pop(&l->queue);
    return 0;
}

static int next_connection(coil_listener *l, struct coil__task *t, coil_stream **out) {
    for (;;) {
        if (l->closing) return -EBADF;
        if (queued(l)) return take(l, out);
        int err = l->err;
        l->err = 0;
        if (!err) err = await_connection(l, t);
        if (err) return err;
    }
}

int coil_listener_accept(coil_listener *l, coil_stream **out) {
    struct coil__task *t = coil__current("coil_listener_accept");
    int err = coil__admit(t);
    if (out) *out = NULL;
    if (err) return err;
    if (!l || !out) return coil__failed(t, -EINVAL);
    coil__listener_enter(l);
    err = next_connection(l, t, out);
    /* A wake-up that this task got and didn't need (a cancel came between) goes on to the next; and a request
     * that ended while there was a queue is made again for those who still wait. */
    if (queued(l)) wake_one(&l->waiters);
    go_on(l);
    coil__listener_leave(l);
    coil__charge(t);
    return err;
}

void coil__listener_enter(coil_listener *l) {
    l->inside++;
}

void coil__listener_leave(coil_listener *l) {
    l->inside--;
    if (l->closing) settled(l);
}

void coil__listener_watch(coil_listener *l, struct coil__wait *w) {
    coil__list_push(&l->watchers, &w->entry.node);
}

bool coil__listener_closing(const coil_listener *l) {
    return l->closing;
}

/* ---- life ---- */

static int bind_and_listen(const struct coil__sys *sys, int fd, const coil_addr *a,
                           const coil_listen_opts *o) {
    int err = 0;
    if (a->u.sa.sa_family != AF_UNIX) err = coil__sock_set(sys, fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (!err && o->reuse_port) err = coil__sock_set(sys, fd, SOL_SOCKET, SO_REUSEPORT, 1);
    if (!err && a->u.sa.sa_family == AF_INET6)
        err = coil__sock_set(sys, fd, IPPROTO_IPV6, IPV6_V6ONLY, o->v6_only);
    if (!err) err = sys->bind(fd, &a->u.sa, a->len);
    if (!err) err = sys->listen(fd, o->backlog ? o->backlog : BACKLOG);
    return err;
}

/* A listening descriptor, or negative errno. */
static int open_socket(const struct coil__sys *sys, const coil_addr *a, const coil_listen_opts *o) {
    int fd = coil__sock_open(sys, a);
    if (fd < 0) return fd;
    int err = bind_and_listen(sys, fd, a, o);
    if (!err) return fd;
    sys->close(fd);
    return err;
}

static void take_back(struct coil__object *o);

static int new_listener(struct coil__worker *w, int fd, coil_listener **out) {
    coil_listener *l = calloc(1, sizeof *l);
    if (!l) return -ENOMEM;
    if (coil__heap_take_seat(&w->s.timers)) {
        free(l);
        return -ENOMEM;
    }
    l->w = w;
    l->fd = fd;
    l->rest_ns = rest_first_ns;
    l->multishot = w->s.driver->caps & COIL__CAP_BIT(ACCEPT_MULTI);
    /* accept4 must say when the backlog is empty; a multishot accept waits for the next one whatever the flag
     * says. */
    if (!l->multishot) coil__sys_of(w)->set_flags(fd, O_RDWR | O_NONBLOCK);
    l->rest.fire = rest_over;
    coil__op_init(&l->op);
    l->op.done = done;
    coil__list_init(&l->waiters);
    coil__list_init(&l->watchers);
    coil__list_init(&l->closers);
    l->object.what = "listener";
    l->object.take_back = take_back;
    coil__list_push(&w->objects, &l->object.node);
    *out = l;
    return 0;
}

/* What held a port is let go of some milliseconds after its process has ended. */
static int listen_at(coil_listener **out, struct coil__task *t, const coil_addr *a,
                     const coil_listen_opts *o) {
    struct coil__worker *w = coil__worker_of(t->sched);
    int fd = open_socket(coil__sys_of(w), a, o);
    for (int i = 0; fd == -EADDRINUSE && i < PORT_TRIES; i++) {
        int err = coil_sleep((coil_dur){PORT_RETRY_NS});
        if (err) return err;
        fd = open_socket(coil__sys_of(w), a, o);
    }
    if (fd < 0) return coil__failed(t, fd);
    int err = new_listener(w, fd, out);
    if (!err) return 0;
    coil__sys_of(w)->close(fd);
    return coil__failed(t, err);
}

static int begin_listen(coil_listener **out, const coil_listen_opts **o) {
    static const coil_listen_opts defaults;
    if (!out) return -EINVAL;
    *out = NULL;
    if (!*o) *o = &defaults;
    return RESERVED_ZERO(*o) && (*o)->backlog >= 0 ? 0 : -EINVAL;
}

int coil_listen_addr(coil_listener **out, const coil_addr *where, const coil_listen_opts *o) {
    struct coil__task *t = coil__current("coil_listen_addr");
    int err = coil__admit(t);
    if (out) *out = NULL;
    if (err) return err;
    err = begin_listen(out, &o);
    if (!err) err = coil__addr_check(where);
    return err ? coil__failed(t, err) : listen_at(out, t, where, o);
}

/* ":port" means both families, which takes IPv6; a machine without it still has the other. */
static bool is_any_v6(const coil_addr *a) {
    return a->u.sa.sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&a->u.in6.sin6_addr);
}

int coil_listen(coil_listener **out, const char *where, const coil_listen_opts *o) {
    struct coil__task *t = coil__current("coil_listen");
    coil_addr a;
    int err = coil__admit(t);
    if (out) *out = NULL;
    if (err) return err;
    err = begin_listen(out, &o);
    if (!err) err = coil_addr_parse(&a, where);
    if (err) return coil__failed(t, err);
    err = listen_at(out, t, &a, o);
    if (err != -EAFNOSUPPORT || where[0] != ':' || !is_any_v6(&a)) return err;
    coil_addr v4 = {.len = sizeof v4.u.in, .u.in = {.sin_family = AF_INET, .sin_port = a.u.in6.sin6_port}};
    return listen_at(out, t, &v4, o);
}

int coil_listener_addr(const coil_listener *l, coil_addr *out) {
    coil__current("coil_listener_addr");
    if (!l || !out) return -EINVAL;
    return coil__sock_local(coil__sys_of(l->w), l->fd, out);
}

static void wait_settled(coil_listener *l, struct coil__task *t) {
    struct coil__wait w = {.what = "close", .fd = l->fd, .outside = true};
    coil__list_push(&l->closers, &w.entry.node);
    coil__park_always(t, &w);
}

void coil__listener_pause(coil_listener *l) {
    struct coil__task *t = coil__current("coil_serve");
    if (l->op.live && coil__list_empty(&l->waiters)) coil__op_abort(l->w, &l->op);
    while (l->op.live && l->op.cancelling)
        wait_settled(l, t);
}

static void dispose(coil_listener *l) {
    const struct coil__sys *sys = coil__sys_of(l->w);
    while (queued(l))
        sys->close((int)(intptr_t)coil__ring_queue_pop(&l->queue));
    coil__ring_queue_free(&l->queue);
    coil__timer_disarm(&l->w->s, &l->rest);
    coil__heap_give_seat(&l->w->s.timers);
    if (coil__node_linked(&l->object.node)) coil__node_unlink(&l->object.node);
    sys->close(l->fd);
    free(l);
}

int coil_listener_close(coil_listener *l) {
    struct coil__task *t = coil__current("coil_listener_close");
    if (!l) return 0;
    if (l->closing) return -EBADF;
    l->closing = true;
    wake_all(&l->waiters);
    wake_all(&l->watchers);
    if (l->op.live) coil__op_abort(l->w, &l->op);
    while (l->op.live || l->inside)
        wait_settled(l, t);
    dispose(l);
    return 0;
}

static void close_abandoned(coil_listener *l) {
    if (!l->op.live) dispose(l);
}

static void take_back(struct coil__object *o) {
    coil_listener *l = CONTAINER_OF(o, struct coil_listener, object);
    l->closing = l->abandoned = true;
    if (l->op.live) {
        coil__op_abort(l->w, &l->op);
    } else {
        dispose(l);
    }
}
