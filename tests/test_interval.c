/* Ticks a period apart. */
#include "check.h"

#include "coil/coil.h"

#include "task.h"

#include <errno.h>

/* The worker's clock, as this test has it: stopped between ticks, or set. */
static int64_t shown_ns;

static int64_t show(void) {
    return shown_ns;
}

/* Runs fn with a clock that only fn moves. */
static void with_own_clock(void (*fn)(void)) {
    static struct coil__sys sys;
    struct coil__driver *d = coil__here->driver;
    const struct coil__sys *real = d->sys;
    sys = *real;
    sys.now = show;
    d->sys = &sys;
    fn();
    d->sys = real;
    real->now();
    coil__clock(coil__here);
}

/* The clock shows `at`, then a tick comes without waiting. The tick after it. */
static int64_t tick_at(coil_interval *i, int64_t at) {
    shown_ns = at;
    coil__clock(coil__here);
    cr_expect_eq(coil_interval_tick(i), 0);
    return i->next.ns;
}

static void late_ticks(void) {
    coil_interval i = {.next = {1000}, .period = {100}, .late = COIL_LATE_SKIP};
    cr_expect_eq(tick_at(&i, 1000), 1100, "on time");
    cr_expect_eq(tick_at(&i, 1199), 1200, "late, but not by a period: nothing drifts");
    cr_expect_eq(tick_at(&i, 1300), 1400, "the one due now is left out");
    cr_expect_eq(tick_at(&i, 1999), 2000, "five were missed");

    i = (coil_interval){.next = {1000}, .period = {100}, .late = COIL_LATE_BURST};
    cr_expect_eq(tick_at(&i, 1000), 1100);
    cr_expect_eq(tick_at(&i, 1199), 1200);
    cr_expect_eq(tick_at(&i, 1450), 1300);
    cr_expect_eq(tick_at(&i, 1450), 1400);
    cr_expect_eq(tick_at(&i, 1450), 1500);

    i = (coil_interval){.next = {1000}, .period = {100}, .late = COIL_LATE_DELAY};
    cr_expect_eq(tick_at(&i, 1000), 1100);
    cr_expect_eq(tick_at(&i, 1199), 1200, "late, but not by a period: nothing drifts");
    cr_expect_eq(tick_at(&i, 1330), 1430);
    cr_expect_eq(tick_at(&i, 1430), 1530);
}

static void far_away(void) {
    coil_interval i = {.next = {1000}, .period = COIL_FOREVER};
    cr_expect_eq(tick_at(&i, 1000), INT64_MAX, "it saturates");
    for (int late = COIL_LATE_SKIP; late <= COIL_LATE_DELAY; late++) {
        i = (coil_interval){.next = {1}, .period = {INT64_MAX - 10}, .late = late};
        cr_expect_eq(tick_at(&i, INT64_MAX - 5), INT64_MAX - (late == COIL_LATE_BURST ? 9 : 0));
        i = (coil_interval){.next = {-7}, .period = {10}, .late = late};
        cr_expect_eq(tick_at(&i, 500), 510, "no moment lies before the clock's beginning");
    }
}

static int keeps_its_clock(void *arg) {
    (void)arg;
    with_own_clock(late_ticks);
    with_own_clock(far_away);
    return 0;
}

Test(interval, a_late_tick_moves_no_other_and_what_it_missed_goes_by_the_choice) {
    cr_assert_eq(coil_run(keeps_its_clock, NULL), 0);
}

static int ticks(void *arg) {
    coil_time before = coil_now();
    coil_interval i = {.period = coil_ms(2), .late = COIL_LATE_BURST};
    (void)arg;
    cr_expect_eq(coil_interval_tick(&i), 0);
    int64_t first = i.next.ns - i.period.ns;
    cr_expect(first >= before.ns && first <= coil_now().ns, "it starts now");
    for (int n = 1; n <= 10; n++) {
        int64_t due = i.next.ns;
        cr_expect_eq(due, first + n * i.period.ns);
        cr_expect_eq(coil_interval_tick(&i), 0);
        cr_expect_geq(coil_now().ns, due);
    }
    return 0;
}

Test(interval, ticks_come_a_period_apart_the_first_at_once) {
    cr_assert_eq(coil_run(ticks, NULL), 0);
}

static int refuses(void *arg) {
    coil_interval i = {.next = coil_after(coil_sec(1000)), .period = coil_sec(1)}, as_it_was = i, fresh = {0};
    (void)arg;
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(coil_interval_tick(&i), -ETIME, "woken");
    cr_expect_eq(coil_interval_tick(&i), -ETIME, "refused");
    cr_expect(coil_leave(&s));
    cr_expect_eq(i.next.ns, as_it_was.next.ns, "the tick is still to come");
    fresh.period = coil_sec(1);
    s = coil_until((coil_time){0});
    cr_expect_eq(coil_interval_tick(&fresh), -ETIME);
    coil_leave(&s);
    cr_expect_eq(fresh.next.ns, 0, "it has not begun");
    i.next = coil_now();
    coil_cancel(coil_self());
    as_it_was = i;
    cr_expect_eq(coil_interval_tick(&i), -ECANCELED);
    cr_expect_eq(i.next.ns, as_it_was.next.ns);
    return 0;
}

Test(interval, a_refused_tick_is_still_to_come) {
    cr_assert_eq(coil_run(refuses, NULL), 0);
}

static int bad_ones(void *arg) {
    coil_interval i = {.late = COIL_LATE_SKIP};
    (void)arg;
    cr_expect_eq(coil_interval_tick(&i), -EINVAL);
    i.period = coil_ns(-1);
    cr_expect_eq(coil_interval_tick(&i), -EINVAL);
    i.period = coil_ns(1);
    i.late = 3;
    cr_expect_eq(coil_interval_tick(&i), -EINVAL);
    i.late = -1;
    cr_expect_eq(coil_interval_tick(&i), -EINVAL);
    cr_expect_eq(i.next.ns, 0);
    return 0;
}

Test(interval, a_period_of_nothing_and_an_unknown_choice_are_told) {
    cr_assert_eq(coil_run(bad_ones, NULL), 0);
}

static int runs_beside(void *arg) {
    int *stop = arg;
    coil_interval i = {.next = {1}, .period = {1}, .late = COIL_LATE_BURST};
    for (int n = 0; n < 1000; n++)
        cr_expect_eq(coil_interval_tick(&i), 0);
    *stop = 1;
    return 0;
}

static int gives_turns(void *arg) {
    int stop = 0, turns = 0;
    (void)arg;
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, runs_beside, &stop), 0);
    while (!stop && coil_yield() == 0)
        turns++;
    cr_expect_geq(turns, 900, "each tick of a burst lets others run");
    return coil_group_wait(&g);
}

Test(interval, a_burst_gives_others_their_turns) {
    cr_assert_eq(coil_run(gives_turns, NULL), 0);
}

static int outside(void *arg) {
    (void)arg;
    return coil_interval_tick(&(coil_interval){.period = {1}});
}

Test(interval, a_call_outside_a_task_stops_with_its_name) {
    cr_assert(check_aborts(outside, NULL, "coil: coil_interval_tick: "));
}
