#include "bench_run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const int READY_MS = 15000, EXIT_MS = 10000;

static int stop_pipe[2];

const struct bench_kind *bench_find_server(const char *name) {
    static const struct bench_kind kinds[] = {
        {"coil", bench_coil, NULL, NULL, 0},
        {"coil-5.10", bench_coil_uring, "5.10", "epoll", 1.15},
        {"coil-epoll", bench_coil_epoll, NULL, "epoll", 1.10},
        {"raw-send", bench_raw_send, NULL, NULL, 0},
        {"raw-sqe", bench_raw_sqe, NULL, NULL, 0},
        {"epoll", bench_epoll, NULL, NULL, 0},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    return NULL;
}

/* One way to stop for all servers: SIGTERM makes the pipe readable. */
static void on_term(int sig) {
    (void)sig;
    int saved = errno;
    if (write(stop_pipe[1], "", 1) < 0) _exit(1);
    errno = saved;
}

int bench_serve_here(const struct bench_opts *o, const char *name, int ready_fd) {
    if (pipe2(stop_pipe, O_CLOEXEC) < 0) return 1;
    struct sigaction act = {.sa_handler = on_term, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &act, NULL);
    bench_pin(o->server_cpu);
    bench_files_max();
    const struct bench_kind *kind = bench_find_server(name);
    struct bench_server s = {
        .opts = o,
        .caps = kind->caps,
        .ready_fd = ready_fd,
        .stop_fd = stop_pipe[0],
        .stop_wr = stop_pipe[1],
        .count_bytes = o->count * o->size,
        .spin = o->spin == BENCH_SPIN_ALL,
    };
    int err = kind->fn(&s);
    if (err < 0) fprintf(stderr, "echo_bench: server %s: %s\n", name, strerror(-err));
    return err < 0;
}

static pid_t start_server(const struct bench_opts *o, const char *name, int *ready_fd) {
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) < 0) return -1;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        close(ready[0]);
        exit(bench_serve_here(o, name, ready[1]));
    }
    close(ready[1]);
    *ready_fd = ready[0];
    return pid;
}

/* 0 if the server ended, or did not listen in time. */
static unsigned wait_ready(int fd) {
    unsigned port = 0;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, READY_MS) != 1 || read(fd, &port, sizeof port) != (ssize_t)sizeof port) port = 0;
    close(fd);
    return port;
}

/* A server that does not end by itself when told to is an error too. */
static void stop_server(pid_t pid, const char *name, struct bench_result *out) {
    int status = 0, waited_ms = 0;
    kill(pid, SIGTERM);
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (waited_ms++ == EXIT_MS) kill(pid, SIGKILL);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    char first[sizeof out->error];
    memcpy(first, out->error, sizeof first);
    const char *how = waited_ms > EXIT_MS ? "did not end when told to"
                      : WIFEXITED(status) ? "ended with an error"
                                          : strsignal(WTERMSIG(status));
    snprintf(out->error, sizeof out->error, "server %s: %s%s%.80s", name, how, first[0] ? "; " : "", first);
}

static void run_load(const struct bench_opts *o, const struct bench_target *t, struct bench_result *out) {
    int status;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm((unsigned)(o->warmup + o->seconds) + 120); /* the last resort: no run is without an end */
        bench_pin(o->load_cpu);
        bench_load(o, t, out);
        exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        snprintf(out->error, sizeof out->error, "load generator: %s", strerror(errno));
    else if (WIFSIGNALED(status))
        snprintf(out->error, sizeof out->error, "load generator: %s", strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) != 0)
        snprintf(out->error, sizeof out->error, "load generator: exit status %d", WEXITSTATUS(status));
}

static void name_server(struct bench_result *out, const char *name) {
    char what[sizeof out->error];
    if (!out->error[0] || strncmp(out->error, "server ", 7) == 0) return;
    memcpy(what, out->error, sizeof what);
    snprintf(out->error, sizeof out->error, "server %s: %.120s", name, what);
}

void bench_measure(const struct bench_opts *o, const char *server, struct bench_result *out) {
    memset(out, 0, sizeof *out);
    struct bench_result *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ready_fd;
    pid_t pid = shared == MAP_FAILED ? -1 : start_server(o, server, &ready_fd);
    if (pid < 0) {
        snprintf(out->error, sizeof out->error, "server %s: no process: %s", server, strerror(errno));
        return;
    }
    struct bench_target t = {wait_ready(ready_fd), pid, bench_ksoftirqd(o->server_cpu)};
    if (t.port) {
        run_load(o, &t, shared);
    } else {
        snprintf(shared->error, sizeof shared->error, "did not start to listen");
    }
    stop_server(pid, server, shared);
    name_server(shared, server);
    *out = *shared;
    munmap(shared, sizeof *shared);
}
