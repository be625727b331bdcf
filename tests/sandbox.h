/* A process that denies itself system calls, as a container's seccomp profile would. It holds for the calling
 * thread and for whatever that starts from then on, through exec too, and cannot be taken back: do it in a
 * child, or at the beginning of a test, which has a process of its own. */
#ifndef SANDBOX_H
#define SANDBOX_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { SANDBOX_CALLS_MAX = 32 };

/* Each of the n calls (SYS_...) fails with `error`, a positive errno value, from now on. Privileges can't be
 * gained any more. 0, or negative errno where the kernel has no such filters: the test has to be skipped. Of
 * two filters that name a call the later one's error holds. */
static inline int sandbox_deny(int error, const int *calls, unsigned n) {
    struct sock_filter code[SANDBOX_CALLS_MAX + 3];
    unsigned at = 0;
    if (n > SANDBOX_CALLS_MAX) return -E2BIG;
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    /* A hit jumps over the rest of the calls and over the "allow". */
    for (unsigned i = 0; i < n; i++)
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], n - i, 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error);
    struct sock_fprog filter = {.len = (unsigned short)at, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0 ? -errno : 0;
}

/* No io_uring: EPERM as Docker's and containerd's profiles answer, ENOSYS as a kernel or a sandbox does that
 * knows no such calls. */
static inline int sandbox_deny_io_uring(int error) {
    static const int calls[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register};
    return sandbox_deny(error, calls, sizeof calls / sizeof *calls);
}

#endif
