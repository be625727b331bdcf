/* When to poll before blocking. A wake-up from idle costs more than a short poll, so a server polls for at
 * most max_ns, and only while the gaps it has lately seen between "nothing to do" and "something to do" were
 * short: the moving average of the gaps is below gap_ns. A gap far longer than that counts as a few times
 * gap_ns only, so that one pause does not hide the traffic after it. */
#ifndef BENCH_SPIN_H
#define BENCH_SPIN_H

#include <stdbool.h>
#include <stdint.h>

struct bench_spin {
    int64_t max_ns, gap_ns, average_ns; /* max_ns 0: never polls */
};

static inline bool bench_spin_wanted(const struct bench_spin *s) {
    return s->max_ns > 0 && s->average_ns < s->gap_ns;
}

static inline void bench_spin_learn(struct bench_spin *s, int64_t gap_ns) {
    int64_t most = 4 * s->gap_ns;
    s->average_ns += ((gap_ns < most ? gap_ns : most) - s->average_ns) / 8;
}

static inline void bench_spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

#endif
