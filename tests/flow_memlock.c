/* Locked memory. Some kernels count a ring against RLIMIT_MEMLOCK, per user and only without CAP_IPC_LOCK,
 * and give it back some time after its end. So each test has a child that becomes a user whom nobody else is,
 * with a limit of its own, and asks the kernel itself whether rings count. Where the tests do not run as
 * root, the user is whoever runs them, and the limit may be lower already; tests that use up what there is
 * are skipped, because those beside them share it. */
#include "check.h"

#include "coil/coil.h"

#include <liburing/compat.h>
#include <liburing/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KIB = 1024, WORKERS = 4, RUNS = 40 };

/* Exit codes of the children. */
enum { FINE, NO_USER, NO_RING, WRONG_DRIVER, WRONG_RESULT, WRONG_TEXT };

static bool become_user(rlim_t limit) {
    struct rlimit now;
    getrlimit(RLIMIT_MEMLOCK, &now);
    if (now.rlim_max < limit) limit = now.rlim_max;
    if (setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){limit, limit}) != 0) return false;
    return getuid() != 0 || setuid(100000 + (uid_t)getpid()) == 0;
}

/* Whether a ring counts, asked of the kernel directly: with no locked memory at all there is none then. */
static bool rings_count(void) {
    struct rlimit before;
    struct io_uring_params p = {0};
    getrlimit(RLIMIT_MEMLOCK, &before);
    setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){0, before.rlim_max});
    int fd = (int)syscall(SYS_io_uring_setup, 1, &p);
    setrlimit(RLIMIT_MEMLOCK, &before);
    if (fd >= 0) close(fd);
    return fd < 0;
}

static int echoes(void *arg) {
    coil_stats s;
    char byte = 0;
    int fd[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fd)) return -1;
    bool fine = coil_send(fd[0], "x", 1, 0) == 1 && coil_recv(fd[1], &byte, 1, 0) == 1 && byte == 'x';
    coil_close(fd[0]);
    coil_close(fd[1]);
    coil_stats_get(&s);
    *(enum coil_driver_kind *)arg = s.driver;
    return fine ? 0 : -1;
}

static int run_on(enum coil_driver_kind wanted, enum coil_driver_kind *got) {
    coil_run_opts o = {.driver = wanted};
    return coil_run_with(&o, echoes, got);
}

/* The tests say themselves which driver they want. */
static void clear_environment(void) {
    unsetenv("COIL_DRIVER");
    unsetenv("COIL_CAPS");
}

static int exit_code(int (*fn)(void *), void *arg, char *text, size_t size) {
    int status = -1;
    cr_assert(check_in_child(fn, arg, &status, text, size), "fork");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int runs_in_64_kib(void *arg) {
    enum coil_driver_kind got = COIL_DRIVER_ANY;
    (void)arg;
    clear_environment();
    if (!become_user(64 * KIB)) return NO_USER;
    if (run_on(COIL_DRIVER_ANY, &got)) return NO_RING;
    return got == COIL_DRIVER_URING ? FINE : WRONG_DRIVER;
}

Test(memlock, a_ring_is_found_that_fits_into_64_kib) {
    char text[1024];
    int code = exit_code(runs_in_64_kib, NULL, text, sizeof text);
    cr_assert_eq(code, FINE, "%d: %s", code, text);
    cr_expect_str_eq(text, "");
}

static int demands_a_ring_without_memory(void *arg) {
    enum coil_driver_kind got;
    (void)arg;
    clear_environment();
    if (!become_user(0)) return NO_USER;
    int expected = rings_count() ? COIL_ESTART_MEMLOCK : 0;
    return run_on(COIL_DRIVER_URING, &got) == expected ? FINE : WRONG_RESULT;
}

Test(memlock, a_ring_that_is_demanded_and_does_not_fit_is_refused_with_limit_need_and_remedy) {
    char text[1024];
    int code = exit_code(demands_a_ring_without_memory, NULL, text, sizeof text);
    cr_assert_eq(code, FINE, "%d: %s", code, text);
    if (!*text) return;
    cr_expect(strstr(text, "limit is 0 bytes"), "%s", text);
    cr_expect(strstr(text, "needs "), "%s", text);
    cr_expect(strstr(text, "ulimit -l"), "%s", text);
    cr_expect(strchr(text, '\n') == text + strlen(text) - 1, "one line: %s", text);
}

static int takes_what_there_is(void *arg) {
    enum coil_driver_kind got;
    (void)arg;
    clear_environment();
    if (!become_user(0)) return NO_USER;
    enum coil_driver_kind expected = rings_count() ? COIL_DRIVER_EPOLL : COIL_DRIVER_URING;
    for (int i = 0; i < 3; i++) {
        if (run_on(COIL_DRIVER_ANY, &got)) return NO_RING;
        if (got != expected) return WRONG_DRIVER;
    }
    return expected == COIL_DRIVER_EPOLL ? FINE : FINE + 100;
}

Test(memlock, epoll_serves_where_no_ring_fits_and_one_line_says_why) {
    char text[1024];
    int code = exit_code(takes_what_there_is, NULL, text, sizeof text);
    if (code == FINE + 100) {
        cr_expect_str_eq(text, "");
        return;
    }
    cr_assert_eq(code, FINE, "%d: %s", code, text);
    cr_expect(strstr(text, "epoll") && strstr(text, "limit is 0 bytes") && strstr(text, "ulimit -l"), "%s",
              text);
    cr_expect(strchr(text, '\n') == text + strlen(text) - 1, "one line: %s", text);
}

/* ---- the need is told truthfully ---- */

static int runs_within(void *arg) {
    enum coil_driver_kind got;
    clear_environment();
    if (!become_user(*(rlim_t *)arg)) return NO_USER;
    if (*(rlim_t *)arg == 0 && !rings_count()) return FINE + 100;
    return run_on(COIL_DRIVER_URING, &got) ? NO_RING : FINE;
}

Test(memlock, a_ring_fits_into_what_it_is_said_to_need_and_not_into_a_page_less) {
    char text[1024];
    rlim_t limit = 0;
    int code = exit_code(runs_within, &limit, text, sizeof text);
    check_needs(code != FINE + 100, "a kernel that counts rings as locked memory");
    cr_assert_eq(code, NO_RING, "%d: %s", code, text);
    const char *need = strstr(text, "needs ");
    cr_assert_not_null(need, "%s", text);
    limit = strtoul(need + 6, NULL, 10);
    cr_assert_gt(limit, 0, "%s", text);
    code = exit_code(runs_within, &limit, text, sizeof text);
    cr_expect_eq(code, FINE, "%d in %lu: %s", code, (unsigned long)limit, text);
    limit -= (rlim_t)sysconf(_SC_PAGESIZE);
    code = exit_code(runs_within, &limit, text, sizeof text);
    cr_expect_eq(code, NO_RING, "%d in %lu: %s", code, (unsigned long)limit, text);
}

/* ---- several ---- */

static atomic_int running;

static int meets_the_others(void *arg) {
    atomic_fetch_add(&running, 1);
    while (atomic_load(&running) < WORKERS)
        coil_sleep(coil_ms(1));
    return echoes(arg);
}

static void *has_a_worker(void *arg) {
    coil_run_opts o = {.driver = COIL_DRIVER_URING};
    enum coil_driver_kind got = COIL_DRIVER_ANY;
    int err = coil_run_with(&o, meets_the_others, &got);
    if (err) {
        *(int *)arg = err;
        atomic_store(&running, WORKERS);
    }
    return NULL;
}

static int runs_several_workers(void *arg) {
    pthread_t threads[WORKERS];
    int results[WORKERS] = {0};
    (void)arg;
    clear_environment();
    if (!become_user(64 * KIB)) return NO_USER;
    for (int i = 0; i < WORKERS; i++)
        if (pthread_create(&threads[i], NULL, has_a_worker, &results[i])) return NO_USER;
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < WORKERS; i++)
        if (results[i]) return NO_RING;
    return FINE;
}

Test(memlock, four_workers_at_once_share_64_kib) {
    check_needs(getuid() == 0, "root, to become a user whom nobody else is");
    char text[1024];
    int code = exit_code(runs_several_workers, NULL, text, sizeof text);
    cr_assert_eq(code, FINE, "%d: %s", code, text);
}

/* Each ring's memory comes back after the next one has been asked for. A busy kernel may take longer than
 * coil waits, and is asked again, but not often: nobody who doesn't wait would be served in most of the runs.
 */
static int runs_again_and_again(void *arg) {
    enum coil_driver_kind got;
    int in_vain = 0, err;
    (void)arg;
    clear_environment();
    if (!become_user(64 * KIB)) return NO_USER;
    for (int i = 0; i < RUNS; i++) {
        while ((err = run_on(COIL_DRIVER_URING, &got)) == COIL_ESTART_MEMLOCK && in_vain++ < RUNS / 4)
            continue;
        if (err) return NO_RING;
    }
    return FINE;
}

Test(memlock, memory_that_comes_back_late_is_waited_for) {
    check_needs(getuid() == 0, "root, to become a user whom nobody else is");
    char text[1024];
    int code = exit_code(runs_again_and_again, NULL, text, sizeof text);
    cr_assert_eq(code, FINE, "%d: %s", code, text);
}

/* What others hold for good must not delay a start for long. */
static int starts_beside_a_hog(void *arg) {
    enum coil_driver_kind got = COIL_DRIVER_ANY;
    (void)arg;
    clear_environment();
    if (!become_user(64 * KIB)) return NO_USER;
    bool counts = rings_count();
    for (int i = 0; i < 64; i++) { /* also what comes back from those that failed half-way */
        struct io_uring_params p = {0};
        if (syscall(SYS_io_uring_setup, 8, &p) < 0) usleep(5000);
    }
    int64_t began_ns = coil_now().ns;
    if (run_on(COIL_DRIVER_ANY, &got)) return NO_RING;
    if (coil_now().ns - began_ns > coil_sec(5).ns) return WRONG_RESULT;
    return got == (counts ? COIL_DRIVER_EPOLL : COIL_DRIVER_URING) ? FINE : WRONG_DRIVER;
}

Test(memlock, memory_that_stays_with_other_rings_is_not_waited_for_long) {
    check_needs(getuid() == 0, "root, to become a user whom nobody else is");
    char text[1024];
    int code = exit_code(starts_beside_a_hog, NULL, text, sizeof text);
    cr_assert_eq(code, FINE, "%d: %s", code, text);
    if (*text) cr_expect(strstr(text, "used it up"), "%s", text);
}
