/* Serving: a task per connection, and how it ends. */
#include "check.h"
#include "peers.h"

enum { TOLD_MAX = 64 };

/* A server in a task, and what it tells. */
struct server {
    coil_listener *l;
    coil_addr a;
    coil_handler *fn;
    coil_serve_opts o;
    coil_task t;
    int64_t limit_ns;       /* 0: none */
    int began, ended, most; /* handlers */
    bool over;
    int told, errors[TOLD_MAX], ports[TOLD_MAX];
    coil_task handler; /* the last that began */
};

static void on_error(void *arg, const coil_addr *peer, int err) {
    struct server *sv = arg;
    if (sv->told == TOLD_MAX) return;
    sv->errors[sv->told] = err;
    sv->ports[sv->told++] = peer ? ntohs(peer->u.in.sin_port) : -1;
}

static int serve(void *arg) {
    struct server *sv = arg;
    COIL_WITHIN(sv->limit_ns ? coil_ns(sv->limit_ns) : COIL_FOREVER);
    int result = coil_serve(sv->l, sv->fn, sv, &sv->o);
    sv->over = true;
    return result;
}

static struct server server_of(coil_handler *fn) {
    struct server sv = {.fn = fn};
    cr_expect_eq(coil_listen(&sv.l, "127.0.0.1:0", NULL), 0);
    coil_listener_addr(sv.l, &sv.a);
    sv.o.on_error = on_error;
    return sv;
}

static void start(struct server *sv) {
    cr_expect_eq(coil_spawn(&sv->t, serve, sv), 0);
    coil_yield();
}

static int joined(struct server *sv) {
    int result = 12345;
    COIL_WITHIN(coil_sec(30));
    cr_expect_eq(coil_join(sv->t, &result), 0);
    return result;
}

static int stopped(struct server *sv) {
    coil_cancel(sv->t);
    return joined(sv);
}

static int connected(const struct server *sv) {
    int fd = peers_connect(&sv->a);
    cr_expect(fd >= 0, "%s", coil_strerror(fd));
    return fd;
}

static int port_of(int fd) {
    coil_addr a = {.len = sizeof a.u};
    getsockname(fd, &a.u.sa, &a.len);
    return ntohs(a.u.in.sin_port);
}

static void check_run(coil_fn *fn) {
    int before = check_fd_count();
    coil_run_opts o = {.exit_limit = coil_sec(20)};
    cr_expect_eq(coil_run_with(&o, fn, NULL), 0);
    cr_expect_eq(check_fd_count(), before);
}

/* ---- handlers ---- */

static void begins(struct server *sv) {
    sv->began++;
    sv->handler = coil_self();
    int open = sv->began - sv->ended;
    if (open > sv->most) sv->most = open;
}

static int echoes(coil_stream *s, void *arg) {
    struct server *sv = arg;
    char buf[512];
    ssize_t n;
    begins(sv);
    while ((n = coil_stream_read(s, buf, sizeof buf)) > 0) {
        int err = coil_stream_write(s, buf, (size_t)n);
        if (err) n = err;
        if (err) break;
    }
    sv->ended++;
    return (int)n;
}

/* Works on for some turns, whatever its client does. */
static int works_a_little(coil_stream *s, void *arg) {
    struct server *sv = arg;
    (void)s;
    begins(sv);
    int err = coil_sleep(coil_ms(20));
    sv->ended++;
    return err;
}

static int fails(coil_stream *s, void *arg) {
    struct server *sv = arg;
    (void)s;
    begins(sv);
    sv->ended++;
    return -EBADMSG;
}

static bool echo_works(int fd) {
    char c = 0;
    if (send(fd, "e", 1, MSG_NOSIGNAL) != 1) return false;
    bool came = PEERS_AWAIT(recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) == 1);
    return came && recv(fd, &c, 1, MSG_DONTWAIT) == 1 && c == 'e';
}

/* ---- at work ---- */

static int serves_many(void *arg) {
    int fds[50];
    (void)arg;
    struct server sv = server_of(echoes);
    start(&sv);
    for (int i = 0; i < 50; i++)
        fds[i] = connected(&sv);
    for (int i = 49; i >= 0; i--)
        cr_expect(echo_works(fds[i]), "%d", i);
    cr_expect_eq(sv.most, 50, "a task for each");
    for (int i = 0; i < 50; i++) {
        shutdown(fds[i], SHUT_WR);
        cr_expect(PEERS_AWAIT(sv.ended == i + 1));
        cr_expect(peers_sees_end(fds[i]), "its stream is closed when the handler returns");
        close(fds[i]);
    }
    cr_expect_eq(stopped(&sv), 0);
    cr_expect_eq(sv.told, 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, each_connection_has_a_task_and_is_closed_when_its_handler_returns) {
    check_run(serves_many);
}

/* Task records are used again, so that the places of the handlers stay low. */
static int serves_one_after_another(void *arg) {
    uint32_t highest = 0;
    (void)arg;
    struct server sv = server_of(echoes);
    start(&sv);
    for (int i = 0; i < 40; i++) {
        int fd = connected(&sv);
        cr_expect(echo_works(fd));
        if (sv.handler.slot > highest) highest = sv.handler.slot;
        close(fd);
        cr_expect(PEERS_AWAIT(sv.ended == i + 1));
    }
    cr_expect_lt(highest, 20u);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, connections_that_have_ended_leave_no_record_behind) {
    check_run(serves_one_after_another);
}

static int bad_arguments(void *arg) {
    (void)arg;
    struct server sv = server_of(echoes);
    cr_expect_eq(coil_serve(NULL, echoes, NULL, NULL), -EINVAL);
    cr_expect_eq(coil_serve(sv.l, NULL, NULL, NULL), -EINVAL);
    for (int i = 0; i < 6; i++) {
        coil_serve_opts o = {.connections_max = 1};
        o.reserved[i] = 1;
        cr_expect_eq(coil_serve(sv.l, echoes, NULL, &o), -EINVAL);
    }
    coil_scope s = coil_within(coil_ns(0));
    cr_expect_eq(coil_serve(sv.l, echoes, &sv, NULL), -ETIME);
    coil_leave(&s);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, bad_arguments_and_a_caller_out_of_time_are_refused) {
    check_run(bad_arguments);
}

static int pauses_at_the_most(void *arg) {
    int fds[10];
    (void)arg;
    struct server sv = server_of(echoes);
    sv.o.connections_max = 3;
    start(&sv);
    /* The first three are accepted before the others are made: TCP may bring these into the queue sooner. */
    for (int i = 0; i < 10; i++) {
        fds[i] = connected(&sv);
        if (i < 3) cr_expect(echo_works(fds[i]));
    }
    for (int i = 0; i < 10; i++)
        coil_nop();
    cr_expect_eq(sv.began, 3);
    for (int i = 0; i < 10; i++) {
        cr_expect(echo_works(fds[i]), "%d has its turn when others have ended", i);
        peers_reset(fds[i]);
    }
    cr_expect(PEERS_AWAIT(sv.ended == 10));
    cr_expect_eq(sv.most, 3);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, at_connections_max_accepting_pauses_and_goes_on_when_one_ends) {
    check_run(pauses_at_the_most);
}

static int serves_one_by_one(void *arg) {
    (void)arg;
    struct server sv = server_of(echoes);
    sv.o.connections_max = 1;
    start(&sv);
    for (int i = check_rounds(500); i; i--) {
        int a = connected(&sv);
        cr_expect(echo_works(a));
        int b = connected(&sv);
        peers_reset(a);
        cr_expect(echo_works(b));
        peers_reset(b);
    }
    cr_expect_eq(stopped(&sv), 0);
    cr_expect_eq(sv.most, 1);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, with_room_for_one_they_are_served_one_after_the_other) {
    check_run(serves_one_by_one);
}

static int accepts_beside(void *arg) {
    struct server *sv = arg;
    coil_stream *s;
    int err = coil_listener_accept(sv->l, &s);
    if (!err) coil_stream_abort(s);
    return err;
}

static int shares_its_listener(void *arg) {
    coil_task beside;
    int got = 1;
    (void)arg;
    struct server sv = server_of(echoes);
    sv.o.connections_max = 1;
    start(&sv);
    /* It waits behind serve, and goes on waiting when serve has got the first connection and pauses. */
    cr_expect_eq(coil_spawn(&beside, accepts_beside, &sv), 0);
    coil_yield();
    int a = connected(&sv);
    cr_expect(echo_works(a));
    for (int i = 0; i < 3; i++)
        coil_nop();
    int b = connected(&sv);
    cr_expect_eq(coil_join(beside, &got), 0);
    cr_expect_eq(got, 0, "the pause was serve's alone");
    peers_reset(b);
    peers_reset(a);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, its_pause_is_nobody_elses) {
    check_run(shares_its_listener);
}

/* ---- what it tells ---- */

static int tells_results(void *arg) {
    (void)arg;
    struct server sv = server_of(fails);
    start(&sv);
    for (int i = 0; i < 3; i++) {
        int fd = connected(&sv);
        cr_expect(PEERS_AWAIT(sv.told == i + 1));
        cr_expect_eq(sv.errors[i], -EBADMSG);
        cr_expect_eq(sv.ports[i], port_of(fd));
        peers_reset(fd);
    }
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_handlers_error_is_told_with_the_peers_address_and_ends_nothing_else) {
    check_run(tells_results);
}

static int tells_of_reset(void *arg) {
    (void)arg;
    struct server sv = server_of(echoes);
    start(&sv);
    int fd = connected(&sv), port = port_of(fd);
    cr_expect(echo_works(fd));
    peers_reset(fd);
    cr_expect(PEERS_AWAIT(sv.told == 1));
    cr_expect_eq(sv.errors[0], -ECONNRESET);
    cr_expect_eq(sv.ports[0], port, "told also when the connection is gone");
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_reset_is_told_with_the_peers_address) {
    check_run(tells_of_reset);
}

static int writes_in_vain(coil_stream *s, void *arg) {
    static char buf[32 << 10];
    struct server *sv = arg;
    coil_limits l = {.write = coil_ms(20), .high_water = 64 << 20};
    begins(sv);
    cr_expect_eq(coil_stream_limits(s, &l), 0);
    for (int i = 0; i < 64 * 8; i++) {
        for (size_t k = 0; k < sizeof buf; k += 8192)
            coil_stream_write(s, buf + k, 8192);
    }
    sv->ended++;
    return 0;
}

static int tells_of_lost_bytes(void *arg) {
    (void)arg;
    struct server sv = server_of(writes_in_vain);
    start(&sv);
    int fd = connected(&sv);
    cr_expect(PEERS_AWAIT(sv.told == 1), "a close that cannot send is told");
    cr_expect_eq(sv.errors[0], -ETIME, "%s", coil_strerror(sv.errors[0]));
    cr_expect_eq(sv.ports[0], port_of(fd));
    peers_reset(fd);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_close_that_loses_bytes_is_told) {
    check_run(tells_of_lost_bytes);
}

static int runs_out_of_descriptors(void *arg) {
    coil_stats before, after;
    (void)arg;
    struct server sv = server_of(echoes);
    start(&sv);
    int old = connected(&sv);
    cr_expect(echo_works(old));
    struct peers_hog hog;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    peers_take_all(&hog);
    cr_expect_eq(connect(fd, &sv.a.u.sa, sv.a.len), 0);
    cr_expect(PEERS_AWAIT(sv.told > 0));
    cr_expect_eq(sv.errors[0], -EMFILE);
    cr_expect_eq(sv.ports[0], -1, "there is no connection yet");
    coil_stats_get(&before);
    coil_sleep(coil_ms(300));
    coil_stats_get(&after);
    cr_expect_lt(after.turns - before.turns, 200u, "%d", (int)(after.turns - before.turns));
    cr_expect(echo_works(old), "those that are there are served");
    cr_expect_not(sv.over);
    peers_give_back(&hog);
    cr_expect(echo_works(fd), "accepting goes on");
    peers_reset(fd);
    peers_reset(old);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, out_of_descriptors_it_says_so_waits_without_spinning_and_goes_on) {
    peers_few_descriptors();
    check_run(runs_out_of_descriptors);
}

static int runs_out_of_tasks(void *arg) {
    (void)arg;
    struct server sv = server_of(echoes);
    start(&sv);
    int a = connected(&sv), b;
    cr_expect(echo_works(a));
    b = connected(&sv);
    cr_expect(PEERS_AWAIT(sv.told == 1));
    cr_expect_eq(sv.errors[0], -EAGAIN);
    cr_expect_eq(sv.ports[0], port_of(b));
    cr_expect(peers_sees_end(b));
    peers_reset(b);
    peers_reset(a);
    cr_expect(PEERS_AWAIT(sv.ended == 1));
    b = connected(&sv);
    cr_expect(echo_works(b));
    peers_reset(b);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_connection_that_can_have_no_task_is_ended_and_told) {
    coil_run_opts o = {.tasks_max = 3};
    int before = check_fd_count();
    cr_assert_eq(coil_run_with(&o, runs_out_of_tasks, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}

/* ---- the end ---- */

static int ends_in_time(void *arg) {
    (void)arg;
    struct server sv = server_of(works_a_little);
    start(&sv);
    int a = connected(&sv), b = connected(&sv);
    cr_expect(PEERS_AWAIT(sv.began == 2));
    cr_expect_eq(stopped(&sv), 0, "both ended in time");
    cr_expect_eq(sv.ended, 2);
    cr_expect_eq(sv.told, 0);
    peers_reset(a);
    peers_reset(b);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, handlers_that_end_within_the_grace_are_not_cancelled) {
    check_run(ends_in_time);
}

static int cuts_off(coil_dur grace, int64_t at_least_ns) {
    struct server sv = server_of(echoes);
    int fds[4];
    sv.o.grace = grace;
    start(&sv);
    for (int i = 0; i < 4; i++)
        fds[i] = connected(&sv);
    for (int i = 0; i < 4; i++)
        cr_expect(echo_works(fds[i]));
    shutdown(fds[0], SHUT_WR);
    cr_expect(PEERS_AWAIT(sv.ended == 1));
    int64_t began_ns = coil_now().ns;
    cr_expect_eq(stopped(&sv), 3, "how many had to be cancelled");
    cr_expect(coil_now().ns - began_ns >= at_least_ns, "they had their grace");
    cr_expect_eq(sv.ended, 4);
    cr_expect_eq(sv.told, 0, "a cancel is no error of a connection's");
    for (int i = 0; i < 4; i++) {
        cr_expect(peers_sees_end(fds[i]));
        peers_reset(fds[i]);
    }
    coil_listener_close(sv.l);
    return 0;
}

static int cuts_off_after_grace(void *arg) {
    (void)arg;
    return cuts_off(coil_ms(50), 50000000);
}

Test(serve, handlers_that_outlast_the_grace_are_cancelled_and_counted) {
    check_run(cuts_off_after_grace);
}

static int cuts_off_at_once(void *arg) {
    (void)arg;
    int64_t began_ns = coil_now().ns;
    cuts_off(coil_ms(-1), 0);
    cr_expect(coil_now().ns - began_ns < 4000000000, "not even the default grace");
    return 0;
}

Test(serve, a_negative_grace_is_none) {
    check_run(cuts_off_at_once);
}

static int serves_during_grace(void *arg) {
    (void)arg;
    struct server sv = server_of(echoes);
    sv.o.grace = coil_sec(20);
    start(&sv);
    int fd = connected(&sv);
    cr_expect(echo_works(fd));
    coil_cancel(sv.t);
    for (int i = 0; i < 5; i++)
        coil_nop();
    int late = connected(&sv);
    for (int i = 0; i < 20; i++)
        cr_expect(echo_works(fd), "who is there is served");
    cr_expect_eq(sv.began, 1, "nobody new is");
    cr_expect_not(sv.over);
    shutdown(fd, SHUT_WR);
    cr_expect_eq(joined(&sv), 0);
    cr_expect_eq(sv.began, 1);
    coil_listener_close(sv.l);
    cr_expect(peers_sees_end(late));
    peers_reset(late);
    peers_reset(fd);
    return 0;
}

Test(serve, once_cancelled_it_takes_no_new_connection_and_goes_on_with_the_old) {
    check_run(serves_during_grace);
}

static int is_served_again(void *arg) {
    (void)arg;
    struct server sv = server_of(echoes);
    start(&sv);
    cr_expect_eq(stopped(&sv), 0);
    int fd = connected(&sv);
    start(&sv);
    cr_expect(echo_works(fd), "the listener is as good as new");
    peers_reset(fd);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, the_listener_stays_and_can_be_served_again) {
    check_run(is_served_again);
}

static int is_cancelled_when_full(void *arg) {
    (void)arg;
    struct server sv = server_of(echoes);
    sv.o.connections_max = 1;
    sv.o.grace = coil_ms(10);
    start(&sv);
    int a = connected(&sv);
    cr_expect(echo_works(a));
    int b = connected(&sv);
    for (int i = 0; i < 3; i++)
        coil_nop();
    cr_expect_eq(stopped(&sv), 1);
    cr_expect_eq(sv.began, 1);
    peers_reset(a);
    peers_reset(b);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_cancel_at_connections_max_ends_it) {
    check_run(is_cancelled_when_full);
}

/* False: the machine was too busy to serve anybody in that time. */
static bool ends_after(int64_t limit_ns) {
    struct server sv = server_of(echoes);
    sv.limit_ns = limit_ns;
    sv.o.grace = coil_ns(limit_ns);
    start(&sv);
    int fd = connected(&sv);
    cr_expect(PEERS_AWAIT(sv.began == 1 || sv.over));
    bool in_time = !sv.over;
    cr_expect_eq(joined(&sv), in_time, "its limit is a cancel");
    peers_reset(fd);
    coil_listener_close(sv.l);
    return in_time;
}

static int limit_ends_it(void *arg) {
    int64_t limit_ns = 30000000;
    (void)arg;
    while (!ends_after(limit_ns) && limit_ns < 10000000000)
        limit_ns *= 2;
    cr_expect_lt(limit_ns, 10000000000, "the machine never served it in time");
    return 0;
}

Test(serve, the_callers_limit_acts_as_a_cancel) {
    check_run(limit_ends_it);
}

static int listener_is_closed(size_t connections_max) {
    struct server sv = server_of(echoes);
    sv.o.connections_max = connections_max;
    sv.o.grace = coil_sec(20);
    start(&sv);
    int fd = connected(&sv);
    cr_expect(echo_works(fd));
    for (int i = 0; i < 3; i++)
        coil_nop();
    cr_expect_eq(coil_listener_close(sv.l), 0);
    cr_expect_eq(peers_connect(&sv.a), -ECONNREFUSED);
    cr_expect(echo_works(fd), "handlers have their grace");
    cr_expect_not(sv.over);
    shutdown(fd, SHUT_WR);
    cr_expect_eq(joined(&sv), -EBADF);
    cr_expect_eq(sv.ended, 1);
    peers_reset(fd);
    return 0;
}

static int listener_is_closed_while_accepting(void *arg) {
    (void)arg;
    return listener_is_closed(0);
}

static int listener_is_closed_while_full(void *arg) {
    (void)arg;
    return listener_is_closed(1);
}

Test(serve, a_listener_closed_by_another_task_gives_ebadf_after_the_handlers_have_ended) {
    check_run(listener_is_closed_while_accepting);
    check_run(listener_is_closed_while_full);
}

static int closes_the_listener(coil_stream *s, void *arg) {
    struct server *sv = arg;
    (void)s;
    begins(sv);
    cr_expect_eq(coil_listener_close(sv->l), 0);
    sv->ended++;
    return 0;
}

static int handler_closes_listener(void *arg) {
    (void)arg;
    for (size_t max = 0; max < 2; max++) {
        struct server sv = server_of(closes_the_listener);
        sv.o.connections_max = max;
        start(&sv);
        int fd = connected(&sv);
        cr_expect_eq(joined(&sv), -EBADF);
        cr_expect_eq(sv.ended, 1);
        peers_reset(fd);
    }
    return 0;
}

Test(serve, a_handler_that_closes_the_listener_ends_the_server) {
    check_run(handler_closes_listener);
}

static int cancels_the_server(coil_stream *s, void *arg) {
    struct server *sv = arg;
    (void)s;
    begins(sv);
    coil_cancel(sv->t);
    int err = coil_sleep(coil_ms(5));
    cr_expect_eq(err, 0, "it has its grace itself: %s", coil_strerror(err));
    sv->ended++;
    return err;
}

static int handler_cancels_server(void *arg) {
    (void)arg;
    struct server sv = server_of(cancels_the_server);
    start(&sv);
    int fd = connected(&sv);
    cr_expect_eq(joined(&sv), 0);
    cr_expect_eq(sv.ended, 1);
    peers_reset(fd);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_handler_can_cancel_its_server) {
    check_run(handler_cancels_server);
}

static int sleeps(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

static int adds_one(void *arg) {
    ++*(int *)arg;
    return 0;
}

static int spawns_and_cancels(coil_stream *s, void *arg) {
    struct server *sv = arg;
    coil_task t;
    int got = 0, count = 0;
    (void)s;
    begins(sv);
    COIL_GROUP(g);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(coil_group_spawn(&g, adds_one, &count), 0);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(count, 3);
    cr_expect_eq(coil_spawn(&t, sleeps, NULL), 0);
    coil_cancel(t);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, -ECANCELED);
    coil_cancel(coil_self());
    got = coil_sleep(coil_ms(1));
    sv->ended++;
    return got;
}

static int handlers_spawn(void *arg) {
    (void)arg;
    struct server sv = server_of(spawns_and_cancels);
    start(&sv);
    for (int i = 0; i < 10; i++) {
        int fd = connected(&sv);
        cr_expect(PEERS_AWAIT(sv.ended == i + 1));
        cr_expect(peers_sees_end(fd));
        peers_reset(fd);
    }
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_handler_can_spawn_and_cancel_also_itself) {
    check_run(handlers_spawn);
}

/* ---- any order ---- */

static void random_client(struct server *sv, uint64_t *state) {
    int fd = connected(sv);
    if (peers_below(state, 2)) cr_expect_eq(send(fd, "x", 1, MSG_NOSIGNAL), 1);
    for (unsigned n = peers_below(state, 4); n; n--)
        coil_nop();
    if (peers_below(state, 2)) shutdown(fd, SHUT_WR);
    peers_reset(fd);
}

static void random_server(uint64_t *state) {
    struct server sv = server_of(peers_below(state, 2) ? echoes : works_a_little);
    sv.o.connections_max = peers_below(state, 3);
    sv.o.grace = coil_us(peers_below(state, 3000));
    start(&sv);
    for (unsigned n = peers_below(state, 6); n; n--)
        random_client(&sv, state);
    bool closed = peers_below(state, 2);
    if (closed) {
        coil_listener_close(sv.l);
        cr_expect_eq(joined(&sv), -EBADF);
    } else {
        int left = stopped(&sv);
        cr_expect(left >= 0 && left <= sv.began, "%d", left);
        coil_listener_close(sv.l);
    }
    cr_expect_eq(sv.began, sv.ended, "no handler outlives its server");
}

static int random_servers(void *arg) {
    for (int i = check_rounds(300); i; i--)
        random_server(arg);
    return 0;
}

Test(serve, however_clients_and_the_end_meet_nothing_is_left) {
    uint64_t seed = peers_seed(), state = seed;
    int before = check_fd_count();
    cr_assert_eq(coil_run(random_servers, &state), 0, "seed %#llx", (unsigned long long)seed);
    cr_assert_eq(check_fd_count(), before, "seed %#llx", (unsigned long long)seed);
}

/* ---- who it is in reports ---- */

static int dumps_itself(coil_stream *s, void *arg) {
    struct server *sv = arg;
    char text[4096] = "", want[64];
    FILE *out = fmemopen(text, sizeof text, "w");
    begins(sv);
    if (out) {
        coil_dump_tasks(out);
        fclose(out);
    }
    snprintf(want, sizeof want, "connection on descriptor %d", coil_stream_fd(s));
    const char *line = strstr(text, want);
    cr_expect(line && strstr(line, ": running"), "%s", text);
    sv->ended++;
    return 0;
}

static int shows_connections(void *arg) {
    (void)arg;
    struct server sv = server_of(dumps_itself);
    start(&sv);
    int fd = connected(&sv);
    cr_expect(PEERS_AWAIT(sv.ended == 1));
    cr_expect(peers_sees_end(fd));
    peers_reset(fd);
    cr_expect_eq(stopped(&sv), 0);
    coil_listener_close(sv.l);
    return 0;
}

Test(serve, a_connection_is_known_by_its_descriptor_in_reports) {
    check_run(shows_connections);
}
