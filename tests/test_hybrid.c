/* The ring with an epoll set beside it, without tasks. */
#include "caps.h"
#include "hybrid.h"

#include "check.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MS = 1000000 };
static const int64_t patience_ns = 20000000000;

static int64_t now_ns(void) {
    return coil__sys_linux.now();
}

static struct coil__driver *open_without(const char *caps) {
    struct coil__ring_opts o = {.sq_entries = 8, .cq_entries = 32, .pool_buffers = 8, .pool_buffer_size = 64};
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    cr_assert_eq(coil__caps_parse(caps, &o.caps_unused, NULL), 0);
    cr_assert_eq(coil__hybrid_open(&o, &d, &err), 0, "no ring: %s", err.text);
    return d;
}

static struct coil__driver *open_early(void) {
    return open_without("5.10");
}

static struct coil__req request(uint64_t id, uint8_t opcode, int fd, void *buf, unsigned len) {
    return (struct coil__req){
        .sqe = {.opcode = opcode, .fd = fd, .addr = (uintptr_t)buf, .len = len, .user_data = id << 2}};
}

static struct coil__req poll_of(uint64_t id, int fd) {
    struct coil__req r = request(id, IORING_OP_POLL_ADD, fd, NULL, 0);
    r.sqe.poll_events = POLLIN;
    return r;
}

/* The one completion that comes next. */
static struct io_uring_cqe next(struct coil__driver *d) {
    struct io_uring_cqe cqe = {.user_data = UINT64_MAX};
    int64_t end_ns = now_ns() + patience_ns;
    while (d->ops->reap(d, &cqe, 1) == 0 && now_ns() < end_ns)
        d->ops->enter(d, now_ns() + 100 * MS);
    return cqe;
}

static void make_pair(int fd[2]) {
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0, "socketpair");
}

static void close_pair(const int fd[2]) {
    close(fd[0]);
    close(fd[1]);
}

static int descriptors(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) {
        int copy = dup(fd);
        if (copy < 0) continue;
        close(copy);
        n++;
    }
    return n;
}

Test(hybrid, a_set_stands_beside_a_ring_whose_completions_would_interrupt) {
    int before = descriptors();
    struct coil__driver *d = open_early();
    cr_expect_eq(d->caps & COIL__CAP_BIT(POLL_MULTI), 0);
    cr_expect_eq((int)d->kind, (int)COIL_DRIVER_URING);
    cr_expect_gt(descriptors(), before);
    d->ops->destroy(d);
    cr_expect_eq(descriptors(), before, "all descriptors are closed");
}

Test(hybrid, polls_and_other_requests_are_both_answered) {
    struct coil__driver *d = open_early();
    int readable[2], receiving[2];
    char byte = 0;
    make_pair(readable);
    make_pair(receiving);
    struct coil__req ready = poll_of(1, readable[0]);
    struct coil__req recv = request(2, IORING_OP_RECV, receiving[0], &byte, 1);
    for (int round = 0; round < 3; round++) { /* the set keeps what it knows from one round to the next */
        d->ops->queue(d, &ready);
        d->ops->queue(d, &recv);
        d->ops->enter(d, 0);
        cr_expect_eq(write(readable[1], "x", 1), 1);
        struct io_uring_cqe cqe = next(d);
        cr_expect_eq(cqe.user_data, ready.sqe.user_data);
        cr_expect(cqe.res & POLLIN);
        cr_expect_eq(read(readable[0], &byte, 1), 1);
        cr_expect_eq(write(receiving[1], "y", 1), 1);
        cqe = next(d);
        cr_expect_eq(cqe.user_data, recv.sqe.user_data, "a completion of the ring ends the set's wait");
        cr_expect_eq(cqe.res, 1);
        cr_expect_eq(byte, 'y');
    }
    close_pair(readable);
    close_pair(receiving);
    d->ops->destroy(d);
}

Test(hybrid, cancels_reach_polls_and_other_requests) {
    struct coil__driver *d = open_early();
    int fd[2];
    char byte;
    make_pair(fd);
    struct coil__req reqs[] = {poll_of(1, fd[0]), request(2, IORING_OP_RECV, fd[0], &byte, 1)};
    for (unsigned i = 0; i < ARRAY_SIZE(reqs); i++) {
        d->ops->queue(d, &reqs[i]);
        d->ops->enter(d, 0);
        d->ops->cancel(d, &reqs[i]);
        struct io_uring_cqe cqe = next(d);
        while (cqe.user_data & COIL__TAG_CANCEL)
            cqe = next(d);
        cr_expect_eq(cqe.user_data, reqs[i].sqe.user_data);
        cr_expect_eq(cqe.res, -ECANCELED);
    }
    close_pair(fd);
    d->ops->destroy(d);
}

static void *wake(void *d) {
    struct coil__driver *driver = d;
    driver->ops->wake(driver);
    return NULL;
}

Test(hybrid, a_wake_up_ends_a_wait) {
    struct coil__driver *d = open_early();
    pthread_t thread;
    int64_t began_ns = now_ns();
    cr_assert_eq(pthread_create(&thread, NULL, wake, d), 0);
    d->ops->enter(d, began_ns + patience_ns);
    cr_expect_lt(now_ns() - began_ns, patience_ns);
    pthread_join(thread, NULL);
    d->ops->destroy(d);
}

Test(hybrid, a_wait_ends_at_its_limit_and_not_before) {
    struct coil__driver *d = open_early();
    int64_t until_ns = now_ns() + 20 * MS;
    while (now_ns() < until_ns) {
        d->ops->enter(d, until_ns);
        struct io_uring_cqe cqe;
        cr_expect_eq(d->ops->reap(d, &cqe, 1), 0);
    }
    cr_expect_leq(d->stats.enters, 4, "it waits, it doesn't poll");
    d->ops->destroy(d);
}

static unsigned sets_open(const char *caps) {
    int before = descriptors();
    struct coil__driver *d = open_without(caps);
    int opened = descriptors() - before;
    d->ops->destroy(d);
    return (unsigned)opened;
}

Test(hybrid, where_completions_do_not_interrupt_the_ring_is_alone) {
    struct coil__driver *d = open_without("");
    bool quiet = d->caps & (COIL__CAP_BIT(COOP_TASKRUN) | COIL__CAP_BIT(RECV_MULTI));
    d->ops->destroy(d);
    if (quiet) cr_expect_lt(sets_open(""), sets_open("5.10"));
}
