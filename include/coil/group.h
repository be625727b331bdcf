/* Groups: children that never outlive the block that started them; and calls that run several functions side
 * by side, or one within a limit. */
#ifndef COIL_GROUP_H
#define COIL_GROUP_H

#include "core.h"
#include "task.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A group of tasks. Its life: 1. COIL_GROUP(g); 2. spawn; 3. wait, or cancel, or simply leave the block;
 * 4. nothing to free. Its owner is the task that declares it, and makes the first call on it. Spawn and
 * cancel are for the owner and the children, all else for the owner only. A group that is jumped past, or
 * left open at the task's end, stops the process with the task's name. */
typedef struct coil_group {
    uint64_t opaque[11]; /* coil's */
} coil_group;

/* What COIL_GROUP leaves by: cancels the children and waits for them.
 * Mark: [always]. Thread: the owner. */
COIL_API void coil_group_close_(coil_group *g);

/* Declares a group in this block. Leaving the block, by its end, break, return or goto, cancels the
 * children and waits for them.
 * Mark: [now], leaving [always]. Thread: a task. */
#define COIL_GROUP(g) coil_group g __attribute__((cleanup(coil_group_close_))) = {{0}}

/* Starts a child of the group that runs fn(arg), as coil_spawn does. The first child that fails by itself
 * (returns < 0, not -ECANCELED after a cancel) cancels the others and is the group's result.
 * Returns: 0.
 * Errors: -ESHUTDOWN: the group is cancelled. -ENOMEM, -EAGAIN: as coil_spawn.
 * Memory: arg is the caller's and must be there as long as fn uses it; what lives in the group's block,
 *         before the group, does.
 * Mark: [now]. Thread: the owner or a child. */
COIL_API int coil_group_spawn(coil_group *g, coil_fn *fn, void *arg);

/* Starts a child as coil_group_spawn does, with options, and tells its handle.
 * Returns: 0, and the handle in *out, unless out is NULL: good for coil_cancel, to cancel this child alone.
 * Errors: as coil_group_spawn. -EINVAL: stack_size out of range, or a reserved word that is not zero. *out is
 *         then all zero.
 * Memory: *o is borrowed until the call returns; NULL: the defaults.
 * Mark: [now]. Thread: the owner or a child. */
COIL_API int coil_group_spawn_with(coil_group *g, coil_task *out, const coil_spawn_opts *o, coil_fn *fn,
                                   void *arg);

/* Waits until all children have ended. The caller's own cancel or limit cancels them, and they are waited
 * for. Afterwards the group is as new, and may be used again; keep_going stays.
 * Returns: 0: no child failed by itself; also after coil_group_cancel, and for a group without children. A
 *         child that was cancelled, by the group or alone, and returns -ECANCELED has not failed.
 * Errors: what the first failing child returned; else -ECANCELED or -ETIME if the caller was cancelled or out
 *         of time meanwhile, also where all children then succeeded.
 * Mark: [always]. Thread: the owner. */
COIL_API COIL_WUR int coil_group_wait(coil_group *g);

/* Tells the children's ends one by one, in the order in which they come: waits for the next one that has not
 * been told yet. A child that fails cancels the others, as ever, and its failure remains the result of
 * coil_group_wait. Results that nobody has fetched are dropped by coil_group_wait and by leaving the block.
 * Until the first call of coil_group_next or coil_group_keep_results at most 1,024 of them are kept, so that
 * a group that is never asked holds no more.
 * Returns: 1: a child has ended; *arg is the argument that it was started with, *result what it returned.
 *          Either may be NULL. 0: no child is left.
 * Errors: -ECANCELED, -ETIME: refused, or woken early; no end was told, and the children are not cancelled:
 *         coil_group_wait and leaving the block do that. -EOVERFLOW: more than 1,024 children had ended
 *         before anybody asked, and results are lost; told once, and all that end from then on are kept.
 * Mark: [parks]. Thread: the owner. */
COIL_API int coil_group_next(coil_group *g, void **arg, int *result);

/* All results from now on are kept for coil_group_next, however many; for an owner that does much else before
 * it asks. Stays, as keep_going does.
 * Mark: [now]. Thread: the owner. */
COIL_API void coil_group_keep_results(coil_group *g);

/* Cancels all children, as coil_cancel does; later spawns give -ESHUTDOWN. Does not wait. Harmless when
 * repeated.
 * Mark: [now]. Thread: the owner or a child. */
COIL_API void coil_group_cancel(coil_group *g);

/* A failing child no longer cancels the others; coil_group_wait still returns the first failure.
 * Mark: [now]. Thread: the owner. */
COIL_API void coil_group_keep_going(coil_group *g);

/* A function to be run beside others. */
typedef struct coil_job {
    coil_fn *fn;
    void *arg;  /* fn's argument: what it needs, and room for what it finds */
    int result; /* written by the call: what fn returned, or why it could not be started */
} coil_job;

/* Runs jobs[0] to jobs[n - 1] side by side, each in a task of its own, and waits for all. The first that
 * fails by itself (returns < 0, not -ECANCELED after a cancel) cancels the others. The caller's own cancel or
 * limit cancels them all. Each job's result is set on return, a cancelled one's too. If one can't be started,
 * those before it are cancelled and waited for, and it and all after it have that error as result.
 * Returns: 0: none failed; also for n = 0.
 * Errors: why a job could not be started (as coil_spawn); else what the first failing job returned; else
 *         -ECANCELED or -ETIME if the caller was cancelled or out of time meanwhile, also where all jobs then
 *         succeeded: the results show it.
 * Memory: jobs, and what the arguments point to, are borrowed until the call returns; no job runs after that.
 * Mark: [always]. Thread: a task. */
COIL_API COIL_WUR int coil_gather(coil_job *jobs, size_t n);

/* Runs jobs side by side as coil_gather does, to the end, whatever they return: no failure cancels another.
 * Returns: 0: all have run to their end; the results say how each came out.
 * Errors: why a job could not be started; else -ECANCELED or -ETIME if the caller was cancelled or out of
 *         time, and all jobs cancelled with it.
 * Memory: as coil_gather.
 * Mark: [always]. Thread: a task. */
COIL_API int coil_gather_all(coil_job *jobs, size_t n);

/* Runs jobs side by side until one succeeds (returns >= 0). That one cancels the others, and they have ended
 * when the call returns. One of them that had succeeded too, or did in spite of its cancel, shows it in its
 * result: what it has acquired is the caller's to release. Each result is set.
 * Returns: the index of the first that succeeded; also if the caller was cancelled meanwhile.
 * Errors: none succeeded: why a job could not be started; else -ECANCELED or -ETIME if the caller was
 *         cancelled or out of time; else the first failure. -EINVAL: n is 0, or more than INT_MAX.
 * Memory: as coil_gather.
 * Mark: [always]. Thread: a task. */
COIL_API int coil_race(coil_job *jobs, size_t n);

/* Runs fn(arg) within a limit: here, in this task, with all [parks] calls in it limited to `limit` from now,
 * as coil_within does.
 * Returns: what fn returned, if that is >= 0: what finished, finished, however late.
 * Errors: -ETIME: fn returned < 0, and this limit (not one around it, nor one within) has refused or ended a
 *         call. Else what fn returned; also -ECANCELED, if it says so and the caller is cancelled.
 * Memory: arg is fn's alone; it is not looked at.
 * Mark: [always]. Thread: a task. */
COIL_API COIL_WUR int coil_wait_for(coil_dur limit, coil_fn *fn, void *arg);

#ifdef __cplusplus
}
#endif

#endif
