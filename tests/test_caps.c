/* The capability table, and the list of what to leave unused. */
#include "check.h"

#include "caps.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALL ((UINT64_C(1) << COIL__CAP_COUNT) - 1)

static uint64_t parsed(const char *text) {
    uint64_t bits = 0;
    const char *bad = NULL;
    cr_assert_eq(coil__caps_parse(text, &bits, &bad), 0, "\"%s\"", text ? text : "(null)");
    cr_assert_null(bad);
    return bits;
}

Test(caps, each_name_stands_for_its_own_bit) {
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        cr_assert_eq(parsed(coil__cap_table[i].name), UINT64_C(1) << i, "%s", coil__cap_table[i].name);
    }
}

Test(caps, every_row_says_what_it_is_for_and_what_is_done_without) {
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        const struct coil__cap_info *c = &coil__cap_table[i];
        cr_assert(c->use && c->use[0] && c->without && c->without[0], "%s", c->name);
    }
}

Test(caps, a_list_is_separated_by_commas_or_blanks) {
    uint64_t two = COIL__CAP_BIT(EXT_ARG) | COIL__CAP_BIT(RECV_MULTI);
    cr_assert_eq(parsed("ext_arg,recv_multishot"), two);
    cr_assert_eq(parsed(" ext_arg ,\t recv_multishot\n"), two);
    cr_assert_eq(parsed(",,recv_multishot,,ext_arg,"), two);
    cr_assert_eq(parsed("ext_arg,ext_arg"), COIL__CAP_BIT(EXT_ARG));
}

Test(caps, nothing_is_left_out_by_an_empty_list) {
    cr_assert_eq(parsed(NULL), 0);
    cr_assert_eq(parsed(""), 0);
    cr_assert_eq(parsed(" , "), 0);
}

Test(caps, a_version_stands_for_all_that_is_newer) {
    uint64_t plain =
        ALL & ~COIL__CAP_BIT(DIRECT_SEND) & ~COIL__CAP_BIT(FILES); /* every kernel that coil runs on */
    cr_assert_eq(parsed("all"), ALL);
    cr_assert_eq(parsed("5.10"), plain);
    cr_assert_eq(parsed("5.11"), plain & ~COIL__CAP_BIT(EXT_ARG) & ~COIL__CAP_BIT(SHUTDOWN));
    cr_assert_eq(parsed("6.0"), COIL__CAP_BIT(DEFER_TASKRUN) | COIL__CAP_BIT(GUARD_INSTALL));
    cr_assert_eq(parsed("6.12"), COIL__CAP_BIT(GUARD_INSTALL));
    cr_assert_eq(parsed("6.13"), 0);
    cr_assert_eq(parsed("99999999999999999999.1"), 0);
    cr_assert_eq(parsed("6.0,ext_arg"), parsed("6.0") | COIL__CAP_BIT(EXT_ARG));
}

Test(caps, an_unknown_word_is_told_and_changes_nothing) {
    static const char *const bad[] = {"nonsense", "ext_ar", "ext_args", "EXT_ARG", "5",    "5.",
                                      ".10",      "5.10x",  "-5.10",    "al",      "alle", "5,10"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t bits = 1 << 5;
        const char *where = NULL;
        cr_assert_eq(coil__caps_parse(bad[i], &bits, &where), -EINVAL, "\"%s\"", bad[i]);
        cr_assert_eq(bits, 1 << 5, "\"%s\"", bad[i]);
        cr_assert_not_null(where);
    }
    uint64_t bits = 0;
    const char *text = "ext_arg, wrong, shutdown", *where = NULL;
    cr_assert_eq(coil__caps_parse(text, &bits, &where), -EINVAL);
    cr_assert_eq(bits, 0);
    cr_assert(where == strstr(text, "wrong"));
    cr_assert_eq(coil__caps_parse("wrong", &bits, NULL), -EINVAL);
}

Test(caps, known_bad_kernels_are_excepted_and_their_neighbours_are_not) {
    static const char *const bad[] = {"6.17.0",    "6.17.0-8-generic", "6.17.13", "6.18.0",
                                      "6.18.19-1", "6.18-rc3",         "6.19.0",  "6.19.13-arch1-1"};
    static const char *const good[] = {
        "5.10.46", "6.1.0-50-amd64", "6.16.12", "6.18.20", "6.18.44-fc", "6.19.14+deb13-amd64",
        "7.0.0",   "7.2.13",         "",        "strange"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        cr_expect_eq(coil__caps_excepted(bad[i]), COIL__CAP_BIT(RECV_MULTI_UNIX), "%s", bad[i]);
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        cr_expect_eq(coil__caps_excepted(good[i]), 0, "%s", good[i]);
}

Test(caps, each_exception_says_why_and_where_that_is_shown) {
    for (unsigned i = 0; i < coil__cap_exception_count; i++)
        cr_expect(coil__cap_exceptions[i].why[0] && strchr(coil__cap_exceptions[i].report, '#'));
}

Test(caps, parsing_adds_to_what_is_there) {
    uint64_t bits = COIL__CAP_BIT(SHUTDOWN);
    cr_assert_eq(coil__caps_parse("ext_arg", &bits, NULL), 0);
    cr_assert_eq(bits, COIL__CAP_BIT(SHUTDOWN) | COIL__CAP_BIT(EXT_ARG));
}

static char *readme(void) {
    static char text[1 << 16];
    FILE *f = fopen(COIL_README, "r");
    cr_assert_not_null(f, "%s", COIL_README);
    size_t n = fread(text, 1, sizeof text - 1, f);
    cr_assert(n < sizeof text - 1, "the README has outgrown this buffer");
    fclose(f);
    text[n] = 0;
    return text;
}

Test(caps, the_kernel_table_of_the_readme_is_this_table) {
    char row[512];
    const char *at = strstr(
        readme(), "\n| capability | Linux | what coil does with it | without it |\n|---|---|---|---|\n");
    cr_assert_not_null(at, "no kernel table in the README");
    at = strstr(at, "---|\n") + 4;
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        const struct coil__cap_info *c = &coil__cap_table[i];
        int n = snprintf(row, sizeof row, "\n| `%s` | %d.%d | %s | %s |", c->name, c->major, c->minor, c->use,
                         c->without);
        cr_assert_eq(strncmp(at, row, (size_t)n), 0, "expected in the README:%s", row);
        at += n;
    }
    cr_assert_eq(strncmp(at, "\n\n", 2), 0, "rows behind %s", coil__cap_table[COIL__CAP_COUNT - 1].name);
}
