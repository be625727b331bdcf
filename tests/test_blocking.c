/* Tasks that wait for jobs of the blocking pool: results, cancels, limits, closes, the end of a run. */
#include "check.h"

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

static coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t = {0};
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

static int join(coil_task t) {
    int result = -1;
    cr_expect_eq(coil_join(t, &result), 0);
    return result;
}

/* ---- a call, and a job that holds its thread until it is told to go on ---- */

struct call {
    struct coil__blocking b;
    sem_t hold;
    bool holds, always;
    int64_t until_ns;
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

static int stops_a_running_one(void *arg) {
    (void)arg;
    for (int limit = 0; limit < 2; limit++) {
        struct call c;
        init(&c, true, -1);
        if (limit) c.until_ns = coil__clock(coil__here) + 20000000;
        coil_task t = spawn(makes_call, &c);
        wait_begun(&c);
        if (limit) {
            cr_expect_eq(coil_sleep(coil_ms(25)), 0);
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
