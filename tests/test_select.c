/* Select: of several cases exactly one happens, and nothing is lost by the others. */
#include "worker.h"

#include "tasks.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void run(coil_fn *fn) {
    cr_assert_eq(coil_run(fn, NULL), 0);
}

/* A repeatable choice below n. */
static uint32_t chance(uint32_t n) {
    static uint64_t state = 54321;
    state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)((state >> 33) % n);
}

static struct coil__worker *worker(void) {
    return coil__worker_of(coil__here);
}

/* A select in a task of its own. */
struct choice {
    coil_case *cases;
    size_t n;
    coil_dur limit; /* zero: none */
    int got, next;
    bool done, struck;
};

static int chooses(void *arg) {
    struct choice *k = arg;
    coil_scope s = coil_within(k->limit.ns ? k->limit : COIL_FOREVER);
    k->got = coil_select(k->cases, k->n);
    k->struck = coil_leave(&s);
    k->done = true;
    k->next = coil_yield();
    return k->got;
}

static int returns_arg(void *arg) {
    return (int)(intptr_t)arg;
}

static int sleeps(void *arg) {
    (void)arg;
    return coil_sleep(COIL_FOREVER);
}

static int put(coil_chan *c, int item) {
    return coil_chan_trysend(c, &item);
}

/* The item that can be had now; -1: there is none. */
static int take(coil_chan *c) {
    int item = -1;
    return coil_chan_tryrecv(c, &item) == 1 ? item : -1;
}

static void make_pipe(int fd[2]) {
    cr_assert_eq(pipe2(fd, O_CLOEXEC | O_NONBLOCK), 0);
}

static void close_pipe(const int fd[2]) {
    close(fd[0]);
    close(fd[1]);
}

/* ---- what it refuses ---- */

static int given_badly(void *arg) {
    int item;
    (void)arg;
    coil_case none = {0}, bad[] = {{0},
                                   coil_on_recv(NULL, &item),
                                   coil_on_send(NULL, &item),
                                   coil_on_event(NULL),
                                   coil_on_sem(NULL, 1),
                                   coil_on_ready(0, 0)};
    cr_expect_eq(coil_select(NULL, 0), -EINVAL);
    cr_expect_eq(coil_select(NULL, 1), -EINVAL);
    cr_expect_eq(coil_select(&none, 0), -EINVAL);
    cr_expect_eq(coil_select_now(NULL, 1), -EINVAL);
    cr_expect_eq(coil_select_now(&none, (size_t)INT32_MAX + 1), -EINVAL);
    COIL_CHAN(c, int, 1);
    cr_expect_eq(put(&c, 1), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        coil_case both[] = {coil_on_recv(&c, &item), bad[i]};
        cr_expect_eq(coil_select(both, 2), -EINVAL, "%zu", i);
        cr_expect_eq(coil_select_now(both, 2), -EINVAL, "%zu", i);
    }
    cr_expect_eq(take(&c), 1, "nothing has happened");
    return 0;
}

Test(select, without_cases_or_with_a_bad_one_it_gives_einval) {
    run(given_badly);
}

static int refused(void *arg) {
    int item = 0;
    (void)arg;
    COIL_CHAN(c, int, 1);
    coil_case k = coil_on_send(&c, &item);
    coil_scope s = coil_within(coil_ns(0));
    cr_expect_eq(coil_select(&k, 1), -ETIME);
    cr_expect(coil_leave(&s));
    coil_cancel(coil_self());
    cr_expect_eq(coil_select(&k, 1), -ECANCELED);
    cr_expect_eq(take(&c), -1);
    cr_expect_eq(coil_select_now(&k, 1), 0, "this one is not");
    cr_expect_eq(take(&c), 0);
    return 0;
}

Test(select, is_refused_to_the_cancelled_and_late) {
    run(refused);
}

/* ---- channels ---- */

static int at_once(void *arg) {
    int got = 0, item = 5;
    (void)arg;
    COIL_CHAN(empty, int, 1);
    COIL_CHAN(full, int, 1);
    cr_expect_eq(put(&full, 4), 0);
    coil_case k[] = {coil_on_recv(&empty, &got), coil_on_send(&full, &item)};
    cr_expect_eq(coil_select_now(k, 2), -EAGAIN);
    coil_case r[] = {coil_on_recv(&empty, &got), coil_on_recv(&full, &got)};
    cr_expect_eq(coil_select(r, 2), 1);
    cr_expect_eq(r[1].result, 1);
    cr_expect_eq(got, 4);
    cr_expect_eq(coil_select_now(r, 2), -EAGAIN);
    cr_expect_eq(coil_select(k, 2), 1);
    cr_expect_eq(k[1].result, 0);
    cr_expect_eq(take(&full), 5);
    coil_chan_close(&empty);
    cr_expect_eq(coil_select(r, 2), 0);
    cr_expect_eq(r[0].result, 0, "closed");
    coil_case s = coil_on_send(&empty, &item);
    cr_expect_eq(coil_select(&s, 1), 0);
    cr_expect_eq(s.result, -EPIPE);
    return 0;
}

Test(select, what_needs_no_waiting_happens_at_once) {
    run(at_once);
}

static int in_time(void *arg) {
    static const int results[] = {1, 0, 0, -EPIPE};
    int got = 0, item = 5;
    (void)arg;
    COIL_CHAN(a, int, 0);
    COIL_CHAN(b, int, 0);
    coil_case cases[] = {coil_on_recv(&a, &got), coil_on_send(&b, &item)};
    for (int which = 0; which < 4; which++) {
        struct choice k = {.cases = cases, .n = 2};
        coil_task t = spawn(chooses, &k);
        coil_yield();
        cr_expect(!k.done);
        switch (which) {
        case 0:
            cr_expect_eq(put(&a, 4), 0);
            cr_expect_eq(got, 4);
            cr_expect_eq(take(&b), -1, "the other case is over");
            break;
        case 1:
            cr_expect_eq(take(&b), 5);
            cr_expect_eq(put(&a, 4), -EAGAIN, "the other case is over");
            break;
        case 2:
            coil_chan_close(&a);
            cr_expect_eq(take(&b), -1);
            coil_chan_destroy(&a);
            cr_expect_eq(coil_chan_open(&a, sizeof(int), 0), 0);
            break;
        default:
            coil_chan_close(&b);
            cr_expect_eq(put(&a, 4), -EAGAIN);
        }
        cr_expect_eq(join(t), which % 2);
        cr_expect_eq(cases[which % 2].result, results[which]);
        coil_chan_destroy(which % 2 ? &b : &a);
        cr_expect_eq(coil_chan_open(which % 2 ? &b : &a, sizeof(int), 0), 0);
    }
    return 0;
}

Test(select, it_waits_for_the_first_case_and_takes_nothing_for_the_others) {
    run(in_time);
}

static int of_itself(void *arg) {
    int got[2] = {0}, item = 5, other = 0;
    (void)arg;
    COIL_CHAN(c, int, 0);
    coil_case cases[] = {coil_on_recv(&c, &got[0]), coil_on_send(&c, &item), coil_on_recv(&c, &got[1]),
                         coil_on_send(&c, &item)};
    struct choice k = {.cases = cases, .n = 4};
    coil_task t = spawn(chooses, &k);
    coil_yield();
    cr_expect(!k.done, "its own receive and send don't meet");
    cr_expect_eq(put(&c, 6), 0);
    cr_expect_eq(put(&c, 6), -EAGAIN);
    cr_expect_eq(take(&c), -1);
    int happened = join(t);
    cr_expect_eq(happened, 0);
    cr_expect_eq(got[0], 6);

    t = spawn(chooses, &k);
    coil_yield();
    coil_case meets[] = {coil_on_recv(&c, &other), coil_on_send(&c, &other)};
    int i = coil_select(meets, 2);
    cr_expect(i == 0 || i == 1);
    happened = join(t);
    cr_expect_eq(happened, i == 0 ? 1 : 0, "two such selects do");
    t = spawn(chooses, &k);
    coil_yield();
    coil_chan_close(&c);
    happened = join(t);
    cr_expect_eq(cases[happened].result, happened % 2 ? -EPIPE : 0);
    return 0;
}

Test(select, the_same_channel_may_stand_in_several_cases) {
    run(of_itself);
}

static int two_at_once(void *arg) {
    int got[2] = {0};
    (void)arg;
    COIL_CHAN(a, int, 1);
    COIL_CHAN(b, int, 1);
    coil_case cases[] = {coil_on_recv(&a, &got[0]), coil_on_recv(&b, &got[1])};
    for (int i = task_rounds(10000); i; i--) {
        struct choice k = {.cases = cases, .n = 2};
        coil_task t = spawn(chooses, &k);
        if (chance(4)) coil_yield();
        bool first = chance(2);
        got[0] = got[1] = 0;
        cr_expect_eq(put(first ? &a : &b, 1), 0);
        if (chance(2)) coil_yield();
        cr_expect_eq(put(first ? &b : &a, 1), 0);
        int happened = join(t);
        cr_expect_eq(got[0] + got[1], 1, "one item has been taken");
        cr_expect_eq(got[happened], 1);
        cr_expect_eq(take(happened ? &a : &b), 1, "the other is still there");
        cr_expect_eq(take(happened ? &b : &a), -1);
    }
    return 0;
}

Test(select, of_two_that_could_happen_at_once_one_does) {
    run(two_at_once);
}

/* ---- fairness ---- */

enum { ALWAYS = 8 };

/* Where they stand makes no difference, be they neighbours or not. */
static void no_favourites(coil_case *cases, int n, unsigned always) {
    int times[2 * ALWAYS] = {0}, rounds = 2000, k = __builtin_popcount(always);
    for (int i = 0; i < rounds; i++) {
        int happened = coil_select(cases, (size_t)n);
        cr_expect(happened >= 0 && always >> happened & 1, "%d", happened);
        times[happened]++;
    }
    for (int i = 0; i < n; i++) {
        if (always >> i & 1)
            cr_expect(times[i] > rounds / k * 3 / 5 && times[i] < rounds / k * 7 / 5, "case %d: %d of %d", i,
                      times[i], rounds);
    }
}

static int fair(void *arg) {
    int item = 0, fd[2];
    (void)arg;
    coil_chan closed, never;
    coil_event set = {{0}};
    COIL_SEM(plenty, 2000);
    coil_event_set(&set);
    coil_case cases[2 * ALWAYS];
    cr_expect_eq(coil_chan_open(&closed, sizeof(int), 0), 0);
    cr_expect_eq(coil_chan_open(&never, sizeof(int), 0), 0);
    coil_chan_close(&closed);
    for (unsigned n = 2; n <= ALWAYS; n++) {
        for (unsigned i = 0; i < n; i++)
            cases[i] = coil_on_recv(&closed, &item);
        no_favourites(cases, (int)n, (1u << n) - 1);
    }
    static const unsigned some[] = {0x3, 0x81, 0xc1, 0x7f, 0x29};
    for (unsigned k = 0; k < 5; k++) {
        for (unsigned i = 0; i < 8; i++)
            cases[i] = some[k] >> i & 1 ? coil_on_send(&closed, &item) : coil_on_recv(&never, &item);
        no_favourites(cases, 8, some[k]);
    }
    make_pipe(fd);
    cases[0] = coil_on_ready(fd[1], POLLOUT);
    cases[1] = coil_on_recv(&closed, &item);
    cases[2] = coil_on_time((coil_time){0});
    cases[3] = coil_on_join((coil_task){0});
    cases[4] = coil_on_ready(fd[0], POLLIN);
    cases[5] = coil_on_event(&set);
    cases[6] = coil_on_sem(&plenty, 1);
    cases[7] = coil_on_sem(&plenty, 1000000);
    no_favourites(cases, 8, 0x6f);
    close_pipe(fd);
    coil_chan_destroy(&never);
    return 0;
}

Test(select, each_of_several_that_could_always_happen_has_its_share) {
    run(fair);
}

static int counts(void *arg) {
    int *turns = arg;
    while (*turns >= 0 && coil_yield() == 0)
        ++*turns;
    return 0;
}

static int never_parks(void *arg) {
    int turns = 0, item;
    (void)arg;
    COIL_CHAN(c, int, 0);
    coil_chan_close(&c);
    coil_case k = coil_on_recv(&c, &item);
    coil_task t = spawn(counts, &turns);
    for (int i = 0; i < 1000; i++)
        cr_expect_eq(coil_select(&k, 1), 0);
    cr_expect_geq(turns, 1000 / 64 - 1);
    turns = -1;
    coil_cancel(t);
    return join(t);
}

Test(select, a_task_that_never_has_to_wait_gives_way_all_the_same) {
    run(never_parks);
}

/* ---- joins ---- */

static int joins_ended(void *arg) {
    (void)arg;
    coil_task a = spawn(returns_arg, (void *)7), b = spawn(returns_arg, (void *)7);
    for (int i = 0; i < 3; i++)
        coil_yield();
    coil_case k[] = {coil_on_join(a), coil_on_join(b)};
    int happened = coil_select(k, 2);
    cr_expect(happened == 0 || happened == 1);
    bool second = happened == 1;
    cr_expect_eq(k[second].result, 7);
    cr_expect_eq(coil_join(second ? b : a, NULL), -ESRCH, "it was joined");
    cr_expect_eq(join(second ? a : b), 7, "the other was not");
    return 0;
}

static int joins_in_time(void *arg) {
    (void)arg;
    coil_task a = spawn(sleeps, NULL), b = spawn(sleeps, NULL);
    coil_case cases[] = {coil_on_join(a), coil_on_join(b), coil_on_join(a)};
    struct choice k = {.cases = cases, .n = 3};
    coil_task t = spawn(chooses, &k);
    coil_yield();
    cr_expect_eq(coil_detach(a), -EBUSY, "it is being joined");
    coil_cancel(a);
    coil_cancel(b);
    int happened = join(t);
    cr_expect(happened == 0 || happened == 2, "%d: the first that has ended", happened);
    cr_expect_eq(cases[happened].result, -ECANCELED);
    cr_expect_eq(coil_join(a, NULL), -ESRCH);
    cr_expect_eq(join(b), -ECANCELED, "the other can still be joined");
    return 0;
}

static int joins_and_lets_go(void *arg) {
    (void)arg;
    COIL_CHAN(c, int, 0);
    int item;
    coil_task a = spawn(sleeps, NULL);
    coil_case cases[] = {coil_on_join(a), coil_on_recv(&c, &item)};
    struct choice k = {.cases = cases, .n = 2};
    coil_task t = spawn(chooses, &k);
    coil_yield();
    cr_expect_eq(put(&c, 1), 0);
    cr_expect_eq(join(t), 1);
    cr_expect_eq(coil_detach(a), 0, "nobody joins it any more");
    coil_cancel(a);
    return 0;
}

static int joins_together(void *arg) {
    (void)arg;
    coil_task a = spawn(sleeps, NULL), t[3];
    coil_case cases[] = {coil_on_join(a), coil_on_join(a), coil_on_join(a)};
    struct choice k[3];
    for (int i = 0; i < 3; i++) {
        k[i] = (struct choice){.cases = &cases[i], .n = 1};
        t[i] = spawn(chooses, &k[i]);
    }
    coil_yield();
    coil_cancel(a);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(join(t[i]), 0);
        cr_expect_eq(cases[i].result, -ECANCELED);
    }
    return 0;
}

Test(select, a_join_case_joins_its_task_and_only_if_it_happens) {
    run(joins_ended);
    run(joins_in_time);
    run(joins_and_lets_go);
    run(joins_together);
}

static int joins_badly(void *arg) {
    int item;
    (void)arg;
    COIL_CHAN(c, int, 0);
    coil_task detached = spawn(sleeps, NULL), child, stale = spawn(returns_arg, NULL);
    coil_detach(detached);
    join(stale);
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn_with(&g, &child, NULL, sleeps, NULL), 0);
    const coil_task t[] = {stale, {0}, coil_self(), detached, child};
    static const int results[] = {-ESRCH, -ESRCH, -EDEADLK, -EINVAL, -EINVAL};
    for (int i = 0; i < 5; i++) {
        coil_case k[] = {coil_on_recv(&c, &item), coil_on_join(t[i])};
        cr_expect_eq(coil_select(k, 2), 1);
        cr_expect_eq(k[1].result, results[i]);
        cr_expect_eq(coil_select_now(k, 2), 1);
    }
    coil_cancel(detached);
    return 0;
}

Test(select, a_join_case_that_can_never_be_says_so_at_once) {
    run(joins_badly);
}

/* ---- events and semaphores ---- */

static int events(void *arg) {
    (void)arg;
    coil_event a = {{0}}, b = {{0}};
    coil_case cases[] = {coil_on_event(&a), coil_on_event(&b), coil_on_event(&a)};
    cr_expect_eq(coil_select_now(cases, 3), -EAGAIN);
    coil_event_set(&b);
    cr_expect_eq(coil_select(cases, 3), 1);
    cr_expect_eq(cases[1].result, 0);
    cr_expect(coil_event_is_set(&b), "it stays set");
    coil_event_clear(&b);
    struct choice k[3];
    coil_task t[3];
    for (int i = 0; i < 3; i++) {
        k[i] = (struct choice){.cases = cases, .n = 3};
        t[i] = spawn(chooses, &k[i]);
    }
    coil_yield();
    coil_event_set(&a);
    coil_event_clear(&a);
    coil_event_set(&b);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(join(t[i]), 0, "it was set while they waited");
    return 0;
}

Test(select, an_event_case_happens_when_the_event_is_set) {
    run(events);
}

static int permits_of(coil_sem *s) {
    int n = 0;
    while (coil_sem_tryacquire(s, 1) == 0)
        n++;
    coil_sem_release(s, (unsigned)n);
    return n;
}

static int permits(void *arg) {
    (void)arg;
    COIL_SEM(a, 0);
    COIL_SEM(b, 3);
    coil_case cases[] = {coil_on_sem(&a, 1), coil_on_sem(&b, 2), coil_on_sem(&a, 1)};
    cr_expect_eq(coil_select(cases, 3), 1);
    cr_expect_eq(cases[1].result, 0);
    cr_expect_eq(permits_of(&b), 1);
    cr_expect_eq(coil_select_now(cases, 3), -EAGAIN);
    struct choice k = {.cases = cases, .n = 3};
    coil_task t = spawn(chooses, &k);
    coil_yield();
    cr_expect_eq(coil_sem_tryacquire(&b, 1), -EAGAIN, "it stands in line");
    coil_sem_release(&a, 2);
    cr_expect_eq(permits_of(&a), 1, "taken once");
    cr_expect_eq(permits_of(&b), 1);
    coil_cancel(t);
    cr_expect_eq(join(t), 0);
    for (int cancel = 0; cancel < 2; cancel++) {
        coil_case c[] = {coil_on_sem(&b, 2), coil_on_sem(&b, 5)};
        k = (struct choice){.cases = c, .n = 2, .limit = cancel ? (coil_dur){0} : coil_ms(1)};
        t = spawn(chooses, &k);
        coil_yield();
        if (cancel) coil_cancel(t);
        cr_expect_eq(join(t), cancel ? -ECANCELED : -ETIME);
        cr_expect_eq(permits_of(&b), 1, "none was taken");
    }
    return 0;
}

Test(select, a_semaphore_case_takes_its_permits_once_and_only_if_it_happens) {
    run(permits);
}

static int acquires_two(void *s) {
    return coil_sem_acquire(s, 2);
}

/* A select that leaves a line is not given what it has made way for, be it in this line or in another. */
static int makes_way(void *arg) {
    (void)arg;
    COIL_SEM(a, 1);
    COIL_SEM(b, 1);
    COIL_CHAN(c, int, 0);
    int item = 0;
    coil_case first[] = {coil_on_recv(&c, &item), coil_on_sem(&a, 2), coil_on_sem(&b, 1), coil_on_sem(&a, 1),
                         coil_on_sem(&b, 1)};
    coil_case second[] = {coil_on_sem(&b, 2), coil_on_sem(&a, 1)};
    for (int cancel = 0; cancel < 2; cancel++) {
        coil_task ahead = spawn(acquires_two, &b);
        coil_yield();
        struct choice k[2] = {{.cases = first, .n = 5}, {.cases = second, .n = 2}};
        first[3] = cancel ? coil_on_sem(&a, 2) : coil_on_sem(&a, 3);
        coil_task t0 = spawn(chooses, &k[0]), t1;
        coil_yield();
        t1 = spawn(chooses, &k[1]);
        coil_yield();
        coil_task last = spawn(acquires_two, &b);
        coil_yield();
        cr_expect(!k[0].done && !k[1].done);
        if (cancel) coil_cancel(t0);
        if (!cancel) cr_expect_eq(put(&c, 9), 0);
        cr_expect_eq(join(t0), cancel ? -ECANCELED : 0);
        cr_expect_eq(join(t1), 1, "it stood next for a");
        coil_cancel(ahead);
        cr_expect_eq(join(ahead), -ECANCELED);
        coil_cancel(last);
        cr_expect_eq(join(last), -ECANCELED);
        cr_expect_eq(permits_of(&a), 0);
        cr_expect_eq(permits_of(&b), 1);
        coil_sem_release(&a, 1);
    }
    return 0;
}

static int holds_up_itself(void *arg) {
    (void)arg;
    COIL_SEM(a, 1);
    COIL_CHAN(c, int, 0);
    int item;
    coil_case cases[] = {coil_on_sem(&a, 2), coil_on_sem(&a, 1), coil_on_recv(&c, &item)};
    coil_task ahead = spawn(acquires_two, &a);
    coil_yield();
    struct choice k = {.cases = cases, .n = 3};
    coil_task t = spawn(chooses, &k);
    coil_yield();
    cr_expect(!k.done);
    cr_expect_eq(put(&c, 1), 0);
    cr_expect_eq(join(t), 2, "its second entry is not next when its first one leaves");
    coil_cancel(ahead);
    cr_expect_eq(join(ahead), -ECANCELED);
    cr_expect_eq(permits_of(&a), 1);

    ahead = spawn(acquires_two, &a);
    coil_yield();
    t = spawn(chooses, &k);
    coil_yield();
    coil_cancel(ahead);
    coil_cancel(t);
    cr_expect_eq(join(ahead), -ECANCELED);
    cr_expect_eq(join(t), -ECANCELED);
    cr_expect_eq(permits_of(&a), 1);
    return 0;
}

Test(select, who_stands_behind_one_that_leaves_is_served_and_it_itself_is_not) {
    run(makes_way);
    run(holds_up_itself);
}

/* ---- times ---- */

static int times(void *arg) {
    int item;
    (void)arg;
    COIL_CHAN(c, int, 0);
    coil_time t0 = coil_now(), soon = coil_after(coil_ms(2)), later = coil_after(coil_sec(3600));
    coil_case k[] = {coil_on_recv(&c, &item), coil_on_time(later), coil_on_time(COIL_NEVER),
                     coil_on_time(soon)};
    cr_expect_eq(coil_select_now(k, 3), -EAGAIN);
    cr_expect_eq(coil_select(k, 4), 3);
    cr_expect_eq(k[3].result, 0);
    cr_expect_geq(coil_now().ns - t0.ns, coil_ms(2).ns);
    cr_expect_eq(coil_select(k, 4), 3, "a moment that has passed");
    COIL_WITHIN(coil_ms(1));
    cr_expect_eq(coil_select(k, 3), -ETIME, "the limit is earlier");
    return 0;
}

Test(select, the_earliest_moment_happens_unless_the_limit_is_earlier) {
    run(times);
}

/* Both lie an hour ahead, and have passed by the worker's clock, which is put forward. */
static int due_and_late(void *arg) {
    (void)arg;
    for (int cancel = 0; cancel < 2; cancel++) {
        coil_dur hour = coil_sec(3600);
        coil_case cases[] = {coil_on_time(coil_after(hour))};
        struct choice k = {.cases = cases, .n = 1, .limit = hour};
        coil_task t = spawn(chooses, &k);
        coil_yield();
        coil__here->now_ns += 2 * hour.ns;
        if (cancel) coil_cancel(t);
        if (!cancel) coil__timers_fire(coil__here);
        coil__clock(coil__here);
        cr_expect_eq(join(t), cancel ? -ECANCELED : 0);
        cr_expect(!k.struck);
    }
    return 0;
}

Test(select, a_moment_that_has_come_wins_over_the_limit_but_not_over_a_cancel) {
    run(due_and_late);
}

/* ---- readiness ---- */

static int ready_at_once(void *arg) {
    int fd[2], item, file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    (void)arg;
    make_pipe(fd);
    COIL_CHAN(c, int, 0);
    coil_case k[] = {coil_on_recv(&c, &item), coil_on_ready(fd[0], POLLIN), coil_on_ready(fd[1], POLLOUT)};
    cr_expect_eq(coil_select_now(k, 2), -EAGAIN);
    cr_expect_eq(coil_select_now(k, 3), 2);
    cr_expect_eq(k[2].result, POLLOUT);
    cr_expect_eq(write(fd[1], "x", 1), 1);
    cr_expect_eq(coil_select(k, 2), 1);
    cr_expect_eq(k[1].result, POLLIN);
    close(fd[1]);
    cr_expect_eq(coil_select(k, 2), 1);
    cr_expect_eq(k[1].result, POLLIN | POLLHUP);
    close(fd[0]);
    for (int bad = -2; bad <= fd[0]; bad += fd[0] + 2) {
        coil_case b[] = {coil_on_recv(&c, &item), coil_on_ready(bad, POLLIN)};
        cr_expect_eq(coil_select(b, 2), 1);
        cr_expect_eq(b[1].result, -EBADF, "%d", bad);
    }
    coil_case f = coil_on_ready(file, POLLIN | POLLOUT);
    cr_expect_eq(coil_select(&f, 1), 0);
    cr_expect_eq(f.result, POLLIN | POLLOUT, "a file is always ready");
    close(file);
    return 0;
}

Test(select, a_descriptor_that_is_ready_happens_at_once) {
    run(ready_at_once);
}

static int ready_in_time(void *arg) {
    int fd[2], more[2], item;
    char byte;
    (void)arg;
    make_pipe(fd);
    make_pipe(more);
    COIL_CHAN(c, int, 0);
    coil_case cases[] = {coil_on_recv(&c, &item), coil_on_ready(fd[0], POLLIN),
                         coil_on_ready(more[0], POLLIN), coil_on_ready(fd[0], POLLIN | POLLPRI)};
    for (int which = 0; which < 4; which++) {
        for (int begun = 0; begun < 3; begun++) {
            struct choice k = {.cases = cases, .n = 4};
            coil_task t = spawn(chooses, &k);
            coil_yield();
            for (int i = 0; i < begun; i++)
                coil_nop();
            cr_expect(!k.done);
            int to = which == 2 ? more[1] : fd[1], from = which == 2 ? more[0] : fd[0];
            if (which == 0) {
                cr_expect_eq(put(&c, 1), 0);
            } else if (which == 3) {
                coil_cancel(t);
            } else {
                cr_expect_eq(write(to, "x", 1), 1);
            }
            int got = join(t);
            cr_expect_eq(worker()->ops.live, 0, "the kernel has let go of the others");
            if (which == 0) cr_expect_eq(got, 0);
            if (which == 1) cr_expect(got == 1 || got == 3, "%d", got);
            if (which == 2) cr_expect_eq(got, 2);
            if (which == 3) cr_expect_eq(got, -ECANCELED);
            if (which == 1 || which == 2) {
                cr_expect_eq(cases[got].result, POLLIN);
                cr_expect_eq(read(from, &byte, 1), 1, "readiness only shows");
            }
            cr_expect_eq(put(&c, 1), -EAGAIN);
        }
    }
    close_pipe(fd);
    close_pipe(more);
    return 0;
}

Test(select, readiness_is_waited_for_and_let_go_of_when_something_else_happens) {
    run(ready_in_time);
}

static int both_ready(void *arg) {
    int fd[2], item;
    char byte;
    (void)arg;
    make_pipe(fd);
    COIL_CHAN(c, int, 0);
    coil_case cases[] = {coil_on_recv(&c, &item), coil_on_ready(fd[0], POLLIN)};
    struct choice k = {.cases = cases, .n = 2};
    coil_task t = spawn(chooses, &k);
    coil_nop();
    coil_nop();
    cr_expect_eq(write(fd[1], "x", 1), 1);
    cr_expect_eq(put(&c, 1), 0);
    cr_expect_eq(put(&c, 1), -EAGAIN);
    coil_cancel(t);
    cr_expect_eq(join(t), 0, "the item came first; a cancel while the kernel lets go changes nothing");
    cr_expect_eq(k.next, -ECANCELED);
    cr_expect_eq(cases[0].result, 1);
    cr_expect_eq(coil_select(cases, 2), 1, "it is still ready");
    cr_expect_eq(read(fd[0], &byte, 1), 1);
    close_pipe(fd);
    return 0;
}

Test(select, readiness_that_comes_second_is_not_lost) {
    run(both_ready);
}

/* The kernel has found it ready, and the worker does not know yet. */
static int found_ready(void *arg) {
    (void)arg;
    for (int which = 0; which < 3; which++) {
        int fd[2], item = 0;
        make_pipe(fd);
        COIL_CHAN(c, int, 0);
        coil_case cases[] = {coil_on_recv(&c, &item), coil_on_ready(fd[0], POLLIN)};
        struct choice k = {.cases = cases, .n = 2};
        coil_task t = spawn(chooses, &k);
        coil_nop();
        coil_nop();
        cr_expect_eq(write(fd[1], "x", 1), 1);
        struct coil__driver *d = coil__here->driver;
        d->ops->enter(d, 0);
        if (which != 1) cr_expect_eq(put(&c, 7), 0);
        if (which != 0) coil_cancel(t);
        cr_expect_eq(join(t), which == 1 ? 1 : 0, "%d", which);
        cr_expect_eq(cases[which == 1 ? 1 : 0].result, which == 1 ? POLLIN : 1);
        cr_expect_eq(item, which == 1 ? 0 : 7);
        close_pipe(fd);
    }
    return 0;
}

Test(select, readiness_that_the_kernel_knows_of_wins_over_a_cancel_but_not_over_an_item) {
    run(found_ready);
}

static int hangs_up(void *arg) {
    int fd[2];
    (void)arg;
    make_pipe(fd);
    coil_case cases[] = {coil_on_ready(fd[0], POLLIN)};
    struct choice k = {.cases = cases, .n = 1};
    coil_task t = spawn(chooses, &k);
    coil_nop();
    cr_expect_eq(coil_close(fd[1]), 0);
    cr_expect_eq(join(t), 0);
    cr_expect_eq(cases[0].result, POLLHUP);
    cr_expect_eq(coil_close(fd[0]), 0);
    return 0;
}

Test(select, a_hang_up_shows_though_not_asked_for) {
    run(hangs_up);
}

static int closed_meanwhile(void *arg) {
    (void)arg;
    for (int begun = 0; begun < 3; begun++) {
        int fd[2], item;
        make_pipe(fd);
        COIL_CHAN(c, int, 0);
        coil_case cases[] = {coil_on_ready(fd[0], POLLIN), coil_on_recv(&c, &item),
                             coil_on_ready(fd[0], POLLIN), coil_on_time(coil_after(coil_sec(3600)))};
        struct choice k = {.cases = cases, .n = 4};
        coil_task t = spawn(chooses, &k);
        coil_yield();
        for (int i = 0; i < begun; i++)
            coil_nop();
        cr_expect_eq(coil_close(fd[0]), 0);
        int got = join(t);
        cr_expect(got == 0 || got == 2, "%d", got);
        cr_expect_eq(cases[got].result, -EBADF);
        cr_expect_eq(put(&c, 1), -EAGAIN);
        close(fd[1]);
    }
    return 0;
}

Test(select, a_descriptor_that_is_closed_meanwhile_happens_with_ebadf) {
    run(closed_meanwhile);
}

enum { LOTS = 100 };

static int lots(void *arg) {
    int fd[LOTS][2], item, item2 = 0;
    char byte;
    (void)arg;
    COIL_CHAN(c, int, 0);
    coil_case cases[2 * LOTS];
    for (int i = 0; i < LOTS; i++) {
        make_pipe(fd[i]);
        cases[2 * i] = coil_on_ready(fd[i][0], POLLIN);
        cases[2 * i + 1] = i % 2 ? coil_on_recv(&c, &item) : coil_on_time(coil_after(coil_sec(3600)));
    }
    for (int i = 0; i < 2 * LOTS; i += 33) {
        struct choice k = {.cases = cases, .n = 2 * LOTS};
        coil_task t = spawn(chooses, &k);
        coil_nop();
        if (i % 2) {
            cr_expect_eq(coil_chan_send(&c, &item2), 0);
            cr_expect_eq(join(t) % 2, 1);
        } else {
            cr_expect_eq(write(fd[i / 2][1], "x", 1), 1);
            cr_expect_eq(join(t), i);
            cr_expect_eq(read(fd[i / 2][0], &byte, 1), 1);
        }
        cr_expect_eq(worker()->ops.live, 0);
        cr_expect_eq(put(&c, 1), -EAGAIN);
    }
    for (int i = 0; i < LOTS; i++)
        close_pipe(fd[i]);
    return 0;
}

Test(select, there_may_be_lots_of_cases) {
    run(lots);
}

/* A table of requests that is too large already can't grow. */
static int no_room(void *arg) {
    int fd[2], item;
    (void)arg;
    make_pipe(fd);
    coil_nop();
    COIL_CHAN(c, int, 0);
    struct coil__op_table *table = &worker()->ops;
    for (uint32_t room = 0; room < 3; room++) {
        const struct coil__op_table was = *table;
        coil_case k[] = {coil_on_ready(fd[0], POLLIN), coil_on_recv(&c, &item), coil_on_ready(fd[0], POLLIN),
                         coil_on_ready(fd[0], POLLIN)};
        table->capacity = UINT32_C(1) << 29;
        table->live = table->capacity - room;
        cr_expect_eq(coil_select(k, 4), -ENOMEM);
        cr_expect_eq(put(&c, 1), -EAGAIN, "it waits nowhere");
        cr_expect_eq(table->live, table->capacity - room);
        table->capacity = was.capacity;
        table->live = was.live;
    }
    close_pipe(fd);
    return 0;
}

Test(select, without_memory_for_a_request_nothing_is_done) {
    run(no_room);
}

/* ---- races ---- */

/* What a select may be woken by, in any order and at any stage of its requests. */
struct contest {
    coil_chan in, out;
    int fd[2];
    coil_event event;
    coil_sem sem;
    coil_task ends;
    int received, item;
    bool gave, got, wrote, ended, set, released, cancelled, closed;
};

static void act(struct contest *x, coil_task victim) {
    int item = 0;
    switch (chance(11)) {
    case 0:
        if (!x->gave) x->gave = put(&x->in, 77) == 0;
        break;
    case 1:
        if (!x->got) x->got = coil_chan_tryrecv(&x->out, &item) == 1;
        if (x->got && item) cr_expect_eq(item, 88);
        break;
    case 2:
        if (!x->wrote) cr_expect_eq(write(x->fd[1], "x", 1), 1);
        x->wrote = true;
        break;
    case 3:
        x->ended = true;
        coil_cancel(x->ends);
        break;
    case 4:
        if (chance(3)) break;
        coil_cancel(victim);
        x->cancelled = true;
        break;
    case 5:
        if (chance(3)) break;
        coil_chan_close(&x->in);
        x->closed = true;
        break;
    case 6:
        coil_nop();
        break;
    case 7:
        coil_event_set(&x->event);
        x->set = true;
        break;
    case 8:
        if (!x->released) coil_sem_release(&x->sem, 3);
        x->released = true;
        break;
    default:
        coil_yield();
    }
}

static void judge(struct contest *x, const struct choice *k, int got) {
    char byte;
    switch (got) {
    case 0:
        cr_expect(x->gave ? k->cases[0].result == 1 && x->received == 77
                          : x->closed && k->cases[0].result == 0);
        break;
    case 1:
        cr_expect(x->got && k->cases[1].result == 0);
        break;
    case 2:
        cr_expect(x->wrote && k->cases[2].result == POLLIN);
        break;
    case 3:
        cr_expect(x->ended && k->cases[3].result == -ECANCELED);
        cr_expect_eq(coil_join(x->ends, NULL), -ESRCH);
        break;
    case 4:
        cr_expect(k->limit.ns > 0);
        break;
    case 5:
        cr_expect(x->set && k->cases[5].result == 0);
        break;
    case 6:
    case 7:
        cr_expect(x->released && k->cases[got].result == 0);
        break;
    default:
        cr_expect(got == -ECANCELED ? x->cancelled : got == -ETIME && k->limit.ns, "%d", got);
    }
    cr_expect_eq(k->struck, got == -ETIME);
    cr_expect_eq(x->gave, got == 0 && k->cases[0].result == 1, "an item that was taken was received");
    cr_expect_eq(x->got, got == 1);
    cr_expect_eq(permits_of(&x->sem), !x->released ? 0 : got == 6 ? 2 : got == 7 ? 0 : 3);
    if (got != 0) cr_expect_eq(x->received, 0);
    if (x->wrote) cr_expect_eq(read(x->fd[0], &byte, 1), 1);
    cr_expect_eq(put(&x->in, 1), x->closed ? -EPIPE : -EAGAIN, "it waits nowhere");
    cr_expect_eq(take(&x->out), -1);
    coil_cancel(x->ends);
    if (got != 3) cr_expect_eq(join(x->ends), -ECANCELED);
    cr_expect_eq(worker()->ops.live, 0);
}

/* The index of what happened, or 8: cancelled, 9: late. */
static int contest(const int fd[2]) {
    struct contest x = {.fd = {fd[0], fd[1]}, .item = 88, .ends = spawn(sleeps, NULL)};
    cr_expect_eq(coil_chan_open(&x.in, sizeof(int), 0), 0);
    cr_expect_eq(coil_chan_open(&x.out, sizeof(int), 0), 0);
    coil_dur limit = coil_ns(chance(2) ? 0 : 1 + chance(40000));
    coil_time at = limit.ns && chance(2) ? coil_after(coil_ns(chance(40000))) : COIL_NEVER;
    coil_case cases[] = {coil_on_recv(&x.in, &x.received),
                         coil_on_send(&x.out, &x.item),
                         coil_on_ready(x.fd[0], POLLIN),
                         coil_on_join(x.ends),
                         coil_on_time(at),
                         coil_on_event(&x.event),
                         coil_on_sem(&x.sem, 1),
                         coil_on_sem(&x.sem, 3)};
    struct choice k = {.cases = cases, .n = 8, .limit = limit};
    coil_task t = spawn(chooses, &k);
    for (uint32_t i = chance(13); i; i--)
        act(&x, t);
    if (!limit.ns) coil_cancel(t);
    if (!limit.ns) x.cancelled = true;
    int got = join(t);
    judge(&x, &k, got);
    coil_chan_destroy(&x.in);
    coil_chan_destroy(&x.out);
    return got == -ECANCELED ? 8 : got == -ETIME ? 9 : got;
}

static int contests(void *arg) {
    int n[10] = {0}, rounds = task_rounds(10000), fd[2];
    (void)arg;
    make_pipe(fd);
    for (int i = 0; i < rounds; i++)
        n[contest(fd)]++;
    close_pipe(fd);
    if (rounds < 1000) return 0;
    for (int i = 0; i < 10; i++)
        cr_expect_gt(n[i], rounds / 500, "outcome %d: %d times", i, n[i]);
    return 0;
}

Test(select, whatever_comes_together_exactly_one_case_happens_and_nothing_is_lost) {
    run(contests);
}

/* ---- many to many ---- */

struct crowd {
    coil_chan c[3];
    int fd[2];
    int makers, items;
    uint64_t sent, received, sum_in, sum_out;
};

static coil_time some_time(void) {
    return chance(4) ? COIL_NEVER : coil_after(coil_ns(chance(20000)));
}

static int makes(void *arg) {
    struct crowd *w = arg;
    for (int i = 0; i < w->items; i++) {
        uint64_t item[3] = {chance(1 << 30), chance(1 << 30), chance(1 << 30)};
        coil_case k[5];
        for (int j = 0; j < 3; j++)
            k[j] = coil_on_send(&w->c[j], &item[j]);
        k[3] = coil_on_time(some_time());
        k[4] = coil_on_ready(w->fd[0], POLLIN);
        coil_scope s = coil_until(some_time());
        int got = coil_select(k, chance(4) ? 4 : 5);
        coil_leave(&s);
        if (got == -ECANCELED) break;
        if (got >= 0 && got < 3) {
            cr_expect_eq(k[got].result, 0);
            w->sent++;
            w->sum_in += item[got];
        }
    }
    if (--w->makers == 0) {
        for (int j = 0; j < 3; j++)
            coil_chan_close(&w->c[j]);
    }
    return 0;
}

static int uses(void *arg) {
    struct crowd *w = arg;
    for (int open = 7; open;) {
        uint64_t item[3];
        coil_case k[5];
        for (int j = 0; j < 3; j++)
            k[j] = open >> j & 1 ? coil_on_recv(&w->c[j], &item[j]) : coil_on_time(COIL_NEVER);
        k[3] = coil_on_time(some_time());
        k[4] = coil_on_ready(w->fd[0], POLLIN);
        coil_scope s = coil_until(some_time());
        int got = coil_select(k, chance(4) ? 4 : 5);
        coil_leave(&s);
        if (got == -ECANCELED) break;
        if (got < 0 || got > 2) continue;
        if (k[got].result == 0) {
            open &= ~(1 << got);
        } else {
            w->received++;
            w->sum_out += item[got];
        }
    }
    return 0;
}

static int crowded(void *arg) {
    (void)arg;
    struct crowd w = {.makers = 6, .items = check_rounds(1000)};
    coil_task victim;
    make_pipe(w.fd);
    for (int j = 0; j < 3; j++)
        cr_expect_eq(coil_chan_open(&w.c[j], sizeof(uint64_t), (size_t)j), 0);
    COIL_GROUP(g);
    for (int i = 0; i < 6; i++) {
        cr_expect_eq(coil_group_spawn(&g, makes, &w), 0);
        cr_expect_eq(coil_group_spawn_with(&g, &victim, NULL, uses, &w), 0);
        if (i % 3 == 0) {
            coil_sleep(coil_us(chance(100)));
            coil_cancel(victim);
        }
    }
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_gt(w.sent, 0u);
    cr_expect_eq(w.sent, w.received);
    cr_expect_eq(w.sum_in, w.sum_out);
    cr_expect_eq(worker()->ops.live, 0);
    for (int j = 0; j < 3; j++)
        coil_chan_destroy(&w.c[j]);
    close_pipe(w.fd);
    return 0;
}

Test(select, among_many_selects_no_item_is_lost_or_doubled) {
    run(crowded);
}

static int of_all_kinds(void *arg) {
    crowded(arg);
    lots(arg);
    ready_in_time(arg);
    return closed_meanwhile(arg);
}

Test(select, nothing_is_left_behind) {
    run(of_all_kinds);
    int fds = check_fd_count(), maps = check_map_count();
    size_t heap = check_heap_bytes();
    run(of_all_kinds);
    cr_expect_eq(check_fd_count(), fds, "descriptors");
    cr_expect_leq(check_heap_bytes(), heap + 4096, "heap");
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps + 8, "mappings");
}

/* ---- who can end it ---- */

static int waits_for_nobody(void *arg) {
    int item;
    (void)arg;
    COIL_CHAN(c, int, 0);
    coil_case k[] = {coil_on_recv(&c, &item), coil_on_send(&c, &item), coil_on_time(COIL_NEVER)};
    cr_expect_eq(coil_select(k, 3), -ECANCELED);
    return 0;
}

static int is_no_deadlock(void *arg) {
    int item;
    (void)arg;
    COIL_CHAN(c, int, 0);
    coil_case k[] = {coil_on_recv(&c, &item), coil_on_time(coil_after(coil_ms(5)))};
    cr_expect_eq(coil_select(k, 2), 1);
    return 0;
}

static void *writes_later(void *arg) {
    usleep(5000);
    cr_expect_eq(write(*(int *)arg, "x", 1), 1);
    return NULL;
}

static int waits_for_outside(void *arg) {
    int fd[2], item;
    pthread_t p;
    (void)arg;
    make_pipe(fd);
    COIL_CHAN(c, int, 0);
    coil_case k[] = {coil_on_recv(&c, &item), coil_on_ready(fd[0], POLLIN)};
    pthread_create(&p, NULL, writes_later, &fd[1]);
    cr_expect_eq(coil_select(k, 2), 1);
    cr_expect_eq(k[1].result, POLLIN);
    pthread_join(p, NULL);
    close_pipe(fd);
    return 0;
}

Test(select, it_is_a_deadlock_only_where_nobody_can_end_it) {
    const coil_run_opts o = {.quiet = true};
    cr_assert_eq(coil_run_with(&o, waits_for_nobody, NULL), -EDEADLK);
    run(is_no_deadlock);
    run(waits_for_outside);
}

/* ---- a chain: each select that is settled lets the next one have its permits ---- */

enum { CHAIN = 20000 };

static struct {
    coil_sem *s;
    int links, happened, stopped, began;
} chain;

/* Its second case stands first in the next semaphore's line, and wants more than is there. */
static int is_a_link(void *arg) {
    int i = (int)(intptr_t)arg;
    coil_case cases[] = {coil_on_sem(&chain.s[i], 1), coil_on_sem(&chain.s[i + 1], 2)};
    chain.began++;
    int got = coil_select(cases, 2);
    chain.happened += got == 0;
    chain.stopped += got == -ECANCELED || got == -ETIME;
    return 0;
}

static int is_the_last_link(void *arg) {
    coil_scope limit = coil_within(arg ? coil_ms(1) : coil_sec(1000));
    int got = is_a_link((void *)(intptr_t)0);
    coil_leave(&limit);
    return got;
}

enum chain_end { BY_RELEASE, BY_CANCEL, BY_LIMIT };

static void runs_a_chain(enum chain_end by) {
    COIL_GROUP(g);
    coil_task head = {0};
    memset(&chain, 0, sizeof chain);
    chain.links = task_rounds(CHAIN);
    chain.s = calloc((size_t)chain.links + 1, sizeof *chain.s);
    for (int i = 1; i <= chain.links; i++)
        coil_sem_release(&chain.s[i], 1);
    /* The last one's line is begun first: each one's first case then stands behind the second of the one
     * before. */
    cr_expect_eq(coil_group_spawn_with(&g, &head, NULL, is_the_last_link, (void *)(intptr_t)(by == BY_LIMIT)),
                 0);
    for (int i = 1; i < chain.links; i++)
        cr_expect_eq(coil_group_spawn(&g, is_a_link, (void *)(intptr_t)i), 0);
    while (chain.began < chain.links)
        coil_yield();
    if (by == BY_RELEASE) coil_sem_release(&chain.s[0], 1);
    if (by == BY_CANCEL) coil_cancel(head);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(chain.happened, chain.links - (by != BY_RELEASE), "%d", chain.happened);
    cr_expect_eq(chain.stopped, by != BY_RELEASE);
    free(chain.s);
}

static int chains(void *arg) {
    (void)arg;
    for (enum chain_end by = BY_RELEASE; by <= BY_LIMIT; by++)
        runs_a_chain(by);
    return 0;
}

Test(select, a_chain_of_any_length_through_semaphores_uses_up_no_stack) {
    run(chains);
}
