/* Functions that block an OS thread, on threads of their own. */
#ifndef COIL_BLOCKING_H
#define COIL_BLOCKING_H

#include "core.h"
#include "task.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs fn(arg) on a thread of the blocking pool, and waits for it; the worker goes on meanwhile. The pool is
 * the process's (coil_run_opts: blocking_threads, blocking_queue). Such calls, file I/O and name look-ups
 * stand in lanes of their own, and a lane that has no thread always gets one. fn is no task: of coil's calls
 * it may make those marked [any]. A cancel or a limit takes the call back if no thread has begun it; one that
 * has begun can't be stopped, and is waited for.
 * Returns: 0: fn has ended, and *result is what it returned, unless result is NULL.
 * Errors: after any error fn was not called, and will not be. -ECANCELED, -ETIME: refused, or taken back.
 *         -EAGAIN: too many calls are waiting for a thread. -ENOMEM: there is no thread, and none can be
 *         started. -EINVAL: fn is NULL.
 * Memory: arg is borrowed until the call returns.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_blocking(coil_fn *fn, void *arg, int *result);

/* Runs fn(arg) as coil_blocking does, but a cancel or a limit ends the wait also when fn has begun: fn goes
 * on alone. The end of coil_run waits for it, and after 5 s (or exit_limit) says so.
 * Returns: 0: fn has ended, and *result is what it returned, unless result is NULL.
 * Errors: -ECANCELED, -ETIME: refused, taken back, or left behind: fn may be running. -EAGAIN, -ENOMEM,
 *         -EINVAL: as coil_blocking. -ENOMEM also: no memory.
 * Memory: on 0 arg is the caller's again. After any error it is coil's, which calls drop(arg) exactly once
 *         (NULL: nothing to do): where fn was never called, in the calling task before this call returns;
 *         where it was left behind, on fn's thread when fn has returned.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_blocking_owned(coil_fn *fn, void *arg, void (*drop)(void *arg), int *result);

#ifdef __cplusplus
}
#endif

#endif
