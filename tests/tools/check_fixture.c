/* Tests that pass, skip, fail, crash and hang: what check_selftest expects to be told apart. */
#include "check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int say_and_abort(void *message) {
    fputs(message, stderr);
    abort();
}

static int give_seven(void *arg) {
    (void)arg;
    return 7;
}

static int prepared;

static void prepare(void) {
    prepared = 1;
}

Test(good, init_runs_before_the_body, .init = prepare) {
    cr_assert_eq(prepared, 1);
}

Test(good, an_expected_signal_passes, .signal = SIGABRT) {
    abort();
}

Test(good, an_expected_exit_code_passes, .exit_code = 3) {
    exit(3);
}

Test(good, an_abort_with_its_message_is_seen) {
    cr_assert(check_aborts(say_and_abort, (char *)"coil: stop", "stop"));
}

Test(good, a_child_that_exits_has_not_aborted) {
    cr_expect_not(check_aborts(give_seven, NULL, ""));
}

Test(good, an_abort_with_another_message_is_not_enough) {
    cr_expect_not(check_aborts(say_and_abort, (char *)"coil: stop", "go"));
}

Test(good, descriptors_are_counted) {
    int before = check_fd_count();
    int p[2];
    cr_assert_eq(pipe(p), 0);
    cr_expect_eq(check_fd_count(), before + 2, "before: %d", before);
    close(p[0]);
    close(p[1]);
    cr_expect_eq(check_fd_count(), before);
}

Test(good, rounds_follow_the_environment) {
    setenv("COIL_TEST_ROUNDS", "0.5", 1);
    cr_expect_eq(check_rounds(100), 50);
    setenv("COIL_TEST_ROUNDS", "0.0001", 1);
    cr_expect_eq(check_rounds(100), 1);
}

Test(skip, what_is_missing_skips) {
    check_needs(false, "a newer kernel");
    cr_assert_fail("went on after the skip");
}

Test(bad, a_failed_assert) {
    cr_assert_eq(1, 2, "one is %d", 1);
}

Test(bad, a_failed_expect_lets_the_test_go_on) {
    cr_expect_str_eq("this", "that");
    cr_expect(true);
}

Test(bad, a_crash) {
    abort();
}

Test(bad, a_missing_signal, .signal = SIGABRT) {
}

Test(bad, another_exit_code, .exit_code = 3) {
    exit(4);
}

Test(bad, a_hang, .timeout = 1) {
    for (;;)
        pause();
}

Test(bad, one_that_names_no_limit_hangs) {
    for (;;)
        pause();
}
