/* Writing to a stream. What is written is copied into blocks, which leave with the turn; see stream.h. */
#include "caps.h"
#include "stream.h"

#include <poll.h>
#include <string.h>

enum {
    LARGE_BYTES = 16 << 10,  /* from this size on, the caller's memory is sent, not a copy */
    PIECE_BYTES = 256 << 10, /* of a large write at once, before others have a turn */
    NO_MEMORY_RETRY_NS = 1000000,
    IOV_MAX_NOW = 18, /* blocks in one try: high_water's default worth, and the caller's memory */
};

/* ---- the blocks ---- */

static struct coil__chunk *add_chunk(coil_stream *s) {
    struct coil__chunk *c = coil__block_get(&s->w->blocks);
    if (!c) return NULL;
    c->next = NULL;
    c->start = c->end = 0;
    if (s->out_last) {
        s->out_last->next = c;
    } else {
        s->out_first = c;
    }
    s->out_last = c;
    return c;
}

static void drop_first(coil_stream *s) {
    struct coil__chunk *c = s->out_first;
    s->out_first = c->next;
    if (!s->out_first) s->out_last = NULL;
    coil__block_put(&s->w->blocks, c);
}

void coil__stream_drop_output(coil_stream *s) {
    while (s->out_first)
        drop_first(s);
    s->out_bytes = 0;
}

static inline void put(coil_stream *s, struct coil__chunk *c, const char *p, size_t n) {
    memcpy(c->data + c->end, p, n);
    c->end += (uint32_t)n;
    s->out_bytes += n;
    s->written += (int64_t)n;
}

/* Copies in; 0 or -ENOMEM, with `written` telling how far it came. */
static int append(coil_stream *s, const char *p, size_t n) {
    while (n) {
        struct coil__chunk *c = s->out_last;
        if (!c || c->end == COIL__CHUNK_ROOM) c = add_chunk(s);
        if (!c) return -ENOMEM;
        size_t k = MIN(n, (size_t)(COIL__CHUNK_ROOM - c->end));
        put(s, c, p, k);
        p += k;
        n -= k;
    }
    return 0;
}

/* n bytes have left. */
static void consume(coil_stream *s, size_t n) {
    CHECK(n <= s->out_bytes);
    s->active_ns = s->w->s.now_ns;
    s->out_bytes -= n;
    if (LIKELY(s->out_bytes == 0 && s->out_first == s->out_last)) {
        if (n) drop_first(s);
        return;
    }
    while (n) {
        struct coil__chunk *c = s->out_first;
        uint32_t k = (uint32_t)MIN(n, (size_t)(c->end - c->start));
        c->start += k;
        n -= k;
        if (c->start == c->end) drop_first(s);
    }
}

static size_t gather(const coil_stream *s, struct iovec *iov, size_t max) {
    size_t count = 0;
    for (struct coil__chunk *c = s->out_first; c && count < max; c = c->next) {
        iov[count++] = (struct iovec){c->data + c->start, c->end - c->start};
    }
    return count;
}

/* ---- the stream's own send ---- */

/* Remembers why bytes can't leave any more. */
static void fail_output(coil_stream *s, int err) {
    s->write_err = err;
    s->write_over = true;
    coil__stream_drop_output(s);
    coil__side_wake(&s->writer);
}

/* The peer takes nothing: a handler that waits for its next request would wait for ever. */
static void fail_late(coil_stream *s) {
    fail_output(s, -ETIME);
    if (!s->read_err) s->read_err = -ETIME;
    coil__stream_tune(s);
    coil__stream_stop_reading(s);
    coil__side_wake(&s->reader);
    coil__side_abort(s, &s->reader);
}

static void write_limit_over(struct coil__timer *timer) {
    coil_stream *s = CONTAINER_OF(timer, struct coil_stream, tx_timer);
    if (!s->tx.live) { /* there was no memory for it before */
        coil__stream_try_flush(s);
        return;
    }
    s->tx_late = true;
    coil__op_abort(s->w, &s->tx);
}

void coil__stream_limit_changed(coil_stream *s) {
    if (!s->tx.live) return;
    coil__timer_arm(&s->w->s, &s->tx_timer, coil__add_ns(coil__clock(&s->w->s), s->limits.write.ns));
}

static void begin_tx(coil_stream *s) {
    s->tx_late = false;
    if (coil__op_begin(s->w, &s->tx)) {
        coil__timer_arm(&s->w->s, &s->tx_timer, coil__add_ns(coil__clock(&s->w->s), NO_MEMORY_RETRY_NS));
        return;
    }
    s->sending = true;
    s->w->s.outside++; /* it can wake its writer, or whoever waits for the peer's answer */
    coil__stream_limit_changed(s);
}

static void send_rest(coil_stream *s) {
    struct coil__chunk *c = s->out_first;
    size_t count = gather(s, c->iov, ARRAY_SIZE(c->iov));
    if (s->is_socket) {
        c->msg = (struct msghdr){.msg_iov = c->iov, .msg_iovlen = count};
        coil__op_prep(&s->tx, IORING_OP_SENDMSG, s->fd, &c->msg, 1, 0);
        s->tx.req.sqe.msg_flags = MSG_NOSIGNAL;
    } else {
        coil__op_prep(&s->tx, IORING_OP_WRITEV, s->fd, c->iov, (uint32_t)count, UINT64_MAX);
    }
    begin_tx(s);
}

static void wait_for_room(coil_stream *s) {
    coil__op_prep(&s->tx, IORING_OP_POLL_ADD, s->fd, NULL, 0, 0);
    s->tx.req.sqe.poll32_events = coil__poll_mask(POLLOUT);
    begin_tx(s);
}

/* One try without waiting: all that is buffered, or as many blocks as one call takes. */
static ssize_t try_send(const coil_stream *s) {
    const struct coil__sys *sys = coil__sys_of(s->w);
    const struct coil__chunk *c = s->out_first;
    if (LIKELY(!c->next)) return sys->send(s->fd, c->data + c->start, c->end - c->start, 0);
    struct iovec iov[IOV_MAX_NOW];
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = gather(s, iov, IOV_MAX_NOW)};
    return sys->sendmsg(s->fd, &m, 0);
}

/* Sends what goes at once; what doesn't becomes the stream's own request. */
static void send_now(coil_stream *s) {
    while (s->out_bytes) {
        ssize_t n = s->send_first ? try_send(s) : -EAGAIN;
        if (LIKELY(n >= 0)) {
            consume(s, (size_t)n);
        } else if (n == -EAGAIN) {
            send_rest(s);
            return;
        } else {
            fail_output(s, (int)n);
            return;
        }
    }
}

/* The request has ended with nothing sent, and that is no failure of the connection. */
static void not_sent(coil_stream *s, int res) {
    if (s->tx_late) {
        fail_late(s);
    } else if (res != -ECANCELED && !s->tx_stopping) {
        wait_for_room(s);
    }
}

static void sent(struct coil__op *op, int res, uint32_t flags) {
    coil_stream *s = CONTAINER_OF(op, struct coil_stream, tx);
    bool was_poll = op->req.sqe.opcode == IORING_OP_POLL_ADD;
    (void)flags;
    s->sending = false;
    s->w->s.outside--;
    coil__timer_disarm(&s->w->s, &s->tx_timer);
    if (res == -ECANCELED || res == -EAGAIN || res == -EINTR) {
        not_sent(s, res);
    } else if (res < 0) {
        fail_output(s, res);
    } else {
        if (!was_poll) consume(s, (size_t)res);
        if (!s->tx_stopping) send_now(s);
    }
    coil__side_wake(&s->writer);
    if (!s->tx.live) coil__stream_settled(s);
}

static void flush_hook(struct coil__hook *h) {
    coil__stream_try_flush(CONTAINER_OF(h, struct coil_stream, hook));
}

/* A large write in flight comes first: its request sends what is buffered, too. */
void coil__stream_try_flush(coil_stream *s) {
    if (s->out_bytes && !s->sending && !s->writer.op && !s->tx_stopping) send_now(s);
}

void coil__stream_stop_writing(coil_stream *s) {
    s->tx_stopping = true;
    if (s->tx.live) coil__op_abort(s->w, &s->tx);
}

void coil__stream_write_init(coil_stream *s) {
    coil__op_init(&s->tx);
    s->tx.done = sent;
    s->tx_timer.fire = write_limit_over;
    s->hook.run = flush_hook;
}

/* ---- a task writes ---- */

static int cannot_write(const coil_stream *s) {
    if (s->write_err) return s->write_err;
    return s->finished ? -EPIPE : 0;
}

int coil__stream_drain(coil_stream *s, struct coil__task *t) {
    bool closing = s->closing;
    for (;;) {
        coil__stream_try_flush(s);
        if (s->write_err) return s->write_err;
        if (!s->out_bytes) return 0;
        int err = coil__side_park(s, &s->writer, t, "flush", t->limit_ns);
        if (s->closing != closing) return -EBADF;
        if (err && s->out_bytes) return err;
    }
}

/* Parks until n more bytes fit under the high-water mark, or nothing is buffered at all. */
static int make_room(coil_stream *s, struct coil__task *t, size_t n) {
    coil__stream_try_flush(s);
    while (s->out_bytes && s->out_bytes + n > s->high_water) {
        int err = coil__side_park(s, &s->writer, t, "write", t->limit_ns);
        if (s->closing) return -EBADF;
        if (err) return err;
    }
    return s->write_err;
}

static int write_small(coil_stream *s, struct coil__task *t, const char *p, size_t n) {
    if (UNLIKELY(s->out_bytes + n > s->high_water)) {
        int err = make_room(s, t, n);
        if (err) return err;
    }
    int err = append(s, p, n);
    if (!s->sending) coil__worker_hook(s->w, &s->hook);
    return err;
}

/* n bytes have left: first of what was buffered, then of the caller's memory. How many of the latter. */
static size_t consume_both(coil_stream *s, size_t n) {
    size_t buffered = MIN(n, s->out_bytes);
    consume(s, buffered);
    s->active_ns = s->w->s.now_ns;
    s->written += (int64_t)(n - buffered);
    return n - buffered;
}

/* A send from the task, parked, within the caller's limits and the write limit. */
static int send_parked(coil_stream *s, struct coil__task *t, struct msghdr *m) {
    struct coil__op op;
    int64_t late_ns = coil__add_ns(coil__clock(t->sched), s->limits.write.ns);
    coil__op_init(&op);
    if (s->is_socket) {
        coil__op_prep(&op, IORING_OP_SENDMSG, s->fd, m, 1, 0);
        op.req.sqe.msg_flags = MSG_NOSIGNAL;
    } else {
        coil__op_prep(&op, IORING_OP_WRITEV, s->fd, m->msg_iov, (uint32_t)m->msg_iovlen, UINT64_MAX);
    }
    int res = coil__side_call(&s->writer, t, &op, "write", MIN(t->limit_ns, late_ns));
    if (res == -EAGAIN && !s->closing) {
        coil__op_prep(&op, IORING_OP_POLL_ADD, s->fd, NULL, 0, 0);
        op.req.sqe.poll32_events = coil__poll_mask(POLLOUT);
        res = coil__side_call(&s->writer, t, &op, "write", MIN(t->limit_ns, late_ns));
        if (res >= 0) return -EAGAIN;
    }
    if (res == -ETIME && t->sched->now_ns < t->limit_ns) fail_late(s);
    return res;
}

/* One try with what is buffered and a piece of the caller's memory. A count, or negative errno. */
static ssize_t send_both(coil_stream *s, struct coil__task *t, const char *p, size_t n) {
    struct iovec iov[IOV_MAX_NOW];
    struct msghdr m = {.msg_iov = iov};
    m.msg_iovlen = gather(s, iov, IOV_MAX_NOW - 1);
    iov[m.msg_iovlen++] = (struct iovec){(char *)(uintptr_t)p, MIN(n, (size_t)PIECE_BYTES)};
    if (s->is_socket) {
        ssize_t sent_now = coil__sys_of(s->w)->sendmsg(s->fd, &m, 0);
        if (sent_now != -EAGAIN) return sent_now;
    }
    return send_parked(s, t, &m);
}

/* The stream's own send has the descriptor first: two at once could change places. */
static int await_own_send(coil_stream *s, struct coil__task *t) {
    while (s->tx.live) {
        int err = coil__side_park(s, &s->writer, t, "write", t->limit_ns);
        if (s->closing) return -EBADF;
        if (err) return err;
    }
    return s->write_err;
}

/* How many bytes of the caller's memory have left; negative errno: no more will. */
static ssize_t write_piece(coil_stream *s, struct coil__task *t, const char *p, size_t n) {
    int err = await_own_send(s, t);
    if (err) return err;
    ssize_t k = send_both(s, t, p, n);
    if (k >= 0) return (ssize_t)consume_both(s, (size_t)k);
    if (s->closing) return -EBADF;
    if (k == -EAGAIN || k == -EINTR) return 0;
    if (k != -ECANCELED && k != -ETIME && k != -EFAULT && k != -ENOMEM) fail_output(s, (int)k);
    return k;
}

/* Between two pieces others have a turn, and what was asked of the task meanwhile holds: it may never have to
 * park. */
static int pause_writing(const coil_stream *s, struct coil__task *t) {
    coil__give_way(t);
    if (s->closing) return -EBADF;
    return t->stop || t->sched->now_ns >= t->limit_ns ? coil__stop_error(t) : 0;
}

static int write_large(coil_stream *s, struct coil__task *t, const char *p, size_t n) {
    int err = 0;
    while (n && !err) {
        ssize_t k = write_piece(s, t, p, n);
        if (k < 0) {
            err = (int)k;
            break;
        }
        p += k;
        n -= (size_t)k;
        if (n) err = pause_writing(s, t);
    }
    if (s->out_bytes && !s->write_err) coil__worker_hook(s->w, &s->hook);
    return err;
}

static int write_some(coil_stream *s, struct coil__task *t, const void *buf, size_t n) {
    int err = cannot_write(s);
    if (err) return err;
    return n < LARGE_BYTES ? write_small(s, t, buf, n) : write_large(s, t, buf, n);
}

static COLD int write_slowly(coil_stream *s, struct coil__task *t, const void *buf, size_t n) {
    if (!s || (!buf && n)) return coil__failed(t, -EINVAL);
    int err = coil__side_enter(s, &s->writer);
    if (err) return coil__failed(t, err);
    err = write_some(s, t, buf, n);
    coil__side_leave(s, &s->writer);
    coil__charge(t);
    return err;
}

/* The block that takes n bytes as they are; NULL: there is more to see to than copying. */
static inline struct coil__chunk *room_at_once(coil_stream *s, size_t n) {
    if (s->closing | s->writer.busy | s->write_over) return NULL;
    if (n > COIL__CHUNK_ROOM || s->out_bytes + n > s->high_water) return NULL;
    struct coil__chunk *c = s->out_last ? s->out_last : add_chunk(s);
    return c && n <= COIL__CHUNK_ROOM - c->end ? c : NULL;
}

int coil_stream_write(coil_stream *s, const void *buf, size_t n) {
    struct coil__task *t = coil__current("coil_stream_write");
    int err = coil__admit(t);
    if (err) return err;
    struct coil__chunk *c = s && buf && n ? room_at_once(s, n) : NULL;
    if (!c) return write_slowly(s, t, buf, n);
    put(s, c, buf, n);
    if (!s->sending) coil__worker_hook(s->w, &s->hook);
    coil__charge(t);
    return 0;
}

int64_t coil_stream_written(const coil_stream *s) {
    coil__current("coil_stream_written");
    return s ? s->written : 0;
}

int coil_stream_flush(coil_stream *s) {
    struct coil__task *t = coil__current("coil_stream_flush");
    int err = coil__admit(t);
    if (err) return err;
    if (!s) return coil__failed(t, -EINVAL);
    err = coil__side_enter(s, &s->writer);
    if (err) return coil__failed(t, err);
    err = coil__stream_drain(s, t);
    coil__side_leave(s, &s->writer);
    coil__charge(t);
    return err;
}

static int finish(coil_stream *s, struct coil__task *t) {
    if (s->finished) return 0;
    int err = coil__stream_drain(s, t);
    if (!err) err = coil__sys_of(s->w)->shutdown(s->fd, SHUT_WR);
    if (!err) s->finished = s->write_over = true;
    return err;
}

int coil_stream_finish(coil_stream *s) {
    struct coil__task *t = coil__current("coil_stream_finish");
    int err = coil__admit(t);
    if (err) return err;
    if (!s || !s->is_socket) return coil__failed(t, -EINVAL);
    err = coil__side_enter(s, &s->writer);
    if (err) return coil__failed(t, err);
    err = finish(s, t);
    coil__side_leave(s, &s->writer);
    coil__charge(t);
    return err;
}
