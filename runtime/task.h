/* Tasks: records and their states, the run queue, park and ready.
 *
 * Life of a task record:
 *   1. FREE     on the scheduler's list of free slots.
 *   2. READY    in the run queue (or among the later ones): spawned, or readied by whoever ended its wait.
 *   3. RUNNING  the one whose stack is in use; from READY only.
 *   4. PARKED   `wait` says on what; from RUNNING only, by itself. Back to READY by coil__ready, exactly once
 * per park.
 *   5. ENDED    its function has returned; its stack is given back when the loop or a spawn or the end of
 * another task comes next. The record stays until the result was joined, or goes at once where nobody may
 * join it. Then its generation goes up: FREE. A task never leaves its worker, so thread-local pointers stay
 * valid across a park. */
#ifndef COIL__TASK_H
#define COIL__TASK_H

#include "base.h"
#include "driver.h"
#include "heap.h"
#include "inbox.h"
#include "list.h"
#include "ring_queue.h"
#include "stack.h"
#include "switch.h"

#include "coil/runtime.h"
#include "coil/task.h"

#include <stdatomic.h>

struct coil__sched;
struct coil__task;
struct coil__group;

/* A timer belongs to a task or to an object. `fire` runs in the worker's loop and may arm it again. */
struct coil__timer {
    struct coil__heap_node node;
    void (*fire)(struct coil__timer *t);
};

enum coil__state { COIL__FREE, COIL__READY, COIL__RUNNING, COIL__PARKED, COIL__ENDED };

/* An entry in the list of those who wait for an object: of one wait, or of a select, which stands in the list
 * of each of its cases. Whoever gives it what it waits for unlinks it first, then calls coil__waiter_ready.
 */
struct coil__waiter {
    struct coil__node node;
    void (*won)(struct coil__waiter *e, int result); /* a select's; NULL: this is the entry of a wait */
    void *item; /* what is handed over: the memory of an item, or a number of permits */
};

/* The beginning of a task's values: see local.c. */
struct coil__locals {
    void (*end)(struct coil__task *t); /* destroys them all, in the task, after its function has returned */
};

/* What a parked task waits for; lives on its stack. */
struct coil__wait {
    /* Asks for the wait to end early: either queues a cancel (then only the request's own completion readies
     * the task), or takes the task out of a wait list and readies it. May be called again. NULL: the wait
     * can't be ended early. */
    void (*abort)(struct coil__wait *w);
    struct coil__task *task;
    struct coil__waiter entry; /* in the list of the object waited for, where it has one */
    int64_t until_ns;          /* the deadline of this wait; COIL__NEVER: none */
    const char *what;          /* for reports: "recv", "join" ... */
    int fd;                    /* for reports; -1: none */
    const void *on;            /* for reports: the object waited for; NULL: none */
    /* For reports: a task that this one waits for (who owns the lock, who is joined, a group's children): the
     * first one after `after`, or the first of all for NULL. NULL: there are no more, or nobody knows. A
     * task that has ended is never returned. */
    const struct coil__task *(*blocker)(const struct coil__wait *w, const struct coil__task *after);
    int result;   /* set by whoever readies the task */
    bool outside; /* something beyond this worker's tasks can end it: the kernel, a signal, another thread */
    bool interrupted; /* a cancel or the deadline has called abort */
};

struct coil__task {
    /* What a resume and an ordinary call touch. */
    struct coil__ctx ctx;
    struct coil__sched *sched;
    int64_t limit_ns;        /* the deadline that holds: of the tightest scope; COIL__NEVER: none */
    struct coil__wait *wait; /* set only while PARKED */
    uint8_t state;           /* enum coil__state */
    bool stop;               /* cancelled, and no shield is in force: [parks] calls refuse */
    bool cancelled;          /* stays until the task ends */
    bool detached;           /* nobody joins it */
    bool unguarded;          /* its stack has a canary instead of a guard: looked at whenever it is left */
    uint16_t quick;          /* calls that finished without parking since it was resumed */
    struct coil__stack *stack;
    int64_t since_ns; /* when it parked, by the worker's clock */

    struct coil__timer
        timer; /* ends a wait at its deadline; may stand in the heap with an old key: see timer.c */
    coil_fn *fn;
    void *arg;
    uint64_t where; /* slot and worker in one word, as a lock keeps them of its owner: see sync.h */
    uint64_t gen;
    uint32_t slot;
    int result;
    struct coil__task *next_free;

    struct coil__list joiners;           /* entries of those who join it */
    struct coil__group *group;           /* whose child it is; NULL: nobody's */
    struct coil__node sibling;           /* among that group's children */
    bool (*ended)(struct coil__task *t); /* set together with `group`; true: the record is its to free */
    int *result_to;                      /* where its result goes as well; NULL: nowhere */
    struct coil__group *open_groups;     /* those that it owns and has not closed, innermost first */
    struct coil__task *next_stopped;     /* see stopped below */
    struct coil__locals *locals;         /* task-local values; NULL: none */

    /* Scopes: see scope.c. */
    uint32_t depth;         /* open scopes */
    uint32_t limit_owner;   /* depth of the scope whose limit holds; 0: none */
    uint32_t inherit_fired; /* depth of an outer shield whose limit struck inside an inner one; 0: none */
    bool shielded;          /* inside a shield */
    bool fired;             /* a call was refused or ended with -ETIME because of limit_owner's limit */
    int64_t shield_ns;      /* limit of the innermost open shield */
    uint32_t shield_owner;  /* depth of the shield whose limit that is */

    /* For reports: where it was spawned, an address in the program (NULL: by coil itself), and by whom. */
    const void *site;
    uint32_t parent_slot;
    uint64_t parent_gen; /* 0: by nobody; as in a handle otherwise: the parent may have ended */

    /* For reports, while one is being made: slots of other tasks, and a mark. See dump.c. */
    uint32_t report_first, report_next, report_mark;

    struct coil__stack_label label; /* what an overflow report says */
    char name[32];

    /* A cancel posted by another thread: see cancel.c. */
    struct coil__letter cancel_letter;
    _Atomic uint64_t cancel_gen;
    atomic_bool cancel_posted;
} __attribute__((aligned(64)));

enum {
    COIL__CHUNKS = 22,
    COIL__CHUNK0 = 256, /* chunk k of the slab holds CHUNK0 << k records */
    COIL__QUICK_MAX = 64,
    /* Resumes between two looks at the clock: the more of them the less time they have lately taken. */
    COIL__STRIDE_MIN = 16,
    COIL__STRIDE_MAX = 64,
    COIL__BRISK_NS = 100, /* a resume that takes no longer is a short one */
};

/* The scheduler: one per worker, which embeds it as its first member. */
struct coil__sched {
    struct coil__ring_queue ready; /* tasks in state READY */
    struct coil__task *current;    /* RUNNING; NULL in the worker's loop */
    uint32_t until_look;           /* resumes left before the next look at the clock ... */
    uint32_t slice;                /* ... and from there on before the loop has the worker again ... */
    int64_t turn_ends_ns;          /* ... which it also has from this moment on */
    uint64_t resumes_ahead;        /* how many there will have been at the end of this slice */
    uint32_t outside;              /* parked tasks whose wait something outside can end */
    uint32_t stride;               /* resumes from one look to the next */
    int64_t now_ns;                /* the worker's clock: read each turn, and at each look */
    void **cxa_globals;            /* this thread's C++ exception globals; NULL without a C++ runtime */
    struct coil__driver *driver;
    struct coil__ctx loop;

    struct coil__task *dead;       /* has ended, and its stack is still to be given back */
    uint64_t looked_resumes;       /* how many there had been at the last look ... */
    int64_t looked_ns;             /* ... and when it was */
    struct coil__ring_queue later; /* READY too, but not before the next turn */
    struct coil__heap timers;
    struct coil__timer *report_timer; /* one that only reports, and wakes nobody; NULL: none */
    struct coil__stack_pool stacks;
    struct coil__task *stopped; /* cancelled, and still to be interrupted: see cancel.c */
    bool stopping;              /* somebody is at it */
    size_t tasks_max;
    uint32_t worker; /* its number; never reused */
    uint32_t live;   /* tasks that have not ended */
    uint64_t peak;
#ifndef NDEBUG
    uint32_t fp_control; /* rounding mode and exception masks, which belong to the worker */
#endif
    struct coil__list unserved; /* selects whose semaphores are to be served: see select.c */
    bool serving;               /* somebody is at it */
    uint64_t choice;            /* state of the numbers by which select chooses; 0: not begun */
    bool ending; /* the main task has returned, or a deadlock was found: what is spawned starts cancelled */

    /* The slab. Other threads look records up to post a cancel, hence the atomics; records never move. */
    _Atomic(struct coil__task *) chunks[COIL__CHUNKS];
    _Atomic uint32_t slots;                    /* records that exist */
    struct coil__task *free_first, *free_last; /* FIFO of records in state FREE, linked by next_free */
};

/* The worker of the calling thread; NULL: none. Initial-exec, so that a shared library reads it without a
 * call. */
extern _Thread_local struct coil__sched *coil__here __attribute__((tls_model("initial-exec")));
extern _Thread_local bool coil__forked __attribute__((tls_model("initial-exec")));

/* Setting up and taking down; driver, worker number and stacks are the caller's. */
void coil__sched_init(struct coil__sched *s, size_t tasks_max);
void coil__sched_free(struct coil__sched *s);

/* Gives the worker to ready tasks, from its loop, for at most `resumes` of them and until turn_ends_ns; says
 * how many there were. */
uint32_t coil__sched_run(struct coil__sched *s, uint32_t resumes);
/* Between two slices of a turn: whether its time is over; looks at the clock where a look is due. */
bool coil__sched_turn_over(struct coil__sched *s);
/* A turn begins; its clock has just been read. What waited for it becomes ready. */
void coil__sched_next_turn(struct coil__sched *s);

/* How many resumes there have been. */
static inline uint64_t coil__resumes(const struct coil__sched *s) {
    return s->resumes_ahead - s->until_look - s->slice;
}

/* What another thread sees of it, which may be torn between two resumes: where it doesn't change, there was
 * none. */
static inline uint64_t coil__resumes_seen(const struct coil__sched *s) {
    return __atomic_load_n(&s->resumes_ahead, __ATOMIC_RELAXED) -
           __atomic_load_n(&s->until_look, __ATOMIC_RELAXED) - __atomic_load_n(&s->slice, __ATOMIC_RELAXED);
}

/* A new task, READY; site: where the program asked for it. 0, -ENOMEM, -EAGAIN, -EINVAL. */
int coil__task_new(struct coil__sched *s, const coil_spawn_opts *o, coil_fn *fn, void *arg, const void *site,
                   struct coil__task **out);
/* An ended task's record goes back to the slab. */
void coil__task_free(struct coil__task *t);
coil_task coil__task_handle(const struct coil__task *t);
/* The record of a slot, also for another thread; NULL: no such slot. */
struct coil__task *coil__task_at(struct coil__sched *s, uint32_t slot);
/* The live or unjoined task of this worker that a handle means; NULL: stale, or another worker's. */
struct coil__task *coil__task_find(struct coil__sched *s, coil_task h);
/* After a name was printed into t->name, `length` bytes of it if there was room: makes it fit for reports. */
void coil__task_tidy_name(struct coil__task *t, int length);
/* Its name, or "task N" in buf. */
const char *coil__task_name(const struct coil__task *t, char buf[32]);

/* Ends a wait: its task goes from PARKED to READY. `wait` is set only while PARKED, so one check does for
 * both. */
static inline void coil__ready(struct coil__wait *w, int result) {
    struct coil__task *t = w->task;
    CHECK(t->wait == w);
    w->result = result;
    t->wait = NULL;
    t->state = COIL__READY;
    t->sched->outside -= w->outside;
    coil__ring_queue_push(&t->sched->ready, t);
}

/* Gives an entry, which is in no list any more, the result it waits for. */
static inline void coil__waiter_ready(struct coil__waiter *e, int result) {
    if (UNLIKELY(e->won != NULL)) {
        e->won(e, result);
    } else {
        coil__ready(CONTAINER_OF(e, struct coil__wait, entry), result);
    }
}

/* The abort of a wait that only stands in somebody's list: takes it out, and readies its task. */
void coil__wait_leave(struct coil__wait *w);
/* Parks the current task on w until coil__ready. w->until_ns is not looked at here: see coil__park_until. */
void coil__park(struct coil__task *t, struct coil__wait *w);
/* The current task goes behind all that are ready now. */
void coil__step_aside(struct coil__task *t);
/* A cancel or a deadline asks t, if it is parked, to end its wait. */
void coil__interrupt(struct coil__task *t);

COLD int coil__refuse(struct coil__task *t);
/* Why the current task's call was refused or ended early: -ECANCELED before -ETIME; notes whose limit it was.
 */
int coil__stop_error(struct coil__task *t);
_Noreturn COLD void coil__outside_task(const char *call);

/* The current task; a public call outside one stops with its name. */
static inline struct coil__task *coil__current(const char *call) {
    struct coil__sched *s = coil__here;
    if (UNLIKELY(!s || !s->current)) coil__outside_task(call);
    return s->current;
}

/* First thing in every [parks] call: 0, or -ECANCELED or -ETIME after the others had a turn. */
static inline int coil__admit(struct coil__task *t) {
    if (LIKELY(!t->stop && t->sched->now_ns < t->limit_ns)) return 0;
    int err = coil__refuse(t);
    if (err == 0) __builtin_unreachable(); /* or the compiler keeps registers for what would follow */
    return err;
}

/* The current task goes behind all that are ready now, after a look at the clock: it has done work that may
 * have taken long. */
void coil__give_way(struct coil__task *t);

/* Last thing in a [parks] call that finished without parking: gives way after QUICK_MAX of them, so that a
 * task whose data never runs out can't hold the worker. A call that has moved many bytes counts for several.
 */
static inline void coil__charge_bytes(struct coil__task *t, size_t bytes) {
    t->quick += 1 + (uint32_t)MIN(bytes / 4096, (size_t)COIL__QUICK_MAX);
    if (UNLIKELY(t->quick >= COIL__QUICK_MAX)) coil__give_way(t);
}

static inline void coil__charge(struct coil__task *t) {
    coil__charge_bytes(t, 0);
}

/* How a [parks] call fails without having parked: one that is tried again and again must not hold the worker.
 */
static inline int coil__failed(struct coil__task *t, int err) {
    coil__charge(t);
    return err;
}

static inline int64_t coil__clock(struct coil__sched *s) {
    return s->now_ns = s->driver->sys->now();
}

/* a + b for moments and lengths that must not wrap; b >= 0. */
static inline int64_t coil__add_ns(int64_t a, int64_t b) {
    return b > COIL__NEVER - a ? COIL__NEVER : a + b;
}

#endif
