/* The life of a stream: made, in use, closed. */
#include "stream.h"
#include "caps.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const coil_limits default_limits = {.read = {COIL__NEVER},
                                           .write = {60 * INT64_C(1000000000)},
                                           .idle = {COIL__NEVER},
                                           .high_water = 64 << 10,
                                           .read_buffer = 64 << 10};

/* ---- sides ---- */

struct side_wait {
    struct coil__wait wait;
    struct coil__side *side;
};

/* The request belongs to the stream and goes on: only the wait ends. */
static void side_abort(struct coil__wait *w) {
    CONTAINER_OF(w, struct side_wait, wait)->side->wait = NULL;
    coil__ready(w, 0);
}

int coil__side_park(coil_stream *s, struct coil__side *side, struct coil__task *t, const char *what,
                    int64_t until_ns) {
    struct side_wait w; /* not cleared as a whole: this is the way of every read that has to wait */
    w.side = side;
    w.wait.abort = side_abort;
    w.wait.what = what;
    w.wait.fd = s->fd;
    w.wait.on = s;
    w.wait.blocker = NULL;
    w.wait.outside = true;
    w.wait.interrupted = false;
    side->wait = &w.wait;
    coil__park_until(t, &w.wait, until_ns);
    return w.wait.interrupted ? coil__stop_error(t) : 0;
}

int coil__side_call(struct coil__side *side, struct coil__task *t, struct coil__op *op, const char *what,
                    int64_t until_ns) {
    side->op = op;
    int res = coil__op_call(t, op, what, until_ns);
    side->op = NULL;
    return res;
}

/* A request that is over, and whose task has not run yet, is left alone: its result counts. */
void coil__side_abort(coil_stream *s, struct coil__side *side) {
    if (!side->op || !side->op->live) return;
    side->op->fd_closed = s->closing;
    coil__op_abort(s->w, side->op);
}

/* ---- made ---- */

static void take_back(struct coil__object *o);

static bool is_unix(const struct coil__worker *w, int fd) {
    coil_addr a;
    return coil__sock_local(coil__sys_of(w), fd, &a) == 0 && a.u.sa.sa_family == AF_UNIX;
}

static uint8_t choose_way(const struct coil__worker *w, int fd, bool is_socket) {
    uint64_t caps = w->s.driver->caps;
    if (!is_socket) return COIL__WAY_DIRECT;
    if (!(caps & COIL__CAP_BIT(RECV_MULTI))) return COIL__WAY_POLL;
    return caps & COIL__CAP_BIT(RECV_MULTI_UNIX) || !is_unix(w, fd) ? COIL__WAY_POOL : COIL__WAY_POLL;
}

int coil__stream_new(struct coil__worker *w, int fd, bool is_socket, coil_stream **out) {
    *out = NULL;
    coil_stream *s = aligned_alloc(64, (sizeof *s + 63) & ~(size_t)63);
    if (!s) return -ENOMEM;
    memset(s, 0, sizeof *s);
    if (coil__heap_take_seat(&w->s.timers)) {
        free(s);
        return -ENOMEM;
    }
    s->w = w;
    s->fd = fd;
    s->is_socket = is_socket;
    s->way = choose_way(w, fd, is_socket);
    s->send_first = is_socket && (w->s.driver->caps & COIL__CAP_BIT(DIRECT_SEND));
    s->limits = default_limits;
    s->active_ns = w->s.now_ns;
    coil__list_init(&s->closers);
    coil__stream_read_init(s);
    coil__stream_write_init(s);
    s->object.what = "stream";
    s->object.take_back = take_back;
    coil__list_push(&w->objects, &s->object.node);
    w->stats.streams_now++;
    *out = s;
    return 0;
}

/* Whether fd can be a stream: 1, a socket; 0, something else with bytes in order; or negative errno. */
static int stream_kind(const struct coil__sys *sys, int fd) {
    int type = sys->file_type(fd), listening = 0, kind = 0;
    socklen_t n = sizeof listening;
    if (type < 0) return type;
    if (type != S_IFSOCK) return type == S_IFIFO || type == S_IFCHR ? 0 : -EINVAL;
    int err = sys->getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &n);
    if (err) return err;
    n = sizeof kind;
    err = sys->getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &n);
    if (err) return err;
    return listening || kind != SOCK_STREAM ? -EINVAL : 1;
}

int coil_stream_adopt(coil_stream **out, int fd) {
    struct coil__worker *w = coil__worker_of(coil__current("coil_stream_adopt")->sched);
    if (!out) return -EINVAL;
    *out = NULL;
    int kind = stream_kind(coil__sys_of(w), fd);
    return kind < 0 ? kind : coil__stream_new(w, fd, kind, out);
}

/* ---- in use ---- */

static bool limits_ok(const coil_limits *l) {
    const size_t bytes_max = 1 << 30;
    return RESERVED_ZERO(l) && l->read.ns >= 0 && l->write.ns >= 0 && l->idle.ns >= 0 &&
           l->high_water <= bytes_max && l->read_buffer <= bytes_max;
}

int coil_stream_limits(coil_stream *s, const coil_limits *l) {
    coil__current("coil_stream_limits");
    const coil_limits *d = &default_limits;
    if (!s || (l && !limits_ok(l))) return -EINVAL;
    if (s->closing) return -EBADF;
    s->limits = *d;
    if (l && l->read.ns) s->limits.read = l->read;
    if (l && l->write.ns) s->limits.write = l->write;
    if (l && l->idle.ns) s->limits.idle = l->idle;
    if (l && l->high_water) s->limits.high_water = l->high_water;
    if (l && l->read_buffer) s->limits.read_buffer = l->read_buffer;
    coil__stream_limit_changed(s);
    coil__stream_tune(s);
    return 0;
}

static int name_of(const coil_stream *s, coil_addr *out,
                   int (*call)(const struct coil__sys *sys, int fd, coil_addr *out)) {
    if (!s || !out) return -EINVAL;
    memset(out, 0, sizeof *out);
    if (s->closing) return -EBADF;
    return call(coil__sys_of(s->w), s->fd, out);
}

int coil_stream_peer(const coil_stream *s, coil_addr *out) {
    coil__current("coil_stream_peer");
    return name_of(s, out, coil__sock_peer);
}

int coil_stream_local(const coil_stream *s, coil_addr *out) {
    coil__current("coil_stream_local");
    return name_of(s, out, coil__sock_local);
}

int coil_stream_fd(const coil_stream *s) {
    coil__current("coil_stream_fd");
    if (!s) return -EINVAL;
    return s->closing ? -EBADF : s->fd;
}

/* ---- closed ---- */

static void dispose(coil_stream *s);

static void close_abandoned(coil_stream *s) {
    const struct coil__sys *sys = coil__sys_of(s->w);
    int fd = s->fd;
    if (s->rx.live || s->tx.live) return;
    dispose(s);
    sys->close(fd);
}

void coil__stream_settle(coil_stream *s) {
    for (struct coil__node *n; (n = coil__list_pop(&s->closers));) {
        coil__ready(CONTAINER_OF(n, struct coil__wait, entry.node), 0);
    }
    if (UNLIKELY(s->abandoned)) close_abandoned(s);
}

static void wait_settled(coil_stream *s, struct coil__task *t) {
    struct coil__wait w = {.what = "close", .fd = s->fd, .outside = true};
    coil__list_push(&s->closers, &w.entry.node);
    coil__park_always(t, &w);
}

static void expel(coil_stream *s, struct coil__side *side) {
    coil__side_wake(side);
    coil__side_abort(s, side);
}

/* Tasks that are inside get -EBADF and leave. */
static void empty(coil_stream *s, struct coil__task *t) {
    expel(s, &s->reader);
    expel(s, &s->writer);
    while (s->reader.busy || s->writer.busy)
        wait_settled(s, t);
}

/* The kernel lets go of the stream's own requests. */
static void stop_requests(coil_stream *s, struct coil__task *t) {
    coil__stream_stop_writing(s);
    coil__stream_stop_reading(s);
    while (s->rx.live || s->tx.live)
        wait_settled(s, t);
}

static void dispose(coil_stream *s) {
    struct coil__worker *w = s->w;
    CHECK(!s->rx.live);
    CHECK(!s->tx.live);
    coil__stream_drop_input(s);
    coil__stream_drop_output(s);
    coil__timer_disarm(&w->s, &s->tx_timer);
    coil__heap_give_seat(&w->s.timers);
    if (coil__node_linked(&s->hook.node)) coil__node_unlink(&s->hook.node);
    if (coil__node_linked(&s->object.node)) coil__node_unlink(&s->object.node);
    w->stats.streams_now--;
    free(s);
}

/* Flushes as far as a call that is never refused may: within the limits that hold, or, where they are over
 * already, once and without waiting. 0, or why accepted bytes have not left. */
static int flush_for_close(coil_stream *s, struct coil__task *t) {
    bool over = t->stop || t->sched->now_ns >= t->limit_ns;
    if (!over) return coil__stream_drain(s, t);
    coil__stream_try_flush(s);
    /* Where the try is a request, it is one only after the turn has taken it to the kernel. */
    while (s->tx.live && !s->tx.cancelling && coil__node_linked(&s->tx.req.node))
        coil__refuse(t);
    if (s->write_err) return s->write_err;
    return s->out_bytes ? coil__stop_error(t) : 0;
}

int coil_stream_close(coil_stream *s) {
    struct coil__task *t = coil__current("coil_stream_close");
    if (!s) return 0;
    if (s->closing) return -EBADF;
    s->closing = true;
    coil__stream_tune(s);
    empty(s, t);
    int err = flush_for_close(s, t);
    stop_requests(s, t);
    /* The last request may have sent everything after all. */
    if (!s->out_bytes && !s->write_err) err = 0;
    int fd = s->fd;
    const struct coil__sys *sys = coil__sys_of(s->w);
    dispose(s);
    int closed = sys->close(fd);
    return err ? err : closed;
}

/* A linger time of zero makes close send a reset. */
static void set_reset(const coil_stream *s) {
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    if (s->is_socket) coil__sys_of(s->w)->setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

void coil_stream_abort(coil_stream *s) {
    struct coil__task *t = coil__current("coil_stream_abort");
    if (!s || s->closing) return;
    s->closing = true;
    coil__stream_tune(s);
    empty(s, t);
    stop_requests(s, t);
    set_reset(s);
    int fd = s->fd;
    const struct coil__sys *sys = coil__sys_of(s->w);
    dispose(s);
    sys->close(fd);
}

static int detach(coil_stream *s, struct coil__task *t) {
    int err = coil__stream_drain(s, t);
    if (err) return err;
    coil__stream_stop_reading(s);
    while (s->rx.live)
        wait_settled(s, t);
    return s->held ? -EBUSY : s->read_err;
}

int coil_stream_detach(coil_stream *s) {
    struct coil__task *t = coil__current("coil_stream_detach");
    int err = coil__admit(t);
    if (err) return err;
    if (!s) return coil__failed(t, -EINVAL);
    if (s->closing) return coil__failed(t, -EBADF);
    if (s->held || s->reader.busy || s->writer.busy) return coil__failed(t, -EBUSY);
    s->reader.busy = s->writer.busy = true;
    err = detach(s, t);
    s->reader.busy = s->writer.busy = false;
    coil__stream_settled(s);
    /* Not freed above: only what no task uses any more is abandoned.
     * NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
    if (s->closing) return -EBADF;
    if (err) return err;
    int fd = s->fd;
    dispose(s);
    return fd;
}

/* At the end of a run, for a stream that no task has closed: without a task, so nothing is waited for here.
 * The last of its requests to end closes it. */
static void take_back(struct coil__object *o) {
    coil_stream *s = CONTAINER_OF(o, struct coil_stream, object);
    s->closing = true;
    coil__stream_tune(s);
    coil__stream_try_flush(s);
    coil__stream_stop_writing(s);
    coil__stream_stop_reading(s);
    /* Only now: a request that the kernel has not seen ends at once, and s would go with it. */
    s->abandoned = true;
    close_abandoned(s);
}
