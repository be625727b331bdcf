/* What most tests with tasks share. */
#ifndef TASKS_H
#define TASKS_H

#include "check.h"

#include "coil/coil.h"

#include <stdint.h>
#include <stdlib.h>

/* A test whose whole body is the main task of a run. */
#define TaskTest(Suite, Name)                                                         \
    static int Suite##_##Name##_task(void *arg);                                      \
    Test(Suite, Name) {                                                               \
        cr_assert_eq(coil_run(Suite##_##Name##_task, NULL), 0, "the run has failed"); \
    }                                                                                 \
    static int Suite##_##Name##_task(void *arg __attribute__((unused)))

static inline coil_task spawn(coil_fn *fn, void *arg) {
    coil_task t;
    int err = coil_spawn(&t, fn, arg);
    cr_expect_eq(err, 0, "spawn: %s", coil_strerror(err));
    if (err) abort();
    return t;
}

/* The task's result, also for a task that is cancelled or out of time itself. */
static inline int join(coil_task t) {
    int result = INT32_MIN;
    coil_scope s = coil_shield(coil_sec(60));
    int err = coil_join(t, &result);
    coil_leave(&s);
    cr_expect_eq(err, 0, "join: %s", coil_strerror(err));
    return result;
}

/* Rounds of a race between tasks of one worker. TSan has nothing to find there, and a task costs it
 * milliseconds. */
static inline int task_rounds(int rounds) {
    return check_rounds(CHECK_TSAN ? rounds / 100 : rounds);
}

#endif
