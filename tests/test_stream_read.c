/* Reading from a stream, in each of its ways. */
#include "stream_pairs.h"

#include <pthread.h>

static char bytes[1 << 20];

static void reset_by(int peer) {
    struct linger at_once = {.l_onoff = 1};
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(peer);
}

/* ---- what comes ---- */

TaskTest(stream_read, a_read_gives_what_is_there_and_then_the_end_for_ever) {
    char buf[100];
    size_t done;
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        int peer;
        coil_stream *s = stream_and_peer(kind, &peer);
        cr_expect_eq(send(peer, "hello", 5, 0), 5);
        cr_expect_eq(coil_stream_read(s, buf, sizeof buf), 5);
        cr_expect_eq(memcmp(buf, "hello", 5), 0);
        cr_expect_eq(send(peer, "world", 5, 0), 5);
        cr_expect_eq(coil_stream_read(s, buf, 2), 2, "no more than asked for");
        cr_expect_eq(coil_stream_read_exact(s, buf + 2, 3, &done), 0);
        cr_expect_eq(done, 3);
        cr_expect_eq(memcmp(buf, "world", 5), 0);
        cr_expect_eq(send(peer, "bye", 3, 0), 3);
        shutdown(peer, SHUT_WR);
        cr_expect_eq(coil_stream_read_exact(s, buf, 4, &done), -ENODATA);
        cr_expect_eq(done, 3);
        cr_expect_eq(memcmp(buf, "bye", 3), 0);
        for (int i = 0; i < 3; i++) {
            cr_expect_eq(coil_stream_read(s, buf, 1), 0);
            cr_expect_eq(coil_stream_read_exact(s, buf, 1, &done), -ENODATA);
            cr_expect_eq(done, 0);
        }
        cr_expect_eq(coil_stream_write(s, "our side goes on", 16), 0);
        cr_expect_eq(coil_stream_flush(s), 0);
        cr_expect_eq(recv(peer, buf, 16, MSG_WAITALL), 16);
        cr_expect_eq(coil_stream_close(s), 0);
        close(peer);
    }
    return 0;
}

TaskTest(stream_read, a_pipe_is_read_in_the_same_way) {
    char buf[100];
    int p[2];
    for (int nonblock = 0; nonblock < 2; nonblock++) {
        cr_expect_eq(pipe2(p, nonblock ? O_NONBLOCK : 0), 0);
        coil_stream *in = adopt(p[0]), *out = adopt(p[1]);
        cr_expect_eq(coil_stream_write(out, "through", 7), 0);
        cr_expect_eq(coil_stream_read_exact(in, buf, 7, NULL), 0);
        cr_expect_eq(memcmp(buf, "through", 7), 0);
        cr_expect_eq(coil_stream_read(out, buf, 1), -EBADF, "the other direction");
        cr_expect_eq(coil_stream_close(out), 0);
        cr_expect_eq(coil_stream_read(in, buf, 1), 0);
        cr_expect_eq(coil_stream_close(in), 0);
    }
    return 0;
}

TaskTest(stream_read, a_nonblocking_socket_makes_no_difference) {
    char buf[100];
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        coil_stream *s[2];
        stream_pair(kind, s);
        for (int i = 0; i < 2; i++)
            fcntl(coil_stream_fd(s[i]), F_SETFL, O_NONBLOCK);
        cr_expect_eq(coil_stream_write(s[0], "hello", 5), 0);
        cr_expect_eq(coil_stream_read(s[1], buf, sizeof buf), 5);
        for (int i = 0; i < 2; i++)
            cr_expect_eq(coil_stream_close(s[i]), 0);
    }
    return 0;
}

static int sends_then_ends(void *arg) {
    const int peer = *(int *)arg;
    static char out[10000];
    fill_from(out, sizeof out, 0);
    for (size_t i = 0; i < sizeof out; i += 1000) {
        cr_expect_eq(send(peer, out + i, 1000, 0), 1000);
        if (i % 3000 == 0) coil_yield();
    }
    close(peer);
    return 0;
}

/* After a short read nothing may be left; with the end in sight that is not so. */
TaskTest(stream_read, everything_comes_before_the_end_whatever_the_size_of_the_reads) {
    static const size_t sizes[] = {1, 7, 999, 1000, 1001, 4096, 9999, 10000, 20000};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int peer;
        ssize_t n;
        uint64_t pos = 0;
        coil_stream *s = stream_and_peer(k % 2 ? UNIX_PAIR : TCP_PAIR, &peer);
        coil_task t = spawn(sends_then_ends, &peer);
        while ((n = coil_stream_read(s, bytes, sizes[k])) > 0) {
            cr_expect_eq(wrong_byte(bytes, (size_t)n, pos), (size_t)n);
            pos += (uint64_t)n;
        }
        cr_expect_eq(n, 0);
        cr_expect_eq(pos, 10000, "reads of %zu", sizes[k]);
        cr_expect_eq(join(t), 0);
        cr_expect_eq(coil_stream_close(s), 0);
    }
    return 0;
}

static int writes_byte_by_byte(void *arg) {
    for (int i = 0; i < 5000; i++) {
        unsigned char c = byte_at((uint64_t)i);
        cr_expect_eq(coil_stream_write(arg, &c, 1), 0);
        if (i % 7 == 0) coil_stream_flush(arg);
    }
    return coil_stream_finish(arg);
}

TaskTest(stream_read, one_byte_at_a_time_both_ways) {
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        coil_stream *s[2];
        unsigned char c;
        stream_pair(kind, s);
        coil_task t[] = {spawn(writes_byte_by_byte, s[0]), spawn(writes_byte_by_byte, s[1])};
        for (int i = 0; i < 5000; i++) {
            for (int k = 0; k < 2; k++) {
                cr_expect_eq(coil_stream_read(s[k], &c, 1), 1);
                cr_expect_eq(c, byte_at((uint64_t)i));
            }
        }
        for (int k = 0; k < 2; k++) {
            cr_expect_eq(join(t[k]), 0);
            cr_expect_eq(coil_stream_read(s[k], &c, 1), 0);
        }
        for (int k = 0; k < 2; k++)
            cr_expect_eq(coil_stream_close(s[k]), 0);
    }
    return 0;
}

/* ---- refused ---- */

static int reads_one(void *arg) {
    char c;
    return (int)coil_stream_read(arg, &c, 1);
}

TaskTest(stream_read, bad_arguments_and_a_second_reader_are_refused) {
    char c;
    int peer;
    size_t done = 5;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_read(s, &c, 0), -EINVAL);
    cr_expect_eq(coil_stream_read(s, NULL, 1), -EINVAL);
    cr_expect_eq(coil_stream_read_exact(s, &c, 0, &done), -EINVAL);
    cr_expect_eq(done, 0);
    done = 5;
    cr_expect_eq(coil_stream_read_exact(s, NULL, 1, &done), -EINVAL);
    cr_expect_eq(done, 0);
    coil_task first = spawn(reads_one, s);
    coil_yield();
    done = 5;
    cr_expect_eq(coil_stream_read(s, &c, 1), -EBUSY);
    cr_expect_eq(coil_stream_read_exact(s, &c, 1, &done), -EBUSY);
    cr_expect_eq(done, 0);
    cr_expect_eq(coil_stream_write(s, "ok", 2), 0, "a writer is fine");
    cr_expect_eq(coil_stream_flush(s), 0);
    cr_expect_eq(send(peer, "a", 1, 0), 1);
    cr_expect_eq(join(first), 1);
    cr_expect_eq(send(peer, "b", 1, 0), 1);
    cr_expect_eq(coil_stream_read(s, &c, 1), 1);
    cr_expect_eq(c, 'b');
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
    return 0;
}

static int is_refused_when_cancelled(void *arg) {
    char c;
    size_t done = 5;
    coil_cancel(coil_self());
    cr_expect_eq(coil_stream_read(arg, &c, 1), -ECANCELED);
    cr_expect_eq(coil_stream_read_exact(arg, &c, 1, &done), -ECANCELED);
    cr_expect_eq(done, 0);
    return 0;
}

TaskTest(stream_read, a_refused_read_takes_nothing) {
    char buf[4];
    int peer;
    size_t done = 5;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(send(peer, "abcd", 4, 0), 4);
    cr_expect_eq(coil_stream_read(s, buf, 1), 1);
    cr_expect_eq(join(spawn(is_refused_when_cancelled, s)), 0);
    coil_scope over = coil_within(coil_ns(0));
    cr_expect_eq(coil_stream_read(s, buf, 1), -ETIME);
    cr_expect_eq(coil_stream_read_exact(s, buf, 1, &done), -ETIME);
    cr_expect_eq(done, 0);
    cr_expect(coil_leave(&over));
    cr_expect_eq(coil_stream_read_exact(s, buf, 3, NULL), 0);
    cr_expect_eq(memcmp(buf, "bcd", 3), 0);
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
    return 0;
}

/* ---- cut short ---- */

struct exact {
    coil_stream *s;
    size_t n, done;
};

static int reads_exactly(void *arg) {
    struct exact *e = arg;
    return coil_stream_read_exact(e->s, bytes, e->n, &e->done);
}

TaskTest(stream_read, an_interrupted_read_exact_tells_how_far_it_came) {
    char c;
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        int peer;
        struct exact e = {.s = stream_and_peer(kind, &peer), .n = 10};
        cr_expect_eq(send(peer, "abc", 3, 0), 3);
        while (kind == TCP_PAIR && on_their_way(peer))
            coil_nop();
        coil_task t = spawn(reads_exactly, &e);
        turns(5);
        coil_cancel(t);
        cr_expect_eq(join(t), -ECANCELED);
        cr_expect_eq(e.done, 3);
        cr_expect_eq(send(peer, "d", 1, 0), 1);
        coil_scope soon = coil_within(coil_ms(5));
        cr_expect_eq(reads_exactly(&e), -ETIME);
        cr_expect(coil_leave(&soon));
        cr_expect_eq(e.done, 1);
        cr_expect_eq(send(peer, "e", 1, 0), 1);
        cr_expect_eq(coil_stream_read(e.s, &c, 1), 1);
        cr_expect_eq(c, 'e');
        cr_expect_eq(coil_stream_close(e.s), 0);
        close(peer);
    }
    return 0;
}

static struct coil__sys plenty;

static ssize_t always_gives(int fd, void *buf, size_t n, int flags) {
    (void)fd, (void)flags;
    memset(buf, 'p', MIN(n, 64));
    return (ssize_t)MIN(n, 64);
}

/* A stream whose receives into the caller's memory always bring something, so that it never has to park. */
static coil_stream *endless_stream(int *peer) {
    coil_stream *s = stream_and_peer(UNIX_PAIR, peer);
    s->way = COIL__WAY_DIRECT;
    plenty = coil__sys_linux;
    plenty.recv = always_gives;
    coil__here->driver->sys = &plenty;
    return s;
}

TaskTest(stream_read, a_cancel_or_limit_ends_a_read_exact_that_never_has_to_park) {
    int peer;
    const coil_limits brief = {.read = coil_ns(1000)};
    struct exact e = {.s = endless_stream(&peer), .n = sizeof bytes};
    coil_task t = spawn(reads_exactly, &e);
    coil_yield();
    coil_cancel(t);
    cr_expect_eq(join(t), -ECANCELED);
    cr_expect(e.done > 0 && e.done < e.n, "%zu", e.done);
    coil_scope soon = coil_within(coil_ns(1000));
    cr_expect_eq(reads_exactly(&e), -ETIME);
    cr_expect(coil_leave(&soon));
    cr_expect(e.done > 0 && e.done < e.n, "%zu", e.done);
    cr_expect_eq(coil_stream_limits(e.s, &brief), 0);
    cr_expect_eq(reads_exactly(&e), -ETIME);
    cr_expect(e.done > 0 && e.done < e.n, "%zu", e.done);
    coil__here->driver->sys = &coil__sys_linux;
    coil_stream_abort(e.s);
    close(peer);
    return 0;
}

TaskTest(stream_read, a_reset_is_told_after_what_came_before_it) {
    char buf[16];
    int peer, err;
    coil_stream *s = stream_and_peer(TCP_PAIR, &peer);
    cr_expect_eq(send(peer, "abc", 3, 0), 3);
    cr_expect_eq(coil_stream_read(s, buf, 1), 1);
    cr_expect_eq(coil_stream_read(s, buf, 1), 1);
    if (!has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) cr_expect_eq(coil_stream_read(s, buf, 1), 1);
    reset_by(peer);
    turns(3);
    if (has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX)))
        cr_expect_eq(coil_stream_read(s, buf, sizeof buf), 1, "what is buffered");
    for (int i = 0; i < 3; i++)
        cr_expect_eq(err = (int)coil_stream_read(s, buf, 1), -ECONNRESET, "%d", err);
    err = coil_stream_write(s, "x", 1);
    cr_expect(err == 0 || err == -EPIPE || err == -ECONNRESET, "%d", err);
    err = coil_stream_close(s);
    cr_expect(err == -EPIPE || err == -ECONNRESET, "%d", err);
    return 0;
}

TaskTest(stream_read, a_parked_read_is_woken_by_a_reset) {
    int peer, err;
    coil_stream *s = stream_and_peer(TCP_PAIR, &peer);
    coil_task t = spawn(reads_one, s);
    turns(3);
    reset_by(peer);
    cr_expect_eq(err = join(t), -ECONNRESET, "%d", err);
    cr_expect_eq(coil_stream_close(s), 0, "nothing was accepted");
    return 0;
}

/* ---- limits of the stream ---- */

static int trickles(void *arg) {
    while (coil_sleep(coil_ms(5)) == 0) {
        if (coil_stream_write(arg, "t", 1)) break;
    }
    return 0;
}

TaskTest(stream_read, the_read_limit_spans_a_read_exact_as_a_whole) {
    coil_stream *s[2];
    const coil_limits l = {.read = coil_ms(60)};
    size_t done;
    stream_pair(UNIX_PAIR, s);
    cr_expect_eq(coil_stream_limits(s[0], &l), 0);
    coil_task t = spawn(trickles, s[1]);
    for (int i = 0; i < 2; i++) {
        int64_t began = coil_now().ns;
        cr_expect_eq(coil_stream_read_exact(s[0], bytes, sizeof bytes, &done), -ETIME);
        cr_expect_geq(coil_now().ns - began, l.read.ns, "each call has the whole of it");
    }
    coil_cancel(t);
    cr_expect_eq(join(t), 0);
    cr_expect_eq(coil_stream_limits(s[0], NULL), 0);
    cr_expect_eq(coil_stream_write(s[1], "x", 1), 0);
    cr_expect_gt(coil_stream_read(s[0], bytes, sizeof bytes), 0, "it may be read again");
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_stream_close(s[i]), 0);
    return 0;
}

TaskTest(stream_read, the_read_limit_begins_with_the_call_however_long_was_computed_before) {
    coil_stream *s[2];
    char c;
    const coil_limits l = {.read = coil_ms(20)};
    stream_pair(UNIX_PAIR, s);
    cr_expect_eq(coil_stream_limits(s[0], &l), 0);
    for (int64_t began = coil_now().ns; coil_now().ns < began + coil_ms(30).ns;)
        continue;
    int64_t began = coil_now().ns;
    cr_expect_eq(coil_stream_read(s[0], &c, 1), -ETIME);
    cr_expect_geq(coil_now().ns - began, l.read.ns);
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_stream_close(s[i]), 0);
    return 0;
}

struct pulse {
    coil_stream *s;
    int64_t last_ns, gap_ns; /* the last one, and the longest time from one until the next has had a turn */
    int left;
};

static int pulses(void *arg) {
    struct pulse *p = arg;
    for (; p->left; p->left--) {
        int err = coil_sleep(coil_ms(20));
        p->gap_ns = MAX(p->gap_ns, coil_now().ns - p->last_ns);
        if (err) break;
        /* Before the write: the stream's own moment is not earlier than this one, but for the age of its
         * clock. */
        int64_t one_before_ns = p->last_ns;
        p->last_ns = coil_now().ns;
        err = coil_stream_write(p->s, "p", 1);
        if (!err) err = coil_stream_flush(p->s);
        coil_nop();
        p->gap_ns = MAX(p->gap_ns, coil_now().ns - one_before_ns);
        if (err) break;
    }
    return 0;
}

/* Bytes in `way` 0 come in, in 1 they go out; neither lets the stream look idle. False: the machine was too
 * busy to let them come in time, and nothing is known. */
static bool idles(int way, bool exact) {
    coil_stream *s[2];
    const coil_limits l = {.idle = coil_ms(60)};
    struct pulse p = {.left = 8, .last_ns = coil_now().ns};
    stream_pair(UNIX_PAIR, s);
    cr_expect_eq(coil_stream_limits(s[0], &l), 0);
    p.s = way ? s[0] : s[1];
    coil_task t = spawn(pulses, &p);
    ssize_t n;
    if (exact) {
        n = coil_stream_read_exact(s[0], bytes, sizeof bytes, NULL);
    } else {
        while ((n = coil_stream_read(s[0], bytes, 1)) > 0)
            continue;
    }
    cr_expect_eq(n, -ETIME, "%zd", n);
    int64_t ended_ns = coil_now().ns;
    coil_cancel(t);
    cr_expect_eq(join(t), 0);
    bool in_time = p.gap_ns < l.idle.ns - coil_ms(5).ns;
    if (in_time)
        cr_expect_geq(ended_ns - p.last_ns, l.idle.ns - coil_ms(1).ns, "way %d: the last byte moves it on",
                      way);
    cr_expect_eq(coil_stream_write(s[0], "x", 1), 0, "an idle stream can still be written");
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_stream_close(s[i]), 0);
    return in_time;
}

TaskTest(stream_read, the_idle_limit_is_moved_on_by_bytes_either_way) {
    for (int i = 0; i < 4; i++) {
        int tries = 0;
        while (!idles(i & 1, i & 2) && tries < 50)
            tries++;
        cr_expect_lt(tries, 50, "the machine never let bytes come in time");
    }
    return 0;
}

/* A peer that stops reading while the handler waits for its next request. */
TaskTest(stream_read, after_the_write_limit_reading_ends_once_what_is_buffered_is_used_up) {
    char buf[8];
    int peer, err;
    const coil_limits l = {.write = coil_ms(20)};
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_limits(s, &l), 0);
    cr_expect_eq(send(peer, "abc", 3, 0), 3);
    cr_expect_eq(coil_stream_read(s, buf, 1), 1);
    stuff(coil_stream_fd(s));
    cr_expect_eq(coil_stream_write(s, "an answer", 9), 0);
    cr_expect_eq(coil_stream_read_exact(s, buf, 8, NULL), -ETIME, "it was parked when the limit struck");
    cr_expect_eq(coil_stream_read(s, buf, 1), -ETIME);
    cr_expect_eq(coil_stream_write(s, "x", 1), -ETIME);
    cr_expect_eq(err = coil_stream_close(s), -ETIME, "%d", err);
    close(peer);

    s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_limits(s, &l), 0);
    cr_expect_eq(send(peer, "abc", 3, 0), 3);
    cr_expect_eq(coil_stream_read(s, buf, 1), 1);
    stuff(coil_stream_fd(s));
    cr_expect_eq(coil_stream_write(s, "an answer", 9), 0);
    cr_expect_eq(coil_stream_flush(s), -ETIME);
    if (has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) {
        cr_expect_eq(coil_stream_read_exact(s, buf, 2, NULL), 0, "buffered before");
        cr_expect_eq(memcmp(buf, "bc", 2), 0);
    }
    cr_expect_eq(coil_stream_read(s, buf, 1), -ETIME);
    cr_expect_eq(coil_stream_close(s), -ETIME);
    close(peer);
    return 0;
}

/* ---- the pool ---- */

static void run_with_pool(unsigned buffers, size_t size, coil_fn *fn) {
    const coil_run_opts o = {.pool_buffers = buffers, .pool_buffer_size = size};
    cr_assert_eq(coil_run_with(&o, fn, NULL), 0);
}

/* A holds the only buffer, unread, while its task reads from B. */
static int holds_one_reads_another(void *arg) {
    char buf[64];
    int pa, pb;
    coil_stats st;
    (void)arg;
    coil_stream *a = stream_and_peer(UNIX_PAIR, &pa), *b = stream_and_peer(UNIX_PAIR, &pb);
    cr_expect_eq(send(pa, "a1a2", 4, 0), 4);
    cr_expect_eq(coil_stream_read(a, buf, 2), 2);
    for (int i = 0; i < 20; i++) {
        cr_expect_eq(send(pb, "from b", 6, 0), 6);
        cr_expect_eq(coil_stream_read_exact(b, buf, 6, NULL), 0);
        cr_expect_eq(memcmp(buf, "from b", 6), 0);
    }
    coil_stats_get(&st);
    if (has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) cr_expect_gt(st.pool_empty, 0, "the pool was too small");
    cr_expect_eq(coil_stream_read_exact(a, buf, 2, NULL), 0);
    cr_expect_eq(memcmp(buf, "a2", 2), 0);
    cr_expect_eq(coil_stream_close(a), 0);
    cr_expect_eq(coil_stream_close(b), 0);
    cr_expect_eq(coil__here->driver->pool.out, 0);
    close(pa), close(pb);
    return 0;
}

Test(stream_read, with_a_pool_of_one_buffer_a_stream_that_holds_it_holds_nobody_up) {
    run_with_pool(1, 16, holds_one_reads_another);
}

/* The same, and B's reader, parked in a receive of its own, is told of the write limit. */
static int starves_past_the_write_limit(void *arg) {
    char buf[64];
    int pa, pb;
    const coil_limits l = {.write = coil_ms(20)};
    (void)arg;
    coil_stream *a = stream_and_peer(UNIX_PAIR, &pa), *b = stream_and_peer(UNIX_PAIR, &pb);
    cr_expect_eq(send(pa, "a1a2", 4, 0), 4);
    cr_expect_eq(coil_stream_read(a, buf, 2), 2);
    cr_expect_eq(send(pb, "b", 1, 0), 1);
    cr_expect_eq(coil_stream_read(b, buf, 1), 1);
    cr_expect_eq(coil_stream_limits(b, &l), 0);
    stuff(coil_stream_fd(b));
    cr_expect_eq(coil_stream_write(b, "an answer", 9), 0);
    b->starved = true;
    int err = (int)coil_stream_read(b, buf, 1);
    cr_expect_eq(err, -ETIME, "%s", coil_strerror(err));
    cr_expect_eq(coil_stream_close(a), 0);
    cr_expect_eq(coil_stream_close(b), -ETIME);
    close(pa), close(pb);
    return 0;
}

Test(stream_read, the_write_limit_ends_a_read_into_the_callers_memory_too) {
    run_with_pool(1, 16, starves_past_the_write_limit);
}

enum { HUNGRY = 100, EACH = 5000 };

static int reads_to_end(void *arg) {
    char buf[300];
    uint64_t pos = 0, rnd = (uintptr_t)arg | 1;
    ssize_t n;
    while ((n = coil_stream_read(arg, buf, 1 + below(&rnd, sizeof buf))) > 0) {
        cr_expect_eq(wrong_byte(buf, (size_t)n, pos), (size_t)n);
        pos += (uint64_t)n;
        if (below(&rnd, 4) == 0) coil_yield();
    }
    cr_expect_eq(n, 0, "%zd", n);
    cr_expect_eq(coil_stream_close(arg), 0);
    return (int)pos;
}

static int hundred_share_two_buffers(void *arg) {
    static int peer[HUNGRY];
    static coil_task t[HUNGRY];
    char out[500];
    (void)arg;
    for (int i = 0; i < HUNGRY; i++)
        t[i] = spawn(reads_to_end, stream_and_peer(UNIX_PAIR, &peer[i]));
    for (uint64_t pos = 0; pos < EACH; pos += sizeof out) {
        fill_from(out, sizeof out, pos);
        for (int i = 0; i < HUNGRY; i++)
            cr_expect_eq(send(peer[i], out, sizeof out, 0), (ssize_t)sizeof out);
        coil_yield();
    }
    for (int i = 0; i < HUNGRY; i++)
        close(peer[i]);
    for (int i = 0; i < HUNGRY; i++)
        cr_expect_eq(join(t[i]), EACH);
    cr_expect_eq(coil__here->driver->pool.out, 0);
    return 0;
}

Test(stream_read, a_hundred_streams_get_on_with_two_buffers) {
    run_with_pool(2, 64, hundred_share_two_buffers);
}

/* How far a sender that never stops can fill the pool on one stream that nobody reads. The kernel goes on
 * receiving until the worker has seen the completions and the cancel has got there, so that what is sent in
 * two turns comes on top. */
static int a_sender_meets_the_cap(void *arg) {
    char c;
    int peer;
    enum { PER_TURN = 4096 };
    const coil_limits l = {.read_buffer = 16384};
    (void)arg;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_limits(s, &l), 0);
    cr_expect_eq(send(peer, bytes, 1, 0), 1);
    cr_expect_eq(coil_stream_read(s, &c, 1), 1);
    uint64_t sent = 1;
    uint32_t most = 0;
    for (int round = 0; round < 200; round++) {
        ssize_t n = send(peer, bytes, PER_TURN, MSG_DONTWAIT);
        if (n > 0) sent += (uint64_t)n;
        turns(1);
        most = MAX(most, s->held);
    }
    if (has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) {
        cr_expect_geq(most * 1024, l.read_buffer, "as much is kept as may be");
        cr_expect_leq(most * 1024, l.read_buffer + 3 * PER_TURN, "%u buffers of 1 KiB", most);
        cr_expect_not(s->rx.live, "it receives no more");
    }
    close(peer);
    uint64_t got = 1;
    for (ssize_t n; (n = coil_stream_read(s, bytes, sizeof bytes)) > 0;)
        got += (uint64_t)n;
    cr_expect_eq(got, sent, "and all of it comes");
    cr_expect_eq(coil_stream_close(s), 0);
    return 0;
}

Test(stream_read, a_sender_that_never_stops_gets_no_more_buffers_than_the_cap) {
    run_with_pool(512, 1024, a_sender_meets_the_cap);
}

/* ---- fairness ---- */

struct flood {
    int fd;
    size_t left;
};

static void *floods(void *arg) {
    struct flood *f = arg;
    char buf[16384];
    memset(buf, 1, sizeof buf);
    while (f->left) {
        ssize_t n = send(f->fd, buf, sizeof buf < f->left ? sizeof buf : f->left, MSG_NOSIGNAL);
        if (n <= 0) break;
        f->left -= (size_t)n;
    }
    close(f->fd);
    return NULL;
}

struct ticker {
    uint64_t ticks;
    bool stop;
};

static int ticks(void *arg) {
    struct ticker *k = arg;
    while (!k->stop) {
        k->ticks++;
        coil_yield();
    }
    return 0;
}

static void others_tick_while_reading(size_t size, bool exact) {
    enum { TOTAL = 16 << 20 };
    struct ticker k = {0};
    struct flood f = {.left = TOTAL};
    pthread_t thread;
    uint64_t calls = 0, got = 0;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &f.fd);
    coil_task t = spawn(ticks, &k);
    cr_expect_eq(pthread_create(&thread, NULL, floods, &f), 0);
    if (exact) {
        while (got + size <= TOTAL && coil_stream_read_exact(s, bytes, size, NULL) == 0)
            got += size, calls++;
    } else {
        for (ssize_t n; (n = coil_stream_read(s, bytes, size)) > 0; calls++)
            got += (uint64_t)n;
    }
    cr_expect_eq(got, TOTAL - TOTAL % (exact ? size : 1));
    cr_expect_geq(k.ticks, calls / 64, "%llu ticks during %llu reads of %zu", (unsigned long long)k.ticks,
                  (unsigned long long)calls, size);
    k.stop = true;
    cr_expect_eq(join(t), 0);
    pthread_join(thread, NULL);
    coil_stream_abort(s);
}

/* Everything is there before the first read, so that only what each call is charged gives the others a turn.
 */
static void others_tick_while_nothing_is_waited_for(bool exact) {
    enum { READS = 50000 };
    int peer;
    struct ticker k = {0};
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    for (int i = 0; i < READS + 1; i += (READS + 1) / 3) {
        cr_expect_eq(send(peer, bytes, (READS + 1) / 3, MSG_DONTWAIT), (READS + 1) / 3);
    }
    cr_expect_eq(coil_stream_read(s, bytes, 1), 1);
    turns(2);
    coil_task t = spawn(ticks, &k);
    for (int i = 0; i < READS; i++) {
        cr_expect_eq(exact ? coil_stream_read_exact(s, bytes, 1, NULL) : coil_stream_read(s, bytes, 1),
                     exact ? 0 : 1);
    }
    cr_expect_geq(k.ticks, READS / 64 - 1, "%llu ticks", (unsigned long long)k.ticks);
    k.stop = true;
    cr_expect_eq(join(t), 0);
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
}

TaskTest(stream_read, reads_that_never_have_to_wait_let_others_tick) {
    others_tick_while_nothing_is_waited_for(false);
    others_tick_while_nothing_is_waited_for(true);
    return 0;
}

TaskTest(stream_read, a_stream_whose_data_never_runs_out_lets_others_tick) {
    others_tick_while_reading(64, false);
    others_tick_while_reading(4096, false);
    others_tick_while_reading(256, true);
    others_tick_while_reading(65536, false);
    others_tick_while_reading(1 << 20, true);
    return 0;
}

/* ---- what stops a receive short of what is there ---- */

static void send_with_descriptor(int fd, const char *text) {
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec iov = {(char *)(uintptr_t)text, strlen(text)};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    cr_expect_eq(sendmsg(fd, &m, 0), (ssize_t)strlen(text));
}

TaskTest(stream_read, a_receive_that_stops_at_a_passed_descriptor_is_not_taken_for_the_last) {
    int p[2];
    char buf[64];
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, p), 0);
    coil_stream *s = adopt(p[0]);
    send_with_descriptor(p[1], "abc");
    send_with_descriptor(p[1], "def");
    COIL_WITHIN(coil_sec(20));
    cr_expect_eq(coil_stream_read_exact(s, buf, 6, NULL), 0);
    cr_expect_eq(memcmp(buf, "abcdef", 6), 0);
    cr_expect_eq(coil_stream_close(s), 0);
    close(p[1]);
    return 0;
}

TaskTest(stream_read, a_bad_buffer_is_no_error_of_the_connection) {
    int p[2];
    static char big[64 << 10];
    cr_expect_eq(pipe(p), 0);
    coil_stream *in = adopt(p[0]);
    cr_expect_eq(write(p[1], "x", 1), 1);
    cr_expect_eq(coil_stream_read(in, (void *)8, 1), -EFAULT);
    cr_expect_eq(coil_stream_read(in, big, 1), 1);
    cr_expect_eq(coil_stream_close(in), 0);
    close(p[1]);
    return 0;
}

/* ---- many bytes a call ---- */

static void work_for(int64_t ns) {
    int64_t end_ns = coil_now().ns + ns;
    while (coil_now().ns < end_ns) {
    }
}

TaskTest(stream_read, much_work_for_every_read_doesnt_make_a_turn_long) {
    enum { READS = 256 };
    int peer;
    coil_stats before, after;
    coil_stream *s = stream_and_peer(0, &peer);
    for (int i = 0; i < READS; i++)
        cr_expect_eq(send(peer, "12345678", 8, 0), 8);
    char c[8];
    coil_stats_get(&before);
    for (int i = 0; i < READS; i++) {
        cr_expect_eq(coil_stream_read_exact(s, c, sizeof c, NULL), 0);
        work_for(50000);
    }
    coil_stats_get(&after);
    /* 256 times 50 us, of which a turn may last 200, or 64 calls that don't park. */
    cr_expect_geq(after.turns - before.turns, READS / 64 - 1);
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
    return 0;
}
