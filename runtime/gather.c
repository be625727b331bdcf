/* Functions run side by side, in a group that lives as long as the call; and one run within a limit.
 *
 * Each job's result goes from its task into the job while that task ends. So it is there whatever the group
 * makes of it, and needs no memory of its own. */
#include "group.h"

#include <limits.h>

/* Starts all, or cancels those that it could start. 0, or why one could not be started. */
static int start(coil_group *g, coil_job *jobs, size_t n, const void *site) {
    int err = 0;
    for (size_t i = 0; i < n; i++) {
        if (!err) err = coil__group_spawn(g, jobs[i].fn, jobs[i].arg, &jobs[i].result, site);
        if (err) jobs[i].result = err;
    }
    if (err) coil_group_cancel(g);
    return err;
}

int coil_gather(coil_job *jobs, size_t n) {
    struct coil__task *t = coil__current("coil_gather");
    coil_group g = {0};
    coil__group_drop_results(&g);
    int err = start(&g, jobs, n, __builtin_return_address(0));
    struct coil__outcome out = coil__group_finish(&g, t, "gather");
    if (err) return err;
    return !out.failure && out.met ? coil__stop_error(t) : out.failure;
}

int coil_gather_all(coil_job *jobs, size_t n) {
    struct coil__task *t = coil__current("coil_gather_all");
    coil_group g = {0};
    coil__group_drop_results(&g);
    coil_group_keep_going(&g);
    int err = start(&g, jobs, n, __builtin_return_address(0));
    struct coil__outcome out = coil__group_finish(&g, t, "gather");
    return !err && out.met ? coil__stop_error(t) : err;
}

int coil_race(coil_job *jobs, size_t n) {
    struct coil__task *t = coil__current("coil_race");
    if (n == 0 || n > INT_MAX) return coil__failed(t, -EINVAL);
    coil_group g = {0};
    coil__group_drop_results(&g);
    coil__group_first_wins(&g);
    int err = start(&g, jobs, n, __builtin_return_address(0));
    struct coil__outcome out = coil__group_finish(&g, t, "race");
    if (out.winner) return (int)(CONTAINER_OF(out.winner, coil_job, result) - jobs);
    if (err) return err;
    if (out.met) return coil__stop_error(t);
    /* Each of them may have been cancelled alone, which is no failure to the group. */
    return out.failure ? out.failure : jobs[0].result;
}

/* A cancel comes before a limit where both hold. */
int coil_wait_for(coil_dur limit, coil_fn *fn, void *arg) {
    const struct coil__task *t = coil__current("coil_wait_for");
    coil_scope s = coil_within(limit);
    int result = fn(arg);
    bool struck = coil_leave(&s);
    if (result >= 0 || (result == -ECANCELED && t->stop)) return result;
    return struck ? -ETIME : result;
}
