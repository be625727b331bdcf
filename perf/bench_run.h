/* One measurement: a server in a process of its own, a load generator in another, each on its CPU. */
#ifndef BENCH_RUN_H
#define BENCH_RUN_H

#include "bench_common.h"

/* A row of the table. */
struct bench_kind {
    const char *name;
    bench_server_fn *fn;
    const char *caps;    /* as in bench_server */
    const char *against; /* the server that it is held to besides coil; NULL: none */
    double cpu_bar;      /* CPU per request over that one's, at most */
};

/* NULL: no such server. */
const struct bench_kind *bench_find_server(const char *name);

/* Whatever goes wrong, `out->error` says so, and both processes are gone on return. */
void bench_measure(const struct bench_opts *o, const char *server, struct bench_result *out);

/* Runs a server in this process; returns its exit status. */
int bench_serve_here(const struct bench_opts *o, const char *name, int ready_fd);

#endif
