#include "caps.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

const struct coil__cap_info coil__cap_table[COIL__CAP_COUNT] = {
#define COIL__CAP_ROW(id, name, major, minor, use, without) {name, major, minor, use, without},
    COIL__CAPS(COIL__CAP_ROW)
#undef COIL__CAP_ROW
};

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
