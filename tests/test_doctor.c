/* `coil doctor`, run as a program: COIL_TOOL is where it is built. */
#include "check.h"
#include "json.h"
#include "sandbox.h"

#include "caps.h"
#include "ring.h"

#include "coil/coil.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    TEXT_MAX = 32768,
    LIMIT_MS = 30000,
    LINES_MAX = 60,
    COLUMNS_MAX = 130,
    NOBODY = 65534,
    /* Exit statuses of a child that did not become the program. */
    UNPREPARED = 99,
    NOT_BEGUN = 98,
};

/* What the program was given, and what it said. */
struct answer {
    int status; /* exit status; -1: it was killed */
    char out[TEXT_MAX], err[TEXT_MAX];
};

/* Called in the child before the program begins; a negative value: it can't be done here. */
typedef int prepare(void);

static void run_tool(prepare *f, const char *const args[], const char *out_path, int out, int err) {
    const char *argv[8] = {"coil"};
    for (unsigned i = 0; args[i]; i++)
        argv[i + 1] = args[i];
    int tool = open(COIL_TOOL, O_RDONLY | O_CLOEXEC);
    if (out_path) out = open(out_path, O_WRONLY);
    if (tool < 0 || dup2(out, STDOUT_FILENO) < 0 || dup2(err, STDERR_FILENO) < 0) _exit(NOT_BEGUN);
    /* The lowest number, so that limits on descriptors mean the same wherever the test runs. */
    dup2(tool, STDERR_FILENO + 1);
    fcntl(STDERR_FILENO + 1, F_SETFD, FD_CLOEXEC);
    for (int fd = STDERR_FILENO + 2; fd < 256; fd++)
        close(fd);
    if (f && f() < 0) _exit(UNPREPARED);
    /* By descriptor: who has become nobody might not find the way to the file. By name where that asks for a
     * /proc that is hidden. */
    char *const *words = (char *const *)(uintptr_t)argv;
    fexecve(STDERR_FILENO + 1, words, environ);
    execve(COIL_TOOL, words, environ);
    _exit(NOT_BEGUN);
}

static size_t append(int fd, char *text, size_t have) {
    ssize_t n = read(fd, text + have, TEXT_MAX - 1 - have);
    return n > 0 ? (size_t)n : 0;
}

/* Both ends are read at once; a child that says nothing for too long is killed. */
static void listen_to(pid_t pid, int out, int err, struct answer *a) {
    size_t have[2] = {0};
    struct pollfd p[2] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
    char *const texts[2] = {a->out, a->err};
    while (p[0].fd >= 0 || p[1].fd >= 0) {
        if (poll(p, 2, LIMIT_MS) <= 0) {
            kill(pid, SIGKILL);
            break;
        }
        for (int i = 0; i < 2; i++) {
            if (p[i].fd < 0 || !p[i].revents) continue;
            size_t n = append(p[i].fd, texts[i], have[i]);
            have[i] += n;
            if (!n) p[i].fd = -1;
        }
    }
}

static const struct answer *ask(prepare *f, const char *out_path, const char *const args[]) {
    static struct answer a;
    int out[2], err[2], status;
    memset(&a, 0, sizeof a);
    cr_assert(pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0);
    fflush(NULL);
    pid_t pid = fork();
    cr_assert(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) run_tool(f, args, out_path, out[1], err[1]);
    close(out[1]);
    close(err[1]);
    listen_to(pid, out[0], err[0], &a);
    close(out[0]);
    close(err[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    a.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    cr_assert_neq(a.status, NOT_BEGUN, "%s could not be run", COIL_TOOL);
    return &a;
}

#define ASK(prepare, ...) ask(prepare, NULL, (const char *const[]){__VA_ARGS__, NULL})

static const struct answer *ask_json(prepare *f) {
    const struct answer *a = ASK(f, "doctor", "--json");
    if (a->status == UNPREPARED) cr_skip("this machine lets nobody try that");
    cr_assert(json_ok(a->out), "no JSON: %s%s", a->out, a->err);
    return a;
}

static void expect(const struct answer *a, const char *path, const char *value) {
    const char *p = json_at(a->out, path);
    int n = p ? (int)(json_value(p, 0) - p) : 0;
    cr_expect(json_is(a->out, path, value), "%s is %.*s, not %s", path, n, p ? p : "", value);
}

static void plain_environment(void) {
    unsetenv("COIL_CAPS");
    unsetenv("COIL_DRIVER");
}

/* ---- what a run of this process finds ---- */

struct found {
    int result;
    enum coil_driver_kind driver;
};

static int note_driver(void *arg) {
    coil_stats s;
    coil_stats_get(&s);
    ((struct found *)arg)->driver = s.driver;
    return 0;
}

static struct found run_here(void) {
    static const coil_run_opts quiet = {.quiet = true};
    struct found f = {0};
    f.result = coil_run_with(&quiet, note_driver, &f);
    return f;
}

static int status_here(void) {
    struct found f = run_here();
    return f.result ? 1 : f.driver == COIL_DRIVER_EPOLL ? 3 : 0;
}

/* ---- */

Test(doctor, its_json_is_json_and_has_every_key) {
    static const char *const keys[] = {"coil",
                                       "runs",
                                       "exit_status",
                                       "verdict",
                                       "machine.kernel",
                                       "machine.architecture",
                                       "machine.page_size",
                                       "machine.cpus",
                                       "limits.nofile.soft",
                                       "limits.nofile.hard",
                                       "limits.memlock.soft",
                                       "limits.memlock.hard",
                                       "limits.max_map_count",
                                       "limits.somaxconn",
                                       "limits.io_uring_disabled",
                                       "limits.io_uring_group",
                                       "limits.seccomp",
                                       "io_uring.usable",
                                       "io_uring.code",
                                       "io_uring.reason",
                                       "io_uring.calls.io_uring_setup",
                                       "io_uring.calls.io_uring_enter",
                                       "io_uring.calls.io_uring_register",
                                       "io_uring.sq_entries",
                                       "io_uring.cq_entries",
                                       "epoll.usable",
                                       "epoll.code",
                                       "epoll.reason",
                                       "environment.COIL_DRIVER",
                                       "environment.COIL_CAPS",
                                       "paths.wait",
                                       "paths.accept",
                                       "paths.receive",
                                       "paths.send",
                                       "paths.wake",
                                       "paths.files",
                                       "paths.stacks",
                                       "guarded_stacks",
                                       "advice"};
    const struct answer *a = ask_json(NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(keys); i++)
        cr_expect_not_null(json_at(a->out, keys[i]), "%s", keys[i]);
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        static const char *const of_each[] = {"found", "forced_off", "used", "state", "effect"};
        for (unsigned k = 0; k < ARRAY_SIZE(of_each); k++) {
            char path[128];
            snprintf(path, sizeof path, "capabilities.%s.%s", coil__cap_table[i].name, of_each[k]);
            cr_expect_not_null(json_at(a->out, path), "%s", path);
        }
    }
    cr_expect_null(json_at(a->out, "machine.nothing"));
    cr_expect_str_eq(a->err, "");
}

Test(doctor, what_is_no_json_is_refused_by_the_test_itself) {
    static const char *const good[] = {"{}", "[]", " {\"a\":[1,-2.5e+3,\"\\u00e9\\n\",true,null]} ", "0",
                                       "\"\""};
    static const char *const bad[] = {
        "",        "{",   "{a:1}", "{\"a\":}",  "[1,]",    "{\"a\":1,}", "[1 2]",    "01",  "1.", "\"\n\"",
        "\"\\x\"", "nul", "[] []", "{\"a\" 1}", "\"\\u12", "{\"a\":1",   "\"\xe9\"", "'a'", "- 1"};
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++)
        cr_expect(json_ok(good[i]), "%s", good[i]);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        cr_expect_not(json_ok(bad[i]), "%s", bad[i]);
    cr_expect(json_is("{\"a\":{\"b\":1},\"ab\":[2],\"b\":\"x\"}", "a.b", "1"));
    cr_expect(json_is("{\"a\":{\"b\":1},\"ab\":[2],\"b\":\"x\"}", "b", "\"x\""));
    cr_expect_not(json_is("{\"a\":12}", "a", "1"));
}

/* In every tier: the variables are those of the tier. */
Test(doctor, it_says_what_a_run_does) {
    struct found here = run_here();
    const struct answer *a = ask_json(NULL);
    cr_expect_eq(a->status, status_here(), "%d: %s", a->status, a->out);
    if (here.result == 0 && here.driver == COIL_DRIVER_EPOLL) {
        expect(a, "runs", "\"epoll\"");
    } else if (here.result == 0) {
        expect(a, "runs", "\"io_uring\"");
    }
}

/* What coil finds dear or cheap is measured anew each time, so that is left out. */
Test(doctor, the_capabilities_that_it_calls_used_are_those_of_a_ring) {
    struct coil__ring_opts o = {
        .sq_entries = 256, .cq_entries = 4096, .pool_buffers = 512, .pool_buffer_size = 4096};
    struct coil__driver_error err;
    struct coil__driver *d;
    const struct answer *a = ask_json(NULL);
    check_needs(a->status == 0, "io_uring");
    cr_assert_eq(coil__caps_parse(getenv("COIL_CAPS"), &o.caps_unused, NULL), 0);
    cr_assert_eq(coil__ring_open(&o, &d, &err), 0);
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        char path[128];
        if (i == COIL__CAP_DIRECT_SEND || i == COIL__CAP_GUARD_INSTALL) continue;
        snprintf(path, sizeof path, "capabilities.%s.used", coil__cap_table[i].name);
        expect(a, path, d->caps >> i & 1 ? "true" : "false");
    }
    d->ops->destroy(d);
}

Test(doctor, a_capability_that_is_forced_off_is_told_from_a_missing_one) {
    plain_environment();
    const struct answer *a = ask_json(NULL);
    check_needs(json_is(a->out, "capabilities.recv_multishot.used", "true"), "multishot receive");
    setenv("COIL_CAPS", "recv_multishot", 1);
    a = ask_json(NULL);
    cr_expect_eq(a->status, 0);
    expect(a, "environment.COIL_CAPS", "\"recv_multishot\"");
    expect(a, "capabilities.recv_multishot.found", "true");
    expect(a, "capabilities.recv_multishot.forced_off", "true");
    expect(a, "capabilities.recv_multishot.used", "false");
    expect(a, "capabilities.recv_multishot.state", "\"forced off\"");
    expect(a, "capabilities.accept_multishot.state", "\"used\"");
    cr_expect_not_null(strstr(a->out, "unset COIL_CAPS"));
}

Test(doctor, epoll_by_choice_has_an_exit_status_of_its_own) {
    plain_environment();
    bool ring = status_here() == 0;
    setenv("COIL_DRIVER", "epoll", 1);
    const struct answer *a = ask_json(NULL);
    cr_expect_eq(a->status, 3);
    expect(a, "exit_status", "3");
    expect(a, "runs", "\"epoll\"");
    expect(a, "capabilities.ext_arg.used", "false");
    expect(a, "io_uring.usable", ring ? "true" : "false");
    cr_expect_eq(!!strstr(a->out, "unset COIL_DRIVER"), ring, "it advises to use what is there");
}

static int deny_eperm(void) {
    return sandbox_deny_io_uring(EPERM);
}

static int deny_enosys(void) {
    return sandbox_deny_io_uring(ENOSYS);
}

Test(doctor, where_io_uring_is_forbidden_it_says_so_and_runs_by_epoll) {
    plain_environment();
    const struct answer *a = ask_json(deny_eperm);
    cr_expect_eq(a->status, 3);
    expect(a, "runs", "\"epoll\"");
    expect(a, "io_uring.usable", "false");
    expect(a, "io_uring.code", "-5002");
    expect(a, "io_uring.calls.io_uring_setup", "\"EPERM\"");
    expect(a, "limits.seccomp", "2");
    expect(a, "epoll.usable", "true");
    expect(a, "capabilities.recv_multishot.state", "\"no ring\"");
    cr_expect_not_null(strstr(a->out, "seccomp profile; Docker"));
    cr_expect_str_eq(a->err, "");
}

Test(doctor, a_kernel_without_io_uring_is_told_from_one_that_forbids_it) {
    plain_environment();
    const struct answer *a = ask_json(deny_enosys);
    cr_expect_eq(a->status, 3);
    expect(a, "io_uring.code", "-5001");
    expect(a, "io_uring.calls.io_uring_setup", "\"ENOSYS\"");
}

Test(doctor, who_refuses_epoll_where_io_uring_is_forbidden_cannot_run) {
    plain_environment();
    setenv("COIL_DRIVER", "uring", 1);
    const struct answer *a = ask_json(deny_eperm);
    cr_expect_eq(a->status, 1);
    expect(a, "runs", "\"no\"");
    expect(a, "paths.wait", "null");
    cr_expect_not_null(strstr(a->out, "unset COIL_DRIVER"));
}

static int deny_enter(void) {
    static const int call[] = {SYS_io_uring_enter};
    return sandbox_deny(EPERM, call, 1);
}

Test(doctor, a_ring_that_cannot_be_entered_is_none) {
    plain_environment();
    check_needs(status_here() == 0, "io_uring");
    const struct answer *a = ask_json(deny_enter);
    cr_expect_eq(a->status, 3);
    expect(a, "io_uring.usable", "false");
    expect(a, "io_uring.calls.io_uring_setup", "\"allowed\"");
    expect(a, "io_uring.calls.io_uring_enter", "\"EPERM\"");
}

static int deny_register(void) {
    static const int call[] = {SYS_io_uring_register};
    return sandbox_deny(EPERM, call, 1);
}

/* What needs no registering is all that is found then, and no newer kernel would bring more. */
Test(doctor, a_ring_that_cannot_be_asked_is_used_for_what_it_has) {
    plain_environment();
    check_needs(status_here() == 0, "io_uring");
    const struct answer *a = ask_json(deny_register);
    cr_expect_eq(a->status, 0);
    expect(a, "io_uring.calls.io_uring_register", "\"EPERM\"");
    expect(a, "capabilities.accept_multishot.used", "false");
    cr_expect_not_null(strstr(a->out, "seccomp profile; Docker"));
    cr_expect_null(strstr(a->out, "or later"));
}

static int nobody_without_locked_memory(void) {
    if (setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){0, 0}) < 0) return -errno;
    if (geteuid() != 0) return 0;
    return setgid(NOBODY) == 0 && setuid(NOBODY) == 0 ? 0 : -errno;
}

/* Kernels differ in whether rings count as locked memory; either is right, if it is explained. */
Test(doctor, too_little_locked_memory_is_named_where_rings_count_as_it) {
    plain_environment();
    const struct answer *a = ask_json(nobody_without_locked_memory);
    expect(a, "limits.memlock.soft", "0");
    expect(a, "limits.memlock.hard", "0");
    if (json_is(a->out, "io_uring.usable", "true")) {
        cr_expect_eq(a->status, 0);
        return;
    }
    cr_expect_eq(a->status, 3);
    if (!json_is(a->out, "io_uring.code", "-5003")) return;
    cr_expect_not_null(strstr(a->out, "too little locked memory"));
    cr_expect_not_null(strstr(a->out, "ulimit -l"));
}

static int four_descriptors(void) {
    return setrlimit(RLIMIT_NOFILE, &(struct rlimit){4, 4});
}

Test(doctor, without_descriptors_nothing_can_run) {
    plain_environment();
    const struct answer *a = ask_json(four_descriptors);
    cr_expect_eq(a->status, 1);
    expect(a, "runs", "\"no\"");
    expect(a, "limits.nofile.soft", "4");
    expect(a, "epoll.usable", "false");
    cr_expect_not_null(strstr(a->out, "ulimit -n"));
}

Test(doctor, variables_that_name_nothing_are_told_and_escaped) {
    plain_environment();
    setenv("COIL_CAPS", "\"ext\\arg\n\xe9\x01", 1);
    const struct answer *a = ask_json(NULL);
    cr_expect_eq(a->status, 1);
    expect(a, "environment.COIL_CAPS", "\"\\\"ext\\\\arg\\u000a\\ufffd\\u0001\"");
    plain_environment();
    setenv("COIL_DRIVER", "iocp", 1);
    a = ask_json(NULL);
    cr_expect_eq(a->status, 1);
    cr_expect_not_null(strstr(a->out, "COIL_DRIVER is 'iocp'"));
}

static int hide_proc(void) {
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return -errno;
    /* The program itself is opened through /proc where execveat is missing; it is not on any of these
     * kernels. */
    return mount("none", "/proc", "tmpfs", MS_RDONLY, NULL) < 0 ? -errno : 0;
}

Test(doctor, without_proc_it_says_the_rest) {
    check_needs(!CHECK_SANITIZED, "no sanitizer, which reads /proc itself");
    plain_environment();
    int usual = status_here();
    const struct answer *a = ask_json(hide_proc);
    cr_expect_eq(a->status, usual);
    expect(a, "limits.somaxconn", "null");
    expect(a, "limits.seccomp", "null");
    expect(a, "io_uring.sq_entries", "null");
}

static unsigned widest_line(const char *text, unsigned *lines) {
    size_t widest = 0;
    for (*lines = 0; *text; ++*lines) {
        size_t n = strcspn(text, "\n");
        if (n > widest) widest = n;
        text += n + (text[n] == '\n');
    }
    return (unsigned)widest;
}

Test(doctor, the_text_begins_with_the_verdict_and_fits_a_screen) {
    static prepare *const settings[] = {NULL, deny_eperm, deny_enter, four_descriptors};
    for (unsigned i = 0; i < ARRAY_SIZE(settings); i++) {
        unsigned lines;
        const struct answer *a = ASK(settings[i], "doctor");
        if (a->status == UNPREPARED) continue;
        unsigned widest = widest_line(a->out, &lines);
        cr_expect_eq(strncmp(a->out, "coil can", strlen("coil can")), 0, "%s", a->out);
        cr_expect_leq(lines, LINES_MAX, "%u lines: %s", lines, a->out);
        cr_expect_leq(widest, COLUMNS_MAX, "%u columns: %s", widest, a->out);
        cr_expect_str_eq(a->err, "");
    }
}

Test(doctor, what_it_does_not_understand_is_bad_usage) {
    const char *const bad[][3] = {{NULL}, {"docter"}, {"doctor", "--jason"}, {"doctor", "again"}, {"--json"}};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        const struct answer *a = ask(NULL, NULL, bad[i]);
        cr_expect_eq(a->status, 2);
        cr_expect_str_eq(a->out, "");
        cr_expect_not_null(strstr(a->err, "usage: coil doctor"), "%s", a->err);
    }
}

Test(doctor, help_and_version_are_no_errors) {
    const struct answer *a = ASK(NULL, "doctor", "--help");
    cr_expect_eq(a->status, 0);
    cr_expect_not_null(strstr(a->out, "Exit status: 0"));
    a = ASK(NULL, "--version");
    cr_expect_eq(a->status, 0);
    cr_expect_not_null(strstr(a->out, coil_version()));
}

Test(doctor, an_answer_that_cannot_be_written_is_no_answer) {
    check_needs(access("/dev/full", W_OK) == 0, "/dev/full");
    const struct answer *a = ask(NULL, "/dev/full", (const char *const[]){"doctor", NULL});
    cr_expect_eq(a->status, 2);
    cr_expect_not_null(strstr(a->err, "coil: "), "%s", a->err);
}
