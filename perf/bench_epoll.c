/* The echo server as one writes it in plain C without io_uring: level-triggered epoll, one recv and one send
 * per event. A connection whose peer does not take its answer is asked for EPOLLOUT alone until the rest has
 * left. */
#include "bench_common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 512, BUFFER = 65536 };

struct rest { /* what of an answer did not fit; bytes is NULL while there is none */
    char *bytes;
    size_t off, len;
};

struct server {
    int epoll_fd, listen_fd;
    struct rest *rest; /* by descriptor */
    long files_max;
    uint64_t echoed;
    int busy_fd; /* the connection accepted first, where it is to keep the server busy; -1: none */
    bool any_accepted;
    enum bench_busy busy;
    char buf[BUFFER];
};

static int watch(struct server *s, int op, int fd, uint32_t events) {
    struct epoll_event ev = {.events = events, .data.fd = fd};
    return epoll_ctl(s->epoll_fd, op, fd, &ev) < 0 ? -errno : 0;
}

static void drop(struct server *s, int fd) {
    free(s->rest[fd].bytes);
    s->rest[fd].bytes = NULL;
    if (fd == s->busy_fd) s->busy_fd = -1;
    close(fd);
}

static int accept_all(struct server *s) {
    for (;;) {
        int fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED)) continue;
        if (fd < 0) return errno == EAGAIN ? 0 : -errno;
        if (!s->any_accepted && s->busy) s->busy_fd = fd;
        s->any_accepted = true;
        if (fd >= s->files_max || watch(s, EPOLL_CTL_ADD, fd, EPOLLIN) < 0) close(fd);
    }
}

static void keep_rest(struct server *s, int fd, const char *bytes, size_t len) {
    struct rest *w = &s->rest[fd];
    *w = (struct rest){malloc(len), 0, len};
    if (!w->bytes || watch(s, EPOLL_CTL_MOD, fd, EPOLLOUT) < 0) {
        drop(s, fd);
        return;
    }
    memcpy(w->bytes, bytes, len);
}

static void on_readable(struct server *s, int fd) {
    ssize_t n = recv(fd, s->buf, sizeof s->buf, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        drop(s, fd);
        return;
    }
    if (fd == s->busy_fd && s->busy == BENCH_BUSY_STREAM) return;
    if (fd == s->busy_fd) bench_compute();
    ssize_t sent = send(fd, s->buf, (size_t)n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        drop(s, fd);
        return;
    }
    if (sent < 0) sent = 0;
    s->echoed += (uint64_t)sent;
    if (sent < n) keep_rest(s, fd, s->buf + sent, (size_t)(n - sent));
}

static void on_writable(struct server *s, int fd) {
    struct rest *w = &s->rest[fd];
    ssize_t sent = send(fd, w->bytes + w->off, w->len - w->off, MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (sent < 0) {
        drop(s, fd);
        return;
    }
    s->echoed += (uint64_t)sent;
    w->off += (size_t)sent;
    if (w->off < w->len) return;
    free(w->bytes);
    w->bytes = NULL;
    if (watch(s, EPOLL_CTL_MOD, fd, EPOLLIN) < 0) drop(s, fd);
}

static int serve(struct server *s, int stop_fd, uint64_t limit) {
    struct epoll_event events[EVENTS];
    while (s->echoed < limit) {
        int n = epoll_wait(s->epoll_fd, events, EVENTS, -1);
        if (n < 0 && errno != EINTR) return -errno;
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd, err = 0;
            if (fd == stop_fd) return 0;
            if (fd == s->listen_fd) {
                err = accept_all(s);
            } else if (s->rest[fd].bytes) {
                on_writable(s, fd);
            } else {
                on_readable(s, fd);
            }
            if (err < 0) return err;
        }
    }
    return 0;
}

static int open_and_serve(struct server *s, const struct bench_server *b) {
    s->files_max = bench_files_max();
    s->busy = b->opts->busy;
    s->busy_fd = -1;
    s->rest = calloc((size_t)s->files_max, sizeof *s->rest);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!s->rest || s->epoll_fd < 0) return -ENOMEM;
    s->listen_fd = bench_listen(b, SOCK_NONBLOCK);
    if (s->listen_fd < 0) return s->listen_fd;
    int err = watch(s, EPOLL_CTL_ADD, s->listen_fd, EPOLLIN);
    if (err == 0) err = watch(s, EPOLL_CTL_ADD, b->stop_fd, EPOLLIN);
    return err < 0 ? err : serve(s, b->stop_fd, b->count_bytes ? b->count_bytes : UINT64_MAX);
}

int bench_epoll(const struct bench_server *b) {
    struct server *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    int err = open_and_serve(s, b);
    free(s->rest);
    free(s);
    return err;
}
