/* Waiting for signals. */
#ifndef COIL_SIGNAL_H
#define COIL_SIGNAL_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Waits for one of n signals. From the first call that names a signal on, a process-wide handler catches it;
 * the old disposition comes back when the last run that asked has ended. Every waiting task of every worker
 * gets the signal; one for which no task of a worker waits is kept for that worker's next call. A task that
 * waits for several numbers gets one of those that have come; another one, which it missed by that, is kept
 * where nobody else got it. Several of the same number may count as one.
 * Returns: the number of the signal that came.
 * Errors: -EINVAL: n is 0, signals is NULL, or a number is out of range, SIGKILL, SIGSTOP, a signal that
 *         the processor raises (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP), or SIGURG, by which the watchdog
 *         asks workers (coil_run_opts: blocked_limit). -ENOMEM: no memory to register the wait.
 *         -ECANCELED, -ETIME: refused, or ended by cancel or limit.
 * Units: n counts signals.
 * Mark: [parks]. Thread: a task.
 * Source: signal(7), sigaction(2). */
COIL_API int coil_signal_wait(const int *signals, size_t n);

#ifdef __cplusplus
}
#endif

#endif
