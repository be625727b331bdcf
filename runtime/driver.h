/* The seam: what a completion driver must do. It speaks SQE and CQE, and knows nothing of tasks.
 *
 * Everything nondeterministic enters coil through these two tables: requests and their completions, wake-ups
 * from other threads, the clock, random numbers, and the plain descriptor calls that coil makes itself.
 * Nothing in runtime/ or net/ goes around them, so that a test can put another kernel behind them.
 *
 * Life of a request, as the driver sees it:
 *   1. queue(): it stands in the driver's FIFO, `node` is linked. It may be taken back by unlinking the node.
 *   2. enter() copies the SQE image into the ring and unlinks the node: from then on the kernel has it.
 *   3. cancel() puts the same node on the list of pending cancels, which go in before every queued request.
 * Whoever sees the request complete before that unlinks the node.
 *   4. reap() hands out its completions by user_data; the last one comes without IORING_CQE_F_MORE. */
#ifndef COIL__DRIVER_H
#define COIL__DRIVER_H

#include "base.h"
#include "list.h"

#include "coil/runtime.h"

/* liburing's copy, not the system's: ring.c includes both, and the first one wins. */
#include <liburing/compat.h>
#include <liburing/io_uring.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define COIL__NEVER INT64_MAX

struct coil__req {
    struct io_uring_sqe sqe; /* the image; user_data is the owner's tag with the lowest two bits clear */
    struct coil__node node;  /* see above */
    struct {                 /* the driver's, from enter() to the last completion */
        struct coil__node place;
        int32_t res;
        uint32_t seen; /* stays from one use of the record to the next; 0 before the first */
    } own;
};

/* Kinds of user_data, in its lowest two bits. */
enum {
    COIL__TAG_REQUEST = 0,
    COIL__TAG_CANCEL = 1, /* the completion of a cancel; the other bits are those of its target */
    COIL__TAG_DRIVER = 2, /* the driver's own: never leaves it */
    COIL__TAG_MASK = 3,
};

/* Receive buffers that the kernel picks from, shared by all streams of the worker; `base` is NULL where there
 * is none. */
struct coil__pool {
    char *base;
    uint32_t count; /* a power of two */
    uint32_t size;  /* bytes of one buffer */
    uint32_t out;   /* buffers that are neither with the kernel nor on their way to it */
    struct coil__pool_buf *bufs;
};

/* What a stream knows of a buffer that it holds. */
struct coil__pool_buf {
    uint32_t start, end; /* bytes start..end are not yet read */
    uint32_t next;       /* id of the stream's next buffer, where it has one */
    uint32_t unused;     /* a power of two is found faster */
};

enum { COIL__POOL_GROUP = 0 }; /* the buffer group's id in SQEs */

/* Something for a thread of the blocking pool to run. */
struct coil__job {
    struct coil__node node;             /* in its lane's queue; linked: not begun */
    void (*run)(struct coil__job *j);   /* on the thread */
    void (*ended)(struct coil__job *j); /* on the thread, after run; the job may be gone when it returns */
    uint8_t lane;                       /* enum coil__lane */
    int64_t queued_ns, begun_ns;
};

/* Kinds of work that must not hold each other up: see threads.c. */
enum coil__lane { COIL__LANE_NAMES, COIL__LANE_FILES, COIL__LANE_USER, COIL__LANE_COUNT };

struct coil__driver {
    const struct coil__driver_ops *ops;
    const struct coil__sys *sys;
    enum coil_driver_kind kind;
    uint64_t caps; /* bits of caps.h: what may be asked of this driver on this kernel */
    struct coil__pool pool;
    struct {
        uint64_t enters, sq_full, cq_overflow;
    } stats;
};

struct coil__driver_ops {
    void (*destroy)(struct coil__driver *d); /* no request may be in flight */
    void (*queue)(struct coil__driver *d, struct coil__req *r);
    void (*cancel)(struct coil__driver *d, struct coil__req *r);
    /* Submits all that is queued, cancels first, and waits for a completion until the moment `until_ns`
     * (COIL__NEVER: no limit; 0: doesn't wait). Returns early on a signal and on a wake-up. Never waits while
     * a cancel is pending. */
    void (*enter)(struct coil__driver *d, int64_t until_ns);
    /* Whether a completion is there or could be had by an enter that doesn't wait. Called over and over by a
     * worker that polls. */
    bool (*ready)(struct coil__driver *d);
    unsigned (*reap)(struct coil__driver *d, struct io_uring_cqe *out, unsigned max);
    /* Any thread, also a signal handler: ends a wait, or keeps the next one short. */
    void (*wake)(struct coil__driver *d);
    void (*give)(struct coil__driver *d, uint32_t buffer); /* a buffer of the pool goes back to the kernel */
};

/* Why a driver could not be set up; `text` is one line for people. */
struct coil__driver_error {
    int code; /* COIL_ESTART_* */
    char text[320];
};

/* Plain calls, each with the meaning of its man page, but errors are returned as negative errno. None may
 * block, but for those of the last group. */
struct coil__sys {
    int64_t (*now)(void); /* CLOCK_MONOTONIC in ns */
    uint64_t (*random)(void);
    int (*socket)(int family, int type, int protocol);
    int (*bind)(int fd, const struct sockaddr *a, socklen_t n);
    int (*listen)(int fd, int backlog);
    int (*accept)(int fd, int flags);
    int (*setsockopt)(int fd, int level, int name, const void *v, socklen_t n);
    int (*getsockopt)(int fd, int level, int name, void *v, socklen_t *n);
    int (*getsockname)(int fd, struct sockaddr *a, socklen_t *n);
    int (*getpeername)(int fd, struct sockaddr *a, socklen_t *n);
    int (*shutdown)(int fd, int how);
    int (*close)(int fd);
    int (*get_flags)(int fd); /* F_GETFL */
    int (*set_flags)(int fd, int flags);
    int (*file_type)(int fd);          /* S_IFMT bits of its mode */
    int (*poll)(int fd, short events); /* what it is ready for now; 0: for none of them */
    ssize_t (*recv)(int fd, void *buf, size_t n, int flags);
    ssize_t (*send)(int fd, const void *buf, size_t n, int flags);
    ssize_t (*recvmsg)(int fd, struct msghdr *m, int flags);
    ssize_t (*sendmsg)(int fd, const struct msghdr *m, int flags);

    /* The blocking pool: -EAGAIN: its queue is full, -ENOMEM: it has no thread and can't start one. */
    int (*hand_over)(struct coil__job *j);
    bool (*take_back)(struct coil__job *j); /* false: it has begun */

    /* On the pool's threads only. offset -1: from where the file stands. */
    ssize_t (*read_file)(int fd, void *buf, size_t n, int64_t offset);
    ssize_t (*write_file)(int fd, const void *buf, size_t n, int64_t offset);
    int (*close_file)(int fd);
};

extern const struct coil__sys coil__sys_linux;

#endif
