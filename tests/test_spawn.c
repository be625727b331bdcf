/* Starting, joining and letting go of tasks. */
#include "check.h"

#include "coil/coil.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int returns_arg(void *arg) {
    return (int)(intptr_t)arg;
}

static int yields_then_returns_arg(void *arg) {
    for (int i = 0; i < 3; i++)
        coil_yield();
    return (int)(intptr_t)arg;
}

static int sleeps_for_ever(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

static coil_task spawn(coil_fn *fn, intptr_t arg) {
    coil_task t;
    cr_expect_eq(coil_spawn(&t, fn, (void *)arg), 0);
    return t;
}

static bool is_no_task(coil_task t) {
    return coil_task_same(t, (coil_task){0});
}

/* ---- join ---- */

static int join_gives_results(void *arg) {
    static const int results[] = {0, 1, -1, INT32_MAX, INT32_MIN, -EDEADLK};
    (void)arg;
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        int got = 12345;
        cr_expect_eq(coil_join(spawn(yields_then_returns_arg, results[i]), &got), 0);
        cr_expect_eq(got, results[i]);
    }
    cr_expect_eq(coil_join(spawn(returns_arg, 5), NULL), 0, "nobody needs to want the result");
    return 17;
}

Test(spawn, join_gives_what_the_task_returned) {
    cr_assert_eq(coil_run(join_gives_results, NULL), 17);
}

static int joins_the_ended(void *arg) {
    int got = 0;
    (void)arg;
    coil_task t = spawn(returns_arg, 9);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(coil_yield(), 0);
    cr_expect_eq(coil_join(t, &got), 0, "its result was kept");
    cr_expect_eq(got, 9);
    got = 3;
    cr_expect_eq(coil_join(t, &got), -ESRCH, "until it was joined");
    cr_expect_eq(got, 3);
    cr_expect_eq(coil_detach(t), -ESRCH);
    cr_expect_eq(coil_cancel(t), -ESRCH);
    return 0;
}

Test(spawn, the_result_of_an_ended_task_is_kept_until_it_was_joined_once) {
    cr_assert_eq(coil_run(joins_the_ended, NULL), 0);
}

struct joined {
    coil_task target;
    int got[8], err[8], next;
};

static int joins_target(void *arg) {
    struct joined *j = arg;
    int i = j->next++;
    j->err[i] = coil_join(j->target, &j->got[i]);
    return 0;
}

static int many_join(void *arg) {
    struct joined j = {.next = 0};
    coil_task joiners[8];
    (void)arg;
    j.target = spawn(yields_then_returns_arg, 77);
    for (int i = 0; i < 8; i++)
        joiners[i] = spawn(joins_target, (intptr_t)&j);
    for (int i = 0; i < 8; i++)
        cr_expect_eq(coil_join(joiners[i], NULL), 0);
    for (int i = 0; i < 8; i++) {
        cr_expect_eq(j.err[i], 0);
        cr_expect_eq(j.got[i], 77);
    }
    cr_expect_eq(coil_join(j.target, NULL), -ESRCH);
    return 0;
}

Test(spawn, all_that_wait_when_a_task_ends_get_its_result_and_later_ones_esrch) {
    cr_assert_eq(coil_run(many_join, NULL), 0);
}

static int joins_wrongly(void *arg) {
    (void)arg;
    cr_expect_eq(coil_join(coil_self(), NULL), -EDEADLK);
    cr_expect_eq(coil_join((coil_task){0}, NULL), -ESRCH);
    coil_task self = coil_self();
    coil_task wrong[] = {self, self, self, self};
    wrong[0].worker++;
    wrong[1].slot = UINT32_MAX;
    wrong[2].gen++;
    wrong[3].gen = 0;
    for (int i = 0; i < 4; i++) {
        cr_expect_eq(coil_join(wrong[i], NULL), -ESRCH, "%d", i);
        cr_expect_eq(coil_detach(wrong[i]), -ESRCH, "%d", i);
        cr_expect_eq(coil_cancel(wrong[i]), -ESRCH, "%d", i);
    }
    cr_expect_eq(coil_cancelled(), false);
    return 0;
}

Test(spawn, a_handle_of_no_task_gives_esrch_and_ones_own_edeadlk) {
    cr_assert_eq(coil_run(joins_wrongly, NULL), 0);
}

struct later {
    coil_task target;
    int result;
};

static int joins_later(void *arg) {
    struct later *l = arg;
    return coil_join(l->target, &l->result);
}

static int join_is_cancelled(void *arg) {
    int got = 0;
    (void)arg;
    struct later l = {.target = spawn(sleeps_for_ever, 0), .result = 1};
    coil_task joiner = spawn(joins_later, (intptr_t)&l);
    coil_yield();
    cr_expect_eq(coil_cancel(joiner), 0);
    cr_expect_eq(coil_join(joiner, &got), 0);
    cr_expect_eq(got, -ECANCELED);
    cr_expect_eq(l.result, 1, "the result is not touched");
    cr_expect_eq(coil_cancel(l.target), 0);
    cr_expect_eq(coil_join(l.target, &got), 0, "the target is not touched, and can be joined again");
    cr_expect_eq(got, -ECANCELED);
    return 0;
}

Test(spawn, a_cancelled_join_leaves_its_target_alone) {
    cr_assert_eq(coil_run(join_is_cancelled, NULL), 0);
}

static int join_is_late(void *arg) {
    (void)arg;
    coil_task t = spawn(sleeps_for_ever, 0);
    coil_scope s = coil_within(coil_ms(2));
    cr_expect_eq(coil_join(t, NULL), -ETIME);
    cr_expect_eq(coil_join(t, NULL), -ETIME, "refused on entry");
    cr_expect(coil_leave(&s));
    cr_expect_eq(coil_detach(t), 0, "nobody joins it any more");
    return coil_cancel(t);
}

Test(spawn, a_join_obeys_the_callers_limit) {
    cr_assert_eq(coil_run(join_is_late, NULL), 0);
}

/* ---- detach ---- */

static int detaches(void *arg) {
    (void)arg;
    coil_task t = spawn(sleeps_for_ever, 0);
    cr_expect_eq(coil_detach(t), 0);
    cr_expect_eq(coil_detach(t), -EINVAL, "twice");
    cr_expect_eq(coil_join(t, NULL), -EINVAL);
    int err = 0, rounds = 0;
    for (; err == 0 && rounds < 100000; rounds++) {
        err = coil_cancel(t);
        coil_yield();
    }
    cr_expect_eq(err, -ESRCH, "it goes when it ends, %d rounds", rounds);
    t = spawn(returns_arg, 0);
    for (int i = 0; i < 3; i++)
        coil_yield();
    cr_expect_eq(coil_detach(t), 0, "ended, not joined");
    cr_expect_eq(coil_detach(t), -ESRCH);
    return 0;
}

Test(spawn, a_detached_task_cannot_be_joined_and_goes_when_it_ends) {
    cr_assert_eq(coil_run(detaches, NULL), 0);
}

static int detach_while_joined(void *arg) {
    int got = 0;
    (void)arg;
    struct later l = {.target = spawn(sleeps_for_ever, 0)};
    coil_task joiner = spawn(joins_later, (intptr_t)&l);
    coil_yield();
    cr_expect_eq(coil_detach(l.target), -EBUSY);
    coil_cancel(l.target);
    cr_expect_eq(coil_join(joiner, &got), 0);
    cr_expect_eq(got, 0);
    cr_expect_eq(l.result, -ECANCELED);
    return 0;
}

Test(spawn, a_task_that_somebody_joins_cannot_be_detached) {
    cr_assert_eq(coil_run(detach_while_joined, NULL), 0);
}

static int counts(void *arg) {
    ++*(int *)arg;
    return -1;
}

static int spawns_detached(void *arg) {
    for (int i = 0; i < 100; i++)
        cr_expect_eq(coil_spawn(NULL, counts, arg), 0);
    return 0;
}

Test(spawn, without_a_place_for_the_handle_a_task_is_detached) {
    int count = 0;
    cr_assert_eq(coil_run(spawns_detached, &count), 0);
    cr_assert_eq(count, 100, "all ran before the run was over, %d", count);
}

static int joins_a_child_of_a_group(void *arg) {
    coil_task t;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn_with(&g, &t, NULL, sleeps_for_ever, NULL), 0);
    cr_expect_eq(coil_join(t, NULL), -EINVAL);
    cr_expect_eq(coil_detach(t), -EINVAL);
    return 0;
}

Test(spawn, a_groups_child_can_be_neither_joined_nor_detached) {
    cr_assert_eq(coil_run(joins_a_child_of_a_group, NULL), 0);
}

/* ---- bad options, limits ---- */

static int spawns_badly(void *arg) {
    static const size_t bad[] = {1, (16 << 10) - 1, (64 << 20) + 1, SIZE_MAX};
    coil_task t;
    (void)arg;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        t = coil_self();
        coil_spawn_opts o = {.stack_size = bad[i]};
        cr_expect_eq(coil_spawn_with(&t, &o, returns_arg, NULL), -EINVAL, "%zu", bad[i]);
        cr_expect(is_no_task(t));
    }
    for (int i = 0; i < 4; i++) {
        coil_spawn_opts o = {.stack_size = 0};
        o.reserved[i] = 1;
        cr_expect_eq(coil_spawn_with(&t, &o, returns_arg, NULL), -EINVAL, "reserved word %d", i);
    }
    t = coil_self();
    cr_expect_eq(coil_spawn(&t, NULL, NULL), -EINVAL);
    cr_expect(is_no_task(t));
    return 0;
}

Test(spawn, bad_options_give_einval_and_no_handle) {
    cr_assert_eq(coil_run(spawns_badly, NULL), 0);
}

static int uses_stack(void *arg) {
    volatile char buf[300000];
    (void)arg;
    memset((void *)(uintptr_t)buf, 7, sizeof buf);
    coil_yield();
    return buf[sizeof buf - 1];
}

static int spawns_with_big_stack(void *arg) {
    coil_task t;
    int got = 0;
    (void)arg;
    coil_spawn_opts o = {.stack_size = 400000};
    cr_expect_eq(coil_spawn_with(&t, &o, uses_stack, NULL), 0);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, 7);
    return 0;
}

Test(spawn, a_task_can_use_the_stack_that_it_was_given) {
    cr_assert_eq(coil_run(spawns_with_big_stack, NULL), 0);
}

static int reaches_tasks_max(void *arg) {
    coil_task t[4];
    (void)arg;
    for (int i = 0; i < 3; i++)
        t[i] = spawn(sleeps_for_ever, 0);
    t[3] = coil_self();
    cr_expect_eq(coil_spawn(&t[3], returns_arg, NULL), -EAGAIN);
    cr_expect(is_no_task(t[3]));
    coil_cancel(t[0]);
    cr_expect_eq(coil_join(t[0], NULL), 0);
    cr_expect_eq(coil_spawn(&t[3], returns_arg, NULL), 0, "one has ended");
    return coil_join(t[3], NULL);
}

Test(spawn, beyond_tasks_max_a_spawn_gives_eagain) {
    coil_run_opts o = {.tasks_max = 4};
    cr_assert_eq(coil_run_with(&o, reaches_tasks_max, NULL), 0);
}

/* ---- order ---- */

static int notes_order(void *arg) {
    char *text = arg;
    text[strlen(text)] = (char)('a' + strlen(text));
    return 0;
}

static int spawns_in_order(void *arg) {
    char *text = arg;
    for (int i = 0; i < 5; i++)
        cr_expect_eq(coil_spawn(NULL, notes_order, text), 0);
    cr_expect_str_eq(text, "", "a spawn gives up nothing");
    cr_expect_eq(coil_yield(), 0);
    cr_expect_str_eq(text, "abcde", "a yield lets all others run once");
    return 0;
}

Test(spawn, tasks_first_run_in_the_order_in_which_they_were_spawned) {
    char text[8] = "";
    cr_assert_eq(coil_run(spawns_in_order, text), 0);
}

static int grows(void *arg) {
    int depth = (int)(intptr_t)arg, a = 0, b = 0;
    if (depth == 0) return 1;
    coil_task left = spawn(grows, depth - 1), right = spawn(grows, depth - 1);
    cr_expect_eq(coil_join(left, &a), 0);
    cr_expect_eq(coil_join(right, &b), 0);
    return a + b;
}

Test(spawn, a_tree_of_tasks_adds_up) {
    cr_assert_eq(coil_run(grows, (void *)(intptr_t)11), 1 << 11);
}
