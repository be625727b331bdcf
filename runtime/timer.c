/* A task's own timer is lazy: when a wait is over, the timer stays in the heap, since the next wait's
 * deadline is most often later or the same. It costs at most one needless wake-up: where it fires too early,
 * it is put at the deadline that holds by then. So a loop of reads under one limit touches the heap once. */
#include "timer.h"

void coil__timer_arm(struct coil__sched *s, struct coil__timer *t, int64_t at_ns) {
    if (coil__heap_has(&t->node)) {
        if (t->node.key == at_ns) return;
        coil__heap_remove(&s->timers, &t->node);
    }
    if (at_ns != COIL__NEVER) coil__heap_put(&s->timers, &t->node, at_ns);
}

void coil__timer_disarm(struct coil__sched *s, struct coil__timer *t) {
    if (coil__heap_has(&t->node)) coil__heap_remove(&s->timers, &t->node);
}

/* Those that are armed again while firing go by the clock of this call, so that the loop ends. */
void coil__timers_fire(struct coil__sched *s) {
    for (struct coil__heap_node *n; (n = coil__heap_first(&s->timers)) && n->key <= s->now_ns;) {
        struct coil__timer *t = CONTAINER_OF(n, struct coil__timer, node);
        coil__heap_remove(&s->timers, n);
        t->fire(t);
    }
}

static void wait_over(struct coil__timer *timer) {
    struct coil__task *t = CONTAINER_OF(timer, struct coil__task, timer);
    if (t->state != COIL__PARKED || t->wait->until_ns == COIL__NEVER) return;
    if (t->wait->until_ns > t->sched->now_ns) {
        coil__timer_arm(t->sched, timer, t->wait->until_ns);
    } else {
        coil__interrupt(t);
    }
}

/* Those of tasks that only stand here from an earlier wait are taken out on the way. */
static bool any_can_wake(struct coil__sched *s) {
    for (struct coil__heap_node *n; (n = coil__heap_first(&s->timers));) {
        const struct coil__timer *timer = CONTAINER_OF(n, struct coil__timer, node);
        if (timer->fire != wait_over) return true;
        const struct coil__task *t = CONTAINER_OF(timer, struct coil__task, timer);
        if (t->state != COIL__PARKED || t->wait->until_ns != COIL__NEVER) return true;
        coil__heap_remove(&s->timers, n);
    }
    return false;
}

bool coil__timers_any(struct coil__sched *s) {
    struct coil__timer *report = s->report_timer;
    bool armed = report && coil__heap_has(&report->node);
    if (!armed) return any_can_wake(s);
    int64_t at_ns = report->node.key;
    coil__timer_disarm(s, report);
    bool any = any_can_wake(s);
    coil__timer_arm(s, report, at_ns);
    return any;
}

void coil__park_within(struct coil__task *t, struct coil__wait *w, int64_t until_ns) {
    struct coil__timer *timer = &t->timer;
    w->until_ns = until_ns;
    timer->fire = wait_over;
    if (!coil__heap_has(&timer->node) || timer->node.key > until_ns)
        coil__timer_arm(t->sched, timer, until_ns);
    coil__park(t, w);
}

void coil__park_always(struct coil__task *t, struct coil__wait *w) {
    w->until_ns = COIL__NEVER;
    w->abort = NULL;
    coil__park(t, w);
}

/* ---- sleeping: a wait that only its deadline, a limit or a cancel can end ---- */

struct sleep {
    struct coil__wait wait;
    int64_t at_ns;
};

/* What has come by now decides: a sleep that is over stays over, whatever happens before its task runs. */
static void sleep_abort(struct coil__wait *w) {
    const struct sleep *sleep = CONTAINER_OF(w, struct sleep, wait);
    const struct coil__task *t = w->task;
    coil__ready(w, !t->stop && t->sched->now_ns >= sleep->at_ns ? 0 : -EINTR);
}

static int sleep_until(struct coil__task *t, int64_t at_ns) {
    if (at_ns <= t->sched->now_ns) {
        coil__step_aside(t);
        return 0;
    }
    /* Sleeps that are due at one moment end in the order in which they began, so one that an earlier wait has
     * left its timer to doesn't take over that one's place. */
    coil__timer_disarm(t->sched, &t->timer);
    struct sleep sleep = {.wait = {.abort = sleep_abort, .what = "sleep", .fd = -1}, .at_ns = at_ns};
    coil__park_until(t, &sleep.wait, MIN(at_ns, t->limit_ns));
    return sleep.wait.result < 0 ? coil__stop_error(t) : 0;
}

int coil_sleep(coil_dur d) {
    struct coil__task *t = coil__current("coil_sleep");
    int err = coil__admit(t);
    if (err) return err;
    if (d.ns <= 0) return sleep_until(t, 0);
    return sleep_until(t, coil__add_ns(coil__clock(t->sched), d.ns));
}

int coil_sleep_until(coil_time at) {
    struct coil__task *t = coil__current("coil_sleep_until");
    int err = coil__admit(t);
    if (err) return err;
    return sleep_until(t, at.ns);
}
