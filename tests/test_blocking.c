/* Tasks that wait for jobs of the blocking pool: results, cancels, limits, closes, the end of a run. */
#include "tasks.h"

#include "blocking.h"
#include "threads.h"

#include "coil/coil.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { CANNOT_TRY = 101 };

static int run(coil_fn *fn, const coil_run_opts *o) {
    int before = check_fd_count(), result = coil_run_with(o, fn, NULL);
    cr_expect_eq(check_fd_count(), before, "descriptors");
    return result;
}

/* ---- a call, and a job that holds its thread until it is told to go on ---- */

struct call {
    struct coil__blocking b;
    sem_t hold;
    int64_t until_ns;
    bool holds, always;
    atomic_bool begun, ended;
    atomic_int runs;
    int result; /* of the call */
    int after;  /* of the next one */
};

static void run_call(struct coil__job *j) {
    struct call *c = CONTAINER_OF(j, struct call, b.job);
    atomic_fetch_add(&c->runs, 1);
    atomic_store(&c->begun, true);
    while (c->holds && sem_wait(&c->hold))
        continue;
    atomic_store(&c->ended, true);
}

static void init(struct call *c, bool holds, int fd) {
    memset(c, 0, sizeof *c);
    c->b.job.run = run_call;
    c->b.job.lane = COIL__LANE_USER;
    c->b.fd = fd;
    c->holds = holds;
    c->until_ns = COIL__NEVER;
    sem_init(&c->hold, 0, 0);
}

static int makes_call(void *arg) {
    struct call *c = arg;
    struct coil__task *t = coil__current("test");
    int64_t until_ns = MIN(c->until_ns, t->limit_ns);
    c->result = c->always ? coil__blocking_call_always(t, &c->b, "job")
                          : coil__blocking_call(t, &c->b, "job", until_ns);
    c->after = coil_yield();
    return c->result;
}

/* A thread has it. */
static void wait_begun(struct call *c) {
    while (!atomic_load(&c->begun))
        coil_sleep(coil_us(50));
}

static coil_task begin(struct call *c, int fd) {
    init(c, true, fd);
    coil_task t = spawn(makes_call, c);
    wait_begun(c);
    return t;
}

static void release(struct call *c) {
    sem_post(&c->hold);
}

/* One thread for each lane: behind the one that holds, the others wait. */
static const coil_run_opts one_thread = {.blocking_threads = 3};

static coil_stats stats(void) {
    coil_stats s;
    coil_stats_get(&s);
    return s;
}

/* ---- results ---- */

static int calls(void *arg) {
    (void)arg;
    coil_stats before = stats();
    for (int i = 0; i < 300; i++) {
        struct call c;
        init(&c, false, -1);
        c.b.job.lane = (uint8_t)(i % COIL__LANE_COUNT);
        c.always = i % 2;
        cr_expect_eq(makes_call(&c), 0);
        cr_expect(atomic_load(&c.ended) && atomic_load(&c.runs) == 1);
        cr_expect_eq(c.after, 0);
        cr_expect_not(coil__node_linked(&c.b.node));
    }
    cr_expect_eq(stats().jobs - before.jobs, 300);
    cr_expect_eq(stats().ops, before.ops, "no request was made");
    return 0;
}

Test(blocking, a_call_returns_when_its_job_has_been_run) {
    cr_assert_eq(run(calls, NULL), 0);
}

static int others_go_on(void *arg) {
    struct call c;
    (void)arg;
    coil_task t = begin(&c, -1);
    for (int i = 0; i < 100; i++)
        cr_expect_eq(coil_nop(), 0);
    cr_expect_not(atomic_load(&c.ended));
    release(&c);
    return join(t);
}

Test(blocking, meanwhile_the_worker_goes_on) {
    cr_assert_eq(run(others_go_on, NULL), 0);
}

static int waits_for_a_thread(void *arg) {
    struct call first, second;
    (void)arg;
    coil_stats before = stats();
    coil_task a = begin(&first, -1);
    init(&second, false, -1);
    coil_task b = spawn(makes_call, &second);
    coil_yield();
    coil_time queued = coil_now();
    cr_expect_eq(coil_sleep(coil_ms(5)), 0);
    cr_expect_not(atomic_load(&second.begun), "the limit of threads doesn't hold");
    int64_t waited_ns = coil_now().ns - queued.ns;
    cr_expect_eq(stats().jobs, before.jobs, "counted when it is over");
    release(&first);
    cr_expect_eq(join(a), 0);
    cr_expect_eq(join(b), 0);
    cr_expect_eq(stats().jobs - before.jobs, 2);
    cr_expect_geq((int64_t)(stats().jobs_wait_ns - before.jobs_wait_ns), waited_ns, "the second has waited");
    return 0;
}

Test(blocking, counters_tell_how_long_jobs_wait_for_a_thread) {
    cr_assert_eq(run(waits_for_a_thread, &one_thread), 0);
}

static int finds_the_queue_full(void *arg) {
    struct call holder, queued, refused;
    (void)arg;
    coil_task a = begin(&holder, -1);
    init(&queued, false, -1);
    coil_task b = spawn(makes_call, &queued);
    coil_yield();
    for (int always = 0; always < 2; always++) {
        init(&refused, false, -1);
        refused.always = always;
        cr_expect_eq(makes_call(&refused), -EAGAIN);
        cr_expect_eq(refused.after, 0);
        cr_expect_eq(atomic_load(&refused.runs), 0);
    }
    release(&holder);
    cr_expect_eq(join(a), 0);
    cr_expect_eq(join(b), 0);
    cr_expect_eq(makes_call(&refused), 0, "and now there is room");
    return 0;
}

Test(blocking, a_full_queue_refuses_the_call) {
    coil_run_opts o = {.blocking_threads = 3, .blocking_queue = 1};
    cr_assert_eq(run(finds_the_queue_full, &o), 0);
}

static int finds_no_thread(void *arg) {
    struct call c;
    struct rlimit none = {0, 0};
    (void)arg;
    if (getuid() == 0 && setuid(100000 + (uid_t)getpid())) return CANNOT_TRY;
    if (setrlimit(RLIMIT_NPROC, &none)) return CANNOT_TRY;
    init(&c, false, -1);
    int err = makes_call(&c);
    if (err == 0) return CANNOT_TRY;
    return err == -ENOMEM && c.after == 0 && atomic_load(&c.runs) == 0 ? 0 : 1;
}

static int runs_without_threads(void *arg) {
    return coil_run(finds_no_thread, arg);
}

Test(blocking, without_a_thread_the_call_is_refused) {
    int status;
    char err[1024];
    cr_assert(check_in_child(runs_without_threads, NULL, &status, err, sizeof err));
    if (status == CANNOT_TRY << 8) cr_skip("threads can't be forbidden here");
    cr_assert_eq(status, 0, "%#x %s", (unsigned)status, err);
}

/* ---- cancels and limits ---- */

static int stops_a_waiting_one(void *arg) {
    struct call holder, waits;
    (void)arg;
    coil_task a = begin(&holder, -1);
    for (int limit = 0; limit < 2; limit++) {
        coil_stats before = stats();
        init(&waits, false, -1);
        if (limit) waits.until_ns = coil__clock(coil__here) + 1000000;
        coil_task b = spawn(makes_call, &waits);
        coil_yield();
        if (!limit) cr_expect_eq(coil_cancel(b), 0);
        cr_expect_eq(join(b), limit ? -ETIME : -ECANCELED);
        cr_expect_eq(waits.after, limit ? 0 : -ECANCELED);
        cr_expect_eq(stats().jobs, before.jobs, "it was not run");
        cr_expect_not(coil__node_linked(&waits.b.node) || coil__node_linked(&waits.b.job.node));
    }
    release(&holder);
    cr_expect_eq(join(a), 0);
    cr_expect_eq(atomic_load(&waits.runs), 0);
    return 0;
}

Test(blocking, a_job_that_has_not_begun_is_taken_back_by_cancel_or_limit) {
    cr_assert_eq(run(stops_a_waiting_one, &one_thread), 0);
}

/* Begins a call on the pool with so much time. Where the pool's thread came too late for that, it was rightly
 * taken back, and another one has more. */
static coil_task begin_in_time(struct call *c, int64_t *time_ns) {
    for (;; *time_ns *= 2) {
        init(c, true, -1);
        c->until_ns = coil__clock(coil__here) + *time_ns;
        coil_task t = spawn(makes_call, c);
        while (!atomic_load(&c->begun) && coil__task_find(coil__here, t)->state != COIL__ENDED)
            coil_nop();
        if (atomic_load(&c->begun)) return t;
        cr_expect_eq(join(t), -ETIME);
    }
}

static int stops_a_running_one(void *arg) {
    (void)arg;
    for (int limit = 0; limit < 2; limit++) {
        struct call c;
        int64_t time_ns = 20000000;
        coil_task t = limit ? begin_in_time(&c, &time_ns) : begin(&c, -1);
        if (limit) {
            cr_expect_eq(coil_sleep(coil_ns(time_ns + 5000000)), 0);
        } else {
            cr_expect_eq(coil_cancel(t), 0);
            cr_expect_eq(coil_cancel(t), 0, "twice does no harm");
        }
        for (int i = 0; i < 10; i++)
            cr_expect_eq(coil_nop(), 0);
        cr_expect_eq(coil__here->live, 2, "it has left its job");
        release(&c);
        cr_expect_eq(join(t), 0, "what was done counts");
        cr_expect(atomic_load(&c.ended));
        cr_expect_eq(c.after, limit ? 0 : -ECANCELED, "a cancel shows at the next call");
    }
    return 0;
}

Test(blocking, a_job_that_has_begun_is_waited_for_and_its_result_counts) {
    cr_assert_eq(run(stops_a_running_one, NULL), 0);
}

static int cancels_an_always(void *arg) {
    struct call holder, c;
    (void)arg;
    coil_task a = begin(&holder, -1);
    init(&c, false, -1);
    c.always = true;
    coil_task b = spawn(makes_call, &c);
    coil_yield();
    cr_expect_eq(coil_cancel(b), 0);
    coil_yield();
    cr_expect_eq(coil__here->live, 3);
    release(&holder);
    cr_expect_eq(join(a), 0);
    cr_expect_eq(join(b), 0);
    cr_expect_eq(atomic_load(&c.runs), 1);
    cr_expect_eq(c.after, -ECANCELED);
    return 0;
}

Test(blocking, a_call_that_always_finishes_is_run_in_spite_of_a_cancel) {
    cr_assert_eq(run(cancels_an_always, &one_thread), 0);
}

static int limit_of_a_scope(void *arg) {
    struct call holder, c;
    (void)arg;
    coil_task a = begin(&holder, -1);
    coil_scope s = coil_within(coil_ms(1));
    init(&c, false, -1);
    cr_expect_eq(makes_call(&c), -ETIME);
    cr_expect_eq(c.after, -ETIME);
    cr_expect(coil_leave(&s), "it ended because of this scope");
    release(&holder);
    return join(a);
}

Test(blocking, the_limit_of_a_scope_holds) {
    cr_assert_eq(run(limit_of_a_scope, &one_thread), 0);
}

/* ---- closing the descriptor ---- */

static int open_some(bool file) {
    int p[2];
    if (file) return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    cr_expect_eq(pipe2(p, O_CLOEXEC), 0);
    close(p[1]);
    return p[0];
}

static int closes(void *arg) {
    return coil_close(*(int *)arg);
}

static int closes_meanwhile(void *arg) {
    (void)arg;
    for (int file = 0; file < 2; file++) {
        struct call holder, waits;
        int fd = open_some(file);
        coil_task a = begin(&holder, -1);
        init(&waits, false, fd);
        coil_task b = spawn(makes_call, &waits);
        coil_yield();
        cr_expect_eq(coil_close(fd), 0);
        cr_expect_eq(fcntl(fd, F_GETFD), -1);
        cr_expect_eq(join(b), -EBADF);
        cr_expect_eq(waits.after, 0);
        cr_expect_eq(atomic_load(&waits.runs), 0);
        release(&holder);
        cr_expect_eq(join(a), 0);
    }
    return 0;
}

Test(blocking, a_close_takes_back_what_has_not_begun) {
    cr_assert_eq(run(closes_meanwhile, &one_thread), 0);
}

static int closes_under_a_job(void *arg) {
    (void)arg;
    for (int file = 0; file < 2; file++) {
        struct call c;
        int fd = open_some(file);
        coil_task t = begin(&c, fd);
        coil_task closer = spawn(closes, &fd);
        for (int i = 0; i < 10; i++)
            cr_expect_eq(coil_nop(), 0);
        cr_expect_geq(fcntl(fd, F_GETFD), 0, "closed under a job's hands");
        cr_expect_eq(coil_close(fd), -EBADF, "one closes");
        cr_expect_eq(coil_cancel(closer), 0, "a close is never refused");
        release(&c);
        cr_expect_eq(join(t), 0, "what was done counts");
        cr_expect_eq(join(closer), 0);
        cr_expect_eq(fcntl(fd, F_GETFD), -1);
    }
    return 0;
}

Test(blocking, a_close_waits_for_a_job_that_has_begun) {
    cr_assert_eq(run(closes_under_a_job, NULL), 0);
}

static int closes_under_many(void *arg) {
    enum { JOBS = 12, CLOSERS = 3 };
    static struct call c[JOBS];
    coil_task t[JOBS], closers[CLOSERS];
    int fd = open_some(true), closed = 0, ran = 0;
    (void)arg;
    for (int i = 0; i < JOBS; i++) {
        init(&c[i], true, fd);
        t[i] = spawn(makes_call, &c[i]);
    }
    wait_begun(&c[0]);
    for (int i = 0; i < CLOSERS; i++)
        closers[i] = spawn(closes, &fd);
    coil_yield();
    for (int i = JOBS; i-- > 0;)
        release(&c[i]);
    for (int i = 0; i < CLOSERS; i++) {
        int result = join(closers[i]);
        cr_expect(result == 0 || result == -EBADF, "%d", result);
        closed += result == 0;
    }
    cr_expect_eq(closed, 1);
    for (int i = 0; i < JOBS; i++) {
        int result = join(t[i]);
        cr_expect_eq(result, atomic_load(&c[i].runs) ? 0 : -EBADF, "%d: %d", i, result);
        ran += atomic_load(&c[i].runs);
    }
    cr_expect(ran > 0 && ran < JOBS, "%d", ran);
    return 0;
}

Test(blocking, of_several_closers_one_closes) {
    coil_run_opts o = {.blocking_threads = 6};
    cr_assert_eq(run(closes_under_many, &o), 0);
}

/* ---- the end of a run, deadlocks ---- */

static struct {
    struct call c;
    sem_t main_returns;
} end;

static void *releases_after_main(void *arg) {
    (void)arg;
    while (sem_wait(&end.main_returns))
        continue;
    usleep(10000); /* for a run that would not wait */
    release(&end.c);
    return NULL;
}

static int leaves_a_job(void *arg) {
    (void)arg;
    begin(&end.c, -1);
    sem_post(&end.main_returns);
    return 5;
}

Test(blocking, the_end_of_a_run_waits_for_jobs_that_have_begun) {
    pthread_t thread;
    sem_init(&end.main_returns, 0, 0);
    cr_assert_eq(pthread_create(&thread, NULL, releases_after_main, NULL), 0);
    cr_assert_eq(run(leaves_a_job, NULL), 5);
    cr_assert(atomic_load(&end.c.ended), "the run is over, and its job is not");
    cr_assert_eq(end.c.result, 0);
    cr_assert_eq(end.c.after, -ECANCELED);
    pthread_join(thread, NULL);
}

static int leaves_waiting_jobs(void *arg) {
    static struct call waits[20];
    (void)arg;
    begin(&end.c, -1);
    for (int i = 0; i < 20; i++) {
        init(&waits[i], false, -1);
        cr_expect_eq(coil_spawn(NULL, makes_call, &waits[i]), 0);
    }
    coil_yield();
    sem_post(&end.main_returns);
    return 6;
}

Test(blocking, the_end_of_a_run_takes_back_jobs_that_have_not_begun) {
    pthread_t thread;
    sem_init(&end.main_returns, 0, 0);
    cr_assert_eq(pthread_create(&thread, NULL, releases_after_main, NULL), 0);
    cr_assert_eq(run(leaves_waiting_jobs, &one_thread), 6);
    cr_assert(atomic_load(&end.c.ended));
    pthread_join(thread, NULL);
}

static void run_slowly(struct coil__job *j) {
    usleep(20000);
    run_call(j);
}

static int only_waits_for_jobs(void *arg) {
    struct call c[3];
    coil_task t[3];
    (void)arg;
    for (int i = 0; i < 3; i++) {
        init(&c[i], false, -1);
        c[i].b.job.run = run_slowly;
        t[i] = spawn(makes_call, &c[i]);
    }
    for (int i = 0; i < 3; i++)
        cr_expect_eq(join(t[i]), 0);
    return 0;
}

static int waits_for_ever_after_a_job(void *arg) {
    only_waits_for_jobs(arg);
    return coil_sleep(COIL_FOREVER);
}

Test(blocking, a_wait_for_a_job_is_no_deadlock) {
    cr_assert_eq(run(only_waits_for_jobs, &one_thread), 0);
}

Test(blocking, when_the_jobs_are_over_a_deadlock_is_seen) {
    coil_run_opts o = {.quiet = true};
    cr_assert_eq(run(waits_for_ever_after_a_job, &o), -EDEADLK);
}

/* ---- the program's functions, borrowed and owned arguments ---- */

struct work {
    sem_t hold;
    bool holds, owned;
    atomic_bool begun;
    atomic_int runs, ended, drops;
    pthread_t ran_on, dropped_on;
    int result;  /* of the call */
    int value;   /* of the function */
    void *block; /* freed by drop: a leak or a double free shows */
};

static int works(void *arg) {
    struct work *w = arg;
    atomic_fetch_add(&w->runs, 1);
    w->ran_on = pthread_self();
    atomic_store(&w->begun, true);
    while (w->holds && sem_wait(&w->hold))
        continue;
    atomic_fetch_add(&w->ended, 1);
    return 42;
}

static void drop(void *arg) {
    struct work *w = arg;
    w->dropped_on = pthread_self();
    free(w->block);
    atomic_fetch_add(&w->drops, 1);
}

static void init_work(struct work *w, bool holds, bool owned) {
    memset(w, 0, sizeof *w);
    sem_init(&w->hold, 0, 0);
    w->holds = holds;
    w->owned = owned;
    w->value = -7;
    w->block = owned ? malloc(16) : NULL;
}

static int calls_work(void *arg) {
    struct work *w = arg;
    w->result =
        w->owned ? coil_blocking_owned(works, w, drop, &w->value) : coil_blocking(works, w, &w->value);
    if (w->owned && w->result == 0) free(w->block);
    return w->result;
}

static coil_task begin_work(struct work *w, bool owned) {
    init_work(w, true, owned);
    coil_task t = spawn(calls_work, w);
    while (!atomic_load(&w->begun))
        coil_sleep(coil_us(50));
    return t;
}

static int works_for_both(void *arg) {
    struct work w;
    (void)arg;
    coil_stats before = stats();
    for (int owned = 0; owned < 2; owned++) {
        init_work(&w, false, owned);
        cr_expect_eq(calls_work(&w), 0);
        cr_expect_eq(w.value, 42);
        cr_expect(atomic_load(&w.ended) == 1 && atomic_load(&w.drops) == 0, "the argument is the caller's");
        cr_expect_not(pthread_equal(w.ran_on, pthread_self()));
    }
    cr_expect_eq(coil_blocking(works, &w, NULL), 0, "the value need not be wanted");
    cr_expect_eq(coil_blocking_owned(works, &w, NULL, NULL), 0);
    cr_expect_eq(coil_blocking(NULL, &w, NULL), -EINVAL);
    cr_expect_eq(coil_blocking_owned(NULL, &w, NULL, NULL), -EINVAL);
    cr_expect_eq(stats().jobs - before.jobs, 4);
    return 0;
}

Test(blocking, functions_run_on_a_thread_and_their_value_comes_back) {
    cr_assert_eq(run(works_for_both, NULL), 0);
}

static int is_refused(void *arg) {
    struct work *w = arg;
    coil_cancel(coil_self());
    return calls_work(w);
}

static int drops_what_was_not_begun(void *arg) {
    struct work holder, w[3];
    (void)arg;
    for (int owned = 0; owned < 2; owned++) {
        coil_task a = begin_work(&holder, false), b[3];
        for (int i = 0; i < 3; i++)
            init_work(&w[i], false, owned);
        b[0] = spawn(calls_work, &w[0]); /* waits for the thread; cancelled */
        coil_yield();
        b[1] = spawn(calls_work, &w[1]); /* finds the queue full */
        b[2] = spawn(is_refused, &w[2]);
        cr_expect_eq(join(b[1]), -EAGAIN);
        cr_expect_eq(join(b[2]), -ECANCELED);
        cr_expect_eq(coil_cancel(b[0]), 0);
        cr_expect_eq(join(b[0]), -ECANCELED);
        for (int i = 0; i < 3; i++) {
            cr_expect_eq(atomic_load(&w[i].drops), owned, "%d", i);
            cr_expect(!owned || pthread_equal(w[i].dropped_on, pthread_self()));
            cr_expect(atomic_load(&w[i].runs) == 0 && w[i].value == -7);
        }
        sem_post(&holder.hold);
        cr_expect_eq(join(a), 0);
    }
    return 0;
}

Test(blocking, a_function_that_was_not_begun_is_not_called_and_its_owned_argument_is_dropped) {
    coil_run_opts o = {.blocking_threads = 3, .blocking_queue = 1};
    cr_assert_eq(run(drops_what_was_not_begun, &o), 0);
}

static int waits_or_leaves(void *arg) {
    struct work w;
    (void)arg;
    coil_task t = begin_work(&w, false);
    cr_expect_eq(coil_cancel(t), 0);
    for (int i = 0; i < 10; i++)
        cr_expect_eq(coil_nop(), 0);
    cr_expect_eq(coil__here->live, 2, "a borrowed argument was left to the thread");
    sem_post(&w.hold);
    cr_expect_eq(join(t), 0);
    cr_expect_eq(w.value, 42);

    for (int limit = 0; limit < 2; limit++) {
        coil_stats before = stats();
        init_work(&w, true, true);
        t = spawn(calls_work, &w);
        while (!atomic_load(&w.begun))
            coil_sleep(coil_us(50));
        cr_expect_eq(coil_cancel(t), 0);
        cr_expect_eq(join(t), -ECANCELED, "it has not left");
        cr_expect_eq(atomic_load(&w.drops), 0, "dropped under the function's hands");
        sem_post(&w.hold);
        while (!atomic_load(&w.drops))
            coil_sleep(coil_us(50));
        cr_expect(pthread_equal(w.dropped_on, w.ran_on));
        cr_expect(w.value == -7 && atomic_load(&w.ended) == 1);
        while (stats().jobs == before.jobs)
            coil_sleep(coil_us(50));
    }
    return 0;
}

Test(blocking, an_owned_call_leaves_a_function_that_has_begun_and_a_borrowed_one_does_not) {
    cr_assert_eq(run(waits_or_leaves, NULL), 0);
}

static int runs_into_its_limit(void *arg) {
    static struct work w;
    (void)arg;
    init_work(&w, true, true);
    coil_scope s = coil_within(coil_ms(5));
    int err = calls_work(&w);
    cr_expect_eq(err, -ETIME);
    cr_expect(coil_leave(&s));
    sem_post(&w.hold);
    while (!atomic_load(&w.drops))
        coil_sleep(coil_us(50));
    return 0;
}

Test(blocking, an_owned_call_obeys_a_limit) {
    cr_assert_eq(run(runs_into_its_limit, NULL), 0);
}

/* ---- what is left behind, and the end of a run ---- */

static struct {
    struct work w;
    sem_t main_returns;
} left_behind;

static void *releases_what_was_left(void *arg) {
    (void)arg;
    while (sem_wait(&left_behind.main_returns))
        continue;
    usleep(10000); /* for a run that would not wait */
    sem_post(&left_behind.w.hold);
    return NULL;
}

static int leaves_work_behind(void *arg) {
    (void)arg;
    coil_task t = begin_work(&left_behind.w, true);
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(join(t), -ECANCELED);
    sem_post(&left_behind.main_returns);
    return 7;
}

Test(blocking, the_end_of_a_run_waits_for_what_was_left_behind) {
    pthread_t thread;
    sem_init(&left_behind.main_returns, 0, 0);
    cr_assert_eq(pthread_create(&thread, NULL, releases_what_was_left, NULL), 0);
    cr_assert_eq(run(leaves_work_behind, NULL), 7);
    cr_assert_eq(atomic_load(&left_behind.w.drops), 1, "the run is over, and the argument not dropped");
    pthread_join(thread, NULL);
}

static int leaves_it_for_ever(void *arg) {
    coil_run_opts o = {.exit_limit = coil_ms(20)};
    sem_init(&left_behind.main_returns, 0, 0);
    return coil_run_with(&o, leaves_work_behind, arg);
}

static int waits_for_it_for_ever(void *arg) {
    begin_work(&left_behind.w, false);
    (void)arg;
    return 0;
}

static int keeps_waiting(void *arg) {
    coil_run_opts o = {.exit_limit = coil_ms(20)};
    return coil_run_with(&o, waits_for_it_for_ever, arg);
}

Test(blocking, the_report_at_the_end_names_functions_that_have_begun) {
    cr_assert(check_aborts(leaves_it_for_ever, NULL, "calls that no task waits for any more have not ended"));
    cr_assert(check_aborts(leaves_it_for_ever, NULL, "on the blocking pool: blocking call of works, for "));
    cr_assert(check_aborts(keeps_waiting, NULL, "waits for blocking call"));
    cr_assert(check_aborts(keeps_waiting, NULL, "on the blocking pool: blocking call of works, for "));
}

/* Nobody waits for it, and it is the last that can wake anybody. */
struct waker {
    coil_task whom;
    atomic_bool begun, goes_on;
};

static int cancels_from_the_pool(void *arg) {
    struct waker *w = arg;
    atomic_store(&w->begun, true);
    while (!atomic_load(&w->goes_on))
        usleep(50);
    usleep(10000); /* for a run that would find a deadlock */
    return coil_cancel(w->whom);
}

static int leaves_a_waker(void *arg) {
    return coil_blocking_owned(cancels_from_the_pool, arg, NULL, NULL);
}

static int waits_for_what_was_left(void *arg) {
    struct waker *w = arg;
    coil_event never = {0};
    w->whom = coil_self();
    coil_task t = spawn(leaves_a_waker, w);
    while (!atomic_load(&w->begun))
        coil_sleep(coil_us(50));
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(join(t), -ECANCELED);
    atomic_store(&w->goes_on, true);
    cr_expect_eq(coil_event_wait(&never), -ECANCELED);
    return 9;
}

Test(blocking, a_job_that_was_left_behind_may_wake_a_task_so_there_is_no_deadlock) {
    struct waker w = {0};
    cr_assert_eq(coil_run(waits_for_what_was_left, &w), 9);
}

static int calls_coil(void *arg) {
    (void)arg;
    return coil_sleep(coil_ms(1));
}

static int calls_coil_on_a_thread(void *arg) {
    return coil_blocking(calls_coil, arg, NULL);
}

static int misuses(void *arg) {
    return coil_run(calls_coil_on_a_thread, arg);
}

Test(blocking, coil_calls_on_the_thread_stop_with_a_message) {
    cr_assert(check_aborts(misuses, NULL, "coil_sleep: called outside a task"));
}

static int reads_beside_stuck_ones(void *arg) {
    static struct work w[40];
    coil_task t[40];
    char c = 0;
    (void)arg;
    for (int i = 0; i < 40; i++) {
        init_work(&w[i], true, false);
        t[i] = spawn(calls_work, &w[i]);
    }
    while (!atomic_load(&w[0].begun))
        coil_sleep(coil_us(50));
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < 20; i++)
        cr_expect_eq(coil_read(fd, &c, 1, 0), 1);
    cr_expect_eq(c, '\x7f');
    cr_expect_eq(coil_close(fd), 0);
    for (int i = 0; i < 40; i++)
        sem_post(&w[i].hold);
    for (int i = 0; i < 40; i++)
        cr_expect_eq(join(t[i]), 0);
    return 0;
}

Test(blocking, stuck_functions_leave_files_a_thread) {
    coil_run_opts o = {.blocking_threads = 4, .driver = COIL_DRIVER_EPOLL};
    cr_assert_eq(run(reads_beside_stuck_ones, &o), 0);
}

/* ---- races ---- */

static int works_shortly(void *arg) {
    struct work *w = arg;
    atomic_fetch_add(&w->runs, 1);
    for (volatile int spin = w->value; spin > 0; spin--)
        continue;
    atomic_fetch_add(&w->ended, 1);
    return 42;
}

static int races(void *arg) {
    struct work *w = arg;
    int value = -7;
    w->result = w->owned ? coil_blocking_owned(works_shortly, w, drop, &value)
                         : coil_blocking(works_shortly, w, &value);
    cr_expect_eq(value, w->result ? -7 : 42);
    if (w->owned && !w->result) free(w->block);
    return w->result;
}

static void check_race(struct work *w, int i) {
    int result = w->result, runs = atomic_load(&w->runs);
    cr_expect(result == 0 || result == -ECANCELED || result == -ETIME, "%d: %d", i, result);
    if (w->owned) {
        while (result && !atomic_load(&w->drops))
            coil_sleep(coil_us(20));
        cr_expect_eq(atomic_load(&w->drops), result != 0, "%d", i);
    } else {
        cr_expect_eq(runs, result == 0, "%d", i);
    }
    cr_expect(runs <= 1 && atomic_load(&w->ended) == atomic_load(&w->runs) && (result || runs), "%d", i);
}

static int cancels_against_begin_and_end(void *arg) {
    struct work w;
    (void)arg;
    int rounds = check_rounds(10000);
    for (int i = 0; i < rounds; i++) {
        init_work(&w, false, i % 2);
        w.value = i / 4 % 16 * 200;
        coil_scope s = coil_within(i % 4 < 2 ? coil_us(i / 4 % 64) : COIL_FOREVER);
        if (i % 4 < 2) {
            races(&w);
            coil_leave(&s);
        } else {
            coil_task t = spawn(races, &w);
            coil_leave(&s);
            coil_yield();
            for (volatile int spin = i / 8 % 64 * 100; spin > 0; spin--)
                continue;
            cr_expect_eq(coil_cancel(t), 0);
            join(t);
        }
        check_race(&w, i);
        sem_destroy(&w.hold);
    }
    return 0;
}

Test(blocking, cancels_and_limits_race_with_begin_and_end) {
    cr_assert_eq(run(cancels_against_begin_and_end, NULL), 0);
}

/* ---- many ---- */

enum { TASKS = 100 };

struct storm {
    unsigned seed;
    int rounds;
    uint64_t ran;
    coil_task tasks[TASKS];
};

static unsigned dice(struct storm *s) {
    s->seed = s->seed * 1664525 + 1013904223;
    return s->seed >> 10;
}

static void run_shortly(struct coil__job *j) {
    for (volatile int spin = CONTAINER_OF(j, struct call, b.job)->b.fd * -100; spin > 0; spin--)
        continue;
    run_call(j);
}

/* Exactly one outcome, and the one that is told. */
static int calls_in_the_storm(void *arg) {
    struct storm *s = arg;
    struct call c;
    int stopped = 0;
    init(&c, false, -1 - (int)(dice(s) % 200));
    c.b.job.run = run_shortly;
    c.b.job.lane = (uint8_t)(dice(s) % COIL__LANE_COUNT);
    if (dice(s) % 3 == 0) c.until_ns = coil__clock(coil__here) + dice(s) % 300000;
    if (dice(s) % 8 == 0) c.always = true;
    int result = makes_call(&c);
    int runs = atomic_load(&c.runs);
    s->ran += (uint64_t)runs;
    stopped = result == -ECANCELED || result == -ETIME;
    cr_expect(runs ? runs == 1 && result == 0 && atomic_load(&c.ended) : stopped && !c.always,
              "result %d, run %d times", result, runs);
    return 0;
}

static int storms(void *arg) {
    struct storm *s = arg;
    for (int round = 0; round < s->rounds; round++) {
        for (int i = 0; i < TASKS; i++)
            s->tasks[i] = spawn(calls_in_the_storm, s);
        for (int i = 0; i < TASKS; i++) {
            if (dice(s) % 16 == 0) coil_sleep(coil_us(dice(s) % 100));
            if (dice(s) % 2) coil_cancel(s->tasks[dice(s) % TASKS]);
        }
        for (int i = 0; i < TASKS; i++)
            join(s->tasks[i]);
    }
    cr_expect_eq(stats().jobs, s->ran);
    return 0;
}

static void *runs_a_storm(void *arg) {
    struct storm s = {.seed = (unsigned)(uintptr_t)arg, .rounds = check_rounds(20)};
    coil_run_opts o = {.blocking_threads = 5};
    return (void *)(intptr_t)coil_run_with(&o, storms, &s);
}

Test(blocking, in_a_storm_of_cancels_each_call_has_one_outcome) {
    cr_assert_null(runs_a_storm((void *)1));
    int fds = check_fd_count(), maps = check_map_count();
    for (uintptr_t seed = 2; seed < 6; seed++)
        cr_assert_null(runs_a_storm((void *)seed));
    cr_assert_eq(check_fd_count(), fds);
    if (!CHECK_SANITIZED) cr_assert_leq(check_map_count(), maps + 8, "mappings");
}

Test(blocking, workers_of_several_threads_share_the_pool) {
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, runs_a_storm, (void *)(i + 10)), 0);
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        cr_assert_null(result);
    }
}
