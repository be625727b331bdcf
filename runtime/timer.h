/* Timers: the worker's heap of moments, and the deadline of a parked task. */
#ifndef COIL__TIMER_H
#define COIL__TIMER_H

#include "task.h"

/* The owner of a timer holds a seat in the heap for as long as it may be armed. */
void coil__timer_arm(struct coil__sched *s, struct coil__timer *t, int64_t at_ns);
void coil__timer_disarm(struct coil__sched *s, struct coil__timer *t);
/* Fires what is due by the worker's clock. */
void coil__timers_fire(struct coil__sched *s);
/* Whether a timer is armed that could wake anybody. */
bool coil__timers_any(struct coil__sched *s);

/* Parks the current task on w, which the deadline until_ns interrupts: see struct coil__wait. */
void coil__park_within(struct coil__task *t, struct coil__wait *w, int64_t until_ns);
static inline void coil__park_until(struct coil__task *t, struct coil__wait *w, int64_t until_ns) {
    if (UNLIKELY(until_ns != COIL__NEVER)) {
        coil__park_within(t, w, until_ns);
        return;
    }
    w->until_ns = COIL__NEVER;
    coil__park(t, w);
}
/* Parks in a wait that neither cancel nor deadline may end. */
void coil__park_always(struct coil__task *t, struct coil__wait *w);

#endif
