/* Events, semaphores and channels for tasks of any worker and for plain threads.
 *
 * Life of a waiter, which lies on the stack of its task or thread:
 *   1. LINKED   in the object's list. Only then may a cancel or a deadline take it out.
 *   2. GRANTED  taken off the list by whoever gives it its result, under the lock. The result is its own from
 *               here on; an abort does nothing. A task stays parked until the letter is delivered that says
 *               so, and so keeps its run, and with it its worker, alive.
 *   3. woken    by its worker, or, a thread, by its condition.
 * The locks do not lie in the objects but in a table, found by the object's address. So an object may be all
 * zero, and whoever is woken may free it at once: the one that woke it has let go of the object before, and
 * unlocks what nobody frees. Nothing is called under a lock but memcpy. Letters are posted after it. */
#include "worker.h"

#include "coil/shared.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- locks ---- */

enum { LOCK_BITS = 5 };

static struct lock {
    pthread_mutex_t mutex;
} __attribute__((aligned(64))) locks[1 << LOCK_BITS] = {
    [0 ...(1 << LOCK_BITS) - 1] = {PTHREAD_MUTEX_INITIALIZER},
};

/* Another thread of the parent's may have had one. What it was at is no object of the child's. */
static void in_forked_child(void) {
    for (size_t i = 0; i < ARRAY_SIZE(locks); i++)
        pthread_mutex_init(&locks[i].mutex, NULL);
}

static void watch_forks(void) {
    pthread_atfork(NULL, NULL, in_forked_child);
}

/* `call` is for a forked child, which shares its parent's waiters with nobody. */
static pthread_mutex_t *lock(const void *object, const char *call) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (UNLIKELY(coil__forked)) coil__outside_task(call);
    pthread_once(&once, watch_forks);
    uint64_t hash = (uint64_t)(uintptr_t)object * UINT64_C(0x9E3779B97F4A7C15);
    pthread_mutex_t *m = &locks[hash >> (64 - LOCK_BITS)].mutex;
    pthread_mutex_lock(m);
    return m;
}

/* ---- waiters ---- */

struct waiter {
    struct coil__wait wait; /* a task's; of a thread only the entry is used */
    struct coil__letter letter;
    uint32_t worker;      /* 0: a thread */
    pthread_cond_t wakes; /* a thread's */
    bool granted;         /* under the lock */
    int result;           /* of one that was granted */
    struct waiter *next;  /* granted, and to be told */
    const void *object;
    void (*left)(const void *object,
                 struct waiter ***told); /* it has left the list: who is behind it may go */
};

static struct waiter *waiter_of(struct coil__node *n) {
    return CONTAINER_OF(n, struct waiter, wait.entry.node);
}

/* Under the lock: w has left its list and gets its result. A thread sees that when it has the lock again;
 * what tasks are to be told goes to a list, to be told by `tell` without the lock. */
static void grant(struct waiter *w, int result, struct waiter ***told) {
    w->result = result;
    w->granted = true;
    if (!w->worker) {
        pthread_cond_signal(&w->wakes);
        return;
    }
    w->next = NULL;
    **told = w;
    *told = &w->next;
}

static void deliver(struct coil__letter *l) {
    coil__ready(&CONTAINER_OF(l, struct waiter, letter)->wait, 0);
}

static void post(struct coil__worker *w, void *letter) {
    coil__worker_post(w, letter);
}

/* A waiter is gone as soon as it was told. Its worker is looked up, because it may read the letter and end
 * its run while it is still being woken. */
static void tell(struct waiter *w) {
    for (struct waiter *next; w; w = next) {
        next = w->next;
        if (coil__here && coil__here->worker == w->worker) {
            coil__ready(&w->wait, 0);
        } else {
            CHECK(coil__worker_with(w->worker, post, &w->letter));
        }
    }
}

static void leave(struct coil__wait *wait) {
    struct waiter *w = CONTAINER_OF(wait, struct waiter, wait), *first = NULL, **told = &first;
    pthread_mutex_t *m = lock(w->object, __func__);
    bool leaves = !w->granted;
    if (leaves) {
        coil__node_unlink(&wait->entry.node);
        if (w->left) w->left(w->object, &told);
    }
    pthread_mutex_unlock(m);
    if (leaves) coil__ready(wait, 0);
    tell(first);
}

/* The task that calls; NULL: a thread outside coil_run. */
static struct coil__task *caller(const char *call) {
    if (UNLIKELY(coil__forked)) coil__outside_task(call);
    return coil__here ? coil__current(call) : NULL;
}

static int wait_task(struct coil__task *t, struct waiter *w, struct coil__list *l, pthread_mutex_t *m) {
    w->worker = t->sched->worker;
    w->letter.deliver = deliver;
    w->wait.abort = leave;
    w->wait.fd = -1;
    w->wait.on = w->object;
    w->wait.outside = true;
    coil__list_push(l, &w->wait.entry.node);
    pthread_mutex_unlock(m);
    /* It may have been granted by now, but its letter is read by this thread, later. */
    coil__park_until(t, &w->wait, t->limit_ns);
    return w->granted ? w->result : coil__stop_error(t);
}

static int wait_thread(struct waiter *w, struct coil__list *l, pthread_mutex_t *m) {
    pthread_cond_init(&w->wakes, NULL);
    coil__list_push(l, &w->wait.entry.node);
    while (!w->granted)
        pthread_cond_wait(&w->wakes, m);
    pthread_mutex_unlock(m);
    pthread_cond_destroy(&w->wakes);
    return w->result;
}

/* Stands at the end of l until granted, or, a task, interrupted. Lets go of the lock. t NULL: a thread. */
static int await(struct coil__task *t, struct waiter *w, struct coil__list *l, pthread_mutex_t *m) {
    return t ? wait_task(t, w, l, m) : wait_thread(w, l, m);
}

/* The lists of an object that is all zero have no ends yet. */
static void ready_list(struct coil__list *l) {
    if (!l->head.next) coil__list_init(l);
}

/* A call is done without waiting: lets go of the lock, tells those that it has granted something. */
static void done(pthread_mutex_t *m, struct waiter *told) {
    pthread_mutex_unlock(m);
    tell(told);
}

/* ---- events ---- */

struct event {
    struct coil__list waiters;
    bool set;
};

_Static_assert(sizeof(struct event) <= sizeof(coil_shared_event), "no room for an event");

int coil_shared_event_wait(coil_shared_event *e) {
    struct event *v = (struct event *)(void *)e;
    struct coil__task *t = caller("coil_shared_event_wait");
    int err = t ? coil__admit(t) : 0;
    if (err) return err;
    pthread_mutex_t *m = lock(v, __func__);
    if (!v->set) {
        struct waiter w = {.wait.what = "shared event", .object = v};
        ready_list(&v->waiters);
        return await(t, &w, &v->waiters, m);
    }
    pthread_mutex_unlock(m);
    if (t) coil__charge(t);
    return 0;
}

void coil_shared_event_set(coil_shared_event *e) {
    struct event *v = (struct event *)(void *)e;
    struct waiter *first = NULL, **told = &first;
    pthread_mutex_t *m = lock(v, __func__);
    v->set = true;
    ready_list(&v->waiters);
    for (struct coil__node *n; (n = coil__list_pop(&v->waiters));)
        grant(waiter_of(n), 0, &told);
    done(m, first);
}

void coil_shared_event_clear(coil_shared_event *e) {
    struct event *v = (struct event *)(void *)e;
    pthread_mutex_t *m = lock(v, __func__);
    v->set = false;
    pthread_mutex_unlock(m);
}

bool coil_shared_event_is_set(coil_shared_event *e) {
    struct event *v = (struct event *)(void *)e;
    pthread_mutex_t *m = lock(v, __func__);
    bool set = v->set;
    pthread_mutex_unlock(m);
    return set;
}

/* ---- semaphores ---- */

struct sem {
    struct coil__list waiters; /* entry.item: how many permits it wants */
    uint64_t permits;          /* COIL_SHARED_SEM_INIT knows its place */
};

_Static_assert(sizeof(struct sem) <= sizeof(coil_shared_sem), "no room for a semaphore");
_Static_assert(offsetof(struct sem, permits) == 2 * sizeof(uint64_t), "COIL_SHARED_SEM_INIT misses it");

/* Gives what is there to those in front. */
static void serve_sem(const void *object, struct waiter ***told) {
    struct sem *s = (struct sem *)(uintptr_t)object;
    for (struct coil__node *n; (n = coil__list_first(&s->waiters));) {
        struct waiter *w = waiter_of(n);
        uint64_t wants = (uintptr_t)w->wait.entry.item;
        if (wants > s->permits) break;
        s->permits -= wants;
        coil__node_unlink(n);
        grant(w, 0, told);
    }
}

/* Under the lock. */
static bool take_permits(struct sem *s, unsigned n) {
    ready_list(&s->waiters);
    if (!coil__list_empty(&s->waiters) || s->permits < n) return false;
    s->permits -= n;
    return true;
}

int coil_shared_sem_acquire(coil_shared_sem *sem, unsigned n) {
    struct sem *s = (struct sem *)(void *)sem;
    struct coil__task *t = caller("coil_shared_sem_acquire");
    int err = t ? coil__admit(t) : 0;
    if (err) return err;
    pthread_mutex_t *m = lock(s, __func__);
    if (!take_permits(s, n)) {
        struct waiter w = {.wait.what = "shared semaphore", .object = s, .left = serve_sem};
        w.wait.entry.item = (void *)(uintptr_t)n;
        return await(t, &w, &s->waiters, m);
    }
    pthread_mutex_unlock(m);
    if (t) coil__charge(t);
    return 0;
}

int coil_shared_sem_tryacquire(coil_shared_sem *sem, unsigned n) {
    struct sem *s = (struct sem *)(void *)sem;
    pthread_mutex_t *m = lock(s, __func__);
    bool taken = take_permits(s, n);
    pthread_mutex_unlock(m);
    return taken ? 0 : -EAGAIN;
}

void coil_shared_sem_release(coil_shared_sem *sem, unsigned n) {
    struct sem *s = (struct sem *)(void *)sem;
    struct waiter *first = NULL, **told = &first;
    pthread_mutex_t *m = lock(s, __func__);
    ready_list(&s->waiters);
    s->permits += n;
    if (s->permits > UINT_MAX) MISUSE("coil_shared_sem_release", "more than UINT_MAX permits");
    serve_sem(s, &told);
    done(m, first);
}

/* ---- channels ---- */

struct chan {
    struct coil__list senders, receivers; /* entry.item: what is sent, or where it goes */
    char *buf;
    size_t item_size, capacity, first, count;
    bool open, closed;
};

_Static_assert(sizeof(struct chan) <= sizeof(coil_shared_chan), "no room for a channel");

static struct chan *open_chan(coil_shared_chan *c, const char *call) {
    struct chan *ch = (struct chan *)(void *)c;
    if (!ch->open) MISUSE(call, "the channel is not open");
    return ch;
}

static char *place(const struct chan *ch, size_t i) {
    return ch->buf + (ch->first + i) % ch->capacity * ch->item_size;
}

static void copy(const struct chan *ch, void *to, const void *from) {
    if (ch->item_size) memcpy(to, from, ch->item_size);
}

/* Under the lock. 0, -EPIPE, or -EAGAIN: it has to wait. */
static int try_send(struct chan *ch, const void *item, struct waiter ***told) {
    if (ch->closed) return -EPIPE;
    struct coil__node *n = coil__list_pop(&ch->receivers);
    if (n) {
        copy(ch, waiter_of(n)->wait.entry.item, item);
        grant(waiter_of(n), 1, told);
        return 0;
    }
    if (ch->count == ch->capacity) return -EAGAIN;
    copy(ch, place(ch, ch->count), item);
    ch->count++;
    return 0;
}

/* Under the lock. 1, 0: closed and empty, or -EAGAIN: it has to wait. An item that leaves the buffer makes
 * room for that of the first sender. */
static int try_recv(struct chan *ch, void *item, struct waiter ***told) {
    struct coil__node *n = coil__list_pop(&ch->senders);
    const void *sent = n ? waiter_of(n)->wait.entry.item : NULL;
    if (ch->count) {
        copy(ch, item, place(ch, 0));
        ch->first = (ch->first + 1) % ch->capacity;
        ch->count--;
        if (n) copy(ch, place(ch, ch->count++), sent);
    } else if (n) {
        copy(ch, item, sent);
    } else {
        return ch->closed ? 0 : -EAGAIN;
    }
    if (n) grant(waiter_of(n), 0, told);
    return 1;
}

int coil_shared_chan_open(coil_shared_chan *c, size_t item_size, size_t capacity) {
    struct chan *ch = (struct chan *)(void *)c;
    size_t bytes;
    *ch = (struct chan){.item_size = item_size, .capacity = capacity};
    if (__builtin_mul_overflow(item_size, capacity, &bytes)) return -ENOMEM;
    if (!(ch->buf = malloc(bytes ? bytes : 1))) return -ENOMEM; /* never NULL: places are counted from it */
    coil__list_init(&ch->senders);
    coil__list_init(&ch->receivers);
    ch->open = true;
    return 0;
}

int coil_shared_chan_send(coil_shared_chan *c, const void *item) {
    struct chan *ch = open_chan(c, "coil_shared_chan_send");
    struct coil__task *t = caller("coil_shared_chan_send");
    struct waiter *first = NULL, **told = &first;
    int err = t ? coil__admit(t) : 0;
    if (err) return err;
    pthread_mutex_t *m = lock(ch, __func__);
    err = try_send(ch, item, &told);
    if (err == -EAGAIN) {
        struct waiter w = {.wait.what = "shared channel send", .object = ch};
        w.wait.entry.item = (void *)(uintptr_t)item;
        return await(t, &w, &ch->senders, m);
    }
    done(m, first);
    if (t) coil__charge(t);
    return err;
}

int coil_shared_chan_recv(coil_shared_chan *c, void *item) {
    struct chan *ch = open_chan(c, "coil_shared_chan_recv");
    struct coil__task *t = caller("coil_shared_chan_recv");
    struct waiter *first = NULL, **told = &first;
    int err = t ? coil__admit(t) : 0;
    if (err) return err;
    pthread_mutex_t *m = lock(ch, __func__);
    int got = try_recv(ch, item, &told);
    if (got == -EAGAIN) {
        struct waiter w = {.wait.what = "shared channel receive", .object = ch};
        w.wait.entry.item = item;
        return await(t, &w, &ch->receivers, m);
    }
    done(m, first);
    if (t) coil__charge(t);
    return got;
}

int coil_shared_chan_trysend(coil_shared_chan *c, const void *item) {
    struct chan *ch = open_chan(c, "coil_shared_chan_trysend");
    struct waiter *first = NULL, **told = &first;
    pthread_mutex_t *m = lock(ch, __func__);
    int err = try_send(ch, item, &told);
    done(m, first);
    return err;
}

int coil_shared_chan_tryrecv(coil_shared_chan *c, void *item) {
    struct chan *ch = open_chan(c, "coil_shared_chan_tryrecv");
    struct waiter *first = NULL, **told = &first;
    pthread_mutex_t *m = lock(ch, __func__);
    int got = try_recv(ch, item, &told);
    done(m, first);
    return got;
}

void coil_shared_chan_close(coil_shared_chan *c) {
    struct chan *ch = open_chan(c, "coil_shared_chan_close");
    struct waiter *first = NULL, **told = &first;
    pthread_mutex_t *m = lock(ch, __func__);
    ch->closed = true;
    for (struct coil__node *n; (n = coil__list_pop(&ch->senders));)
        grant(waiter_of(n), -EPIPE, &told);
    for (struct coil__node *n; (n = coil__list_pop(&ch->receivers));)
        grant(waiter_of(n), 0, &told);
    done(m, first);
}

void coil_shared_chan_destroy(coil_shared_chan *c) {
    struct chan *ch = (struct chan *)(void *)c;
    pthread_mutex_t *m = lock(ch, __func__);
    if (ch->open && !(coil__list_empty(&ch->senders) && coil__list_empty(&ch->receivers)))
        MISUSE("coil_shared_chan_destroy", "somebody waits at the channel");
    free(ch->buf);
    *ch = (struct chan){0};
    pthread_mutex_unlock(m);
}
