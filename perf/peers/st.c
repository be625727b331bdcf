/* state-threads. It has no yield that is not a sleep, and no channel: items are handed over in a slot with
 * two conditions. */
#include "peer.h"

#include <st.h>
#include <stdlib.h>

static void check(int bad) {
    if (!bad) return;
    perror("state-threads");
    exit(1);
}

static st_thread_t spawn(void *(*fn)(void *), void *arg) {
    st_thread_t t = st_thread_create(fn, arg, 1, PEER_STACK);
    check(!t);
    return t;
}

static void *nothing(void *arg) {
    return arg;
}

static void spawn_and_join(void) {
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < PEER_SPAWNS; i++)
        check(st_thread_join(spawn(nothing, NULL), NULL));
    peer_figure("spawn", peer_cpu() - began_ns, PEER_SPAWNS);
}

struct slot {
    st_cond_t put, taken;
    int64_t item;
    bool full;
};

static void *sender(void *arg) {
    struct slot *s = arg;
    for (int64_t i = 0; i < PEER_ITEMS; i++) {
        while (s->full)
            st_cond_wait(s->taken);
        s->item = i;
        s->full = true;
        st_cond_signal(s->put);
    }
    return NULL;
}

static void hand_over(void) {
    struct slot s = {.put = st_cond_new(), .taken = st_cond_new()};
    int64_t sum = 0, began_ns = peer_cpu();
    st_thread_t t = spawn(sender, &s);
    for (int i = 0; i < PEER_ITEMS; i++) {
        while (!s.full)
            st_cond_wait(s.put);
        sum += s.item;
        s.full = false;
        st_cond_signal(s.taken);
    }
    check(st_thread_join(t, NULL));
    check(sum != (int64_t)PEER_ITEMS * (PEER_ITEMS - 1) / 2);
    peer_figure("channel", peer_cpu() - began_ns, PEER_ITEMS);
    st_cond_destroy(s.put);
    st_cond_destroy(s.taken);
}

static void lock_and_unlock(void) {
    st_mutex_t m = st_mutex_new();
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < PEER_LOCKS; i++) {
        st_mutex_lock(m);
        st_mutex_unlock(m);
    }
    peer_figure("mutex", peer_cpu() - began_ns, PEER_LOCKS);
    st_mutex_destroy(m);
}

/* A sleep counts from the clock as the scheduler read it last: from there we count too, or it would end early
 * by the time that the spawns took. */
static void *sleeper(void *arg) {
    int64_t due_us = (peer_sleeps_due(arg) + 999) / 1000, clock_us = (int64_t)st_utime_last_clock();
    check(st_usleep(due_us > clock_us ? (st_utime_t)(due_us - clock_us) : 0));
    return NULL;
}

static void sleeps(const char *name, int64_t spread_ns) {
    static st_thread_t all[PEER_SLEEPS];
    struct peer_sleeps s = {0};
    do {
        peer_sleeps_begin(&s, spread_ns);
        for (int i = 0; i < PEER_SLEEPS; i++)
            all[i] = spawn(sleeper, &s);
        peer_sleeps_spawned(&s);
        for (int i = 0; i < PEER_SLEEPS; i++)
            check(st_thread_join(all[i], NULL));
    } while (!peer_sleeps_end(&s, name));
}

static st_utime_t monotonic_us(void) {
    return (st_utime_t)(peer_now() / 1000);
}

int main(void) {
    printf("version\t%s\n", ST_VERSION);
    check(st_set_utime_function(monotonic_us) || st_set_eventsys(ST_EVENTSYS_ALT) || st_init());
    spawn_and_join();
    hand_over();
    lock_and_unlock();
    sleeps(NULL, 0);
    sleeps("together", 0);
    sleeps("spread", PEER_SECOND);
    return 0;
}
