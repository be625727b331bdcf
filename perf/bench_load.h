/* The load generator's connections: what they have sent, what must come back, and when it was due. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "bench_common.h"

#include <liburing.h>

/* Every connection sends the same endless pattern from a start of its own, so that a byte that is lost,
 * doubled, changed or another connection's does not match. The length is a prime near 64 Ki: no message size
 * divides it. */
enum { PATTERN = 65521, SPAN_MAX = 1 << 20, STREAM_SPAN = 1 << 16, WAITING_MAX = 64 };

struct load_conn {
    int fd;
    uint32_t send_at, recv_at; /* where in the pattern */
    uint32_t partial;          /* bytes of the current answer that are there */
    size_t unsent;             /* bytes of messages under way that the kernel has not taken yet */
    unsigned in_flight, waiting;
    uint32_t times_head, times_tail; /* when each message in flight or waiting was due */
    bool sending;
};

/* The connection that keeps the server busy, if there is one, is the first. It takes part in the load, at its
 * own pace and unmeasured. */
enum { BUSY_CONN = 0 };

enum load_phase { LOAD_WARMUP, LOAD_WINDOW, LOAD_DRAIN };

struct load {
    const struct bench_opts *o;
    const struct bench_target *target;
    struct bench_result *out;
    struct io_uring ring;
    struct io_uring_buf_ring *bufs;
    char *pattern, *pool;
    bool multishot;
    unsigned chunk, returned;
    size_t span; /* the most that is sent in one call */
    struct load_conn *conns;
    int64_t *times;
    uint32_t times_mask;
    uint64_t in_flight, budget, bursts, answered;
    unsigned next_conn;
    enum load_phase phase;
    int64_t start_ns, until_ns, window_ns, cpu_ns, progress_ns;
    struct bench_hist hist;
};

int load_open(struct load *l);
void load_close(struct load *l);
int load_connect(struct load *l);
void load_give_back(struct load *l, unsigned bid);
void load_publish_buffers(struct load *l);
int load_one_shot_buffers(struct load *l);

#endif
