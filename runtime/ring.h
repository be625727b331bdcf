/* The io_uring driver. */
#ifndef COIL__RING_H
#define COIL__RING_H

#include "driver.h"

struct coil__ring_opts {
    unsigned sq_entries, cq_entries;
    unsigned pool_buffers; /* a power of two */
    uint32_t pool_buffer_size;
    uint64_t caps_unused; /* capabilities that must not be used although the kernel may have them */
};

/* Sets up a ring that belongs to the calling thread. 0 and *out, or err->code. */
int coil__ring_open(const struct coil__ring_opts *o, struct coil__driver **out,
                    struct coil__driver_error *err);

/* For a driver that waits for the ring beside other things: the descriptor that is readable while there are
 * completions, and whether everything that was queued is in the kernel. */
int coil__ring_fd(struct coil__driver *d);
bool coil__ring_idle(struct coil__driver *d);

#endif
