/* Connecting to an address. */
#include "check.h"
#include "peers.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/stat.h>

/* ---- success ---- */

struct end {
    int listening;
    coil_addr a;
    char text[COIL_ADDR_TEXT_MAX];
};

static struct end open_end(const char *where, int backlog) {
    struct end e;
    cr_expect_eq(coil_addr_parse(&e.a, where), 0);
    e.listening = peers_listen(&e.a, backlog);
    cr_expect(coil_addr_format(&e.a, e.text, sizeof e.text) > 0);
    return e;
}

static void exchange(coil_stream *s, int peer) {
    char c = 0;
    COIL_WITHIN(coil_sec(20));
    cr_expect_eq(send(peer, "a", 1, MSG_NOSIGNAL), 1);
    cr_expect_eq(coil_stream_read(s, &c, 1), 1);
    cr_expect_eq(coil_stream_write(s, &c, 1), 0);
    cr_expect_eq(coil_stream_flush(s), 0);
    cr_expect_eq(peers_byte(peer), 'a');
}

static int dials(void *where) {
    coil_stream *s;
    coil_addr peer;
    char text[COIL_ADDR_TEXT_MAX];
    struct end e = open_end(where, 8);
    int err = coil_dial(&s, e.text, NULL);
    cr_expect_eq(err, 0, "%s: %s", e.text, coil_strerror(err));
    if (err) return 0;
    int fd = accept(e.listening, NULL, NULL);
    cr_expect_geq(fd, 0);
    exchange(s, fd);
    cr_expect_eq(coil_stream_peer(s, &peer), 0);
    cr_expect(coil_addr_format(&peer, text, sizeof text) > 0);
    cr_expect_str_eq(text, e.text);
    cr_expect(fcntl(coil_stream_fd(s), F_GETFD) & FD_CLOEXEC);
    if (e.a.u.sa.sa_family != AF_UNIX) {
        int value = 0;
        socklen_t n = sizeof value;
        cr_expect_eq(getsockopt(coil_stream_fd(s), IPPROTO_TCP, TCP_NODELAY, &value, &n), 0);
        cr_expect_eq(value, 1);
    }
    cr_expect_eq(coil_stream_close(s), 0);
    cr_expect(peers_sees_end(fd));
    peers_reset(fd);
    close(e.listening);
    return 0;
}

static void check_dial(const char *where) {
    int before = check_fd_count();
    cr_expect_eq(coil_run(dials, (void *)(uintptr_t)where), 0);
    cr_expect_eq(check_fd_count(), before);
}

Test(dial, it_reaches_ipv4) {
    check_dial("127.0.0.1:0");
}

Test(dial, it_reaches_ipv6) {
    if (!peers_have_ipv6()) cr_skip("no IPv6 here");
    check_dial("[::1]:0");
}

Test(dial, it_reaches_an_abstract_name) {
    char name[64];
    check_dial(peers_abstract(name, "dial"));
}

Test(dial, it_reaches_a_path) {
    char dir[] = "/tmp/coil-dial-XXXXXX", where[64];
    cr_assert_not_null(mkdtemp(dir));
    snprintf(where, sizeof where, "unix:%s/s", dir);
    check_dial(where);
    unlink(where + 5);
    rmdir(dir);
}

static int dials_from(void *arg) {
    coil_stream *s;
    coil_addr from, local;
    (void)arg;
    struct end e = open_end("127.0.0.1:0", 8);
    cr_expect_eq(coil_addr_parse(&from, "127.0.0.2:0"), 0);
    coil_dial_opts o = {.from = &from};
    cr_expect_eq(coil_dial(&s, e.text, &o), 0);
    cr_expect_eq(coil_stream_local(s, &local), 0);
    cr_expect_eq(ntohl(local.u.in.sin_addr.s_addr), 0x7f000002u);
    coil_stream_abort(s);
    cr_expect_eq(coil_addr_parse(&from, "192.0.2.1:0"), 0);
    cr_expect_eq(coil_dial(&s, e.text, &o), -EADDRNOTAVAIL);
    cr_expect_null(s);
    from = e.a;
    cr_expect_eq(coil_dial(&s, e.text, &o), -EADDRINUSE);
    cr_expect_null(s);
    cr_expect_eq(coil_addr_parse(&from, "[::1]:0"), 0);
    cr_expect_lt(coil_dial(&s, e.text, &o), 0, "of another family");
    cr_expect_null(s);
    from.len = 3;
    cr_expect_eq(coil_dial(&s, e.text, &o), -EINVAL);
    cr_expect_null(s);
    close(e.listening);
    return 0;
}

Test(dial, it_comes_from_the_address_that_is_asked_for_or_says_why_not) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(dials_from, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

/* ---- failure ---- */

static void fails(const char *where, const coil_dial_opts *o, int err) {
    coil_stream *s = (coil_stream *)(uintptr_t)&fails;
    int got = coil_dial(&s, where, o);
    cr_expect_eq(got, err, "%s: %s", where ? where : "NULL", coil_strerror(got));
    cr_expect_null(s);
}

static void fails_addr(const coil_addr *a, int err) {
    coil_stream *s = (coil_stream *)(uintptr_t)&fails;
    int got = coil_dial_addr(&s, a, NULL);
    cr_expect_eq(got, err, "%s", coil_strerror(got));
    cr_expect_null(s);
}

static int fails_to_dial(void *arg) {
    (void)arg;
    struct end e = open_end("127.0.0.1:0", 8);
    close(e.listening);
    fails(e.text, NULL, -ECONNREFUSED);
    fails("unix:/tmp/no-such-directory/s", NULL, -ENOENT);
    fails("unix:@coil-test-nobody-is-here", NULL, -ECONNREFUSED);
    fails(NULL, NULL, -EINVAL);
    fails("localhost:80", NULL, -EINVAL);
    fails("", NULL, -EINVAL);
    for (int i = 0; i < 6; i++) {
        coil_dial_opts o = {.from = NULL};
        o.reserved[i] = 1;
        fails(e.text, &o, -EINVAL);
    }
    fails_addr(NULL, -EINVAL);
    e.a.len--;
    fails_addr(&e.a, -EINVAL);
    coil_addr other = {.len = sizeof other.u.sa, .u.sa.sa_family = AF_NETLINK};
    fails_addr(&other, -EAFNOSUPPORT);
    cr_expect_eq(coil_dial(NULL, e.text, NULL), -EINVAL);
    cr_expect_eq(coil_dial_addr(NULL, &e.a, NULL), -EINVAL);
    return 0;
}

Test(dial, what_cannot_be_reached_is_an_error_and_no_socket_stays) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(fails_to_dial, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int dials_stale_path(void *where) {
    fails(where, NULL, -ECONNREFUSED);
    return 0;
}

static int dials_forbidden_path(void *where) {
    fails(where, NULL, -EACCES);
    return 0;
}

Test(dial, a_path_that_nobody_listens_at_refuses_and_one_that_is_not_ours_gives_eacces) {
    char dir[] = "/tmp/coil-dial-XXXXXX", where[64];
    coil_addr a;
    cr_assert_not_null(mkdtemp(dir));
    snprintf(where, sizeof where, "unix:%s/s", dir);
    cr_assert_eq(coil_addr_parse(&a, where), 0);
    close(peers_listen(&a, 1));
    cr_expect_eq(coil_run(dials_stale_path, where), 0);
    if (geteuid() == 0) {
        cr_assert_eq(chmod(dir, 0700), 0);
        cr_assert_eq(seteuid(65534), 0);
        cr_expect_eq(coil_run(dials_forbidden_path, where), 0);
        cr_assert_eq(seteuid(0), 0);
    }
    unlink(where + 5);
    rmdir(dir);
}

static int dials_without_descriptors(void *arg) {
    (void)arg;
    struct end e = open_end("127.0.0.1:0", 8);
    struct peers_hog hog;
    peers_take_all(&hog);
    fails(e.text, NULL, -EMFILE);
    peers_give_back(&hog);
    close(e.listening);
    return 0;
}

Test(dial, without_a_descriptor_it_gives_emfile) {
    peers_few_descriptors();
    cr_assert_eq(coil_run(dials_without_descriptors, NULL), 0);
}

static int dials_refused(void *arg) {
    (void)arg;
    struct end e = open_end("127.0.0.1:0", 8);
    coil_scope s = coil_within(coil_ns(0));
    fails(e.text, NULL, -ETIME);
    coil_leave(&s);
    coil_cancel(coil_self());
    fails(e.text, NULL, -ECANCELED);
    fails_addr(&e.a, -ECANCELED);
    struct pollfd p = {.fd = e.listening, .events = POLLIN};
    cr_expect_eq(poll(&p, 1, 0), 0, "nothing was done");
    close(e.listening);
    return 0;
}

Test(dial, refused_on_entry_it_has_done_nothing) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(dials_refused, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

/* ---- a full backlog ---- */

struct attempt {
    struct end e;
    coil_stream *s;
    int64_t limit_ns;
    int result, ticks;
    bool done;
};

static int attempts(void *arg) {
    struct attempt *d = arg;
    COIL_WITHIN(coil_ns(d->limit_ns));
    d->result = coil_dial(&d->s, d->e.text, NULL);
    d->done = true;
    return d->result;
}

static int ticks(void *arg) {
    struct attempt *d = arg;
    while (coil_sleep(coil_ms(1)) == 0)
        d->ticks++;
    return 0;
}

/* Connects until it would block; the sockets are in fds, their number is returned. */
static int fill_backlog(const struct end *e, int *fds, int max) {
    for (int n = 0;; n++) {
        fds[n] = socket(e->a.u.sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (n == max - 1) return max;
        int err = connect(fds[n], &e->a.u.sa, e->a.len) == 0 ? 0 : errno;
        struct pollfd p = {.fd = fds[n], .events = POLLOUT};
        if (err == EINPROGRESS && poll(&p, 1, 1000) == 1) err = 0;
        if (err) return n + 1;
    }
}

/* How many sockets of this machine are still on their way to that port. */
static int half_open(const coil_addr *to) {
    char line[512];
    int count = 0;
    unsigned port, state;
    FILE *f = fopen("/proc/net/tcp", "re");
    while (f && fgets(line, sizeof line, f)) {
        bool row = sscanf(line, " %*d: %*x:%*x %*x:%x %x", &port, &state) == 2;
        if (row && port == ntohs(to->u.in.sin_port) && state == 2) count++;
    }
    if (f) fclose(f);
    return count;
}

static void end_attempts(struct attempt *d) {
    coil_task t;
    int got = 0;
    d->limit_ns = 30000000;
    cr_expect_eq(coil_spawn(&t, attempts, d), 0);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, -ETIME, "%s", coil_strerror(got));
    cr_expect_null(d->s);
    d->limit_ns = INT64_MAX;
    cr_expect_eq(coil_spawn(&t, attempts, d), 0);
    coil_sleep(coil_ms(10));
    coil_cancel(t);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, -ECANCELED, "%s", coil_strerror(got));
    cr_expect_null(d->s);
}

static int dials_full_tcp(void *arg) {
    int fds[16];
    struct attempt d = {.e = open_end("127.0.0.1:0", 1)};
    (void)arg;
    int n = fill_backlog(&d.e, fds, 16);
    for (int i = n - 1; i < n; i++)
        close(fds[i]);
    cr_expect_lt(n, 16, "the backlog never was full");
    end_attempts(&d);
    cr_expect_eq(half_open(&d.e.a), 0, "a socket is still trying");
    for (int i = 0; i < n - 1; i++)
        peers_reset(fds[i]);
    close(d.e.listening);
    return 0;
}

Test(dial, a_listener_that_takes_no_more_is_waited_for_until_limit_or_cancel) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(dials_full_tcp, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int dials_full_unix(void *where) {
    int fds[16];
    coil_task ticker, t;
    struct attempt d = {.e = open_end(where, 1)};
    int n = fill_backlog(&d.e, fds, 16), got = 1;
    cr_expect_lt(n, 16, "the backlog never was full");
    cr_expect_eq(coil_spawn(&ticker, ticks, &d), 0);
    end_attempts(&d);
    cr_expect_gt(d.ticks, 0, "others stood still");
    d.limit_ns = INT64_MAX;
    d.done = false;
    cr_expect_eq(coil_spawn(&t, attempts, &d), 0);
    coil_sleep(coil_ms(5));
    cr_expect_not(d.done);
    close(accept(d.e.listening, NULL, NULL));
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, 0, "there was room: %s", coil_strerror(got));
    coil_stream_close(d.s);
    coil_cancel(ticker);
    cr_expect_eq(coil_join(ticker, NULL), 0);
    for (int i = 0; i < n; i++)
        close(fds[i]);
    close(d.e.listening);
    return 0;
}

Test(dial, a_unix_listener_whose_backlog_is_full_is_waited_for) {
    char name[64];
    int before = check_fd_count();
    cr_assert_eq(coil_run(dials_full_unix, (void *)(uintptr_t)peers_abstract(name, "full")), 0);
    cr_assert_eq(check_fd_count(), before);
}

/* ---- races ---- */

struct race {
    struct attempt d;
    bool is_unix;
    uint64_t seed, state;
    int wins, losses;
};

static void some_turns(struct race *r) {
    for (unsigned n = peers_below(&r->state, 3); n; n--)
        coil_yield();
    if (peers_below(&r->state, 4) == 0) coil_nop();
}

static int accept_waiting(int listening, int wait_ms) {
    struct pollfd p = {.fd = listening, .events = POLLIN};
    return poll(&p, 1, wait_ms) == 1 ? accept(listening, NULL, NULL) : -1;
}

/* The other end of a stream. A connection of a dial that was ended before may have come through late, and
 * stand in front of it. */
static int accept_from(int listening, const coil_stream *s) {
    coil_addr own, from = {.len = sizeof from.u};
    cr_expect_eq(coil_stream_local(s, &own), 0);
    for (int fd; (fd = accept_waiting(listening, 20000)) >= 0; close(fd)) {
        from.len = sizeof from.u;
        getpeername(fd, &from.u.sa, &from.len);
        if (from.u.sa.sa_family == AF_UNIX || from.u.in.sin_port == own.u.in.sin_port) return fd;
    }
    return -1;
}

/* What the listener has got: nothing if room was never there, else one connection, which has the fate of the
 * dial's. */
static void check_outcome(struct race *r, int result, bool by_limit) {
    struct attempt *d = &r->d;
    int fd = result == 0 ? accept_from(d->e.listening, d->s) : accept_waiting(d->e.listening, 0);
    if (result == 0) {
        r->wins++;
        cr_expect_geq(fd, 0, "seed %#llx", (unsigned long long)r->seed);
        exchange(d->s, fd);
        coil_stream_abort(d->s);
    } else {
        r->losses++;
        cr_expect_eq(result, by_limit ? -ETIME : -ECANCELED, "%s, seed %#llx", coil_strerror(result),
                     (unsigned long long)r->seed);
        cr_expect_null(d->s);
        if (fd >= 0)
            cr_expect(peers_sees_end(fd), "half of a connection stays, seed %#llx",
                      (unsigned long long)r->seed);
    }
    if (fd >= 0) peers_reset(fd);
}

static void race_once(struct race *r) {
    coil_task t;
    int result = 1, filler = -1;
    bool by_limit = peers_below(&r->state, 2);
    r->d.limit_ns = by_limit ? 1000 * peers_below(&r->state, 60) : INT64_MAX;
    /* A Unix listener with no backlog has room for one: while that is taken, the dial has to wait. */
    if (r->is_unix && peers_below(&r->state, 2)) filler = peers_connect(&r->d.e.a);
    cr_expect_eq(coil_spawn(&t, attempts, &r->d), 0);
    some_turns(r);
    if (filler >= 0) {
        close(accept(r->d.e.listening, NULL, NULL));
        close(filler);
    }
    some_turns(r);
    if (!by_limit) coil_cancel(t);
    cr_expect_eq(coil_join(t, &result), 0);
    check_outcome(r, result, by_limit);
}

static int races(void *arg) {
    struct race *r = arg;
    char name[64];
    r->d.e = open_end(r->is_unix ? peers_abstract(name, "race") : "127.0.0.1:0", r->is_unix ? 0 : 16);
    for (int i = check_rounds(10000); i; i--)
        race_once(r);
    if (!r->is_unix) cr_expect_eq(half_open(&r->d.e.a), 0);
    close(r->d.e.listening);
    return 0;
}

static void check_race(bool is_unix) {
    struct race r = {.is_unix = is_unix, .seed = peers_seed()};
    int before = check_fd_count();
    r.state = r.seed;
    coil_run_opts o = {.timer_slack = coil_ns(1)};
    cr_assert_eq(coil_run_with(&o, races, &r), 0, "seed %#llx", (unsigned long long)r.seed);
    cr_assert_eq(check_fd_count(), before, "seed %#llx", (unsigned long long)r.seed);
    if (check_rounds(10000) >= 1000) {
        cr_expect_gt(r.wins, 0);
        cr_expect_gt(r.losses, 0);
    }
}

Test(dial, a_cancel_or_limit_against_success_has_one_outcome_and_leaves_no_half_connection) {
    check_race(false);
}

Test(dial, the_same_holds_where_the_listener_has_no_room_at_first) {
    check_race(true);
}
