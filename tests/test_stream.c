/* The life of a stream: adopted, limited, named, detached, closed, aborted, forgotten. */
#include "stream_pairs.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>

/* ---- adopt ---- */

static void refuses(int fd, int expected, const char *what) {
    coil_stream *s = (void *)&fd;
    int fds = check_fd_count(), flags = fcntl(fd, F_GETFL);
    cr_expect_eq(coil_stream_adopt(&s, fd), expected, "%s", what);
    cr_expect_null(s, "%s", what);
    cr_expect_eq(fcntl(fd, F_GETFL), flags, "%s stays open, and as it was", what);
    cr_expect_eq(check_fd_count(), fds, "%s", what);
}

TaskTest(stream, adopt_refuses_what_is_no_byte_stream_and_leaves_it_alone) {
    coil_stats st;
    int l = socket(AF_INET, SOCK_STREAM, 0), d = socket(AF_INET, SOCK_DGRAM, 0), e = eventfd(0, 0), fd[2];
    int dir = open("/tmp", O_RDONLY), file = open("/proc/self/exe", O_RDONLY);
    cr_expect_eq(listen(l, 1), 0);
    refuses(l, -EINVAL, "a listening socket");
    refuses(d, -EINVAL, "a datagram socket");
    refuses(e, -EINVAL, "an eventfd");
    refuses(dir, -EINVAL, "a directory");
    refuses(file, -EINVAL, "a regular file");
    close(l), close(d), close(e), close(dir), close(file);
    refuses(file, -EBADF, "a closed descriptor");
    refuses(-1, -EBADF, "minus one");
    make_pair(UNIX_PAIR, fd);
    cr_expect_eq(coil_stream_adopt(NULL, fd[0]), -EINVAL);
    cr_expect_eq(send(fd[0], "x", 1, 0), 1, "it stays the caller's");
    coil_stats_get(&st);
    cr_expect_eq(st.streams_now, 0);
    close(fd[0]), close(fd[1]);
    return 0;
}

TaskTest(stream, a_descriptor_is_the_streams_until_its_close) {
    coil_stats st;
    coil_stream *s;
    int fds = check_fd_count(), fd[2];
    make_pair(TCP_PAIR, fd);
    s = adopt(fd[0]);
    cr_expect_eq(coil_stream_fd(s), fd[0]);
    coil_stats_get(&st);
    cr_expect_eq(st.streams_now, 1);
    cr_expect_eq(coil_stream_close(s), 0);
    cr_expect(fcntl(fd[0], F_GETFL) < 0 && errno == EBADF);
    coil_stats_get(&st);
    cr_expect_eq(st.streams_now, 0);
    close(fd[1]);
    cr_expect_eq(check_fd_count(), fds);
    return 0;
}

TaskTest(stream, null_is_refused_or_harmless) {
    coil_addr a;
    char c;
    cr_expect_eq(coil_stream_fd(NULL), -EINVAL);
    cr_expect_eq(coil_stream_peer(NULL, &a), -EINVAL);
    cr_expect_eq(coil_stream_local(NULL, &a), -EINVAL);
    cr_expect_eq(coil_stream_limits(NULL, NULL), -EINVAL);
    cr_expect_eq(coil_stream_detach(NULL), -EINVAL);
    cr_expect_eq(coil_stream_read(NULL, &c, 1), -EINVAL);
    cr_expect_eq(coil_stream_read_exact(NULL, &c, 1, NULL), -EINVAL);
    cr_expect_eq(coil_stream_write(NULL, &c, 1), -EINVAL);
    cr_expect_eq(coil_stream_flush(NULL), -EINVAL);
    cr_expect_eq(coil_stream_finish(NULL), -EINVAL);
    cr_expect_eq(coil_stream_written(NULL), 0);
    cr_expect_eq(coil_stream_close(NULL), 0);
    coil_stream_abort(NULL);
    return 0;
}

/* ---- names ---- */

static bool all_zero(const coil_addr *a) {
    static const coil_addr none;
    return memcmp(a, &none, sizeof none) == 0;
}

TaskTest(stream, the_names_of_both_ends_are_told) {
    coil_stream *s[2], *out, *lone = adopt(socket(AF_INET, SOCK_STREAM, 0));
    coil_addr mine, theirs, a;
    int p[2];
    stream_pair(TCP_PAIR, s);
    cr_expect_eq(coil_stream_local(s[0], &mine), 0);
    cr_expect_eq(coil_stream_peer(s[1], &theirs), 0);
    cr_expect(mine.len == theirs.len && memcmp(&mine.u.in, &theirs.u.in, sizeof mine.u.in) == 0);
    cr_expect_eq(mine.u.in.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
    memset(&a, 1, sizeof a);
    cr_expect_eq(coil_stream_peer(lone, &a), -ENOTCONN);
    cr_expect(all_zero(&a));
    cr_expect_eq(coil_stream_peer(s[0], NULL), -EINVAL);
    cr_expect_eq(coil_stream_local(s[0], NULL), -EINVAL);
    cr_expect_eq(pipe(p), 0);
    out = adopt(p[1]);
    memset(&a, 1, sizeof a);
    cr_expect_eq(coil_stream_peer(out, &a), -ENOTSOCK);
    cr_expect(all_zero(&a));
    memset(&a, 1, sizeof a);
    cr_expect_eq(coil_stream_local(out, &a), -ENOTSOCK);
    cr_expect(all_zero(&a));
    close(p[0]);
    coil_stream *all[] = {s[0], s[1], lone, out};
    for (int i = 0; i < 4; i++)
        cr_expect_eq(coil_stream_close(all[i]), 0);
    return 0;
}

/* ---- limits ---- */

TaskTest(stream, limits_out_of_range_change_nothing) {
    int peer;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    const coil_limits good = {.read = {5}, .write = {6}, .idle = {7}, .high_water = 8, .read_buffer = 9};
    cr_expect_eq(coil_stream_limits(s, &good), 0);
    for (int i = 0; i < 6; i++) {
        coil_limits bad = {.read = {50}, .high_water = 1 << 30};
        if (i == 0) bad.read.ns = -1;
        if (i == 1) bad.write.ns = -1;
        if (i == 2) bad.idle.ns = INT64_MIN;
        if (i == 3) bad.high_water = (1 << 30) + 1;
        if (i == 4) bad.read_buffer = SIZE_MAX;
        if (i == 5) bad.reserved[3] = 1;
        cr_expect_eq(coil_stream_limits(s, &bad), -EINVAL, "case %d", i);
        cr_expect_eq(memcmp(&s->limits, &good, sizeof good), 0, "case %d", i);
    }
    cr_expect_eq(coil_stream_limits(s, NULL), 0);
    cr_expect_eq(s->limits.high_water, 65536);
    cr_expect_eq(s->limits.read_buffer, 65536);
    cr_expect_eq(s->limits.write.ns, coil_sec(60).ns);
    cr_expect(s->limits.read.ns == INT64_MAX && s->limits.idle.ns == INT64_MAX, "no limit by default");
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
    return 0;
}

/* ---- detach ---- */

TaskTest(stream, detach_flushes_and_gives_the_descriptor_back) {
    char buf[32] = "";
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        int peer;
        coil_stream *s = stream_and_peer(kind, &peer);
        int fd = coil_stream_fd(s);
        cr_expect_eq(send(peer, "ab", 2, 0), 2);
        cr_expect_eq(coil_stream_read(s, buf, sizeof buf), 2);
        cr_expect_eq(coil_stream_write(s, "accepted ", 9), 0);
        cr_expect_eq(coil_stream_detach(s), fd);
        cr_expect_eq(send(peer, "later", 5, 0), 5);
        cr_expect_eq(recv(fd, buf, sizeof buf, 0), 5, "the stream's own receive is gone");
        cr_expect_eq(memcmp(buf, "later", 5), 0);
        cr_expect_eq(send(fd, "plain", 5, 0), 5);
        cr_expect_eq(recv(peer, buf, 14, MSG_WAITALL), 14);
        cr_expect_eq(memcmp(buf, "accepted plain", 14), 0);
        close(fd), close(peer);
    }
    return 0;
}

TaskTest(stream, detach_loses_no_input) {
    char buf[32];
    int peer;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    int fd = coil_stream_fd(s), fd_now;
    cr_expect_eq(send(peer, "abcdef", 6, 0), 6);
    cr_expect_eq(coil_stream_read(s, buf, 2), 2);
    if (has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) {
        cr_expect_eq(coil_stream_detach(s), -EBUSY, "four bytes are buffered");
        cr_expect_eq(coil_stream_read_exact(s, buf + 2, 4, NULL), 0, "and it is what it was");
    }
    cr_expect_eq(fd_now = coil_stream_detach(s), fd, "%d", fd_now);
    if (!has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) cr_expect_eq(recv(fd, buf + 2, 4, 0), 4);
    cr_expect_eq(memcmp(buf, "abcdef", 6), 0);
    close(fd), close(peer);
    return 0;
}

/* What comes while the receive is being taken back is with the stream or with the descriptor, never lost. */
TaskTest(stream, detach_against_arriving_bytes_loses_none) {
    uint64_t seed = seed_of_run(), rnd = seed;
    char c;
    int peer, rounds = check_rounds(1000);
    for (int i = 0; i < rounds; i++) {
        coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
        cr_expect_eq(send(peer, "1", 1, 0), 1);
        cr_expect_eq(coil_stream_read(s, &c, 1), 1);
        if (below(&rnd, 2)) cr_expect_eq(send(peer, "2", 1, 0), 1);
        if (below(&rnd, 2)) coil_yield();
        int fd = coil_stream_detach(s);
        bool sent = recv(peer, &c, 1, MSG_DONTWAIT | MSG_PEEK) < 0;
        cr_expect(sent);
        if (fd < 0) {
            cr_expect_eq(fd, -EBUSY, "seed %#llx", (unsigned long long)seed);
            cr_expect_eq(coil_stream_read(s, &c, 1), 1);
            cr_expect_eq(c, '2');
            fd = coil_stream_detach(s);
        } else if (recv(fd, &c, 1, MSG_DONTWAIT) == 1) {
            cr_expect_eq(c, '2');
        }
        cr_expect_geq(fd, 0);
        cr_expect_eq(send(peer, "3", 1, 0), 1);
        cr_expect_eq(recv(fd, &c, 1, MSG_DONTWAIT), 1, "seed %#llx", (unsigned long long)seed);
        cr_expect_eq(c, '3', "seed %#llx", (unsigned long long)seed);
        close(fd), close(peer);
    }
    return 0;
}

static int reads_one(void *arg) {
    char c;
    return (int)coil_stream_read(arg, &c, 1);
}

TaskTest(stream, detach_refuses_while_another_task_is_inside_and_goes_on_after_errors) {
    int peer, err;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    coil_task r = spawn(reads_one, s);
    coil_yield();
    cr_expect_eq(coil_stream_detach(s), -EBUSY);
    cr_expect_eq(send(peer, "x", 1, 0), 1);
    cr_expect_eq(join(r), 1);
    coil_scope over = coil_within(coil_ns(0));
    cr_expect_eq(coil_stream_detach(s), -ETIME, "refused");
    cr_expect(coil_leave(&over));
    stuff(coil_stream_fd(s));
    cr_expect_eq(coil_stream_write(s, "y", 1), 0);
    coil_scope soon = coil_within(coil_ms(5));
    cr_expect_eq(coil_stream_detach(s), -ETIME, "the byte can't leave");
    cr_expect(coil_leave(&soon));
    close(peer);
    cr_expect_eq(err = coil_stream_detach(s), -EPIPE, "%d", err);
    cr_expect_eq(coil_stream_close(s), -EPIPE);
    return 0;
}

static int detaches(void *arg) {
    return coil_stream_detach(arg);
}

TaskTest(stream, a_close_during_a_detach_wins) {
    int peer;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    stuff(coil_stream_fd(s));
    cr_expect_eq(coil_stream_write(s, "y", 1), 0);
    coil_task d = spawn(detaches, s);
    turns(3);
    coil_stream_abort(s);
    cr_expect_eq(join(d), -EBADF);
    close(peer);
    return 0;
}

/* ---- close ---- */

TaskTest(stream, close_flushes_first) {
    char buf[16];
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        int peer;
        coil_stream *s = stream_and_peer(kind, &peer);
        cr_expect_eq(coil_stream_write(s, "the last", 8), 0);
        cr_expect_eq(coil_stream_close(s), 0);
        cr_expect_eq(recv(peer, buf, 8, MSG_WAITALL), 8);
        cr_expect_eq(recv(peer, buf, 8, 0), 0);
        close(peer);
    }
    return 0;
}

static int takes_all(void *arg) {
    return (int)take_to_end(*(int *)arg, 0);
}

TaskTest(stream, close_waits_for_a_slow_peer) {
    enum { BYTES = 60000 };
    static char out[BYTES];
    int peer;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    small_send_buffer(coil_stream_fd(s));
    fill_from(out, BYTES, 0);
    for (int i = 0; i < BYTES; i += 10000)
        cr_expect_eq(coil_stream_write(s, out + i, 10000), 0);
    coil_task t = spawn(takes_all, &peer);
    cr_expect_eq(coil_stream_close(s), 0);
    cr_expect_eq(join(t), BYTES);
    close(peer);
    return 0;
}

TaskTest(stream, close_tells_why_bytes_did_not_leave) {
    int peer;
    const coil_limits brief = {.write = coil_ms(5)};
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_write(s, "x", 1), 0);
    close(peer);
    cr_expect_eq(coil_stream_close(s), -EPIPE);
    s = stream_and_peer(UNIX_PAIR, &peer);
    stuff(coil_stream_fd(s));
    cr_expect_eq(coil_stream_limits(s, &brief), 0);
    cr_expect_eq(coil_stream_write(s, "x", 1), 0);
    cr_expect_eq(coil_stream_close(s), -ETIME, "the write limit holds in close as well");
    close(peer);
    s = stream_and_peer(UNIX_PAIR, &peer);
    stuff(coil_stream_fd(s));
    cr_expect_eq(coil_stream_write(s, "x", 1), 0);
    coil_scope soon = coil_within(coil_ms(5));
    cr_expect_eq(coil_stream_close(s), -ETIME, "so do the caller's limits");
    cr_expect(coil_leave(&soon));
    close(peer);
    return 0;
}

struct closing {
    coil_stream *s;
    bool full;    /* no room for what is to be sent */
    bool cancels; /* else its time is over */
    bool sent_before;
    int result;
};

/* 60,000 bytes are accepted in the turn of the close, or in one before. */
static int writes_and_closes_too_late(void *arg) {
    static char out[60000];
    struct closing *c = arg;
    coil_scope scope = coil_within(COIL_FOREVER), over = {{0}};
    fill_from(out, sizeof out, 0);
    if (c->full) stuff(coil_stream_fd(c->s));
    for (int i = 0; i < 6; i++)
        cr_expect_eq(coil_stream_write(c->s, out + 10000 * i, 10000), 0);
    if (c->sent_before) turns(3);
    if (c->cancels) {
        coil_cancel(coil_self());
    } else {
        over = coil_within(coil_ns(0));
    }
    c->result = coil_stream_close(c->s);
    if (!c->cancels) coil_leave(&over);
    coil_leave(&scope);
    return 0;
}

static void closes_too_late(bool full, bool cancels, bool read_before, bool sent_before) {
    int peer;
    struct closing c = {
        .s = stream_and_peer(UNIX_PAIR, &peer), .full = full, .cancels = cancels, .sent_before = sent_before};
    if (read_before) {
        cr_expect_eq(send(peer, "x", 1, 0), 1);
        cr_expect_eq(reads_one(c.s), 1);
    }
    int64_t began = coil_now().ns;
    cr_expect_eq(join(spawn(writes_and_closes_too_late, &c)), 0);
    cr_expect_lt(coil_now().ns - began, coil_sec(20).ns, "it has not waited for the write limit of 60 s");
    int expected = !full ? 0 : cancels ? -ECANCELED : -ETIME;
    cr_expect_eq(c.result, expected, "full %d cancels %d read %d sent %d: %d", full, cancels, read_before,
                 sent_before, c.result);
    if (!full) cr_expect_eq(take_to_end(peer, 0), 60000, "tried once");
    close(peer);
}

TaskTest(stream, close_in_a_cancelled_or_expired_task_tries_once_and_does_not_wait) {
    for (int i = 0; i < 16; i++)
        closes_too_late(i & 1, i & 2, i & 4, i & 8);
    return 0;
}

static int writes_to_pipe_and_closes_cancelled(void *arg) {
    cr_expect_eq(coil_stream_write(arg, "kept", 4), 0);
    coil_cancel(coil_self());
    return coil_stream_close(arg);
}

/* On some kernels (6.1, not 6.12) a ring's write to a pipe is left to a thread of the kernel, which the
 * cancel may overtake. */
static bool pipes_are_written_at_once(void) {
    struct iovec byte = {"x", 1};
    int p[2];
    cr_expect_eq(pipe(p), 0);
    bool at_once = syscall(SYS_pwritev2, p[1], &byte, 1, -1L, -1L, RWF_NOWAIT) == 1;
    close(p[0]), close(p[1]);
    return at_once;
}

TaskTest(stream, close_of_a_pipe_in_a_cancelled_task_tries_once_too) {
    char buf[8];
    int p[2];
    cr_expect_eq(pipe(p), 0);
    bool at_once = coil__here->driver->kind != COIL_DRIVER_URING || pipes_are_written_at_once();
    int err = join(spawn(writes_to_pipe_and_closes_cancelled, adopt(p[1])));
    ssize_t n = read(p[0], buf, sizeof buf);
    cr_expect(err == 0 ? n == 4 : err == -ECANCELED && n == 0, "%d, %zd bytes", err, n);
    if (at_once) cr_expect_eq(err, 0);
    close(p[0]);
    return 0;
}

/* ---- close and abort, with others inside ---- */

struct inside {
    coil_stream *s;
    int result;
    bool left;
};

static char much[1 << 20];

static int reads(void *arg) {
    struct inside *i = arg;
    char buf[100];
    i->result = (int)coil_stream_read(i->s, buf, sizeof buf);
    i->left = true;
    return 0;
}

static int reads_exactly(void *arg) {
    struct inside *i = arg;
    char buf[100];
    size_t done = 7;
    i->result = coil_stream_read_exact(i->s, buf, sizeof buf, &done);
    cr_expect_eq(done, 0);
    i->left = true;
    return 0;
}

static int writes_small(void *arg) {
    struct inside *i = arg;
    while ((i->result = coil_stream_write(i->s, much, 1000)) == 0)
        continue;
    i->left = true;
    return 0;
}

static int writes_large(void *arg) {
    struct inside *i = arg;
    while ((i->result = coil_stream_write(i->s, much, sizeof much)) == 0)
        continue;
    i->left = true;
    return 0;
}

static int flushes(void *arg) {
    struct inside *i = arg;
    stuff(coil_stream_fd(i->s));
    cr_expect_eq(coil_stream_write(i->s, much, 1000), 0);
    i->result = coil_stream_flush(i->s);
    i->left = true;
    return 0;
}

static int finishes(void *arg) {
    struct inside *i = arg;
    stuff(coil_stream_fd(i->s));
    cr_expect_eq(coil_stream_write(i->s, much, 1000), 0);
    i->result = coil_stream_finish(i->s);
    i->left = true;
    return 0;
}

static void expels(coil_fn *fn, coil_fn *fn2, bool aborts, const char *what) {
    const coil_limits brief = {.write = coil_ms(5)};
    int peer;
    struct inside a = {.s = stream_and_peer(UNIX_PAIR, &peer)}, b = a;
    coil_task ta = spawn(fn, &a), tb = {0};
    if (fn2) tb = spawn(fn2, &b);
    turns(5);
    cr_expect_not(a.left, "%s", what);
    if (aborts) {
        coil_stream_abort(a.s);
    } else {
        cr_expect_eq(coil_stream_limits(a.s, &brief), 0);
        int err = coil_stream_close(a.s);
        cr_expect(err == 0 || err == -ETIME, "%s: %d", what, err);
    }
    cr_expect(a.left, "%s: close returns after it has left", what);
    cr_expect_eq(a.result, -EBADF, "%s: %d", what, a.result);
    cr_expect_eq(join(ta), 0);
    if (fn2) {
        cr_expect(b.left && b.result == -EBADF, "%s: the other: %d", what, b.result);
        cr_expect_eq(join(tb), 0);
    }
    close(peer);
}

TaskTest(stream, a_call_parked_in_a_stream_gets_ebadf_before_close_or_abort_returns) {
    for (int aborts = 0; aborts < 2; aborts++) {
        expels(reads, NULL, aborts, "read");
        expels(reads_exactly, NULL, aborts, "read_exact");
        expels(writes_small, NULL, aborts, "small write");
        expels(writes_large, NULL, aborts, "large write");
        expels(flushes, NULL, aborts, "flush");
        expels(finishes, NULL, aborts, "finish");
        expels(reads, writes_large, aborts, "read and large write");
        expels(reads_exactly, writes_small, aborts, "read_exact and small write");
    }
    return 0;
}

TaskTest(stream, a_read_parked_in_a_request_of_its_own_gets_ebadf_too) {
    int p[2];
    for (int nonblock = 0; nonblock < 2; nonblock++) {
        cr_expect_eq(pipe2(p, nonblock ? O_NONBLOCK : 0), 0);
        struct inside a = {.s = adopt(p[0])};
        coil_task t = spawn(reads, &a);
        turns(4);
        cr_expect_not(a.left);
        cr_expect_eq(coil_stream_close(a.s), 0);
        cr_expect(a.left && a.result == -EBADF, "%d", a.result);
        cr_expect_eq(join(t), 0);
        close(p[1]);
    }
    return 0;
}

/* The request has ended and its task has not run yet, or is just about to end, when the close comes. */
TaskTest(stream, a_close_that_meets_the_end_of_a_request_finds_its_way) {
    for (int i = 0; i < 2 * 40; i++) {
        int p[2], peer;
        cr_expect_eq(pipe2(p, i % 2 ? O_NONBLOCK : 0), 0);
        struct inside r = {.s = adopt(p[0])}, w = {.s = stream_and_peer(UNIX_PAIR, &peer)};
        coil_task tr = spawn(reads, &r), tw = spawn(writes_large, &w);
        turns(3);
        cr_expect_eq(write(p[1], "x", 1), 1);
        while (recv(peer, much, sizeof much, MSG_DONTWAIT) > 0)
            continue;
        turns(i / 2 % 5);
        for (int k = 0; k < i / 10; k++)
            coil_yield();
        cr_expect_eq(coil_stream_close(r.s), 0);
        coil_stream_abort(w.s);
        cr_expect(r.left && (r.result == 1 || r.result == -EBADF), "%d", r.result);
        cr_expect(w.left && w.result == -EBADF, "%d", w.result);
        cr_expect(join(tr) == 0 && join(tw) == 0);
        close(p[1]), close(peer);
    }
    return 0;
}

static int closes(void *arg) {
    struct inside *i = arg;
    i->result = coil_stream_close(i->s);
    i->left = true;
    return 0;
}

TaskTest(stream, calls_during_a_close_get_ebadf) {
    coil_addr a;
    int peer;
    char c;
    struct inside i = {.s = stream_and_peer(UNIX_PAIR, &peer)};
    stuff(coil_stream_fd(i.s));
    cr_expect_eq(coil_stream_write(i.s, "x", 1), 0);
    coil_task t = spawn(closes, &i);
    turns(3);
    cr_expect_not(i.left, "it waits for room");
    cr_expect_eq(coil_stream_close(i.s), -EBADF);
    coil_stream_abort(i.s);
    cr_expect_eq(coil_stream_read(i.s, &c, 1), -EBADF);
    cr_expect_eq(coil_stream_read_exact(i.s, &c, 1, NULL), -EBADF);
    cr_expect_eq(coil_stream_write(i.s, &c, 1), -EBADF);
    cr_expect_eq(coil_stream_flush(i.s), -EBADF);
    cr_expect_eq(coil_stream_finish(i.s), -EBADF);
    cr_expect_eq(coil_stream_detach(i.s), -EBADF);
    cr_expect_eq(coil_stream_limits(i.s, NULL), -EBADF);
    cr_expect_eq(coil_stream_peer(i.s, &a), -EBADF);
    cr_expect_eq(coil_stream_local(i.s, &a), -EBADF);
    cr_expect_eq(coil_stream_fd(i.s), -EBADF);
    while (recv(peer, much, sizeof much, MSG_DONTWAIT) > 0)
        continue;
    cr_expect_eq(join(t), 0);
    cr_expect_eq(i.result, 0);
    close(peer);
    return 0;
}

/* ---- abort ---- */

TaskTest(stream, abort_resets_a_tcp_connection_and_drops_what_waits) {
    char c;
    int peer;
    coil_stream *s = stream_and_peer(TCP_PAIR, &peer);
    cr_expect_eq(coil_stream_write(s, "dropped", 7), 0);
    coil_stream_abort(s);
    cr_expect(recv(peer, &c, 1, 0) < 0 && errno == ECONNRESET, "%s", strerror(errno));
    close(peer);
    s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_write(s, "dropped", 7), 0);
    coil_stream_abort(s);
    ssize_t n = recv(peer, &c, 1, 0);
    cr_expect_eq(n, 0, "%zd", n);
    close(peer);
    return 0;
}

/* A receive is armed, so that the abort takes a turn, in which the stream is still on the list of those to
 * flush. */
TaskTest(stream, abort_never_sends_and_never_waits_for_room) {
    for (int full = 0; full < 2; full++) {
        int peer;
        coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
        cr_expect_eq(send(peer, "x", 1, 0), 1);
        cr_expect_eq(reads_one(s), 1);
        if (full) stuff(coil_stream_fd(s));
        cr_expect_eq(coil_stream_write(s, "y", 1), 0);
        int64_t began = coil_now().ns;
        coil_stream_abort(s);
        cr_expect_lt(coil_now().ns - began, coil_sec(20).ns);
        if (!full) cr_expect_eq(recv(peer, much, 1, 0), 0, "nothing came");
        close(peer);
    }
    return 0;
}

/* ---- left open ---- */

enum { LEFT_OPEN = 7 };

/* Streams in every state: new, read from, dirty, with output that can't leave, with both, a pipe, at its end.
 */
static int leaves_streams_open(void *arg) {
    char c;
    int peer[LEFT_OPEN], p[2];
    coil_stream *s[LEFT_OPEN];
    (void)arg;
    for (int i = 0; i < LEFT_OPEN - 1; i++) {
        s[i] = stream_and_peer(UNIX_PAIR, &peer[i]);
        bool reads_first = i == 1 || i == 4;
        if (reads_first) cr_expect_eq(send(peer[i], "ab", 2, 0), 2);
        if (reads_first) cr_expect_eq(coil_stream_read(s[i], &c, 1), 1);
        if (i == 3 || i == 4) stuff(coil_stream_fd(s[i]));
    }
    close(peer[5]);
    cr_expect_eq(coil_stream_read(s[5], &c, 1), 0);
    cr_expect_eq(pipe(p), 0);
    s[6] = adopt(p[1]);
    for (int i = 2; i < LEFT_OPEN; i++)
        cr_expect_eq(coil_stream_write(s[i], "dirty", 5), 0);
    return 0;
}

static int runs_and_leaves_open(void *arg) {
    const coil_run_opts o = {.quiet = arg != NULL};
    return coil_run_with(&o, leaves_streams_open, NULL);
}

static int leaves_in_the_kernel(void *arg) {
    leaves_streams_open(arg);
    turns(5);
    return 0;
}

static int runs_and_leaves_in_the_kernel(void *arg) {
    int fds = check_fd_count();
    (void)arg;
    int err = coil_run(leaves_in_the_kernel, NULL);
    /* Peers: five ends of sockets, and one of the pipe. */
    return err ? err : check_fd_count() - fds != LEFT_OPEN - 1;
}

static int lines_of(const char *text, const char *line) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, line)); p += strlen(line))
        n++;
    return n;
}

Test(stream, streams_left_open_are_taken_back_with_a_line_each) {
    static const char line[] = "coil: a stream was left open at the end of coil_run; closing it\n";
    char err[4096];
    int status = -1;
    cr_assert(check_in_child(runs_and_leaves_open, NULL, &status, err, sizeof err));
    cr_expect_eq(status, 0, "%s", err);
    cr_expect_eq(lines_of(err, line), LEFT_OPEN, "%s", err);
    cr_assert(check_in_child(runs_and_leaves_in_the_kernel, NULL, &status, err, sizeof err));
    cr_expect_eq(status, 0, "%s", err);
    cr_expect_eq(lines_of(err, line), LEFT_OPEN, "%s", err);
    cr_assert(check_in_child(runs_and_leaves_open, &status, &status, err, sizeof err));
    cr_expect_eq(status, 0, "%s", err);
    cr_expect_str_eq(err, "", "quiet");
}

/* ---- what many streams leave behind ---- */

static bool has_iou_workers(void) {
    char path[300], name[32] = "";
    DIR *d = opendir("/proc/self/task");
    bool any = false;
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", e->d_name);
        FILE *f = fopen(path, "re");
        if (!f) continue;
        if (fgets(name, sizeof name, f) && strncmp(name, "iou-wrk", 7) == 0) any = true;
        fclose(f);
    }
    if (d) closedir(d);
    return any;
}

static int echoes_once(void *arg) {
    char buf[2000];
    ssize_t n = coil_stream_read(arg, buf, sizeof buf);
    cr_expect_eq(n, 100, "%zd", n);
    cr_expect_eq(coil_stream_write(arg, buf, (size_t)n), 0);
    return coil_stream_close(arg);
}

/* So many at once as descriptors allow, until all have been used. */
static void use_streams(int total) {
    enum { AT_ONCE = 400 };
    static int peer[AT_ONCE];
    static coil_task t[AT_ONCE];
    char buf[200];
    for (int done = 0; done < total; done += AT_ONCE) {
        for (int i = 0; i < AT_ONCE; i++)
            t[i] = spawn(echoes_once, stream_and_peer(UNIX_PAIR, &peer[i]));
        coil_yield();
        for (int i = 0; i < AT_ONCE; i++)
            cr_expect_eq(send(peer[i], much, 100, 0), 100);
        if (done == 0) cr_expect_not(has_iou_workers(), "receives and sends need no thread");
        for (int i = 0; i < AT_ONCE; i++)
            cr_expect_eq(join(t[i]), 0);
        for (int i = 0; i < AT_ONCE; i++)
            cr_expect_eq(recv(peer[i], buf, sizeof buf, 0), 100);
        for (int i = 0; i < AT_ONCE; i++)
            close(peer[i]);
    }
}

TaskTest(stream, ten_thousand_streams_leave_nothing_behind) {
    coil_stats st;
    int fds = check_fd_count();
    use_streams(10000);
    int maps = check_map_count();
    long rss_kb = check_rss_kb();
    cr_expect_eq(check_fd_count(), fds);
    use_streams(10000);
    cr_expect_eq(check_fd_count(), fds);
    if (!CHECK_SANITIZED) {
        cr_expect_leq(check_map_count(), maps, "mappings: %d, then %d", maps, check_map_count());
        cr_expect_leq(check_rss_kb(), rss_kb + 1024, "KiB: %ld, then %ld", rss_kb, check_rss_kb());
    }
    coil_stats_get(&st);
    cr_expect_eq(st.streams_now, 0);
    cr_expect_eq(coil__here->driver->pool.out, 0, "every buffer is with the kernel");
    return 0;
}
