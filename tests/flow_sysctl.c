/* kernel.io_uring_disabled concerns everybody on the machine: it is changed only on one that is the test's
 * own, and in a program of its own, as programs run one after the other there. */
#include "check.h"

#include "coil/coil.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char path[] = "/proc/sys/kernel/io_uring_disabled";

enum { STARTED = 100, ON_EPOLL = STARTED + COIL_DRIVER_EPOLL };

static bool set(const char *value) {
    FILE *f = fopen(path, "we");
    if (!f) return false;
    bool done = fputs(value, f) >= 0;
    return fclose(f) == 0 && done;
}

static int tells_driver(void *arg) {
    coil_stats s;
    (void)arg;
    coil_stats_get(&s);
    return STARTED + (int)s.driver;
}

/* An exit status that carries the driver in use, or the start error, less 5000. */
static int runs_on(void *arg) {
    coil_run_opts o = {.driver = *(enum coil_driver_kind *)arg};
    unsetenv("COIL_DRIVER");
    int result = coil_run_with(&o, tells_driver, NULL);
    return result > 0 ? result : -result - 5000;
}

static bool one_line(const char *text) {
    const char *end = strchr(text, '\n');
    return end && !end[1];
}

Test(sysctl, where_it_disables_io_uring_there_is_epoll) {
    static enum coil_driver_kind asked[] = {COIL_DRIVER_ANY, COIL_DRIVER_URING, COIL_DRIVER_EPOLL};
    char text[3][1024], was[8] = "";
    int status[3];
    bool ran = true;
    check_needs(getenv("COIL_GUEST"), "a machine of its own");
    FILE *f = fopen(path, "re");
    check_needs(f && fgets(was, sizeof was, f), "kernel.io_uring_disabled");
    fclose(f);
    check_needs(set("2"), "root, to set kernel.io_uring_disabled");
    for (int i = 0; i < 3; i++)
        ran &= check_in_child(runs_on, &asked[i], &status[i], text[i], sizeof text[i]);
    cr_assert(set(was));
    cr_assert(ran);
    cr_assert_eq(status[0], ON_EPOLL << 8, "%#x %s", (unsigned)status[0], text[0]);
    cr_assert(strstr(text[0], "forbidden here (EPERM)") && one_line(text[0]), "%s", text[0]);
    cr_assert_eq(status[1], (-COIL_ESTART_FORBIDDEN - 5000) << 8, "%#x %s", (unsigned)status[1], text[1]);
    cr_assert(strstr(text[1], "kernel.io_uring_disabled") && one_line(text[1]), "%s", text[1]);
    cr_assert_eq(status[2], ON_EPOLL << 8);
    cr_assert_str_eq(text[2], "");
}
