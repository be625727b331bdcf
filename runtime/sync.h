/* What the local primitives share, and what coil_select needs of events and semaphores.
 *
 * A line is a FIFO list of those who wait for an object. While nobody waits it is all zero, so that an object
 * of zeros is ready to use, and one that is idle may be moved. Hence every entry goes through the functions
 * below, never through list.h alone: a head that is left pointing to itself would not survive a move.
 *
 * Whoever gives a waiter what it waits for takes it off the line and changes the object first, then tells it:
 * a select that is told takes its other entries out of their lines, perhaps of this very one. */
#ifndef COIL__SYNC_H
#define COIL__SYNC_H

#include "task.h"
#include "timer.h"

#include "coil/sync.h"

static inline bool coil__line_any(const struct coil__list *l) {
    return l->head.next != NULL;
}

static inline void coil__line_push(struct coil__list *l, struct coil__waiter *e) {
    if (!coil__line_any(l)) coil__list_init(l);
    coil__list_push(l, &e->node);
}

static inline void coil__line_leave(struct coil__list *l, struct coil__waiter *e) {
    coil__node_unlink(&e->node);
    if (coil__list_empty(l)) *l = (struct coil__list){{NULL, NULL}};
}

/* Who has waited longest; NULL: nobody waits. */
static inline struct coil__waiter *coil__line_first(const struct coil__list *l) {
    return coil__line_any(l) ? CONTAINER_OF(l->head.next, struct coil__waiter, node) : NULL;
}

/* The first, taken off the line; NULL: nobody waits. */
static inline struct coil__waiter *coil__line_pop(struct coil__list *l) {
    struct coil__waiter *e = coil__line_first(l);
    if (e) coil__line_leave(l, e);
    return e;
}

/* Objects of which only the line belongs to a worker: those who wait are there, so their run has not ended.
 */
static inline void coil__line_check(const struct coil__list *l, uint32_t worker, const char *call) {
    if (UNLIKELY(coil__line_any(l) && worker != coil__here->worker))
        MISUSE(call, "used by another worker while tasks of the first wait for it");
}

/* A wait whose entry stands in a line. */
struct coil__line_wait {
    struct coil__wait wait;
    struct coil__list *line;
};

/* The abort of one that leaves nothing behind for the others to have. */
static inline void coil__line_abort(struct coil__wait *w) {
    coil__line_leave(CONTAINER_OF(w, struct coil__line_wait, wait)->line, &w->entry);
    coil__ready(w, 0);
}

/* Parks in the line until somebody gives what is waited for, or a cancel or the limit ends it: 0, -ECANCELED,
 * -ETIME. */
static inline int coil__line_park(struct coil__task *t, struct coil__line_wait *w) {
    coil__line_push(w->line, &w->wait.entry);
    coil__park_until(t, &w->wait, t->limit_ns);
    return UNLIKELY(w->wait.interrupted) ? coil__stop_error(t) : 0;
}

/* Who holds an object: what its handle says, so that nothing dangles when that task ends. In two words, to be
 * written and compared as such. */
struct coil__owner {
    uint64_t where; /* slot, then worker */
    uint64_t gen;   /* 0: nobody */
};

static inline struct coil__owner coil__owner(const struct coil__task *t) {
    return (struct coil__owner){.where = t->where, .gen = t->gen};
}

static inline uint32_t coil__owner_worker(const struct coil__owner *o) {
    return (uint32_t)o->where;
}

static inline bool coil__owns(const struct coil__owner *o, const struct coil__task *t) {
    return o->gen == t->gen && o->where == t->where;
}

/* The task of an entry that is no select's. */
static inline struct coil__task *coil__waiter_task(struct coil__waiter *e) {
    return CONTAINER_OF(e, struct coil__wait, entry)->task;
}

/* The blocker of a wait that one owner blocks; NULL also where that task has ended. */
static inline const struct coil__task *
coil__owner_blocks(const struct coil__wait *w, const struct coil__owner *o, const struct coil__task *after) {
    coil_task h = {.worker = coil__owner_worker(o), .slot = (uint32_t)(o->where >> 32), .gen = o->gen};
    const struct coil__task *t = after ? NULL : coil__task_find(w->task->sched, h);
    return t && t->state != COIL__ENDED ? t : NULL;
}

/* An object is held by a task of worker `number`, which is not this one: misuse, or that run has ended, and
 * with it all that held the object or waited for it. */
COLD void coil__sync_foreign(uint32_t number, const char *call);

/* For coil_select: what it pushes, it leaves, unless it was won. An event's waiters get 0; a semaphore's get
 * their permits and 0; `item` holds how many, as a number. `call` is the public one, for misuse. */
bool coil__event_is_set(const coil_event *e, const char *call);
void coil__event_push(coil_event *e, struct coil__waiter *w);
void coil__event_leave(coil_event *e, struct coil__waiter *w);
/* Whether n permits could be taken: nobody stands in line, and there are as many. */
bool coil__sem_can(const coil_sem *s, unsigned n, const char *call);
/* Takes them if they can be taken. */
bool coil__sem_try(coil_sem *s, unsigned n, const char *call);
void coil__sem_push(coil_sem *s, struct coil__waiter *w);
/* Those behind the one that leaves may have their permits then: coil__sem_serve gives them. It is a step of
 * its own, since a select has to be out of all lines before anybody is given anything: one of its other
 * entries may stand next. */
void coil__sem_leave(coil_sem *s, struct coil__waiter *w);
void coil__sem_serve(coil_sem *s);

#endif
