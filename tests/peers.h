/* What tests of sockets share: peers on plain blocking sockets, seeds, and waiting without a fixed sleep. */
#ifndef PEERS_H
#define PEERS_H

#include "coil/coil.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Waits, in a task, until the condition holds; gives up after 20 s, and says whether it holds. */
#define PEERS_AWAIT(cond)                                                                   \
    ({                                                                                      \
        coil_time peers_end_ = coil_after(coil_sec(20));                                    \
        while (!(cond) && coil_now().ns < peers_end_.ns && coil_sleep(coil_us(200)) == 0) { \
        }                                                                                   \
        (cond);                                                                             \
    })

/* The seed of a race: COIL_TEST_SEED, or one of this moment. Never 0. */
static inline uint64_t peers_seed(void) {
    const char *text = getenv("COIL_TEST_SEED");
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)t.tv_nsec * 2654435761u ^ (uint64_t)getpid();
    return seed ? seed : 1;
}

/* The next number below n (xorshift). */
static inline unsigned peers_below(uint64_t *state, unsigned n) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (unsigned)(*state >> 33) % n;
}

/* A socket that is connected to the address, or negative errno. */
static inline int peers_connect(const coil_addr *a) {
    int fd = socket(a->u.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    if (connect(fd, &a->u.sa, a->len) == 0) return fd;
    int err = -errno;
    close(fd);
    return err;
}

/* Waits until a connection is in the backlog of a TCP listener, which may come later than its client hears of
 * it. Of connections that come before the first is there, several may get into a backlog of one. */
static inline void peers_await_backlog(int listener) {
    struct tcp_info info = {0};
    for (socklen_t len = sizeof info; info.tcpi_unacked == 0; len = sizeof info) {
        if (getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &len) < 0) {
            perror("peers_await_backlog");
            abort();
        }
        sched_yield();
    }
}

/* Closes it with a reset, so that no port waits for stragglers. */
static inline void peers_reset(int fd) {
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
}

/* The next byte that fd receives; -1: none comes. Loopback may take a moment to deliver. */
static inline int peers_byte(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    unsigned char c;
    return poll(&p, 1, 20000) == 1 && recv(fd, &c, 1, MSG_DONTWAIT) == 1 ? c : -1;
}

/* Whether the other side ends the connection, by FIN or reset, within 20 s. */
static inline bool peers_sees_end(int fd) {
    char c;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, 20000) != 1) return false;
    ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

/* A plain listening socket, and its address in *a; port 0 or a name to bind to comes in with it. */
static inline int peers_listen(coil_addr *a, int backlog) {
    int fd = socket(a->u.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    if (fd >= 0 && a->u.sa.sa_family != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, &a->u.sa, a->len) < 0 || listen(fd, backlog) < 0) {
        perror("peers_listen");
        abort();
    }
    a->len = sizeof a->u;
    getsockname(fd, &a->u.sa, &a->len);
    return fd;
}

static inline bool peers_have_ipv6(void) {
    coil_addr a;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool have = fd >= 0 && coil_addr_parse(&a, "[::1]:0") == 0 && bind(fd, &a.u.sa, a.len) == 0;
    if (fd >= 0) close(fd);
    return have;
}

/* An abstract address that no other process uses. */
static inline const char *peers_abstract(char text[64], const char *what) {
    snprintf(text, 64, "unix:@coil-test-%s-%d", what, (int)getpid());
    return text;
}

/* Lets this process have n descriptors; false where the hard limit forbids it. */
static inline bool peers_want_descriptors(rlim_t n) {
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    if (r.rlim_cur >= n) return true;
    r.rlim_cur = n;
    if (r.rlim_max < n) r.rlim_max = n;
    return setrlimit(RLIMIT_NOFILE, &r) == 0;
}

enum { PEERS_FEW = 256 };

/* Descriptors that are taken so that none is free. */
struct peers_hog {
    int fds[PEERS_FEW];
    int count;
};

/* So few descriptors that a hog can take them all. Before a run: a request keeps the limit of the moment when
 * it began. */
static inline void peers_few_descriptors(void) {
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = PEERS_FEW;
    setrlimit(RLIMIT_NOFILE, &r);
}

static inline void peers_take_all(struct peers_hog *h) {
    h->count = 0;
    while (h->count < PEERS_FEW && (h->fds[h->count] = dup(0)) >= 0)
        h->count++;
}

static inline void peers_give_back(struct peers_hog *h) {
    while (h->count)
        close(h->fds[--h->count]);
}

#endif
