/* The plain main of check.h: each test in a forked child of its own, one line per test, and a count at the
 * end. */
#include "check.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How the running test fares; shared with its children, so that what they find counts too. */
struct outcome {
    int failures;
    bool skipped;
    char why[256];
};

enum verdict { PASSED, FAILED, SKIPPED, VERDICTS };

static struct check_test *first, **last = &first;
static struct outcome *outcome;

void check_register(struct check_test *t) {
    *last = t;
    last = &t->next;
}

void check_failed(bool fatal, const char *file, int line, const char *what, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    __atomic_add_fetch(&outcome->failures, 1, __ATOMIC_RELAXED);
    fprintf(stderr, "%s:%d: not so: %s:%s\n", file, line, what, text);
    fflush(NULL);
    if (fatal) _exit(1);
}

void check_skip(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(outcome->why, sizeof outcome->why, fmt, ap);
    va_end(ap);
    outcome->skipped = true;
    fflush(NULL);
    _exit(0);
}

bool check_str_eq(const char *a, const char *b) {
    bool same = a && b && strcmp(a, b) == 0;
    if (!same) fprintf(stderr, "\"%s\"\n\"%s\"\n", a ? a : "(null)", b ? b : "(null)");
    return same;
}

bool check_mem_eq(const void *a, const void *b, size_t n) {
    return n == 0 || memcmp(a, b, n) == 0;
}

static _Noreturn void run_body(const struct check_test *t) {
    if (t->signal) setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    if (t->init) t->init();
    t->body();
    if (t->fini) t->fini();
    exit(0); /* Not _exit: the leak check of a sanitizer runs here and speaks through the status. */
}

static double limit_s(const struct check_test *t) {
    if (t->timeout > 0) return t->timeout;
    const char *text = getenv("COIL_TEST_TIMEOUT");
    return text ? strtod(text, NULL) : 60;
}

/* Waits for SIGCHLD, which main blocked; false once the limit has passed with the child still there. */
static bool wait_child(pid_t pid, double limit, int *status) {
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += (time_t)limit;
    end.tv_nsec += (long)((limit - (double)(time_t)limit) * 1e9);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    for (;;) {
        if (waitpid(pid, status, WNOHANG) == pid) return true;
        clock_gettime(CLOCK_MONOTONIC, &now);
        long long left_ns = (end.tv_sec - now.tv_sec) * 1000000000LL + (end.tv_nsec - now.tv_nsec);
        if (left_ns <= 0) return false;
        sigtimedwait(&child, NULL, &(struct timespec){left_ns / 1000000000, left_ns % 1000000000});
    }
}

static enum verdict judge(const struct check_test *t, int status) {
    if (outcome->failures) {
        snprintf(outcome->why, sizeof outcome->why, " %d checks failed", outcome->failures);
        return FAILED;
    }
    if (outcome->skipped) return SKIPPED;
    int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (signal == t->signal && code == t->exit_code) return PASSED;
    if (signal)
        snprintf(outcome->why, sizeof outcome->why, " ended by signal %d (%s)", signal, strsignal(signal));
    else
        snprintf(outcome->why, sizeof outcome->why, " exit code %d, signal 0", code);
    return FAILED;
}

static enum verdict run_test(const struct check_test *t, const sigset_t *mask) {
    memset(outcome, 0, sizeof *outcome);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpgid(0, 0);
        sigprocmask(SIG_SETMASK, mask, NULL);
        run_body(t);
    }
    if (pid < 0) {
        snprintf(outcome->why, sizeof outcome->why, " fork: %s", strerror(errno));
        return FAILED;
    }
    setpgid(pid, pid); /* Both sides do it, or a group that is killed early might not be there yet. */
    int status = 0;
    bool ended = wait_child(pid, limit_s(t), &status);
    kill(-pid, SIGKILL); /* Also what an ended test left running. */
    if (ended) return judge(t, status);
    waitpid(pid, &status, 0);
    snprintf(outcome->why, sizeof outcome->why, " not done after %g s", limit_s(t));
    return FAILED;
}

static bool wanted(const struct check_test *t, int argc, char **argv) {
    char full[512];
    snprintf(full, sizeof full, "%s/%s", t->suite, t->name);
    for (int i = 1; i < argc; i++)
        if (strstr(full, argv[i])) return true;
    return argc < 2;
}

static void list_tests(void) {
    for (const struct check_test *t = first; t; t = t->next)
        printf("%s/%s\n", t->suite, t->name);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        list_tests();
        return 0;
    }
    outcome = mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (outcome == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    sigset_t child, before;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);
    static const char *const words[VERDICTS] = {"passed", "FAILED", "skipped"};
    int count[VERDICTS] = {0};
    for (const struct check_test *t = first; t; t = t->next) {
        if (!wanted(t, argc, argv)) continue;
        enum verdict v = t->disabled ? SKIPPED : run_test(t, &before);
        count[v]++;
        printf("%s %s/%s%s%s\n", words[v], t->suite, t->name, v == PASSED ? "" : ":",
               v == PASSED ? "" : outcome->why);
    }
    printf("%d passed, %d failed, %d skipped\n", count[PASSED], count[FAILED], count[SKIPPED]);
    return count[FAILED] ? 1 : count[PASSED] + count[SKIPPED] ? 0 : 2;
}
