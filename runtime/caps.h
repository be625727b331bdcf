/* What the running kernel can do. One table makes the enum, the probes' names, COIL_CAPS and the README's
 * kernel table. A capability is found by asking the kernel (ring.c), never inferred from its version; the
 * version in the table is for people, and for leaving unused all that is newer than some kernel. */
#ifndef COIL__CAPS_H
#define COIL__CAPS_H

#include "base.h"

/* clang-format off */
/*    enum            name                first in  what coil does with it                                without it */
#define COIL__CAPS(X)                                                                                                  \
    X(DIRECT_SEND,    "direct_send",      5, 10, "send(2) first: system calls are cheap here",     "each send is a request")             \
    X(FILES,          "files",            5, 10, "reads and writes of files as requests",         "a thread of the blocking pool does them") \
    X(EXT_ARG,        "ext_arg",          5, 11, "waits with a time limit in the same call",      "a timerfd, polled by the ring")       \
    X(SHUTDOWN,       "shutdown",         5, 11, "shutdown as a request",                          "shutdown(2), which never blocks")    \
    X(POLL_MULTI,     "poll_multishot",   5, 13, "one poll request for many readiness events",     "a poll request per wait")            \
    X(SUBMIT_ALL,     "submit_all",       5, 18, "one bad request doesn't hold up those after it", "the rest goes in with the next enter") \
    X(RING_FD,        "ring_fd",          5, 18, "the ring's own descriptor is registered",        "it is looked up at each enter")      \
    X(ACCEPT_MULTI,   "accept_multishot", 5, 19, "one accept request for many connections",        "poll, then accept4 until empty")     \
    X(COOP_TASKRUN,   "coop_taskrun",     5, 19, "completions don't interrupt the worker",         "they may")                           \
    X(BUF_RING,       "buf_ring",         5, 19, "the kernel picks receive buffers from a ring",   "receives into the reader's memory")  \
    X(SINGLE_ISSUER,  "single_issuer",    6, 0,  "the ring belongs to one thread",                 "a ring for any thread")              \
    X(RECV_MULTI,     "recv_multishot",   6, 0,  "one receive request for a stream's whole life",  "poll, then recv")                    \
    X(RECV_MULTI_UNIX,"recv_multishot_unix", 6, 0, "the same for streams over Unix sockets",           "poll, then recv, for these")         \
    X(DEFER_TASKRUN,  "defer_taskrun",    6, 1,  "completions are made when the worker asks",      "they are made at any system call")   \
    X(GUARD_INSTALL,  "guard_install",    6, 13, "stack guards that cost no mapping",              "mprotect; canaries past half of max_map_count")

/* clang-format on */

enum coil__cap {
#define COIL__CAP_ENUM(id, name, major, minor, use, without) COIL__CAP_##id,
    COIL__CAPS(COIL__CAP_ENUM)
#undef COIL__CAP_ENUM
        COIL__CAP_COUNT
};

#define COIL__CAP_BIT(id) (UINT64_C(1) << COIL__CAP_##id)

struct coil__cap_info {
    const char *name;
    int major, minor; /* the first kernel that has it, as a rule */
    const char *use, *without;
};

extern const struct coil__cap_info coil__cap_table[COIL__CAP_COUNT];

/* A kernel that has a capability which must not be used: the only decisions that look at a version, because
 * what is wrong there is a race, which no probe can find. */
struct coil__cap_exception {
    enum coil__cap cap;
    int from[3], before[3]; /* kernel releases */
    const char *why;        /* what goes wrong */
    const char *report;     /* where that is shown */
};

extern const struct coil__cap_exception coil__cap_exceptions[];
extern const unsigned coil__cap_exception_count;

/* The bits that must stay unused on a kernel of this release (uname -r: "6.18.20-generic"). */
uint64_t coil__caps_excepted(const char *release);

/* Reads a list of capabilities to leave unused, separated by commas or blanks: names of the table, a kernel
 * version such as "5.10" (all that is newer than it), or "all". Adds their bits to *unused; -EINVAL for an
 * unknown word, of which *bad (if not NULL) gets the beginning; *unused is unchanged then. */
int coil__caps_parse(const char *text, uint64_t *unused, const char **bad);

#endif
