/* A cancel from another thread is posted without allocating: each record has one letter, and the generation
 * for which it is meant beside it. Generations only go up, so where two threads post for the same slot, the
 * later task's cancel wins, and the other was stale. */
#include "cancel.h"

/* Interrupting a task that waits for a group cancels that group's children, and so on down. They are put on a
 * list rather than interrupted from within, or the deepest tree would use up the stack of whoever cancels its
 * root. */
void coil__cancel(struct coil__task *t) {
    struct coil__sched *s = t->sched;
    if (t->cancelled) return;
    t->cancelled = true;
    if (t->shielded) return;
    t->stop = true;
    t->next_stopped = s->stopped;
    s->stopped = t;
    if (s->stopping) return;
    s->stopping = true;
    while ((t = s->stopped)) {
        s->stopped = t->next_stopped;
        coil__interrupt(t);
    }
    s->stopping = false;
}

void coil__cancel_all(struct coil__sched *s) {
    uint32_t slots = atomic_load_explicit(&s->slots, memory_order_relaxed);
    for (uint32_t i = 0; i < slots; i++) {
        struct coil__task *t = coil__task_at(s, i);
        if (t->state == COIL__READY || t->state == COIL__PARKED) coil__cancel(t);
    }
}

/* The letter may be posted again from the first line on. Whoever finds it still posted has stored its
 * generation before, and the load below sees it. */
static void deliver(struct coil__letter *l) {
    struct coil__task *t = CONTAINER_OF(l, struct coil__task, cancel_letter);
    atomic_store(&t->cancel_posted, false);
    bool live = t->state != COIL__FREE && t->state != COIL__ENDED;
    if (live && atomic_load(&t->cancel_gen) == t->gen) coil__cancel(t);
}

static void post(struct coil__worker *w, void *arg) {
    const coil_task *h = arg;
    struct coil__task *t = coil__task_at(&w->s, h->slot);
    if (!t) return;
    uint64_t gen = atomic_load(&t->cancel_gen);
    while (gen < h->gen && !atomic_compare_exchange_weak(&t->cancel_gen, &gen, h->gen)) {
    }
    if (atomic_exchange(&t->cancel_posted, true)) return;
    t->cancel_letter.deliver = deliver;
    coil__worker_post(w, &t->cancel_letter);
}

int coil_cancel(coil_task h) {
    struct coil__sched *s = coil__here;
    if (coil__forked) coil__outside_task("coil_cancel");
    if (!s || s->worker != h.worker) return coil__worker_with(h.worker, post, &h) ? 0 : -ESRCH;
    struct coil__task *t = coil__task_find(s, h);
    if (!t) return -ESRCH;
    if (t->state != COIL__ENDED) coil__cancel(t);
    return 0;
}

bool coil_cancelled(void) {
    return coil__current("coil_cancelled")->stop;
}
