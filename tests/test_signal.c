/* Waiting for signals, in one run and in several. */
#include "check.h"

#include "coil/coil.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t;
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

static int wait_for(int sig) {
    return coil_signal_wait(&sig, 1);
}

static int waits_for_usr1(void *arg) {
    (void)arg;
    return wait_for(SIGUSR1);
}

static void send_signal(int sig) {
    kill(getpid(), sig);
}

/* ---- one run ---- */

static int gets_one(void *arg) {
    static const int set[] = {SIGUSR1, SIGUSR2, SIGTERM, 0};
    int got = 0;
    for (int i = 0; set[i]; i++) {
        coil_task t = spawn(arg, (void *)(uintptr_t)set);
        coil_yield();
        send_signal(set[i]);
        cr_expect_eq(coil_join(t, &got), 0);
        cr_expect_eq(got, set[i]);
    }
    return 0;
}

static int waits_for_any_of_three(void *arg) {
    return coil_signal_wait(arg, 3);
}

Test(signal, a_waiting_task_gets_the_number_of_the_signal_that_came) {
    cr_assert_eq(coil_run(gets_one, (void *)(uintptr_t)waits_for_any_of_three), 0);
}

static int all_get_it(void *arg) {
    coil_task t[20];
    int got;
    (void)arg;
    for (int i = 0; i < 20; i++)
        t[i] = spawn(waits_for_usr1, NULL);
    coil_yield();
    send_signal(SIGUSR1);
    for (int i = 0; i < 20; i++) {
        cr_expect_eq(coil_join(t[i], &got), 0);
        cr_expect_eq(got, SIGUSR1);
    }
    return 0;
}

Test(signal, every_waiting_task_gets_it) {
    cr_assert_eq(coil_run(all_get_it, NULL), 0);
}

static int keeps_one(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_ns(0));
    cr_expect_eq(wait_for(SIGUSR1), -ETIME, "refused: this asks for nothing");
    coil_leave(&s);
    s = coil_within(coil_ms(1));
    cr_expect_eq(wait_for(SIGUSR1), -ETIME, "from here on it is caught");
    cr_expect(coil_leave(&s));
    send_signal(SIGUSR1);
    send_signal(SIGUSR1);
    coil_sleep(coil_ms(1));
    cr_expect_eq(wait_for(SIGUSR1), SIGUSR1, "one that came between two calls is kept");
    s = coil_within(coil_ms(1));
    cr_expect_eq(wait_for(SIGUSR1), -ETIME, "and given once");
    coil_leave(&s);
    return 0;
}

Test(signal, one_between_two_calls_is_kept_for_the_next) {
    cr_assert_eq(coil_run(keeps_one, NULL), 0);
}

static int keeps_two_numbers(void *arg) {
    static const int both[] = {SIGUSR2, SIGUSR1};
    (void)arg;
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(coil_signal_wait(both, 2), -ETIME);
    coil_leave(&s);
    send_signal(SIGUSR1);
    send_signal(SIGUSR2);
    cr_expect_eq(wait_for(SIGUSR2), SIGUSR2, "only what was asked for is taken");
    cr_expect_eq(coil_signal_wait(both, 2), SIGUSR1);
    return 0;
}

Test(signal, what_nobody_asked_for_stays_kept) {
    cr_assert_eq(coil_run(keeps_two_numbers, NULL), 0);
}

static int asks_late(void *arg) {
    int got = 0;
    (void)arg;
    coil_task t = spawn(waits_for_usr1, NULL);
    coil_yield();
    send_signal(SIGUSR1);
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(wait_for(SIGUSR1), -ETIME, "it waits for another one");
    coil_leave(&s);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, SIGUSR1);
    return 0;
}

Test(signal, who_waited_when_it_came_gets_it_before_who_asks_in_the_same_turn) {
    cr_assert_eq(coil_run(asks_late, NULL), 0);
}

static int cancelled_wait(void *arg) {
    int got = 0;
    (void)arg;
    coil_task t = spawn(waits_for_usr1, NULL);
    coil_yield();
    coil_cancel(t);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, -ECANCELED);
    coil_cancel(coil_self());
    cr_expect_eq(wait_for(SIGUSR1), -ECANCELED);
    return 0;
}

Test(signal, a_wait_obeys_cancel) {
    cr_assert_eq(coil_run(cancelled_wait, NULL), 0);
}

static int waits_badly(void *arg) {
    static const int bad[] = {0,      -1,     65,     1000,    INT32_MIN, SIGKILL, SIGSTOP, SIGSEGV,
                              SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGURG,    32,      33};
    (void)arg;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int set[] = {SIGUSR1, bad[i]};
        cr_expect_eq(coil_signal_wait(&bad[i], 1), -EINVAL, "%d", bad[i]);
        cr_expect_eq(coil_signal_wait(set, 2), -EINVAL, "%d", bad[i]);
    }
    cr_expect_eq(coil_signal_wait(bad, 0), -EINVAL);
    cr_expect_eq(coil_signal_wait(NULL, 1), -EINVAL);
    struct sigaction now;
    sigaction(SIGUSR1, NULL, &now);
    cr_expect(now.sa_handler == SIG_DFL, "a refused call catches nothing");
    return 0;
}

Test(signal, bad_numbers_give_einval) {
    cr_assert_eq(coil_run(waits_badly, NULL), 0);
}

static int real_time(void *arg) {
    (void)arg;
    coil_task t = spawn(arg, NULL);
    int got = 0;
    coil_yield();
    send_signal(SIGRTMAX);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, SIGRTMAX);
    return 0;
}

static int waits_for_the_last(void *arg) {
    (void)arg;
    return wait_for(SIGRTMAX);
}

Test(signal, the_last_real_time_signal_can_be_waited_for) {
    cr_assert_eq(coil_run(real_time, (void *)(uintptr_t)waits_for_the_last), 0);
}

/* ---- the old disposition ---- */

static atomic_int own_calls;

static void own_handler(int sig) {
    (void)sig;
    atomic_fetch_add(&own_calls, 1);
}

static int takes_usr1(void *arg) {
    (void)arg;
    coil_task t = spawn(waits_for_usr1, NULL);
    int got = 0;
    coil_yield();
    send_signal(SIGUSR1);
    cr_expect_eq(coil_join(t, &got), 0);
    cr_expect_eq(got, SIGUSR1);
    return 0;
}

Test(signal, the_old_disposition_is_back_after_the_run) {
    struct sigaction sa = {.sa_handler = own_handler, .sa_flags = SA_NODEFER}, now;
    sigaddset(&sa.sa_mask, SIGWINCH);
    sigaction(SIGUSR1, &sa, NULL);
    for (int i = 1; i <= 3; i++) {
        cr_assert_eq(coil_run(takes_usr1, NULL), 0);
        send_signal(SIGUSR1);
        cr_assert_eq(own_calls, i, "coil's while it runs, the program's afterwards");
        sigaction(SIGUSR1, NULL, &now);
        cr_assert(now.sa_handler == own_handler);
        cr_assert(now.sa_flags & SA_NODEFER);
        cr_assert(sigismember(&now.sa_mask, SIGWINCH));
    }
}

static int sets_another_handler(void *arg) {
    takes_usr1(arg);
    signal(SIGUSR1, own_handler);
    return 0;
}

Test(signal, a_handler_that_the_program_has_set_meanwhile_is_left_alone) {
    struct sigaction now;
    cr_assert_eq(coil_run(sets_another_handler, NULL), 0);
    sigaction(SIGUSR1, NULL, &now);
    cr_assert(now.sa_handler == own_handler);
}

/* ---- several runs ---- */

enum { RUNS = 3, TASKS = 4 };

static atomic_int waiting, received, ended;
static atomic_bool may_end;

static int notes_usr1(void *arg) {
    (void)arg;
    if (wait_for(SIGUSR1) == SIGUSR1) atomic_fetch_add(&received, 1);
    return 0;
}

/* Runs after the others have parked, since it was spawned after them. */
static int tells_that_they_wait(void *arg) {
    (void)arg;
    atomic_fetch_add(&waiting, 1);
    return 0;
}

static int starts_waiters(void *arg) {
    coil_task t[TASKS + 1];
    int err = 0;
    (void)arg;
    for (int i = 0; i < TASKS; i++)
        err |= coil_spawn(&t[i], notes_usr1, NULL);
    err |= coil_spawn(&t[TASKS], tells_that_they_wait, NULL);
    for (int i = 0; i <= TASKS; i++)
        err |= coil_join(t[i], NULL);
    atomic_fetch_add(&ended, 1);
    while (!atomic_load(&may_end))
        sched_yield();
    return err;
}

static void *runs_waiters(void *arg) {
    (void)arg;
    return (void *)(intptr_t)coil_run(starts_waiters, NULL);
}

Test(signal, waiting_tasks_of_all_runs_get_it_and_the_last_run_gives_the_disposition_back) {
    pthread_t threads[RUNS];
    struct sigaction now;
    signal(SIGUSR1, own_handler);
    for (int i = 0; i < RUNS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, runs_waiters, NULL), 0);
    while (atomic_load(&waiting) < RUNS)
        sched_yield();
    send_signal(SIGUSR1);
    while (atomic_load(&ended) < RUNS)
        sched_yield();
    cr_assert_eq(atomic_load(&received), RUNS * TASKS);
    sigaction(SIGUSR1, NULL, &now);
    cr_assert(now.sa_handler != own_handler, "the runs are still there");
    atomic_store(&may_end, true);
    for (int i = 0; i < RUNS; i++) {
        void *err;
        pthread_join(threads[i], &err);
        cr_assert_null(err);
    }
    sigaction(SIGUSR1, NULL, &now);
    cr_assert(now.sa_handler == own_handler);
    cr_assert_eq(own_calls, 0);
}

/* ---- one at a time, from another process ---- */

/* Sends the signal when it is told to, and the next one when that was heard. */
static void signals_and_listens(pid_t whom, const int *pipe, int count) {
    char c;
    close(pipe[1]);
    for (int i = 0; i < count; i++) {
        if (read(pipe[0], &c, 1) != 1 || kill(whom, SIGUSR1)) break;
    }
    _exit(0);
}

static int yields(void *arg) {
    (void)arg;
    return coil_yield();
}

static int comes_and_goes_with_others(void *arg) {
    while (!*(bool *)arg)
        cr_expect_eq(coil_join(spawn(yields, NULL), NULL), 0);
    return 0;
}

struct ear {
    int fd, count;
};

/* Whichever task runs when it comes, and be it about to leave for good. */
static int hears_each(void *arg) {
    struct ear *ear = arg;
    bool done = false;
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(wait_for(SIGUSR1), -ETIME, "from here on it is caught");
    coil_leave(&s);
    coil_task t[3];
    for (int i = 0; i < 3; i++)
        t[i] = spawn(comes_and_goes_with_others, &done);
    for (int i = 0; i < ear->count; i++) {
        cr_expect_eq(write(ear->fd, "", 1), 1);
        cr_expect_eq(wait_for(SIGUSR1), SIGUSR1);
    }
    done = true;
    for (int i = 0; i < 3; i++)
        cr_expect_eq(coil_join(t[i], NULL), 0);
    return 0;
}

Test(signal, each_of_many_is_heard_while_tasks_come_and_go) {
    int fd[2];
    cr_assert_eq(pipe(fd), 0);
    struct ear ear = {.fd = fd[1], .count = check_rounds(CHECK_TSAN ? 5000 : 500)};
    pid_t parent = getpid(), child = fork();
    if (child == 0) signals_and_listens(parent, fd, ear.count);
    cr_assert_gt(child, 0);
    cr_assert_eq(coil_run(hears_each, &ear), 0);
    cr_assert_eq(waitpid(child, NULL, 0), child);
    close(fd[0]);
    close(fd[1]);
}

/* ---- a storm ---- */

static atomic_bool storm_over, term_came;

static void *storms(void *arg) {
    for (int i = 0; i < *(int *)arg; i++) {
        send_signal(i % 3 ? SIGUSR1 : SIGUSR2);
        if (i % 64 == 0) sched_yield();
    }
    atomic_store(&storm_over, true);
    /* Once is enough, but TSan keeps a signal back until its thread's next call of the C library. */
    do {
        send_signal(SIGTERM);
    } while (CHECK_TSAN && !atomic_load(&term_came) && usleep(1000) == 0);
    return NULL;
}

static int rides_out(void *arg) {
    static const int set[] = {SIGUSR1, SIGUSR2, SIGTERM};
    pthread_t thread;
    int counts[2] = {0}, sig;
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(coil_signal_wait(set, 3), -ETIME);
    coil_leave(&s);
    cr_expect_eq(pthread_create(&thread, NULL, storms, arg), 0);
    while ((sig = coil_signal_wait(set, 3)) != SIGTERM) {
        cr_expect(sig == SIGUSR1 || sig == SIGUSR2, "%d", sig);
        counts[sig == SIGUSR2]++;
    }
    atomic_store(&term_came, true);
    cr_expect(atomic_load(&storm_over));
    cr_expect_geq(counts[0], 1);
    cr_expect_geq(counts[1], 1);
    pthread_join(thread, NULL);
    return 0;
}

Test(signal, a_storm_of_signals_loses_no_number_and_stops_nothing) {
    int count = check_rounds(20000);
    signal(SIGTERM, own_handler);
    cr_assert_eq(coil_run(rides_out, &count), 0);
}

static void *comes_and_goes(void *arg) {
    intptr_t wrong = 0;
    while (!atomic_load(&storm_over))
        wrong += coil_run(arg, NULL) != 0;
    return (void *)wrong;
}

static int waits_a_moment(void *arg) {
    (void)arg;
    coil_scope s = coil_within(coil_us(50));
    int sig = wait_for(SIGUSR1);
    coil_leave(&s);
    return sig == SIGUSR1 || sig == -ETIME ? 0 : -1;
}

static void *storms_usr1(void *arg) {
    for (int i = 0; i < *(int *)arg; i++)
        send_signal(SIGUSR1);
    atomic_store(&storm_over, true);
    return NULL;
}

Test(signal, runs_may_come_and_go_in_a_storm) {
    pthread_t threads[2], sender;
    int count = check_rounds(20000);
    signal(SIGUSR1, own_handler); /* for those that arrive while no run waits */
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, comes_and_goes, (void *)(uintptr_t)waits_a_moment), 0);
    }
    cr_assert_eq(pthread_create(&sender, NULL, storms_usr1, &count), 0);
    pthread_join(sender, NULL);
    for (int i = 0; i < 2; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        cr_assert_null(wrong);
    }
}
