#include "task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The model is said again here: where a thread-local is defined, a declaration's does not count. */
_Thread_local struct coil__sched *coil__here __attribute__((tls_model("initial-exec")));
_Thread_local bool coil__forked __attribute__((tls_model("initial-exec")));

/* Defined by the C++ runtime where the program has one: { caught exceptions, number of uncaught ones } of
 * this thread. */
extern void *__cxa_get_globals(void) __attribute__((weak));

_Noreturn void coil__outside_task(const char *call) {
    if (coil__forked)
        MISUSE(call, "called in a child forked inside coil_run; only exec and _exit may follow there");
    MISUSE(call, "called outside a task of coil_run");
}

/* ---- the slab ---- */

static struct coil__task *record(struct coil__sched *s, uint32_t slot) {
    uint32_t n = slot / COIL__CHUNK0 + 1;
    unsigned k = 31 - (unsigned)__builtin_clz(n);
    uint32_t first = COIL__CHUNK0 * ((UINT32_C(1) << k) - 1);
    return atomic_load_explicit(&s->chunks[k], memory_order_acquire) + (slot - first);
}

struct coil__task *coil__task_at(struct coil__sched *s, uint32_t slot) {
    return slot < atomic_load_explicit(&s->slots, memory_order_acquire) ? record(s, slot) : NULL;
}

struct coil__task *coil__task_find(struct coil__sched *s, coil_task h) {
    if (h.worker != s->worker) return NULL;
    struct coil__task *t = coil__task_at(s, h.slot);
    return t && t->state != COIL__FREE && t->gen == h.gen ? t : NULL;
}

coil_task coil__task_handle(const struct coil__task *t) {
    return (coil_task){.worker = t->sched->worker, .slot = t->slot, .gen = t->gen};
}

const char *coil__task_name(const struct coil__task *t, char buf[32]) {
    if (t->name[0]) return t->name;
    snprintf(buf, 32, "task %u", t->slot);
    return buf;
}

/* One that was cut in the midst of a character of UTF-8 loses the beginning of that too. */
static void cut_at_character(char *name, size_t n) {
    size_t at = n, missing = 0;
    while (at > 0 && n - at < 3 && (name[at - 1] & 0xc0) == 0x80)
        at--;
    unsigned char lead = at > 0 ? (unsigned char)name[at - 1] : 0;
    if (lead >= 0xc0) missing = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (n - at < missing) name[at - 1] = '\0';
}

void coil__task_tidy_name(struct coil__task *t, int length) {
    if (length >= (int)sizeof t->name) cut_at_character(t->name, sizeof t->name - 1);
    for (char *c = t->name; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
    }
}

/* A record for one more slot. Chunks double, so that few of them hold any number of tasks and no record ever
 * moves. */
static struct coil__task *grow(struct coil__sched *s) {
    uint32_t slot = atomic_load_explicit(&s->slots, memory_order_relaxed);
    uint32_t n = slot / COIL__CHUNK0 + 1;
    unsigned k = 31 - (unsigned)__builtin_clz(n);
    if (k >= COIL__CHUNKS) return NULL;
    if (!atomic_load_explicit(&s->chunks[k], memory_order_relaxed)) {
        size_t bytes = ((size_t)COIL__CHUNK0 << k) * sizeof(struct coil__task);
        struct coil__task *chunk = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
        if (!chunk) return NULL;
        memset(chunk, 0, bytes);
        atomic_store_explicit(&s->chunks[k], chunk, memory_order_release);
    }
    struct coil__task *t = record(s, slot);
    t->slot = slot;
    t->where = (uint64_t)slot << 32 | s->worker;
    t->gen = 1;
    t->sched = s;
    atomic_store_explicit(&s->slots, slot + 1, memory_order_release);
    return t;
}

/* First in, first out: a slot rests as long as possible before its handle could be mistaken for a new one. */
static struct coil__task *take_slot(struct coil__sched *s) {
    struct coil__task *t = s->free_first;
    if (UNLIKELY(!t)) return grow(s);
    s->free_first = t->next_free;
    return t;
}

static void give_slot(struct coil__sched *s, struct coil__task *t) {
    t->next_free = NULL;
    if (s->free_first) {
        s->free_last->next_free = t;
    } else {
        s->free_first = t;
    }
    s->free_last = t;
}

void coil__task_free(struct coil__task *t) {
    CHECK(t->state == COIL__ENDED);
    CHECK(coil__list_empty(&t->joiners));
    t->state = COIL__FREE;
    t->gen++;
    give_slot(t->sched, t);
}

/* ---- the switch ---- */

/* A stack can't be given back by its own task. It doesn't matter to anybody else when that happens, as long
 * as the next task that is spawned can have it: so no context needs to look for one when it runs again. */
static void bury(struct coil__sched *s) {
    struct coil__task *t = s->dead;
    if (!t) return;
    s->dead = NULL;
    coil__ctx_release(&t->ctx);
    coil__stack_put(&s->stacks, t->stack);
}

/* A task that has not parked yet will soon have frames where it has none, and read what it was given. */
static inline __attribute__((always_inline)) void prefetch_beginning(const struct coil__task *t) {
    const char *sp = t->ctx.sp;
    __builtin_prefetch(&t->fn, 1);
    for (int down = 64; down <= 320; down += 64)
        __builtin_prefetch(sp - down, 1);
}

/* With many tasks a resume is bound by cache misses on its record and its stack: fetch them a few ahead.
 * Always inline: gcc takes a function that does nothing but prefetch for one without effect, and drops the
 * call. */
static inline __attribute__((always_inline)) void prefetch_ahead(struct coil__ring_queue *q) {
    const struct coil__task *near = coil__ring_queue_peek(q, 2);
    if (LIKELY(!near)) return;
    __builtin_prefetch(coil__ring_queue_peek(q, 4), 1);
    /* The saved registers and the first frames above them are seldom in one line. */
    const char *sp = near->ctx.sp;
    __builtin_prefetch(sp);
    __builtin_prefetch(sp + 64);
    __builtin_prefetch(sp + 128);
    if (UNLIKELY(near->since_ns == 0)) prefetch_beginning(near);
}

/* The count of resumes is read by the watchdog, on a thread of its own. */
#define SEEN_ELSEWHERE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

/* There is one. */
static inline struct coil__task *take_ready(struct coil__sched *s) {
    struct coil__task *t = coil__ring_queue_pop(&s->ready);
    CHECK(t->state == COIL__READY);
    s->current = t;
    SEEN_ELSEWHERE(s->until_look, s->until_look - 1);
    t->state = COIL__RUNNING;
    t->quick = 0;
    prefetch_ahead(&s->ready);
    return t;
}

/* What the resumes since the last look have taken decides how soon the next one comes. Reading the clock
 * costs three times what a short resume does; but where they may be long, the turn must be ended in time. */
static void judge_pace(struct coil__sched *s) {
    uint64_t n = coil__resumes(s) - s->looked_resumes;
    if (n == 0) return;
    bool brisk = (uint64_t)(s->now_ns - s->looked_ns) <= n * COIL__BRISK_NS;
    s->stride = brisk ? MIN(s->stride * 2, (uint32_t)COIL__STRIDE_MAX) : COIL__STRIDE_MIN;
    s->looked_resumes += n;
    s->looked_ns = s->now_ns;
}

static void set_next_look(struct coil__sched *s, uint32_t slice) {
    SEEN_ELSEWHERE(s->until_look, MIN(s->stride, slice));
    SEEN_ELSEWHERE(s->slice, slice - s->until_look);
}

/* Looks at the clock. A function of its own, so that the registers it needs are not saved at each resume. */
static __attribute__((noinline)) bool turn_is_over(struct coil__sched *s) {
    if (s->slice == 0) return true;
    coil__clock(s);
    judge_pace(s);
    if (s->now_ns >= s->turn_ends_ns) return true;
    set_next_look(s, s->slice);
    return false;
}

/* Whether the loop is to have the worker: its turn is over, or nobody is ready. */
static inline bool loop_is_next(struct coil__sched *s) {
    if (UNLIKELY(s->until_look == 0) && turn_is_over(s)) return true;
    return coil__ring_queue_count(&s->ready) == 0;
}

#ifndef NDEBUG
static void check_fp(const struct coil__task *t) {
    char buf[32];
    if (coil__fp_control() == t->sched->fp_control) return;
    fprintf(
        stderr,
        "coil: %s parks with a changed floating-point rounding mode or exception mask; restore it first\n",
        coil__task_name(t, buf));
    abort();
}
#endif

/* Whether more than registers must be looked after when t leaves its stack for a while. */
static inline bool needs_care(const struct coil__sched *s, const struct coil__task *t) {
    return t->unguarded || (s->cxa_globals && (s->cxa_globals[0] || s->cxa_globals[1]));
}

/* C++ exceptions in the making belong to the task, which keeps them here. */
COLD static void switch_with_care(struct coil__sched *s, struct coil__task *from, struct coil__ctx *to) {
    void *cxa[2] = {NULL, NULL};
    if (from->unguarded && !coil__stack_canary_ok(from->stack)) coil__stack_overflowed(from->stack);
    if (s->cxa_globals) {
        memcpy(cxa, s->cxa_globals, sizeof cxa);
        memset(s->cxa_globals, 0, sizeof cxa);
    }
    coil__ctx_switch(&from->ctx, to);
    if (s->cxa_globals) memcpy(s->cxa_globals, cxa, sizeof cxa);
}

static inline void switch_to(struct coil__sched *s, struct coil__task *from, struct coil__ctx *to) {
#ifndef NDEBUG
    check_fp(from);
#endif
    if (UNLIKELY(needs_care(s, from))) {
        switch_with_care(s, from, to);
    } else {
        coil__ctx_switch(&from->ctx, to);
    }
}

/* It is time for a look at the clock, or for the loop. */
static __attribute__((noinline)) void switch_after_look(struct coil__sched *s, struct coil__task *from) {
    if (loop_is_next(s)) {
        s->current = NULL;
        switch_to(s, from, &s->loop);
        return;
    }
    struct coil__task *next = take_ready(s);
    if (next != from) switch_to(s, from, &next->ctx);
}

/* The current task has said why it stops (PARKED, or READY again); the next one runs. Always inline, nothing
 * is left to be done when the task comes back, and whatever is rare is a call at the end of a path: so that
 * no registers are saved but by the switch itself. */
static inline __attribute__((always_inline)) void switch_away(struct coil__sched *s,
                                                              struct coil__task *from) {
    if (UNLIKELY(s->until_look == 0 || coil__ring_queue_count(&s->ready) == 0)) {
        switch_after_look(s, from);
        return;
    }
    struct coil__task *next = take_ready(s);
    if (LIKELY(next != from)) switch_to(s, from, &next->ctx);
}

bool coil__sched_turn_over(struct coil__sched *s) {
    if (coil__resumes(s) - s->looked_resumes >= s->stride) {
        coil__clock(s);
        judge_pace(s);
    }
    return s->now_ns >= s->turn_ends_ns;
}

uint32_t coil__sched_run(struct coil__sched *s, uint32_t resumes) {
    uint64_t before = coil__resumes(s);
    SEEN_ELSEWHERE(s->resumes_ahead, before + resumes);
    set_next_look(s, resumes);
    coil__ctx_switch(&s->loop, &take_ready(s)->ctx);
    bury(s);
    CHECK(s->current == NULL);
    return (uint32_t)(coil__resumes(s) - before);
}

void coil__sched_next_turn(struct coil__sched *s) {
    judge_pace(s);
    for (struct coil__task *t; (t = coil__ring_queue_pop(&s->later));)
        coil__ring_queue_push(&s->ready, t);
}

/* ---- park and ready ---- */

/* The scheduler is coil__here rather than t->sched: so the processor can find the next task while it still
 * waits for which one is current, which was the longest chain of loads in a switch. */
void coil__park(struct coil__task *t, struct coil__wait *w) {
    struct coil__sched *s = coil__here;
    w->task = t;
    t->wait = w;
    t->state = COIL__PARKED;
    t->since_ns = s->now_ns;
    s->outside += w->outside;
    /* A cancel that came after the last wait had ended, and before its task ran, found nothing to interrupt.
     */
    if (UNLIKELY(t->stop)) coil__interrupt(t);
    switch_away(s, t);
    CHECK(t->state == COIL__RUNNING);
}

static inline __attribute__((always_inline)) void step_aside(struct coil__task *t) {
    struct coil__sched *s = coil__here;
    t->state = COIL__READY;
    coil__ring_queue_push(&s->ready, t);
    switch_away(s, t);
}

void coil__step_aside(struct coil__task *t) {
    step_aside(t);
}

/* Stands here, not beside the other public calls, to save a call within the shortest of them. */
int coil_yield(void) {
    struct coil__task *t = coil__current("coil_yield");
    int err = coil__admit(t);
    if (err) return err;
    step_aside(t);
    return 0;
}

void coil__give_way(struct coil__task *t) {
    struct coil__sched *s = t->sched;
    if (coil__clock(s) >= s->turn_ends_ns) {
        SEEN_ELSEWHERE(s->resumes_ahead, coil__resumes(s));
        SEEN_ELSEWHERE(s->until_look, 0);
        SEEN_ELSEWHERE(s->slice, 0);
    }
    coil__step_aside(t);
}

void coil__interrupt(struct coil__task *t) {
    if (t->state != COIL__PARKED || !t->wait->abort) return;
    t->wait->interrupted = true;
    t->wait->abort(t->wait);
}

void coil__wait_leave(struct coil__wait *w) {
    coil__node_unlink(&w->entry.node);
    coil__ready(w, 0);
}

int coil__stop_error(struct coil__task *t) {
    if (t->stop) return -ECANCELED;
    if (t->sched->now_ns >= t->limit_ns) t->fired = true;
    return -ETIME;
}

/* The whole worker makes a turn before the caller goes on: a retry loop in a task that is cancelled or out of
 * time would otherwise keep completions and timers of all others waiting. */
int coil__refuse(struct coil__task *t) {
    int err = coil__stop_error(t);
    t->state = COIL__READY;
    coil__ring_queue_push(&t->sched->later, t);
    switch_away(t->sched, t);
    return err;
}

/* ---- beginning and end ---- */

static void check_closed(struct coil__task *t) {
    char buf[32];
    if (t->depth) MISUSE("coil_leave", "%s has ended with a scope open", coil__task_name(t, buf));
    if (t->open_groups)
        MISUSE("coil_group_close",
               "%s has ended with a group open; a group belongs to the task that calls it first",
               coil__task_name(t, buf));
}

/* Hands the result to all that join t; whether there was anybody. */
static bool tell_joiners(struct coil__task *t) {
    bool any = false;
    for (struct coil__node *n; (n = coil__list_pop(&t->joiners)); any = true) {
        coil__waiter_ready(CONTAINER_OF(n, struct coil__waiter, node), t->result);
    }
    return any;
}

_Noreturn static void task_ends(struct coil__task *t) {
    struct coil__sched *s = t->sched;
    check_closed(t);
    if (UNLIKELY(t->locals)) {
        t->locals->end(t);
        check_closed(t);
    }
    if (coil__heap_has(&t->timer.node)) coil__heap_remove(&s->timers, &t->timer.node);
    coil__heap_give_seat(&s->timers);
    s->live--;
    t->state = COIL__ENDED;
    if (t->unguarded && !coil__stack_canary_ok(t->stack)) coil__stack_overflowed(t->stack);
    bool kept = t->group && t->ended(t);
    if (!kept && (tell_joiners(t) || t->detached)) coil__task_free(t);
    bury(s);
    s->dead = t;
    bool loop = loop_is_next(s);
    if (loop) s->current = NULL;
    coil__ctx_leave(&t->ctx, loop ? &s->loop : &take_ready(s)->ctx);
    __builtin_unreachable();
}

static void task_begins(void *arg) {
    struct coil__task *t = arg;
    coil__ctx_entered(&t->ctx);
    t->result = t->fn(t->arg);
    task_ends(t);
}

/* Room everywhere where the task may have to stand later, so that readying it or arming its timer can't fail.
 */
static int reserve_room(struct coil__sched *s) {
    int err = coil__ring_queue_reserve(&s->ready, s->live + 1);
    if (!err) err = coil__ring_queue_reserve(&s->later, s->live + 1);
    if (!err) err = coil__heap_take_seat(&s->timers);
    return err;
}

static void start(struct coil__sched *s, struct coil__task *t, struct coil__stack *stack) {
    s->live++;
    if (s->live > s->peak) s->peak = s->live;
    t->stack = stack;
    t->unguarded = !stack->guarded;
    stack->label = &t->label;
    t->label = (struct coil__stack_label){.name = t->name, .fn = (void (*)(void))t->fn, .number = t->slot};
    t->state = COIL__READY;
    /* Frames that all begin at the same offset would share a few cache sets: shift them by slot. */
    coil__ctx_make(&t->ctx, stack->lo, stack->size, 64 * (t->slot % 16), task_begins, t);
    coil__ring_queue_push(&s->ready, t);
}

/* Resets what a former user of the record has left. */
static void reset(struct coil__task *t, const coil_spawn_opts *o, coil_fn *fn, void *arg) {
    t->fn = fn;
    t->arg = arg;
    t->limit_ns = t->shield_ns = COIL__NEVER;
    t->stop = t->cancelled = t->sched->ending;
    t->detached = t->shielded = t->fired = false;
    t->wait = NULL;
    t->since_ns = 0;
    t->group = NULL;
    t->open_groups = NULL;
    t->result_to = NULL;
    t->depth = t->limit_owner = t->inherit_fired = t->shield_owner = 0;
    t->name[0] = 0;
    coil__list_init(&t->joiners);
    if (o && o->name) coil__task_tidy_name(t, snprintf(t->name, sizeof t->name, "%s", o->name));
}

int coil__task_new(struct coil__sched *s, const coil_spawn_opts *o, coil_fn *fn, void *arg, const void *site,
                   struct coil__task **out) {
    *out = NULL;
    if (!fn || (o && !RESERVED_ZERO(o))) return -EINVAL;
    if (s->tasks_max && s->live >= s->tasks_max) return -EAGAIN;
    bury(s);
    struct coil__stack *stack;
    int err = coil__stack_get(&s->stacks, o ? o->stack_size : 0, &stack);
    if (err) return err;
    err = reserve_room(s);
    if (err) goto no_room;
    struct coil__task *t = take_slot(s);
    if (!t) {
        err = -ENOMEM;
        coil__heap_give_seat(&s->timers);
        goto no_room;
    }
    reset(t, o, fn, arg);
    t->site = site;
    t->parent_slot = s->current ? s->current->slot : 0;
    t->parent_gen = s->current ? s->current->gen : 0;
    start(s, t, stack);
    *out = t;
    return 0;
no_room:
    coil__stack_put(&s->stacks, stack);
    return err;
}

void coil__sched_init(struct coil__sched *s, size_t tasks_max) {
    s->tasks_max = tasks_max;
    s->cxa_globals = __cxa_get_globals ? __cxa_get_globals() : NULL;
    coil__ctx_adopt(&s->loop);
#ifndef NDEBUG
    s->fp_control = coil__fp_control();
#endif
    coil__list_init(&s->unserved);
    s->stride = COIL__STRIDE_MIN;
    s->looked_ns = coil__clock(s);
}

void coil__sched_free(struct coil__sched *s) {
    CHECK(s->live == 0);
    coil__ctx_release(&s->loop);
    coil__ring_queue_free(&s->ready);
    coil__ring_queue_free(&s->later);
    coil__heap_free(&s->timers);
    for (unsigned k = 0; k < COIL__CHUNKS; k++)
        free(atomic_load(&s->chunks[k]));
}
