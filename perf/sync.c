/* What the local locks and counts cost where nobody waits, and a mutex handed over between two tasks; beside
 * them a pthread mutex that nobody contends, in the same rounds. */
#include "bench_micro.h"

#include <coil/coil.h>
#include <pthread.h>

enum { CALLS = 2000000, HAND_OVERS = 400000 };

static coil_mutex mutex;
static coil_rwlock rwlock;
static COIL_SEM(sem, 1);
static coil_event event;
static pthread_mutex_t pthread_lock = PTHREAD_MUTEX_INITIALIZER;

static int time_mutex(void) {
    int err = 0;
    for (int i = 0; i < CALLS && !err; i++) {
        err = coil_mutex_lock(&mutex);
        if (!err) coil_mutex_unlock(&mutex);
    }
    return err;
}

static int time_pthread(void) {
    int err = 0;
    for (int i = 0; i < CALLS && !err; i++) {
        err = pthread_mutex_lock(&pthread_lock);
        if (!err) err = pthread_mutex_unlock(&pthread_lock);
    }
    return -err;
}

static int time_read_lock(void) {
    int err = 0;
    for (int i = 0; i < CALLS && !err; i++) {
        err = coil_rwlock_rdlock(&rwlock);
        if (!err) coil_rwlock_unlock(&rwlock);
    }
    return err;
}

static int time_write_lock(void) {
    int err = 0;
    for (int i = 0; i < CALLS && !err; i++) {
        err = coil_rwlock_wrlock(&rwlock);
        if (!err) coil_rwlock_unlock(&rwlock);
    }
    return err;
}

static int time_sem(void) {
    int err = 0;
    for (int i = 0; i < CALLS && !err; i++) {
        err = coil_sem_acquire(&sem, 1);
        if (!err) coil_sem_release(&sem, 1);
    }
    return err;
}

static int time_event(void) {
    int err = 0;
    coil_event_set(&event);
    for (int i = 0; i < CALLS && !err; i++)
        err = coil_event_wait(&event);
    return err;
}

/* Each lock finds the other task in possession, and waits for it to give way. */
static int locks_and_yields(void *arg) {
    int err = 0;
    (void)arg;
    for (int i = 0; i < HAND_OVERS / 2 && !err; i++) {
        err = coil_mutex_lock(&mutex);
        if (err) break;
        err = coil_yield();
        coil_mutex_unlock(&mutex);
    }
    return err;
}

static int time_hand_over(void) {
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, locks_and_yields, NULL);
    if (!err) err = coil_group_spawn(&g, locks_and_yields, NULL);
    int result = coil_group_wait(&g);
    return err ? err : result;
}

static const struct figure {
    const char *what;
    int (*run)(void);
    int calls;
} figures[] = {
    {"pthread_mutex_lock and unlock, uncontended", time_pthread, CALLS},
    {"coil_mutex_lock and unlock, uncontended", time_mutex, CALLS},
    {"coil_rwlock_rdlock and unlock, uncontended", time_read_lock, CALLS},
    {"coil_rwlock_wrlock and unlock, uncontended", time_write_lock, CALLS},
    {"coil_sem_acquire and release of a permit that is there", time_sem, CALLS},
    {"coil_event_wait for one that is set", time_event, CALLS},
    {"a mutex handed over, and a yield, between two tasks", time_hand_over, HAND_OVERS},
};

enum { FIGURES = sizeof figures / sizeof *figures };

static int measure(void *arg) {
    struct micro *m = arg;
    unsigned row[FIGURES];
    for (unsigned i = 0; i < FIGURES; i++)
        row[i] = micro_row(m, "ns", "%s", figures[i].what);
    for (unsigned round = 0; round < m->rounds; round++) {
        for (unsigned i = 0; i < FIGURES; i++) {
            int64_t began_ns = bench_now();
            int err = figures[i].run();
            if (err) return err;
            micro_add(m, row[i], (double)(bench_now() - began_ns) / figures[i].calls);
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "sync", "Time of local locks and counts, beside a pthread mutex.", argc, argv);
    int err = coil_run(measure, &m);
    if (err) micro_fail(&m, coil_strerror(err), err);
    micro_end(&m);
    return 0;
}
