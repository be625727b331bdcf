/* What coil finds in a kernel, against what the kernel does when it is asked for the thing itself. Nothing of
 * the driver's own probing is used here: each answer comes from a request on a fresh ring. The capabilities
 * are printed: they say which rows of the table this kernel has exercised. */
#include "caps.h"
#include "task.h"

#include "check.h"

#include "coil/coil.h"

#include <liburing.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BIT(id) COIL__CAP_BIT(id)

/* ---- the kernel, asked directly ---- */

static bool sets_up(unsigned flags) {
    struct io_uring_params p = {.flags = flags};
    int fd = (int)syscall(SYS_io_uring_setup, 8, &p);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

/* The completion of one request, which is at hand at once; res -EINVAL where the kernel doesn't know it. */
static struct io_uring_cqe answer(struct io_uring *u) {
    struct io_uring_cqe *cqe = NULL, copy = {.res = -EIO};
    io_uring_submit_and_wait(u, 1);
    if (io_uring_peek_cqe(u, &cqe) == 0 && cqe)
        copy = (struct io_uring_cqe){.res = cqe->res, .flags = cqe->flags};
    return copy;
}

static bool waits_with_limit(struct io_uring *u) {
    struct __kernel_timespec ts = {.tv_nsec = 1000000};
    struct io_uring_getevents_arg arg = {.sigmask_sz = _NSIG / 8, .ts = (uintptr_t)&ts};
    long n = syscall(SYS_io_uring_enter, u->ring_fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG,
                     &arg, sizeof arg);
    return n < 0 && errno == ETIME;
}

static bool shuts_down(struct io_uring *u) {
    int fd[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    io_uring_prep_shutdown(io_uring_get_sqe(u), fd[0], SHUT_WR);
    bool known = answer(u).res == 0;
    close(fd[0]), close(fd[1]);
    return known;
}

static bool polls_on(struct io_uring *u) {
    int fd = eventfd(1, EFD_NONBLOCK);
    struct io_uring_sqe *sqe = io_uring_get_sqe(u);
    io_uring_prep_poll_add(sqe, fd, POLLIN);
    sqe->len = IORING_POLL_ADD_MULTI;
    struct io_uring_cqe cqe = answer(u);
    close(fd);
    return cqe.res == POLLIN && cqe.flags & IORING_CQE_F_MORE;
}

static bool accepts_on(struct io_uring *u) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
    bind(l, (struct sockaddr *)&a, n), listen(l, 4), getsockname(l, (struct sockaddr *)&a, &n);
    cr_assert_eq(connect(fd, (struct sockaddr *)&a, n), 0);
    struct io_uring_sqe *sqe = io_uring_get_sqe(u);
    io_uring_prep_accept(sqe, l, NULL, NULL, 0);
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    struct io_uring_cqe cqe = answer(u);
    if (cqe.res >= 0) close(cqe.res);
    close(l), close(fd);
    return cqe.res >= 0 && cqe.flags & IORING_CQE_F_MORE;
}

static bool has_buffers(struct io_uring *u, struct io_uring_buf_ring *br) {
    struct io_uring_buf_reg reg = {.ring_addr = (uintptr_t)br, .ring_entries = 8, .bgid = 3};
    return io_uring_register_buf_ring(u, &reg, 0) == 0;
}

static bool receives_on(struct io_uring *u, struct io_uring_buf_ring *br) {
    static char buf[64];
    int fd[2];
    io_uring_buf_ring_init(br);
    io_uring_buf_ring_add(br, buf, sizeof buf, 0, 7, 0);
    io_uring_buf_ring_advance(br, 1);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    cr_assert_eq(write(fd[1], "x", 1), 1);
    struct io_uring_sqe *sqe = io_uring_get_sqe(u);
    io_uring_prep_recv(sqe, fd[0], NULL, 0, 0);
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = 3;
    struct io_uring_cqe cqe = answer(u);
    close(fd[0]), close(fd[1]);
    return cqe.res == 1 && cqe.flags & IORING_CQE_F_MORE;
}

static bool installs_guards(void) {
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool known = madvise(p, 4096, 102) == 0; /* MADV_GUARD_INSTALL */
    munmap(p, 4096);
    return known;
}

/* Each question has a ring of its own: what an early kernel doesn't know may leave one unusable. */
static bool ask(bool (*question)(struct io_uring *u)) {
    struct io_uring u;
    cr_assert_eq(io_uring_queue_init(8, &u, 0), 0);
    bool yes = question(&u);
    io_uring_queue_exit(&u);
    return yes;
}

static bool registers_ring(struct io_uring *u) {
    return io_uring_register_ring_fd(u) == 1;
}

static uint64_t asked_directly(void) {
    struct io_uring u;
    uint64_t caps = BIT(FILES);
    if (ask(waits_with_limit)) caps |= BIT(EXT_ARG);
    if (ask(shuts_down)) caps |= BIT(SHUTDOWN);
    if (ask(polls_on)) caps |= BIT(POLL_MULTI);
    if (ask(accepts_on)) caps |= BIT(ACCEPT_MULTI);
    if (ask(registers_ring)) caps |= BIT(RING_FD);
    if (sets_up(IORING_SETUP_SUBMIT_ALL)) caps |= BIT(SUBMIT_ALL);
    if (sets_up(IORING_SETUP_COOP_TASKRUN)) caps |= BIT(COOP_TASKRUN);
    if (sets_up(IORING_SETUP_SINGLE_ISSUER)) caps |= BIT(SINGLE_ISSUER);
    if (sets_up(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)) caps |= BIT(DEFER_TASKRUN);
    if (installs_guards()) caps |= BIT(GUARD_INSTALL);
    struct io_uring_buf_ring *br =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_eq(io_uring_queue_init(8, &u, 0), 0);
    if (has_buffers(&u, br)) {
        caps |= BIT(BUF_RING);
        if (receives_on(&u, br)) caps |= BIT(RECV_MULTI) | BIT(RECV_MULTI_UNIX);
    }
    io_uring_queue_exit(&u);
    munmap(br, 4096);
    /* There an epoll set does the polling (hybrid.c). */
    if (!(caps & (BIT(COOP_TASKRUN) | BIT(RECV_MULTI)))) caps &= ~BIT(POLL_MULTI);
    return caps;
}

/* ---- coil ---- */

struct found {
    uint64_t caps;
    enum coil_driver_kind kind;
};

static int looks(void *arg) {
    struct found *f = arg;
    f->caps = coil__here->driver->caps;
    f->kind = coil__here->driver->kind;
    return 0;
}

static void print_caps(const char *what, uint64_t caps) {
    fprintf(stderr, "%s:", what);
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++)
        if (caps >> i & 1) fprintf(stderr, " %s", coil__cap_table[i].name);
    fprintf(stderr, "\n");
}

/* Whether system calls are cheap is a matter of time; what else may differ is a row of the exceptions. */
static uint64_t comparable(uint64_t caps) {
    caps &= ~BIT(DIRECT_SEND);
    for (unsigned i = 0; i < coil__cap_exception_count; i++)
        caps &= ~(UINT64_C(1) << coil__cap_exceptions[i].cap);
    return caps;
}

Test(capabilities, what_is_found_is_what_the_kernel_does) {
    struct found f = {0};
    unsetenv("COIL_CAPS");
    unsetenv("COIL_DRIVER");
    cr_assert_eq(coil_run(looks, &f), 0);
    check_needs(f.kind == COIL_DRIVER_URING, "io_uring");
    uint64_t asked = asked_directly();
    print_caps("capabilities", f.caps);
    if (comparable(f.caps) != comparable(asked)) print_caps("but the kernel has", asked);
    cr_assert_eq(comparable(f.caps), comparable(asked), "%#llx, not %#llx", (unsigned long long)f.caps,
                 (unsigned long long)asked);
}

/* Each row, forced off alone, is off, and takes none along but those that stand on it. */
Test(capabilities, each_can_be_left_unused_alone) {
    struct found all = {0}, without;
    unsetenv("COIL_CAPS");
    cr_assert_eq(coil_run(looks, &all), 0);
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        coil_run_opts o = {.caps = coil__cap_table[i].name, .quiet = true};
        uint64_t off = UINT64_C(1) << i;
        if (off == BIT(SINGLE_ISSUER)) off |= BIT(DEFER_TASKRUN);
        if (off == BIT(SUBMIT_ALL)) off |= BIT(RING_FD);
        if (off == BIT(BUF_RING)) off |= BIT(RECV_MULTI);
        if (off & BIT(RECV_MULTI)) off |= BIT(RECV_MULTI_UNIX) | BIT(BUF_RING);
        cr_assert_eq(coil_run_with(&o, looks, &without), 0);
        uint64_t left = without.caps & ~BIT(BUF_RING), expected = all.caps & ~off & ~BIT(BUF_RING);
        cr_expect_eq(left & ~BIT(DIRECT_SEND), expected & ~BIT(DIRECT_SEND), "%s", coil__cap_table[i].name);
        cr_expect_not(without.caps >> i & 1, "%s", coil__cap_table[i].name);
    }
}
