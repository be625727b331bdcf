/* The io_uring driver: the only file that sets up, submits to and reaps a ring.
 *
 * liburing sets the ring up, maps it and registers things; the queues are walked here, and waiting is our own
 * call of io_uring_enter: liburing's wait with a timeout would, on kernels without EXT_ARG, submit a hidden
 * timeout request and show its completion to whoever peeks.
 *
 * Requests are copied into the ring only at enter(). Until then they stand in a FIFO, where a cancel or a
 * close can take them back without the kernel: an SQE that names a descriptor which is closed before the
 * submit would act on whatever has got the number since. */
#include "ring.h"
#include "alarm.h"
#include "caps.h"
#include "switch.h"

#include "coil/core.h"

#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* A descriptor whose readiness ends a wait: a poll request of the driver's own. */
struct bell {
    int fd;
    uint64_t tag;
    bool armed;
};

struct ring {
    struct coil__driver d;
    struct io_uring u;
    struct coil__list fifo;    /* requests that have no SQE yet */
    struct coil__list cancels; /* requests whose cancel has no SQE yet */
    unsigned sq_tail;          /* what the kernel will see as tail after the next enter */
    unsigned enter_flags;
    struct bell wake;         /* an eventfd: other threads */
    struct bell alarm;        /* the wait's limit, only without EXT_ARG */
    struct coil__alarm clock; /* what rings it */
    struct io_uring_buf_ring *buf_ring;
    size_t buf_ring_bytes;
    int given; /* buffers put into buf_ring and not yet shown to the kernel */
};

/* liburing maps and unmaps behind TSan's back, which would take a ring for the one that another thread had at
 * its address. */
static char mappings;

static struct ring *ring_of(struct coil__driver *d) {
    return CONTAINER_OF(d, struct ring, d);
}

static bool has(const struct ring *r, uint64_t cap_bit) {
    return r->d.caps & cap_bit;
}

/* ---- the submission queue ---- */

static unsigned unsubmitted(const struct ring *r) {
    return r->sq_tail - __atomic_load_n(r->u.sq.khead, __ATOMIC_ACQUIRE);
}

/* One call of the kernel. `until_ns` as in coil__driver_ops.enter. What the call could not take stays in the
 * queue. */
static void call_kernel(struct ring *r, int64_t until_ns) {
    struct __kernel_timespec ts;
    struct io_uring_getevents_arg arg = {.sigmask_sz = _NSIG / 8};
    unsigned flags = r->enter_flags | IORING_ENTER_GETEVENTS, wait_nr = until_ns > 0;
    void *extra = NULL;
    size_t extra_size = _NSIG / 8;
    if (wait_nr && has(r, COIL__CAP_BIT(EXT_ARG)) && until_ns != COIL__NEVER) {
        int64_t left_ns = until_ns - r->d.sys->now();
        if (left_ns <= 0) wait_nr = 0;
        ts = (struct __kernel_timespec){.tv_sec = left_ns / 1000000000, .tv_nsec = left_ns % 1000000000};
        arg.ts = (uint64_t)(uintptr_t)&ts;
        if (wait_nr) {
            flags |= IORING_ENTER_EXT_ARG;
            extra = &arg;
            extra_size = sizeof arg;
        }
    }
    /* The release lets the kernel, maybe on another CPU, see whole SQEs behind the new tail. */
    __atomic_store_n(r->u.sq.ktail, r->sq_tail, __ATOMIC_RELEASE);
    int n = io_uring_enter2((unsigned)r->u.enter_ring_fd, unsubmitted(r), wait_nr, flags, extra, extra_size);
    r->d.stats.enters++;
    /* EINTR, ETIME: a wait that ended. EAGAIN, EBUSY: no memory, or completions overflow: the caller reaps
     * and comes again, nothing is lost. Anything else means that the ring is broken or that coil is. */
    if (n >= 0 || n == -EINTR || n == -ETIME || n == -EAGAIN || n == -EBUSY) return;
    fprintf(stderr, "coil: io_uring_enter failed: %s\n", strerror(-n));
    abort();
}

/* A free SQE; NULL where the kernel can't take more for now. */
static struct io_uring_sqe *take_sqe(struct ring *r) {
    if (unsubmitted(r) >= r->u.sq.ring_entries) {
        r->d.stats.sq_full++;
        call_kernel(r, 0);
        if (unsubmitted(r) >= r->u.sq.ring_entries) return NULL;
    }
    return &r->u.sq.sqes[r->sq_tail++ & r->u.sq.ring_mask];
}

static bool arm_bell(struct ring *r, struct bell *b) {
    if (b->armed || b->fd < 0) return true;
    struct io_uring_sqe *sqe = take_sqe(r);
    if (!sqe) return false;
    io_uring_prep_poll_add(sqe, b->fd, POLLIN);
    if (has(r, COIL__CAP_BIT(POLL_MULTI))) sqe->len = IORING_POLL_ADD_MULTI;
    sqe->user_data = b->tag;
    b->armed = true;
    return true;
}

static void fill_cancel(struct io_uring_sqe *sqe, uint64_t target) {
    *sqe = (struct io_uring_sqe){
        .opcode = IORING_OP_ASYNC_CANCEL, .fd = -1, .addr = target, .user_data = target | COIL__TAG_CANCEL};
}

/* Copies all that is queued into the ring, cancels first; false where not everything found room. */
static bool fill(struct ring *r) {
    for (struct coil__node *n; (n = coil__list_first(&r->cancels));) {
        struct io_uring_sqe *sqe = take_sqe(r);
        if (!sqe) return false;
        fill_cancel(sqe, CONTAINER_OF(n, struct coil__req, node)->sqe.user_data);
        coil__node_unlink(n);
    }
    if (!arm_bell(r, &r->wake) || !arm_bell(r, &r->alarm)) return false;
    for (struct coil__node *n; (n = coil__list_first(&r->fifo));) {
        struct io_uring_sqe *sqe = take_sqe(r);
        if (!sqe) return false;
        *sqe = CONTAINER_OF(n, struct coil__req, node)->sqe;
        coil__node_unlink(n);
    }
    return true;
}

static bool cq_empty(const struct ring *r) {
    return *r->u.cq.khead == __atomic_load_n(r->u.cq.ktail, __ATOMIC_ACQUIRE);
}

static bool kernel_has_more(const struct ring *r) {
    return __atomic_load_n(r->u.sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN);
}

static void show_buffers(struct ring *r) {
    if (!r->given) return;
    io_uring_buf_ring_advance(r->buf_ring, r->given);
    r->given = 0;
}

static void ring_enter(struct coil__driver *d, int64_t until_ns) {
    struct ring *r = ring_of(d);
    show_buffers(r);
    if (!fill(r) || !cq_empty(r)) until_ns = 0;
    if (until_ns > 0) coil__alarm_set(&r->clock, until_ns);
    if (until_ns > 0 || unsubmitted(r) || kernel_has_more(r)) call_kernel(r, until_ns);
}

bool coil__ring_idle(struct coil__driver *d) {
    const struct ring *r = ring_of(d);
    return coil__list_empty(&r->fifo) && coil__list_empty(&r->cancels) && !unsubmitted(r);
}

int coil__ring_fd(struct coil__driver *d) {
    return ring_of(d)->u.ring_fd;
}

static void ring_queue(struct coil__driver *d, struct coil__req *q) {
    coil__list_push(&ring_of(d)->fifo, &q->node);
}

static void ring_cancel(struct coil__driver *d, struct coil__req *q) {
    coil__list_push(&ring_of(d)->cancels, &q->node);
}

/* ---- the completion queue ---- */

static bool ring_ready(struct coil__driver *d) {
    struct ring *r = ring_of(d);
    return !cq_empty(r) || kernel_has_more(r);
}

/* The count is read away also where a multishot poll would ring without: a one-shot poll looks at the level.
 */
static void bell_rang(struct ring *r, struct bell *b, const struct io_uring_cqe *cqe) {
    uint64_t count;
    if (!(cqe->flags & IORING_CQE_F_MORE)) b->armed = false;
    if (cqe->res >= 0 && read(b->fd, &count, sizeof count) < 0) CHECK(errno == EAGAIN);
    if (b == &r->alarm) coil__alarm_rang(&r->clock);
}

static void own_completion(struct ring *r, const struct io_uring_cqe *cqe) {
    if (cqe->user_data == r->wake.tag) bell_rang(r, &r->wake, cqe);
    if (cqe->user_data == r->alarm.tag) bell_rang(r, &r->alarm, cqe);
}

static unsigned ring_reap(struct coil__driver *d, struct io_uring_cqe *out, unsigned max) {
    struct ring *r = ring_of(d);
    unsigned head = *r->u.cq.khead, n = 0;
    unsigned tail = __atomic_load_n(r->u.cq.ktail, __ATOMIC_ACQUIRE);
    for (; head != tail && n < max; head++) {
        const struct io_uring_cqe *cqe = &r->u.cq.cqes[head & r->u.cq.ring_mask];
        if ((cqe->user_data & COIL__TAG_MASK) == COIL__TAG_DRIVER) {
            own_completion(r, cqe);
        } else {
            memcpy(&out[n++], cqe, sizeof *out);
        }
    }
    /* The release keeps the copies above from being made after the kernel may write to these places again. */
    __atomic_store_n(r->u.cq.khead, head, __ATOMIC_RELEASE);
    if (__atomic_load_n(r->u.sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_CQ_OVERFLOW) r->d.stats.cq_overflow++;
    return n;
}

/* May run in a signal handler. The eventfd is non-blocking: a full counter means that the wake-up is there
 * already. */
static void ring_wake(struct coil__driver *d) {
    uint64_t one = 1;
    int saved = errno;
    ssize_t n = write(ring_of(d)->wake.fd, &one, sizeof one);
    (void)n;
    errno = saved;
}

/* ---- the pool of receive buffers ---- */

static void put_buffer(struct ring *r, uint32_t id) {
    struct coil__pool *p = &r->d.pool;
    io_uring_buf_ring_add(r->buf_ring, p->base + (size_t)id * p->size, p->size, (unsigned short)id,
                          (int)p->count - 1, r->given++);
}

static void ring_give(struct coil__driver *d, uint32_t id) {
    CHECK(d->pool.out-- > 0);
    put_buffer(ring_of(d), id);
}

static void *map_bytes(size_t n) {
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void close_pool(struct ring *r) {
    struct coil__pool *p = &r->d.pool;
    if (p->base) munmap(p->base, (size_t)p->count * p->size);
    if (r->buf_ring) munmap(r->buf_ring, r->buf_ring_bytes);
    free(p->bufs);
    r->buf_ring = NULL;
    *p = (struct coil__pool){0};
}

/* Where the ring had to shrink, locked memory is scarce: the pool's own ring, which counts too, takes a page.
 */
static uint32_t pool_count(const struct ring *r, const struct coil__ring_opts *o) {
    unsigned one_page = (unsigned)sysconf(_SC_PAGESIZE) / sizeof(struct io_uring_buf);
    bool scarce = r->u.cq.ring_entries < o->cq_entries;
    return scarce ? MIN(o->pool_buffers, one_page) : o->pool_buffers;
}

/* Where the pool can't be had (an old kernel, too little locked memory), streams go without. */
static bool open_pool(struct ring *r, const struct coil__ring_opts *o) {
    struct coil__pool *p = &r->d.pool;
    p->count = pool_count(r, o);
    p->size = o->pool_buffer_size;
    r->buf_ring_bytes = p->count * sizeof(struct io_uring_buf);
    p->base = map_bytes((size_t)p->count * p->size);
    r->buf_ring = map_bytes(r->buf_ring_bytes);
    p->bufs = calloc(p->count, sizeof *p->bufs);
    struct io_uring_buf_reg reg = {
        .ring_addr = (uint64_t)(uintptr_t)r->buf_ring, .ring_entries = p->count, .bgid = COIL__POOL_GROUP};
    if (!p->base || !r->buf_ring || !p->bufs || io_uring_register_buf_ring(&r->u, &reg, 0) < 0) {
        close_pool(r);
        return false;
    }
    for (uint32_t i = 0; i < p->count; i++)
        put_buffer(r, i);
    show_buffers(r);
    return true;
}

/* ---- setting up ---- */

#define SETUP_BITS                                                                            \
    (COIL__CAP_BIT(SUBMIT_ALL) | COIL__CAP_BIT(COOP_TASKRUN) | COIL__CAP_BIT(SINGLE_ISSUER) | \
     COIL__CAP_BIT(DEFER_TASKRUN))

static unsigned setup_flags(uint64_t caps) {
    unsigned flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    if (caps & COIL__CAP_BIT(SUBMIT_ALL)) flags |= IORING_SETUP_SUBMIT_ALL;
    if (caps & COIL__CAP_BIT(COOP_TASKRUN)) flags |= IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    if (caps & COIL__CAP_BIT(SINGLE_ISSUER)) flags |= IORING_SETUP_SINGLE_ISSUER;
    /* The flag is how ring_ready sees completions that are not made yet: without it a busy worker would never
     * ask. */
    if (caps & COIL__CAP_BIT(DEFER_TASKRUN)) flags |= IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    return flags;
}

/* The rungs of the ladder, best first. Each is tried without what must stay unused; DEFER_TASKRUN asks for
 * SINGLE_ISSUER. */
static const uint64_t ladder[] = {
    SETUP_BITS,
    COIL__CAP_BIT(SUBMIT_ALL) | COIL__CAP_BIT(COOP_TASKRUN) | COIL__CAP_BIT(SINGLE_ISSUER),
    COIL__CAP_BIT(SUBMIT_ALL) | COIL__CAP_BIT(COOP_TASKRUN),
    COIL__CAP_BIT(SUBMIT_ALL),
    0,
};

static uint64_t rung_caps(uint64_t rung, uint64_t unused) {
    uint64_t caps = rung & ~unused;
    if (!(caps & COIL__CAP_BIT(SINGLE_ISSUER))) caps &= ~COIL__CAP_BIT(DEFER_TASKRUN);
    return caps;
}

/* ---- locked memory: before 5.12, and again from about 6.14 on, a ring counts against the limit of its user
 * (not of the process), and is given back some 20 ms after its end ---- */

enum {
    SQ_MIN = 64, /* no ring is made smaller than this */
    CQ_MIN = 128,
    RINGS_PER_LIMIT = 4, /* a ring that had to shrink leaves room for those of other workers */
    CHARGE_WAITS = 20,   /* for what an ended ring still holds */
    CHARGE_WAIT_NS = 5000000,
};

/* Early kernels take a power of two of pages, later ones as many as are needed. */
static size_t pages_of(size_t bytes) {
    size_t n = (size_t)sysconf(_SC_PAGESIZE);
    while (n < bytes)
        n *= 2;
    return n;
}

/* What a ring counts, at most. */
static size_t ring_charge(unsigned sq, unsigned cq) {
    const size_t head_max = 512;
    return pages_of(sq * sizeof(struct io_uring_sqe)) +
           pages_of(head_max + cq * sizeof(struct io_uring_cqe) + sq * sizeof(unsigned));
}

static size_t smallest_charge(const struct coil__ring_opts *o) {
    return ring_charge(MIN(o->sq_entries, SQ_MIN), MIN(o->cq_entries, CQ_MIN));
}

static rlim_t locked_max(void) {
    struct rlimit lim = {.rlim_cur = RLIM_INFINITY};
    getrlimit(RLIMIT_MEMLOCK, &lim);
    return lim.rlim_cur;
}

/* The next smaller size to try; false: there is none. */
static bool shrink(unsigned *sq, unsigned *cq) {
    rlim_t limit = locked_max();
    if (*sq <= SQ_MIN && *cq <= CQ_MIN) return false;
    do {
        if (*sq > SQ_MIN) *sq /= 2;
        *cq = MAX(*cq / 2, *sq * 2);
    } while ((*sq > SQ_MIN || *cq > CQ_MIN) && ring_charge(*sq, *cq) > limit / RINGS_PER_LIMIT);
    return true;
}

/* Where the limit has room for a ring, others have used it up, maybe ended ones: a moment later there may be
 * some again. */
static bool charge_may_come_back(const struct coil__ring_opts *o, int waited) {
    rlim_t limit = locked_max();
    if (waited == CHARGE_WAITS || limit == RLIM_INFINITY || limit < smallest_charge(o)) return false;
    nanosleep(&(struct timespec){.tv_nsec = CHARGE_WAIT_NS}, NULL);
    return true;
}

/* One set of flags, with as many entries as locked memory allows. 0 or negative errno. */
static int try_setup(struct ring *r, const struct coil__ring_opts *o, uint64_t caps,
                     struct io_uring_params *p) {
    unsigned sq = o->sq_entries, cq = o->cq_entries;
    for (int waited = 0;;) {
        *p = (struct io_uring_params){.flags = setup_flags(caps), .cq_entries = cq};
        int err = io_uring_queue_init_params(sq, &r->u, p);
        if (err != -ENOMEM) return err;
        if (!shrink(&sq, &cq) && !charge_may_come_back(o, waited++)) return err;
    }
}

static int climb_ladder(struct ring *r, const struct coil__ring_opts *o, struct io_uring_params *p) {
    int err = -EINVAL;
    for (unsigned i = 0; i < ARRAY_SIZE(ladder) && err == -EINVAL; i++) {
        uint64_t caps = rung_caps(ladder[i], o->caps_unused);
        err = try_setup(r, o, caps, p);
        if (!err) r->d.caps = caps;
    }
    return err;
}

/* A profile that lets a ring be set up may still forbid its use. */
static int try_enter(struct ring *r) {
    int err = io_uring_enter((unsigned)r->u.ring_fd, 0, 0, 0, NULL);
    if (err) io_uring_queue_exit(&r->u);
    return err;
}

/* Flags that old kernels ignore without a word are trusted only where an opcode of the same kernel, or a
 * newer one, is there: see the kernel table in the README for what stands for what. */
static void probe(struct ring *r, unsigned features, uint64_t unused) {
    struct io_uring_probe *p = io_uring_get_probe_ring(&r->u);
    uint64_t caps = COIL__CAP_BIT(FILES);
    if (features & IORING_FEAT_EXT_ARG) caps |= COIL__CAP_BIT(EXT_ARG);
    if (features & IORING_FEAT_RSRC_TAGS) caps |= COIL__CAP_BIT(POLL_MULTI);
    if (p && io_uring_opcode_supported(p, IORING_OP_SHUTDOWN)) caps |= COIL__CAP_BIT(SHUTDOWN);
    if (p && io_uring_opcode_supported(p, IORING_OP_SOCKET))
        caps |= COIL__CAP_BIT(ACCEPT_MULTI) | COIL__CAP_BIT(BUF_RING);
    if (p && io_uring_opcode_supported(p, IORING_OP_SENDMSG_ZC))
        caps |= COIL__CAP_BIT(RECV_MULTI) | COIL__CAP_BIT(RECV_MULTI_UNIX);
    io_uring_free_probe(p);
    struct utsname kernel;
    if (uname(&kernel) == 0) unused |= coil__caps_excepted(kernel.release);
    r->d.caps |= caps & ~unused;
}

/* Register calls come last, on the idle ring, and only where a newer opcode has shown that the kernel knows
 * such calls: an early 5.10 waits for all requests before it says EINVAL to one that it doesn't know. */
static void register_things(struct ring *r, const struct coil__ring_opts *o) {
    if (has(r, COIL__CAP_BIT(BUF_RING)) && has(r, COIL__CAP_BIT(RECV_MULTI)) && !open_pool(r, o)) {
        r->d.caps &= ~COIL__CAP_BIT(BUF_RING);
    }
    if (!has(r, COIL__CAP_BIT(BUF_RING))) r->d.caps &= ~COIL__CAP_BIT(RECV_MULTI);
    if (!has(r, COIL__CAP_BIT(RECV_MULTI))) r->d.caps &= ~COIL__CAP_BIT(RECV_MULTI_UNIX);
    bool try_ring_fd = has(r, COIL__CAP_BIT(SUBMIT_ALL)) && !(o->caps_unused & COIL__CAP_BIT(RING_FD));
    if (try_ring_fd && io_uring_register_ring_fd(&r->u) == 1) {
        r->d.caps |= COIL__CAP_BIT(RING_FD);
        r->enter_flags = IORING_ENTER_REGISTERED_RING;
    }
}

/* Where a cheap system call costs more than so much, sends are better gathered in the ring. */
enum { DEAR_CALL_NS = 700, CALLS_TIMED = 64 };

static bool calls_are_cheap(const struct ring *r) {
    const struct coil__sys *sys = r->d.sys;
    int64_t best_ns = INT64_MAX;
    for (int round = 0; round < 3; round++) {
        int64_t began_ns = sys->now();
        for (int i = 0; i < CALLS_TIMED; i++)
            sys->get_flags(r->wake.fd);
        best_ns = MIN(best_ns, (sys->now() - began_ns) / CALLS_TIMED);
    }
    return best_ns <= DEAR_CALL_NS;
}

static int open_bells(struct ring *r) {
    r->wake = (struct bell){.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .tag = COIL__TAG_DRIVER | 4};
    r->alarm = (struct bell){.fd = -1, .tag = COIL__TAG_DRIVER | 8};
    r->clock.fd = -1;
    if (r->wake.fd < 0) return -errno;
    if (has(r, COIL__CAP_BIT(EXT_ARG))) return 0;
    int err = coil__alarm_open(&r->clock);
    r->alarm.fd = r->clock.fd;
    return err;
}

static void close_bells(struct ring *r) {
    if (r->wake.fd >= 0) close(r->wake.fd);
    if (r->alarm.fd >= 0) close(r->alarm.fd);
}

/* What is left in the completion queue when no request is in flight: what became of cancels, and the driver's
 * own. */
static void drop_completions(struct ring *r) {
    struct io_uring_cqe cqes[16];
    for (unsigned n; (n = ring_reap(&r->d, cqes, ARRAY_SIZE(cqes)));) {
        for (unsigned i = 0; i < n; i++)
            CHECK(cqes[i].user_data & COIL__TAG_CANCEL);
    }
}

/* The driver's own polls are taken back and seen to end before the ring goes: what dies with a ring is let go
 * of some time later. It only waits where a completion is on its way. */
static void silence_bells(struct ring *r) {
    struct bell *bells[] = {&r->wake, &r->alarm};
    for (unsigned i = 0; i < ARRAY_SIZE(bells); i++) {
        struct io_uring_sqe *sqe;
        if (!bells[i]->armed || !(sqe = take_sqe(r))) continue;
        fill_cancel(sqe, bells[i]->tag);
        sqe->user_data = COIL__TAG_DRIVER;
    }
    for (int round = 0; round < 100 && (r->wake.armed || r->alarm.armed); round++) {
        /* Without EXT_ARG nothing else would end the wait of a kernel that has nothing to say. */
        if (!has(r, COIL__CAP_BIT(EXT_ARG))) ring_wake(&r->d);
        call_kernel(r, cq_empty(r) ? r->d.sys->now() + 10000000 : 0);
        drop_completions(r);
    }
}

static void ring_destroy(struct coil__driver *d) {
    struct ring *r = ring_of(d);
    CHECK(coil__list_empty(&r->fifo));
    CHECK(coil__list_empty(&r->cancels));
    silence_bells(r);
    COIL__TSAN_RELEASE(&mappings);
    io_uring_queue_exit(&r->u);
    close_pool(r);
    close_bells(r);
    free(r);
}

static const struct coil__driver_ops ring_ops = {
    .destroy = ring_destroy,
    .queue = ring_queue,
    .cancel = ring_cancel,
    .enter = ring_enter,
    .ready = ring_ready,
    .reap = ring_reap,
    .wake = ring_wake,
    .give = ring_give,
};

/* Without a limit it is the machine that has no memory. */
static int explain_memory(const struct coil__ring_opts *o, struct coil__driver_error *out) {
    rlim_t limit = locked_max();
    if (limit == RLIM_INFINITY) {
        snprintf(out->text, sizeof out->text, "the kernel has no memory for a ring (ENOMEM)");
        return COIL_ESTART_NOMEM;
    }
    snprintf(out->text, sizeof out->text,
             "too little locked memory for a ring: the limit is %llu bytes%s, the smallest ring needs %zu; "
             "raise it with ulimit -l or LimitMEMLOCK=, or give CAP_IPC_LOCK",
             (unsigned long long)limit,
             limit < smallest_charge(o) ? "" : " and this user's other rings have used it up",
             smallest_charge(o));
    return COIL_ESTART_MEMLOCK;
}

/* What an errno of io_uring_setup or io_uring_enter means, and what can be done about it. */
static int explain(int err, const struct coil__ring_opts *o, struct coil__driver_error *out) {
    switch (err) {
    case -ENOSYS:
        out->code = COIL_ESTART_KERNEL;
        snprintf(out->text, sizeof out->text,
                 "this kernel has no io_uring, or a sandbox hides it (ENOSYS); coil needs Linux "
                 "5.10 or later with CONFIG_IO_URING");
        break;
    case -EPERM:
    case -EACCES:
        out->code = COIL_ESTART_FORBIDDEN;
        snprintf(out->text, sizeof out->text,
                 "io_uring is forbidden here (%s): a seccomp profile such as a container's, or "
                 "the sysctl kernel.io_uring_disabled; allow io_uring_setup, io_uring_enter and "
                 "io_uring_register",
                 err == -EPERM ? "EPERM" : "EACCES");
        break;
    case -ENOMEM:
        out->code = explain_memory(o, out);
        break;
    default:
        out->code = err == -EMFILE || err == -ENFILE ? COIL_ESTART_NOMEM : COIL_ESTART_KERNEL;
        snprintf(out->text, sizeof out->text, "io_uring could not be set up: %s", strerror(-err));
    }
    return out->code;
}

static void prepare_queues(struct ring *r) {
    /* Newer liburings do this at set-up, older ones at each flush, which coil doesn't use. */
    /* Newer versions of liburing ask for a ring without the array where the kernel has such. */
    for (unsigned i = 0; r->u.sq.array && i < r->u.sq.ring_entries; i++)
        r->u.sq.array[i] = i;
    r->sq_tail = *r->u.sq.ktail;
    coil__list_init(&r->fifo);
    coil__list_init(&r->cancels);
}

int coil__ring_open(const struct coil__ring_opts *o, struct coil__driver **out,
                    struct coil__driver_error *err) {
    struct io_uring_params p;
    struct ring *r = calloc(1, sizeof *r);
    if (!r) return err->code = COIL_ESTART_NOMEM;
    int e = climb_ladder(r, o, &p);
    if (!e) e = try_enter(r);
    if (e) {
        free(r);
        return explain(e, o, err);
    }
    COIL__TSAN_ACQUIRE(&mappings);
    io_uring_ring_dontfork(&r->u);
    r->d.ops = &ring_ops;
    r->d.sys = &coil__sys_linux;
    r->d.kind = COIL_DRIVER_URING;
    prepare_queues(r);
    probe(r, p.features, o->caps_unused);
    register_things(r, o);
    e = open_bells(r);
    if (e) {
        close_bells(r);
        io_uring_queue_exit(&r->u);
        close_pool(r);
        free(r);
        return explain(e, o, err);
    }
    if (calls_are_cheap(r)) r->d.caps |= COIL__CAP_BIT(DIRECT_SEND) & ~o->caps_unused;
    *out = &r->d;
    return 0;
}
