/* Two drivers, one answer: a random script of requests, cancels and what peers do is played to the epoll
 * driver, which settles after each step, and then to a ring, which has to end the same requests in the same
 * steps with the same results. A step that fails names its seed, and COIL_TEST_SEED plays that one again.
 *
 * The script asks only what has one answer: at most one request at a time waits for bytes on a descriptor,
 * and at most one for room. */
#include "caps.h"
#include "poll.h"
#include "ring.h"

#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { STEPS = 300, LENGTH_MAX = 48, QUEUED_MAX = 2000, CHANNELS = 8, PENDING = INT32_MIN, MS = 1000000 };
enum kind { STREAM, DGRAM, PIPE, TCP, KINDS };
enum lane { READING, WRITING, ENDING, LANES };
static const int64_t patience_ns = 20000000000;

struct channel {
    enum kind kind;
    int fd, peer;                /* peer -1: it has left */
    bool shut;                   /* it writes no more */
    bool reset_due;              /* it was written to after it had left */
    unsigned queued;             /* bytes on their way here, */
    unsigned datagrams;          /* and datagrams that the peer has not read */
    uint64_t from_peer, to_peer; /* bytes so far */
    uint8_t sent, got;           /* bytes count up, so that a lost one is seen */
    int waiting[LANES];          /* the request of each kind; -1: none */
};

struct ask {
    struct coil__req req;
    struct msghdr msg;
    struct iovec iov;
    uint8_t bytes[LENGTH_MAX];
    int channel;
    enum lane lane;
    int32_t res;
    int step; /* in which it ended */
};

struct play {
    struct coil__driver *d;
    uint64_t dice;
    int step, asks;
    struct channel channels[CHANNELS];
    struct ask at[STEPS];
};

static struct play played[2]; /* by the epoll driver, and by the ring */

static unsigned roll(struct play *p, unsigned n) {
    p->dice ^= p->dice << 13;
    p->dice ^= p->dice >> 7;
    p->dice ^= p->dice << 17;
    return (unsigned)(p->dice >> 20) % n;
}

static int64_t now_ns(void) {
    return coil__sys_linux.now();
}

/* ---- channels ---- */

static void make_tcp(int fd[2]) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(bind(listener, (struct sockaddr *)&at, len) == 0 && listen(listener, 1) == 0);
    getsockname(listener, (struct sockaddr *)&at, &len);
    fd[1] = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert_eq(connect(fd[1], (struct sockaddr *)&at, len), 0);
    fd[0] = accept(listener, NULL, NULL);
    close(listener);
}

static void open_channel(struct channel *c, enum kind kind) {
    int fd[2], err = 0;
    *c = (struct channel){.kind = kind, .waiting = {-1, -1, -1}};
    if (kind == TCP) {
        make_tcp(fd);
    } else if (kind == PIPE) {
        err = pipe(fd);
    } else {
        err = socketpair(AF_UNIX, kind == STREAM ? SOCK_STREAM : SOCK_DGRAM, 0, fd);
    }
    cr_assert(err == 0 && fd[0] >= 0, "a channel");
    c->fd = fd[0];
    c->peer = fd[1];
}

/* TCP takes a while for bytes, a long one where another CPU handles them: until fd has received as many. */
static void await_bytes(int fd, uint64_t bytes) {
    int64_t end_ns = now_ns() + patience_ns;
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    while (info.tcpi_bytes_received < bytes) {
        cr_assert_eq(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len), 0);
        cr_assert_lt(now_ns(), end_ns, "bytes do not arrive");
        sched_yield();
    }
}

/* What the peer has done has arrived, so that both drivers find it there. */
static void arrive(const struct channel *c) {
    int64_t end_ns = now_ns() + patience_ns;
    if (c->kind == DGRAM) return;
    struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
    while ((c->shut || c->peer < 0) && now_ns() < end_ns && poll(&p, 1, 100) == 0)
        continue;
    if (c->kind == TCP) await_bytes(c->fd, c->from_peer);
}

static void peer_writes(struct play *p, struct channel *c) {
    uint8_t bytes[LENGTH_MAX];
    unsigned n = 1 + roll(p, LENGTH_MAX);
    if (c->peer < 0 || c->shut || c->queued + n > QUEUED_MAX) return;
    /* A few datagrams fill a queue. */
    if (c->kind == DGRAM && c->queued > 0 && c->waiting[READING] < 0) return;
    for (unsigned i = 0; i < n; i++)
        bytes[i] = c->sent++;
    cr_assert_eq(write(c->peer, bytes, n), (ssize_t)n, "the peer writes");
    c->queued += n;
    c->from_peer += n;
}

static void peer_leaves(struct play *p, struct channel *c) {
    if (c->peer < 0) return;
    if (roll(p, 2) && (c->kind == STREAM || c->kind == TCP)) {
        shutdown(c->peer, SHUT_WR);
        c->shut = true;
        return;
    }
    /* With bytes unread it would be a reset, which takes bytes with it that are on their way here. */
    int unread = 0;
    if (c->kind == TCP) await_bytes(c->peer, c->to_peer);
    ioctl(c->peer, FIONREAD, &unread);
    if (unread > 0) return;
    close(c->peer);
    c->peer = -1;
}

static void no_room(const struct channel *c) {
    static const char zeros[4096];
    if (c->kind != STREAM || c->waiting[WRITING] >= 0) return;
    for (size_t n = sizeof zeros; n; n /= 2) {
        while (send(c->fd, zeros, n, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
            continue;
    }
}

/* Only what is there when it begins: a ring may send the next while the peer still reads. */
static void peer_reads(struct channel *c) {
    char bytes[4096];
    int left = 0;
    if (c->peer < 0 || c->kind == PIPE) return;
    for (; c->datagrams; c->datagrams--)
        cr_assert_gt(recv(c->peer, bytes, sizeof bytes, MSG_DONTWAIT), 0, "a datagram is lost");
    if (c->kind == DGRAM) return;
    if (c->kind == TCP) await_bytes(c->peer, c->to_peer);
    cr_assert_eq(ioctl(c->peer, FIONREAD, &left), 0);
    for (ssize_t n; left > 0 && (n = recv(c->peer, bytes, (size_t)MIN(left, 4096), MSG_DONTWAIT)) > 0;)
        left -= (int)n;
}

/* ---- requests ---- */

static void ask(struct play *p, int channel, enum lane lane, uint8_t opcode, unsigned n) {
    struct channel *c = &p->channels[channel];
    if (c->waiting[lane] >= 0) return;
    struct ask *a = &p->at[p->asks];
    *a = (struct ask){.channel = channel, .lane = lane, .res = PENDING};
    struct io_uring_sqe *s = &a->req.sqe;
    *s = (struct io_uring_sqe){.opcode = opcode, .fd = c->fd, .user_data = (uint64_t)p->asks << 2};
    a->iov = (struct iovec){.iov_base = a->bytes, .iov_len = n};
    a->msg = (struct msghdr){.msg_iov = &a->iov, .msg_iovlen = 1};
    bool message = opcode == IORING_OP_RECVMSG || opcode == IORING_OP_SENDMSG;
    s->addr = message ? (uintptr_t)&a->msg : (uintptr_t)a->bytes;
    s->len = message ? 1 : n;
    if (lane == WRITING) s->msg_flags = MSG_NOSIGNAL;
    if (opcode == IORING_OP_POLL_ADD) {
        unsigned events = lane == READING ? POLLIN : POLLRDHUP;
        s->addr = s->len = 0;
        s->poll32_events = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? events << 16 : events;
    }
    c->waiting[lane] = p->asks++;
    p->d->ops->queue(p->d, &a->req);
}

static void ask_to_read(struct play *p, int channel) {
    static const uint8_t opcodes[] = {IORING_OP_READ, IORING_OP_POLL_ADD, IORING_OP_RECV, IORING_OP_RECVMSG};
    unsigned known = p->channels[channel].kind == PIPE ? 2 : ARRAY_SIZE(opcodes);
    ask(p, channel, READING, opcodes[roll(p, known)], 1 + roll(p, LENGTH_MAX));
}

static void ask_to_write(struct play *p, int channel) {
    uint8_t opcode = roll(p, 2) ? IORING_OP_SEND : IORING_OP_SENDMSG;
    unsigned n = 1 + roll(p, LENGTH_MAX);
    if (p->channels[channel].kind != PIPE) ask(p, channel, WRITING, opcode, n);
}

static void cancel_one(struct play *p, int channel) {
    int id = p->channels[channel].waiting[roll(p, LANES)];
    if (id >= 0) p->d->ops->cancel(p->d, &p->at[id].req);
}

/* What has ended: the bytes that were read are the next ones. */
static void ended(struct play *p, const struct io_uring_cqe *cqe) {
    struct ask *a = &p->at[cqe->user_data >> 2];
    struct channel *c = &p->channels[a->channel];
    cr_assert_eq(a->res, PENDING, "request %d of opcode %u ended twice", (int)(cqe->user_data >> 2),
                 a->req.sqe.opcode);
    /* A kernel's thread that waits for room is interrupted. */
    a->res = cqe->res == -EINTR ? -ECANCELED : cqe->res;
    /* A ring tells of the end of the peer's writing unasked. */
    if (a->req.sqe.opcode == IORING_OP_POLL_ADD && a->lane == READING && a->res > 0) a->res &= ~POLLRDHUP;
    a->step = p->step;
    c->waiting[a->lane] = -1;
    if (coil__node_linked(&a->req.node)) coil__node_unlink(&a->req.node);
    if (a->lane == WRITING && c->kind == DGRAM && a->res > 0) c->datagrams++;
    if (a->lane == WRITING && a->res > 0) c->to_peer += (uint64_t)a->res;
    if (a->lane == WRITING && a->res > 0 && c->kind == TCP && c->peer < 0) c->reset_due = true;
    if (a->lane != READING || a->req.sqe.opcode == IORING_OP_POLL_ADD || a->res <= 0) return;
    for (int i = 0; i < a->res; i++)
        cr_assert_eq(a->bytes[i], (uint8_t)(c->got + i), "byte %d of request %d", i, (int)(a - p->at));
    /* What of a datagram found no room is gone. */
    unsigned left = c->kind == DGRAM ? c->queued : (unsigned)a->res;
    c->queued -= left;
    c->got = (uint8_t)(c->got + left);
}

/* A cancel that met its request between two states is asked for again. */
static void cancel_ended(struct play *p, const struct io_uring_cqe *cqe) {
    struct ask *a = &p->at[cqe->user_data >> 2];
    if (cqe->res != -ENOENT || a->res != PENDING || coil__node_linked(&a->req.node)) return;
    p->d->ops->cancel(p->d, &a->req);
}

static unsigned reap(struct play *p) {
    struct io_uring_cqe cqes[32];
    unsigned n = p->d->ops->reap(p->d, cqes, 32);
    for (unsigned i = 0; i < n; i++) {
        (cqes[i].user_data & COIL__TAG_CANCEL ? cancel_ended : ended)(p, &cqes[i]);
    }
    return n;
}

/* Whether a request has yet to end: in the last step each, else those that had ended by now elsewhere. */
static bool owes(const struct play *p, const struct play *like) {
    for (int i = 0; i < p->asks; i++) {
        bool due = p->step == STEPS ||
                   (like && i < like->asks && like->at[i].res != PENDING && like->at[i].step <= p->step);
        if (due && p->at[i].res == PENDING) return true;
    }
    return false;
}

/* Until nothing more comes, and nothing is owed. */
static void settle(struct play *p, const struct play *like) {
    int64_t end_ns = now_ns() + patience_ns;
    p->d->ops->enter(p->d, 0);
    do {
        while (reap(p))
            p->d->ops->enter(p->d, 0);
        if (!owes(p, like)) return;
        p->d->ops->enter(p->d, now_ns() + 10 * MS);
    } while (now_ns() < end_ns);
}

/* ---- the script ---- */

static void reopen(struct play *p, int channel) {
    struct channel *c = &p->channels[channel];
    for (int lane = 0; lane < LANES; lane++)
        if (c->waiting[lane] >= 0) return;
    close(c->fd);
    if (c->peer >= 0) close(c->peer);
    open_channel(c, c->kind);
}

static void act(struct play *p) {
    int channel = (int)roll(p, CHANNELS);
    struct channel *c = &p->channels[channel];
    unsigned dice = roll(p, 100);
    if (dice < 30) {
        peer_writes(p, c);
    } else if (dice < 60) {
        ask_to_read(p, channel);
    } else if (dice < 70) {
        ask_to_write(p, channel);
    } else if (dice < 75) {
        no_room(c);
    } else if (dice < 80) {
        peer_reads(c);
    } else if (dice < 85) {
        if (c->kind == STREAM || c->kind == TCP) ask(p, channel, ENDING, IORING_OP_POLL_ADD, 0);
    } else if (dice < 93) {
        cancel_one(p, channel);
    } else if (dice < 96) {
        peer_leaves(p, c);
    } else if (c->peer < 0 || c->shut) {
        reopen(p, channel);
    }
    arrive(c);
}

/* What was sent to a peer that has closed is answered by a reset, some time later. */
static void await_reset(struct channel *c) {
    struct pollfd fd = {.fd = c->fd};
    if (c->reset_due) cr_assert_eq(poll(&fd, 1, (int)(patience_ns / MS)), 1, "no reset arrives");
    c->reset_due = false;
}

static void play(struct play *p, struct coil__driver *d, uint64_t seed, const struct play *like) {
    memset(p, 0, sizeof *p);
    p->d = d;
    p->dice = seed * 0x9e3779b97f4a7c15 + 1;
    for (int i = 0; i < CHANNELS; i++)
        open_channel(&p->channels[i], (enum kind)(i % KINDS));
    for (; p->step < STEPS; p->step++) {
        act(p);
        settle(p, like);
        for (int i = 0; i < CHANNELS; i++)
            await_reset(&p->channels[i]);
    }
    for (int i = 0; i < CHANNELS; i++)
        for (int lane = 0; lane < LANES; lane++)
            if (p->channels[i].waiting[lane] >= 0)
                d->ops->cancel(d, &p->at[p->channels[i].waiting[lane]].req);
    settle(p, like);
    for (int i = 0; i < CHANNELS; i++) {
        close(p->channels[i].fd);
        if (p->channels[i].peer >= 0) close(p->channels[i].peer);
    }
    d->ops->destroy(d);
}

static struct coil__driver *open_poll(void) {
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    cr_assert_eq(coil__poll_open(0, &d, &err), 0, "%s", err.text);
    return d;
}

static struct coil__driver *open_ring(void) {
    struct coil__ring_opts o = {
        .sq_entries = 32, .cq_entries = 128, .pool_buffers = 8, .pool_buffer_size = 64};
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    cr_assert_eq(coil__caps_parse(getenv("COIL_CAPS"), &o.caps_unused, NULL), 0, "COIL_CAPS");
    return coil__ring_open(&o, &d, &err) == 0 ? d : NULL;
}

/* Early 5.10 kernels tell events too that nobody has asked for; io.c leaves them out. */
static int32_t outcome(const struct ask *x) {
    bool tells = x->req.sqe.opcode == IORING_OP_POLL_ADD && x->res > 0;
    return tells ? x->res & (int32_t)(x->req.sqe.poll32_events | POLLERR | POLLHUP | POLLNVAL) : x->res;
}

static bool compare(const struct play *a, const struct play *b, uint64_t seed) {
    bool same = true;
    for (int i = 0; same && i < MIN(a->asks, b->asks); i++) {
        const struct ask *x = &a->at[i], *y = &b->at[i];
        same = outcome(x) == outcome(y) && x->step == y->step;
        cr_expect(same,
                  "seed %llu, request %d (opcode %u, kind %u): %d in step %d, of the ring %d in step %d",
                  (unsigned long long)seed, i, x->req.sqe.opcode, a->channels[x->channel].kind, x->res,
                  x->step, y->res, y->step);
    }
    cr_expect_eq(a->asks, b->asks, "seed %llu: the scripts differ", (unsigned long long)seed);
    return same && a->asks == b->asks;
}

Test(drivers, a_random_script_has_one_outcome) {
    struct coil__driver *ring = open_ring();
    if (ring) ring->ops->destroy(ring);
    check_needs(ring, "io_uring");
    const char *chosen = getenv("COIL_TEST_SEED");
    uint64_t seed = chosen ? strtoull(chosen, NULL, 10) : coil__sys_linux.random() % 1000000000;
    int fds = check_fd_count(), waited = 0;
    for (int round = 0, rounds = chosen ? 1 : check_rounds(25); round < rounds; round++, seed++) {
        play(&played[0], open_poll(), seed, NULL);
        play(&played[1], open_ring(), seed, &played[0]);
        for (int i = 0; i < played[0].asks; i++)
            waited += played[0].at[i].res > 0 && played[0].at[i].step < STEPS;
        if (!compare(&played[0], &played[1], seed)) break;
    }
    cr_expect_gt(waited, 50, "hardly anything went well");
    cr_expect_eq(check_fd_count(), fds, "descriptors");
}
