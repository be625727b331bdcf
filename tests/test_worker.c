/* The turn: its budgets, its idleness, wake-ups by other threads, and what a run leaves behind. */
#include "caps.h"
#include "op.h"
#include "worker.h"

#include "check.h"

#include "coil/coil.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static coil_stats stats(void) {
    coil_stats s;
    coil_stats_get(&s);
    return s;
}

static int join(coil_task t) {
    int result = -1, err = coil_join(t, &result);
    cr_expect_eq(err, 0, "join: %d", err);
    return result;
}

static void make_pair(int fd[2]) {
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
}

static void close_pair(const int fd[2]) {
    close(fd[0]);
    close(fd[1]);
}

/* ---- nothing to do ---- */

static int64_t cpu_us(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * INT64_C(1000000) + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
}

static int receives_for_ever(void *arg) {
    char c;
    return (int)coil_recv(*(int *)arg, &c, 1, 0);
}

static int idle(void *arg) {
    (void)arg;
    int fd[2];
    coil_task t;
    make_pair(fd);
    cr_expect_eq(coil_spawn(&t, receives_for_ever, &fd[0]), 0);
    for (int i = 0; i < 10; i++)
        cr_expect_eq(coil_sleep(coil_ms(5)), 0);
    coil_stats before = stats();
    int64_t cpu = cpu_us();
    cr_expect_eq(coil_sleep(coil_ms(300)), 0);
    cpu = cpu_us() - cpu;
    coil_stats after = stats();
    cr_expect_leq(after.turns - before.turns, 3, "%llu turns",
                  (unsigned long long)(after.turns - before.turns));
    cr_expect_leq(after.enters - before.enters, 5, "%llu enters",
                  (unsigned long long)(after.enters - before.enters));
    cr_expect_lt(cpu, 150000, "%lld us of CPU in 300 ms of nothing", (long long)cpu);
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(join(t), -ECANCELED);
    close_pair(fd);
    return 0;
}

Test(worker, nothing_to_do_uses_no_cpu_and_makes_no_turns) {
    cr_assert_eq(coil_run(idle, NULL), 0);
}

/* ---- budgets ---- */

struct busy {
    int fd[2];
    bool stop;
    uint64_t rounds;
};

/* Data is always there: what it takes it puts back. */
static int never_runs_out(void *arg) {
    struct busy *b = arg;
    char buf[64];
    for (; !b->stop; b->rounds++) {
        ssize_t n = coil_recv(b->fd[0], buf, sizeof buf, 0);
        if (n <= 0) return (int)n;
        if (write(b->fd[1], buf, (size_t)n) != n) return -EIO;
    }
    return 0;
}

static int never_parks(void *arg) {
    struct busy *b = arg;
    for (; !b->stop; b->rounds++) {
        int err = coil_yield();
        if (err) return err;
    }
    return 0;
}

static int ticks(void *arg) {
    int *count = arg;
    for (; *count < 50; ++*count) {
        int err = coil_sleep(coil_us(200));
        if (err) return err;
    }
    return 0;
}

static int echoes(void *arg) {
    const int *fd = arg;
    char c;
    for (int i = 0; i < 200; i++) {
        if (coil_recv(fd[0], &c, 1, 0) != 1 || coil_send(fd[0], &c, 1, 0) != 1) return -EIO;
    }
    return 0;
}

static int asks(void *arg) {
    const int *fd = arg;
    char c = 'q';
    for (int i = 0; i < 200; i++) {
        if (coil_send(fd[1], &c, 1, 0) != 1 || coil_recv(fd[1], &c, 1, 0) != 1) return -EIO;
    }
    return 0;
}

/* Timers and completions of others get their turns beside tasks that are always ready. */
static int beside(coil_fn *busy_task, unsigned count) {
    static struct busy all[1000];
    int fd[2], count_ticks = 0;
    coil_task ticker, echo, asker, *t = calloc(count, sizeof *t);
    make_pair(fd);
    for (unsigned i = 0; i < count; i++) {
        all[i] = (struct busy){{-1, -1}, false, 0};
        if (busy_task == never_runs_out) {
            make_pair(all[i].fd);
            cr_expect_eq(write(all[i].fd[1], "data", 4), 4);
        }
        cr_expect_eq(coil_spawn(&t[i], busy_task, &all[i]), 0);
    }
    cr_expect_eq(coil_spawn(&ticker, ticks, &count_ticks), 0);
    cr_expect_eq(coil_spawn(&echo, echoes, fd), 0);
    cr_expect_eq(coil_spawn(&asker, asks, fd), 0);
    cr_expect_eq(join(ticker), 0);
    cr_expect_eq(join(asker), 0);
    cr_expect_eq(join(echo), 0);
    for (unsigned i = 0; i < count; i++) {
        cr_expect_gt(all[i].rounds, 0, "task %u has starved", i);
        all[i].stop = true;
        cr_expect_eq(join(t[i]), 0);
        if (all[i].fd[0] >= 0) close_pair(all[i].fd);
    }
    close_pair(fd);
    free(t);
    return 0;
}

static int beside_data(void *arg) {
    (void)arg;
    return beside(never_runs_out, 3);
}

static int beside_yields(void *arg) {
    (void)arg;
    return beside(never_parks, 1);
}

static int beside_crowd(void *arg) {
    (void)arg;
    return beside(never_parks, 1000);
}

Test(worker, a_task_whose_data_never_runs_out_holds_up_nobody) {
    cr_assert_eq(coil_run(beside_data, NULL), 0);
}

Test(worker, a_task_that_only_yields_starves_neither_timers_nor_completions) {
    cr_assert_eq(coil_run(beside_yields, NULL), 0);
}

Test(worker, a_thousand_ready_tasks_starve_neither_timers_nor_completions) {
    cr_assert_eq(coil_run(beside_crowd, NULL), 0);
}

static int turn_budget(void *arg) {
    (void)arg;
    struct busy all[200] = {0};
    coil_task t[200];
    for (int i = 0; i < 200; i++)
        cr_expect_eq(coil_spawn(&t[i], never_parks, &all[i]), 0);
    coil_stats before = stats();
    for (int i = 0; i < 20; i++)
        coil_yield();
    coil_stats after = stats();
    uint64_t resumes = after.resumes - before.resumes, turns = after.turns - before.turns;
    cr_expect_geq(turns, 20 * 200 / 128 - 1, "%llu turns", (unsigned long long)turns);
    cr_expect_leq(resumes, (turns + 1) * 128, "%llu resumes", (unsigned long long)resumes);
    for (int i = 0; i < 200; i++) {
        all[i].stop = true;
        cr_expect_eq(join(t[i]), 0);
    }
    return 0;
}

Test(worker, one_turn_resumes_at_most_128_tasks) {
    cr_assert_eq(coil_run(turn_budget, NULL), 0);
}

/* A clock that only the tasks of the test move on, each by cost_ns when it runs. */
static struct {
    int64_t now_ns, cost_ns;
    unsigned looks;
    bool stop;
} pace;

static int64_t paced_now(void) {
    pace.looks++;
    return pace.now_ns;
}

static int runs_at_a_pace(void *arg) {
    (void)arg;
    int err = 0;
    while (!pace.stop && !err) {
        pace.now_ns += pace.cost_ns;
        err = coil_yield();
    }
    return err;
}

/* What `count` yields, each beside 199 others', have taken. */
struct pace_taken {
    uint64_t resumes, turns;
    unsigned looks;
};

static struct pace_taken yields(int count, int64_t cost_ns) {
    coil_stats before = stats();
    pace.cost_ns = cost_ns;
    pace.looks = 0;
    for (int i = 0; i < count; i++)
        cr_expect_eq(coil_yield(), 0);
    coil_stats after = stats();
    return (struct pace_taken){after.resumes - before.resumes, after.turns - before.turns, pace.looks};
}

static int paces(void *arg) {
    (void)arg;
    coil_task t[200];
    struct coil__sched *s = coil__here;
    const struct coil__sys *real = s->driver->sys;
    struct coil__sys paced = *real;
    paced.now = paced_now;
    pace.now_ns = real->now();
    pace.stop = false;
    s->driver->sys = &paced;
    for (int i = 0; i < 200; i++)
        cr_expect_eq(coil_spawn(&t[i], runs_at_a_pace, NULL), 0);
    yields(5, 50);
    struct pace_taken x = yields(50, 50);
    cr_expect_geq(x.looks * 64, x.resumes - 64, "brisk: %u looks, %d resumes", x.looks, (int)x.resumes);
    cr_expect_leq(x.turns, x.resumes / 128 + 2, "brisk: %d turns, %d resumes", (int)x.turns, (int)x.resumes);
    x = yields(1, 300000); /* one turn may have begun, whose next look is 64 resumes away */
    cr_expect_geq(x.turns, (200 - 64) / 16, "suddenly slow: %d turns", (int)x.turns);
    x = yields(5, 300000);
    cr_expect_geq(x.turns * 16 + 16, x.resumes, "slow: %d turns, %d resumes", (int)x.turns, (int)x.resumes);
    x = yields(20, 1000); /* 128 of these fit into a turn */
    cr_expect_geq(x.looks * 16, x.resumes - 16, "between: %u looks, %d resumes", x.looks, (int)x.resumes);
    pace.stop = true;
    for (int i = 0; i < 200; i++)
        cr_expect_eq(join(t[i]), 0);
    coil__clock(s);
    s->driver->sys = real;
    return 0;
}

/* 200 us a turn, seen at most 16 resumes late; or 64 where none of the last ones took longer than 100 ns. */
Test(worker, the_clock_is_read_the_more_often_the_longer_tasks_run) {
    cr_assert_eq(coil_run(paces, NULL), 0);
}

static int retries_for_ever(void *arg) {
    struct busy *b = arg;
    while (!b->stop) {
        b->rounds++;
        if (coil_nop() != -ECANCELED) return -EPROTO;
    }
    return 0;
}

static int retry_loop(void *arg) {
    (void)arg;
    struct busy b = {0};
    coil_task t, ticker;
    int count = 0;
    cr_expect_eq(coil_spawn(&t, retries_for_ever, &b), 0);
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(coil_spawn(&ticker, ticks, &count), 0);
    cr_expect_eq(join(ticker), 0);
    cr_expect_gt(b.rounds, 0);
    b.stop = true;
    return join(t);
}

Test(worker, a_cancelled_task_in_a_retry_loop_holds_up_nobody) {
    cr_assert_eq(coil_run(retry_loop, NULL), 0);
}

/* ---- hooks ---- */

struct counter {
    struct coil__hook hook;
    int runs;
};

static void counts(struct coil__hook *h) {
    CONTAINER_OF(h, struct counter, hook)->runs++;
}

static int hooks(void *arg) {
    (void)arg;
    struct coil__worker *w = coil__worker_of(coil__here);
    struct counter c = {.hook = {.run = counts}};
    for (int i = 0; i < 5; i++)
        coil__worker_hook(w, &c.hook);
    cr_expect_eq(c.runs, 0, "not before the turn's end");
    coil_nop();
    cr_expect_eq(c.runs, 1, "once");
    coil_nop();
    cr_expect_eq(c.runs, 1, "not again by itself");
    coil__worker_hook(w, &c.hook);
    struct busy b[100] = {0};
    coil_task t[100];
    for (int i = 0; i < 100; i++)
        cr_expect_eq(coil_spawn(&t[i], never_parks, &b[i]), 0);
    coil_yield();
    cr_expect_eq(c.runs, 2, "a full turn does not hold it back: after 64 resumes it runs");
    for (int i = 0; i < 100; i++) {
        b[i].stop = true;
        cr_expect_eq(join(t[i]), 0);
    }
    return 0;
}

Test(worker, a_hook_runs_once_at_the_turns_end_or_after_64_resumes) {
    cr_assert_eq(coil_run(hooks, NULL), 0);
}

/* ---- other threads ---- */

struct letter {
    struct coil__letter letter;
    atomic_int delivered;
};

static void delivered(struct coil__letter *l) {
    struct letter *m = CONTAINER_OF(l, struct letter, letter);
    atomic_fetch_add(&m->delivered, 1);
}

enum { THREADS = 3 };

struct posts {
    uint32_t worker;
    int rounds;
    atomic_int running;
};

static void post_to(struct coil__worker *w, void *letter) {
    coil__worker_post(w, letter);
}

/* One letter at a time: the next one goes out when the last was delivered, so a lost wake-up stops
 * everything. */
static void *posts_letters(void *arg) {
    struct posts *p = arg;
    struct letter l = {.letter = {.deliver = delivered}};
    for (int i = 1; i <= p->rounds; i++) {
        if (!coil__worker_with(p->worker, post_to, &l.letter)) abort();
        while (atomic_load(&l.delivered) < i)
            sched_yield();
    }
    atomic_fetch_sub(&p->running, 1);
    return NULL;
}

static int sleeps(void *arg) {
    struct posts *p = arg;
    while (atomic_load(&p->running))
        cr_expect_eq(coil_sleep(coil_ms(5)), 0);
    return 0;
}

static int letters(void *arg) {
    (void)arg;
    pthread_t threads[THREADS];
    struct posts p = {.worker = coil__here->worker, .rounds = check_rounds(3000), .running = THREADS};
    coil_task t;
    for (int i = 0; i < THREADS; i++)
        cr_expect_eq(pthread_create(&threads[i], NULL, posts_letters, &p), 0);
    cr_expect_eq(coil_spawn(&t, sleeps, &p), 0);
    cr_expect_eq(join(t), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}

Test(worker, letters_of_several_threads_are_all_delivered_in_time) {
    cr_assert_eq(coil_run(letters, NULL), 0);
}

struct ping {
    _Atomic uint64_t slot_gen; /* the generation of the task to cancel; 0: none yet */
    coil_task task;
    atomic_bool over;
    atomic_int cancelled;
};

static void *cancels_each(void *arg) {
    struct ping *p = arg;
    while (!atomic_load(&p->over)) {
        if (!atomic_exchange(&p->slot_gen, 0)) {
            sched_yield();
            continue;
        }
        coil_cancel(p->task);
        atomic_fetch_add(&p->cancelled, 1);
    }
    return NULL;
}

static int waits_for_cancel(void *arg) {
    struct ping *p = arg;
    p->task = coil_self();
    atomic_store(&p->slot_gen, 1);
    return coil_sleep_until(COIL_NEVER);
}

static int pings(void *arg) {
    struct ping *p = arg;
    for (int i = 0, rounds = check_rounds(5000); i < rounds; i++) {
        coil_task t;
        cr_expect_eq(coil_spawn(&t, waits_for_cancel, p), 0);
        int result = join(t);
        cr_expect_eq(result, -ECANCELED, "round %d: %d", i, result);
        if (result != -ECANCELED) return 1;
    }
    atomic_store(&p->over, true);
    return 0;
}

/* Nothing but the cancel ends a round: if one is lost, or the worker sleeps through it, the test hangs. */
Test(worker, a_cancel_from_another_thread_always_wakes_the_worker) {
    struct ping p = {.over = false};
    coil_run_opts o = {.external_wakes = true};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, cancels_each, &p), 0);
    cr_expect_eq(coil_run_with(&o, pings, &p), 0);
    pthread_join(thread, NULL);
}

static int finds_itself(void *arg) {
    *(uint32_t *)arg = coil__here->worker;
    return 0;
}

static void found(struct coil__worker *w, void *arg) {
    (void)w;
    *(bool *)arg = true;
}

Test(worker, a_workers_number_is_never_used_again) {
    uint32_t first = 0, second = 0;
    bool any = false;
    cr_assert_eq(coil_run(finds_itself, &first), 0);
    cr_assert_eq(coil_run(finds_itself, &second), 0);
    cr_expect(first != 0 && second > first, "%u, %u", first, second);
    cr_expect_not(coil__worker_with(first, found, &any));
    cr_expect_not(coil__worker_with(0, found, &any));
    cr_expect_not(any);
}

/* ---- what a run leaves behind, and what it does not start ---- */

static int workers_of_the_kernel(void) {
    DIR *d = opendir("/proc/self/task");
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[300], name[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", e->d_name);
        FILE *f = fopen(path, "re");
        if (!f) continue;
        if (fgets(name, sizeof name, f)) n += strncmp(name, "iou-wrk", 7) == 0;
        fclose(f);
    }
    if (d) closedir(d);
    return n;
}

static int listener(struct sockaddr_in *a) {
    socklen_t len = sizeof *a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    a->sin_family = AF_INET;
    a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)a, sizeof *a) || listen(fd, 16)) {
        close(fd);
        return -1;
    }
    getsockname(fd, (struct sockaddr *)a, &len);
    return fd;
}

enum { PARKED = 200 };

static int sends_for_ever(void *arg) {
    static char zeros[1 << 16];
    for (;;) {
        ssize_t n = coil_send(*(int *)arg, zeros, sizeof zeros, 0);
        if (n < 0) return (int)n;
    }
}

static int accepts_for_ever(void *arg) {
    return coil_accept(*(int *)arg, NULL, NULL, SOCK_CLOEXEC);
}

static int parked(void *arg) {
    (void)arg;
    static int fd[PARKED][2], l[PARKED];
    COIL_GROUP(g);
    coil_group_keep_going(&g);
    for (int i = 0; i < PARKED; i++) {
        struct sockaddr_in a = {0};
        make_pair(fd[i]);
        l[i] = listener(&a);
        cr_expect_eq(coil_group_spawn(&g, receives_for_ever, &fd[i][0]), 0);
        cr_expect_eq(coil_group_spawn(&g, sends_for_ever, &fd[i][0]), 0);
        cr_expect_eq(coil_group_spawn(&g, accepts_for_ever, &l[i]), 0);
    }
    while (coil__worker_of(coil__here)->ops.live < 3 * PARKED)
        coil_nop();
    for (int i = 0; i < 20; i++)
        coil_nop();
    cr_expect_eq(workers_of_the_kernel(), 0, "the kernel has started threads for requests on sockets");
    coil_group_cancel(&g);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(workers_of_the_kernel(), 0, "nor for their cancels");
    for (int i = 0; i < PARKED; i++) {
        close_pair(fd[i]);
        close(l[i]);
    }
    return 0;
}

Test(worker, hundreds_of_parked_receives_sends_and_accepts_need_no_kernel_thread) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    cr_assert_eq(coil_run(parked, NULL), 0);
}

static int leaves_requests(void *arg) {
    int *fd = arg;
    coil_task t[3];
    cr_expect_eq(coil_spawn(&t[0], receives_for_ever, &fd[0]), 0);
    cr_expect_eq(coil_spawn(&t[1], accepts_for_ever, &fd[2]), 0);
    cr_expect_eq(coil_spawn(&t[2], sends_for_ever, &fd[0]), 0);
    coil_sleep(coil_us(100));
    return 0;
}

static int one_run(void) {
    struct sockaddr_in a = {0};
    int fd[3];
    make_pair(fd);
    fd[2] = listener(&a);
    int result = coil_run(leaves_requests, fd);
    close_pair(fd);
    close(fd[2]);
    return result;
}

Test(worker, each_run_gives_back_its_descriptors_and_mappings) {
    for (int i = 0; i < 5; i++)
        cr_assert_eq(one_run(), 0);
    int fds = check_fd_count(), maps = check_map_count();
    for (int i = 0; i < 40; i++) {
        cr_assert_eq(one_run(), 0);
        cr_expect_eq(check_fd_count(), fds, "run %d", i);
    }
    if (!CHECK_SANITIZED) cr_expect_leq(check_map_count(), maps, "mappings");
}

/* Ends with the accept pending and the listener open: only the end of the process closes it. */
static int serves_once(void *arg) {
    struct sockaddr_in *a = arg;
    int l = listener(a);
    if (l < 0) return 9;
    int fd[3] = {-1, -1, l}, pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 8;
    fd[0] = pair[0];
    return coil_run(leaves_requests, fd) ? 7 : 0;
}

Test(worker, the_next_process_gets_the_port_at_once) {
    struct sockaddr_in a = {0};
    close(listener(&a));
    for (int i = 0; i < 10; i++) {
        int status = -1;
        char text[256];
        cr_assert(check_in_child(serves_once, &a, &status, text, sizeof text), "fork");
        cr_assert_eq(status, 0, "process %d: status %#x %s", i, (unsigned)status, text);
    }
}

Test(worker, the_next_run_gets_the_port_at_once) {
    struct sockaddr_in a = {0};
    close(listener(&a));
    for (int i = 0; i < 20; i++) {
        int fd[3];
        make_pair(fd);
        fd[2] = listener(&a);
        cr_assert_geq(fd[2], 0, "run %d", i);
        cr_assert_eq(coil_run(leaves_requests, fd), 0);
        close_pair(fd);
        close(fd[2]);
    }
}

/* ---- fork ---- */

static int calls_coil(void *arg) {
    (void)arg;
    return coil_nop();
}

static int runs_again(void *arg) {
    return coil_run(calls_coil, arg);
}

static int execs(void *arg) {
    (void)arg;
    execl("/bin/true", "true", (char *)NULL);
    return 1;
}

static int forks(void *arg) {
    (void)arg;
    int fd[2], status = -1;
    char text[256];
    coil_task t;
    make_pair(fd);
    cr_expect_eq(coil_spawn(&t, receives_for_ever, &fd[0]), 0);
    coil_nop();
    cr_expect(check_aborts(calls_coil, NULL, "coil_nop: called in a child forked inside coil_run"));
    cr_expect(check_aborts(runs_again, NULL, "called in a child forked inside coil_run"));
    cr_expect(check_in_child(execs, NULL, &status, text, sizeof text), "fork");
    cr_expect_eq(status, 0, "exec: %#x", (unsigned)status);
    cr_expect_eq(coil_send(fd[1], "x", 1, 0), 1);
    cr_expect_eq(join(t), 1, "the parent goes on");
    close_pair(fd);
    return 0;
}

Test(worker, a_child_forked_inside_a_run_may_exec_and_is_stopped_at_a_call) {
    coil_run_opts o = {.stack_size = 256 << 10};
    cr_assert_eq(coil_run_with(&o, forks, NULL), 0);
}

static atomic_bool over;

static pthread_mutex_t own_lock = PTHREAD_MUTEX_INITIALIZER;

static void take_own_lock(void) {
    pthread_mutex_lock(&own_lock);
}

static void let_go_of_own_lock(void) {
    pthread_mutex_unlock(&own_lock);
}

static void *looks_for_runs(void *arg) {
    const coil_task nowhere = {.worker = UINT32_MAX, .gen = 1};
    while (!atomic_load(&over)) {
        take_own_lock();
        coil_cancel(nowhere);
        let_go_of_own_lock();
        coil_cancel(nowhere);
    }
    return arg;
}

/* Which may have been in the midst of a call, or of a run's beginning, when the process was forked. */
Test(worker, what_another_thread_did_during_a_fork_keeps_no_child_from_running) {
    if (CHECK_TSAN) cr_skip("TSan does not follow a fork of a process with threads");
    pthread_t thread;
    int status = -1;
    char text[256];
    /* A lock of the program's, taken before coil's and held across forks, is in nobody's way. */
    cr_assert_eq(pthread_atfork(take_own_lock, let_go_of_own_lock, let_go_of_own_lock), 0);
    cr_assert_eq(pthread_create(&thread, NULL, looks_for_runs, NULL), 0);
    for (int i = 0; i < check_rounds(300) && status != SIGKILL; i++) {
        cr_assert(check_in_child(runs_again, NULL, &status, text, sizeof text), "fork");
        cr_expect_eq(status, 0, "%#x %s", (unsigned)status, text);
    }
    atomic_store(&over, true);
    pthread_join(thread, NULL);
}

Test(worker, a_child_forked_between_runs_may_run) {
    int status = -1;
    char text[256];
    cr_assert_eq(coil_run(calls_coil, NULL), 0);
    cr_assert(check_in_child(runs_again, NULL, &status, text, sizeof text), "fork");
    cr_expect_eq(status, 0, "%#x %s", (unsigned)status, text);
}
