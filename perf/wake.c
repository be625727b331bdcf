/* How long it takes another thread to wake a task: from its call of coil_cancel to the task running. */
#include "bench_micro.h"

#include <coil/coil.h>
#include <pthread.h>
#include <stdatomic.h>

enum { WAKES = 500 };

/* Long enough for the worker to have gone to sleep, if it has nothing to do. */
static const int64_t SETTLE_NS = 100000;

/* What the waker and the worker share: one task after another is published, cancelled, and seen to run. */
struct wakes {
    struct micro *m;
    bool busy; /* another task keeps the worker busy */
    bool done;
    coil_task sleeper;
    atomic_uint published; /* counts sleepers; its value is what the waker waits for */
    atomic_bool failed;
    _Atomic int64_t called_ns;             /* when the waker made its call */
    unsigned row;                          /* and the three behind it */
    double late_ns[WAKES], call_ns[WAKES]; /* of this round: the worker's, the waker's */
};

static int sleep_for_ever(void *arg) {
    struct wakes *k = arg;
    k->sleeper = coil_self();
    unsigned i = atomic_fetch_add(&k->published, 1);
    int err = coil_sleep(COIL_FOREVER);
    int64_t now_ns = bench_now();
    k->late_ns[i % WAKES] = (double)(now_ns - atomic_load(&k->called_ns));
    return err == -ECANCELED ? 0 : -EIO;
}

static int keep_busy(void *arg) {
    struct wakes *k = arg;
    int err = 0;
    while (!k->done && !err)
        err = coil_yield();
    return err;
}

/* Rows of the median and the 99th percentile of one round. Worker and waker each report rows of their own. */
static void report(struct wakes *k, unsigned row, double *v) {
    micro_add(k->m, row, micro_quantile(v, WAKES, 0.5));
    micro_add(k->m, row + 1, micro_quantile(v, WAKES, 0.99));
}

/* Whether the worker has published sleeper number i. */
static bool await_sleeper(struct wakes *k, unsigned i) {
    while (atomic_load(&k->published) <= i) {
        if (atomic_load(&k->failed)) return false;
    }
    for (int64_t from_ns = bench_now(); bench_now() - from_ns < SETTLE_NS;) {
    }
    return true;
}

static void *waker(void *arg) {
    struct wakes *k = arg;
    micro_pin(k->m, k->m->other_cpu);
    for (unsigned i = 0; i < WAKES * k->m->rounds && await_sleeper(k, i); i++) {
        int64_t began_ns = bench_now();
        atomic_store(&k->called_ns, began_ns);
        int err = coil_cancel(k->sleeper);
        k->call_ns[i % WAKES] = (double)(bench_now() - began_ns);
        if (err) micro_fail(k->m, "coil_cancel", err);
        if (i % WAKES == WAKES - 1) report(k, k->row + 2, k->call_ns);
    }
    return NULL;
}

/* The sleeper ends before the next one is spawned, so each wake finds the worker as it should be. */
static int wake_after_wake(void *arg) {
    struct wakes *k = arg;
    coil_task t;
    int err = k->busy ? coil_spawn(NULL, keep_busy, k) : 0;
    for (unsigned i = 0; i < WAKES * k->m->rounds && !err; i++) {
        int result = 0;
        err = coil_spawn(&t, sleep_for_ever, k);
        if (!err) err = coil_join(t, &result);
        if (!err) err = result;
        if (!err && i % WAKES == WAKES - 1) report(k, k->row, k->late_ns);
    }
    k->done = true;
    return err;
}

static void measure(struct micro *m, bool busy) {
    struct wakes *k = calloc(1, sizeof *k);
    pthread_t thread;
    if (!k) micro_fail(m, "memory", ENOMEM);
    k->m = m;
    k->busy = busy;
    k->row = micro_row(m, "ns", "to a %s worker, call to task running, p50 of %d", busy ? "busy" : "sleeping",
                       (int)WAKES);
    micro_row(m, "ns", "  p99");
    micro_row(m, "ns", "  the call itself, p50");
    micro_row(m, "ns", "  p99");
    int err = pthread_create(&thread, NULL, waker, k);
    if (err) micro_fail(m, "pthread_create", err);
    coil_run_opts o = {.external_wakes = true, .spin_max = coil_ns(-1)};
    err = coil_run_with(&o, wake_after_wake, k);
    atomic_store(&k->failed, err != 0);
    pthread_join(thread, NULL);
    if (err) micro_fail(m, coil_strerror(err), err);
    free(k);
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "wake", "Time from another thread's coil_cancel to the task running.", argc, argv);
    if (m.other_cpu < 0) micro_fail(&m, "the waking thread needs a CPU of its own", ENODEV);
    measure(&m, false);
    measure(&m, true);
    micro_end(&m);
    return 0;
}
