/* Cancelling tasks. */
#ifndef COIL__CANCEL_H
#define COIL__CANCEL_H

#include "op.h"

/* Marks t as cancelled, for good, and asks a wait of its to end. Harmless when repeated. Its own worker only.
 */
void coil__cancel(struct coil__task *t);
/* Cancels every task of the worker but the current one. */
void coil__cancel_all(struct coil__sched *s);

#endif
