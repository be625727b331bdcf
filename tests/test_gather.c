/* Functions run side by side, and one within a limit. */
#include "check.h"

#include "coil/coil.h"

#include "task.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

enum { UNSET = 12345 }; /* no function here returns it */

static int returns_arg(void *arg) {
    return (int)(intptr_t)arg;
}

/* Ends only when it is cancelled, and counts that. */
static int waits(void *arg) {
    int err = coil_sleep(COIL_FOREVER);
    if (arg && err == -ECANCELED) ++*(int *)arg;
    return err;
}

static int fails_when_cancelled(void *arg) {
    coil_sleep(COIL_FOREVER);
    return (int)(intptr_t)arg;
}

static void *value(intptr_t v) {
    return (void *)v;
}

/* Runs fn in a task of its own, and cancels it after so many yields. */
static int cancelled_after(int yields, coil_fn *fn, void *arg) {
    coil_task t;
    int result = 0;
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    for (int i = 0; i < yields; i++)
        coil_yield();
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(coil_join(t, &result), 0);
    return result;
}

/* ---- gather ---- */

struct factorial {
    int n;
    long result;
};

static int factorial(void *arg) {
    struct factorial *f = arg;
    f->result = 1;
    for (int i = 2; i <= f->n; i++) {
        int err = coil_yield();
        if (err) return err;
        f->result *= i;
    }
    return f->n;
}

static int gathers_factorials(void *arg) {
    struct factorial f[10];
    coil_job jobs[10];
    (void)arg;
    for (int i = 0; i < 10; i++) {
        f[i] = (struct factorial){.n = 10 - i};
        jobs[i] = (coil_job){.fn = factorial, .arg = &f[i], .result = UNSET};
    }
    cr_expect_eq(coil_gather(jobs, 10), 0);
    cr_expect_eq(f[0].result, 3628800);
    cr_expect_eq(f[7].result, 6);
    for (int i = 0; i < 10; i++)
        cr_expect_eq(jobs[i].result, 10 - i, "in the order of the jobs");
    return 0;
}

Test(gather, results_stand_with_their_jobs_whatever_the_order_of_the_ends) {
    cr_assert_eq(coil_run(gathers_factorials, NULL), 0);
}

static int gathers_nothing(void *arg) {
    (void)arg;
    cr_expect_eq(coil_gather(NULL, 0), 0);
    cr_expect_eq(coil_gather_all(NULL, 0), 0);
    cr_expect_eq(coil_race(NULL, 0), -EINVAL);
    coil_job job = {.fn = returns_arg};
    if (sizeof(size_t) > sizeof(int)) cr_expect_eq(coil_race(&job, (size_t)INT_MAX + 1), -EINVAL);
    return 0;
}

Test(gather, of_nothing_succeeds_at_once_and_a_race_of_nothing_has_no_winner) {
    cr_assert_eq(coil_run(gathers_nothing, NULL), 0);
}

static int gathers_a_failure(void *arg) {
    int cancelled = 0;
    coil_job jobs[] = {{waits, &cancelled, UNSET},
                       {returns_arg, value(3), UNSET},
                       {returns_arg, value(-EPROTO), UNSET},
                       {returns_arg, value(-EIO), UNSET},
                       {fails_when_cancelled, value(-EDOM), UNSET},
                       {fails_when_cancelled, value(4), UNSET}};
    (void)arg;
    cr_expect_eq(coil_gather(jobs, 6), -EPROTO, "the first in time");
    cr_expect_eq(cancelled, 1);
    cr_expect_eq(jobs[0].result, -ECANCELED);
    cr_expect_eq(jobs[1].result, 3);
    cr_expect_eq(jobs[2].result, -EPROTO);
    cr_expect_eq(jobs[3].result, -EIO);
    cr_expect_eq(jobs[4].result, -EDOM);
    cr_expect_eq(jobs[5].result, 4, "it succeeded in spite of its cancel");
    return 0;
}

Test(gather, the_first_failure_cancels_the_rest_and_every_result_is_set) {
    cr_assert_eq(coil_run(gathers_a_failure, NULL), 0);
}

static int gathers_all(void *arg) {
    struct factorial f = {.n = 6};
    coil_job jobs[] = {{returns_arg, value(-EPROTO), UNSET},
                       {factorial, &f, UNSET},
                       {returns_arg, value(-ECANCELED), UNSET}};
    (void)arg;
    cr_expect_eq(coil_gather_all(jobs, 3), 0);
    cr_expect_eq(jobs[0].result, -EPROTO);
    cr_expect_eq(jobs[1].result, 6);
    cr_expect_eq(f.result, 720);
    cr_expect_eq(jobs[2].result, -ECANCELED);
    return 0;
}

Test(gather, all_runs_every_job_to_its_end_whatever_the_others_return) {
    cr_assert_eq(coil_run(gathers_all, NULL), 0);
}

struct tree {
    int depth, leaves;
};

static int tree(void *arg) {
    struct tree *t = arg, below[3];
    coil_job jobs[3];
    if (t->depth == 0) {
        t->leaves = 1;
        return coil_yield();
    }
    for (int i = 0; i < 3; i++) {
        below[i] = (struct tree){.depth = t->depth - 1};
        jobs[i] = (coil_job){.fn = tree, .arg = &below[i]};
    }
    int err = coil_gather(jobs, 3);
    t->leaves = below[0].leaves + below[1].leaves + below[2].leaves;
    return err;
}

static int gathers_gathers(void *arg) {
    struct tree t = {.depth = 5};
    (void)arg;
    cr_expect_eq(tree(&t), 0);
    cr_expect_eq(t.leaves, 243);
    return 0;
}

Test(gather, gathers_of_gathers_five_deep) {
    cr_assert_eq(coil_run(gathers_gathers, NULL), 0);
}

static int deep_failure(void *arg) {
    intptr_t depth = (intptr_t)arg;
    int cancelled = 0;
    coil_job jobs[] = {{waits, &cancelled, UNSET}, {deep_failure, value(depth - 1), UNSET}};
    if (depth == 0) return -EXDEV;
    int err = coil_gather(jobs, 2);
    cr_expect_eq(cancelled, 1, "at depth %d", (int)depth);
    return err;
}

static int error_comes_out(void *arg) {
    (void)arg;
    cr_expect_eq(deep_failure(value(5)), -EXDEV);
    return 0;
}

Test(gather, an_error_comes_out_of_five_gathers_and_cancels_what_is_beside_it) {
    cr_assert_eq(coil_run(error_comes_out, NULL), 0);
}

struct both {
    coil_job jobs[2];
    int gathered;
    bool all;
};

static int gathers_both(void *arg) {
    struct both *b = arg;
    b->gathered = b->all ? coil_gather_all(b->jobs, 2) : coil_gather(b->jobs, 2);
    return 0;
}

static int own_cancel(void *arg) {
    (void)arg;
    for (int all = 0; all < 2; all++) {
        int cancelled = 0;
        struct both b = {.jobs = {{waits, &cancelled, UNSET}, {returns_arg, value(8), UNSET}}, .all = all};
        cancelled_after(3, gathers_both, &b);
        cr_expect_eq(b.gathered, -ECANCELED);
        cr_expect_eq(cancelled, 1);
        cr_expect_eq(b.jobs[0].result, -ECANCELED);
        cr_expect_eq(b.jobs[1].result, 8);
        b = (struct both){.jobs = {{waits, &cancelled, UNSET}, {fails_when_cancelled, value(-EIO), UNSET}},
                          .all = all};
        cancelled_after(0, gathers_both, &b);
        cr_expect_eq(b.gathered, all ? -ECANCELED : -EIO, "a job's own failure comes first");
        cr_expect_eq(b.jobs[1].result, -EIO);
    }
    return 0;
}

Test(gather, the_callers_cancel_cancels_the_jobs_and_is_the_result) {
    cr_assert_eq(coil_run(own_cancel, NULL), 0);
}

static int own_limit(void *arg) {
    (void)arg;
    for (int all = 0; all < 2; all++) {
        int cancelled = 0;
        struct both b = {.jobs = {{waits, &cancelled, UNSET}, {waits, &cancelled, UNSET}}, .all = all};
        coil_scope s = coil_within(coil_ms(2));
        gathers_both(&b);
        cr_expect(coil_leave(&s));
        cr_expect_eq(b.gathered, -ETIME);
        cr_expect_eq(cancelled, 2);
    }
    return 0;
}

Test(gather, the_callers_limit_cancels_the_jobs_and_is_the_result) {
    cr_assert_eq(coil_run(own_limit, NULL), 0);
}

static int cannot_start(void *arg) {
    int cancelled = 0;
    coil_job jobs[5];
    (void)arg;
    for (int how = 0; how < 3; how++) {
        for (int i = 0; i < 5; i++)
            jobs[i] = (coil_job){waits, &cancelled, UNSET};
        jobs[1] = (coil_job){returns_arg, value(5), UNSET};
        int got = how == 0 ? coil_gather(jobs, 5) : how == 1 ? coil_gather_all(jobs, 5) : coil_race(jobs, 5);
        cr_expect_eq(got, how == 2 ? 1 : -EAGAIN, "a success is a success");
        cr_expect_eq(jobs[0].result, -ECANCELED);
        cr_expect_eq(jobs[1].result, 5);
        cr_expect_eq(jobs[2].result, -ECANCELED);
        cr_expect_eq(jobs[3].result, -EAGAIN);
        cr_expect_eq(jobs[4].result, -EAGAIN);
    }
    cr_expect_eq(cancelled, 6);
    jobs[0] = (coil_job){waits, &cancelled, UNSET};
    jobs[1] = (coil_job){NULL, NULL, UNSET};
    cr_expect_eq(coil_gather(jobs, 2), -EINVAL);
    cr_expect_eq(coil_race(jobs, 2), -EINVAL);
    cr_expect_eq(jobs[0].result, -ECANCELED);
    cr_expect_eq(jobs[1].result, -EINVAL);
    return 0;
}

Test(gather, where_a_job_cannot_be_started_the_others_are_cancelled_and_waited_for) {
    coil_run_opts o = {.tasks_max = 4};
    cr_assert_eq(coil_run_with(&o, cannot_start, NULL), 0);
}

static int sleeps_arg_ms(void *arg) {
    static int order;
    static coil_time began; /* of all: the machine may be busy between their own beginnings */
    if (!arg) {
        began = coil_now();
        return order = 0;
    }
    int err = coil_sleep_until((coil_time){began.ns + (intptr_t)arg * 1000000});
    return err ? err : ++order;
}

static int gathers_sleeps(void *arg) {
    coil_job jobs[] = {{sleeps_arg_ms, value(60), UNSET},
                       {sleeps_arg_ms, value(20), UNSET},
                       {sleeps_arg_ms, value(40), UNSET}};
    (void)arg;
    sleeps_arg_ms(NULL);
    cr_expect_eq(coil_gather(jobs, 3), 0);
    cr_expect(jobs[0].result == 3 && jobs[1].result == 1 && jobs[2].result == 2, "%d %d %d", jobs[0].result,
              jobs[1].result, jobs[2].result);
    return 0;
}

Test(gather, sleeping_jobs_end_in_the_order_of_their_lengths) {
    cr_assert_eq(coil_run(gathers_sleeps, NULL), 0);
}

/* ---- race ---- */

static int races_simply(void *arg) {
    int cancelled = 0;
    coil_job jobs[] = {{waits, &cancelled, UNSET},
                       {returns_arg, value(-EIO), UNSET},
                       {returns_arg, value(0), UNSET},
                       {returns_arg, value(6), UNSET},
                       {fails_when_cancelled, value(7), UNSET},
                       {waits, &cancelled, UNSET}};
    (void)arg;
    cr_expect_eq(coil_race(jobs, 6), 2);
    cr_expect_eq(cancelled, 2, "they have ended");
    cr_expect_eq(jobs[0].result, -ECANCELED);
    cr_expect_eq(jobs[1].result, -EIO);
    cr_expect_eq(jobs[2].result, 0);
    cr_expect_eq(jobs[3].result, 6, "a loser that had succeeded too");
    cr_expect_eq(jobs[4].result, 7, "one that succeeded in spite of its cancel");
    cr_expect_eq(jobs[5].result, -ECANCELED);
    return 0;
}

Test(gather, a_race_is_won_by_the_first_to_succeed_and_the_losers_have_ended) {
    cr_assert_eq(coil_run(races_simply, NULL), 0);
}

/* A scope has struck only where its call says so. */
static int wins_late(void *arg) {
    coil_job jobs[] = {{fails_when_cancelled, value(7), UNSET}, {fails_when_cancelled, value(8), UNSET}};
    (void)arg;
    coil_scope s = coil_within(coil_ms(2));
    cr_expect_eq(coil_race(jobs, 2), 0);
    cr_expect_not(coil_leave(&s), "it has a winner");
    coil_job failing[] = {{fails_when_cancelled, value(-EDOM), UNSET}};
    s = coil_within(coil_ms(2));
    cr_expect_eq(coil_gather(failing, 1), -EDOM);
    cr_expect_not(coil_leave(&s), "a failure is what it returned");
    s = coil_within(coil_ms(2));
    cr_expect_eq(coil_gather_all(failing, 1), -ETIME);
    cr_expect(coil_leave(&s));
    COIL_GROUP(g);
    s = coil_within(coil_ms(2));
    cr_expect_eq(coil_group_spawn(&g, fails_when_cancelled, value(-EDOM)), 0);
    cr_expect_eq(coil_group_wait(&g), -EDOM);
    cr_expect_not(coil_leave(&s));
    return 0;
}

Test(gather, a_limit_that_only_hurried_the_jobs_is_not_told_as_one_that_ended_the_call) {
    cr_assert_eq(coil_run(wins_late, NULL), 0);
}

static int cancels_itself(void *arg) {
    (void)arg;
    coil_cancel(coil_self());
    return coil_yield();
}

static int nobody_wins(void *arg) {
    coil_job jobs[] = {{fails_when_cancelled, value(-EDOM), UNSET},
                       {returns_arg, value(-EIO), UNSET},
                       {returns_arg, value(-EPROTO), UNSET}};
    (void)arg;
    cr_expect_eq(coil_race(jobs + 1, 2), -EIO, "the first failure");
    cr_expect(jobs[1].result == -EIO && jobs[2].result == -EPROTO);
    coil_job alone[] = {{cancels_itself, NULL, UNSET}};
    cr_expect_eq(coil_race(alone, 1), -ECANCELED);
    coil_scope s = coil_within(coil_ms(2));
    cr_expect_eq(coil_race(jobs, 3), -ETIME, "the own limit comes before a failure");
    cr_expect(coil_leave(&s));
    cr_expect_eq(jobs[0].result, -EDOM);
    return 0;
}

Test(gather, a_race_that_nobody_wins_tells_the_own_limit_or_the_first_failure) {
    cr_assert_eq(coil_run(nobody_wins, NULL), 0);
}

struct race {
    coil_job jobs[3];
    int result;
};

static int race_of_three(void *arg) {
    struct race *r = arg;
    r->result = coil_race(r->jobs, 3);
    return 0;
}

static int success_in_spite_of_own_cancel(void *arg) {
    struct race r = {.jobs = {{waits, NULL, UNSET},
                              {fails_when_cancelled, value(2), UNSET},
                              {fails_when_cancelled, value(-EIO), UNSET}}};
    (void)arg;
    cancelled_after(3, race_of_three, &r);
    cr_expect_eq(r.result, 1, "success wins");
    r.jobs[1].fn = waits;
    r.jobs[1].arg = NULL;
    cancelled_after(3, race_of_three, &r);
    cr_expect_eq(r.result, -ECANCELED);
    cr_expect_eq(r.jobs[2].result, -EIO);
    return 0;
}

Test(gather, a_success_comes_before_the_callers_cancel) {
    cr_assert_eq(coil_run(success_in_spite_of_own_cancel, NULL), 0);
}

/* ---- wait_for ---- */

static int sleeps(void *arg) {
    const coil_dur *d = arg;
    return coil_sleep(*d);
}

static int sleeps_and_says_io(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER) < 0 ? -EIO : 0;
}

static int swallows(void *arg) {
    (void)arg;
    coil_sleep(COIL_FOREVER);
    return 17;
}

static int is_same_task(void *arg) {
    return coil_task_same(coil_self(), *(coil_task *)arg);
}

static int waits_for(void *arg) {
    coil_dur forever = COIL_FOREVER, none = {0}, negative = {-5};
    coil_task self = coil_self();
    (void)arg;
    cr_expect_eq(coil_wait_for(coil_ms(2), sleeps, &forever), -ETIME);
    cr_expect_eq(coil_wait_for(coil_sec(100), sleeps, &none), 0);
    cr_expect_eq(coil_wait_for(coil_sec(100), is_same_task, &self), 1, "no task is made");
    cr_expect_eq(coil_wait_for(coil_ms(2), sleeps_and_says_io, NULL), -ETIME);
    cr_expect_eq(coil_wait_for(coil_ms(2), swallows, NULL), 17, "what finished, finished");
    cr_expect_eq(coil_wait_for(coil_sec(100), returns_arg, value(-EIO)), -EIO);
    cr_expect_eq(coil_wait_for(coil_sec(100), returns_arg, value(-ETIME)), -ETIME, "its own");
    cr_expect_eq(coil_wait_for(COIL_FOREVER, returns_arg, value(4)), 4);
    cr_expect_eq(coil_wait_for(none, returns_arg, value(4)), 4, "it runs");
    cr_expect_eq(coil_wait_for(none, returns_arg, value(-EIO)), -EIO, "the limit struck nothing");
    cr_expect_eq(coil_wait_for(none, sleeps, &none), -ETIME);
    cr_expect_eq(coil_wait_for(negative, sleeps, &none), -ETIME);
    cr_expect_eq(coil_yield(), 0, "no limit is left over");
    return 0;
}

Test(gather, wait_for_returns_what_the_function_did_unless_the_limit_made_it_fail) {
    cr_assert_eq(coil_run(waits_for, NULL), 0);
}

struct limits {
    coil_dur inner, innermost;
    int inner_result, innermost_result;
};

static int innermost(void *arg) {
    struct limits *l = arg;
    coil_dur forever = COIL_FOREVER;
    l->innermost_result = coil_wait_for(l->innermost, sleeps, &forever);
    return l->innermost_result == -ETIME ? -EXDEV : l->innermost_result;
}

static int inner(void *arg) {
    struct limits *l = arg;
    l->inner_result = coil_wait_for(l->inner, innermost, l);
    return l->inner_result < 0 ? -EDOM : 0;
}

/* Which limit struck shows in which of the three turns the failure into -ETIME; the innermost function's
 * -ETIME is that of coil_sleep where its own limit did not strike. */
static int tells_limits_apart(void *arg) {
    coil_dur ms = coil_ms(2), s = coil_sec(100);
    (void)arg;
    struct limits l = {.inner = s, .innermost = ms};
    cr_expect_eq(coil_wait_for(s, inner, &l), -EDOM);
    cr_expect(l.innermost_result == -ETIME && l.inner_result == -EXDEV);
    l = (struct limits){.inner = ms, .innermost = s};
    cr_expect_eq(coil_wait_for(s, inner, &l), -EDOM);
    cr_expect(l.innermost_result == -ETIME && l.inner_result == -ETIME);
    l = (struct limits){.inner = s, .innermost = s};
    cr_expect_eq(coil_wait_for(ms, inner, &l), -ETIME);
    cr_expect(l.innermost_result == -ETIME && l.inner_result == -EXDEV);
    return 0;
}

Test(gather, nested_limits_are_told_from_each_other) {
    cr_assert_eq(coil_run(tells_limits_apart, NULL), 0);
}

static int gathers_two_waits(void *arg) {
    coil_job jobs[] = {{waits, arg, UNSET}, {waits, arg, UNSET}};
    return coil_gather(jobs, 2);
}

static int gathers_a_failure_and_a_wait(void *arg) {
    coil_job jobs[] = {{waits, arg, UNSET}, {returns_arg, value(-EIO), UNSET}};
    return coil_gather(jobs, 2);
}

static int races_two_waits(void *arg) {
    coil_job jobs[] = {{waits, arg, UNSET}, {waits, arg, UNSET}};
    return coil_race(jobs, 2);
}

static int limits_gathers(void *arg) {
    int cancelled = 0;
    (void)arg;
    cr_expect_eq(coil_wait_for(coil_ms(2), gathers_two_waits, &cancelled), -ETIME);
    cr_expect_eq(cancelled, 2);
    cr_expect_eq(coil_wait_for(coil_sec(100), gathers_a_failure_and_a_wait, &cancelled), -EIO);
    cr_expect_eq(cancelled, 3);
    cr_expect_eq(coil_wait_for(coil_ms(2), races_two_waits, &cancelled), -ETIME);
    cr_expect_eq(cancelled, 5);
    return 0;
}

Test(gather, wait_for_around_a_gather_cancels_its_jobs) {
    cr_assert_eq(coil_run(limits_gathers, NULL), 0);
}

static int limits_then_sleeps(void *arg) {
    coil_dur forever = COIL_FOREVER;
    *(int *)arg = coil_wait_for(coil_sec(100), sleeps, &forever);
    return 0;
}

static int sleeps_twice(void *arg) {
    int first = coil_sleep(COIL_FOREVER);
    coil_cancel(coil_self());
    cr_expect_eq(first, -ETIME);
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

static int limit_then_cancel(void *arg) {
    *(int *)arg = coil_wait_for(coil_ms(2), sleeps_twice, NULL);
    return 0;
}

static int cancelled_in_wait_for(void *arg) {
    int result = 0;
    (void)arg;
    cancelled_after(2, limits_then_sleeps, &result);
    cr_expect_eq(result, -ECANCELED);
    cancelled_after(0, limits_then_sleeps, &result);
    cr_expect_eq(result, -ECANCELED);
    coil_task t;
    cr_expect_eq(coil_spawn(&t, limit_then_cancel, &result), 0);
    cr_expect_eq(coil_join(t, NULL), 0);
    cr_expect_eq(result, -ECANCELED, "a cancel comes before a limit");
    return 0;
}

Test(gather, a_cancel_inside_wait_for_is_told_as_a_cancel) {
    cr_assert_eq(coil_run(cancelled_in_wait_for, NULL), 0);
}

/* ---- races, 10,000 rounds each ---- */

struct racer {
    int yields, result;
};

static int racer(void *arg) {
    const struct racer *r = arg;
    for (int i = 0; i < r->yields; i++) {
        int err = coil_yield();
        if (err) return err;
    }
    return r->result;
}

static int gather_meets_cancel(void *arg) {
    int failed = 0, cancelled = 0, rounds = check_rounds(10000);
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        struct racer r = {.yields = i % 5, .result = -EIO};
        struct both b = {.jobs = {{waits, NULL, UNSET}, {racer, &r, UNSET}}};
        cancelled_after(i / 5 % 7, gathers_both, &b);
        failed += b.gathered == -EIO && b.jobs[1].result == -EIO;
        cancelled += b.gathered == -ECANCELED && b.jobs[1].result == -ECANCELED;
        cr_expect_eq(b.jobs[0].result, -ECANCELED);
    }
    cr_expect_eq(failed + cancelled, rounds);
    if (rounds >= 100) cr_expect(failed && cancelled, "%d failed, %d cancelled", failed, cancelled);
    return 0;
}

Test(gather, a_jobs_failure_meets_the_callers_cancel_and_one_of_both_is_the_result) {
    cr_assert_eq(coil_run(gather_meets_cancel, NULL), 0);
}

/* What the results say must be what the race says. */
static void check_race(const struct race *r, int counts[3]) {
    int succeeded = 0;
    for (int i = 0; i < 2; i++) {
        cr_expect(r->jobs[i].result == i + 1 || r->jobs[i].result == -ECANCELED);
        succeeded += r->jobs[i].result == i + 1;
    }
    cr_expect_eq(r->jobs[2].result, -ECANCELED);
    if (r->result >= 0) {
        cr_expect(r->result < 2 && r->jobs[r->result].result == r->result + 1);
        counts[succeeded == 2 ? 1 : 0]++;
    } else {
        cr_expect_eq(r->result, -ECANCELED);
        cr_expect_eq(succeeded, 0, "a success is never hidden");
        counts[2]++;
    }
}

static int winners_meet_cancel(void *arg) {
    int counts[3] = {0}, rounds = check_rounds(10000);
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        struct racer one = {.yields = i % 4, .result = 1}, two = {.yields = i / 4 % 4, .result = 2};
        struct race r = {.jobs = {{racer, &one, UNSET}, {racer, &two, UNSET}, {waits, NULL, UNSET}}};
        cancelled_after(i / 16 % 7, race_of_three, &r);
        check_race(&r, counts);
    }
    cr_expect_eq(counts[0] + counts[1] + counts[2], rounds);
    if (rounds >= 200) cr_expect(counts[0] && counts[1] && counts[2]);
    return 0;
}

Test(gather, two_winners_and_a_cancel_meet_and_the_race_has_one_outcome) {
    cr_assert_eq(coil_run(winners_meet_cancel, NULL), 0);
}

struct finish {
    coil_time at;
    int slept;
};

static int finishes(void *arg) {
    struct finish *f = arg;
    f->slept = coil_sleep_until(f->at);
    return f->slept ? f->slept : 1;
}

/* The sleep ends at the very deadline, or a moment before or after it: whichever it is, the two calls agree.
 */
static int finish_meets_deadline(void *arg) {
    int done = 0, late = 0, rounds = check_rounds(10000);
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        coil_dur limit = coil_us(5 + i % 3);
        struct finish f = {.at = {coil_after(limit).ns + (i % 5 - 2) * 100}};
        int got = coil_wait_for(limit, finishes, &f);
        done += got == 1 && f.slept == 0;
        late += got == -ETIME && f.slept == -ETIME;
    }
    cr_expect_eq(done + late, rounds);
    return 0;
}

Test(gather, a_function_that_finishes_at_the_very_deadline_has_one_outcome) {
    cr_assert_eq(coil_run(finish_meets_deadline, NULL), 0);
}

static int finishes_exactly(void *arg) {
    int err = coil_sleep_until((coil_time){coil__here->current->limit_ns});
    (void)arg;
    return err ? err : 1;
}

static int finish_at_the_limit(void *arg) {
    (void)arg;
    for (int i = 0; i < check_rounds(500); i++)
        cr_expect_eq(coil_wait_for(coil_us(20), finishes_exactly, NULL), 1, "success wins");
    return 0;
}

Test(gather, a_sleep_until_the_deadline_itself_has_succeeded) {
    cr_assert_eq(coil_run(finish_at_the_limit, NULL), 0);
}

/* ---- what is held ---- */

static int does_all(void *arg) {
    (void)arg;
    for (int i = 0; i < 30; i++) {
        gathers_factorials(NULL);
        gathers_a_failure(NULL);
        gathers_gathers(NULL);
        races_simply(NULL);
        own_cancel(NULL);
    }
    coil_stats s;
    coil_stats_get(&s);
    cr_expect_eq(s.tasks_now, 1);
    return 0;
}

static int holds_nothing(void *arg) {
    (void)arg;
    does_all(NULL);
    int fds = check_fd_count(), maps = check_map_count();
    size_t heap = check_heap_bytes();
    does_all(NULL);
    cr_expect_eq(check_fd_count(), fds);
    cr_expect_leq(check_heap_bytes(), heap + 4096, "%zu bytes, were %zu", check_heap_bytes(), heap);
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps + 2);
    return 0;
}

Test(gather, nothing_is_held_afterwards) {
    cr_assert_eq(coil_run(holds_nothing, NULL), 0);
}

/* ---- for reports ---- */

static int is_seen(void *arg) {
    const struct coil__task *self = coil__here->current, *owner = *(const struct coil__task *const *)arg;
    cr_expect_str_eq(owner->wait->what, "gather");
    cr_expect(owner->wait->blocker(owner->wait, NULL) == self);
    cr_expect(self->fn == is_seen, "reports name the user's function");
    cr_expect_not_null(self->site);
    cr_expect_eq(self->parent_gen, owner->gen);
    return 0;
}

static int sees(void *arg) {
    const struct coil__task *self = coil__here->current;
    coil_job job = {is_seen, &self, UNSET};
    (void)arg;
    cr_expect_eq(coil_gather(&job, 1), 0);
    return 0;
}

Test(gather, a_report_can_name_the_jobs_and_who_waits_for_them) {
    cr_assert_eq(coil_run(sees, NULL), 0);
}

/* ---- misuse ---- */

static int outside(void *arg) {
    int which = *(int *)arg;
    coil_job job = {returns_arg, NULL, 0};
    if (which == 0) return coil_gather(&job, 1);
    if (which == 1) return coil_gather_all(&job, 1);
    if (which == 2) return coil_race(&job, 1);
    return coil_wait_for(coil_sec(1), returns_arg, NULL);
}

Test(gather, a_call_outside_a_task_stops_with_its_name) {
    static const char *const names[] = {
        "coil: coil_gather: ", "coil: coil_gather_all: ", "coil: coil_race: ", "coil: coil_wait_for: "};
    for (int i = 0; i < 4; i++)
        cr_assert(check_aborts(outside, &i, names[i]));
}
