/* A call that fails, or has nothing to do, without having waited: a loop that tries it again and again must
 * not keep the worker from everybody else. */
#include "tasks.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

enum { TRIES = 200 }; /* a task may make 64 such calls in a row */

static struct {
    coil_task stale, detached;
    coil_mutex mutex;
    coil_rwlock rwlock;
    coil_once once;
    coil_group group;
    coil_stream *stream, *busy;
    coil_listener *listener;
    int turns; /* of the other task */
    bool over;
} it;

static int returns(void *arg) {
    (void)arg;
    return 0;
}

static int sleeps(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

static int serves_nobody(coil_stream *s, void *arg) {
    (void)s;
    (void)arg;
    return 0;
}

/* ---- the calls ---- */

static int joins_nobody(void) {
    return coil_join(it.stale, NULL);
}

static int joins_itself(void) {
    return coil_join(coil_self(), NULL);
}

static int joins_a_detached_one(void) {
    return coil_join(it.detached, NULL);
}

static int locks_twice(void) {
    return coil_mutex_lock(&it.mutex);
}

static int reads_what_it_writes(void) {
    return coil_rwlock_rdlock(&it.rwlock);
}

static int writes_twice(void) {
    return coil_rwlock_wrlock(&it.rwlock);
}

static int ticks_without_period(void) {
    return coil_interval_tick(&(coil_interval){0});
}

static int waits_for_no_signal(void) {
    return coil_signal_wait(NULL, 0);
}

static int runs_nothing_elsewhere(void) {
    return coil_blocking(NULL, NULL, NULL);
}

static int gives_away_nothing(void) {
    return coil_blocking_owned(NULL, NULL, NULL, NULL);
}

static int selects_from_nothing(void) {
    return coil_select(NULL, 0);
}

static int gathers_nothing(void) {
    return coil_gather(NULL, 0) ? 1 : -EINVAL;
}

static int gathers_all_of_nothing(void) {
    return coil_gather_all(NULL, 0) ? 1 : -EINVAL;
}

static int races_nobody(void) {
    return coil_race(NULL, 0);
}

static int takes_the_next_of_none(void) {
    return coil_group_next(&it.group, NULL, NULL) ? 1 : -EINVAL;
}

static int waits_for_no_child(void) {
    return coil_group_wait(&it.group) ? 1 : -EINVAL;
}

static int waits_for_what_could_not_start(void) {
    coil_group g = {0};
    int err = coil_group_spawn(&g, returns, NULL), own = coil_group_wait(&g);
    return own ? 1 : err;
}

static int gathers_what_cannot_start(void) {
    coil_job job = {returns, NULL, 0};
    return coil_gather(&job, 1);
}

static int listens_nowhere(void) {
    coil_listener *l;
    return coil_listen(&l, "nowhere at all", NULL);
}

static int listens_elsewhere(void) {
    coil_listener *l;
    return coil_listen(&l, "203.0.113.1:1", NULL);
}

static int dials_from_elsewhere(void) {
    coil_stream *s;
    coil_addr from, to;
    if (coil_addr_parse(&from, "203.0.113.1:0") || coil_addr_parse(&to, "127.0.0.1:1")) return 1;
    return coil_dial_addr(&s, &to, &(coil_dial_opts){.from = &from});
}

static int reads_before_the_file(void) {
    char c;
    return (int)coil_read(0, &c, 1, -2);
}

static int polls_for_nothing(void) {
    return coil_poll(0, 0);
}

static int receives_no_message(void) {
    return (int)coil_recvmsg(0, NULL, 0);
}

static int accepts_nowhere(void) {
    return coil_listener_accept(it.listener, NULL);
}

static int dials_nothing(void) {
    coil_stream *s;
    return coil_dial(&s, "nowhere at all", NULL);
}

static int dials_no_address(void) {
    coil_stream *s;
    return coil_dial_addr(&s, NULL, NULL);
}

static int reads_nothing(void) {
    return (int)coil_stream_read(it.stream, NULL, 0);
}

static int reads_exactly_nothing(void) {
    return coil_stream_read_exact(it.stream, NULL, 0, NULL);
}

static int reads_beside_another(void) {
    char c;
    return (int)coil_stream_read(it.busy, &c, 1);
}

static int writes_to_nobody(void) {
    return coil_stream_write(NULL, "x", 1);
}

static int flushes_nothing(void) {
    return coil_stream_flush(NULL);
}

static int finishes_nothing(void) {
    return coil_stream_finish(NULL);
}

static int detaches_what_is_busy(void) {
    return coil_stream_detach(it.busy);
}

static int serves_nothing(void) {
    return coil_serve(it.listener, NULL, NULL, NULL);
}

static int serves_nowhere(void) {
    return coil_serve(NULL, serves_nobody, NULL, NULL);
}

static const struct {
    const char *name;
    int (*call)(void);
} calls[] = {
#define CALL(fn) \
    { #fn, fn }
    CALL(joins_nobody),
    CALL(joins_itself),
    CALL(joins_a_detached_one),
    CALL(locks_twice),
    CALL(reads_what_it_writes),
    CALL(writes_twice),
    CALL(ticks_without_period),
    CALL(waits_for_no_signal),
    CALL(runs_nothing_elsewhere),
    CALL(gives_away_nothing),
    CALL(selects_from_nothing),
    CALL(gathers_nothing),
    CALL(gathers_all_of_nothing),
    CALL(races_nobody),
    CALL(takes_the_next_of_none),
    CALL(waits_for_no_child),
    CALL(reads_before_the_file),
    CALL(polls_for_nothing),
    CALL(receives_no_message),
    CALL(accepts_nowhere),
    CALL(dials_nothing),
    CALL(dials_no_address),
    CALL(reads_nothing),
    CALL(reads_exactly_nothing),
    CALL(reads_beside_another),
    CALL(writes_to_nobody),
    CALL(flushes_nothing),
    CALL(finishes_nothing),
    CALL(detaches_what_is_busy),
    CALL(serves_nothing),
    CALL(serves_nowhere),
    CALL(waits_for_what_could_not_start),
    CALL(gathers_what_cannot_start),
    CALL(listens_nowhere),
    CALL(listens_elsewhere),
    CALL(dials_from_elsewhere),
};

/* ---- beside another task ---- */

static int takes_turns(void *arg) {
    (void)arg;
    for (; !it.over; it.turns++)
        cr_expect_eq(coil_yield(), 0);
    return 0;
}

static int reads_for_ever(void *arg) {
    char c;
    return (int)coil_stream_read(arg, &c, 1);
}

static void try_all(void) {
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        coil_yield();
        int before = it.turns;
        for (int k = 0; k < TRIES; k++)
            cr_expect_lt(calls[i].call(), 0, "%s", calls[i].name);
        cr_expect_gt(it.turns, before, "%s keeps the worker", calls[i].name);
    }
}

static int does_itself_again(void *arg) {
    int before = it.turns;
    (void)arg;
    for (int k = 0; k < TRIES; k++)
        cr_expect_eq(coil_once_do(&it.once, returns, NULL), -EDEADLK);
    cr_expect_gt(it.turns, before, "coil_once_do keeps the worker");
    return 0;
}

static void set_up(int *fd) {
    it.stale = spawn(returns, NULL);
    cr_expect_eq(join(it.stale), 0);
    it.detached = spawn(sleeps, NULL);
    cr_expect_eq(coil_detach(it.detached), 0);
    cr_expect_eq(coil_mutex_lock(&it.mutex), 0);
    cr_expect_eq(coil_rwlock_wrlock(&it.rwlock), 0);
    cr_expect_eq(coil_listen(&it.listener, "127.0.0.1:0", NULL), 0);
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    cr_expect_eq(coil_stream_adopt(&it.stream, fd[0]), 0);
    cr_expect_eq(coil_stream_adopt(&it.busy, fd[1]), 0);
}

/* The tasks that there are leave no room for another one. */
static int tries_all_calls(void *arg) {
    int fd[2];
    (void)arg;
    set_up(fd);
    coil_task reader = spawn(reads_for_ever, it.busy), other = spawn(takes_turns, NULL);
    coil_yield();
    try_all();
    cr_expect_eq(coil_once_do(&it.once, does_itself_again, NULL), 0);
    it.over = true;
    cr_expect_eq(join(other), 0);
    coil_cancel(reader);
    cr_expect_eq(join(reader), -ECANCELED);
    coil_cancel(it.detached);
    coil_stream_abort(it.stream);
    coil_stream_abort(it.busy);
    coil_listener_close(it.listener);
    coil_mutex_unlock(&it.mutex);
    coil_rwlock_unlock(&it.rwlock);
    return 0;
}

Test(flow_failures, a_loop_of_calls_that_fail_at_once_lets_others_run) {
    coil_run_opts o = {.tasks_max = 4};
    cr_assert_eq(coil_run_with(&o, tries_all_calls, NULL), 0);
}
