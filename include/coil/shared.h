/* Events, semaphores and channels between tasks of any workers and plain threads. */
#ifndef COIL_SHARED_H
#define COIL_SHARED_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What holds for all of them:
 *   Who       any task of any worker, and any thread outside coil_run. In a task the waiting calls park. In a
 *             thread outside coil_run they block that thread, without a limit; there they never give
 *             -ECANCELED or -ETIME. Between tasks of one worker coil_event, coil_sem and coil_chan are
 *             cheaper.
 *   Order     first come, first served, over all tasks and threads that wait. Who lets go gives the permit or
 *             the item to the one that has waited longest, and nobody can slip in between.
 *   Cancel    who was given something has it and succeeds, also if a cancel or a limit comes before its task
 *             runs: that shows at the next call. Who was cancelled or out of time before has left the line.
 *   Memory    an object stays where it is while it is in use. It may be freed as soon as no call will begin
 *             on it any more and none waits: also by the one that has just been woken, since who woke it
 *             does not touch the object afterwards.
 *   Seen      what was written before a set, a release or a send is seen after the wait, the acquire or the
 *             receive that it ended.
 *   Signals   no call is for signal handlers.
 *   Forks     a child of fork may use objects that it makes itself; those that another thread of the parent
 *             was using, or waited for, it must leave alone. Forked inside coil_run it may use none: that
 *             stops with the name. */

/* ---- events ---- */

/* Is set or not; all who wait go on when it is set. All zero: not set; nothing to free. */
typedef struct coil_shared_event {
    uint64_t opaque[4]; /* coil's */
} coil_shared_event;

/* Waits until the event is set; it stays set. A clear that comes after the set doesn't keep back those who
 * waited.
 * Returns: 0.
 * Errors: -ECANCELED, -ETIME: it was not set.
 * Mark: [parks]; blocks a thread outside coil_run. Thread: any. */
COIL_API COIL_WUR int coil_shared_event_wait(coil_shared_event *e);

/* Sets the event, and lets all go on that wait.
 * Mark: [any]. Thread: any. */
COIL_API void coil_shared_event_set(coil_shared_event *e);

/* Makes the event unset again.
 * Mark: [any]. Thread: any. */
COIL_API void coil_shared_event_clear(coil_shared_event *e);

/* Whether the event is set now.
 * Returns: true if it is.
 * Mark: [any]. Thread: any. */
COIL_API bool coil_shared_event_is_set(coil_shared_event *e);

/* ---- semaphores ---- */

/* A number of permits. All zero: none; nothing to free. Not owned: anybody may release. */
typedef struct coil_shared_sem {
    uint64_t opaque[4]; /* coil's */
} coil_shared_sem;

/* The value of a semaphore with that many permits (an unsigned), to initialise a member of a structure. */
#define COIL_SHARED_SEM_INIT(permits)    \
    {                                    \
        { 0, 0, (unsigned)(permits), 0 } \
    }
/* Declares a semaphore with that many permits, in a block or a file; may follow `static`. */
#define COIL_SHARED_SEM(name, permits) coil_shared_sem name = COIL_SHARED_SEM_INIT(permits)

/* Takes n permits, all at once. One that waits for many holds up those behind it that want few. 0 permits:
 * waits only for those before it.
 * Returns: 0.
 * Errors: -ECANCELED, -ETIME: no permit was taken.
 * Mark: [parks]; blocks a thread outside coil_run. Thread: any. */
COIL_API COIL_WUR int coil_shared_sem_acquire(coil_shared_sem *s, unsigned n);

/* Takes n permits if they are there and nobody waits.
 * Returns: 0.
 * Errors: -EAGAIN: there are fewer, or others are waiting.
 * Mark: [any]. Thread: any. */
COIL_API COIL_WUR int coil_shared_sem_tryacquire(coil_shared_sem *s, unsigned n);

/* Adds n permits, and gives them to those who wait. More than UINT_MAX together stops the process.
 * Mark: [any]. Thread: any. */
COIL_API void coil_shared_sem_release(coil_shared_sem *s, unsigned n);

/* ---- channels ---- */

/* A channel for items of one size. Its life: 1. open; 2. send and receive; 3. close, when no more items will
 * come; 4. destroy. With a capacity of 0 it is unbuffered: a sender waits until its item was received. Items
 * are copied under a short lock of coil's: pass pointers to large ones. */
typedef struct coil_shared_chan {
    uint64_t opaque[12]; /* coil's */
} coil_shared_chan;

/* Opens a channel for items of item_size bytes, of which it holds up to `capacity`.
 * Returns: 0.
 * Errors: -ENOMEM: no memory for the items; *c is then not open.
 * Units: item_size: bytes. capacity: items.
 * Memory: what *c held before is overwritten. The buffer is coil's until coil_shared_chan_destroy.
 * Mark: [any]. Thread: any. */
COIL_API int coil_shared_chan_open(coil_shared_chan *c, size_t item_size, size_t capacity);

/* Sends one item. Waits until a receiver has it, or, in a channel with a capacity, until there is room.
 * Returns: 0.
 * Errors: -EPIPE: the channel is closed, or was while this call waited. -ECANCELED, -ETIME: refused, or woken
 *         before it could be sent. After any error the item was not sent.
 * Memory: *item is borrowed until the call returns.
 * Mark: [parks]; blocks a thread outside coil_run. Thread: any. */
COIL_API COIL_WUR int coil_shared_chan_send(coil_shared_chan *c, const void *item);

/* Receives the next item into *item. Waits until there is one.
 * Returns: 1; 0: the channel is closed and empty, and *item is untouched.
 * Errors: -ECANCELED, -ETIME: refused, or woken before there was an item.
 * Memory: *item is borrowed until the call returns.
 * Mark: [parks]; blocks a thread outside coil_run. Thread: any. */
COIL_API COIL_WUR int coil_shared_chan_recv(coil_shared_chan *c, void *item);

/* Sends one item if that needs no waiting.
 * Returns: 0.
 * Errors: -EAGAIN: it does. -EPIPE: the channel is closed.
 * Memory: *item is borrowed until the call returns.
 * Mark: [any]. Thread: any. */
COIL_API COIL_WUR int coil_shared_chan_trysend(coil_shared_chan *c, const void *item);

/* Receives the next item into *item if there is one.
 * Returns: 1; 0: the channel is closed and empty.
 * Errors: -EAGAIN: it is empty, and not closed.
 * Memory: *item is borrowed until the call returns.
 * Mark: [any]. Thread: any. */
COIL_API COIL_WUR int coil_shared_chan_tryrecv(coil_shared_chan *c, void *item);

/* Closes the channel: no more sends; what is in it can still be received. Waiting senders get -EPIPE, their
 * items are not delivered; waiting receivers get 0. Harmless when repeated.
 * Mark: [any]. Thread: any. */
COIL_API void coil_shared_chan_close(coil_shared_chan *c);

/* Ends the channel, closed or not; what is in it is dropped. A channel that still has waiters stops the
 * process with a message. Harmless on one that is not open, if it is all zero.
 * Memory: the buffer of coil_shared_chan_open is freed. *c is all zero afterwards, and may be opened anew.
 * Mark: [any]. Thread: any; no other call may be under way. */
COIL_API void coil_shared_chan_destroy(coil_shared_chan *c);

#ifdef __cplusplus
}
#endif

#endif
