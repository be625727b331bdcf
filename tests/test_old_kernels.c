/* What older kernels do otherwise than today's, each with a test that fails there where coil forgets it. On
 * other kernels, and on tiers that are forced, most of them hold too. */
#include "caps.h"
#include "stream.h"

#include "check.h"
#include "peers.h"

#include "coil/coil.h"

#include <dirent.h>
#include <fcntl.h>
#include <liburing/compat.h>
#include <liburing/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* ---- what is asked of the kernel ---- */

/* Looks at each request on its way into the driver. */
static struct {
    const struct coil__driver_ops *real;
    struct coil__driver_ops ops;
    uint64_t opcodes; /* that the kernel knows, and its features, asked without the driver's help */
    unsigned features;
    unsigned requests, wrong;
} gate;

enum { PROBED = 64 };

static bool ask_kernel(void) {
    _Alignas(struct io_uring_probe) char
        bytes[sizeof(struct io_uring_probe) + PROBED * sizeof(struct io_uring_probe_op)] = {0};
    struct io_uring_probe *probe = (void *)bytes;
    struct io_uring_params p = {0};
    int fd = (int)syscall(SYS_io_uring_setup, 8, &p);
    if (fd < 0) return false;
    gate.features = p.features;
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, probe, PROBED) == 0) {
        for (unsigned i = 0; i < probe->ops_len && i < PROBED; i++)
            if (probe->ops[i].flags & IO_URING_OP_SUPPORTED) gate.opcodes |= UINT64_C(1) << i;
    }
    close(fd);
    return gate.opcodes != 0;
}

static bool knows(unsigned opcode) {
    return opcode < PROBED && gate.opcodes >> opcode & 1;
}

/* Flags in ioprio mean something only to kernels that know the opcodes which came with them; others take the
 * request for a plain one. The place of file_index they don't look at either. */
static bool suits_kernel(const struct io_uring_sqe *sqe) {
    if (!knows(sqe->opcode)) return false;
    if (sqe->file_index != 0) return false;
    if (sqe->flags & (IOSQE_IO_LINK | IOSQE_IO_HARDLINK | IOSQE_FIXED_FILE)) return false;
    if (sqe->flags & IOSQE_BUFFER_SELECT && !knows(IORING_OP_SOCKET)) return false;
    switch (sqe->opcode) {
    case IORING_OP_ACCEPT:
        return sqe->ioprio == 0 || (sqe->ioprio == IORING_ACCEPT_MULTISHOT && knows(IORING_OP_SOCKET));
    case IORING_OP_RECV:
        return sqe->ioprio == 0 || knows(IORING_OP_SENDMSG_ZC);
    case IORING_OP_POLL_ADD:
        return sqe->ioprio == 0 && (sqe->len == 0 || (sqe->len == IORING_POLL_ADD_MULTI &&
                                                      gate.features & IORING_FEAT_RSRC_TAGS));
    case IORING_OP_SEND:
    case IORING_OP_SENDMSG:
        /* All kernels that the tests run on add it themselves (5.10.46 does too), so only the request can
         * show it. */
        return sqe->ioprio == 0 && sqe->msg_flags & MSG_NOSIGNAL;
    default:
        return sqe->ioprio == 0;
    }
}

static void looks_at_request(struct coil__driver *d, struct coil__req *r) {
    gate.requests++;
    if (!suits_kernel(&r->sqe)) {
        gate.wrong++;
        cr_expect(false, "opcode %u, flags %#x, ioprio %#x, len %u", r->sqe.opcode, r->sqe.flags,
                  r->sqe.ioprio, r->sqe.len);
    }
    gate.real->queue(d, r);
}

static void stand_at_gate(struct coil__driver *d) {
    gate.real = d->ops;
    gate.ops = *d->ops;
    gate.ops.queue = looks_at_request;
    d->ops = &gate.ops;
}

static int echoes(void *arg) {
    coil_stream *s;
    char buf[4096];
    int n;
    if (coil_listener_accept(arg, &s)) return -1;
    while ((n = (int)coil_stream_read(s, buf, sizeof buf)) > 0)
        coil_stream_write(s, buf, (size_t)n);
    return coil_stream_close(s);
}

static coil_task spawned(coil_fn *fn, void *arg) {
    coil_task t;
    cr_expect_eq(coil_spawn(&t, fn, arg), 0);
    return t;
}

static int joined(coil_task t) {
    int result = -1;
    cr_expect_eq(coil_join(t, &result), 0);
    return result;
}

static void uses_streams(void) {
    static char big[100000];
    coil_listener *l;
    coil_stream *s;
    coil_addr a;
    char text[COIL_ADDR_TEXT_MAX];
    cr_expect_eq(coil_listen(&l, "127.0.0.1:0", NULL), 0);
    cr_expect_eq(coil_listener_addr(l, &a), 0);
    coil_addr_format(&a, text, sizeof text);
    for (int i = 0; i < 3; i++) {
        coil_task t = spawned(echoes, l);
        cr_expect_eq(coil_dial(&s, text, NULL), 0);
        cr_expect_eq(coil_stream_write(s, big, sizeof big), 0);
        cr_expect_eq(coil_stream_flush(s), 0);
        for (size_t got = 0; got < sizeof big;) {
            ssize_t n = coil_stream_read(s, big, sizeof big);
            cr_expect_gt(n, 0);
            if (n <= 0) break;
            got += (size_t)n;
        }
        cr_expect_eq(coil_stream_close(s), 0);
        cr_expect_eq(joined(t), 0);
    }
    cr_expect_eq(coil_listener_close(l), 0);
}

static void uses_calls(void) {
    int fd[2];
    char c;
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    coil_scope s = coil_within(coil_ms(1));
    cr_expect_eq(coil_recv(fd[0], &c, 1, 0), -ETIME);
    coil_leave(&s);
    cr_expect_eq(coil_send(fd[1], "xyz", 3, 0), 3);
    cr_expect_eq(coil_recv(fd[0], &c, 1, 0), 1);
    cr_expect_eq(coil_read(fd[0], &c, 1, 0), 1);
    cr_expect_eq(coil_poll(fd[0], POLLIN), POLLIN);
    cr_expect_eq(coil_write(fd[0], "x", 1, 0), 1);
    cr_expect_eq(coil_shutdown(fd[0], SHUT_WR), 0);
    cr_expect_eq(coil_nop(), 0);
    cr_expect_eq(coil_sleep(coil_ms(1)), 0);
    cr_expect_eq(coil_close(fd[0]), 0);
    cr_expect_eq(coil_close(fd[1]), 0);
}

static int uses_everything(void *arg) {
    (void)arg;
    stand_at_gate(coil__here->driver);
    uses_streams();
    uses_calls();
    cr_expect_gt(gate.requests, 10);
    return 0;
}

Test(old_kernels, no_request_asks_for_what_the_kernel_would_silently_ignore) {
    check_needs(ask_kernel(), "io_uring");
    cr_assert_eq(coil_run(uses_everything, NULL), 0);
    cr_assert_eq(gate.wrong, 0);
}

/* ---- waiting without a time in the call ---- */

static int sleeps_alone(void *arg) {
    coil_stats before, after;
    (void)arg;
    coil_stats_get(&before);
    for (int i = 0; i < 20; i++) {
        int64_t began_ns = coil_now().ns;
        cr_expect_eq(coil_sleep(coil_ms(2)), 0);
        cr_expect_geq(coil_now().ns - began_ns, coil_ms(2).ns);
    }
    coil_stats_get(&after);
    cr_expect_eq(after.completions, before.completions, "a hidden timeout would show its completion");
    cr_expect_leq(after.turns - before.turns, 20 * 12, "it turned instead of sleeping");
    return 0;
}

Test(old_kernels, a_wait_with_a_limit_needs_no_request_of_its_own) {
    cr_assert_eq(coil_run(sleeps_alone, NULL), 0);
}

/* ---- wake-ups that somebody else has used ---- */

enum { RINGS = 3, STEALS = 12 };

/* Reads a small file of /proc; false: it can't be had. */
static bool read_text(const char *dir, const char *task, const char *file, char *text, size_t size) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s/%s", dir, task, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    text[MAX(n, 0)] = 0;
    return n > 0;
}

/* Threads of the kernel that are in the middle of a request: threads of this process since 5.12, the kernel's
 * own before. Where their stacks can't be read, those that rest count too. */
static int busy_workers_in(const char *dir, const char *name) {
    char text[4096];
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!read_text(dir, e->d_name, "comm", text, sizeof text) || strncmp(text, name, strlen(name)))
            continue;
        n += !read_text(dir, e->d_name, "stack", text, sizeof text) || strstr(text, "io_issue_sqe");
    }
    if (d) closedir(d);
    return n;
}

static int busy_workers(void) {
    return busy_workers_in("/proc/self/task", "iou-wrk") + busy_workers_in("/proc", "io_wqe_worker");
}

struct contest {
    int fd;
    int (*take)(int fd); /* 1: got it */
    sem_t taken;
    atomic_int ready, ended;
    coil_task tasks[RINGS];
};

struct contestant {
    struct contest *c;
    int number, result;
};

static int takes_until_cancelled(void *arg) {
    struct contestant *me = arg;
    me->c->tasks[me->number] = coil_self();
    atomic_fetch_add(&me->c->ready, 1);
    int n;
    while ((n = me->c->take(me->c->fd)) == 1)
        sem_post(&me->c->taken);
    return n;
}

static void *has_ring(void *arg) {
    struct contestant *me = arg;
    coil_run_opts o = {.quiet = true, .external_wakes = true};
    me->result = coil_run_with(&o, takes_until_cancelled, me);
    atomic_fetch_add(&me->c->ended, 1);
    return NULL;
}

static bool takes_in_time(sem_t *s) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 20;
    return sem_timedwait(s, &end) == 0;
}

/* Whether a request whose wake-up was stolen waits for the next one. In early 5.10 it goes on in a worker of
 * the kernel, where it blocks; a cancel must reach it there too. */
static bool waits_again(void) {
    return ask_kernel() && gate.features & IORING_FEAT_NATIVE_WORKERS;
}

/* Several rings wait on one descriptor, and there is something for one of them, again and again. */
static void contend(int fd, int (*take)(int fd), bool (*bring)(void *arg), void *arg, bool no_workers) {
    static struct contest c;
    static struct contestant players[RINGS];
    pthread_t threads[RINGS];
    c.fd = fd;
    c.take = take;
    sem_init(&c.taken, 0, 0);
    for (int i = 0; i < RINGS; i++) {
        players[i] = (struct contestant){.c = &c, .number = i};
        cr_assert_eq(pthread_create(&threads[i], NULL, has_ring, &players[i]), 0);
    }
    while (atomic_load(&c.ready) < RINGS)
        usleep(1000);
    for (int i = 0; i < STEALS; i++) {
        usleep(2000); /* lets them arm; where they have not, there is one theft less */
        cr_assert(bring(arg), "round %d", i);
        cr_assert(takes_in_time(&c.taken), "round %d: nobody took it", i);
    }
    usleep(20000);
    if (no_workers) cr_expect_eq(busy_workers(), 0, "a worker of the kernel waits: the wake-up was stolen");
    for (int i = 0; i < RINGS; i++)
        coil_cancel(c.tasks[i]);
    for (int i = 0; i < RINGS; i++) {
        pthread_join(threads[i], NULL);
        cr_expect_eq(players[i].result, -ECANCELED, "%d", players[i].result);
    }
}

static bool sends_byte(void *arg) {
    return send(*(int *)arg, "x", 1, 0) == 1;
}

static int reads_stream(int fd) {
    static _Thread_local coil_stream *s;
    char c;
    if (!s && coil_stream_adopt(&s, dup(fd))) return -EIO;
    int n = (int)coil_stream_read(s, &c, 1);
    if (n != 1) coil_stream_abort(s);
    return n;
}

Test(old_kernels, streams_that_share_a_socket_leave_no_worker_of_the_kernel_waiting) {
    int fd[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    contend(fd[0], reads_stream, sends_byte, &fd[1], true);
}

static int receives_byte(int fd) {
    char c;
    return (int)coil_recv(fd, &c, 1, 0);
}

Test(old_kernels, receives_that_share_a_socket_can_be_cancelled_after_a_theft) {
    int fd[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    contend(fd[0], receives_byte, sends_byte, &fd[1], waits_again());
}

static int accepts_one(int fd) {
    int got = coil_accept(fd, NULL, NULL, SOCK_CLOEXEC);
    if (got < 0) return got;
    close(got);
    return 1;
}

static bool connects(void *arg) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const coil_addr *a = arg;
    bool fine = connect(fd, &a->u.sa, a->len) == 0;
    close(fd);
    return fine;
}

Test(old_kernels, accepts_that_share_a_listener_can_be_cancelled_after_a_theft) {
    coil_addr a;
    char text[64];
    snprintf(text, sizeof text, "unix:/tmp/coil_old_kernels_%d", (int)getpid());
    cr_assert_eq(coil_addr_parse(&a, text), 0);
    int l = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(l, &a.u.sa, a.len), 0);
    cr_assert_eq(listen(l, 16), 0);
    contend(l, accepts_one, connects, &a, waits_again());
    unlink(text + 5);
}

struct theft {
    coil_listener *l;
    int result;
};

static int accepts_in_vain(void *arg) {
    struct theft *theft = arg;
    coil_stream *s;
    while ((theft->result = coil_listener_accept(theft->l, &s)) == 0)
        coil_stream_abort(s);
    return theft->result;
}

/* The descriptor of the process's only listening socket. */
static int listening_fd(void) {
    for (int fd = 3; fd < 256; fd++) {
        int on = 0;
        socklen_t n = sizeof on;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &n) == 0 && on) return fd;
    }
    return -1;
}

struct thief {
    int fd;
    coil_addr where;
};

static void *connects_and_steals(void *arg) {
    const struct thief *thief = arg;
    for (int i = 0; i < STEALS; i++) {
        int fd = peers_connect(&thief->where);
        int got = accept4(thief->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (got >= 0) close(got);
        peers_reset(fd);
        usleep(2000);
    }
    return NULL;
}

static int is_robbed(void *arg) {
    struct theft theft = {0};
    struct thief thief;
    pthread_t thread;
    (void)arg;
    cr_expect_eq(coil_listen(&theft.l, "127.0.0.1:0", NULL), 0);
    cr_expect_eq(coil_listener_addr(theft.l, &thief.where), 0);
    thief.fd = dup(listening_fd());
    fcntl(thief.fd, F_SETFL, O_RDWR | O_NONBLOCK);
    coil_task t = spawned(accepts_in_vain, &theft);
    coil_sleep(coil_ms(1));
    cr_expect_eq(pthread_create(&thread, NULL, connects_and_steals, &thief), 0);
    coil_sleep(coil_ms(STEALS * 4));
    pthread_join(thread, NULL);
    cr_expect_eq(busy_workers(), 0, "a worker of the kernel waits");
    cr_expect_eq(coil_listener_close(theft.l), 0);
    cr_expect_eq(joined(t), -EBADF);
    close(thief.fd);
    return 0;
}

Test(old_kernels, a_listener_whose_connections_are_stolen_leaves_no_worker_of_the_kernel_waiting) {
    cr_assert_eq(coil_run(is_robbed, NULL), 0);
}

/* ---- signals of broken pipes ---- */

static bool pipe_signal_pending(void) {
    sigset_t s;
    sigpending(&s);
    return sigismember(&s, SIGPIPE);
}

static void broken_pair(int fd[2]) {
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    close(fd[1]);
}

static int sends_to_nobody(void *arg) {
    int fd[2];
    struct iovec iov = {"x", 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    (void)arg;
    stand_at_gate(coil__here->driver);
    broken_pair(fd);
    cr_expect_eq(coil_send(fd[0], "x", 1, 0), -EPIPE);
    cr_expect_not(pipe_signal_pending(), "coil_send");
    cr_expect_eq(coil_sendmsg(fd[0], &m, 0), -EPIPE);
    cr_expect_not(pipe_signal_pending(), "coil_sendmsg");
    close(fd[0]);
    static char big[40000];
    static const size_t sizes[] = {1, sizeof big};
    for (int i = 0; i < 4; i++) {
        coil_stream *s;
        broken_pair(fd);
        cr_expect_eq(coil_stream_adopt(&s, fd[0]), 0);
        s->send_first = i & 1;
        int err = coil_stream_write(s, big, sizes[i / 2]);
        if (!err) err = coil_stream_flush(s);
        cr_expect_eq(err, -EPIPE, "%d", err);
        cr_expect_not(pipe_signal_pending(), "stream, %zu bytes", sizes[i / 2]);
        coil_stream_abort(s);
    }
    return 0;
}

Test(old_kernels, a_send_to_nobody_raises_no_signal) {
    check_needs(ask_kernel(), "io_uring");
    cr_assert_eq(coil_run(sends_to_nobody, NULL), 0);
}

/* ---- cancels name one request ---- */

struct receiver {
    int fd, result;
    char c;
};

static int receives(void *arg) {
    struct receiver *r = arg;
    return r->result = (int)coil_recv(r->fd, &r->c, 1, 0);
}

static int cancels_one_of_three(void *arg) {
    struct receiver r[3];
    coil_task t[3];
    int fd[2];
    (void)arg;
    cr_expect_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    for (int i = 0; i < 3; i++) {
        r[i] = (struct receiver){.fd = fd[0], .result = 77};
        t[i] = spawned(receives, &r[i]);
    }
    coil_sleep(coil_ms(1));
    coil_cancel(t[1]);
    cr_expect_eq(joined(t[1]), -ECANCELED);
    cr_expect(r[0].result == 77 && r[2].result == 77, "%d %d", r[0].result, r[2].result);
    cr_expect_eq(send(fd[1], "ab", 2, 0), 2);
    cr_expect_eq(joined(t[0]), 1);
    cr_expect_eq(joined(t[2]), 1);
    t[0] = spawned(receives, &r[0]);
    t[2] = spawned(receives, &r[2]);
    coil_sleep(coil_ms(1));
    cr_expect_eq(coil_close(fd[0]), 0);
    cr_expect_eq(joined(t[0]), -EBADF);
    cr_expect_eq(joined(t[2]), -EBADF);
    close(fd[1]);
    return 0;
}

Test(old_kernels, of_three_requests_on_a_descriptor_one_is_cancelled) {
    cr_assert_eq(coil_run(cancels_one_of_three, NULL), 0);
}

/* ---- a port that the last process has not quite let go ---- */

static coil_addr port;

/* Dies with an accept, a receive and a ring under way. */
static int dies_listening(void *arg) {
    coil_listener *l;
    int *ready = arg;
    coil_stream *s;
    if (coil_listen_addr(&l, &port, NULL) || coil_listener_addr(l, &port)) return 1;
    if (write(*ready, &port, sizeof port) != sizeof port) return 1;
    coil_scope limit = coil_within(coil_ms(5));
    coil_listener_accept(l, &s);
    coil_leave(&limit);
    _exit(0);
}

static int listens_again(void *arg) {
    coil_listener *l;
    (void)arg;
    int err = coil_listen_addr(&l, &port, NULL);
    if (!err) coil_listener_close(l);
    return err;
}

Test(old_kernels, a_port_is_had_again_at_once_after_its_process_has_died) {
    for (int i = 0; i < check_rounds(10); i++) {
        int ready[2], status;
        cr_assert_eq(coil_addr_parse(&port, "127.0.0.1:0"), 0);
        cr_assert_eq(pipe(ready), 0);
        pid_t pid = fork();
        if (pid == 0) _exit(coil_run(dies_listening, &ready[1]) ? 2 : 3);
        cr_assert_eq(read(ready[0], &port, sizeof port), (ssize_t)sizeof port);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        cr_assert_eq(status, 0, "%#x", (unsigned)status);
        int err = coil_run(listens_again, NULL);
        cr_assert_eq(err, 0, "round %d: %d", i, err);
        close(ready[0]);
        close(ready[1]);
    }
}
