/* Signals, for the end of a run. */
#ifndef COIL__SIGNALS_H
#define COIL__SIGNALS_H

#include "cancel.h"

/* Whether a signal can be waited for at all. */
bool coil__signal_possible(int sig);

/* From now until coil__signals_leave, fn(w) is called in the worker's loop when the signal comes, beside what
 * tasks wait for. One signal for each worker. 0, -ENOMEM. */
int coil__signals_watch(struct coil__worker *w, int sig, void (*fn)(struct coil__worker *w));

/* The worker's run ends: no handler posts to it after this, and signals that nobody else wants get their old
 * disposition. */
void coil__signals_leave(struct coil__worker *w);

#endif
