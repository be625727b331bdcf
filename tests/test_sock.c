/* Sockets as listeners and dials make them. */
#include "check.h"
#include "peers.h"
#include "sock.h"

#include <fcntl.h>
#include <netinet/tcp.h>

static const struct coil__sys *const sys = &coil__sys_linux;

Test(sock, an_address_needs_a_known_family_and_the_length_that_suits_it) {
    coil_addr a;
    cr_expect_eq(coil__addr_check(NULL), -EINVAL);
    cr_assert_eq(coil_addr_parse(&a, "127.0.0.1:80"), 0);
    cr_expect_eq(coil__addr_check(&a), 0);
    a.len++;
    cr_expect_eq(coil__addr_check(&a), -EINVAL);
    cr_assert_eq(coil_addr_parse(&a, "[::1]:80"), 0);
    cr_expect_eq(coil__addr_check(&a), 0);
    a.len--;
    cr_expect_eq(coil__addr_check(&a), -EINVAL);
    cr_assert_eq(coil_addr_parse(&a, "unix:x"), 0);
    cr_expect_eq(coil__addr_check(&a), 0);
    a.len = offsetof(struct sockaddr_un, sun_path);
    cr_expect_eq(coil__addr_check(&a), -EINVAL, "a socket without a name can be neither bound nor reached");
    a.len = sizeof a.u.un + 1;
    cr_expect_eq(coil__addr_check(&a), -EINVAL);
    a = (coil_addr){.len = 1, .u.sa.sa_family = AF_INET};
    cr_expect_eq(coil__addr_check(&a), -EINVAL, "not even a family");
    a = (coil_addr){.len = sizeof a.u.sa, .u.sa.sa_family = AF_PACKET};
    cr_expect_eq(coil__addr_check(&a), -EAFNOSUPPORT);
}

Test(sock, a_tcp_socket_has_nodelay_and_every_socket_cloexec) {
    coil_addr a;
    int value = 0;
    socklen_t n = sizeof value;
    cr_assert_eq(coil_addr_parse(&a, "127.0.0.1:0"), 0);
    int fd = coil__sock_open(sys, &a);
    cr_assert_geq(fd, 0);
    cr_expect_eq(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &n), 0);
    cr_expect_eq(value, 1);
    cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    close(fd);
    cr_assert_eq(coil_addr_parse(&a, "unix:@x"), 0);
    fd = coil__sock_open(sys, &a);
    cr_assert_geq(fd, 0);
    cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    close(fd);
}

Test(sock, names_are_told_for_both_ends_and_are_all_zero_on_failure) {
    coil_addr at, got;
    static const coil_addr zero;
    cr_assert_eq(coil_addr_parse(&at, "127.0.0.1:0"), 0);
    int listening = peers_listen(&at, 1);
    int fd = peers_connect(&at);
    cr_assert_geq(fd, 0);
    cr_expect_eq(coil__sock_peer(sys, fd, &got), 0);
    cr_expect_eq(got.len, sizeof got.u.in);
    cr_expect_eq(got.u.in.sin_port, at.u.in.sin_port);
    cr_expect_eq(coil__sock_local(sys, listening, &got), 0);
    cr_expect_eq(got.u.in.sin_port, at.u.in.sin_port);
    cr_expect_eq(coil__sock_peer(sys, listening, &got), -ENOTCONN);
    cr_expect_arr_eq(&got, &zero, sizeof got);
    cr_expect_eq(coil__sock_local(sys, -1, &got), -EBADF);
    cr_expect_arr_eq(&got, &zero, sizeof got);
    close(fd);
    close(listening);
}

Test(sock, an_option_that_cannot_be_set_is_an_error) {
    cr_expect_eq(coil__sock_set(sys, -1, SOL_SOCKET, SO_REUSEADDR, 1), -EBADF);
}
