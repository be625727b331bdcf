/* Dumps of call stacks and tasks, and the reports of who waits for whom. */
#include "check.h"
#include "lines.h"

#include "blocking.h"
#include "stack.h"

#include "coil/coil.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef COIL__HAVE_UNWIND
enum { HAVE_UNWIND = 1 };
#else
enum { HAVE_UNWIND = 0 };
#endif

/* What was dumped last. */
static char *text;
static size_t text_size;

static __attribute__((noinline)) void dump(void (*call)(FILE *out)) {
    free(text);
    FILE *f = open_memstream(&text, &text_size);
    call(f);
    fclose(f);
}

static bool has(const char *what) {
    return text && strstr(text, what);
}

#define EXPECT_HAS(what) cr_expect(has(what), "no \"%s\" in:\n%s", what, text)

static int count_of(const char *what) {
    int n = 0;
    for (const char *at = text; at && (at = strstr(at, what)); at += strlen(what))
        n++;
    return n;
}

/* Frame n, of any number of blanks before it, is in that function, at that line where lines are known. */
static bool frame_is(const char *from, int n, const char *function, int line) {
    char want[128], number[16];
    snprintf(number, sizeof number, "[%d] ", n);
    const char *at = from ? strstr(from, number) : NULL;
    if (!at) return false;
    at += strlen(number);
    snprintf(want, sizeof want, lines_known() ? "%s at " : "%s+0x", function);
    if (strncmp(at, want, strlen(want)) != 0) return false;
    if (!line || !lines_known()) return true;
    const char *end = strchr(at, '\n');
    int length = snprintf(want, sizeof want, "test_dump.c:%d", line);
    return end && end - at > length && strncmp(end - length, want, (size_t)length) == 0;
}

#define EXPECT_FRAME(from, n, function, line) \
    cr_expect(frame_is(from, n, function, line), "frame %d is not in %s:%d:\n%s", n, function, line, text)

static coil_task spawn_named(const char *name, coil_fn *fn, void *arg) {
    coil_task t = {0};
    coil_spawn_opts o = {0};
    o.name = name;
    cr_expect_eq(coil_spawn_with(&t, &o, fn, arg), 0);
    return t;
}

/* Lets all others run until they wait. */
static void settle(void) {
    for (int i = 0; i < 4; i++)
        cr_expect_eq(coil_yield(), 0);
}

/* Cancels and joins. */
static void end(coil_task t) {
    coil_cancel(t);
    cr_expect_eq(coil_join(t, NULL), 0);
}

/* ---- the call stack of the current task ---- */

static int dump_line, call_line;

static __attribute__((noinline)) int factorial(int n) {
    if (n <= 1) {
        dump_line = __LINE__ + 1;
        dump(coil_dump_callstack);
        return 1;
    }
    call_line = __LINE__ + 1;
    volatile int below = factorial(n - 1);
    return (int)((unsigned)below * (unsigned)n);
}

/* Of `dump`, which makes the call, there is a frame of its own. */
static __attribute__((noinline)) int computes(void *arg) {
    volatile int result = factorial((int)(intptr_t)arg);
    return result;
}

static void check_factorial(int n) {
    EXPECT_FRAME(text, 0, "dump", 0);
    EXPECT_FRAME(text, 1, "factorial", dump_line);
    for (int i = 2; i <= n; i++)
        EXPECT_FRAME(text, i, "factorial", call_line);
}

Test(dump, a_call_stack_has_a_line_for_each_call_from_the_innermost_on) {
    check_needs(HAVE_UNWIND, "an unwinder");
    cr_assert_eq(coil_run(computes, (void *)10), 3628800);
    check_factorial(10);
    EXPECT_FRAME(text, 11, "computes", 0);
    cr_expect(!has("[12]") && !has("coil_"), "%s", text);
    cr_expect_eq(count_of("\n"), 12);
}

Test(dump, of_a_deep_call_stack_the_innermost_are_shown_and_the_others_counted) {
    check_needs(HAVE_UNWIND, "an unwinder");
    coil_run_opts o = {.stack_size = 4 << 20};
    cr_assert_eq(coil_run_with(&o, computes, (void *)5000), 0);
    check_factorial(40);
    const char *more = strstr(text, "... and ");
    cr_assert(more != NULL);
    int left = atoi(more + strlen("... and "));
    cr_expect(left > 4900 && left < 5000, "%d more", left);
}

Test(dump, a_stack_of_16_kib_is_enough_to_dump) {
    check_needs(HAVE_UNWIND, "an unwinder");
    coil_run_opts o = {.stack_size = 16 << 10};
    cr_assert_eq(coil_run_with(&o, computes, (void *)5), 120);
    check_factorial(5);
}

static int joins(void *arg) {
    int result = 0, err = coil_join(*(coil_task *)arg, &result);
    return err ? err : result;
}

static int computes_later(void *arg) {
    settle();
    volatile int result = computes(arg);
    return result;
}

static coil_task chain[4];

static int is_joined(void *arg) {
    (void)arg;
    chain[0] = spawn_named("deep", computes_later, (void *)3);
    chain[1] = spawn_named("middle", joins, &chain[0]);
    chain[2] = spawn_named("outer", joins, &chain[1]);
    return joins(&chain[2]);
}

Test(dump, a_call_stack_goes_on_into_those_who_join) {
    check_needs(HAVE_UNWIND, "an unwinder");
    cr_assert_eq(coil_run(is_joined, NULL), 6);
    check_factorial(3);
    static const char *const by[] = {"-- joined by middle --\n", "-- joined by outer --\n",
                                     "-- joined by main --\n"};
    const char *at = text;
    for (int i = 0; i < 3 && at; i++) {
        at = strstr(at, by[i]);
        cr_expect(at != NULL, "no %s in:\n%s", by[i], text);
    }
    EXPECT_HAS("coil_join");
    EXPECT_FRAME(text, 4, "computes", 0);
    EXPECT_FRAME(text, 5, "computes_later", 0);
    cr_expect_eq(count_of("[6] "), 1, "the numbers go on: %s", text);
    cr_expect_eq(count_of("[0] "), 1);
}

static int in_a_group(void *arg) {
    COIL_GROUP(outer);
    cr_expect_eq(coil_group_spawn(&outer, arg, NULL), 0);
    return coil_group_wait(&outer);
}

static int in_a_group_again(void *arg) {
    (void)arg;
    coil_name("parent");
    COIL_GROUP(inner);
    cr_expect_eq(coil_group_spawn(&inner, computes, (void *)2), 0);
    return coil_group_wait(&inner);
}

static int computes_nothing(void *arg) {
    (void)arg;
    return coil_sleep(coil_ms(1));
}

/* Its owner waits for another group. */
static int in_one_of_two_groups(void *arg) {
    (void)arg;
    COIL_GROUP(outer);
    cr_expect_eq(coil_group_spawn(&outer, computes, (void *)2), 0);
    COIL_GROUP(inner);
    cr_expect_eq(coil_group_spawn(&inner, computes_nothing, NULL), 0);
    return coil_group_wait(&inner);
}

Test(dump, who_waits_for_another_group_is_not_among_those_who_wait) {
    check_needs(HAVE_UNWIND, "an unwinder");
    cr_assert_eq(coil_run(in_one_of_two_groups, NULL), 0);
    cr_expect_eq(count_of("awaited"), 0, "%s", text);
}

Test(dump, a_call_stack_goes_on_into_those_who_wait_for_a_group) {
    check_needs(HAVE_UNWIND, "an unwinder");
    cr_assert_eq(coil_run(in_a_group, (void *)(uintptr_t)in_a_group_again), 0);
    const char *parent = strstr(text, "-- awaited by parent --\n");
    cr_assert(parent != NULL, "%s", text);
    cr_expect(strstr(parent, "-- awaited by main --\n") != NULL, "%s", text);
    EXPECT_HAS("coil_group_wait");
}

static int nobody_waits(void *arg) {
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, computes, arg), 0);
    settle();
    return 0;
}

Test(dump, where_nobody_waits_yet_a_call_stack_ends) {
    check_needs(HAVE_UNWIND, "an unwinder");
    cr_assert_eq(coil_run(nobody_waits, (void *)2), 0);
    cr_expect(!has("--"), "%s", text);
    EXPECT_HAS("computes");
}

/* ---- the tree of tasks ---- */

static int sleeps_for_ever(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

static int reads(void *arg) {
    char c;
    return (int)coil_read((int)(intptr_t)arg, &c, 1, -1);
}

static int waits_for_usr1(void *arg) {
    static const int set[] = {SIGUSR1};
    (void)arg;
    return coil_signal_wait(set, 1);
}

static int accepts(void *arg) {
    coil_stream *s;
    int err = coil_listener_accept(arg, &s);
    if (!err) coil_stream_abort(s);
    return err;
}

static int sleeps_within(void *arg) {
    coil_scope s = coil_within(coil_sec(5000));
    int err = coil_sleep(arg ? coil_sec(20000) : coil_sec(1000));
    coil_leave(&s);
    return err;
}

static int joins_shielded(void *arg) {
    coil_scope s = coil_shield(coil_sec(3000));
    int err = coil_join(*(coil_task *)arg, NULL);
    coil_leave(&s);
    return err;
}

static int returns_arg(void *arg) {
    return (int)(intptr_t)arg;
}

static void tasks_of_all_kinds(int fd, coil_listener *l) {
    coil_task t[8], shielded, done;
    t[0] = spawn_named("reader", reads, (void *)(intptr_t)fd);
    t[1] = spawn_named("acceptor", accepts, l);
    t[2] = spawn_named("joiner", joins, &t[0]);
    t[3] = spawn_named("sleeper", sleeps_within, NULL);
    t[4] = spawn_named("limited", sleeps_within, "longer");
    t[5] = spawn_named("listener", waits_for_usr1, NULL);
    t[6] = spawn_named("parent", in_a_group, (void *)(uintptr_t)sleeps_for_ever);
    shielded = spawn_named("tough", joins_shielded, &t[4]);
    done = spawn_named("done", returns_arg, (void *)42);
    settle();
    coil_cancel(shielded);
    cr_expect_eq(coil_sleep(coil_ms(2)), 0);
    t[7] = spawn_named("fresh", returns_arg, NULL);
    coil_cancel(t[7]);
    dump(coil_dump_tasks);
    cr_expect_eq(coil_join(done, NULL), 0);
    for (int i = 7; i >= 0; i--)
        end(t[i]);
    cr_expect_eq(coil_join(shielded, NULL), 0);
}

static int all_kinds(void *arg) {
    int fd[2];
    coil_listener *l;
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    cr_expect_eq(coil_listen(&l, "127.0.0.1:0", NULL), 0);
    *(int *)arg = fd[0];
    tasks_of_all_kinds(fd[0], l);
    coil_listener_close(l);
    close(fd[0]);
    close(fd[1]);
    return 0;
}

/* The line of a task. */
static const char *line_of(const char *name) {
    static char line[512];
    char want[64];
    snprintf(want, sizeof want, "\n  %s (", name);
    const char *at = strstr(text, want);
    if (!at) return "";
    snprintf(line, sizeof line, "%.*s", (int)strcspn(at + 1, "\n"), at + 1);
    return line;
}

#define EXPECT_LINE(name, what) \
    cr_expect(strstr(line_of(name), what) != NULL, "no \"%s\" in \"%s\" of:\n%s", what, line_of(name), text)

Test(dump, tells_of_each_task_what_it_waits_for) {
    int fd = -1;
    char want[64];
    cr_assert_eq(coil_run(all_kinds, &fd), 0);
    cr_expect_eq(strncmp(text, "coil: worker ", 13), 0, "%s", text);
    EXPECT_HAS("), tasks: 11, requests in the kernel: ");
    EXPECT_HAS("\nmain");
    snprintf(want, sizeof want, "(reads): waits for read on descriptor %d, for ", fd);
    EXPECT_LINE("reader", want);
    EXPECT_LINE("acceptor", "(accepts): waits for accept on descriptor ");
    EXPECT_LINE("joiner", "(joins): waits for join of reader, for ");
    double waited = -1;
    const char *for_how_long = strstr(line_of("sleeper"), "waits for sleep, for ");
    cr_expect(for_how_long && sscanf(for_how_long, "waits for sleep, for %lf s", &waited) == 1, "%s", text);
    cr_expect(waited >= 0.002 && waited < 60, "%f", waited);
    EXPECT_LINE("sleeper", ", at most 99");
    EXPECT_LINE("sleeper", ", limit in 499");
    EXPECT_LINE("limited", ", at most 499");
    cr_expect_null(strstr(line_of("limited"), "limit in"), "twice the same: %s", text);
    EXPECT_LINE("listener", "waits for signal, for ");
    EXPECT_LINE("parent", "(in_a_group): waits for group");
    EXPECT_LINE("tough", "(joins_shielded): waits for join of limited, for ");
    EXPECT_LINE("tough", ", at most 299");
    EXPECT_LINE("tough", ", cancelled, shielded");
    EXPECT_LINE("done", "(returns_arg): has ended with 42, and was not joined yet");
    EXPECT_LINE("fresh", "(returns_arg): ready to run, cancelled");
    cr_expect_null(strstr(line_of("reader"), "cancelled"));
}

Test(dump, shows_where_tasks_were_spawned_and_their_call_stacks) {
    check_needs(HAVE_UNWIND, "an unwinder");
    int fd;
    cr_assert_eq(coil_run(all_kinds, &fd), 0);
    EXPECT_HAS("\n      spawned in spawn_named");
    const char *sleeper = strstr(text, "\n  sleeper");
    cr_assert(sleeper != NULL);
    cr_expect_not_null(strstr(sleeper, "sleeps_within"));
    /* A child is below its parent, in the tree and so in the text. */
    const char *child = strstr(text, "(sleeps_for_ever)"), *parent = strstr(text, "\n  parent");
    cr_assert(child && parent && parent < child, "%s", text);
    cr_expect_eq(strncmp(strstr(parent + 1, "\n    task "), "\n    task ", 10), 0);
    /* One that has not begun shows with what it will begin. */
    EXPECT_FRAME(strstr(text, "\n  fresh"), 0, "returns_arg", 0);
    /* A stack begins with the call in which the task waits ... */
    EXPECT_FRAME(strstr(text, "\n  reader"), 0, "coil_read", 0);
    EXPECT_FRAME(strstr(text, "\n  acceptor"), 0, "coil_listener_accept", 0);
    EXPECT_FRAME(strstr(text, "\n  joiner"), 0, "coil_join", 0);
    EXPECT_FRAME(sleeper, 0, "coil_sleep", 0);
    EXPECT_FRAME(strstr(text, "\n  listener"), 0, "coil_signal_wait", 0);
    /* ... and neither where tasks begin nor how they are parked is of interest. */
    cr_expect(!has("task_begins") && !has("coil__park"), "%s", text);
}

static int odd_names(void *arg) {
    (void)arg;
    coil_task t[3] = {
        spawn_named("two\nlines\x1b[1m\x7f", sleeps_for_ever, NULL),
        spawn_named("\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
                    "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9",
                    sleeps_for_ever, NULL),
        spawn_named("exactly thirty-one bytes \xc3\xa9\xc3\xa9\xc3\xa9", sleeps_for_ever, NULL)};
    coil_name("%s", "a name that is longer than thirty-one bytes");
    settle();
    dump(coil_dump_tasks);
    for (int i = 0; i < 3; i++)
        end(t[i]);
    return 0;
}

Test(dump, names_keep_to_their_line_and_are_cut_between_characters) {
    cr_assert_eq(coil_run(odd_names, NULL), 0);
    EXPECT_HAS("\n  two?lines?[1m? (sleeps_for_ever)");
    EXPECT_HAS("\n  \xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
               "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9 (");
    EXPECT_HAS("\n  exactly thirty-one bytes \xc3\xa9\xc3\xa9\xc3\xa9 (");
    EXPECT_HAS("\na name that is longer than thir: running");
}

static void stack_of(const char *line, size_t *used, size_t *size, size_t *most) {
    const char *at = strstr(line, ", stack ");
    *used = *size = *most = 0;
    if (at) sscanf(at, ", stack %zu of %zu bytes, %zu touched", used, size, most);
}

static __attribute__((noinline)) int sleeps_deep(int bytes) {
    char room[8192];
    memset(room, 0, sizeof room);
    __asm__ volatile("" : : "r"(room) : "memory");
    int err = bytes > 8192 ? sleeps_deep(bytes - 8192) : coil_sleep(COIL_FOREVER);
    __asm__ volatile("" : : "r"(room) : "memory");
    return err;
}

static int uses_stack(void *arg) {
    return sleeps_deep((int)(intptr_t)arg);
}

static int dumps_stacks(void *arg) {
    (void)arg;
    coil_spawn_opts o = {.name = "big", .stack_size = 256 << 10};
    coil_task big, small = spawn_named("small", sleeps_for_ever, NULL);
    cr_expect_eq(coil_spawn_with(&big, &o, uses_stack, (void *)(100 << 10)), 0);
    settle();
    dump(coil_dump_tasks);
    end(big);
    end(small);
    return 0;
}

Test(dump, tells_how_much_of_its_stack_a_task_uses) {
    size_t used, size, most;
    cr_assert_eq(coil_run(dumps_stacks, NULL), 0);
    stack_of(line_of("big"), &used, &size, &most);
    cr_expect_eq(size, (size_t)(256 << 10) * COIL__STACK_SCALE);
    cr_expect(used >= 100 << 10 && used < size, "%zu", used);
    cr_expect(most == 0 || (most >= used && most <= size), "%zu", most);
    stack_of(line_of("small"), &used, &size, &most);
    cr_expect_eq(size, (size_t)(64 << 10) * COIL__STACK_SCALE);
    cr_expect(used > 0 && used < 16 << 10, "%zu", used);
}

/* ---- jobs ---- */

struct held {
    struct coil__blocking b;
    sem_t hold;
};

static void run_held(struct coil__job *j) {
    struct held *h = CONTAINER_OF(j, struct held, b.job);
    while (sem_wait(&h->hold))
        continue;
}

static int makes_job(void *arg) {
    struct held *h = arg;
    return coil__blocking_call_always(coil__current("test"), &h->b, "slow job");
}

static int dumps_a_job(void *arg) {
    static struct held h = {.b = {.job = {.run = run_held, .lane = COIL__LANE_USER}, .fd = -1}};
    (void)arg;
    sem_init(&h.hold, 0, 0);
    coil_task t = spawn_named("caller", makes_job, &h);
    settle();
    dump(coil_dump_tasks);
    sem_post(&h.hold);
    return coil_join(t, NULL);
}

Test(dump, tells_of_jobs_on_the_blocking_pool) {
    cr_assert_eq(coil_run(dumps_a_job, NULL), 0);
    EXPECT_HAS("\n  on the blocking pool: slow job, for ");
    EXPECT_LINE("caller", "waits for slow job, for ");
}

/* ---- many, and deep ---- */

static int dumps_many(void *arg) {
    int n = (int)(intptr_t)arg;
    COIL_GROUP(g);
    for (int i = 0; i < n; i++)
        cr_expect_eq(coil_group_spawn(&g, sleeps_for_ever, NULL), 0);
    coil_sleep(coil_ms(1));
    while (coil_yield(), dump(coil_dump_tasks), count_of("waits for sleep") < n)
        continue;
    return 0;
}

Test(dump, shows_thousands_of_tasks) {
    /* TSan has no room for more. */
    int n = check_rounds(CHECK_TSAN ? 1000 : 10000);
    cr_assert_eq(coil_run(dumps_many, (void *)(intptr_t)n), 0);
    cr_expect_eq(count_of("(sleeps_for_ever): waits for sleep"), n);
    cr_expect_eq(count_of("\n  task "), n);
    cr_expect_eq(count_of(" deep"), 0);
}

static int levels;

static int spawns_below(void *arg) {
    int depth = (int)(intptr_t)arg;
    if (depth == levels) {
        dump(coil_dump_tasks);
        return 0;
    }
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, spawns_below, (void *)(intptr_t)(depth + 1));
    return err ? err : coil_group_wait(&g);
}

Test(dump, shows_a_tree_of_thousands_of_levels) {
    char want[64];
    levels = check_rounds(CHECK_TSAN ? 1000 : 10000);
    if (levels < 30) levels = 30;
    cr_assert_eq(coil_run(spawns_below, NULL), 0);
    cr_expect_eq(count_of("(spawns_below): "), levels);
    snprintf(want, sizeof want, ", %d levels deep\n", levels);
    EXPECT_HAS(want);
}

static coil_task orphan;

static int spawns_and_ends(void *arg) {
    (void)arg;
    orphan = spawn_named("orphan", sleeps_for_ever, NULL);
    return 0;
}

static int dumps_an_orphan(void *arg) {
    coil_task t = spawn_named("gone", spawns_and_ends, arg);
    cr_expect_eq(coil_join(t, NULL), 0);
    settle();
    spawn_named("in its place", sleeps_for_ever, NULL);
    dump(coil_dump_tasks);
    end(orphan);
    return 0;
}

Test(dump, a_task_whose_parent_has_ended_is_at_the_top) {
    cr_assert_eq(coil_run(dumps_an_orphan, NULL), 0);
    EXPECT_HAS("\norphan (sleeps_for_ever): ");
}

/* ---- what it must not do ---- */

static int changes_nothing(void *arg) {
    coil_task t[20];
    coil_stats before, after;
    int fds, maps;
    for (int i = 0; i < 20; i++)
        t[i] = spawn_named("sleeper", sleeps_within, arg);
    settle();
    dump(coil_dump_tasks); /* What is kept for good. */
    fds = check_fd_count();
    maps = check_map_count();
    coil_stats_get(&before);
    for (int i = 0; i < 10; i++)
        dump(i % 2 ? coil_dump_tasks : coil_dump_callstack);
    coil_stats_get(&after);
    cr_expect_arr_eq(&after, &before, sizeof before);
    cr_expect_eq(check_fd_count(), fds);
    if (!CHECK_SANITIZED) cr_expect_lt(check_map_count(), maps + 10);
    for (int i = 0; i < 20; i++)
        end(t[i]);
    return 0;
}

Test(dump, changes_nothing) {
    cr_assert_eq(coil_run(changes_nothing, NULL), 0);
}

static bool take_memory_away(void) {
    struct rlimit none = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
    return setrlimit(RLIMIT_AS, &none) == 0;
}

static int runs_as_main(void *fn) {
    return coil_run((coil_fn *)fn, NULL);
}

/* Runs it as the main task of a child, which takes its own memory away. */
static void check_without_memory(coil_fn *fn) {
    char err[256];
    int status;
    if (CHECK_SANITIZED || coil__on_valgrind()) cr_skip("the sanitizer needs memory itself");
    cr_assert(check_in_child(runs_as_main, (void *)(uintptr_t)fn, &status, err, sizeof err));
    cr_expect_eq(status, 0, "%#x: %s", (unsigned)status, err);
}

static int dumps_without_memory(void *arg) {
    static char buf[1 << 16];
    (void)arg;
    FILE *f = fmemopen(buf, sizeof buf, "w");
    if (!take_memory_away()) return 101;
    coil_dump_callstack(f);
    coil_dump_tasks(f);
    fclose(f);
    if (!strstr(buf, "\nmain: running, stack ")) return 102;
    if (HAVE_UNWIND && strncmp(buf, "[0] 0x", 6) != 0) return 103;
    return 0;
}

Test(dump, without_memory_for_a_stack_there_are_addresses) {
    check_without_memory(dumps_without_memory);
}

static __attribute__((noinline)) void dumps_deep(char *lo, FILE *f) {
    char pad[1024];
    memset(pad, 1, sizeof pad);
    __asm__ volatile("" ::"r"(pad) : "memory");
    if (pad - lo > (16 << 10)) {
        dumps_deep(lo, f);
    } else {
        coil_dump_tasks(f);
    }
    __asm__ volatile("" ::"r"(pad) : "memory");
}

static int dumps_without_memory_or_room(void *arg) {
    static char buf[1 << 12];
    FILE *f = fmemopen(buf, sizeof buf, "w");
    if (!take_memory_away()) return 101;
    dumps_deep(coil__here->current->stack->lo, f);
    fclose(f);
    (void)arg;
    return strcmp(buf, "coil: no memory for a dump\n") == 0 ? 0 : 104;
}

Test(dump, without_memory_and_room_one_line_says_so) {
    check_without_memory(dumps_without_memory_or_room);
}

static int outside(void *arg) {
    (void)arg;
    coil_dump_tasks(stderr);
    return 0;
}

static int outside_callstack(void *arg) {
    (void)arg;
    coil_dump_callstack(stderr);
    return 0;
}

Test(dump, outside_a_task_it_stops_with_its_name) {
    cr_expect(check_aborts(outside, NULL, "coil: coil_dump_tasks: called outside a task"));
    cr_expect(check_aborts(outside_callstack, NULL, "coil: coil_dump_callstack: called outside a task"));
}

static ssize_t yields(void *cookie, const char *buf, size_t n) {
    (void)cookie;
    (void)buf;
    return coil_yield() ? 0 : (ssize_t)n;
}

static int dumps_into_coil(void *arg) {
    (void)arg;
    FILE *f = fopencookie(NULL, "w", (cookie_io_functions_t){.write = yields});
    setbuf(f, NULL);
    coil_dump_tasks(f);
    fclose(f);
    return 0;
}

static int runs_into_coil(void *arg) {
    return coil_run(dumps_into_coil, arg);
}

Test(dump, what_writes_it_must_not_be_coil) {
    cr_expect(check_aborts(runs_into_coil, NULL, "coil: coil_yield: called outside a task"));
}

/* ---- on a signal ---- */

enum { RUNS = 3 };

static struct {
    atomic_int ready, other;
    atomic_bool stop;
} signals;

static int waits_for_usr2(void *arg) {
    static const int set[] = {SIGUSR2};
    (void)arg;
    int got = coil_signal_wait(set, 1);
    if (got == SIGUSR2) atomic_fetch_add(&signals.other, 1);
    return got < 0 ? got : 0;
}

static int busy(void *arg) {
    (void)arg;
    while (!atomic_load(&signals.stop)) {
        int err = coil_sleep(coil_us(100));
        if (err) return err;
    }
    return 0;
}

static int under_load(void *arg) {
    COIL_GROUP(g);
    coil_name("run-%d", (int)(intptr_t)arg);
    for (int i = 0; i < 50; i++)
        cr_expect_eq(coil_group_spawn(&g, busy, NULL), 0);
    cr_expect_eq(coil_group_spawn(&g, waits_for_usr2, NULL), 0);
    settle();
    atomic_fetch_add(&signals.ready, 1);
    return coil_group_wait(&g);
}

static void *runs_under_load(void *arg) {
    coil_run_opts o = {.dump_signal = SIGUSR1};
    return (void *)(intptr_t)coil_run_with(&o, under_load, arg);
}

/* Reads what the dumps write, until there are n of them with all their tasks. */
static bool read_dumps(int fd, int n) {
    static char got[1 << 20];
    size_t have = 0;
    free(text);
    text = NULL;
    for (;;) {
        ssize_t k = read(fd, got + have, sizeof got - 1 - have);
        if (k <= 0) return false;
        have += (size_t)k;
        got[have] = '\0';
        free(text);
        text = strdup(got);
        if (count_of("coil: worker ") == n && count_of("(waits_for_usr2)") == n &&
            count_of("(busy)") == 50 * n)
            return true;
    }
}

/* Each dump is in one piece: between two heads there are one run and its 51 children. */
static bool in_pieces(void) {
    for (char *at = text; at && (at = strstr(at, "coil: worker "));) {
        char *next = strstr(at + 1, "coil: worker ");
        if (next) next[-1] = '\0';
        int tasks = 0, runs = 0;
        for (char *t = at; (t = strstr(t, "\n  task ")); t++)
            tasks++;
        for (char *t = at; (t = strstr(t, "\nrun-")); t++)
            runs++;
        if (next) next[-1] = '\n';
        if (tasks != 51 || runs != 1) return false;
        at++;
    }
    return true;
}

static int dumps_on_signal(void *arg) {
    pthread_t threads[RUNS];
    struct sigaction after;
    int p[2], bad = 0;
    (void)arg;
    if (pipe(p) < 0) return 1;
    dup2(p[1], STDERR_FILENO);
    for (int i = 0; i < RUNS; i++)
        if (pthread_create(&threads[i], NULL, runs_under_load, (void *)(intptr_t)i)) return 2;
    while (atomic_load(&signals.ready) < RUNS)
        sched_yield();
    for (int i = 0; i < 3 && !bad; i++) {
        kill(getpid(), SIGUSR1);
        if (!read_dumps(p[0], RUNS))
            bad = 3;
        else if (!in_pieces())
            bad = 4;
    }
    if (atomic_load(&signals.other)) bad = 5;
    kill(getpid(), SIGUSR2);
    while (atomic_load(&signals.other) < RUNS)
        sched_yield();
    atomic_store(&signals.stop, true);
    for (int i = 0; i < RUNS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        if (result) bad = 6;
    }
    sigaction(SIGUSR1, NULL, &after);
    if (after.sa_handler != SIG_DFL) bad = 7;
    return bad;
}

Test(dump, a_signal_makes_every_run_that_asked_dump_its_tasks_in_one_piece) {
    char err[4096];
    int status;
    cr_assert(check_in_child(dumps_on_signal, NULL, &status, err, sizeof err));
    cr_expect_eq(status, 0, "%#x: %s", (unsigned)status, err);
}

static int waits_for_the_dump_signal(void *arg) {
    static const int set[] = {SIGUSR1};
    (void)arg;
    coil_task t = spawn_named("listener", waits_for_usr1, NULL);
    int got = 0;
    settle();
    kill(getpid(), SIGUSR1);
    if (coil_join(t, &got) || got != SIGUSR1) return 1;
    /* For a task it is over: nothing was kept. */
    coil_scope s = coil_within(coil_ms(1));
    got = coil_signal_wait(set, 1);
    coil_leave(&s);
    return got == -ETIME ? 0 : 2;
}

static int runs_with_dump_signal(void *fn) {
    coil_run_opts o = {.dump_signal = SIGUSR1, .quiet = true};
    return coil_run_with(&o, *(coil_fn **)fn, NULL);
}

Test(dump, tasks_may_wait_for_the_same_signal) {
    coil_fn *fn = waits_for_the_dump_signal;
    char err[16384];
    int status;
    cr_assert(check_in_child(runs_with_dump_signal, &fn, &status, err, sizeof err));
    cr_expect_eq(status, 0, "%#x: %s", (unsigned)status, err);
    cr_expect_not_null(strstr(err, "\n  listener (waits_for_usr1): "), "%s", err);
}

static int gets_it_after_the_dump(void *arg) {
    (void)arg;
    kill(getpid(), SIGUSR1);
    coil_sleep(coil_ms(1));
    coil_scope s = coil_within(coil_ms(1));
    int got = waits_for_usr1(NULL);
    coil_leave(&s);
    return got == -ETIME ? 0 : 2;
}

Test(dump, a_signal_that_was_dumped_for_is_not_kept_for_tasks_that_never_asked) {
    coil_fn *fn = gets_it_after_the_dump;
    char err[4096];
    int status;
    cr_assert(check_in_child(runs_with_dump_signal, &fn, &status, err, sizeof err));
    cr_expect_eq(status, 0, "%#x: %s", (unsigned)status, err);
    cr_expect_not_null(strstr(err, "\nmain"), "%s", err);
}

Test(dump, signals_that_cannot_be_caught_are_out_of_range) {
    static const int bad[] = {-1, SIGKILL, SIGSTOP, SIGSEGV, SIGURG, 65, 32};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        coil_run_opts o = {.dump_signal = bad[i], .quiet = true};
        cr_expect_eq(coil_run_with(&o, returns_arg, NULL), COIL_ESTART_OPTION, "%d", bad[i]);
    }
}

/* ---- deadlocks ---- */

static int joins_in_a_circle(void *arg) {
    static coil_task t[3];
    static const char *const names[] = {"alice", "bob", "carol"};
    (void)arg;
    for (int i = 0; i < 3; i++)
        t[i] = spawn_named(names[i], joins, &t[(i + 1) % 3]);
    return joins(&t[1]);
}

static int two_circles(void *arg) {
    static coil_task t[5];
    static const char *const names[] = {"a", "b", "c", "d", "e"};
    (void)arg;
    for (int i = 0; i < 5; i++)
        t[i] = spawn_named(names[i], joins, &t[i < 2 ? 1 - i : i == 4 ? 2 : i + 1]);
    return coil_sleep(COIL_FOREVER);
}

static int no_circle(void *arg) {
    static coil_task t;
    (void)arg;
    t = spawn_named("sleeper", sleeps_for_ever, NULL);
    spawn_named("another", joins, &t);
    return joins(&t);
}

static int a_large_circle(void *arg) {
    static coil_task t[10000];
    int n = 100 + check_rounds(CHECK_TSAN ? 900 : 9900);
    (void)arg;
    for (int i = 0; i < n; i++)
        t[i] = spawn_named("one", joins, &t[(i + 1) % n]);
    return joins(&t[0]);
}

/* Two locks taken in two orders, and somebody who waits for both tasks at once. */
static coil_mutex left, right;
static coil_rwlock third;

static int takes_both(coil_mutex *a, coil_mutex *b) {
    int err = coil_mutex_lock(a);
    if (err) return err;
    coil_yield();
    err = coil_mutex_lock(b);
    if (!err) coil_mutex_unlock(b);
    coil_mutex_unlock(a);
    return err;
}

static int left_first(void *arg) {
    (void)arg;
    return takes_both(&left, &right);
}

static int right_first(void *arg) {
    (void)arg;
    return takes_both(&right, &left);
}

static int waits_to_write(void *arg) {
    (void)arg;
    int err = coil_rwlock_wrlock(&third);
    if (!err) coil_rwlock_unlock(&third);
    return err;
}

static int locks_in_a_circle(void *arg) {
    (void)arg;
    coil_task l = spawn_named("lefty", left_first, NULL), r = spawn_named("righty", right_first, NULL);
    cr_expect_eq(coil_rwlock_wrlock(&third), 0);
    spawn_named("writer", waits_to_write, NULL);
    coil_case cases[] = {coil_on_join(l), coil_on_join(r), coil_on_join(l)};
    int happened = coil_select(cases, ARRAY_SIZE(cases));
    coil_rwlock_unlock(&third);
    return happened;
}

static int runs_deadlock(void *fn) {
    int result = coil_run(*(coil_fn **)fn, NULL);
    return result == -EDEADLK ? 7 : 8;
}

static char report[4 << 20];

static void check_deadlock(coil_fn *fn) {
    int status;
    cr_assert(check_in_child(runs_deadlock, &fn, &status, report, sizeof report));
    cr_assert_eq(status, 7 << 8, "%#x: %s", (unsigned)status, report);
}

static bool reported(const char *what) {
    return strstr(report, what) != NULL;
}

Test(dump, a_deadlock_names_the_circle) {
    check_deadlock(joins_in_a_circle);
    cr_expect(reported("coil:   main: waits for join of bob, for "), "%s", report);
    cr_expect(reported("\ncoil:   in a circle: bob waits for join of carol, carol waits for join of alice, "
                       "alice waits for join of bob\n"),
              "%s", report);
    cr_expect_null(strstr(strstr(report, "in a circle") + 1, "in a circle"), "%s", report);
}

Test(dump, a_deadlock_names_each_circle_once) {
    check_deadlock(two_circles);
    cr_expect(reported("circle: a waits for join of b, b waits for join of a\n"), "%s", report);
    cr_expect(reported("circle: c waits for join of d, d waits for join of e, e waits for join of c\n"), "%s",
              report);
    cr_expect_null(strstr(strstr(strstr(report, "in a circle") + 1, "in a circle") + 1, "in a circle"), "%s",
                   report);
}

Test(dump, a_deadlock_without_a_circle_names_none) {
    check_deadlock(no_circle);
    cr_expect(reported("coil:   main: waits for join of sleeper, for "), "%s", report);
    cr_expect_not(reported("in a circle"), "%s", report);
}

Test(dump, a_deadlock_of_locks_names_their_holders) {
    check_deadlock(locks_in_a_circle);
    cr_expect(reported("coil:   main: waits for select that joins lefty, righty, for "), "%s", report);
    cr_expect(reported("coil:   writer: waits for write lock held by main, for "), "%s", report);
    cr_expect(
        reported("circle: lefty waits for mutex held by righty, righty waits for mutex held by lefty\n"),
        "%s", report);
}

Test(dump, of_a_large_circle_some_are_named) {
    check_deadlock(a_large_circle);
    const char *circle = strstr(report, "in a circle: ");
    cr_assert(circle != NULL);
    const char *rest = strstr(circle, "one, and others\n");
    cr_expect(rest && rest - circle < 1000, "%.1000s", circle);
}
