/* What the load generator needs before its first request: a ring, buffers, the pattern, and connections. */
#include "bench_load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SQ_ENTRIES = 512, CQ_ENTRIES = 4096, BUFFERS = 1024 };

static int open_ring(struct load *l) {
    static const unsigned ladder[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
            IORING_SETUP_CQSIZE,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
        IORING_SETUP_CQSIZE,
    };
    int err = -EINVAL;
    for (unsigned i = 0; err == -EINVAL && i < sizeof ladder / sizeof *ladder; i++) {
        struct io_uring_params p = {.flags = ladder[i], .cq_entries = CQ_ENTRIES};
        err = io_uring_queue_init_params(SQ_ENTRIES, &l->ring, &p);
    }
    if (err == 0) io_uring_register_ring_fd(&l->ring); /* saves a table look-up per call; works without */
    return err;
}

void load_give_back(struct load *l, unsigned bid) {
    io_uring_buf_ring_add(l->bufs, l->pool + (size_t)bid * l->chunk, l->chunk, (unsigned short)bid,
                          io_uring_buf_ring_mask(BUFFERS), (int)l->returned++);
}

void load_publish_buffers(struct load *l) {
    if (l->returned) io_uring_buf_ring_advance(l->bufs, (int)l->returned);
    l->returned = 0;
}

/* A buffer for each connection, instead of those that multishot receives share. */
int load_one_shot_buffers(struct load *l) {
    free(l->pool);
    l->pool = malloc((size_t)l->o->connections * l->chunk);
    return l->pool ? 0 : -ENOMEM;
}

static int open_buffers(struct load *l) {
    size_t under_way = l->o->size * l->o->depth;
    l->chunk = 4096;
    while (l->chunk < 32768 && l->chunk < under_way)
        l->chunk *= 2;
    l->bufs = mmap(NULL, BUFFERS * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (l->bufs == MAP_FAILED) return -ENOMEM;
    struct io_uring_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)l->bufs, .ring_entries = BUFFERS};
    l->multishot = !l->o->one_shot && io_uring_register_buf_ring(&l->ring, &reg, 0) == 0;
    if (!l->multishot) return load_one_shot_buffers(l);
    l->pool = malloc((size_t)BUFFERS * l->chunk);
    if (!l->pool) return -ENOMEM;
    io_uring_buf_ring_init(l->bufs);
    for (unsigned bid = 0; bid < BUFFERS; bid++)
        load_give_back(l, bid);
    load_publish_buffers(l);
    return 0;
}

/* One period of noise and as much again as one call can send or receive, so that neither has to wrap. */
static int open_pattern(struct load *l) {
    size_t under_way = l->o->size * l->o->depth;
    l->span = under_way < SPAN_MAX ? under_way : SPAN_MAX;
    if (l->o->busy == BENCH_BUSY_STREAM && l->span < STREAM_SPAN) l->span = STREAM_SPAN;
    size_t length = PATTERN + (l->span > l->chunk ? l->span : l->chunk);
    l->pattern = malloc(length);
    if (!l->pattern) return -ENOMEM;
    uint64_t x = 0x9e3779b97f4a7c15;
    for (size_t k = 0; k < PATTERN; k++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        l->pattern[k] = (char)(x >> 32);
    }
    for (size_t k = PATTERN; k < length; k++)
        l->pattern[k] = l->pattern[k - PATTERN];
    return 0;
}

static int open_conns(struct load *l) {
    uint32_t slots = 1;
    while (slots < l->o->depth + (l->o->rate ? WAITING_MAX : 0u))
        slots *= 2;
    l->times_mask = slots - 1;
    l->conns = calloc(l->o->connections, sizeof *l->conns);
    l->times = calloc((size_t)l->o->connections * slots, sizeof *l->times);
    if (!l->conns || !l->times) return -ENOMEM;
    for (unsigned i = 0; i < l->o->connections; i++) {
        uint32_t at = (uint32_t)((uint64_t)i * 7919 % PATTERN);
        l->conns[i] = (struct load_conn){.fd = -1, .send_at = at, .recv_at = at};
    }
    return 0;
}

int load_open(struct load *l) {
    l->ring.ring_fd = -1;
    if (bench_files_max() < (long)l->o->connections + 16) return -EMFILE;
    int err = open_conns(l);
    if (err == 0) err = open_ring(l);
    if (err == 0) err = open_buffers(l);
    return err < 0 ? err : open_pattern(l);
}

static int connect_one(unsigned port) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct timeval limit = {.tv_sec = 5}; /* for connect; requests on a ring do not look at it */
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&in, sizeof in) == 0) return fd;
    int err = errno == EINPROGRESS ? -ETIMEDOUT : -errno;
    close(fd);
    return err;
}

int load_connect(struct load *l) {
    for (unsigned i = 0; i < l->o->connections; i++) {
        l->conns[i].fd = connect_one(l->target->port);
        if (l->conns[i].fd < 0) return l->conns[i].fd;
    }
    return 0;
}

void load_close(struct load *l) {
    if (l->ring.ring_fd >= 0) io_uring_queue_exit(&l->ring);
    for (unsigned i = 0; l->conns && i < l->o->connections; i++)
        if (l->conns[i].fd >= 0) close(l->conns[i].fd);
    if (l->bufs && (void *)l->bufs != MAP_FAILED) munmap(l->bufs, BUFFERS * sizeof(struct io_uring_buf));
    free(l->pool);
    free(l->pattern);
    free(l->times);
    free(l->conns);
}
