/* Tasks, and the limits that hold for them. */
#ifndef COIL_TASK_H
#define COIL_TASK_H

#include "core.h"
#include "runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A handle of a task: a value, nothing to free. All zero: no task. A stale handle gives -ESRCH, also after
 * its run has ended, and never reaches another task. The fields are coil's; compare handles with
 * coil_task_same. */
typedef struct {
    uint32_t worker; /* number of the run; never used again; 0: no task */
    uint32_t slot;   /* place in that worker's table of tasks */
    uint64_t gen;    /* generation of the place */
} coil_task;

/* Whether two handles mean the same task.
 * Returns: true if they do; two empty handles are the same.
 * Mark: [any]. Thread: any. */
static inline bool coil_task_same(coil_task a, coil_task b) {
    return a.worker == b.worker && a.slot == b.slot && a.gen == b.gen;
}

/* Options of a spawn; zero is the default of each. */
typedef struct coil_spawn_opts {
    const char *name;     /* the task's name in every report; copied, cut where it is long; NULL: none */
    size_t stack_size;    /* bytes, 16 KiB to 64 MiB, rounded up to a power of two; 0: the run's */
    uint64_t reserved[4]; /* must be zero */
} coil_spawn_opts;

/* Starts a task that runs fn(arg); it becomes ready now and runs when its turn comes, without limit and
 * without shield.
 * Returns: 0, and the handle in *out. With out NULL the task is detached: nobody can join it.
 * Errors: -EINVAL: fn is NULL. -ENOMEM: no memory for the task, or no guarded stack (guards_only). -EAGAIN:
 *         tasks_max live already. *out is then all zero. A task spawned while its run is ending is started
 *         all the same, cancelled.
 * Memory: arg is the caller's and must be there as long as fn uses it.
 * Mark: [now]. Thread: a task. */
COIL_API int coil_spawn(coil_task *out, coil_fn *fn, void *arg);

/* Starts a task as coil_spawn does, with options.
 * Returns: 0, and the handle in *out, or a detached task for out NULL.
 * Errors: as coil_spawn. -EINVAL: stack_size out of range, or a reserved word that is not zero.
 * Memory: *o is borrowed until the call returns; NULL: the defaults.
 * Mark: [now]. Thread: a task. */
COIL_API int coil_spawn_with(coil_task *out, const coil_spawn_opts *o, coil_fn *fn, void *arg);

/* Waits until task t has ended. A task's result is kept until it was joined or detached: all that wait when
 * it ends get it, later ones -ESRCH.
 * Returns: 0, and what the task's function returned in *result, unless result is NULL.
 * Errors: -ESRCH: there is no such task, or no longer. -EDEADLK: t is the caller. -EINVAL: t is detached, or
 *         belongs to a group. -ECANCELED, -ETIME: refused, or woken by cancel or limit; t is not touched and
 *         can be joined again.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_join(coil_task t, int *result);

/* Lets task t go: its result is dropped when it ends.
 * Returns: 0.
 * Errors: -ESRCH: there is no such task, or no longer. -EBUSY: somebody joins it. -EINVAL: it is detached
 *         already, or belongs to a group.
 * Mark: [now]. Thread: a task. */
COIL_API int coil_detach(coil_task t);

/* Asks task t to end: its [parks] calls are refused from now on, and one that it is parked in is woken, as
 * soon as the kernel lets go; success wins. It stays until the task ends. A task that has not run yet runs,
 * and is refused at its first [parks] call. On t's own worker it takes effect at once; from elsewhere it is
 * posted, without allocating.
 * Returns: 0; also if t has ended and was not joined, if t was cancelled before, and, from another thread, if
 *         t is stale by the time the request arrives.
 * Errors: -ESRCH: t is stale (seen on its own worker), or its run has ended.
 * Mark: [any]. Thread: any. */
COIL_API int coil_cancel(coil_task t);

/* Whether the current task is cancelled and a [parks] call would say so.
 * Returns: true if it is; false inside a shield.
 * Mark: [now]. Thread: a task. */
COIL_API bool coil_cancelled(void);

/* The handle of the current task.
 * Returns: the handle.
 * Mark: [now]. Thread: a task. */
COIL_API coil_task coil_self(void);

/* Lets the other ready tasks run once.
 * Returns: 0.
 * Errors: -ECANCELED, -ETIME: refused; the others had their turn all the same.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_yield(void);

/* Sleeps for d; for 0 or less it is coil_yield. Equal sleeps of one worker end in the order in which they
 * began.
 * Returns: 0 after the whole time, at most timer_slack later.
 * Errors: -ECANCELED, -ETIME: refused, or woken early.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_sleep(coil_dur d);

/* Sleeps until t; for a past moment it is coil_yield. COIL_NEVER: until cancel or limit.
 * Returns: 0 when t has come, at most timer_slack later.
 * Errors: -ECANCELED, -ETIME: refused, or woken early.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_sleep_until(coil_time t);

/* What a tick does with the ones after it when it was late by a whole period or more. */
enum {
    COIL_LATE_SKIP, /* those that were missed are left out; the next one is where it would have been anyway */
    COIL_LATE_BURST, /* they come at once, one after the other, until all are made up for */
    COIL_LATE_DELAY, /* the next one comes a period from now, and all later ones go by that */
};

/* A clock that ticks. Fill in period and late, and next if the first tick is to come at a certain moment.
 * May be changed between ticks. */
typedef struct coil_interval {
    coil_time next;  /* when the next tick is due; zero: at once */
    coil_dur period; /* from one tick to the next; more than 0 */
    int late;        /* COIL_LATE_* */
} coil_interval;

/* Waits until the next tick is due. A tick that comes late moves none of those after it, so nothing drifts;
 * one that is late by a whole period or more goes by i->late. The first tick of an interval whose next is
 * zero comes at once.
 * Returns: 0; i->next is then the moment of the tick to come.
 * Errors: -ECANCELED, -ETIME: refused, or woken early; the tick is still to come. -EINVAL: period is not
 *         more than 0, or late is none of COIL_LATE_*.
 * Mark: [parks]. Thread: a task. */
COIL_API int coil_interval_tick(coil_interval *i);

/* Names the current task in every report.
 * Memory: the text is formatted and copied; a long one is cut, and what would disturb a report's lines
 *         (control characters) is replaced by question marks.
 * Mark: [now]. Thread: a task.
 * Source: printf(3). */
COIL_API void coil_name(const char *fmt, ...) COIL_PRINTF(1, 2);

/* A limit or a shield that holds for the current task. A value on its stack, nothing to free; left in
 * reverse order, in the task that made it: else the process stops with the call's name. A child starts
 * without any. */
typedef struct coil_scope {
    uint64_t opaque[4]; /* coil's */
} coil_scope;

/* Limits all calls of the current task until coil_leave to d from now; the tighter of this and what holds
 * already. Reads the clock. For 0 or less every [parks] call is refused at once.
 * Returns: the scope; give it to coil_leave.
 * Memory: the scope is the caller's, and stays where it is until it is left.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR coil_scope coil_within(coil_dur d);

/* Limits all calls of the current task until coil_leave to the moment t, as coil_within; reads no clock.
 * Returns: the scope; give it to coil_leave.
 * Memory: as coil_within.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR coil_scope coil_until(coil_time t);

/* Gives cleanup a time of its own: until coil_leave, cancel and outer limits wait outside, and the limit is
 * grace from now. The limit of a shield around this one still holds.
 * Returns: the scope; give it to coil_leave.
 * Memory: as coil_within.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR coil_scope coil_shield(coil_dur grace);

/* Leaves a scope, the one entered last; what held before holds again.
 * Returns: true if a call was refused, or ended with -ETIME, because of this scope's limit.
 * Mark: [now]. Thread: the task that made it. */
COIL_API bool coil_leave(coil_scope *s);

/* What COIL_WITHIN and COIL_SHIELD leave by; call coil_leave instead.
 * Mark: [now]. Thread: the task that made it. */
COIL_API void coil_leave_(coil_scope *s);

/* A key of task-local values: a static object, whose address is the key. */
typedef struct coil_key {
    void (*destroy)(
        void *value); /* for values that are there when their task ends; NULL: nothing is to be done */
} coil_key;

/* Sets the current task's value for key k; NULL takes it away. The value that was there before is dropped
 * without a call of destroy. Children have values of their own, none at first.
 * When the task's function has returned, destroy is called for each value that is left, the one set first
 * last, in the task, which may still do all that it could before. Values that these calls set are destroyed
 * too; after four rounds what is there is dropped. Those of the main task come when all other tasks have been
 * cancelled.
 * Returns: 0.
 * Errors: -ENOMEM: no memory for a new value; nothing has changed.
 * Memory: the value is the caller's. *k is borrowed until the task has ended.
 * Mark: [now]. Thread: a task. */
COIL_API int coil_local_set(const coil_key *k, void *value);

/* The current task's value for key k.
 * Returns: the value; NULL: none was set.
 * Mark: [now]. Thread: a task. */
COIL_API void *coil_local(const coil_key *k);

#define COIL_CAT2_(a, b) a##b
#define COIL_CAT_(a, b) COIL_CAT2_(a, b)
#define COIL_UNIQUE_ COIL_CAT_(coil_unique_, __COUNTER__)

/* Limits the rest of the block, as coil_within; left by its end, break, return and goto alike. A statement
 * of its own, in braces.
 * Mark: [now]. Thread: a task. */
#define COIL_WITHIN(d) coil_scope COIL_UNIQUE_ __attribute__((unused, cleanup(coil_leave_))) = coil_within(d)
/* Shields the rest of the block, as coil_shield; otherwise as COIL_WITHIN.
 * Mark: [now]. Thread: a task. */
#define COIL_SHIELD(d) coil_scope COIL_UNIQUE_ __attribute__((unused, cleanup(coil_leave_))) = coil_shield(d)

#ifdef __cplusplus
}
#endif

#endif
