/* The epoll driver. */
#ifndef COIL__POLL_H
#define COIL__POLL_H

#include "driver.h"

/* A driver without io_uring. caps_unused as for the ring. 0 and *out, or err->code. */
int coil__poll_open(uint64_t caps_unused, struct coil__driver **out, struct coil__driver_error *err);

#endif
