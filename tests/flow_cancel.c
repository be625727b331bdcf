/* A cancel at every place where a program can be suspended: each flow, and each sample, is run over and over,
 * and in the k-th run it is cancelled at its k-th suspension, until a run ends before its k-th. Every time it
 * has to end, with success or -ECANCELED, with nothing held, and with nothing left behind.
 *
 * The linker puts the functions below named __wrap_ in the place of coil's own: see CMakeLists.txt. */
#include "stream_pairs.h"

#include "peers.h"

#include "cancel.h"

#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

/* When the cancel comes: before the task leaves, so that it has not waited at all, or at the end of that
 * turn, when it waits. */
enum strike { BEFORE_IT_LEAVES, WHEN_IT_WAITS, STRIKES };

/* ---- the k-th suspension ---- */

static struct {
    unsigned at, seen; /* at 0: not armed */
    enum strike how;
    coil_task root;                     /* who is cancelled */
    const struct coil__task *conductor; /* whose suspensions don't count; everybody else's do */
    struct coil__hook hook;
    bool struck;
} point;

static void strike_root(struct coil__hook *h) {
    (void)h;
    struct coil__task *t = coil__task_find(coil__here, point.root);
    if (t && t->state != COIL__ENDED) coil__cancel(t);
}

static void at_a_suspension(struct coil__task *t) {
    if (!point.at || t == point.conductor || ++point.seen != point.at) return;
    point.struck = true;
    if (point.how == BEFORE_IT_LEAVES) {
        strike_root(&point.hook);
    } else {
        point.hook.run = strike_root;
        coil__worker_hook(coil__worker_of(t->sched), &point.hook);
    }
}

void __real_coil__park(struct coil__task *t, struct coil__wait *w);
void __wrap_coil__park(struct coil__task *t, struct coil__wait *w);
void __wrap_coil__park(struct coil__task *t, struct coil__wait *w) {
    at_a_suspension(t);
    __real_coil__park(t, w);
}

void __real_coil__step_aside(struct coil__task *t);
void __wrap_coil__step_aside(struct coil__task *t);
void __wrap_coil__step_aside(struct coil__task *t) {
    at_a_suspension(t);
    __real_coil__step_aside(t);
}

int __real_coil_yield(void);
int __wrap_coil_yield(void);
int __wrap_coil_yield(void) {
    at_a_suspension(coil__here->current);
    return __real_coil_yield();
}

/* ---- one run ---- */

struct scene {
    coil_fn *fn;
    void *arg;
    int result;
};

/* Starts the flow in a task of its own and waits for it. */
static int conducts(void *arg) {
    struct scene *s = arg;
    point.conductor = coil__here->current;
    int err = coil_spawn(&point.root, s->fn, s->arg);
    if (!err) err = coil_join(point.root, &s->result);
    point.at = 0;
    coil_stats stats;
    coil_stats_get(&stats);
    cr_expect_eq(stats.tasks_now, 1, "tasks are left");
    cr_expect_eq(stats.streams_now, 0, "streams are left");
    return err;
}

/* The least: one thread of the pool for each kind of job. How many there would be otherwise depends on
 * whether one is free again when the next job comes, and each has mappings of its own. */
static const coil_run_opts few_threads = {.blocking_threads = 3};

static int run_with_cancel(unsigned at, enum strike how, struct scene *s) {
    memset(&point, 0, sizeof point);
    point.at = at;
    point.how = how;
    return coil_run_with(&few_threads, conducts, s);
}

enum { POINTS_MAX = 400 };

/* Whether there are more places than this one. */
static bool cancelled_at(const char *name, coil_fn *fn, unsigned at, enum strike how) {
    struct scene s = {.fn = fn};
    int fds = check_fd_count(), err = run_with_cancel(at, how, &s);
    cr_expect_eq(err, 0, "%s, point %u.%d: %s", name, at, (int)how, coil_strerror(err));
    cr_expect(s.result == 0 || (point.struck && s.result == -ECANCELED), "%s, point %u.%d: %s", name, at,
              (int)how, coil_strerror(s.result));
    cr_expect_eq(check_fd_count(), fds, "%s, point %u.%d: descriptors", name, at, (int)how);
    return point.struck;
}

/* The first run of all is not counted: it leaves what is made once. */
static void at_every_point(const char *name, coil_fn *fn, unsigned points_min) {
    cancelled_at(name, fn, UINT32_MAX, WHEN_IT_WAITS);
    int maps = check_map_count();
    for (int how = 0; how < STRIKES; how++) {
        unsigned at = 1;
        while (cancelled_at(name, fn, at, (enum strike)how) && at < POINTS_MAX)
            at++;
        cr_expect(at > points_min && at < POINTS_MAX, "%s has %u points", name, at - 1);
    }
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps + 2, "%s: mappings", name);
}

#define Flow(Name, PointsMin)                   \
    static int Name(void *arg);                 \
    Test(flow_cancel, Name) {                   \
        at_every_point(#Name, Name, PointsMin); \
    }                                           \
    static int Name(void *arg __attribute__((unused)))

/* ---- what flows are made of ---- */

/* The first error of several steps. */
static int first(int a, int b) {
    return a < 0 ? a : b;
}

static int yields_thrice(void *arg) {
    (void)arg;
    int err = 0;
    for (int i = 0; i < 3 && !err; i++)
        err = coil_yield();
    return err;
}

static int naps(void *arg) {
    (void)arg;
    return coil_sleep(coil_us(10));
}

static int sleeps_for_ever(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

/* ---- tasks and time ---- */

Flow(yields_and_naps_one_after_the_other, 5) {
    int err = yields_thrice(NULL);
    if (!err) err = naps(NULL);
    if (!err) err = coil_sleep_until(coil_after(coil_us(10)));
    return err;
}

static int five_deep(int depth) {
    int err = coil_yield();
    if (!err && depth > 1) err = five_deep(depth - 1);
    return first(err, naps(NULL));
}

Flow(calls_five_deep_and_back, 9) {
    return five_deep(5);
}

/* A task that is alone is cancelled and joined by whoever started it, in a shield. */
Flow(a_child_that_is_joined, 4) {
    coil_task t;
    int result = 0, err = coil_spawn(&t, yields_thrice, NULL);
    if (err) return err;
    err = coil_join(t, &result);
    if (err) {
        COIL_SHIELD(COIL_FOREVER);
        coil_cancel(t);
        cr_expect_eq(coil_join(t, &result), 0);
    }
    return first(err, result);
}

Flow(a_timer_that_ticks, 3) {
    coil_interval tick = {.period = coil_us(50), .late = COIL_LATE_BURST};
    int err = 0;
    for (int i = 0; i < 4 && !err; i++)
        err = coil_interval_tick(&tick);
    return err;
}

Flow(a_shield_around_cleanup, 4) {
    int err = naps(NULL);
    COIL_SHIELD(coil_sec(20));
    cr_expect_eq(yields_thrice(NULL), 0, "inside a shield");
    cr_expect_eq(naps(NULL), 0, "inside a shield");
    return err;
}

Flow(limits_inside_one_another, 2) {
    coil_scope outer = coil_within(coil_sec(20)), inner = coil_within(coil_us(50));
    int err = coil_sleep(COIL_FOREVER);
    bool struck = coil_leave(&inner);
    cr_expect_eq(struck, err == -ETIME);
    int after = coil_yield();
    cr_expect_not(coil_leave(&outer));
    return err == -ETIME ? after : err;
}

/* ---- groups, gather, race, wait_for ---- */

static int nests(void *arg) {
    int depth = *(int *)arg, deeper = depth - 1;
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, naps, NULL);
    if (!err && depth > 1) err = coil_group_spawn(&g, nests, &deeper);
    if (!err) err = coil_group_spawn(&g, yields_thrice, NULL);
    return first(err, coil_group_wait(&g));
}

Flow(groups_inside_one_another, 12) {
    int depth = 3;
    return nests(&depth);
}

Flow(a_group_that_is_left_while_children_run, 2) {
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, sleeps_for_ever, NULL);
    return first(err, coil_yield());
}

Flow(children_taken_in_the_order_in_which_they_end, 4) {
    int ended = 0, result, err = 0;
    COIL_GROUP(g);
    for (int i = 0; i < 3 && !err; i++)
        err = coil_group_spawn(&g, i == 1 ? naps : yields_thrice, NULL);
    while (!err && (err = coil_group_next(&g, NULL, &result)) == 1) {
        ended++;
        err = result;
    }
    cr_expect(err < 0 || ended == 3, "%d", ended);
    return first(err, coil_group_wait(&g));
}

static int gathers(void *arg) {
    (void)arg;
    coil_job jobs[] = {{yields_thrice, NULL, 0}, {naps, NULL, 0}};
    return coil_gather(jobs, 2);
}

Flow(a_gather_of_gathers, 8) {
    coil_job jobs[] = {{gathers, NULL, 0}, {naps, NULL, 0}, {gathers, NULL, 0}};
    return first(coil_gather(jobs, 3), coil_yield());
}

Flow(a_gather_of_all_to_the_end, 4) {
    coil_job jobs[] = {{yields_thrice, NULL, 0}, {naps, NULL, 0}};
    return first(coil_gather_all(jobs, 2), coil_yield());
}

Flow(a_race_whose_losers_are_over_when_it_returns, 4) {
    coil_job jobs[] = {{sleeps_for_ever, NULL, 1}, {yields_thrice, NULL, 1}, {gathers, NULL, 1}};
    int winner = coil_race(jobs, 3);
    coil_stats s;
    coil_stats_get(&s);
    cr_expect_eq(s.tasks_now, 2, "losers are left");
    cr_expect(winner == 1 || winner == -ECANCELED, "%d", winner);
    return winner < 0 ? winner : coil_yield();
}

Flow(a_limit_on_a_call_that_takes_too_long, 2) {
    int err = coil_wait_for(coil_us(50), sleeps_for_ever, NULL);
    cr_expect(err == -ETIME || err == -ECANCELED, "%d", err);
    return err == -ETIME ? coil_yield() : err;
}

/* ---- locks ---- */

struct locks {
    coil_mutex m;
    coil_rwlock rw;
    coil_cond c;
    coil_event e;
    coil_waitgroup wg;
    coil_once once;
    int inside, writers, turns, done;
};

static int locks_and_rests(void *arg) {
    struct locks *l = arg;
    int err = coil_mutex_lock(&l->m);
    if (err) return err;
    cr_expect_eq(l->inside++, 0);
    err = coil_yield();
    l->inside--;
    coil_mutex_unlock(&l->m);
    return err;
}

static int in_three(coil_fn *fn, void *arg) {
    coil_job jobs[] = {{fn, arg, 0}, {fn, arg, 0}, {fn, arg, 0}};
    return coil_gather(jobs, 3);
}

Flow(a_mutex_that_three_want, 5) {
    struct locks l = {0};
    int err = in_three(locks_and_rests, &l);
    cr_expect_eq(coil_mutex_trylock(&l.m), 0, "nobody holds it");
    coil_mutex_unlock(&l.m);
    return err;
}

static int reads_and_writes(void *arg) {
    struct locks *l = arg;
    int err = coil_rwlock_rdlock(&l->rw);
    if (err) return err;
    cr_expect_eq(l->writers, 0);
    err = coil_yield();
    coil_rwlock_unlock(&l->rw);
    if (err || (err = coil_rwlock_wrlock(&l->rw))) return err;
    cr_expect_eq(l->writers++, 0);
    err = coil_yield();
    l->writers--;
    coil_rwlock_unlock(&l->rw);
    return err;
}

Flow(a_rwlock_that_three_read_and_write, 8) {
    struct locks l = {0};
    int err = in_three(reads_and_writes, &l);
    cr_expect_eq(coil_rwlock_trywrlock(&l.rw), 0, "nobody holds it");
    coil_rwlock_unlock(&l.rw);
    return err;
}

/* Two take turns. */
static int takes_turns(struct locks *l, int me) {
    int err = coil_mutex_lock(&l->m);
    if (err) return err;
    for (int i = 0; i < 3 && !err; i++) {
        while (!err && l->turns % 2 != me)
            err = coil_cond_wait(&l->c, &l->m);
        if (err) break;
        l->turns++;
        coil_cond_broadcast(&l->c);
    }
    coil_mutex_unlock(&l->m);
    return err;
}

static int takes_even_turns(void *arg) {
    return takes_turns(arg, 0);
}

static int takes_odd_turns(void *arg) {
    return takes_turns(arg, 1);
}

Flow(a_condition_by_which_two_take_turns, 4) {
    struct locks l = {0};
    coil_job jobs[] = {{takes_even_turns, &l, 0}, {takes_odd_turns, &l, 0}};
    int err = coil_gather(jobs, 2);
    cr_expect_eq(coil_mutex_trylock(&l.m), 0, "nobody holds it");
    coil_mutex_unlock(&l.m);
    cr_expect(err || l.turns == 6, "%d", l.turns);
    return err;
}

static int takes_two_of_three(void *arg) {
    int err = coil_sem_acquire(arg, 2);
    if (err) return err;
    err = coil_yield();
    coil_sem_release(arg, 2);
    return err;
}

Flow(a_semaphore_with_too_few_permits, 5) {
    COIL_SEM(s, 3);
    int err = in_three(takes_two_of_three, &s);
    cr_expect_eq(coil_sem_tryacquire(&s, 3), 0, "all permits are back");
    coil_sem_release(&s, 3);
    return err;
}

static int awaits_the_event(void *arg) {
    struct locks *l = arg;
    int err = coil_event_wait(&l->e);
    l->done += err == 0;
    coil_waitgroup_done(&l->wg);
    return err;
}

Flow(an_event_and_a_waitgroup, 4) {
    struct locks l = {0};
    COIL_GROUP(g);
    int err = 0;
    for (int i = 0; i < 3 && !err; i++) {
        coil_waitgroup_add(&l.wg, 1);
        err = coil_group_spawn(&g, awaits_the_event, &l);
    }
    if (!err) err = coil_yield();
    coil_event_set(&l.e);
    if (!err) err = coil_waitgroup_wait(&l.wg);
    int children = coil_group_wait(&g);
    cr_expect(err || l.done == 3, "%d", l.done);
    return first(err, children);
}

static int meets_the_others(void *arg) {
    int err = coil_barrier_wait(arg);
    return err < 0 ? err : coil_yield();
}

Flow(a_barrier_where_three_meet, 5) {
    COIL_BARRIER(b, 3);
    return in_three(meets_the_others, &b);
}

static int is_done_once(void *arg) {
    struct locks *l = arg;
    int err = coil_yield();
    l->done += err == 0;
    return err;
}

static int does_it_once(void *arg) {
    struct locks *l = arg;
    return coil_once_do(&l->once, is_done_once, l);
}

Flow(something_that_is_done_once, 3) {
    struct locks l = {0};
    int err = in_three(does_it_once, &l);
    cr_expect(l.done == 1 || (err && l.done == 0), "%d", l.done);
    return err;
}

/* ---- channels ---- */

struct pipeline {
    coil_chan *c;
    int sent, received;
};

static int sends_five(void *arg) {
    struct pipeline *p = arg;
    int err = 0;
    for (int i = 0; i < 5 && !err; i++) {
        err = coil_chan_send(p->c, &i);
        p->sent += err == 0;
    }
    coil_chan_close(p->c);
    return err;
}

static int receives_to_the_end(void *arg) {
    struct pipeline *p = arg;
    int item, err;
    while ((err = coil_chan_recv(p->c, &item)) == 1)
        cr_expect_eq(item, p->received++);
    return err;
}

static int through(coil_chan *c) {
    struct pipeline p = {.c = c};
    coil_job jobs[] = {{sends_five, &p, 0}, {receives_to_the_end, &p, 0}};
    int err = coil_gather(jobs, 2), item;
    while (coil_chan_tryrecv(c, &item) == 1)
        cr_expect_eq(item, p.received++);
    cr_expect_eq(p.sent, p.received, "none is lost, none is doubled");
    coil_chan_destroy(c);
    return err;
}

Flow(five_items_through_an_unbuffered_channel, 4) {
    COIL_CHAN(c, int, 0);
    return through(&c);
}

Flow(five_items_through_a_channel_of_two, 2) {
    COIL_CHAN(c, int, 2);
    return through(&c);
}

static int sends_three(void *arg) {
    struct pipeline *p = arg;
    int err = 0;
    for (int i = 0; i < 3 && !err; i++) {
        err = coil_chan_send(p->c, &i);
        p->sent += err == 0;
    }
    return err;
}

/* From both channels until both have given three, or something else happens. */
static int selects(struct pipeline p[2], coil_event *e, int fd) {
    int item, at = 0;
    while (p[0].received + p[1].received < 6 && at >= 0) {
        coil_case cases[] = {coil_on_recv(p[0].c, &item), coil_on_recv(p[1].c, &item), coil_on_event(e),
                             coil_on_ready(fd, POLLIN), coil_on_time(coil_after(coil_sec(20)))};
        at = coil_select(cases, ARRAY_SIZE(cases));
        cr_expect_lt(at, 2, "%d", at);
        if (at == 0 || at == 1) cr_expect_eq(item, p[at].received++);
    }
    return at < 0 ? at : 0;
}

static int selects_beside_senders(struct pipeline p[2], int fd) {
    coil_event never = {0};
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, sends_three, &p[0]);
    if (!err) err = coil_group_spawn(&g, sends_three, &p[1]);
    if (!err) err = selects(p, &never, fd);
    if (err) coil_group_cancel(&g);
    return first(err, coil_group_wait(&g));
}

Flow(a_select_over_two_senders_a_descriptor_and_more, 3) {
    COIL_CHAN(a, int, 0);
    COIL_CHAN(b, int, 1);
    struct pipeline p[2] = {{.c = &a}, {.c = &b}};
    int fd[2], item;
    make_pair(UNIX_PAIR, fd);
    int err = selects_beside_senders(p, fd[0]);
    while (coil_chan_tryrecv(&b, &item) == 1)
        cr_expect_eq(item, p[1].received++);
    for (int i = 0; i < 2; i++) {
        cr_expect_eq(p[i].sent, p[i].received, "channel %d: none is lost, none is doubled", i);
        coil_chan_destroy(p[i].c);
        close(fd[i]);
    }
    return err;
}

/* ---- other threads ---- */

struct job {
    atomic_int runs, drops;
};

static int runs_elsewhere(void *arg) {
    struct job *j = arg;
    atomic_fetch_add(&j->runs, 1);
    return 7;
}

static void drops(void *arg) {
    struct job *j = arg;
    atomic_fetch_add(&j->drops, 1);
}

Flow(a_call_on_the_pool_that_borrows, 1) {
    struct job j = {0};
    int result = 0, err = coil_blocking(runs_elsewhere, &j, &result);
    cr_expect_eq(atomic_load(&j.runs), err == 0, "error %d", err);
    cr_expect(err || result == 7);
    return first(err, coil_yield());
}

/* The job is left to whoever has it last. */
Flow(a_call_on_the_pool_that_owns, 1) {
    static struct job j;
    int result = 0, runs = atomic_load(&j.runs), drops_before = atomic_load(&j.drops);
    int err = coil_blocking_owned(runs_elsewhere, &j, drops, &result);
    while (err && atomic_load(&j.drops) == drops_before)
        coil_nop(); /* refused, but other tasks and completions have their turns */
    cr_expect_eq(atomic_load(&j.drops) - drops_before, err != 0, "error %d", err);
    cr_expect_leq(atomic_load(&j.runs) - runs, 1);
    return first(err, coil_yield());
}

static void *gives_five(void *arg) {
    for (int i = 0; i < 5; i++) {
        if (coil_shared_chan_send(arg, &i) < 0) break;
    }
    coil_shared_chan_close(arg);
    return NULL;
}

Flow(items_from_another_thread, 1) {
    coil_shared_chan c;
    pthread_t thread;
    int item, received = 0, err = coil_shared_chan_open(&c, sizeof item, 1);
    if (err) return err;
    cr_expect_eq(pthread_create(&thread, NULL, gives_five, &c), 0);
    err = coil_yield(); /* whether a receive has to wait is the thread's affair */
    while (!err && (err = coil_shared_chan_recv(&c, &item)) == 1) {
        cr_expect_eq(item, received++);
        err = 0;
    }
    coil_shared_chan_close(&c);
    pthread_join(thread, NULL);
    coil_shared_chan_destroy(&c);
    cr_expect(err || received == 5, "%d", received);
    return err;
}

/* ---- descriptors ---- */

static int echoes(coil_stream *s, void *arg) {
    char buf[64];
    ssize_t n;
    (void)arg;
    while ((n = coil_stream_read(s, buf, sizeof buf)) > 0) {
        int err = coil_stream_write(s, buf, (size_t)n);
        if (err < 0) return err;
    }
    return (int)n;
}

static int serves(void *listener) {
    int left = coil_serve(listener, echoes, NULL, &(coil_serve_opts){.grace = coil_ns(-1)});
    return left > 0 ? 0 : left;
}

static int asks(const coil_addr *a) {
    coil_stream *s;
    char reply[5];
    size_t done;
    int err = coil_dial_addr(&s, a, NULL);
    if (err) return err;
    err = coil_stream_write(s, "hello", 5);
    if (!err) err = coil_stream_read_exact(s, reply, 5, &done);
    cr_expect(err || memcmp(reply, "hello", 5) == 0);
    return first(err, coil_stream_close(s));
}

static int asks_a_server(coil_listener *l) {
    coil_addr a;
    COIL_GROUP(g);
    int err = coil_listener_addr(l, &a);
    if (!err) err = coil_group_spawn(&g, serves, l);
    if (!err) err = asks(&a);
    coil_group_cancel(&g);
    int served = coil_group_wait(&g);
    return first(err, served);
}

Flow(a_client_and_a_server, 5) {
    coil_listener *l;
    int err = coil_listen(&l, "127.0.0.1:0", NULL);
    if (err) return err;
    err = asks_a_server(l);
    coil_listener_close(l);
    /* A close that could not send all says so; the client was cancelled then. */
    return err == -ECANCELED || !point.struck ? err : 0;
}

Flow(a_file_written_and_read, 2) {
    char got[5] = "";
    FILE *f = tmpfile();
    cr_expect_not_null(f);
    if (!f) return -EIO;
    ssize_t n = coil_write(fileno(f), "hello", 5, 0);
    if (n == 5) n = coil_read(fileno(f), got, 5, 0);
    cr_expect(n < 0 || (n == 5 && memcmp(got, "hello", 5) == 0), "%zd", n);
    fclose(f);
    return n < 0 ? (int)n : 0;
}

Flow(a_signal_that_does_not_come, 1) {
    static const int signals[] = {SIGUSR2};
    coil_scope limit = coil_within(coil_us(50));
    int sig = coil_signal_wait(signals, 1);
    cr_expect_eq(coil_leave(&limit), sig == -ETIME);
    return sig == -ETIME ? 0 : sig;
}

/* ---- the samples ---- */

/* Each is compiled with another name for its main; coil_run, called there, comes here. */
typedef int main_fn(int argc, char **argv);
main_fn callstack_main, echo_client_main, echo_server_main, gather_main, graceful_shutdown_main, hello_main,
    producer_consumer_main, race_main, timeout_main;
enum { SAMPLES = 9 };

Test(flow_cancel, each_sample_is_among_those_below) {
    glob_t files;
    cr_assert_eq(glob(SAMPLES_SOURCE "/*.c", 0, NULL, &files), 0);
    cr_expect_eq(files.gl_pathc, SAMPLES);
    globfree(&files);
}

static int sample_result;

int __wrap_coil_run(coil_fn *fn, void *arg);
int __wrap_coil_run(coil_fn *fn, void *arg) {
    struct scene s = {.fn = fn, .arg = arg};
    int err = coil_run_with(&few_threads, conducts, &s);
    cr_expect_eq(err, 0, "%s", coil_strerror(err));
    return sample_result = s.result;
}

/* They sleep for people to see it. */
int __real_coil_sleep(coil_dur d);
int __wrap_coil_sleep(coil_dur d);
int __wrap_coil_sleep(coil_dur d) {
    return __real_coil_sleep(d.ns == INT64_MAX ? d : coil_ns(d.ns / 200));
}

static void play_sample(const char *name, main_fn *fn, char **argv, unsigned at, enum strike how) {
    int argc = 0;
    while (argv[argc])
        argc++;
    memset(&point, 0, sizeof point);
    point.at = at;
    point.how = how;
    int status = fn(argc, argv);
    cr_expect(sample_result >= 0 || (point.struck && sample_result == -ECANCELED), "%s, point %u.%d: %s",
              name, at, (int)how, coil_strerror(sample_result));
    cr_expect_eq(status, sample_result < 0, "%s, point %u.%d: its exit status", name, at, (int)how);
}

typedef bool play_fn(const char *name, main_fn *fn, char **argv, unsigned at, enum strike how);

static bool alone(const char *name, main_fn *fn, char **argv, unsigned at, enum strike how) {
    play_sample(name, fn, argv, at, how);
    return point.struck;
}

/* What a sample says of its cancel is not for this test's reader. What it prints is kept for the test itself.
 */
static void silence(void) {
    char path[] = "/tmp/coil-test-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert(freopen(path, "w+", stdout));
    cr_assert(freopen("/dev/null", "w", stderr));
    close(fd);
    unlink(path);
}

/* What was printed since the last time. */
static void take_output(char *text, size_t size) {
    fflush(stdout);
    ssize_t n = pread(fileno(stdout), text, size - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    cr_assert_eq(ftruncate(fileno(stdout), 0), 0);
    rewind(stdout);
}

static void sample_at_every_point(const char *name, main_fn *fn, char **argv, play_fn *play,
                                  unsigned points_min) {
    silence();
    play(name, fn, argv, UINT32_MAX, WHEN_IT_WAITS);
    int fds = check_fd_count(), maps = check_map_count();
    for (int how = 0; how < STRIKES; how++) {
        unsigned at = 1;
        while (play(name, fn, argv, at, (enum strike)how) && at < POINTS_MAX)
            at++;
        cr_expect(at > points_min, "%s has %u points", name, at - 1);
    }
    cr_expect_eq(check_fd_count(), fds, "%s: descriptors", name);
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps + 4, "%s: mappings", name);
}

#define SampleFlow(Name, PointsMin)                                        \
    Test(flow_cancel, the_sample_##Name) {                                 \
        char *argv[] = {(char[]){#Name}, NULL};                            \
        sample_at_every_point(#Name, Name##_main, argv, alone, PointsMin); \
    }

SampleFlow(hello, 1) SampleFlow(gather, 6) SampleFlow(timeout, 2) SampleFlow(race, 3)
    SampleFlow(producer_consumer, 4) SampleFlow(callstack, 1)

    /* ---- samples that serve, until a signal comes ---- */

    struct visitor {
    coil_addr a;
    atomic_bool leave; /* the server has ended */
    int visits;
};

static bool visits_once(struct visitor *v) {
    char buf[5];
    int fd = socket(v->a.u.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && connect(fd, &v->a.u.sa, v->a.len) == 0;
    ok = ok && send(fd, "hello", 5, MSG_NOSIGNAL) == 5 && recv(fd, buf, 5, MSG_WAITALL) == 5;
    close(fd);
    return ok;
}

static void *visits_then_signals(void *arg) {
    struct visitor *v = arg;
    while (!atomic_load(&v->leave) && v->visits < 3)
        v->visits += visits_once(v);
    if (v->visits == 3 && !atomic_load(&v->leave)) kill(getpid(), SIGTERM);
    return NULL;
}

static void on_late_signal(int sig) {
    (void)sig;
}

/* A signal that comes when the server has ended must not end the test. */
static bool with_a_visitor(const char *name, main_fn *fn, char **argv, unsigned at, enum strike how) {
    struct visitor v = {0};
    pthread_t thread;
    cr_assert_eq(coil_addr_parse(&v.a, argv[1]), 0);
    signal(SIGTERM, on_late_signal);
    cr_assert_eq(pthread_create(&thread, NULL, visits_then_signals, &v), 0);
    play_sample(name, fn, argv, at, how);
    atomic_store(&v.leave, true);
    pthread_join(thread, NULL);
    return point.struck;
}

/* The other way round: the sample is the client. */
static void *echoes_once(void *arg) {
    char buf[64];
    int fd = accept(*(int *)arg, NULL, NULL);
    for (ssize_t n; fd >= 0 && (n = recv(fd, buf, sizeof buf, 0)) > 0;)
        send(fd, buf, (size_t)n, MSG_NOSIGNAL);
    if (fd >= 0) close(fd);
    return NULL;
}

static bool with_a_server(const char *name, main_fn *fn, char **argv, unsigned at, enum strike how) {
    pthread_t thread;
    coil_addr a;
    char where[64];
    cr_assert_eq(coil_addr_parse(&a, "127.0.0.1:0"), 0);
    int listening = peers_listen(&a, 16);
    cr_assert_gt(coil_addr_format(&a, where, sizeof where), 0);
    cr_assert_eq(pthread_create(&thread, NULL, echoes_once, &listening), 0);
    argv[1] = where;
    play_sample(name, fn, argv, at, how);
    shutdown(listening, SHUT_RDWR); /* the client may have been cancelled before it came */
    pthread_join(thread, NULL);
    close(listening);
    return point.struck;
}

Test(flow_cancel, the_sample_echo_client) {
    char *argv[] = {(char[]){"echo_client"}, (char[]){""}, NULL};
    sample_at_every_point("echo_client", echo_client_main, argv, with_a_server, 1);
}

/* Whenever the cancel comes: what was served last is saved. */
static bool with_a_visitor_and_a_look(const char *name, main_fn *fn, char **argv, unsigned at,
                                      enum strike how) {
    char text[1024];
    long served = -1, saved = -2;
    bool struck = with_a_visitor(name, fn, argv, at, how);
    take_output(text, sizeof text);
    const char *last = strstr(text, "served ");
    cr_expect(last && sscanf(last, "served %ld bytes, saved %ld", &served, &saved) == 2, "%s", text);
    cr_expect_eq(saved, served, "point %u.%d: %s", at, (int)how, text);
    return struck;
}

static void server_at_every_point(const char *name, main_fn *fn) {
    char where[64], file[] = "/tmp/coil-test-XXXXXX";
    int fd = mkstemp(file);
    cr_assert_geq(fd, 0);
    close(fd);
    peers_abstract(where, name);
    char *argv[] = {(char *)(uintptr_t)name, where, file, NULL};
    if (fn == echo_server_main) argv[2] = NULL;
    sample_at_every_point(name, fn, argv, fn == echo_server_main ? with_a_visitor : with_a_visitor_and_a_look,
                          5);
    unlink(file);
}

Test(flow_cancel, the_sample_echo_server) {
    server_at_every_point("echo_server", echo_server_main);
}

Test(flow_cancel, the_sample_graceful_shutdown) {
    server_at_every_point("graceful_shutdown", graceful_shutdown_main);
}
