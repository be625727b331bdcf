/* Runs: starting, options, the end, deadlocks, counters, and that a run leaves nothing behind. */
#include "check.h"
#include "sandbox.h"

#include "coil/coil.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t = {0};
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

static int returns_arg(void *arg) {
    return (int)(intptr_t)arg;
}

static int sleeps_for_ever(void *arg) {
    int err = coil_sleep(COIL_FOREVER);
    if (arg) *(int *)arg = err;
    return err;
}

/* ---- again, at once, nested ---- */

static int works(void *arg) {
    int sum = 0;
    (void)arg;
    for (int i = 0; i < 200; i++) {
        coil_task t;
        int got = 0;
        if (coil_spawn(&t, returns_arg, (void *)(intptr_t)i) || coil_join(t, &got) || coil_nop()) return -1;
        if (i % 50 == 0 && coil_sleep(coil_us(20))) return -1;
        sum += got;
    }
    return sum;
}

Test(runtime, returns_what_its_function_returned) {
    static const int results[] = {0, 1, -1, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        cr_assert_eq(coil_run(returns_arg, (void *)(intptr_t)results[i]), results[i]);
    }
}

Test(runtime, can_be_called_again) {
    for (int i = 0; i < check_rounds(100); i++)
        cr_assert_eq(coil_run(works, NULL), 19900);
}

static void *runs_repeatedly(void *arg) {
    intptr_t wrong = 0;
    for (int i = 0; i < check_rounds(50); i++)
        wrong += coil_run(works, arg) != 19900;
    return (void *)wrong;
}

Test(runtime, can_be_called_by_several_threads_at_once) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, runs_repeatedly, NULL), 0);
    for (int i = 0; i < 4; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        cr_assert_null(wrong);
    }
}

static int nests(void *arg) {
    int ran = 0;
    (void)arg;
    cr_expect_eq(coil_run(works, &ran), COIL_ESTART_NESTED);
    cr_expect_eq(coil_run_with(&(coil_run_opts){.sq_entries = 99999}, works, NULL), COIL_ESTART_NESTED);
    return coil_sleep(coil_ms(1));
}

Test(runtime, inside_a_task_it_is_nested) {
    cr_assert_eq(coil_run(nests, NULL), 0);
}

/* ---- options ---- */

static coil_run_opts opts;

enum { STARTED = 100, ON_URING = STARTED + COIL_DRIVER_URING, ON_EPOLL = STARTED + COIL_DRIVER_EPOLL };
enum { CANNOT_TRY = 110 };

static int works_and_tells_driver(void *arg) {
    coil_stats s;
    coil_stats_get(&s);
    return works(arg) == 19900 ? STARTED + (int)s.driver : -1;
}

/* An exit status that carries the driver in use, or the start error, less 5000. */
static int run_opts(void *arg) {
    int result = coil_run_with(&opts, works_and_tells_driver, arg);
    return result > 0 ? result : -result - 5000;
}

/* `text` is what the line on stderr must say, or "" for none. */
static void expect_no_start(int code, const char *text) {
    int status = 0;
    char err[1024];
    cr_assert(check_in_child(run_opts, NULL, &status, err, sizeof err));
    cr_assert_eq(status, (-code - 5000) << 8, "%s: status %#x", err, (unsigned)status);
    cr_assert_eq(strncmp(err, "coil: cannot start: ", 20) == 0, *text != 0, "%s", err);
    cr_assert_not_null(strstr(err, text), "\"%s\" in: %s", text, err);
    cr_assert(!strchr(err, '\n') || !strchr(err, '\n')[1], "one line: %s", err);
}

static void expect_bad_option(coil_run_opts o, const char *text) {
    opts = o;
    expect_no_start(COIL_ESTART_OPTION, text);
    opts.quiet = true;
    expect_no_start(COIL_ESTART_OPTION, "");
}

Test(runtime, each_option_out_of_range_is_named) {
    expect_bad_option((coil_run_opts){.stack_size = 1}, "stack_size");
    expect_bad_option((coil_run_opts){.stack_size = (16 << 10) - 1}, "stack_size");
    expect_bad_option((coil_run_opts){.stack_size = (64 << 20) + 1}, "stack_size");
    expect_bad_option((coil_run_opts){.sq_entries = 32769}, "sq_entries");
    expect_bad_option((coil_run_opts){.cq_entries = 65537}, "cq_entries");
    expect_bad_option((coil_run_opts){.sq_entries = 64, .cq_entries = 32}, "cq_entries");
    expect_bad_option((coil_run_opts){.pool_buffers = 32769}, "pool_buffers");
    expect_bad_option((coil_run_opts){.pool_buffer_size = (1 << 20) + 1}, "pool_buffer_size");
    expect_bad_option((coil_run_opts){.timer_slack = {-1}}, "timer_slack");
    expect_bad_option((coil_run_opts){.exit_limit = {-1}}, "exit_limit");
    expect_bad_option((coil_run_opts){.driver = (enum coil_driver_kind)17}, "driver");
    expect_bad_option((coil_run_opts){.blocking_threads = 2}, "blocking_threads");
    expect_bad_option((coil_run_opts){.blocking_threads = 1025}, "blocking_threads");
    expect_bad_option((coil_run_opts){.caps = "ext_arg,wrong"}, "wrong");
    for (int i = 0; i < 8; i++) {
        coil_run_opts o = {.reserved = {0}};
        o.reserved[i] = 1;
        expect_bad_option(o, "reserved");
    }
}

Test(runtime, variables_that_name_something_unknown_are_named) {
    static const char *const drivers[] = {"kqueue", "EPOLL", "epoll ", "0"};
    setenv("COIL_CAPS", "nonsense", 1);
    expect_bad_option((coil_run_opts){.quiet = false}, "COIL_CAPS: nonsense");
    unsetenv("COIL_CAPS");
    for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++) {
        char text[64];
        snprintf(text, sizeof text, "COIL_DRIVER %s is not possible", drivers[i]);
        setenv("COIL_DRIVER", drivers[i], 1);
        expect_bad_option((coil_run_opts){.driver = COIL_DRIVER_EPOLL}, text);
    }
}

Test(runtime, no_function_is_a_bad_option) {
    cr_assert_eq(coil_run_with(&(coil_run_opts){.quiet = true}, NULL, NULL), COIL_ESTART_OPTION);
}

Test(runtime, every_option_at_its_ends_works) {
    static const coil_run_opts good[] = {
        {.stack_size = 16 << 10},
        {.stack_size = 64 << 20},
        {.stack_cache_max = 1},
        {.tasks_max = 2},
        {.guards_only = true},
        {.sq_entries = 1},
        {.sq_entries = 3, .cq_entries = 5},
        {.sq_entries = 4, .cq_entries = 8},
        {.sq_entries = 32768, .cq_entries = 65536},
        {.cq_entries = 65536},
        {.pool_buffers = 1},
        {.pool_buffers = 32768, .pool_buffer_size = 64},
        {.pool_buffers = 4, .pool_buffer_size = 1 << 20},
        {.driver = COIL_DRIVER_EPOLL},
        {.blocking_threads = 3},
        {.blocking_threads = 1024},
        {.blocking_queue = 1},
        {.blocking_queue = UINT32_MAX},
        {.caps = "all"},
        {.caps = ""},
        {.timer_slack = {1}},
        {.timer_slack = {1000000}},
        {.spin_max = {-1}},
        {.spin_max = {1}},
        {.exit_limit = {1000000000}},
        {.external_wakes = true},
        {.quiet = true},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cr_assert_eq(coil_run_with(&good[i], works, NULL), 19900, "row %zu", i);
    }
}

/* ---- the choice of a driver ---- */

/* What a child is forbidden before its run. */
static struct {
    int error;
    const int *calls;
    unsigned count;
} denied;

static int run_denied(void *arg) {
    if (denied.count && sandbox_deny(denied.error, denied.calls, denied.count)) return CANNOT_TRY;
    return run_opts(arg);
}

/* The exit status of run_opts in a child where COIL_DRIVER is `variable` (NULL: not set). */
static int run_on(const char *variable, enum coil_driver_kind option, bool quiet, char text[1024]) {
    int status;
    if (variable) {
        setenv("COIL_DRIVER", variable, 1);
    } else {
        unsetenv("COIL_DRIVER");
    }
    opts = (coil_run_opts){.driver = option, .quiet = quiet};
    cr_assert(check_in_child(run_denied, NULL, &status, text, 1024));
    cr_assert(WIFEXITED(status), "%#x %s", (unsigned)status, text);
    if (WEXITSTATUS(status) == CANNOT_TRY) cr_skip("seccomp filters are not allowed here");
    return WEXITSTATUS(status);
}

static bool one_line(const char *text) {
    const char *end = strchr(text, '\n');
    return end && !end[1];
}

static void expect_on(const char *variable, enum coil_driver_kind option, int expected) {
    char text[1024];
    int status = run_on(variable, option, false, text);
    cr_assert_eq(status, expected, "COIL_DRIVER=%s, option %d: %d %s", variable, option, status, text);
    cr_assert_str_eq(text, "", "nothing to tell: it is what was asked for");
}

/* The run starts, but not as asked for, which one line says. */
static void expect_fallback(const char *variable, enum coil_driver_kind option, const char *why) {
    char text[1024];
    int status = run_on(variable, option, false, text);
    cr_assert_eq(status, ON_EPOLL, "%d %s", status, text);
    cr_assert(strstr(text, "coil: using epoll instead of io_uring: ") == text, "%s", text);
    cr_assert(strstr(text, why) && strstr(text, "COIL_DRIVER=uring") && one_line(text), "%s", text);
    cr_assert_eq(run_on(variable, option, true, text), ON_EPOLL);
    cr_assert_str_eq(text, "", "quiet");
}

static void expect_refusal(const char *variable, enum coil_driver_kind option, int code, const char *why) {
    char text[1024];
    int status = run_on(variable, option, false, text);
    cr_assert_eq(status, -code - 5000, "%d %s", status, text);
    cr_assert(strstr(text, "coil: cannot start: ") == text, "%s", text);
    cr_assert(strstr(text, why) && one_line(text), "%s", text);
    cr_assert_eq(run_on(variable, option, true, text), -code - 5000);
    cr_assert_str_eq(text, "", "quiet");
}

/* Where there is no ring to be had, for that reason. */
static void expect_all_choices(int code, const char *why) {
    expect_fallback(NULL, COIL_DRIVER_ANY, why);
    expect_fallback("", COIL_DRIVER_ANY, why);
    expect_fallback("any", COIL_DRIVER_URING, why);
    expect_fallback("any", COIL_DRIVER_EPOLL, why);
    expect_refusal(NULL, COIL_DRIVER_URING, code, why);
    expect_refusal("uring", COIL_DRIVER_ANY, code, why);
    expect_refusal("uring", COIL_DRIVER_EPOLL, code, why);
    expect_on(NULL, COIL_DRIVER_EPOLL, ON_EPOLL);
    expect_on("epoll", COIL_DRIVER_ANY, ON_EPOLL);
    expect_on("epoll", COIL_DRIVER_URING, ON_EPOLL);
}

static bool have_ring(void) {
    char text[1024];
    return run_on("uring", COIL_DRIVER_ANY, true, text) == ON_URING;
}

Test(runtime, the_variable_wins_over_the_option) {
    check_needs(have_ring(), "io_uring");
    expect_on(NULL, COIL_DRIVER_ANY, ON_URING);
    expect_on(NULL, COIL_DRIVER_URING, ON_URING);
    expect_on(NULL, COIL_DRIVER_EPOLL, ON_EPOLL);
    expect_on("", COIL_DRIVER_EPOLL, ON_EPOLL);
    expect_on("any", COIL_DRIVER_EPOLL, ON_URING);
    expect_on("uring", COIL_DRIVER_EPOLL, ON_URING);
    expect_on("epoll", COIL_DRIVER_URING, ON_EPOLL);
}

static const int ring_calls[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register};

static void expect_denied(const int *calls, unsigned count) {
    denied.calls = calls;
    denied.count = count;
    denied.error = EPERM;
    expect_all_choices(COIL_ESTART_FORBIDDEN, "forbidden here (EPERM)");
    denied.error = EACCES;
    expect_fallback(NULL, COIL_DRIVER_ANY, "forbidden here (EACCES)");
    expect_refusal("uring", COIL_DRIVER_ANY, COIL_ESTART_FORBIDDEN, "allow io_uring_setup, io_uring_enter");
    expect_refusal("uring", COIL_DRIVER_ANY, COIL_ESTART_FORBIDDEN, "kernel.io_uring_disabled");
    denied.error = ENOSYS;
    expect_fallback(NULL, COIL_DRIVER_ANY, "no io_uring, or a sandbox hides it (ENOSYS)");
    expect_refusal("uring", COIL_DRIVER_ANY, COIL_ESTART_KERNEL, "5.10");
}

Test(runtime, where_all_calls_of_io_uring_are_denied_there_is_epoll) {
    expect_denied(ring_calls, 3);
}

Test(runtime, where_its_setup_is_denied_there_is_epoll) {
    expect_denied(&ring_calls[0], 1);
}

Test(runtime, where_only_its_use_is_denied_that_is_found_at_the_start) {
    check_needs(have_ring(), "io_uring");
    expect_denied(&ring_calls[1], 1);
}

Test(runtime, where_only_registering_is_denied_a_ring_does_without) {
    check_needs(have_ring(), "io_uring");
    denied.calls = &ring_calls[2];
    denied.count = 1;
    for (int i = 0; i < 3; i++) {
        denied.error = (const int[]){EPERM, EACCES, ENOSYS}[i];
        expect_on("uring", COIL_DRIVER_ANY, ON_URING);
        expect_on("any", COIL_DRIVER_ANY, ON_URING);
    }
}

static void *runs_opts(void *arg) {
    return (void *)(intptr_t)run_opts(arg);
}

static int several_runs_denied(void *arg) {
    pthread_t threads[3];
    (void)arg;
    if (sandbox_deny_io_uring(EPERM)) return CANNOT_TRY;
    for (int i = 0; i < 3; i++) {
        if (pthread_create(&threads[i], NULL, runs_opts, NULL)) return 1;
    }
    int result = run_opts(NULL);
    for (int i = 0; i < 3; i++) {
        void *other;
        pthread_join(threads[i], &other);
        if ((intptr_t)other != ON_EPOLL) return 2;
    }
    return result == ON_EPOLL ? run_opts(NULL) : 3;
}

Test(runtime, the_line_about_epoll_is_said_once_in_a_process) {
    char text[1024];
    int status;
    unsetenv("COIL_DRIVER");
    opts = (coil_run_opts){.quiet = false};
    cr_assert(check_in_child(several_runs_denied, NULL, &status, text, sizeof text));
    if (status == CANNOT_TRY << 8) cr_skip("seccomp filters are not allowed here");
    cr_assert_eq(status, ON_EPOLL << 8, "%#x %s", (unsigned)status, text);
    cr_assert(strstr(text, "coil: using epoll") == text && one_line(text), "%s", text);
}

/* ---- no memory, no descriptor ---- */

static int run_unprivileged(void *arg) {
    const rlim_t *bytes = arg;
    if (setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){*bytes, *bytes})) return CANNOT_TRY;
    uid_t uid = 100000 + (uid_t)getpid(); /* what is locked counts per user, also that of other programs */
    return setuid(uid) ? CANNOT_TRY : run_opts(NULL);
}

/* As somebody whom the limit binds; it does not bind root. The exit status of run_opts. */
static int with_memlock(rlim_t bytes, enum coil_driver_kind driver, char *text, size_t size) {
    int status;
    unsetenv("COIL_DRIVER");
    opts = (coil_run_opts){.driver = driver};
    cr_assert(check_in_child(run_unprivileged, &bytes, &status, text, size));
    if (status == CANNOT_TRY << 8) cr_skip("needs root, to become somebody whom the limit binds");
    cr_assert(WIFEXITED(status), "%#x %s", (unsigned)status, text);
    return WEXITSTATUS(status);
}

Test(runtime, too_little_locked_memory_is_told_with_numbers) {
    char text[1024];
    int status = with_memlock(4096, COIL_DRIVER_URING, text, sizeof text);
    if (status == ON_URING) cr_skip("this kernel charges no locked memory for a ring");
    cr_assert_eq(status, -COIL_ESTART_MEMLOCK - 5000, "%d %s", status, text);
    cr_assert(strstr(text, "coil: cannot start: too little locked memory") == text, "%s", text);
    cr_assert(strstr(text, "the limit is 4096 bytes") && strstr(text, "ulimit -l"), "%s", text);
    status = with_memlock(4096, COIL_DRIVER_ANY, text, sizeof text);
    cr_assert_eq(status, ON_EPOLL, "%d %s", status, text);
    cr_assert(strstr(text, "coil: using epoll") == text && strstr(text, "the limit is 4096 bytes"), "%s",
              text);
    cr_assert(strstr(text, "ulimit -l") && one_line(text), "%s", text);
}

Test(runtime, with_little_locked_memory_a_smaller_ring_works) {
    char text[1024];
    check_needs(have_ring(), "io_uring");
    int status = with_memlock(64 << 10, COIL_DRIVER_ANY, text, sizeof text);
    cr_assert_eq(status, ON_URING, "%d %s", status, text);
    cr_assert_str_eq(text, "");
}

static int run_without_descriptors(void *arg) {
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){3 + *(unsigned *)arg, 3 + *(unsigned *)arg});
    return run_opts(NULL);
}

/* The other driver would find none either. */
Test(runtime, without_a_free_descriptor_it_is_out_of_resources) {
    char text[1024];
    int status;
    opts = (coil_run_opts){.quiet = false};
    for (unsigned left = 0; left < 2; left++) {
        cr_assert(check_in_child(run_without_descriptors, &left, &status, text, sizeof text));
        cr_assert_eq(status, (-COIL_ESTART_NOMEM - 5000) << 8, "%u: %s", left, text);
        cr_assert(strstr(text, "coil: cannot start: ") == text && one_line(text), "%s", text);
    }
}

static int run_without_memory(void *arg) {
    long pages, page = sysconf(_SC_PAGESIZE);
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f || fscanf(f, "%ld", &pages) != 1) return CANNOT_TRY;
    fclose(f);
    rlim_t bytes = (rlim_t)(pages * page) + (32 << 20);
    opts.stack_size = 64 << 20;
    return setrlimit(RLIMIT_AS, &(struct rlimit){bytes, bytes}) ? CANNOT_TRY : run_opts(arg);
}

Test(runtime, without_memory_for_a_stack_it_is_out_of_resources) {
    char text[1024];
    int status;
    if (CHECK_SANITIZED) cr_skip("a sanitizer needs all the address space that there is");
    opts = (coil_run_opts){.quiet = false};
    cr_assert(check_in_child(run_without_memory, NULL, &status, text, sizeof text));
    cr_assert_eq(status, (-COIL_ESTART_NOMEM - 5000) << 8, "%#x %s", (unsigned)status, text);
    cr_assert(strstr(text, "coil: cannot start: no memory for a first task") == text, "%s", text);
    opts.quiet = true;
    cr_assert(check_in_child(run_without_memory, NULL, &status, text, sizeof text));
    cr_assert_eq(status, (-COIL_ESTART_NOMEM - 5000) << 8);
    cr_assert_str_eq(text, "");
}

/* ---- the end of a run ---- */

static struct { int first, cleaned, spawned, spawned_result, started; } end;

static int cleans_up_slowly(void *arg) {
    (void)arg;
    end.first = coil_sleep(COIL_FOREVER);
    coil_scope s = coil_shield(coil_sec(10));
    end.cleaned = coil_sleep(coil_ms(20)) == 0;
    coil_leave(&s);
    return 0;
}

static int notes_start(void *arg) {
    (void)arg;
    end.spawned = 1 + coil_cancelled();
    return end.spawned_result = coil_yield();
}

static int spawns_at_the_end(void *arg) {
    (void)arg;
    coil_sleep(COIL_FOREVER);
    return coil_spawn(NULL, notes_start, NULL);
}

static int never_ran(void *arg) {
    (void)arg;
    end.started = coil_yield();
    return 0;
}

static int leaves_others_behind(void *arg) {
    coil_task kept = spawn(cleans_up_slowly, NULL);
    (void)arg;
    cr_expect_eq(coil_spawn(NULL, spawns_at_the_end, NULL), 0);
    coil_yield();
    cr_expect_eq(coil_spawn(NULL, never_ran, NULL), 0);
    cr_expect_neq(kept.worker, 0);
    return 42;
}

Test(runtime, when_main_returns_all_others_are_cancelled_and_waited_for) {
    cr_assert_eq(coil_run(leaves_others_behind, NULL), 42);
    cr_assert_eq(end.first, -ECANCELED);
    cr_assert(end.cleaned, "its cleanup had its time");
    cr_assert_eq(end.spawned, 2, "what is spawned from then on runs, and starts cancelled");
    cr_assert_eq(end.spawned_result, -ECANCELED);
    cr_assert_eq(end.started, -ECANCELED, "a task that had not run yet runs, and is refused");
}

static int stays(void *arg) {
    coil_name("stayer");
    coil_scope s = coil_shield(COIL_FOREVER);
    coil_sleep(*(coil_dur *)arg);
    coil_leave(&s);
    return 0;
}

static int leaves_a_stayer(void *arg) {
    if (coil_spawn(NULL, stays, arg)) return 1;
    return coil_yield();
}

static int runs_with_exit_limit(void *arg) {
    coil_run_opts o = {.exit_limit = coil_ms(50), .quiet = arg != NULL};
    return coil_run_with(&o, leaves_a_stayer, &(coil_dur){1000000000000});
}

Test(runtime, after_exit_limit_it_aborts_with_a_report) {
    for (int quiet = 0; quiet < 2; quiet++) {
        void *arg = quiet ? &quiet : NULL;
        cr_assert(check_aborts(runs_with_exit_limit, arg, "coil: exit_limit is over, aborting\n"));
        cr_assert(check_aborts(runs_with_exit_limit, arg, "coil:   stayer: waits for sleep, for "));
    }
}

static void rests(void *value) {
    coil_sleep(*(coil_dur *)value);
}

static int leaves_a_value_that_rests(void *arg) {
    static const coil_key k = {.destroy = rests};
    return coil_local_set(&k, arg);
}

static int runs_with_a_value(void *arg) {
    coil_dur *rest = arg;
    coil_run_opts o = {.exit_limit = rest->ns > 1000000 ? coil_ms(20) : coil_sec(20)};
    return coil_run_with(&o, leaves_a_value_that_rests, rest);
}

Test(runtime, exit_limit_counts_while_the_main_tasks_values_are_destroyed) {
    coil_dur rest = coil_sec(20);
    cr_assert(check_aborts(runs_with_a_value, &rest, "coil: exit_limit is over, aborting"));
    rest = coil_us(10);
    cr_assert_eq(runs_with_a_value(&rest), 0);
}

static int ends_within_exit_limit(void *arg) {
    coil_run_opts o = {.exit_limit = coil_sec(20)};
    return coil_run_with(&o, leaves_a_stayer, arg);
}

Test(runtime, a_run_that_ends_within_exit_limit_is_not_aborted) {
    cr_assert_eq(ends_within_exit_limit(&(coil_dur){20000000}), 0);
}

static int stays_for_longer_than_5_s(void *arg) {
    (void)arg;
    return coil_run(leaves_a_stayer, &(coil_dur){5300000000});
}

Test(runtime, after_5_s_of_waiting_for_the_end_one_report_says_who_is_there) {
    char err[1024];
    int status;
    cr_assert(check_in_child(stays_for_longer_than_5_s, NULL, &status, err, sizeof err));
    cr_assert_eq(status, 0, "%s", err);
    cr_assert_not_null(strstr(err, "coil: main has returned "), "%s", err);
    cr_assert_not_null(strstr(err, "and 1 tasks that were cancelled have not ended"), "%s", err);
    cr_assert_not_null(strstr(err, "stayer: waits for sleep"), "%s", err);
    cr_assert_null(strstr(strstr(err, "coil: main") + 1, "coil: main"), "once: %s", err);
}

/* ---- deadlock ---- */

static struct {
    coil_task a, b;
    int ended;
} dead;

static int joins(void *arg) {
    int err = coil_join(*(coil_task *)arg, NULL);
    dead.ended += err == -ECANCELED;
    return err;
}

static int deadlocks(void *arg) {
    (void)arg;
    cr_expect_eq(coil_spawn_with(&dead.a, &(coil_spawn_opts){.name = "alice"}, joins, &dead.b), 0);
    cr_expect_eq(coil_spawn_with(&dead.b, &(coil_spawn_opts){.name = "bob"}, joins, &dead.a), 0);
    int err = coil_join(dead.a, NULL);
    return err == -ECANCELED ? dead.ended : -1;
}

Test(runtime, a_deadlock_cancels_all_and_gives_edeadlk) {
    cr_assert_eq(coil_run_with(&(coil_run_opts){.quiet = true}, deadlocks, NULL), -EDEADLK);
    cr_assert_eq(dead.ended, 2);
}

static int deadlocks_in_run(void *arg) {
    coil_run_opts o = {.quiet = arg != NULL};
    return coil_run_with(&o, deadlocks, NULL) == -EDEADLK ? 7 : 8;
}

Test(runtime, a_deadlock_is_reported_with_who_waits_for_what) {
    char err[1024];
    int status;
    cr_assert(check_in_child(deadlocks_in_run, NULL, &status, err, sizeof err));
    cr_assert_eq(status, 7 << 8, "%s", err);
    cr_assert_not_null(
        strstr(err, "coil: deadlock: 3 tasks wait, and nothing is left that could wake one:\n"), "%s", err);
    cr_assert_not_null(strstr(err, "coil:   main: waits for join of alice, for "), "%s", err);
    cr_assert_not_null(strstr(err, "coil:   alice: waits for join of bob, for "), "%s", err);
    cr_assert_not_null(strstr(err, "coil:   bob: waits for join of alice, for "), "%s", err);
    cr_assert(check_in_child(deadlocks_in_run, err, &status, err, sizeof err));
    cr_assert_eq(status, 7 << 8);
    cr_assert_str_eq(err, "", "quiet");
}

/* Nobody will unlock it, and a cancelled task takes its mutex again whatever it costs. */
static struct {
    coil_mutex m;
    coil_cond c;
} kept;

static int ends_holding(void *arg) {
    (void)arg;
    return coil_mutex_lock(&kept.m);
}

static int waits_on_a_condition(void *arg) {
    (void)arg;
    int err = coil_mutex_lock(&kept.m);
    if (!err) err = coil_cond_wait(&kept.c, &kept.m);
    return err;
}

static int leaves_a_deadlock(void *arg) {
    (void)arg;
    coil_spawn_with(NULL, &(coil_spawn_opts){.name = "waiter"}, waits_on_a_condition, NULL);
    coil_yield();
    coil_spawn(NULL, ends_holding, NULL);
    coil_yield();
    return 0;
}

static int runs_with_patience(void *arg) {
    (void)arg;
    coil_run_opts o = {.exit_limit = coil_sec(25)};
    return coil_run_with(&o, leaves_a_deadlock, NULL);
}

Test(runtime, a_deadlock_after_main_has_returned_is_found_at_once) {
    char err[4096];
    int status;
    cr_assert(check_in_child(runs_with_patience, NULL, &status, err, sizeof err));
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "%#x: %s", (unsigned)status, err);
    cr_expect_not_null(strstr(err, "coil:   waiter: waits for mutex held by a task that has ended, for "),
                       "%s", err);
    cr_expect_null(strstr(err, "main has returned"), "%s", err);
    cr_expect_not_null(strstr(err, "\nwaiter"), "the tree follows: %s", err);
}

static int deadlocks_after_a_limit(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_sec(10000));
    coil_task t = spawn(returns_arg, NULL);
    cr_expect_eq(coil_join(t, NULL), 0);
    coil_leave(&s);
    return coil_sleep(COIL_FOREVER);
}

Test(runtime, a_limit_that_was_left_does_not_hide_a_deadlock) {
    cr_assert_eq(coil_run_with(&(coil_run_opts){.quiet = true}, deadlocks_after_a_limit, NULL), -EDEADLK);
}

static int shields_against_it(void *arg) {
    (void)arg;
    coil_name("stubborn");
    coil_scope s = coil_shield(COIL_FOREVER);
    coil_sleep(COIL_FOREVER);
    coil_leave(&s);
    return 0;
}

static int cannot_be_woken(void *arg) {
    coil_run_opts o = {.quiet = arg != NULL};
    return coil_run_with(&o, shields_against_it, NULL);
}

Test(runtime, a_deadlock_that_the_cancel_does_not_end_aborts) {
    cr_assert(
        check_aborts(cannot_be_woken, NULL, "nothing is left that could wake one, not even their cancel:\n"));
    cr_assert(check_aborts(cannot_be_woken, "quiet", "coil:   stubborn: waits for sleep"));
}

static int sleeper_is_there(void *arg) {
    (void)arg;
    coil_task t = spawn(sleeps_for_ever, NULL);
    cr_expect_eq(coil_sleep(coil_ms(20)), 0);
    coil_cancel(t);
    return 0;
}

static int limit_is_there(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_ms(20));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    coil_leave(&s);
    return 0;
}

Test(runtime, a_sleep_or_a_limit_is_no_deadlock) {
    cr_assert_eq(coil_run(sleeper_is_there, NULL), 0);
    cr_assert_eq(coil_run(limit_is_there, NULL), 0);
}

static int waits_for_usr1(void *arg) {
    (void)arg;
    return coil_signal_wait(&(int){SIGUSR1}, 1);
}

static void *signals_later(void *arg) {
    usleep(20000);
    kill(getpid(), SIGUSR1);
    return arg;
}

static int waits_for_a_signal(void *arg) {
    pthread_t thread;
    int got = 0;
    coil_task t = spawn(waits_for_usr1, arg);
    coil_yield();
    cr_expect_eq(pthread_create(&thread, NULL, signals_later, NULL), 0);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, SIGUSR1);
    return pthread_join(thread, NULL);
}

Test(runtime, a_wait_for_a_signal_is_no_deadlock) {
    cr_assert_eq(coil_run(waits_for_a_signal, NULL), 0);
}

static void *cancels_later(void *arg) {
    usleep(20000);
    return (void *)(intptr_t)coil_cancel(*(coil_task *)arg);
}

static int waits_for_another_thread(void *arg) {
    pthread_t thread;
    coil_task self = coil_self();
    (void)arg;
    if (pthread_create(&thread, NULL, cancels_later, &self)) return -1;
    int err = coil_sleep(COIL_FOREVER);
    pthread_join(thread, NULL);
    return err;
}

Test(runtime, with_external_wakes_there_is_no_deadlock) {
    coil_run_opts o = {.external_wakes = true};
    cr_assert_eq(coil_run_with(&o, waits_for_another_thread, NULL), -ECANCELED);
}

/* ---- counters ---- */

static int looks_at_counters(void *arg) {
    coil_stats a, b;
    (void)arg;
    coil_stats_get(&a);
    cr_expect_eq(a.tasks_now, 1);
    cr_expect_eq(a.streams_now, 0);
    for (int i = 0; i < 10; i++)
        cr_expect_eq(coil_nop(), 0);
    coil_task t = spawn(sleeps_for_ever, NULL);
    for (int i = 0; i < 10; i++)
        cr_expect_eq(coil_sleep(coil_us(1)), 0);
    coil_stats_get(&b);
    cr_expect_eq(b.ops - a.ops, 10);
    cr_expect_eq(b.completions - a.completions, 10);
    cr_expect_eq(b.cancels, 0);
    cr_expect_geq(b.turns - a.turns, 20);
    cr_expect_geq(b.enters - a.enters, 10);
    cr_expect_geq(b.resumes - a.resumes, 20);
    cr_expect_eq(b.tasks_now, 2);
    cr_expect_eq(b.tasks_peak, 2);
    cr_expect_eq(b.jobs, 0);
    cr_expect_eq(b.jobs_wait_ns, 0);
    for (int i = 0; i < 16; i++)
        cr_expect_eq(b.reserved[i], 0);
    return coil_cancel(t);
}

Test(runtime, counters_count) {
    cr_assert_eq(coil_run(looks_at_counters, NULL), 0);
}

static int sleeps_once(void *arg) {
    coil_stats a, b;
    (void)arg;
    coil_sleep(coil_ms(1));
    coil_stats_get(&a);
    cr_expect_eq(coil_sleep(coil_ms(200)), 0);
    coil_stats_get(&b);
    cr_expect_leq(b.turns - a.turns, 10, "it turns while there is nothing to do");
    return 0;
}

Test(runtime, with_nothing_to_do_the_worker_makes_no_turns) {
    cr_assert_eq(coil_run(sleeps_once, NULL), 0);
}

/* ---- what is left behind ---- */

static int takes_much(void *arg) {
    COIL_GROUP(g);
    for (int i = 0; i < 2000; i++)
        cr_expect_eq(coil_group_spawn(&g, sleeps_for_ever, NULL), 0);
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(coil_signal_wait(&(int){SIGUSR1}, 1), -ETIME);
    coil_leave(&s);
    for (int i = 0; i < 100; i++)
        spawn(returns_arg, NULL);
    return works(arg);
}

/* Memory takes some runs to find its size: measured, it grows in the first seven and stays for the fifty
 * after. Under sanitizers descriptors alone are compared. */
Test(runtime, descriptors_mappings_and_memory_are_as_before) {
    for (int i = 0; i < (CHECK_SANITIZED ? 1 : 12); i++)
        cr_assert_eq(coil_run(takes_much, NULL), 19900);
    int fds = check_fd_count(), maps = check_map_count();
    long rss_kb = check_rss_kb();
    for (int i = 0; i < check_rounds(20); i++)
        cr_assert_eq(coil_run(takes_much, NULL), 19900);
    cr_assert_eq(check_fd_count(), fds);
    if (CHECK_SANITIZED) return;
    cr_assert_leq(check_map_count(), maps + 2);
    cr_assert_leq(check_rss_kb(), rss_kb + 1024, "%ld KiB, was %ld", check_rss_kb(), rss_kb);
}

static int ends_badly(void *arg) {
    (void)arg;
    coil_task t = spawn(sleeps_for_ever, NULL);
    return coil_join(t, NULL);
}

Test(runtime, nothing_is_left_behind_by_runs_that_fail) {
    coil_run_opts quiet = {.quiet = true}, bad = {.quiet = true, .stack_size = 1};
    cr_assert_eq(coil_run_with(&quiet, ends_badly, NULL), -EDEADLK);
    int fds = check_fd_count();
    for (int i = 0; i < 20; i++) {
        cr_assert_eq(coil_run_with(&quiet, ends_badly, NULL), -EDEADLK);
        cr_assert_eq(coil_run_with(&bad, ends_badly, NULL), COIL_ESTART_OPTION);
    }
    cr_assert_eq(check_fd_count(), fds);
}

/* ---- SIGPIPE ---- */

static int writes_to_a_closed_pipe(void *arg) {
    int p[2];
    (void)arg;
    cr_expect_eq(pipe(p), 0);
    close(p[0]);
    cr_expect_eq(coil_write(p[1], "x", 1, -1), -EPIPE);
    cr_expect_eq(write(p[1], "x", 1), -1, "blocked in the worker's thread");
    return coil_close(p[1]);
}

Test(runtime, sigpipe_never_reaches_the_program_through_coil) {
    sigset_t before, after;
    sigprocmask(SIG_SETMASK, NULL, &before);
    cr_assert_eq(coil_run(writes_to_a_closed_pipe, NULL), 0);
    sigprocmask(SIG_SETMASK, NULL, &after);
    cr_assert_eq(sigismember(&after, SIGPIPE), sigismember(&before, SIGPIPE), "and the mask is as before");
}

static int run_then_raise(void *arg) {
    int status = coil_run(writes_to_a_closed_pipe, arg);
    raise(SIGPIPE);
    return status;
}

Test(runtime, after_the_run_sigpipe_is_the_programs_again) {
    int status;
    char err[256];
    signal(SIGPIPE, SIG_DFL);
    cr_assert(check_in_child(run_then_raise, NULL, &status, err, sizeof err));
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE, "%#x %s", (unsigned)status, err);
}

static int outlives_the_report(void *arg) {
    (void)arg;
    COIL_SHIELD(coil_sec(20));
    return coil_sleep(coil_ms(5200));
}

static int leaves_one_behind(void *arg) {
    (void)arg;
    cr_expect_eq(coil_spawn(NULL, outlives_the_report, NULL), 0);
    cr_expect_eq(coil_yield(), 0);
    return 3;
}

Test(runtime, an_exit_limit_beyond_the_end_of_time_is_none) {
    coil_run_opts o = {.exit_limit = COIL_FOREVER, .quiet = true};
    cr_assert_eq(coil_run_with(&o, leaves_one_behind, NULL), 3);
}
