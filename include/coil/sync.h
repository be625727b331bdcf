/* Locks and counts between the tasks of one worker. */
#ifndef COIL_SYNC_H
#define COIL_SYNC_H

#include "core.h"
#include "task.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What holds for all of them:
 *   Life      all zero is ready to use, at file scope, on a stack or inside a structure, and there is nothing
 *             to free. An idle one (nobody holds it, nobody waits for it) may be moved and forgotten.
 *   Order     first come, first served. Whoever lets go gives the object to the one that has waited longest,
 *             and nobody can slip in between.
 *   Cancel    who was given a lock or a permit has it and gets 0, also if a cancel or a limit comes before it
 *             runs: that shows at the next call. Who was cancelled or out of time before has left the line.
 *   Worker    they belong to the worker whose tasks use them, until they are idle again or its run has ended.
 *             Use by another worker meanwhile stops the process. Another worker may have an idle one; that
 *             its thread sees what the first one's wrote is up to the program. */

/* ---- mutexes ---- */

/* One task at a time. All zero: unlocked. A task that ends without unlocking leaves it locked for good. */
typedef struct coil_mutex {
    uint64_t opaque[4]; /* coil's */
} coil_mutex;

/* Locks the mutex.
 * Returns: 0: the current task owns it.
 * Errors: -ECANCELED, -ETIME: it is not locked. -EDEADLK: the current task owns it already.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_mutex_lock(coil_mutex *m);

/* Locks the mutex if it is free.
 * Returns: 0: the current task owns it.
 * Errors: -EBUSY: somebody owns it, perhaps the current task.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR int coil_mutex_trylock(coil_mutex *m);

/* Unlocks the mutex; the task that has waited longest owns it from then on. Anybody but the owner stops the
 * process.
 * Mark: [now]. Thread: the owner. */
COIL_API void coil_mutex_unlock(coil_mutex *m);

/* ---- reader-writer locks ---- */

/* Any number of readers, or one writer. All zero: unlocked. Neither side starves: a reader that comes while
 * somebody waits waits behind it, and when a writer leaves, all readers up to the next waiting writer go in
 * together. Hence a task must not lock for reading twice: with a writer between the two it would wait for
 * itself. */
typedef struct coil_rwlock {
    uint64_t opaque[6]; /* coil's */
} coil_rwlock;

/* Locks for reading.
 * Returns: 0: the current task is one of the readers.
 * Errors: -ECANCELED, -ETIME: it is not locked. -EDEADLK: the current task is the writer, or the only reader
 *         and a writer waits.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_rwlock_rdlock(coil_rwlock *l);

/* Locks for writing.
 * Returns: 0: the current task is the writer.
 * Errors: -ECANCELED, -ETIME: it is not locked. -EDEADLK: the current task is the writer, or the only reader:
 *         a lock for reading cannot be raised. One of several readers that tries waits for itself.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_rwlock_wrlock(coil_rwlock *l);

/* Locks for reading if there is no writer and nobody waits.
 * Returns: 0: the current task is one of the readers.
 * Errors: -EBUSY.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR int coil_rwlock_tryrdlock(coil_rwlock *l);

/* Locks for writing if nobody holds it.
 * Returns: 0: the current task is the writer.
 * Errors: -EBUSY.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR int coil_rwlock_trywrlock(coil_rwlock *l);

/* Unlocks what the current task has locked, for reading or writing. A task that holds neither stops the
 * process: at once, or, among several readers, when the last of them unlocks.
 * Mark: [now]. Thread: the writer, or a reader. */
COIL_API void coil_rwlock_unlock(coil_rwlock *l);

/* ---- conditions ---- */

/* Tasks that wait until something that a mutex protects has changed. All zero: nobody waits. */
typedef struct coil_cond {
    uint64_t opaque[3]; /* coil's */
} coil_cond;

/* Unlocks m, waits for a signal, and locks m again: the current task owns it on every return. Taking it again
 * is never refused, and may wait for its owner in a cancelled task too. Look at what was waited for again
 * afterwards: others may have had the mutex since the signal. Without a signal it does not return 0.
 * Returns: 0: signalled, also if a cancel or a limit came after that.
 * Errors: -ECANCELED, -ETIME: not signalled. Refused on entry it lets go of m for the turn that it gives the
 *         others. A mutex that the current task doesn't own stops the process.
 * Mark: [parks]. Thread: the owner of m. */
COIL_API COIL_WUR int coil_cond_wait(coil_cond *c, coil_mutex *m);

/* Wakes the task that has waited longest; nothing happens where nobody waits.
 * Mark: [now]. Thread: a task, whether it owns the mutex or not. */
COIL_API void coil_cond_signal(coil_cond *c);

/* Wakes all that wait, in the order in which they came.
 * Mark: [now]. Thread: a task, whether it owns the mutex or not. */
COIL_API void coil_cond_broadcast(coil_cond *c);

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
 * Returns: true if it is.
 * Mark: [now]. Thread: a task. */
COIL_API bool coil_event_is_set(const coil_event *e);

/* ---- barriers ---- */

/* A place where n tasks wait for each other, over and over. All zero is one of 0 tasks, which nobody may wait
 * at. */
typedef struct coil_barrier {
    uint64_t opaque[4]; /* coil's */
} coil_barrier;

/* The value of a barrier for n tasks (an unsigned), to initialise a member of a structure. */
#define COIL_BARRIER_INIT(n)       \
    {                              \
        { 0, 0, (unsigned)(n), 0 } \
    }
/* Declares a barrier for n tasks, in a block or a file; may follow `static`. */
#define COIL_BARRIER(name, n) coil_barrier name = COIL_BARRIER_INIT(n)

/* Waits until n tasks are here, then all go on, and the barrier is as new.
 * Returns: 1 to the one that came last, 0 to all others.
 * Errors: -ECANCELED, -ETIME: the task no longer counts as being here.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_barrier_wait(coil_barrier *b);

/* ---- once ---- */

/* Something that is done once. All zero: not done. */
typedef struct coil_once {
    uint64_t opaque[5]; /* coil's */
} coil_once;

/* Runs fn(arg) in the current task, unless it was done before; while another task is at it, waits for that.
 * If fn fails (returns < 0, also because its task was cancelled), it is not done, and the task that has
 * waited longest runs its own fn.
 * Returns: 0: it is done, by whomever.
 * Errors: what fn returned here, if < 0. -ECANCELED, -ETIME: fn was not run here, or has returned that
 *         itself. -EDEADLK: called by fn.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_once_do(coil_once *o, coil_fn *fn, void *arg);

/* ---- waitgroups ---- */

/* A number of things that are still to be done. All zero: none. */
typedef struct coil_waitgroup {
    uint64_t opaque[3]; /* coil's */
} coil_waitgroup;

/* Adds n. Before starting the tasks that will call done, or a wait may come too early. More than UINT_MAX
 * together stops the process.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_waitgroup_add(coil_waitgroup *g, unsigned n);

/* Takes one off; at zero all that wait go on. Below zero stops the process.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_waitgroup_done(coil_waitgroup *g);

/* Waits until nothing is left to be done.
 * Returns: 0: there was a moment at which nothing was.
 * Errors: -ECANCELED, -ETIME.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_waitgroup_wait(coil_waitgroup *g);

#ifdef __cplusplus
}
#endif

#endif
