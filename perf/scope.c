/* What a limit around an operation costs, and the reading of the clock that one of its forms contains. */
#include "bench_micro.h"

#include <coil/coil.h>

enum { SCOPES = 1000000 };

static double until_ns(void) {
    coil_time at = coil_after(coil_sec(1000));
    int64_t began_ns = bench_now();
    for (int i = 0; i < SCOPES; i++) {
        coil_scope s = coil_until(at);
        coil_leave(&s);
    }
    return (double)(bench_now() - began_ns) / SCOPES;
}

static double within_ns(void) {
    int64_t began_ns = bench_now();
    for (int i = 0; i < SCOPES; i++) {
        coil_scope s = coil_within(coil_sec(1000));
        coil_leave(&s);
    }
    return (double)(bench_now() - began_ns) / SCOPES;
}

static double clock_ns(void) {
    int64_t began_ns = bench_now();
    for (int i = 0; i < SCOPES; i++)
        bench_now();
    return (double)(bench_now() - began_ns) / SCOPES;
}

static int run_rounds(void *arg) {
    struct micro *m = arg;
    unsigned until = micro_row(m, "ns", "coil_until and coil_leave");
    unsigned within = micro_row(m, "ns", "coil_within (reads the clock) and coil_leave");
    unsigned floor = micro_row(m, "ns", "clock_gettime alone");
    for (unsigned i = 0; i < m->rounds; i++) {
        micro_add(m, until, until_ns());
        micro_add(m, within, within_ns());
        micro_add(m, floor, clock_ns());
    }
    return 0;
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "scope", "Time of setting and leaving a limit, one million times.", argc, argv);
    int err = coil_run(run_rounds, &m);
    if (err) micro_fail(&m, coil_strerror(err), err);
    micro_end(&m);
    return 0;
}
