/* What every file of coil stands on: checks that are always compiled in, and a few macros.
 *
 * CHECK states an invariant of coil's own: where it fails, coil is broken, and going on would lose somebody's
 * data. MISUSE tells the caller that a call was used in a way that has no error value, and names the call. */
#ifndef COIL__BASE_H
#define COIL__BASE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define COLD __attribute__((cold, noinline))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof(*(a)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* The structure that holds `member`, given a pointer to that member. */
#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define CHECK(cond)                                                           \
    do {                                                                      \
        if (UNLIKELY(!(cond))) coil__check_failed(#cond, __FILE__, __LINE__); \
    } while (0)

/* `call` is the public function that was misused; the rest is a printf format that ends the sentence. */
#define MISUSE(call, ...) coil__misuse(call, __VA_ARGS__)

/* The reserved words at the end of an options structure are zero, so that it can grow. */
#define RESERVED_ZERO(o) coil__all_zero((o)->reserved, ARRAY_SIZE((o)->reserved))

static inline bool coil__all_zero(const uint64_t *words, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (words[i]) return false;
    }
    return true;
}

_Noreturn COLD void coil__check_failed(const char *what, const char *file, int line);
_Noreturn COLD void coil__misuse(const char *call, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
