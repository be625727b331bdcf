/* Time, errors, version. The marks and the shape of the entries are explained at the top of coil.h. */
#ifndef COIL_CORE_H
#define COIL_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The version of these headers; coil_version tells that of the library. Source: semver.org 2.0.0. */
#define COIL_VERSION_MAJOR 0
#define COIL_VERSION_MINOR 1
#define COIL_VERSION_PATCH 0

/* Marks a function as part of the library's interface. */
#define COIL_API __attribute__((visibility("default")))
/* Marks a result that must not be ignored. */
#define COIL_WUR __attribute__((warn_unused_result))
/* Lets the compiler check a printf format: argument f is the format, a the first value. */
#define COIL_PRINTF(f, a) __attribute__((format(printf, f, a)))

#ifdef __cplusplus
extern "C" {
#endif

/* A length of time; may be negative. A type of its own, so that a bare 500 does not compile. */
typedef struct {
    int64_t ns; /* nanoseconds; INT64_MAX: for ever */
} coil_dur;

/* A moment; not interchangeable with coil_dur. Source: clock_gettime(2), CLOCK_MONOTONIC. */
typedef struct {
    int64_t ns; /* nanoseconds of CLOCK_MONOTONIC; INT64_MAX: never */
} coil_time;

/* The length of time without end; as a limit: none. */
static const coil_dur COIL_FOREVER = {INT64_MAX};
/* The moment that never comes; as a limit: none. */
static const coil_time COIL_NEVER = {INT64_MAX};

/* Multiplies n by ns_per_unit and stops at either end of the range: a length too large is COIL_FOREVER. */
static inline coil_dur coil_dur_of_(int64_t n, int64_t ns_per_unit) {
    coil_dur d;
    if (__builtin_mul_overflow(n, ns_per_unit, &d.ns)) d.ns = n < 0 ? INT64_MIN : INT64_MAX;
    return d;
}

/* A length of n nanoseconds.
 * Returns: the length.
 * Mark: [any]. Thread: any. */
static inline coil_dur coil_ns(int64_t n) {
    return coil_dur_of_(n, 1);
}

/* A length of n microseconds.
 * Returns: the length, saturated: at or beyond the range it is COIL_FOREVER, or INT64_MIN ns for a negative
 *         n.
 * Mark: [any]. Thread: any. */
static inline coil_dur coil_us(int64_t n) {
    return coil_dur_of_(n, 1000);
}

/* A length of n milliseconds.
 * Returns: the length, saturated as by coil_us.
 * Mark: [any]. Thread: any. */
static inline coil_dur coil_ms(int64_t n) {
    return coil_dur_of_(n, 1000000);
}

/* A length of n seconds.
 * Returns: the length, saturated as by coil_us.
 * Mark: [any]. Thread: any. */
static inline coil_dur coil_sec(int64_t n) {
    return coil_dur_of_(n, 1000000000);
}

/* The present moment; reads the clock.
 * Returns: the moment.
 * Mark: [any]. Thread: any.
 * Source: clock_gettime(2), CLOCK_MONOTONIC. */
COIL_API coil_time coil_now(void);

/* The moment d from now; reads the clock.
 * Returns: the moment, saturated: COIL_NEVER for COIL_FOREVER; a past moment for a negative d.
 * Mark: [any]. Thread: any. */
COIL_API coil_time coil_after(coil_dur d);

/* A text for a result of coil: a negative errno value, 0, or one of COIL_ESTART_*. A positive errno value is
 * taken too.
 * Returns: the text, never NULL; an unknown number has a text that says so.
 * Memory: the text is constant; it is never freed and never changes.
 * Mark: [any]. Thread: any.
 * Source: errno(3). */
COIL_API const char *coil_strerror(int err);

/* The version of the library that the program runs with.
 * Returns: "major.minor.patch".
 * Memory: the text is constant; it is never freed.
 * Mark: [any]. Thread: any. */
COIL_API const char *coil_version(void);

/* Why coil_run could not start; values far below any errno. One line on stderr says what to do, unless
 * quiet is set. */
enum {
    COIL_ESTART_KERNEL = -5001,    /* no usable io_uring: the kernel is older than 5.10, or built without */
    COIL_ESTART_FORBIDDEN = -5002, /* io_uring is there, but forbidden: by seccomp, or by a sysctl */
    COIL_ESTART_MEMLOCK = -5003,   /* the ring needs more locked memory than RLIMIT_MEMLOCK allows */
    COIL_ESTART_NOMEM = -5004,     /* no memory, no descriptor, or no thread resource to start with */
    COIL_ESTART_OPTION = -5005,    /* an option is out of range or unknown, or a reserved word is not zero */
    COIL_ESTART_NESTED = -5006     /* coil_run was called inside a task */
};

#ifdef __cplusplus
}
#endif

#endif
