/* One request to the kernel. */
#ifndef COIL__OP_H
#define COIL__OP_H

#include "worker.h"

/* Owned by a parked task, on whose stack it then lies, or by an object. The owner keeps it and its buffer
 * alive until the terminal completion. */
struct coil__op {
    /* Runs in the worker's loop for each completion, the last one without IORING_CQE_F_MORE in flags: from
     * then on the record is its owner's again, and may be begun anew. */
    void (*done)(struct coil__op *op, int res, uint32_t flags);
    uint32_t slot;
    bool live;                 /* begun, and its terminal completion has not come */
    bool cancelling;           /* a cancel was asked for */
    bool fd_closed;            /* because its descriptor is being closed */
    struct coil__wait *waiter; /* its task's wait, where a task owns it: see coil__op_call */
    struct coil__wait *closer; /* a close of its descriptor that waits for it to be over */
    struct coil__req req;
};

/* A record before its first use. */
static inline void coil__op_init(struct coil__op *op) {
    op->req.node = op->req.own.place = (struct coil__node){0};
    op->req.own.seen = 0;
    op->live = false;
}

/* poll(2)'s events as the SQE carries them: on big-endian machines with the halves exchanged. */
static inline uint32_t coil__poll_mask(short events) {
    uint32_t mask = (uint16_t)events;
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? mask << 16 | mask >> 16 : mask;
}

void coil__op_prep(struct coil__op *op, uint8_t opcode, int fd, const void *addr, uint32_t len, uint64_t off);

/* One readiness of fd. */
static inline void coil__op_prep_poll(struct coil__op *op, int fd, short events) {
    coil__op_prep(op, IORING_OP_POLL_ADD, fd, NULL, 0, 0);
    op->req.sqe.poll32_events = coil__poll_mask(events);
}

/* Begins the request; it goes in at the turn's end. 0, or -ENOMEM and nothing was begun. */
int coil__op_begin(struct coil__worker *w, struct coil__op *op);
/* Asks for its end. The terminal completion still comes, at once where the kernel has not seen the request
 * yet. */
void coil__op_abort(struct coil__worker *w, struct coil__op *op);

/* Begins a one-shot request that the current task owns, and parks until it is over. Returns its result;
 * -ECANCELED and -ETIME where a cancel or until_ns ended it; -EBADF where its descriptor was closed
 * meanwhile. */
int coil__op_call(struct coil__task *t, struct coil__op *op, const char *what, int64_t until_ns);
/* The same for an [always] call: neither cancel nor deadline ends it. */
int coil__op_call_always(struct coil__task *t, struct coil__op *op, const char *what);

/* A call that makes several requests on one descriptor. Between two of them it has none that a close could
 * end, and afterwards the number may be somebody else's. */
struct coil__span {
    struct coil__node node; /* in the worker's spans */
    int fd;
    bool closed; /* a close of fd has begun meanwhile: no further request */
};

static inline void coil__span_begin(struct coil__worker *w, struct coil__span *span, int fd) {
    *span = (struct coil__span){.fd = fd};
    coil__list_push(&w->spans, &span->node);
}

static inline void coil__span_end(struct coil__span *span) {
    coil__node_unlink(&span->node);
}

/* Ends all requests on fd and waits until they are over: before fd is closed. 0; -EBADF: another task is at
 * it already. */
int coil__ops_end_on(struct coil__task *t, int fd);

/* What the worker calls with what it has reaped. */
void coil__ops_complete(struct coil__worker *w, const struct io_uring_cqe *cqes, unsigned n);
void coil__ops_free(struct coil__worker *w);

#endif
