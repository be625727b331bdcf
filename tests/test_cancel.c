/* Cancelling: what it reaches, what it leaves alone, and the races with other threads. */
#include "check.h"

#include "coil/coil.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

static coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t;
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

static int join(coil_task t) {
    int got = 12345;
    cr_expect_eq(coil_join(t, &got), 0);
    return got;
}

static int sleeps_for_ever(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

/* ---- on its own worker ---- */

static int notes_that_it_ran(void *arg) {
    int *ran = arg;
    *ran = 1 + coil_cancelled();
    return coil_yield();
}

static int cancels_the_unstarted(void *arg) {
    int ran = 0;
    (void)arg;
    coil_task t = spawn(notes_that_it_ran, &ran);
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(coil_cancel(t), 0, "again is harmless");
    cr_expect_eq(join(t), -ECANCELED, "its first [parks] call refuses");
    cr_expect_eq(ran, 2, "it runs");
    return 0;
}

Test(cancel, a_task_cancelled_before_it_ran_runs_and_its_first_call_refuses) {
    cr_assert_eq(coil_run(cancels_the_unstarted, NULL), 0);
}

static int returns_seven(void *arg) {
    (void)arg;
    return 7;
}

static int cancels_the_ended(void *arg) {
    (void)arg;
    coil_task t = spawn(returns_seven, NULL);
    coil_yield();
    coil_yield();
    cr_expect_eq(coil_cancel(t), 0, "ended, not joined");
    cr_expect_eq(join(t), 7, "its result stays");
    cr_expect_eq(coil_cancel(t), -ESRCH);
    return 0;
}

Test(cancel, an_ended_task_keeps_its_result) {
    cr_assert_eq(coil_run(cancels_the_ended, NULL), 0);
}

static int cancels_itself(void *arg) {
    (void)arg;
    cr_expect_not(coil_cancelled());
    cr_expect_eq(coil_cancel(coil_self()), 0);
    cr_expect(coil_cancelled());
    for (int i = 0; i < 10; i++)
        cr_expect_eq(coil_yield(), -ECANCELED, "it stays");
    cr_expect_eq(coil_sleep(coil_ms(1)), -ECANCELED);
    cr_expect_eq(coil_join((coil_task){0}, NULL), -ECANCELED, "refused before anything is looked at");
    cr_expect_eq(coil_nop(), -ECANCELED);
    coil_task t;
    cr_expect_eq(coil_spawn(&t, returns_seven, NULL), 0, "a [now] call is not refused");
    return coil_detach(t);
}

Test(cancel, it_stays_until_the_task_ends) {
    cr_assert_eq(coil_run(cancels_itself, NULL), 0);
}

/* ---- success wins ---- */

static struct {
    coil_task target, joiner;
    int joined, next;
} won;

static int joins_target(void *arg) {
    int got = 0;
    (void)arg;
    won.joined = coil_join(won.target, &got) ? -1 : got;
    won.next = coil_yield();
    return 0;
}

static int cancels_joiner(void *arg) {
    (void)arg;
    return coil_cancel(won.joiner);
}

static int cancels_the_parked(void *arg) {
    (void)arg;
    won.target = spawn(sleeps_for_ever, NULL);
    won.joiner = spawn(joins_target, NULL);
    coil_yield();
    cr_expect_eq(coil_cancel(won.joiner), 0);
    cr_expect_eq(join(won.joiner), 0);
    cr_expect_eq(won.joined, -1);
    return coil_cancel(won.target);
}

static int yields_once_returns_seven(void *arg) {
    (void)arg;
    coil_yield();
    return 7;
}

static int result_beats_cancel(void *arg) {
    (void)arg;
    won.target = spawn(yields_once_returns_seven, NULL);
    won.joiner = spawn(joins_target, NULL);
    coil_yield(); /* the joiner is parked; the target will ready it, behind the canceller */
    coil_task canceller = spawn(cancels_joiner, NULL);
    cr_expect_eq(join(canceller), 0);
    cr_expect_eq(join(won.joiner), 0);
    cr_expect_eq(won.joined, 7, "what had happened is not lost");
    cr_expect_eq(won.next, -ECANCELED, "the cancel shows at the next call");
    return 0;
}

Test(cancel, a_result_that_came_before_the_cancel_is_returned_and_the_cancel_shows_next) {
    cr_assert_eq(coil_run(result_beats_cancel, NULL), 0);
}

Test(cancel, a_parked_join_is_woken) {
    cr_assert_eq(coil_run(cancels_the_parked, NULL), 0);
}

/* ---- a retry loop ---- */

static struct {
    int retries, ticks;
    bool stop;
} loop;

static int retries_for_ever(void *arg) {
    int (*call)(void) = *(int (**)(void))arg;
    while (!loop.stop) {
        int err = call();
        if (err != -ECANCELED && err != -ETIME) return err;
        loop.retries++;
    }
    return 0;
}

static int ticks_a_thousand_times(void *arg) {
    (void)arg;
    for (; loop.ticks < 1000; loop.ticks++) {
        if (coil_sleep(coil_us(10))) return -1;
    }
    loop.stop = true;
    return 0;
}

/* At most one retry a turn, so a sleeper that needs several turns for each tick is not held up, and ends. */
static int retry_loop_and_ticker(void *arg) {
    (void)arg;
    coil_task retrier = spawn(retries_for_ever, arg), ticker = spawn(ticks_a_thousand_times, NULL);
    coil_cancel(retrier);
    cr_expect_eq(join(ticker), 0);
    cr_expect_eq(join(retrier), 0);
    coil_stats s;
    coil_stats_get(&s);
    cr_expect_eq(loop.ticks, 1000);
    cr_expect_leq(loop.retries, (int)s.turns, "more retries than turns");
    return 0;
}

static int call_yield(void) {
    return coil_yield();
}

static int call_sleep(void) {
    return coil_sleep(coil_sec(1));
}

static int call_nop(void) {
    return coil_nop();
}

static int call_join(void) {
    return coil_join((coil_task){0}, NULL);
}

static int call_late(void) {
    coil_scope shield = coil_shield(coil_ns(0));
    int err = coil_yield();
    coil_leave(&shield);
    return err;
}

Test(cancel, a_cancelled_task_in_a_retry_loop_neither_runs_on_nor_holds_others_up) {
    static int (*const calls[])(void) = {call_yield, call_sleep, call_nop, call_join, call_late};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        loop.retries = loop.ticks = loop.stop = 0;
        int (*call)(void) = calls[i];
        cr_assert_eq(coil_run(retry_loop_and_ticker, &call), 0, "call %zu", i);
    }
}

/* ---- from other threads ---- */

enum { HANDLES = 10000 };

static struct {
    coil_task handles[HANDLES];
    atomic_int published; /* how many handles are there */
    int rounds;
    bool every_second;
    atomic_int errors, cancels;
} race;

static uint32_t next_random(uint32_t *state) {
    return *state = *state * 1664525 + 1013904223;
}

/* Cancels each handle (or each second one) at some moment after it was published. Its task may be long gone
 * by then. */
static void *cancels_published(void *arg) {
    uint32_t random = (uint32_t)(uintptr_t)arg;
    for (int done = 0; done < race.rounds; done++) {
        while (atomic_load(&race.published) <= done)
            sched_yield();
        if (race.every_second && done % 2) continue;
        for (uint32_t spin = next_random(&random) >> 22; spin; spin--)
            atomic_load(&race.published);
        if (coil_cancel(race.handles[done])) atomic_fetch_add(&race.errors, 1);
        atomic_fetch_add(&race.cancels, 1);
    }
    return NULL;
}

static void publish(coil_task t) {
    int at = atomic_load(&race.published);
    race.handles[at] = t;
    atomic_store(&race.published, at + 1);
}

static int yields_then_seven(void *arg) {
    int *outcome = arg;
    for (int i = *outcome; i > 0; i--) {
        int err = coil_yield();
        if (err) return *outcome = err;
    }
    return *outcome = 7;
}

static int races_results(void *arg) {
    uint32_t random = 1;
    int *counts = arg;
    for (int i = 0; i < race.rounds; i++) {
        int outcome = (int)(next_random(&random) >> 28);
        coil_task t = spawn(yields_then_seven, &outcome);
        publish(t);
        int got = join(t);
        cr_expect_eq(got, outcome, "what the task returned is what was joined");
        cr_expect(got == 7 || got == -ECANCELED, "%d", got);
        if (i % 2) cr_expect_eq(got, 7, "a cancel of an earlier task reached the next one in its place");
        counts[got == 7]++;
    }
    return 0;
}

static void begin_race(int rounds, bool every_second) {
    race.rounds = rounds > HANDLES ? HANDLES : rounds;
    race.every_second = every_second;
}

static void run_race(coil_fn *fn, void *arg, int threads) {
    coil_run_opts o = {.external_wakes = true};
    pthread_t t[4];
    for (int i = 0; i < threads; i++) {
        cr_assert_eq(pthread_create(&t[i], NULL, cancels_published, (void *)(uintptr_t)(i + 7)), 0);
    }
    cr_assert_eq(coil_run_with(&o, fn, arg), 0);
    for (int i = 0; i < threads; i++)
        pthread_join(t[i], NULL);
}

Test(cancel, from_another_thread_it_meets_the_tasks_end_and_one_of_both_is_the_outcome) {
    int counts[2] = {0};
    begin_race(check_thread_rounds(10000), true);
    run_race(races_results, counts, 1);
    cr_assert_eq(counts[0] + counts[1], race.rounds);
}

static int waits_for_each_cancel(void *arg) {
    for (int i = 0; i < race.rounds; i++) {
        coil_task t = spawn(sleeps_for_ever, NULL);
        publish(t);
        cr_expect_eq(join(t), -ECANCELED);
        ++*(int *)arg;
    }
    return 0;
}

Test(cancel, from_another_thread_none_is_lost) {
    int ended = 0;
    begin_race(check_thread_rounds(10000), false);
    run_race(waits_for_each_cancel, &ended, 1);
    cr_assert_eq(ended, race.rounds);
}

Test(cancel, from_two_threads_at_once_none_is_lost_and_none_hits_another_task) {
    int ended = 0, counts[2] = {0};
    begin_race(check_thread_rounds(10000), false);
    run_race(waits_for_each_cancel, &ended, 2);
    cr_assert_eq(ended, race.rounds);
    atomic_store(&race.published, 0);
    begin_race(check_thread_rounds(10000), true);
    run_race(races_results, counts, 2);
    cr_assert_eq(counts[0] + counts[1], race.rounds);
}

/* The thread holds its cancels back until the run waits for it, so that each arrives while the run is there.
 */
static atomic_bool thread_done;

static void *cancels_one_many_times(void *arg) {
    int errors = 0;
    for (int i = 0; i < 1000; i++)
        errors += coil_cancel(*(coil_task *)arg) != 0;
    atomic_fetch_add(&race.errors, errors);
    atomic_store(&thread_done, true);
    return NULL;
}

static int is_stale_by_then(void *arg) {
    pthread_t thread;
    int *seven = arg;
    coil_task t = spawn(returns_seven, NULL);
    cr_expect_eq(join(t), 7);
    cr_expect_eq(pthread_create(&thread, NULL, cancels_one_many_times, &t), 0);
    while (!atomic_load(&thread_done)) {
        coil_task next = spawn(returns_seven, NULL);
        *seven += join(next) != 7;
    }
    pthread_join(thread, NULL);
    return 0;
}

Test(cancel, from_another_thread_a_stale_handle_gives_0_while_its_run_is_there) {
    int wrong = 0;
    cr_assert_eq(coil_run(is_stale_by_then, &wrong), 0);
    cr_assert_eq(wrong, 0);
    cr_assert_eq(race.errors, 0);
}

static int hands_out_its_handle(void *arg) {
    *(coil_task *)arg = coil_self();
    return 0;
}

static int cancels_a_past_run(void *arg) {
    const coil_task *t = arg;
    cr_expect_eq(coil_cancel(*t), -ESRCH);
    cr_expect_eq(coil_join(*t, NULL), -ESRCH);
    cr_expect_eq(coil_detach(*t), -ESRCH);
    cr_expect_not(coil_task_same(*t, coil_self()), "run numbers are never used again");
    return 0;
}

Test(cancel, after_its_run_a_handle_gives_esrch_everywhere) {
    coil_task t;
    cr_assert_eq(coil_run(hands_out_its_handle, &t), 0);
    cr_assert_eq(coil_cancel(t), -ESRCH);
    cr_assert_eq(coil_cancel((coil_task){0}), -ESRCH);
    cr_assert_eq(coil_run(cancels_a_past_run, &t), 0);
}

/* Two runs cancel each other's main tasks while the runs come and go. */
static struct {
    atomic_uint worker[2];
    pthread_barrier_t barrier;
} pair;

static int cancels_its_peer(void *arg) {
    int me = *(int *)arg;
    atomic_store(&pair.worker[me], coil_self().worker);
    pthread_barrier_wait(&pair.barrier);
    coil_task peer = coil_self();
    peer.worker = atomic_load(&pair.worker[!me]);
    int err = coil_cancel(peer);
    return err ? err : coil_sleep(COIL_FOREVER);
}

static void *runs_many_times(void *arg) {
    coil_run_opts o = {.external_wakes = true};
    intptr_t wrong = 0;
    for (int i = 0; i < check_rounds(300); i++)
        wrong += coil_run_with(&o, cancels_its_peer, arg) != -ECANCELED;
    return (void *)wrong;
}

Test(cancel, reaches_tasks_of_another_run) {
    static int me[] = {0, 1};
    pthread_t thread;
    void *wrong;
    cr_assert_eq(pthread_barrier_init(&pair.barrier, NULL, 2), 0);
    cr_assert_eq(pthread_create(&thread, NULL, runs_many_times, &me[1]), 0);
    cr_assert_null(runs_many_times(&me[0]));
    pthread_join(thread, &wrong);
    cr_assert_null(wrong);
}
