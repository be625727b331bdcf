#include "base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

_Noreturn void coil__check_failed(const char *what, const char *file, int line) {
    fprintf(stderr, "coil: internal check failed: %s (%s:%d)\n", what, file, line);
    abort();
}

_Noreturn void coil__misuse(const char *call, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "coil: %s: ", call);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    abort();
}
