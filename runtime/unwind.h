/* Call stacks as code addresses, of the calling context and of one that is not running. Nothing is allocated,
 * and nothing but the stack and the program's unwind tables is read.
 *
 * All addresses are return addresses: the call, or the instruction at hand, is at the address before. */
#ifndef COIL__UNWIND_H
#define COIL__UNWIND_H

#include "switch.h"

/* The frames of the caller and of those above it, innermost first. Returns how many there are in all, 0 where
 * the program can't be unwound; the first `max` of them are in pc. */
int coil__unwind_here(void **pc, int max);
/* The same for a context that was switched away from. One that never ran has none. */
int coil__unwind_ctx(const struct coil__ctx *c, void **pc, int max);

#endif
