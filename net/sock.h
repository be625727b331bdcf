/* Sockets as listeners and dials make them. All calls go through the driver's table of plain calls. */
#ifndef COIL__SOCK_H
#define COIL__SOCK_H

#include "op.h"

#include "coil/net.h"

static inline const struct coil__sys *coil__sys_of(const struct coil__worker *w) {
    return w->s.driver->sys;
}

/* 0; -EAFNOSUPPORT: a family that coil doesn't have; -EINVAL: NULL, or a length that doesn't suit the family.
 */
int coil__addr_check(const coil_addr *a);

/* A stream socket of the address's family, with TCP_NODELAY on where that means something. A descriptor or
 * negative errno. */
int coil__sock_open(const struct coil__sys *sys, const coil_addr *a);

/* Names of the two ends; *out is all zero on failure. */
int coil__sock_local(const struct coil__sys *sys, int fd, coil_addr *out);
int coil__sock_peer(const struct coil__sys *sys, int fd, coil_addr *out);

int coil__sock_set(const struct coil__sys *sys, int fd, int level, int name, int value);

#endif
