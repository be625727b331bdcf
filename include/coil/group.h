/* Groups: children that never outlive the block that started them. */
#ifndef COIL_GROUP_H
#define COIL_GROUP_H

#include "core.h"
#include "task.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A group of tasks. Its life: 1. COIL_GROUP(g); 2. spawn; 3. wait, or cancel, or simply leave the block;
 * 4. nothing to free. Spawn and cancel are for the owner (the task that declared it) and its children, all
 * else for the owner only. A group that is jumped past, or left open at the task's end, stops the process
 * with the task's name. */
typedef struct coil_group {
    uint64_t opaque[8]; /* coil's */
} coil_group;

/* What COIL_GROUP leaves by: cancels the children and waits for them.
 * Mark: [always]. Thread: the owner. */
COIL_API void coil_group_close_(coil_group *g);

/* Declares a group in this block. Leaving the block, by its end, break, return or goto, cancels the
 * children and waits for them. Mark: [now], leaving [always]. Thread: a task. */
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
 *         of time.
 * Mark: [always]. Thread: the owner. */
COIL_API COIL_WUR int coil_group_wait(coil_group *g);

/* Cancels all children, as coil_cancel does; later spawns give -ESHUTDOWN. Does not wait. Harmless when
 * repeated.
 * Mark: [now]. Thread: the owner or a child. */
COIL_API void coil_group_cancel(coil_group *g);

/* A failing child no longer cancels the others; coil_group_wait still returns the first failure.
 * Mark: [now]. Thread: the owner. */
COIL_API void coil_group_keep_going(coil_group *g);

#ifdef __cplusplus
}
#endif

#endif
