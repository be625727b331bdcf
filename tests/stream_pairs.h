/* What the tests of streams share: connected pairs made with plain calls, bytes that know their place, and
 * seeded random numbers. */
#ifndef STREAM_PAIRS_H
#define STREAM_PAIRS_H

#include "tasks.h"

#include "caps.h"
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum pair_kind { UNIX_PAIR, TCP_PAIR, PAIR_KINDS };

static inline bool tcp_pair(int fd[2]) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    bool ok = l >= 0 && bind(l, (struct sockaddr *)&a, n) == 0 && listen(l, 1) == 0 &&
              getsockname(l, (struct sockaddr *)&a, &n) == 0;
    fd[0] = socket(AF_INET, SOCK_STREAM, 0);
    ok = ok && connect(fd[0], (struct sockaddr *)&a, n) == 0;
    fd[1] = ok ? accept(l, NULL, NULL) : -1;
    close(l);
    for (int i = 0; i < 2; i++)
        setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return ok && fd[1] >= 0;
}

static inline void make_pair(enum pair_kind kind, int fd[2]) {
    bool ok = kind == TCP_PAIR ? tcp_pair(fd) : socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0;
    cr_expect(ok, "a pair of kind %d: %s", (int)kind, strerror(errno));
    if (!ok) abort();
}

static inline coil_stream *adopt(int fd) {
    coil_stream *s = NULL;
    int err = coil_stream_adopt(&s, fd);
    cr_expect_eq(err, 0, "adopt: %s", coil_strerror(err));
    if (err) abort();
    return s;
}

/* A stream on one end of a pair; *peer is the other. */
static inline coil_stream *stream_and_peer(enum pair_kind kind, int *peer) {
    int fd[2];
    make_pair(kind, fd);
    *peer = fd[1];
    return adopt(fd[0]);
}

static inline void stream_pair(enum pair_kind kind, coil_stream *s[2]) {
    int fd[2];
    make_pair(kind, fd);
    for (int i = 0; i < 2; i++)
        s[i] = adopt(fd[i]);
}

/* Receive buffers are left alone: on loopback a segment has 64 KiB, and TCP sends none into a smaller window
 * but for the probes of its persist timer, five a second. */
static inline void small_send_buffer(int fd) {
    int n = 4096;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &n, sizeof n);
}

static inline bool has_cap(uint64_t bit) {
    return coil__here->driver->caps & bit;
}

/* Many resumes fit into one turn; a trip through the kernel takes at least one whole turn. */
static inline void turns(int n) {
    for (int i = 0; i < n; i++)
        coil_nop();
}

/* ---- bytes that know their place ---- */

static inline unsigned char byte_at(uint64_t pos) {
    return (unsigned char)(pos * 0x9e3779b97f4a7c15ULL >> 56 ^ pos);
}

static inline void fill_from(void *buf, size_t n, uint64_t pos) {
    for (size_t i = 0; i < n; i++)
        ((unsigned char *)buf)[i] = byte_at(pos + i);
}

/* Index of the first byte that is not in its place; n: none. */
static inline size_t wrong_byte(const void *buf, size_t n, uint64_t pos) {
    for (size_t i = 0; i < n; i++) {
        if (((const unsigned char *)buf)[i] != byte_at(pos + i)) return i;
    }
    return n;
}

/* Reads what is there with plain calls, never waiting; checks it; how much it was. */
static inline uint64_t take_plain(int fd, uint64_t pos) {
    static char buf[65536];
    uint64_t begin = pos;
    for (ssize_t n; (n = recv(fd, buf, sizeof buf, MSG_DONTWAIT)) > 0; pos += (uint64_t)n) {
        cr_expect_eq(wrong_byte(buf, (size_t)n, pos), (size_t)n, "a wrong byte after %llu",
                     (unsigned long long)pos);
    }
    return pos - begin;
}

/* The same until the end, while other tasks run. */
static inline uint64_t take_to_end(int fd, uint64_t pos) {
    char c;
    uint64_t begin = pos;
    for (;;) {
        pos += take_plain(fd, pos);
        ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return pos - begin;
        if (n < 0) coil_yield();
    }
}

/* Whether bytes are on their way to the peer's buffer, or their acknowledgement is on its way back: TCP makes
 * room again as they arrive. */
static inline bool on_their_way(int fd) {
    int queued = 0, unsent = 0;
    return ioctl(fd, SIOCOUTQ, &queued) == 0 && ioctl(fd, SIOCOUTQNSD, &unsent) == 0 && queued != unsent;
}

/* Fills the socket's buffers up with zeros from outside the stream. */
static inline void stuff(int fd) {
    static const char zeros[4096];
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int domain = AF_UNIX;
    bool moved = true;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &(socklen_t){sizeof domain});
    while (moved) {
        moved = domain != AF_UNIX && (poll(&p, 1, 20) == 1 || on_their_way(fd));
        while (send(fd, zeros, sizeof zeros, MSG_DONTWAIT) > 0)
            moved = true;
        while (send(fd, zeros, 1, MSG_DONTWAIT) > 0)
            moved = true;
    }
}

/* ---- random numbers ---- */

static inline uint64_t seed_of_run(void) {
    const char *text = getenv("COIL_TEST_SEED");
    if (text) return strtoull(text, NULL, 0);
    return coil__sys_linux.random() | 1;
}

static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline uint64_t below(uint64_t *state, uint64_t n) {
    return next_random(state) % n;
}

#endif
