/* What a task costs from spawn to join, when it does nothing and its stack is warm. */
#include "bench_micro.h"

#include <coil/coil.h>

enum { TASKS = 200000, AT_ONCE = 1000 };

static int nothing(void *arg) {
    (void)arg;
    return 0;
}

static int spawn_and_join(unsigned at_once, double *ns) {
    coil_task t[AT_ONCE];
    int64_t began_ns = bench_now();
    for (int n = 0; n < TASKS; n += (int)at_once) {
        int err = 0, result;
        for (unsigned i = 0; i < at_once && !err; i++)
            err = coil_spawn(&t[i], nothing, NULL);
        for (unsigned i = 0; i < at_once && !err; i++)
            err = coil_join(t[i], &result);
        if (err) return err;
    }
    *ns = (double)(bench_now() - began_ns) / TASKS;
    return 0;
}

static int run_rounds(void *arg) {
    struct micro *m = arg;
    static const unsigned at_once[] = {1, AT_ONCE};
    unsigned row[2];
    double ns;
    for (int k = 0; k < 2; k++) {
        row[k] = micro_row(m, "ns", "spawn and join: %u at a time, %d tasks", at_once[k], (int)TASKS);
        int err = spawn_and_join(at_once[k], &ns); /* makes the stacks warm */
        if (err) return err;
    }
    for (unsigned i = 0; i < m->rounds; i++) {
        for (int k = 0; k < 2; k++) {
            int err = spawn_and_join(at_once[k], &ns);
            if (err) return err;
            micro_add(m, row[k], ns);
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    struct micro m;
    micro_begin(&m, "spawn", "Time of one coil_spawn with its coil_join.", argc, argv);
    int err = coil_run(run_rounds, &m);
    if (err) micro_fail(&m, coil_strerror(err), err);
    micro_end(&m);
    return 0;
}
