/* The hand-written io_uring echo servers that others are held against: no tasks, no streams, only a state
 * machine over completions. Both receive by multishot requests into a ring of provided buffers and echo from
 * the buffer itself. raw-send answers with send(2) at once and makes a request only of what did not fit;
 * raw-sqe makes a request of each answer. Bytes that wait form a chain of buffers per connection, and one
 * send at a time keeps their order. */
#include "bench_common.h"
#include "bench_spin.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OP_ACCEPT, OP_RECV, OP_SEND, OP_STOP };
enum { SQ_ENTRIES = 512, CQ_ENTRIES = 4096, BUFFERS = 256, NONE = -1 };

struct conn {
    int first, last; /* chain of buffers that wait to be sent */
    int next_starved;
    bool armed, sending, starved, ended;
    enum bench_busy busy;
};

struct chunk { /* what of a buffer waits to be sent, and the buffer behind it */
    int next;
    unsigned off, len;
};

struct raw {
    struct io_uring ring;
    struct io_uring_buf_ring *bufs;
    size_t bufs_bytes;
    char *pool;
    size_t pool_bytes;
    unsigned buf_size, returned, held; /* buffers given back in this turn; buffers that wait in chains */
    struct chunk chunk[BUFFERS];
    struct conn *conns;
    long conns_max;
    int starved_first, starved_last;
    int listen_fd;
    uint64_t echoed;
    struct bench_spin spin;
    bool direct, stop, any_accepted;
    int error;
    const struct bench_server *server;
};

static struct io_uring_sqe *get_sqe(struct raw *r) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
    while (!sqe) { /* the queue is full: let the kernel take what is in it */
        io_uring_submit(&r->ring);
        sqe = io_uring_get_sqe(&r->ring);
    }
    return sqe;
}

/* After the prep function, which clears user_data in some versions of liburing. */
static void tag(struct io_uring_sqe *sqe, unsigned op, int fd) {
    io_uring_sqe_set_data64(sqe, (uint64_t)op << 32 | (uint32_t)fd);
}

static char *buffer(struct raw *r, int bid) {
    return r->pool + (size_t)bid * r->buf_size;
}

static void give_back(struct raw *r, int bid) {
    int mask = io_uring_buf_ring_mask(BUFFERS);
    io_uring_buf_ring_add(r->bufs, buffer(r, bid), r->buf_size, (unsigned short)bid, mask,
                          (int)r->returned++);
}

static void publish_buffers(struct raw *r) {
    if (r->returned == 0) return;
    io_uring_buf_ring_advance(r->bufs, (int)r->returned);
    r->returned = 0;
}

static void arm_accept(struct raw *r) {
    struct io_uring_sqe *sqe = get_sqe(r);
    io_uring_prep_multishot_accept(sqe, r->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    tag(sqe, OP_ACCEPT, r->listen_fd);
}

static void arm_recv(struct raw *r, int fd) {
    struct io_uring_sqe *sqe = get_sqe(r);
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = 0;
    tag(sqe, OP_RECV, fd);
    r->conns[fd].armed = true;
}

static void send_first(struct raw *r, int fd) {
    struct conn *c = &r->conns[fd];
    struct chunk *k = &r->chunk[c->first];
    struct io_uring_sqe *sqe = get_sqe(r);
    io_uring_prep_send(sqe, fd, buffer(r, c->first) + k->off, k->len, MSG_NOSIGNAL | MSG_WAITALL);
    tag(sqe, OP_SEND, fd);
    c->sending = true;
}

/* The number may be reused at once, so no request may be left on it. */
static void close_if_done(struct raw *r, int fd) {
    struct conn *c = &r->conns[fd];
    if (!c->ended || c->armed || c->sending || c->starved || c->first != NONE) return;
    close(fd);
}

static void drop_first(struct raw *r, struct conn *c) {
    int bid = c->first;
    c->first = r->chunk[bid].next;
    r->held--;
    give_back(r, bid);
}

/* The other side is gone: what waits can't be sent any more, and shutdown ends the receive. */
static void fail(struct raw *r, int fd) {
    struct conn *c = &r->conns[fd];
    c->ended = true;
    while (c->first != NONE && !c->sending)
        drop_first(r, c);
    shutdown(fd, SHUT_RDWR);
}

static void append(struct raw *r, struct conn *c, int bid, unsigned off, unsigned len) {
    r->chunk[bid] = (struct chunk){NONE, off, len};
    r->held++;
    if (c->first == NONE) {
        c->first = bid;
    } else {
        r->chunk[c->last].next = bid;
    }
    c->last = bid;
}

static void echo(struct raw *r, int fd, int bid, unsigned len) {
    struct conn *c = &r->conns[fd];
    unsigned off = 0;
    if (c->busy == BENCH_BUSY_STREAM) {
        give_back(r, bid);
        return;
    }
    if (c->busy == BENCH_BUSY_COMPUTE) bench_compute();
    if (r->direct && c->first == NONE) {
        ssize_t n = send(fd, buffer(r, bid), len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            give_back(r, bid);
            fail(r, fd);
            return;
        }
        off = n > 0 ? (unsigned)n : 0;
        r->echoed += off;
        if (off == len) {
            give_back(r, bid);
            return;
        }
    }
    append(r, c, bid, off, len - off);
    if (!c->sending) send_first(r, fd);
}

static void starve(struct raw *r, int fd) {
    r->conns[fd].starved = true;
    r->conns[fd].next_starved = NONE;
    if (r->starved_first == NONE) {
        r->starved_first = fd;
    } else {
        r->conns[r->starved_last].next_starved = fd;
    }
    r->starved_last = fd;
}

/* Receives that found no buffer start again as soon as any buffer is not waiting to be sent: each of those is
 * in the ring, or in a completion that the next turn will see. */
static void feed_starved(struct raw *r) {
    if (r->held == BUFFERS) return;
    while (r->starved_first != NONE) {
        int fd = r->starved_first;
        r->starved_first = r->conns[fd].next_starved;
        r->conns[fd].starved = false;
        arm_recv(r, fd);
    }
}

static void on_accept(struct raw *r, int res, unsigned flags) {
    if (res >= r->conns_max) {
        close(res);
    } else if (res >= 0) {
        r->conns[res] = (struct conn){.first = NONE, .last = NONE};
        if (!r->any_accepted) r->conns[res].busy = r->server->opts->busy;
        r->any_accepted = true;
        arm_recv(r, res);
    } else if (res != -ECONNABORTED && res != -EINTR && res != -EAGAIN) {
        r->error = res;
        return;
    }
    if (!(flags & IORING_CQE_F_MORE)) arm_accept(r);
}

static void on_recv(struct raw *r, int fd, int res, unsigned flags) {
    struct conn *c = &r->conns[fd];
    c->armed = flags & IORING_CQE_F_MORE;
    if (res > 0 && c->ended) {
        give_back(r, (int)(flags >> IORING_CQE_BUFFER_SHIFT));
    } else if (res > 0) {
        echo(r, fd, (int)(flags >> IORING_CQE_BUFFER_SHIFT), (unsigned)res);
    } else if (res == -ENOBUFS) {
        starve(r, fd);
        return;
    } else if (res == -EINVAL) {
        r->error = res; /* no multishot receive in this kernel */
    } else {
        c->ended = true;
    }
    if (!c->armed && !c->ended) arm_recv(r, fd);
    close_if_done(r, fd);
}

static void on_send(struct raw *r, int fd, int res) {
    struct conn *c = &r->conns[fd];
    struct chunk *k = &r->chunk[c->first];
    c->sending = false;
    if (res < 0) {
        fail(r, fd);
    } else {
        r->echoed += (unsigned)res;
        k->off += (unsigned)res;
        k->len -= (unsigned)res;
        if (k->len == 0) drop_first(r, c);
        if (c->first != NONE) send_first(r, fd);
    }
    close_if_done(r, fd);
}

static void dispatch(struct raw *r, const struct io_uring_cqe *cqe) {
    int fd = (int)(uint32_t)cqe->user_data;
    switch (cqe->user_data >> 32) {
    case OP_ACCEPT:
        on_accept(r, cqe->res, cqe->flags);
        break;
    case OP_RECV:
        on_recv(r, fd, cqe->res, cqe->flags);
        break;
    case OP_SEND:
        on_send(r, fd, cqe->res);
        break;
    default:
        r->stop = true;
        break;
    }
}

static bool something_came(struct raw *r) {
    return io_uring_cq_ready(&r->ring) || (IO_URING_READ_ONCE(*r->ring.sq.kflags) & IORING_SQ_TASKRUN);
}

static int wait_with_spin(struct raw *r) {
    if (io_uring_sq_ready(&r->ring)) io_uring_submit(&r->ring);
    if (!something_came(r)) {
        int64_t start = bench_now();
        if (bench_spin_wanted(&r->spin))
            while (!something_came(r) && bench_now() - start < r->spin.max_ns)
                bench_spin_pause();
        int ret = io_uring_submit_and_wait(&r->ring, 1);
        bench_spin_learn(&r->spin, bench_now() - start);
        return ret;
    }
    return io_uring_submit_and_wait(&r->ring, 1);
}

static int turn(struct raw *r) {
    int ret = r->spin.max_ns > 0 ? wait_with_spin(r) : io_uring_submit_and_wait(&r->ring, 1);
    if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY) return ret;
    unsigned head, seen = 0;
    struct io_uring_cqe *cqe;
    io_uring_for_each_cqe(&r->ring, head, cqe) {
        dispatch(r, cqe);
        seen++;
    }
    io_uring_cq_advance(&r->ring, seen);
    publish_buffers(r);
    if (r->starved_first != NONE) feed_starved(r);
    return r->error;
}

/* The cheapest ring this kernel makes: completions are worked off only where we wait, nobody else submits. */
static int open_ring(struct raw *r) {
    static const unsigned ladder[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
        IORING_SETUP_CQSIZE,
    };
    int err = -EINVAL;
    for (unsigned i = 0; err == -EINVAL && i < sizeof ladder / sizeof *ladder; i++) {
        struct io_uring_params p = {.flags = ladder[i], .cq_entries = CQ_ENTRIES};
        err = io_uring_queue_init_params(SQ_ENTRIES, &r->ring, &p);
    }
    if (err == 0) io_uring_register_ring_fd(&r->ring); /* saves a table look-up per call; works without */
    return err;
}

static void *map_memory(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* A buffer holds what a client has under way, so that a turn's answer is one send, but at most 32 KiB. */
static int open_buffers(struct raw *r, const struct bench_opts *o) {
    r->buf_size = 4096;
    while (r->buf_size < 32768 && r->buf_size < o->size * o->depth)
        r->buf_size *= 2;
    r->bufs_bytes = BUFFERS * sizeof(struct io_uring_buf);
    r->pool_bytes = (size_t)BUFFERS * r->buf_size;
    r->bufs = map_memory(r->bufs_bytes);
    r->pool = map_memory(r->pool_bytes);
    if (!r->bufs || !r->pool) return -ENOMEM;
    struct io_uring_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)r->bufs, .ring_entries = BUFFERS};
    int err = io_uring_register_buf_ring(&r->ring, &reg, 0);
    if (err < 0) return err;
    io_uring_buf_ring_init(r->bufs);
    for (int bid = 0; bid < BUFFERS; bid++)
        give_back(r, bid);
    publish_buffers(r);
    return 0;
}

static int serve(struct raw *r) {
    uint64_t limit = r->server->count_bytes ? r->server->count_bytes : UINT64_MAX;
    struct io_uring_sqe *sqe = get_sqe(r);
    io_uring_prep_poll_add(sqe, r->server->stop_fd, POLLIN);
    tag(sqe, OP_STOP, r->server->stop_fd);
    arm_accept(r);
    int err = 0;
    while (err == 0 && !r->stop && r->echoed < limit)
        err = turn(r);
    return err;
}

static int open_and_serve(struct raw *r) {
    const struct bench_server *s = r->server;
    r->conns_max = bench_files_max();
    r->conns = calloc((size_t)r->conns_max, sizeof *r->conns);
    if (!r->conns) return -ENOMEM;
    int err = open_buffers(r, s->opts);
    if (err < 0) return err;
    r->listen_fd = bench_listen(s, 0);
    if (r->listen_fd < 0) return r->listen_fd;
    return serve(r);
}

static int raw_server(const struct bench_server *s, bool direct) {
    struct raw *r = calloc(1, sizeof *r);
    if (!r) return -ENOMEM;
    r->server = s;
    r->direct = direct;
    r->starved_first = NONE;
    if (s->spin) r->spin = (struct bench_spin){s->opts->spin_max_ns, s->opts->spin_gap_ns, 0};
    int err = open_ring(r);
    if (err == 0) {
        err = open_and_serve(r);
        io_uring_queue_exit(&r->ring);
    }
    if (r->bufs) munmap(r->bufs, r->bufs_bytes);
    if (r->pool) munmap(r->pool, r->pool_bytes);
    free(r->conns);
    free(r);
    return err;
}

int bench_raw_send(const struct bench_server *s) {
    return raw_server(s, true);
}

int bench_raw_sqe(const struct bench_server *s) {
    return raw_server(s, false);
}
