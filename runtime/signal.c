/* Waiting for signals.
 *
 * One process-wide handler, and one desk per worker that has asked: the handler notes the signal on every
 * desk that wants it and posts the desk's letter to the worker. Desks are never freed, only left and taken
 * again, so that the handler, which may run on any thread at any moment, can walk them without a lock; a
 * worker that leaves waits until no handler is at its desk.
 *
 * Masks and signalfd are not used: a mask is per thread, and a thread that coil doesn't know would still be
 * killed. */
#include "signals.h"

#include "coil/signal.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

enum { SIGNALS = 64 };

struct desk {
    struct desk *next;                     /* never changes once it is set */
    _Atomic(struct coil__worker *) worker; /* NULL: free */
    atomic_int handlers;                   /* how many signal handlers are at it */
    _Atomic uint64_t wanted, pending;      /* by tasks; bit s - 1: signal s */
    _Atomic uint64_t watched;              /* by `watcher`; seen: it has come */
    atomic_bool seen;
    void (*watcher)(struct coil__worker *w);
    atomic_bool posted;
    struct coil__letter letter;
    struct coil__list waiters; /* of struct signal_wait */
};

struct signal_wait {
    struct coil__wait wait;
    uint64_t wanted;
};

static _Atomic(struct desk *) desks;
static pthread_mutex_t lock =
    PTHREAD_MUTEX_INITIALIZER;               /* over the two below, and over taking and leaving a desk */
static unsigned users[SIGNALS + 1];          /* workers that want the signal */
static struct sigaction before[SIGNALS + 1]; /* its disposition until then */

static uint64_t bit(int sig) {
    return UINT64_C(1) << (sig - 1);
}

static void on_signal(int sig) {
    int saved = errno;
    for (struct desk *d = atomic_load(&desks); d; d = d->next) {
        atomic_fetch_add(&d->handlers, 1);
        struct coil__worker *w = atomic_load(&d->worker);
        bool wanted = atomic_load(&d->wanted) & bit(sig), watched = atomic_load(&d->watched) & bit(sig);
        if (w && (wanted || watched)) {
            if (wanted) atomic_fetch_or(&d->pending, bit(sig));
            if (watched) atomic_store(&d->seen, true);
            if (!atomic_exchange(&d->posted, true)) coil__worker_post(w, &d->letter);
        }
        atomic_fetch_sub(&d->handlers, 1);
    }
    errno = saved;
}

/* Gives each waiting task one of the pending signals that it wants; what nobody waits for is kept. */
static void serve(struct desk *d) {
    uint64_t pending = atomic_load(&d->pending), taken = 0;
    for (struct coil__node *n = d->waiters.head.next, *next; n != &d->waiters.head; n = next) {
        next = n->next;
        struct signal_wait *w = CONTAINER_OF(n, struct signal_wait, wait.entry.node);
        uint64_t got = pending & w->wanted;
        if (!got) continue;
        int sig = __builtin_ctzll(got) + 1;
        taken |= bit(sig);
        coil__node_unlink(n);
        coil__ready(&w->wait, sig);
    }
    atomic_fetch_and(&d->pending, ~taken);
}

static void deliver(struct coil__letter *l) {
    struct desk *d = CONTAINER_OF(l, struct desk, letter);
    atomic_store(&d->posted, false);
    if (atomic_exchange(&d->seen, false)) d->watcher(atomic_load(&d->worker));
    serve(d);
}

/* ---- desks ---- */

static struct desk *desk_of(const struct coil__worker *w) {
    struct desk *d = atomic_load(&desks);
    while (d && atomic_load(&d->worker) != w)
        d = d->next;
    return d;
}

static struct desk *free_or_new_desk(void) {
    struct desk *d = desk_of(NULL);
    if (d) return d;
    d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->letter.deliver = deliver;
    d->next = atomic_load(&desks);
    atomic_store(&desks, d);
    return d;
}

static struct desk *take_desk(struct coil__worker *w) {
    struct desk *d = desk_of(w);
    if (d) return d;
    pthread_mutex_lock(&lock);
    d = free_or_new_desk();
    if (d) {
        coil__list_init(&d->waiters);
        atomic_store(&d->wanted, 0);
        atomic_store(&d->pending, 0);
        atomic_store(&d->watched, 0);
        atomic_store(&d->seen, false);
        atomic_store(&d->posted, false);
        atomic_store(&d->worker, w);
    }
    pthread_mutex_unlock(&lock);
    return d;
}

/* The handler is set once per process and signal. It restarts system calls of threads that aren't coil's, and
 * spares the tasks' stacks; a worker's wait ends all the same. */
static void want(struct desk *d, uint64_t signals, _Atomic uint64_t *by) {
    if (!(signals & ~atomic_load(by))) return;
    uint64_t fresh = signals & ~(atomic_load(&d->wanted) | atomic_load(&d->watched));
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};
    sigfillset(&sa.sa_mask);
    pthread_mutex_lock(&lock);
    atomic_fetch_or(by, signals);
    for (int sig = 1; sig <= SIGNALS; sig++) {
        if ((fresh & bit(sig)) && users[sig]++ == 0) CHECK(sigaction(sig, &sa, &before[sig]) == 0);
    }
    pthread_mutex_unlock(&lock);
}

/* A handler that the program has set meanwhile (the default again, say) is left alone. */
static void restore(int sig) {
    struct sigaction now;
    if (sigaction(sig, NULL, &now) == 0 && now.sa_handler == on_signal) sigaction(sig, &before[sig], NULL);
}

void coil__signals_leave(struct coil__worker *w) {
    struct desk *d = desk_of(w);
    if (!d) return;
    CHECK(coil__list_empty(&d->waiters));
    pthread_mutex_lock(&lock);
    uint64_t wanted = atomic_load(&d->wanted) | atomic_load(&d->watched);
    for (int sig = 1; sig <= SIGNALS; sig++) {
        if ((wanted & bit(sig)) && --users[sig] == 0) restore(sig);
    }
    atomic_store(&d->worker, NULL);
    /* Before anybody else can take the desk: a handler that is still at it posts the letter to this worker.
     */
    while (atomic_load(&d->handlers))
        sched_yield();
    pthread_mutex_unlock(&lock);
}

/* ---- the calls ---- */

bool coil__signal_possible(int sig) {
    static const int never[] = {SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGURG};
    for (size_t i = 0; i < ARRAY_SIZE(never); i++) {
        if (sig == never[i]) return false;
    }
    /* The C library keeps the first real-time signals for itself. */
    return sig >= 1 && sig <= SIGNALS && (sig < 32 || sig >= SIGRTMIN);
}

int coil__signals_watch(struct coil__worker *w, int sig, void (*fn)(struct coil__worker *w)) {
    struct desk *d = take_desk(w);
    if (!d) return -ENOMEM;
    d->watcher = fn;
    want(d, bit(sig), &d->watched);
    return 0;
}

static int signal_set(const int *signals, size_t n, uint64_t *set) {
    if (!signals || n == 0) return -EINVAL;
    *set = 0;
    for (size_t i = 0; i < n; i++) {
        if (!coil__signal_possible(signals[i])) return -EINVAL;
        *set |= bit(signals[i]);
    }
    return 0;
}

int coil_signal_wait(const int *signals, size_t n) {
    struct coil__task *t = coil__current("coil_signal_wait");
    struct signal_wait w = {.wait = {.abort = coil__wait_leave, .what = "signal", .fd = -1, .outside = true}};
    int err = coil__admit(t);
    if (err) return err;
    err = signal_set(signals, n, &w.wanted);
    if (err) return coil__failed(t, err);
    struct desk *d = take_desk(coil__worker_of(t->sched));
    if (!d) return coil__failed(t, -ENOMEM);
    want(d, w.wanted, &d->wanted);
    serve(d); /* what has come in this turn is theirs who waited before this task */
    uint64_t kept = atomic_load(&d->pending) & w.wanted;
    if (kept) {
        int sig = __builtin_ctzll(kept) + 1;
        atomic_fetch_and(&d->pending, ~bit(sig));
        coil__charge(t);
        return sig;
    }
    coil__list_push(&d->waiters, &w.wait.entry.node);
    coil__park_until(t, &w.wait, t->limit_ns);
    return w.wait.interrupted ? coil__stop_error(t) : w.wait.result;
}
