/* Many tasks at once: started and joined, cancelled, out of time; and locks whose holder is cancelled. */
#include "stream_pairs.h"

/* ---- one after the other ---- */

static int gives_back(void *arg) {
    return (int)(intptr_t)arg;
}

static int spawns_and_joins(void *arg) {
    int rounds = check_rounds(100000), result;
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        coil_task t;
        int err = coil_spawn(&t, gives_back, (void *)(intptr_t)i);
        if (!err) err = coil_join(t, &result);
        cr_expect(!err && result == i, "round %d: %d, %d", i, err, result);
        if (err || result != i) break;
    }
    coil_stats s;
    coil_stats_get(&s);
    cr_expect_leq(s.tasks_peak, 2, "%d", (int)s.tasks_peak);
    return 0;
}

Test(flow_crowds, a_hundred_thousand_spawns_and_joins_in_a_loop) {
    cr_assert_eq(coil_run(spawns_and_joins, NULL), 0); /* what is made once is made */
    int maps = check_map_count();
    cr_assert_eq(coil_run(spawns_and_joins, NULL), 0);
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps + 2);
}

/* ---- all kinds of waits, ended all at once ---- */

struct place {
    coil_mutex m, of_cond;
    coil_rwlock rw;
    coil_cond cond;
    coil_sem sem;
    coil_event event;
    coil_barrier barrier;
    coil_waitgroup wg;
    coil_chan empty, full;
    coil_task sleeper;
    int fd[2];
    int waiting, results[2]; /* how many gave -ECANCELED, and -ETIME */
    int64_t limit_ns;
    int done;
};

static int on_mutex(struct place *p) {
    return coil_mutex_lock(&p->m);
}

static int on_reading(struct place *p) {
    return coil_rwlock_rdlock(&p->rw);
}

static int on_writing(struct place *p) {
    return coil_rwlock_wrlock(&p->rw);
}

/* It has the mutex again in any case. */
static int on_condition(struct place *p) {
    int err = coil_mutex_lock(&p->of_cond);
    if (err) return err;
    err = coil_cond_wait(&p->cond, &p->of_cond);
    coil_mutex_unlock(&p->of_cond);
    return err;
}

static int on_semaphore(struct place *p) {
    return coil_sem_acquire(&p->sem, 1);
}

static int on_event(struct place *p) {
    return coil_event_wait(&p->event);
}

static int on_barrier(struct place *p) {
    return coil_barrier_wait(&p->barrier);
}

static int on_waitgroup(struct place *p) {
    return coil_waitgroup_wait(&p->wg);
}

static int on_empty_channel(struct place *p) {
    int item;
    return coil_chan_recv(&p->empty, &item);
}

static int on_full_channel(struct place *p) {
    int item = 1;
    return coil_chan_send(&p->full, &item);
}

static int on_sleep(struct place *p) {
    (void)p;
    return coil_sleep(COIL_FOREVER);
}

static int on_join(struct place *p) {
    return coil_join(p->sleeper, NULL);
}

static int on_select(struct place *p) {
    int item, one = 1;
    coil_case cases[] = {coil_on_recv(&p->empty, &item), coil_on_send(&p->full, &one),
                         coil_on_event(&p->event), coil_on_sem(&p->sem, 1), coil_on_join(p->sleeper)};
    return coil_select(cases, ARRAY_SIZE(cases));
}

static int sleeps_for_ever(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

static int on_group(struct place *p) {
    (void)p;
    COIL_GROUP(g);
    int err = coil_group_spawn(&g, sleeps_for_ever, NULL);
    return err ? err : coil_group_wait(&g);
}

static int on_gather(struct place *p) {
    (void)p;
    coil_job job = {sleeps_for_ever, NULL, 0};
    return coil_gather(&job, 1);
}

static int on_descriptor(struct place *p) {
    int ready = coil_poll(p->fd[0], POLLIN);
    return ready > 0 ? -EPROTO : ready;
}

typedef int wait_fn(struct place *p);

static wait_fn *const waits[] = {on_mutex,         on_reading,      on_writing, on_condition,
                                 on_semaphore,     on_event,        on_barrier, on_waitgroup,
                                 on_empty_channel, on_full_channel, on_sleep,   on_join,
                                 on_select,        on_group,        on_gather,  on_descriptor};

static int waits_somewhere(void *arg) {
    struct place *p = arg;
    int which = p->waiting++;
    coil_scope limit = coil_until((coil_time){p->limit_ns});
    int err = waits[(size_t)which % ARRAY_SIZE(waits)](p);
    coil_leave(&limit);
    p->results[0] += err == -ECANCELED;
    p->results[1] += err == -ETIME;
    cr_expect(err == -ECANCELED || err == -ETIME, "%d: %s", which % (int)ARRAY_SIZE(waits),
              coil_strerror(err));
    p->done++;
    return 0;
}

/* Whatever is waited for can't be had. */
static void furnish(struct place *p, int tasks) {
    int item = 0;
    *p = (struct place){.limit_ns = COIL__NEVER};
    p->barrier = (coil_barrier)COIL_BARRIER_INIT((unsigned)tasks + 1);
    cr_expect_eq(coil_mutex_lock(&p->m), 0);
    cr_expect_eq(coil_rwlock_wrlock(&p->rw), 0);
    coil_waitgroup_add(&p->wg, 1);
    cr_expect_eq(coil_chan_open(&p->empty, sizeof item, 0), 0);
    cr_expect_eq(coil_chan_open(&p->full, sizeof item, 1), 0);
    cr_expect_eq(coil_chan_trysend(&p->full, &item), 0);
    make_pair(UNIX_PAIR, p->fd);
    p->sleeper = spawn(sleeps_for_ever, NULL);
}

/* Nobody waits for any of it any more, and nothing was handed to those who went. */
static void clear(struct place *p) {
    int item = -1;
    coil_mutex_unlock(&p->m);
    coil_rwlock_unlock(&p->rw);
    coil_waitgroup_done(&p->wg);
    cr_expect_eq(coil_mutex_trylock(&p->m), 0);
    cr_expect_eq(coil_rwlock_trywrlock(&p->rw), 0);
    cr_expect_eq(coil_mutex_trylock(&p->of_cond), 0);
    coil_mutex_unlock(&p->m);
    coil_rwlock_unlock(&p->rw);
    coil_mutex_unlock(&p->of_cond);
    coil_sem_release(&p->sem, 1);
    cr_expect_eq(coil_sem_tryacquire(&p->sem, 1), 0);
    cr_expect_eq(coil_chan_tryrecv(&p->full, &item), 1);
    cr_expect_eq(item, 0);
    cr_expect_eq(coil_chan_tryrecv(&p->full, &item), -EAGAIN, "an item of somebody who was refused");
    cr_expect_eq(coil_chan_tryrecv(&p->empty, &item), -EAGAIN);
    coil_chan_destroy(&p->empty);
    coil_chan_destroy(&p->full);
    coil_cancel(p->sleeper);
    cr_expect_eq(join(p->sleeper), -ECANCELED);
    close(p->fd[0]);
    close(p->fd[1]);
}

struct crowd {
    int tasks;
    bool by_limit;
};

static int ends_a_crowd(void *arg) {
    const struct crowd *c = arg;
    struct place p;
    furnish(&p, c->tasks);
    COIL_GROUP(g);
    for (int i = 0; i < c->tasks; i++) {
        int err = coil_group_spawn(&g, waits_somewhere, &p);
        cr_expect_eq(err, 0, "%d: %s", i, coil_strerror(err));
        if (err) break;
    }
    /* Each takes the limit when it begins, and waits when the last one has begun. */
    if (c->by_limit) p.limit_ns = coil_after(coil_ms(50)).ns;
    while (p.waiting < c->tasks)
        coil_yield();
    turns(3);
    if (!c->by_limit) coil_group_cancel(&g);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(p.done, c->tasks);
    cr_expect_eq(p.results[c->by_limit], c->tasks, "%d cancelled, %d out of time", p.results[0],
                 p.results[1]);
    clear(&p);
    coil_stats s;
    coil_stats_get(&s);
    cr_expect_eq(s.tasks_now, 1);
    return 0;
}

static void check_crowd(int tasks, bool by_limit) {
    struct crowd c = {.tasks = tasks, .by_limit = by_limit};
    cr_assert_eq(coil_run(ends_a_crowd, &c), 0); /* what is made once is made */
    int fds = check_fd_count(), maps = check_map_count();
    cr_assert_eq(coil_run(ends_a_crowd, &c), 0);
    cr_expect_eq(check_fd_count(), fds);
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps + 2);
}

Test(flow_crowds, ten_thousand_waits_of_all_kinds_are_cancelled_at_once) {
    check_crowd(check_rounds(CHECK_SANITIZED ? 5000 : 10000), false);
}

Test(flow_crowds, a_thousand_waits_of_all_kinds_run_out_of_time_at_once) {
    check_crowd(1000, true);
}

Test(flow_crowds, ten_thousand_waits_of_all_kinds_run_out_of_time_at_once) {
    check_crowd(check_rounds(CHECK_SANITIZED ? 5000 : 10000), true);
}

/* ---- a hundred thousand of one kind ---- */

static int waits_for_the_event(void *arg) {
    struct place *p = arg;
    coil_scope limit = coil_until((coil_time){p->limit_ns});
    int err = coil_event_wait(&p->event);
    cr_expect(coil_leave(&limit));
    p->results[1] += err == -ETIME;
    return 0;
}

static int runs_out_of_time(void *arg) {
    const int *tasks = arg;
    struct place p = {0};
    COIL_GROUP(g);
    for (int i = 0; i < *tasks; i++) {
        int err = coil_group_spawn(&g, waits_for_the_event, &p);
        cr_expect_eq(err, 0, "%d: %s", i, coil_strerror(err));
        if (err) break;
    }
    p.limit_ns = coil_after(coil_ms(200)).ns;
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(p.results[1], *tasks);
    return 0;
}

Test(flow_crowds, a_hundred_thousand_tasks_run_out_of_time_at_once) {
    int tasks = check_rounds(CHECK_SANITIZED ? 20000 : 100000);
    cr_assert_eq(coil_run(runs_out_of_time, &tasks), 0);
}

/* ---- a holder that is cancelled ---- */

struct held {
    const char *what;
    int (*take)(struct place *p);
    void (*give)(struct place *p);
};

static int takes_permit(struct place *p) {
    return coil_sem_acquire(&p->sem, 1);
}

static void gives_permit(struct place *p) {
    coil_sem_release(&p->sem, 1);
}

static void unlocks_mutex(struct place *p) {
    coil_mutex_unlock(&p->m);
}

static void unlocks_rwlock(struct place *p) {
    coil_rwlock_unlock(&p->rw);
}

static const struct held held[] = {{"mutex", on_mutex, unlocks_mutex},
                                   {"rwlock, writing", on_writing, unlocks_rwlock},
                                   {"rwlock, reading", on_reading, unlocks_rwlock},
                                   {"semaphore", takes_permit, gives_permit}};

struct holding {
    struct place p;
    const struct held *h;
    bool holds;
};

/* What it took it gives back although it is cancelled: giving back is never refused. */
static int holds_until_cancelled(void *arg) {
    struct holding *h = arg;
    cr_expect_eq(h->h->take(&h->p), 0);
    h->holds = true;
    cr_expect_eq(coil_sleep(COIL_FOREVER), -ECANCELED);
    cr_expect(coil_cancelled());
    h->holds = false;
    h->h->give(&h->p);
    return 0;
}

static int takes_after_it(void *arg) {
    struct holding *h = arg;
    /* Readers share. */
    wait_fn *take = h->h->take == on_reading ? on_writing : h->h->take;
    int err = take(&h->p);
    cr_expect_eq(err, 0, "%s: %s", h->h->what, coil_strerror(err));
    cr_expect_not(h->holds, "%s: two have it", h->h->what);
    if (!err) h->h->give(&h->p);
    return err;
}

static int cancels_a_holder(void *arg) {
    (void)arg;
    for (size_t i = 0; i < ARRAY_SIZE(held); i++) {
        struct holding h = {.h = &held[i]};
        coil_sem_release(&h.p.sem, 1);
        coil_task holder = spawn(holds_until_cancelled, &h);
        coil_yield();
        coil_task next = spawn(takes_after_it, &h), after = spawn(takes_after_it, &h);
        coil_yield();
        cr_expect_eq(coil_cancel(holder), 0);
        cr_expect_eq(join(holder), 0);
        cr_expect_eq(join(next), 0);
        cr_expect_eq(join(after), 0);
    }
    return 0;
}

Test(flow_crowds, a_holder_that_is_cancelled_gives_back_and_the_next_in_line_has_it) {
    cr_assert_eq(coil_run(cancels_a_holder, NULL), 0);
}
