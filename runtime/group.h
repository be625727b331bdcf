/* Groups, for those who wait for children in a way of their own. */
#ifndef COIL__GROUP_H
#define COIL__GROUP_H

#include "cancel.h"

#include "coil/group.h"

/* Waits until no child is left, at most until until_ns and without cancelling any. The owner only. How many
 * are left. */
uint32_t coil__group_drain(coil_group *g, int64_t until_ns);

/* For reports: the task that declared the group. */
const struct coil__task *coil__group_owner(const struct coil__group *g);

#endif
