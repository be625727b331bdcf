/* Ticks: moments a period apart. The next one is counted from the one before, never from when its task ran.
 */
#include "task.h"

/* The tick after the one of `due`, which has come. */
static int64_t after(int64_t due, int64_t period, int late, int64_t now_ns) {
    int64_t next = coil__add_ns(due, period);
    if (next > now_ns || late == COIL_LATE_BURST) return next;
    return coil__add_ns(late == COIL_LATE_SKIP ? now_ns - (now_ns - due) % period : now_ns, period);
}

int coil_interval_tick(coil_interval *i) {
    struct coil__task *t = coil__current("coil_interval_tick");
    int err = coil__admit(t);
    if (err) return err;
    bool known = i->late == COIL_LATE_SKIP || i->late == COIL_LATE_BURST || i->late == COIL_LATE_DELAY;
    if (i->period.ns <= 0 || !known) return coil__failed(t, -EINVAL);
    int64_t due = i->next.ns > 0 ? i->next.ns : coil__clock(t->sched);
    err = coil_sleep_until((coil_time){due});
    if (err) return err;
    i->next.ns = after(due, i->period.ns, i->late, coil__clock(t->sched));
    return 0;
}
