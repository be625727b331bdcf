/* Signals, for the end of a run. */
#ifndef COIL__SIGNALS_H
#define COIL__SIGNALS_H

#include "cancel.h"

/* The worker's run ends: no handler posts to it after this, and signals that nobody else wants get their old
 * disposition. */
void coil__signals_leave(struct coil__worker *w);

#endif
