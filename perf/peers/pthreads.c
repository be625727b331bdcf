/* Threads of the kernel, all on one CPU: what one has without any library. */
#include "peer.h"

#include <gnu/libc-version.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { YIELDS = 200000, SPAWNS = 5000, ITEMS = 50000, THREADS_MAX = 1000 }; /* these are slower */

static void check(int err) {
    if (!err) return;
    fprintf(stderr, "pthreads: %s\n", strerror(err));
    exit(1);
}

static pthread_t spawn(void *(*fn)(void *), void *arg) {
    pthread_t t;
    pthread_attr_t a;
    check(pthread_attr_init(&a));
    check(pthread_attr_setstacksize(&a, PEER_STACK));
    check(pthread_create(&t, &a, fn, arg));
    check(pthread_attr_destroy(&a));
    return t;
}

struct yielders {
    pthread_barrier_t start;
    int each;
};

static void *yielder(void *arg) {
    struct yielders *y = arg;
    pthread_barrier_wait(&y->start);
    for (int i = 0; i < y->each; i++)
        sched_yield();
    return NULL;
}

static void yields(const char *name, int threads) {
    pthread_t all[THREADS_MAX];
    struct yielders y = {.each = YIELDS / threads};
    check(pthread_barrier_init(&y.start, NULL, (unsigned)threads + 1));
    for (int i = 0; i < threads; i++)
        all[i] = spawn(yielder, &y);
    pthread_barrier_wait(&y.start);
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < threads; i++)
        check(pthread_join(all[i], NULL));
    peer_figure(name, peer_cpu() - began_ns, YIELDS);
    pthread_barrier_destroy(&y.start);
}

static void *nothing(void *arg) {
    return arg;
}

static void spawn_and_join(void) {
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < SPAWNS; i++)
        check(pthread_join(spawn(nothing, NULL), NULL));
    peer_figure("spawn", peer_cpu() - began_ns, SPAWNS);
}

struct slot {
    pthread_mutex_t lock;
    pthread_cond_t put, taken;
    int64_t item;
    bool full;
};

static void *sender(void *arg) {
    struct slot *s = arg;
    for (int64_t i = 0; i < ITEMS; i++) {
        pthread_mutex_lock(&s->lock);
        while (s->full)
            pthread_cond_wait(&s->taken, &s->lock);
        s->item = i;
        s->full = true;
        pthread_cond_signal(&s->put);
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

static void hand_over(void) {
    static struct slot s = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, 0,
                            false};
    int64_t sum = 0, began_ns = peer_cpu();
    pthread_t t = spawn(sender, &s);
    for (int i = 0; i < ITEMS; i++) {
        pthread_mutex_lock(&s.lock);
        while (!s.full)
            pthread_cond_wait(&s.put, &s.lock);
        sum += s.item;
        s.full = false;
        pthread_cond_signal(&s.taken);
        pthread_mutex_unlock(&s.lock);
    }
    check(pthread_join(t, NULL));
    if (sum == (int64_t)ITEMS * (ITEMS - 1) / 2) peer_figure("channel", peer_cpu() - began_ns, ITEMS);
}

static void *lock_and_unlock(void *arg) {
    static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < PEER_LOCKS; i++) {
        pthread_mutex_lock(&m);
        pthread_mutex_unlock(&m);
    }
    peer_figure("mutex", peer_cpu() - began_ns, PEER_LOCKS);
    return arg;
}

int main(void) {
    printf("version\t%s\n", gnu_get_libc_version());
    yields("yield_2", 2);
    yields("yield_1000", THREADS_MAX);
    spawn_and_join();
    hand_over();
    /* By a second thread: as long as there is one only, the C library leaves atomic instructions out. */
    check(pthread_join(spawn(lock_and_unlock, NULL), NULL));
    return 0;
}
