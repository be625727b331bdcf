/* coil: straight-line code in cheap tasks, over one io_uring per worker thread. This header includes all
 * the others.
 *
 * The words. A task is a function on its own stack. A worker is an OS thread inside coil_run; a task never
 * leaves its worker. To park is to give up the worker until something readies the task. A scope is a limit
 * in time, or a shield, that holds for the current task until it is left.
 *
 * Every call carries one mark:
 *   [now]    never gives up the worker.
 *   [parks]  may give up the worker. Looks at the task's cancel and deadline on entry, also when it could
 *            finish without parking, and again while parked. Refused on entry: it gives the other tasks
 *            one turn, then returns -ECANCELED or -ETIME, and has done nothing.
 *   [always] may park and is never refused: it finishes also in a cancelled or expired task.
 *   [any]    never gives up the worker, and may be called by any thread, inside or outside a task.
 * All calls but those marked [any] (and coil_run itself) belong inside a task of coil_run, and reach only
 * that worker's objects. A call from elsewhere, and any other misuse that has no error value, prints one
 * line that names the call, and aborts.
 *
 * What holds for every call, unless its own text says otherwise:
 *   Results      >= 0 is good, a negative errno value is bad. errno itself is unspecified after a coil
 *                call.
 *   -ECANCELED   means only: this task is cancelled. It comes before -ETIME where both hold, and stays
 *                until the task ends; coil_shield gives cleanup a time of its own.
 *   -ETIME       a limit has passed: a scope of the caller, or a stream's own limit. TCP's -ETIMEDOUT is
 *                another thing: the network's, and passed on as it is.
 *   Success wins If the operation succeeded before a cancel or a limit reached it, its bytes, its
 *                descriptor or its count are returned; the cancel or the limit shows at the next call.
 *   Memory       handed to a call is the caller's again when the call returns, with whatever result: the
 *                kernel has let go by then. It may therefore live on the task's stack.
 *   T **out      is written before the call returns: the object, or NULL on failure.
 *   Closing      coil_stream_close, coil_stream_abort and coil_listener_close accept NULL. A call that is
 *                inside an object while another task closes it gets -EBADF; the close returns after that
 *                call has left.
 *   Options      NULL, and a structure of zeros, mean the defaults. The reserved words must be zero.
 *   Units        lengths and sizes are bytes; times are coil_dur and coil_time, both in nanoseconds.
 *
 * The entries have one shape: a sentence, then those of these lines that have something to say, in this
 * order.
 *   Returns:  on success.
 *   Errors:   each errno value, and when.
 *   Units:    where they are not bytes or nanoseconds.
 *   Memory:   who owns what, and until when, where the rule above does not say it all.
 *   Mark:     as above. Thread: from where the call may be made; "a task": of the worker that owns the
 *             objects.
 *   Source:   the standard or manual page that a term or a field comes from. */
#ifndef COIL_H
#define COIL_H

#include "chan.h"
#include "core.h"
#include "group.h"
#include "io.h"
#include "net.h"
#include "runtime.h"
#include "select.h"
#include "signal.h"
#include "stream.h"
#include "sync.h"
#include "task.h"

#endif
