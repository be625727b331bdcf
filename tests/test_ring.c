/* The io_uring driver alone, without tasks. Two functions of liburing are replaced by ones that can play
 * another kernel: one that knows fewer flags, has less locked memory, or answers a submit with what real ones
 * answer under pressure. */
#include "caps.h"
#include "ring.h"

#include "check.h"

#include "coil/core.h"

#include <liburing.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MS = 1000000 };
static const int64_t patience_ns = 20000000000;

/* ---- the kernel that is played ---- */

static struct {
    unsigned flags_unknown; /* set-up flags that it gives EINVAL for */
    unsigned entries_max;   /* completions that it has memory for; 0: no limit */
    int setup_error;
    unsigned setups, flags, cq; /* how often it was asked, and what for the last time */
    /* Looks at an enter before the real kernel does: may change the number of requests, or fail by a result <
     * 0. */
    int (*on_enter)(unsigned *to_submit, unsigned wait_nr);
} kernel;

/* The linker gives coil's calls of these two to __wrap_, liburing's own function to __real_. */
int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *u, struct io_uring_params *p);
__attribute__((used)) int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *u,
                                                            struct io_uring_params *p);
__attribute__((used)) int __wrap_io_uring_enter2(unsigned fd, unsigned to_submit, unsigned wait_nr,
                                                 unsigned flags, void *arg, size_t size);

int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *u, struct io_uring_params *p) {
    kernel.setups++;
    kernel.flags = p->flags;
    kernel.cq = p->cq_entries;
    if (kernel.setup_error) return kernel.setup_error;
    if (p->flags & kernel.flags_unknown) return -EINVAL;
    if (kernel.entries_max && p->cq_entries > kernel.entries_max) return -ENOMEM;
    return __real_io_uring_queue_init_params(entries, u, p);
}

int __wrap_io_uring_enter2(unsigned fd, unsigned to_submit, unsigned wait_nr, unsigned flags, void *arg,
                           size_t size) {
    if (kernel.on_enter) {
        int err = kernel.on_enter(&to_submit, wait_nr);
        if (err < 0) return err;
    }
    long n = syscall(SYS_io_uring_enter, fd, to_submit, wait_nr, flags, arg, size);
    return n < 0 ? -errno : (int)n;
}

/* Calls that early kernels don't know, and before they say so wait for every request in flight. */
static unsigned ring_fds_registered, buf_rings_registered;

int __real_io_uring_register_ring_fd(struct io_uring *u);
int __real_io_uring_register_buf_ring(struct io_uring *u, struct io_uring_buf_reg *reg, unsigned flags);
__attribute__((used)) int __wrap_io_uring_register_ring_fd(struct io_uring *u);
__attribute__((used)) int __wrap_io_uring_register_buf_ring(struct io_uring *u, struct io_uring_buf_reg *reg,
                                                            unsigned flags);

int __wrap_io_uring_register_ring_fd(struct io_uring *u) {
    ring_fds_registered++;
    return __real_io_uring_register_ring_fd(u);
}

int __wrap_io_uring_register_buf_ring(struct io_uring *u, struct io_uring_buf_reg *reg, unsigned flags) {
    buf_rings_registered++;
    return __real_io_uring_register_buf_ring(u, reg, flags);
}

/* ---- helpers ---- */

static int64_t now_ns(void) {
    return coil__sys_linux.now();
}

static struct coil__ring_opts options(unsigned sq, unsigned cq) {
    struct coil__ring_opts o = {
        .sq_entries = sq, .cq_entries = cq, .pool_buffers = 8, .pool_buffer_size = 64};
    cr_assert_eq(coil__caps_parse(getenv("COIL_CAPS"), &o.caps_unused, NULL), 0, "COIL_CAPS");
    return o;
}

static struct coil__driver *open_with(const struct coil__ring_opts *o) {
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    cr_assert_eq(coil__ring_open(o, &d, &err), 0, "no ring: %s", err.text);
    return d;
}

static struct coil__driver *open_ring(unsigned sq, unsigned cq) {
    struct coil__ring_opts o = options(sq, cq);
    return open_with(&o);
}

static void destroy(struct coil__driver *d) {
    d->ops->destroy(d);
}

static bool has(const struct coil__driver *d, uint64_t bit) {
    return d->caps & bit;
}

static uint64_t tag(uint64_t id) {
    return id << 2;
}

static struct coil__req request(uint64_t id, uint8_t opcode, int fd, void *buf, unsigned len) {
    return (struct coil__req){
        .sqe = {.opcode = opcode, .fd = fd, .addr = (uintptr_t)buf, .len = len, .user_data = tag(id)}};
}

static struct coil__req nop(uint64_t id) {
    return request(id, IORING_OP_NOP, -1, NULL, 0);
}

/* Reaps until `want` completions have come, of requests and of cancels, waiting where need be. */
static unsigned collect(struct coil__driver *d, struct io_uring_cqe *out, unsigned want) {
    int64_t end_ns = now_ns() + patience_ns;
    unsigned n = 0;
    while (n < want && now_ns() < end_ns) {
        unsigned got = d->ops->reap(d, out + n, want - n);
        n += got;
        if (!got) d->ops->enter(d, now_ns() + 100 * MS);
    }
    return n;
}

/* The completion of a tag among n; NULL: it is not there, or twice. */
static const struct io_uring_cqe *of_tag(const struct io_uring_cqe *cqes, unsigned n, uint64_t user_data) {
    const struct io_uring_cqe *found = NULL;
    for (unsigned i = 0; i < n; i++) {
        if (cqes[i].user_data != user_data) continue;
        if (found) return NULL;
        found = &cqes[i];
    }
    return found;
}

static void make_pair(int fd[2]) {
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0, "socketpair");
}

static void close_pair(const int fd[2]) {
    close(fd[0]);
    close(fd[1]);
}

static int descriptors_called(const char *name) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) {
        char path[64], link[128] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, link, sizeof link - 1) > 0) n += strstr(link, name) != NULL;
    }
    return n;
}

/* ---- setting up ---- */

#define CAP(id) COIL__CAP_BIT(id)

static unsigned flags_for(uint64_t caps) {
    unsigned flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    if (caps & CAP(SUBMIT_ALL)) flags |= IORING_SETUP_SUBMIT_ALL;
    if (caps & CAP(COOP_TASKRUN)) flags |= IORING_SETUP_COOP_TASKRUN;
    if (caps & (CAP(COOP_TASKRUN) | CAP(DEFER_TASKRUN))) flags |= IORING_SETUP_TASKRUN_FLAG;
    if (caps & CAP(SINGLE_ISSUER)) flags |= IORING_SETUP_SINGLE_ISSUER;
    if (caps & CAP(DEFER_TASKRUN)) flags |= IORING_SETUP_DEFER_TASKRUN;
    return flags;
}

/* Whether system calls are cheap is measured at each start, and may come out one way and then the other. */
static uint64_t steady(uint64_t caps) {
    return caps & ~CAP(DIRECT_SEND);
}

static uint64_t all_caps(void) {
    struct coil__ring_opts o = {.sq_entries = 8, .cq_entries = 32, .pool_buffers = 8, .pool_buffer_size = 64};
    struct coil__driver *d = open_with(&o);
    uint64_t caps = steady(d->caps);
    destroy(d);
    return caps;
}

/* What is left of `all` without `unused`, and without what stands on it. */
static uint64_t caps_without(uint64_t all, uint64_t unused) {
    uint64_t caps = all & ~unused;
    if (!(caps & CAP(SINGLE_ISSUER))) caps &= ~CAP(DEFER_TASKRUN);
    if (!(caps & CAP(SUBMIT_ALL))) caps &= ~CAP(RING_FD);
    if (!(caps & CAP(BUF_RING))) caps &= ~CAP(RECV_MULTI);
    if (!(caps & CAP(RECV_MULTI))) caps &= ~CAP(RECV_MULTI_UNIX);
    return caps;
}

/* One recv that is answered while nobody waits: the ring must show it all the same. */
static void works_without_waiting(struct coil__driver *d, const char *what) {
    int fd[2];
    char byte = 0;
    struct io_uring_cqe cqe = {0};
    make_pair(fd);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
    d->ops->queue(d, &r);
    d->ops->enter(d, 0);
    cr_assert_eq(write(fd[1], "x", 1), 1, "write");
    unsigned n = 0;
    int64_t end_ns = now_ns() + patience_ns / 4;
    while (!n && now_ns() < end_ns) {
        d->ops->enter(d, 0);
        n = d->ops->reap(d, &cqe, 1);
    }
    cr_assert(n == 1 && cqe.user_data == tag(1) && cqe.res == 1 && byte == 'x', "%s: %u completions, res %d",
              what, n, cqe.res);
    close_pair(fd);
}

static const char *const tiers[] = {
    "",
    "all",
    "5.10",
    "5.11",
    "5.13",
    "5.18",
    "5.19",
    "6.0",
    "6.1",
    "ext_arg",
    "shutdown",
    "poll_multishot",
    "submit_all",
    "ring_fd",
    "buf_ring",
    "coop_taskrun",
    "single_issuer",
    "recv_multishot",
    "recv_multishot_unix",
    "defer_taskrun",
    "coop_taskrun,single_issuer",
    "recv_multishot,accept_multishot,poll_multishot",
};

Test(ring, each_forced_tier_uses_what_is_left_and_nothing_else) {
    uint64_t all = all_caps();
    for (unsigned i = 0; i < ARRAY_SIZE(tiers); i++) {
        struct coil__ring_opts o = {
            .sq_entries = 8, .cq_entries = 32, .pool_buffers = 8, .pool_buffer_size = 64};
        cr_assert_eq(coil__caps_parse(tiers[i], &o.caps_unused, NULL), 0, "%s", tiers[i]);
        struct coil__driver *d = open_with(&o);
        cr_expect_eq(steady(d->caps), caps_without(all, o.caps_unused), "%s: %#llx", tiers[i],
                     (unsigned long long)d->caps);
        cr_expect_eq(kernel.flags, flags_for(d->caps), "%s: flags %#x", tiers[i], kernel.flags);
        cr_expect_eq(d->pool.base != NULL, has(d, CAP(RECV_MULTI)), "%s: pool", tiers[i]);
        cr_expect_eq(descriptors_called("[timerfd]"), !has(d, CAP(EXT_ARG)), "%s: timerfd", tiers[i]);
        works_without_waiting(d, tiers[i]);
        destroy(d);
    }
}

Test(ring, nothing_is_registered_that_the_kernel_may_not_know_and_nothing_later) {
    for (unsigned i = 0; i < ARRAY_SIZE(tiers); i++) {
        struct coil__ring_opts o = {
            .sq_entries = 8, .cq_entries = 32, .pool_buffers = 8, .pool_buffer_size = 64};
        cr_assert_eq(coil__caps_parse(tiers[i], &o.caps_unused, NULL), 0, "%s", tiers[i]);
        ring_fds_registered = buf_rings_registered = 0;
        struct coil__driver *d = open_with(&o);
        unsigned ring_fds = has(d, CAP(SUBMIT_ALL)) && !(o.caps_unused & CAP(RING_FD));
        unsigned pools = has(d, CAP(RECV_MULTI));
        cr_expect_eq(ring_fds_registered, ring_fds, "%s", tiers[i]);
        cr_expect_eq(buf_rings_registered, pools, "%s", tiers[i]);
        works_without_waiting(d, tiers[i]);
        destroy(d);
        cr_expect_eq(ring_fds_registered, ring_fds, "%s: later", tiers[i]);
        cr_expect_eq(buf_rings_registered, pools, "%s: later", tiers[i]);
    }
}

Test(ring, an_older_kernel_gets_the_best_flags_it_knows) {
    static const unsigned unknown[] = {
        IORING_SETUP_DEFER_TASKRUN,
        IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER,
        IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    };
    static const uint64_t missing[] = {
        CAP(DEFER_TASKRUN),
        CAP(DEFER_TASKRUN) | CAP(SINGLE_ISSUER),
        CAP(DEFER_TASKRUN) | CAP(SINGLE_ISSUER) | CAP(COOP_TASKRUN),
        CAP(DEFER_TASKRUN) | CAP(SINGLE_ISSUER) | CAP(COOP_TASKRUN) | CAP(SUBMIT_ALL),
    };
    uint64_t all = all_caps();
    for (unsigned i = 0; i < ARRAY_SIZE(unknown); i++) {
        struct coil__ring_opts o = {
            .sq_entries = 8, .cq_entries = 32, .pool_buffers = 8, .pool_buffer_size = 64};
        kernel.flags_unknown = unknown[i];
        struct coil__driver *d = open_with(&o);
        cr_expect_eq(steady(d->caps), caps_without(all, missing[i]), "rung %u: %#llx", i + 1,
                     (unsigned long long)d->caps);
        cr_expect_eq(kernel.flags, flags_for(d->caps), "rung %u: flags %#x", i + 1, kernel.flags);
        works_without_waiting(d, "older kernel");
        destroy(d);
    }
}

Test(ring, too_little_locked_memory_halves_the_queues) {
    static const unsigned limits[] = {4096, 3000, 1024, 300};
    setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
    for (unsigned i = 0; i < ARRAY_SIZE(limits); i++) {
        kernel.entries_max = limits[i];
        struct coil__driver *d = open_ring(256, 4096);
        cr_expect(kernel.cq <= limits[i] && kernel.cq * 2 > limits[i], "limit %u: %u", limits[i], kernel.cq);
        works_without_waiting(d, "halved");
        destroy(d);
    }
}

Test(ring, a_large_completion_queue_is_halved_under_a_small_submission_queue_too) {
    kernel.entries_max = 1024;
    setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
    struct coil__driver *d = open_ring(8, 8192);
    cr_expect_eq(kernel.cq, 1024, "%u", kernel.cq);
    destroy(d);
}

static void refused(int error, int code, const char *text) {
    struct coil__ring_opts o = options(64, 256);
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    int before = check_fd_count();
    kernel.setup_error = error;
    setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){4096, 4096});
    cr_expect_eq(coil__ring_open(&o, &d, &err), code, "error %d", error);
    cr_expect(strstr(err.text, text) != NULL, "error %d: %s", error, err.text);
    cr_expect_null(d);
    cr_expect_eq(check_fd_count(), before, "error %d", error);
}

Test(ring, a_kernel_that_refuses_is_explained) {
    refused(-ENOSYS, COIL_ESTART_KERNEL, "ENOSYS");
    refused(-EPERM, COIL_ESTART_FORBIDDEN, "EPERM");
    refused(-EACCES, COIL_ESTART_FORBIDDEN, "EACCES");
    refused(-ENOMEM, COIL_ESTART_MEMLOCK, "locked memory");
    refused(-EMFILE, COIL_ESTART_NOMEM, strerror(EMFILE));
    refused(-ENFILE, COIL_ESTART_NOMEM, strerror(ENFILE));
    refused(-EINVAL, COIL_ESTART_KERNEL, strerror(EINVAL));
}

Test(ring, a_kernel_without_memory_is_not_blamed_on_a_limit_that_there_is_not) {
    struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
    check_needs(setrlimit(RLIMIT_MEMLOCK, &none) == 0, "the right to lift limits");
    struct coil__ring_opts o = options(64, 256);
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    kernel.setup_error = -ENOMEM;
    cr_expect_eq(coil__ring_open(&o, &d, &err), COIL_ESTART_NOMEM);
    cr_expect_null(strstr(err.text, "limit"), "%s", err.text);
    cr_expect_leq(kernel.setups, 2, "nothing comes back that was never counted");
}

/* Locked memory is counted per user, so this needs one that nobody else is. Whether rings count at all
 * depends on the kernel. */
static int opens_with_memlock(void *arg) {
    const rlim_t *limit = arg;
    struct coil__ring_opts o = {
        .sq_entries = 256, .cq_entries = 4096, .pool_buffers = 512, .pool_buffer_size = 4096};
    struct coil__driver_error err = {0};
    struct coil__driver *d;
    setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){*limit, *limit});
    if (getuid() == 0 && setuid(100000 + (uid_t)getpid()) != 0) return 3;
    int code = coil__ring_open(&o, &d, &err);
    if (code) return code == COIL_ESTART_MEMLOCK && strstr(err.text, "ulimit") ? 1 : 2;
    works_without_waiting(d, "little locked memory");
    destroy(d);
    return 0;
}

Test(ring, a_real_limit_on_locked_memory_is_respected_or_explained) {
    static rlim_t limits[] = {64 << 10, 0};
    for (unsigned i = 0; i < ARRAY_SIZE(limits); i++) {
        int status = -1;
        char text[512];
        cr_assert(check_in_child(opens_with_memlock, &limits[i], &status, text, sizeof text), "fork");
        cr_expect(WIFEXITED(status) && WEXITSTATUS(status) <= (i == 0 ? 0 : 1), "limit %u: status %#x, %s", i,
                  (unsigned)status, text);
    }
}

static int forty_cycles(void) {
    for (int i = 0; i < 40; i++) {
        struct coil__driver *d = open_ring(64, 256);
        works_without_waiting(d, "cycle");
        destroy(d);
    }
    return check_map_count();
}

Test(ring, setting_up_and_taking_down_leaves_no_descriptor_and_no_mapping) {
    forty_cycles();
    int fds = check_fd_count(), maps = forty_cycles();
    for (int i = 0; i < 3; i++) {
        int later = forty_cycles();
        /* Some C libraries map now and then for what they allocate; forty rings would leave forty. */
        if (!CHECK_SANITIZED) cr_expect_lt(later, maps + 10, "mappings");
    }
    cr_expect_eq(check_fd_count(), fds, "descriptors");
}

/* ---- full queues ---- */

Test(ring, four_places_for_submissions_take_hundreds_of_requests_in_order) {
    enum { N = 700 };
    static struct coil__req reqs[N];
    static struct io_uring_cqe cqes[N];
    struct coil__driver *d = open_ring(4, 2048);
    for (unsigned i = 0; i < N; i++) {
        reqs[i] = nop(i);
        d->ops->queue(d, &reqs[i]);
    }
    d->ops->enter(d, 0);
    cr_expect_gt(d->stats.sq_full, N / 8, "it was never full");
    cr_assert_eq(collect(d, cqes, N), N, "completions were lost");
    for (unsigned i = 0; i < N; i++) {
        cr_assert_eq(cqes[i].user_data, tag(i), "place %u", i);
        cr_assert_not(coil__node_linked(&reqs[i].node), "request %u is still queued", i);
    }
    cr_expect_eq(d->ops->reap(d, cqes, N), 0, "one too many");
    destroy(d);
}

Test(ring, eight_places_for_completions_lose_none_of_hundreds) {
    enum { N = 600 };
    static struct coil__req reqs[N];
    static struct io_uring_cqe cqes[N + 1];
    struct coil__driver *d = open_ring(4, 8);
    for (unsigned i = 0; i < N; i++) {
        reqs[i] = nop(i);
        d->ops->queue(d, &reqs[i]);
    }
    d->ops->enter(d, 0);
    cr_assert_eq(collect(d, cqes, N), N, "completions were lost");
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(cqes[i].user_data, tag(i), "place %u", i);
    cr_expect_gt(d->stats.cq_overflow, 0, "it never overflowed");
    cr_expect_eq(d->ops->reap(d, cqes, N), 0, "one too many");
    works_without_waiting(d, "after overflow");
    destroy(d);
}

Test(ring, an_overflow_of_the_drivers_own_bell_does_not_silence_it) {
    enum { N = 64 };
    static struct coil__req reqs[N];
    static struct io_uring_cqe cqes[N];
    struct coil__driver *d = open_ring(4, 8);
    for (int round = 0; round < 50; round++) {
        for (unsigned i = 0; i < N; i++) {
            reqs[i] = nop(i);
            d->ops->queue(d, &reqs[i]);
            if (i == N / 2) d->ops->wake(d);
        }
        d->ops->enter(d, 0);
        d->ops->wake(d);
        cr_assert_eq(collect(d, cqes, N), N, "round %d", round);
        d->ops->enter(d, 0);
        while (d->ops->ready(d)) {
            d->ops->reap(d, cqes, N);
            d->ops->enter(d, 0);
        }
        d->ops->wake(d);
        d->ops->enter(d, COIL__NEVER);
    }
    destroy(d);
}

Test(ring, a_bad_request_fails_alone) {
    enum { N = 40 };
    static struct coil__req reqs[N];
    static struct io_uring_cqe cqes[N];
    struct coil__driver *d = open_ring(16, 256);
    for (unsigned i = 0; i < N; i++) {
        reqs[i] = nop(i);
        if (i % 5 == 2) reqs[i].sqe.opcode = 250;
        d->ops->queue(d, &reqs[i]);
    }
    cr_assert_eq(collect(d, cqes, N), N, "completions were lost");
    for (unsigned i = 0; i < N; i++) {
        const struct io_uring_cqe *c = of_tag(cqes, N, tag(i));
        cr_assert_not_null(c, "request %u", i);
        cr_expect_eq(c->res, i % 5 == 2 ? -EINVAL : 0, "request %u: %d", i, c->res);
    }
    destroy(d);
}

/* ---- a kernel under pressure ---- */

static unsigned pressure_seed;

static unsigned pressure(void) {
    pressure_seed = pressure_seed * 1103515245 + 12345;
    return pressure_seed >> 16;
}

static int pressed(unsigned *to_submit, unsigned wait_nr) {
    static const int errors[] = {-EINTR, -EAGAIN, -EBUSY};
    (void)wait_nr;
    unsigned dice = pressure() % 4;
    if (dice == 0) return errors[pressure() % ARRAY_SIZE(errors)];
    if (dice == 1 && *to_submit > 1) *to_submit = 1 + pressure() % *to_submit;
    return 0;
}

Test(ring, refused_and_partial_submits_lose_and_double_nothing) {
    enum { N = 30 };
    struct coil__driver *d = open_ring(8, 256);
    kernel.on_enter = pressed;
    unsigned first = pressure_seed = (unsigned)now_ns();
    for (int round = 0, rounds = check_rounds(500); round < rounds; round++) {
        struct coil__req reqs[N];
        struct io_uring_cqe cqes[N];
        for (unsigned i = 0; i < N; i++) {
            reqs[i] = nop(i);
            d->ops->queue(d, &reqs[i]);
        }
        cr_assert_eq(collect(d, cqes, N), N, "seed %u, round %d", first, round);
        for (unsigned i = 0; i < N; i++) {
            cr_assert_eq(cqes[i].user_data, tag(i), "seed %u, round %d, place %u", first, round, i);
        }
    }
    kernel.on_enter = NULL;
    destroy(d);
}

static int broken(unsigned *to_submit, unsigned wait_nr) {
    (void)to_submit, (void)wait_nr;
    return -ENXIO;
}

static int enters_broken_ring(void *arg) {
    (void)arg;
    struct coil__driver *d = open_ring(8, 32);
    kernel.on_enter = broken;
    d->ops->enter(d, now_ns() + 1);
    return 0;
}

Test(ring, an_error_that_means_a_broken_ring_stops_the_process) {
    cr_assert(check_aborts(enters_broken_ring, NULL, "io_uring_enter failed"));
}

static unsigned waits_seen;

static int busy_and_watching(unsigned *to_submit, unsigned wait_nr) {
    (void)to_submit;
    waits_seen += wait_nr;
    return -EBUSY;
}

/* A cancel that finds no place must not be slept on. Nothing is ever submitted here, so every enter after the
 * first finds the queue full. */
Test(ring, no_enter_waits_while_a_cancel_has_no_place) {
    enum { N = 12 };
    struct coil__req reqs[N];
    struct io_uring_cqe cqes[2 * N];
    int fd[2];
    char bytes[N];
    make_pair(fd);
    struct coil__driver *d = open_ring(4, 64);
    for (unsigned i = 0; i < N; i++) {
        reqs[i] = request(i, IORING_OP_RECV, fd[0], &bytes[i], 1);
        d->ops->queue(d, &reqs[i]);
    }
    d->ops->enter(d, 0);
    for (unsigned i = 0; i < N; i++)
        d->ops->cancel(d, &reqs[i]);
    kernel.on_enter = busy_and_watching;
    for (int i = 0; i < 5; i++)
        d->ops->enter(d, COIL__NEVER);
    cr_expect_eq(waits_seen, 0, "it waited");
    cr_expect(coil__node_linked(&reqs[N - 1].node), "the last cancel has found a place");
    kernel.on_enter = NULL;
    cr_assert_eq(collect(d, cqes, 2 * N), 2 * N, "completions were lost");
    for (unsigned i = 0; i < N; i++) {
        const struct io_uring_cqe *c = of_tag(cqes, 2 * N, tag(i));
        cr_assert(c && c->res == -ECANCELED, "request %u", i);
    }
    destroy(d);
    close_pair(fd);
}

/* ---- cancel ---- */

Test(ring, a_request_taken_back_before_the_submit_never_reaches_the_kernel) {
    int fd[2];
    char byte = 0, rest[4];
    struct io_uring_cqe cqe;
    make_pair(fd);
    struct coil__driver *d = open_ring(8, 32);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1), marker = nop(2);
    cr_assert_eq(write(fd[1], "abc", 3), 3, "write");
    d->ops->queue(d, &r);
    d->ops->queue(d, &marker);
    coil__node_unlink(&r.node);
    cr_assert_eq(collect(d, &cqe, 1), 1, "the marker");
    cr_expect_eq(cqe.user_data, tag(2));
    cr_expect_eq(byte, 0, "it has read");
    cr_expect_eq(recv(fd[0], rest, sizeof rest, MSG_DONTWAIT), 3, "a byte is gone");
    destroy(d);
    close_pair(fd);
}

Test(ring, a_cancelled_request_ends_by_its_own_completion) {
    int fd[2];
    char byte = 0;
    struct io_uring_cqe cqes[2];
    make_pair(fd);
    struct coil__driver *d = open_ring(8, 32);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
    d->ops->queue(d, &r);
    d->ops->enter(d, 0);
    cr_expect_not(coil__node_linked(&r.node), "the kernel has it");
    d->ops->cancel(d, &r);
    cr_expect(coil__node_linked(&r.node), "a pending cancel is on the list");
    cr_assert_eq(collect(d, cqes, 2), 2);
    const struct io_uring_cqe *own = of_tag(cqes, 2, tag(1)),
                              *cancel = of_tag(cqes, 2, tag(1) | COIL__TAG_CANCEL);
    cr_assert(own && cancel, "both tell");
    cr_expect_eq(own->res, -ECANCELED, "%d", own->res);
    cr_expect_eq(cancel->res, 0, "%d", cancel->res);
    destroy(d);
    close_pair(fd);
}

Test(ring, a_cancel_of_what_is_over_is_told_so_and_harms_nobody) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    struct coil__req r = nop(1);
    d->ops->queue(d, &r);
    cr_assert_eq(collect(d, &cqe, 1), 1);
    d->ops->cancel(d, &r);
    cr_assert_eq(collect(d, &cqe, 1), 1);
    cr_expect_eq(cqe.user_data, tag(1) | COIL__TAG_CANCEL);
    cr_expect_eq(cqe.res, -ENOENT, "%d", cqe.res);
    works_without_waiting(d, "afterwards");
    destroy(d);
}

Test(ring, cancels_go_in_before_the_requests_that_were_queued_earlier) {
    enum { NOPS = 20 };
    struct coil__req nops[NOPS], r;
    struct io_uring_cqe cqes[NOPS + 2];
    int fd[2];
    char byte;
    make_pair(fd);
    struct coil__driver *d = open_ring(4, 64);
    r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
    d->ops->queue(d, &r);
    d->ops->enter(d, 0);
    for (unsigned i = 0; i < NOPS; i++) {
        nops[i] = nop(10 + i);
        d->ops->queue(d, &nops[i]);
    }
    d->ops->cancel(d, &r);
    cr_assert_eq(collect(d, cqes, NOPS + 2), NOPS + 2);
    unsigned cancel = 0, first_nop = 0;
    while (cqes[cancel].user_data != (tag(1) | COIL__TAG_CANCEL))
        cancel++;
    while (cqes[first_nop].user_data != tag(10))
        first_nop++;
    cr_expect_lt(cancel, first_nop, "the cancel came at %u, the first nop at %u", cancel, first_nop);
    destroy(d);
    close_pair(fd);
}

/* The requests are over, so it may be destroyed, although nobody has asked what became of their cancels. */
Test(ring, it_can_be_destroyed_with_cancels_unread) {
    enum { N = 100 };
    static struct coil__req reqs[N];
    struct io_uring_cqe cqe;
    for (unsigned unread = 1; unread <= N; unread += 33) {
        struct coil__driver *d = open_ring(64, 256);
        for (unsigned i = 0; i < unread; i++) {
            reqs[i] = nop(i);
            d->ops->queue(d, &reqs[i]);
            cr_assert_eq(collect(d, &cqe, 1), 1);
        }
        for (unsigned i = 0; i < unread; i++)
            d->ops->cancel(d, &reqs[i]);
        d->ops->enter(d, 0);
        destroy(d);
    }
}

/* ---- waiting ---- */

Test(ring, a_wait_ends_at_its_limit_and_not_before) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    for (int i = 0; i < 30; i++) {
        int64_t until_ns = now_ns() + (i % 7) * MS / 2 + i * 1000;
        d->ops->enter(d, until_ns);
        cr_expect_geq(now_ns(), until_ns, "wait %d was too short", i);
        d->ops->reap(d, &cqe, 1);
    }
    destroy(d);
}

Test(ring, a_limit_that_is_over_and_a_limit_of_zero_do_not_wait) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    struct coil__req r = nop(1);
    d->ops->enter(d, 0);
    d->ops->enter(d, 1);
    while (d->ops->reap(d, &cqe, 1))
        continue;
    d->ops->enter(d, now_ns() - 1);
    d->ops->reap(d, &cqe, 1);
    d->ops->queue(d, &r);
    d->ops->enter(d, 0);
    cr_expect_eq(d->ops->reap(d, &cqe, 1), 1, "a nop is done by its submit");
    destroy(d);
}

/* Where it did not move the alarm, this would wait an hour. */
Test(ring, an_earlier_limit_after_a_later_one_holds) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    for (int i = 0; i < 10; i++) {
        d->ops->wake(d);
        d->ops->enter(d, now_ns() + INT64_C(3600000) * MS);
        d->ops->reap(d, &cqe, 1);
        int64_t until_ns = now_ns() + 2 * MS;
        while (now_ns() < until_ns) {
            d->ops->enter(d, until_ns);
            d->ops->reap(d, &cqe, 1);
        }
    }
    destroy(d);
}

/* What rang for an earlier limit may end a later wait early, but only once. */
Test(ring, a_later_limit_after_an_earlier_one_costs_one_turn_at_most) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    for (int i = 0; i < 10; i++) {
        int64_t early_ns = now_ns() + 3 * MS, late_ns = early_ns + 5 * MS;
        d->ops->wake(d);
        d->ops->enter(d, early_ns);
        d->ops->reap(d, &cqe, 1);
        int turns = 0;
        for (; now_ns() < late_ns; turns++) {
            d->ops->enter(d, late_ns);
            d->ops->reap(d, &cqe, 1);
        }
        cr_expect_leq(turns, 3, "%d turns", turns);
    }
    destroy(d);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int sig) {
    (void)sig;
    alarms++;
}

static void storm(int us, int flags) {
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = flags};
    struct itimerval t = {.it_interval = {.tv_usec = us}, .it_value = {.tv_usec = us}};
    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
}

Test(ring, a_storm_of_signals_delays_no_limit_and_loses_no_completion) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    int fd[2];
    make_pair(fd);
    for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
        storm(300, flags);
        int64_t until_ns = now_ns() + 50 * MS;
        while (now_ns() < until_ns) {
            d->ops->enter(d, until_ns);
            d->ops->reap(d, &cqe, 1);
        }
        for (int i = 0; i < 2000; i++) {
            char byte = 0, sent = (char)('a' + i % 26);
            struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
            struct coil__req w = request(2, IORING_OP_SEND, fd[1], &sent, 1);
            struct io_uring_cqe two[2];
            d->ops->queue(d, &r);
            if (i % 2) d->ops->enter(d, 0);
            d->ops->queue(d, &w);
            cr_assert_eq(collect(d, two, 2), 2, "round %d", i);
            cr_assert(two[0].res == 1 && two[1].res == 1 && byte == sent, "round %d: %d %d", i, two[0].res,
                      two[1].res);
        }
    }
    storm(0, 0);
    cr_expect_gt(alarms, 10, "there was no storm");
    destroy(d);
    close_pair(fd);
}

/* ---- waking ---- */

struct waker {
    struct coil__driver *d;
    atomic_int asked, done;
    int rounds;
};

static void *wakes(void *arg) {
    struct waker *w = arg;
    for (int i = 1; i <= w->rounds; i++) {
        while (atomic_load(&w->asked) < i)
            sched_yield();
        for (volatile int spin = i * 37 % 500; spin > 0; spin--)
            continue;
        atomic_store(&w->done, i);
        w->d->ops->wake(w->d);
    }
    return NULL;
}

/* A wake-up that is lost leaves the test in a wait without limit. */
Test(ring, a_wake_up_from_another_thread_is_never_lost) {
    struct io_uring_cqe cqe;
    struct waker w = {.d = open_ring(8, 32), .rounds = check_rounds(CHECK_SANITIZED ? 2000 : 10000)};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, wakes, &w), 0);
    for (int i = 1; i <= w.rounds; i++) {
        atomic_store(&w.asked, i);
        while (atomic_load(&w.done) < i) {
            w.d->ops->enter(w.d, COIL__NEVER);
            cr_assert_eq(w.d->ops->reap(w.d, &cqe, 1), 0, "the bell's completion is the driver's own");
        }
    }
    pthread_join(thread, NULL);
    destroy(w.d);
}

Test(ring, a_wake_up_before_the_wait_ends_it) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    for (int i = 0; i < 200; i++) {
        for (int k = 0; k <= i % 3; k++)
            d->ops->wake(d);
        d->ops->enter(d, COIL__NEVER);
        while (d->ops->ready(d)) {
            cr_assert_eq(d->ops->reap(d, &cqe, 1), 0);
            d->ops->enter(d, 0);
        }
    }
    destroy(d);
}

static struct coil__driver *woken;

static void wake_in_handler(int sig) {
    (void)sig;
    errno = 77;
    woken->ops->wake(woken);
    if (errno != 77) abort();
}

Test(ring, a_signal_handler_may_wake_it_and_keeps_errno) {
    struct io_uring_cqe cqe;
    struct sigaction sa = {.sa_handler = wake_in_handler};
    woken = open_ring(8, 32);
    sigaction(SIGUSR1, &sa, NULL);
    for (int i = 0; i < 100; i++) {
        raise(SIGUSR1);
        woken->ops->enter(woken, COIL__NEVER);
        woken->ops->reap(woken, &cqe, 1);
    }
    destroy(woken);
}

Test(ring, nothing_to_do_makes_no_system_call) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    struct coil__req r = nop(1);
    d->ops->enter(d, 0);
    while (d->ops->ready(d)) {
        d->ops->reap(d, &cqe, 1);
        d->ops->enter(d, 0);
    }
    uint64_t before = d->stats.enters;
    for (int i = 0; i < 100; i++)
        d->ops->enter(d, 0);
    cr_expect_eq(d->stats.enters, before, "an enter with nothing to submit, nothing pending and no wait");
    cr_expect_not(d->ops->ready(d));
    d->ops->queue(d, &r);
    d->ops->enter(d, COIL__NEVER);
    cr_expect_eq(d->stats.enters, before + 1, "submit and wait are one call");
    cr_expect(d->ops->ready(d));
    cr_expect_eq(d->ops->reap(d, &cqe, 1), 1);
    cr_expect_not(d->ops->ready(d));
    destroy(d);
}

/* ---- the pool of buffers ---- */

static struct coil__req pooled(uint64_t id, int fd) {
    struct coil__req r = request(id, IORING_OP_RECV, fd, NULL, 0);
    r.sqe.flags = IOSQE_BUFFER_SELECT;
    r.sqe.buf_group = COIL__POOL_GROUP;
    return r;
}

Test(ring, each_buffer_of_the_pool_is_with_one_side_at_a_time) {
    int fd[2];
    struct io_uring_cqe cqe;
    struct coil__ring_opts o = options(8, 64);
    o.pool_buffers = 4;
    o.pool_buffer_size = 16;
    struct coil__driver *d = open_with(&o);
    bool has_pool = d->pool.base != NULL;
    if (!has_pool) destroy(d);
    check_needs(has_pool, "a pool of receive buffers");
    make_pair(fd);
    for (unsigned i = 0; i < 1000; i++) {
        char text[16];
        unsigned held[4];
        for (unsigned k = 0; k < 4; k++) {
            int n = snprintf(text, sizeof text, "%u/%u", i, k);
            cr_assert_eq(write(fd[1], text, (size_t)n), n);
            struct coil__req r = pooled(k, fd[0]);
            d->ops->queue(d, &r);
            cr_assert_eq(collect(d, &cqe, 1), 1);
            cr_assert(cqe.res == n && cqe.flags & IORING_CQE_F_BUFFER, "round %u: %d", i, cqe.res);
            held[k] = cqe.flags >> IORING_CQE_BUFFER_SHIFT;
            d->pool.out++;
            cr_assert_eq(memcmp(d->pool.base + held[k] * d->pool.size, text, (size_t)n), 0, "round %u", i);
            for (unsigned j = 0; j < k; j++)
                cr_assert_neq(held[j], held[k], "round %u", i);
        }
        if (i % 100 == 0) {
            cr_assert_eq(write(fd[1], "z", 1), 1);
            struct coil__req r = pooled(9, fd[0]);
            d->ops->queue(d, &r);
            cr_assert_eq(collect(d, &cqe, 1), 1);
            cr_assert_eq(cqe.res, -ENOBUFS, "%d", cqe.res);
            cr_assert_eq(recv(fd[0], text, sizeof text, MSG_DONTWAIT), 1, "the byte stays");
        }
        for (unsigned k = 0; k < 4; k++)
            d->ops->give(d, held[(k + i) % 4]);
        cr_assert_eq(d->pool.out, 0);
    }
    destroy(d);
    close_pair(fd);
}

/* ---- fork ---- */

static int leaves_at_once(void *arg) {
    (void)arg;
    return 0;
}

Test(ring, a_forked_child_does_not_disturb_it) {
    int status = -1;
    char text[64];
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_ring(8, 32);
    int fd[2];
    char byte;
    make_pair(fd);
    struct coil__req r = request(5, IORING_OP_RECV, fd[0], &byte, 1);
    d->ops->queue(d, &r);
    d->ops->enter(d, 0);
    cr_assert(check_in_child(leaves_at_once, NULL, &status, text, sizeof text), "fork");
    cr_assert_eq(status, 0, "%s", text);
    cr_assert_eq(write(fd[1], "q", 1), 1);
    cr_assert_eq(collect(d, &cqe, 1), 1);
    cr_expect(cqe.res == 1 && byte == 'q', "%d", cqe.res);
    destroy(d);
    close_pair(fd);
}
