/* Whether call stacks can have files and lines in a test program: where libdw is, and unless the program was
 * stripped of them. */
#ifndef LINES_H
#define LINES_H

#include "symbols.h"

#include <stdio.h>
#include <string.h>

/* Whether the program has a section of that name, which is looked for in its text: so it must not be a string
 * of the program's own. */
static inline bool lines_have_section(void) {
    char name[] = "?debug_line";
    size_t length = strlen(name), at = 0;
    FILE *f = fopen("/proc/self/exe", "re");
    name[0] = '.';
    for (int c; f && at <= length && (c = getc(f)) != EOF;) {
        if (c == (unsigned char)name[at]) {
            at++;
        } else {
            at = c == '.';
        }
    }
    if (f) fclose(f);
    return at > length;
}

static inline bool lines_known(void) {
    static int known = -1;
    if (known < 0) known = coil__symbols_lines() && lines_have_section();
    return known;
}

#endif
