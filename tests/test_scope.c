/* Limits and shields of the current task: which one holds, whose it was, and what is no proper use. */
#include "check.h"

#include "coil/coil.h"

#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

static coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t;
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

/* Computes, without a coil call that could notice the time. */
static void compute(coil_dur d) {
    coil_time end = coil_after(d);
    while (coil_now().ns < end.ns)
        continue;
}

/* ---- limits ---- */

static int tighter_wins(void *arg) {
    (void)arg;
    coil_scope outer = coil_within(coil_sec(100)), inner = coil_within(coil_ms(2));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    cr_expect(coil_leave(&inner), "it was the inner one's");
    cr_expect_eq(coil_yield(), 0, "the outer one has time left");
    cr_expect_not(coil_leave(&outer));

    outer = coil_within(coil_ms(2));
    inner = coil_within(coil_sec(100));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    cr_expect_not(coil_leave(&inner), "it was not the inner one's");
    cr_expect_eq(coil_yield(), -ETIME);
    cr_expect(coil_leave(&outer), "it was the outer one's");
    cr_expect_eq(coil_yield(), 0);
    return 0;
}

Test(scope, the_tighter_of_two_limits_holds_and_leaving_says_whose_it_was) {
    cr_assert_eq(coil_run(tighter_wins, NULL), 0);
}

static int nobody_asked(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_ns(1));
    compute(coil_us(10));
    cr_expect_not(coil_leave(&s), "a limit that passed while nobody called ended no call");
    s = coil_within(coil_sec(10));
    cr_expect_eq(coil_yield(), 0);
    cr_expect_not(coil_leave(&s));
    return 0;
}

Test(scope, a_limit_that_ended_no_call_has_not_struck) {
    cr_assert_eq(coil_run(nobody_asked, NULL), 0);
}

static int no_time_at_all(void *arg) {
    static const int64_t lengths[] = {0, -1, INT64_MIN};
    (void)arg;
    for (int i = 0; i < 3; i++) {
        coil_scope s = coil_within(coil_ns(lengths[i]));
        cr_expect_eq(coil_yield(), -ETIME);
        cr_expect_eq(coil_sleep(coil_ms(1)), -ETIME);
        cr_expect(coil_leave(&s));
        s = coil_until((coil_time){lengths[i]});
        cr_expect_eq(coil_yield(), -ETIME);
        cr_expect(coil_leave(&s));
    }
    cr_expect_eq(coil_yield(), 0);
    return 0;
}

Test(scope, a_limit_of_no_length_refuses_every_call) {
    cr_assert_eq(coil_run(no_time_at_all, NULL), 0);
}

static int limit_without_end(void *arg) {
    (void)arg;
    coil_scope a = coil_within(COIL_FOREVER), b = coil_until(COIL_NEVER), c = coil_shield(COIL_FOREVER);
    cr_expect_eq(coil_sleep(coil_ms(1)), 0);
    cr_expect_not(coil_leave(&c));
    cr_expect_not(coil_leave(&b));
    cr_expect_not(coil_leave(&a));
    return 0;
}

Test(scope, a_limit_without_end_limits_nothing) {
    cr_assert_eq(coil_run(limit_without_end, NULL), 0);
}

static int computes_first(void *arg) {
    (void)arg;
    compute(coil_ms(60));
    coil_time begin = coil_now();
    coil_scope s = coil_within(coil_ms(50));
    cr_expect_eq(coil_yield(), 0, "it begins now, not when the turn began");
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    cr_expect_geq(coil_now().ns - begin.ns, 50000000);
    cr_expect(coil_leave(&s));
    compute(coil_ms(60));
    begin = coil_now();
    cr_expect_eq(coil_sleep(coil_ms(50)), 0);
    cr_expect_geq(coil_now().ns - begin.ns, 50000000);
    return 0;
}

Test(scope, a_limit_begins_now_also_after_60_ms_of_computing) {
    cr_assert_eq(coil_run(computes_first, NULL), 0);
}

static int has_no_limit(void *arg) {
    (void)arg;
    cr_expect_not(coil_cancelled());
    return coil_sleep(coil_ms(3));
}

static int child_starts_free(void *arg) {
    int got = 1;
    (void)arg;
    coil_scope s = coil_within(coil_ms(0)), shield = coil_shield(coil_sec(10));
    coil_task t = spawn(has_no_limit, NULL);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, 0);
    coil_leave(&shield);
    coil_leave(&s);
    return 0;
}

Test(scope, a_child_starts_without_limit_and_shield) {
    cr_assert_eq(coil_run(child_starts_free, NULL), 0);
}

enum { DEEP = 200 };

static int nests(void *arg) {
    coil_scope s[DEEP];
    int tightest = (int)(intptr_t)arg;
    for (int i = 0; i < DEEP; i++)
        s[i] = coil_within(i == tightest ? coil_ms(2) : coil_sec(1000 + i));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    for (int i = DEEP - 1; i >= 0; i--)
        cr_expect_eq(coil_leave(&s[i]), i == tightest, "scope %d", i);
    cr_expect_eq(coil_yield(), 0);
    return 0;
}

Test(scope, among_many_nested_limits_exactly_the_tightest_has_struck) {
    static const int which[] = {0, 1, DEEP / 2, DEEP - 1};
    for (int i = 0; i < 4; i++)
        cr_assert_eq(coil_run(nests, (void *)(intptr_t)which[i]), 0);
}

/* ---- shields ---- */

static int cleans_up_shielded(void *arg) {
    int *ok = arg;
    *ok = coil_sleep(COIL_FOREVER) == -ECANCELED && coil_cancelled();
    coil_scope s = coil_shield(coil_sec(100));
    *ok = *ok && !coil_cancelled() && coil_sleep(coil_ms(1)) == 0 && coil_yield() == 0;
    *ok = *ok && !coil_leave(&s) && coil_cancelled() && coil_yield() == -ECANCELED;
    return 0;
}

struct child {
    coil_fn *fn;
    int ok;
};

static int cancels_child(void *arg) {
    struct child *c = arg;
    coil_task t = spawn(c->fn, &c->ok);
    coil_yield();
    coil_cancel(t);
    return coil_join(t, NULL);
}

Test(scope, a_cancel_waits_outside_a_shield) {
    struct child c = {.fn = cleans_up_shielded};
    cr_assert_eq(coil_run(cancels_child, &c), 0);
    cr_assert(c.ok);
}

static int sleeps_shielded(void *arg) {
    int *ok = arg;
    coil_scope s = coil_shield(coil_sec(100));
    *ok = coil_sleep(coil_ms(5)) == 0 && !coil_cancelled();
    coil_leave(&s);
    *ok = *ok && coil_cancelled() && coil_yield() == -ECANCELED;
    return 0;
}

Test(scope, a_cancel_does_not_wake_a_shielded_wait_and_shows_after_the_shield) {
    struct child c = {.fn = sleeps_shielded};
    cr_assert_eq(coil_run(cancels_child, &c), 0);
    cr_assert(c.ok);
}

static int shield_replaces_limit(void *arg) {
    (void)arg;
    coil_scope outer = coil_within(coil_ns(0));
    cr_expect_eq(coil_yield(), -ETIME);
    coil_scope shield = coil_shield(coil_ms(3));
    cr_expect_eq(coil_yield(), 0, "the outer limit waits outside");
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME, "its own holds");
    cr_expect(coil_leave(&shield), "and struck");
    cr_expect_eq(coil_yield(), -ETIME);
    cr_expect(coil_leave(&outer));

    outer = coil_within(coil_sec(100));
    shield = coil_shield(coil_ms(3));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    cr_expect(coil_leave(&shield));
    cr_expect_not(coil_leave(&outer));
    return 0;
}

Test(scope, a_shield_replaces_the_limits_around_it_by_its_own) {
    cr_assert_eq(coil_run(shield_replaces_limit, NULL), 0);
}

static int shield_in_shield(void *arg) {
    (void)arg;
    coil_scope outer = coil_shield(coil_ms(3)), between = coil_within(coil_sec(50)),
               inner = coil_shield(coil_sec(100)), within = coil_within(coil_sec(200));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME, "the outer shield's own limit still holds");
    cr_expect_not(coil_leave(&within));
    cr_expect_not(coil_leave(&inner));
    cr_expect_not(coil_leave(&between));
    cr_expect(coil_leave(&outer), "it was the outer shield's");

    outer = coil_shield(coil_sec(100));
    inner = coil_shield(coil_ms(3));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    cr_expect(coil_leave(&inner));
    cr_expect_eq(coil_yield(), 0);
    cr_expect_not(coil_leave(&outer));
    return 0;
}

Test(scope, inside_a_shield_in_a_shield_both_limits_hold_and_each_strike_is_its_owners) {
    cr_assert_eq(coil_run(shield_in_shield, NULL), 0);
}

static int limit_in_shield_in_limit(void *arg) {
    (void)arg;
    coil_scope a = coil_shield(coil_sec(100)), b = coil_within(coil_ms(0)), c = coil_shield(coil_sec(50)),
               d = coil_within(coil_ms(2));
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ETIME);
    cr_expect(coil_leave(&d));
    cr_expect_eq(coil_yield(), 0);
    cr_expect_not(coil_leave(&c));
    cr_expect_eq(coil_yield(), -ETIME);
    cr_expect(coil_leave(&b));
    cr_expect_eq(coil_yield(), 0);
    cr_expect_not(coil_leave(&a));
    return 0;
}

Test(scope, limits_inside_and_around_a_shield_do_not_mix) {
    cr_assert_eq(coil_run(limit_in_shield_in_limit, NULL), 0);
}

static int struck_before_shield(void *arg) {
    (void)arg;
    coil_scope outer = coil_within(coil_ns(0));
    cr_expect_eq(coil_yield(), -ETIME);
    coil_scope inner = coil_until((coil_time){-5}), shield = coil_shield(coil_sec(1));
    cr_expect_not(coil_leave(&shield));
    cr_expect_not(coil_leave(&inner));
    cr_expect(coil_leave(&outer), "that it had struck is not forgotten");
    return 0;
}

Test(scope, a_strike_is_remembered_across_inner_scopes) {
    cr_assert_eq(coil_run(struck_before_shield, NULL), 0);
}

static int cancelled_and_late(void *arg) {
    int *ok = arg;
    coil_scope s = coil_within(coil_ns(0));
    *ok = coil_yield() == -ETIME;
    coil_cancel(coil_self());
    *ok = *ok && coil_yield() == -ECANCELED && coil_sleep(coil_ms(1)) == -ECANCELED;
    coil_leave(&s);
    return 0;
}

Test(scope, cancel_comes_before_deadline_where_both_hold) {
    int ok = 0;
    cr_assert_eq(coil_run(cancelled_and_late, &ok), 0);
    cr_assert(ok);
}

/* ---- declarations ---- */

static void leave_by(int how) {
    for (int i = 0; i < 2; i++) {
        COIL_WITHIN(coil_ns(0));
        COIL_SHIELD(coil_sec(1));
        COIL_WITHIN(coil_ns(0));
        cr_expect_eq(coil_yield(), -ETIME);
        if (how == 0) break;
        if (how == 1) return;
        if (how == 2) goto out;
    }
out:
    return;
}

static int leaves_by_itself(void *arg) {
    (void)arg;
    for (int how = 0; how < 4; how++) {
        leave_by(how);
        cr_expect_eq(coil_yield(), 0, "left by way %d", how);
    }
    return 0;
}

Test(scope, a_declared_scope_is_left_by_break_return_goto_and_the_blocks_end) {
    cr_assert_eq(coil_run(leaves_by_itself, NULL), 0);
}

/* ---- misuse: each stops with the call's name ---- */

static int leaves_twice(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_sec(1));
    coil_leave(&s);
    coil_leave(&s);
    return 0;
}

static int leaves_out_of_order(void *arg) {
    (void)arg;
    coil_scope a = coil_within(coil_sec(1)), b = coil_within(coil_sec(1));
    coil_leave(&a);
    coil_leave(&b);
    return 0;
}

static int jumps_past_the_leave(void *arg) {
    coil_scope outer = coil_within(coil_sec(1));
    {
        coil_scope inner = coil_within(coil_sec(1));
        if (arg) goto out;
        coil_leave(&inner);
    }
out:
    coil_leave(&outer);
    return 0;
}

static jmp_buf place;

static __attribute__((noinline)) void jump_out(void) {
    COIL_WITHIN(coil_sec(1));
    longjmp(place, 1);
}

static int jumps_far(void *arg) {
    coil_scope outer = coil_within(coil_sec(1));
    (void)arg;
    if (setjmp(place) == 0) jump_out();
    coil_leave(&outer);
    return 0;
}

static int ends_with_scope(void *arg) {
    coil_name("forgetful %d", 9);
    coil_scope s = coil_within(coil_sec(1));
    (void)s;
    (void)arg;
    return 0;
}

static int leaves_nothing(void *arg) {
    coil_scope s = {{0}};
    (void)arg;
    coil_leave(&s);
    return 0;
}

static int leaves_damaged(void *arg) {
    coil_scope s = coil_within(coil_sec(1));
    (void)arg;
    s.opaque[0] ^= 1;
    coil_leave(&s);
    return 0;
}

static int leaves_anothers(void *arg) {
    coil_scope own = coil_within(coil_sec(1)), copy = *(coil_scope *)arg;
    coil_leave(&copy);
    coil_leave(&own);
    return 0;
}

static int copies_to_another_task(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_sec(1));
    coil_task t = spawn(leaves_anothers, &s);
    int err = coil_join(t, NULL);
    coil_leave(&s);
    return err;
}

static int in_run(void *fn) {
    coil_fn *const *f = fn;
    return coil_run(*f, place);
}

static bool stops(coil_fn *fn, const char *message) {
    return check_aborts(in_run, &fn, message);
}

Test(scope, leaving_twice_or_out_of_order_stops_with_the_name) {
    cr_assert(stops(leaves_twice, "coil: coil_leave: this is no open scope"));
    cr_assert(stops(leaves_out_of_order, "coil: coil_leave: "));
}

Test(scope, a_jump_past_the_leave_stops_with_the_name) {
    cr_assert(stops(jumps_past_the_leave,
                    "coil: coil_leave: scopes are left in reverse order; one was jumped past"));
    cr_assert(stops(jumps_far, "coil: coil_leave: scopes are left in reverse order; one was jumped past"));
}

Test(scope, a_scope_that_was_never_entered_or_is_anothers_stops_with_the_name) {
    cr_assert(stops(leaves_nothing, "coil: coil_leave: this is no open scope"));
    cr_assert(stops(leaves_damaged, "coil: coil_leave: this is no open scope"));
    cr_assert(stops(copies_to_another_task, "coil: coil_leave: this is no open scope"));
}

Test(scope, a_task_that_ends_with_a_scope_open_stops_with_its_name) {
    cr_assert(stops(ends_with_scope, "coil: coil_leave: forgetful 9 has ended with a scope open"));
}
