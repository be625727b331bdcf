/* coil's echo server, as a user writes it: a task per connection, over the public API alone. */
#include "bench_common.h"

#include <coil/coil.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct server {
    const struct bench_server *bench;
    coil_listener *listener;
    coil_group group;
    uint64_t echoed;
    bool any_accepted;
};

/* Whatever has come, or with --framed exactly one message. 0: end of stream. */
static ssize_t receive(const struct server *s, coil_stream *stream, char *buf, size_t n) {
    if (!s->bench->opts->framed) return coil_stream_read(stream, buf, n);
    int err = coil_stream_read_exact(stream, buf, n, NULL);
    if (err == -ENODATA) return 0;
    return err < 0 ? err : (ssize_t)n;
}

static int count(struct server *s, size_t n) {
    s->echoed += n;
    if (s->bench->count_bytes == 0 || s->echoed < s->bench->count_bytes) return 0;
    return write(s->bench->stop_wr, "", 1) == 1 ? 0 : -errno;
}

static int discard(coil_stream *stream) {
    char buf[4096];
    ssize_t got;
    do {
        got = coil_stream_read(stream, buf, sizeof buf);
    } while (got > 0);
    return (int)got;
}

static int echo(coil_stream *stream, void *arg) {
    struct server *s = arg;
    enum bench_busy busy = s->any_accepted ? BENCH_BUSY_NONE : s->bench->opts->busy;
    s->any_accepted = true;
    if (busy == BENCH_BUSY_STREAM) return discard(stream);
    const struct bench_opts *o = s->bench->opts;
    char small[4096], *buf = small;
    size_t under_way = o->framed ? o->size : o->size * o->depth;
    size_t n = under_way < 65536 ? under_way : 65536;
    if (o->framed) n = o->size;
    if (n > sizeof small && !(buf = malloc(n))) return -ENOMEM;
    ssize_t got;
    int err = 0;
    while (err == 0 && (got = receive(s, stream, buf, n)) > 0) {
        if (busy == BENCH_BUSY_COMPUTE) bench_compute();
        err = coil_stream_write(stream, buf, (size_t)got);
        if (err == 0) err = count(s, (size_t)got);
    }
    if (buf != small) free(buf);
    return err;
}

static int serve(void *arg) {
    struct server *s = arg;
    return coil_serve(s->listener, echo, s, &(coil_serve_opts){.grace = coil_sec(-1)});
}

static int stop(void *arg) {
    struct server *s = arg;
    int err = coil_poll(s->bench->stop_fd, POLLIN);
    coil_group_cancel(&s->group);
    return err < 0 ? err : 0;
}

static int serve_until_stop(struct server *s) {
    coil_addr addr;
    int err = coil_listener_addr(s->listener, &addr);
    if (err < 0) return err;
    bench_ready(s->bench, ntohs(addr.u.in.sin_port));
    err = coil_group_spawn(&s->group, serve, s);
    if (err == 0) err = coil_group_spawn(&s->group, stop, s);
    if (err < 0) coil_group_cancel(&s->group);
    int result = coil_group_wait(&s->group);
    return err < 0 ? err : result;
}

static int server_main(void *arg) {
    struct server *s = arg;
    char where[32];
    snprintf(where, sizeof where, "127.0.0.1:%u", s->bench->opts->port);
    int err = coil_listen(&s->listener, where, NULL);
    if (err < 0) return err;
    err = serve_until_stop(s);
    coil_listener_close(s->listener);
    return err;
}

static coil_dur spin_max(const struct bench_opts *o) {
    if (o->spin == BENCH_SPIN_NONE) return coil_ns(-1);
    return coil_ns(o->spin == BENCH_SPIN_ALL ? o->spin_max_ns : 0);
}

static int run(const struct bench_server *b, enum coil_driver_kind driver) {
    struct server s = {.bench = b};
    coil_run_opts o = {.driver = driver, .caps = b->caps, .spin_max = spin_max(b->opts)};
    int err = coil_run_with(&o, server_main, &s);
    if (err < -4095) { /* coil could not start: no errno has a name for that */
        fprintf(stderr, "echo_bench: coil: %s\n", coil_strerror(err));
        return -ENOSYS;
    }
    return err;
}

int bench_coil(const struct bench_server *b) {
    return run(b, COIL_DRIVER_ANY);
}

/* Rather fails than measures another driver than the row's name says. */
int bench_coil_uring(const struct bench_server *b) {
    return run(b, COIL_DRIVER_URING);
}

int bench_coil_epoll(const struct bench_server *b) {
    return run(b, COIL_DRIVER_EPOLL);
}
