/* Listeners, for serve. */
#ifndef COIL__LISTEN_H
#define COIL__LISTEN_H

#include "stream.h"

/* The listener is there until it is left, also while another task closes it. */
void coil__listener_enter(coil_listener *l);
void coil__listener_leave(coil_listener *l);
bool coil__listener_closing(const coil_listener *l);
/* A close readies the wait, and unlinks it; whoever else readies it unlinks it first. */
void coil__listener_watch(coil_listener *l, struct coil__wait *w);
/* Stops accepting until somebody calls coil_listener_accept again, unless somebody waits in it now; what has
 * been accepted stays. Waits for the kernel. */
void coil__listener_pause(coil_listener *l);
/* Whether an error of an accept means that descriptors or memory ran out. */
bool coil__is_shortage(int err);

#endif
