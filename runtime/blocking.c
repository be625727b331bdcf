/* A task's call on a thread of the blocking pool.
 *
 * A job that has begun can't be stopped, and works on memory of the task that asked for it: so it is waited
 * for, and its result counts. One that has not begun is taken back. Only a call that owns what it works on
 * may be left behind; the worker keeps it among its jobs, and its run goes on, until its letter has come. */
#include "blocking.h"

#include <stdlib.h>

static void count(struct coil__worker *w, const struct coil__blocking *b) {
    w->stats.jobs++;
    w->stats.jobs_wait_ns += (uint64_t)(b->job.begun_ns - b->job.queued_ns);
}

/* In the worker: run, or taken back. */
static void over(struct coil__worker *w, struct coil__blocking *b) {
    struct coil__wait *closer = b->closer;
    coil__node_unlink(&b->node);
    coil__ready(&b->wait, 0);
    if (closer) coil__ready(closer, 0);
    if (!b->taken_back) count(w, b);
}

static void take_back(struct coil__worker *w, struct coil__blocking *b) {
    if (b->taken_back || !w->s.driver->sys->take_back(&b->job)) return;
    b->taken_back = true;
    over(w, b);
}

static void blocking_abort(struct coil__wait *wait) {
    take_back(coil__worker_of(wait->task->sched), CONTAINER_OF(wait, struct coil__blocking, wait));
}

static void deliver_borrowed(struct coil__letter *l) {
    struct coil__blocking *b = CONTAINER_OF(l, struct coil__blocking, letter);
    over(coil__worker_of(b->wait.task->sched), b);
}

static void post(struct coil__worker *w, void *letter) {
    coil__worker_post(w, letter);
}

/* On the pool's thread. The worker is looked up, because it may read the letter and end its run while it is
 * still being woken. */
static void job_ended(struct coil__job *j) {
    struct coil__blocking *b = CONTAINER_OF(j, struct coil__blocking, job);
    CHECK(coil__worker_with(b->worker, post, &b->letter));
}

static int hand_over(struct coil__task *t, struct coil__blocking *b, const char *what,
                     void (*abort)(struct coil__wait *), void (*deliver)(struct coil__letter *)) {
    struct coil__worker *w = coil__worker_of(t->sched);
    b->wait = (struct coil__wait){.abort = abort, .what = what, .fd = b->fd, .outside = true};
    b->letter.deliver = deliver;
    b->node = b->job.node = (struct coil__node){0};
    b->job.ended = job_ended;
    b->closer = NULL;
    b->worker = w->s.worker;
    b->taken_back = b->fd_closed = false;
    /* Its letter is read by this thread, later: the task has parked by then. */
    int err = w->s.driver->sys->hand_over(&b->job);
    if (!err) coil__list_push(&w->jobs, &b->node);
    return err;
}

int coil__blocking_call(struct coil__task *t, struct coil__blocking *b, const char *what, int64_t until_ns) {
    int err = hand_over(t, b, what, blocking_abort, deliver_borrowed);
    if (err) return err;
    coil__park_until(t, &b->wait, until_ns);
    if (!b->taken_back) return 0;
    return b->fd_closed ? -EBADF : coil__stop_error(t);
}

int coil__blocking_call_always(struct coil__task *t, struct coil__blocking *b, const char *what) {
    int err = hand_over(t, b, what, blocking_abort, deliver_borrowed);
    if (err) return err;
    coil__park_always(t, &b->wait);
    return 0;
}

/* Takes back all jobs on fd that have not begun, at once: they would begin while those that have are waited
 * for. Returns one that is left, or the close itself; NULL: there is none. */
static struct coil__blocking *clear(struct coil__worker *w, int fd) {
    struct coil__blocking *left = NULL;
    for (struct coil__node *n = w->jobs.head.next, *next; n != &w->jobs.head; n = next) {
        struct coil__blocking *b = CONTAINER_OF(n, struct coil__blocking, node);
        next = n->next;
        if (b->fd != fd) continue;
        if (b->closes) return b;
        b->fd_closed = true;
        take_back(w, b);
        if (!b->taken_back && !left) left = b;
    }
    return left;
}

int coil__blocking_end_on(struct coil__task *t, int fd) {
    struct coil__worker *w = coil__worker_of(t->sched);
    for (struct coil__blocking *b; (b = clear(w, fd));) {
        if (b->closer || b->closes) return -EBADF;
        struct coil__wait wait = {.what = "close", .fd = fd, .outside = true};
        b->closer = &wait;
        coil__park_always(t, &wait);
    }
    return 0;
}

/* ---- the program's functions ---- */

struct borrowed {
    struct coil__blocking b;
    void *arg;
    int result;
};

static void run_borrowed(struct coil__job *j) {
    struct borrowed *c = CONTAINER_OF(j, struct borrowed, b.job);
    c->result = c->b.fn(c->arg);
}

int coil_blocking(coil_fn *fn, void *arg, int *result) {
    struct coil__task *t = coil__current("coil_blocking");
    int err = coil__admit(t);
    if (err) return err;
    if (!fn) return coil__failed(t, -EINVAL);
    struct borrowed c = {.b = {.fd = -1, .fn = fn}, .arg = arg};
    c.b.job.run = run_borrowed;
    c.b.job.lane = COIL__LANE_USER;
    err = coil__blocking_call(t, &c.b, "blocking call", t->limit_ns);
    if (err == -EAGAIN || err == -ENOMEM)
        coil__charge(t); /* or one that tries again and again holds the worker */
    if (!err && result) *result = c.result;
    return err;
}

/* ---- calls that may be left behind ---- */

/* One exchange settles who has the argument: the thread says ENDED when fn has returned, the task says LEFT
 * when it goes away, and the first of them decides. */
enum fate { GOES_ON, ENDED, LEFT };

struct owned {
    struct coil__blocking b;
    void *arg;
    void (*drop)(void *arg);
    int result;
    atomic_int fate;
    bool *left; /* on the task's stack, since this may be gone when a task that has left runs */
};

static void run_owned(struct coil__job *j) {
    struct owned *o = CONTAINER_OF(j, struct owned, b.job);
    o->result = o->b.fn(o->arg);
    if (atomic_exchange(&o->fate, ENDED) == LEFT && o->drop) o->drop(o->arg);
}

static void deliver_owned(struct coil__letter *l) {
    struct owned *o = CONTAINER_OF(l, struct owned, b.letter);
    struct coil__worker *w = coil__worker_of(o->b.wait.task->sched);
    if (o->left) {
        over(w, &o->b);
        return;
    }
    coil__node_unlink(&o->b.node);
    count(w, &o->b);
    free(o);
}

static void owned_abort(struct coil__wait *wait) {
    struct owned *o = CONTAINER_OF(wait, struct owned, b.wait);
    int fate = GOES_ON;
    blocking_abort(wait);
    if (o->b.taken_back || !atomic_compare_exchange_strong(&o->fate, &fate, LEFT)) return;
    *o->left = true;
    o->left = NULL;
    coil__ready(wait, 0);
}

static int call_owned(struct coil__task *t, struct owned *o, int *result) {
    bool left = false;
    int err = hand_over(t, &o->b, "blocking call", owned_abort, deliver_owned);
    if (!err) {
        o->left = &left;
        coil__park_until(t, &o->b.wait, t->limit_ns);
        if (left || o->b.taken_back) err = coil__stop_error(t);
        if (left) return err;
    }
    if (!err && result) *result = o->result;
    if (err && o->drop) o->drop(o->arg);
    free(o);
    return err;
}

int coil_blocking_owned(coil_fn *fn, void *arg, void (*drop)(void *arg), int *result) {
    struct coil__task *t = coil__current("coil_blocking_owned");
    struct owned *o = NULL;
    int err = coil__admit(t);
    bool refused = err;
    if (!err && !fn) err = -EINVAL;
    if (!err && !(o = malloc(sizeof *o))) err = -ENOMEM;
    if (err) {
        if (drop) drop(arg);
        return refused ? err : coil__failed(t, err);
    }
    *o = (struct owned){.b = {.fd = -1, .fn = fn}, .arg = arg, .drop = drop};
    o->b.job.run = run_owned;
    o->b.job.lane = COIL__LANE_USER;
    err = call_owned(t, o, result);
    if (err == -EAGAIN || err == -ENOMEM) coil__charge(t);
    return err;
}
