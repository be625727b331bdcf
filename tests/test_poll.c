/* The epoll driver alone, without tasks: requests go in and completions come out through the seam. What has
 * the same answer from a ring is asked of both drivers where the kernel has io_uring. The three calls of
 * epoll are replaced by ones that count, and that can fail as a kernel short of something would. */
#include "caps.h"
#include "poll.h"
#include "ring.h"

#include "check.h"
#include "peers.h"

#include "coil/core.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MS = 1000000 };
static const int64_t patience_ns = 20000000000;

/* ---- the kernel that is played ---- */

static struct {
    unsigned sets, controls, waits; /* calls of each kind */
    int no_set;                     /* errno that a new epoll set fails with */
    int no_add; /* errno that EPOLL_CTL_ADD fails with, once `adds_first` have gone well */
    int adds_first;
} kernel;

static int fail(int error) {
    errno = error;
    return -1;
}

int epoll_create1(int flags) {
    kernel.sets++;
    return kernel.no_set ? fail(kernel.no_set) : (int)syscall(SYS_epoll_create1, flags);
}

int epoll_ctl(int set, int what, int fd, struct epoll_event *ev) {
    kernel.controls++;
    if (what == EPOLL_CTL_ADD && kernel.no_add && kernel.adds_first-- <= 0) return fail(kernel.no_add);
    return (int)syscall(SYS_epoll_ctl, set, what, fd, ev);
}

int epoll_wait(int set, struct epoll_event *evs, int max, int timeout_ms) {
    kernel.waits++;
    return (int)syscall(SYS_epoll_pwait, set, evs, max, timeout_ms, NULL, _NSIG / 8);
}

/* ---- helpers ---- */

static int64_t now_ns(void) {
    return coil__sys_linux.now();
}

static struct coil__driver *open_poll(void) {
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    cr_assert_eq(coil__poll_open(0, &d, &err), 0, "no epoll driver: %s", err.text);
    return d;
}

/* NULL where this kernel gives none. */
static struct coil__driver *open_ring(void) {
    struct coil__ring_opts o = {
        .sq_entries = 64, .cq_entries = 256, .pool_buffers = 8, .pool_buffer_size = 64};
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    cr_assert_eq(coil__caps_parse(getenv("COIL_CAPS"), &o.caps_unused, NULL), 0, "COIL_CAPS");
    return coil__ring_open(&o, &d, &err) == 0 ? d : NULL;
}

static void destroy(struct coil__driver *d) {
    d->ops->destroy(d);
}

static bool is_poll(const struct coil__driver *d) {
    return d->kind == COIL_DRIVER_EPOLL;
}

static const char *name_of(const struct coil__driver *d) {
    return is_poll(d) ? "epoll" : "io_uring";
}

/* The same promises from both drivers, and no descriptor left behind. */
static void on_both(void (*scenario)(struct coil__driver *d)) {
    int fds = check_fd_count();
    struct coil__driver *d = open_poll();
    scenario(d);
    destroy(d);
    cr_expect_eq(check_fd_count(), fds, "descriptors");
    if (!(d = open_ring())) return;
    scenario(d);
    destroy(d);
}

static uint64_t tag(uint64_t id) {
    return id << 2;
}

static struct coil__req request(uint64_t id, uint8_t opcode, int fd, const void *buf, size_t len) {
    return (struct coil__req){
        .sqe = {
            .opcode = opcode, .fd = fd, .addr = (uintptr_t)buf, .len = (uint32_t)len, .user_data = tag(id)}};
}

static struct coil__req nop(uint64_t id) {
    return request(id, IORING_OP_NOP, -1, NULL, 0);
}

static struct coil__req poll_for(uint64_t id, int fd, unsigned events) {
    struct coil__req r = request(id, IORING_OP_POLL_ADD, fd, NULL, 0);
    r.sqe.poll32_events = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? events << 16 : events;
    return r;
}

static struct coil__req connect_to(uint64_t id, int fd, const void *address, size_t len) {
    struct coil__req r = request(id, IORING_OP_CONNECT, fd, address, 0);
    r.sqe.off = len;
    return r;
}

/* Completions of requests; those of cancels, which only a ring has, are passed over. */
static unsigned reap(struct coil__driver *d, struct io_uring_cqe *out, unsigned max) {
    unsigned kept = 0;
    for (unsigned n; kept < max && (n = d->ops->reap(d, out + kept, max - kept));) {
        struct io_uring_cqe *from = out + kept;
        for (unsigned i = 0; i < n; i++) {
            if (!(from[i].user_data & COIL__TAG_CANCEL)) out[kept++] = from[i];
        }
    }
    return kept;
}

/* Reaps until `want` completions have come, waiting where need be. */
static unsigned collect(struct coil__driver *d, struct io_uring_cqe *out, unsigned want) {
    int64_t end_ns = now_ns() + patience_ns;
    unsigned n = 0;
    while (n < want && now_ns() < end_ns) {
        unsigned got = reap(d, out + n, want - n);
        n += got;
        if (!got) d->ops->enter(d, now_ns() + 100 * MS);
    }
    return n;
}

/* Queues one request and gives its result. */
static int32_t run(struct coil__driver *d, struct coil__req *r) {
    struct io_uring_cqe cqe = {.res = INT32_MIN};
    d->ops->queue(d, r);
    cr_assert_eq(collect(d, &cqe, 1), 1, "%s: opcode %u has no end", name_of(d), r->sqe.opcode);
    cr_assert_eq(cqe.user_data, r->sqe.user_data);
    if (is_poll(d)) cr_assert_eq(cqe.flags, 0);
    return cqe.res;
}

/* The request is with the driver, and not over. */
static void start(struct coil__driver *d, struct coil__req *r) {
    struct io_uring_cqe cqe;
    d->ops->queue(d, r);
    for (int i = 0; i < 3; i++) {
        d->ops->enter(d, 0);
        unsigned n = reap(d, &cqe, 1);
        cr_assert_eq(n, 0, "%s: opcode %u is over: %d", name_of(d), r->sqe.opcode, n ? cqe.res : 0);
    }
}

static int32_t finish(struct coil__driver *d, const struct coil__req *r) {
    struct io_uring_cqe cqe = {.res = INT32_MIN};
    cr_assert_eq(collect(d, &cqe, 1), 1, "%s: opcode %u has no end", name_of(d), r->sqe.opcode);
    cr_assert_eq(cqe.user_data, r->sqe.user_data);
    return cqe.res;
}

static int32_t cancel(struct coil__driver *d, struct coil__req *r) {
    d->ops->cancel(d, r);
    return finish(d, r);
}

/* The turns that the driver makes in `ms`, with nobody waiting for anything. */
static unsigned turns_in(struct coil__driver *d, int ms) {
    struct io_uring_cqe cqe;
    int64_t end_ns = now_ns() + (int64_t)ms * MS;
    unsigned turns = 0;
    for (; now_ns() < end_ns; turns++) {
        d->ops->enter(d, end_ns);
        cr_assert_eq(d->ops->reap(d, &cqe, 1), 0, "nobody has asked for this");
    }
    return turns;
}

static void make_pair(int type, int fd[2]) {
    cr_assert_eq(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fd), 0, "socketpair");
}

static void make_pipe(int fd[2]) {
    cr_assert_eq(pipe2(fd, O_CLOEXEC), 0, "pipe");
}

static void close_pair(const int fd[2]) {
    close(fd[0]);
    close(fd[1]);
}

static int tcp_listener(struct sockaddr_in *at) {
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    cr_assert(fd >= 0 && bind(fd, (struct sockaddr *)at, len) == 0 && listen(fd, 64) == 0, "listen");
    cr_assert_eq(getsockname(fd, (struct sockaddr *)at, &len), 0, "getsockname");
    return fd;
}

static void make_tcp(int fd[2]) {
    struct sockaddr_in at;
    int listener = tcp_listener(&at);
    fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fd[0], (struct sockaddr *)&at, sizeof at), 0, "connect");
    fd[1] = accept(listener, NULL, NULL);
    cr_assert_geq(fd[1], 0, "accept");
    close(listener);
}

static void put(int fd, const char *text) {
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text), "write");
}

/* What can be read now without waiting: the bytes, or negative errno. */
static ssize_t take(int fd, void *buf, size_t n) {
    ssize_t r = recv(fd, buf, n, MSG_DONTWAIT);
    return r < 0 ? -errno : r;
}

static bool is_nonblocking(int fd) {
    return fcntl(fd, F_GETFL) & O_NONBLOCK;
}

/* Writes until there is no room, and leaves the descriptor's flags as they were. */
static void fill(int fd) {
    static const char zeros[4096];
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    for (size_t n = sizeof zeros; n; n /= 2) {
        while (write(fd, zeros, n) > 0)
            continue;
    }
    fcntl(fd, F_SETFL, flags);
}

/* Only what is there when it begins: a ring may write more while this still reads. */
static void drain(int fd) {
    char bytes[4096];
    int left = 0;
    cr_assert_eq(ioctl(fd, FIONREAD, &left), 0);
    for (ssize_t n; left > 0 && (n = read(fd, bytes, (size_t)MIN(left, 4096))) > 0;)
        left -= (int)n;
}

/* ---- each request ---- */

static void nops(struct coil__driver *d) {
    struct coil__req r[3] = {nop(1), nop(2), nop(3)};
    struct io_uring_cqe cqes[4];
    for (unsigned i = 0; i < 3; i++)
        d->ops->queue(d, &r[i]);
    cr_expect(coil__node_linked(&r[2].node), "it is queued");
    d->ops->enter(d, 0);
    cr_expect_not(coil__node_linked(&r[2].node), "the driver has it");
    cr_expect(d->ops->ready(d));
    cr_assert_eq(d->ops->reap(d, cqes, 2), 2, "no more than was asked for");
    cr_assert_eq(d->ops->reap(d, cqes + 2, 2), 1);
    for (unsigned i = 0; i < 3; i++)
        cr_expect(cqes[i].user_data == tag(i + 1) && cqes[i].res == 0 && cqes[i].flags == 0, "%u", i);
    cr_expect_not(d->ops->ready(d));
}

Test(poll, nops_are_over_at_once_and_in_order) {
    on_both(nops);
}

/* One way to move bytes: the requests of both directions, with what they point to. */
struct mover {
    struct msghdr msg;
    struct iovec iov;
};

static struct coil__req mover(struct mover *m, uint8_t opcode, int fd, void *bytes, size_t n) {
    m->iov = (struct iovec){.iov_base = bytes, .iov_len = n};
    m->msg = (struct msghdr){.msg_iov = &m->iov, .msg_iovlen = 1};
    switch (opcode) {
    case IORING_OP_RECVMSG:
    case IORING_OP_SENDMSG:
        return request(opcode, opcode, fd, &m->msg, 1);
    case IORING_OP_WRITEV: {
        struct coil__req r = request(opcode, opcode, fd, &m->iov, 1);
        r.sqe.off = UINT64_MAX;
        return r;
    }
    default:
        return request(opcode, opcode, fd, bytes, n);
    }
}

static const uint8_t readers[] = {IORING_OP_RECV, IORING_OP_RECVMSG, IORING_OP_READ};
static const uint8_t writers[] = {IORING_OP_SEND, IORING_OP_SENDMSG, IORING_OP_WRITE, IORING_OP_WRITEV};

static void reads(struct coil__driver *d) {
    for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
        int fd[2];
        struct mover m;
        char bytes[8] = "";
        make_pair(SOCK_STREAM, fd);
        put(fd[1], "abc");
        struct coil__req r = mover(&m, readers[i], fd[0], bytes, 2);
        cr_expect_eq(run(d, &r), 2, "%s, opcode %u, at once", name_of(d), readers[i]);
        cr_expect_str_eq(bytes, "ab");
        cr_expect_eq(take(fd[0], bytes, 8), 1);
        r = mover(&m, readers[i], fd[0], bytes, 8);
        start(d, &r);
        put(fd[1], "xyz");
        cr_expect_eq(finish(d, &r), 3, "%s, opcode %u, after waiting", name_of(d), readers[i]);
        cr_expect_eq(memcmp(bytes, "xyz", 3), 0);
        r = mover(&m, readers[i], fd[0], bytes, 8);
        start(d, &r);
        shutdown(fd[1], SHUT_WR);
        cr_expect_eq(finish(d, &r), 0, "%s, opcode %u, the end", name_of(d), readers[i]);
        r = mover(&m, readers[i], fd[0], bytes, 8);
        cr_expect_eq(run(d, &r), 0, "%s, opcode %u, still the end", name_of(d), readers[i]);
        close_pair(fd);
    }
}

Test(poll, each_kind_of_read_is_done_at_once_or_when_bytes_come) {
    on_both(reads);
}

/* The rings of early 5.10 kernels take -1 for a position, which a socket doesn't have; io.c knows it. */
static bool wants_position(struct coil__driver *d, uint8_t opcode) {
    int fd[2];
    struct mover m;
    char byte = 'x';
    make_pair(SOCK_STREAM, fd);
    struct coil__req r = mover(&m, opcode, fd[0], &byte, 1);
    bool refused = run(d, &r) == -ESPIPE;
    close_pair(fd);
    return refused && !is_poll(d);
}

static void writes(struct coil__driver *d) {
    for (unsigned i = 0; i < ARRAY_SIZE(writers); i++) {
        int fd[2];
        struct mover m;
        char bytes[8] = "";
        if (wants_position(d, writers[i])) continue;
        make_pair(SOCK_STREAM, fd);
        struct coil__req r = mover(&m, writers[i], fd[0], "abc", 3);
        cr_expect_eq(run(d, &r), 3, "%s, opcode %u, at once", name_of(d), writers[i]);
        cr_expect_eq(take(fd[1], bytes, 8), 3);
        cr_expect_str_eq(bytes, "abc");
        fill(fd[0]);
        r = mover(&m, writers[i], fd[0], "xyz", 3);
        start(d, &r);
        drain(fd[1]);
        cr_expect_eq(finish(d, &r), 3, "%s, opcode %u, after waiting", name_of(d), writers[i]);
        cr_expect_eq(take(fd[1], bytes, 8), 3);
        cr_expect_str_eq(bytes, "xyz");
        close_pair(fd);
    }
}

Test(poll, each_kind_of_write_is_done_at_once_or_when_there_is_room) {
    on_both(writes);
}

static void pipes(struct coil__driver *d) {
    int fd[2];
    char bytes[8] = "";
    make_pipe(fd);
    struct coil__req r = request(1, IORING_OP_READ, fd[0], bytes, 8);
    start(d, &r);
    struct coil__req w = request(2, IORING_OP_WRITE, fd[1], "abc", 3);
    w.sqe.off = UINT64_MAX;
    struct io_uring_cqe cqes[2];
    d->ops->queue(d, &w);
    cr_assert_eq(collect(d, cqes, 2), 2);
    cr_expect(cqes[0].res == 3 && cqes[1].res == 3 && strcmp(bytes, "abc") == 0, "%s", name_of(d));
    w.sqe.off = r.sqe.off = 7; /* a pipe has no positions */
    cr_expect_eq(run(d, &w), 3);
    cr_expect_eq(run(d, &r), 3);
    fill(fd[1]);
    struct iovec iov = {.iov_base = "v", .iov_len = 1};
    w = request(3, IORING_OP_WRITEV, fd[1], &iov, 1);
    w.sqe.off = UINT64_MAX;
    start(d, &w);
    drain(fd[0]);
    cr_expect_eq(finish(d, &w), 1);
    drain(fd[0]);
    start(d, &r);
    close(fd[1]);
    cr_expect_eq(finish(d, &r), 0, "%s: the end", name_of(d));
    close(fd[0]);
}

Test(poll, pipes_are_read_and_written_whatever_the_offset) {
    on_both(pipes);
}

static void files(struct coil__driver *d) {
    char bytes[8] = "";
    int fd = memfd_create("bytes", MFD_CLOEXEC);
    struct coil__req r = request(1, IORING_OP_WRITE, fd, "abcdef", 6);
    cr_expect_eq(run(d, &r), 6);
    r = request(2, IORING_OP_READ, fd, bytes, 3);
    r.sqe.off = 2;
    cr_expect_eq(run(d, &r), 3);
    cr_expect_str_eq(bytes, "cde");
    r.sqe.off = UINT64_MAX;
    cr_expect_eq(run(d, &r), 3);
    cr_expect_str_eq(bytes, "abc", "from where the file stands");
    r.sqe.off = 6;
    cr_expect_eq(run(d, &r), 0, "the end");
    close(fd);
}

Test(poll, offsets_hold_where_there_are_positions) {
    on_both(files);
}

static void accepts(struct coil__driver *d) {
    struct sockaddr_in at, peer = {0}, own;
    socklen_t len = sizeof peer, own_len = sizeof own;
    int listener = tcp_listener(&at), client[2], got;
    for (int i = 0; i < 2; i++)
        client[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct coil__req r = request(1, IORING_OP_ACCEPT, listener, &peer, 0);
    r.sqe.off = (uintptr_t)&len;
    r.sqe.accept_flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
    cr_assert_eq(connect(client[0], (struct sockaddr *)&at, sizeof at), 0);
    cr_assert_geq(got = run(d, &r), 0, "%s: %d", name_of(d), got);
    cr_expect(fcntl(got, F_GETFD) & FD_CLOEXEC && is_nonblocking(got), "its flags");
    cr_expect_eq(getsockname(client[0], (struct sockaddr *)&own, &own_len), 0);
    cr_expect(len == sizeof peer && peer.sin_port == own.sin_port, "the peer's address");
    close(got);
    start(d, &r);
    cr_assert_eq(connect(client[1], (struct sockaddr *)&at, sizeof at), 0);
    cr_assert_geq(got = finish(d, &r), 0, "%s: %d", name_of(d), got);
    close(got);
    start(d, &r);
    shutdown(listener, SHUT_RDWR);
    cr_expect_eq(finish(d, &r), -EINVAL, "%s: it listens no more", name_of(d));
    close(listener);
    close_pair(client);
}

Test(poll, an_accept_is_done_at_once_or_when_a_connection_comes) {
    on_both(accepts);
}

static void connects(struct coil__driver *d) {
    struct sockaddr_in at;
    int listener = tcp_listener(&at);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct coil__req r = connect_to(1, fd, &at, sizeof at);
    cr_expect_eq(run(d, &r), 0, "%s", name_of(d));
    int got = accept(listener, NULL, NULL);
    put(got, "q");
    char byte = 0;
    struct coil__req in = request(2, IORING_OP_RECV, fd, &byte, 1);
    cr_expect(run(d, &in) == 1 && byte == 'q', "it is connected");
    cr_expect_eq(run(d, &r), -EISCONN, "%s: only once", name_of(d));
    close(got);
    close(fd);
    close(listener);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    r = connect_to(3, fd, &at, sizeof at);
    cr_expect_eq(run(d, &r), -ECONNREFUSED, "%s", name_of(d));
    close(fd);
}

Test(poll, a_connect_tells_how_it_came_out) {
    on_both(connects);
}

/* A listener whose backlog of one is full, so that further connections stay on their way. */
static int full_listener(struct sockaddr_in *at, int *first) {
    int listener = tcp_listener(at);
    listen(listener, 0);
    *first = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(*first, (struct sockaddr *)at, sizeof *at), 0);
    peers_await_backlog(listener);
    return listener;
}

static void slow_connects(struct coil__driver *d) {
    struct sockaddr_in at;
    int first, listener = full_listener(&at, &first), fd[8];
    struct coil__req r[8];
    struct io_uring_cqe cqes[8];
    for (unsigned i = 0; i < 8; i++) {
        fd[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        r[i] = connect_to(i, fd[i], &at, sizeof at);
        d->ops->queue(d, &r[i]);
    }
    d->ops->enter(d, now_ns() + 20 * MS);
    cr_expect_eq(reap(d, cqes, 8), 0, "%s: none comes through", name_of(d));
    for (unsigned i = 0; i < 8; i++) {
        cr_expect_eq(cancel(d, &r[i]), -ECANCELED, "%s, connect %u", name_of(d), i);
        close(fd[i]);
    }
    close(first);
    close(listener);
}

Test(poll, a_connect_on_its_way_can_be_cancelled) {
    on_both(slow_connects);
}

static void unix_connects(struct coil__driver *d) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    socklen_t len = sizeof at;
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* An address of no length at all lets the kernel choose a name. */
    cr_assert_eq(bind(listener, (struct sockaddr *)&at, sizeof(sa_family_t)), 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&at, &len), 0);
    struct coil__req r = connect_to(1, fd, &at, len);
    cr_expect_eq(run(d, &r), -ECONNREFUSED, "%s: nobody listens", name_of(d));
    cr_assert_eq(listen(listener, 4), 0);
    cr_expect_eq(run(d, &r), 0, "%s", name_of(d));
    close(fd);
    close(listener);
}

Test(poll, a_unix_socket_connects_at_once) {
    on_both(unix_connects);
}

static void closes(struct coil__driver *d) {
    int fd[2];
    make_pair(SOCK_STREAM, fd);
    struct coil__req r = request(1, IORING_OP_CLOSE, fd[0], NULL, 0);
    cr_expect_eq(run(d, &r), 0);
    cr_expect_eq(fcntl(fd[0], F_GETFD), -1, "%s: it is open", name_of(d));
    cr_expect_eq(run(d, &r), -EBADF, "%s", name_of(d));
    close(fd[1]);
}

Test(poll, a_close_closes_once) {
    on_both(closes);
}

/* ---- errors ---- */

static const uint8_t with_descriptor[] = {
    IORING_OP_POLL_ADD, IORING_OP_RECV,    IORING_OP_SEND,  IORING_OP_RECVMSG,
    IORING_OP_SENDMSG,  IORING_OP_READ,    IORING_OP_WRITE, IORING_OP_WRITEV,
    IORING_OP_ACCEPT,   IORING_OP_CONNECT, IORING_OP_CLOSE,
};

/* A request of that kind, well-formed whatever it is. */
static struct coil__req of_kind(struct mover *m, uint8_t opcode, int fd) {
    static char byte = 0;
    static struct sockaddr_in at = {.sin_family = AF_INET};
    if (opcode == IORING_OP_POLL_ADD) return poll_for(1, fd, POLLIN);
    if (opcode == IORING_OP_CONNECT) return connect_to(1, fd, &at, sizeof at);
    if (opcode == IORING_OP_ACCEPT || opcode == IORING_OP_CLOSE) return request(1, opcode, fd, NULL, 0);
    return mover(m, opcode, fd, &byte, 1);
}

static void not_open(struct coil__driver *d) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    const int fds[] = {-1, 900, (int)MIN(limit.rlim_cur, (rlim_t)INT32_MAX), INT32_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(with_descriptor); i++) {
        for (unsigned k = 0; k < ARRAY_SIZE(fds); k++) {
            struct mover m;
            struct coil__req r = of_kind(&m, with_descriptor[i], fds[k]);
            int32_t res = run(d, &r);
            cr_expect_eq(res, -EBADF, "%s: opcode %u on %d: %d", name_of(d), r.sqe.opcode, fds[k], res);
        }
    }
}

Test(poll, a_descriptor_that_is_not_open_is_EBADF) {
    on_both(not_open);
}

Test(poll, a_number_that_is_not_open_costs_no_memory) {
    if (CHECK_SANITIZED) cr_skip("sanitizers take memory of their own");
    struct coil__driver *d = open_poll();
    struct coil__req r = poll_for(1, INT32_MAX, POLLIN);
    long before_kb = check_rss_kb();
    cr_expect_eq(run(d, &r), -EBADF);
    cr_expect_lt(check_rss_kb() - before_kb, 4096, "%ld KiB", check_rss_kb() - before_kb);
    destroy(d);
}

static void not_sockets(struct coil__driver *d) {
    static const uint8_t of_sockets[] = {IORING_OP_RECV,    IORING_OP_SEND,   IORING_OP_RECVMSG,
                                         IORING_OP_SENDMSG, IORING_OP_ACCEPT, IORING_OP_CONNECT};
    int fd[2];
    make_pipe(fd);
    for (unsigned i = 0; i < ARRAY_SIZE(of_sockets); i++) {
        struct mover m;
        struct coil__req r = of_kind(&m, of_sockets[i], fd[0]);
        int32_t res = run(d, &r);
        cr_expect_eq(res, -ENOTSOCK, "%s: opcode %u: %d", name_of(d), of_sockets[i], res);
    }
    char byte = 0;
    struct coil__req r = request(1, IORING_OP_READ, fd[1], &byte, 1);
    cr_expect_eq(run(d, &r), -EBADF, "%s: the end that writes", name_of(d));
    r = request(1, IORING_OP_WRITE, fd[0], "x", 1);
    cr_expect_eq(run(d, &r), -EBADF, "%s: the end that reads", name_of(d));
    close_pair(fd);
}

Test(poll, what_is_no_socket_says_so) {
    on_both(not_sockets);
}

static void bad_memory(struct coil__driver *d) {
    int fd[2];
    make_pair(SOCK_STREAM, fd);
    put(fd[1], "x");
    for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
        /* The message itself is there: a C library may look into it. */
        struct mover m;
        struct coil__req r = mover(&m, readers[i], fd[0], (void *)16, 1);
        cr_expect_eq(run(d, &r), -EFAULT, "%s: opcode %u", name_of(d), readers[i]);
    }
    close_pair(fd);
}

Test(poll, memory_that_is_none_is_EFAULT) {
    on_both(bad_memory);
}

/* SIGPIPE has its default action here: it would end the process. A worker blocks the signal for the writes
 * that have no flag against it. */
static void broken_pipes(struct coil__driver *d) {
    int fd[2];
    struct mover m;
    sigset_t set, old;
    make_pair(SOCK_STREAM, fd);
    fill(fd[0]);
    struct coil__req r = mover(&m, IORING_OP_SENDMSG, fd[0], "abc", 3);
    r.sqe.msg_flags = MSG_NOSIGNAL;
    start(d, &r);
    close(fd[1]);
    cr_expect_eq(finish(d, &r), -EPIPE, "%s: after waiting", name_of(d));
    r = request(1, IORING_OP_SEND, fd[0], "abc", 3);
    r.sqe.msg_flags = MSG_NOSIGNAL;
    cr_expect_eq(run(d, &r), -EPIPE, "%s: at once", name_of(d));
    close(fd[0]);
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    make_pipe(fd);
    fill(fd[1]);
    r = request(2, IORING_OP_WRITE, fd[1], "abc", 3);
    start(d, &r);
    close(fd[0]);
    cr_expect_eq(finish(d, &r), -EPIPE, "%s: a pipe", name_of(d));
    close(fd[1]);
    sigtimedwait(&set, NULL, &(struct timespec){0});
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

Test(poll, a_peer_that_is_gone_is_EPIPE_and_no_signal) {
    on_both(broken_pipes);
}

static void resets(struct coil__driver *d) {
    int fd[2];
    char bytes[4];
    struct linger hard = {.l_onoff = 1};
    make_tcp(fd);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], bytes, 4);
    start(d, &r);
    setsockopt(fd[1], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(fd[1]);
    cr_expect_eq(finish(d, &r), -ECONNRESET, "%s", name_of(d));
    close(fd[0]);
}

Test(poll, a_reset_ends_a_receive_that_waits) {
    on_both(resets);
}

static void no_waits(struct coil__driver *d) {
    int fd[2];
    struct mover m;
    char byte = 0;
    make_pair(SOCK_STREAM, fd);
    fill(fd[0]);
    static const uint8_t kinds[] = {IORING_OP_RECV, IORING_OP_RECVMSG, IORING_OP_SEND, IORING_OP_SENDMSG};
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        struct coil__req r = mover(&m, kinds[i], fd[0], &byte, 1);
        r.sqe.msg_flags = MSG_DONTWAIT;
        cr_expect_eq(run(d, &r), -EAGAIN, "%s: opcode %u", name_of(d), kinds[i]);
    }
    close_pair(fd);
}

Test(poll, whoever_asks_not_to_wait_is_told_EAGAIN) {
    on_both(no_waits);
}

static int asks(void *arg) {
    struct coil__driver *d = open_poll();
    d->ops->queue(d, arg);
    d->ops->enter(d, 0);
    return 0;
}

Test(poll, what_it_does_not_know_stops_the_process) {
    char byte = 0;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct coil__req r[] = {request(1, 250, 0, NULL, 0),
                            request(1, IORING_OP_READV, 0, &iov, 1),
                            request(1, IORING_OP_ASYNC_CANCEL, -1, NULL, 0),
                            nop(1),
                            nop(1),
                            poll_for(1, 0, POLLIN),
                            request(1, IORING_OP_WRITEV, 1, &iov, 1),
                            poll_for(1, 0, POLLIN),
                            request(1, IORING_OP_READ, 0, &byte, 1),
                            request(1, IORING_OP_ACCEPT, 0, NULL, 0),
                            request(1, IORING_OP_RECV, 0, &byte, 1)};
    r[3].sqe.flags = IOSQE_IO_LINK;
    r[4].sqe.ioprio = 1;
    r[5].sqe.len = IORING_POLL_ADD_MULTI;
    r[7].sqe.poll32_events |= EPOLLEXCLUSIVE;
    r[8].sqe.rw_flags = RWF_NOWAIT;
    r[9].sqe.file_index = 1;
    r[10].sqe.buf_group = 1;
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
        cr_expect(check_aborts(asks, &r[i], "was asked for what it can't do"), "request %u", i);
    r[0] = nop(1);
    int status = -1;
    char text[256];
    cr_assert(check_in_child(asks, &r[0], &status, text, sizeof text), "fork");
    cr_expect_eq(status, 0, "a plain nop is no such thing: %s", text);
}

static int gives_a_buffer(void *arg) {
    struct coil__driver *d = open_poll();
    d->ops->give(d, 0);
    return arg != NULL;
}

Test(poll, it_has_no_pool_of_buffers) {
    struct coil__driver *d = open_poll();
    cr_expect_null(d->pool.base);
    cr_expect_eq(d->caps, COIL__CAP_BIT(DIRECT_SEND), "%#llx", (unsigned long long)d->caps);
    destroy(d);
    cr_expect(check_aborts(gives_a_buffer, NULL, "without a pool"));
}

/* ---- polls ---- */

/* A ring tells of a peer's end of writing unasked, as if it were a hang-up; on early 5.10 kernels of
 * everything. */
static int32_t asked_for(const struct coil__driver *d, int32_t res, unsigned events) {
    return is_poll(d) || res < 0 ? res : res & (int32_t)(events | POLLERR | POLLHUP | POLLNVAL);
}

static int32_t polled(struct coil__driver *d, int fd, unsigned events) {
    struct coil__req r = poll_for(9, fd, events);
    return asked_for(d, run(d, &r), events);
}

#define POLLED(fd, events, want)                                                                         \
    do {                                                                                                 \
        int32_t got_ = polled(d, fd, events);                                                            \
        cr_expect_eq(got_, (want), "%s: %#x, wanted %#x", name_of(d), (unsigned)got_, (unsigned)(want)); \
    } while (0)

static void levels(struct coil__driver *d) {
    int fd[2];
    make_pair(SOCK_STREAM, fd);
    POLLED(fd[0], POLLIN | POLLOUT, POLLOUT);
    POLLED(fd[0], POLLWRNORM, POLLWRNORM);
    put(fd[1], "x");
    POLLED(fd[0], POLLIN | POLLOUT, POLLIN | POLLOUT);
    POLLED(fd[0], POLLIN, POLLIN);
    POLLED(fd[0], POLLIN | POLLRDHUP, POLLIN);
    POLLED(fd[0], POLLRDNORM | POLLPRI, POLLRDNORM);
    shutdown(fd[1], SHUT_WR);
    POLLED(fd[0], POLLIN | POLLRDHUP, POLLIN | POLLRDHUP);
    POLLED(fd[0], POLLRDHUP, POLLRDHUP);
    POLLED(fd[0], POLLOUT, POLLOUT);
    close(fd[1]);
    POLLED(fd[0], POLLPRI, POLLHUP);
    POLLED(fd[0], 0, POLLHUP);
    POLLED(fd[0], POLLIN | POLLOUT | POLLRDHUP, POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    close(fd[0]);
    make_pipe(fd);
    POLLED(fd[1], POLLOUT, POLLOUT);
    close(fd[1]);
    POLLED(fd[0], POLLIN, POLLHUP);
    close(fd[0]);
    make_pipe(fd);
    close(fd[0]);
    POLLED(fd[1], POLLOUT, POLLOUT | POLLERR);
    POLLED(fd[1], 0, POLLERR);
    close(fd[1]);
}

Test(poll, a_poll_tells_what_holds_already) {
    on_both(levels);
}

/* Of the epoll driver alone: kernels don't wake a ring's poll for urgent bytes that come while it waits. */
Test(poll, urgent_bytes_are_told_only_to_who_asks) {
    int fd[2];
    struct coil__driver *d = open_poll();
    make_tcp(fd);
    struct coil__req in = poll_for(1, fd[0], POLLIN), r = poll_for(2, fd[0], POLLPRI);
    start(d, &r);
    put(fd[1], "x");
    cr_expect_eq(run(d, &in), POLLIN);
    cr_assert_eq(send(fd[1], "!", 1, MSG_OOB), 1);
    cr_expect_eq(finish(d, &r), POLLPRI);
    cr_expect_eq(run(d, &r), POLLPRI, "what is there already");
    destroy(d);
    close_pair(fd);
}

static void changes(struct coil__driver *d) {
    int fd[2];
    struct io_uring_cqe cqes[2];
    make_pair(SOCK_STREAM, fd);
    struct coil__req in = poll_for(1, fd[0], POLLIN), end = poll_for(2, fd[0], POLLRDHUP),
                     none = poll_for(3, fd[0], 0), out = poll_for(4, fd[0], POLLOUT);
    fill(fd[0]);
    start(d, &in);
    start(d, &end);
    start(d, &none);
    start(d, &out);
    put(fd[1], "x");
    cr_expect_eq(asked_for(d, finish(d, &in), POLLIN), POLLIN, "%s", name_of(d));
    drain(fd[1]);
    cr_expect_eq(asked_for(d, finish(d, &out), POLLOUT), POLLOUT, "%s", name_of(d));
    close(fd[1]);
    cr_assert_eq(collect(d, cqes, 2), 2, "%s", name_of(d));
    for (unsigned i = 0; i < 2; i++) {
        bool asked = cqes[i].user_data == tag(2);
        int32_t res = asked_for(d, cqes[i].res, asked ? POLLRDHUP : 0);
        cr_expect_eq(res, asked ? POLLRDHUP | POLLHUP : POLLHUP, "%s: %#x", name_of(d), (unsigned)res);
    }
    close(fd[0]);
}

Test(poll, a_poll_that_waits_is_told_of_its_own_event_alone) {
    on_both(changes);
}

Test(poll, the_end_of_a_peers_writing_is_told_only_to_who_asks) {
    int fd[2];
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    struct coil__req end = poll_for(1, fd[0], POLLRDHUP), none = poll_for(2, fd[0], POLLPRI);
    start(d, &end);
    start(d, &none);
    shutdown(fd[1], SHUT_WR);
    cr_expect_eq(finish(d, &end), POLLRDHUP);
    cr_expect_eq(cancel(d, &none), -ECANCELED);
    destroy(d);
    close_pair(fd);
}

static void always_ready(struct coil__driver *d) {
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), file = memfd_create("bytes", MFD_CLOEXEC);
    const int fds[] = {null, file};
    char byte = 0;
    for (unsigned i = 0; i < 2; i++) {
        POLLED(fds[i], POLLIN | POLLOUT, POLLIN | POLLOUT);
        POLLED(fds[i], POLLIN, POLLIN);
        POLLED(fds[i], POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM | POLLRDHUP,
               POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM);
        struct coil__req r = request(1, IORING_OP_READ, fds[i], &byte, 1);
        cr_expect_eq(run(d, &r), 0, "%s: the end", name_of(d));
        r = request(1, IORING_OP_WRITE, fds[i], "x", 1);
        cr_expect_eq(run(d, &r), 1, "%s", name_of(d));
        close(fds[i]);
    }
}

Test(poll, what_epoll_has_no_word_on_is_always_ready) {
    on_both(always_ready);
}

/* ---- several requests on one descriptor ---- */

Test(poll, requests_that_wait_are_served_oldest_first) {
    enum { N = 9 };
    struct mover m[N];
    struct coil__req in[N], out = request(50, IORING_OP_SEND, -1, "z", 1), both;
    struct io_uring_cqe cqes[N];
    char bytes[N] = "";
    int fd[2];
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    fill(fd[0]);
    for (unsigned i = 0; i < N; i++) {
        in[i] = mover(&m[i], readers[i % 3], fd[0], &bytes[i], 1);
        in[i].sqe.user_data = tag(i);
        start(d, &in[i]);
    }
    out.sqe.fd = fd[0];
    start(d, &out);
    both = poll_for(51, fd[0], POLLPRI);
    start(d, &both);
    put(fd[1], "abcd");
    cr_assert_eq(collect(d, cqes, 4), 4);
    for (unsigned i = 0; i < 4; i++)
        cr_expect(cqes[i].user_data == tag(i) && cqes[i].res == 1 && bytes[i] == "abcd"[i], "place %u", i);
    cr_expect_eq(cancel(d, &in[5]), -ECANCELED);
    put(fd[1], "efgh");
    cr_assert_eq(collect(d, cqes, 4), 4);
    static const unsigned order[] = {4, 6, 7, 8};
    for (unsigned i = 0; i < 4; i++)
        cr_expect(cqes[i].user_data == tag(order[i]) && bytes[order[i]] == "efgh"[i], "place %u", i);
    drain(fd[1]);
    cr_expect_eq(finish(d, &out), 1);
    cr_expect_eq(cancel(d, &both), -ECANCELED);
    destroy(d);
    close_pair(fd);
}

static void hang_up(struct coil__driver *d) {
    enum { N = 4 };
    static const int32_t want[N] = {0, POLLIN | POLLHUP, 0, POLLHUP};
    struct io_uring_cqe cqes[N];
    char byte = 0;
    int fd[2];
    make_pair(SOCK_STREAM, fd);
    struct coil__req r[N] = {request(0, IORING_OP_RECV, fd[0], &byte, 1), poll_for(1, fd[0], POLLIN),
                             request(2, IORING_OP_READ, fd[0], &byte, 1), poll_for(3, fd[0], POLLPRI)};
    for (unsigned i = 0; i < N; i++)
        start(d, &r[i]);
    close(fd[1]);
    cr_assert_eq(collect(d, cqes, N), N, "%s", name_of(d));
    for (unsigned i = 0; i < N; i++) {
        unsigned id = (unsigned)(cqes[i].user_data >> 2);
        int32_t res = asked_for(d, cqes[i].res, POLLIN | POLLPRI);
        cr_expect_eq(res, want[id], "%s: request %u: %d", name_of(d), id, cqes[i].res);
    }
    close(fd[0]);
}

Test(poll, a_peer_that_leaves_ends_all_that_waits) {
    on_both(hang_up);
}

/* ---- cancel ---- */

static void cancels(struct coil__driver *d) {
    int fd[2];
    char byte = 0, rest[4];
    struct io_uring_cqe cqes[2];
    make_pair(SOCK_STREAM, fd);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1), marker = nop(2);
    start(d, &r);
    d->ops->cancel(d, &r);
    cr_expect(coil__node_linked(&r.node), "a pending cancel is on the list");
    cr_expect_eq(finish(d, &r), -ECANCELED, "%s", name_of(d));
    put(fd[1], "abc");
    d->ops->queue(d, &r);
    d->ops->queue(d, &marker);
    coil__node_unlink(&r.node);
    cr_assert_eq(collect(d, cqes, 1), 1);
    cr_expect_eq(cqes[0].user_data, tag(2), "%s: what was taken back", name_of(d));
    cr_expect_eq(take(fd[0], rest, 4), 3, "%s: a byte is gone", name_of(d));
    cr_expect_eq(byte, 0);
    struct coil__req p = poll_for(3, fd[0], POLLIN);
    start(d, &p);
    cr_expect_eq(cancel(d, &p), -ECANCELED);
    put(fd[1], "q");
    cr_expect_eq(run(d, &r), 1, "%s: the record again", name_of(d));
    d->ops->cancel(d, &r);
    d->ops->enter(d, 0);
    d->ops->enter(d, 0);
    cr_expect_eq(reap(d, cqes, 2), 0, "%s: what was over", name_of(d));
    cr_expect_not(coil__node_linked(&r.node));
    close_pair(fd);
}

Test(poll, a_cancelled_request_ends_once) {
    on_both(cancels);
}

Test(poll, a_result_wins_over_a_cancel_that_comes_before_it_is_reaped) {
    int fd[2];
    char byte = 0;
    struct io_uring_cqe cqes[2];
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
    start(d, &r);
    put(fd[1], "a");
    d->ops->enter(d, COIL__NEVER);
    d->ops->cancel(d, &r);
    d->ops->enter(d, 0);
    cr_assert_eq(d->ops->reap(d, cqes, 2), 1);
    cr_expect(cqes[0].res == 1 && byte == 'a', "%d", cqes[0].res);
    destroy(d);
    close_pair(fd);
}

/* Cancels go in first: what is only about to be tried finds its bytes untouched. */
Test(poll, a_cancel_comes_before_what_epoll_would_report) {
    int fd[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
    start(d, &r);
    put(fd[1], "a");
    cr_expect_eq(cancel(d, &r), -ECANCELED);
    cr_expect(take(fd[0], &byte, 1) == 1 && byte == 'a', "the byte is gone");
    destroy(d);
    close_pair(fd);
}

/* ---- waiting ---- */

Test(poll, a_wait_ends_at_its_limit_and_not_before) {
    struct coil__driver *d = open_poll();
    struct coil__req r = nop(1);
    for (int i = 0; i < 30; i++) {
        int64_t until_ns = now_ns() + (i % 7) * MS / 2 + i * 1000;
        d->ops->enter(d, until_ns);
        cr_expect_geq(now_ns(), until_ns, "wait %d was too short", i);
    }
    d->ops->enter(d, 1);
    d->ops->enter(d, now_ns() - 1);
    d->ops->queue(d, &r);
    d->ops->enter(d, COIL__NEVER);
    cr_expect(d->ops->ready(d), "what is over at once is not waited for");
    struct io_uring_cqe cqe;
    cr_expect_eq(d->ops->reap(d, &cqe, 1), 1);
    destroy(d);
}

/* Where it did not move the alarm, this would wait an hour. */
Test(poll, limits_may_come_in_any_order) {
    struct io_uring_cqe cqe;
    struct coil__driver *d = open_poll();
    for (int i = 0; i < 10; i++) {
        int64_t early_ns = now_ns() + 3 * MS, late_ns = early_ns + 5 * MS;
        d->ops->wake(d);
        d->ops->enter(d, now_ns() + INT64_C(3600000) * MS);
        cr_assert_eq(d->ops->reap(d, &cqe, 1), 0);
        while (now_ns() < early_ns)
            d->ops->enter(d, early_ns);
        unsigned turns = 0;
        for (; now_ns() < late_ns; turns++)
            d->ops->enter(d, late_ns);
        cr_expect_leq(turns, 3, "%u turns", turns);
    }
    destroy(d);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int sig) {
    (void)sig;
    alarms++;
}

Test(poll, a_storm_of_signals_delays_no_limit_and_loses_no_completion) {
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval t = {.it_interval = {.tv_usec = 300}, .it_value = {.tv_usec = 300}};
    struct coil__driver *d = open_poll();
    int fd[2];
    make_pair(SOCK_STREAM, fd);
    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
    int64_t until_ns = now_ns() + 50 * MS;
    while (now_ns() < until_ns)
        d->ops->enter(d, until_ns);
    for (int i = 0; i < 2000; i++) {
        char byte = 0, sent = (char)('a' + i % 26);
        struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
        struct coil__req w = request(2, IORING_OP_SEND, fd[1], &sent, 1);
        struct io_uring_cqe two[2];
        d->ops->queue(d, &r);
        if (i % 2) d->ops->enter(d, 0);
        d->ops->queue(d, &w);
        cr_assert_eq(collect(d, two, 2), 2, "round %d", i);
        cr_assert(two[0].res == 1 && two[1].res == 1 && byte == sent, "round %d", i);
    }
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    cr_expect_gt(alarms, 10, "there was no storm");
    destroy(d);
    close_pair(fd);
}

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
Test(poll, a_wake_up_from_another_thread_is_never_lost) {
    struct waker w = {.d = open_poll(), .rounds = check_rounds(CHECK_SANITIZED ? 2000 : 10000)};
    struct io_uring_cqe cqe;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, wakes, &w), 0);
    for (int i = 1; i <= w.rounds; i++) {
        atomic_store(&w.asked, i);
        while (atomic_load(&w.done) < i) {
            w.d->ops->enter(w.d, COIL__NEVER);
            cr_assert_eq(w.d->ops->reap(w.d, &cqe, 1), 0, "a wake-up has no completion");
        }
    }
    pthread_join(thread, NULL);
    destroy(w.d);
}

/* Looking whether something is there must not use the wake-up up. */
static void wakes_before(struct coil__driver *d) {
    struct io_uring_cqe cqe;
    for (int i = 0; i < 200; i++) {
        for (int k = 0; k <= i % 3; k++)
            d->ops->wake(d);
        for (int k = 0; k < i % 5; k++)
            d->ops->ready(d);
        d->ops->enter(d, COIL__NEVER);
        cr_assert_eq(reap(d, &cqe, 1), 0);
        d->ops->enter(d, 0);
        cr_assert_eq(reap(d, &cqe, 1), 0);
    }
}

Test(poll, a_wake_up_before_the_wait_ends_it) {
    on_both(wakes_before);
}

Test(poll, one_wake_up_ends_one_wait) {
    struct coil__driver *d = open_poll();
    d->ops->wake(d);
    cr_expect_leq(turns_in(d, 30), 3);
    destroy(d);
}

static struct coil__driver *woken;

static void wake_in_handler(int sig) {
    (void)sig;
    errno = 77;
    woken->ops->wake(woken);
    if (errno != 77) abort();
}

Test(poll, a_signal_handler_may_wake_it_and_keeps_errno) {
    struct sigaction sa = {.sa_handler = wake_in_handler};
    struct io_uring_cqe cqe;
    woken = open_poll();
    sigaction(SIGUSR1, &sa, NULL);
    for (int i = 0; i < 100; i++) {
        raise(SIGUSR1);
        woken->ops->enter(woken, COIL__NEVER);
        cr_assert_eq(woken->ops->reap(woken, &cqe, 1), 0);
    }
    destroy(woken);
}

/* ---- many descriptors ---- */

enum { MANY = 700 };

static struct coil__req many_reqs[MANY];
static struct io_uring_cqe many_cqes[MANY];

Test(poll, more_descriptors_than_one_wait_can_report) {
    static int fds[MANY][2];
    static char bytes[MANY];
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < 4 * MANY) cr_skip("needs %d descriptors", 4 * MANY);
    struct coil__driver *d = open_poll();
    for (unsigned i = 0; i < MANY; i++) {
        make_pair(SOCK_STREAM, fds[i]);
        many_reqs[i] = request(i, IORING_OP_RECV, fds[i][0], &bytes[i], 1);
        d->ops->queue(d, &many_reqs[i]);
    }
    for (int round = 0; round < 3; round++) {
        d->ops->enter(d, 0);
        for (unsigned i = 0; i < MANY; i++)
            cr_assert_eq(write(fds[i][1], &"abc"[round], 1), 1);
        cr_assert_eq(collect(d, many_cqes, MANY), MANY, "round %d", round);
        for (unsigned i = 0; i < MANY; i++) {
            cr_assert(many_cqes[i].res == 1 && bytes[i] == "abc"[round], "round %d, place %u", round, i);
            bytes[i] = 0;
            if (round < 2) d->ops->queue(d, &many_reqs[i]);
        }
    }
    destroy(d);
    for (unsigned i = 0; i < MANY; i++)
        close_pair(fds[i]);
}

/* The 257th is not left behind while the first 256 are always ready. */
Test(poll, always_ready_descriptors_do_not_starve_the_others) {
    enum { BUSY = 300 };
    static struct coil__req reqs[BUSY + 1];
    static int fds[BUSY + 1][2];
    struct coil__driver *d = open_poll();
    for (unsigned i = 0; i <= BUSY; i++) {
        make_pair(SOCK_DGRAM, fds[i]);
        reqs[i] = poll_for(i, fds[i][0], POLLIN);
        if (i < BUSY) put(fds[i][1], "x");
        d->ops->queue(d, &reqs[i]);
    }
    bool told = false;
    for (int turn = 0; turn < 20 && !told; turn++) {
        struct io_uring_cqe cqes[BUSY + 1];
        if (turn == 3) put(fds[BUSY][1], "x");
        d->ops->enter(d, COIL__NEVER);
        for (unsigned n = d->ops->reap(d, cqes, BUSY + 1), i = 0; i < n; i++) {
            unsigned id = (unsigned)(cqes[i].user_data >> 2);
            told = told || id == BUSY;
            if (id < BUSY) d->ops->queue(d, &reqs[id]);
        }
    }
    cr_expect(told, "it was never told");
    d->ops->enter(d, 0);
    for (unsigned i = 0; i < (told ? BUSY : BUSY + 1); i++)
        d->ops->cancel(d, &reqs[i]);
    d->ops->enter(d, 0);
    while (d->ops->reap(d, many_cqes, MANY))
        continue;
    for (unsigned i = 0; i <= BUSY; i++)
        close_pair(fds[i]);
    destroy(d);
}

/* ---- nobody is kept busy ---- */

/* A stream's record, used over and over, makes no epoll_ctl after its first wait. */
Test(poll, a_record_that_waits_again_makes_no_call_for_it) {
    int fd[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    struct coil__req r = poll_for(1, fd[0], POLLIN | POLLRDHUP);
    start(d, &r);
    put(fd[1], "x");
    cr_assert_eq(finish(d, &r), POLLIN);
    cr_assert_eq(take(fd[0], &byte, 1), 1);
    unsigned controls = kernel.controls;
    for (int i = 0; i < 1000; i++) {
        d->ops->queue(d, &r);
        d->ops->enter(d, 0);
        put(fd[1], "x");
        cr_assert_eq(finish(d, &r), POLLIN);
        cr_assert_eq(take(fd[0], &byte, 1), 1);
    }
    cr_expect_eq(kernel.controls, controls, "%u calls", kernel.controls - controls);
    destroy(d);
    close_pair(fd);
}

Test(poll, bytes_that_nobody_waits_for_let_it_sleep) {
    int fd[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    for (int end = 0; end <= 1; end++) {
        make_pair(SOCK_STREAM, fd);
        struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
        start(d, &r);
        put(fd[1], "xyz");
        cr_expect_eq(finish(d, &r), 1);
        if (end) close(fd[1]);
        unsigned turns = turns_in(d, 30);
        cr_expect_leq(turns, 15, "%u turns", turns);
        cr_expect_eq(run(d, &r), 1, "and it still reads them");
        cr_expect(byte == 'y', "%c", byte);
        close(fd[0]);
        if (!end) close(fd[1]);
    }
    destroy(d);
}

Test(poll, room_to_send_is_not_told_for_ever) {
    int fd[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    fill(fd[0]);
    struct coil__req in = request(1, IORING_OP_RECV, fd[0], &byte, 1), out = poll_for(2, fd[0], POLLOUT);
    start(d, &in);
    start(d, &out);
    drain(fd[1]);
    cr_expect_eq(finish(d, &out), POLLOUT);
    unsigned turns = turns_in(d, 30);
    cr_expect_leq(turns, 3, "%u turns beside a receive", turns);
    put(fd[1], "x");
    cr_expect_eq(finish(d, &in), 1, "the receive was forgotten");
    cr_expect_eq(run(d, &out), POLLOUT);
    turns = turns_in(d, 30);
    cr_expect_leq(turns, 3, "%u turns with nobody", turns);
    destroy(d);
    close_pair(fd);
}

Test(poll, bytes_that_only_a_sender_sees_let_it_sleep) {
    int fd[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    fill(fd[0]);
    struct coil__req in = request(1, IORING_OP_RECV, fd[0], &byte, 1),
                     out = request(2, IORING_OP_SEND, fd[0], "x", 1);
    start(d, &in);
    start(d, &out);
    put(fd[1], "xyz");
    cr_expect_eq(finish(d, &in), 1);
    unsigned turns = turns_in(d, 30);
    cr_expect_leq(turns, 15, "%u turns", turns);
    drain(fd[1]);
    cr_expect_eq(finish(d, &out), 1, "the send was forgotten");
    destroy(d);
    close_pair(fd);
}

Test(poll, borrowed_descriptors_are_made_non_blocking_only_where_they_must_be) {
    int fd[2], p[2], listener;
    char byte = 0;
    struct sockaddr_in at;
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    make_pipe(p);
    put(fd[1], "xy");
    put(p[1], "x");
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
    cr_expect(run(d, &r) == 1 && !is_nonblocking(fd[0]), "recv");
    r = request(1, IORING_OP_SEND, fd[0], &byte, 1);
    cr_expect(run(d, &r) == 1 && !is_nonblocking(fd[0]), "send");
    r = request(1, IORING_OP_READ, fd[0], &byte, 1);
    cr_expect(run(d, &r) == 1 && is_nonblocking(fd[0]), "read");
    r = request(1, IORING_OP_WRITE, fd[1], &byte, 1);
    cr_expect(run(d, &r) == 1 && is_nonblocking(fd[1]), "write");
    r = request(1, IORING_OP_READ, p[0], &byte, 1);
    cr_expect(run(d, &r) == 1 && is_nonblocking(p[0]) && !is_nonblocking(p[1]), "read of a pipe");
    listener = tcp_listener(&at);
    r = request(1, IORING_OP_ACCEPT, listener, NULL, 0);
    start(d, &r);
    cr_expect(is_nonblocking(listener), "accept");
    cr_expect_eq(cancel(d, &r), -ECANCELED);
    destroy(d);
    close(listener);
    close_pair(fd);
    close_pair(p);
}

/* ---- numbers that are closed and used again behind its back ---- */

/* Puts another description where `fd` was. */
static void replace(int fd, int by) {
    cr_assert_eq(dup3(by, fd, O_CLOEXEC), fd, "dup3");
}

Test(poll, a_number_used_again_with_no_request_waiting_is_a_new_descriptor) {
    int old[2], new[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    for (int i = 0; i < 50; i++) {
        make_pair(SOCK_STREAM, old);
        make_pair(SOCK_STREAM, new);
        struct coil__req r = request(1, IORING_OP_RECV, old[0], &byte, 1);
        start(d, &r);
        put(old[1], "o");
        cr_expect_eq(finish(d, &r), 1);
        replace(old[0], new[0]);
        r = i % 2 ? request(2, IORING_OP_RECV, old[0], &byte, 1) : poll_for(2, old[0], POLLIN);
        start(d, &r);
        put(new[1], "n");
        cr_expect_eq(finish(d, &r), i % 2 ? 1 : POLLIN, "round %d", i);
        cr_expect(i % 2 ? byte == 'n' : take(new[0], &byte, 1) == 1, "round %d", i);
        close_pair(old);
        close_pair(new);
    }
    destroy(d);
}

/* The old one waits for ever, as nobody can write to what it reads. */
static void lose_request(struct coil__driver *d, bool keep, bool again) {
    int old[2], new[2], kept = -1;
    char byte = 0, got = 0;
    make_pair(SOCK_STREAM, old);
    make_pair(SOCK_STREAM, new);
    struct coil__req r = request(1, IORING_OP_RECV, old[0], &byte, 1), n;
    start(d, &r);
    if (keep) kept = dup(old[0]);
    replace(old[0], new[0]);
    n = request(2, IORING_OP_RECV, old[0], &got, 1);
    if (again) start(d, &n);
    if (keep) put(old[1], "old");
    put(new[1], "new");
    if (!again) d->ops->queue(d, &n);
    cr_expect_eq(finish(d, &n), 1);
    cr_expect_eq(got, 'n');
    unsigned turns = turns_in(d, 20), sets = kernel.sets;
    cr_expect_leq(turns, 15, "%u turns", turns);
    cr_expect_leq(turns_in(d, 20), 2, "it doesn't end");
    cr_expect_eq(kernel.sets, sets, "it is made anew over and over");
    char rest[8] = "";
    cr_expect_eq(take(new[0], rest, 8), 2, "the new one's bytes");
    if (keep) cr_expect_eq(take(kept, rest, 8), 3, "the old one's bytes");
    cr_expect_eq(byte, 0, "it has read");
    cr_expect_eq(cancel(d, &r), -ECANCELED);
    close_pair(old);
    close_pair(new);
    if (keep) close(kept);
}

Test(poll, a_request_on_a_number_used_again_waits_and_touches_nothing) {
    int fds = check_fd_count();
    struct coil__driver *d = open_poll();
    for (int i = 0; i < 4; i++)
        lose_request(d, i & 1, i & 2);
    destroy(d);
    cr_expect_eq(check_fd_count(), fds, "descriptors");
}

/* Nobody asks for the number again: the report itself finds that it means something else. */
Test(poll, a_report_for_a_number_used_again_touches_nothing) {
    int old[2], new[2];
    char byte = 0, rest[8];
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, old);
    make_pair(SOCK_STREAM, new);
    struct coil__req r = request(1, IORING_OP_RECV, old[0], &byte, 1);
    start(d, &r);
    int kept = dup(old[0]);
    replace(old[0], new[0]);
    put(new[1], "new");
    put(old[1], "old");
    unsigned turns = turns_in(d, 30);
    cr_expect_leq(turns, 15, "%u turns", turns);
    cr_expect(byte == 0 && take(new[0], rest, 8) == 3 && take(kept, rest, 8) == 3, "bytes are gone");
    cr_expect_eq(cancel(d, &r), -ECANCELED);
    destroy(d);
    close_pair(old);
    close_pair(new);
    close(kept);
}

/* Closed, not used again: there is nothing to wait for any more, and nothing to trip over. */
Test(poll, a_request_on_a_number_that_was_closed_can_be_cancelled) {
    int fd[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    for (int keep = 0; keep <= 1; keep++) {
        make_pair(SOCK_STREAM, fd);
        struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1);
        start(d, &r);
        int kept = keep ? dup(fd[0]) : -1;
        close(fd[0]);
        cr_expect_eq(send(fd[1], "x", 1, MSG_NOSIGNAL), keep ? 1 : -1);
        unsigned turns = turns_in(d, 20);
        cr_expect_leq(turns, 15, "%u turns", turns);
        cr_expect_eq(byte, 0, "it has read");
        cr_expect_eq(cancel(d, &r), -ECANCELED);
        if (keep) close(kept);
        close(fd[1]);
    }
    destroy(d);
}

Test(poll, a_number_that_means_its_old_descriptor_again_is_waited_for) {
    int old[2], new[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, old);
    make_pair(SOCK_STREAM, new);
    int number = old[0], kept = dup(old[0]), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct coil__req r = request(1, IORING_OP_RECV, number, &byte, 1), n = poll_for(2, number, POLLIN);
    start(d, &r);
    replace(number, null);
    cr_expect_eq(run(d, &n), POLLIN, "it is /dev/null");
    replace(number, kept);
    start(d, &n);
    put(old[1], "x");
    cr_expect_eq(finish(d, &n), POLLIN, "it is the old one");
    cr_expect_eq(cancel(d, &r), -ECANCELED);
    destroy(d);
    close_pair(old);
    close_pair(new);
    close(kept);
    close(null);
}

/* A report that can't be switched off, while there is no descriptor, or no memory, for a new set. */
static void renew_without(int no_set, int no_add) {
    int old[2], new[2], other[2];
    char bytes[3] = "";
    int fds = check_fd_count();
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, old);
    make_pair(SOCK_STREAM, new);
    make_pair(SOCK_STREAM, other);
    struct coil__req r = request(1, IORING_OP_RECV, old[0], &bytes[0], 1),
                     n = request(2, IORING_OP_RECV, old[0], &bytes[1], 1),
                     o = request(3, IORING_OP_RECV, other[0], &bytes[2], 1);
    start(d, &o);
    start(d, &r);
    int kept = dup(old[0]);
    replace(old[0], new[0]);
    start(d, &n);
    kernel.no_set = no_set;
    for (int first = 0; first < 4; first++) {
        kernel.no_add = no_add;
        kernel.adds_first = first;
        put(old[1], "x");
        d->ops->enter(d, COIL__NEVER);
        put(other[1], "o");
        cr_expect_eq(finish(d, &o), 1, "the others go on");
        start(d, &o);
        put(new[1], "n");
        cr_expect_eq(finish(d, &n), 1, "the new one too");
        start(d, &n);
        d->ops->enter(d, 0);
    }
    kernel.no_set = kernel.no_add = 0;
    unsigned turns = turns_in(d, 30);
    cr_expect_leq(turns, 15, "%u turns", turns);
    cr_expect(bytes[0] == 0 && bytes[1] == 'n' && bytes[2] == 'o');
    cr_expect_eq(cancel(d, &n), -ECANCELED);
    cr_expect_eq(cancel(d, &o), -ECANCELED);
    cr_expect_eq(cancel(d, &r), -ECANCELED);
    destroy(d);
    close_pair(old);
    close_pair(new);
    close_pair(other);
    close(kept);
    cr_expect_eq(check_fd_count(), fds, "descriptors");
}

Test(poll, a_set_that_can_not_be_made_anew_serves_on) {
    renew_without(EMFILE, 0);
    renew_without(0, ENOSPC);
    renew_without(0, ENOMEM);
}

/* ---- too little of something ---- */

Test(poll, a_registration_that_the_kernel_refuses_ends_its_request_alone) {
    int fd[2], other[2];
    char byte = 0;
    struct coil__driver *d = open_poll();
    make_pair(SOCK_STREAM, fd);
    make_pair(SOCK_STREAM, other);
    struct coil__req r = request(1, IORING_OP_RECV, fd[0], &byte, 1),
                     o = request(2, IORING_OP_RECV, other[0], &byte, 1);
    start(d, &o);
    kernel.no_add = ENOSPC;
    cr_expect_eq(run(d, &r), -ENOSPC);
    kernel.no_add = 0;
    start(d, &r);
    put(fd[1], "x");
    cr_expect_eq(finish(d, &r), 1, "later it goes well");
    put(other[1], "x");
    cr_expect_eq(finish(d, &o), 1);
    destroy(d);
    close_pair(fd);
    close_pair(other);
}

/* Room for a datagram is told by the sender's own buffer, and refused for the receiver's. */
Test(poll, a_descriptor_that_is_ready_while_its_call_is_not_lets_it_rest) {
    struct coil__driver *d = open_poll();
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0),
        receiver = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(receiver, (struct sockaddr *)&name, sizeof(sa_family_t)), 0);
    socklen_t len = sizeof name;
    cr_assert_eq(getsockname(receiver, (struct sockaddr *)&name, &len), 0);
    while (sendto(sender, "x", 1, MSG_DONTWAIT, (struct sockaddr *)&name, len) == 1)
        continue;
    struct iovec iov = {"y", 1};
    struct msghdr m = {.msg_name = &name, .msg_namelen = len, .msg_iov = &iov, .msg_iovlen = 1};
    struct coil__req r = request(1, IORING_OP_SENDMSG, sender, &m, 1);
    start(d, &r);
    unsigned turns = turns_in(d, 100);
    cr_expect_leq(turns, 150, "%u turns", turns);
    cr_expect_eq(cancel(d, &r), -ECANCELED);
    destroy(d);
    close(receiver);
    close(sender);
}

static void no_driver(const char *text) {
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    int fds = check_fd_count();
    cr_expect_eq(coil__poll_open(0, &d, &err), COIL_ESTART_NOMEM);
    cr_expect_eq(err.code, COIL_ESTART_NOMEM);
    cr_expect(strstr(err.text, text) != NULL, "%s", err.text);
    cr_expect_null(d);
    cr_expect_eq(check_fd_count(), fds);
}

Test(poll, a_driver_that_can_not_be_had_is_explained) {
    kernel.no_set = EMFILE;
    no_driver(strerror(EMFILE));
    kernel.no_set = 0;
    kernel.no_add = ENOSPC;
    for (int first = 0; first < 2; first++) {
        kernel.adds_first = first;
        no_driver(strerror(ENOSPC));
    }
    kernel.no_add = 0;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    int next = dup(0);
    close(next);
    for (rlim_t more = 0; more < 3; more++) {
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)next + more, limit.rlim_max});
        struct coil__driver_error err = {0};
        struct coil__driver *d = NULL;
        cr_expect_eq(coil__poll_open(0, &d, &err), COIL_ESTART_NOMEM, "%d descriptors", (int)more);
        cr_expect(strstr(err.text, strerror(EMFILE)) != NULL, "%s", err.text);
    }
    setrlimit(RLIMIT_NOFILE, &limit);
    cr_expect_eq(dup(0), next, "a descriptor was left");
    close(next);
}

Test(poll, what_is_left_unused_is_not_declared) {
    struct coil__driver_error err = {0};
    struct coil__driver *d = NULL;
    cr_assert_eq(coil__poll_open(COIL__CAP_BIT(DIRECT_SEND), &d, &err), 0);
    cr_expect_eq(d->caps, 0);
    destroy(d);
}
