/* What time costs: sleeps due together and spread out, arming and cancelling a timer. */
#include "bench_micro.h"

#include <coil/coil.h>

#include "../runtime/timer.h"

enum { SLEEPS = 100000, TIMERS = 1000000 };

/* A run of batches of SLEEPS sleepers; the first ones make stacks warm and are not counted. */
struct batches {
    struct micro *m;
    int64_t lead_ns;   /* from the last spawn to the first that is due; all must be asleep by then */
    int64_t spread_ns; /* over how long they are due */
    unsigned warm_ups, rounds;
    unsigned cpu_row;
    bool lateness; /* in the two rows behind cpu_row: p50 and p99 */

    int64_t first_ns;
    unsigned begun;
    double late_us[SLEEPS];
};

static void check(const struct micro *m, int err) {
    if (err) micro_fail(m, coil_strerror(err), err);
}

/* ---- sleeps ---- */

/* In an order that has nothing to do with that of spawning: 48271 has no factor in common with SLEEPS. */
static coil_time due(struct batches *b, unsigned i) {
    int64_t share = (int64_t)((uint64_t)i * 48271 % SLEEPS);
    return (coil_time){b->first_ns + b->spread_ns / SLEEPS * share};
}

/* Does nothing but sleep, so that nothing else is measured. The last one to begin looks whether all did in
 * time: on too slow a machine for lead_ns there are no sleeps, and no figure. */
static int sleeper(void *arg) {
    struct batches *b = arg;
    unsigned i = b->begun++;
    if (UNLIKELY(i + 1 == SLEEPS) && coil_now().ns >= b->first_ns) return -EBUSY;
    return coil_sleep_until(due(b, i));
}

static int sleeper_that_looks(void *arg) {
    struct batches *b = arg;
    unsigned i = b->begun++;
    coil_time at = due(b, i);
    int err = coil_sleep_until(at);
    b->late_us[i] = (double)(coil_now().ns - at.ns) / 1000;
    return err;
}

/* Nobody runs before all are spawned, since a spawn doesn't park. */
static int sleep_all(struct batches *b, coil_fn *fn) {
    COIL_GROUP(g);
    int err = 0;
    b->begun = 0;
    for (unsigned i = 0; i < SLEEPS && !err; i++)
        err = coil_group_spawn(&g, fn, b);
    b->first_ns = coil_now().ns + b->lead_ns;
    int result = coil_group_wait(&g);
    return err ? err : result;
}

/* In a batch of its own, for looking at the clock takes time. */
static int measure_lateness(struct batches *b) {
    int err = sleep_all(b, sleeper_that_looks);
    if (err) return err;
    micro_add(b->m, b->cpu_row + 1, micro_quantile(b->late_us, SLEEPS, 0.5));
    micro_add(b->m, b->cpu_row + 2, micro_quantile(b->late_us, SLEEPS, 0.99));
    return 0;
}

static int run_batches(void *arg) {
    struct batches *b = arg;
    for (unsigned i = 0; i < b->warm_ups + b->rounds; i++) {
        int64_t began_ns = micro_cpu_ns();
        int err = sleep_all(b, sleeper);
        double cpu_ns = (double)(micro_cpu_ns() - began_ns) / SLEEPS;
        if (err) return err;
        if (i < b->warm_ups) continue;
        micro_add(b->m, b->cpu_row, cpu_ns);
        if (b->lateness && (err = measure_lateness(b))) return err;
    }
    return 0;
}

static void together_warm(struct micro *m, struct batches *b) {
    *b = (struct batches){.m = m, .lead_ns = 600000000, .warm_ups = 1, .rounds = m->rounds};
    b->cpu_row =
        micro_row(m, "ns CPU", "%d sleeps due together, spawn to end, warm stacks: each", (int)SLEEPS);
    check(m, coil_run_with(&(coil_run_opts){.stack_cache_max = SLEEPS + 1}, run_batches, b));
}

/* A run of its own for each round: no stack has been used before. */
static void together_new(struct micro *m, struct batches *b) {
    *b = (struct batches){.m = m, .lead_ns = 600000000, .rounds = 1};
    b->cpu_row =
        micro_row(m, "ns CPU", "%d sleeps due together, spawn to end, new stacks: each", (int)SLEEPS);
    for (unsigned i = 0; i < m->rounds; i++)
        check(m, coil_run(run_batches, b));
}

static void spread_out(struct micro *m, struct batches *b, coil_dur slack, const char *name) {
    *b = (struct batches){.m = m, .lead_ns = 600000000, .spread_ns = 1000000000, .warm_ups = 1};
    b->rounds = m->rounds;
    b->lateness = true;
    b->cpu_row = micro_row(m, "ns CPU", "%d sleeps spread over 1 s, slack %s: each", (int)SLEEPS, name);
    micro_row(m, "us", "  lateness, p50");
    micro_row(m, "us", "  lateness, p99");
    coil_run_opts o = {.stack_cache_max = SLEEPS + 1, .timer_slack = slack};
    check(m, coil_run_with(&o, run_batches, b));
}

/* ---- the heap ---- */

/* Moments that come in no order, the same in each round. */
static int64_t some_moment(unsigned i) {
    return (int64_t)((uint64_t)i * UINT64_C(0x9e3779b97f4a7c15) >> 20);
}

/* All are armed at once, then all cancelled, in another order. */
static void arm_and_cancel(struct micro *m, unsigned count) {
    static struct coil__sched s;
    struct coil__timer *t = calloc(count, sizeof *t);
    unsigned arm = micro_row(m, "ns", "arming a timer, 0 to %u armed", count), cancel;
    cancel = micro_row(m, "ns", "cancelling it, in another order");
    if (!t) check(m, -ENOMEM);
    for (unsigned i = 0; i < count; i++)
        check(m, coil__heap_take_seat(&s.timers));
    for (unsigned round = 0; round <= m->rounds; round++) {
        int64_t began_ns = bench_now();
        for (unsigned i = 0; i < count; i++)
            coil__timer_arm(&s, &t[i], some_moment(i));
        int64_t armed_ns = bench_now();
        for (unsigned i = 0; i < count; i++)
            coil__timer_disarm(&s, &t[(uint64_t)i * 48271 % count]);
        int64_t done_ns = bench_now();
        if (round == 0) continue; /* memory is touched for the first time */
        micro_add(m, arm, (double)(armed_ns - began_ns) / count);
        micro_add(m, cancel, (double)(done_ns - armed_ns) / count);
    }
    for (unsigned i = 0; i < count; i++)
        coil__heap_give_seat(&s.timers);
    coil__heap_free(&s.timers);
    free(t);
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "timer", "Cost of sleeps and timers; takes about four seconds a round.", argc, argv);
    struct batches *b = malloc(sizeof *b);
    if (!b) check(&m, -ENOMEM);
    fprintf(stderr, "timer: %u rounds of about four seconds each\n", m.rounds);
    arm_and_cancel(&m, SLEEPS);
    arm_and_cancel(&m, TIMERS);
    together_warm(&m, b);
    together_new(&m, b);
    spread_out(&m, b, coil_ms(1), "1 ms");
    spread_out(&m, b, coil_us(100), "0.1 ms");
    free(b);
    micro_end(&m);
    return 0;
}
