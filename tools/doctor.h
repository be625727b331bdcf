/* What `coil doctor` knows of a machine: looked at and tried once, judged, then told to a person or to a
 * script. */
#ifndef COIL__DOCTOR_H
#define COIL__DOCTOR_H

#include "caps.h"
#include "driver.h"

#include "coil/runtime.h"

#include <stdio.h>
#include <sys/resource.h>
#include <sys/utsname.h>

/* What a run asks for if its options say nothing: see coil_run_opts. */
enum { SQ_WANTED = 256, CQ_WANTED = 4096, BUFFERS_WANTED = 512, BUFFER_SIZE = 4096 };

/* Exit statuses; 2 is for bad usage. */
enum { CAN_URING = 0, CANNOT = 1, CAN_EPOLL = 3 };

/* A number that the kernel tells somewhere in /proc; unknown where that isn't there. */
struct known {
    bool yes;
    long long value;
};

/* What a system call answers to arguments that make it do nothing. */
struct answer {
    const char *call;
    int error; /* 0: it is allowed; else why it is not, as a positive errno value */
};

/* A driver, opened as a run would, and closed again. */
struct attempt {
    int code; /* 0, or COIL_ESTART_* */
    char why_not[320];
    uint64_t caps;
};

/* How a run does something; NULL: it can't. */
struct path {
    const char *what, *how;
};

/* Something to change: a command or a phrase, and what it is good for. */
struct advice {
    char change[128];
    char why[160];
};

enum { PATHS = 7, ADVICE_MAX = 12 };

struct doctor {
    /* doctor_look */
    struct utsname kernel;
    long page_size;
    int cpus;
    struct rlimit locked_memory, descriptors;
    struct known max_map_count, somaxconn, uring_disabled, uring_group, seccomp;
    const char *driver_variable, *caps_variable; /* NULL: not set */

    /* doctor_try */
    struct {
        int result; /* of coil_run: 0, or COIL_ESTART_* */
        enum coil_driver_kind driver;
        int signal; /* what it died of; 0: it didn't */
    } run;
    struct answer answers[3];
    struct attempt ring, epoll;
    struct known sq_entries, cq_entries; /* of the ring that there was memory for */
    uint64_t forced_off;                 /* by COIL_CAPS */
    uint64_t found;                      /* what the kernel has */
    const char *bad_cap;                 /* the word of COIL_CAPS that is none; NULL: all are */

    /* doctor_judge */
    int exit_status;
    uint64_t used;     /* capabilities that a run will use */
    uint64_t excepted; /* those that this kernel has, and that are known not to work there */
    char verdict[512];
    struct path paths[PATHS];
    struct known guarded_stacks; /* how many can have a guard page; unknown: as many as there is memory for */
    struct advice advice[ADVICE_MAX];
    unsigned advice_count;
};

void doctor_look(struct doctor *d);  /* reads what the machine tells; nothing of it is tried */
void doctor_try(struct doctor *d);   /* tries what coil needs, and leaves nothing behind */
void doctor_judge(struct doctor *d); /* what it all means; asks the machine nothing more */
void doctor_tell(const struct doctor *d, FILE *to);
void doctor_tell_json(const struct doctor *d, FILE *to);

const char *doctor_errno_name(int error); /* of an answer that is not 0 */

static inline bool doctor_has(uint64_t caps, unsigned cap) {
    return caps >> cap & 1;
}

/* What becomes of a capability:
 *   "used"
 *   "forced off"  by COIL_CAPS
 *   "unused"      it goes with one that is forced off, or the driver has no use for it
 *   "bad kernel"  this kernel has it, and it is known not to work there
 *   "missing"     this kernel does not have it
 *   "no ring"     nothing is known, for want of a ring that could be asked */
const char *doctor_cap_state(const struct doctor *d, unsigned cap);

#endif
