/* A worker: an OS thread with one driver, one scheduler and one heap of timers, and the turn that it makes
 * over and over. */
#ifndef COIL__WORKER_H
#define COIL__WORKER_H

#include "block.h"
#include "inbox.h"
#include "task.h"
#include "timer.h"

struct coil__op;

/* One place of the table of requests: see op.c. */
struct coil__op_slot {
    struct coil__op *op; /* NULL: free */
    uint32_t gen;        /* goes up with each use, so that a late completion can't hit the next user */
    uint32_t next_free;
};

struct coil__op_table {
    struct coil__op_slot *at;
    uint32_t capacity, free_first, live;
};

/* Something to do at the end of the turn, and after at most 64 resumes: a stream with bytes to send. */
struct coil__hook {
    struct coil__node node;
    void (*run)(struct coil__hook *h);
};

/* Something that a task made and has to close. What is left when the last task has ended is taken back, and
 * said. */
struct coil__object {
    struct coil__node node;
    const char *what;
    void (*take_back)(struct coil__object *o);
};

struct coil__worker {
    struct coil__sched s; /* first: coil__here points to it */
    struct coil__op_table ops;
    void (*complete)(struct coil__worker *w, const struct io_uring_cqe *cqes, unsigned n); /* op.c */
    void (*stuck)(
        struct coil__worker *w); /* runtime.c: tasks wait, and nothing is left that could wake one */
    struct coil__list dirty;     /* of coil__hook */
    struct coil__list objects;   /* of coil__object */
    struct coil__list jobs;  /* of coil__blocking: handed over to the blocking pool, perhaps left behind */
    struct coil__list spans; /* of coil__span */
    struct coil__block_cache blocks;

    struct coil__inbox inbox;
    atomic_bool sleeping; /* whoever posts must wake it */
    bool external_wakes, quiet;
    bool taking_back; /* no task is left, and requests of what tasks have left open are waited for */
    int64_t slack_ns;
    int64_t spin_max_ns; /* 0: never */
    uint32_t spin_skip;  /* waits until polling is tried again */
    uint32_t spin_rest;  /* what spin_skip will be after the next miss */
    uint32_t spin_hits;  /* waits in a row that polling has ended */
    struct {
        uint64_t turns, ops, completions, cancels, spins, pool_empty, streams_now, jobs, jobs_wait_ns;
    } stats;

    struct coil__worker *next; /* in the process's list of workers */
};

static inline struct coil__worker *coil__worker_of(const struct coil__sched *s) {
    return CONTAINER_OF(s, struct coil__worker, s);
}

/* Fills in all but the scheduler's stacks, the driver, `complete` and `stuck`. Gives the worker its number,
 * under which other threads find it until coil__worker_leave. */
void coil__worker_join(struct coil__worker *w);
void coil__worker_leave(struct coil__worker *w);

/* One pass of the loop. */
void coil__worker_turn(struct coil__worker *w);
/* Runs the hook at the turn's end; harmless where it is queued already. */
static inline void coil__worker_hook(struct coil__worker *w, struct coil__hook *h) {
    if (!coil__node_linked(&h->node)) coil__list_push(&w->dirty, &h->node);
}

/* Any thread, also a signal handler; the worker must not go away meanwhile. */
void coil__worker_post(struct coil__worker *w, struct coil__letter *l);
/* Calls fn with the worker of that number while it can't go away; false: there is none. Any thread. */
bool coil__worker_with(uint32_t number, void (*fn)(struct coil__worker *w, void *arg), void *arg);

#endif
