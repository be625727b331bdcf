/* What the tests of local locks and counts share: each primitive as something that a task waits for and
 * another gives, and what must hold for all of them. */
#ifndef SYNC_WAITS_H
#define SYNC_WAITS_H

#include "tasks.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

struct waitable {
    const char *name;
    void (*block)(void);   /* from now on a wait parks */
    int (*wait)(void);     /* the [parks] call */
    void (*give)(void);    /* what ends it */
    void (*done)(void);    /* by one whose wait returned 0 */
    bool (*is_idle)(void); /* after all that: nothing was lost, nothing is held */
};

static inline uint32_t next_random(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u;
}

/* ---- a cancelled or expired task is refused, and nothing is done ---- */

static inline int is_refused(void *arg) {
    const struct waitable *w = arg;
    coil_cancel(coil_self());
    cr_expect_eq(w->wait(), -ECANCELED, "%s", w->name);
    coil_scope shield = coil_shield(coil_sec(60));
    cr_expect(w->is_idle(), "%s", w->name);
    coil_scope s = coil_until((coil_time){0});
    cr_expect_eq(w->wait(), -ETIME, "%s", w->name);
    cr_expect(coil_leave(&s), "%s", w->name);
    cr_expect(w->is_idle(), "%s", w->name);
    cr_expect_eq(w->wait(), 0, "%s: a shield lets it in", w->name);
    w->done();
    coil_leave(&shield);
    return 0;
}

static inline void check_refusals(struct waitable *w) {
    join(spawn(is_refused, w));
}

/* ---- waiting ---- */

static struct { int order[16], at; } woken;

struct waiter {
    struct waitable *w;
    int number;
    coil_dur limit; /* none: 0 */
    bool shielded;
};

static inline int waits(void *arg) {
    const struct waiter *me = arg;
    int err;
    {
        coil_scope s =
            me->shielded ? coil_shield(coil_sec(60)) : coil_within(me->limit.ns ? me->limit : COIL_FOREVER);
        err = me->w->wait();
        cr_expect_eq(coil_leave(&s), err == -ETIME, "%s", me->w->name);
    }
    if (err) return err;
    if (woken.at < 16) woken.order[woken.at++] = me->number;
    coil_yield(); /* is refused to a cancelled one, who must be able to let go all the same */
    me->w->done();
    return 0;
}

static inline void check_order(struct waitable *w) {
    struct waiter waiters[8];
    coil_task t[8];
    woken.at = 0;
    w->block();
    for (int i = 0; i < 8; i++) {
        waiters[i] = (struct waiter){.w = w, .number = i, .shielded = i == 5};
        t[i] = spawn(waits, &waiters[i]);
        coil_yield();
    }
    cr_expect_eq(woken.at, 0, "%s: nobody had it", w->name);
    coil_cancel(t[0]);
    coil_cancel(t[3]);
    coil_cancel(t[5]);
    cr_expect_eq(join(t[0]), -ECANCELED, "%s", w->name);
    cr_expect_eq(join(t[3]), -ECANCELED, "%s", w->name);
    w->give();
    for (int i = 0; i < 8; i++)
        if (i != 0 && i != 3) cr_expect_eq(join(t[i]), 0, "%s, waiter %d", w->name, i);
    static const int order[] = {1, 2, 4, 5, 6, 7};
    cr_expect_eq(woken.at, 6, "%s", w->name);
    cr_expect_arr_eq(woken.order, order, sizeof order, "%s: first come, first served", w->name);
    cr_expect(w->is_idle(), "%s", w->name);
}

static inline void check_limit(struct waitable *w) {
    struct waiter me = {.w = w, .limit = coil_ms(1)};
    w->block();
    cr_expect_eq(join(spawn(waits, &me)), -ETIME, "%s", w->name);
    w->give();
    cr_expect(w->is_idle(), "%s: who was out of time has left the line", w->name);
}

/* ---- races, with one outcome each ---- */

/* Two wait; one of them is cancelled just before or just after the first of them was given it. */
static inline void check_cancel_against_give(struct waitable *w) {
    uint32_t random = 1;
    struct waiter a = {.w = w}, b = {.w = w};
    coil_task t[2];
    int seen[2] = {0};
    for (int i = 0; i < task_rounds(10000); i++) {
        unsigned how = next_random(&random) >> 30, who = next_random(&random) >> 31;
        woken.at = 0;
        w->block();
        t[0] = spawn(waits, &a);
        t[1] = spawn(waits, &b);
        coil_yield();
        if (how & 1) coil_cancel(t[who]);
        w->give();
        if (!(how & 1)) coil_cancel(t[who]);
        int got = join(t[who]), other = join(t[!who]);
        cr_expect(got == 0 || got == -ECANCELED, "%s: %d", w->name, got);
        if (how & 1) cr_expect_eq(got, -ECANCELED, "%s: it had left the line", w->name);
        if (!(how & 1) && who == 0) cr_expect_eq(got, 0, "%s: it was given it", w->name);
        cr_expect_eq(other, 0, "%s", w->name);
        cr_expect(w->is_idle(), "%s", w->name);
        seen[got == 0]++;
    }
    cr_expect(task_rounds(10000) < 100 || (seen[0] && seen[1]), "%s: %d and %d", w->name, seen[0], seen[1]);
}

/* The limit strikes at about the moment at which it is given. */
static inline void check_limit_against_give(struct waitable *w) {
    uint32_t random = 1;
    for (int i = 0; i < task_rounds(10000); i++) {
        struct waiter me = {.w = w, .limit = coil_us(next_random(&random) >> 28)};
        woken.at = 0;
        w->block();
        coil_task t = spawn(waits, &me);
        for (unsigned n = 1 + (next_random(&random) >> 28); n; n--)
            coil_yield();
        w->give();
        int got = join(t);
        cr_expect(got == 0 || got == -ETIME, "%s: %d", w->name, got);
        cr_expect_eq(woken.at, got == 0, "%s", w->name);
        cr_expect(w->is_idle(), "%s", w->name);
    }
}

static struct {
    atomic_int asked, answered;
    coil_task target;
    int rounds, errors;
} thread_race;

static inline void *cancels_targets(void *arg) {
    uint32_t random = (uint32_t)(uintptr_t)arg;
    for (int i = 1; i <= thread_race.rounds; i++) {
        while (atomic_load(&thread_race.asked) < i)
            sched_yield();
        for (uint32_t spin = next_random(&random) >> 24; spin; spin--)
            atomic_load(&thread_race.asked);
        if (coil_cancel(thread_race.target)) thread_race.errors++;
        atomic_store(&thread_race.answered, i);
    }
    return NULL;
}

/* Beside a thread that runs cancels_targets. */
static inline void check_cancel_from_a_thread(struct waitable *w, int first, int rounds) {
    uint32_t random = 1;
    struct waiter me = {.w = w};
    for (int i = first + 1; i <= first + rounds; i++) {
        w->block();
        coil_task t = spawn(waits, &me);
        thread_race.target = t;
        atomic_store(&thread_race.asked, i);
        for (unsigned n = next_random(&random) >> 28; n; n--)
            coil_yield();
        w->give();
        int got = join(t);
        cr_expect(got == 0 || got == -ECANCELED, "%s: %d", w->name, got);
        cr_expect(w->is_idle(), "%s", w->name);
        while (atomic_load(&thread_race.answered) < i)
            sched_yield();
    }
}

/* ---- many ---- */

static int many_done;

static inline int is_one_of_many(void *arg) {
    struct waitable *w = arg;
    int err = w->wait();
    if (err) return err;
    many_done++;
    w->done();
    return 0;
}

static inline void check_many(struct waitable *w) {
    int n = check_on_uml() ? 500 : task_rounds(10000);
    many_done = 0;
    w->block();
    COIL_GROUP(g);
    for (int i = 0; i < n; i++)
        cr_expect_eq(coil_group_spawn(&g, is_one_of_many, w), 0);
    coil_yield();
    cr_expect_eq(many_done, 0, "%s", w->name);
    w->give();
    cr_expect_eq(coil_group_wait(&g), 0, "%s", w->name);
    cr_expect_eq(many_done, n, "%s", w->name);
    cr_expect(w->is_idle(), "%s", w->name);
}

/* ---- what holds for all of them ---- */

static inline void for_each_kind(struct waitable *kinds, int count, void (*check)(struct waitable *w)) {
    for (int k = 0; k < count; k++)
        check(&kinds[k]);
}

struct kinds {
    struct waitable *all;
    int count;
};

static inline int races_with_a_thread(void *arg) {
    const struct kinds *k = arg;
    int rounds = check_thread_rounds(10000);
    for (int i = 0; i < k->count; i++)
        check_cancel_from_a_thread(&k->all[i], i * rounds, rounds);
    return 0;
}

static inline void check_cancels_from_a_thread(struct kinds kinds) {
    coil_run_opts o = {.external_wakes = true};
    pthread_t thread;
    thread_race.rounds = kinds.count * check_thread_rounds(10000);
    cr_assert_eq(pthread_create(&thread, NULL, cancels_targets, (void *)(uintptr_t)7), 0);
    cr_assert_eq(coil_run_with(&o, races_with_a_thread, &kinds), 0);
    pthread_join(thread, NULL);
    cr_assert_eq(thread_race.errors, 0);
}

#define EACH_KIND_(Suite, Name, Kinds, Check)                             \
    TaskTest(Suite, Name) {                                               \
        for_each_kind(Kinds, (int)(sizeof Kinds / sizeof *Kinds), Check); \
        return 0;                                                         \
    }

/* The tests of a suite whose primitives are in the array Kinds. */
#define WAITABLE_TESTS(Suite, Kinds)                                                                \
    EACH_KIND_(Suite, first_come_first_served_without_those_who_were_cancelled, Kinds, check_order) \
    EACH_KIND_(Suite, one_that_is_out_of_time_has_left_the_line, Kinds, check_limit)                \
    EACH_KIND_(Suite, a_cancel_meets_a_hand_over_and_one_of_both_is_the_outcome, Kinds,             \
               check_cancel_against_give)                                                           \
    EACH_KIND_(Suite, a_limit_meets_a_hand_over_and_one_of_both_is_the_outcome, Kinds,              \
               check_limit_against_give)                                                            \
    EACH_KIND_(Suite, many_wait_and_all_get_it, Kinds, check_many)                                  \
    Test(Suite, a_cancel_from_another_thread_meets_a_hand_over) {                                   \
        check_cancels_from_a_thread((struct kinds){Kinds, (int)(sizeof Kinds / sizeof *Kinds)});    \
    }

#endif
