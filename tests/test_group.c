/* Groups: children that never outlive the block that started them. */
#include "check.h"

#include "task.h"

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

/* ---- ends, one by one ---- */

static int yields_arg_times(void *arg) {
    for (intptr_t i = 0; i < (intptr_t)arg; i++)
        coil_yield();
    return (int)(intptr_t)arg;
}

static int tells_ends(void *arg) {
    void *which;
    int got;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_next(&g, NULL, NULL), 0, "a group without children");
    for (intptr_t i = 20; i > 0; i--)
        cr_expect_eq(coil_group_spawn(&g, yields_arg_times, (void *)i), 0);
    for (intptr_t i = 1; i <= 20; i++) {
        cr_expect_eq(coil_group_next(&g, &which, &got), 1);
        cr_expect_eq((intptr_t)which, i, "the quickest first");
        cr_expect_eq(got, i);
    }
    cr_expect_eq(coil_group_next(&g, &which, &got), 0);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)7), 0, "it goes on");
    cr_expect_eq(coil_group_next(&g, NULL, &got), 1);
    cr_expect_eq(got, 7);
    cr_expect_eq(coil_group_next(&g, NULL, NULL), 0);
    return coil_group_wait(&g);
}

Test(group, next_tells_ends_in_the_order_in_which_they_come) {
    cr_assert_eq(coil_run(tells_ends, NULL), 0);
}

enum { KEPT = 1024 };

static void let_all_end(void) {
    coil_stats s;
    do {
        coil_yield();
        coil_stats_get(&s);
    } while (s.tasks_now > 1);
}

static void spawn_and_let_end(coil_group *g, intptr_t from, intptr_t to) {
    for (intptr_t i = from; i < to; i++)
        cr_expect_eq(coil_group_spawn(g, returns_arg, (void *)i), 0);
    let_all_end();
}

static void expect_ends(coil_group *g, intptr_t from, intptr_t to) {
    void *which;
    int got;
    for (intptr_t i = from; i < to; i++) {
        cr_expect_eq(coil_group_next(g, &which, &got), 1);
        cr_expect(which == (void *)i && got == i, "%d: got %d", (int)i, got);
    }
    cr_expect_eq(coil_group_next(g, &which, &got), 0);
}

static int asks_late(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    spawn_and_let_end(&g, 0, KEPT);
    expect_ends(&g, 0, KEPT);
    spawn_and_let_end(&g, 0, 2 * KEPT);
    expect_ends(&g, 0, 2 * KEPT);
    return coil_group_wait(&g);
}

Test(group, ends_before_the_first_next_are_told_too) {
    cr_assert_eq(coil_run(asks_late, NULL), 0);
}

static int says_that_it_will_ask(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_keep_results(&g);
    for (int i = 0; i < 2; i++) {
        spawn_and_let_end(&g, 0, 2 * KEPT);
        expect_ends(&g, 0, 2 * KEPT);
        cr_expect_eq(coil_group_wait(&g), 0);
    }
    return 0;
}

Test(group, a_group_told_to_keep_results_keeps_them_all) {
    cr_assert_eq(coil_run(says_that_it_will_ask, NULL), 0);
}

static int asks_too_late(void *arg) {
    int got = 5;
    (void)arg;
    COIL_GROUP(g);
    spawn_and_let_end(&g, 0, KEPT + 1);
    cr_expect_eq(coil_group_next(&g, NULL, &got), -EOVERFLOW);
    cr_expect_eq(got, 5);
    spawn_and_let_end(&g, 0, 2 * KEPT);
    expect_ends(&g, 0, 2 * KEPT);
    cr_expect_eq(coil_group_wait(&g), 0);

    COIL_GROUP(h);
    spawn_and_let_end(&h, 0, KEPT + 1);
    coil_group_keep_results(&h);
    spawn_and_let_end(&h, 0, 2 * KEPT);
    cr_expect_eq(coil_group_next(&h, NULL, &got), -EOVERFLOW);
    expect_ends(&h, 0, 2 * KEPT);
    return coil_group_wait(&h);
}

Test(group, results_that_nobody_asked_for_in_time_are_told_to_be_lost) {
    cr_assert_eq(coil_run(asks_too_late, NULL), 0);
}

static int never_asks(void *arg) {
    int *slots = arg;
    COIL_GROUP(g);
    for (int round = 0; round < 8; round++)
        spawn_and_let_end(&g, 0, 500);
    coil_task t;
    cr_expect_eq(coil_spawn(&t, returns_arg, NULL), 0);
    cr_expect_eq(coil_join(t, NULL), 0);
    *slots = (int)t.slot;
    return coil_group_wait(&g);
}

Test(group, a_group_that_is_never_asked_does_not_collect_records) {
    int slot = 0;
    cr_assert_eq(coil_run(never_asks, &slot), 0);
    cr_assert_leq(slot, KEPT + 600, "records are used again");
}

static int drops_ends(void *arg) {
    coil_task first, t;
    (void)arg;
    cr_expect_eq(coil_spawn(&first, returns_arg, NULL), 0);
    cr_expect_eq(coil_join(first, NULL), 0);
    for (int round = 0; round < 300; round++) {
        COIL_GROUP(g);
        spawn_and_let_end(&g, 0, 5);
        if (round % 2) cr_expect_eq(coil_group_wait(&g), 0);
    }
    cr_expect_eq(coil_spawn(&t, returns_arg, NULL), 0);
    cr_expect_eq(coil_join(t, NULL), 0);
    cr_expect_leq(t.slot, 20u);
    return 0;
}

Test(group, ends_that_nobody_fetched_go_with_the_group) {
    cr_assert_eq(coil_run(drops_ends, NULL), 0);
}

static int fails_while_asked(void *arg) {
    void *which;
    int got, cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)(intptr_t)-EPROTO), 0);
    cr_expect_eq(coil_group_next(&g, &which, &got), 1);
    cr_expect_eq(got, -EPROTO);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, NULL), -ESHUTDOWN);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(coil_group_next(&g, &which, &got), 1);
        cr_expect_eq(got, -ECANCELED);
        cr_expect_eq(which, &cancelled);
    }
    cr_expect_eq(coil_group_next(&g, &which, &got), 0);
    cr_expect_eq(cancelled, 3);
    cr_expect_eq(coil_group_wait(&g), -EPROTO, "fetched or not");
    return 0;
}

Test(group, a_failing_child_cancels_the_others_in_next_too_and_stays_the_groups_result) {
    cr_assert_eq(coil_run(fails_while_asked, NULL), 0);
}

static int goes_on_while_asked(void *arg) {
    int got, sum = 0, cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    coil_group_keep_going(&g);
    cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    for (intptr_t i = 1; i <= 10; i++)
        cr_expect_eq(coil_group_spawn(&g, returns_arg, (void *)-i), 0);
    for (int i = 0; i < 10; i++) {
        cr_expect_eq(coil_group_next(&g, NULL, &got), 1);
        sum += got;
    }
    cr_expect_eq(sum, -55);
    cr_expect_eq(cancelled, 0);
    coil_group_cancel(&g);
    cr_expect_eq(coil_group_next(&g, NULL, &got), 1);
    cr_expect_eq(got, -ECANCELED);
    cr_expect_eq(coil_group_wait(&g), -1, "the first failure");
    return 0;
}

Test(group, told_to_keep_going_next_tells_failures_one_by_one) {
    cr_assert_eq(coil_run(goes_on_while_asked, NULL), 0);
}

struct asker {
    int next, next_again, wait, cancelled;
};

static int asks(void *arg) {
    struct asker *a = arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, waits, &a->cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, waits, &a->cancelled), 0);
    a->next = coil_group_next(&g, NULL, NULL);
    a->next_again = coil_group_next(&g, NULL, NULL);
    cr_expect_eq(a->cancelled, 0, "next leaves them alone");
    a->wait = coil_group_wait(&g);
    return 0;
}

static int cancels_an_asker(void *arg) {
    struct asker *a = arg;
    coil_task t;
    cr_expect_eq(coil_spawn(&t, asks, a), 0);
    coil_yield();
    coil_yield();
    cr_expect_eq(coil_cancel(t), 0);
    return coil_join(t, NULL);
}

static int limits_an_asker(void *arg) {
    coil_scope s = coil_within(coil_ms(2));
    asks(arg);
    cr_expect(coil_leave(&s));
    return 0;
}

Test(group, next_is_refused_and_woken_by_cancel_and_limit_and_cancels_nobody) {
    struct asker a = {0};
    cr_assert_eq(coil_run(cancels_an_asker, &a), 0);
    cr_assert(a.next == -ECANCELED && a.next_again == -ECANCELED && a.wait == -ECANCELED);
    cr_assert_eq(a.cancelled, 2);
    a = (struct asker){0};
    cr_assert_eq(coil_run(limits_an_asker, &a), 0);
    cr_assert(a.next == -ETIME && a.next_again == -ETIME && a.wait == -ETIME);
    cr_assert_eq(a.cancelled, 2);
}

static int polls(void *arg) {
    int got = 0, rounds = 0, err;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, yields_arg_times, (void *)50), 0);
    do {
        coil_scope s = coil_until((coil_time){0});
        err = coil_group_next(&g, NULL, &got);
        coil_leave(&s);
        if (err < 0) err = coil_yield() == 0 && ++rounds < 60 ? 0 : err;
    } while (err == 0 && rounds < 60);
    cr_expect_eq(coil_group_next(&g, NULL, &got), 1, "what ended meanwhile is still to be told");
    cr_expect_eq(got, 50);
    return coil_group_wait(&g);
}

Test(group, a_refused_next_loses_nothing) {
    cr_assert_eq(coil_run(polls, NULL), 0);
}

static int stale_once_ended(void *arg) {
    coil_task t;
    int got;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn_with(&g, &t, NULL, returns_arg, (void *)3), 0);
    cr_expect_eq(coil_join(t, NULL), -EINVAL);
    cr_expect_eq(coil_detach(t), -EINVAL);
    let_all_end();
    cr_expect_eq(coil_join(t, NULL), -ESRCH);
    cr_expect_eq(coil_detach(t), -ESRCH);
    cr_expect_eq(coil_cancel(t), -ESRCH);
    cr_expect_eq(coil_group_next(&g, NULL, &got), 1);
    cr_expect_eq(got, 3);
    cr_expect_eq(coil_cancel(t), -ESRCH);
    return coil_group_wait(&g);
}

Test(group, a_childs_handle_is_stale_once_it_has_ended_fetched_or_not) {
    cr_assert_eq(coil_run(stale_once_ended, NULL), 0);
}

/* ---- races ---- */

/* Yields as often as it is told, then ends in the way it is told, cancelled or not. */
struct racer {
    int yields, result;
};

static int races(void *arg) {
    const struct racer *r = arg;
    for (int i = 0; i < r->yields; i++) {
        int err = coil_yield();
        if (err) return err;
    }
    return r->result;
}

struct asking {
    const struct racer *child;
    int told, got, left;
};

static int asks_once(void *arg) {
    struct asking *a = arg;
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, races, (void *)(uintptr_t)a->child);
    if (err) return err;
    a->told = coil_group_next(&g, NULL, &a->got);
    a->left = coil_group_wait(&g);
    return 0;
}

/* The cancel meets the child's end, the owner's waking or its sleep, by how many turns both take. */
static int races_next(void *arg) {
    int told = 0, refused = 0, rounds = check_rounds(10000);
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        struct racer r = {.yields = i % 5, .result = 9};
        struct asking a = {.child = &r, .got = -1};
        coil_task t;
        cr_expect_eq(coil_spawn(&t, asks_once, &a), 0);
        for (int k = i / 5 % 6; k > 0; k--)
            coil_yield();
        coil_cancel(t);
        cr_expect_eq(coil_join(t, NULL), 0);
        if (a.told == 1) {
            cr_expect_eq(a.got, 9);
            cr_expect_eq(a.left, 0, "no child was left");
            told++;
        } else {
            cr_expect_eq(a.told, -ECANCELED);
            cr_expect_eq(a.got, -1);
            refused++;
        }
    }
    cr_expect_eq(told + refused, rounds);
    if (rounds >= 100) cr_expect(told && refused, "%d told, %d refused", told, refused);
    return 0;
}

Test(group, a_cancel_meets_an_end_and_next_tells_one_of_both) {
    cr_assert_eq(coil_run(races_next, NULL), 0);
}

struct waiting {
    const struct racer *child;
    int result;
};

static int waits_once(void *arg) {
    struct waiting *w = arg;
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, races, (void *)(uintptr_t)w->child);
    if (!err) err = coil_group_spawn(&g, waits, NULL);
    w->result = coil_group_wait(&g);
    return err;
}

static int races_wait(void *arg) {
    int failed = 0, cancelled = 0, rounds = check_rounds(10000);
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        struct racer r = {.yields = i % 5, .result = -EIO};
        struct waiting w = {.child = &r};
        coil_task t;
        cr_expect_eq(coil_spawn(&t, waits_once, &w), 0);
        for (int k = i / 5 % 6; k > 0; k--)
            coil_yield();
        coil_cancel(t);
        cr_expect_eq(coil_join(t, NULL), 0);
        failed += w.result == -EIO;
        cancelled += w.result == -ECANCELED;
    }
    cr_expect_eq(failed + cancelled, rounds);
    if (rounds >= 100) cr_expect(failed && cancelled, "%d failed, %d cancelled", failed, cancelled);
    return 0;
}

Test(group, a_childs_failure_meets_the_owners_cancel_and_one_of_both_is_the_result) {
    cr_assert_eq(coil_run(races_wait, NULL), 0);
}

/* ---- the rules about errors, one by one ---- */

static int child_with_a_limit_of_its_own(void *arg) {
    (void)arg;
    COIL_WITHIN(coil_ms(1));
    return coil_sleep(COIL_FOREVER);
}

static int childs_own_limit(void *arg) {
    int cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, child_with_a_limit_of_its_own, NULL), 0);
    cr_expect_eq(coil_group_wait(&g), -ETIME);
    cr_expect_eq(cancelled, 1);
    return 0;
}

Test(group, a_child_whose_own_limit_has_passed_has_failed) {
    cr_assert_eq(coil_run(childs_own_limit, NULL), 0);
}

static int no_limit_inside(void *arg) {
    (void)arg;
    return coil_yield();
}

static int limit_is_the_owners(void *arg) {
    (void)arg;
    coil_scope s = coil_until((coil_time){0});
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, returns_arg, NULL), 0, "[now], never refused");
    coil_scope inner = coil_shield(coil_sec(100));
    cr_expect_eq(coil_group_spawn(&g, no_limit_inside, NULL), 0);
    cr_expect_eq(coil_group_wait(&g), 0, "in a shield the outer limit waits, and children have none");
    coil_leave(&inner);
    coil_leave(&s);
    return 0;
}

Test(group, a_child_begins_without_its_owners_limit) {
    cr_assert_eq(coil_run(limit_is_the_owners, NULL), 0);
}

static int nested_failure(void *arg) {
    int *cancelled = arg;
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, waits, cancelled);
    if (!err) err = coil_group_spawn(&g, returns_arg, (void *)(intptr_t)-EDOM);
    return err ? err : coil_group_wait(&g);
}

static int failure_goes_up(void *arg) {
    int cancelled = 0;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, nested_failure, &cancelled), 0);
    cr_expect_eq(coil_group_spawn(&g, waits, &cancelled), 0);
    cr_expect_eq(coil_group_wait(&g), -EDOM);
    cr_expect_eq(cancelled, 2);
    return 0;
}

Test(group, a_failure_in_a_nested_group_is_the_result_of_the_outer_one_too) {
    cr_assert_eq(coil_run(failure_goes_up, NULL), 0);
}

enum { WIDE = CHECK_TSAN ? 2000 : 10000 };

static int wide(void *arg) {
    COIL_GROUP(g);
    for (int i = 0; i < WIDE; i++)
        cr_expect_eq(coil_group_spawn(&g, waits, arg), 0);
    return coil_group_wait(&g);
}

static int cancels_wide(void *arg) {
    int cancelled = 0, got = 0;
    coil_task t;
    (void)arg;
    cr_expect_eq(coil_spawn(&t, wide, &cancelled), 0);
    coil_yield();
    coil_yield();
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, -ECANCELED);
    cr_expect_eq(cancelled, WIDE);
    return 0;
}

Test(group, a_cancel_reaches_ten_thousand_children) {
    cr_assert_eq(coil_run(cancels_wide, NULL), 0);
}

/* ---- for reports ---- */

static int looks_at_its_owner(void *arg) {
    const struct coil__task *const *owner = arg;
    const struct coil__wait *w = (*owner)->wait;
    const struct coil__task *first = w->blocker(w, NULL), *second = w->blocker(w, first);
    cr_expect_str_eq(w->what, "group");
    cr_expect_not_null(w->on);
    cr_expect(first == coil__here->current && second && second != first);
    cr_expect_null(w->blocker(w, second));
    return 0;
}

static int is_looked_at(void *arg) {
    const struct coil__task *self = coil__here->current;
    (void)arg;
    COIL_GROUP(g);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(coil_group_spawn(&g, looks_at_its_owner, &self), 0);
        cr_expect_eq(coil_group_spawn(&g, yields_then_returns_arg, NULL), 0);
        if (i == 0) cr_expect_eq(coil_group_next(&g, NULL, NULL), 1);
        if (i == 1) cr_expect_eq(coil_group_wait(&g), 0);
        if (i == 0) cr_expect_eq(coil_group_next(&g, NULL, NULL), 1);
    }
    return 0;
}

Test(group, a_waiting_owner_says_which_children_it_waits_for) {
    cr_assert_eq(coil_run(is_looked_at, NULL), 0);
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

static int asks_for_anothers(void *arg) {
    return coil_group_next(arg, NULL, NULL);
}

static int child_asks(void *arg) {
    (void)arg;
    COIL_GROUP(g);
    coil_group_spawn(&g, asks_for_anothers, &g);
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
    cr_assert(stops(child_asks, "coil: coil_group_next: called by a task that is not the group's owner"));
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
