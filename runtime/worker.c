/* The turn. The order of its steps matters:
 *   1. reap          copies results into their records; no user code runs, so the stack stays flat and traces
 * readable
 *   2. timers        after reap: a result that has come beats a deadline that has passed meanwhile
 *   3. inbox         before the tasks: a cancel from another thread shouldn't wait for a whole round
 *   4. tasks         bounded, or one busy connection would starve accept, timers and everybody's completions
 *   5. hooks         after the tasks: what one task wrote in several calls leaves in one send
 *   6. enter         last: everything asked for above goes in with one system call, cancels first */
#include "worker.h"

#include <pthread.h>

enum {
    REAP_MAX = 256,    /* completions in one turn */
    RESUMES_MAX = 128, /* resumes in one turn */
    RESUMES_PER_FLUSH = 64,
    TURN_NS = 200000,   /* tasks in one turn */
    SPIN_TRUST = 8,     /* waits in a row that polling has ended */
    SPIN_REST_MIN = 16, /* waits without polling after a miss, at first and at most */
    SPIN_REST_MAX = 1024,
};

/* ---- the process's workers ---- */

static pthread_mutex_t workers_lock = PTHREAD_MUTEX_INITIALIZER;
static struct coil__worker *workers;
static uint32_t last_number;

/* In a child forked while a run was under way, the rings' memory is not even mapped: only exec and _exit may
 * follow. Any other may make runs of its own, and another thread of the parent's may have had the lock. It is
 * not held across a fork, since the program may hold a lock of its own while it calls coil, and hold that one
 * across forks; so that the child finds the list whole, each change of it is a single store. */
static void in_forked_child(void) {
    coil__forked = __atomic_load_n(&workers, __ATOMIC_RELAXED) != NULL;
    coil__here = NULL;
    pthread_mutex_init(&workers_lock, NULL);
}

static void watch_forks(void) {
    pthread_atfork(NULL, NULL, in_forked_child);
}

static void lock_workers(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&workers_lock);
}

void coil__worker_join(struct coil__worker *w) {
    coil__list_init(&w->dirty);
    coil__list_init(&w->objects);
    coil__list_init(&w->jobs);
    coil__list_init(&w->spans);
    w->spin_rest = w->spin_skip = SPIN_REST_MIN;
    lock_workers();
    w->s.worker = ++last_number;
    w->next = workers;
    __atomic_store_n(&workers, w, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&workers_lock);
    CHECK(w->s.worker != 0);
}

void coil__worker_leave(struct coil__worker *w) {
    lock_workers();
    struct coil__worker **at = &workers;
    while (*at != w)
        at = &(*at)->next;
    __atomic_store_n(at, w->next, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&workers_lock);
}

bool coil__worker_with(uint32_t number, void (*fn)(struct coil__worker *w, void *arg), void *arg) {
    lock_workers();
    struct coil__worker *w = workers;
    while (w && w->s.worker != number)
        w = w->next;
    if (w) fn(w, arg);
    pthread_mutex_unlock(&workers_lock);
    return w != NULL;
}

/* The worker says that it sleeps and then looks at the inbox; a writer writes and then looks whether it
 * sleeps. Both are sequentially consistent, so at least one of them sees the other, and no letter waits for a
 * sleeping worker. */
void coil__worker_post(struct coil__worker *w, struct coil__letter *l) {
    coil__inbox_post(&w->inbox, l);
    if (atomic_exchange(&w->sleeping, false)) w->s.driver->ops->wake(w->s.driver);
}

/* ---- the steps ---- */

static void reap(struct coil__worker *w) {
    struct io_uring_cqe cqes[64];
    struct coil__driver *d = w->s.driver;
    for (unsigned total = 0; total < REAP_MAX;) {
        unsigned n = d->ops->reap(d, cqes, ARRAY_SIZE(cqes));
        if (n) w->complete(w, cqes, n);
        total += n;
        if (n < ARRAY_SIZE(cqes)) break;
    }
}

static void read_inbox(struct coil__worker *w) {
    for (struct coil__letter *l = coil__inbox_take(&w->inbox), *next; l; l = next) {
        next = l->next;
        l->deliver(l);
    }
}

static void run_hooks(struct coil__worker *w) {
    for (struct coil__node *n; (n = coil__list_pop(&w->dirty));) {
        struct coil__hook *h = CONTAINER_OF(n, struct coil__hook, node);
        h->run(h);
    }
}

static void run_tasks(struct coil__worker *w) {
    struct coil__sched *s = &w->s;
    uint32_t resumes = 0;
    s->turn_ends_ns = s->now_ns + TURN_NS;
    coil__sched_next_turn(s);
    while (coil__ring_queue_count(&s->ready) && resumes < RESUMES_MAX) {
        if (resumes && coil__sched_turn_over(s)) break;
        resumes += coil__sched_run(s, RESUMES_PER_FLUSH);
        run_hooks(w);
    }
}

static bool work_waits(const struct coil__worker *w) {
    return coil__ring_queue_count(&w->s.ready) || coil__ring_queue_count(&w->s.later);
}

/* The moment until which there is nothing to do but wait. The slack lets timers that are close share a
 * wake-up. */
static int64_t next_alarm(const struct coil__worker *w) {
    struct coil__heap_node *first = coil__heap_first(&w->s.timers);
    return first ? coil__add_ns(first->key, w->slack_ns) : COIL__NEVER;
}

/* Whether anything could still wake a task of this worker. */
static bool hopeless(struct coil__worker *w) {
    return w->s.live && !w->s.outside && !w->external_wakes && !coil__timers_any(&w->s) &&
           coil__list_empty(&w->jobs) && coil__inbox_empty(&w->inbox);
}

/* Polls for at most spin_max. True: something has come or is due, so there is no need to sleep. */
static bool spin(struct coil__worker *w, int64_t until_ns) {
    struct coil__driver *d = w->s.driver;
    w->stats.spins++;
    d->ops->enter(d, 0);
    int64_t end_ns = MIN(until_ns, coil__add_ns(coil__clock(&w->s), w->spin_max_ns));
    do {
        for (int i = 0; i < 16; i++) {
            if (d->ops->ready(d) || !coil__inbox_empty(&w->inbox)) return true;
            coil__cpu_relax();
        }
    } while (coil__clock(&w->s) < end_ns);
    return until_ns <= end_ns;
}

/* Whether to poll before sleeping. Being woken costs about as much as polling for spin_max, so polling pays
 * while work comes sooner than that. How soon it comes can't be told from waits that slept, since those
 * contain the wake-up; so now and then a wait polls to find out. As long as that meets work, every wait does;
 * a miss is followed by ever more waits that don't, so that a worker with little to do spends next to nothing
 * on it. */
static bool spin_pays(struct coil__worker *w, int64_t until_ns) {
    if (w->spin_max_ns == 0) return false;
    if (w->spin_skip) {
        w->spin_skip--;
        return false;
    }
    if (spin(w, until_ns)) {
        if (++w->spin_hits >= SPIN_TRUST) w->spin_rest = SPIN_REST_MIN;
        return true;
    }
    w->spin_hits = 0;
    w->spin_skip = w->spin_rest;
    w->spin_rest = MIN(w->spin_rest * 2, SPIN_REST_MAX);
    return false;
}

static void sleep_until(struct coil__worker *w, int64_t until_ns) {
    struct coil__driver *d = w->s.driver;
    atomic_store(&w->sleeping, true);
    if (!coil__inbox_empty(&w->inbox)) until_ns = 0;
    d->ops->enter(d, until_ns);
    atomic_store_explicit(&w->sleeping, false, memory_order_relaxed);
}

static void wait_for_work(struct coil__worker *w) {
    int64_t until_ns = next_alarm(w);
    if (spin_pays(w, until_ns)) {
        w->s.driver->ops->enter(w->s.driver, 0);
    } else {
        sleep_until(w, until_ns);
    }
}

static void enter(struct coil__worker *w) {
    while (!work_waits(w) && hopeless(w))
        w->stuck(w); /* comes back once; aborts where that has readied nobody */
    bool nobody_left = w->s.live == 0 && coil__list_empty(&w->jobs) && !(w->taking_back && w->ops.live);
    if (work_waits(w) || nobody_left) {
        w->s.driver->ops->enter(w->s.driver, 0);
    } else {
        wait_for_work(w);
    }
    coil__clock(&w->s);
}

void coil__worker_turn(struct coil__worker *w) {
    w->stats.turns++;
    reap(w);
    coil__timers_fire(&w->s);
    read_inbox(w);
    run_tasks(w);
    run_hooks(w);
    enter(w);
}
