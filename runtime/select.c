/* Select. First it looks which cases could happen now, without touching anything, and lets one of them
 * happen. If there is none, it waits in the list of every object (an arm per case), for the earliest moment,
 * and with a poll request per descriptor.
 *
 * A waiting select is open until it is settled, once: by whoever gives an arm what it waits for, by the first
 * poll that is over, by a moment, by a cancel or by the limit. Settling takes all arms out of their lists
 * then and there, so nothing can be given to a second one, and asks for the end of the polls. The task is
 * readied when the last of these is over: until then the kernel has the requests, which lie on its stack. A
 * descriptor that turns out ready meanwhile is forgotten, for it stays ready; only where nothing else has
 * happened, because of a cancel or the limit, is it what happened: success wins. */
#include "chan.h"
#include "op.h"
#include "sync.h"

#include "coil/select.h"

#include <limits.h>
#include <poll.h>
#include <stdlib.h>

enum { FEW = 16, NOTHING = -1 };

struct select;

struct arm {
    union {
        struct coil__waiter entry; /* in the list of the case's object */
        struct coil__op op;        /* coil_on_ready's */
    };
    struct select *select;
};

struct select {
    struct coil__wait wait;
    struct arm *arms; /* as many as cases */
    coil_case *cases;
    int n;
    int polls; /* requests that are not over */
    int happened;
    bool settled;
    struct coil__node unserved; /* among the worker's, while those behind it at semaphores are to be served */
};

/* ---- what could happen now ---- */

static struct coil__chan *chan_of(struct coil__task *t, const coil_case *c) {
    return coil__chan_of(c->obj, t->sched, "coil_select");
}

static coil_task handle_of(const coil_case *c) {
    return (coil_task){.worker = (uint32_t)(c->arg[0] >> 32), .slot = (uint32_t)c->arg[0], .gen = c->arg[1]};
}

/* Whom a case joins, ended or not; NULL: nobody, and the case's result tells why. */
static struct coil__task *target_of(const struct coil__task *t, coil_case *c) {
    coil_task h = handle_of(c);
    struct coil__task *target = coil__task_find(t->sched, h);
    c->result = !target ? -ESRCH : target == t ? -EDEADLK : -EINVAL;
    return target && target != t && !target->detached ? target : NULL;
}

static bool join_ready(const struct coil__task *t, coil_case *c) {
    const struct coil__task *target = target_of(t, c);
    return !target || target->state == COIL__ENDED;
}

static unsigned permits_of(const coil_case *c) {
    return (unsigned)c->arg[0];
}

static int fd_of(const coil_case *c) {
    return (int)(int64_t)c->arg[0];
}

static short events_of(const coil_case *c) {
    return (short)c->arg[1];
}

static bool fd_ready(const struct coil__task *t, coil_case *c) {
    c->result = t->sched->driver->sys->poll(fd_of(c), events_of(c));
    return c->result != 0;
}

static bool valid(const coil_case *c) {
    switch (c->kind) {
    case COIL_CASE_RECV_:
    case COIL_CASE_SEND_:
    case COIL_CASE_EVENT_:
    case COIL_CASE_SEM_:
        return c->obj != NULL;
    case COIL_CASE_READY_:
        return events_of(c) != 0;
    case COIL_CASE_JOIN_:
    case COIL_CASE_TIME_:
        return true;
    default:
        return false;
    }
}

/* Changes nothing but the case's result. */
static bool ready(struct coil__task *t, coil_case *c) {
    switch (c->kind) {
    case COIL_CASE_RECV_:
        return coil__chan_can_recv(chan_of(t, c));
    case COIL_CASE_SEND_:
        return coil__chan_can_send(chan_of(t, c));
    case COIL_CASE_JOIN_:
        return join_ready(t, c);
    case COIL_CASE_EVENT_:
        return coil__event_is_set(c->obj, "coil_select");
    case COIL_CASE_SEM_:
        return coil__sem_can(c->obj, permits_of(c), "coil_select");
    case COIL_CASE_TIME_:
        return (int64_t)c->arg[0] <= t->sched->now_ns;
    default:
        return fd_ready(t, c);
    }
}

static void join_now(struct coil__task *t, coil_case *c) {
    struct coil__task *target = target_of(t, c);
    if (!target) return;
    c->result = target->result;
    coil__task_free(target);
}

/* Lets a case happen that is ready. */
static void happen(struct coil__task *t, coil_case *c) {
    switch (c->kind) {
    case COIL_CASE_RECV_:
        c->result = coil__chan_recv(chan_of(t, c), c->item);
        break;
    case COIL_CASE_SEND_:
        c->result = coil__chan_send(chan_of(t, c), c->item);
        break;
    case COIL_CASE_JOIN_:
        join_now(t, c);
        break;
    case COIL_CASE_EVENT_:
    case COIL_CASE_TIME_:
        c->result = 0;
        break;
    case COIL_CASE_SEM_:
        CHECK(coil__sem_try(c->obj, permits_of(c), "coil_select"));
        c->result = 0;
        break;
    default:
        break; /* looking has set the result */
    }
}

/* A number below n, by xorshift64. */
static uint32_t random_below(struct coil__sched *s, uint32_t n) {
    uint64_t r = s->choice ? s->choice : s->driver->sys->random() | 1;
    r ^= r << 13;
    r ^= r >> 7;
    r ^= r << 17;
    s->choice = r;
    return (uint32_t)((r >> 32) * n >> 32);
}

/* A rotating start would always meet the same case where several tasks select in turn, and would favour the
 * first of two neighbours: the k-th that is ready displaces the choice with a chance of 1/k. */
static int select_now(struct coil__task *t, coil_case *cases, size_t n) {
    int chosen = NOTHING;
    uint32_t found = 0;
    if (!cases || n == 0 || n > INT_MAX) return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        if (!valid(&cases[i])) return -EINVAL;
    }
    for (size_t i = 0; i < n; i++) {
        if (!ready(t, &cases[i])) continue;
        if (++found == 1 || random_below(t->sched, found) == 0) chosen = (int)i;
    }
    if (!found) return -EAGAIN;
    happen(t, &cases[chosen]);
    return chosen;
}

int coil_select_now(coil_case *cases, size_t n) {
    return select_now(coil__current("coil_select_now"), cases, n);
}

/* ---- waiting ---- */

static bool has_list(const coil_case *c) {
    return c->kind != COIL_CASE_TIME_ && c->kind != COIL_CASE_READY_;
}

static void enter_list(struct coil__task *t, struct coil__waiter *e, coil_case *c) {
    switch (c->kind) {
    case COIL_CASE_RECV_:
        coil__list_push(&chan_of(t, c)->receivers, &e->node);
        break;
    case COIL_CASE_SEND_:
        coil__list_push(&chan_of(t, c)->senders, &e->node);
        break;
    case COIL_CASE_JOIN_:
        coil__list_push(&target_of(t, c)->joiners, &e->node);
        break;
    case COIL_CASE_EVENT_:
        coil__event_push(c->obj, e);
        break;
    default:
        e->item = (void *)(uintptr_t)permits_of(c); /* NOLINT(performance-no-int-to-ptr) never followed */
        coil__sem_push(c->obj, e);
    }
}

static void leave_list(struct coil__waiter *e, const coil_case *c) {
    if (!coil__node_linked(&e->node)) return;
    switch (c->kind) {
    case COIL_CASE_EVENT_:
        coil__event_leave(c->obj, e);
        break;
    case COIL_CASE_SEM_:
        coil__sem_leave(c->obj, e);
        break;
    default:
        coil__node_unlink(&e->node);
    }
}

static void finish(struct select *s) {
    if (--s->polls == 0) coil__ready(&s->wait, 0);
}

/* Those behind it at semaphores may have their permits now, and that may settle further selects. They stand
 * in a queue instead of being served from within, or a long chain of them would use up the stack of whoever
 * has begun it; each is held back, as if it had one poll more, until it was its turn. */
static void serve_behind(struct select *s) {
    struct coil__sched *sched = s->wait.task->sched;
    s->unserved.next = NULL;
    coil__list_push(&sched->unserved, &s->unserved);
    if (sched->serving) return;
    sched->serving = true;
    for (struct coil__node *n; (n = coil__list_pop(&sched->unserved));) {
        struct select *next = CONTAINER_OF(n, struct select, unserved);
        for (int i = 0; i < next->n; i++) {
            if (next->cases[i].kind == COIL_CASE_SEM_) coil__sem_serve(next->cases[i].obj);
        }
        finish(next);
    }
    sched->serving = false;
}

/* Out of all lists first. A poll may be over within the loop, where the kernel has not seen it yet: counting
 * one more keeps the task from being readied twice. */
static void settle(struct select *s, int happened, int result) {
    struct coil__worker *w = coil__worker_of(s->wait.task->sched);
    bool serves = false;
    CHECK(!s->settled);
    s->settled = true;
    s->happened = happened;
    if (happened != NOTHING) s->cases[happened].result = result;
    s->polls++;
    for (int i = 0; i < s->n; i++) {
        struct arm *a = &s->arms[i];
        if (has_list(&s->cases[i])) leave_list(&a->entry, &s->cases[i]);
        if (s->cases[i].kind == COIL_CASE_READY_ && a->op.live) coil__op_abort(w, &a->op);
        serves = serves || s->cases[i].kind == COIL_CASE_SEM_;
    }
    if (serves) {
        serve_behind(s);
    } else {
        finish(s);
    }
}

static void arm_won(struct coil__waiter *e, int result) {
    struct arm *a = CONTAINER_OF(e, struct arm, entry);
    settle(a->select, (int)(a - a->select->arms), result);
}

static void poll_done(struct coil__op *op, int res, uint32_t flags) {
    struct arm *a = CONTAINER_OF(op, struct arm, op);
    struct select *s = a->select;
    int i = (int)(a - s->arms);
    (void)flags;
    s->polls--;
    /* Early 5.10 kernels tell also what nobody has asked for: where it is nothing else, it is asked again. */
    if (res >= 0) res &= events_of(&s->cases[i]) | POLLERR | POLLHUP | POLLNVAL;
    if (res == 0 && !s->settled) {
        res = coil__op_begin(coil__worker_of(s->wait.task->sched), op);
        s->polls += !res;
        if (!res) return;
    }
    if (!s->settled) {
        /* Nobody here has asked for its end. */
        if (res == -ECANCELED) res = op->fd_closed ? -EBADF : -EINTR;
        settle(s, i, res);
        return;
    }
    if (s->happened == NOTHING && res > 0) {
        s->happened = i;
        s->cases[i].result = res;
    }
    if (s->polls == 0) coil__ready(&s->wait, 0);
}

/* The case with the earliest moment; NOTHING: there is none. */
static int earliest(const struct select *s) {
    int first = NOTHING;
    for (int i = 0; i < s->n; i++) {
        if (s->cases[i].kind != COIL_CASE_TIME_) continue;
        if (first == NOTHING || (int64_t)s->cases[i].arg[0] < (int64_t)s->cases[first].arg[0]) first = i;
    }
    return first;
}

/* What has come by now decides, as for a sleep. */
static void select_abort(struct coil__wait *w) {
    struct select *s = CONTAINER_OF(w, struct select, wait);
    const struct coil__task *t = w->task;
    if (s->settled) return;
    int i = earliest(s);
    bool due = i != NOTHING && !t->stop && (int64_t)s->cases[i].arg[0] <= t->sched->now_ns;
    settle(s, due ? i : NOTHING, 0);
}

/* 0, or -ENOMEM, and all are over again: those that were begun have not left the driver's queue. */
static int begin_polls(struct select *s, struct coil__worker *w) {
    int err = 0;
    for (int i = 0; i < s->n; i++) {
        struct coil__op *op = &s->arms[i].op;
        if (s->cases[i].kind != COIL_CASE_READY_) continue;
        coil__op_init(op);
        if (err) continue;
        coil__op_prep_poll(op, fd_of(&s->cases[i]), events_of(&s->cases[i]));
        op->done = poll_done;
        err = coil__op_begin(w, op);
        s->polls += !err;
    }
    s->wait.outside = s->polls > 0;
    if (!err) return 0;
    s->settled = true;
    s->polls++;
    for (int i = 0; i < s->n; i++) {
        if (s->cases[i].kind == COIL_CASE_READY_ && s->arms[i].op.live) coil__op_abort(w, &s->arms[i].op);
    }
    CHECK(s->polls == 1);
    return err;
}

static void enter_lists(struct select *s, struct coil__task *t) {
    for (int i = 0; i < s->n; i++) {
        coil_case *c = &s->cases[i];
        struct coil__waiter *e = &s->arms[i].entry;
        if (!has_list(c)) continue;
        e->node.next = NULL;
        e->won = arm_won;
        e->item = c->item;
        enter_list(t, e, c);
    }
}

/* For reports: those whom it joins, each once. */
static const struct coil__task *joined(const struct coil__wait *w, const struct coil__task *after) {
    const struct select *s = CONTAINER_OF(w, const struct select, wait);
    const struct coil__task *before = NULL;
    for (int i = 0; i < s->n; i++) {
        if (s->cases[i].kind != COIL_CASE_JOIN_) continue;
        const struct coil__task *t = coil__task_find(w->task->sched, handle_of(&s->cases[i]));
        bool seen = false;
        for (int j = 0; j < i && !seen; j++)
            seen = s->cases[j].kind == COIL_CASE_JOIN_ &&
                   coil_task_same(handle_of(&s->cases[i]), handle_of(&s->cases[j]));
        if (!t || t->state == COIL__ENDED || seen) continue;
        if (before == after) return t;
        before = t;
    }
    return NULL;
}

static int wait_with(struct arm *arms, struct coil__task *t, coil_case *cases, int n) {
    struct select s = {.wait = {.abort = select_abort, .what = "select", .fd = -1, .blocker = joined},
                       .arms = arms,
                       .cases = cases,
                       .n = n,
                       .happened = NOTHING};
    for (int i = 0; i < n; i++)
        arms[i].select = &s;
    int err = begin_polls(&s, coil__worker_of(t->sched));
    if (err) return coil__failed(t, err);
    enter_lists(&s, t);
    int i = earliest(&s);
    coil__park_until(t, &s.wait, i == NOTHING ? t->limit_ns : MIN(t->limit_ns, (int64_t)cases[i].arg[0]));
    return s.happened == NOTHING ? coil__stop_error(t) : s.happened;
}

static int wait_with_few(struct coil__task *t, coil_case *cases, int n) {
    struct arm arms[FEW];
    return wait_with(arms, t, cases, n);
}

static int wait_with_many(struct coil__task *t, coil_case *cases, int n) {
    struct arm *arms = malloc((size_t)n * sizeof *arms);
    if (!arms) return coil__failed(t, -ENOMEM);
    int happened = wait_with(arms, t, cases, n);
    free(arms);
    return happened;
}

int coil_select(coil_case *cases, size_t n) {
    struct coil__task *t = coil__current("coil_select");
    int got = coil__admit(t);
    if (got) return got;
    got = select_now(t, cases, n);
    if (got == -EAGAIN) return n <= FEW ? wait_with_few(t, cases, (int)n) : wait_with_many(t, cases, (int)n);
    coil__charge(t);
    return got;
}
