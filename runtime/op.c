/* Requests: the only place where a completion leads to a task or an object.
 *
 * States of a record, and who moves it:
 *   idle      live == false. The owner may touch it.
 *   queued    in the driver's FIFO (req.node linked, no cancel asked). The kernel has not seen it.
 *   kernel    req.node not linked: the driver has copied it into the ring.
 *   leaving   cancelling: a cancel is on the driver's list (node linked) or with the kernel. Only the
 * request's own completion ends this state: the kernel may still write to its buffer, so nobody readies its
 * task before. A record has one place in the worker's table while it is live; user_data is that place and its
 * generation. `done` is called once per completion, and for the terminal one after the record is idle again.
 */
#include "op.h"

#include <stdlib.h>
#include <string.h>

enum { NO_SLOT = UINT32_MAX };

/* user_data: generation in the upper half, slot above the two bits of the kind. */
static uint64_t tag_of(uint32_t slot, uint32_t gen) {
    return (uint64_t)gen << 32 | (uint64_t)slot << 2;
}

static int grow_table(struct coil__op_table *t) {
    uint32_t capacity = t->capacity ? t->capacity * 2 : 256;
    if (capacity > UINT32_C(1) << 29) return -ENOMEM;
    struct coil__op_slot *at = realloc(t->at, capacity * sizeof *at);
    if (!at) return -ENOMEM;
    for (uint32_t i = t->capacity; i < capacity; i++) {
        at[i] = (struct coil__op_slot){.next_free = i + 1 < capacity ? i + 1 : NO_SLOT};
    }
    t->free_first = t->capacity;
    t->at = at;
    t->capacity = capacity;
    return 0;
}

static int take_slot(struct coil__op_table *t, struct coil__op *op) {
    if (t->live == t->capacity) {
        int err = grow_table(t);
        if (err) return err;
    }
    op->slot = t->free_first;
    struct coil__op_slot *s = &t->at[op->slot];
    t->free_first = s->next_free;
    s->op = op;
    s->gen++;
    t->live++;
    op->req.sqe.user_data = tag_of(op->slot, s->gen);
    return 0;
}

static void give_slot(struct coil__op_table *t, uint32_t slot) {
    t->at[slot].op = NULL;
    t->at[slot].next_free = t->free_first;
    t->free_first = slot;
    t->live--;
}

void coil__op_prep(struct coil__op *op, uint8_t opcode, int fd, const void *addr, uint32_t len,
                   uint64_t off) {
    memset(&op->req.sqe, 0, sizeof op->req.sqe);
    op->req.sqe.opcode = opcode;
    op->req.sqe.fd = fd;
    op->req.sqe.addr = (uint64_t)(uintptr_t)addr;
    op->req.sqe.len = len;
    op->req.sqe.off = off;
}

int coil__op_begin(struct coil__worker *w, struct coil__op *op) {
    CHECK(!op->live);
    int err = take_slot(&w->ops, op);
    if (err) return err;
    op->live = true;
    op->cancelling = op->fd_closed = false;
    op->closer = NULL;
    w->stats.ops++;
    COIL__TSAN_RELEASE(op);
    w->s.driver->ops->queue(w->s.driver, &op->req);
    return 0;
}

/* The terminal completion. */
static void finish(struct coil__worker *w, struct coil__op *op, int res, uint32_t flags) {
    struct coil__wait *closer = op->closer;
    if (coil__node_linked(&op->req.node)) coil__node_unlink(&op->req.node);
    give_slot(&w->ops, op->slot);
    op->live = false;
    op->done(op, res, flags);
    if (closer) coil__ready(closer, 0);
}

void coil__op_abort(struct coil__worker *w, struct coil__op *op) {
    CHECK(op->live);
    if (op->cancelling) return;
    op->cancelling = true;
    if (coil__node_linked(&op->req.node)) {
        finish(w, op, -ECANCELED, 0);
        return;
    }
    w->stats.cancels++;
    w->s.driver->ops->cancel(w->s.driver, &op->req);
}

/* The live record that a tag means; NULL: it is over, and the place may have another user. */
static inline struct coil__op *find(const struct coil__op_table *t, uint64_t tag) {
    const struct coil__op_slot *s = &t->at[(uint32_t)tag >> 2];
    return s->gen == (uint32_t)(tag >> 32) ? s->op : NULL;
}

/* A cancel that found nothing although its target is live met it between two states (its poll had just fired,
 * and it goes back to waiting): dropping it would leave the target to wait for ever. One whose target's
 * completion is merely behind it in the queue is asked again too, which is harmless: the completion takes it
 * off the list. */
static void cancel_done(struct coil__worker *w, const struct io_uring_cqe *cqe) {
    struct coil__op *op = find(&w->ops, cqe->user_data);
    if (cqe->res == -ENOENT && op && op->cancelling && !coil__node_linked(&op->req.node)) {
        w->s.driver->ops->cancel(w->s.driver, &op->req);
    }
}

void coil__ops_complete(struct coil__worker *w, const struct io_uring_cqe *cqes, unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        const struct io_uring_cqe *cqe = &cqes[i];
        if (i + 4 < n) __builtin_prefetch(find(&w->ops, cqes[i + 4].user_data));
        if (UNLIKELY(cqe->user_data & COIL__TAG_CANCEL)) {
            cancel_done(w, cqe);
            continue;
        }
        struct coil__op *op = find(&w->ops, cqe->user_data);
        CHECK(op != NULL);
        COIL__TSAN_ACQUIRE(op);
        w->stats.completions++;
        if (cqe->flags & IORING_CQE_F_MORE) {
            op->done(op, cqe->res, cqe->flags);
        } else {
            finish(w, op, cqe->res, cqe->flags);
        }
    }
}

void coil__ops_free(struct coil__worker *w) {
    CHECK(w->ops.live == 0);
    free(w->ops.at);
}

/* ---- requests that a parked task owns ---- */

struct call {
    struct coil__wait wait;
    struct coil__op *op;
};

/* Only asks. Readying the task here would end the life of the record and of the buffer under the kernel's
 * hands. */
static void call_abort(struct coil__wait *w) {
    struct call *c = CONTAINER_OF(w, struct call, wait);
    coil__op_abort(coil__worker_of(w->task->sched), c->op);
}

static void call_done(struct coil__op *op, int res, uint32_t flags) {
    (void)flags;
    coil__ready(op->waiter, res);
}

static int call(struct coil__task *t, struct coil__op *op, const char *what, int64_t until_ns, bool always) {
    struct call c = {.wait = {.abort = call_abort, .what = what, .fd = op->req.sqe.fd, .outside = true},
                     .op = op};
    op->done = call_done;
    op->waiter = &c.wait;
    int err = coil__op_begin(coil__worker_of(t->sched), op);
    if (err) return coil__failed(t, err);
    if (always) {
        coil__park_always(t, &c.wait);
    } else {
        coil__park_until(t, &c.wait, until_ns);
    }
    int res = c.wait.result;
    if (res != -ECANCELED && res != -EINTR) return res;
    if (op->fd_closed) return -EBADF;
    if (c.wait.interrupted) return coil__stop_error(t);
    /* Somebody else has ended it, and -ECANCELED means only that the task is cancelled. */
    return -EINTR;
}

int coil__op_call(struct coil__task *t, struct coil__op *op, const char *what, int64_t until_ns) {
    return call(t, op, what, until_ns, false);
}

int coil__op_call_always(struct coil__task *t, struct coil__op *op, const char *what) {
    return call(t, op, what, COIL__NEVER, true);
}

/* ---- closing a descriptor ---- */

static struct coil__op *any_on(const struct coil__op_table *t, int fd) {
    for (uint32_t i = 0; i < t->capacity; i++) {
        if (t->at[i].op && t->at[i].op->req.sqe.fd == fd) return t->at[i].op;
    }
    return NULL;
}

/* One task closes. Where the close itself is on its way already, waiting for it would be wrong: by then the
 * number may be somebody else's. */
int coil__ops_end_on(struct coil__task *t, int fd) {
    struct coil__worker *w = coil__worker_of(t->sched);
    LIST_EACH(n, &w->spans) {
        struct coil__span *span = CONTAINER_OF(n, struct coil__span, node);
        if (span->fd == fd) span->closed = true;
    }
    for (struct coil__op *op; (op = any_on(&w->ops, fd));) {
        if (op->closer || op->req.sqe.opcode == IORING_OP_CLOSE) return -EBADF;
        op->fd_closed = true;
        coil__op_abort(w, op);
        if (any_on(&w->ops, fd) != op) continue;
        struct coil__wait wait = {.what = "close", .fd = fd, .outside = true};
        op->closer = &wait;
        coil__park_always(t, &wait);
    }
    return 0;
}
