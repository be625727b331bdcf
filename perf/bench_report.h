/* What was measured, and the table and JSON that are made of it. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "bench_run.h"

enum { BENCH_ENTRIES_MAX = 8 };

/* A server's place in each round. A twin is the same server once more: against itself it shows how wide
 * chance is. */
struct bench_entry {
    const char *server;
    const struct bench_kind *kind;
    bool twin;
    struct bench_result *round;
};

struct bench_run {
    const struct bench_opts *o;
    struct bench_entry entry[BENCH_ENTRIES_MAX];
    unsigned entries, cpus;
    char *names; /* what the entries' names point into */
};

void bench_print_machine(const struct bench_run *r);
void bench_print_table(const struct bench_run *r);
int bench_write_json(const struct bench_run *r);

#endif
