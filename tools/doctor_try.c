/* What coil needs, tried: a whole run first, because only that proves that one is possible and shows which
 * driver it chooses; then the parts, which tell why. */
#include "doctor.h"
#include "poll.h"
#include "ring.h"
#include "stack.h"

#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- a run, in a child: it may stop the process ---- */

struct trial {
    int result;
    enum coil_driver_kind driver;
};

static int note_driver(void *arg) {
    struct trial *t = arg;
    coil_stats s;
    coil_stats_get(&s);
    t->driver = s.driver;
    return 0;
}

static _Noreturn void run_in_child(struct trial *t) {
    static const coil_run_opts quiet = {.quiet = true};
    static const struct rlimit no_core;
    setrlimit(RLIMIT_CORE, &no_core);
    /* Its last words before an abort would only say again what is found out below. */
    if (!freopen("/dev/null", "w", stderr)) close(STDERR_FILENO);
    t->result = coil_run_with(&quiet, note_driver, t);
    _exit(0);
}

/* The child answers through memory that both share: a pipe would take descriptors, which may be what is
 * scarce. */
static void try_run(struct doctor *d) {
    int status = 0;
    d->run.result = COIL_ESTART_NOMEM;
    struct trial *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (t == MAP_FAILED) return;
    t->result = COIL_ESTART_NOMEM;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) run_in_child(t);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    d->run.result = t->result;
    d->run.driver = t->driver;
    d->run.signal = pid > 0 && WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    munmap(t, sizeof *t);
}

/* ---- io_uring's system calls ---- */

/* Filters and sysctls answer before the arguments are looked at, so that arguments without sense tell a
 * forbidden call from an allowed one. */
static struct answer answer_of(const char *call, long number, long fd_or_entries) {
    struct answer a = {.call = call};
    if (syscall(number, fd_or_entries, 0, 0, 0, 0, 0) < 0 &&
        (errno == EPERM || errno == EACCES || errno == ENOSYS))
        a.error = errno;
    return a;
}

const char *doctor_errno_name(int error) {
    return error == EPERM ? "EPERM" : error == EACCES ? "EACCES" : "ENOSYS";
}

static void try_calls(struct doctor *d) {
    d->answers[0] = answer_of("io_uring_setup", SYS_io_uring_setup, 0);
    d->answers[1] = answer_of("io_uring_enter", SYS_io_uring_enter, INT_MAX);
    d->answers[2] = answer_of("io_uring_register", SYS_io_uring_register, INT_MAX);
}

/* ---- the drivers ---- */

/* How large a ring became is told by the kernel alone, and by 5.16 or later. */
static void read_ring_size(struct doctor *d, const char *fd) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%.20s", fd);
    FILE *f = fopen(path, "re");
    unsigned mask;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "SqMask: %x", &mask) == 1) d->sq_entries = (struct known){true, mask + 1LL};
        if (sscanf(line, "CqMask: %x", &mask) == 1) d->cq_entries = (struct known){true, mask + 1LL};
    }
    if (f) fclose(f);
}

static void find_ring_size(struct doctor *d) {
    DIR *fds = opendir("/proc/self/fd");
    d->sq_entries = d->cq_entries = (struct known){0};
    for (struct dirent *e; fds && (e = readdir(fds));) {
        char link[64] = "";
        ssize_t n = readlinkat(dirfd(fds), e->d_name, link, sizeof link - 1);
        if (n > 0 && strstr(link, "[io_uring]")) read_ring_size(d, e->d_name);
    }
    if (fds) closedir(fds);
}

static int open_ring(uint64_t unused, struct coil__driver **out, struct coil__driver_error *err) {
    struct coil__ring_opts o = {.sq_entries = SQ_WANTED,
                                .cq_entries = CQ_WANTED,
                                .pool_buffers = BUFFERS_WANTED,
                                .pool_buffer_size = BUFFER_SIZE,
                                .caps_unused = unused};
    return coil__ring_open(&o, out, err);
}

static void take_error(struct attempt *a, const struct coil__driver_error *err) {
    a->code = err->code;
    memcpy(a->why_not, err->text, sizeof a->why_not);
}

static struct attempt try_ring(struct doctor *d, uint64_t unused) {
    struct attempt a = {0};
    struct coil__driver *driver;
    struct coil__driver_error err = {.text = "out of memory"};
    if (open_ring(unused, &driver, &err)) {
        take_error(&a, &err);
        return a;
    }
    a.caps = driver->caps;
    find_ring_size(d);
    driver->ops->destroy(driver);
    return a;
}

static bool cramped(const struct doctor *d, const struct attempt *a) {
    return a->code == COIL_ESTART_MEMLOCK || (d->sq_entries.yes && d->sq_entries.value < SQ_WANTED) ||
           (d->cq_entries.yes && d->cq_entries.value < CQ_WANTED);
}

/* Where rings count as locked memory, that of a ring is given back some time after its end, and there was one
 * a moment ago. */
static struct attempt try_ring_patiently(struct doctor *d, uint64_t unused) {
    static const struct timespec a_while = {.tv_nsec = 50000000};
    struct attempt a = try_ring(d, unused);
    for (int round = 0; round < 4 && cramped(d, &a); round++) {
        nanosleep(&a_while, NULL);
        a = try_ring(d, unused);
    }
    return a;
}

/* A second ring, with nothing forced off, shows what COIL_CAPS keeps from being used. */
static void try_uring(struct doctor *d) {
    if (d->forced_off) d->found |= try_ring_patiently(d, 0).caps;
    d->ring = try_ring_patiently(d, d->forced_off);
    d->found |= d->ring.caps;
}

static void try_epoll(struct doctor *d) {
    struct coil__driver *driver;
    struct coil__driver_error err = {.text = "out of memory"};
    if (coil__poll_open(d->forced_off, &driver, &err)) {
        take_error(&d->epoll, &err);
        return;
    }
    d->epoll.caps = driver->caps;
    driver->ops->destroy(driver);
}

void doctor_try(struct doctor *d) {
    try_run(d);
    d->found = COIL__CAP_BIT(DIRECT_SEND); /* every kernel has it; where calls are dear it stays unused */
    if (coil__caps_parse(d->caps_variable, &d->forced_off, &d->bad_cap) == 0) d->bad_cap = NULL;
    try_calls(d);
    try_uring(d);
    try_epoll(d);
    if (coil__stack_probe_guard_install()) d->found |= COIL__CAP_BIT(GUARD_INSTALL);
}
