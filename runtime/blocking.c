/* A task's call on a thread of the blocking pool.
 *
 * A job that has begun can't be stopped, and works on memory of the task that asked for it: so it is waited
 * for, and its result counts. One that has not begun is taken back. */
#include "blocking.h"

/* In the worker: run, or taken back. */
static void over(struct coil__worker *w, struct coil__blocking *b) {
    struct coil__wait *closer = b->closer;
    coil__node_unlink(&b->node);
    coil__ready(&b->wait, 0);
    if (closer) coil__ready(closer, 0);
    if (b->taken_back) return;
    w->stats.jobs++;
    w->stats.jobs_wait_ns += (uint64_t)(b->job.begun_ns - b->job.queued_ns);
}

static void take_back(struct coil__worker *w, struct coil__blocking *b) {
    if (b->taken_back || !w->s.driver->sys->take_back(&b->job)) return;
    b->taken_back = true;
    over(w, b);
}

static void blocking_abort(struct coil__wait *wait) {
    take_back(coil__worker_of(wait->task->sched), CONTAINER_OF(wait, struct coil__blocking, wait));
}

static void deliver(struct coil__letter *l) {
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

static int hand_over(struct coil__task *t, struct coil__blocking *b, const char *what) {
    struct coil__worker *w = coil__worker_of(t->sched);
    b->wait = (struct coil__wait){.abort = blocking_abort, .what = what, .fd = b->fd, .outside = true};
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
    int err = hand_over(t, b, what);
    if (err) return err;
    coil__park_until(t, &b->wait, until_ns);
    if (!b->taken_back) return 0;
    return b->fd_closed ? -EBADF : coil__stop_error(t);
}

int coil__blocking_call_always(struct coil__task *t, struct coil__blocking *b, const char *what) {
    int err = hand_over(t, b, what);
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
