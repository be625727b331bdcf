/* The public calls about single tasks: start, join, let go, name. */
#include "cancel.h"

#include <stdarg.h>
#include <stdio.h>

static int spawn(coil_task *out, const coil_spawn_opts *o, coil_fn *fn, void *arg, const void *site) {
    struct coil__task *t, *self = coil__current("coil_spawn");
    if (out) *out = (coil_task){0};
    int err = coil__task_new(self->sched, o, fn, arg, site, &t);
    if (err) return err;
    t->detached = !out;
    if (out) *out = coil__task_handle(t);
    return 0;
}

int coil_spawn(coil_task *out, coil_fn *fn, void *arg) {
    return spawn(out, NULL, fn, arg, __builtin_return_address(0));
}

int coil_spawn_with(coil_task *out, const coil_spawn_opts *o, coil_fn *fn, void *arg) {
    return spawn(out, o, fn, arg, __builtin_return_address(0));
}

/* Its entry stands in the list of the task that is joined. */
struct join_wait {
    struct coil__wait wait;
    const struct coil__task *target;
};

static const struct coil__task *joined(const struct coil__wait *w, const struct coil__task *after) {
    return after ? NULL : CONTAINER_OF(w, struct join_wait, wait)->target;
}

static int join(struct coil__task *t, struct coil__task *target, int *result) {
    struct join_wait j = {.wait = {.abort = coil__wait_leave, .what = "join", .fd = -1, .blocker = joined},
                          .target = target};
    struct coil__wait *w = &j.wait;
    coil__list_push(&target->joiners, &w->entry.node);
    coil__park_until(t, w, t->limit_ns);
    if (w->interrupted) return coil__stop_error(t);
    if (result) *result = w->result;
    return 0;
}

int coil_join(coil_task h, int *result) {
    struct coil__task *t = coil__current("coil_join");
    int err = coil__admit(t);
    if (err) return err;
    struct coil__task *target = coil__task_find(t->sched, h);
    if (!target) return coil__failed(t, -ESRCH);
    if (target == t) return coil__failed(t, -EDEADLK);
    if (target->detached) return coil__failed(t, -EINVAL);
    if (target->state != COIL__ENDED) return join(t, target, result);
    if (result) *result = target->result;
    coil__task_free(target);
    coil__charge(t);
    return 0;
}

int coil_detach(coil_task h) {
    struct coil__task *t = coil__current("coil_detach");
    struct coil__task *target = coil__task_find(t->sched, h);
    if (!target) return -ESRCH;
    if (target->detached) return -EINVAL;
    if (!coil__list_empty(&target->joiners)) return -EBUSY;
    target->detached = true;
    if (target->state == COIL__ENDED) coil__task_free(target);
    return 0;
}

coil_task coil_self(void) {
    return coil__task_handle(coil__current("coil_self"));
}

void coil_name(const char *fmt, ...) {
    struct coil__task *t = coil__current("coil_name");
    va_list ap;
    va_start(ap, fmt);
    coil__task_tidy_name(t, vsnprintf(t->name, sizeof t->name, fmt, ap));
    va_end(ap);
}
