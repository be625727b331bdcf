/* Shared events, semaphores and channels: tasks of several workers and plain threads. */
#include "tasks.h"

#include "worker.h"

#include "coil/coil.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int run(coil_fn *fn, void *arg) {
    int before = check_fd_count(), result = coil_run(fn, arg);
    cr_expect_eq(check_fd_count(), before, "descriptors");
    return result;
}

/* A function in a thread of its own: in a task of a new worker there, or in the plain thread. */
struct side {
    coil_fn *fn;
    void *arg;
    bool plain;
    int result;
    pthread_t thread;
};

static void *side_runs(void *arg) {
    struct side *s = arg;
    s->result = s->plain ? s->fn(s->arg) : coil_run(s->fn, s->arg);
    return NULL;
}

static void side_begin(struct side *s, coil_fn *fn, void *arg, bool plain) {
    *s = (struct side){.fn = fn, .arg = arg, .plain = plain};
    int err = pthread_create(&s->thread, NULL, side_runs, s);
    if (err) abort();
}

static int side_end(struct side *s) {
    pthread_join(s->thread, NULL);
    return s->result;
}

static void spin(int n) {
    for (volatile int i = n; i > 0; i--)
        continue;
}

/* ---- one worker ---- */

static int waits_event(void *arg) {
    return coil_shared_event_wait(arg);
}

static int events(void *arg) {
    static coil_shared_event e;
    coil_task t[3];
    (void)arg;
    cr_expect_not(coil_shared_event_is_set(&e));
    for (int i = 0; i < 3; i++)
        t[i] = spawn(waits_event, &e);
    coil_yield();
    cr_expect_eq(coil__here->live, 4);
    coil_shared_event_set(&e);
    coil_shared_event_clear(&e);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(join(t[i]), 0, "a clear keeps nobody back");
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(coil_shared_event_wait(&e), -ETIME);
    cr_expect(coil_leave(&s));
    coil_shared_event_set(&e);
    cr_expect(coil_shared_event_is_set(&e));
    cr_expect_eq(coil_shared_event_wait(&e), 0);
    coil_cancel(coil_self());
    cr_expect_eq(coil_shared_event_wait(&e), -ECANCELED, "refused, although it is set");
    return 0;
}

Test(shared, an_event_lets_all_go_on) {
    cr_assert_eq(run(events, NULL), 0);
}

static struct {
    coil_shared_sem sem;
    int order[8], n;
} line;

struct wants {
    unsigned n;
    int id;
};

static int acquires(void *arg) {
    const struct wants *w = arg;
    int err = coil_shared_sem_acquire(&line.sem, w->n);
    if (!err) line.order[line.n++] = w->id;
    return err;
}

static int permits_in_order(void *arg) {
    static struct wants w[] = {{2, 0}, {1, 1}, {3, 2}, {1, 3}, {0, 4}};
    coil_task t[5];
    (void)arg;
    for (int i = 0; i < 5; i++) {
        t[i] = spawn(acquires, &w[i]);
        coil_yield();
    }
    coil_shared_sem_release(&line.sem, 1);
    cr_expect_eq(coil_shared_sem_tryacquire(&line.sem, 1), -EAGAIN, "others are waiting");
    coil_yield();
    cr_expect_eq(line.n, 0, "the second has overtaken the first");
    coil_shared_sem_release(&line.sem, 3);
    coil_yield();
    cr_expect(line.n == 2 && line.order[0] == 0 && line.order[1] == 1);
    /* One permit is left, and the third wants three: when it goes, those behind it are served. */
    cr_expect_eq(coil_cancel(t[2]), 0);
    coil_yield();
    coil_yield();
    cr_expect(line.n == 4 && line.order[2] == 3 && line.order[3] == 4, "%d", line.n);
    for (int i = 0; i < 5; i++)
        cr_expect_eq(join(t[i]), i == 2 ? -ECANCELED : 0);
    cr_expect_eq(coil_shared_sem_tryacquire(&line.sem, 1), -EAGAIN);
    coil_shared_sem_release(&line.sem, 2);
    cr_expect_eq(coil_shared_sem_tryacquire(&line.sem, 2), 0);
    return 0;
}

Test(shared, permits_are_given_in_the_order_of_coming) {
    cr_assert_eq(run(permits_in_order, NULL), 0);
}

static int given_wins(void *arg) {
    COIL_SHARED_SEM(s, 0);
    static struct wants w = {1, 0};
    (void)arg;
    line.n = 0;
    coil_task t = spawn(acquires, &w);
    coil_yield();
    coil_shared_sem_release(&line.sem, 1);
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(join(t), 0, "it had been given the permit");
    cr_expect_eq(coil_shared_sem_tryacquire(&s, 1), -EAGAIN);
    cr_expect_eq(coil_shared_sem_acquire(&s, 0), 0);
    return 0;
}

Test(shared, who_was_given_a_permit_has_it_in_spite_of_a_cancel) {
    cr_assert_eq(run(given_wins, NULL), 0);
}

static int sends_some(void *arg) {
    coil_shared_chan *c = arg;
    for (int i = 0; i < 5; i++) {
        int err = coil_shared_chan_send(c, &i);
        if (err) return err;
    }
    return 0;
}

static int passes_items(size_t capacity) {
    coil_shared_chan c;
    int item = -1;
    cr_expect_eq(coil_shared_chan_open(&c, sizeof item, capacity), 0);
    cr_expect_eq(coil_shared_chan_tryrecv(&c, &item), -EAGAIN);
    coil_task t = spawn(sends_some, &c);
    coil_yield();
    for (int i = 0; i < 5; i++) {
        cr_expect_eq(i % 2 ? coil_shared_chan_recv(&c, &item) : coil_shared_chan_tryrecv(&c, &item), 1);
        cr_expect_eq(item, i);
        coil_yield();
    }
    cr_expect_eq(join(t), 0);
    for (size_t i = 0; i < capacity; i++)
        cr_expect_eq(coil_shared_chan_trysend(&c, &item), 0);
    cr_expect_eq(coil_shared_chan_trysend(&c, &item), -EAGAIN);
    t = spawn(sends_some, &c);
    coil_yield();
    coil_shared_chan_close(&c);
    coil_shared_chan_close(&c);
    cr_expect_eq(join(t), -EPIPE);
    cr_expect_eq(coil_shared_chan_trysend(&c, &item), -EPIPE);
    cr_expect_eq(coil_shared_chan_send(&c, &item), -EPIPE);
    for (size_t i = 0; i < capacity; i++)
        cr_expect_eq(coil_shared_chan_recv(&c, &item), 1, "what was in it can be received");
    cr_expect_eq(coil_shared_chan_recv(&c, &item), 0);
    cr_expect_eq(coil_shared_chan_tryrecv(&c, &item), 0);
    coil_shared_chan_destroy(&c);
    coil_shared_chan_destroy(&c);
    return 0;
}

static int channels(void *arg) {
    coil_shared_chan c;
    (void)arg;
    passes_items(0);
    passes_items(1);
    passes_items(3);
    cr_expect_eq(coil_shared_chan_open(&c, SIZE_MAX / 2, 4), -ENOMEM);
    return 0;
}

Test(shared, items_pass_in_order_and_a_close_ends_it) {
    cr_assert_eq(run(channels, NULL), 0);
}

/* ---- misuse ---- */

static int receives_one(void *arg) {
    int item;
    return coil_shared_chan_recv(arg, &item);
}

static int destroys_too_early(void *arg) {
    coil_shared_chan c;
    (void)arg;
    coil_shared_chan_open(&c, sizeof(int), 1);
    spawn(receives_one, &c);
    coil_yield();
    coil_shared_chan_destroy(&c);
    return 0;
}

static int run_destroys_too_early(void *arg) {
    return coil_run(destroys_too_early, arg);
}

static int uses_a_closed_one(void *arg) {
    coil_shared_chan c = {{0}};
    return coil_shared_chan_trysend(&c, arg);
}

static int releases_too_many(void *arg) {
    COIL_SHARED_SEM(s, UINT_MAX);
    (void)arg;
    coil_shared_sem_release(&s, 1);
    return 0;
}

Test(shared, misuse_stops_with_a_message) {
    cr_assert(check_aborts(run_destroys_too_early, NULL, "coil_shared_chan_destroy: somebody waits"));
    cr_assert(check_aborts(uses_a_closed_one, NULL, "coil_shared_chan_trysend: the channel is not open"));
    cr_assert(check_aborts(releases_too_many, NULL, "coil_shared_sem_release: more than"));
}

/* ---- workers and threads ---- */

struct table {
    coil_shared_sem ping, pong;
    int rounds;
    int ball; /* guarded by nothing else */
};

static int pings(void *arg) {
    struct table *t = arg;
    for (int i = 0; i < t->rounds; i++) {
        t->ball++;
        coil_shared_sem_release(&t->ping, 1);
        int err = coil_shared_sem_acquire(&t->pong, 1);
        if (err) return err;
    }
    return t->ball == 2 * t->rounds ? 0 : -EIO;
}

static int pongs(void *arg) {
    struct table *t = arg;
    for (int i = 0; i < t->rounds; i++) {
        int err = coil_shared_sem_acquire(&t->ping, 1);
        if (err) return err;
        t->ball++;
        coil_shared_sem_release(&t->pong, 1);
    }
    return 0;
}

Test(shared, workers_and_threads_play_ping_pong) {
    for (int kinds = 0; kinds < 4; kinds++) {
        struct table t = {.rounds = check_thread_rounds(1000)};
        struct side a, b;
        side_begin(&a, pings, &t, kinds & 1);
        side_begin(&b, pongs, &t, kinds & 2);
        cr_assert_eq(side_end(&a), 0, "%d", kinds);
        cr_assert_eq(side_end(&b), 0, "%d", kinds);
    }
}

struct factory {
    coil_shared_chan c;
    int each;
    _Atomic uint64_t sent, received, count;
    atomic_int producers, ids;
};

struct item {
    uint64_t value, check;
    int producer, number;
};

static int produces(void *arg) {
    struct factory *f = arg;
    int id = atomic_fetch_add(&f->ids, 1), err = 0;
    for (int i = 0; i < f->each && !err; i++) {
        struct item item = {(uint64_t)(id * 1000003 + i), ~(uint64_t)(id * 1000003 + i), id, i};
        err = i % 16 == 15 ? coil_shared_chan_trysend(&f->c, &item) : -EAGAIN;
        if (err == -EAGAIN) err = coil_shared_chan_send(&f->c, &item);
        if (!err) atomic_fetch_add(&f->sent, item.value);
    }
    if (atomic_fetch_sub(&f->producers, 1) == 1) coil_shared_chan_close(&f->c);
    return err;
}

static int consumes(void *arg) {
    struct factory *f = arg;
    struct item item;
    int got, last[16];
    memset(last, -1, sizeof last);
    while ((got = coil_shared_chan_recv(&f->c, &item)) == 1) {
        if (item.check != ~item.value || item.number <= last[item.producer]) return -EIO;
        last[item.producer] = item.number;
        atomic_fetch_add(&f->received, item.value);
        atomic_fetch_add(&f->count, 1);
    }
    return got;
}

static int works_in_both(void *arg) {
    coil_task p = spawn(produces, arg), q = spawn(produces, arg);
    coil_task c = spawn(consumes, arg), d = spawn(consumes, arg);
    int a = join(p), b = join(q);
    return a | b | join(c) | join(d);
}

Test(shared, no_item_is_lost_or_doubled_among_workers_and_threads) {
    static const size_t capacities[] = {0, 1, 7};
    for (size_t i = 0; i < ARRAY_SIZE(capacities); i++) {
        struct factory f = {.each = check_rounds(2000)};
        struct side s[4];
        atomic_store(&f.producers, 5);
        cr_assert_eq(coil_shared_chan_open(&f.c, sizeof(struct item), capacities[i]), 0);
        side_begin(&s[0], works_in_both, &f, false);
        side_begin(&s[1], works_in_both, &f, false);
        side_begin(&s[2], produces, &f, true);
        side_begin(&s[3], consumes, &f, true);
        for (int k = 0; k < 4; k++)
            cr_assert_eq(side_end(&s[k]), 0, "%d", k);
        cr_assert_eq(atomic_load(&f.count), (uint64_t)(5 * f.each));
        cr_assert_eq(atomic_load(&f.sent), atomic_load(&f.received));
        coil_shared_chan_destroy(&f.c);
    }
}

/* ---- the order of coming, over several workers ---- */

enum { IN_LINE = 20 };

static struct {
    coil_shared_chan c;
    atomic_int turn;
    int number[IN_LINE];
} queue;

static int receives_its_number(void *arg) {
    int item = -1, got = coil_shared_chan_recv(&queue.c, &item);
    return got == 1 && item == *(int *)arg ? 0 : -EIO;
}

/* A task that has been given the worker, and has given it back, waits: so the next one may come. */
static int stands_in_line(void *arg) {
    coil_task t[IN_LINE];
    int first = *(int *)arg, bad = 0;
    for (int i = first; i < IN_LINE; i += 2) {
        while (atomic_load(&queue.turn) != i)
            coil_sleep(coil_us(20));
        t[i] = spawn(receives_its_number, &queue.number[i]);
        coil_yield();
        atomic_store(&queue.turn, i + 1);
    }
    for (int i = first; i < IN_LINE; i += 2)
        bad |= join(t[i]);
    return bad;
}

Test(shared, items_go_to_tasks_of_all_workers_in_the_order_of_coming) {
    struct side a, b;
    for (int i = 0; i < IN_LINE; i++)
        queue.number[i] = i;
    cr_assert_eq(coil_shared_chan_open(&queue.c, sizeof(int), 2), 0);
    side_begin(&a, stands_in_line, &queue.number[0], false);
    side_begin(&b, stands_in_line, &queue.number[1], false);
    while (atomic_load(&queue.turn) != IN_LINE)
        sched_yield();
    for (int i = 0; i < IN_LINE; i++)
        cr_assert_eq(coil_shared_chan_trysend(&queue.c, &i), 0);
    cr_assert_eq(side_end(&a), 0);
    cr_assert_eq(side_end(&b), 0);
    coil_shared_chan_destroy(&queue.c);
}

static int counts_as_told(void *arg) {
    int item = 0, got = coil_shared_chan_recv(&queue.c, &item);
    (void)arg;
    return got == 0 ? 0 : -EIO;
}

static int many_wait_for_a_close(void *arg) {
    coil_task t[10];
    int bad = 0;
    for (int i = 0; i < 10; i++)
        t[i] = spawn(counts_as_told, arg);
    coil_yield();
    atomic_fetch_add(&queue.turn, 1);
    for (int i = 0; i < 10; i++)
        bad |= join(t[i]);
    return bad;
}

Test(shared, a_close_reaches_waiters_of_all_workers_and_threads) {
    struct side s[3];
    cr_assert_eq(coil_shared_chan_open(&queue.c, sizeof(int), 0), 0);
    side_begin(&s[0], many_wait_for_a_close, NULL, false);
    side_begin(&s[1], many_wait_for_a_close, NULL, false);
    side_begin(&s[2], counts_as_told, NULL, true);
    while (atomic_load(&queue.turn) != 2)
        sched_yield();
    coil_shared_chan_close(&queue.c);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(side_end(&s[i]), 0, "%d", i);
    coil_shared_chan_destroy(&queue.c);
}

/* ---- a cancel or a limit against another thread's hand-over ---- */

enum { PERMIT, RECEIVE, SEND, KINDS };

struct race {
    coil_shared_sem sem;
    coil_shared_chan full, none; /* of capacity 1 and 0 */
    atomic_int began, over;      /* rounds, of the worker and of the other thread */
    int rounds, kind, limit_us, spins;
    int given; /* what the other thread's call returned */
    int sent, item;
};

static int waits_in_race(void *arg) {
    struct race *r = arg;
    coil_scope s = coil_within(r->limit_us < 0 ? COIL_FOREVER : coil_us(r->limit_us));
    int result = -1;
    if (r->kind == PERMIT) result = coil_shared_sem_acquire(&r->sem, 1);
    if (r->kind == RECEIVE) result = coil_shared_chan_recv(&r->full, &r->item);
    if (r->kind == SEND) result = coil_shared_chan_send(&r->none, &r->sent);
    coil_leave(&s);
    return result;
}

static void *hands_over(void *arg) {
    struct race *r = arg;
    for (int i = 1; i <= r->rounds; i++) {
        while (atomic_load(&r->began) != i)
            sched_yield();
        spin(r->spins);
        r->given = 0;
        if (r->kind == PERMIT) coil_shared_sem_release(&r->sem, 1);
        if (r->kind == RECEIVE) r->given = coil_shared_chan_trysend(&r->full, &r->sent);
        if (r->kind == SEND) r->given = coil_shared_chan_tryrecv(&r->none, &r->item);
        atomic_store(&r->over, i);
    }
    return NULL;
}

/* What was handed over was either received, or is still there. */
static void check_outcome(struct race *r, int i, int result) {
    bool got = result >= 0, item = false;
    cr_expect(got || result == (r->limit_us < 0 ? -ECANCELED : -ETIME), "%d: %d", i, result);
    if (r->kind == PERMIT) cr_expect_eq(coil_shared_sem_tryacquire(&r->sem, 1), got ? -EAGAIN : 0, "%d", i);
    if (r->kind == RECEIVE) {
        cr_expect_eq(r->given, 0);
        cr_expect_eq(coil_shared_chan_tryrecv(&r->full, &r->item), got ? -EAGAIN : 1, "%d", i);
        item = true;
    }
    if (r->kind == SEND) {
        cr_expect_eq(r->given, got ? 1 : -EAGAIN, "%d", i);
        item = got;
    }
    if (item) cr_expect_eq(r->item, i, "another item");
}

static int races(void *arg) {
    struct race *r = arg;
    for (int i = 1; i <= r->rounds; i++) {
        r->kind = i % KINDS;
        r->limit_us = i / KINDS % 2 ? i / 6 % 30 : -1;
        r->spins = i / 8 % 50 * 20;
        r->sent = i;
        coil_task t = spawn(waits_in_race, r);
        coil_yield();
        atomic_store(&r->began, i);
        spin(i / 8 % 53 * 20);
        if (r->limit_us < 0) cr_expect_eq(coil_cancel(t), 0);
        int result = join(t);
        while (atomic_load(&r->over) != i)
            sched_yield();
        check_outcome(r, i, result);
    }
    return 0;
}

Test(shared, cancels_and_limits_race_with_hand_overs) {
    static struct race r;
    pthread_t thread;
    r.rounds = check_thread_rounds(20000);
    cr_assert_eq(coil_shared_chan_open(&r.full, sizeof(int), 1), 0);
    cr_assert_eq(coil_shared_chan_open(&r.none, sizeof(int), 0), 0);
    cr_assert_eq(pthread_create(&thread, NULL, hands_over, &r), 0);
    cr_assert_eq(run(races, &r), 0);
    pthread_join(thread, NULL);
    coil_shared_chan_destroy(&r.full);
    coil_shared_chan_destroy(&r.none);
}

/* ---- an object that its waiter frees ---- */

struct brief {
    _Atomic(coil_shared_sem *) sem;
    _Atomic(coil_shared_event *) event;
    int rounds;
};

static int waits_and_frees(void *arg) {
    struct brief *b = arg;
    int err = 0;
    for (int i = 0; i < b->rounds && !err; i++) {
        coil_shared_sem *s = calloc(1, sizeof *s);
        coil_shared_event *e = calloc(1, sizeof *e);
        if (!s || !e) abort();
        atomic_store(&b->sem, s);
        err = coil_shared_sem_acquire(s, 1);
        memset(s, 0xff, sizeof *s);
        free(s);
        atomic_store(&b->event, e);
        if (!err) err = coil_shared_event_wait(e);
        memset(e, 0xff, sizeof *e);
        free(e);
    }
    return err;
}

static void *gives_once(void *arg) {
    struct brief *b = arg;
    for (int i = 0; i < b->rounds; i++) {
        coil_shared_sem *s;
        coil_shared_event *e;
        while (!(s = atomic_exchange(&b->sem, NULL)))
            sched_yield();
        spin(i % 8 * 50);
        coil_shared_sem_release(s, 1);
        while (!(e = atomic_exchange(&b->event, NULL)))
            sched_yield();
        spin(i % 8 * 50);
        coil_shared_event_set(e);
    }
    return NULL;
}

Test(shared, who_was_woken_may_free_the_object_at_once) {
    for (int plain = 0; plain < 2; plain++) {
        struct brief b = {.rounds = check_thread_rounds(3000)};
        struct side s;
        side_begin(&s, waits_and_frees, &b, plain);
        gives_once(&b);
        cr_assert_eq(side_end(&s), 0);
    }
}

/* A run that ends as soon as its only waiter was woken. */
static int waits_once(void *arg) {
    struct brief *b = arg;
    coil_shared_sem s = {{0}};
    atomic_store(&b->sem, &s);
    return coil_shared_sem_acquire(&s, 1);
}

Test(shared, a_run_may_end_while_it_is_being_woken) {
    struct brief b = {.rounds = check_rounds(200)};
    int fds = check_fd_count();
    for (int i = 0; i < b.rounds; i++) {
        struct side s;
        coil_shared_sem *sem;
        side_begin(&s, waits_once, &b, false);
        while (!(sem = atomic_exchange(&b.sem, NULL)))
            sched_yield();
        coil_shared_sem_release(sem, 1);
        cr_assert_eq(side_end(&s), 0);
    }
    cr_assert_eq(check_fd_count(), fds);
}

/* ---- the pool, deadlocks, forks ---- */

static int sets_on_a_thread(void *arg) {
    coil_shared_event *e = arg;
    coil_shared_event_set(&e[0]);
    return coil_shared_event_wait(&e[1]);
}

static int calls_the_pool(void *arg) {
    return coil_blocking(sets_on_a_thread, arg, NULL);
}

static int meets_a_thread(void *arg) {
    static coil_shared_event e[2];
    (void)arg;
    coil_task t = spawn(calls_the_pool, e);
    cr_expect_eq(coil_shared_event_wait(&e[0]), 0);
    coil_shared_event_set(&e[1]);
    return join(t);
}

Test(shared, a_function_on_the_pool_meets_a_task) {
    cr_assert_eq(run(meets_a_thread, NULL), 0);
}

static int waits_alone(void *arg) {
    return coil_shared_event_wait(arg);
}

Test(shared, a_wait_for_another_thread_is_no_deadlock) {
    static coil_shared_event e;
    struct side s;
    side_begin(&s, waits_alone, &e, false);
    usleep(20000); /* for a detector that would strike */
    coil_shared_event_set(&e);
    cr_assert_eq(side_end(&s), 0);
}

static atomic_bool storm_over;

static void *storms(void *arg) {
    while (!atomic_load(&storm_over)) {
        coil_shared_event_set(arg);
        coil_shared_event_clear(arg);
    }
    return NULL;
}

Test(shared, a_forked_child_uses_objects_of_its_own) {
    static coil_shared_event busy[4], own[256];
    pthread_t thread[4];
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&thread[i], NULL, storms, &busy[i]), 0);
    for (int i = 0; i < 50; i++) {
        int status = -1;
        pid_t pid = fork();
        if (pid == 0) {
            alarm(20);
            for (int k = 0; k < 256; k++) /* so many that each lock has some */
                coil_shared_event_set(&own[k]);
            COIL_SHARED_SEM(s, 1);
            _exit(coil_shared_sem_acquire(&s, 1));
        }
        cr_assert_gt(pid, 0);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        cr_assert_eq(status, 0, "%#x", (unsigned)status);
    }
    atomic_store(&storm_over, true);
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
}

static int sets_in_a_child(void *e) {
    coil_shared_event_set(e);
    return 0;
}

static int tries_in_a_child(void *s) {
    return coil_shared_sem_tryacquire(s, 1);
}

static int forks_inside(void *arg) {
    static coil_shared_event e;
    static coil_shared_sem s;
    (void)arg;
    cr_expect(
        check_aborts(sets_in_a_child, &e, "coil: coil_shared_event_set: called in a child forked inside"));
    cr_expect(
        check_aborts(tries_in_a_child, &s, "coil: coil_shared_sem_tryacquire: called in a child forked"));
    return 0;
}

Test(shared, in_a_child_forked_inside_a_task_a_call_stops_with_its_name) {
    cr_assert_eq(coil_run(forks_inside, NULL), 0);
}

static int signals_without_items(void *arg) {
    coil_shared_chan c;
    (void)arg;
    cr_expect_eq(coil_shared_chan_open(&c, 0, 2), 0);
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_shared_chan_send(&c, NULL), 0);
    cr_expect_eq(coil_shared_chan_trysend(&c, NULL), -EAGAIN);
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_shared_chan_recv(&c, NULL), 1);
    cr_expect_eq(coil_shared_chan_tryrecv(&c, NULL), -EAGAIN);
    coil_shared_chan_destroy(&c);
    return 0;
}

Test(shared, items_of_no_size_are_counted) {
    cr_assert_eq(coil_run(signals_without_items, NULL), 0);
}
