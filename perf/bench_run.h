/* One measurement: a server in a process of its own, a load generator in another, each on its CPU. */
#ifndef BENCH_RUN_H
#define BENCH_RUN_H

#include "bench_common.h"

bench_server_fn *bench_find_server(const char *name);

/* Whatever goes wrong, `out->error` says so, and both processes are gone on return. */
void bench_measure(const struct bench_opts *o, const char *server, struct bench_result *out);

/* Runs a server in this process; returns its exit status. */
int bench_serve_here(const struct bench_opts *o, const char *name, int ready_fd);

#endif
