/* Streams, inside.
 *
 * Reading has three ways; which one a stream goes is decided when it is made, and `direct` also serves the
 * others for a while: pool    one multishot receive, the stream's own, into the worker's shared buffers.
 * Armed at the first read, it stays. poll    one poll, the stream's own, then recv(2) into the reader's
 * memory: kernels without multishot receive. direct  a one-shot receive into the reader's memory, the
 * reader's own: pipes; pool streams that found the pool empty; long runs of large reads. One receiver at a
 * time: the stream's own receive has ended before.
 *
 * Writing: bytes are copied into blocks; at the turn's end they are tried with send(2), and what doesn't fit
 * becomes the stream's own request, one at a time. A large write sends the caller's memory behind what is
 * buffered, from the task.
 *
 * Requests of the stream's own end in this order when it goes: they are cancelled, their terminal completions
 * come, the descriptor is closed, the stream is freed. */
#ifndef COIL__STREAM_H
#define COIL__STREAM_H

#include "sock.h"

#include "coil/stream.h"

enum coil__way { COIL__WAY_POOL, COIL__WAY_POLL, COIL__WAY_DIRECT };

/* What stands at the head of a block of output. msg and iov serve the request that sends from this block on.
 */
struct coil__chunk {
    struct coil__chunk *next;
    uint32_t start, end; /* bytes start..end of data wait to be sent */
    struct msghdr msg;
    struct iovec iov[8];
    char data[];
};

enum { COIL__CHUNK_ROOM = COIL__BLOCK_SIZE - sizeof(struct coil__chunk) };

/* A task inside a reading or writing call. */
struct coil__side {
    bool busy;               /* a task is in a call of this side */
    struct coil__wait *wait; /* it is parked for the stream's own request */
    struct coil__op *op;     /* it is parked in a request of its own */
};

/* What an ordinary read and an ordinary write touch lies in the first three cache lines: with a thousand
 * streams, each further one is a miss. */
struct coil_stream {
    struct coil__worker *w;
    struct coil__pool *pool; /* the driver's */
    int64_t active_ns;       /* the last byte, either way */
    int64_t written;         /* bytes accepted */
    int fd;
    uint32_t held;        /* buffers of the pool that hold input ... */
    uint32_t first, last; /* ... linked by their `next` */
    uint32_t held_max;    /* with so many, nothing more is received */
    uint32_t high_water;  /* of limits */
    uint8_t way;          /* enum coil__way */
    bool is_socket : 1;   /* else a pipe end, or a terminal */
    bool send_first : 1;  /* try send(2) before a request */
    bool readable : 1;    /* poll: recv would give something, as far as is known */
    bool plain_poll : 1;  /* poll: a read has only to wait for the poll and to ask recv */
    uint8_t reads_since_poll : 2, single_reads : 5; /* poll: see guess_rest */
    bool closing;
    bool plain_read;   /* a read with nothing buffered has only to wait for rx: see coil__stream_tune */
    bool write_over;   /* our direction has ended, or a send has failed */
    bool sending;      /* tx is in the kernel, or on its way there */
    uint8_t full_runs; /* buffers of the pool in a row that came full */

    struct coil__side reader, writer;
    struct coil__hook hook; /* in the worker's list of what to flush */
    struct coil__chunk *out_first, *out_last;
    size_t out_bytes;
    struct coil__op rx; /* the stream's own: a multishot receive or a poll */

    /* Reading, when it isn't ordinary. */
    bool starved; /* the pool was empty: the next read goes straight into the reader's memory */
    bool eof;
    int read_err;

    /* Writing, likewise. */
    bool finished;      /* our direction has ended */
    bool tx_stopping;   /* a close has asked it to end */
    bool tx_late;       /* the write limit has struck while tx was in the kernel */
    int write_err;      /* of a send that failed: remembered */
    struct coil__op tx; /* the stream's own: a send of what is buffered, or a poll for room */
    struct coil__timer tx_timer;

    bool abandoned;            /* left open at the end of the run: goes with the last of its requests */
    struct coil__list closers; /* waits until nobody is inside, or until rx and tx have ended */
    coil_limits limits;        /* defaults filled in */
    struct coil__object object;
};

/* stream.c */
/* A stream for a connected descriptor, which it then owns. 0 or -ENOMEM. */
int coil__stream_new(struct coil__worker *w, int fd, bool is_socket, coil_stream **out);
/* Parks the side's task until coil__side_wake. 0, -ECANCELED, -ETIME. */
int coil__side_park(coil_stream *s, struct coil__side *side, struct coil__task *t, const char *what,
                    int64_t until_ns);
/* Runs a one-shot request of the side's own. As coil__op_call; -EBADF: the stream is being closed. */
int coil__side_call(struct coil__side *side, struct coil__task *t, struct coil__op *op, const char *what,
                    int64_t until_ns);
/* Asks the side's own request to end. */
void coil__side_abort(coil_stream *s, struct coil__side *side);
/* The last thing after a terminal completion of rx or tx, and when a task leaves: a close may wait for it.
 * May free s. */
void coil__stream_settle(coil_stream *s);
static inline void coil__stream_settled(coil_stream *s) {
    if (UNLIKELY(!coil__list_empty(&s->closers) || s->abandoned)) coil__stream_settle(s);
}

/* Begins a call of a side: 0, -EBUSY, -EBADF. */
static inline int coil__side_enter(coil_stream *s, struct coil__side *side) {
    if (s->closing) return -EBADF;
    if (side->busy) return -EBUSY;
    side->busy = true;
    return 0;
}

static inline void coil__side_leave(coil_stream *s, struct coil__side *side) {
    side->busy = false;
    coil__stream_settled(s);
}

static inline void coil__side_wake(struct coil__side *side) {
    struct coil__wait *w = side->wait;
    if (!w) return;
    side->wait = NULL;
    coil__ready(w, 0);
}

/* stream_read.c */
void coil__stream_read_init(coil_stream *s);
/* Sums up, for the quick way through a read, what has a say in it; after each change of one of these. */
void coil__stream_tune(coil_stream *s);
/* The stream's own receive is asked to end; what it brings meanwhile is kept. */
void coil__stream_stop_reading(coil_stream *s);
void coil__stream_drop_input(coil_stream *s);

/* stream_write.c */
void coil__stream_write_init(coil_stream *s);
/* Waits until all that is buffered is with the kernel. 0, the remembered error, or as coil__side_park;
 * -EBADF: another task has begun to close it meanwhile. */
int coil__stream_drain(coil_stream *s, struct coil__task *t);
/* The write limit counts anew. */
void coil__stream_limit_changed(coil_stream *s);
/* Sends what goes without waiting. */
void coil__stream_try_flush(coil_stream *s);
void coil__stream_stop_writing(coil_stream *s);
void coil__stream_drop_output(coil_stream *s);

#endif
