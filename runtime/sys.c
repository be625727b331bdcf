/* The plain calls behind the seam, on Linux. */
#include "driver.h"
#include "threads.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int64_t sys_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static uint64_t sys_random(void) {
    uint64_t v = 0;
    /* Early at boot the kernel may have no randomness yet; the clock will do then, nothing secret hangs on
     * it. */
    if (getrandom(&v, sizeof v, GRND_NONBLOCK) != sizeof v) v = (uint64_t)sys_now() * 0x9e3779b97f4a7c15ULL;
    return v;
}

static int result(int r) {
    return r < 0 ? -errno : r;
}

static int sys_socket(int family, int type, int protocol) {
    return result(socket(family, type | SOCK_CLOEXEC, protocol));
}

static int sys_bind(int fd, const struct sockaddr *a, socklen_t n) {
    return result(bind(fd, a, n));
}

static int sys_listen(int fd, int backlog) {
    return result(listen(fd, backlog));
}

static int sys_accept(int fd, int flags) {
    return result(accept4(fd, NULL, NULL, flags | SOCK_CLOEXEC));
}

static int sys_setsockopt(int fd, int level, int name, const void *v, socklen_t n) {
    return result(setsockopt(fd, level, name, v, n));
}

static int sys_getsockopt(int fd, int level, int name, void *v, socklen_t *n) {
    return result(getsockopt(fd, level, name, v, n));
}

static int sys_getsockname(int fd, struct sockaddr *a, socklen_t *n) {
    return result(getsockname(fd, a, n));
}

static int sys_getpeername(int fd, struct sockaddr *a, socklen_t *n) {
    return result(getpeername(fd, a, n));
}

static int sys_shutdown(int fd, int how) {
    return result(shutdown(fd, how));
}

/* On Linux the descriptor is gone also when close reports EINTR: closing again could hit somebody else's. */
static int sys_close(int fd) {
    int r = result(close(fd));
    return r == -EINTR ? 0 : r;
}

static int sys_get_flags(int fd) {
    return result(fcntl(fd, F_GETFL));
}

static int sys_set_flags(int fd, int flags) {
    return result(fcntl(fd, F_SETFL, flags));
}

static int sys_file_type(int fd) {
    struct stat st;
    if (fstat(fd, &st) < 0) return -errno;
    return (int)(st.st_mode & S_IFMT);
}

/* poll(2) skips negative descriptors, and tells of closed ones as if they were ready. */
static int sys_poll(int fd, short events) {
    struct pollfd p = {.fd = fd, .events = events};
    if (poll(&p, 1, 0) < 0) return -errno;
    return fd < 0 || p.revents & POLLNVAL ? -EBADF : p.revents;
}

static ssize_t sys_recv(int fd, void *buf, size_t n, int flags) {
    ssize_t r = recv(fd, buf, n, flags | MSG_DONTWAIT);
    return r < 0 ? -errno : r;
}

static ssize_t sys_send(int fd, const void *buf, size_t n, int flags) {
    ssize_t r = send(fd, buf, n, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
    return r < 0 ? -errno : r;
}

static ssize_t sys_recvmsg(int fd, struct msghdr *m, int flags) {
    ssize_t r = recvmsg(fd, m, flags | MSG_DONTWAIT);
    return r < 0 ? -errno : r;
}

static ssize_t sys_sendmsg(int fd, const struct msghdr *m, int flags) {
    ssize_t r = sendmsg(fd, m, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
    return r < 0 ? -errno : r;
}

static ssize_t sys_read_file(int fd, void *buf, size_t n, int64_t offset) {
    ssize_t r = offset < 0 ? read(fd, buf, n) : pread(fd, buf, n, offset);
    return r < 0 ? -errno : r;
}

static ssize_t sys_write_file(int fd, const void *buf, size_t n, int64_t offset) {
    ssize_t r = offset < 0 ? write(fd, buf, n) : pwrite(fd, buf, n, offset);
    return r < 0 ? -errno : r;
}

const struct coil__sys coil__sys_linux = {
    .now = sys_now,
    .random = sys_random,
    .socket = sys_socket,
    .bind = sys_bind,
    .listen = sys_listen,
    .accept = sys_accept,
    .setsockopt = sys_setsockopt,
    .getsockopt = sys_getsockopt,
    .getsockname = sys_getsockname,
    .getpeername = sys_getpeername,
    .shutdown = sys_shutdown,
    .close = sys_close,
    .get_flags = sys_get_flags,
    .set_flags = sys_set_flags,
    .file_type = sys_file_type,
    .poll = sys_poll,
    .recv = sys_recv,
    .send = sys_send,
    .recvmsg = sys_recvmsg,
    .sendmsg = sys_sendmsg,
    .hand_over = coil__threads_hand_over,
    .take_back = coil__threads_take_back,
    .read_file = sys_read_file,
    .write_file = sys_write_file,
    .close_file = sys_close,
};
