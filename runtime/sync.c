/* Mutexes, reader-writer locks and conditions.
 *
 * Who lets go makes the first in line the holder before that one runs: a lock in the line of which somebody
 * stands is never free. So a cancel that comes after the hand-over finds no wait to end, and one that came
 * before has taken the entry off the line. */
#include "sync.h"

#include "worker.h"

static void nothing(struct coil__worker *w, void *arg) {
    (void)w, (void)arg;
}

void coil__sync_foreign(uint32_t number, const char *call) {
    if (coil__worker_with(number, nothing, NULL))
        MISUSE(call, "used by another worker while a task of the first holds it");
}

/* ---- mutexes ---- */

struct mutex {
    struct coil__list line;
    struct coil__owner owner; /* gen 0: it is free, and nobody waits */
};

_Static_assert(sizeof(struct mutex) == sizeof(coil_mutex), "a mutex fits its public type");

static struct mutex *mutex_inner(coil_mutex *m) {
    return (struct mutex *)(void *)m;
}

static const struct coil__task *mutex_owner(const struct coil__wait *w, const struct coil__task *after) {
    const struct coil__list *line = CONTAINER_OF(w, struct coil__line_wait, wait)->line;
    return coil__owner_blocks(w, &CONTAINER_OF(line, struct mutex, line)->owner, after);
}

/* Makes t the owner where the mutex is free. */
static inline bool take(struct mutex *m, const struct coil__task *t) {
    if (UNLIKELY(m->owner.gen)) return false;
    m->owner = coil__owner(t);
    return true;
}

/* It is not free: t gets it all the same where its owner's run has ended. */
COLD static bool take_from_the_past(struct mutex *m, const struct coil__task *t, const char *call) {
    if (coil__owner_worker(&m->owner) == t->sched->worker) return false;
    coil__sync_foreign(coil__owner_worker(&m->owner), call);
    m->owner = coil__owner(t);
    return true;
}

/* It is not free. 0, -EDEADLK, and unless `always`, -ECANCELED and -ETIME. */
COLD static int wait_for_mutex(struct mutex *m, struct coil__task *t, const char *call, bool always) {
    struct coil__line_wait w = {
        .wait = {.abort = coil__line_abort, .what = "mutex", .fd = -1, .on = m, .blocker = mutex_owner},
        .line = &m->line};
    if (take_from_the_past(m, t, call)) return 0;
    if (coil__owns(&m->owner, t)) return coil__failed(t, -EDEADLK);
    if (!always) return coil__line_park(t, &w);
    coil__line_push(w.line, &w.wait.entry);
    coil__park_always(t, &w.wait);
    return 0;
}

static __attribute__((noinline)) void hand_over(struct mutex *m) {
    struct coil__waiter *e = coil__line_pop(&m->line);
    m->owner = coil__owner(coil__waiter_task(e));
    coil__waiter_ready(e, 0);
}

static inline void let_go(struct mutex *m) {
    if (LIKELY(!coil__line_any(&m->line))) {
        m->owner.gen = 0;
    } else {
        hand_over(m);
    }
}

int coil_mutex_lock(coil_mutex *mutex) {
    struct coil__task *t = coil__current("coil_mutex_lock");
    struct mutex *m = mutex_inner(mutex);
    int err = coil__admit(t);
    if (UNLIKELY(err)) return err;
    if (UNLIKELY(!take(m, t))) return wait_for_mutex(m, t, "coil_mutex_lock", false);
    coil__charge(t);
    return 0;
}

int coil_mutex_trylock(coil_mutex *mutex) {
    struct coil__task *t = coil__current("coil_mutex_trylock");
    struct mutex *m = mutex_inner(mutex);
    return take(m, t) || take_from_the_past(m, t, "coil_mutex_trylock") ? 0 : -EBUSY;
}

_Noreturn COLD static void not_the_owner(const struct mutex *m, const struct coil__task *t,
                                         const char *call) {
    if (m->owner.gen && coil__owner_worker(&m->owner) == t->sched->worker)
        MISUSE(call, "called by a task that does not own the mutex");
    if (m->owner.gen) coil__sync_foreign(coil__owner_worker(&m->owner), call);
    MISUSE(call, "the mutex is not locked");
}

void coil_mutex_unlock(coil_mutex *mutex) {
    const struct coil__task *t = coil__current("coil_mutex_unlock");
    struct mutex *m = mutex_inner(mutex);
    if (UNLIKELY(!coil__owns(&m->owner, t))) not_the_owner(m, t, "coil_mutex_unlock");
    let_go(m);
}

/* ---- conditions ---- */

struct cond {
    struct coil__list line;
    uint64_t worker; /* of those who wait */
};

_Static_assert(sizeof(struct cond) == sizeof(coil_cond), "a condition fits its public type");

/* Letting the mutex go first serves both ways: nobody runs in between, unless the call is refused, and then
 * the others shall have the mutex. */
int coil_cond_wait(coil_cond *cond, coil_mutex *mutex) {
    struct coil__task *t = coil__current("coil_cond_wait");
    struct cond *c = (struct cond *)(void *)cond;
    struct mutex *m = mutex_inner(mutex);
    if (UNLIKELY(!coil__owns(&m->owner, t))) not_the_owner(m, t, "coil_cond_wait");
    coil__line_check(&c->line, (uint32_t)c->worker, "coil_cond_wait");
    let_go(m);
    int err = coil__admit(t);
    if (!err) {
        c->worker = t->sched->worker;
        struct coil__line_wait w = {
            .wait = {.abort = coil__line_abort, .what = "condition", .fd = -1, .on = c}, .line = &c->line};
        err = coil__line_park(t, &w);
    }
    if (!take(m, t)) {
        int retaken = wait_for_mutex(m, t, "coil_cond_wait", true);
        CHECK(retaken == 0);
    }
    return err;
}

void coil_cond_signal(coil_cond *cond) {
    struct cond *c = (struct cond *)(void *)cond;
    coil__current("coil_cond_signal");
    coil__line_check(&c->line, (uint32_t)c->worker, "coil_cond_signal");
    struct coil__waiter *e = coil__line_pop(&c->line);
    if (e) coil__waiter_ready(e, 0);
}

void coil_cond_broadcast(coil_cond *cond) {
    struct cond *c = (struct cond *)(void *)cond;
    coil__current("coil_cond_broadcast");
    coil__line_check(&c->line, (uint32_t)c->worker, "coil_cond_broadcast");
    for (struct coil__waiter *e; (e = coil__line_pop(&c->line));)
        coil__waiter_ready(e, 0);
}

/* ---- reader-writer locks ---- */

struct rwlock {
    struct coil__list line; /* an entry's item: NULL for a reader, anything else for a writer */
    struct coil__owner
        holder; /* gen: the writer's, 0: there is none. worker: whose it is, also with readers */
    uint64_t readers;
    uint64_t marks; /* the sum of the readers' marks */
};

_Static_assert(sizeof(struct rwlock) == sizeof(coil_rwlock), "a reader-writer lock fits its public type");

/* Of a task. Readers are not listed anywhere; but when the last has left, what came in must have gone out. */
static uint64_t mark(const struct coil__task *t) {
    return (t->gen << 32 ^ t->slot) * UINT64_C(0x9e3779b97f4a7c15);
}

/* The lock, which belongs to this worker from now on. */
static struct rwlock *rwlock_for(coil_rwlock *lock, const struct coil__task *t, const char *call) {
    struct rwlock *l = (struct rwlock *)(void *)lock;
    if (UNLIKELY(coil__owner_worker(&l->holder) != t->sched->worker)) {
        if (l->readers || l->holder.gen) coil__sync_foreign(coil__owner_worker(&l->holder), call);
        *l = (struct rwlock){.holder = {.where = t->where}};
    }
    return l;
}

static void let_read(struct rwlock *l, const struct coil__task *t) {
    l->readers++;
    l->marks += mark(t);
}

static bool only_reader(const struct rwlock *l, const struct coil__task *t) {
    return l->readers == 1 && l->marks == mark(t);
}

/* Lets those in that may go in, from the head of the line. */
static void admit_line(struct rwlock *l) {
    for (struct coil__waiter *e; !l->holder.gen && (e = coil__line_first(&l->line));) {
        const struct coil__task *t = coil__waiter_task(e);
        if (e->item && l->readers) return;
        coil__line_leave(&l->line, e);
        if (e->item) {
            l->holder = coil__owner(t);
        } else {
            let_read(l, t);
        }
        coil__waiter_ready(e, 0);
    }
}

/* Behind a writer that gives up there may be readers who can join those that are in. */
static void rwlock_abort(struct coil__wait *w) {
    struct coil__list *line = CONTAINER_OF(w, struct coil__line_wait, wait)->line;
    coil__line_abort(w);
    admit_line(CONTAINER_OF(line, struct rwlock, line));
}

static const struct coil__task *rwlock_writer(const struct coil__wait *w, const struct coil__task *after) {
    const struct coil__list *line = CONTAINER_OF(w, struct coil__line_wait, wait)->line;
    return coil__owner_blocks(w, &CONTAINER_OF(line, struct rwlock, line)->holder, after);
}

static int wait_in_line(struct rwlock *l, struct coil__task *t, const char *what, bool to_write) {
    struct coil__line_wait w = {
        .wait = {.abort = rwlock_abort, .what = what, .fd = -1, .on = l, .blocker = rwlock_writer},
        .line = &l->line};
    if (coil__owns(&l->holder, t) || only_reader(l, t)) return coil__failed(t, -EDEADLK);
    w.wait.entry.item = to_write ? l : NULL;
    return coil__line_park(t, &w);
}

static bool try_to_read(struct rwlock *l, const struct coil__task *t) {
    if (l->holder.gen || coil__line_any(&l->line)) return false;
    let_read(l, t);
    return true;
}

static bool try_to_write(struct rwlock *l, const struct coil__task *t) {
    if (l->holder.gen || l->readers) return false;
    l->holder = coil__owner(t);
    return true;
}

int coil_rwlock_rdlock(coil_rwlock *lock) {
    struct coil__task *t = coil__current("coil_rwlock_rdlock");
    int err = coil__admit(t);
    if (err) return err;
    struct rwlock *l = rwlock_for(lock, t, "coil_rwlock_rdlock");
    if (!try_to_read(l, t)) return wait_in_line(l, t, "read lock", false);
    coil__charge(t);
    return 0;
}

int coil_rwlock_wrlock(coil_rwlock *lock) {
    struct coil__task *t = coil__current("coil_rwlock_wrlock");
    int err = coil__admit(t);
    if (err) return err;
    struct rwlock *l = rwlock_for(lock, t, "coil_rwlock_wrlock");
    if (!try_to_write(l, t)) return wait_in_line(l, t, "write lock", true);
    coil__charge(t);
    return 0;
}

int coil_rwlock_tryrdlock(coil_rwlock *lock) {
    const struct coil__task *t = coil__current("coil_rwlock_tryrdlock");
    return try_to_read(rwlock_for(lock, t, "coil_rwlock_tryrdlock"), t) ? 0 : -EBUSY;
}

int coil_rwlock_trywrlock(coil_rwlock *lock) {
    const struct coil__task *t = coil__current("coil_rwlock_trywrlock");
    return try_to_write(rwlock_for(lock, t, "coil_rwlock_trywrlock"), t) ? 0 : -EBUSY;
}

void coil_rwlock_unlock(coil_rwlock *lock) {
    const struct coil__task *t = coil__current("coil_rwlock_unlock");
    struct rwlock *l = rwlock_for(lock, t, "coil_rwlock_unlock");
    if (l->holder.gen) {
        if (UNLIKELY(!coil__owns(&l->holder, t)))
            MISUSE("coil_rwlock_unlock", "called by a task that does not hold it: another one writes");
        l->holder.gen = 0;
    } else {
        if (UNLIKELY(!l->readers)) MISUSE("coil_rwlock_unlock", "the lock is not locked");
        l->readers--;
        l->marks -= mark(t);
        if (UNLIKELY(!l->readers && l->marks))
            MISUSE("coil_rwlock_unlock",
                   "called by a task that does not hold it, now or at an earlier unlock");
    }
    admit_line(l);
}
