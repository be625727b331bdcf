/* Groups: children that never outlive the block that started them. */
#include "check.h"

#include "coil/coil.h"

#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

static int returns_arg(void *arg) {
    return (int)(intptr_t)arg;
}

static int yields_then_returns_arg(void *arg) {
    for (int i = 0; i < 5; i++)
        coil_yield();
    return (int)(intptr_t)arg;
}

/* Ends only when it is cancelled, and counts that. */
static int waits(void *arg) {
    int err = coil_sleep(COIL_FOREVER);
    if (arg && err == -ECANCELED) ++*(int *)arg;
    return err;
}

/* ---- results ---- */

static int all_succeed(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    for (intptr_t i = 0; i < 100; i++)
        cr_expect_eq(coil_group_spawn(&g, yields_then_returns_arg, (void *)i), 0);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(coil_group_wait(&g), 0, "a group without children");
    coil_stats s;
    coil_stats_get(&s);
    cr_expect_eq(s.tasks_now, 1, "all have ended");
    return 0;
}

Test(group, a_wait_returns_when_all_children_have_ended) {
    cr_assert_eq(coil_run(all_succeed, NULL), 0);
}

static int first_failure_is_the_result(void *arg) {
    int cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    for (int i = 0; i < 10; i++)
        cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)(intptr_t)-EPROTO), 0);
    cr_expect_eq(coil_group_spawn(&g, yields_then_returns_arg, (void *)(intptr_t)-EIO), 0);
    cr_expect_eq(coil_group_wait(&g), -EPROTO);
    cr_expect_eq(cancelled, 10);
    return 0;
}

Test(group, the_first_child_that_fails_cancels_the_others_and_is_the_result) {
    cr_assert_eq(coil_run(first_failure_is_the_result, NULL), 0);
}

static int returns_ecanceled_by_itself(void *arg) {
    int cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)(intptr_t)-ECANCELED), 0);
    cr_expect_eq(coil_group_wait(&g), -ECANCELED, "nobody had cancelled it: it failed by itself");
    cr_expect_eq(cancelled, 1);
    return 0;
}

Test(group, a_child_that_returns_ecanceled_uncancelled_has_failed) {
    cr_assert_eq(coil_run(returns_ecanceled_by_itself, NULL), 0);
}

static int fails_when_cancelled(void *arg) {
    coil_sleep(COIL_FOREVER);
    return (int)(intptr_t)arg;
}

static int failure_after_cancel(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, waits, NULL), 0);
    cr_expect_eq(coil_group_spawn(&g, fails_when_cancelled, (void *)(intptr_t)-EIO), 0);
    coil_group_cancel(&g);
    cr_expect_eq(coil_group_wait(&g), -EIO, "another error is a failure of its own");
    return 0;
}

Test(group, a_cancelled_child_that_returns_another_error_has_failed) {
    cr_assert_eq(coil_run(failure_after_cancel, NULL), 0);
}

static int keeps_going(void *arg) {
    int cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    coil_group_keep_going(&g);
    cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)(intptr_t)-EPROTO), 0);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)(intptr_t)-EIO), 0);
    for (int i = 0; i < 20; i++)
        coil_yield();
    cr_expect_eq(cancelled, 0);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, NULL), 0, "it is not cancelled");
    coil_group_cancel(&g);
    cr_expect_eq(coil_group_wait(&g), -EPROTO, "the first failure");
    cr_expect_eq(cancelled, 1);
    return 0;
}

Test(group, told_to_keep_going_a_failure_cancels_nobody_and_is_still_the_result) {
    cr_assert_eq(coil_run(keeps_going, NULL), 0);
}

/* ---- cancel ---- */

static int cancels(void *arg) {
    int cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    for (int i = 0; i < 5; i++)
        cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    coil_yield();
    coil_group_cancel(&g);
    coil_group_cancel(&g);
    cr_expect_eq(cancelled, 0, "it doesn't wait");
    coil_task t = coil_self();
    cr_expect_eq(coil_group_spawn(&g, returns_arg, NULL), -ESHUTDOWN);
    cr_expect_eq(coil_group_spawn_with(&g, &t, NULL, returns_arg, NULL), -ESHUTDOWN);
    cr_expect(coil_task_same(t, (coil_task){0}));
    cr_expect_eq(coil_group_wait(&g), 0, "a cancelled child has not failed");
    cr_expect_eq(cancelled, 5);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)(intptr_t)-EIO), 0,
                 "after a wait it can be used again");
    cr_expect_eq(coil_group_wait(&g), -EIO);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, NULL), 0);
    cr_expect_eq(coil_group_wait(&g), 0, "its old result is gone");
    return 0;
}

Test(group, a_cancelled_group_takes_no_children_until_it_was_waited_for) {
    cr_assert_eq(coil_run(cancels, NULL), 0);
}

static int cancels_before_children(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_cancel(&g);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, NULL), -ESHUTDOWN);
    return coil_group_wait(&g);
}

Test(group, an_empty_group_can_be_cancelled) {
    cr_assert_eq(coil_run(cancels_before_children, NULL), 0);
}

static int cancels_one_child(void *arg) {
    int first = 0, second = 0;
    coil_task t;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn_with(&g, &t, &(coil_spawn_opts){.name = "one"}, waits, &first), 0);
    cr_expect_eq(coil_group_spawn(&g, waits, &second), 0);
    coil_yield();
    cr_expect_eq(coil_cancel(t), 0);
    for (int i = 0; i < 20; i++)
        coil_yield();
    cr_expect_eq(first, 1);
    cr_expect_eq(second, 0, "it was no failure");
    cr_expect_eq(coil_cancel(t), -ESRCH, "its record goes when it ends");
    coil_group_cancel(&g);
    return coil_group_wait(&g);
}

Test(group, a_child_can_be_cancelled_alone) {
    cr_assert_eq(coil_run(cancels_one_child, NULL), 0);
}

struct waiter {
    int result, children_cancelled;
};

static int waits_for_group(void *arg) {
    struct waiter *w = arg;
    COIL_GROUP(g);
    for (int i = 0; i < 3; i++)
        coil_group_spawn(&g, waits, &w->children_cancelled);
    w->result = coil_group_wait(&g);
    return 0;
}

static int cancels_the_waiter(void *arg) {
    struct waiter *w = arg;
    coil_task t;
    cr_expect_eq(coil_spawn(&t, waits_for_group, w), 0);
    coil_yield();
    coil_cancel(t);
    return coil_join(t, NULL);
}

Test(group, the_waiters_cancel_reaches_its_children_and_is_the_result) {
    struct waiter w = {0};
    cr_assert_eq(coil_run(cancels_the_waiter, &w), 0);
    cr_assert_eq(w.result, -ECANCELED);
    cr_assert_eq(w.children_cancelled, 3);
}

static int limits_the_wait(void *arg) {
    struct waiter *w = arg;
    coil_scope s = coil_within(coil_ms(2));
    waits_for_group(w);
    cr_expect(coil_leave(&s), "the wait ended because of this limit");
    cr_expect_eq(w->result, -ETIME);
    s = coil_within(coil_ns(0));
    waits_for_group(w);
    cr_expect(coil_leave(&s));
    return 0;
}

Test(group, the_waiters_limit_reaches_its_children_and_is_the_result) {
    struct waiter w = {0};
    cr_assert_eq(coil_run(limits_the_wait, &w), 0);
    cr_assert_eq(w.result, -ETIME);
    cr_assert_eq(w.children_cancelled, 6);
}

static int limit_and_failure(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_ms(2));
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, fails_when_cancelled, (void *)(intptr_t)-EIO), 0);
    cr_expect_eq(coil_group_wait(&g), -EIO);
    coil_leave(&s);
    return 0;
}

Test(group, a_childs_own_failure_comes_before_the_waiters_limit) {
    cr_assert_eq(coil_run(limit_and_failure, NULL), 0);
}

struct level {
    int depth;
    int *cancelled;
};

static int nested(void *arg) {
    struct level *l = arg, below = {.depth = l->depth - 1, .cancelled = l->cancelled};
    if (l->depth == 0) return waits(l->cancelled);
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, nested, &below);
    if (!err) err = coil_group_spawn(&g, waits, l->cancelled);
    return err ? err : coil_group_wait(&g);
}

static int limits_nested(void *arg) {
    int cancelled = 0, depth = (int)(intptr_t)arg;
    struct level top = {.depth = depth, .cancelled = &cancelled};
    coil_scope s = coil_within(coil_ms(20));
    cr_expect_eq(nested(&top), -ETIME);
    cr_expect(coil_leave(&s));
    cr_expect_eq(cancelled, depth + 1);
    return 0;
}

Test(group, a_limit_reaches_descendants_five_groups_deep) {
    cr_assert_eq(coil_run(limits_nested, (void *)5), 0);
}

enum { DEEP = CHECK_TSAN ? 2000 : 5000 }; /* TSan has room for 8,128 tasks */

static int nested_for_join(void *arg) {
    return nested(arg);
}

static int cancels_nested(void *arg) {
    int cancelled = 0, depth = (int)(intptr_t)arg, got = 0;
    struct level top = {.depth = depth, .cancelled = &cancelled};
    coil_task t;
    cr_expect_eq(coil_spawn(&t, nested_for_join, &top), 0);
    for (int i = 0; i < depth + 2; i++)
        coil_yield();
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, -ECANCELED);
    cr_expect_eq(cancelled, depth + 1);
    return 0;
}

Test(group, a_cancel_goes_down_any_depth_without_using_up_the_callers_stack) {
    cr_assert_eq(coil_run(cancels_nested, (void *)(intptr_t)DEEP), 0);
}

/* ---- leaving the block ---- */

static void leave_by(int how, int *cancelled) {
    for (int i = 0; i < 2; i++) {
        COIL_GROUP(g);
        cr_expect_eq(coil_group_spawn(&g, waits, cancelled), 0);
        coil_yield();
        if (how == 0) break;
        if (how == 1) return;
        if (how == 2) goto out;
    }
out:
    return;
}

static int leaves(void *arg) {
    (void)arg;
    for (int how = 0; how < 4; how++) {
        int cancelled = 0;
        leave_by(how, &cancelled);
        cr_expect_eq(cancelled, how == 3 ? 2 : 1, "left by way %d", how);
    }
    {
        COIL_GROUP(empty);
        (void)empty;
    }
    return 0;
}

Test(group, leaving_the_block_cancels_the_children_and_waits_for_them) {
    cr_assert_eq(coil_run(leaves, NULL), 0);
}

static int slow_to_end(void *arg) {
    coil_sleep(COIL_FOREVER);
    coil_scope s = coil_shield(coil_sec(10));
    coil_sleep(coil_ms(3));
    coil_leave(&s);
    *(int *)arg = 1;
    return -EIO;
}

static int leaves_cancelled(void *arg) {
    int *done = arg;
    coil_cancel(coil_self());
    {
        COIL_GROUP(g);
        coil_group_spawn(&g, slow_to_end, &done[0]);
    }
    done[1] = done[0];
    coil_scope s = coil_until((coil_time){0});
    {
        COIL_GROUP(g);
        coil_group_spawn(&g, slow_to_end, &done[2]);
        done[4] = coil_group_wait(&g);
    }
    done[3] = done[2];
    coil_leave(&s);
    return 0;
}

Test(group, leaving_and_waiting_are_not_refused_in_a_cancelled_or_expired_task) {
    int done[5] = {0};
    cr_assert_eq(coil_run(leaves_cancelled, done), 0);
    cr_assert(done[0] && done[1] && done[2] && done[3]);
    cr_assert_eq(done[4], -EIO);
}

/* ---- children that use the group ---- */

struct spawner {
    coil_group *g;
    int count;
};

static int spawns_more(void *arg) {
    struct spawner *s = arg;
    if (s->count++ < 50) cr_expect_eq(coil_group_spawn(s->g, spawns_more, s), 0);
    return 0;
}

static int child_spawns(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    struct spawner s = {.g = &g};
    cr_expect_eq(coil_group_spawn(&g, spawns_more, &s), 0);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(s.count, 51);
    return 0;
}

Test(group, a_child_can_spawn_into_its_group) {
    cr_assert_eq(coil_run(child_spawns, NULL), 0);
}

static int cancels_its_group(void *arg) {
    coil_group_cancel(arg);
    return coil_yield();
}

static int child_cancels(void *arg) {
    int cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, cancels_its_group, &g), 0);
    cr_expect_eq(coil_group_wait(&g), 0, "nobody failed by itself");
    cr_expect_eq(cancelled, 1);
    return 0;
}

Test(group, a_child_can_cancel_its_group) {
    cr_assert_eq(coil_run(child_cancels, NULL), 0);
}

static int spawns_badly(void *arg) {
    coil_task t = coil_self();
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn_with(&g, &t, &(coil_spawn_opts){.stack_size = 3}, waits, NULL), -EINVAL);
    cr_expect(coil_task_same(t, (coil_task){0}));
    cr_expect_eq(coil_group_spawn_with(&g, NULL, &(coil_spawn_opts){.reserved = {1}}, waits, NULL), -EINVAL);
    cr_expect_eq(coil_group_wait(&g), 0);
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_group_spawn(&g, waits, NULL), 0);
    cr_expect_eq(coil_group_spawn(&g, waits, NULL), -EAGAIN);
    coil_group_cancel(&g);
    return coil_group_wait(&g);
}

Test(group, bad_options_and_too_many_tasks_are_told_by_the_spawn) {
    coil_run_opts o = {.tasks_max = 3};
    cr_assert_eq(coil_run_with(&o, spawns_badly, NULL), 0);
}

/* ---- misuse ---- */

static int waits_for_anothers(void *arg) {
    return coil_group_wait(arg);
}

static int child_waits(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_spawn(&g, waits_for_anothers, &g);
    return coil_group_wait(&g);
}

static int spawns_into_anothers(void *arg) {
    return coil_group_spawn(arg, waits, NULL);
}

static int stranger_spawns(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_spawn(&g, waits, NULL);
    coil_spawn(NULL, spawns_into_anothers, &g);
    return coil_group_wait(&g);
}

static int waits_for_a_copy(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_spawn(&g, waits, NULL);
    coil_group copy = g;
    return coil_group_wait(&copy);
}

static int overwrites(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_spawn(&g, returns_arg, NULL);
    memset(&g, 0x5a, sizeof g);
    return coil_group_wait(&g);
}

static int overwrites_before_a_child_ends(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_spawn(&g, returns_arg, NULL);
    memset(&g, 0x5a, sizeof g);
    return coil_yield();
}

static jmp_buf place;

static __attribute__((noinline)) void jump_out(void) {
    COIL_GROUP(g);
    coil_group_spawn(&g, waits, NULL);
    longjmp(place, 1);
}

static int jumps_past(void *arg) {
    (void)arg;
    coil_name("jumper");
    if (setjmp(place) == 0) jump_out();
    return 0;
}

static int jumps_past_again(void *arg) {
    volatile int jumps = 0;
    (void)arg;
    if (setjmp(place) < 1 || jumps++ < 3) jump_out();
    return 0;
}

static __attribute__((noinline)) void use_stack(void) {
    volatile char buf[4096];
    for (size_t i = 0; i < sizeof buf; i++)
        buf[i] = 0;
}

static int jumps_out_of_an_outer_block(void *arg) {
    (void)arg;
    COIL_GROUP(outer);
    coil_group_spawn(&outer, waits, NULL);
    if (setjmp(place) == 0) jump_out();
    use_stack();
    coil_group_cancel(&outer);
    return coil_group_wait(&outer);
}

static int ends_with_group(void *arg) {
    static coil_group g;
    (void)arg;
    coil_name("forgetful");
    return coil_group_spawn(&g, waits, NULL);
}

static int in_run(void *fn) {
    coil_fn *const *f = fn;
    return coil_run(*f, NULL);
}

static bool stops(coil_fn *fn, const char *message) {
    return check_aborts(in_run, &fn, message);
}

Test(group, calls_by_a_task_that_may_not_make_them_stop_with_the_name) {
    cr_assert(stops(child_waits, "coil: coil_group_wait: called by a task that is not the group's owner"));
    cr_assert(stops(stranger_spawns, "coil: coil_group_spawn: called by a task that is neither"));
}

Test(group, a_group_that_was_copied_or_overwritten_stops_with_the_name) {
    cr_assert(stops(waits_for_a_copy, "coil: coil_group_wait: this is no group"));
    cr_assert(stops(overwrites, "coil: coil_group_wait: this is no group"));
    cr_assert(stops(overwrites_before_a_child_ends, "coil: coil_group_spawn: this is no group"));
}

Test(group, a_jump_past_a_group_stops_with_the_tasks_name) {
    cr_assert(stops(jumps_past, "coil: coil_group_close: jumper has ended with a group open"));
    cr_assert(stops(ends_with_group, "coil: coil_group_close: forgetful has ended with a group open"));
    cr_assert(stops(jumps_past_again, "a group was jumped past, not left"));
    /* To find it, what the jump has left on the stack must be looked at, which ASan reports on its own
     * account. */
    if (!CHECK_ASAN) cr_assert(stops(jumps_out_of_an_outer_block, "a group was jumped past, not left"));
}
