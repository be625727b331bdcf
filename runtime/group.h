/* Groups, for those who wait for children in a way of their own. */
#ifndef COIL__GROUP_H
#define COIL__GROUP_H

#include "cancel.h"

#include "coil/group.h"

/* As coil_group_spawn; the child's result goes to *result_to as well. site: where the program asked for it.
 */
int coil__group_spawn(coil_group *g, coil_fn *fn, void *arg, int *result_to, const void *site);

/* Of a group that has not been used yet: nobody will ask for the results of single children. */
void coil__group_drop_results(coil_group *g);
/* Of a group that has not been used yet: the first child that succeeds cancels the others, and one that fails
 * none. */
void coil__group_first_wins(coil_group *g);

/* How a group came out. */
struct coil__outcome {
    int failure; /* the first child's that failed; 0: none did */
    bool met;    /* a cancel or limit of the waiter's own has met it */
    int *winner; /* result_to of the first child that succeeded; only where the first one wins */
};

/* Waits as coil_group_wait does. what: see struct coil__wait. The owner only. */
struct coil__outcome coil__group_finish(coil_group *g, struct coil__task *t, const char *what);

/* Waits until no child is left, at most until until_ns and without cancelling any. The owner only. How many
 * are left. */
uint32_t coil__group_drain(coil_group *g, int64_t until_ns);

/* For reports: the task that declared the group. */
const struct coil__task *coil__group_owner(const struct coil__group *g);

#endif
