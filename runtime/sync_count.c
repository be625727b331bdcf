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

/* ---- barriers ---- */

struct barrier {
    struct coil__list line;
    uint64_t n;
    uint32_t worker; /* of those who wait */
    uint32_t here;   /* how many wait */
};

_Static_assert(sizeof(struct barrier) == sizeof(coil_barrier), "a barrier fits its public type");
_Static_assert(offsetof(struct barrier, n) == 16, "COIL_BARRIER_INIT sets it");

static void barrier_abort(struct coil__wait *w) {
    struct coil__list *line = CONTAINER_OF(w, struct coil__line_wait, wait)->line;
    CONTAINER_OF(line, struct barrier, line)->here--;
    coil__line_abort(w);
}

int coil_barrier_wait(coil_barrier *barrier) {
    struct coil__task *t = coil__current("coil_barrier_wait");
    struct barrier *b = (struct barrier *)(void *)barrier;
    int err = coil__admit(t);
    if (err) return err;
    coil__line_check(&b->line, b->worker, "coil_barrier_wait");
    if (UNLIKELY(b->n == 0))
        MISUSE("coil_barrier_wait", "a barrier of 0 tasks: declare it with COIL_BARRIER");
    if (b->here + UINT64_C(1) == b->n) {
        b->here = 0;
        tell_all(&b->line);
        coil__charge(t);
        return 1;
    }
    b->here++;
    b->worker = t->sched->worker;
    struct coil__line_wait w = {.wait = {.abort = barrier_abort, .what = "barrier", .fd = -1, .on = barrier},
                                .line = &b->line};
    return coil__line_park(t, &w);
}

/* ---- once ---- */

struct once {
    struct coil__list line;
    struct coil__owner runner; /* who runs its function; gen 0: nobody */
    uint64_t done;
};

_Static_assert(sizeof(struct once) == sizeof(coil_once), "a once fits its public type");

enum { IS_DONE, RUN_YOURS }; /* what one that waits is told */

static const struct coil__task *once_runner(const struct coil__wait *w, const struct coil__task *after) {
    const struct coil__list *line = CONTAINER_OF(w, struct coil__line_wait, wait)->line;
    return coil__owner_blocks(w, &CONTAINER_OF(line, struct once, line)->runner, after);
}

/* The runner's function has failed: the next one is to run its own. */
static void pass_on(struct once *o) {
    struct coil__waiter *e = coil__line_pop(&o->line);
    o->runner.gen = 0;
    if (!e) return;
    o->runner = coil__owner(coil__waiter_task(e));
    coil__waiter_ready(e, RUN_YOURS);
}

static int run_once(struct once *o, coil_fn *fn, void *arg) {
    int err = fn(arg);
    if (err < 0) {
        pass_on(o);
        return err;
    }
    o->done = 1;
    o->runner.gen = 0;
    tell_all(&o->line);
    return 0;
}

/* Somebody is at it: 0 when it is done, 1 when it is the current task's turn, or an error. */
static int wait_once(struct once *o, struct coil__task *t) {
    struct coil__line_wait w = {
        .wait = {.abort = coil__line_abort, .what = "once", .fd = -1, .on = o, .blocker = once_runner},
        .line = &o->line};
    int err = coil__line_park(t, &w);
    return err ? err : w.wait.result;
}

int coil_once_do(coil_once *once, coil_fn *fn, void *arg) {
    struct coil__task *t = coil__current("coil_once_do");
    struct once *o = (struct once *)(void *)once;
    int turn, err = coil__admit(t);
    if (err) return err;
    if (LIKELY(o->done)) {
        coil__charge(t);
        return 0;
    }
    if (o->runner.gen && coil__owner_worker(&o->runner) != t->sched->worker) {
        coil__sync_foreign(coil__owner_worker(&o->runner), "coil_once_do");
        o->runner.gen = 0;
    }
    if (coil__owns(&o->runner, t)) return coil__failed(t, -EDEADLK);
    if (o->runner.gen) {
        turn = wait_once(o, t);
        return turn == RUN_YOURS ? run_once(o, fn, arg) : turn;
    }
    o->runner = coil__owner(t);
    err = run_once(o, fn, arg);
    coil__charge(t);
    return err;
}

/* ---- waitgroups ---- */

struct waitgroup {
    struct coil__list line; /* empty where count is 0 */
    uint32_t count;
    uint32_t worker; /* where count is not 0 */
};

_Static_assert(sizeof(struct waitgroup) == sizeof(coil_waitgroup), "a waitgroup fits its public type");

static struct waitgroup *waitgroup_for(coil_waitgroup *group, const struct coil__task *t, const char *call) {
    struct waitgroup *g = (struct waitgroup *)(void *)group;
    if (UNLIKELY(g->count && g->worker != t->sched->worker)) {
        coil__sync_foreign(g->worker, call);
        g->count = 0;
    }
    return g;
}

void coil_waitgroup_add(coil_waitgroup *group, unsigned n) {
    const struct coil__task *t = coil__current("coil_waitgroup_add");
    struct waitgroup *g = waitgroup_for(group, t, "coil_waitgroup_add");
    if (UNLIKELY(n > UINT_MAX - g->count)) MISUSE("coil_waitgroup_add", "more than %u", UINT_MAX);
    g->worker = t->sched->worker;
    g->count += n;
}

void coil_waitgroup_done(coil_waitgroup *group) {
    const struct coil__task *t = coil__current("coil_waitgroup_done");
    struct waitgroup *g = waitgroup_for(group, t, "coil_waitgroup_done");
    if (UNLIKELY(g->count == 0)) MISUSE("coil_waitgroup_done", "called more often than was added");
    if (--g->count == 0) tell_all(&g->line);
}

int coil_waitgroup_wait(coil_waitgroup *group) {
    struct coil__task *t = coil__current("coil_waitgroup_wait");
    int err = coil__admit(t);
    if (err) return err;
    struct waitgroup *g = waitgroup_for(group, t, "coil_waitgroup_wait");
    if (g->count == 0) {
        coil__charge(t);
        return 0;
    }
    struct coil__line_wait w = {
        .wait = {.abort = coil__line_abort, .what = "waitgroup", .fd = -1, .on = group}, .line = &g->line};
    return coil__line_park(t, &w);
}
