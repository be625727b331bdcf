/* What the programs in C and C++ share: clocks, counts, when a sleep is due, and how a figure is printed.
 * Each program measures each figure once; perf/peers/run starts them by turns, and takes the medians. All
 * figures are CPU time of the process, kernel included: nobody waits for anything but sleeps, so on an idle
 * machine that is the time that passes, and on a busy one it still says something. */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

enum {
    PEER_YIELDS = 1000000,
    PEER_SPAWNS = 200000,
    PEER_ITEMS = 500000,
    PEER_LOCKS = 5000000,
    PEER_SLEEPS = 100000,
    PEER_STACK = 64 * 1024 /* what coil gives a task by default */
};

static const int64_t PEER_SECOND = 1000000000;

static inline int64_t peer_clock(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * PEER_SECOND + ts.tv_nsec;
}

static inline int64_t peer_now(void) {
    return peer_clock(CLOCK_MONOTONIC);
}

static inline int64_t peer_cpu(void) {
    return peer_clock(CLOCK_PROCESS_CPUTIME_ID);
}

/* A figure: so many ns of CPU time each. The names are those of the table in perf/peers/run. */
static inline void peer_figure(const char *name, int64_t ns, int64_t count) {
    printf("%s\t%.3f\n", name, (double)ns / (double)count);
    fflush(stdout);
}

/* ---- yields: all tasks count in one place, and whoever finds the count used up begins or ends the measuring
 * ---- */

struct peer_yields {
    int left;
    int64_t began_ns, ns; /* both 0: still warming up */
};

static inline void peer_yields_begin(struct peer_yields *y, int tasks) {
    y->left = 4 * tasks; /* stacks and records are touched for the first time */
    y->began_ns = y->ns = 0;
}

/* After each yield: is there another one to make? */
static inline bool peer_yields_go_on(struct peer_yields *y) {
    if (y->ns != 0) return false;
    if (--y->left > 0) return true;
    int64_t now_ns = peer_cpu();
    if (y->began_ns != 0) {
        y->ns = now_ns - y->began_ns;
        return false;
    }
    y->began_ns = now_ns;
    y->left = PEER_YIELDS;
    return true;
}

static inline void peer_yields_end(const struct peer_yields *y, int tasks) {
    char name[32];
    snprintf(name, sizeof name, "yield_%d", tasks);
    peer_figure(name, y->ns, PEER_YIELDS);
}

/* ---- sleeps: spawned first, then told the moment from which on they are due; where the last task came to
 * its sleep only after that moment, the batch is made again with twice the time ---- */

struct peer_sleeps {
    int64_t lead_ns, first_ns, spread_ns, began_cpu_ns;
    int begun;
    bool too_slow;
};

static inline void peer_sleeps_begin(struct peer_sleeps *s, int64_t spread_ns) {
    s->lead_ns = s->too_slow ? s->lead_ns * 2 : PEER_SECOND / 2;
    s->spread_ns = spread_ns;
    s->begun = 0;
    s->too_slow = false;
    s->began_cpu_ns = peer_cpu();
}

/* All are spawned, and none has run. */
static inline void peer_sleeps_spawned(struct peer_sleeps *s) {
    s->first_ns = peer_now() + s->lead_ns;
}

/* When the calling task's sleep is to end: in an order that has nothing to do with that of spawning (48271
 * has no factor in common with PEER_SLEEPS). */
static inline int64_t peer_sleeps_due(struct peer_sleeps *s) {
    int64_t share = (int64_t)s->begun * 48271 % PEER_SLEEPS;
    if (++s->begun == PEER_SLEEPS) s->too_slow = peer_now() >= s->first_ns;
    return s->first_ns + s->spread_ns / PEER_SLEEPS * share;
}

/* All have ended; false: make them again. A batch without a name was to warm the stacks. */
static inline bool peer_sleeps_end(const struct peer_sleeps *s, const char *name) {
    int64_t cpu_ns = peer_cpu() - s->began_cpu_ns;
    int64_t last_ns = s->first_ns + s->spread_ns / PEER_SLEEPS * (PEER_SLEEPS - 1);
    if (!name) return true;
    if (s->too_slow) return false;
    if (peer_now() >= last_ns)
        peer_figure(name, cpu_ns, PEER_SLEEPS);
    else
        fprintf(stderr, "no figure for %s: a sleep ended early\n", name);
    return true;
}

#endif
