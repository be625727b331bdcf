/* Locks and counts between the tasks of one worker. */
#ifndef COIL_SYNC_H
#define COIL_SYNC_H

#include "core.h"
#include "task.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What holds for all of them:
 *   Life      1. all zero is ready to use, at file scope, on a stack or inside a structure; 2. use; 3.
 * nothing to free. An idle one (nobody holds it, nobody waits for it) may be moved and forgotten. Order first
 * come, first served. Whoever lets go gives the object to the one that has waited longest, and nobody can
 * slip in between. Cancel    who was given a lock or a permit has it and gets 0, also if a cancel or a limit
 * comes before it runs: that shows at the next call. Who was cancelled or out of time before has left the
 * line. Worker    they belong to the worker whose tasks use them, until they are idle again or its run has
 * ended. Use by another worker meanwhile stops the process. Another worker may have an idle one; that its
 * thread sees what the first one's wrote is up to the program. */

/* ---- semaphores ---- */

/* A number of permits. All zero: none. Not owned: any task may release. */
typedef struct coil_sem {
    uint64_t opaque[4]; /* coil's */
} coil_sem;

/* The value of a semaphore with that many permits (an unsigned), to initialise a member of a structure. */
#define COIL_SEM_INIT(permits)           \
    {                                    \
        { 0, 0, (unsigned)(permits), 0 } \
    }
/* Declares a semaphore with that many permits, in a block or a file; may follow `static`. */
#define COIL_SEM(name, permits) coil_sem name = COIL_SEM_INIT(permits)

/* Takes n permits, all at once. One that waits for many holds up those behind it that want few. 0 permits:
 * waits only for those before it.
 * Returns: 0.
 * Errors: -ECANCELED, -ETIME: no permit was taken.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_sem_acquire(coil_sem *s, unsigned n);

/* Takes n permits if they are there and nobody waits.
 * Returns: 0.
 * Errors: -EAGAIN: there are fewer, or others are waiting.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR int coil_sem_tryacquire(coil_sem *s, unsigned n);

/* Adds n permits, and gives them to those who wait. More than UINT_MAX together stops the process.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_sem_release(coil_sem *s, unsigned n);

/* ---- events ---- */

/* Something that has happened or not. All zero: not. */
typedef struct coil_event {
    uint64_t opaque[3]; /* coil's */
} coil_event;

/* Waits until the event is set.
 * Returns: 0: it is set, or was set while this task waited, and may have been cleared since.
 * Errors: -ECANCELED, -ETIME.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_event_wait(coil_event *e);

/* Sets the event: all that wait go on, in the order in which they came. Harmless when repeated.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_event_set(coil_event *e);

/* Clears the event: who waits from now on waits for the next set.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_event_clear(coil_event *e);

/* Whether the event is set.
 * Mark: [now]. Thread: a task. */
COIL_API bool coil_event_is_set(const coil_event *e);

#ifdef __cplusplus
}
#endif

#endif
