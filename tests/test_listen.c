/* Listening and accepting. */
#include "check.h"
#include "peers.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/wait.h>

static coil_listener *listen_at(const char *where, coil_addr *a) {
    coil_listener *l;
    int err = coil_listen(&l, where, NULL);
    cr_expect_eq(err, 0, "%s: %s", where, coil_strerror(err));
    if (!err) cr_expect_eq(coil_listener_addr(l, a), 0);
    return l;
}

/* One byte each way. */
static void exchange(coil_stream *s, int peer) {
    char c = 0;
    COIL_WITHIN(coil_sec(20));
    cr_expect_eq(send(peer, "a", 1, MSG_NOSIGNAL), 1);
    cr_expect_eq(coil_stream_read(s, &c, 1), 1);
    cr_expect_eq(c, 'a');
    cr_expect_eq(coil_stream_write(s, "b", 1), 0);
    cr_expect_eq(coil_stream_flush(s), 0);
    cr_expect_eq(peers_byte(peer), 'b');
}

static void accept_one(coil_listener *l, int peer) {
    coil_stream *s;
    COIL_WITHIN(coil_sec(20));
    int err = coil_listener_accept(l, &s);
    cr_expect_eq(err, 0, "%s", coil_strerror(err));
    if (err) return;
    exchange(s, peer);
    cr_expect_eq(coil_stream_close(s), 0);
}

static int connected(const coil_addr *a) {
    int fd = peers_connect(a);
    cr_expect(fd >= 0, "%s", coil_strerror(fd));
    return fd;
}

/* ---- addresses ---- */

static int serves_address(void *where) {
    coil_addr a;
    coil_listener *l = listen_at(where, &a);
    if (!l) return 0;
    int peer = connected(&a);
    accept_one(l, peer);
    peers_reset(peer);
    cr_expect_eq(coil_listener_close(l), 0);
    return 0;
}

static void check_address(const char *where) {
    int before = check_fd_count();
    cr_expect_eq(coil_run(serves_address, (void *)(uintptr_t)where), 0);
    cr_expect_eq(check_fd_count(), before);
}

Test(listen, it_listens_on_ipv4) {
    check_address("127.0.0.1:0");
}

Test(listen, it_listens_on_ipv6) {
    if (!peers_have_ipv6()) cr_skip("no IPv6 here");
    check_address("[::1]:0");
}

Test(listen, it_listens_at_an_abstract_name) {
    char name[64];
    check_address(peers_abstract(name, "listen"));
}

Test(listen, it_listens_at_a_path_and_leaves_it_in_the_file_system) {
    char dir[] = "/tmp/coil-listen-XXXXXX", where[64];
    struct stat st;
    cr_assert_not_null(mkdtemp(dir));
    snprintf(where, sizeof where, "unix:%s/s", dir);
    check_address(where);
    cr_expect_eq(stat(where + 5, &st), 0);
    unlink(where + 5);
    rmdir(dir);
}

static int serves_both_families(void *arg) {
    coil_addr a, to;
    char text[COIL_ADDR_TEXT_MAX];
    (void)arg;
    coil_listener *l = listen_at(":0", &a);
    int port = ntohs(a.u.in6.sin6_port);
    cr_expect_eq(a.u.sa.sa_family, AF_INET6);
    cr_expect_gt(port, 0, "the kernel's choice is told");
    const char *const forms[] = {"127.0.0.1:%d", "[::1]:%d"};
    for (int i = 0; i < 2; i++) {
        snprintf(text, sizeof text, forms[i], port);
        cr_expect_eq(coil_addr_parse(&to, text), 0);
        int peer = connected(&to);
        accept_one(l, peer);
        peers_reset(peer);
    }
    coil_listener_close(l);
    return 0;
}

Test(listen, an_address_without_a_host_takes_both_families) {
    if (!peers_have_ipv6()) cr_skip("no IPv6 here");
    cr_assert_eq(coil_run(serves_both_families, NULL), 0);
}

static int v6_only(void *arg) {
    coil_addr a, to;
    char text[32];
    coil_listener *l;
    coil_listen_opts o = {.v6_only = true};
    (void)arg;
    cr_expect_eq(coil_listen(&l, "[::]:0", &o), 0);
    coil_listener_addr(l, &a);
    snprintf(text, sizeof text, "127.0.0.1:%d", ntohs(a.u.in6.sin6_port));
    coil_addr_parse(&to, text);
    cr_expect_eq(peers_connect(&to), -ECONNREFUSED);
    coil_listener_close(l);
    return 0;
}

Test(listen, v6_only_takes_no_ipv4) {
    if (!peers_have_ipv6()) cr_skip("no IPv6 here");
    cr_assert_eq(coil_run(v6_only, NULL), 0);
}

static int option_of(coil_stream *s, int level, int name) {
    int value = -1;
    socklen_t n = sizeof value;
    cr_expect_eq(getsockopt(coil_stream_fd(s), level, name, &value, &n), 0);
    return value;
}

static int accepts_and_looks(void *arg) {
    coil_addr a, peer_name, told;
    coil_stream *s;
    (void)arg;
    coil_listener *l = listen_at("127.0.0.1:0", &a);
    int peer = connected(&a);
    cr_expect_eq(coil_listener_accept(l, &s), 0);
    cr_expect_eq(option_of(s, IPPROTO_TCP, TCP_NODELAY), 1);
    cr_expect(fcntl(coil_stream_fd(s), F_GETFD) & FD_CLOEXEC);
    peer_name.len = sizeof peer_name.u;
    getsockname(peer, &peer_name.u.sa, &peer_name.len);
    cr_expect_eq(coil_stream_peer(s, &told), 0);
    cr_expect_eq(told.u.in.sin_port, peer_name.u.in.sin_port);
    cr_expect_eq(coil_stream_local(s, &told), 0);
    cr_expect_eq(told.u.in.sin_port, a.u.in.sin_port);
    cr_expect_eq(coil_stream_close(s), 0);
    peers_reset(peer);
    cr_expect_eq(coil_listener_close(l), 0);
    cr_expect_eq(coil_listener_close(NULL), 0);
    return 0;
}

Test(listen, an_accepted_connection_has_nodelay_and_cloexec_and_knows_both_ends) {
    cr_assert_eq(coil_run(accepts_and_looks, NULL), 0);
}

/* ---- bad arguments ---- */

static void refuses(const char *where, const coil_listen_opts *o, int err) {
    coil_listener *l = (coil_listener *)(uintptr_t)&refuses;
    int got = coil_listen(&l, where, o);
    cr_expect_eq(got, err, "%s: %s", where ? where : "NULL", coil_strerror(got));
    cr_expect_null(l);
}

static void refuses_addr(const coil_addr *a, int err) {
    coil_listener *l = (coil_listener *)(uintptr_t)&refuses;
    int got = coil_listen_addr(&l, a, NULL);
    cr_expect_eq(got, err, "%s", coil_strerror(got));
    cr_expect_null(l);
}

static int bad_arguments(void *arg) {
    coil_listen_opts o = {.backlog = -1};
    coil_addr a;
    (void)arg;
    refuses("127.0.0.1:0", &o, -EINVAL);
    for (int i = 0; i < 6; i++) {
        o = (coil_listen_opts){.backlog = 0};
        o.reserved[i] = 1;
        refuses("127.0.0.1:0", &o, -EINVAL);
    }
    refuses(NULL, NULL, -EINVAL);
    refuses("localhost:0", NULL, -EINVAL);
    refuses("127.0.0.1:65536", NULL, -EINVAL);
    refuses_addr(NULL, -EINVAL);
    cr_expect_eq(coil_addr_parse(&a, "127.0.0.1:0"), 0);
    a.len--;
    refuses_addr(&a, -EINVAL);
    a.len = sizeof a.u + 1;
    refuses_addr(&a, -EINVAL);
    a = (coil_addr){.len = 0};
    refuses_addr(&a, -EINVAL);
    a = (coil_addr){.len = sizeof a.u.sa, .u.sa.sa_family = AF_NETLINK};
    refuses_addr(&a, -EAFNOSUPPORT);
    cr_expect_eq(coil_addr_parse(&a, "unix:"), 0);
    refuses_addr(&a, -EINVAL);
    cr_expect_eq(coil_listen(NULL, "127.0.0.1:0", NULL), -EINVAL);
    return 0;
}

Test(listen, bad_arguments_are_errors_and_no_listener) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(bad_arguments, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int impossible_places(void *arg) {
    (void)arg;
    refuses("192.0.2.1:0", NULL, -EADDRNOTAVAIL);
    refuses("unix:/tmp/no-such-directory/s", NULL, -ENOENT);
    refuses("unix:/dev/null/s", NULL, -ENOTDIR);
    return 0;
}

Test(listen, a_place_that_is_not_there_is_an_error) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(impossible_places, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int forbidden_places(void *dir) {
    char where[64];
    snprintf(where, sizeof where, "unix:%s/s", (char *)dir);
    refuses(where, NULL, -EACCES);
    refuses("127.0.0.1:1", NULL, -EACCES);
    return 0;
}

Test(listen, a_place_that_is_not_ours_gives_eacces) {
    char dir[] = "/tmp/coil-listen-XXXXXX";
    int low = 1024;
    FILE *f = fopen("/proc/sys/net/ipv4/ip_unprivileged_port_start", "re");
    if (f && fscanf(f, "%d", &low) != 1) low = 1024;
    if (f) fclose(f);
    if (geteuid() != 0 || low <= 1) cr_skip("needs to be root first, and ports that are root's");
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(chmod(dir, 0700), 0);
    cr_assert_eq(seteuid(65534), 0);
    int result = coil_run(forbidden_places, dir);
    cr_assert_eq(seteuid(0), 0);
    rmdir(dir);
    cr_assert_eq(result, 0, "%s", coil_strerror(result));
}

static int listens_without_descriptors(void *arg) {
    (void)arg;
    struct peers_hog hog;
    peers_take_all(&hog);
    refuses("127.0.0.1:0", NULL, -EMFILE);
    peers_give_back(&hog);
    return 0;
}

Test(listen, without_a_descriptor_it_gives_emfile) {
    peers_few_descriptors();
    cr_assert_eq(coil_run(listens_without_descriptors, NULL), 0);
}

/* ---- a port that is taken ---- */

struct taken {
    int fd;
    coil_addr a;
    char text[64];
    int ticks;
};

static int ticks(void *arg) {
    struct taken *k = arg;
    while (coil_sleep(coil_ms(1)) == 0)
        k->ticks++;
    return 0;
}

static struct taken take_port(void) {
    struct taken k = {.ticks = 0};
    coil_addr_parse(&k.a, "127.0.0.1:0");
    k.fd = peers_listen(&k.a, 1);
    coil_addr_format(&k.a, k.text, sizeof k.text);
    return k;
}

static int port_is_taken(void *arg) {
    coil_task ticker;
    struct taken k = take_port();
    (void)arg;
    cr_expect_eq(coil_spawn(&ticker, ticks, &k), 0);
    int64_t began_ns = coil_now().ns;
    refuses(k.text, NULL, -EADDRINUSE);
    cr_expect(coil_now().ns - began_ns >= 900000000, "it gave up early");
    cr_expect_gt(k.ticks, 10, "others stood still");
    coil_cancel(ticker);
    cr_expect_eq(coil_join(ticker, NULL), 0);
    close(k.fd);
    return 0;
}

Test(listen, a_taken_port_is_tried_for_a_second_while_others_run) {
    cr_assert_eq(coil_run(port_is_taken, NULL), 0);
}

static int lets_go(void *arg) {
    struct taken *k = arg;
    coil_sleep(coil_ms(50));
    return close(k->fd);
}

static int port_becomes_free(void *arg) {
    struct taken k = take_port();
    coil_listener *l;
    (void)arg;
    cr_expect_eq(coil_spawn(NULL, lets_go, &k), 0);
    cr_expect_eq(coil_listen(&l, k.text, NULL), 0);
    coil_listener_close(l);
    return 0;
}

Test(listen, a_port_that_becomes_free_meanwhile_is_taken) {
    cr_assert_eq(coil_run(port_becomes_free, NULL), 0);
}

static int listens_there(void *arg) {
    struct taken *k = arg;
    coil_listener *l = (coil_listener *)arg;
    int err = coil_listen(&l, k->text, NULL);
    cr_expect_null(l);
    return err;
}

/* How long both took. */
static int64_t end_retries(void) {
    struct taken k = take_port();
    coil_task t;
    int got = 0;
    int64_t began_ns = coil_now().ns;
    cr_expect_eq(coil_spawn(&t, listens_there, &k), 0);
    coil_sleep(coil_ms(20));
    coil_cancel(t);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, -ECANCELED);
    coil_scope s = coil_within(coil_ms(20));
    refuses(k.text, NULL, -ETIME);
    refuses("127.0.0.1:0", NULL, -ETIME);
    cr_expect(coil_leave(&s));
    close(k.fd);
    return coil_now().ns - began_ns;
}

/* Once out of several times: the machine may be busy. */
static int retry_is_ended(void *arg) {
    int tries = 0;
    (void)arg;
    while (end_retries() >= 900000000 && tries < 10)
        tries++;
    cr_expect_lt(tries, 10, "neither of them ended it");
    return 0;
}

Test(listen, cancel_and_limit_end_the_retry) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(retry_is_ended, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int shares_port(void *arg) {
    coil_listener *a, *b;
    coil_addr at;
    char text[64];
    coil_listen_opts o = {.reuse_port = true};
    (void)arg;
    cr_expect_eq(coil_listen(&a, "127.0.0.1:0", &o), 0);
    coil_listener_addr(a, &at);
    coil_addr_format(&at, text, sizeof text);
    cr_expect_eq(coil_listen(&b, text, &o), 0);
    refuses(text, NULL, -EADDRINUSE);
    coil_listener_close(a);
    coil_listener_close(b);
    return 0;
}

Test(listen, reuse_port_lets_several_listeners_share_a_port) {
    cr_assert_eq(coil_run(shares_port, NULL), 0);
}

/* ---- accepting ---- */

enum { ACCEPTORS = 8, CLIENTS = 300 };

struct crowd {
    coil_listener *l;
    int accepted, ended;
    bool seen[65536];
    coil_stream *streams[CLIENTS];
};

static int accepts_many(void *arg) {
    struct crowd *c = arg;
    coil_stream *s;
    coil_addr peer;
    int err;
    while ((err = coil_listener_accept(c->l, &s)) == 0) {
        cr_expect_eq(coil_stream_peer(s, &peer), 0);
        int port = ntohs(peer.u.in.sin_port);
        cr_expect_not(c->seen[port], "port %d was handed out twice", port);
        c->seen[port] = true;
        c->streams[c->accepted++] = s;
    }
    c->ended++;
    return err;
}

static int many_accept(void *arg) {
    static struct crowd c;
    static int peers[CLIENTS];
    coil_task tasks[ACCEPTORS];
    coil_addr a;
    (void)arg;
    c.l = listen_at("127.0.0.1:0", &a);
    for (int i = 0; i < ACCEPTORS; i++)
        cr_expect_eq(coil_spawn(&tasks[i], accepts_many, &c), 0);
    for (int i = 0; i < CLIENTS; i++) {
        peers[i] = connected(&a);
        if (i % 7 == 0) coil_yield();
    }
    cr_expect(PEERS_AWAIT(c.accepted == CLIENTS), "%d", c.accepted);
    cr_expect_eq(c.ended, 0);
    for (int i = 0; i < CLIENTS; i++)
        peers_reset(peers[i]);
    for (int i = 0; i < c.accepted; i++)
        coil_stream_abort(c.streams[i]);
    cr_expect_eq(coil_listener_close(c.l), 0);
    cr_expect_eq(c.ended, ACCEPTORS, "a close returns after those inside have left");
    for (int i = 0; i < ACCEPTORS; i++) {
        int got = 0;
        cr_expect_eq(coil_join(tasks[i], &got), 0);
        cr_expect_eq(got, -EBADF);
    }
    return 0;
}

Test(listen, each_connection_goes_to_one_of_the_tasks_that_accept_and_a_close_gives_them_ebadf) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(many_accept, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int refused_on_entry(void *arg) {
    coil_addr a;
    coil_stream *s = arg;
    (void)arg;
    coil_listener *l = listen_at("127.0.0.1:0", &a);
    int peer = connected(&a);
    coil_scope within = coil_within(coil_ns(0));
    cr_expect_eq(coil_listener_accept(l, &s), -ETIME);
    cr_expect_null(s);
    coil_leave(&within);
    accept_one(l, peer);
    within = coil_within(coil_ms(5));
    cr_expect_eq(coil_listener_accept(l, &s), -ETIME);
    cr_expect(coil_leave(&within));
    peers_reset(peer);
    coil_listener_close(l);
    return 0;
}

Test(listen, an_accept_obeys_the_callers_limit_and_leaves_the_connection) {
    cr_assert_eq(coil_run(refused_on_entry, NULL), 0);
}

/* ---- races ---- */

struct race {
    coil_listener *l;
    coil_addr a;
    coil_stream *got;
    int64_t limit_ns;
    uint64_t seed, state;
    int wins, losses;
};

static int accepts_within(void *arg) {
    struct race *r = arg;
    COIL_WITHIN(coil_ns(r->limit_ns));
    return coil_listener_accept(r->l, &r->got);
}

static void some_turns(struct race *r) {
    for (unsigned n = peers_below(&r->state, 3); n; n--)
        coil_yield();
    if (peers_below(&r->state, 4) == 0) coil_nop();
}

/* Whatever became of the accept, the connection is there, once. */
static void check_outcome(struct race *r, int result, int peer, bool by_limit) {
    if (result == 0) {
        r->wins++;
        exchange(r->got, peer);
        coil_stream_abort(r->got);
    } else {
        r->losses++;
        cr_expect_eq(result, by_limit ? -ETIME : -ECANCELED, "seed %#llx", (unsigned long long)r->seed);
        cr_expect_null(r->got);
        accept_one(r->l, peer);
    }
}

static void race_once(struct race *r) {
    coil_task t;
    int result = 1;
    bool by_limit = peers_below(&r->state, 2), late = peers_below(&r->state, 2);
    r->limit_ns = by_limit ? 1000 * peers_below(&r->state, 40) : INT64_MAX;
    cr_expect_eq(coil_spawn(&t, accepts_within, r), 0);
    some_turns(r);
    int peer = late ? -1 : connected(&r->a);
    some_turns(r);
    if (!by_limit) coil_cancel(t);
    some_turns(r);
    if (late) peer = connected(&r->a);
    cr_expect_eq(coil_join(t, &result), 0);
    check_outcome(r, result, peer, by_limit);
    peers_reset(peer);
}

static int races(void *arg) {
    struct race *r = arg;
    r->l = listen_at("127.0.0.1:0", &r->a);
    for (int i = check_rounds(10000); i; i--)
        race_once(r);
    coil_listener_close(r->l);
    return 0;
}

Test(listen, a_cancel_or_limit_against_a_connection_has_one_outcome_and_loses_none) {
    struct race r = {.seed = peers_seed()};
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

/* ---- shortage ---- */

static int accepts_without_descriptors(void *arg) {
    enum { WAITING = 3 };
    int peers[WAITING], errors = 0, err;
    coil_stats before, after;
    coil_stream *s;
    coil_addr a;
    (void)arg;
    coil_listener *l = listen_at("127.0.0.1:0", &a);
    for (int i = 0; i < WAITING; i++)
        peers[i] = connected(&a);
    struct peers_hog hog;
    peers_take_all(&hog);
    coil_stats_get(&before);
    coil_scope within = coil_within(coil_ms(700));
    while ((err = coil_listener_accept(l, &s)) == -EMFILE)
        errors++;
    coil_leave(&within);
    coil_stats_get(&after);
    cr_expect_eq(err, -ETIME, "%s", coil_strerror(err));
    cr_expect(errors >= 1 && errors <= 10, "%d", errors);
    cr_expect_lt(after.turns - before.turns, 200u, "%d", (int)(after.turns - before.turns));
    cr_expect_lt(after.enters - before.enters, 200u, "%d", (int)(after.enters - before.enters));
    peers_give_back(&hog);
    for (int i = 0; i < WAITING; i++) {
        COIL_WITHIN(coil_sec(20));
        while ((err = coil_listener_accept(l, &s)) == -EMFILE) {
        }
        cr_expect_eq(err, 0, "%s", coil_strerror(err));
        if (err == 0) coil_stream_abort(s);
    }
    for (int i = 0; i < WAITING; i++)
        peers_reset(peers[i]);
    coil_listener_close(l);
    return 0;
}

Test(listen, out_of_descriptors_it_says_so_without_spinning_and_goes_on_when_there_are_some) {
    peers_few_descriptors();
    int before = check_fd_count();
    cr_assert_eq(coil_run(accepts_without_descriptors, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

/* ---- the queue ---- */

/* Through a Unix socket: a TCP connection whose last packet is handled late, on another CPU, comes behind
 * those that were made after it. */
enum { FLOOD = 1500 };

static int peers_of_flood[FLOOD];

static void flood(const coil_addr *a) {
    for (int i = 0; i < FLOOD; i++)
        peers_of_flood[i] = connected(a);
}

static void accept_flood(coil_listener *l) {
    for (int i = 0; i < FLOOD; i++) {
        coil_stream *s;
        char c;
        COIL_WITHIN(coil_sec(20));
        int err = coil_listener_accept(l, &s);
        cr_expect_eq(err, 0, "%d: %s", i, coil_strerror(err));
        if (err) return;
        cr_expect_eq(send(peers_of_flood[i], "x", 1, MSG_NOSIGNAL), 1);
        cr_expect_eq(coil_stream_read(s, &c, 1), 1, "they come in order");
        coil_stream_abort(s);
        peers_reset(peers_of_flood[i]);
    }
}

static int floods(void *arg) {
    char name[64];
    coil_addr a;
    coil_stream *s;
    (void)arg;
    coil_listener *l = listen_at(peers_abstract(name, "flood"), &a);
    flood(&a);
    accept_flood(l);
    /* The request is armed now, and nobody waits. */
    coil_scope within = coil_within(coil_ms(1));
    cr_expect_eq(coil_listener_accept(l, &s), -ETIME);
    coil_leave(&within);
    for (int i = 0; i < FLOOD; i++) {
        peers_of_flood[i] = connected(&a);
        if (i % 100 == 0) coil_nop();
    }
    cr_expect_lt(check_fd_count(), 2 * FLOOD, "what is beyond the queue waits in the kernel");
    accept_flood(l);
    coil_listener_close(l);
    return 0;
}

Test(listen, more_connections_than_the_queue_takes_are_all_served_in_order) {
    if (!peers_want_descriptors(2 * FLOOD + 100)) cr_skip("needs %d descriptors", 2 * FLOOD + 100);
    int before = check_fd_count();
    cr_assert_eq(coil_run(floods, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int queues_a_reset_one(void *arg) {
    coil_addr a;
    coil_stream *s;
    char c;
    (void)arg;
    coil_listener *l = listen_at("127.0.0.1:0", &a);
    peers_reset(connected(&a));
    int peer = connected(&a);
    cr_expect_eq(send(peer, "x", 1, MSG_NOSIGNAL), 1);
    for (bool found = false; !found;) {
        COIL_WITHIN(coil_sec(20));
        int err = coil_listener_accept(l, &s);
        cr_expect_eq(err, 0, "%s", coil_strerror(err));
        if (err) return 0;
        ssize_t n = coil_stream_read(s, &c, 1);
        cr_expect(n == 1 || n == -ECONNRESET, "%zd", n);
        found = n == 1;
        coil_stream_close(s);
    }
    peers_reset(peer);
    coil_listener_close(l);
    return 0;
}

Test(listen, a_connection_that_is_reset_while_it_waits_harms_no_other) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(queues_a_reset_one, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

/* ---- closing ---- */

enum { LEFT = 20 };

static int closes_with_queue(void *arg) {
    coil_addr a;
    coil_stream *s, *kept;
    int peers[LEFT];
    (void)arg;
    coil_listener *l = listen_at("127.0.0.1:0", &a);
    int first = connected(&a);
    cr_expect_eq(coil_listener_accept(l, &kept), 0);
    coil_scope within = coil_within(coil_ms(1));
    cr_expect_eq(coil_listener_accept(l, &s), -ETIME, "armed now");
    coil_leave(&within);
    for (int i = 0; i < LEFT; i++)
        peers[i] = connected(&a);
    for (int i = 0; i < 3; i++)
        coil_nop();
    cr_expect_eq(coil_listener_close(l), 0);
    for (int i = 0; i < LEFT; i++) {
        cr_expect(peers_sees_end(peers[i]), "%d", i);
        close(peers[i]);
    }
    cr_expect_eq(peers_connect(&a), -ECONNREFUSED, "nobody listens any more");
    exchange(kept, first);
    cr_expect_eq(coil_stream_close(kept), 0);
    peers_reset(first);
    return 0;
}

Test(listen, a_close_ends_what_was_not_handed_out_and_leaves_what_was) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(closes_with_queue, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int closes_when_cancelled(void *arg) {
    coil_addr a;
    coil_stream *s;
    (void)arg;
    coil_listener *l = listen_at("127.0.0.1:0", &a);
    coil_cancel(coil_self());
    cr_expect_eq(coil_listener_accept(l, &s), -ECANCELED);
    cr_expect_eq(coil_listener_close(l), 0);
    cr_expect_eq(coil_listen(&l, "127.0.0.1:0", NULL), -ECANCELED);
    cr_expect_null(l);
    return 0;
}

Test(listen, a_cancelled_task_can_close_and_nothing_else) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(closes_when_cancelled, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

static int leaves_it_open(void *arg) {
    struct taken *k = arg;
    coil_stream *s;
    coil_listener *l = listen_at("127.0.0.1:0", &k->a);
    coil_scope within = coil_within(coil_ms(1));
    cr_expect_eq(coil_listener_accept(l, &s), -ETIME);
    coil_leave(&within);
    k->fd = connected(&k->a);
    return 0;
}

Test(listen, one_that_is_left_open_is_closed_at_the_end_of_the_run) {
    struct taken k;
    int before = check_fd_count();
    coil_run_opts quiet = {.quiet = true};
    for (int i = 0; i < 20; i++) {
        cr_assert_eq(coil_run_with(&quiet, leaves_it_open, &k), 0);
        cr_expect_eq(peers_connect(&k.a), -ECONNREFUSED);
        cr_expect(peers_sees_end(k.fd));
        close(k.fd);
        coil_addr again = k.a;
        close(peers_listen(&again, 1));
    }
    cr_assert_eq(check_fd_count(), before);
}
