/* The load generator: persistent connections over one ring of its own, cheap enough that the server is what
 * limits. Closed loop: each answer sends the next request at once. Fixed rate: bursts at their due times,
 * over the connections in turn, and a latency counts from the due time, so that a slow server can't hide its
 * own delays. */
#include "bench_load.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum { OP_RECV, OP_SEND };
static const int64_t STUCK_NS = 5000000000;

static void failed(struct load *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void failed(struct load *l, const char *fmt, ...) {
    if (l->out->error[0]) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(l->out->error, sizeof l->out->error, fmt, ap);
    va_end(ap);
}

static struct io_uring_sqe *get_sqe(struct load *l) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);
    while (!sqe) {
        io_uring_submit(&l->ring);
        sqe = io_uring_get_sqe(&l->ring);
    }
    return sqe;
}

static bool is_busy_one(const struct load *l, unsigned i) {
    return l->o->busy && i == BUSY_CONN;
}

static void arm_recv(struct load *l, unsigned i) {
    struct io_uring_sqe *sqe = get_sqe(l);
    if (l->multishot) {
        io_uring_prep_recv_multishot(sqe, l->conns[i].fd, NULL, 0, 0);
        sqe->flags |= IOSQE_BUFFER_SELECT;
    } else {
        io_uring_prep_recv(sqe, l->conns[i].fd, l->pool + (size_t)i * l->chunk, l->chunk, 0);
    }
    io_uring_sqe_set_data64(sqe, (uint64_t)OP_RECV << 32 | i);
}

/* The next piece of data that never runs out. It goes by requests alone: there is always one under way. */
static void flood(struct load *l, unsigned i) {
    struct load_conn *c = &l->conns[i];
    struct io_uring_sqe *sqe = get_sqe(l);
    io_uring_prep_send(sqe, c->fd, l->pattern + c->send_at, l->span, MSG_NOSIGNAL);
    io_uring_sqe_set_data64(sqe, (uint64_t)OP_SEND << 32 | i);
    c->unsent = l->span;
}

/* Sends what is due on a connection, straight from the pattern. What does not fit becomes a request. */
static void push(struct load *l, unsigned i) {
    struct load_conn *c = &l->conns[i];
    if (c->sending || c->unsent == 0) return;
    size_t n = c->unsent < l->span ? c->unsent : l->span;
    ssize_t sent = send(c->fd, l->pattern + c->send_at, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        failed(l, "send on connection %u: %s", i, strerror(errno));
        return;
    }
    if (sent > 0) {
        c->send_at = (uint32_t)((c->send_at + (size_t)sent) % PATTERN);
        c->unsent -= (size_t)sent;
    }
    if (c->unsent == 0) return;
    n = c->unsent < l->span ? c->unsent : l->span;
    struct io_uring_sqe *sqe = get_sqe(l);
    io_uring_prep_send(sqe, c->fd, l->pattern + c->send_at, n, MSG_NOSIGNAL);
    io_uring_sqe_set_data64(sqe, (uint64_t)OP_SEND << 32 | i);
    c->sending = true;
}

static int64_t *due_time(struct load *l, unsigned i, uint32_t n) {
    return &l->times[(size_t)i * (l->times_mask + 1) + (n & l->times_mask)];
}

static void enter_flight(struct load *l, struct load_conn *c) {
    c->in_flight++;
    l->in_flight++;
    c->unsent += l->o->size;
}

/* A message is due: it goes under way, or waits on its connection while `depth` others are. */
static void release(struct load *l, unsigned i, int64_t due_ns) {
    struct load_conn *c = &l->conns[i];
    if (l->phase == LOAD_DRAIN || l->budget == 0) return;
    if (c->times_tail - c->times_head > l->times_mask) {
        l->out->missed++;
        return;
    }
    if (!is_busy_one(l, i)) l->budget--;
    *due_time(l, i, c->times_tail++) = due_ns;
    if (c->in_flight < l->o->depth) {
        enter_flight(l, c);
    } else {
        c->waiting++;
    }
}

static void answered(struct load *l, unsigned i, int64_t now) {
    struct load_conn *c = &l->conns[i];
    int64_t due_ns = *due_time(l, i, c->times_head++);
    if (!is_busy_one(l, i)) {
        bench_hist_add(&l->hist, now - due_ns);
        l->answered++;
    }
    c->in_flight--;
    l->in_flight--;
    if (c->waiting && l->phase != LOAD_DRAIN) {
        c->waiting--;
        enter_flight(l, c);
    }
    if (l->o->rate == 0 || is_busy_one(l, i)) release(l, i, now);
}

static void check_bytes(struct load *l, unsigned i, const char *bytes, unsigned n) {
    struct load_conn *c = &l->conns[i];
    if (memcmp(bytes, l->pattern + c->recv_at, n) != 0) {
        failed(l, "connection %u: the server answered other bytes than were sent", i);
        return;
    }
    c->recv_at = (c->recv_at + n) % PATTERN;
    c->partial += n;
    if (c->partial > l->o->size * c->in_flight) {
        failed(l, "connection %u: the server answered more than was sent", i);
        return;
    }
    int64_t now = bench_now();
    l->progress_ns = now;
    while (c->partial >= l->o->size) {
        c->partial -= (uint32_t)l->o->size;
        answered(l, i, now);
    }
    push(l, i);
}

/* Before Linux 6.0 there is no multishot receive: each connection gets a buffer, and is armed again each
 * time. */
static int fall_back_to_one_shot(struct load *l) {
    if (!l->multishot) return 0;
    l->multishot = false;
    return load_one_shot_buffers(l);
}

static void on_recv(struct load *l, unsigned i, const struct io_uring_cqe *cqe) {
    int res = cqe->res;
    bool first_refusal = res == -EINVAL && l->o->one_shot == false;
    if (res > 0 && l->multishot) {
        unsigned bid = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
        char *bytes = l->pool + (size_t)bid * l->chunk;
        check_bytes(l, i, bytes, (unsigned)res);
        load_give_back(l, bid);
    } else if (res > 0) {
        check_bytes(l, i, l->pool + (size_t)i * l->chunk, (unsigned)res);
    } else if (res == 0 && l->budget == 0 && l->conns[i].in_flight == 0) {
        return; /* a server that was told how much to echo has ended, others may still have answers to read */
    } else if (first_refusal && fall_back_to_one_shot(l) < 0) {
        failed(l, "out of memory");
    } else if (res != -ENOBUFS && res != -EINTR && !first_refusal) {
        failed(l, "connection %u: %s", i, res == 0 ? "closed by the server" : strerror(-res));
        return;
    }
    if (!(cqe->flags & IORING_CQE_F_MORE)) arm_recv(l, i);
}

static void on_send(struct load *l, unsigned i, int res) {
    struct load_conn *c = &l->conns[i];
    if (res < 0) {
        failed(l, "send on connection %u: %s", i, strerror(-res));
        return;
    }
    c->sending = false;
    c->send_at = (uint32_t)((c->send_at + (size_t)res) % PATTERN);
    c->unsent -= (size_t)res;
    if (l->o->busy == BENCH_BUSY_STREAM && i == BUSY_CONN) {
        flood(l, i);
    } else {
        push(l, i);
    }
}

static void reap(struct load *l) {
    unsigned head, seen = 0;
    struct io_uring_cqe *cqe;
    io_uring_for_each_cqe(&l->ring, head, cqe) {
        unsigned i = (uint32_t)cqe->user_data;
        if (cqe->user_data >> 32 == OP_SEND) {
            on_send(l, i, cqe->res);
        } else {
            on_recv(l, i, cqe);
        }
        seen++;
    }
    io_uring_cq_advance(&l->ring, seen);
    load_publish_buffers(l);
}

static int64_t burst_due_ns(const struct load *l) {
    return l->start_ns + (int64_t)((double)l->bursts * l->o->burst * 1e9 / (double)l->o->rate);
}

static void send_due_bursts(struct load *l, int64_t now) {
    for (int64_t due; l->phase != LOAD_DRAIN && (due = burst_due_ns(l)) <= now; l->bursts++) {
        if (l->in_flight == 0) l->progress_ns = now;
        for (unsigned k = 0; k < l->o->burst; k++) {
            unsigned i = l->next_conn++;
            if (l->next_conn == l->o->connections) l->next_conn = l->o->busy ? BUSY_CONN + 1 : 0;
            release(l, i, due);
            push(l, i);
        }
    }
}

static void begin_window(struct load *l, int64_t now) {
    l->phase = LOAD_WINDOW;
    l->window_ns = now;
    l->until_ns = l->o->requests ? INT64_MAX : now + (int64_t)(l->o->seconds * 1e9);
    l->answered = l->out->missed = 0;
    memset(&l->hist, 0, sizeof l->hist);
    l->cpu_ns = bench_cpu_ns(l->target);
}

static void end_window(struct load *l, int64_t now) {
    struct bench_result *out = l->out;
    double cpu_ns = (double)(bench_cpu_ns(l->target) - l->cpu_ns);
    l->phase = LOAD_DRAIN;
    out->requests = l->answered;
    out->seconds = (double)(now - l->window_ns) / 1e9;
    out->rps = (double)l->answered / out->seconds;
    out->cpu_us = l->answered ? cpu_ns / 1000 / (double)l->answered : 0;
    out->p50_us = bench_hist_us(&l->hist, 0.5);
    out->p99_us = bench_hist_us(&l->hist, 0.99);
    out->p999_us = bench_hist_us(&l->hist, 0.999);
}

static void advance(struct load *l, int64_t now) {
    if (l->phase == LOAD_WARMUP && now >= l->until_ns) begin_window(l, now);
    bool all_done = l->budget == 0 && l->in_flight == 0;
    if (l->phase == LOAD_WINDOW && (now >= l->until_ns || all_done)) end_window(l, now);
    if (l->in_flight && now - l->progress_ns > STUCK_NS)
        failed(l, "no answer for 5 s, with %llu requests under way", (unsigned long long)l->in_flight);
}

static int64_t wait_ns(const struct load *l) {
    if (l->o->rate == 0 || l->phase == LOAD_DRAIN) return 100000000;
    int64_t ns = burst_due_ns(l) - bench_now();
    return ns < 0 ? 0 : ns;
}

/* Ends when the window is over and every answer that was still under way has come and was checked. */
static void drive(struct load *l) {
    while (!l->out->error[0] && (l->phase != LOAD_DRAIN || l->in_flight)) {
        int64_t ns = wait_ns(l);
        struct __kernel_timespec ts = {ns / 1000000000, ns % 1000000000};
        struct io_uring_cqe *cqe;
        int err = io_uring_submit_and_wait_timeout(&l->ring, &cqe, 1, &ts, NULL);
        if (err < 0 && err != -ETIME && err != -EINTR && err != -EAGAIN && err != -EBUSY)
            failed(l, "io_uring_enter: %s", strerror(-err));
        reap(l);
        int64_t now = bench_now();
        advance(l, now);
        if (l->o->rate) send_due_bursts(l, now);
    }
}

static void begin(struct load *l) {
    const struct bench_opts *o = l->o;
    for (unsigned i = 0; i < o->connections; i++)
        arm_recv(l, i);
    int64_t now = l->start_ns = l->progress_ns = bench_now();
    l->budget = o->requests ? o->requests : UINT64_MAX;
    l->until_ns = now + (int64_t)(o->warmup * 1e9);
    if (o->requests) begin_window(l, now);
    if (o->busy == BENCH_BUSY_STREAM) flood(l, BUSY_CONN);
    unsigned first = o->busy == BENCH_BUSY_STREAM ? BUSY_CONN + 1 : 0;
    unsigned end = !o->rate ? o->connections : o->busy == BENCH_BUSY_COMPUTE ? BUSY_CONN + 1 : 0;
    l->next_conn = o->busy ? BUSY_CONN + 1 : 0;
    for (unsigned i = first; i < end; i++) {
        for (unsigned k = 0; k < o->depth; k++)
            release(l, i, now);
        push(l, i);
    }
}

void bench_load(const struct bench_opts *o, const struct bench_target *t, struct bench_result *out) {
    struct bench_opts with_busy = *o;
    struct load l = {.o = &with_busy, .target = t, .out = out};
    if (o->busy) with_busy.connections++;
    prctl(PR_SET_TIMERSLACK, 1);
    int err = load_open(&l);
    if (err < 0) {
        failed(&l, "the load generator can't start: %s", strerror(-err));
    } else if ((err = load_connect(&l)) < 0) {
        failed(&l, "connect: %s", strerror(-err));
    } else {
        begin(&l);
        drive(&l);
    }
    load_close(&l);
}
