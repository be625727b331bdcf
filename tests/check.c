/* The helpers of check.h that both ways of running share. */
#include "check.h"

#include <dirent.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHILD_LIMIT_MS = 30000 };

static _Noreturn void broken(const char *what) {
    perror(what);
    abort();
}

int check_rounds(int rounds) {
    const char *text = getenv("COIL_TEST_ROUNDS");
    double factor = text ? strtod(text, NULL) : 1.0;
    double scaled = rounds * factor;
    return scaled < 1 ? 1 : (int)scaled;
}

int check_thread_rounds(int rounds) {
    return check_rounds(check_on_uml() ? rounds / 10 : rounds);
}

int check_fd_count(void) {
    DIR *d = opendir("/proc/self/fd");
    if (!d) broken("/proc/self/fd");
    int n = -1; /* The directory's own descriptor is not the caller's. */
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

int check_map_count(void) {
    FILE *f = fopen("/proc/self/maps", "re");
    if (!f) broken("/proc/self/maps");
    int n = 0;
    for (int c; (c = getc(f)) != EOF;)
        n += c == '\n';
    fclose(f);
    return n;
}

long check_rss_kb(void) {
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) broken("/proc/self/statm");
    long size, resident;
    if (fscanf(f, "%ld %ld", &size, &resident) != 2) broken("/proc/self/statm");
    fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

size_t check_heap_bytes(void) {
#ifdef __GLIBC__
    struct mallinfo2 m = mallinfo2();
    if (!CHECK_SANITIZED) return m.uordblks + m.hblkhd; /* the second: large ones, mapped each for itself */
#endif
    return 0;
}

bool check_on_uml(void) {
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f) broken("/proc/cpuinfo");
    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof line, f))
        found = strstr(line, "User Mode Linux") != NULL;
    fclose(f);
    return found;
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Reads until the child, and whoever inherited its stderr, has closed it; true if that was in time. What does
 * not fit is read all the same, or a talkative child would hang in write. */
static bool drain(int fd, char *err, size_t err_size) {
    size_t have = 0;
    int64_t end_ms = now_ms() + CHILD_LIMIT_MS;
    bool done = false;
    for (int64_t left_ms; !done && (left_ms = end_ms - now_ms()) > 0;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, (int)left_ms) <= 0) continue;
        char chunk[512];
        ssize_t n = read(fd, chunk, sizeof chunk);
        done = n <= 0;
        for (ssize_t i = 0; i < n && have + 1 < err_size; i++)
            err[have++] = chunk[i];
    }
    if (err_size) err[have] = '\0';
    return done;
}

bool check_in_child(int (*fn)(void *arg), void *arg, int *status, char *err, size_t err_size) {
    int p[2];
    if (pipe(p) < 0) return false;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        dup2(p[1], STDERR_FILENO);
        close(p[0]);
        close(p[1]);
        int result = fn(arg);
        fflush(NULL);
        _exit(result);
    }
    close(p[1]);
    if (pid > 0) {
        if (!drain(p[0], err, err_size)) kill(pid, SIGKILL);
        while (waitpid(pid, status, 0) < 0)
            continue;
    }
    close(p[0]);
    return pid > 0;
}

bool check_aborts(int (*fn)(void *arg), void *arg, const char *message) {
    char err[4096];
    int status;
    if (!check_in_child(fn, arg, &status, err, sizeof err)) return false;
    bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    if (aborted && strstr(err, message)) return true;
    fprintf(stderr, "expected an abort and \"%s\"; the child's wait status was %#x, its stderr:\n%s\n",
            message, (unsigned)status, err);
    return false;
}

#ifndef CHECK_PLAIN
#include <criterion/hooks.h>

/* Criterion's own default would be no limit at all, and its option for one is read before a program can set
 * it. */
ReportHook(PRE_ALL)(struct criterion_test_set *tests) {
    if (criterion_options.timeout > 0) return;
    const char *text = getenv("COIL_TEST_TIMEOUT");
    double limit_s = text ? strtod(text, NULL) : 60;
    FOREACH_SET(struct criterion_suite_set *suite, tests->suites) {
        FOREACH_SET(struct criterion_test *test, suite->tests) {
            if (test->data->timeout <= 0) test->data->timeout = limit_s;
        }
    }
}
#endif
