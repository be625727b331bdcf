/* Writing to a stream: what leaves, when, and what is said where it doesn't. */
#include "stream_pairs.h"

#include <signal.h>

static char bytes[1 << 20];

/* ---- the calls that the stream makes, counted ---- */

static struct coil__sys counted;
static unsigned sends;

static ssize_t count_send(int fd, const void *buf, size_t n, int flags) {
    sends++;
    return coil__sys_linux.send(fd, buf, n, flags);
}

static ssize_t count_sendmsg(int fd, const struct msghdr *m, int flags) {
    sends++;
    return coil__sys_linux.sendmsg(fd, m, flags);
}

static void count_sends(void) {
    counted = coil__sys_linux;
    counted.send = count_send;
    counted.sendmsg = count_sendmsg;
    sends = 0;
    coil__here->driver->sys = &counted;
}

/* What has left, at most n bytes: without another turn of the worker's, but the kernel may bring it late. */
static ssize_t received(int peer, char *buf, size_t n) {
    size_t got = 0;
    struct pollfd p = {.fd = peer, .events = POLLIN};
    while (got < n && poll(&p, 1, 20000) == 1) {
        ssize_t k = recv(peer, buf + got, n - got, MSG_DONTWAIT);
        if (k <= 0) break;
        got += (size_t)k;
    }
    return (ssize_t)got;
}

/* ---- what leaves ---- */

TaskTest(stream_write, what_is_written_arrives_and_is_counted) {
    char buf[100];
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        int peer;
        coil_stream *s = stream_and_peer(kind, &peer);
        cr_expect_eq(coil_stream_flush(s), 0, "nothing to flush");
        cr_expect_eq(coil_stream_write(s, "hello ", 6), 0);
        cr_expect_eq(coil_stream_write(s, NULL, 0), 0, "nothing is accepted too");
        cr_expect_eq(coil_stream_write(s, "world", 5), 0);
        cr_expect_eq(coil_stream_written(s), 11);
        cr_expect(recv(peer, buf, sizeof buf, MSG_DONTWAIT) < 0, "it was only copied");
        cr_expect_eq(coil_stream_flush(s), 0);
        cr_expect_eq(received(peer, buf, 11), 11);
        cr_expect_eq(memcmp(buf, "hello world", 11), 0);
        cr_expect_eq(coil_stream_write(s, "later", 5), 0);
        turns(2);
        cr_expect_eq(received(peer, buf, 5), 5, "it leaves with the turn");
        cr_expect_eq(memcmp(buf, "later", 5), 0);
        cr_expect(recv(peer, buf, sizeof buf, MSG_DONTWAIT) < 0, "and nothing else");
        cr_expect_eq(coil_stream_close(s), 0);
        close(peer);
    }
    return 0;
}

TaskTest(stream_write, a_pipe_takes_small_and_large_writes_in_order) {
    for (int nonblock = 0; nonblock < 2; nonblock++) {
        int p[2];
        cr_expect_eq(pipe2(p, nonblock ? O_NONBLOCK : 0), 0);
        coil_stream *out = adopt(p[1]);
        fill_from(bytes, sizeof bytes, 0);
        cr_expect_eq(coil_stream_write(out, bytes, 100), 0);
        cr_expect_eq(coil_stream_write(out, bytes + 100, 40000), 0);
        cr_expect_eq(coil_stream_write(out, bytes + 40100, 900), 0);
        cr_expect_eq(coil_stream_close(out), 0);
        static char got[50000];
        cr_expect_eq(read(p[0], got, sizeof got), 41000);
        cr_expect_eq(wrong_byte(got, 41000, 0), 41000);
        close(p[0]);
    }
    return 0;
}

static int reads_to_end(void *arg) {
    static char buf[100000];
    uint64_t pos = 0;
    ssize_t n;
    while ((n = coil_stream_read(arg, buf, sizeof buf)) > 0) {
        cr_expect_eq(wrong_byte(buf, (size_t)n, pos), (size_t)n);
        pos += (uint64_t)n;
    }
    cr_expect_eq(n, 0, "%zd", n);
    return (int)pos;
}

TaskTest(stream_write, a_pipe_carries_more_than_it_holds) {
    for (int nonblock = 0; nonblock < 2; nonblock++) {
        int p[2];
        cr_expect_eq(pipe2(p, nonblock ? O_NONBLOCK : 0), 0);
        coil_stream *in = adopt(p[0]), *out = adopt(p[1]);
        coil_task t = spawn(reads_to_end, in);
        fill_from(bytes, sizeof bytes, 0);
        for (size_t pos = 0, n = 1; pos < sizeof bytes; pos += n, n = 1 + n * 7 % 100003) {
            n = MIN(n, sizeof bytes - pos);
            cr_expect_eq(coil_stream_write(out, bytes + pos, n), 0);
        }
        cr_expect_eq(coil_stream_close(out), 0);
        cr_expect_eq(join(t), (int)sizeof bytes);
        cr_expect_eq(coil_stream_close(in), 0);
    }
    return 0;
}

TaskTest(stream_write, what_is_written_in_one_go_leaves_in_one_send) {
    static char buf[8000];
    coil_stats before, after;
    int peer;
    coil_stream *s = stream_and_peer(TCP_PAIR, &peer);
    bool direct = has_cap(COIL__CAP_BIT(DIRECT_SEND));
    turns(1);
    count_sends();
    coil_stats_get(&before);
    fill_from(bytes, sizeof buf, 0);
    for (size_t i = 0; i < 50; i++) /* after 64 calls it would have to give others a turn */
        cr_expect_eq(coil_stream_write(s, bytes + i * 160, 160), 0);
    cr_expect_eq(sends, 0, "a write makes no system call");
    cr_expect_eq(coil_stream_flush(s), 0);
    coil_stats_get(&after);
    cr_expect_eq(sends, direct ? 1 : 0);
    cr_expect_eq(after.ops - before.ops, direct ? 0 : 1);
    cr_expect_eq(recv(peer, buf, sizeof buf, MSG_WAITALL), (ssize_t)sizeof buf);
    cr_expect_eq(wrong_byte(buf, sizeof buf, 0), sizeof buf);
    for (size_t i = 0; i < 3; i++)
        cr_expect_eq(coil_stream_write(s, "x", 1), 0);
    turns(3);
    cr_expect_eq(sends, direct ? 2 : 0, "with the turn as well");
    coil__here->driver->sys = &coil__sys_linux;
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
    return 0;
}

TaskTest(stream_write, a_large_write_takes_what_is_buffered_with_it) {
    static char buf[20010];
    int peer;
    coil_stream *s = stream_and_peer(TCP_PAIR, &peer);
    count_sends();
    fill_from(bytes, sizeof buf, 0);
    cr_expect_eq(coil_stream_write(s, bytes, 10), 0);
    cr_expect_eq(coil_stream_write(s, bytes + 10, 20000), 0);
    cr_expect_eq(sends, 1);
    cr_expect_eq(received(peer, buf, sizeof buf), (ssize_t)sizeof buf);
    cr_expect_eq(wrong_byte(buf, sizeof buf, 0), sizeof buf);
    coil__here->driver->sys = &coil__sys_linux;
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
    return 0;
}

/* A turn has room for 128 resumes; what is written leaves after 64 of them, where a send needs no turn's end.
 * How many it took by TCP is the kernel's affair too. */
TaskTest(stream_write, bytes_leave_although_the_task_runs_on) {
    char c;
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        int peer, resumes = 0;
        coil_stream *s = stream_and_peer(kind, &peer);
        turns(1);
        cr_expect_eq(coil_stream_write(s, "x", 1), 0);
        for (; recv(peer, &c, 1, MSG_DONTWAIT) < 0 && resumes < 100000; resumes++)
            coil_yield();
        cr_expect_lt(resumes, 100000, "it never leaves");
        if (kind != TCP_PAIR)
            cr_expect_leq(resumes, has_cap(COIL__CAP_BIT(DIRECT_SEND)) ? 80 : 130, "%d resumes", resumes);
        cr_expect_eq(coil_stream_close(s), 0);
        close(peer);
    }
    return 0;
}

struct ticker {
    unsigned ticks;
    bool stop;
};

static int ticks(void *arg) {
    struct ticker *k = arg;
    for (; !k->stop; k->ticks++)
        coil_yield();
    return 0;
}

TaskTest(stream_write, writes_that_never_have_to_wait_let_others_tick) {
    enum { WRITES = 50000 };
    int peer;
    struct ticker k = {0};
    const coil_limits l = {.high_water = WRITES};
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_limits(s, &l), 0);
    coil_task t = spawn(ticks, &k);
    for (int i = 0; i < WRITES; i++)
        cr_expect_eq(coil_stream_write(s, "x", 1), 0);
    cr_expect_geq(k.ticks, WRITES / 64 - 1, "%u ticks", k.ticks);
    k.stop = true;
    cr_expect_eq(join(t), 0);
    coil_stream_abort(s);
    close(peer);
    return 0;
}

/* ---- refused ---- */

struct writing {
    coil_stream *s;
    size_t n;
    int64_t ended_ns; /* 0: it is still at it */
};

static int writes(void *arg) {
    struct writing *w = arg;
    int err = coil_stream_write(w->s, bytes, w->n);
    w->ended_ns = coil_now().ns;
    return err;
}

static int flushes(void *arg) {
    return coil_stream_flush(arg);
}

TaskTest(stream_write, bad_arguments_and_a_second_writer_are_refused) {
    int peer;
    struct writing w = {.s = stream_and_peer(UNIX_PAIR, &peer), .n = sizeof bytes};
    memset(bytes, 0, sizeof bytes);
    cr_expect_eq(coil_stream_write(w.s, NULL, 1), -EINVAL);
    stuff(coil_stream_fd(w.s));
    coil_task t = spawn(writes, &w);
    turns(2);
    cr_expect_eq(coil_stream_write(w.s, "x", 1), -EBUSY);
    cr_expect_eq(coil_stream_flush(w.s), -EBUSY);
    cr_expect_eq(coil_stream_finish(w.s), -EBUSY);
    cr_expect_eq(coil_stream_detach(w.s), -EBUSY);
    coil_cancel(t);
    cr_expect_eq(join(t), -ECANCELED);
    cr_expect_eq(coil_stream_write(w.s, "x", 1), 0);
    t = spawn(flushes, w.s);
    turns(2);
    cr_expect_eq(coil_stream_write(w.s, "x", 1), -EBUSY);
    while (recv(peer, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        continue;
    cr_expect_eq(join(t), 0);
    cr_expect_eq(coil_stream_close(w.s), 0);
    close(peer);
    return 0;
}

static int is_refused_when_cancelled(void *arg) {
    coil_cancel(coil_self());
    cr_expect_eq(coil_stream_write(arg, "x", 1), -ECANCELED);
    cr_expect_eq(coil_stream_flush(arg), -ECANCELED);
    cr_expect_eq(coil_stream_finish(arg), -ECANCELED);
    return 0;
}

TaskTest(stream_write, a_refused_call_does_nothing) {
    int peer;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(join(spawn(is_refused_when_cancelled, s)), 0);
    coil_scope over = coil_within(coil_ns(0));
    cr_expect_eq(coil_stream_write(s, "x", 1), -ETIME);
    cr_expect_eq(coil_stream_flush(s), -ETIME);
    cr_expect_eq(coil_stream_finish(s), -ETIME);
    cr_expect(coil_leave(&over));
    cr_expect_eq(coil_stream_written(s), 0);
    cr_expect_eq(coil_stream_close(s), 0);
    cr_expect_eq(take_to_end(peer, 0), 0);
    close(peer);
    return 0;
}

static ssize_t takes_a_little(int fd, const struct msghdr *m, int flags) {
    (void)fd, (void)m, (void)flags;
    return 1;
}

TaskTest(stream_write, a_cancel_or_limit_ends_a_large_write_that_never_has_to_park) {
    int peer;
    struct writing w = {.s = stream_and_peer(UNIX_PAIR, &peer), .n = sizeof bytes};
    counted = coil__sys_linux;
    counted.sendmsg = takes_a_little;
    coil__here->driver->sys = &counted;
    coil_task t = spawn(writes, &w);
    coil_yield();
    coil_cancel(t);
    cr_expect_eq(join(t), -ECANCELED);
    int64_t n = coil_stream_written(w.s);
    cr_expect(n > 0 && n < (int64_t)w.n, "%lld", (long long)n);
    coil_scope soon = coil_within(coil_ns(1000));
    cr_expect_eq(writes(&w), -ETIME);
    cr_expect(coil_leave(&soon));
    cr_expect_lt(coil_stream_written(w.s), (int64_t)w.n);
    coil__here->driver->sys = &coil__sys_linux;
    coil_stream_abort(w.s);
    close(peer);
    return 0;
}

/* ---- finish ---- */

TaskTest(stream_write, finish_ends_our_direction_only) {
    char buf[10];
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        int peer;
        coil_stream *s = stream_and_peer(kind, &peer);
        cr_expect_eq(coil_stream_write(s, "last", 4), 0);
        cr_expect_eq(coil_stream_finish(s), 0);
        cr_expect_eq(coil_stream_finish(s), 0, "again");
        cr_expect_eq(coil_stream_write(s, "x", 1), -EPIPE);
        cr_expect_eq(coil_stream_flush(s), 0, "all that was accepted has left");
        cr_expect_eq(recv(peer, buf, sizeof buf, MSG_WAITALL), 4);
        cr_expect_eq(recv(peer, buf, sizeof buf, 0), 0);
        cr_expect_eq(send(peer, "reply", 5, 0), 5);
        cr_expect_eq(coil_stream_read(s, buf, sizeof buf), 5);
        cr_expect_eq(coil_stream_written(s), 4);
        cr_expect_eq(coil_stream_close(s), 0);
        close(peer);
    }
    return 0;
}

TaskTest(stream_write, a_pipe_cannot_be_finished_and_its_other_end_not_written) {
    int p[2];
    cr_expect_eq(pipe(p), 0);
    coil_stream *in = adopt(p[0]), *out = adopt(p[1]);
    cr_expect_eq(coil_stream_finish(out), -EINVAL);
    cr_expect_eq(coil_stream_write(out, "x", 1), 0);
    (void)coil_stream_write(in, "x", 1);
    cr_expect_eq(coil_stream_flush(in), -EBADF);
    cr_expect_eq(coil_stream_write(in, "x", 1), -EBADF);
    cr_expect_eq(coil_stream_close(out), 0);
    cr_expect_eq(coil_stream_close(in), -EBADF);
    return 0;
}

TaskTest(stream_write, a_finish_that_runs_out_of_time_leaves_our_direction_open) {
    int peer;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    stuff(coil_stream_fd(s));
    cr_expect_eq(coil_stream_write(s, "x", 1), 0);
    coil_scope soon = coil_within(coil_ms(5));
    cr_expect_eq(coil_stream_finish(s), -ETIME);
    cr_expect(coil_leave(&soon));
    cr_expect_eq(coil_stream_write(s, "y", 1), 0);
    while (recv(peer, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        continue;
    cr_expect_eq(coil_stream_finish(s), 0);
    cr_expect_eq(coil_stream_close(s), 0);
    close(peer);
    return 0;
}

/* ---- a peer that is gone ---- */

static void remembers(coil_stream *s, int err) {
    cr_expect_eq(coil_stream_write(s, "x", 1), err);
    cr_expect_eq(coil_stream_write(s, bytes, 100000), err);
    cr_expect_eq(coil_stream_flush(s), err);
    if (s->is_socket) cr_expect_eq(coil_stream_finish(s), err);
    cr_expect_eq(coil_stream_close(s), err);
}

TaskTest(stream_write, a_failed_send_is_remembered_and_raises_no_signal) {
    int peer, err, p[2];
    signal(SIGPIPE, SIG_DFL);
    for (int large = 0; large < 2; large++) {
        for (int kind = 0; kind < PAIR_KINDS; kind++) {
            coil_stream *s = stream_and_peer(kind, &peer);
            struct linger at_once = {.l_onoff = 1};
            setsockopt(peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
            close(peer);
            do
                err = coil_stream_write(s, bytes, large ? 100000 : 10);
            while (!err && !(err = coil_stream_flush(s)));
            cr_expect(err == -EPIPE || (kind == TCP_PAIR && err == -ECONNRESET), "%d", err);
            remembers(s, err);
        }
        cr_expect_eq(pipe(p), 0);
        coil_stream *out = adopt(p[1]);
        close(p[0]);
        err = coil_stream_write(out, bytes, large ? 100000 : 10);
        if (!err) err = coil_stream_flush(out);
        cr_expect_eq(err, -EPIPE, "%d", err);
        remembers(out, -EPIPE);
    }
    return 0;
}

TaskTest(stream_write, a_peers_last_words_are_readable_after_our_write_has_failed) {
    char buf[10];
    int peer;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(send(peer, "bye", 3, 0), 3);
    shutdown(peer, SHUT_RDWR);
    cr_expect_eq(coil_stream_write(s, "x", 1), 0);
    cr_expect_eq(coil_stream_flush(s), -EPIPE);
    cr_expect_eq(coil_stream_read_exact(s, buf, 3, NULL), 0);
    cr_expect_eq(memcmp(buf, "bye", 3), 0);
    cr_expect_eq(coil_stream_read(s, buf, 1), 0);
    cr_expect_eq(coil_stream_close(s), -EPIPE);
    close(peer);
    return 0;
}

/* What a writer gets whose peer resets the connection; 0: room was made under it before that, by a probe of
 * TCP's persist timer. */
static int write_at_a_reset(size_t n) {
    int peer;
    struct writing w = {.s = stream_and_peer(TCP_PAIR, &peer), .n = n};
    small_send_buffer(coil_stream_fd(w.s));
    stuff(coil_stream_fd(w.s));
    const coil_limits l = {.high_water = 1};
    cr_expect_eq(coil_stream_limits(w.s, &l), 0);
    cr_expect_eq(coil_stream_write(w.s, "x", 1), 0);
    coil_task t = spawn(writes, &w);
    turns(3);
    struct linger at_once = {.l_onoff = 1};
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(peer);
    int err = join(t);
    if (err) {
        remembers(w.s, err);
    } else {
        coil_stream_abort(w.s);
    }
    return err;
}

static void parked_writer_is_woken_by_loss(size_t n) {
    int err = 0;
    for (int tries = 5; err == 0 && tries; tries--)
        err = write_at_a_reset(n);
    cr_expect(err == -ECONNRESET || err == -EPIPE, "%zu bytes: %d", n, err);
}

TaskTest(stream_write, a_parked_write_is_woken_by_a_reset) {
    parked_writer_is_woken_by_loss(100);
    parked_writer_is_woken_by_loss(sizeof bytes);
    return 0;
}

/* ---- a peer that never reads ---- */

TaskTest(stream_write, the_write_limit_is_remembered_by_every_call) {
    static const size_t sizes[] = {1, 1000, 16383, 16384, 300000};
    char c;
    const coil_limits l = {.write = coil_ms(20)};
    for (size_t k = 0; k < 2 * sizeof sizes / sizeof *sizes; k++) {
        int peer, err;
        coil_stream *s = stream_and_peer(k % 2 ? TCP_PAIR : UNIX_PAIR, &peer);
        small_send_buffer(coil_stream_fd(s));
        cr_expect_eq(coil_stream_limits(s, &l), 0);
        while ((err = coil_stream_write(s, bytes, sizes[k / 2])) == 0)
            continue;
        cr_expect_eq(err, -ETIME, "writes of %zu: %d", sizes[k / 2], err);
        cr_expect_eq(coil_stream_read(s, &c, 1), -ETIME, "reading has ended too");
        remembers(s, -ETIME);
        close(peer);
    }
    return 0;
}

/* False: the machine was too busy to let the peer read in time, and nothing is known. */
static bool is_slowly_read(void) {
    int peer;
    const coil_limits l = {.write = coil_ms(60), .high_water = 1000};
    struct writing w = {.s = stream_and_peer(UNIX_PAIR, &peer), .n = 100000};
    small_send_buffer(coil_stream_fd(w.s));
    cr_expect_eq(coil_stream_limits(w.s, &l), 0);
    fill_from(bytes, sizeof bytes, 0);
    coil_task t = spawn(writes, &w);
    uint64_t got = 0;
    int64_t last_ns = coil_now().ns, gap_ns = 0;
    for (int i = 0; i < 8; i++) {
        coil_sleep(coil_ms(15));
        uint64_t n = take_plain(peer, got);
        if (!w.ended_ns) {
            int64_t now_ns = coil_now().ns;
            gap_ns = MAX(gap_ns, now_ns - last_ns);
            if (n) last_ns = now_ns;
        }
        got += n;
    }
    int err = join(t);
    cr_expect(err == 0 || err == -ETIME, "%d", err);
    bool in_time = gap_ns < l.write.ns - coil_ms(5).ns;
    if (err && in_time) cr_expect_geq(w.ended_ns - last_ns, l.write.ns - coil_ms(1).ns);
    got += take_plain(peer, got);
    if (err) cr_expect_eq(got, (uint64_t)coil_stream_written(w.s), "how far it came");
    coil_stream_abort(w.s);
    close(peer);
    return in_time;
}

TaskTest(stream_write, the_write_limit_counts_from_the_last_progress) {
    int tries = 0;
    while (!is_slowly_read() && tries < 50)
        tries++;
    cr_expect_lt(tries, 50, "the machine never let the peer read in time");
    return 0;
}

TaskTest(stream_write, no_more_than_the_high_water_mark_waits) {
    int peer, err;
    const coil_limits l = {.high_water = 10000};
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_limits(s, &l), 0);
    stuff(coil_stream_fd(s));
    coil_scope soon = coil_within(coil_ms(10));
    while ((err = coil_stream_write(s, bytes, 300)) == 0)
        cr_expect_leq(s->out_bytes, l.high_water);
    cr_expect_eq(err, -ETIME);
    cr_expect(coil_leave(&soon));
    cr_expect_eq(coil_stream_written(s), 9900, "33 of them fit, and none was taken in part");
    cr_expect_eq(s->out_bytes, 9900);
    coil_stream_abort(s);
    close(peer);
    return 0;
}

/* One write of more than the mark has to wait only for what is before it. */
TaskTest(stream_write, a_write_above_the_mark_goes_when_nothing_is_before_it) {
    int peer;
    const coil_limits l = {.high_water = 10};
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    cr_expect_eq(coil_stream_limits(s, &l), 0);
    fill_from(bytes, 3000, 0);
    for (size_t i = 0; i < 3; i++)
        cr_expect_eq(coil_stream_write(s, bytes + 1000 * i, 1000), 0);
    cr_expect_eq(coil_stream_close(s), 0);
    cr_expect_eq(take_to_end(peer, 0), 3000);
    close(peer);
    return 0;
}

/* ---- the caller's own limit ---- */

TaskTest(stream_write, the_callers_limit_is_not_remembered_and_written_tells_how_far_it_came) {
    static const size_t sizes[] = {1000, 20000, 900000};
    for (size_t k = 0; k < 2 * sizeof sizes / sizeof *sizes; k++) {
        int peer, err;
        uint64_t pos = 0;
        coil_stream *s = stream_and_peer(k % 2 ? TCP_PAIR : UNIX_PAIR, &peer);
        small_send_buffer(coil_stream_fd(s));
        for (int round = 0; round < 5; round++) {
            coil_scope soon = coil_within(coil_ms(2));
            do {
                fill_from(bytes, sizes[k / 2], (uint64_t)coil_stream_written(s));
                err = coil_stream_write(s, bytes, sizes[k / 2]);
            } while (!err && coil_stream_written(s) < 8 << 20);
            cr_expect_eq(err, -ETIME);
            cr_expect(coil_leave(&soon));
            if (round % 2) pos += take_plain(peer, pos);
        }
        coil_task t = spawn(flushes, s);
        for (uint64_t n = (uint64_t)coil_stream_written(s); pos < n; coil_yield())
            pos += take_plain(peer, pos);
        cr_expect_eq(join(t), 0);
        cr_expect_eq(pos, (uint64_t)coil_stream_written(s));
        cr_expect_eq(coil_stream_close(s), 0);
        cr_expect_eq(take_to_end(peer, pos), 0, "and nothing more");
        close(peer);
    }
    return 0;
}
