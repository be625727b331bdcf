/* What a yield costs among few and among many tasks: with many, a resume is bound by cache misses on records
 * and stacks. The worker's turns, with their budgets and system calls, are part of it. */
#include "bench_micro.h"

#include <coil/coil.h>

enum { YIELDS = 2000000 };

struct yielders {
    struct micro *m;
    unsigned row, tasks;
    unsigned left;  /* yields until the round is over */
    unsigned round; /* 0 is not counted: stacks and records are touched for the first time */
    int64_t began_ns;
};

static void next_round(struct yielders *y) {
    int64_t now_ns = bench_now();
    if (y->round > 0) micro_add(y->m, y->row, (double)(now_ns - y->began_ns) / YIELDS);
    y->round++;
    y->left = YIELDS;
    y->began_ns = now_ns;
}

/* All tasks run the same code, as a server's do; the processor predicts it better than a mixture. */
static int yield_for_all_rounds(void *arg) {
    struct yielders *y = arg;
    int err = 0;
    while (!err && y->round <= y->m->rounds) {
        err = coil_yield();
        if (--y->left == 0) next_round(y);
    }
    return err;
}

static int measure(void *arg) {
    struct yielders *y = arg;
    coil_task first;
    y->left = 2 * y->tasks;
    int result, err = coil_spawn(&first, yield_for_all_rounds, y);
    for (unsigned i = 1; i < y->tasks && !err; i++)
        err = coil_spawn(NULL, yield_for_all_rounds, y);
    if (!err) err = coil_join(first, &result);
    return err ? err : result;
}

int main(int argc, char **argv) {
    static const unsigned tasks[] = {2, 1000, 100000};
    struct micro m;
    micro_begin(&m, "yield", "Time of one coil_yield with 2, 1,000 and 100,000 tasks.", argc, argv);
    for (size_t k = 0; k < sizeof tasks / sizeof *tasks; k++) {
        struct yielders y = {.m = &m, .tasks = tasks[k]};
        y.row = micro_row(&m, "ns", "one yield: %u tasks, %d yields", tasks[k], (int)YIELDS);
        int err = coil_run(measure, &y);
        if (err) micro_fail(&m, coil_strerror(err), err);
    }
    micro_end(&m);
    return 0;
}
