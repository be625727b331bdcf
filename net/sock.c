#include "sock.h"

#include <netinet/tcp.h>
#include <string.h>

static bool length_suits(const coil_addr *a) {
    switch (a->u.sa.sa_family) {
    case AF_INET:
        return a->len == sizeof a->u.in;
    case AF_INET6:
        return a->len == sizeof a->u.in6;
    default:
        return a->len > offsetof(struct sockaddr_un, sun_path) && a->len <= sizeof a->u.un;
    }
}

int coil__addr_check(const coil_addr *a) {
    if (!a || a->len < sizeof a->u.sa.sa_family) return -EINVAL;
    int family = a->u.sa.sa_family;
    if (family != AF_INET && family != AF_INET6 && family != AF_UNIX) return -EAFNOSUPPORT;
    return length_suits(a) ? 0 : -EINVAL;
}

int coil__sock_set(const struct coil__sys *sys, int fd, int level, int name, int value) {
    return sys->setsockopt(fd, level, name, &value, sizeof value);
}

int coil__sock_open(const struct coil__sys *sys, const coil_addr *a) {
    int family = a->u.sa.sa_family;
    int fd = sys->socket(family, SOCK_STREAM, 0);
    if (fd < 0 || family == AF_UNIX) return fd;
    int err = coil__sock_set(sys, fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (!err) return fd;
    sys->close(fd);
    return err;
}

static int name_of(int (*call)(int, struct sockaddr *, socklen_t *), int fd, coil_addr *out) {
    memset(out, 0, sizeof *out);
    out->len = sizeof out->u;
    int err = call(fd, &out->u.sa, &out->len);
    if (err) memset(out, 0, sizeof *out);
    return err;
}

int coil__sock_local(const struct coil__sys *sys, int fd, coil_addr *out) {
    return name_of(sys->getsockname, fd, out);
}

int coil__sock_peer(const struct coil__sys *sys, int fd, coil_addr *out) {
    return name_of(sys->getpeername, fd, out);
}
