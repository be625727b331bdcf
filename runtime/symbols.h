/* From a code address to the function, file and line that a reader knows.
 *
 * Files and lines come from libdw, which is looked for by dlopen, so that a program neither links with it nor
 * loads it before somebody asks. Without it, functions come from the symbol tables of the program and of its
 * libraries, and what is not even there is told as an offset into its file, good for addr2line.
 *
 * All of this reads files and needs much stack, up to COIL__SYMBOLS_STACK bytes: not for a task's own. */
#ifndef COIL__SYMBOLS_H
#define COIL__SYMBOLS_H

#include "base.h"

#include <stdio.h>

#define COIL__SYMBOLS_STACK ((size_t)256 << 10)

/* One function that an address is in. Strings live until coil__symbols_close. */
struct coil__symbol {
    const char *function; /* NULL: not known */
    const char *file;     /* NULL: not known */
    const char *object;   /* the program or library; NULL: the address is in none */
    int line;
    uintptr_t offset; /* into the function, or where that is not known, into the object */
    bool ours;        /* a function of coil's own */
};

/* A look-up that takes some time to begin and is cheap for addresses that were asked for before. Holds memory
 * and descriptors until it is closed. NULL: no memory. */
struct coil__symbols *coil__symbols_open(void);
void coil__symbols_close(struct coil__symbols *s);

/* What the call that returns to pc stands in: the innermost of the functions that the compiler has put into
 * one another first, and at last the one that was called. Returns how many, at least one; *out is valid until
 * the next call. s may be NULL. */
int coil__symbols_find(struct coil__symbols *s, const void *pc, const struct coil__symbol **out);
/* "function at file:line", "function+0x12", "program+0x1234" or "0x1234". */
void coil__symbol_print(FILE *out, const struct coil__symbol *sym);

/* Whether files and lines can be had in this process, debugging information permitting. */
bool coil__symbols_lines(void);

#endif
