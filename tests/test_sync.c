/* Mutexes, reader-writer locks and conditions. */
#include "sync_waits.h"

#include <pthread.h>
#include <stdlib.h>

/* ---- as something to wait for ---- */

static coil_mutex mutex;
static coil_rwlock lock;
static coil_cond cond;
static coil_mutex cond_mutex;
static int inside; /* tasks that hold what only one may hold */

static void nothing(void) {
}

static void mutex_block(void) {
    cr_expect_eq(coil_mutex_lock(&mutex), 0);
}

static int mutex_wait(void) {
    int err = coil_mutex_lock(&mutex);
    if (!err) cr_expect_eq(++inside, 1, "two tasks own the mutex");
    return err;
}

static void mutex_give(void) {
    coil_mutex_unlock(&mutex);
}

static void mutex_done(void) {
    inside--;
    coil_mutex_unlock(&mutex);
}

static bool mutex_is_idle(void) {
    if (coil_mutex_trylock(&mutex)) return false;
    coil_mutex_unlock(&mutex);
    return true;
}

static void write_block(void) {
    cr_expect_eq(coil_rwlock_wrlock(&lock), 0);
}

static void read_block(void) {
    cr_expect_eq(coil_rwlock_rdlock(&lock), 0);
}

static int write_wait(void) {
    int err = coil_rwlock_wrlock(&lock);
    if (!err) cr_expect_eq(++inside, 1, "a writer is not alone");
    return err;
}

static int read_wait(void) {
    int err = coil_rwlock_rdlock(&lock);
    if (!err) cr_expect_eq(inside, 0, "a reader beside a writer");
    return err;
}

static void lock_give(void) {
    coil_rwlock_unlock(&lock);
}

static void write_done(void) {
    inside--;
    coil_rwlock_unlock(&lock);
}

static bool lock_is_idle(void) {
    if (coil_rwlock_trywrlock(&lock)) return false;
    coil_rwlock_unlock(&lock);
    return true;
}

static bool signalled;

static int cond_wait(void) {
    int err = coil_mutex_lock(&cond_mutex);
    if (err) return err;
    if (!signalled) err = coil_cond_wait(&cond, &cond_mutex);
    coil_mutex_unlock(&cond_mutex);
    return err;
}

static void cond_block(void) {
    signalled = false;
}

static void cond_give(void) {
    signalled = true;
    coil_cond_broadcast(&cond);
}

static bool cond_is_idle(void) {
    static const coil_cond zero;
    if (coil_mutex_trylock(&cond_mutex)) return false;
    coil_mutex_unlock(&cond_mutex);
    signalled = true;
    return !memcmp(&cond, &zero, 2 * sizeof zero.opaque[0]);
}

static struct waitable kinds[] = {
    {"mutex", mutex_block, mutex_wait, mutex_give, mutex_done, mutex_is_idle},
    {"writer behind a writer", write_block, write_wait, lock_give, write_done, lock_is_idle},
    {"writer behind a reader", read_block, write_wait, lock_give, write_done, lock_is_idle},
    {"reader behind a writer", write_block, read_wait, lock_give, lock_give, lock_is_idle},
    {"condition", cond_block, cond_wait, cond_give, nothing, cond_is_idle},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

TaskTest(sync, a_cancelled_or_expired_task_is_refused_and_nothing_is_locked) {
    signalled = true;
    for (int k = 0; k < KINDS; k++)
        check_refusals(&kinds[k]);
    return 0;
}

WAITABLE_TESTS(sync, kinds)

static int uses_everything(void *arg) {
    size_t heap = check_heap_bytes();
    (void)arg;
    for (int k = 0; k < KINDS; k++) {
        kinds[k].block();
        kinds[k].give();
        cr_expect(kinds[k].is_idle());
    }
    cr_expect_eq(check_heap_bytes(), heap, "they allocate nothing");
    return 0;
}

Test(sync, nothing_is_left_behind) {
    cr_assert_eq(coil_run(uses_everything, NULL), 0);
    int fds = check_fd_count(), maps = check_map_count();
    cr_assert_eq(coil_run(uses_everything, NULL), 0);
    cr_assert_eq(check_fd_count(), fds);
    if (!CHECK_SANITIZED) cr_assert_leq(check_map_count(), maps + 8);
}

/* ---- what is special to one of them ---- */

TaskTest(sync, locking_again_is_an_error_value) {
    cr_expect_eq(coil_mutex_lock(&mutex), 0);
    cr_expect_eq(coil_mutex_lock(&mutex), -EDEADLK);
    cr_expect_eq(coil_mutex_trylock(&mutex), -EBUSY);
    coil_mutex_unlock(&mutex);
    cr_expect_eq(coil_rwlock_wrlock(&lock), 0);
    cr_expect_eq(coil_rwlock_wrlock(&lock), -EDEADLK);
    cr_expect_eq(coil_rwlock_rdlock(&lock), -EDEADLK);
    cr_expect_eq(coil_rwlock_tryrdlock(&lock), -EBUSY);
    cr_expect_eq(coil_rwlock_trywrlock(&lock), -EBUSY);
    coil_rwlock_unlock(&lock);
    cr_expect_eq(coil_rwlock_rdlock(&lock), 0);
    cr_expect_eq(coil_rwlock_wrlock(&lock), -EDEADLK, "it would wait for itself");
    cr_expect_eq(coil_rwlock_trywrlock(&lock), -EBUSY);
    cr_expect_eq(coil_rwlock_tryrdlock(&lock), 0);
    coil_rwlock_unlock(&lock);
    coil_rwlock_unlock(&lock);
    return 0;
}

TaskTest(sync, an_idle_one_may_be_moved) {
    coil_rwlock l2;
    check_order(&kinds[0]);
    coil_mutex m = mutex;
    memset(&mutex, 0xee, sizeof mutex);
    mutex = m;
    check_order(&kinds[0]);
    check_order(&kinds[1]);
    l2 = lock;
    memset(&lock, 0xee, sizeof lock);
    lock = l2;
    check_order(&kinds[3]);
    check_order(&kinds[4]);
    coil_cond c = cond;
    memset(&cond, 0xee, sizeof cond);
    cond = c;
    check_order(&kinds[4]);
    return 0;
}

static int holds_until_cancelled(void *arg) {
    coil_mutex *m = arg;
    int err = coil_mutex_lock(m);
    if (err) return err;
    err = coil_sleep(COIL_FOREVER);
    coil_mutex_unlock(m);
    return err;
}

TaskTest(sync, an_owner_that_is_cancelled_can_still_unlock) {
    coil_mutex m = {{0}};
    coil_task t = spawn(holds_until_cancelled, &m);
    coil_yield();
    cr_expect_eq(coil_mutex_trylock(&m), -EBUSY);
    coil_cancel(t);
    cr_expect_eq(coil_mutex_lock(&m), 0);
    coil_mutex_unlock(&m);
    cr_expect_eq(join(t), -ECANCELED);
    return 0;
}

static int ends_with_it(void *arg) {
    return coil_mutex_lock(arg);
}

static int locks_what_an_ended_task_owns(void *arg) {
    join(spawn(ends_with_it, arg));
    return coil_mutex_lock(arg);
}

Test(sync, an_owner_that_ends_leaves_it_locked_until_its_run_has_ended) {
    static coil_mutex m;
    coil_run_opts o = {.quiet = true};
    cr_assert_eq(coil_run_with(&o, locks_what_an_ended_task_owns, &m), -EDEADLK);
    cr_assert_eq(coil_run(ends_with_it, &m), 0, "the next run may have it");
    cr_assert_eq(coil_run(ends_with_it, &m), 0);
}

static struct {
    char text[32];
    size_t n;
} story;

static int reads(void *arg) {
    (void)arg;
    cr_expect_eq(coil_rwlock_rdlock(&lock), 0);
    story.text[story.n++] = 'r';
    for (int i = 0; i < 4; i++)
        coil_yield();
    story.text[story.n++] = '.';
    coil_rwlock_unlock(&lock);
    return 0;
}

static int writes(void *arg) {
    int err = coil_rwlock_wrlock(&lock);
    (void)arg;
    if (err) return err;
    story.text[story.n++] = 'W';
    coil_yield();
    story.text[story.n++] = '.';
    coil_rwlock_unlock(&lock);
    return 0;
}

TaskTest(sync, readers_go_in_together_and_neither_side_starves) {
    coil_fn *const who[] = {reads, reads, writes, reads, reads, writes, writes, reads};
    coil_task t[8];
    for (int i = 0; i < 8; i++)
        t[i] = spawn(who[i], NULL);
    for (int i = 0; i < 8; i++)
        cr_expect_eq(join(t[i]), 0);
    cr_expect_str_eq(story.text, "rr..W.rr..W.W.r.");
    return 0;
}

TaskTest(sync, behind_a_writer_that_gives_up_readers_join_those_inside) {
    cr_expect_eq(coil_rwlock_rdlock(&lock), 0);
    coil_task w = spawn(writes, NULL), a = spawn(reads, NULL), b = spawn(reads, NULL);
    coil_yield();
    cr_expect_str_eq(story.text, "");
    cr_expect_eq(coil_rwlock_tryrdlock(&lock), -EBUSY, "others are waiting");
    cr_expect_eq(coil_rwlock_rdlock(&lock), -EDEADLK, "the writer waits for this very task");
    coil_cancel(w);
    cr_expect_eq(join(w), -ECANCELED);
    cr_expect_eq(join(a), 0);
    cr_expect_eq(join(b), 0);
    cr_expect_str_eq(story.text, "rr..");
    coil_rwlock_unlock(&lock);
    cr_expect(lock_is_idle());
    return 0;
}

static int waits_for_signal(void *arg) {
    int err = coil_mutex_lock(&cond_mutex);
    if (err) return err;
    err = coil_cond_wait(&cond, &cond_mutex);
    cr_expect_eq(coil_mutex_trylock(&cond_mutex), -EBUSY, "it has the mutex again");
    ++*(int *)arg;
    coil_mutex_unlock(&cond_mutex);
    return err;
}

TaskTest(sync, a_signal_wakes_the_one_that_has_waited_longest_and_is_not_lost) {
    int ran = 0;
    coil_task a = spawn(waits_for_signal, &ran), b = spawn(waits_for_signal, &ran),
              c = spawn(waits_for_signal, &ran);
    coil_cond_signal(&cond);
    coil_yield();
    coil_cancel(a);
    coil_cond_signal(&cond);
    coil_cancel(b);
    cr_expect_eq(join(a), -ECANCELED);
    cr_expect_eq(join(b), 0, "it was signalled before");
    for (int i = 0; i < 10; i++)
        coil_yield();
    cr_expect_eq(ran, 2);
    coil_cond_signal(&cond);
    cr_expect_eq(join(c), 0);
    coil_cond_signal(&cond);
    coil_cond_broadcast(&cond);
    return 0;
}

/* It is cancelled, or signalled, while this task has the mutex, and gets it all the same. */
TaskTest(sync, taking_the_conditions_mutex_again_is_never_refused) {
    for (int how = 0; how < 3; how++) {
        int ran = 0;
        coil_task t = spawn(waits_for_signal, &ran);
        coil_yield();
        cr_expect_eq(coil_mutex_lock(&cond_mutex), 0);
        if (how > 0) coil_cond_signal(&cond);
        if (how != 1) coil_cancel(t);
        for (int i = 0; i < 5; i++)
            coil_yield();
        if (how == 1) coil_cancel(t);
        cr_expect_eq(ran, 0, "this task owns the mutex");
        coil_mutex_unlock(&cond_mutex);
        cr_expect_eq(join(t), how ? 0 : -ECANCELED);
        cr_expect_eq(ran, 1);
    }
    return 0;
}

static int retries_a_refused_wait(void *arg) {
    int *ready = arg, rounds = 0;
    cr_expect_eq(coil_mutex_lock(&cond_mutex), 0);
    coil_cancel(coil_self());
    for (; !*ready && rounds < 1000; rounds++) {
        cr_expect_eq(coil_cond_wait(&cond, &cond_mutex), -ECANCELED);
        cr_expect_eq(coil_mutex_trylock(&cond_mutex), -EBUSY, "it has the mutex again");
    }
    coil_mutex_unlock(&cond_mutex);
    return rounds;
}

TaskTest(sync, a_refused_wait_lets_the_mutex_go_for_the_turn_that_it_gives) {
    int ready = 0;
    coil_task t = spawn(retries_a_refused_wait, &ready);
    int tries = 0;
    coil_yield();
    while (coil_mutex_trylock(&cond_mutex) && tries++ < 1000)
        coil_yield();
    cr_expect_lt(tries, 1000, "it is free while the refused one is away");
    ready = 1;
    coil_mutex_unlock(&cond_mutex);
    cr_expect_lt(join(t), 1000);
    return 0;
}

/* A loop over a lock that is free gives way. */
static int counts_turns(void *arg) {
    while (!coil_yield())
        ++*(int *)arg;
    return 0;
}

TaskTest(sync, one_whose_lock_is_always_free_gives_way_all_the_same) {
    int turns = 0;
    coil_task t = spawn(counts_turns, &turns);
    for (int i = 0; i < 1000; i++) {
        if (mutex_wait() == 0) mutex_done();
    }
    cr_expect_geq(turns, 5);
    coil_cancel(t);
    join(t);
    return 0;
}

/* ---- misuse ---- */

static int unlocks_another_tasks(void *arg) {
    (void)arg;
    spawn(ends_with_it, &mutex);
    coil_yield();
    coil_mutex_unlock(&mutex);
    return 0;
}

static int unlocks_the_free(void *arg) {
    (void)arg;
    if (coil_mutex_lock(&mutex) == 0) coil_mutex_unlock(&mutex);
    coil_mutex_unlock(&mutex);
    return 0;
}

static int waits_without_the_mutex(void *arg) {
    (void)arg;
    coil_cancel(coil_self());
    return coil_cond_wait(&cond, &cond_mutex);
}

static int read_unlocks_the_free(void *arg) {
    (void)arg;
    coil_rwlock_unlock(&lock);
    return 0;
}

static int write_locks(void *arg) {
    (void)arg;
    return coil_rwlock_wrlock(&lock);
}

static int read_locks(void *arg) {
    (void)arg;
    return coil_rwlock_rdlock(&lock);
}

static int unlocks_a_writers(void *arg) {
    (void)arg;
    spawn(write_locks, NULL);
    coil_yield();
    coil_rwlock_unlock(&lock);
    return 0;
}

static int unlocks_a_readers(void *arg) {
    (void)arg;
    spawn(read_locks, NULL);
    coil_yield();
    coil_rwlock_unlock(&lock);
    return 0;
}

static int runs(void *fn) {
    return coil_run(*(coil_fn **)fn, NULL);
}

static void stops(coil_fn *fn, const char *message) {
    cr_assert(check_aborts(runs, &fn, message), "%s", message);
}

Test(sync, misuse_stops_with_the_calls_name) {
    stops(unlocks_another_tasks, "coil_mutex_unlock: called by a task that does not own the mutex");
    stops(unlocks_the_free, "coil_mutex_unlock: the mutex is not locked");
    stops(waits_without_the_mutex, "coil_cond_wait: the mutex is not locked");
    stops(read_unlocks_the_free, "coil_rwlock_unlock: the lock is not locked");
    stops(unlocks_a_writers,
          "coil_rwlock_unlock: called by a task that does not hold it: another one writes");
    stops(unlocks_a_readers, "coil_rwlock_unlock: called by a task that does not hold it, now or at");
}

static int calls_outside(void *arg) {
    (void)arg;
    coil_mutex_unlock(&mutex);
    return 0;
}

Test(sync, a_call_outside_a_task_stops_with_its_name) {
    cr_assert(check_aborts(calls_outside, NULL, "coil_mutex_unlock"));
}

/* ---- two workers ---- */

/* Runs the second function in a run of another thread, while the first one's task holds what it holds. */
static coil_fn *meanwhile;

static void *second_run(void *arg) {
    (void)arg;
    return (void *)(intptr_t)coil_run(meanwhile, NULL);
}

static int in_another_thread(void) {
    pthread_t thread;
    void *result = NULL;
    if (pthread_create(&thread, NULL, second_run, NULL)) abort();
    pthread_join(thread, &result);
    return (int)(intptr_t)result;
}

static int first_has_the_mutex(void *arg) {
    (void)arg;
    int err = coil_mutex_lock(&mutex);
    return err ? err : in_another_thread();
}

static int first_reads(void *arg) {
    (void)arg;
    int err = coil_rwlock_rdlock(&lock);
    return err ? err : in_another_thread();
}

static int first_waits_for_signal(void *arg) {
    int ran = 0;
    (void)arg;
    spawn(waits_for_signal, &ran);
    coil_yield();
    return in_another_thread();
}

static int locks(void *arg) {
    (void)arg;
    return coil_mutex_lock(&mutex);
}

static int tries(void *arg) {
    (void)arg;
    return coil_mutex_trylock(&mutex);
}

static int unlocks(void *arg) {
    (void)arg;
    coil_mutex_unlock(&mutex);
    return 0;
}

static int signals(void *arg) {
    (void)arg;
    coil_cond_signal(&cond);
    return 0;
}

static void stops_meanwhile(coil_fn *first, coil_fn *second, const char *message) {
    meanwhile = second;
    stops(first, message);
}

Test(sync, use_by_another_worker_meanwhile_stops) {
    stops_meanwhile(first_has_the_mutex, locks, "coil_mutex_lock: used by another worker");
    stops_meanwhile(first_has_the_mutex, tries, "coil_mutex_trylock: used by another worker");
    stops_meanwhile(first_has_the_mutex, unlocks, "coil_mutex_unlock: used by another worker");
    stops_meanwhile(first_reads, read_locks, "coil_rwlock_rdlock: used by another worker");
    stops_meanwhile(first_reads, write_locks, "coil_rwlock_wrlock: used by another worker");
    stops_meanwhile(first_reads, read_unlocks_the_free, "coil_rwlock_unlock: used by another worker");
    stops_meanwhile(first_waits_for_signal, signals, "coil_cond_signal: used by another worker");
}

static int uses_all_then_lets_another(void *arg) {
    for (int k = 0; k < KINDS; k++)
        check_order(&kinds[k]);
    return arg ? 0 : in_another_thread();
}

static int uses_all(void *arg) {
    (void)arg;
    return uses_all_then_lets_another(&mutex);
}

Test(sync, another_worker_may_have_what_is_idle) {
    meanwhile = uses_all;
    cr_assert_eq(coil_run(uses_all_then_lets_another, NULL), 0);
    cr_assert_eq(coil_run(locks, NULL), 0);
    cr_assert_eq(coil_run(write_locks, NULL), 0, "and it ends with both");
    cr_assert_eq(coil_run(uses_all, NULL), 0, "a run that has ended holds nothing");
}
