/* Tasks: handles, names, the run queue, budgets, and what stops a wrong call. */
#include "check.h"

#include "coil/coil.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t = {0};
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

static int returns_arg(void *arg) {
    return (int)(intptr_t)arg;
}

/* ---- handles ---- */

enum { SPAWNS = CHECK_TSAN ? 5000 : 100000 };

static int spawns_and_remembers(void *arg) {
    coil_task *old = arg;
    for (int i = 0; i < SPAWNS; i++) {
        int got = -1;
        old[i] = spawn(returns_arg, (void *)(intptr_t)i);
        if (i % 3 == 0 && i > 300) cr_expect_eq(coil_cancel(old[i - 300]), -ESRCH);
        cr_expect_eq(coil_join(old[i], &got), 0);
        cr_expect_eq(got, i);
    }
    coil_task now = spawn(returns_arg, NULL);
    int reused = 0;
    for (int i = 0; i < SPAWNS; i++) {
        reused += old[i].slot == now.slot;
        cr_expect_eq(coil_cancel(old[i]), -ESRCH);
        cr_expect_eq(coil_detach(old[i]), -ESRCH);
        cr_expect_eq(coil_join(old[i], NULL), -ESRCH);
    }
    cr_expect_gt(reused, 0, "slots are used again");
    return coil_join(now, NULL);
}

Test(task, a_handle_never_reaches_the_next_user_of_its_place) {
    coil_task *old = calloc(SPAWNS, sizeof *old);
    cr_assert_not_null(old);
    cr_assert_eq(coil_run(spawns_and_remembers, old), 0);
    for (int i = 0; i < SPAWNS; i += 97)
        cr_assert_eq(coil_cancel(old[i]), -ESRCH);
    free(old);
}

static int fills_places(void *arg) {
    coil_task t[100];
    bool seen[100] = {false};
    (void)arg;
    for (int i = 0; i < 100; i++)
        t[i] = spawn(returns_arg, NULL);
    for (int i = 0; i < 100; i++)
        cr_expect_eq(coil_join(t[i], NULL), 0);
    for (int i = 0; i < 100; i++) {
        coil_task one = spawn(returns_arg, NULL);
        cr_expect_eq(coil_join(one, NULL), 0);
        if (one.slot >= 1 && one.slot <= 100) {
            cr_expect_not(seen[one.slot - 1], "slot %u rests until all others were used", one.slot);
            seen[one.slot - 1] = true;
        }
    }
    return 0;
}

Test(task, places_are_used_again_in_the_order_in_which_they_became_free) {
    cr_assert_eq(coil_run(fills_places, NULL), 0);
}

static int knows_itself(void *arg) {
    coil_task *t = arg;
    cr_expect(coil_task_same(coil_self(), *t));
    cr_expect_not(coil_task_same(coil_self(), (coil_task){0}));
    return 0;
}

static int knows_its_child(void *arg) {
    coil_task t = {0};
    (void)arg;
    t = spawn(knows_itself, &t);
    cr_expect_not(coil_task_same(t, coil_self()));
    cr_expect(coil_task_same((coil_task){0}, (coil_task){0}));
    return coil_join(t, NULL);
}

Test(task, self_is_the_handle_that_the_spawn_gave) {
    cr_assert_eq(coil_run(knows_its_child, NULL), 0);
}

/* ---- the queue ---- */

enum { CROWD = 3000, ROUNDS = 20 };

static int rounds_of[CROWD];

static int keeps_step(void *arg) {
    int me = (int)(intptr_t)arg, ahead = 0;
    for (int i = 0; i < ROUNDS; i++) {
        rounds_of[me]++;
        for (int other = 0; other < CROWD; other += 37)
            ahead += rounds_of[other] < rounds_of[me] - 1;
        if (coil_yield()) return -1;
    }
    return ahead;
}

static int crowd(void *arg) {
    static coil_task t[CROWD];
    (void)arg;
    for (intptr_t i = 0; i < CROWD; i++)
        t[i] = spawn(keeps_step, (void *)i);
    for (int i = 0; i < CROWD; i++) {
        int got = -1;
        cr_expect_eq(coil_join(t[i], &got), 0);
        cr_expect_eq(got, 0, "task %d was ahead of others by two rounds", i);
    }
    return 0;
}

Test(task, a_yield_lets_every_other_ready_task_run_once) {
    cr_assert_eq(coil_run(crowd, NULL), 0);
}

static struct {
    int calls, calls_at_tick;
    bool stop;
} busy;

static int joins_the_ended_again_and_again(void *arg) {
    (void)arg;
    while (!busy.stop && busy.calls < 1000000) {
        coil_task t = spawn(returns_arg, NULL);
        coil_yield();
        coil_yield();
        for (int i = 0; i < 200 && !busy.stop; i++, busy.calls++) {
            if (i) t = spawn(returns_arg, NULL);
            if (coil_join(t, NULL)) return -1;
        }
    }
    return 0;
}

static int shuts_down_again_and_again(void *arg) {
    int *fds = arg;
    while (!busy.stop && busy.calls < 1000000) {
        busy.calls++;
        if (coil_shutdown(fds[0], SHUT_WR)) return -1;
    }
    return 0;
}

static int ticks_once(void *arg) {
    (void)arg;
    cr_expect_eq(coil_yield(), 0);
    busy.calls_at_tick = busy.calls;
    cr_expect_eq(coil_sleep(coil_us(1)), 0);
    busy.stop = true;
    return 0;
}

static int holds_the_worker(void *arg) {
    int fds[2];
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    busy.calls = busy.stop = 0;
    coil_task runner = spawn(arg, fds), ticker = spawn(ticks_once, NULL);
    int got = -1;
    cr_expect_eq(coil_join(runner, &got), 0);
    cr_expect_eq(got, 0);
    cr_expect_eq(coil_join(ticker, NULL), 0);
    cr_expect_lt(busy.calls, 1000000, "nobody else ever ran");
    cr_expect_leq(busy.calls_at_tick, 64 * 2);
    return coil_close(fds[0]) | coil_close(fds[1]);
}

Test(task, a_task_whose_calls_never_need_to_park_gives_way) {
    cr_assert_eq(coil_run(holds_the_worker, (void *)(uintptr_t)shuts_down_again_and_again), 0);
    cr_assert_eq(coil_run(holds_the_worker, (void *)(uintptr_t)joins_the_ended_again_and_again), 0);
}

/* ---- many ---- */

enum { MANY = CHECK_TSAN ? 7000 : 100000 }; /* TSan has room for 8,128 */

static int many; /* MANY, scaled as rounds are */

static int sleeps_for_ever(void *arg) {
    ++*(int *)arg;
    return coil_sleep(COIL_FOREVER);
}

static int sleeps_a_while(void *arg) {
    ++*(int *)arg;
    return coil_sleep(coil_ms(1));
}

static int lives_with_many(void *arg) {
    coil_stats s;
    int started = 0, slept = 0;
    (void)arg;
    COIL_GROUP(g);
    for (int i = 0; i < many; i++) {
        int err = coil_group_spawn(&g, i % 2 ? sleeps_for_ever : sleeps_a_while, i % 2 ? &started : &slept);
        cr_expect_eq(err, 0, "task %d: %s", i, coil_strerror(err));
        if (err) break;
    }
    while (started + slept < many)
        cr_expect_eq(coil_yield(), 0);
    coil_stats_get(&s);
    cr_expect_eq(s.tasks_peak, (uint64_t)many + 1);
    coil_group_cancel(&g);
    return coil_group_wait(&g);
}

/* Two pages for each: the top of its stack, and what the kernel keeps books in. */
static void need_room_for_many(void) {
    many = check_rounds(MANY);
    check_needs(!check_on_uml(), "a machine of its own, to map a stack per task");
    check_needs(sysconf(_SC_PHYS_PAGES) > 2L * many, "memory for two pages for each of 100,000 tasks");
}

Test(task, a_hundred_thousand_live_in_one_run) {
    need_room_for_many();
    cr_assert_eq(coil_run(lives_with_many, NULL), 0);
}

Test(task, a_hundred_thousand_live_in_one_run_also_where_guards_cost_mappings) {
    need_room_for_many();
    coil_run_opts o = {.caps = "guard_install", .quiet = true};
    cr_assert_eq(coil_run_with(&o, lives_with_many, NULL), 0);
}

/* ---- calls from elsewhere stop with their name ---- */

static coil_group no_group;
static coil_scope no_scope;

static int outside_spawn(void *arg) {
    return coil_spawn(NULL, returns_arg, arg);
}

static int outside_join(void *arg) {
    (void)arg;
    return coil_join((coil_task){0}, NULL);
}

static int outside_detach(void *arg) {
    (void)arg;
    return coil_detach((coil_task){0});
}

static int outside_cancelled(void *arg) {
    (void)arg;
    return coil_cancelled();
}

static int outside_self(void *arg) {
    (void)arg;
    return (int)coil_self().slot;
}

static int outside_yield(void *arg) {
    (void)arg;
    return coil_yield();
}

static int outside_sleep(void *arg) {
    (void)arg;
    return coil_sleep(coil_ms(1));
}

static int outside_sleep_until(void *arg) {
    (void)arg;
    return coil_sleep_until(coil_now());
}

static int outside_name(void *arg) {
    (void)arg;
    coil_name("x");
    return 0;
}

static int outside_within(void *arg) {
    (void)arg;
    no_scope = coil_within(coil_ms(1));
    return 0;
}

static int outside_until(void *arg) {
    (void)arg;
    no_scope = coil_until(coil_now());
    return 0;
}

static int outside_shield(void *arg) {
    (void)arg;
    no_scope = coil_shield(coil_ms(1));
    return 0;
}

static int outside_leave(void *arg) {
    (void)arg;
    return coil_leave(&no_scope);
}

static int outside_group_spawn(void *arg) {
    return coil_group_spawn(&no_group, returns_arg, arg);
}

static int outside_group_wait(void *arg) {
    (void)arg;
    return coil_group_wait(&no_group);
}

static int outside_group_cancel(void *arg) {
    (void)arg;
    coil_group_cancel(&no_group);
    return 0;
}

static int outside_keep_going(void *arg) {
    (void)arg;
    coil_group_keep_going(&no_group);
    return 0;
}

static int outside_signal_wait(void *arg) {
    (void)arg;
    return coil_signal_wait(&(int){10}, 1);
}

static int outside_stats(void *arg) {
    coil_stats s;
    (void)arg;
    coil_stats_get(&s);
    return 0;
}

static int outside_nop(void *arg) {
    (void)arg;
    return coil_nop();
}

static const struct {
    const char *name;
    coil_fn *fn;
} outside[] = {
    {"coil_spawn", outside_spawn},
    {"coil_join", outside_join},
    {"coil_detach", outside_detach},
    {"coil_cancelled", outside_cancelled},
    {"coil_self", outside_self},
    {"coil_yield", outside_yield},
    {"coil_sleep", outside_sleep},
    {"coil_sleep_until", outside_sleep_until},
    {"coil_name", outside_name},
    {"coil_within", outside_within},
    {"coil_until", outside_until},
    {"coil_shield", outside_shield},
    {"coil_leave", outside_leave},
    {"coil_group_spawn", outside_group_spawn},
    {"coil_group_wait", outside_group_wait},
    {"coil_group_cancel", outside_group_cancel},
    {"coil_group_keep_going", outside_keep_going},
    {"coil_signal_wait", outside_signal_wait},
    {"coil_stats_get", outside_stats},
    {"coil_nop", outside_nop},
};

Test(task, a_call_outside_a_task_stops_with_its_name) {
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        char line[128];
        snprintf(line, sizeof line, "coil: %s: called outside a task of coil_run\n", outside[i].name);
        cr_assert(check_aborts(outside[i].fn, NULL, line), "%s", outside[i].name);
    }
}

static void *yields_in_a_thread(void *arg) {
    (void)arg;
    return (void *)(intptr_t)coil_yield();
}

static int starts_a_thread(void *arg) {
    pthread_t thread;
    (void)arg;
    if (pthread_create(&thread, NULL, yields_in_a_thread, NULL)) return 1;
    return pthread_join(thread, NULL);
}

static int runs_a_thread(void *arg) {
    return coil_run(starts_a_thread, arg);
}

Test(task, a_call_from_another_thread_stops_with_its_name) {
    cr_assert(check_aborts(runs_a_thread, NULL, "coil: coil_yield: called outside a task of coil_run"));
}

/* ---- fork ---- */

static int outside_run(void *arg) {
    return coil_run(returns_arg, arg);
}

static int outside_cancel(void *arg) {
    (void)arg;
    return coil_cancel((coil_task){.worker = 1});
}

static int forks(void *arg) {
    (void)arg;
    static const char *const text =
        ": called in a child forked inside coil_run; only exec and _exit may follow there";
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        char line[160];
        snprintf(line, sizeof line, "coil: %s%s", outside[i].name, text);
        cr_expect(check_aborts(outside[i].fn, NULL, line), "%s", outside[i].name);
    }
    cr_expect(check_aborts(outside_run, NULL, "coil: coil_run: called in a child forked inside coil_run"));
    cr_expect(
        check_aborts(outside_cancel, NULL, "coil: coil_cancel: called in a child forked inside coil_run"));
    cr_expect_eq(coil_sleep(coil_ms(1)), 0, "the parent goes on");
    return 0;
}

Test(task, in_a_child_forked_inside_a_task_a_coil_call_stops_with_its_name) {
    cr_assert_eq(coil_run(forks, NULL), 0);
    cr_assert_eq(coil_run(returns_arg, (void *)5), 5, "and the next run too");
}

static int runs_in_child(void *arg) {
    return coil_run(returns_arg, arg);
}

Test(task, a_child_forked_between_two_runs_may_run_tasks) {
    int status;
    char err[256];
    cr_assert_eq(coil_run(returns_arg, (void *)5), 5);
    cr_assert(check_in_child(runs_in_child, (void *)6, &status, err, sizeof err));
    cr_assert_eq(status, 6 << 8, "%s", err);
}

/* ---- names, overflow ---- */

static int deadlocks_by_name(void *arg) {
    (void)arg;
    coil_name("%s-%d", "a-name-that-is-much-longer-than-what-a-record-holds", 7);
    return coil_sleep(COIL_FOREVER);
}

static int in_run(void *fn) {
    coil_fn *const *f = fn;
    return coil_run(*f, NULL) == -EDEADLK ? 3 : 4;
}

Test(task, a_long_name_is_cut) {
    coil_fn *fn = deadlocks_by_name;
    int status;
    char err[1024];
    cr_assert(check_in_child(in_run, &fn, &status, err, sizeof err));
    cr_assert_eq(status, 3 << 8, "%s", err);
    cr_assert_not_null(strstr(err, "coil:   a-name-that-is-much-longer-than: waits for sleep"), "%s", err);
}

static __attribute__((noinline)) int recurses(int depth) {
    volatile char frame[1000];
    frame[0] = (char)depth;
    return depth == 0 ? 0 : recurses(depth - 1) + frame[0];
}

static int overflows(void *arg) {
    (void)arg;
    coil_name("deep one");
    return recurses(1000000);
}

static int spawns_overflow(void *arg) {
    coil_task t;
    (void)arg;
    int err = coil_spawn(&t, overflows, NULL);
    return err ? err : coil_join(t, NULL);
}

static int overflow_in_run(void *arg) {
    return coil_run(spawns_overflow, arg);
}

Test(task, a_stack_overflow_is_reported_with_the_tasks_name) {
    int status;
    char err[4096];
    if (CHECK_SANITIZED) cr_skip("the sanitizer reports the overflow itself");
    cr_assert(check_in_child(overflow_in_run, NULL, &status, err, sizeof err));
    cr_assert_neq(status, 0);
    cr_assert_not_null(strstr(err, "coil: stack overflow in task 'deep one'"), "%s", err);
}
