/* Servers as whole programs run them: many connections, several threads, a restart, a signal. */
#include "check.h"
#include "peers.h"
#include "task.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

static int echoes(coil_stream *s, void *arg) {
    char buf[512];
    ssize_t n;
    (void)arg;
    while ((n = coil_stream_read(s, buf, sizeof buf)) > 0) {
        int err = coil_stream_write(s, buf, (size_t)n);
        if (err) return err;
    }
    return (int)n;
}

/* On plain sockets, blocking. */
static bool echo_works(int fd, char c) {
    char got = 0;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (send(fd, &c, 1, MSG_NOSIGNAL) != 1 || poll(&p, 1, 20000) != 1) return false;
    return recv(fd, &got, 1, 0) == 1 && got == c;
}

/* ---- ten thousand connections ---- */

enum { MANY_MAX = 10000, MANY_ROUNDS = 2 };

static int many; /* MANY_MAX, or fewer where rounds are */

struct many {
    int to_client, from_client; /* pipes */
    coil_listener *l;
    pid_t client;
};

struct held {
    int fds, maps;
    long rss_kb;
};

/* The client is a process of its own: both ends of all connections would be too many descriptors for one. */
static void client_of_many(int commands, int answers) {
    static int fds[MANY_MAX];
    coil_addr a;
    if (read(commands, &a, sizeof a) != sizeof a) _exit(1);
    for (char c; read(commands, &c, 1) == 1;) {
        int good = 0;
        for (int i = 0; i < many; i++)
            fds[i] = peers_connect(&a);
        for (int i = 0; i < many; i++)
            good += fds[i] >= 0 && echo_works(fds[i], (char)i);
        for (int i = 0; i < many; i++) {
            if (fds[i] >= 0) close(fds[i]);
        }
        if (write(answers, &good, sizeof good) != sizeof good) _exit(1);
    }
    _exit(0);
}

static int serves(void *arg) {
    return coil_serve(arg, echoes, NULL, NULL);
}

static uint64_t streams_now(void) {
    coil_stats st;
    coil_stats_get(&st);
    return st.streams_now;
}

static struct held one_round(struct many *m) {
    int good = 0;
    cr_expect_eq(coil_write(m->to_client, "g", 1, -1), 1);
    cr_expect_eq(coil_read(m->from_client, &good, sizeof good, -1), (ssize_t)sizeof good);
    cr_expect_eq(good, many);
    cr_expect(PEERS_AWAIT(streams_now() == 0));
    return (struct held){.fds = check_fd_count(), .maps = check_map_count(), .rss_kb = check_rss_kb()};
}

static int serves_many(void *arg) {
    struct many *m = arg;
    coil_task t;
    coil_addr a;
    struct held h[MANY_ROUNDS];
    cr_expect_eq(coil_listen(&m->l, "127.0.0.1:0", NULL), 0);
    coil_listener_addr(m->l, &a);
    cr_expect_eq(coil_spawn(&t, serves, m->l), 0);
    coil_yield();
    int fds = check_fd_count();
    cr_expect_eq(coil_write(m->to_client, &a, sizeof a, -1), (ssize_t)sizeof a);
    for (int i = 0; i < MANY_ROUNDS; i++) {
        h[i] = one_round(m);
        cr_expect_eq(h[i].fds, fds, "round %d: %d descriptors, %d before", i, h[i].fds, fds);
    }
    if (!CHECK_SANITIZED) {
        /* Where a guard is a mapping of its own, a slab that holds a warm stack keeps all of its guards; in
         * how many slabs the warm ones lie hangs on the order in which connections end. A few slabs more or
         * less are no growth: the ten thousand guards of a round that was not given back would be twenty
         * thousand mappings. */
        int slabs = coil__here->stacks.use_guard_install ? 0 : 8 * 2 * 64;
        cr_expect_leq(h[1].maps, h[0].maps + 8 + slabs, "mappings: %d, then %d", h[0].maps, h[1].maps);
        cr_expect_leq(h[1].rss_kb, h[0].rss_kb + 2048, "KiB: %ld, then %ld", h[0].rss_kb, h[1].rss_kb);
    }
    coil_cancel(t);
    cr_expect_eq(coil_join(t, NULL), 0);
    return coil_listener_close(m->l);
}

static struct many start_client(void) {
    int down[2], up[2];
    if (pipe(down) < 0 || pipe(up) < 0) abort();
    struct many m = {.to_client = down[1], .from_client = up[0], .client = fork()};
    if (m.client == 0) {
        close(down[1]);
        client_of_many(down[0], up[1]);
    }
    close(down[0]);
    close(up[1]);
    return m;
}

Test(flow_server, ten_thousand_connections_twice_leave_nothing_and_the_second_round_adds_no_memory) {
    many = MIN(check_rounds(MANY_MAX), MANY_MAX);
    if (!peers_want_descriptors(many + 100)) cr_skip("needs %d descriptors", many + 100);
    struct many m = start_client();
    int fds = check_fd_count(), maps = check_map_count();
    cr_assert_eq(coil_run(serves_many, &m), 0);
    cr_expect_eq(check_fd_count(), fds);
    if (!CHECK_SANITIZED) {
        cr_expect_leq(check_map_count(), maps + 16, "%d mappings, %d before", check_map_count(), maps);
    }
    close(m.to_client);
    close(m.from_client);
    int status = 0;
    cr_assert_eq(waitpid(m.client, &status, 0), m.client);
    cr_expect_eq(status, 0);
}

/* ---- two threads, one port ---- */

struct worker {
    coil_addr a;
    sem_t ready;
    coil_task server;
    _Atomic int served;
    int result;
};

static int echoes_and_counts(coil_stream *s, void *arg) {
    struct worker *w = arg;
    atomic_fetch_add(&w->served, 1);
    return echoes(s, NULL);
}

static int serves_shared_port(void *arg) {
    struct worker *w = arg;
    coil_listener *l;
    coil_listen_opts o = {.reuse_port = true};
    coil_serve_opts so = {.grace = coil_sec(20)};
    int err = coil_listen_addr(&l, &w->a, &o);
    w->server = coil_self();
    sem_post(&w->ready);
    if (err) return err;
    int left = coil_serve(l, echoes_and_counts, w, &so);
    coil_listener_close(l);
    return left;
}

static void *run_worker(void *arg) {
    struct worker *w = arg;
    w->result = coil_run(serves_shared_port, w);
    return NULL;
}

/* A bound socket that doesn't listen keeps the port for those that share it. */
static int reserve_port(coil_addr *a) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    coil_addr_parse(a, "127.0.0.1:0");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(fd, &a->u.sa, a->len) < 0) abort();
    getsockname(fd, &a->u.sa, &a->len);
    return fd;
}

Test(flow_server, two_workers_in_two_threads_serve_one_port) {
    enum { CLIENTS = 200 };
    static struct worker w[2];
    pthread_t threads[2];
    int fds[CLIENTS], before = check_fd_count();
    int reserved = reserve_port(&w[0].a);
    w[1].a = w[0].a;
    for (int i = 0; i < 2; i++) {
        sem_init(&w[i].ready, 0, 0);
        cr_assert_eq(pthread_create(&threads[i], NULL, run_worker, &w[i]), 0);
        sem_wait(&w[i].ready);
    }
    for (int i = 0; i < CLIENTS; i++)
        fds[i] = peers_connect(&w[0].a);
    for (int i = 0; i < CLIENTS; i++)
        cr_expect(echo_works(fds[i], (char)i), "%d", i);
    for (int i = 0; i < 2; i++)
        cr_expect_eq(coil_cancel(w[i].server), 0);
    cr_expect(echo_works(fds[0], 'z'), "who is there is served to the end");
    for (int i = 0; i < CLIENTS; i++) {
        shutdown(fds[i], SHUT_WR);
        cr_expect(peers_sees_end(fds[i]));
        close(fds[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        cr_expect_eq(w[i].result, 0, "%s", coil_strerror(w[i].result));
        cr_expect_gt(atomic_load(&w[i].served), 0, "the kernel shares out");
    }
    cr_expect_eq(w[0].served + w[1].served, CLIENTS);
    close(reserved);
    cr_assert_eq(check_fd_count(), before);
}

/* ---- ended and started again ---- */

struct program {
    coil_addr a;
    int report;
    coil_task server;
};

/* 'q' ends the process on the spot, 'c' ends the server in order. */
static int obeys(coil_stream *s, void *arg) {
    struct program *p = arg;
    char c = 0;
    while (coil_stream_read(s, &c, 1) == 1) {
        if (c == 'q') _exit(0);
        if (c == 'c') coil_cancel(p->server);
        int err = coil_stream_write(s, &c, 1);
        if (err) return err;
    }
    return 0;
}

static int program_task(void *arg) {
    struct program *p = arg;
    coil_listener *l;
    coil_serve_opts o = {.grace = coil_ns(-1)};
    int err = coil_listen_addr(&l, &p->a, NULL);
    if (write(p->report, &err, sizeof err) != sizeof err) return -EIO;
    if (err) return err;
    p->server = coil_self();
    coil_serve(l, obeys, p, &o);
    return coil_listener_close(l);
}

/* Starts it; the result of its listen comes in *err. */
static pid_t start_program(const coil_addr *a, int *err) {
    int report[2];
    if (pipe(report) < 0) abort();
    pid_t pid = fork();
    if (pid == 0) {
        struct program p = {.a = *a, .report = report[1]};
        close(report[0]);
        _exit(coil_run(program_task, &p) != 0);
    }
    close(report[1]);
    *err = -EPIPE;
    ssize_t n = read(report[0], err, sizeof *err);
    close(report[0]);
    return n == sizeof *err ? pid : -1;
}

static void end_program(pid_t pid, int how, int fd) {
    int status;
    if (how == 0) kill(pid, SIGKILL);
    if (how != 0) cr_expect_eq(send(fd, how == 1 ? "q" : "c", 1, MSG_NOSIGNAL), 1);
    cr_expect_eq(waitpid(pid, &status, 0), pid);
    if (how != 0) cr_expect_eq(status, 0, "%#x", (unsigned)status);
}

Test(flow_server, a_program_that_ends_and_is_started_again_at_once_gets_its_port) {
    coil_addr a;
    int fds[3], err;
    cr_assert_eq(coil_addr_parse(&a, "127.0.0.1:0"), 0);
    close(peers_listen(&a, 1));
    for (int i = 0; i < 50; i++) {
        pid_t pid = start_program(&a, &err);
        cr_assert_eq(err, 0, "start %d: %s", i, coil_strerror(err));
        for (int k = 0; k < 3; k++)
            fds[k] = peers_connect(&a);
        for (int k = 0; k < 2; k++)
            cr_expect(echo_works(fds[k], 'x'), "start %d", i);
        end_program(pid, i % 3, fds[0]);
        for (int k = 0; k < 3; k++) {
            if (fds[k] >= 0) close(fds[k]);
        }
    }
}

/* ---- a signal ---- */

struct polite {
    coil_listener *l;
    coil_addr a;
    int left;
};

static int serves_politely(void *arg) {
    struct polite *p = arg;
    coil_serve_opts o = {.grace = coil_ms(30)};
    p->left = coil_serve(p->l, echoes, NULL, &o);
    return 0;
}

static int ends_on_signal(void *arg) {
    const int signals[] = {SIGINT};
    int sig = coil_signal_wait(signals, 1);
    coil_group_cancel(arg);
    return sig < 0 ? sig : 0;
}

static int is_signalled(void *arg) {
    struct polite p = {.left = -1};
    int fds[5];
    (void)arg;
    cr_expect_eq(coil_listen(&p.l, "127.0.0.1:0", NULL), 0);
    coil_listener_addr(p.l, &p.a);
    COIL_GROUP(g);
    cr_expect_eq(coil_group_spawn(&g, ends_on_signal, &g), 0);
    cr_expect_eq(coil_group_spawn(&g, serves_politely, &p), 0);
    for (int i = 0; i < 5; i++)
        fds[i] = peers_connect(&p.a);
    cr_expect(PEERS_AWAIT(streams_now() == 5));
    kill(getpid(), SIGINT);
    cr_expect_eq(coil_group_wait(&g), 0);
    cr_expect_eq(p.left, 5, "idle clients are cut off after the grace");
    for (int i = 0; i < 5; i++) {
        cr_expect(peers_sees_end(fds[i]));
        close(fds[i]);
    }
    return coil_listener_close(p.l);
}

Test(flow_server, a_signal_ends_a_server_with_idle_clients) {
    int before = check_fd_count();
    cr_assert_eq(coil_run(is_signalled, NULL), 0);
    cr_assert_eq(check_fd_count(), before);
}
