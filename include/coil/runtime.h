/* Starting a run, its options, its counters. */
#ifndef COIL_RUNTIME_H
#define COIL_RUNTIME_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a task runs: it gets the arg it was started with; what it returns is the task's result, < 0 a
 * failure. */
typedef int coil_fn(void *arg);

/* What carries requests to the kernel. */
enum coil_driver_kind {
    COIL_DRIVER_ANY,   /* io_uring; epoll where there is no ring to be had, and one line on stderr says why */
    COIL_DRIVER_URING, /* io_uring, or the run doesn't start */
    COIL_DRIVER_EPOLL  /* epoll: slower under load, the same for the program; works where io_uring is
                        * forbidden.  Descriptors that coil_accept, coil_connect, coil_read and coil_write are
                        * given become  O_NONBLOCK, and stay so. Files are read and written by threads of the
                        * blocking pool. */
};

/* Options of a run; zero is the default of each. A value out of range is COIL_ESTART_OPTION. */
typedef struct coil_run_opts {
    /* Bytes of stack that a task can use, 16 KiB to 64 MiB, rounded up to a power of two; 0: 64 KiB (four
     * times that in a build with sanitizers). */
    size_t stack_size;
    /* How many stacks of ended tasks are kept for the next ones; 0: 1024. */
    size_t stack_cache_max;
    /* How many tasks may live at once; beyond it a spawn gives -EAGAIN. 0: no limit. */
    size_t tasks_max;
    /* Never a stack without a guard page: where the process's mappings run out (vm.max_map_count), a spawn
     * gives -ENOMEM instead of a stack that is guarded by a check word alone. Source: proc(5). */
    bool guards_only;
    /* Entries of the submission queue, at most 32768, rounded up to a power of two; 0: 256. A
     * full queue delays requests and loses none. Source: io_uring_setup(2). */
    unsigned sq_entries;
    /* Entries of the completion queue, at least sq_entries and at most 65536, rounded up to a power of
     * two; 0: 4096, or twice sq_entries. Source: io_uring_setup(2), IORING_SETUP_CQSIZE. */
    unsigned cq_entries;
    /* How many receive buffers the worker's streams share, at most 32768, rounded up to a power of two; 0:
     * 512.
     * Source: io_uring_register(2), IORING_REGISTER_PBUF_RING. */
    unsigned pool_buffers;
    /* Bytes of each of them, at most 1 MiB; 0: 4096. */
    size_t pool_buffer_size;
    /* How many threads the blocking pool has at most, 3 to 1024; 0: 16. It is one for the process, and its
     * threads start when there is work for them. Every run that says a number changes it. */
    unsigned blocking_threads;
    /* How many calls may wait for such a thread in each of the pool's lanes; 0: 4096. */
    unsigned blocking_queue;
    /* The driver to use; the environment variable COIL_DRIVER (any, uring, epoll) wins over this. */
    enum coil_driver_kind driver;
    /* Names of capabilities to leave unused, separated by commas; NULL: none. The environment variable
     * COIL_CAPS adds to it. An unknown name is COIL_ESTART_OPTION. The caller's memory, borrowed until the
     * call returns. */
    const char *caps;
    /* How much later than asked a timer may fire, so that timers share wake-ups; >= 0; 0: 100 us. */
    coil_dur timer_slack;
    /* The longest wait by polling before the worker blocks, used only while work has been coming sooner than
     * that; 0: 25 us, about what being woken costs; negative: never poll. */
    coil_dur spin_max;
    /* After main has returned and this long has been spent waiting for the other tasks to end: a report,
     * then abort. 0: wait without limit (a report comes after 5 s all the same, and where nothing is left
     * that could wake them, the run aborts at once); negative is out of range. */
    coil_dur exit_limit;
    /* A task that keeps the worker for longer than this without giving it up is reported on stderr, once each
     * time, with its call stack, and when it has given the worker up; 0: none is; negative is out of range.
     * A thread of the process watches for it while such a run is under way, and interrupts the worker's
     * thread by SIGURG for the call stack. A handler of the program for SIGURG that was there before is
     * called for all others. A call that blocks the thread is then begun anew as by SA_RESTART, or ends with
     * EINTR where it never is: nanosleep, poll. Source: signal(7). */
    coil_dur blocked_limit;
    /* A signal on which this run's tasks are dumped to stderr, as by coil_dump_tasks, also where `quiet` is
     * set; 0: none. As for coil_signal_wait, which may wait for it as well, it is caught in the whole process
     * while such a run is under way, and signals that it doesn't take are out of range. The dump comes when
     * the task at hand gives the worker up; for one that doesn't, see blocked_limit. Source: signal(7). */
    int dump_signal;
    /* Other threads may cancel tasks of this run: "nothing is left that could wake a task" is then no
     * deadlock. */
    bool external_wakes;
    /* Print nothing on stderr. Lines before an abort are printed all the same. */
    bool quiet;
    /* Must be zero. */
    uint64_t reserved[8];
} coil_run_opts;

/* Runs fn(arg) as the first task of a new run on the calling thread, and waits until every task has ended.
 * When fn returns, all other tasks are cancelled; a task spawned from then on starts cancelled. The thread is
 * the run's worker meanwhile; SIGPIPE is blocked in it for that time. It can be called again, and by several
 * threads at once: a run of its own in each. In a child forked during a run only exec and _exit may follow.
 * Returns: what fn returned.
 * Errors: -EDEADLK: every task waited, and nothing was left that could wake one; a report told who waited for
 *         what, then all were cancelled. It could not start, and fn was not called: COIL_ESTART_KERNEL,
 *         COIL_ESTART_FORBIDDEN, COIL_ESTART_MEMLOCK: there is no ring to be had, and epoll was refused by
 *         COIL_DRIVER=uring. COIL_ESTART_NOMEM: no memory, or no descriptors. COIL_ESTART_OPTION: fn is NULL,
 *         or COIL_CAPS or COIL_DRIVER names something unknown. COIL_ESTART_NESTED: called inside a task.
 * Memory: arg is the caller's; coil only hands it on.
 * Mark: none: it blocks its thread until the run has ended. Thread: any that is not inside a task.
 * Source: io_uring(7). */
COIL_API int coil_run(coil_fn *fn, void *arg);

/* Runs fn(arg) as coil_run does, with options.
 * Returns: what fn returned.
 * Errors: as coil_run. COIL_ESTART_OPTION also: a size or count out of range, an unknown capability or
 *         driver, a reserved word that is not zero.
 * Memory: *o is borrowed until the call returns; NULL: the defaults.
 * Mark: none, as coil_run. Thread: any that is not inside a task. */
COIL_API int coil_run_with(const coil_run_opts *o, coil_fn *fn, void *arg);

/* Counters of one worker, since its run began. */
typedef struct coil_stats {
    enum coil_driver_kind driver; /* the driver in use */
    uint64_t turns;               /* passes of the worker's loop */
    uint64_t enters;              /* calls of io_uring_enter, or epoll_wait. Source: io_uring_enter(2) */
    uint64_t ops;                 /* requests begun */
    uint64_t completions;         /* completions reaped; a multishot request has several */
    uint64_t cancels;             /* cancels of requests that were sent to the kernel */
    uint64_t resumes;             /* switches into a task */
    uint64_t spins;               /* waits that began by polling */
    uint64_t sq_full;             /* times that a request had to wait for a place in the submission queue */
    uint64_t cq_overflow;         /* times that the kernel had to keep completions back; none is lost */
    uint64_t pool_empty;          /* times that a receive found no shared buffer */
    uint64_t tasks_now;           /* tasks alive */
    uint64_t tasks_peak;          /* the most tasks that were alive at once */
    uint64_t stacks_unguarded;    /* stacks in use that have a check word instead of a guard page */
    uint64_t streams_now;         /* streams open */
    uint64_t jobs;                /* calls that threads of the blocking pool have run */
    uint64_t jobs_wait_ns;        /* how long these have waited for a thread, all together */
    uint64_t reserved[16];        /* zero */
} coil_stats;

/* Copies the counters of the current worker.
 * Memory: *out is the caller's.
 * Mark: [now]. Thread: a task. */
COIL_API void coil_stats_get(coil_stats *out);

#ifdef __cplusplus
}
#endif

#endif
