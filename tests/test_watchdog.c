/* Reports of tasks that keep their worker. How long things take is never asserted upwards. */
#include "check.h"

#include "base.h"
#include "symbols.h"

#include "coil/coil.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* TSan keeps signals back until a call that it knows, so that a busy task does not answer. */
#if defined(COIL__HAVE_UNWIND) && !CHECK_TSAN
enum { STACKS = 1 };
#else
enum { STACKS = 0 };
#endif
enum { LIMIT_MS = 40, SETTLE_MS = 700 };

static char err[16384];
static _Thread_local volatile unsigned long counted;
static atomic_int handled;

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Of the process; they have a directory each. */
static int threads(void) {
    int n = -1;
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        (void)sscanf(line, "Threads: %d", &n);
    if (f) fclose(f);
    return n;
}

static int run_watched(coil_fn *fn, void *arg) {
    coil_run_opts o = {.blocked_limit = coil_ms(LIMIT_MS)};
    return coil_run_with(&o, fn, arg);
}

static int in_child(int (*fn)(void *arg), void *arg) {
    int status = -1;
    cr_assert(check_in_child(fn, arg, &status, err, sizeof err));
    return status;
}

static int count_of(const char *what) {
    int n = 0;
    for (const char *at = err; (at = strstr(at, what)); at += strlen(what))
        n++;
    return n;
}

static __attribute__((noinline)) void burn_cpu(int64_t ms) {
    for (int64_t end = now_ms() + ms; now_ms() < end;)
        for (int i = 0; i < 10000; i++)
            counted++;
}

static int busy(void *arg) {
    burn_cpu(*(int *)arg);
    counted++;
    return 0;
}

static int spawns_busy(void *arg) {
    coil_task t;
    coil_spawn_opts o = {.name = "glutton"};
    int e = coil_spawn_with(&t, &o, busy, arg);
    return e ? e : coil_join(t, NULL);
}

static int watch_spawns_busy(void *arg) {
    return run_watched(spawns_busy, arg);
}

Test(watchdog, a_busy_task_is_reported_once_with_its_call_stack_and_its_end) {
    int ms = 1000;
    cr_assert_eq(in_child(watch_spawns_busy, &ms), 0, "%s", err);
    if (STACKS) {
        cr_assert_eq(count_of("coil: glutton has kept worker 1 for 0."), 1, "%s", err);
        cr_assert_eq(count_of("coil: glutton has given worker 1 up after about "), 1, "%s", err);
        cr_assert_eq(count_of("it was spawned with busy"), 1, "%s", err);
        const char *inner = strstr(err, "burn_cpu"), *outer = strstr(err, "] busy");
        cr_assert(inner && outer && inner < outer, "%s", err);
        /* The stack begins in the task, not in the handler. */
        cr_assert_not(strstr(err, "on_signal") || strstr(err, "restore_rt"), "%s", err);
    }
    cr_assert_eq(count_of(" has kept worker "), 1, "%s", err);
    cr_assert_eq(count_of(" up after about "), 1, "%s", err);
}

static int twice(void *arg) {
    int e = spawns_busy(arg);
    return e ? e : spawns_busy(arg);
}

static int watch_twice(void *arg) {
    return run_watched(twice, arg);
}

Test(watchdog, each_time_is_reported_anew) {
    int ms = 800;
    cr_assert_eq(in_child(watch_twice, &ms), 0, "%s", err);
    cr_assert_eq(count_of(" has kept worker "), 2, "%s", err);
    cr_assert_eq(count_of(" up after about "), 2, "%s", err);
}

static int blocks(void *arg) {
    struct timespec rest = {.tv_nsec = 800000000};
    (void)arg;
    while (nanosleep(&rest, &rest) != 0) {
    }
    return 0;
}

static int watch_blocks(void *arg) {
    return run_watched(blocks, arg);
}

Test(watchdog, a_task_that_blocks_in_a_system_call_is_reported) {
    cr_assert_eq(in_child(watch_blocks, NULL), 0, "%s", err);
    cr_assert_eq(count_of(" has kept worker "), 1, "%s", err);
#ifdef __GLIBC__ /* musl's functions have no unwind tables to walk on by. */
    if (STACKS) cr_assert(strstr(err, "coil: main has kept") && strstr(err, "] blocks"), "%s", err);
#endif
}

static int turns_sigurg_away(void *arg) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGURG);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    burn_cpu(*(int *)arg);
    return 0;
}

static int watch_turns_sigurg_away(void *arg) {
    return run_watched(turns_sigurg_away, arg);
}

Test(watchdog, a_thread_that_blocks_the_signal_is_reported_without_a_stack) {
    int ms = 2000;
    cr_assert_eq(in_child(watch_turns_sigurg_away, &ms), 0, "%s", err);
    cr_assert_eq(count_of("does not let SIGURG in"), 1, "%s", err);
}

/* What a child says that did not have the processor for so long that a report would be true. */
enum { STOOD_STILL = 7, STILL_MS = 200 };

static int idles(void *arg) {
    int64_t began = now_ms();
    int refused = coil_sleep(coil_ms(SETTLE_MS));
    (void)arg;
    return now_ms() - began < SETTLE_MS + STILL_MS ? refused : STOOD_STILL;
}

static int watch_idles(void *arg) {
    coil_run_opts o = {.blocked_limit = coil_ms(SETTLE_MS / 2)};
    return coil_run_with(&o, idles, arg);
}

static int runs_much(void *arg) {
    int64_t now = now_ms(), end = now + SETTLE_MS, longest = 0;
    while (now < end) {
        int none = 0;
        int64_t before = now;
        coil_task t;
        if (coil_spawn(&t, busy, &none) || coil_join(t, NULL)) return 1;
        now = now_ms();
        longest = now - before > longest ? now - before : longest;
    }
    (void)arg;
    return longest < STILL_MS ? 0 : STOOD_STILL;
}

static int watch_runs_much(void *arg) {
    coil_run_opts o = {.blocked_limit = coil_sec(1)};
    return coil_run_with(&o, runs_much, arg);
}

static void check_unreported(int (*fn)(void *)) {
    int status, tries = 0;
    do {
        status = in_child(fn, NULL);
    } while (WIFEXITED(status) && WEXITSTATUS(status) == STOOD_STILL && ++tries < 20);
    cr_assert_eq(status, 0, "%#x: %s", (unsigned)status, err);
    cr_assert_eq(count_of(" has kept worker "), 0, "%s", err);
}

Test(watchdog, who_waits_or_gives_way_is_never_reported) {
    check_unreported(watch_idles);
    check_unreported(watch_runs_much);
}

static int quiet_and_unwatched(void *arg) {
    coil_run_opts quiet = {.blocked_limit = coil_ms(LIMIT_MS), .quiet = true};
    int status = coil_run_with(&quiet, busy, arg);
    return status ? status : coil_run(busy, arg);
}

Test(watchdog, quiet_runs_and_those_that_do_not_ask_say_nothing) {
    int ms = SETTLE_MS;
    cr_assert_eq(in_child(quiet_and_unwatched, &ms), 0, "%s", err);
    cr_assert_eq(count_of("kept"), 0, "%s", err);
}

/* A thread that was joined may be counted for a moment. */
static bool threads_become(int n) {
    for (int i = 0; i < 2000 && threads() != n; i++)
        usleep(1000);
    return threads() == n;
}

static int expects_threads(void *arg) {
    return threads_become(*(int *)arg) ? 0 : 1;
}

Test(watchdog, its_thread_lasts_as_long_as_runs_that_ask) {
    int none = 0;
    cr_assert_eq(run_watched(busy, &none),
                 0); /* a sanitizer may start a thread of its own with the first one */
    int before = threads();
    for (int i = 0, now; i < 200; i++) {
        usleep(1000);
        now = threads();
        before = MIN(before, now);
    }
    cr_assert_eq(coil_run(expects_threads, &before), 0);
    int fds = check_fd_count(), within = before + 1;
    for (int i = check_rounds(100); i > 0; i--)
        cr_assert_eq(run_watched(expects_threads, &within), 0);
    cr_assert_eq(check_fd_count(), fds);
    cr_assert(threads_become(before));
}

static void *run_in_thread(void *arg) {
    return run_watched(spawns_busy, arg) ? arg : NULL;
}

static int two_workers(void *arg) {
    pthread_t other;
    int ms = CHECK_TSAN ? 8000 : 1800; /* longer than it takes to print the first report */
    void *failed;
    if (pthread_create(&other, NULL, run_in_thread, &ms)) return 1;
    int status = run_watched(spawns_busy, &ms);
    pthread_join(other, &failed);
    (void)arg;
    return status || failed;
}

Test(watchdog, two_workers_are_both_watched) {
    cr_assert_eq(in_child(two_workers, NULL), 0, "%s", err);
    cr_assert_eq(count_of(" has kept worker 1 "), 1, "%s", err);
    cr_assert_eq(count_of(" has kept worker 2 "), 1, "%s", err);
    cr_assert_eq(count_of(" up after about "), 2, "%s", err);
}

static void on_urgent(int sig) {
    (void)sig;
    atomic_fetch_add(&handled, 1);
}

static int raises_urgent(void *arg) {
    kill(getpid(), SIGURG);
    return spawns_busy(arg);
}

/* Only the program's own signals reach it, and afterwards it is there again. */
static int with_a_handler(void *arg) {
    struct sigaction now;
    signal(SIGURG, on_urgent);
    if (run_watched(raises_urgent, arg)) return 1;
    sigaction(SIGURG, NULL, &now);
    if (now.sa_handler != on_urgent) return 2;
    return atomic_load(&handled) == 1 ? 0 : 3;
}

Test(watchdog, a_handler_of_the_program_sees_its_own_signals_alone) {
    int ms = 800;
    int status = in_child(with_a_handler, &ms);
    cr_assert_eq(status, 0, "%#x: %s", (unsigned)status, err);
    cr_assert_eq(count_of(" has kept worker 1 "), 1, "%s", err);
}

Test(watchdog, a_negative_limit_is_out_of_range) {
    coil_run_opts o = {.blocked_limit = {-1}, .quiet = true};
    cr_assert_eq(coil_run_with(&o, busy, NULL), COIL_ESTART_OPTION);
    o.quiet = false;
    o.blocked_limit = COIL_FOREVER;
    int none = 0;
    cr_assert_eq(coil_run_with(&o, busy, &none), 0);
}
