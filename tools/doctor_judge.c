/* What the findings mean: the verdict, what a run will do, and what to change for more. */
#include "doctor.h"

#include "coil/core.h"

#include <string.h>
#include <unistd.h>

enum {
    DESCRIPTORS_FEW = 65536, /* below it: worth saying */
    DESCRIPTORS_MANY = 1048576,
    BACKLOG_WANTED = 4096, /* of a listener, if its options say nothing */
    MAPPINGS_FEW = 262144, /* below it: guards for fewer than 65536 stacks */
    MAPPINGS_MANY = 1048576,
    MAPPINGS_PER_STACK = 4, /* guards may take half of them, two each: runtime/stack.c */
};

static bool variable_is(const char *variable, const char *value) {
    return variable && strcmp(variable, value) == 0;
}

/* ---- the verdict ---- */

static const char *why_no_run(const struct doctor *d, char *buf, size_t size) {
    if (d->bad_cap) {
        snprintf(buf, size, "COIL_CAPS names something unknown: %.40s", d->bad_cap);
    } else if (d->run.result == COIL_ESTART_OPTION) {
        snprintf(buf, size, "COIL_DRIVER is '%.40s', but must be any, uring or epoll", d->driver_variable);
    } else if (variable_is(d->driver_variable, "uring") && d->ring.code) {
        snprintf(buf, size, "COIL_DRIVER refuses epoll, and %s", d->ring.why_not);
    } else if (d->ring.code && (d->run.signal || !d->epoll.code || d->ring.code == COIL_ESTART_NOMEM)) {
        return d->ring.why_not;
    } else if (d->epoll.code) {
        return d->epoll.why_not;
    } else if (d->run.signal) {
        snprintf(buf, size, "a run was ended by signal %d", d->run.signal);
    } else {
        return coil_strerror(d->run.result);
    }
    return buf;
}

static const char *why_epoll(const struct doctor *d) {
    if (variable_is(d->driver_variable, "epoll")) return "COIL_DRIVER asks for it";
    return d->ring.code ? d->ring.why_not : "a moment ago there was no ring to be had";
}

static void judge_run(struct doctor *d) {
    char why[sizeof d->verdict - 64];
    uint64_t stacks = d->found & COIL__CAP_BIT(GUARD_INSTALL) & ~d->forced_off;
    if (d->run.result || d->run.signal) {
        d->exit_status = CANNOT;
        snprintf(d->verdict, sizeof d->verdict, "coil cannot run here: %s", why_no_run(d, why, sizeof why));
    } else if (d->run.driver == COIL_DRIVER_EPOLL) {
        d->exit_status = CAN_EPOLL;
        d->used = d->epoll.caps | stacks;
        snprintf(d->verdict, sizeof d->verdict, "coil can run here, by epoll: %s", why_epoll(d));
    } else {
        d->exit_status = CAN_URING;
        d->used = d->ring.caps | stacks;
        int count = __builtin_popcountll(d->used);
        char lacks[16] = "all";
        if (count < COIL__CAP_COUNT) snprintf(lacks, sizeof lacks, "%d of", count);
        snprintf(d->verdict, sizeof d->verdict, "coil can run here: io_uring, %s %d capabilities", lacks,
                 COIL__CAP_COUNT);
    }
    /* What follows is advice, which has its place further down. */
    char *rest = strchr(d->verdict, ';');
    if (rest) *rest = '\0';
}

const char *doctor_cap_state(const struct doctor *d, unsigned cap) {
    bool of_ring = cap != COIL__CAP_GUARD_INSTALL;
    if (doctor_has(d->used, cap)) return "used";
    if (doctor_has(d->found, cap)) return doctor_has(d->forced_off, cap) ? "forced off" : "unused";
    if (d->ring.code && of_ring) return "no ring";
    return doctor_has(d->excepted, cap) ? "bad kernel" : "missing";
}

/* ---- the paths ---- */

static const char *by_cap(const struct doctor *d, enum coil__cap cap) {
    const struct coil__cap_info *c = &coil__cap_table[cap];
    return doctor_has(d->used, cap) ? c->use : c->without;
}

static const char *how_to_wait(const struct doctor *d) {
    if (d->exit_status == CAN_EPOLL) return "epoll_wait, its time limit a timerfd";
    return doctor_has(d->used, COIL__CAP_EXT_ARG) ? "io_uring_enter with a time limit"
                                                  : "io_uring_enter, its time limit a timerfd";
}

static const char *how_to_wake(const struct doctor *d) {
    if (d->exit_status == CAN_EPOLL) return "an eventfd in the epoll set";
    return doctor_has(d->used, COIL__CAP_POLL_MULTI) ? "an eventfd, polled by one request for all times"
                                                     : "an eventfd, polled by a request each time";
}

static void judge_paths(struct doctor *d) {
    const struct path paths[PATHS] = {
        {"wait", how_to_wait(d)},
        {"accept", by_cap(d, COIL__CAP_ACCEPT_MULTI)},
        {"receive", by_cap(d, COIL__CAP_RECV_MULTI)},
        {"send", by_cap(d, COIL__CAP_DIRECT_SEND)},
        {"wake", how_to_wake(d)},
        {"files", by_cap(d, COIL__CAP_FILES)},
        {"stacks", by_cap(d, COIL__CAP_GUARD_INSTALL)},
    };
    for (unsigned i = 0; i < PATHS; i++)
        d->paths[i] = (struct path){paths[i].what, d->exit_status == CANNOT ? NULL : paths[i].how};
    d->guarded_stacks = d->max_map_count;
    d->guarded_stacks.value /= MAPPINGS_PER_STACK;
    if (doctor_has(d->used, COIL__CAP_GUARD_INSTALL)) d->guarded_stacks.yes = false;
}

/* ---- advice: only what applies ---- */

static void advise(struct doctor *d, const char *change, const char *why) {
    CHECK(d->advice_count < ADVICE_MAX);
    struct advice *a = &d->advice[d->advice_count++];
    snprintf(a->change, sizeof a->change, "%s", change);
    snprintf(a->why, sizeof a->why, "%s", why);
}

static void advise_on_variables(struct doctor *d) {
    bool unknown = d->run.result == COIL_ESTART_OPTION && !d->bad_cap;
    bool refuses = d->exit_status == CANNOT && variable_is(d->driver_variable, "uring");
    if (unknown || refuses) advise(d, "unset COIL_DRIVER", "lets coil choose");
    if (d->exit_status == CAN_EPOLL && d->ring.code == 0)
        advise(d, "unset COIL_DRIVER", "io_uring would work here");
    if (d->run.signal && d->epoll.code == 0) advise(d, "export COIL_DRIVER=epoll", "epoll would work here");
    if (d->bad_cap || (d->found & d->forced_off & ~d->used))
        advise(d, "unset COIL_CAPS",
               d->bad_cap ? "lets coil choose" : "it keeps capabilities from being used");
}

static void advise_on_permission(struct doctor *d) {
    char change[128];
    bool by_sysctl = d->answers[0].error == EPERM && d->uring_disabled.yes && d->uring_disabled.value > 0;
    if (by_sysctl) {
        advise(d, "sysctl -w kernel.io_uring_disabled=0", "allows io_uring to everybody");
        snprintf(change, sizeof change, "sysctl -w kernel.io_uring_disabled=1 kernel.io_uring_group=%u",
                 (unsigned)getegid());
        advise(d, change, "or to this process's group alone");
    }
    if (d->seccomp.yes && d->seccomp.value == 2) {
        advise(d, "allow io_uring_setup, io_uring_enter and io_uring_register",
               "in the seccomp profile; Docker: --security-opt seccomp=FILE");
    } else if (!by_sysctl && d->answers[0].error != ENOSYS) {
        advise(d, "allow io_uring", "a sandbox or a security module (SELinux) forbids it");
    }
    if (d->answers[0].error == ENOSYS)
        advise(d, "a kernel with CONFIG_IO_URING, Linux 5.10 or later",
               "this one, or a sandbox, says ENOSYS");
}

/* Too little locked memory shows in a smaller ring, too, and in one without buffers where the kernel has
 * them: multishot accept comes from the same kernel. */
static bool short_of_memory(const struct doctor *d) {
    bool no_buffers =
        doctor_has(d->found, COIL__CAP_ACCEPT_MULTI) && !doctor_has(d->found, COIL__CAP_BUF_RING);
    bool small = (d->sq_entries.yes && d->sq_entries.value < SQ_WANTED) ||
                 (d->cq_entries.yes && d->cq_entries.value < CQ_WANTED);
    return d->ring.code == COIL_ESTART_MEMLOCK || small || no_buffers;
}

static void advise_on_limits(struct doctor *d) {
    char change[128], why[160];
    const struct rlimit *files = &d->descriptors;
    if (short_of_memory(d)) {
        snprintf(why, sizeof why,
                 "as root, or LimitMEMLOCK=: rings count as locked memory here; now %llu KiB",
                 (unsigned long long)d->locked_memory.rlim_cur / 1024);
        advise(d, "ulimit -l unlimited", why);
    }
    if (files->rlim_cur < DESCRIPTORS_FEW) {
        rlim_t may =
            files->rlim_max < DESCRIPTORS_FEW ? DESCRIPTORS_MANY : MIN(files->rlim_max, DESCRIPTORS_MANY);
        snprintf(change, sizeof change, "ulimit -n %llu", (unsigned long long)may);
        snprintf(why, sizeof why, "%sa connection takes a descriptor; now %llu",
                 may > files->rlim_max ? "as root, or LimitNOFILE=: " : "",
                 (unsigned long long)files->rlim_cur);
        advise(d, change, why);
    }
    if (d->somaxconn.yes && d->somaxconn.value < BACKLOG_WANTED) {
        snprintf(change, sizeof change, "sysctl -w net.core.somaxconn=%d", BACKLOG_WANTED);
        snprintf(why, sizeof why, "connections that wait to be accepted; now %lld", d->somaxconn.value);
        advise(d, change, why);
    }
    if (d->guarded_stacks.yes && d->max_map_count.value < MAPPINGS_FEW) {
        snprintf(change, sizeof change, "sysctl -w vm.max_map_count=%d", MAPPINGS_MANY);
        snprintf(why, sizeof why, "guard pages for more than %lld stacks", d->guarded_stacks.value);
        advise(d, change, why);
    }
}

static void advise_on_exceptions(struct doctor *d) {
    for (unsigned i = 0; i < coil__cap_exception_count; i++) {
        const struct coil__cap_exception *e = &coil__cap_exceptions[i];
        char why[160];
        if (!doctor_has(d->excepted & ~d->found, e->cap)) continue;
        snprintf(why, sizeof why, "%s is not used here: %s (%s)", coil__cap_table[e->cap].name, e->why,
                 e->report);
        advise(d, "a later release of this kernel", why);
        return;
    }
}

/* A newer kernel, for what is missing and can't be had by anything else. */
static void advise_on_kernel(struct doctor *d) {
    uint64_t other = d->excepted;
    const struct coil__cap_info *newest = NULL;
    unsigned count = 0;
    char change[128], why[160];
    if (short_of_memory(d))
        other |= COIL__CAP_BIT(BUF_RING) | COIL__CAP_BIT(RECV_MULTI) | COIL__CAP_BIT(RECV_MULTI_UNIX);
    for (unsigned i = 0; i < COIL__CAP_COUNT; i++) {
        if (doctor_has(d->found | other, i)) continue;
        newest = &coil__cap_table[i]; /* the table is in order of age */
        count++;
    }
    if (!newest) return;
    snprintf(change, sizeof change, "Linux %d.%d or later", newest->major, newest->minor);
    snprintf(why, sizeof why, "brings %s%s", newest->name,
             count > 1 ? " and the others that are missing" : "");
    advise(d, change, why);
}

void doctor_judge(struct doctor *d) {
    d->excepted = coil__caps_excepted(d->kernel.release);
    judge_run(d);
    judge_paths(d);
    advise_on_variables(d);
    bool refused = d->answers[0].error || d->answers[1].error || d->answers[2].error;
    if (refused) advise_on_permission(d);
    advise_on_limits(d);
    if (d->ring.code || refused) return; /* what the kernel has is not known then */
    advise_on_exceptions(d);
    advise_on_kernel(d);
}
