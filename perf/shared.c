/* How long a hand-over between two threads takes: of two workers, by shared semaphores; of two plain threads,
 * by shared semaphores, and by a mutex and conditions of their own. */
#include "bench_micro.h"

#include <coil/coil.h>
#include <pthread.h>

enum { TURNS = 2000 }; /* there and back, in one round */

enum kind { WORKERS, THREADS, CONDITIONS };

/* One side of the table. */
struct side {
    struct table *table;
    unsigned mine; /* the semaphore that it waits for; it releases the other one */
    int cpu;
};

struct table {
    struct micro *m;
    enum kind kind;
    unsigned row;
    coil_shared_sem sem[2];
    pthread_mutex_t lock;
    pthread_cond_t changed[2];
    unsigned permits[2];
    struct side side[2];
};

static void release(struct table *t, unsigned i) {
    if (t->kind != CONDITIONS) {
        coil_shared_sem_release(&t->sem[i], 1);
        return;
    }
    pthread_mutex_lock(&t->lock);
    t->permits[i]++;
    pthread_cond_signal(&t->changed[i]);
    pthread_mutex_unlock(&t->lock);
}

static int acquire(struct table *t, unsigned i) {
    if (t->kind != CONDITIONS) return coil_shared_sem_acquire(&t->sem[i], 1);
    pthread_mutex_lock(&t->lock);
    while (t->permits[i] == 0)
        pthread_cond_wait(&t->changed[i], &t->lock);
    t->permits[i]--;
    pthread_mutex_unlock(&t->lock);
    return 0;
}

/* The side that has semaphore 0 serves, and reads the clock. */
static int plays(void *arg) {
    const struct side *s = arg;
    struct table *t = s->table;
    int err = 0;
    for (unsigned round = 0; round < t->m->rounds && !err; round++) {
        int64_t began_ns = bench_now();
        for (int i = 0; i < TURNS && !err; i++) {
            if (s->mine == 0) release(t, 1);
            err = acquire(t, s->mine);
            if (s->mine == 1) release(t, 0);
        }
        if (s->mine == 0) micro_add(t->m, t->row, (double)(bench_now() - began_ns) / (2.0 * TURNS));
    }
    return err;
}

static void *takes_a_side(void *arg) {
    struct side *s = arg;
    struct micro *m = s->table->m;
    micro_pin(m, s->cpu);
    int err = s->table->kind == WORKERS ? coil_run(plays, s) : plays(s);
    if (err) micro_fail(m, "a side of the table", err);
    return NULL;
}

static void measure(struct micro *m, enum kind kind, const char *what) {
    pthread_t thread[2];
    struct table t = {.m = m,
                      .kind = kind,
                      .lock = PTHREAD_MUTEX_INITIALIZER,
                      .changed = {PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER}};
    t.row = micro_row(m, "ns", "one hand-over, %s", what);
    for (unsigned i = 0; i < 2; i++) {
        t.side[i] = (struct side){.table = &t, .mine = i, .cpu = i ? m->other_cpu : m->cpu};
        int err = pthread_create(&thread[i], NULL, takes_a_side, &t.side[i]);
        if (err) micro_fail(m, "pthread_create", err);
    }
    for (unsigned i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "shared", "Time to hand over between two threads, each on a CPU of its own.", argc, argv);
    if (m.other_cpu < 0) micro_fail(&m, "the other thread needs a CPU of its own", ENODEV);
    measure(&m, WORKERS, "two workers, coil_shared_sem");
    measure(&m, THREADS, "two plain threads, coil_shared_sem");
    measure(&m, CONDITIONS, "two plain threads, pthread_cond_t");
    micro_end(&m);
    return 0;
}
