/* Sleeping, and how timers share wake-ups. */
#include "check.h"

#include "coil/coil.h"

#include "task.h"

#include <errno.h>
#include <stdlib.h>

static coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t;
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

static int sleeps_long_enough(void *arg) {
    static const int64_t lengths[] = {1, 1000, 999999, 5000000, 20000000};
    (void)arg;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        coil_time before = coil_now();
        cr_expect_eq(coil_sleep(coil_ns(lengths[i])), 0);
        cr_expect_geq(coil_now().ns - before.ns, lengths[i]);
        coil_time until = coil_after(coil_ns(lengths[i]));
        cr_expect_eq(coil_sleep_until(until), 0);
        cr_expect_geq(coil_now().ns, until.ns);
    }
    return 0;
}

Test(timer, a_sleep_lasts_at_least_as_long_as_asked) {
    cr_assert_eq(coil_run(sleeps_long_enough, NULL), 0);
}

static int ticks(void *arg) {
    ++*(int *)arg;
    return 0;
}

static int sleeps_for_nothing(void *arg) {
    static const int64_t lengths[] = {0, -1, INT64_MIN};
    (void)arg;
    for (int i = 0; i < 3; i++) {
        int count = 0;
        spawn(ticks, &count);
        cr_expect_eq(coil_sleep(coil_ns(lengths[i])), 0);
        cr_expect_eq(count, 1);
        spawn(ticks, &count);
        cr_expect_eq(coil_sleep_until((coil_time){lengths[i]}), 0);
        cr_expect_eq(count, 2, "the others run once");
    }
    return 0;
}

Test(timer, a_sleep_of_no_length_is_a_yield) {
    cr_assert_eq(coil_run(sleeps_for_nothing, NULL), 0);
}

/* ---- order ---- */

enum { SLEEPERS = 500 };

struct sleeper {
    int id;
    coil_dur length;
    coil_time until;
};

static struct {
    int order[SLEEPERS], count;
    coil_time until[SLEEPERS];
} woken;

static int sleeps_its_length(void *arg) {
    struct sleeper *s = arg;
    s->until = coil_after(s->length);
    cr_expect_eq(coil_sleep(s->length), 0);
    woken.until[woken.count] = s->until;
    woken.order[woken.count++] = s->id;
    return 0;
}

static int equal_sleeps(void *arg) {
    static struct sleeper sleepers[SLEEPERS];
    coil_task tasks[SLEEPERS];
    (void)arg;
    for (int i = 0; i < SLEEPERS; i++) {
        sleepers[i] = (struct sleeper){.id = i, .length = coil_ms(30)};
        tasks[i] = spawn(sleeps_its_length, &sleepers[i]);
    }
    for (int i = 0; i < SLEEPERS; i++)
        cr_expect_eq(coil_join(tasks[i], NULL), 0);
    for (int i = 0; i < SLEEPERS; i++)
        cr_expect_eq(woken.order[i], i);
    return 0;
}

Test(timer, equal_sleeps_end_in_the_order_in_which_they_began) {
    cr_assert_eq(coil_run(equal_sleeps, NULL), 0);
    cr_assert_eq(woken.count, SLEEPERS);
}

static int64_t stopped_ns;

static int64_t stopped(void) {
    return stopped_ns;
}

/* The clock stands still while they begin, and goes on when all of them sleep. */
static int begins_at_one_moment(void *arg) {
    static struct sleeper sleepers[SLEEPERS];
    struct coil__driver *d = coil__here->driver;
    const struct coil__sys *real = d->sys;
    struct coil__sys sys = *real;
    (void)arg;
    stopped_ns = real->now();
    sys.now = stopped;
    d->sys = &sys;
    COIL_GROUP(g);
    for (int i = 0; i < SLEEPERS; i++) {
        sleepers[i] = (struct sleeper){.id = i, .length = coil_us(10)};
        cr_expect_eq(coil_group_spawn(&g, sleeps_its_length, &sleepers[i]), 0);
    }
    coil_yield();
    d->sys = real;
    cr_expect_eq(coil_group_wait(&g), 0);
    for (int i = 0; i < SLEEPERS; i++)
        cr_expect_eq(woken.order[i], i);
    return 0;
}

Test(timer, equal_sleeps_that_begin_at_one_moment_keep_their_order) {
    cr_assert_eq(coil_run(begins_at_one_moment, NULL), 0);
    cr_assert_eq(woken.count, SLEEPERS);
}

static int sleeps_until_its_moment(void *arg) {
    struct sleeper *s = arg;
    bool late = coil_now().ns >= s->until.ns; /* on a slow machine: it would not sleep at all */
    cr_expect_eq(coil_sleep_until(s->until), 0);
    if (late) return 0;
    cr_expect_geq(coil_now().ns, s->until.ns);
    woken.until[woken.count++] = s->until;
    return 0;
}

static int random_moments(void *arg) {
    static struct sleeper sleepers[SLEEPERS];
    coil_task tasks[SLEEPERS];
    coil_time base = coil_after(coil_ms(500));
    (void)arg;
    srand(1);
    for (int i = 0; i < SLEEPERS; i++) {
        sleepers[i] = (struct sleeper){.until = {base.ns + rand() % 50 * 1000000}};
        tasks[i] = spawn(sleeps_until_its_moment, &sleepers[i]);
    }
    for (int i = 0; i < SLEEPERS; i++)
        cr_expect_eq(coil_join(tasks[i], NULL), 0);
    for (int i = 1; i < woken.count; i++)
        cr_expect_geq(woken.until[i].ns, woken.until[i - 1].ns);
    return 0;
}

Test(timer, sleeps_end_in_the_order_of_their_moments) {
    cr_assert_eq(coil_run(random_moments, NULL), 0);
    cr_assert_gt(woken.count, 1, "this machine is too slow for 500 tasks in 500 ms");
}

/* ---- cancel and limit ---- */

static int sleeps_for_ever(void *arg) {
    *(int *)arg = coil_sleep(COIL_FOREVER);
    return coil_sleep_until(COIL_NEVER);
}

static int cancels_a_sleep(void *arg) {
    int first = 0, second = 0;
    (void)arg;
    coil_task t = spawn(sleeps_for_ever, &first);
    coil_yield();
    coil_cancel(t);
    cr_expect_eq(coil_join(t, &second), 0);
    cr_expect_eq(first, -ECANCELED, "woken");
    cr_expect_eq(second, -ECANCELED, "refused");
    return 0;
}

Test(timer, a_cancel_wakes_a_sleeper) {
    cr_assert_eq(coil_run(cancels_a_sleep, NULL), 0);
}

static int limit_meets_sleep(void *arg) {
    (void)arg;
    coil_time at = coil_after(coil_ms(3));
    coil_scope s = coil_until(at);
    cr_expect_eq(coil_sleep_until(at), 0, "the sleep is over: it succeeded");
    cr_expect_eq(coil_yield(), -ETIME, "and the limit shows at the next call");
    cr_expect(coil_leave(&s));
    s = coil_until(coil_after(coil_ms(3)));
    cr_expect_eq(coil_sleep(coil_sec(100)), -ETIME);
    cr_expect(coil_leave(&s));
    s = coil_within(coil_sec(100));
    cr_expect_eq(coil_sleep(coil_ms(1)), 0);
    cr_expect_not(coil_leave(&s));
    return 0;
}

Test(timer, a_sleep_that_ends_with_the_limit_succeeds_and_a_longer_one_does_not) {
    cr_assert_eq(coil_run(limit_meets_sleep, NULL), 0);
}

static int many_sleeps_within_one_limit(void *arg) {
    (void)arg;
    COIL_WITHIN(coil_sec(100));
    for (int i = 0; i < 200; i++)
        cr_expect_eq(coil_sleep(coil_us(10)), 0);
    return 0;
}

Test(timer, sleeps_in_a_loop_under_one_limit_are_not_disturbed_by_it) {
    cr_assert_eq(coil_run(many_sleeps_within_one_limit, NULL), 0);
}

/* A timer may stand in the heap for a deadline that no longer holds: it must end no later wait. */
static int earlier_limits_are_forgotten(void *arg) {
    (void)arg;
    for (int i = 0; i < 20; i++) {
        coil_scope s = coil_within(coil_ms(2));
        coil_task t = spawn(ticks, &(int){0});
        cr_expect_eq(coil_join(t, NULL), 0);
        coil_leave(&s);
        cr_expect_eq(coil_sleep(coil_ms(4)), 0);
    }
    return 0;
}

Test(timer, a_limit_that_was_left_ends_no_later_wait) {
    cr_assert_eq(coil_run(earlier_limits_are_forgotten, NULL), 0);
}

/* ---- slack ---- */

struct waker {
    int64_t ms;
    uint64_t turn;
    coil_time at;
};

static int sleeps_and_notes_the_turn(void *arg) {
    struct waker *w = arg;
    coil_stats s;
    cr_expect_eq(coil_sleep_until(w->at), 0);
    coil_stats_get(&s);
    w->turn = s.turns;
    return 0;
}

/* The first is due after 500 ms, the last after 580, and the worker may take until 700: one wake-up is
 * enough. */
static int sleeps_share_a_wakeup(void *arg) {
    struct waker w[5];
    coil_task tasks[5];
    coil_time base = coil_now();
    (void)arg;
    for (int i = 0; i < 5; i++) {
        w[i] = (struct waker){.at = {base.ns + 500000000 + i * 20000000}};
        tasks[i] = spawn(sleeps_and_notes_the_turn, &w[i]);
    }
    coil_yield();
    bool in_time = coil_now().ns < w[0].at.ns; /* the last of them has begun to sleep */
    for (int i = 0; i < 5; i++)
        cr_expect_eq(coil_join(tasks[i], NULL), 0);
    for (int i = 1; i < 5 && in_time; i++)
        cr_expect_eq(w[i].turn, w[0].turn, "sleeper %d", i);
    return 0;
}

Test(timer, sleeps_that_end_within_the_slack_of_each_other_share_a_wakeup) {
    coil_run_opts o = {.timer_slack = coil_ms(200), .spin_max = coil_ns(-1)};
    cr_assert_eq(coil_run_with(&o, sleeps_share_a_wakeup, NULL), 0);
}

/* What several sleepers are due at, and in which order they began and ended. */
struct alarm {
    coil_time at;
    int begun, ended, first[100], last[100];
    bool late; /* too slow a machine: some began when it was time already */
};

struct alarmed {
    struct alarm *alarm;
    int number;
    coil_dur before; /* a wait under this limit comes first: its timer stays behind */
    coil_task *joins;
};

static int sleeps_until_the_alarm(void *arg) {
    struct alarmed *s = arg;
    if (s->before.ns) {
        coil_scope limit = coil_within(s->before);
        cr_expect_eq(coil_join(*s->joins, NULL), 0);
        coil_leave(&limit);
    }
    s->alarm->first[s->alarm->begun++] = s->number;
    if (coil_now().ns >= s->alarm->at.ns) s->alarm->late = true;
    int err = coil_sleep_until(s->alarm->at);
    s->alarm->last[s->alarm->ended++] = s->number;
    return err;
}

/* Some have a timer left that is due earlier than the alarm, or later. */
static int sleeps_to_one_alarm(void *arg) {
    struct alarm alarm = {.at = coil_after(coil_ms(300))};
    struct alarmed s[100];
    coil_task tasks[100], nothing[100];
    int runs = 0;
    (void)arg;
    for (int i = 0; i < 100; i++) {
        s[i] = (struct alarmed){.alarm = &alarm, .number = i, .joins = &nothing[i]};
        s[i].before = i % 3 ? coil_ms(i % 3 == 1 ? 150 : 10000) : coil_ns(0);
        tasks[i] = spawn(sleeps_until_the_alarm, &s[i]);
        nothing[i] = spawn(ticks, &runs);
    }
    for (int i = 0; i < 100; i++)
        cr_expect_eq(coil_join(tasks[i], NULL), 0);
    for (int i = 0; i < 100 && !alarm.late; i++)
        cr_expect_eq(alarm.last[i], alarm.first[i], "end %d: %d, not %d", i, alarm.last[i], alarm.first[i]);
    return 0;
}

Test(timer, sleeps_that_are_due_at_one_moment_end_in_the_order_in_which_they_began) {
    cr_assert_eq(coil_run(sleeps_to_one_alarm, NULL), 0);
}
