/* Streams under load and against the clock: nothing is lost, doubled or out of order, and every race has one
 * outcome. COIL_TEST_SEED repeats a run. */
#include "stream_pairs.h"

#include <pthread.h>

static uint64_t seed, rnd;

static void begin_random(void) {
    seed = rnd = seed_of_run();
}

/* What a failed check says: the seed, and what else there is. */
#define SEEDED(Format, ...) "seed %#llx; " Format, (unsigned long long)seed, ##__VA_ARGS__

/* ---- both directions at once ---- */

enum { SIZE_MAX_EACH = 300000 };

struct flow {
    coil_stream *s;
    uint64_t total, rnd;
    bool calm; /* sometimes waits, so that the other side runs empty */
};

static size_t any_size(uint64_t *r) {
    static const size_t bounds[] = {1, 100, 5000, 16383, 16385, 70000, SIZE_MAX_EACH};
    return 1 + below(r, bounds[below(r, sizeof bounds / sizeof *bounds)]);
}

static size_t size_up_to(uint64_t *r, size_t most) {
    size_t n = any_size(r);
    return MIN(n, most);
}

static void maybe_rest(struct flow *f) {
    if (!f->calm) return;
    uint64_t what = below(&f->rnd, 16);
    if (what == 0) coil_sleep(coil_us((int64_t)below(&f->rnd, 300)));
    if (what == 1) turns(1 + (int)below(&f->rnd, 5));
    if (what == 2) coil_yield();
}

static int sends_flow(void *arg) {
    struct flow *f = arg;
    char *buf = malloc(SIZE_MAX_EACH);
    int err = 0;
    for (uint64_t pos = 0; pos < f->total && !err;) {
        size_t n = size_up_to(&f->rnd, f->total - pos);
        fill_from(buf, n, pos);
        err = coil_stream_write(f->s, buf, n);
        pos += n;
        cr_expect_eq((uint64_t)coil_stream_written(f->s), pos, SEEDED(""));
        if (below(&f->rnd, 8) == 0 && !err) err = coil_stream_flush(f->s);
        maybe_rest(f);
    }
    free(buf);
    return err ? err : coil_stream_finish(f->s);
}

static int receives_flow(void *arg) {
    struct flow *f = arg;
    char *buf = malloc(SIZE_MAX_EACH);
    ssize_t n = 1;
    uint64_t pos = 0;
    while (n > 0) {
        size_t want = any_size(&f->rnd), done;
        if (below(&f->rnd, 2)) {
            n = coil_stream_read(f->s, buf, want);
        } else {
            int err = coil_stream_read_exact(f->s, buf, want, &done);
            n = err && err != -ENODATA ? err : (ssize_t)done;
        }
        if (n <= 0) break;
        size_t wrong = wrong_byte(buf, (size_t)n, pos);
        cr_expect_eq(
            wrong, (size_t)n,
            SEEDED("byte %llu of %llu", (unsigned long long)(pos + wrong), (unsigned long long)f->total));
        if (wrong != (size_t)n) break;
        pos += (uint64_t)n;
        maybe_rest(f);
    }
    free(buf);
    cr_expect_eq(n, 0, SEEDED("%zd", n));
    cr_expect_eq(pos, f->total, SEEDED(""));
    return 0;
}

static void both_ways(enum pair_kind kind, uint64_t total, bool small, bool calm) {
    coil_stream *s[2];
    struct flow f[4];
    coil_task t[4];
    stream_pair(kind, s);
    for (int i = 0; i < 2 && small; i++)
        small_send_buffer(coil_stream_fd(s[i]));
    for (int i = 0; i < 4; i++) {
        f[i] = (struct flow){.s = s[i % 2], .total = total, .rnd = next_random(&rnd), .calm = calm};
        t[i] = spawn(i < 2 ? sends_flow : receives_flow, &f[i]);
    }
    for (int i = 0; i < 4; i++)
        cr_expect_eq(join(t[i]), 0, SEEDED(""));
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_stream_close(s[i]), 0);
    cr_expect_eq(coil__here->driver->pool.out, 0);
}

static int floods_both_ways(void *arg) {
    uint64_t mib = (uint64_t)check_rounds(CHECK_SANITIZED ? 10 : 25);
    (void)arg;
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        both_ways(kind, mib << 20, false, false);
        both_ways(kind, mib << 17, true, false);
        both_ways(kind, mib << 17, false, true);
        both_ways(kind, mib << 16, true, true);
    }
    return 0;
}

static void run_with_pool(unsigned buffers, size_t size, coil_fn *fn) {
    const coil_run_opts o = {.pool_buffers = buffers, .pool_buffer_size = size};
    begin_random();
    cr_assert_eq(coil_run_with(&o, fn, NULL), 0, SEEDED(""));
}

Test(stream_races, both_directions_at_once_keep_every_byte_in_its_place) {
    run_with_pool(0, 0, floods_both_ways);
}

Test(stream_races, so_they_do_with_a_pool_that_is_always_empty) {
    run_with_pool(1, 100, floods_both_ways);
}

Test(stream_races, so_they_do_with_few_buffers) {
    run_with_pool(4, 4096, floods_both_ways);
}

/* ---- a peer in a thread of its own ---- */

struct mirror {
    int fd;
    uint64_t rnd;
};

/* Sends back what it gets. */
static void *mirrors(void *arg) {
    struct mirror *m = arg;
    char *buf = malloc(SIZE_MAX_EACH);
    for (ssize_t n; (n = recv(m->fd, buf, any_size(&m->rnd), 0)) > 0;) {
        for (ssize_t done = 0, k = 0; done < n && k >= 0; done += k) {
            k = send(m->fd, buf + done, (size_t)(n - done), MSG_NOSIGNAL);
        }
    }
    shutdown(m->fd, SHUT_WR);
    free(buf);
    return NULL;
}

static int goes_through_mirrors(void *arg) {
    enum { MIRRORS = 3 };
    struct mirror m[MIRRORS];
    pthread_t thread[MIRRORS];
    struct flow f[2 * MIRRORS];
    coil_task t[2 * MIRRORS];
    uint64_t total = (uint64_t)check_rounds(CHECK_SANITIZED ? 4 : 16) << 20;
    (void)arg;
    for (int i = 0; i < MIRRORS; i++) {
        coil_stream *s = stream_and_peer(i % 2 ? UNIX_PAIR : TCP_PAIR, &m[i].fd);
        m[i].rnd = next_random(&rnd);
        for (int k = 0; k < 2; k++) {
            f[2 * i + k] = (struct flow){.s = s, .total = total, .rnd = next_random(&rnd), .calm = i == 2};
            t[2 * i + k] = spawn(k ? receives_flow : sends_flow, &f[2 * i + k]);
        }
        cr_expect_eq(pthread_create(&thread[i], NULL, mirrors, &m[i]), 0);
    }
    for (int i = 0; i < 2 * MIRRORS; i++)
        cr_expect_eq(join(t[i]), 0, SEEDED(""));
    for (int i = 0; i < MIRRORS; i++) {
        pthread_join(thread[i], NULL);
        cr_expect_eq(coil_stream_close(f[2 * i].s), 0);
        close(m[i].fd);
    }
    return 0;
}

Test(stream_races, bytes_come_back_from_peers_in_threads_as_they_were) {
    run_with_pool(0, 0, goes_through_mirrors);
}

Test(stream_races, so_they_do_with_a_pool_of_two_buffers) {
    run_with_pool(2, 2048, goes_through_mirrors);
}

/* ---- sockets that take little, or nothing ---- */

static struct coil__sys stingy;

static ssize_t send_little(int fd, const void *buf, size_t n, int flags) {
    if (below(&rnd, 4) == 0) return -EAGAIN;
    return coil__sys_linux.send(fd, buf, size_up_to(&rnd, n), flags);
}

static ssize_t sendmsg_little(int fd, const struct msghdr *m, int flags) {
    struct iovec iov[64];
    size_t count = 0, left = any_size(&rnd);
    if (below(&rnd, 4) == 0) return -EAGAIN;
    for (; count < (size_t)m->msg_iovlen && left; count++) {
        iov[count] = m->msg_iov[count];
        iov[count].iov_len = MIN(iov[count].iov_len, left);
        left -= iov[count].iov_len;
    }
    struct msghdr less = {.msg_iov = iov, .msg_iovlen = count};
    return coil__sys_linux.sendmsg(fd, &less, flags);
}

static ssize_t recv_little(int fd, void *buf, size_t n, int flags) {
    if (below(&rnd, 4) == 0) return -EAGAIN;
    return coil__sys_linux.recv(fd, buf, size_up_to(&rnd, n), flags);
}

/* With a multishot poll a receive that lies about being empty would wait for the next byte. */
static int floods_stingily(void *arg) {
    stingy = coil__sys_linux;
    stingy.send = send_little;
    stingy.sendmsg = sendmsg_little;
    if (has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) stingy.recv = recv_little;
    coil__here->driver->sys = &stingy;
    (void)arg;
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        for (int i = 0; i < 4; i++)
            both_ways(kind, (uint64_t)check_rounds(4) << 20, i & 1, i & 2);
    }
    return 0;
}

Test(stream_races, short_sends_and_refusals_at_any_place_change_nothing) {
    run_with_pool(0, 0, floods_stingily);
}

/* ---- cancel and deadline against arriving bytes ---- */

struct reading {
    coil_stream *s;
    int64_t limit_ns; /* < 0: none */
    size_t n;         /* 1: coil_stream_read; else coil_stream_read_exact */
    uint64_t got;
    int result;
};

static void note_bytes(struct reading *r, const char *buf, size_t n) {
    cr_expect_eq(wrong_byte(buf, n, r->got), n, SEEDED(""));
    r->got += n;
}

static int reads_in_time(void *arg) {
    struct reading *r = arg;
    char buf[8];
    size_t done = 0;
    coil_scope scope = coil_within(r->limit_ns < 0 ? COIL_FOREVER : coil_ns(r->limit_ns));
    if (r->n == 1) {
        ssize_t n = coil_stream_read(r->s, buf, sizeof buf);
        done = n > 0 ? (size_t)n : 0;
        r->result = n > 0 ? 0 : (int)n;
    } else {
        r->result = coil_stream_read_exact(r->s, buf, r->n, &done);
    }
    note_bytes(r, buf, done);
    bool struck = coil_leave(&scope);
    cr_expect_eq(struck, r->result == -ETIME, SEEDED(""));
    return 0;
}

/* One round: a read, `n` bytes and perhaps a cancel, each after a wait of its own. Outcomes: all n bytes, or
 * the error; what did not come now comes with a later round. */
static void race_reader(struct reading *r, int peer, uint64_t *sent, bool cancels) {
    char out[8];
    size_t n = 1 + below(&rnd, 3);
    r->n = below(&rnd, 2) ? 1 : n;
    coil_task t = spawn(reads_in_time, r);
    if (below(&rnd, 2)) turns((int)below(&rnd, 3));
    bool first = below(&rnd, 2);
    if (cancels && first) coil_cancel(t);
    if (below(&rnd, 4) == 0) turns((int)below(&rnd, 3));
    if (below(&rnd, 8) == 0) coil_yield();
    fill_from(out, n, *sent);
    cr_expect_eq(send(peer, out, n, 0), (ssize_t)n);
    *sent += n;
    if (cancels && !first) {
        if (below(&rnd, 2)) turns((int)below(&rnd, 3));
        coil_cancel(t);
    }
    cr_expect_eq(join(t), 0);
}

static void end_race(struct reading *r, int peer, uint64_t sent) {
    char buf[64];
    close(peer);
    for (ssize_t n; (n = coil_stream_read(r->s, buf, sizeof buf)) > 0;)
        note_bytes(r, buf, (size_t)n);
    cr_expect_eq(r->got, sent, SEEDED("no byte is lost"));
    cr_expect_eq(coil_stream_close(r->s), 0);
}

static void cancels_against_bytes(coil_stream *s, int peer, bool direct) {
    struct reading r = {.s = s, .limit_ns = -1};
    uint64_t sent = 0;
    int cancelled = 0, rounds = check_rounds(10000);
    for (int i = 0; i < rounds; i++) {
        if (direct) s->starved = true;
        race_reader(&r, peer, &sent, true);
        cr_expect(r.result == 0 || r.result == -ECANCELED, SEEDED("%d", r.result));
        cancelled += r.result != 0;
    }
    cr_expect(cancelled > 0 && cancelled < rounds, SEEDED("both outcomes come: %d of %d", cancelled, rounds));
    end_race(&r, peer, sent);
}

static int cancels_reads(void *arg) {
    int peer;
    (void)arg;
    for (int kind = 0; kind < PAIR_KINDS; kind++) {
        coil_stream *s = stream_and_peer(kind, &peer);
        cancels_against_bytes(s, peer, false);
    }
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    s->way = COIL__WAY_DIRECT;
    cancels_against_bytes(s, peer, false);
    if (!has_cap(COIL__CAP_BIT(RECV_MULTI_UNIX))) return 0;
    s = stream_and_peer(UNIX_PAIR, &peer);
    cancels_against_bytes(s, peer, true);
    return 0;
}

Test(stream_races, a_cancel_against_arriving_bytes_has_one_outcome_and_loses_none) {
    run_with_pool(0, 0, cancels_reads);
}

static void limits_against_bytes(coil_stream *s, int peer) {
    struct reading r = {.s = s};
    uint64_t sent = 0;
    int late = 0, rounds = check_rounds(10000);
    for (int i = 0; i < rounds; i++) {
        r.limit_ns = (int64_t)below(&rnd, 12000);
        race_reader(&r, peer, &sent, false);
        cr_expect(r.result == 0 || r.result == -ETIME, SEEDED("%d", r.result));
        late += r.result != 0;
    }
    cr_expect_gt(late, 0);
    end_race(&r, peer, sent);
}

static int limits_reads(void *arg) {
    int peer;
    (void)arg;
    coil_stream *s = stream_and_peer(UNIX_PAIR, &peer);
    limits_against_bytes(s, peer);
    s = stream_and_peer(TCP_PAIR, &peer);
    s->way = COIL__WAY_DIRECT;
    limits_against_bytes(s, peer);
    return 0;
}

Test(stream_races, a_deadline_against_arriving_bytes_has_one_outcome_and_loses_none) {
    const coil_run_opts o = {.timer_slack = coil_ns(1)};
    begin_random();
    cr_assert_eq(coil_run_with(&o, limits_reads, NULL), 0, SEEDED(""));
}

/* ---- cancel and deadline against leaving bytes ---- */

enum { WRITE_MOST = 200000 };

struct writing {
    coil_stream *s;
    int64_t limit_ns;
    size_t n;
    int result;
};

static int writes_in_time(void *arg) {
    static char buf[WRITE_MOST];
    struct writing *w = arg;
    int64_t begin = coil_stream_written(w->s);
    coil_scope scope = coil_within(w->limit_ns < 0 ? COIL_FOREVER : coil_ns(w->limit_ns));
    fill_from(buf, w->n, (uint64_t)begin);
    w->result = coil_stream_write(w->s, buf, w->n);
    int64_t n = coil_stream_written(w->s) - begin;
    cr_expect(w->result ? n >= 0 && n < (int64_t)w->n : n == (int64_t)w->n,
              SEEDED("%lld of %zu", (long long)n, w->n));
    /* What is left of the buffer is the caller's again: nobody may send from it now. */
    memset(buf, 0xee, w->n);
    if (!w->result && below(&rnd, 2)) w->result = coil_stream_flush(w->s);
    coil_leave(&scope);
    return 0;
}

static void races_writers(enum pair_kind kind, bool cancels, int expected) {
    int peer, stopped = 0, rounds = check_rounds(10000);
    struct writing w = {.s = stream_and_peer(kind, &peer)};
    uint64_t got = 0;
    small_send_buffer(coil_stream_fd(w.s));
    for (int i = 0; i < rounds; i++) {
        w.n = 1 + below(&rnd, below(&rnd, 4) ? 20000 : WRITE_MOST - 1);
        w.limit_ns = cancels ? -1 : (int64_t)below(&rnd, 30000);
        coil_task t = spawn(writes_in_time, &w);
        turns((int)below(&rnd, 3));
        if (below(&rnd, 2)) got += take_plain(peer, got);
        if (cancels && below(&rnd, 2)) turns((int)below(&rnd, 2));
        if (cancels) coil_cancel(t);
        if (!cancels) turns(1);
        if (below(&rnd, 2)) got += take_plain(peer, got);
        cr_expect_eq(join(t), 0);
        cr_expect(w.result == 0 || w.result == expected, SEEDED("%d", w.result));
        stopped += w.result != 0;
        cr_expect_leq(got, (uint64_t)coil_stream_written(w.s), SEEDED(""));
    }
    cr_expect_gt(stopped, 0, SEEDED(""));
    uint64_t all = (uint64_t)coil_stream_written(w.s);
    for (; got < all; turns(1))
        got += take_plain(peer, got);
    cr_expect_eq(coil_stream_close(w.s), 0);
    got += take_to_end(peer, got);
    cr_expect_eq(got, all, SEEDED("what was accepted, and no more"));
    close(peer);
}

static int cancels_writes(void *arg) {
    (void)arg;
    for (int kind = 0; kind < PAIR_KINDS; kind++)
        races_writers(kind, true, -ECANCELED);
    return 0;
}

static int limits_writes(void *arg) {
    (void)arg;
    for (int kind = 0; kind < PAIR_KINDS; kind++)
        races_writers(kind, false, -ETIME);
    return 0;
}

Test(stream_races, a_cancel_against_leaving_bytes_sends_what_written_says) {
    run_with_pool(0, 0, cancels_writes);
}

Test(stream_races, a_deadline_against_leaving_bytes_sends_what_written_says) {
    const coil_run_opts o = {.timer_slack = coil_ns(1)};
    begin_random();
    cr_assert_eq(coil_run_with(&o, limits_writes, NULL), 0, SEEDED(""));
}

/* ---- close and abort against everything ---- */

struct busy {
    coil_stream *s;
    uint64_t accepted; /* bytes of writes that have returned 0 */
    bool closed;       /* whoever is between two calls makes no more: the stream is gone */
};

static int writes_until_closed(void *arg) {
    struct busy *b = arg;
    static char buf[WRITE_MOST];
    int err = 0;
    while (!err && !b->closed) {
        size_t n = 1 + below(&rnd, below(&rnd, 2) ? 20000 : WRITE_MOST - 1);
        fill_from(buf, n, b->accepted);
        err = coil_stream_write(b->s, buf, n);
        if (!err) b->accepted += n;
        if (!err && !b->closed && below(&rnd, 4) == 0) err = coil_stream_flush(b->s);
        if (!err && below(&rnd, 4) == 0) coil_yield();
    }
    memset(buf, 0xee, sizeof buf);
    return err;
}

static int reads_until_closed(void *arg) {
    struct busy *b = arg;
    char buf[20000];
    ssize_t n = 1;
    while (n > 0 && !b->closed)
        n = coil_stream_read(b->s, buf, 1 + below(&rnd, sizeof buf));
    return n > 0 ? 0 : (int)n;
}

static unsigned expelled;

static void was_closed(int result) {
    cr_expect(result == 0 || result == -EBADF, SEEDED("%d", result));
    expelled += result == -EBADF;
}

struct taker {
    int fd;
    uint64_t got;
};

static int takes_to_end(void *arg) {
    struct taker *k = arg;
    k->got += take_to_end(k->fd, k->got);
    return 0;
}

static void close_one(bool aborts) {
    static const char noise[5000];
    struct taker k = {0};
    struct busy b = {.s = stream_and_peer(UNIX_PAIR, &k.fd)};
    if (below(&rnd, 2)) small_send_buffer(coil_stream_fd(b.s));
    coil_task r = spawn(reads_until_closed, &b), w = spawn(writes_until_closed, &b);
    for (uint64_t i = below(&rnd, 6); i; i--) {
        if (below(&rnd, 2)) k.got += take_plain(k.fd, k.got);
        if (below(&rnd, 2)) (void)send(k.fd, noise, 1 + below(&rnd, sizeof noise), MSG_DONTWAIT);
        if (below(&rnd, 2)) turns((int)below(&rnd, 3));
        if (below(&rnd, 2)) coil_yield();
    }
    coil_task taker = spawn(takes_to_end, &k);
    b.closed = true;
    if (aborts) {
        coil_stream_abort(b.s);
    } else {
        int err = coil_stream_close(b.s);
        cr_expect_eq(err, 0, SEEDED("%d", err));
    }
    was_closed(join(w));
    was_closed(join(r));
    cr_expect_eq(join(taker), 0);
    if (!aborts) cr_expect_geq(k.got, b.accepted, SEEDED("what was accepted has left"));
    close(k.fd);
}

static int closes_and_aborts(void *arg) {
    int rounds = check_rounds(3000), fds = check_fd_count();
    (void)arg;
    for (int i = 0; i < rounds; i++)
        close_one(i % 3 == 0);
    cr_expect_gt(expelled, (unsigned)rounds / 2,
                 SEEDED("calls were in flight in only %u of %d", expelled, rounds));
    cr_expect_eq(coil__here->driver->pool.out, 0);
    cr_expect_eq(check_fd_count(), fds);
    return 0;
}

Test(stream_races, a_close_against_calls_in_flight_ends_them_and_doubles_nothing) {
    run_with_pool(0, 0, closes_and_aborts);
}

Test(stream_races, so_it_does_with_a_pool_of_one_buffer) {
    run_with_pool(1, 64, closes_and_aborts);
}
