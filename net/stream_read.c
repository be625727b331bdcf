/* Reading from a stream: see the three ways in stream.h. */
#include "caps.h"
#include "stream.h"

#include <poll.h>
#include <string.h>

enum {
    BULK_BYTES = 16 << 10, /* a read this large ... */
    BULK_RUNS = 4,         /* ... after so many full buffers in a row goes straight to the caller's memory */
    SINGLES_TRUSTED = 4,   /* so many wake-ups with one read each are taken for a habit, ... */
    SINGLES_CHECKED = 20,  /* ... until so many */
};

/* ---- the pool's buffers ---- */

static void give_buffer(coil_stream *s, uint32_t id) {
    struct coil__driver *d = s->w->s.driver;
    d->ops->give(d, id);
}

static void keep_buffer(coil_stream *s, uint32_t id, uint32_t bytes) {
    struct coil__pool *p = s->pool;
    p->bufs[id].start = 0;
    p->bufs[id].end = bytes;
    *(s->held++ ? &p->bufs[s->last].next : &s->first) = id;
    s->last = id;
    s->full_runs = bytes < p->size ? 0 : (uint8_t)MIN(s->full_runs + 1, BULK_RUNS);
}

/* Copies up to n bytes out of the buffers held; those that are used up go back to the kernel. */
static inline size_t take_input(coil_stream *s, char *buf, size_t n) {
    struct coil__pool *p = s->pool;
    size_t done = 0;
    do {
        uint32_t id = s->first;
        struct coil__pool_buf *b = &p->bufs[id];
        size_t k = MIN(n - done, (size_t)(b->end - b->start));
        memcpy(buf + done, p->base + (size_t)id * p->size + b->start, k);
        done += k;
        b->start += (uint32_t)k;
        if (b->start < b->end) break;
        s->first = b->next;
        s->held--;
        give_buffer(s, id);
    } while (s->held && done < n);
    return done;
}

void coil__stream_drop_input(coil_stream *s) {
    while (s->held) {
        uint32_t id = s->first;
        s->first = s->pool->bufs[id].next;
        s->held--;
        give_buffer(s, id);
    }
}

/* ---- the stream's own receive ---- */

/* What a completion says that brought no bytes, or was the last one. */
static COLD void note_result(coil_stream *s, int res, uint32_t flags) {
    if (flags & IORING_CQE_F_BUFFER) give_buffer(s, flags >> IORING_CQE_BUFFER_SHIFT);
    if (res == 0) s->eof = true;
    if (res == -ENOBUFS) {
        s->starved = true;
        s->w->stats.pool_empty++;
    }
    /* Some kernels answer the cancel of a receive that found no buffer with ENOENT. */
    bool asked = res == -ECANCELED || (res == -ENOENT && s->rx.cancelling);
    if (res < 0 && res != -ENOBUFS && !asked && !s->read_err) s->read_err = res;
}

/* Nothing in the kernel holds a sender back but a full socket buffer, and a multishot receive empties that:
 * so a stream that holds as much as its reader may leave unread stops receiving. */
static void received(struct coil__op *op, int res, uint32_t flags) {
    coil_stream *s = CONTAINER_OF(op, struct coil_stream, rx);
    if (flags & IORING_CQE_F_BUFFER) s->pool->out++;
    if (LIKELY(res > 0)) {
        s->active_ns = s->w->s.now_ns;
        keep_buffer(s, flags >> IORING_CQE_BUFFER_SHIFT, (uint32_t)res);
        if (UNLIKELY(s->held >= s->held_max) && s->rx.live) coil__op_abort(s->w, &s->rx);
    } else {
        note_result(s, res, flags);
    }
    coil__side_wake(&s->reader);
    if (flags & IORING_CQE_F_MORE) return;
    coil__stream_tune(s);
    coil__stream_settled(s);
}

static void became_ready(struct coil__op *op, int res, uint32_t flags) {
    coil_stream *s = CONTAINER_OF(op, struct coil_stream, rx);
    if (LIKELY(res >= 0)) {
        s->readable = true;
        s->reads_since_poll = 0;
    } else if (res != -ECANCELED && !s->read_err) {
        s->read_err = res;
        coil__stream_tune(s);
    }
    coil__side_wake(&s->reader);
    if (!(flags & IORING_CQE_F_MORE)) coil__stream_settled(s);
}

/* The image of rx is the same each time. */
static void prepare_rx(coil_stream *s) {
    struct io_uring_sqe *sqe = &s->rx.req.sqe;
    if (s->way == COIL__WAY_POOL) {
        coil__op_prep(&s->rx, IORING_OP_RECV, s->fd, NULL, 0, 0);
        sqe->ioprio = IORING_RECV_MULTISHOT;
        sqe->flags = IOSQE_BUFFER_SELECT;
        sqe->buf_group = COIL__POOL_GROUP;
        s->rx.done = received;
    } else {
        coil__op_prep(&s->rx, IORING_OP_POLL_ADD, s->fd, NULL, 0, 0);
        sqe->poll32_events = coil__poll_mask(POLLIN | POLLRDHUP);
        if (s->w->s.driver->caps & COIL__CAP_BIT(POLL_MULTI)) sqe->len = IORING_POLL_ADD_MULTI;
        s->rx.done = became_ready;
    }
}

static int arm(coil_stream *s) {
    int err = coil__op_begin(s->w, &s->rx);
    if (s->way == COIL__WAY_POOL) coil__stream_tune(s);
    return err;
}

void coil__stream_tune(coil_stream *s) {
    s->high_water = (uint32_t)s->limits.high_water;
    bool plain = !s->eof && !s->read_err && !s->closing && s->limits.read.ns == COIL__NEVER &&
                 s->limits.idle.ns == COIL__NEVER;
    s->plain_read = plain && s->way == COIL__WAY_POOL && s->rx.live && !s->starved;
    s->plain_poll = plain && s->way == COIL__WAY_POLL;
    if (s->pool->size) s->held_max = (uint32_t)MAX(s->limits.read_buffer / s->pool->size, (size_t)1);
}

void coil__stream_stop_reading(coil_stream *s) {
    if (s->rx.live) coil__op_abort(s->w, &s->rx);
}

void coil__stream_read_init(coil_stream *s) {
    coil__op_init(&s->rx);
    prepare_rx(s);
    s->pool = &s->w->s.driver->pool;
    coil__stream_tune(s);
}

/* ---- a task reads ---- */

/* How far a read may wait: the caller's limit, the stream's read limit that began with the call, and the idle
 * limit, which any byte either way moves on. */
struct patience {
    int64_t call_ns; /* until when the call may last */
    int64_t wait_ns; /* until when this wait may */
};

static struct patience patience_of(const coil_stream *s, struct coil__task *t) {
    struct patience p = {.call_ns = t->limit_ns};
    if (UNLIKELY(s->limits.read.ns != COIL__NEVER)) {
        p.call_ns = MIN(p.call_ns, coil__add_ns(coil__clock(t->sched), s->limits.read.ns));
    }
    return p;
}

static void next_wait(const coil_stream *s, struct patience *p) {
    p->wait_ns = p->call_ns;
    if (s->limits.idle.ns != COIL__NEVER)
        p->wait_ns = MIN(p->wait_ns, coil__add_ns(s->active_ns, s->limits.idle.ns));
}

/* Whether err ends the call: a wait that an old idle moment has cut short doesn't. */
static bool is_over(const coil_stream *s, const struct coil__task *t, const struct patience *p, int err) {
    int64_t now_ns = t->sched->now_ns;
    if (err != -ETIME || s->limits.idle.ns == COIL__NEVER || now_ns >= p->call_ns) return true;
    return now_ns >= coil__add_ns(s->active_ns, s->limits.idle.ns);
}

static int await_input(coil_stream *s, struct coil__task *t, struct patience *p) {
    int err = s->rx.live ? 0 : arm(s);
    if (err) return err;
    next_wait(s, p);
    err = coil__side_park(s, &s->reader, t, "read", p->wait_ns);
    return err && is_over(s, t, p, err) ? err : 0;
}

/* Errors that say something of this call only, and nothing of the connection. */
static bool is_local(ssize_t err) {
    return err == -EAGAIN || err == -EINTR || err == -EFAULT || err == -ENOMEM;
}

/* What a receive into the reader's memory tells about the stream. */
static ssize_t note_direct(coil_stream *s, ssize_t n) {
    s->starved = false;
    if (n > 0) s->active_ns = s->w->s.now_ns;
    if (n < (ssize_t)s->pool->size) s->full_runs = 0;
    if (n == 0) s->eof = true;
    if (n < 0 && !is_local(n) && !s->read_err) s->read_err = (int)n;
    if (n <= 0) coil__stream_tune(s);
    return n;
}

static int await_direct(coil_stream *s, struct coil__task *t, void *buf, size_t n, struct patience *p) {
    struct coil__op op;
    coil__op_init(&op);
    uint32_t len = (uint32_t)MIN(n, (size_t)INT32_MAX);
    coil__op_prep(&op, s->is_socket ? IORING_OP_RECV : IORING_OP_READ, s->fd, buf, len,
                  s->is_socket ? 0 : UINT64_MAX);
    next_wait(s, p);
    int res = coil__side_call(&s->reader, t, &op, "read", p->wait_ns);
    if (res != -EAGAIN) return res;
    if (s->closing) return -EBADF;
    /* An O_NONBLOCK pipe on a kernel that doesn't wait for it. */
    coil__op_prep(&op, IORING_OP_POLL_ADD, s->fd, NULL, 0, 0);
    op.req.sqe.poll32_events = coil__poll_mask(POLLIN);
    res = coil__side_call(&s->reader, t, &op, "read", p->wait_ns);
    return res < 0 ? res : -EAGAIN;
}

/* Straight into the reader's memory. -EAGAIN: nothing yet, try again. */
static ssize_t read_direct(coil_stream *s, struct coil__task *t, void *buf, size_t n, struct patience *p) {
    if (s->is_socket) {
        ssize_t got = coil__sys_of(s->w)->recv(s->fd, buf, n, 0);
        if (got != -EAGAIN) return note_direct(s, got);
    }
    int res = await_direct(s, t, buf, n, p);
    /* The stream has ended it: why is known there. */
    if (res == -EINTR) return -EAGAIN;
    if (res == -ECANCELED || res == -ETIME) return is_over(s, t, p, res) ? res : -EAGAIN;
    if (res == -EBADF && s->closing) return res;
    return note_direct(s, res);
}

/* Whether a poll that is made anew looks at what is there; a multishot one tells of new events only. */
static bool poll_looks_again(const coil_stream *s) {
    return !(s->w->s.driver->caps & COIL__CAP_BIT(POLL_MULTI));
}

/* After a read that filled the caller's memory: is there more? A call that says EAGAIN costs as much as a
 * read; a poll costs nothing where its answer is no, and a turn where it is yes. Streams whose wake-ups have
 * lately each brought exactly one such read ask the poll, and now and then make sure. */
static void guess_rest(coil_stream *s) {
    if (s->reads_since_poll > 1) {
        s->single_reads = 0;
    } else if (s->single_reads >= SINGLES_TRUSTED && s->single_reads < SINGLES_CHECKED) {
        s->single_reads++;
        s->readable = false;
    }
}

static void learn_rest(coil_stream *s) {
    if (s->reads_since_poll != 1) return;
    s->single_reads = MIN(s->single_reads + 1, SINGLES_TRUSTED);
}

/* With a multishot poll only EAGAIN means that nothing is left: behind a short read there may be an end, or a
 * message with a descriptor. */
static ssize_t read_ready(coil_stream *s, void *buf, size_t n) {
    ssize_t got = coil__sys_of(s->w)->recv(s->fd, buf, n, 0);
    if (got == -EAGAIN) {
        s->readable = false;
        learn_rest(s);
        return got;
    }
    if (UNLIKELY(got <= 0)) return note_direct(s, got);
    s->active_ns = s->w->s.now_ns;
    if (s->reads_since_poll < 2) s->reads_since_poll++;
    if (poll_looks_again(s)) {
        if ((size_t)got < n) {
            s->readable = false;
        } else {
            guess_rest(s);
        }
    }
    return got;
}

static bool wants_bulk(const coil_stream *s, size_t n) {
    return n >= BULK_BYTES && s->full_runs == BULK_RUNS;
}

/* One attempt; -EAGAIN: something has changed, look again. */
static ssize_t read_step(coil_stream *s, struct coil__task *t, void *buf, size_t n, struct patience *p) {
    bool aside = s->way == COIL__WAY_POOL && (s->starved || wants_bulk(s, n));
    if (s->way == COIL__WAY_DIRECT || (aside && !s->rx.live)) return read_direct(s, t, buf, n, p);
    if (s->way == COIL__WAY_POLL && s->readable) return read_ready(s, buf, n);
    /* One receiver at a time: the multishot one has to end before the reader's memory is lent. */
    if (aside) coil__stream_stop_reading(s);
    if (aside && !s->rx.live) return -EAGAIN;
    int err = await_input(s, t, p);
    return err ? err : -EAGAIN;
}

static ssize_t read_some(coil_stream *s, struct coil__task *t, void *buf, size_t n, struct patience *p) {
    for (;;) {
        if (s->closing) return -EBADF;
        if (s->held) return (ssize_t)take_input(s, buf, n);
        if (s->read_err) return s->read_err;
        if (s->eof) return 0;
        ssize_t got = read_step(s, t, buf, n, p);
        if (got != -EAGAIN) return got;
    }
}

static COLD ssize_t read_slowly(coil_stream *s, struct coil__task *t, void *buf, size_t n) {
    if (!s || !buf || n == 0) return coil__failed(t, -EINVAL);
    int err = coil__side_enter(s, &s->reader);
    if (err) return coil__failed(t, err);
    struct patience p = patience_of(s, t);
    ssize_t got = read_some(s, t, buf, n, &p);
    coil__side_leave(s, &s->reader);
    coil__charge_bytes(t, got > 0 ? (size_t)got : 0);
    return got;
}

/* The ordinary wait, where rx is armed and only the caller's own limit holds. Whether there is something to
 * take now. */
static inline bool await_plainly(coil_stream *s, struct coil__task *t, int *err) {
    s->reader.busy = true;
    *err = coil__side_park(s, &s->reader, t, "read", t->limit_ns);
    s->reader.busy = false;
    if (LIKELY((s->held || s->readable) && !s->closing)) return true;
    if (s->closing) *err = -EBADF;
    coil__stream_settled(s);
    return false;
}

/* The ordinary read of the poll way. */
static ssize_t read_polled(coil_stream *s, struct coil__task *t, void *buf, size_t n) {
    if (!s->readable) {
        int err = s->rx.live ? 0 : arm(s);
        if (err) return err;
        if (UNLIKELY(!await_plainly(s, t, &err))) return err ? err : read_slowly(s, t, buf, n);
    }
    ssize_t got = read_ready(s, buf, n);
    if (UNLIKELY(got == -EAGAIN)) return read_slowly(s, t, buf, n);
    coil__charge_bytes(t, got > 0 ? (size_t)got : 0);
    return got;
}

static ssize_t read_unarmed(coil_stream *s, struct coil__task *t, void *buf, size_t n) {
    if (s->way == COIL__WAY_POLL && s->plain_poll) return read_polled(s, t, buf, n);
    return read_slowly(s, t, buf, n);
}

ssize_t coil_stream_read(coil_stream *s, void *buf, size_t n) {
    struct coil__task *t = coil__current("coil_stream_read");
    int err = coil__admit(t);
    if (err) return err;
    if (UNLIKELY(!s || !buf || n - 1 >= BULK_BYTES || s->reader.busy | s->closing))
        return read_slowly(s, t, buf, n);
    if (!s->held) {
        if (UNLIKELY(!s->plain_read)) return read_unarmed(s, t, buf, n);
        if (UNLIKELY(!await_plainly(s, t, &err))) return err ? err : read_slowly(s, t, buf, n);
    }
    size_t got = take_input(s, buf, n);
    coil__charge_bytes(t, got);
    return (ssize_t)got;
}

static int read_all(coil_stream *s, struct coil__task *t, char *buf, size_t n, size_t *done) {
    struct patience p = patience_of(s, t);
    while (*done < n) {
        ssize_t got = read_some(s, t, buf + *done, n - *done, &p);
        if (got < 0) return (int)got;
        if (got == 0) return -ENODATA;
        *done += (size_t)got;
        if (*done == n) break;
        /* A peer that is fast enough never makes it park. */
        coil__charge_bytes(t, (size_t)got);
        if (t->stop || t->sched->now_ns >= p.call_ns) return coil__stop_error(t);
    }
    return 0;
}

int coil_stream_read_exact(coil_stream *s, void *buf, size_t n, size_t *done) {
    struct coil__task *t = coil__current("coil_stream_read_exact");
    size_t count = 0;
    if (done) *done = 0;
    int err = coil__admit(t);
    if (err) return err;
    if (!s || !buf || n == 0) return coil__failed(t, -EINVAL);
    err = coil__side_enter(s, &s->reader);
    if (err) return coil__failed(t, err);
    err = read_all(s, t, buf, n, &count);
    coil__side_leave(s, &s->reader);
    if (done) *done = count;
    coil__charge(t);
    return err;
}
