/* Time and errors. */
#include "task.h"

#include "coil/core.h"

#include <limits.h>
#include <string.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *coil_version(void) {
    return TEXT(COIL_VERSION_MAJOR) "." TEXT(COIL_VERSION_MINOR) "." TEXT(COIL_VERSION_PATCH);
}

coil_time coil_now(void) {
    struct coil__sched *s = coil__here;
    return (coil_time){s ? coil__clock(s) : coil__sys_linux.now()};
}

coil_time coil_after(coil_dur d) {
    int64_t now_ns = coil_now().ns;
    return (coil_time){d.ns >= 0 ? coil__add_ns(now_ns, d.ns) : MAX(now_ns + d.ns, 0)};
}

static const char *start_error(int err) {
    switch (err) {
    case COIL_ESTART_KERNEL:
        return "coil cannot start: no io_uring here";
    case COIL_ESTART_FORBIDDEN:
        return "coil cannot start: io_uring is forbidden here";
    case COIL_ESTART_MEMLOCK:
        return "coil cannot start: too little locked memory (RLIMIT_MEMLOCK)";
    case COIL_ESTART_NOMEM:
        return "coil cannot start: out of memory or descriptors";
    case COIL_ESTART_OPTION:
        return "coil cannot start: an option is out of range or unknown";
    case COIL_ESTART_NESTED:
        return "coil_run was called inside a task";
    default:
        return NULL;
    }
}

/* NULL where the C library knows no text. What it returns is never freed and never changes. */
static const char *errno_text(int err) {
#ifdef __GLIBC__
    return strerrordesc_np(err); /* Its strerror writes the numbers of unknown errors into a buffer. */
#else
    const char *text = strerror(err);
    return strcmp(text, strerror(INT_MAX)) == 0 ? NULL : text;
#endif
}

const char *coil_strerror(int err) {
    const char *text = start_error(err);
    if (text) return text;
    if (err == 0) return "success";
    /* Names without a number in them are constants of the C library; it knows no text for the others. */
    if (err > -4096 && err < 4096) text = errno_text(err < 0 ? -err : err);
    return text ? text : "unknown error";
}
