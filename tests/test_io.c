/* The plain calls: what each returns for good and bad arguments, and that it parks, never blocks. */
#include "check.h"
#include "peers.h"

#include "task.h"
#include "threads.h"

#include "coil/coil.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static char *const nowhere = (char *)16;

/* Every test is a task; its descriptors are all back when the run is over. */
static void run_with(const coil_run_opts *o, coil_fn *fn, void *arg) {
    int before = check_fd_count();
    cr_assert_eq(coil_run_with(o, fn, arg), 0, "the run failed");
    cr_expect_eq(check_fd_count(), before, "descriptors");
}

static void run(coil_fn *fn) {
    run_with(NULL, fn, NULL);
}

static void turns(void) {
    for (int i = 0; i < 3; i++)
        cr_expect_eq(coil_nop(), 0);
}

static int join(coil_task t) {
    int result = -1, err = coil_join(t, &result);
    cr_expect_eq(err, 0, "join: %d", err);
    return result;
}

static void make_pair(int fd[2]) {
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
}

static void make_pipe(int fd[2]) {
    cr_expect_eq(pipe2(fd, O_CLOEXEC), 0);
}

static void close_both(const int fd[2]) {
    close(fd[0]);
    close(fd[1]);
}

static int socket_of(int family, int type) {
    int fd = socket(family, type | SOCK_CLOEXEC, 0);
    cr_expect_geq(fd, 0);
    return fd;
}

static int listener(struct sockaddr_in *a, int backlog) {
    socklen_t len = sizeof *a;
    int fd = socket_of(AF_INET, SOCK_STREAM);
    *a = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    cr_expect_eq(bind(fd, (struct sockaddr *)a, sizeof *a), 0);
    cr_expect_eq(listen(fd, backlog), 0);
    cr_expect_eq(getsockname(fd, (struct sockaddr *)a, &len), 0);
    return fd;
}

/* A connected TCP pair. */
static void make_tcp(int fd[2]) {
    struct sockaddr_in a;
    int l = listener(&a, 4);
    fd[0] = socket_of(AF_INET, SOCK_STREAM);
    cr_expect_eq(coil_connect(fd[0], (struct sockaddr *)&a, sizeof a), 0);
    fd[1] = coil_accept(l, NULL, NULL, SOCK_CLOEXEC);
    cr_expect_geq(fd[1], 0);
    close(l);
}

static void set_nonblocking(int fd, bool on) {
    int flags = fcntl(fd, F_GETFL);
    cr_expect_eq(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK), 0);
}

static void fill(int fd) {
    static char zeros[65536];
    set_nonblocking(fd, true);
    while (write(fd, zeros, sizeof zeros) > 0)
        continue;
    while (write(fd, zeros, 1) > 0)
        continue;
    set_nonblocking(fd, false);
}

static size_t drain(int fd) {
    static char buf[65536];
    size_t sum = 0;
    set_nonblocking(fd, true);
    for (ssize_t n; (n = read(fd, buf, sizeof buf)) > 0;)
        sum += (size_t)n;
    set_nonblocking(fd, false);
    return sum;
}

/* ---- receive and send ---- */

static int moves_bytes(void *arg) {
    (void)arg;
    int fd[2];
    char buf[16] = "";
    make_pair(fd);
    cr_expect_eq(coil_send(fd[0], "hello", 5, 0), 5);
    cr_expect_eq(coil_recv(fd[1], buf, 2, MSG_PEEK), 2, "flags reach the kernel");
    cr_expect_eq(coil_recv(fd[1], buf, sizeof buf, 0), 5);
    cr_expect_str_eq(buf, "hello");
    cr_expect_eq(coil_send(fd[1], "", 0, 0), 0);
    cr_expect_eq(coil_close(fd[0]), 0);
    cr_expect_eq(coil_recv(fd[1], buf, sizeof buf, 0), 0, "the peer has ended");
    cr_expect_eq(coil_recv(fd[1], buf, sizeof buf, 0), 0, "and stays so");
    cr_expect_eq(coil_close(fd[1]), 0);
    return 0;
}

Test(io, send_and_recv_move_bytes_and_tell_the_end) {
    run(moves_bytes);
}

static int bad_sockets(void *arg) {
    (void)arg;
    int p[2], s[2], udp = socket_of(AF_INET, SOCK_DGRAM), tcp = socket_of(AF_INET, SOCK_STREAM);
    static char big[70000];
    char buf[4];
    struct msghdr m = {0};
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct iovec iov = {big, sizeof big};
    make_pipe(p);
    make_pair(s);
    cr_expect_eq(coil_recv(-1, buf, 4, 0), -EBADF);
    cr_expect_eq(coil_recv(9999, buf, 4, 0), -EBADF);
    cr_expect_eq(coil_send(-1, buf, 4, 0), -EBADF);
    cr_expect_eq(coil_recv(p[0], buf, 4, 0), -ENOTSOCK);
    cr_expect_eq(coil_send(p[1], buf, 4, 0), -ENOTSOCK);
    cr_expect_eq(coil_recv(tcp, buf, 4, 0), -ENOTCONN);
    cr_expect_eq(coil_send(tcp, buf, 4, 0), -EPIPE, "as send(2) of a socket that was never connected");
    cr_expect_eq(coil_send(udp, buf, 4, 0), -EDESTADDRREQ);
    cr_expect_eq(write(s[1], "x", 1), 1);
    cr_expect_eq(coil_recv(s[0], nowhere, 4, 0), -EFAULT);
    cr_expect_eq(coil_send(s[0], nowhere, 4, 0), -EFAULT);
    cr_expect_eq(coil_recvmsg(s[0], NULL, 0), -EINVAL);
    cr_expect_eq(coil_sendmsg(s[0], NULL, 0), -EINVAL);
    cr_expect_eq(coil_recvmsg(-1, &m, 0), -EBADF);
    cr_expect_eq(coil_sendmsg(-1, &m, 0), -EBADF);
    m = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 100000};
    cr_expect_eq(coil_recvmsg(s[0], &m, 0), -EMSGSIZE);
    cr_expect_eq(coil_sendmsg(s[0], &m, 0), -EMSGSIZE);
    m = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1, .msg_name = &to, .msg_namelen = sizeof to};
    cr_expect_eq(coil_sendmsg(udp, &m, 0), -EMSGSIZE);
    close_both(p);
    close_both(s);
    close(udp);
    close(tcp);
    return 0;
}

Test(io, bad_arguments_of_send_and_recv_get_the_documented_errors) {
    run(bad_sockets);
}

static int dont_wait(void *arg) {
    (void)arg;
    char buf[4] = "";
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        int fd[2];
        struct iovec iov = {buf, sizeof buf};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
        make_pair(fd);
        fill(fd[1]);
        for (int i = 0; i < 2; i++)
            set_nonblocking(fd[i], nonblocking);
        cr_expect_eq(coil_recv(fd[1], buf, 4, MSG_DONTWAIT), -EAGAIN);
        cr_expect_eq(coil_recvmsg(fd[1], &m, MSG_DONTWAIT), -EAGAIN);
        cr_expect_eq(coil_send(fd[1], buf, 4, MSG_DONTWAIT), -EAGAIN);
        cr_expect_eq(coil_sendmsg(fd[1], &m, MSG_DONTWAIT), -EAGAIN);
        cr_expect_eq(coil_recv(fd[0], buf, 4, MSG_DONTWAIT), 4, "what is there is given");
        close_both(fd);
    }
    return 0;
}

Test(io, dontwait_says_eagain_at_once) {
    run(dont_wait);
}

static int messages(void *arg) {
    (void)arg;
    int fd[2], p[2], passed;
    char a[3] = "", b[8] = "", control[CMSG_SPACE(sizeof(int))] = {0}, c;
    struct iovec out[2] = {{"abc", 3}, {"defg", 4}}, in[2] = {{a, 3}, {b, 8}};
    struct msghdr m = {
        .msg_iov = out, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
    make_pair(fd);
    make_pipe(p);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    *h = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(h), &p[0], sizeof(int));
    cr_expect_eq(coil_sendmsg(fd[0], &m, 0), 7);
    m = (struct msghdr){
        .msg_iov = in, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
    cr_expect_eq(coil_recvmsg(fd[1], &m, MSG_CMSG_CLOEXEC), 7);
    cr_expect(memcmp(a, "abc", 3) == 0 && memcmp(b, "defg", 4) == 0, "the pieces");
    h = CMSG_FIRSTHDR(&m);
    cr_expect(h && h->cmsg_type == SCM_RIGHTS, "the descriptor");
    if (!h) return 1;
    memcpy(&passed, CMSG_DATA(h), sizeof passed);
    cr_expect_eq(coil_write(p[1], "z", 1, -1), 1);
    cr_expect_eq(coil_read(passed, &c, 1, -1), 1);
    close(passed);
    close_both(p);
    close_both(fd);
    return 0;
}

Test(io, messages_carry_pieces_and_descriptors) {
    run(messages);
}

static int datagrams(void *arg) {
    (void)arg;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, from = {0};
    socklen_t len = sizeof to;
    int rx = socket_of(AF_INET, SOCK_DGRAM), tx = socket_of(AF_INET, SOCK_DGRAM);
    char text[8] = "";
    struct iovec iov = {"ping", 4};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_name = &to, .msg_namelen = sizeof to};
    cr_expect_eq(bind(rx, (struct sockaddr *)&to, sizeof to), 0);
    cr_expect_eq(getsockname(rx, (struct sockaddr *)&to, &len), 0);
    cr_expect_eq(coil_sendmsg(tx, &m, 0), 4);
    iov = (struct iovec){text, 2};
    m = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1, .msg_name = &from, .msg_namelen = sizeof from};
    cr_expect_eq(coil_recvmsg(rx, &m, 0), 2);
    cr_expect(m.msg_flags & MSG_TRUNC, "it was cut");
    cr_expect(m.msg_namelen == sizeof from && from.sin_family == AF_INET && from.sin_port != 0, "from whom");
    close(rx);
    close(tx);
    return 0;
}

Test(io, a_datagram_tells_its_sender_and_that_it_was_cut) {
    run(datagrams);
}

static int sends_bytewise(void *arg) {
    int fd = *(int *)arg;
    for (int i = 0; i < 3000; i++) {
        char c = (char)(i * 31);
        if (coil_send(fd, &c, 1, 0) != 1) return -EIO;
    }
    return coil_shutdown(fd, SHUT_WR);
}

static int bytewise(void *arg) {
    (void)arg;
    int fd[2], i = 0;
    char c;
    coil_task t;
    make_tcp(fd);
    cr_expect_eq(coil_spawn(&t, sends_bytewise, &fd[0]), 0);
    for (; coil_recv(fd[1], &c, 1, 0) == 1; i++) {
        if (c != (char)(i * 31)) return 1;
    }
    cr_expect_eq(i, 3000);
    cr_expect_eq(join(t), 0);
    close_both(fd);
    return 0;
}

Test(io, three_thousand_single_bytes_arrive_in_order) {
    run(bytewise);
}

enum { LARGE = 3 << 20 };

static int sends_large(void *arg) {
    const int *fd = arg;
    char *data = malloc(LARGE);
    for (size_t i = 0; i < LARGE; i++)
        data[i] = (char)(i * 7 + (i >> 11));
    size_t sent = 0;
    for (ssize_t n; sent < LARGE; sent += (size_t)n) {
        n = coil_send(*fd, data + sent, LARGE - sent, 0);
        if (n <= 0) break;
    }
    free(data);
    close(*fd);
    return sent == LARGE ? 0 : -EIO;
}

static int large(void *arg) {
    (void)arg;
    int fd[2];
    coil_task t;
    static char buf[50000];
    size_t got = 0;
    make_tcp(fd);
    cr_expect_eq(coil_spawn(&t, sends_large, &fd[0]), 0);
    for (ssize_t n; (n = coil_recv(fd[1], buf, sizeof buf, 0)) > 0; got += (size_t)n) {
        for (size_t i = 0; i < (size_t)n; i++) {
            if (buf[i] != (char)((got + i) * 7 + ((got + i) >> 11))) return 1;
        }
    }
    cr_expect_eq(got, LARGE);
    cr_expect_eq(join(t), 0);
    close(fd[1]);
    return 0;
}

Test(io, three_mebibytes_arrive_whole_through_short_sends) {
    run(large);
}

static int reset(void *arg) {
    (void)arg;
    int fd[2];
    char c;
    struct linger now = {.l_onoff = 1};
    make_tcp(fd);
    setsockopt(fd[1], SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd[1]);
    cr_expect_eq(coil_recv(fd[0], &c, 1, 0), -ECONNRESET);
    cr_expect_eq(coil_send(fd[0], "x", 1, 0), -EPIPE);
    close(fd[0]);
    return 0;
}

Test(io, a_reset_connection_says_so) {
    run(reset);
}

/* ---- parking, whatever O_NONBLOCK says ---- */

struct parked {
    int fd, result;
    int (*call)(int fd);
    bool done;
};

static int call_recv(int fd) {
    char c;
    return (int)coil_recv(fd, &c, 1, 0);
}

static int call_recvmsg(int fd) {
    char c;
    struct iovec iov = {&c, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    return (int)coil_recvmsg(fd, &m, 0);
}

static int call_read(int fd) {
    char c;
    return (int)coil_read(fd, &c, 1, -1);
}

static int call_send(int fd) {
    return (int)coil_send(fd, "x", 1, 0);
}

static int call_sendmsg(int fd) {
    struct iovec iov = {"x", 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    return (int)coil_sendmsg(fd, &m, 0);
}

static int call_write(int fd) {
    return (int)coil_write(fd, "x", 1, -1);
}

static int call_accept(int fd) {
    return coil_accept(fd, NULL, NULL, SOCK_CLOEXEC);
}

static int call_poll_in(int fd) {
    return coil_poll(fd, POLLIN);
}

static int call_poll_out(int fd) {
    return coil_poll(fd, POLLOUT);
}

static int makes_call(void *arg) {
    struct parked *p = arg;
    p->result = p->call(p->fd);
    p->done = true;
    return 0;
}

/* The call is made, and does not return. */
static void start(struct parked *p, coil_task *t, int fd, int (*call)(int fd)) {
    *p = (struct parked){.fd = fd, .call = call};
    cr_expect_eq(coil_spawn(t, makes_call, p), 0);
    turns();
    cr_expect_not(p->done, "it did not park, and gave %d", p->result);
}

/* Parks on fd[0] until its peer writes; then again, until it is cancelled; then with a limit. */
static void parks_for_input(const int fd[2], int peer, int (*call)(int fd), int expected) {
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct parked p;
        coil_task t;
        set_nonblocking(fd[0], nonblocking);
        start(&p, &t, fd[0], call);
        cr_expect_eq(write(peer, "y", 1), 1);
        join(t);
        cr_expect_eq(p.result, expected, "%d", p.result);
        drain(fd[0]);
        set_nonblocking(fd[0], nonblocking);
        start(&p, &t, fd[0], call);
        cr_expect_eq(coil_cancel(t), 0);
        join(t);
        cr_expect_eq(p.result, -ECANCELED, "%d", p.result);
        coil_scope s = coil_within(coil_ms(1));
        int err = call(fd[0]);
        cr_expect_eq(err, -ETIME, "%d", err);
        cr_expect(coil_leave(&s), "the limit struck");
    }
}

static void parks_for_room(const int fd[2], int reader, int (*call)(int fd), int expected) {
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct parked p;
        coil_task t;
        fill(fd[1]);
        set_nonblocking(fd[1], nonblocking);
        start(&p, &t, fd[1], call);
        cr_expect_eq(coil_cancel(t), 0);
        join(t);
        cr_expect_eq(p.result, -ECANCELED, "%d", p.result);
        start(&p, &t, fd[1], call);
        size_t n = drain(reader);
        join(t);
        cr_expect_eq(p.result, expected, "%d after %zu", p.result, n);
        drain(reader);
    }
}

static int sockets_park(void *arg) {
    (void)arg;
    for (int tcp = 0; tcp < 2; tcp++) {
        int fd[2];
        if (tcp) {
            make_tcp(fd);
        } else {
            make_pair(fd);
        }
        parks_for_input(fd, fd[1], call_recv, 1);
        parks_for_input(fd, fd[1], call_recvmsg, 1);
        parks_for_input(fd, fd[1], call_read, 1);
        parks_for_input(fd, fd[1], call_poll_in, POLLIN);
        if (!tcp) {
            parks_for_room(fd, fd[0], call_send, 1);
            parks_for_room(fd, fd[0], call_sendmsg, 1);
            parks_for_room(fd, fd[0], call_write, 1);
            parks_for_room(fd, fd[0], call_poll_out, POLLOUT);
        }
        close_both(fd);
    }
    return 0;
}

Test(io, calls_on_sockets_park_whether_they_are_nonblocking_or_not) {
    run(sockets_park);
}

static int pipes_park(void *arg) {
    (void)arg;
    int fd[2];
    make_pipe(fd);
    parks_for_input(fd, fd[1], call_read, 1);
    parks_for_input(fd, fd[1], call_poll_in, POLLIN);
    parks_for_room(fd, fd[0], call_write, 1);
    parks_for_room(fd, fd[0], call_poll_out, POLLOUT);
    close_both(fd);
    return 0;
}

Test(io, calls_on_pipes_park_whether_they_are_nonblocking_or_not) {
    run(pipes_park);
}

static int listeners_park(void *arg) {
    (void)arg;
    struct sockaddr_in a;
    int l = listener(&a, 4);
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct parked p;
        coil_task t;
        set_nonblocking(l, nonblocking);
        start(&p, &t, l, call_accept);
        int fd = socket_of(AF_INET, SOCK_STREAM);
        cr_expect_eq(coil_connect(fd, (struct sockaddr *)&a, sizeof a), 0);
        join(t);
        cr_expect_geq(p.result, 0, "%d", p.result);
        close(p.result);
        close(fd);
        start(&p, &t, l, call_accept);
        cr_expect_eq(coil_cancel(t), 0);
        join(t);
        cr_expect_eq(p.result, -ECANCELED, "%d", p.result);
    }
    close(l);
    return 0;
}

Test(io, accept_parks_whether_the_listener_is_nonblocking_or_not) {
    run(listeners_park);
}

/* ---- files, pipes and SIGPIPE ---- */

static int file_io(void *arg) {
    (void)arg;
    char buf[16] = "", path[] = "/tmp/coil_test_io_XXXXXX";
    int fd = mkstemp(path), dir = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC), p[2];
    unlink(path);
    make_pipe(p);
    cr_expect_eq(coil_write(fd, "0123456789", 10, -1), 10);
    cr_expect_eq(lseek(fd, 0, SEEK_CUR), 10, "-1 moves the position");
    cr_expect_eq(coil_read(fd, buf, 4, 3), 4);
    cr_expect(memcmp(buf, "3456", 4) == 0, "%s", buf);
    cr_expect_eq(lseek(fd, 0, SEEK_CUR), 10, "an offset doesn't");
    cr_expect_eq(coil_write(fd, "AB", 2, 0), 2);
    lseek(fd, 0, SEEK_SET);
    cr_expect_eq(coil_read(fd, buf, 3, -1), 3);
    cr_expect(memcmp(buf, "AB2", 3) == 0, "%s", buf);
    cr_expect_eq(coil_read(fd, buf, 16, -1), 7);
    cr_expect_eq(coil_read(fd, buf, 16, -1), 0, "the end");
    cr_expect_eq(coil_read(fd, buf, 16, 1000), 0, "beyond the end");
    cr_expect_eq(coil_read(fd, buf, 4, -2), -EINVAL);
    cr_expect_eq(coil_write(fd, buf, 4, INT64_MIN), -EINVAL);
    cr_expect_eq(coil_read(fd, nowhere, 4, 0), -EFAULT);
    cr_expect_eq(coil_write(fd, nowhere, 4, 0), -EFAULT);
    cr_expect_eq(coil_read(dir, buf, 4, 0), -EISDIR);
    cr_expect_eq(coil_write(p[1], "xy", 2, 7), 2, "a pipe has no position");
    cr_expect_eq(coil_read(p[0], buf, 4, 9), 2);
    cr_expect_eq(coil_read(p[1], buf, 4, -1), -EBADF);
    cr_expect_eq(coil_write(p[0], buf, 4, -1), -EBADF);
    cr_expect_eq(coil_read(-1, buf, 4, -1), -EBADF);
    cr_expect_eq(coil_write(-1, buf, 4, -1), -EBADF);
    close_both(p);
    close(fd);
    close(dir);
    return 0;
}

Test(io, files_are_read_and_written_at_a_place_or_at_the_position) {
    run(file_io);
}

static int pipe_end(void *arg) {
    (void)arg;
    int p[2];
    char buf[4];
    make_pipe(p);
    cr_expect_eq(coil_write(p[1], "ab", 2, -1), 2);
    cr_expect_eq(coil_close(p[1]), 0);
    cr_expect_eq(coil_read(p[0], buf, 4, -1), 2);
    cr_expect_eq(coil_read(p[0], buf, 4, -1), 0);
    close(p[0]);
    return 0;
}

Test(io, a_pipe_without_writers_ends) {
    run(pipe_end);
}

static int broken_pipes(void *arg) {
    (void)arg;
    int p[2], s[2];
    struct iovec iov = {"x", 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    make_pipe(p);
    make_pair(s);
    close(p[0]);
    close(s[0]);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(coil_write(p[1], "x", 1, -1), -EPIPE);
        cr_expect_eq(coil_write(s[1], "x", 1, -1), -EPIPE);
        cr_expect_eq(coil_send(s[1], "x", 1, 0), -EPIPE);
        cr_expect_eq(coil_sendmsg(s[1], &m, 0), -EPIPE);
    }
    close(p[1]);
    close(s[1]);
    return 0;
}

static bool sigpipe_pending(void) {
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, SIGPIPE);
}

static bool sigpipe_blocked(void) {
    sigset_t set;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    return sigismember(&set, SIGPIPE);
}

/* The default would end this process, now or when the signal is unblocked. */
Test(io, a_broken_pipe_is_an_error_and_never_a_signal) {
    signal(SIGPIPE, SIG_DFL);
    run(broken_pipes);
    cr_expect_not(sigpipe_pending(), "it is still pending");
    cr_expect_not(sigpipe_blocked(), "it stays blocked");
}

Test(io, a_sigpipe_that_the_program_has_blocked_stays_as_it_was) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    signal(SIGPIPE, SIG_DFL);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    raise(SIGPIPE);
    run(broken_pipes);
    cr_expect(sigpipe_pending(), "the program's own signal was eaten");
    cr_expect(sigpipe_blocked());
}

/* ---- files by requests, and by threads of the blocking pool: the same to the program ---- */

static const coil_run_opts on_pool = {.caps = "files"};

Test(io, threads_of_the_pool_read_and_write_files_alike) {
    run_with(&on_pool, file_io, NULL);
}

struct notes {
    int64_t result[64];
    int count;
    char content[64];
    uint64_t jobs;
};

static void note(struct notes *n, int64_t result) {
    n->result[n->count++] = result;
}

static int open_path(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    cr_expect_geq(fd, 0, "%s", path);
    return fd;
}

/* The position of fd[0] after each call is noted too. */
static void note_calls(struct notes *n, const int fd[5]) {
    static const int64_t offsets[] = {-1, 0, 3, 1 << 20, INT64_MAX, -2};
    char buf[8] = "";
    for (int i = 0; i < 6; i++) {
        note(n, coil_write(fd[0], "abcdefg", 7, offsets[i]));
        note(n, coil_read(fd[0], buf, 4, offsets[i]));
        note(n, lseek(fd[0], 0, SEEK_CUR));
        note(n, buf[0]);
    }
    note(n, coil_write(fd[1], "++", 2, -1)); /* O_APPEND goes to the end, whatever the offset */
    note(n, coil_write(fd[1], "--", 2, 0));
    note(n, lseek(fd[0], 0, SEEK_END));
    for (int i = 1; i < 5; i++) {
        note(n, coil_read(fd[i], buf, 4, 0));
        if (i != 3) note(n, coil_read(fd[i], buf, 0, 0)); /* Nothing of a directory: kernels disagree. */
        note(n, coil_read(fd[i], nowhere, 4, 0));
        note(n, coil_write(fd[i], "x", i == 1 ? 0 : 1, 0));
    }
    note(n, coil_write(fd[0], nowhere, 4, 0));
    note(n, coil_read(fd[0], buf, 8, 1 << 30));
    note(n, coil_read(9999, buf, 8, 0));
    note(n, coil_write(9999, buf, 8, 0));
}

static int file_calls(void *arg) {
    struct notes *n = arg;
    char path[] = "/tmp/coil_test_io_XXXXXX";
    coil_stats s;
    int file = mkstemp(path), fd[5] = {file, open_path(path, O_WRONLY | O_APPEND), open_path(path, O_RDONLY),
                                       open_path("/tmp", O_RDONLY | O_DIRECTORY), open_path(path, O_PATH)};
    unlink(path);
    note_calls(n, fd);
    cr_expect_geq(pread(file, n->content, sizeof n->content, 0), 10);
    for (int i = 0; i < 5; i++) {
        note(n, coil_close(fd[i]));
        note(n, coil_close(fd[i]));
    }
    coil_stats_get(&s);
    n->jobs = s.jobs;
    return 0;
}

Test(io, the_pool_gives_the_results_of_requests) {
    static struct notes pool, requests;
    run_with(&on_pool, file_calls, &pool);
    run_with(NULL, file_calls, &requests);
    cr_assert_gt(pool.jobs, 20);
    cr_assert_eq(pool.count, requests.count);
    for (int i = 0; i < pool.count; i++)
        cr_expect_eq(pool.result[i], requests.result[i], "%d: %lld, %lld", i, (long long)pool.result[i],
                     (long long)requests.result[i]);
    cr_expect_arr_eq(pool.content, requests.content, sizeof pool.content);
}

static int not_on_the_pool(void *arg) {
    coil_stats s;
    sockets_park(arg);
    pipes_park(arg);
    coil_stats_get(&s);
    cr_expect_eq(s.jobs, 0);
    return 0;
}

Test(io, what_is_no_file_needs_no_pool) {
    run_with(&on_pool, not_on_the_pool, NULL);
}

/* Takes up the one thread that files have. */
struct holder {
    struct coil__job job;
    sem_t begun, hold, over;
};

static void hold(struct coil__job *j) {
    struct holder *h = CONTAINER_OF(j, struct holder, job);
    sem_post(&h->begun);
    while (sem_wait(&h->hold))
        continue;
}

static void held(struct coil__job *j) {
    sem_post(&CONTAINER_OF(j, struct holder, job)->over);
}

static void begin_holding(struct holder *h) {
    *h = (struct holder){.job = {.run = hold, .ended = held, .lane = COIL__LANE_FILES}};
    sem_init(&h->begun, 0, 0);
    sem_init(&h->hold, 0, 0);
    sem_init(&h->over, 0, 0);
    cr_expect_eq(coil__threads_hand_over(&h->job), 0);
    while (sem_wait(&h->begun))
        continue;
}

static void end_holding(struct holder *h) {
    sem_post(&h->hold);
    while (sem_wait(&h->over))
        continue;
}

static const coil_run_opts narrow_pool = {.caps = "files", .blocking_threads = 3, .blocking_queue = 2};

static int stored_file(void) {
    char path[] = "/tmp/coil_test_io_XXXXXX";
    int fd = mkstemp(path);
    unlink(path);
    cr_expect_eq(write(fd, "0123456789", 10), 10);
    lseek(fd, 4, SEEK_SET);
    return fd;
}

static void expect_untouched(int fd) {
    cr_expect_eq(lseek(fd, 0, SEEK_CUR), 4);
    cr_expect_eq(lseek(fd, 0, SEEK_END), 10);
    lseek(fd, 4, SEEK_SET);
}

static int stopped_file_calls(void *arg) {
    struct holder h;
    struct parked p;
    coil_task t;
    int fd = stored_file();
    (void)arg;
    begin_holding(&h);
    for (int writes = 0; writes < 2; writes++) {
        int (*call)(int fd) = writes ? call_write : call_read;
        start(&p, &t, fd, call);
        cr_expect_eq(coil_cancel(t), 0);
        join(t);
        cr_expect_eq(p.result, -ECANCELED, "%d", p.result);
        coil_scope s = coil_within(coil_ms(1));
        cr_expect_eq(call(fd), -ETIME);
        cr_expect(coil_leave(&s), "the limit struck");
        expect_untouched(fd);
    }
    end_holding(&h);
    cr_expect_eq(call_read(fd), 1, "and it is of use again");
    return coil_close(fd);
}

Test(io, a_file_call_that_waits_for_a_thread_ends_by_cancel_or_limit) {
    run_with(&narrow_pool, stopped_file_calls, NULL);
}

static int closed_file_calls(void *arg) {
    struct holder h;
    struct parked p[2], closer;
    coil_task t[2], closes;
    int fd = stored_file(), other = dup(fd);
    (void)arg;
    begin_holding(&h);
    start(&p[0], &t[0], fd, call_read);
    start(&p[1], &t[1], fd, call_write);
    start(&closer, &closes, fd, coil_close);
    for (int i = 0; i < 2; i++) {
        join(t[i]);
        cr_expect_eq(p[i].result, -EBADF, "%d", p[i].result);
    }
    cr_expect_eq(coil_close(fd), -EBADF, "one closes");
    cr_expect_not(closer.done);
    end_holding(&h);
    join(closes);
    cr_expect_eq(closer.result, 0);
    cr_expect_eq(fcntl(fd, F_GETFD), -1);
    expect_untouched(other);
    return coil_close(other);
}

Test(io, file_calls_that_wait_for_a_thread_end_when_their_descriptor_is_closed) {
    run_with(&narrow_pool, closed_file_calls, NULL);
}

static int too_many_file_calls(void *arg) {
    struct holder h;
    struct parked p[2];
    coil_task t[2];
    int fd = stored_file(), other = dup(fd);
    (void)arg;
    begin_holding(&h);
    start(&p[0], &t[0], fd, call_read);
    start(&p[1], &t[1], fd, call_read);
    cr_expect_eq(call_read(other), -EAGAIN);
    cr_expect_eq(call_write(other), -EAGAIN);
    cr_expect_eq(coil_close(other), 0, "a close is never refused");
    cr_expect_eq(fcntl(other, F_GETFD), -1);
    end_holding(&h);
    for (int i = 0; i < 2; i++) {
        join(t[i]);
        cr_expect_eq(p[i].result, 1);
    }
    cr_expect_eq(lseek(fd, 0, SEEK_CUR), 6);
    return coil_close(fd);
}

Test(io, a_file_call_beyond_the_pools_queue_is_refused) {
    run_with(&narrow_pool, too_many_file_calls, NULL);
}

enum { CANNOT_TRY = 101 };

static int file_calls_without_threads(void *arg) {
    int fd = stored_file();
    (void)arg;
    if (getuid() == 0 && setuid(100000 + (uid_t)getpid())) return CANNOT_TRY;
    if (setrlimit(RLIMIT_NPROC, &(struct rlimit){0, 0})) return CANNOT_TRY;
    int read = call_read(fd), written = call_write(fd);
    if (read == 1) return CANNOT_TRY;
    if (read != -ENOMEM || written != -ENOMEM) return 1;
    return coil_close(fd) == 0 && fcntl(fd, F_GETFD) == -1 ? 0 : 2;
}

static int runs_without_threads(void *arg) {
    (void)arg;
    return coil_run_with(&on_pool, file_calls_without_threads, NULL);
}

Test(io, without_a_thread_file_calls_are_refused_and_a_close_is_not) {
    int status;
    char err[1024];
    cr_assert(check_in_child(runs_without_threads, NULL, &status, err, sizeof err));
    if (status == CANNOT_TRY << 8) cr_skip("threads can't be forbidden here");
    cr_assert_eq(status, 0, "%#x %s", (unsigned)status, err);
}

/* ---- connect and accept ---- */

static int connects(void *arg) {
    (void)arg;
    struct sockaddr_in a, from = {0}, own = {0};
    struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "/nonexistent/socket"};
    socklen_t len = sizeof from, own_len = sizeof own;
    int l = listener(&a, 4), fd = socket_of(AF_INET, SOCK_STREAM), other = socket_of(AF_UNIX, SOCK_STREAM);
    cr_expect_eq(coil_connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    cr_expect_eq(coil_connect(fd, (struct sockaddr *)&a, sizeof a), -EISCONN);
    int got = coil_accept(l, (struct sockaddr *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
    cr_expect_geq(got, 0, "%d", got);
    getsockname(fd, (struct sockaddr *)&own, &own_len);
    cr_expect(len == sizeof from && from.sin_port == own.sin_port, "the peer's address");
    cr_expect_eq(fcntl(got, F_GETFD), FD_CLOEXEC);
    cr_expect(fcntl(got, F_GETFL) & O_NONBLOCK, "flags");
    cr_expect_eq(coil_connect(other, (struct sockaddr *)&un, sizeof un), -ENOENT);
    cr_expect_eq(coil_connect(other, (struct sockaddr *)&a, sizeof a), -EINVAL);
    cr_expect_eq(coil_connect(-1, (struct sockaddr *)&a, sizeof a), -EBADF);
    close(fd);
    fd = socket_of(AF_INET, SOCK_STREAM);
    cr_expect_eq(coil_connect(fd, (struct sockaddr *)&a, 3), -EINVAL);
    cr_expect_eq(coil_connect(fd, (struct sockaddr *)nowhere, sizeof a), -EFAULT);
    cr_expect_eq(coil_connect(fd, (struct sockaddr *)&un, sizeof un), -EAFNOSUPPORT);
    close(l);
    cr_expect_eq(coil_connect(fd, (struct sockaddr *)&a, sizeof a), -ECONNREFUSED);
    close(fd);
    close(other);
    close(got);
    return 0;
}

Test(io, connect_and_accept_give_the_networks_answers) {
    run(connects);
}

static struct sockaddr_in full;

static int call_connect(int fd) {
    return coil_connect(fd, (struct sockaddr *)&full, sizeof full);
}

static int slow_connects(void *arg) {
    (void)arg;
    int l = listener(&full, 0), first = socket_of(AF_INET, SOCK_STREAM);
    cr_expect_eq(call_connect(first), 0);
    peers_await_backlog(l);
    for (int i = 0; i < 5; i++) {
        struct parked p;
        coil_task t;
        int fd = socket_of(AF_INET, SOCK_STREAM);
        start(&p, &t, fd, call_connect);
        cr_expect_eq(coil_cancel(t), 0);
        join(t);
        cr_expect_eq(p.result, -ECANCELED, "%d", p.result);
        cr_expect_eq(coil_close(fd), 0);
        fd = socket_of(AF_INET, SOCK_STREAM);
        coil_scope s = coil_within(coil_ms(1));
        int err = call_connect(fd);
        cr_expect_eq(err, -ETIME, "%d", err);
        coil_leave(&s);
        cr_expect_eq(coil_close(fd), 0);
    }
    close(first);
    close(l);
    return 0;
}

Test(io, a_connect_that_is_not_answered_ends_by_cancel_or_limit) {
    run(slow_connects);
}

static int bad_accepts(void *arg) {
    (void)arg;
    struct sockaddr_in a;
    int l = listener(&a, 4), plain = socket_of(AF_INET, SOCK_STREAM), udp = socket_of(AF_INET, SOCK_DGRAM),
        p[2];
    make_pipe(p);
    cr_expect_eq(coil_accept(plain, NULL, NULL, 0), -EINVAL);
    cr_expect_eq(coil_accept(l, NULL, NULL, 1 << 30), -EINVAL);
    cr_expect_eq(coil_accept(p[0], NULL, NULL, 0), -ENOTSOCK);
    cr_expect_eq(coil_accept(udp, NULL, NULL, 0), -EOPNOTSUPP);
    cr_expect_eq(coil_accept(-1, NULL, NULL, 0), -EBADF);
    close_both(p);
    close(udp);
    close(plain);
    close(l);
    return 0;
}

Test(io, bad_arguments_of_accept_get_the_documented_errors) {
    run(bad_accepts);
}

static int no_descriptor_left(void *arg) {
    (void)arg;
    struct sockaddr_in a;
    struct rlimit was, none;
    int l = listener(&a, 4), fd = socket_of(AF_INET, SOCK_STREAM);
    cr_expect_eq(coil_connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    getrlimit(RLIMIT_NOFILE, &was);
    none = (struct rlimit){3, was.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(coil_accept(l, NULL, NULL, 0), -EMFILE);
    setrlimit(RLIMIT_NOFILE, &was);
    int got = coil_accept(l, NULL, NULL, 0);
    cr_expect_geq(got, 0, "the connection was lost: %d", got);
    close(got);
    close(fd);
    close(l);
    return 0;
}

Test(io, without_a_free_descriptor_the_connection_waits) {
    run(no_descriptor_left);
}

/* ---- poll, shutdown, close, nop ---- */

static int polls(void *arg) {
    (void)arg;
    int fd[2], file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    make_pair(fd);
    cr_expect_eq(coil_poll(fd[0], POLLOUT), POLLOUT);
    cr_expect_eq(coil_poll(fd[0], POLLIN | POLLOUT), POLLOUT);
    cr_expect_eq(write(fd[1], "x", 1), 1);
    cr_expect_eq(coil_poll(fd[0], POLLIN), POLLIN);
    cr_expect_eq(coil_poll(fd[0], POLLIN | POLLOUT), POLLIN | POLLOUT);
    cr_expect_eq(shutdown(fd[1], SHUT_WR), 0);
    cr_expect_eq(coil_poll(fd[0], POLLRDHUP), POLLRDHUP);
    close(fd[1]);
    cr_expect(coil_poll(fd[0], POLLPRI) & POLLHUP, "told without being asked for");
    cr_expect_eq(coil_poll(fd[0], 0), -EINVAL);
    cr_expect_eq(coil_poll(-1, POLLIN), -EBADF);
    cr_expect_eq(coil_poll(file, POLLIN), POLLIN, "a file is always ready");
    close(file);
    close(fd[0]);
    return 0;
}

Test(io, poll_tells_which_events_are_there) {
    run(polls);
}

static int half_close(void *arg) {
    (void)arg;
    int fd[2], p[2], idle = socket_of(AF_INET, SOCK_STREAM);
    char buf[8];
    make_tcp(fd);
    make_pipe(p);
    cr_expect_eq(coil_send(fd[0], "last", 4, 0), 4);
    cr_expect_eq(coil_shutdown(fd[0], SHUT_WR), 0);
    cr_expect_eq(coil_recv(fd[1], buf, 8, 0), 4);
    cr_expect_eq(coil_recv(fd[1], buf, 8, 0), 0, "its direction has ended");
    cr_expect_eq(coil_send(fd[1], "reply", 5, 0), 5);
    cr_expect_eq(coil_recv(fd[0], buf, 8, 0), 5, "the other has not");
    cr_expect_eq(coil_send(fd[0], "x", 1, 0), -EPIPE);
    cr_expect_eq(coil_shutdown(fd[1], SHUT_RDWR), 0);
    cr_expect_eq(coil_recv(fd[1], buf, 8, 0), 0);
    cr_expect_eq(coil_shutdown(fd[0], 17), -EINVAL);
    cr_expect_eq(coil_shutdown(idle, SHUT_WR), -ENOTCONN);
    cr_expect_eq(coil_shutdown(p[0], SHUT_WR), -ENOTSOCK);
    cr_expect_eq(coil_shutdown(-1, SHUT_WR), -EBADF);
    close(idle);
    close_both(p);
    close_both(fd);
    return 0;
}

Test(io, shutdown_ends_one_direction_and_leaves_the_other) {
    run(half_close);
}

static int closing(void *arg) {
    (void)arg;
    int fd[2];
    char c;
    make_pair(fd);
    cr_expect_eq(coil_close(fd[0]), 0);
    cr_expect_eq(coil_close(fd[0]), -EBADF);
    cr_expect_eq(coil_close(-1), -EBADF);
    cr_expect_eq(coil_close(INT32_MIN), -EBADF);
    cr_expect_eq(coil_close(9999), -EBADF);
    cr_expect_eq(coil_recv(fd[1], &c, 1, 0), 0, "the peer hears of it at once");
    cr_expect_eq(coil_close(fd[1]), 0);
    return 0;
}

Test(io, a_descriptor_is_closed_once) {
    run(closing);
}

static int nops(void *arg) {
    (void)arg;
    coil_stats a, b;
    coil_stats_get(&a);
    for (int i = 0; i < 100; i++)
        cr_expect_eq(coil_nop(), 0);
    coil_stats_get(&b);
    cr_expect_eq(b.ops - a.ops, 100);
    cr_expect_eq(b.completions - a.completions, 100);
    return 0;
}

Test(io, a_nop_is_one_request) {
    run(nops);
}

/* ---- a close between two requests of one call ---- */

static struct coil__driver_ops impatient;
static const struct coil__driver_ops *patient;
static int next_of_number;

/* Receives don't wait, as on O_NONBLOCK descriptors of some kernels; and a number is somebody else's as soon
 * as it is closed, as where another thread opens something at that moment. */
static void queue_impatiently(struct coil__driver *d, struct coil__req *r) {
    if (r->sqe.opcode == IORING_OP_RECV) r->sqe.msg_flags |= MSG_DONTWAIT;
    if (r->sqe.opcode == IORING_OP_CLOSE) {
        cr_expect_eq(dup2(next_of_number, r->sqe.fd), r->sqe.fd);
        r->sqe.opcode = IORING_OP_NOP;
        r->sqe.fd = -1;
    }
    patient->queue(d, r);
}

static int receives_one(void *fd) {
    char c = 0;
    int n = (int)coil_recv(*(int *)fd, &c, 1, 0);
    return n == 1 ? c : n;
}

/* Whatever the receive is at when its descriptor is closed: it takes nothing from who gets the number next.
 */
static void close_after(int turns, bool something_came) {
    int fd[2], other[2], result = 0;
    char c = 0;
    coil_task t;
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, other), 0);
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    cr_expect_eq(send(other[1], "z", 1, 0), 1);
    int number = fd[0];
    next_of_number = other[0];
    cr_expect_eq(coil_spawn(&t, receives_one, &number), 0);
    for (int i = 0; i < turns; i++)
        coil_nop();
    if (something_came) cr_expect_eq(send(fd[1], "a", 1, 0), 1);
    for (int i = 0; i < turns; i++)
        coil_nop();
    cr_expect_eq(coil_close(fd[0]), 0);
    cr_expect_eq(coil_join(t, &result), 0);
    cr_expect(result == -EBADF || (something_came && result == 'a'), "%d after %d turns", result, turns);
    cr_expect_eq(recv(other[0], &c, 1, MSG_DONTWAIT), 1, "after %d turns it was stolen", turns);
    close(number), close(other[0]), close(other[1]), close(fd[1]);
}

static int closes_at_any_turn(void *arg) {
    (void)arg;
    patient = coil__here->driver->ops;
    impatient = *patient;
    impatient.queue = queue_impatiently;
    coil__here->driver->ops = &impatient;
    for (int turns = 1; turns < 12; turns++) { /* after one it has begun */
        close_after(turns, false);
        close_after(turns, true);
    }
    return 0;
}

Test(io, a_close_between_two_requests_of_a_call_ends_it) {
    int fds = check_fd_count();
    cr_assert_eq(coil_run(closes_at_any_turn, NULL), 0);
    cr_assert_eq(check_fd_count(), fds);
}

/* ---- refused on entry ---- */

struct refusals {
    int fd[2], expected;
};

/* Each would succeed at once, or spoil the pair. */
static void all_refused(const struct refusals *r) {
    int in = r->fd[0], e = r->expected;
    char c = 0;
    struct iovec iov = {&c, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    cr_expect_eq(coil_recv(in, &c, 1, 0), e);
    cr_expect_eq(coil_recv(in, &c, 1, MSG_DONTWAIT), e);
    cr_expect_eq(coil_recvmsg(in, &m, 0), e);
    cr_expect_eq(coil_read(in, &c, 1, -1), e);
    cr_expect_eq(coil_send(in, "x", 1, 0), e);
    cr_expect_eq(coil_sendmsg(in, &m, 0), e);
    cr_expect_eq(coil_write(in, "x", 1, -1), e);
    cr_expect_eq(coil_accept(in, NULL, NULL, 0), e);
    cr_expect_eq(coil_connect(in, NULL, 0), e);
    cr_expect_eq(coil_poll(in, POLLIN), e);
    cr_expect_eq(coil_shutdown(in, SHUT_RDWR), e);
    cr_expect_eq(coil_nop(), e);
    cr_expect_eq(c, 0, "something was done");
}

static int is_refused(void *arg) {
    struct refusals *r = arg;
    coil_stats a, b;
    coil_stats_get(&a);
    coil_scope s = coil_within(r->expected == -ETIME ? coil_ns(0) : COIL_FOREVER);
    all_refused(r);
    coil_leave(&s);
    coil_stats_get(&b);
    cr_expect_eq(b.ops, a.ops, "a refused call has made a request");
    cr_expect_geq(b.turns - a.turns, 12, "the others had no turn");
    return 0;
}

static int refusing(void *arg) {
    (void)arg;
    static const int errors[] = {-ECANCELED, -ETIME};
    for (int i = 0; i < 2; i++) {
        struct refusals r = {.expected = errors[i]};
        coil_task t;
        int n;
        make_pair(r.fd);
        cr_expect_eq(write(r.fd[1], "abc", 3), 3);
        cr_expect_eq(coil_spawn(&t, is_refused, &r), 0);
        if (r.expected == -ECANCELED) cr_expect_eq(coil_cancel(t), 0);
        join(t);
        cr_expect_eq(ioctl(r.fd[0], FIONREAD, &n), 0);
        cr_expect_eq(n, 3, "%d bytes are left", n);
        cr_expect_eq(drain(r.fd[1]), 0, "something was sent");
        close_both(r.fd);
    }
    return 0;
}

Test(io, a_refused_call_does_nothing_and_gives_the_others_a_turn) {
    run(refusing);
}

static int outside(void *arg) {
    char c = 0;
    switch (*(int *)arg) {
    case 0:
        return (int)coil_recv(0, &c, 1, 0);
    case 1:
        return (int)coil_send(0, &c, 1, 0);
    case 2:
        return (int)coil_recvmsg(0, &(struct msghdr){0}, 0);
    case 3:
        return (int)coil_sendmsg(0, &(struct msghdr){0}, 0);
    case 4:
        return (int)coil_read(0, &c, 1, -1);
    case 5:
        return (int)coil_write(0, &c, 1, -1);
    case 6:
        return coil_accept(0, NULL, NULL, 0);
    case 7:
        return coil_connect(0, NULL, 0);
    case 8:
        return coil_poll(0, POLLIN);
    case 9:
        return coil_shutdown(0, SHUT_WR);
    case 10:
        return coil_nop();
    default:
        return coil_close(0);
    }
}

Test(io, outside_a_task_each_call_stops_with_its_name) {
    static const char *const names[] = {
        "coil_recv:",   "coil_send:",    "coil_recvmsg:", "coil_sendmsg:",  "coil_read:", "coil_write:",
        "coil_accept:", "coil_connect:", "coil_poll:",    "coil_shutdown:", "coil_nop:",  "coil_close:"};
    for (int i = 0; i < 12; i++)
        cr_expect(check_aborts(outside, &i, names[i]), "%s", names[i]);
}
