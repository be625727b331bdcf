/* Listeners, for serve. */
#ifndef COIL__LISTEN_H
#define COIL__LISTEN_H

#include "stream.h"

/* Stops accepting until somebody calls coil_listener_accept again; what has been accepted stays. Waits for the kernel. */
void coil__listener_pause(coil_listener *l);
/* Whether an error of an accept means that descriptors or memory ran out. */
bool coil__is_shortage(int err);

#endif
