/* The ring driver for every kernel: with an epoll set beside it where that is cheaper. */
#ifndef COIL__HYBRID_H
#define COIL__HYBRID_H

#include "ring.h"

/* As coil__ring_open. */
int coil__hybrid_open(const struct coil__ring_opts *o, struct coil__driver **out,
                      struct coil__driver_error *err);

#endif
