#include "caps.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct coil__cap_info coil__cap_table[COIL__CAP_COUNT] = {
#define COIL__CAP_ROW(id, name, major, minor, use, without) {name, major, minor, use, without},
    COIL__CAPS(COIL__CAP_ROW)
#undef COIL__CAP_ROW
};

/* A message and the end of the stream that come right after it make one wake-up of the two; the receive takes
 * the message, and the end is never told. It shows where the kernel knows how much a Unix socket holds
 * (6.17). The last number of a range is the first release in which the mending was read (6.18) or seen
 * (6.19). */
const struct coil__cap_exception coil__cap_exceptions[] = {
    {COIL__CAP_RECV_MULTI_UNIX,
     {6, 17, 0},
     {6, 18, 20},
     "a Unix stream's end can get lost",
     "axboe/liburing#1549"},
    {COIL__CAP_RECV_MULTI_UNIX,
     {6, 19, 0},
     {6, 19, 14},
     "a Unix stream's end can get lost",
     "axboe/liburing#1549"},
};
const unsigned coil__cap_exception_count = ARRAY_SIZE(coil__cap_exceptions);

static int compare(const int a[3], const int b[3]) {
    for (int i = 0; i < 3; i++) {
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    }
    return 0;
}

uint64_t coil__caps_excepted(const char *release) {
    uint64_t bits = 0;
    int v[3] = {0};
    if (sscanf(release, "%d.%d.%d", &v[0], &v[1], &v[2]) < 2) return 0;
    for (unsigned i = 0; i < coil__cap_exception_count; i++) {
        const struct coil__cap_exception *e = &coil__cap_exceptions[i];
        if (compare(v, e->from) >= 0 && compare(v, e->before) < 0) bits |= UINT64_C(1) << e->cap;
    }
    return bits;
}

/* The bits of all that came after kernel major.minor. */
static uint64_t newer_than(long major, long minor) {
    uint64_t bits = 0;
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        const struct coil__cap_info *c = &coil__cap_table[i];
        if (c->major > major || (c->major == major && c->minor > minor)) bits |= UINT64_C(1) << i;
    }
    return bits;
}

/* The bits that one word stands for; 0: unknown. A version that leaves nothing out is no mistake, hence
 * `known`. */
static uint64_t word_bits(const char *word, size_t n, bool *known) {
    *known = true;
    if (n == 3 && memcmp(word, "all", 3) == 0) return newer_than(0, 0);
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        const char *name = coil__cap_table[i].name;
        if (strlen(name) == n && memcmp(word, name, n) == 0) return UINT64_C(1) << i;
    }
    if (isdigit((unsigned char)word[0])) {
        char *end;
        long major = strtol(word, &end, 10);
        if (*end == '.' && isdigit((unsigned char)end[1])) {
            long minor = strtol(end + 1, &end, 10);
            if (end == word + n) return newer_than(major, minor);
        }
    }
    *known = false;
    return 0;
}

int coil__caps_parse(const char *text, uint64_t *unused, const char **bad) {
    static const char separators[] = ", \t\n";
    uint64_t bits = 0;
    for (const char *p = text; p && *p;) {
        p += strspn(p, separators);
        size_t n = strcspn(p, separators);
        if (n == 0) break;
        bool known;
        bits |= word_bits(p, n, &known);
        if (!known) {
            if (bad) *bad = p;
            return -EINVAL;
        }
        p += n;
    }
    *unused |= bits;
    return 0;
}
