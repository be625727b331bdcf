/* Select: waits for several things at once, of which exactly one happens. */
#ifndef COIL_SELECT_H
#define COIL_SELECT_H

#include "chan.h"
#include "core.h"
#include "sync.h"
#include "task.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One thing to wait for, made by coil_on_...; a value that may be used again and again. */
typedef struct coil_case {
    int kind; /* all but result is coil's */
    void *obj;
    void *item;
    uint64_t arg[2];
    int result; /* of the case that happened; in the others it means nothing */
} coil_case;

enum {
    COIL_CASE_NONE_,
    COIL_CASE_RECV_,
    COIL_CASE_SEND_,
    COIL_CASE_JOIN_,
    COIL_CASE_EVENT_,
    COIL_CASE_SEM_,
    COIL_CASE_TIME_,
    COIL_CASE_READY_
};

static inline coil_case coil_case_of_(int kind, void *obj, void *item, uint64_t arg0, uint64_t arg1) {
    coil_case c;
    c.kind = kind;
    c.obj = obj;
    c.item = item;
    c.arg[0] = arg0;
    c.arg[1] = arg1;
    c.result = 0;
    return c;
}

/* The case that an item is received from c into *item, or c is closed and empty. Its result is that of
 * coil_chan_recv: 1 or 0.
 * Returns: the case.
 * Memory: *item is borrowed by each select with this case.
 * Mark: [any]. Thread: any. */
static inline coil_case coil_on_recv(coil_chan *c, void *item) {
    return coil_case_of_(COIL_CASE_RECV_, c, item, 0, 0);
}

/* The case that *item is sent to c, or c is closed. Its result is that of coil_chan_send: 0 or -EPIPE.
 * Returns: the case.
 * Memory: *item is borrowed by each select with this case.
 * Mark: [any]. Thread: any. */
static inline coil_case coil_on_send(coil_chan *c, const void *item) {
    return coil_case_of_(COIL_CASE_SEND_, c, (void *)(uintptr_t)item, 0, 0);
}

/* The case that t has ended; it is joined by it, as by coil_join. Its result is t's. What coil_join would
 * refuse happens at once, with that error as its result: -ESRCH: there is no such task, or no longer;
 * -EDEADLK: t is the caller; -EINVAL: t is detached, or belongs to a group.
 * Returns: the case.
 * Mark: [any]. Thread: any. */
static inline coil_case coil_on_join(coil_task t) {
    return coil_case_of_(COIL_CASE_JOIN_, NULL, NULL, (uint64_t)t.worker << 32 | t.slot, t.gen);
}

/* The case that e is set, or was while the select waited. Its result is 0. It stays set.
 * Returns: the case.
 * Mark: [any]. Thread: any. */
static inline coil_case coil_on_event(coil_event *e) {
    return coil_case_of_(COIL_CASE_EVENT_, e, NULL, 0, 0);
}

/* The case that n permits are taken from s, as by coil_sem_acquire. Its result is 0. While it waits it stands
 * in line, and one that waits for many holds up those behind it, a later case of the same select too.
 * Returns: the case.
 * Mark: [any]. Thread: any. */
static inline coil_case coil_on_sem(coil_sem *s, unsigned n) {
    return coil_case_of_(COIL_CASE_SEM_, s, NULL, n, 0);
}

/* The case that the moment t has come; COIL_NEVER: a case that never happens. Its result is 0. Of several
 * moments that pass while a select waits, the earliest happens.
 * Returns: the case.
 * Mark: [any]. Thread: any. */
static inline coil_case coil_on_time(coil_time t) {
    return coil_case_of_(COIL_CASE_TIME_, NULL, NULL, (uint64_t)t.ns, 0);
}

/* The case that fd is ready for one of the events, or has an error or a hang-up. Its result is that of
 * coil_poll: the ready events, or an error, such as -EBADF: fd is not open, or was closed by coil_close
 * meanwhile. Readiness only shows; whoever reads first has the data.
 * Returns: the case.
 * Mark: [any]. Thread: any.
 * Source: poll(2), also for events. */
static inline coil_case coil_on_ready(int fd, short events) {
    return coil_case_of_(COIL_CASE_READY_, NULL, NULL, (uint64_t)(int64_t)fd, (uint16_t)events);
}

/* Waits until one of the n cases happens. Exactly one does: no item, permit or result is taken for any
 * other. Of several that could happen at once, each is as likely as any other. An object may stand in more
 * than one case; a send and a receive of the same select never meet.
 * Returns: the index of the case that happened; its `result` tells the outcome. That is an error, where the
 *         case's own text says so: the call has succeeded all the same.
 * Errors: -EINVAL: no cases are given, more than INT_MAX, or one that is none (all zero, of an object that
 *         is NULL, of no events). -ENOMEM: more than 16 cases, or readiness, and no memory. -ECANCELED,
 *         -ETIME: refused, or woken before any case happened. After any error no case has happened.
 * Memory: the cases and what they borrow are lent to the call until it returns; the kernel has let go of
 *         every descriptor by then.
 * Mark: [parks]. Thread: a task. */
COIL_API COIL_WUR int coil_select(coil_case *cases, size_t n);

/* Lets one of the n cases happen that needs no waiting; otherwise as coil_select.
 * Returns: the index of the case that happened.
 * Errors: -EAGAIN: all of them need waiting. -EINVAL: as coil_select.
 * Mark: [now]. Thread: a task. */
COIL_API COIL_WUR int coil_select_now(coil_case *cases, size_t n);

#ifdef __cplusplus
}
#endif

#endif
