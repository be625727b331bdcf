/* What the parts of echo_bench share: the options, the clock, latency histograms, CPU accounting, sockets,
 * and the two roles (a server, a load generator) that each run in a process of their own. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* Who polls for a bounded time before it blocks. As they come: coil by its own default, the raw servers
 * never. */
enum bench_spin_choice { BENCH_SPIN_AS_THEY_COME, BENCH_SPIN_ALL, BENCH_SPIN_NONE };

/* One more connection than --connections says, accepted first, keeps the server busy: its handler computes
 * for a millisecond before each answer, or reads, and throws away, data that never runs out. */
enum bench_busy { BENCH_BUSY_NONE, BENCH_BUSY_COMPUTE, BENCH_BUSY_STREAM };

struct bench_opts {
    unsigned connections, depth, burst, rounds;
    size_t size;
    uint64_t rate; /* requests/s over all connections; 0: closed loop */
    double seconds, warmup;
    const char *servers, *json;
    bool framed, null_band, one_shot;
    enum bench_spin_choice spin;
    enum bench_busy busy;
    int64_t spin_max_ns, spin_gap_ns;
    int server_cpu, load_cpu;
    const char *server_only;
    unsigned port, load_only_port;
    uint64_t count, requests;
};

/* One server, as its process sees it. */
struct bench_server {
    const struct bench_opts *opts;
    int ready_fd;         /* the port is written here once clients can connect; -1: stderr tells it */
    int stop_fd, stop_wr; /* a pipe: something to read means stop */
    uint64_t count_bytes; /* stop after this many echoed bytes; 0: never */
    bool spin;
    const char *caps; /* coil: what it leaves unused, as in coil_run_opts; NULL: nothing */
};

/* Each returns 0 after a stop, or a negative errno. */
typedef int bench_server_fn(const struct bench_server *s);
bench_server_fn bench_coil, bench_coil_uring, bench_coil_epoll, bench_raw_send, bench_raw_sqe, bench_epoll;

/* What the load generator drives, and whose CPU time it reads. */
struct bench_target {
    unsigned port;
    pid_t server, ksoftirqd; /* 0: not known, not counted */
};

struct bench_result {
    uint64_t requests, missed; /* missed: due at a fixed rate, never sent because too many were waiting */
    double seconds, cpu_us;    /* cpu_us: the server's run time per request; 0 when it could not be read */
    double rps, p50_us, p99_us, p999_us;
    char error[160]; /* empty: all went well */
};

void bench_load(const struct bench_opts *o, const struct bench_target *t, struct bench_result *out);

static inline int64_t bench_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* What the busy connection's handler does before each answer. */
static inline void bench_compute(void) {
    int64_t until_ns = bench_now() + 1000000;
    while (bench_now() < until_ns) {
    }
}

/* A histogram with logarithmic buckets: 64 to each power of two, so a value is known to 1.6 %. */
enum { BENCH_HIST_BUCKETS = 64 * 59 };
struct bench_hist {
    uint64_t total, bucket[BENCH_HIST_BUCKETS];
};

static inline void bench_hist_add(struct bench_hist *h, int64_t ns) {
    uint64_t v = ns < 0 ? 0 : (uint64_t)ns;
    unsigned i = (unsigned)v;
    if (v >= 64) {
        unsigned shift = 63u - (unsigned)__builtin_clzll(v) - 6u;
        i = (shift + 1) * 64 + (unsigned)((v >> shift) & 63);
    }
    h->bucket[i]++;
    h->total++;
}

double bench_hist_us(const struct bench_hist *h, double quantile);
double bench_median(const double *v, size_t n);

int64_t bench_cpu_ns(const struct bench_target *t);
pid_t bench_ksoftirqd(int cpu);
void bench_pin(int cpu);
int bench_last_cpus(int *server, int *load);
long bench_files_max(void);
int bench_listen(const struct bench_server *s, int flags);
void bench_ready(const struct bench_server *s, unsigned port);

#endif
