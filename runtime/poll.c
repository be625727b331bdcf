/* The epoll driver: for where io_uring is forbidden. It does what a plain 5.10's ring does for sockets, pipes
 * and terminals, from the same SQE images: a request is tried with a call that doesn't wait, and where that
 * says EAGAIN, tried again when epoll reports its descriptor. Anything in an image that it doesn't know is a
 * mistake of coil's own, and stops the program.
 *
 * A descriptor stays registered, level-triggered, when the requests on it are over: most often the next one
 * comes before the next wait, and a server then makes no epoll_ctl at all. Reports that nobody waits for end
 * the registration after a few times.
 *
 * Numbers may be closed and reused behind coil's back. epoll knows descriptions, not numbers, so:
 *   - a request believes in a registration only if its own record was seen by it before (`own.seen`): then it
 * is a stream's or a listener's, and nobody else closes that. Otherwise an EPOLL_CTL_MOD asks the kernel.
 *   - ENOENT: the number means something else now. The requests of the old one are lost: they wait until they
 * are cancelled, as a ring's would, and touch nothing.
 *   - a report of a registration that is over (a duplicate keeps the description open) can't be switched off
 * by number: the epoll set is made anew. */
#include "poll.h"
#include "alarm.h"
#include "caps.h"

#include "coil/core.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 256, /* reports in one wait */
    IDLE_MAX = 8,     /* reports in a row that nobody waits for */
    BARREN_MAX = 16,  /* waits in a row whose reports have ended no request */
    BLOCK_SEATS = 256,
    NOT_YET = INT32_MIN, /* the request waits for its descriptor */
};

/* What is known of one descriptor. */
struct seat {
    struct coil__list waiting; /* requests, oldest first */
    uint32_t events;           /* what epoll reports; 0: it is not registered */
    uint32_t gen;              /* of the registration */
    unsigned idle;
};

struct poll {
    struct coil__driver d;
    int epoll_fd, wake_fd;
    struct coil__alarm alarm;
    struct coil__list fifo;    /* requests that were not tried yet */
    struct coil__list cancels; /* requests to be cancelled */
    struct coil__list over;    /* requests with a result, by own.place */
    struct coil__list lost;    /* requests on numbers that mean something else now */
    struct seat **blocks;      /* seats by descriptor, BLOCK_SEATS in each block */
    unsigned block_count;
    uint32_t last_gen;
    bool stale;      /* a report came from a registration that is over */
    bool woken;      /* a wake-up was reported, and nobody has reaped since */
    unsigned barren; /* waits in a row whose reports have ended no request */
    struct epoll_event events[EVENTS_MAX];
};

/* What epoll hands back: the generation above the descriptor. The driver's own two have generation 0. */
static uint64_t label(uint32_t gen, int fd) {
    return (uint64_t)gen << 32 | (uint32_t)fd;
}

static struct poll *poll_of(struct coil__driver *d) {
    return CONTAINER_OF(d, struct poll, d);
}

static struct coil__req *at_place(struct coil__node *n) {
    return CONTAINER_OF(n, struct coil__req, own.place);
}

static void complete(struct poll *p, struct coil__req *r, int32_t res) {
    r->own.res = res;
    p->barren = 0;
    coil__list_push(&p->over, &r->own.place);
}

/* ---- what each request does ---- */

_Noreturn static COLD void unknown(const struct io_uring_sqe *s) {
    fprintf(stderr,
            "coil: the epoll driver was asked for what it can't do: opcode %u, flags %#x, ioprio %#x\n",
            s->opcode, s->flags, s->ioprio);
    abort();
}

static void *address(uint64_t a) {
    return (void *)(uintptr_t)a;
}

static uint32_t poll_mask(const struct io_uring_sqe *s) {
    uint32_t mask = s->poll32_events;
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? mask << 16 | mask >> 16 : mask;
}

/* Whether a ring would heed something here that this driver doesn't. */
static bool beyond(const struct io_uring_sqe *s) {
    if (s->flags || s->ioprio || s->buf_index || s->personality || s->splice_fd_in) return true;
    switch (s->opcode) {
    case IORING_OP_POLL_ADD:
        return s->len || poll_mask(s) >> 16;
    case IORING_OP_READ:
    case IORING_OP_WRITE:
        return s->rw_flags;
    case IORING_OP_WRITEV:
        return s->rw_flags || s->off != UINT64_MAX;
    default:
        return false;
    }
}

/* errno as a result; a descriptor that isn't ready: NOT_YET. */
static int32_t result(ssize_t r) {
    if (r >= 0) return (int32_t)r;
    return errno == EAGAIN || errno == EINTR ? NOT_YET : -errno;
}

/* Of calls that have no MSG_DONTWAIT: the descriptor itself has to be non-blocking. */
static int32_t make_nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) return -errno;
    return flags & O_NONBLOCK || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? 0 : -errno;
}

static int32_t try_message(const struct io_uring_sqe *s) {
    int flags = (int)s->msg_flags | MSG_DONTWAIT;
    ssize_t r;
    switch (s->opcode) {
    case IORING_OP_RECV:
        r = recv(s->fd, address(s->addr), s->len, flags);
        break;
    case IORING_OP_SEND:
        r = send(s->fd, address(s->addr), s->len, flags);
        break;
    case IORING_OP_RECVMSG:
        r = recvmsg(s->fd, address(s->addr), flags);
        break;
    default:
        r = sendmsg(s->fd, address(s->addr), flags);
    }
    if (r < 0 && errno == EAGAIN && s->msg_flags & MSG_DONTWAIT) return -EAGAIN;
    return result(r);
}

/* What has no position ignores the offset, as a ring does. */
static int32_t try_bytes(const struct io_uring_sqe *s) {
    bool reads = s->opcode == IORING_OP_READ, placed = s->off != UINT64_MAX;
    int32_t err = make_nonblocking(s->fd);
    if (err) return err;
    void *p = address(s->addr);
    if (placed) {
        ssize_t r = reads ? pread(s->fd, p, s->len, (off_t)s->off) : pwrite(s->fd, p, s->len, (off_t)s->off);
        if (r >= 0 || errno != ESPIPE) return result(r);
    }
    return result(reads ? read(s->fd, p, s->len) : write(s->fd, p, s->len));
}

static int32_t try_writev(const struct io_uring_sqe *s) {
    int32_t err = make_nonblocking(s->fd);
    return err ? err : result(writev(s->fd, address(s->addr), (int)s->len));
}

static int32_t try_accept(const struct io_uring_sqe *s) {
    int32_t err = make_nonblocking(s->fd);
    return err ? err : result(accept4(s->fd, address(s->addr), address(s->addr2), (int)s->accept_flags));
}

/* Asked again after it was begun, connect(2) tells how that came out. A Unix socket's EAGAIN means a full
 * backlog, and nothing would tell when there is room. */
static int32_t try_connect(const struct io_uring_sqe *s, bool again) {
    int32_t err = make_nonblocking(s->fd);
    if (err) return err;
    if (connect(s->fd, address(s->addr), (socklen_t)s->off) == 0) return 0;
    if (again && errno == EISCONN) return 0;
    if (errno == EINPROGRESS || errno == EINTR || (again && errno == EALREADY)) return NOT_YET;
    return -errno;
}

static int32_t try_request(const struct io_uring_sqe *s, bool again) {
    switch (s->opcode) {
    case IORING_OP_NOP:
        return 0;
    case IORING_OP_POLL_ADD:
        return NOT_YET;
    case IORING_OP_RECV:
    case IORING_OP_RECVMSG:
    case IORING_OP_SEND:
    case IORING_OP_SENDMSG:
        return try_message(s);
    case IORING_OP_READ:
    case IORING_OP_WRITE:
        return try_bytes(s);
    case IORING_OP_WRITEV:
        return try_writev(s);
    case IORING_OP_ACCEPT:
        return try_accept(s);
    case IORING_OP_CONNECT:
        return try_connect(s, again);
    case IORING_OP_CLOSE:
        return coil__sys_linux.close(s->fd);
    default:
        unknown(s);
    }
}

/* poll(2)'s events and epoll's are the same bits; the two that are told unasked make an empty mask one that
 * can be registered. */
static uint32_t events_of(const struct io_uring_sqe *s) {
    switch (s->opcode) {
    case IORING_OP_POLL_ADD:
        return poll_mask(s) | EPOLLERR | EPOLLHUP;
    case IORING_OP_RECV:
    case IORING_OP_RECVMSG:
    case IORING_OP_READ:
    case IORING_OP_ACCEPT:
        return EPOLLIN;
    default:
        return EPOLLOUT;
    }
}

/* ---- registrations ---- */

static struct seat *new_block(void) {
    struct seat *b = calloc(BLOCK_SEATS, sizeof *b);
    for (unsigned i = 0; b && i < BLOCK_SEATS; i++)
        coil__list_init(&b[i].waiting);
    return b;
}

/* NULL: not known yet. */
static struct seat *known_seat(const struct poll *p, int fd) {
    unsigned block = (unsigned)fd / BLOCK_SEATS;
    return block < p->block_count && p->blocks[block] ? &p->blocks[block][fd % BLOCK_SEATS] : NULL;
}

/* NULL: no memory. */
static COLD struct seat *make_seat(struct poll *p, int fd) {
    unsigned block = (unsigned)fd / BLOCK_SEATS;
    if (block >= p->block_count) {
        unsigned count = MAX(block + 1, p->block_count * 2);
        struct seat **blocks = realloc(p->blocks, count * sizeof(struct seat *));
        if (!blocks) return NULL;
        memset(blocks + p->block_count, 0, (count - p->block_count) * sizeof(struct seat *));
        p->blocks = blocks;
        p->block_count = count;
    }
    if (!p->blocks[block]) p->blocks[block] = new_block();
    return known_seat(p, fd);
}

/* 0 and *out. A number that isn't open gets no seat: it may be any number, and would take memory for all
 * below it. */
static int seat_for(struct poll *p, int fd, struct seat **out) {
    *out = known_seat(p, fd);
    if (LIKELY(*out)) return 0;
    if (fcntl(fd, F_GETFD) < 0) return -errno;
    *out = make_seat(p, fd);
    return *out ? 0 : -ENOMEM;
}

static int control(const struct poll *p, int op, int fd, uint32_t gen, uint32_t events) {
    struct epoll_event ev = {.events = events, .data.u64 = label(gen, fd)};
    return epoll_ctl(p->epoll_fd, op, fd, &ev) < 0 ? -errno : 0;
}

/* The number means something else now, or nothing. */
static COLD void lose(struct poll *p, struct seat *seat) {
    seat->events = 0;
    for (struct coil__node *n; (n = coil__list_pop(&seat->waiting));)
        coil__list_push(&p->lost, n);
}

/* Whether the number still means what was registered; the registration then reports `events`. */
static bool confirm(struct poll *p, struct seat *seat, int fd, uint32_t events) {
    if (control(p, EPOLL_CTL_MOD, fd, seat->gen, events)) {
        lose(p, seat);
        return false;
    }
    seat->events = events;
    return true;
}

/* 0: epoll will report `events`, and maybe more, of what fd means now. */
static int watch(struct poll *p, struct seat *seat, int fd, uint32_t events, uint32_t seen) {
    uint32_t all = seat->events | events;
    if (LIKELY(seat->events == all && seen == seat->gen)) return 0;
    if (seat->events && confirm(p, seat, fd, all)) return 0;
    seat->gen = ++p->last_gen ? p->last_gen : ++p->last_gen;
    seat->idle = 0;
    int err = control(p, EPOLL_CTL_ADD, fd, seat->gen, events);
    /* The number means again what was lost when it meant something else, and that is registered still. */
    if (err == -EEXIST) err = control(p, EPOLL_CTL_MOD, fd, seat->gen, events);
    seat->events = err ? 0 : events;
    return err;
}

/* From now on only `wanted` is reported. What has hung up is reported always, so that nothing but the end of
 * the registration silences it. */
static void narrow(struct poll *p, struct seat *seat, int fd, uint32_t wanted) {
    seat->idle = 0;
    if (wanted) {
        confirm(p, seat, fd, wanted);
        return;
    }
    if (control(p, EPOLL_CTL_DEL, fd, seat->gen, 0)) p->stale = true;
    seat->events = 0;
}

/* A set without the registrations that can't be reached by their number any more. */
static COLD void renew(struct poll *p);

/* ---- a request on its way ---- */

/* What epoll has no word on (EPERM: /dev/null and its like) never makes anybody wait. */
static void wait_ready(struct poll *p, struct coil__req *r) {
    int fd = r->sqe.fd;
    uint32_t events = events_of(&r->sqe);
    struct seat *seat;
    int err = seat_for(p, fd, &seat);
    if (!err) err = watch(p, seat, fd, events, r->own.seen);
    if (err == -EPERM && r->sqe.opcode == IORING_OP_POLL_ADD) {
        err = (int)(events & (EPOLLIN | EPOLLOUT | EPOLLRDNORM | EPOLLWRNORM));
    }
    if (err) {
        complete(p, r, err);
        return;
    }
    r->own.seen = seat->gen;
    r->own.res = NOT_YET;
    coil__list_push(&seat->waiting, &r->own.place);
}

static void begin(struct poll *p, struct coil__req *r) {
    const struct io_uring_sqe *s = &r->sqe;
    if (UNLIKELY(beyond(s))) unknown(s);
    int32_t res = try_request(s, false);
    if (res == NOT_YET) {
        wait_ready(p, r);
    } else {
        complete(p, r, res);
    }
}

static void end(struct poll *p, struct coil__req *r) {
    if (r->own.res != NOT_YET) return; /* its result is on its way */
    coil__node_unlink(&r->own.place);
    complete(p, r, -ECANCELED);
}

/* One report, for all requests on that descriptor. A poll only tells; anything else acts on the number, which
 * therefore has to be the one that was registered. Returns whether anybody waited for it. */
static bool serve(struct poll *p, struct seat *seat, int fd, uint32_t events, uint32_t *wanted) {
    bool sure = false, served = false;
    struct coil__node *n = seat->waiting.head.next, *next;
    for (*wanted = 0; n != &seat->waiting.head; n = next) {
        struct coil__req *r = at_place(n);
        uint32_t mine = events_of(&r->sqe), got = events & (mine | EPOLLERR | EPOLLHUP);
        int32_t res = (int32_t)got;
        next = n->next;
        if (got && r->sqe.opcode != IORING_OP_POLL_ADD) {
            if (!sure && !confirm(p, seat, fd, seat->events)) return true;
            sure = true;
            res = try_request(&r->sqe, true);
        }
        if (!got || res == NOT_YET) {
            *wanted |= mine;
            continue;
        }
        coil__node_unlink(n);
        complete(p, r, res);
        served = true;
    }
    return served;
}

/* Room to send is there nearly always, so that a report of it that nobody wants would come with every wait.
 */
static void report(struct poll *p, const struct epoll_event *ev) {
    int fd = (int)(uint32_t)ev->data.u64;
    uint32_t gen = (uint32_t)(ev->data.u64 >> 32), wanted;
    if (gen == 0) {
        if (fd == p->alarm.fd) coil__alarm_rang(&p->alarm);
        if (fd == p->wake_fd) p->woken = true;
        p->barren = 0;
        return;
    }
    struct seat *seat = known_seat(p, fd);
    if (!seat || seat->gen != gen || !seat->events) {
        p->stale = true;
        return;
    }
    bool served = serve(p, seat, fd, ev->events, &wanted);
    if (!seat->events) return; /* it was lost */
    seat->idle = served ? 0 : seat->idle + 1;
    if (seat->idle >= IDLE_MAX || ev->events & EPOLLOUT & ~wanted) narrow(p, seat, fd, wanted);
}

static void collect(struct poll *p, int timeout_ms) {
    int n = epoll_wait(p->epoll_fd, p->events, EVENTS_MAX, timeout_ms);
    CHECK(n >= 0 || errno == EINTR);
    if (n > 0) p->barren++;
    for (int i = 0; i < n; i++)
        report(p, &p->events[i]);
    if (p->stale) renew(p);
}

/* A descriptor may count as ready while the call on it says EAGAIN: with something in its error queue, or
 * where the receiver of a datagram is full. Each wait then ends at once, and ends nothing; without a pause
 * the worker would turn as fast as it can. */
static COLD void rest(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* ---- the driver's functions ---- */

static void poll_queue(struct coil__driver *d, struct coil__req *r) {
    coil__list_push(&poll_of(d)->fifo, &r->node);
}

static void poll_cancel(struct coil__driver *d, struct coil__req *r) {
    coil__list_push(&poll_of(d)->cancels, &r->node);
}

static void poll_enter(struct coil__driver *d, int64_t until_ns) {
    struct poll *p = poll_of(d);
    d->stats.enters++;
    for (struct coil__node *n; (n = coil__list_pop(&p->cancels));)
        end(p, CONTAINER_OF(n, struct coil__req, node));
    for (struct coil__node *n; (n = coil__list_pop(&p->fifo));)
        begin(p, CONTAINER_OF(n, struct coil__req, node));
    if (until_ns == 0 || p->woken || !coil__list_empty(&p->over)) {
        collect(p, 0);
        return;
    }
    coil__alarm_set(&p->alarm, until_ns);
    if (UNLIKELY(p->barren > BARREN_MAX)) rest();
    collect(p, -1);
}

static bool poll_ready(struct coil__driver *d) {
    struct poll *p = poll_of(d);
    if (coil__list_empty(&p->over) && !p->woken) collect(p, 0);
    return !coil__list_empty(&p->over) || p->woken;
}

static unsigned poll_reap(struct coil__driver *d, struct io_uring_cqe *out, unsigned max) {
    struct poll *p = poll_of(d);
    unsigned n = 0;
    p->woken = false;
    for (struct coil__node *it; n < max && (it = coil__list_pop(&p->over)); n++) {
        const struct coil__req *r = at_place(it);
        out[n].user_data = r->sqe.user_data;
        out[n].res = r->own.res;
        out[n].flags = 0;
    }
    return n;
}

/* Registered edge-triggered: each write is reported once, and the counter never read. */
static void poll_wake(struct coil__driver *d) {
    uint64_t one = 1;
    int saved = errno;
    ssize_t n = write(poll_of(d)->wake_fd, &one, sizeof one);
    (void)n;
    errno = saved;
}

static void poll_give(struct coil__driver *d, uint32_t buffer) {
    (void)d;
    (void)buffer;
    CHECK(!"a driver without a pool is given a buffer");
}

static void poll_destroy(struct coil__driver *d) {
    struct poll *p = poll_of(d);
    CHECK(coil__list_empty(&p->fifo));
    CHECK(coil__list_empty(&p->over));
    CHECK(coil__list_empty(&p->lost));
    for (unsigned i = 0; i < p->block_count; i++)
        free(p->blocks[i]);
    free(p->blocks);
    close(p->epoll_fd);
    close(p->wake_fd);
    close(p->alarm.fd);
    free(p);
}

/* ---- setting up ---- */

/* 0 or negative errno. */
static int register_bells(const struct poll *p) {
    int err = control(p, EPOLL_CTL_ADD, p->wake_fd, 0, EPOLLIN | EPOLLET);
    return err ? err : control(p, EPOLL_CTL_ADD, p->alarm.fd, 0, EPOLLIN | EPOLLET);
}

/* Puts the registrations of one block into a new set, but for those whose number means something else now.
 * false: the kernel has no room for them all. */
static bool copy_block(struct poll *p, const struct poll *into, unsigned block) {
    for (int i = 0; i < BLOCK_SEATS; i++) {
        struct seat *seat = &p->blocks[block][i];
        int fd = (int)block * BLOCK_SEATS + i;
        if (!seat->events || !confirm(p, seat, fd, seat->events)) continue;
        if (control(into, EPOLL_CTL_ADD, fd, seat->gen, seat->events)) return false;
    }
    return true;
}

/* Where a new set can't be had, or not all of it, the old one goes on, and it is tried again at the next
 * report. */
static COLD void renew(struct poll *p) {
    struct poll into = {.epoll_fd = epoll_create1(EPOLL_CLOEXEC), .wake_fd = p->wake_fd, .alarm = p->alarm};
    p->stale = false;
    if (into.epoll_fd < 0) return;
    bool whole = register_bells(&into) == 0;
    for (unsigned i = 0; whole && i < p->block_count; i++)
        whole = !p->blocks[i] || copy_block(p, &into, i);
    close(whole ? p->epoll_fd : into.epoll_fd);
    if (whole) p->epoll_fd = into.epoll_fd;
}

static const struct coil__driver_ops poll_ops = {
    .destroy = poll_destroy,
    .queue = poll_queue,
    .cancel = poll_cancel,
    .enter = poll_enter,
    .ready = poll_ready,
    .reap = poll_reap,
    .wake = poll_wake,
    .give = poll_give,
};

static int open_descriptors(struct poll *p) {
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    p->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int err = coil__alarm_open(&p->alarm);
    if (p->epoll_fd < 0 || p->wake_fd < 0 || err) return err ? err : -EMFILE;
    return register_bells(p);
}

static void close_descriptors(const struct poll *p) {
    const int fds[] = {p->epoll_fd, p->wake_fd, p->alarm.fd};
    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
        if (fds[i] >= 0) close(fds[i]);
    }
}

int coil__poll_open(uint64_t caps_unused, struct coil__driver **out, struct coil__driver_error *err) {
    struct poll *p = calloc(1, sizeof *p);
    if (!p) return err->code = COIL_ESTART_NOMEM;
    int e = open_descriptors(p);
    if (e) {
        close_descriptors(p);
        free(p);
        snprintf(err->text, sizeof err->text, "an epoll set could not be made: %s", strerror(-e));
        return err->code = COIL_ESTART_NOMEM;
    }
    coil__list_init(&p->fifo);
    coil__list_init(&p->cancels);
    coil__list_init(&p->over);
    coil__list_init(&p->lost);
    p->d.ops = &poll_ops;
    p->d.sys = &coil__sys_linux;
    p->d.kind = COIL_DRIVER_EPOLL;
    /* Every send is a plain call here, so a request for it would only be a detour. */
    p->d.caps = COIL__CAP_BIT(DIRECT_SEND) & ~caps_unused;
    *out = &p->d;
    return 0;
}
