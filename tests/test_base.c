/* The checks that are always compiled in, and the small macros. */
#include "check.h"

#include "base.h"

#include <stdio.h>

static int fail_a_check(void *arg) {
    CHECK(arg != NULL);
    return 0;
}

static int misuse(void *arg) {
    MISUSE("coil_something", "called with %d of %s", 7, (const char *)arg);
}

static int pass_a_check(void *arg) {
    CHECK(arg != NULL);
    return 3;
}

Test(base, a_failed_check_stops_with_its_condition_file_and_line) {
    cr_assert(check_aborts(fail_a_check, NULL, "coil: internal check failed: arg != NULL ("));
    cr_assert(check_aborts(fail_a_check, NULL, "test_base.c:"));
}

Test(base, a_check_that_holds_does_nothing) {
    int status = 0;
    char err[64];
    cr_assert(check_in_child(pass_a_check, err, &status, err, sizeof err));
    cr_assert_eq(status, 3 << 8);
    cr_assert_str_eq(err, "");
}

Test(base, misuse_stops_with_one_line_that_names_the_call) {
    cr_assert(check_aborts(misuse, "them", "coil: coil_something: called with 7 of them\n"));
}

Test(base, container_of_finds_the_structure_around_a_member) {
    struct outer {
        char before[13];
        int member;
    } o;
    int *p = &o.member;
    cr_assert(CONTAINER_OF(p, struct outer, member) == &o);
}

Test(base, min_max_and_array_size_are_what_they_say) {
    int a[17];
    cr_assert_eq(ARRAY_SIZE(a), 17);
    cr_assert_eq(MIN(-3, 2), -3);
    cr_assert_eq(MAX(-3, 2), 2);
    cr_assert_eq(MIN(5, 5), 5);
}
