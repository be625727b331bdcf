/* Time, errors, version. */
#include "check.h"

#include "coil/coil.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

static int in_a_task(void *arg) {
    coil_time before = coil_now();
    coil_time after = coil_after(coil_ms(5));
    cr_expect_geq(after.ns - before.ns, 5000000);
    cr_expect_geq(coil_now().ns, before.ns);
    *(coil_time *)arg = before;
    return 0;
}

Test(core, lengths_of_time_are_what_they_say) {
    cr_assert_eq(coil_ns(7).ns, 7);
    cr_assert_eq(coil_us(7).ns, 7000);
    cr_assert_eq(coil_ms(-7).ns, -7000000);
    cr_assert_eq(coil_sec(7).ns, 7000000000);
    cr_assert_eq(coil_sec(0).ns, 0);
}

Test(core, lengths_of_time_stop_at_the_ends_of_the_range) {
    cr_assert_eq(coil_ns(INT64_MAX).ns, COIL_FOREVER.ns);
    cr_assert_eq(coil_us(INT64_MAX).ns, COIL_FOREVER.ns);
    cr_assert_eq(coil_ms(INT64_MAX / 1000).ns, COIL_FOREVER.ns);
    cr_assert_eq(coil_sec(INT64_MAX / 1000000000).ns, INT64_MAX / 1000000000 * 1000000000);
    cr_assert_eq(coil_sec(INT64_MIN).ns, INT64_MIN);
    cr_assert_eq(coil_ms(INT64_MIN / 1000).ns, INT64_MIN);
}

Test(core, now_goes_forward_and_after_adds_to_it) {
    coil_time a = coil_now(), b = coil_after(coil_sec(1)), c = coil_now();
    cr_assert_leq(a.ns, c.ns);
    cr_assert_geq(b.ns, a.ns + 1000000000);
    cr_assert_leq(b.ns, c.ns + 1000000000);
}

Test(core, after_stops_at_the_ends_of_the_range) {
    cr_assert_eq(coil_after(COIL_FOREVER).ns, COIL_NEVER.ns);
    cr_assert_eq(coil_after(coil_ns(INT64_MAX - 1)).ns, COIL_NEVER.ns);
    cr_assert_lt(coil_after(coil_ns(INT64_MIN)).ns, coil_now().ns);
    cr_assert_lt(coil_after(coil_ms(-1)).ns, coil_now().ns);
}

Test(core, the_clock_is_the_same_inside_and_outside_of_a_task) {
    coil_time before = coil_now(), inside = {0};
    cr_assert_eq(coil_run(in_a_task, &inside), 0);
    cr_assert_leq(before.ns, inside.ns);
    cr_assert_leq(inside.ns, coil_now().ns);
}

Test(core, every_start_error_has_a_text_of_its_own) {
    for (int e = COIL_ESTART_NESTED; e <= COIL_ESTART_KERNEL; e++) {
        cr_assert_neq(strcmp(coil_strerror(e), "unknown error"), 0, "%d", e);
        for (int other = COIL_ESTART_NESTED; other < e; other++) {
            cr_assert_neq(strcmp(coil_strerror(e), coil_strerror(other)), 0, "%d %d", e, other);
        }
    }
}

Test(core, errno_values_of_either_sign_have_the_text_of_the_c_library) {
    static const int known[] = {EINVAL, ETIME, ECANCELED, EDEADLK, ESRCH, EBADF, ESHUTDOWN};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        cr_assert_str_eq(coil_strerror(-known[i]), strerror(known[i]));
        cr_assert_str_eq(coil_strerror(known[i]), strerror(known[i]));
    }
}

Test(core, every_number_has_a_text) {
    static const int odd[] = {
        0, -4000, 4000, -4096, -100000, 100000, INT_MIN, INT_MAX, COIL_ESTART_NESTED - 1};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        const char *text = coil_strerror(odd[i]);
        cr_assert(text && text[0], "%d", odd[i]);
        if (odd[i]) cr_assert_str_eq(text, "unknown error", "%d", odd[i]);
    }
}

Test(core, the_library_has_the_version_of_its_headers) {
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", COIL_VERSION_MAJOR, COIL_VERSION_MINOR, COIL_VERSION_PATCH);
    cr_assert_str_eq(coil_version(), text);
}
