/* The plain calls behind the seam: results as the man pages have them, errors as negative errno, and none
 * that blocks. */
#include "driver.h"

#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const struct coil__sys *const sys = &coil__sys_linux;

Test(sys, the_clock_is_the_monotonic_one_and_never_goes_back) {
    struct timespec t;
    int64_t last_ns = sys->now();
    for (int i = 0; i < 10000; i++) {
        int64_t now_ns = sys->now();
        cr_assert_geq(now_ns, last_ns);
        last_ns = now_ns;
    }
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t after_ns = t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
    cr_expect(last_ns <= after_ns && after_ns - last_ns < INT64_C(60000000000), "another clock");
}

Test(sys, random_numbers_differ_and_use_all_bits) {
    uint64_t ones = 0, zeros = 0, last = sys->random();
    for (int i = 0; i < 256; i++) {
        uint64_t v = sys->random();
        cr_expect_neq(v, last);
        ones |= v;
        zeros |= ~v;
        last = v;
    }
    cr_expect(ones == UINT64_MAX && zeros == UINT64_MAX, "a bit that never changes");
}

Test(sys, a_tcp_connection_from_socket_to_close) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, peer;
    socklen_t len = sizeof a, peer_len = sizeof peer;
    int on = 1, got = 0, before = check_fd_count();
    int l = sys->socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    cr_assert_geq(l, 0);
    cr_expect_eq(fcntl(l, F_GETFD), FD_CLOEXEC, "closed by exec");
    cr_expect_eq(sys->bind(l, (struct sockaddr *)&a, sizeof a), 0);
    cr_expect_eq(sys->listen(l, 4), 0);
    cr_expect_eq(sys->getsockname(l, (struct sockaddr *)&a, &len), 0);
    cr_expect_neq(a.sin_port, 0);
    cr_expect_eq(sys->accept(l, 0), -EAGAIN, "nobody is there");
    int c = sys->socket(AF_INET, SOCK_STREAM, 0);
    cr_assert_eq(connect(c, (struct sockaddr *)&a, sizeof a), 0);
    struct pollfd p = {.fd = l, .events = POLLIN};
    cr_assert_eq(poll(&p, 1, 5000), 1);
    int s = sys->accept(l, SOCK_NONBLOCK);
    cr_assert_geq(s, 0);
    cr_expect_eq(fcntl(s, F_GETFD), FD_CLOEXEC);
    cr_expect(sys->get_flags(s) & O_NONBLOCK, "accept's flags");
    cr_expect_eq(sys->getpeername(s, (struct sockaddr *)&peer, &peer_len), 0);
    len = sizeof got;
    cr_expect_eq(sys->setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
    cr_expect_eq(sys->getsockopt(s, IPPROTO_TCP, TCP_NODELAY, &got, &len), 0);
    cr_expect_eq(got, 1);
    cr_expect_eq(sys->shutdown(c, SHUT_WR), 0);
    cr_expect_eq(sys->close(c), 0);
    cr_expect_eq(sys->close(s), 0);
    cr_expect_eq(sys->close(l), 0);
    cr_expect_eq(check_fd_count(), before, "descriptors");
}

Test(sys, send_and_receive_never_block_and_never_raise_a_signal) {
    int fd[2];
    static char zeros[65536];
    char buf[8];
    struct iovec iov = {zeros, sizeof zeros};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    signal(SIGPIPE, SIG_DFL);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    cr_expect_eq(sys->recv(fd[0], buf, sizeof buf, 0), -EAGAIN);
    cr_expect_eq(sys->send(fd[1], "hello", 5, 0), 5);
    cr_expect_eq(sys->recv(fd[0], buf, sizeof buf, 0), 5);
    while (sys->send(fd[1], zeros, sizeof zeros, 0) > 0)
        continue;
    cr_expect_eq(sys->send(fd[1], zeros, sizeof zeros, 0), -EAGAIN);
    cr_expect_eq(sys->sendmsg(fd[1], &m, 0), -EAGAIN);
    close(fd[0]);
    cr_expect_eq(sys->send(fd[1], "x", 1, 0), -EPIPE);
    cr_expect_eq(sys->sendmsg(fd[1], &m, 0), -EPIPE);
    close(fd[1]);
}

Test(sys, flags_and_types_of_descriptors) {
    int p[2], s = sys->socket(AF_INET, SOCK_DGRAM, 0), dir = open("/", O_RDONLY | O_CLOEXEC);
    cr_assert_eq(pipe2(p, O_CLOEXEC), 0);
    int flags = sys->get_flags(p[0]);
    cr_expect_eq(sys->set_flags(p[0], flags | O_NONBLOCK), 0);
    cr_expect_eq(sys->get_flags(p[0]), flags | O_NONBLOCK);
    cr_expect_eq(sys->file_type(p[0]), S_IFIFO);
    cr_expect_eq(sys->file_type(s), S_IFSOCK);
    cr_expect_eq(sys->file_type(dir), S_IFDIR);
    cr_expect_eq(sys->poll(p[0], POLLIN), 0);
    cr_expect_eq(sys->poll(p[1], POLLOUT), POLLOUT);
    cr_expect_eq(write(p[1], "x", 1), 1);
    cr_expect_eq(sys->poll(p[0], POLLIN | POLLOUT), POLLIN);
    close(p[0]);
    close(p[1]);
    close(s);
    close(dir);
}

Test(sys, every_error_is_a_negative_errno) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t len = sizeof a;
    int v = 0;
    char buf[4];
    struct msghdr m = {0};
    cr_expect_eq(sys->socket(-1, SOCK_STREAM, 0), -EAFNOSUPPORT);
    cr_expect_eq(sys->bind(-1, (struct sockaddr *)&a, sizeof a), -EBADF);
    cr_expect_eq(sys->listen(-1, 1), -EBADF);
    cr_expect_eq(sys->accept(-1, 0), -EBADF);
    cr_expect_eq(sys->setsockopt(-1, SOL_SOCKET, SO_REUSEADDR, &v, sizeof v), -EBADF);
    cr_expect_eq(sys->getsockopt(-1, SOL_SOCKET, SO_ERROR, &v, &len), -EBADF);
    cr_expect_eq(sys->getsockname(-1, (struct sockaddr *)&a, &len), -EBADF);
    cr_expect_eq(sys->getpeername(-1, (struct sockaddr *)&a, &len), -EBADF);
    cr_expect_eq(sys->shutdown(-1, SHUT_RD), -EBADF);
    cr_expect_eq(sys->close(-1), -EBADF);
    cr_expect_eq(sys->get_flags(-1), -EBADF);
    cr_expect_eq(sys->set_flags(-1, 0), -EBADF);
    cr_expect_eq(sys->file_type(-1), -EBADF);
    cr_expect_eq(sys->poll(-1, POLLIN), -EBADF);
    cr_expect_eq(sys->poll(1 << 20, POLLIN), -EBADF);
    cr_expect_eq(sys->recv(-1, buf, 4, 0), -EBADF);
    cr_expect_eq(sys->send(-1, buf, 4, 0), -EBADF);
    cr_expect_eq(sys->sendmsg(-1, &m, 0), -EBADF);
}
