/* Events and what counts: semaphores, barriers, waitgroups, and functions that run once. */
#include "sync.h"

#include <limits.h>

/* ---- semaphores ---- */

struct sem {
    struct coil__list line; /* an entry's item: how many permits it waits for */
    uint64_t permits;       /* at most UINT_MAX; where somebody waits, fewer than the first one wants */
    uint32_t worker;        /* of those who wait */
    bool serving;
};

_Static_assert(sizeof(struct sem) == sizeof(coil_sem), "a semaphore fits its public type");
_Static_assert(offsetof(struct sem, permits) == 16, "COIL_SEM_INIT sets it");

static struct sem *sem_inner(coil_sem *s) {
    return (struct sem *)(void *)s;
}

/* Gives permits to those in line, as far as they go. A select that is given some leaves the line with its
 * other entries and comes here again: the outermost call does the work, or a long line of them would use up
 * the stack. */
static void serve(struct sem *s) {
    if (s->serving) return;
    s->serving = true;
    for (struct coil__waiter *e; (e = coil__line_first(&s->line)) && s->permits >= (uintptr_t)e->item;) {
        coil__line_leave(&s->line, e);
        s->permits -= (uintptr_t)e->item;
        coil__waiter_ready(e, 0);
    }
    s->serving = false;
}

bool coil__sem_can(const coil_sem *sem, unsigned n, const char *call) {
    const struct sem *s = (const struct sem *)(const void *)sem;
    coil__line_check(&s->line, s->worker, call);
    return s->permits >= n && !coil__line_any(&s->line);
}

bool coil__sem_try(coil_sem *sem, unsigned n, const char *call) {
    if (!coil__sem_can(sem, n, call)) return false;
    sem_inner(sem)->permits -= n;
    return true;
}

void coil__sem_push(coil_sem *sem, struct coil__waiter *w) {
    struct sem *s = sem_inner(sem);
    s->worker = coil__here->worker;
    coil__line_push(&s->line, w);
}

void coil__sem_leave(coil_sem *sem, struct coil__waiter *w) {
    coil__line_leave(&sem_inner(sem)->line, w);
}

void coil__sem_serve(coil_sem *sem) {
    serve(sem_inner(sem));
}

static void acquire_abort(struct coil__wait *w) {
    struct sem *s = CONTAINER_OF(CONTAINER_OF(w, struct coil__line_wait, wait)->line, struct sem, line);
    coil__line_leave(&s->line, &w->entry);
    coil__ready(w, 0);
    serve(s);
}

int coil_sem_acquire(coil_sem *sem, unsigned n) {
    struct coil__task *t = coil__current("coil_sem_acquire");
    int err = coil__admit(t);
    if (err) return err;
    if (LIKELY(coil__sem_try(sem, n, "coil_sem_acquire"))) {
        coil__charge(t);
        return 0;
    }
    struct sem *s = sem_inner(sem);
    s->worker = t->sched->worker;
    struct coil__line_wait w = {.wait = {.abort = acquire_abort, .what = "semaphore", .fd = -1, .on = sem},
                                .line = &s->line};
    w.wait.entry.item = (void *)(uintptr_t)n; /* NOLINT(performance-no-int-to-ptr) a number, never followed */
    return coil__line_park(t, &w);
}

int coil_sem_tryacquire(coil_sem *s, unsigned n) {
    coil__current("coil_sem_tryacquire");
    return coil__sem_try(s, n, "coil_sem_tryacquire") ? 0 : -EAGAIN;
}

void coil_sem_release(coil_sem *sem, unsigned n) {
    struct sem *s = sem_inner(sem);
    coil__current("coil_sem_release");
    coil__line_check(&s->line, s->worker, "coil_sem_release");
    if (UNLIKELY(s->permits + n > UINT_MAX))
        MISUSE("coil_sem_release", "more than %u permits: some were released twice", UINT_MAX);
    s->permits += n;
    serve(s);
}

/* ---- events ---- */

struct event {
    struct coil__list line;
    uint32_t worker; /* of those who wait */
    bool set;        /* then nobody waits */
};

_Static_assert(sizeof(struct event) == sizeof(coil_event), "an event fits its public type");

static struct event *event_inner(coil_event *e) {
    return (struct event *)(void *)e;
}

/* Tells all that wait: they go on in the order in which they came. */
static void tell_all(struct coil__list *line) {
    for (struct coil__waiter *w; (w = coil__line_pop(line));)
        coil__waiter_ready(w, 0);
}

bool coil__event_is_set(const coil_event *event, const char *call) {
    const struct event *e = (const struct event *)(const void *)event;
    coil__line_check(&e->line, e->worker, call);
    return e->set;
}

void coil__event_push(coil_event *event, struct coil__waiter *w) {
    struct event *e = event_inner(event);
    e->worker = coil__here->worker;
    coil__line_push(&e->line, w);
}

void coil__event_leave(coil_event *event, struct coil__waiter *w) {
    coil__line_leave(&event_inner(event)->line, w);
}

int coil_event_wait(coil_event *event) {
    struct coil__task *t = coil__current("coil_event_wait");
    int err = coil__admit(t);
    if (err) return err;
    if (coil__event_is_set(event, "coil_event_wait")) {
        coil__charge(t);
        return 0;
    }
    struct event *e = event_inner(event);
    e->worker = t->sched->worker;
    struct coil__line_wait w = {.wait = {.abort = coil__line_abort, .what = "event", .fd = -1, .on = event},
                                .line = &e->line};
    return coil__line_park(t, &w);
}

void coil_event_set(coil_event *event) {
    struct event *e = event_inner(event);
    coil__current("coil_event_set");
    coil__line_check(&e->line, e->worker, "coil_event_set");
    e->set = true;
    tell_all(&e->line);
}

void coil_event_clear(coil_event *event) {
    struct event *e = event_inner(event);
    coil__current("coil_event_clear");
    coil__line_check(&e->line, e->worker, "coil_event_clear");
    e->set = false;
}

bool coil_event_is_set(const coil_event *event) {
    coil__current("coil_event_is_set");
    return coil__event_is_set(event, "coil_event_is_set");
}
