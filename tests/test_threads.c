/* The blocking pool without tasks: lanes, limits, jobs that are taken back, forks. */
#include "check.h"

#include "threads.h"

#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    CANNOT_TRY = 101,
    ALIEN = CHECK_TSAN, /* threads beside the pool's: TSan starts one together with the first */
};

struct job {
    struct coil__job j;
    sem_t *hold; /* waited for by run; NULL: it doesn't wait */
    sem_t *begun, *over;
    atomic_int runs;
};

static void run_job(struct coil__job *j) {
    struct job *job = CONTAINER_OF(j, struct job, j);
    atomic_fetch_add(&job->runs, 1);
    if (job->begun) sem_post(job->begun);
    while (job->hold && sem_wait(job->hold))
        continue;
}

static void job_ended(struct coil__job *j) {
    sem_post(CONTAINER_OF(j, struct job, j)->over);
}

static struct job job_of(enum coil__lane lane, sem_t *over) {
    return (struct job){.j = {.run = run_job, .ended = job_ended, .lane = (uint8_t)lane}, .over = over};
}

/* A thing that never comes is a failure, not a test that hangs. */
static bool comes(sem_t *s) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 30;
    int err;
    while ((err = sem_timedwait(s, &until)) && errno == EINTR)
        continue;
    return err == 0;
}

static void hand_over(struct job *job) {
    cr_assert_eq(coil__threads_hand_over(&job->j), 0);
}

static int thread_count(void) {
    DIR *d = opendir("/proc/self/task");
    int n = 0;
    cr_assert_not_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Somebody who has no process yet, and whom the limit binds: it does not bind root. */
static bool become_somebody(void) {
    return getuid() != 0 || setuid(100000 + (uid_t)getpid()) == 0;
}

static void *does_nothing(void *arg) {
    return arg;
}

static bool forbid_threads(void) {
    pthread_t thread;
    struct rlimit none = {0, 0};
    return setrlimit(RLIMIT_NPROC, &none) == 0 && pthread_create(&thread, NULL, does_nothing, NULL) == EAGAIN;
}

static void expect_in_child(int (*fn)(void *arg)) {
    int status;
    char err[1024];
    cr_assert(check_in_child(fn, NULL, &status, err, sizeof err));
    if (status == CANNOT_TRY << 8) cr_skip("threads can't be forbidden here");
    cr_assert_eq(status, 0, "%#x %s", (unsigned)status, err);
}

/* ---- one job ---- */

struct trace {
    struct coil__job j;
    pthread_t ran_on, ended_on;
    bool ran, ended_after;
    sigset_t mask;
    sem_t over;
};

static void trace_run(struct coil__job *j) {
    struct trace *t = CONTAINER_OF(j, struct trace, j);
    t->ran = true;
    t->ran_on = pthread_self();
    pthread_sigmask(SIG_SETMASK, NULL, &t->mask);
}

static void trace_ended(struct coil__job *j) {
    struct trace *t = CONTAINER_OF(j, struct trace, j);
    t->ended_after = t->ran;
    t->ended_on = pthread_self();
    sem_post(&t->over);
}

static void trace(struct trace *t, enum coil__lane lane) {
    *t = (struct trace){.j = {.run = trace_run, .ended = trace_ended, .lane = (uint8_t)lane}};
    sem_init(&t->over, 0, 0);
    cr_assert_eq(coil__threads_hand_over(&t->j), 0);
    cr_assert(comes(&t->over), "the job was never run");
}

Test(threads, a_job_is_run_and_then_ended_on_another_thread) {
    for (enum coil__lane lane = 0; lane < COIL__LANE_COUNT; lane++) {
        struct trace t;
        trace(&t, lane);
        cr_assert(t.ran && t.ended_after);
        cr_assert(pthread_equal(t.ran_on, t.ended_on));
        cr_assert_not(pthread_equal(t.ran_on, pthread_self()));
        cr_assert_gt(t.j.queued_ns, 0);
        cr_assert_geq(t.j.begun_ns, t.j.queued_ns);
        cr_assert_not(coil__threads_take_back(&t.j), "what is over can't be taken back");
    }
}

Test(threads, no_signal_is_handled_on_its_threads) {
    sigset_t before, after;
    struct trace t;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    trace(&t, COIL__LANE_USER);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGPIPE, SIGUSR1, SIGALRM, SIGPROF};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        cr_expect(sigismember(&t.mask, signals[i]), "%s", strsignal(signals[i]));
        cr_expect_eq(sigismember(&before, signals[i]), sigismember(&after, signals[i]), "the caller's mask");
    }
}

Test(threads, a_program_without_jobs_has_no_threads) {
    int before = thread_count();
    struct trace t;
    coil__threads_limits(8, 100, 0);
    cr_assert_eq(thread_count(), before);
    trace(&t, COIL__LANE_FILES);
    cr_assert_eq(thread_count(), before + 1 + ALIEN);
}

/* ---- lanes ---- */

enum { MANY = 64 };

/* Jobs that hold their threads until they are told to go on. */
struct crowd {
    sem_t hold, begun, over;
    struct job jobs[MANY];
    unsigned count;
};

static void crowd_init(struct crowd *c) {
    sem_init(&c->hold, 0, 0);
    sem_init(&c->begun, 0, 0);
    sem_init(&c->over, 0, 0);
    c->count = 0;
}

static int crowd_add(struct crowd *c, enum coil__lane lane) {
    struct job *job = &c->jobs[c->count];
    *job = job_of(lane, &c->over);
    job->hold = &c->hold;
    job->begun = &c->begun;
    int err = coil__threads_hand_over(&job->j);
    c->count += err == 0;
    return err;
}

static void crowd_end(struct crowd *c) {
    for (unsigned i = 0; i < c->count; i++)
        sem_post(&c->hold);
    for (unsigned i = 0; i < c->count; i++) {
        cr_assert(comes(&c->over));
    }
    for (unsigned i = 0; i < c->count; i++)
        cr_expect_eq(atomic_load(&c->jobs[i].runs), 1);
}

static bool is_run(enum coil__lane lane) {
    sem_t over;
    sem_init(&over, 0, 0);
    struct job job = job_of(lane, &over);
    return coil__threads_hand_over(&job.j) == 0 && comes(&over);
}

static void expect_quick(enum coil__lane lane, const char *why) {
    cr_assert(is_run(lane), "lane %d: %s", lane, why);
}

Test(threads, a_lane_that_hangs_leaves_threads_for_the_others) {
    for (enum coil__lane hung = 0; hung < COIL__LANE_COUNT; hung++) {
        struct crowd c;
        crowd_init(&c);
        coil__threads_limits(3 + hung, 0, 0);
        for (int i = 0; i < MANY; i++)
            cr_assert_eq(crowd_add(&c, hung), 0);
        for (enum coil__lane lane = 0; lane < COIL__LANE_COUNT; lane++) {
            for (int i = 0; lane != hung && i < 10; i++)
                expect_quick(lane, "it has no thread");
        }
        crowd_end(&c);
    }
}

Test(threads, two_lanes_that_hang_leave_a_thread_for_the_third) {
    for (unsigned threads = 3; threads < 9; threads++) {
        struct crowd c;
        crowd_init(&c);
        coil__threads_limits(threads, 0, 0);
        for (int i = 0; i < MANY / 2; i++) {
            cr_assert_eq(crowd_add(&c, COIL__LANE_FILES), 0);
            cr_assert_eq(crowd_add(&c, COIL__LANE_USER), 0);
        }
        for (unsigned i = 0; i < threads - 1; i++)
            cr_assert(comes(&c.begun), "only %u of %u hang", i, threads);
        for (int i = 0; i < 10; i++)
            expect_quick(COIL__LANE_NAMES, "it has no thread");
        crowd_end(&c);
    }
}

Test(threads, where_a_limit_was_lowered_a_lane_without_a_thread_gets_one) {
    for (int idle = 0; idle < 2; idle++) {
        struct crowd c;
        crowd_init(&c);
        coil__threads_limits(8, 0, 0);
        for (int i = 0; i < 5; i++)
            cr_assert_eq(crowd_add(&c, COIL__LANE_FILES), 0);
        for (int i = 0; i < 5; i++)
            cr_assert(comes(&c.begun));
        if (idle) expect_quick(COIL__LANE_USER, "its thread is idle now");
        coil__threads_limits(3, 0, 0);
        expect_quick(COIL__LANE_NAMES, "it has no thread");
        crowd_end(&c);
    }
}

/* The pause makes it likely, and no more, that the one thread is idle when the two jobs come; the lane of
 * names has just had its turn. */
static int hangs_an_idle_thread(void *arg) {
    static struct crowd c;
    (void)arg;
    crowd_init(&c);
    if (!is_run(COIL__LANE_NAMES)) return 1;
    usleep(1000);
    if (crowd_add(&c, COIL__LANE_FILES)) return 2;
    return is_run(COIL__LANE_NAMES) ? 0 : 3;
}

Test(threads, a_job_does_not_wait_behind_one_of_another_lane_that_hangs) {
    for (int i = 0; i < check_rounds(20); i++) {
        int status;
        char err[1024];
        cr_assert(check_in_child(hangs_an_idle_thread, NULL, &status, err, sizeof err));
        cr_assert_eq(status, 0, "%#x %s", (unsigned)status, err);
    }
}

static struct {
    int lane[3 * COIL__LANE_COUNT];
    atomic_int count;
} order;

static void run_noted(struct coil__job *j) {
    order.lane[atomic_fetch_add(&order.count, 1)] = j->lane;
    run_job(j);
}

/* With one thread, since no further one can be had. */
static int takes_turns(void *arg) {
    enum { JOBS = 3 * COIL__LANE_COUNT };
    static struct job jobs[JOBS];
    struct crowd c;
    sem_t over;
    (void)arg;
    crowd_init(&c);
    sem_init(&over, 0, 0);
    if (!become_somebody()) return CANNOT_TRY;
    if (crowd_add(&c, COIL__LANE_USER) || !comes(&c.begun)) return 1;
    if (!forbid_threads()) return CANNOT_TRY;
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = job_of((enum coil__lane)(i / 3), &over);
        jobs[i].j.run = run_noted;
        if (coil__threads_hand_over(&jobs[i].j)) return 2;
    }
    sem_post(&c.hold);
    for (int i = 0; i < JOBS; i++) {
        if (!comes(&over)) return 3;
    }
    for (int i = 0; i < JOBS; i++) {
        if (order.lane[i] != i % COIL__LANE_COUNT) return 4;
    }
    return 0;
}

Test(threads, a_thread_serves_the_lanes_in_turn) {
    expect_in_child(takes_turns);
}

/* ---- bounds ---- */

static struct { atomic_int now, max, lane_now[COIL__LANE_COUNT], lane_max[COIL__LANE_COUNT]; } running;

static void raise_to(atomic_int *max, int value) {
    int old = atomic_load(max);
    while (old < value && !atomic_compare_exchange_weak(max, &old, value))
        continue;
}

static void run_counted(struct coil__job *j) {
    raise_to(&running.max, atomic_fetch_add(&running.now, 1) + 1);
    raise_to(&running.lane_max[j->lane], atomic_fetch_add(&running.lane_now[j->lane], 1) + 1);
    usleep(100);
    atomic_fetch_sub(&running.lane_now[j->lane], 1);
    atomic_fetch_sub(&running.now, 1);
    run_job(j);
}

Test(threads, never_more_run_at_once_than_the_limits_say) {
    enum { JOBS = 600, THREADS = 6 };
    static struct job jobs[JOBS];
    int before = thread_count();
    sem_t over;
    sem_init(&over, 0, 0);
    coil__threads_limits(THREADS, JOBS, 0);
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = job_of((enum coil__lane)(i % COIL__LANE_COUNT), &over);
        jobs[i].j.run = run_counted;
        hand_over(&jobs[i]);
    }
    cr_expect_leq(thread_count(), before + THREADS + ALIEN);
    for (int i = 0; i < JOBS; i++)
        cr_assert(comes(&over), "job %d", i);
    cr_expect_leq(atomic_load(&running.max), THREADS);
    for (int i = 0; i < COIL__LANE_COUNT; i++)
        cr_expect_leq(atomic_load(&running.lane_max[i]), THREADS - 2, "lane %d", i);
    for (int i = 0; i < JOBS; i++)
        cr_assert_eq(atomic_load(&jobs[i].runs), 1, "job %d", i);
}

Test(threads, all_threads_of_the_limit_are_used) {
    struct crowd c;
    crowd_init(&c);
    coil__threads_limits(7, 0, 0);
    for (int i = 0; i < 30; i++)
        cr_assert_eq(crowd_add(&c, (enum coil__lane)(i % COIL__LANE_COUNT)), 0);
    for (int i = 0; i < 7; i++)
        cr_assert(comes(&c.begun), "only %d of 7 run", i);
    cr_assert_neq(sem_trywait(&c.begun), 0, "an eighth runs");
    crowd_end(&c);
}

Test(threads, a_limit_below_the_number_of_lanes_is_raised_to_it) {
    struct crowd c;
    crowd_init(&c);
    coil__threads_limits(1, 0, 0);
    for (enum coil__lane lane = 0; lane < COIL__LANE_COUNT; lane++)
        cr_assert_eq(crowd_add(&c, lane), 0);
    for (int i = 0; i < COIL__LANE_COUNT; i++)
        cr_assert(comes(&c.begun));
    crowd_end(&c);
}

Test(threads, a_lanes_queue_is_full_exactly_at_its_limit) {
    enum { LIMIT = 7 };
    struct crowd c;
    crowd_init(&c);
    coil__threads_limits(3, LIMIT, 0);
    cr_assert_eq(crowd_add(&c, COIL__LANE_USER), 0);
    cr_assert(comes(&c.begun), "what runs is not queued");
    for (int i = 0; i < LIMIT; i++)
        cr_assert_eq(crowd_add(&c, COIL__LANE_USER), 0, "%d", i);
    cr_assert_eq(crowd_add(&c, COIL__LANE_USER), -EAGAIN);
    cr_assert_eq(crowd_add(&c, COIL__LANE_USER), -EAGAIN, "and it stays full");
    expect_quick(COIL__LANE_FILES, "a full lane is no other's concern");
    cr_assert(coil__threads_take_back(&c.jobs[3].j));
    cr_assert_not(coil__threads_take_back(&c.jobs[3].j), "once");
    hand_over(&c.jobs[3]);
    cr_assert_eq(crowd_add(&c, COIL__LANE_USER), -EAGAIN);
    crowd_end(&c);
    expect_quick(COIL__LANE_USER, "it was emptied");
}

/* ---- taken back ---- */

/* Whether the job was run; exactly one of both must be so. */
static bool races_once(int round) {
    sem_t over;
    sem_init(&over, 0, 0);
    struct job job = job_of((enum coil__lane)(round % COIL__LANE_COUNT), &over);
    if (coil__threads_hand_over(&job.j)) return false;
    for (volatile int spin = round % 100 * 300; spin; spin--)
        continue;
    bool back = coil__threads_take_back(&job.j);
    if (!back) cr_expect(comes(&over), "neither run nor taken back");
    cr_expect_eq(atomic_load(&job.runs), !back);
    return !back;
}

static void *races(void *arg) {
    intptr_t ran = 0;
    (void)arg;
    for (int i = 0; i < check_rounds(8000); i++)
        ran += races_once(i * 7);
    return (void *)ran;
}

Test(threads, a_job_is_either_run_or_taken_back) {
    pthread_t threads[3];
    intptr_t ran = 0;
    coil__threads_limits(4, 0, 0);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, races, NULL), 0);
    for (int i = 0; i < 3; i++) {
        void *n;
        pthread_join(threads[i], &n);
        ran += (intptr_t)n;
    }
    cr_expect_leq(ran, 3 * check_rounds(8000));
    expect_quick(COIL__LANE_USER, "the pool is of use afterwards");
}

Test(threads, what_was_taken_back_is_never_run) {
    struct crowd c;
    crowd_init(&c);
    coil__threads_limits(3, 0, 0);
    cr_assert_eq(crowd_add(&c, COIL__LANE_USER), 0);
    cr_assert(comes(&c.begun));
    sem_t over;
    sem_init(&over, 0, 0);
    struct job waits = job_of(COIL__LANE_USER, &over), next = waits;
    hand_over(&waits);
    hand_over(&next);
    cr_assert(coil__threads_take_back(&waits.j));
    crowd_end(&c);
    cr_assert(comes(&over));
    cr_assert_eq(atomic_load(&next.runs), 1, "the one behind it");
    cr_assert_eq(atomic_load(&waits.runs), 0);
}

/* ---- idle threads ---- */

Test(threads, without_work_they_end_and_come_back) {
    struct crowd c;
    int before = thread_count() + ALIEN;
    coil__threads_limits(8, 0, 1000000);
    for (int round = 0; round < 3; round++) {
        crowd_init(&c);
        for (int i = 0; i < 6; i++)
            cr_assert_eq(crowd_add(&c, COIL__LANE_FILES), 0);
        for (int i = 0; i < 6; i++)
            cr_assert(comes(&c.begun));
        cr_assert_eq(thread_count(), before + 6);
        crowd_end(&c);
        for (int ms = 0; ms < 30000 && thread_count() > before; ms++)
            usleep(1000);
        cr_assert_eq(thread_count(), before, "they are still there");
    }
}

/* Jobs that come just when the threads end. */
Test(threads, no_job_is_lost_to_a_thread_that_ends) {
    coil__threads_limits(4, 0, 20000);
    for (int i = 0; i < check_rounds(3000); i++) {
        expect_quick((enum coil__lane)(i % COIL__LANE_COUNT), "the job was lost");
        for (volatile int spin = i % 1000 * 20; spin; spin--)
            continue;
    }
}

/* ---- forks ---- */

static int runs_a_job(void *arg) {
    (void)arg;
    return is_run(COIL__LANE_FILES) ? 0 : 1;
}

/* No thread may be on its way up or down at that moment: the allocator of a sanitizer has locks that a fork
 * doesn't see to. */
static void expect_child_runs_a_job(void) {
    int status;
    char err[1024];
    cr_assert(check_in_child(runs_a_job, NULL, &status, err, sizeof err));
    cr_assert_eq(status, 0, "%#x %s", (unsigned)status, err);
}

Test(threads, a_forked_child_has_a_pool_of_its_own) {
    for (int i = 0; i < 3; i++) {
        expect_child_runs_a_job();
        cr_assert_eq(runs_a_job(NULL), 0, "and the parent keeps its own");
    }
}

Test(threads, a_child_that_is_forked_while_jobs_wait_does_not_run_them) {
    struct crowd c;
    crowd_init(&c);
    coil__threads_limits(3, 100, 0);
    for (int i = 0; i < 20; i++)
        cr_assert_eq(crowd_add(&c, COIL__LANE_FILES), 0);
    cr_assert(comes(&c.begun));
    expect_child_runs_a_job();
    crowd_end(&c);
}

static struct {
    atomic_bool stop;
    sem_t goes;
} busy;

static void *keeps_it_busy(void *arg) {
    for (int i = 0; !atomic_load(&busy.stop); i++) {
        races_once(200);
        if (i == 0) sem_post(&busy.goes);
    }
    return arg;
}

static void start_all_threads(unsigned count) {
    struct crowd c;
    crowd_init(&c);
    coil__threads_limits(count, 0, 0);
    for (unsigned i = 0; i < 2 * count; i++)
        cr_assert_eq(crowd_add(&c, (enum coil__lane)(i % COIL__LANE_COUNT)), 0);
    for (unsigned i = 0; i < count; i++)
        cr_assert(comes(&c.begun));
    crowd_end(&c);
}

Test(threads, a_fork_finds_the_pool_whole_also_while_others_use_it) {
    pthread_t threads[2];
    sem_init(&busy.goes, 0, 0);
    start_all_threads(4);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, keeps_it_busy, NULL), 0);
        cr_assert(comes(&busy.goes));
    }
    for (int i = 0; i < check_rounds(50); i++)
        expect_child_runs_a_job();
    atomic_store(&busy.stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

/* ---- no thread to be had ---- */

static int has_no_thread(void *arg) {
    sem_t over;
    (void)arg;
    sem_init(&over, 0, 0);
    struct job job = job_of(COIL__LANE_FILES, &over);
    if (!become_somebody() || !forbid_threads()) return CANNOT_TRY;
    for (int i = 0; i < 3; i++) {
        int err = coil__threads_hand_over(&job.j);
        if (err != -ENOMEM) return 1;
    }
    return atomic_load(&job.runs) == 0 && !coil__threads_take_back(&job.j) ? 0 : 2;
}

static int has_one_thread(void *arg) {
    struct crowd c;
    sem_t over;
    (void)arg;
    crowd_init(&c);
    sem_init(&over, 0, 0);
    struct job job = job_of(COIL__LANE_NAMES, &over);
    if (!become_somebody()) return CANNOT_TRY;
    if (crowd_add(&c, COIL__LANE_FILES) || !comes(&c.begun)) return 1;
    if (!forbid_threads()) return CANNOT_TRY;
    if (coil__threads_hand_over(&job.j)) return 2;
    sem_post(&c.hold);
    return comes(&c.over) && comes(&over) ? 0 : 3;
}

Test(threads, without_a_thread_a_job_is_refused) {
    expect_in_child(has_no_thread);
}

Test(threads, where_no_further_thread_can_be_had_those_that_are_there_do_it_all) {
    expect_in_child(has_one_thread);
}
