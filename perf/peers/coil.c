/* coil's own figures, through the public API. */
#include "peer.h"

#include <coil/coil.h>
#include <errno.h>
#include <stdlib.h>

static void check(int err) {
    if (err >= 0) return;
    fprintf(stderr, "coil: %s\n", coil_strerror(err));
    exit(1);
}

static int yielder(void *arg) {
    struct peer_yields *y = arg;
    do
        check(coil_yield());
    while (peer_yields_go_on(y));
    return 0;
}

static void yields(int tasks) {
    struct peer_yields y;
    COIL_GROUP(g);
    peer_yields_begin(&y, tasks);
    for (int i = 0; i < tasks; i++)
        check(coil_group_spawn(&g, yielder, &y));
    check(coil_group_wait(&g));
    peer_yields_end(&y, tasks);
}

static int nothing(void *arg) {
    (void)arg;
    return 0;
}

static void spawn_and_join(void) {
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < PEER_SPAWNS; i++) {
        coil_task t;
        int result;
        check(coil_spawn(&t, nothing, NULL));
        check(coil_join(t, &result));
    }
    peer_figure("spawn", peer_cpu() - began_ns, PEER_SPAWNS);
}

static int sender(void *arg) {
    coil_chan *c = arg;
    for (int64_t i = 0; i < PEER_ITEMS; i++)
        check(coil_chan_send(c, &i));
    coil_chan_close(c);
    return 0;
}

static void hand_over(void) {
    int64_t item, sum = 0, began_ns = peer_cpu();
    COIL_CHAN(c, int64_t, 0);
    COIL_GROUP(g);
    check(coil_group_spawn(&g, sender, &c));
    while (coil_chan_recv(&c, &item) == 1)
        sum += item;
    check(coil_group_wait(&g));
    if (sum != (int64_t)PEER_ITEMS * (PEER_ITEMS - 1) / 2) check(-EPROTO);
    peer_figure("channel", peer_cpu() - began_ns, PEER_ITEMS);
}

static void lock_and_unlock(void) {
    coil_mutex m = {0};
    int64_t began_ns = peer_cpu();
    for (int i = 0; i < PEER_LOCKS; i++) {
        check(coil_mutex_lock(&m));
        coil_mutex_unlock(&m);
    }
    peer_figure("mutex", peer_cpu() - began_ns, PEER_LOCKS);
}

static int sleeper(void *arg) {
    return coil_sleep_until((coil_time){peer_sleeps_due(arg)});
}

static void sleeps(const char *name, int64_t spread_ns) {
    struct peer_sleeps s = {0};
    do {
        COIL_GROUP(g);
        peer_sleeps_begin(&s, spread_ns);
        for (int i = 0; i < PEER_SLEEPS; i++)
            check(coil_group_spawn(&g, sleeper, &s));
        peer_sleeps_spawned(&s);
        check(coil_group_wait(&g));
    } while (!peer_sleeps_end(&s, name));
}

static int measure(void *arg) {
    (void)arg;
    yields(2);
    yields(1000);
    spawn_and_join();
    hand_over();
    lock_and_unlock();
    sleeps(NULL, 0);
    sleeps("together", 0);
    sleeps("spread", PEER_SECOND);
    return 0;
}

int main(void) {
    printf("version\t%d.%d.%d\n", COIL_VERSION_MAJOR, COIL_VERSION_MINOR, COIL_VERSION_PATCH);
    /* The peers that pool stacks keep them all, too. */
    check(coil_run_with(&(coil_run_opts){.stack_cache_max = PEER_SLEEPS + 1}, measure, NULL));
    return 0;
}
