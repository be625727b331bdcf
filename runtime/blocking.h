/* A task's call on a thread of the blocking pool. */
#ifndef COIL__BLOCKING_H
#define COIL__BLOCKING_H

#include "worker.h"

#include "coil/blocking.h"

/* Lies on the parked task's stack, inside what the job works on; that of a call which may be left behind lies
 * in memory of its own. */
struct coil__blocking {
    struct coil__job job; /* run and lane are the caller's to fill in */
    int fd;               /* what it works on; -1: no descriptor */
    bool closes;          /* it closes fd */
    coil_fn *fn;          /* for reports: the program's function; NULL: a job of coil's own */

    struct coil__wait wait;
    struct coil__letter letter; /* says that it is over */
    struct coil__node node;     /* in the worker's jobs */
    struct coil__wait *closer;  /* a close of fd that waits for it */
    uint32_t worker;
    bool taken_back, fd_closed;
};

/* Runs b->job on a thread of the pool, and parks until that is over. 0: it was run, whatever cancel or
 * until_ns say. -ECANCELED, -ETIME, -EBADF (its descriptor is being closed): it was taken back, not run.
 * -EAGAIN, -ENOMEM: as coil__sys.hand_over, not run. */
int coil__blocking_call(struct coil__task *t, struct coil__blocking *b, const char *what, int64_t until_ns);
/* The same for an [always] call. */
int coil__blocking_call_always(struct coil__task *t, struct coil__blocking *b, const char *what);

/* Takes back or waits for all jobs on fd: before it is closed. As coil__ops_end_on. */
int coil__blocking_end_on(struct coil__task *t, int fd);

#endif
