/* Semaphores, events, barriers, once and waitgroups. */
#include "sync_waits.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>

/* ---- as something to wait for ---- */

static COIL_SEM(sem, 1); /* static forms are ready before main */
static coil_sem three = COIL_SEM_INIT(3);
static coil_event event;
static coil_waitgroup group;
static coil_once once;
static coil_event once_may_end;

static void nothing(void) {
}

static void sem_block(void) {
    cr_expect_eq(coil_sem_tryacquire(&sem, 1), 0);
}

static int sem_wait_one(void) {
    return coil_sem_acquire(&sem, 1);
}

static void sem_give(void) {
    coil_sem_release(&sem, 1);
}

static bool has_exactly(coil_sem *s, unsigned n) {
    if (coil_sem_tryacquire(s, n + 1) != -EAGAIN) return false;
    if (coil_sem_tryacquire(s, n)) return false;
    coil_sem_release(s, n);
    return true;
}

static bool sem_is_idle(void) {
    return has_exactly(&sem, 1);
}

static void three_block(void) {
    cr_expect_eq(coil_sem_tryacquire(&three, 2), 0);
}

static int three_wait(void) {
    return coil_sem_acquire(&three, 3);
}

static void three_give(void) {
    coil_sem_release(&three, 2);
}

static void three_done(void) {
    coil_sem_release(&three, 3);
}

static bool three_is_idle(void) {
    return has_exactly(&three, 3);
}

static void event_block(void) {
    coil_event_clear(&event);
}

static int event_wait(void) {
    return coil_event_wait(&event);
}

static void event_give(void) {
    coil_event_set(&event);
}

static bool event_is_idle(void) {
    return coil_event_is_set(&event) && !event.opaque[0] && !event.opaque[1];
}

static void group_block(void) {
    coil_waitgroup_add(&group, 2);
    coil_waitgroup_done(&group);
}

static int group_wait(void) {
    return coil_waitgroup_wait(&group);
}

static void group_give(void) {
    coil_waitgroup_done(&group);
}

static bool group_is_idle(void) {
    coil_scope s = coil_shield(coil_sec(60));
    bool idle = coil_waitgroup_wait(&group) == 0 && !group.opaque[0] && !group.opaque[1];
    coil_leave(&s);
    return idle;
}

static int ends_when_it_may(void *arg) {
    (void)arg;
    return coil_event_wait(&once_may_end);
}

static int must_not_run(void *arg) {
    (void)arg;
    cr_expect_fail("it was done already");
    return 0;
}

static int does_once(void *arg) {
    (void)arg;
    return coil_once_do(&once, ends_when_it_may, NULL);
}

static void once_block(void) {
    coil_event_clear(&once_may_end);
    once = (coil_once){{0}};
    coil_detach(spawn(does_once, NULL));
    coil_yield();
}

static int once_wait(void) {
    return coil_once_do(&once, must_not_run, NULL);
}

/* The runner needs the worker to end; the waiters are told then. */
static void once_give(void) {
    coil_event_set(&once_may_end);
    coil_yield();
}

static bool once_is_idle(void) {
    return !once.opaque[0] && !once.opaque[1] && once.opaque[4];
}

static struct waitable kinds[] = {
    {"semaphore", sem_block, sem_wait_one, sem_give, sem_give, sem_is_idle},
    {"three permits", three_block, three_wait, three_give, three_done, three_is_idle},
    {"event", event_block, event_wait, event_give, nothing, event_is_idle},
    {"waitgroup", group_block, group_wait, group_give, nothing, group_is_idle},
    {"once", once_block, once_wait, once_give, nothing, once_is_idle},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

TaskTest(sync_count, a_cancelled_or_expired_task_is_refused_and_nothing_is_taken) {
    coil_event_set(&event);
    once_block();
    once_give();
    for (int k = 0; k < KINDS; k++)
        check_refusals(&kinds[k]);
    return 0;
}

WAITABLE_TESTS(sync_count, kinds)

static int meets(void *arg) {
    return coil_barrier_wait(arg);
}

static int uses_everything(void *arg) {
    COIL_BARRIER(alone, 1);
    size_t heap = check_heap_bytes();
    (void)arg;
    for (int k = 0; k < 4; k++) {
        kinds[k].block();
        kinds[k].give();
        cr_expect(kinds[k].is_idle());
    }
    cr_expect_eq(coil_barrier_wait(&alone), 1);
    cr_expect_eq(check_heap_bytes(), heap, "they allocate nothing");
    return 0;
}

Test(sync_count, nothing_is_left_behind) {
    cr_assert_eq(coil_run(uses_everything, NULL), 0);
    int fds = check_fd_count(), maps = check_map_count();
    cr_assert_eq(coil_run(uses_everything, NULL), 0);
    cr_assert_eq(check_fd_count(), fds);
    if (!CHECK_SANITIZED) cr_assert_leq(check_map_count(), maps + 8);
}

TaskTest(sync_count, an_idle_one_may_be_moved) {
    for (int k = 0; k < KINDS; k++) {
        check_order(&kinds[k]);
        coil_sem s[2] = {sem, three};
        coil_event e = event;
        coil_waitgroup g = group;
        memset(&sem, 0xee, sizeof sem);
        memset(&three, 0xee, sizeof three);
        memset(&event, 0xee, sizeof event);
        memset(&group, 0xee, sizeof group);
        sem = s[0];
        three = s[1];
        event = e;
        group = g;
        check_order(&kinds[k]);
    }
    return 0;
}

/* ---- semaphores ---- */

TaskTest(sync_count, a_semaphore_of_zeros_has_no_permits_and_anybody_may_release) {
    coil_sem s = {{0}};
    cr_expect_eq(coil_sem_tryacquire(&s, 0), 0);
    cr_expect_eq(coil_sem_tryacquire(&s, 1), -EAGAIN);
    coil_sem_release(&s, 2);
    cr_expect_eq(coil_sem_acquire(&s, 2), 0);
    cr_expect_eq(coil_sem_tryacquire(&s, 1), -EAGAIN);
    coil_sem_release(&s, UINT_MAX);
    cr_expect_eq(coil_sem_acquire(&s, UINT_MAX), 0);
    return 0;
}

static struct {
    unsigned n[8];
    int at;
} taken;

struct taker {
    coil_sem *s;
    unsigned n;
};

static int takes(void *arg) {
    const struct taker *k = arg;
    int err = coil_sem_acquire(k->s, k->n);
    if (!err) taken.n[taken.at++] = k->n;
    return err;
}

TaskTest(sync_count, who_wants_many_permits_is_not_overtaken_and_its_leaving_serves_the_others) {
    COIL_SEM(s, 2);
    struct taker five = {&s, 5}, one = {&s, 1}, two = {&s, 2};
    coil_task a = spawn(takes, &five), b = spawn(takes, &one), c = spawn(takes, &two);
    coil_yield();
    cr_expect_eq(taken.at, 0, "nobody slips past the first");
    cr_expect_eq(coil_sem_tryacquire(&s, 1), -EAGAIN, "nor does this task");
    coil_cancel(a);
    cr_expect_eq(join(a), -ECANCELED);
    cr_expect_eq(join(b), 0, "there were two all along");
    cr_expect_eq(taken.at, 1, "one is too few for the last");
    coil_sem_release(&s, 1);
    cr_expect_eq(join(c), 0);
    cr_expect(has_exactly(&s, 0));
    return 0;
}

/* ---- events ---- */

static int waits_for_event(void *arg) {
    return coil_event_wait(arg);
}

TaskTest(sync_count, who_waited_at_a_set_goes_on_though_it_was_cleared_since) {
    coil_event e = {{0}};
    cr_expect_not(coil_event_is_set(&e));
    coil_task t = spawn(waits_for_event, &e);
    coil_yield();
    coil_event_set(&e);
    coil_event_set(&e);
    cr_expect(coil_event_is_set(&e));
    coil_event_clear(&e);
    coil_cancel(t);
    cr_expect_eq(join(t), 0);
    cr_expect_not(coil_event_is_set(&e));
    return 0;
}

/* ---- barriers ---- */

TaskTest(sync_count, a_barrier_lets_all_go_on_together_and_tells_one) {
    static COIL_BARRIER(b, 4);
    for (int round = 0; round < 3; round++) {
        coil_task t[3];
        for (int i = 0; i < 3; i++)
            t[i] = spawn(meets, &b);
        for (int i = 0; i < 5; i++)
            coil_yield();
        cr_expect_eq(coil_barrier_wait(&b), 1);
        for (int i = 0; i < 3; i++)
            cr_expect_eq(join(t[i]), 0);
    }
    coil_barrier copy = b, two = COIL_BARRIER_INIT(2);
    memset(&b, 0xee, sizeof b);
    b = copy;
    coil_task t = spawn(meets, &two);
    coil_yield();
    cr_expect_eq(coil_barrier_wait(&two), 1);
    cr_expect_eq(join(t), 0);
    return 0;
}

TaskTest(sync_count, who_is_cancelled_no_longer_counts_at_a_barrier) {
    COIL_BARRIER(b, 2);
    uint32_t random = 1;
    for (int i = 0; i < task_rounds(10000); i++) {
        bool before = next_random(&random) >> 31;
        coil_task t = spawn(meets, &b), other = {0};
        coil_yield();
        if (before) {
            coil_cancel(t);
            other = spawn(meets, &b);
            coil_yield();
        }
        cr_expect_eq(coil_barrier_wait(&b), 1);
        if (!before) coil_cancel(t);
        cr_expect_eq(join(t), before ? -ECANCELED : 0);
        if (before) cr_expect_eq(join(other), 0);
    }
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(coil_barrier_wait(&b), -ETIME);
    cr_expect_eq(coil_barrier_wait(&b), -ETIME, "refused");
    coil_leave(&s);
    coil_task t = spawn(meets, &b);
    coil_yield();
    cr_expect_eq(coil_barrier_wait(&b), 1);
    cr_expect_eq(join(t), 0);
    return 0;
}

/* ---- once ---- */

static int counts(void *arg) {
    ++*(int *)arg;
    return 5;
}

static int fails(void *arg) {
    ++*(int *)arg;
    int err = coil_yield();
    return err ? err : -EIO;
}

struct attempt {
    coil_once *o;
    coil_fn *fn;
    int ran;
};

static int attempts(void *arg) {
    struct attempt *a = arg;
    return coil_once_do(a->o, a->fn, &a->ran);
}

TaskTest(sync_count, what_failed_or_was_cancelled_is_done_by_the_next) {
    coil_once o = {{0}};
    struct attempt a[5] = {{&o, fails, 0}, {&o, fails, 0}, {&o, counts, 0}, {&o, counts, 0}, {&o, counts, 0}};
    coil_task t[5];
    for (int i = 0; i < 5; i++)
        t[i] = spawn(attempts, &a[i]);
    coil_cancel(t[3]);
    coil_yield();
    coil_cancel(t[1]);
    static const int results[] = {-EIO, -ECANCELED, 0, -ECANCELED, 0}, ran[] = {1, 0, 1, 0, 0};
    for (int i = 0; i < 5; i++) {
        cr_expect_eq(join(t[i]), results[i], "%d", i);
        cr_expect_eq(a[i].ran, ran[i], "%d", i);
    }
    struct attempt late = {&o, counts, 0};
    cr_expect_eq(attempts(&late), 0);
    cr_expect_eq(late.ran, 0);
    return 0;
}

/* Cancelled before it was told to run its own, it doesn't; afterwards it does. */
TaskTest(sync_count, a_cancel_meets_the_failure_of_the_one_before) {
    uint32_t random = 1;
    for (int i = 0; i < task_rounds(10000); i++) {
        bool before = next_random(&random) >> 31;
        coil_once o = {{0}};
        struct attempt a = {&o, fails, 0}, b = {&o, counts, 0}, c = {&o, counts, 0};
        coil_task first = spawn(attempts, &a), second = spawn(attempts, &b), third = spawn(attempts, &c);
        coil_yield();
        if (before) coil_cancel(second);
        cr_expect_eq(join(first), -EIO);
        if (!before) coil_cancel(second);
        cr_expect_eq(join(second), before ? -ECANCELED : 0);
        cr_expect_eq(join(third), 0);
        cr_expect_eq(b.ran, !before);
        cr_expect_eq(c.ran, before);
    }
    return 0;
}

static int does_it_again(void *arg) {
    return coil_once_do(arg, counts, NULL);
}

TaskTest(sync_count, a_once_inside_itself_is_an_error_value) {
    coil_once o = {{0}};
    cr_expect_eq(coil_once_do(&o, does_it_again, &o), -EDEADLK);
    int ran = 0;
    cr_expect_eq(coil_once_do(&o, counts, &ran), 0, "it had failed");
    cr_expect_eq(ran, 1);
    return 0;
}

/* ---- misuse ---- */

static int runs(void *fn) {
    return coil_run(*(coil_fn **)fn, NULL);
}

static void stops(coil_fn *fn, const char *message) {
    cr_assert(check_aborts(runs, &fn, message), "%s", message);
}

static int releases_too_many(void *arg) {
    (void)arg;
    coil_sem_release(&sem, UINT_MAX);
    return 0;
}

static int waits_at_nothing(void *arg) {
    coil_barrier b = {{0}};
    (void)arg;
    return coil_barrier_wait(&b);
}

static int does_too_much(void *arg) {
    (void)arg;
    coil_waitgroup_add(&group, 1);
    coil_waitgroup_done(&group);
    coil_waitgroup_done(&group);
    return 0;
}

static int adds_too_much(void *arg) {
    (void)arg;
    coil_waitgroup_add(&group, 1);
    coil_waitgroup_add(&group, UINT_MAX);
    return 0;
}

Test(sync_count, misuse_stops_with_the_calls_name) {
    stops(releases_too_many, "coil_sem_release: more than");
    stops(waits_at_nothing, "coil_barrier_wait: a barrier of 0");
    stops(does_too_much, "coil_waitgroup_done: called more often");
    stops(adds_too_much, "coil_waitgroup_add: more than");
}

/* ---- two workers ---- */

static coil_fn *meanwhile;
static coil_barrier two_meet = COIL_BARRIER_INIT(2);

static void *second_run(void *arg) {
    (void)arg;
    return (void *)(intptr_t)coil_run(meanwhile, NULL);
}

static int in_another_thread(void) {
    pthread_t thread;
    void *result = NULL;
    if (pthread_create(&thread, NULL, second_run, NULL)) abort();
    pthread_join(thread, &result);
    return (int)(intptr_t)result;
}

static int waits_on_kind(void *arg) {
    const struct waitable *w = arg;
    return w->wait();
}

static int first_waits_on_all(void *arg) {
    (void)arg;
    for (int k = 0; k < KINDS; k++) {
        kinds[k].block();
        spawn(waits_on_kind, &kinds[k]);
    }
    spawn(meets, &two_meet);
    coil_yield();
    return in_another_thread();
}

static int acquires(void *arg) {
    (void)arg;
    return coil_sem_acquire(&sem, 1);
}

static int tries(void *arg) {
    (void)arg;
    return coil_sem_tryacquire(&sem, 1);
}

static int releases(void *arg) {
    (void)arg;
    coil_sem_release(&sem, 1);
    return 0;
}

static int sets(void *arg) {
    (void)arg;
    coil_event_set(&event);
    return 0;
}

static int clears(void *arg) {
    (void)arg;
    coil_event_clear(&event);
    return 0;
}

static int waits_for_the_event(void *arg) {
    (void)arg;
    return coil_event_wait(&event);
}

static int meets_two(void *arg) {
    (void)arg;
    return coil_barrier_wait(&two_meet);
}

static int waits_for_group(void *arg) {
    (void)arg;
    return coil_waitgroup_wait(&group);
}

static int is_done(void *arg) {
    (void)arg;
    coil_waitgroup_done(&group);
    return 0;
}

static int adds(void *arg) {
    (void)arg;
    coil_waitgroup_add(&group, 1);
    return 0;
}

Test(sync_count, use_by_another_worker_meanwhile_stops) {
    static const struct {
        coil_fn *fn;
        const char *call;
    } second[] = {{acquires, "coil_sem_acquire"},   {tries, "coil_sem_tryacquire"},
                  {releases, "coil_sem_release"},   {sets, "coil_event_set"},
                  {clears, "coil_event_clear"},     {waits_for_the_event, "coil_event_wait"},
                  {meets_two, "coil_barrier_wait"}, {waits_for_group, "coil_waitgroup_wait"},
                  {is_done, "coil_waitgroup_done"}, {adds, "coil_waitgroup_add"},
                  {does_once, "coil_once_do"}};
    for (size_t i = 0; i < sizeof second / sizeof *second; i++) {
        char message[80];
        snprintf(message, sizeof message, "%s: used by another worker", second[i].call);
        meanwhile = second[i].fn;
        stops(first_waits_on_all, message);
    }
}

static int uses_all(void *arg) {
    for (int k = 0; k < KINDS; k++)
        check_order(&kinds[k]);
    return arg ? in_another_thread() : 0;
}

static int leaves_one_undone(void *arg) {
    (void)arg;
    coil_waitgroup_add(&group, 1);
    return 0;
}

Test(sync_count, another_worker_may_have_what_is_idle) {
    meanwhile = uses_all;
    cr_assert_eq(coil_run(uses_all, &sem), 0);
    cr_assert_eq(coil_run(leaves_one_undone, NULL), 0);
    cr_assert_eq(coil_run(waits_for_group, NULL), 0, "its run has ended");
    cr_assert_eq(coil_run(uses_all, NULL), 0);
}
