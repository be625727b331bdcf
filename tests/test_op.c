/* Requests of tasks and of objects: who owns them, who wins, and what a close does to them. */
#include "caps.h"
#include "op.h"

#include "check.h"
#include "peers.h"

#include "coil/coil.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

static struct coil__worker *worker(void) {
    return coil__worker_of(coil__here);
}

static struct coil__driver *driver(void) {
    return coil__here->driver;
}

static bool make_pair(int fd[2]) {
    bool ok = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0;
    cr_expect(ok, "socketpair");
    return ok;
}

static void close_pair(const int fd[2]) {
    close(fd[0]);
    close(fd[1]);
}

/* Two turns: what was queued in the first has been submitted, and what has completed by then has been reaped.
 */
static void turns(void) {
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_nop(), 0);
}

static int join(coil_task t) {
    int result = -1, err = coil_join(t, &result);
    cr_expect_eq(err, 0, "join: %d", err);
    return result;
}

/* Runs fn under default options and expects it to return 0, and all descriptors back. */
static void run(coil_fn *fn, void *arg) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(fn, arg), 0, "the run failed");
    cr_expect_eq(check_fd_count(), before, "descriptors");
}

/* ---- one task, one request ---- */

struct reader {
    int fd;
    char byte;
};

static int reads_one(void *arg) {
    struct reader *r = arg;
    return (int)coil_recv(r->fd, &r->byte, 1, 0);
}

static int taken_back(void *arg) {
    (void)arg;
    int fd[2];
    coil_task t;
    char byte;
    if (!make_pair(fd)) return 1;
    struct reader r = {.fd = fd[0]};
    cr_expect_eq(write(fd[1], "x", 1), 1);
    cr_expect_eq(coil_spawn(&t, reads_one, &r), 0);
    coil_yield();
    cr_expect_eq(worker()->ops.live, 1, "the request is queued");
    uint64_t cancels = worker()->stats.cancels;
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(worker()->ops.live, 0, "taken back at once");
    cr_expect_eq(worker()->stats.cancels, cancels, "without the kernel");
    cr_expect_eq(join(t), -ECANCELED);
    cr_expect_eq(recv(fd[0], &byte, 1, MSG_DONTWAIT), 1, "its byte is gone");
    close_pair(fd);
    return 0;
}

Test(op, a_cancel_before_the_submit_takes_the_request_back_without_the_kernel) {
    run(taken_back, NULL);
}

static int cancelled_once(void *arg) {
    (void)arg;
    int fd[2];
    coil_task t;
    if (!make_pair(fd)) return 1;
    struct reader r = {.fd = fd[0]};
    cr_expect_eq(coil_spawn(&t, reads_one, &r), 0);
    turns();
    uint64_t cancels = worker()->stats.cancels;
    for (int i = 0; i < 3; i++)
        cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(worker()->ops.live, 1, "it is the kernel's until the completion");
    cr_expect_eq(worker()->stats.cancels, cancels + 1, "asked once");
    cr_expect_eq(join(t), -ECANCELED);
    cr_expect_eq(worker()->ops.live, 0);
    close_pair(fd);
    return 0;
}

Test(op, a_cancel_after_the_submit_asks_once_and_waits_for_the_completion) {
    run(cancelled_once, NULL);
}

static int result_wins(void *arg) {
    (void)arg;
    int fd[2];
    coil_task t;
    if (!make_pair(fd)) return 1;
    struct reader r = {.fd = fd[0]};
    cr_expect_eq(coil_spawn(&t, reads_one, &r), 0);
    turns();
    cr_expect_eq(write(fd[1], "x", 1), 1);
    driver()->ops->enter(driver(), 0); /* the completion is there, but not reaped */
    cr_expect_eq(coil_cancel(t), 0);
    cr_expect_eq(join(t), 1, "what had happened was lost");
    cr_expect_eq(r.byte, 'x');
    turns();
    close_pair(fd);
    return 0;
}

Test(op, a_result_that_was_there_before_the_cancel_wins) {
    run(result_wins, NULL);
}

static int cancels_before_other_requests(void *arg) {
    (void)arg;
    int fd[2];
    coil_task cancelled, other;
    if (!make_pair(fd)) return 1;
    struct reader r = {.fd = fd[0]}, o = {.fd = fd[0]};
    cr_expect_eq(coil_spawn(&cancelled, reads_one, &r), 0);
    turns();
    /* One receive on a socket at a time would be undefined; but the other one is only submitted after the
     * cancel. */
    cr_expect_eq(coil_spawn(&other, reads_one, &o), 0);
    coil_yield();
    cr_expect_eq(coil_cancel(cancelled), 0);
    cr_expect_eq(write(fd[1], "x", 1), 1);
    int first = join(cancelled);
    if (first == 1) cr_expect_eq(write(fd[1], "y", 1), 1);
    cr_expect_eq(join(other), 1);
    cr_expect(first == 1 ? r.byte == 'x' && o.byte == 'y' : first == -ECANCELED && o.byte == 'x', "%d",
              first);
    close_pair(fd);
    return 0;
}

Test(op, a_cancelled_receive_never_takes_the_byte_of_the_next_one) {
    run(cancels_before_other_requests, NULL);
}

/* ---- tags and generations ---- */

struct object {
    struct coil__op op;
    int calls, last_res;
    bool ended;
};

static void object_done(struct coil__op *op, int res, uint32_t flags) {
    struct object *o = CONTAINER_OF(op, struct object, op);
    o->calls++;
    o->last_res = res;
    o->ended = !(flags & IORING_CQE_F_MORE);
}

static void object_init(struct object *o) {
    *o = (struct object){0};
    coil__op_init(&o->op);
    o->op.done = object_done;
}

static int late_cancels(void *arg) {
    (void)arg;
    int fd[2];
    struct object o;
    if (!make_pair(fd)) return 1;
    object_init(&o);
    coil__op_prep(&o.op, IORING_OP_NOP, -1, NULL, 0, 0);
    cr_expect_eq(coil__op_begin(worker(), &o.op), 0);
    uint64_t old = o.op.req.sqe.user_data;
    turns();
    cr_expect(o.ended && o.last_res == 0 && o.calls == 1, "%d", o.last_res);
    coil__op_prep(&o.op, IORING_OP_POLL_ADD, fd[0], NULL, 0, 0);
    o.op.req.sqe.poll32_events = coil__poll_mask(POLLIN);
    cr_expect_eq(coil__op_begin(worker(), &o.op), 0);
    cr_expect_neq(o.op.req.sqe.user_data, old, "the same place has the same tag twice");
    turns();
    for (int res = 0; res >= -ENOENT; res -= ENOENT) {
        struct io_uring_cqe late = {.user_data = old | COIL__TAG_CANCEL, .res = res};
        coil__ops_complete(worker(), &late, 1);
    }
    cr_expect(o.op.live && !o.op.cancelling && o.calls == 1,
              "a late completion of a cancel has hit the next request");
    coil__op_abort(worker(), &o.op);
    turns();
    cr_expect(o.ended && o.last_res == -ECANCELED && o.calls == 2, "%d", o.last_res);
    close_pair(fd);
    return 0;
}

Test(op, a_late_completion_of_a_cancel_hits_nobody) {
    run(late_cancels, NULL);
}

static int stale_completion(void *arg) {
    (void)arg;
    struct object o;
    object_init(&o);
    coil__op_prep(&o.op, IORING_OP_NOP, -1, NULL, 0, 0);
    cr_expect_eq(coil__op_begin(worker(), &o.op), 0);
    struct io_uring_cqe late = {.user_data = o.op.req.sqe.user_data};
    turns();
    coil__ops_complete(worker(), &late, 1);
    return 0;
}

static int runs_stale_completion(void *arg) {
    return coil_run(stale_completion, arg);
}

Test(op, a_second_terminal_completion_stops_the_process) {
    cr_assert(check_aborts(runs_stale_completion, NULL, "internal check failed: op != NULL"));
}

/* The kernel says ENOENT also where a request is between two states; the cancel must then be asked again. */
static int asked_again(void *arg) {
    (void)arg;
    int fd[2];
    struct object o;
    if (!make_pair(fd)) return 1;
    object_init(&o);
    coil__op_prep(&o.op, IORING_OP_POLL_ADD, fd[0], NULL, 0, 0);
    o.op.req.sqe.poll32_events = coil__poll_mask(POLLIN);
    cr_expect_eq(coil__op_begin(worker(), &o.op), 0);
    turns();
    struct io_uring_cqe not_found = {.user_data = o.op.req.sqe.user_data | COIL__TAG_CANCEL, .res = -ENOENT};
    coil__ops_complete(worker(), &not_found, 1);
    cr_expect_not(coil__node_linked(&o.op.req.node), "nobody has asked for a cancel");
    coil__op_abort(worker(), &o.op);
    driver()->ops->enter(driver(), 0);
    cr_expect_not(coil__node_linked(&o.op.req.node), "the cancel is with the kernel");
    coil__ops_complete(worker(), &not_found, 1);
    cr_expect(coil__node_linked(&o.op.req.node), "it was not asked again");
    turns();
    cr_expect(o.ended && o.last_res == -ECANCELED, "%d", o.last_res);
    cr_expect_not(coil__node_linked(&o.op.req.node), "the end takes the second cancel off the list");
    turns();
    close_pair(fd);
    return 0;
}

Test(op, a_cancel_that_missed_its_live_target_is_asked_again) {
    run(asked_again, NULL);
}

static bool had_multishot;

static int many_from_one(void *arg) {
    (void)arg;
    int fd[2];
    char byte;
    struct object o;
    had_multishot = driver()->caps & COIL__CAP_BIT(POLL_MULTI);
    if (!had_multishot || !make_pair(fd)) return 0;
    object_init(&o);
    coil__op_prep(&o.op, IORING_OP_POLL_ADD, fd[0], NULL, IORING_POLL_ADD_MULTI, 0);
    o.op.req.sqe.poll32_events = coil__poll_mask(POLLIN);
    cr_expect_eq(coil__op_begin(worker(), &o.op), 0);
    turns();
    for (int i = 1; i <= 20; i++) {
        cr_expect_eq(write(fd[1], "x", 1), 1);
        turns();
        cr_expect(o.calls >= i && o.op.live && !o.ended, "round %d: %d calls", i, o.calls);
        cr_expect_eq(read(fd[0], &byte, 1), 1);
    }
    int calls = o.calls;
    coil__op_abort(worker(), &o.op);
    turns();
    cr_expect(o.ended && !o.op.live && o.calls == calls + 1, "the last one comes once");
    close_pair(fd);
    return 0;
}

Test(op, a_multishot_request_lives_until_its_last_completion) {
    run(many_from_one, NULL);
    check_needs(had_multishot, "multishot poll");
}

/* ---- many at once ---- */

struct crowd {
    int fd[2];
    unsigned done, sum;
};

static int one_of_the_crowd(void *arg) {
    struct crowd *c = arg;
    unsigned char byte = 0;
    int err = coil_nop();
    if (!err && coil_recv(c->fd[0], &byte, 1, 0) != 1) err = -EIO;
    c->done++;
    c->sum += byte;
    return err;
}

static int crowd(void *arg) {
    struct crowd *c = arg;
    enum { N = 800 };
    COIL_GROUP(g);
    for (int i = 0; i < N; i++)
        cr_expect_eq(coil_group_spawn(&g, one_of_the_crowd, c), 0);
    unsigned sent = 0;
    for (int i = 0; i < N; i++) {
        unsigned char byte = (unsigned char)(i * 7);
        sent += byte;
        cr_expect_eq(coil_send(c->fd[1], &byte, 1, 0), 1);
    }
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(c->done, N, "%u", c->done);
    cr_expect_eq(c->sum, sent, "%u of %u", c->sum, sent);
    coil_stats s;
    coil_stats_get(&s);
    if (s.driver == COIL_DRIVER_URING) cr_expect_gt(s.sq_full, 0, "the queue was never full");
    cr_expect_eq(s.completions, s.ops, "%llu begun", (unsigned long long)s.ops);
    return 0;
}

Test(op, queues_of_four_and_eight_serve_eight_hundred_tasks) {
    coil_run_opts o = {.sq_entries = 4, .cq_entries = 8};
    struct crowd c = {{0}, 0, 0};
    int before = check_fd_count();
    cr_assert(make_pair(c.fd));
    cr_assert_eq(coil_run_with(&o, crowd, &c), 0);
    close_pair(c.fd);
    cr_expect_eq(check_fd_count(), before, "descriptors");
}

static int cancel_storm(void *arg) {
    (void)arg;
    enum { N = 1000 };
    static struct object all[N];
    int fd[2];
    if (!make_pair(fd)) return 1;
    for (unsigned i = 0; i < N; i++) {
        object_init(&all[i]);
        coil__op_prep(&all[i].op, IORING_OP_POLL_ADD, fd[0], NULL, 0, 0);
        all[i].op.req.sqe.poll32_events = coil__poll_mask(POLLIN);
        cr_expect_eq(coil__op_begin(worker(), &all[i].op), 0);
        if (i == N / 2) turns();
    }
    for (unsigned i = 0; i < N; i++)
        coil__op_abort(worker(), &all[i].op);
    while (worker()->ops.live)
        turns();
    for (unsigned i = 0; i < N; i++) {
        cr_expect(all[i].calls == 1 && all[i].last_res == -ECANCELED, "%u: %d, %d", i, all[i].calls,
                  all[i].last_res);
    }
    close_pair(fd);
    return 0;
}

Test(op, a_thousand_cancels_through_small_queues_all_arrive) {
    coil_run_opts o = {.sq_entries = 4, .cq_entries = 8};
    cr_assert_eq(coil_run_with(&o, cancel_storm, NULL), 0);
}

/* ---- closing ---- */

/* The number N names another socket before the queued request would have been submitted. */
static int reused_number(void *arg) {
    bool submitted = *(bool *)arg;
    int old[2], fresh[2];
    coil_task t;
    char byte = 0;
    if (!make_pair(old)) return 1;
    struct reader r = {.fd = old[0]};
    cr_expect_eq(coil_spawn(&t, reads_one, &r), 0);
    coil_yield();
    if (submitted) turns();
    cr_expect_eq(coil_close(old[0]), 0);
    if (!make_pair(fresh)) return 1;
    cr_expect_eq(fresh[0], old[0], "the number was meant to be used again");
    cr_expect_eq(write(fresh[1], "x", 1), 1);
    turns();
    cr_expect_eq(join(t), -EBADF);
    cr_expect_eq(recv(fresh[0], &byte, 1, MSG_DONTWAIT), 1, "a byte of the new connection was stolen");
    cr_expect_eq(r.byte, 0);
    close_pair(fresh);
    close(old[1]);
    return 0;
}

Test(op, a_queued_request_never_acts_on_the_next_user_of_its_descriptor) {
    bool submitted = false;
    run(reused_number, &submitted);
}

Test(op, a_submitted_request_never_acts_on_the_next_user_of_its_descriptor) {
    bool submitted = true;
    run(reused_number, &submitted);
}

static int sends_much(void *arg) {
    static char zeros[1 << 20];
    const int *fd = arg;
    for (;;) {
        ssize_t n = coil_send(*fd, zeros, sizeof zeros, 0);
        if (n < 0) return (int)n;
    }
}

static int polls_in(void *arg) {
    return coil_poll(*(const int *)arg, POLLPRI);
}

static int close_with_all(void *arg) {
    (void)arg;
    int fd[2];
    coil_task t[8];
    struct reader r[8];
    if (!make_pair(fd)) return 1;
    for (int i = 0; i < 8; i++) {
        r[i] = (struct reader){.fd = fd[0]};
        coil_fn *fn = i % 4 == 0 ? sends_much : i % 4 == 1 ? polls_in : reads_one;
        cr_expect_eq(coil_spawn(&t[i], fn, i % 4 < 2 ? (void *)&fd[0] : (void *)&r[i]), 0);
        if (i == 3) turns();
    }
    coil_yield();
    cr_expect_eq(coil_close(fd[0]), 0);
    for (int i = 0; i < 8; i++)
        cr_expect_eq(join(t[i]), -EBADF, "%d", i);
    cr_expect_eq(coil_close(fd[0]), -EBADF, "it is closed already");
    close(fd[1]);
    return 0;
}

Test(op, a_close_ends_everybodys_requests_on_the_descriptor) {
    run(close_with_all, NULL);
}

static int close_keeps_result(void *arg) {
    (void)arg;
    int fd[2];
    coil_task t;
    if (!make_pair(fd)) return 1;
    struct reader r = {.fd = fd[0]};
    cr_expect_eq(coil_spawn(&t, reads_one, &r), 0);
    turns();
    cr_expect_eq(write(fd[1], "x", 1), 1);
    driver()->ops->enter(driver(), 0);
    cr_expect_eq(coil_close(fd[0]), 0);
    cr_expect_eq(join(t), 1, "what had arrived was lost");
    close(fd[1]);
    return 0;
}

Test(op, a_close_does_not_take_a_result_that_was_there) {
    run(close_keeps_result, NULL);
}

static int closes(void *arg) {
    return coil_close(*(const int *)arg);
}

struct thief {
    int fd, made;
};

/* Closes, and takes the number again at once: a second close must not hit it. */
static int closes_and_reuses(void *arg) {
    struct thief *t = arg;
    int err = coil_close(t->fd);
    if (!err) t->made = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return err;
}

static int many_closers(void *arg) {
    (void)arg;
    enum { CLOSERS = 6 };
    for (int round = 0; round < 400; round++) {
        int fd[2], won = 0, fresh = -1;
        coil_task reader, t[CLOSERS];
        struct thief thieves[CLOSERS];
        if (!make_pair(fd)) return 1;
        struct reader r = {.fd = fd[0]};
        cr_expect_eq(coil_spawn(&reader, reads_one, &r), 0);
        if (round & 1) turns();
        for (int i = 0; i < CLOSERS; i++) {
            thieves[i] = (struct thief){.fd = fd[0], .made = -1};
            cr_expect_eq(coil_spawn(&t[i], closes_and_reuses, &thieves[i]), 0);
            if (round & 2 << i % 3) coil_yield();
            if (round & 16 << i % 2) driver()->ops->enter(driver(), 0);
        }
        for (int i = 0; i < CLOSERS; i++) {
            int err = join(t[i]);
            cr_expect(err == 0 || err == -EBADF, "round %d: %d", round, err);
            won += err == 0;
            if (!err) fresh = thieves[i].made;
        }
        cr_expect_eq(won, 1, "round %d: %d closed it", round, won);
        cr_expect_eq(fresh, fd[0], "round %d: the number", round);
        cr_expect_geq(fcntl(fresh, F_GETFD), 0, "round %d: the number's next user was closed", round);
        cr_expect_eq(join(reader), -EBADF);
        close(fresh);
        close(fd[1]);
        if (won != 1) return 1;
    }
    return 0;
}

Test(op, of_several_closers_one_closes_and_the_others_hear_of_it) {
    run(many_closers, NULL);
}

/* In a run whose queues are so small that a close itself has to wait. */
Test(op, of_several_closers_one_closes_also_with_tiny_queues) {
    coil_run_opts o = {.sq_entries = 1, .cq_entries = 2};
    cr_assert_eq(coil_run_with(&o, many_closers, NULL), 0);
}

static int close_while_cancelled(void *arg) {
    int *fd = arg;
    cr_expect_eq(coil_nop(), -ECANCELED);
    return coil_close(*fd);
}

static int cancelled_closer(void *arg) {
    (void)arg;
    int fd[2];
    coil_task reader, closer;
    if (!make_pair(fd)) return 1;
    struct reader r = {.fd = fd[0]};
    cr_expect_eq(coil_spawn(&reader, reads_one, &r), 0);
    turns();
    cr_expect_eq(coil_spawn(&closer, close_while_cancelled, &fd[0]), 0);
    cr_expect_eq(coil_cancel(closer), 0);
    cr_expect_eq(join(closer), 0, "a close is never refused");
    cr_expect_eq(join(reader), -EBADF);
    coil_scope s = coil_within(coil_ns(0));
    cr_expect_eq(coil_nop(), -ETIME);
    cr_expect_eq(coil_close(fd[1]), 0, "nor out of time");
    coil_leave(&s);
    return 0;
}

Test(op, a_close_works_in_a_cancelled_task_and_in_one_out_of_time) {
    run(cancelled_closer, NULL);
}

static int only_closers(void *arg) {
    int *fd = arg;
    coil_task t;
    cr_expect_eq(coil_spawn(&t, closes, fd), 0);
    return join(t);
}

Test(op, a_close_without_other_requests_is_just_a_close) {
    int fd[2];
    cr_assert(make_pair(fd));
    cr_assert_eq(coil_run(only_closers, &fd[0]), 0);
    cr_expect_eq(fcntl(fd[0], F_GETFD), -1);
    close(fd[1]);
}

/* ---- races: a cancel or a deadline against the completion ---- */

enum { RACERS = 40 };

struct racer;

struct race {
    void (*open)(struct racer *r);          /* once */
    void (*begin)(struct racer *r);         /* each round, before its task starts */
    int (*call)(struct racer *r);           /* in its task */
    void (*event)(struct racer *r);         /* what lets the call succeed */
    void (*tease)(struct racer *r);         /* what wakes it up for nothing; may be NULL */
    const char *(*settle)(struct racer *r); /* after the round: what is wrong, or NULL */
    void (*close)(struct racer *r);
};

struct racer {
    const struct race *race;
    int fd, peer, listener;
    struct sockaddr_storage addr;
    socklen_t addr_len;
    char byte;
    int result, second;
    bool happened, was_cancelled, struck;
    size_t filler;
    int64_t limit_ns; /* 0: it is cancelled instead */
    unsigned cancel_step, event_step;
    coil_task task;
};

static struct race_state {
    const struct race *race;
    bool deadline;
    uint64_t seed, first_seed;
    int won, lost, failures;
    struct racer racers[RACERS];
} state;

static unsigned dice(unsigned sides) {
    state.seed ^= state.seed << 13;
    state.seed ^= state.seed >> 7;
    state.seed ^= state.seed << 17;
    return (unsigned)(state.seed >> 33) % sides;
}

static int racer_task(void *arg) {
    struct racer *r = arg;
    if (r->limit_ns) {
        coil_scope s = coil_within(coil_ns(r->limit_ns));
        r->result = r->race->call(r);
        r->struck = coil_leave(&s);
        return 0;
    }
    r->result = r->race->call(r);
    r->was_cancelled = coil_cancelled();
    if (r->was_cancelled) r->second = r->race->call(r);
    return 0;
}

static void start_racer(struct racer *r) {
    static const int64_t limits_ns[] = {1, 5000, 20000, 40000, 80000, 150000};
    r->happened = r->was_cancelled = r->struck = false;
    r->result = r->second = 1 << 30;
    r->limit_ns = state.deadline ? limits_ns[dice(ARRAY_SIZE(limits_ns))] : 0;
    r->cancel_step = dice(5);
    r->event_step = dice(6);
    r->race->begin(r);
    cr_expect_eq(coil_spawn(&r->task, racer_task, r), 0);
}

static void event_of(struct racer *r) {
    r->happened = true;
    r->race->event(r);
}

static void act(struct racer *r, unsigned step) {
    bool cancel = !state.deadline && r->cancel_step == step, event = r->event_step == step && !r->happened;
    if (r->race->tease && step > 0 && !r->happened && dice(4) == 0) {
        r->race->tease(r);
        if (r->happened) event = false;
    }
    if (cancel && event && dice(2)) {
        event_of(r);
        event = false;
    }
    if (cancel) coil_cancel(r->task);
    if (event) event_of(r);
}

/* 0: before it runs. 1: it has run, its request is queued. 2: submitted. 3: some time later, from a timer. 4:
 * the end. */
static void pass_to(unsigned step) {
    if (step == 1) coil_yield();
    if (step == 2) coil_nop();
    if (step == 3) coil_sleep(coil_ns(1 + dice(60000)));
    if (step == 4 && dice(2)) driver()->ops->enter(driver(), 0);
}

static const char *judge(struct racer *r) {
    int lost = state.deadline ? -ETIME : -ECANCELED;
    if (r->result < 0 && r->result != lost) return "neither success nor the error of a cancel or a limit";
    if (r->struck != (r->result == -ETIME)) return "the scope and the result don't tell the same";
    if (r->was_cancelled && r->second != -ECANCELED) return "a cancel did not show at the next call";
    if (r->result >= 0) state.won++;
    if (r->result < 0) state.lost++;
    return r->race->settle(r);
}

static void batch(void) {
    for (int i = 0; i < RACERS; i++)
        start_racer(&state.racers[i]);
    for (unsigned step = 0; step < 5; step++) {
        pass_to(step);
        for (int i = 0; i < RACERS; i++)
            act(&state.racers[i], step);
    }
    for (int i = 0; i < RACERS; i++) {
        struct racer *r = &state.racers[i];
        join(r->task);
        const char *wrong = judge(r);
        if (!wrong) continue;
        state.failures++;
        cr_expect_fail("%s: seed %llu, result %d, second %d, event %d, steps %u %u, limit %lld", wrong,
                       (unsigned long long)state.first_seed, r->result, r->second, r->happened,
                       r->cancel_step, r->event_step, (long long)r->limit_ns);
    }
    coil_nop();
    cr_expect_eq(worker()->ops.live, 0, "requests are left");
}

static int race_task(void *arg) {
    const int *rounds = arg;
    for (int i = 0; i < *rounds && !state.failures; i += RACERS)
        batch();
    return 0;
}

static void race(const struct race *kind, bool deadline) {
    const char *seed = getenv("COIL_TEST_SEED");
    int warm_up = 8 * RACERS, rounds = check_rounds(10000), before = check_fd_count();
    state.race = kind;
    state.deadline = deadline;
    state.seed = seed ? strtoull(seed, NULL, 10) : (uint64_t)coil_now().ns | 1;
    state.first_seed = state.seed;
    for (int i = 0; i < RACERS; i++) {
        state.racers[i].race = kind;
        kind->open(&state.racers[i]);
    }
    int opened = check_fd_count();
    cr_assert_eq(coil_run(race_task, &warm_up), 0);
    int maps = check_map_count();
    long rss_kb = check_rss_kb();
    cr_assert_eq(coil_run(race_task, &rounds), 0);
    cr_expect_eq(check_fd_count(), opened, "descriptors: seed %llu", (unsigned long long)state.first_seed);
    if (!CHECK_SANITIZED) {
        cr_expect_leq(check_map_count(), maps + 2, "mappings");
        cr_expect_leq(check_rss_kb(), rss_kb + 1024, "memory");
    }
    for (int i = 0; i < RACERS; i++)
        kind->close(&state.racers[i]);
    cr_expect_eq(check_fd_count(), before, "descriptors after closing");
    cr_expect(state.won > rounds / 50 && state.lost > rounds / 50, "it was no race: %d won, %d lost",
              state.won, state.lost);
}

static void nothing(struct racer *r) {
    (void)r;
}

/* ---- receive ---- */

static void pair_open(struct racer *r) {
    int fd[2];
    make_pair(fd);
    r->fd = fd[0];
    r->peer = fd[1];
}

static void pair_close(struct racer *r) {
    close(r->fd);
    close(r->peer);
}

static void recv_begin(struct racer *r) {
    r->byte = 0;
}

static int recv_call(struct racer *r) {
    return (int)coil_recv(r->fd, &r->byte, 1, 0);
}

static void recv_event(struct racer *r) {
    cr_expect_eq(send(r->peer, "x", 1, MSG_DONTWAIT), 1);
}

/* A byte that comes and is gone again before the request looks at it; unless the request was quicker, as it
 * may be where completions are made at any system call. */
static void recv_tease(struct racer *r) {
    char byte;
    cr_expect_eq(send(r->peer, "x", 1, MSG_DONTWAIT), 1);
    r->happened = recv(r->fd, &byte, 1, MSG_DONTWAIT) != 1;
}

static const char *recv_settle(struct racer *r) {
    char bytes[4];
    ssize_t n = recv(r->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    size_t left = n > 0 ? (size_t)n : 0;
    if (!r->happened && r->result == 1) return "a byte out of nothing";
    if (r->result == 1 && r->byte != 'x') return "another byte";
    if (r->result == 1 && left) return "a byte was delivered twice";
    if (r->result < 0 && left != r->happened) return "a byte was lost";
    if (r->result < 0 && r->byte) return "the buffer was written to all the same";
    return NULL;
}

static const struct race recv_race = {pair_open,  recv_begin,  recv_call, recv_event,
                                      recv_tease, recv_settle, pair_close};

Test(op_race, cancel_against_receive_has_one_outcome_and_loses_no_byte) {
    race(&recv_race, false);
}

Test(op_race, deadline_against_receive_has_one_outcome_and_loses_no_byte) {
    race(&recv_race, true);
}

/* ---- send ---- */

static void send_open(struct racer *r) {
    int small = 1;
    pair_open(r);
    setsockopt(r->fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
}

/* Fills the socket. */
static void send_begin(struct racer *r) {
    static char filler[256];
    memset(filler, 'f', sizeof filler);
    r->filler = 0;
    for (ssize_t n; (n = send(r->fd, filler, sizeof filler, MSG_DONTWAIT)) > 0;)
        r->filler += (size_t)n;
}

static int send_call(struct racer *r) {
    static char text[700];
    memset(text, 's', sizeof text);
    return (int)coil_send(r->fd, text, sizeof text, 0);
}

/* Counts what arrives, up to `max` bytes. */
static void take(struct racer *r, size_t max, size_t *fillers, size_t *sent) {
    char buf[4096];
    for (ssize_t n; max && (n = recv(r->peer, buf, MIN(sizeof buf, max), MSG_DONTWAIT)) > 0;
         max -= (size_t)n) {
        for (ssize_t i = 0; i < n; i++) {
            *fillers += buf[i] == 'f';
            *sent += buf[i] == 's';
        }
    }
}

static void send_event(struct racer *r) {
    size_t fillers = 0, sent = 0;
    take(r, r->filler - 1, &fillers, &sent);
    cr_expect(fillers == r->filler - 1 && sent == 0, "%zu of %zu", fillers, r->filler);
    r->filler = 1;
}

static const char *send_settle(struct racer *r) {
    size_t fillers = 0, sent = 0;
    take(r, SIZE_MAX, &fillers, &sent);
    if (fillers != r->filler) return "the filler is damaged";
    if (r->result > 0 && !r->happened) return "it was sent into a full socket";
    if (sent != (r->result > 0 ? (size_t)r->result : 0)) return "what was sent is not what was told";
    return NULL;
}

static const struct race send_race = {send_open, send_begin,  send_call, send_event,
                                      NULL,      send_settle, pair_close};

Test(op_race, cancel_against_send_has_one_outcome_and_tells_every_byte) {
    race(&send_race, false);
}

Test(op_race, deadline_against_send_has_one_outcome_and_tells_every_byte) {
    race(&send_race, true);
}

/* ---- accept and connect ---- */

static void listener_open(struct racer *r) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    bool tcp = (r - state.racers) % 2 == 0 || state.race->event == nothing;
    r->listener = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_expect_eq(bind(r->listener, tcp ? (void *)&in : (void *)&un, tcp ? sizeof in : sizeof(sa_family_t)),
                 0);
    cr_expect_eq(listen(r->listener, 16), 0);
    r->addr_len = sizeof r->addr;
    cr_expect_eq(getsockname(r->listener, (struct sockaddr *)&r->addr, &r->addr_len), 0);
}

static void listener_close(struct racer *r) {
    close(r->listener);
}

/* Closing it resets the connection: none is left in TIME_WAIT. */
static int client(const struct racer *r) {
    struct linger reset = {.l_onoff = 1};
    int fd = socket(r->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    return fd;
}

static int accept_waiting(int listener, int wait_ms) {
    struct pollfd p = {.fd = listener, .events = POLLIN};
    if (poll(&p, 1, wait_ms) != 1) return -1;
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

static void accept_begin(struct racer *r) {
    r->peer = -1;
}

static int accept_call(struct racer *r) {
    return coil_accept(r->listener, NULL, NULL, SOCK_CLOEXEC);
}

static void accept_event(struct racer *r) {
    r->peer = client(r);
    cr_expect_eq(connect(r->peer, (struct sockaddr *)&r->addr, r->addr_len), 0);
}

static const char *accept_settle(struct racer *r) {
    char byte = 0;
    int fd = r->result;
    if (fd >= 0 && !r->happened) return "a connection out of nothing";
    if (fd < 0 && r->happened) fd = accept_waiting(r->listener, 5000);
    if (fd < 0 && r->happened) return "a connection was lost";
    if (r->happened) {
        cr_expect_eq(send(r->peer, "c", 1, 0), 1);
        if (recv(fd, &byte, 1, 0) != 1 || byte != 'c') return "the connection is another one";
        close(r->peer);
        close(fd);
    }
    if (accept_waiting(r->listener, 0) >= 0) return "a connection was given out twice";
    return NULL;
}

static const struct race accept_race = {listener_open, accept_begin,  accept_call,   accept_event,
                                        NULL,          accept_settle, listener_close};

Test(op_race, cancel_against_accept_has_one_outcome_and_loses_no_connection) {
    race(&accept_race, false);
}

Test(op_race, deadline_against_accept_has_one_outcome_and_loses_no_connection) {
    race(&accept_race, true);
}

/* Half of them connect to a listener that has room, half to one that never answers. */
static void connect_open(struct racer *r) {
    bool full = (r - state.racers) % 2;
    listener_open(r);
    r->peer = -1;
    if (!full) return;
    listen(r->listener, 0);
    r->peer = client(r);
    cr_expect_eq(connect(r->peer, (struct sockaddr *)&r->addr, r->addr_len), 0);
    if (r->addr.ss_family == AF_INET) peers_await_backlog(r->listener);
}

static void connect_close(struct racer *r) {
    if (r->peer >= 0) close(r->peer);
    listener_close(r);
}

static void connect_begin(struct racer *r) {
    r->fd = client(r);
}

static int connect_call(struct racer *r) {
    return coil_connect(r->fd, (struct sockaddr *)&r->addr, r->addr_len);
}

/* The listener's end of the connection that fd has. One that was cancelled before may have come through after
 * all, late, and stand in front of it. */
static int accept_from(int listener, int fd, int wait_ms) {
    struct sockaddr_storage own = {0}, from = {0};
    socklen_t len = sizeof own;
    getsockname(fd, (struct sockaddr *)&own, &len);
    for (;;) {
        int got = accept_waiting(listener, wait_ms);
        if (got < 0) return got;
        len = sizeof from;
        bool same = getpeername(got, (struct sockaddr *)&from, &len) == 0 &&
                    (own.ss_family == AF_UNIX || memcmp(&own, &from, len) == 0);
        if (same) return got;
        close(got);
    }
}

static const char *connect_settle(struct racer *r) {
    const char *wrong = NULL;
    char byte = 0;
    if (r->result == 0 && r->peer >= 0) wrong = "it connected to a full listener";
    if (r->result == 0 && r->peer < 0) {
        int fd = accept_from(r->listener, r->fd, 5000);
        if (fd < 0) wrong = "a connection was lost";
        if (fd >= 0 && (send(r->fd, "c", 1, 0) != 1 || recv(fd, &byte, 1, 0) != 1))
            wrong = "it does not work";
        if (fd >= 0) close(fd);
    }
    close(r->fd);
    for (int fd; r->peer < 0 && (fd = accept_waiting(r->listener, 0)) >= 0;)
        close(fd);
    return wrong;
}

static const struct race connect_race = {connect_open, connect_begin,  connect_call, nothing,
                                         NULL,         connect_settle, connect_close};

Test(op_race, cancel_against_connect_has_one_outcome_and_loses_no_descriptor) {
    race(&connect_race, false);
}

Test(op_race, deadline_against_connect_has_one_outcome_and_loses_no_descriptor) {
    race(&connect_race, true);
}
