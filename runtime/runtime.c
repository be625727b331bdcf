/* coil_run: from options to a worker, until its last task has ended. */
#include "cancel.h"
#include "caps.h"
#include "dump.h"
#include "hybrid.h"
#include "poll.h"
#include "signals.h"
#include "threads.h"
#include "watchdog.h"

#include "coil/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SQ_ENTRIES = 256,
    CQ_ENTRIES = 4096,
    POOL_BUFFERS = 512,
    POOL_BUFFER_SIZE = 4096,
    STACK_CACHE = 1024,
    SLACK_NS = 100000,
    SPIN_NS = 25000,
};

static const int64_t exit_report_ns = 5000000000;

struct run {
    struct coil__worker w;
    coil_fn *fn;
    void *arg;
    int result;
    bool deadlocked;
    struct coil__watch watch;
    struct coil__timer exit_timer; /* armed once the main task has returned and others have not */
    int64_t exit_began_ns, exit_limit_ns;
    bool exit_reported;
    bool pipe_blocked; /* SIGPIPE was blocked or pending before the run */
};

static struct run *run_of(struct coil__sched *s) {
    return CONTAINER_OF(coil__worker_of(s), struct run, w);
}

/* ---- options ---- */

static bool power_of_two_up(unsigned *v, unsigned dflt, unsigned max) {
    if (*v == 0) *v = dflt;
    if (*v > max) return false;
    unsigned p = 1;
    while (p < *v)
        p *= 2;
    *v = p;
    return true;
}

/* Fills in defaults; the name of the option that is out of range, or NULL. */
static const char *complete_options(coil_run_opts *o) {
    if (!RESERVED_ZERO(o)) return "reserved (must be zero)";
    if (!power_of_two_up(&o->sq_entries, SQ_ENTRIES, 32768)) return "sq_entries";
    if (!power_of_two_up(&o->cq_entries, MAX(CQ_ENTRIES, 2 * o->sq_entries), 65536)) return "cq_entries";
    if (o->cq_entries < o->sq_entries) return "cq_entries";
    if (!power_of_two_up(&o->pool_buffers, POOL_BUFFERS, 32768)) return "pool_buffers";
    if (o->pool_buffer_size == 0) o->pool_buffer_size = POOL_BUFFER_SIZE;
    if (o->pool_buffer_size > 1 << 20) return "pool_buffer_size";
    if (o->stack_cache_max == 0) o->stack_cache_max = STACK_CACHE;
    if (o->timer_slack.ns < 0) return "timer_slack";
    if (o->timer_slack.ns == 0) o->timer_slack.ns = SLACK_NS;
    if (o->spin_max.ns == 0) o->spin_max.ns = SPIN_NS;
    if (o->exit_limit.ns < 0) return "exit_limit";
    if (o->blocked_limit.ns < 0) return "blocked_limit";
    if (o->driver > COIL_DRIVER_EPOLL) return "driver";
    /* One for each lane, at least. */
    if (o->blocking_threads && o->blocking_threads < COIL__LANE_COUNT) return "blocking_threads";
    if (o->blocking_threads > 1024) return "blocking_threads";
    if (o->dump_signal && !coil__signal_possible(o->dump_signal)) return "dump_signal";
    return NULL;
}

/* The variable wins over the option; false: it names none. */
static bool wanted_driver(enum coil_driver_kind *kind) {
    static const char *const names[] = {
        [COIL_DRIVER_ANY] = "any", [COIL_DRIVER_URING] = "uring", [COIL_DRIVER_EPOLL] = "epoll"};
    const char *v = getenv("COIL_DRIVER");
    if (!v || !*v) return true;
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(v, names[i]) != 0) continue;
        *kind = (enum coil_driver_kind)i;
        return true;
    }
    return false;
}

static int bad_option(const coil_run_opts *o, const char *what, const char *value) {
    if (!o->quiet)
        fprintf(stderr, "coil: cannot start: %s%s%s is not possible\n", what, value ? " " : "",
                value ? value : "");
    return COIL_ESTART_OPTION;
}

/* What the environment says, and what must stay unused by it and by the option. */
static int read_environment(coil_run_opts *o, uint64_t *unused) {
    const char *bad;
    if (coil__caps_parse(o->caps, unused, &bad)) return bad_option(o, "capability", bad);
    if (coil__caps_parse(getenv("COIL_CAPS"), unused, &bad)) return bad_option(o, "COIL_CAPS:", bad);
    return wanted_driver(&o->driver) ? 0 : bad_option(o, "COIL_DRIVER", getenv("COIL_DRIVER"));
}

/* ---- the end, orderly or not ---- */

static void exit_report(struct coil__timer *timer) {
    struct run *r = CONTAINER_OF(timer, struct run, exit_timer);
    int64_t waited_ns = r->w.s.now_ns - r->exit_began_ns;
    bool over = r->exit_limit_ns && waited_ns >= r->exit_limit_ns;
    if (over || (!r->exit_reported && !r->w.quiet)) coil__report_exit(&r->w, waited_ns);
    if (over) {
        fprintf(stderr, "coil: exit_limit is over, aborting\n");
        abort();
    }
    r->exit_reported = true;
    if (r->exit_limit_ns) coil__timer_arm(&r->w.s, timer, coil__add_ns(r->exit_began_ns, r->exit_limit_ns));
}

/* The main task has returned: everybody else is asked to end. Calls that were left behind are waited for. */
static void begin_exit(struct run *r) {
    struct coil__sched *s = &r->w.s;
    s->ending = true;
    if (s->live == 1 && coil__list_empty(&r->w.jobs) && !s->current->locals) return;
    coil__cancel_all(s);
    r->exit_began_ns = coil__clock(s);
    int64_t first_ns = exit_report_ns;
    if (r->exit_limit_ns && r->exit_limit_ns < first_ns) first_ns = r->exit_limit_ns;
    r->exit_timer.fire = exit_report;
    s->report_timer = &r->exit_timer;
    coil__timer_arm(s, &r->exit_timer, coil__add_ns(r->exit_began_ns, first_ns));
}

static void deadlock(struct coil__worker *w) {
    struct run *r = CONTAINER_OF(w, struct run, w);
    bool again = w->s.ending;
    if (again || !w->quiet) coil__report_deadlock(w, again);
    if (again) abort();
    r->deadlocked = true;
    w->s.ending = true;
    coil__cancel_all(&w->s);
}

static int main_task(void *arg) {
    struct run *r = arg;
    r->result = r->fn(r->arg);
    begin_exit(r);
    return 0;
}

/* Streams and listeners that no task has closed: their requests would keep ports and peers for some time
 * after the ring is gone, so they are taken back like any other. */
static void take_back_objects(struct coil__worker *w) {
    for (struct coil__node *n; (n = coil__list_pop(&w->objects));) {
        struct coil__object *o = CONTAINER_OF(n, struct coil__object, node);
        if (!w->quiet)
            fprintf(stderr, "coil: a %s was left open at the end of coil_run; closing it\n", o->what);
        o->take_back(o);
    }
    w->taking_back = true;
    while (w->ops.live)
        coil__worker_turn(w);
}

/* ---- the run ---- */

static int out_of_memory(bool quiet) {
    if (!quiet)
        fprintf(stderr,
                "coil: cannot start: no memory for a first task; lower stack_size or raise ulimit -v\n");
    return COIL_ESTART_NOMEM;
}

static int no_watch(bool quiet) {
    if (!quiet)
        fprintf(stderr, "coil: cannot start: no memory, or no thread, for dump_signal and blocked_limit\n");
    return COIL_ESTART_NOMEM;
}

static void block_sigpipe(struct run *r) {
    sigset_t pipe, old, pending;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &pipe, &old);
    r->pipe_blocked = sigismember(&old, SIGPIPE) || sigismember(&pending, SIGPIPE);
}

/* One that coil's own writes have raised meanwhile must not kill the program now. */
static void unblock_sigpipe(struct run *r) {
    static const struct timespec at_once;
    sigset_t pipe;
    if (r->pipe_blocked) return;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    while (sigtimedwait(&pipe, NULL, &at_once) < 0 && errno == EINTR) {
    }
    pthread_sigmask(SIG_UNBLOCK, &pipe, NULL);
}

static int open_ring(const coil_run_opts *o, uint64_t unused, struct coil__driver **out,
                     struct coil__driver_error *err) {
    struct coil__ring_opts ring = {.sq_entries = o->sq_entries,
                                   .cq_entries = o->cq_entries,
                                   .pool_buffers = o->pool_buffers,
                                   .pool_buffer_size = (uint32_t)o->pool_buffer_size,
                                   .caps_unused = unused};
    return coil__hybrid_open(&ring, out, err);
}

/* Said once in a process: the next run, and those in other threads, would say the same. */
static void say_fallback(const coil_run_opts *o, const char *why) {
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (o->quiet || atomic_flag_test_and_set(&said)) return;
    fprintf(
        stderr,
        "coil: using epoll instead of io_uring: %s (COIL_DRIVER=uring refuses this, =epoll asks for it)\n",
        why);
}

/* The choice of a driver, once for the run. Where there is no ring to be had, epoll does. */
static int open_driver(struct run *r, const coil_run_opts *o, uint64_t unused) {
    struct coil__driver **out = &r->w.s.driver;
    struct coil__driver_error err = {.code = COIL_ESTART_NOMEM, .text = "out of memory"};
    if (o->driver != COIL_DRIVER_EPOLL && open_ring(o, unused, out, &err) == 0) return 0;
    bool to_epoll =
        o->driver == COIL_DRIVER_EPOLL || (o->driver == COIL_DRIVER_ANY && err.code != COIL_ESTART_NOMEM);
    if (to_epoll) {
        if (o->driver == COIL_DRIVER_ANY) say_fallback(o, err.text);
        if (coil__poll_open(unused, out, &err) == 0) return 0;
    }
    if (!o->quiet) fprintf(stderr, "coil: cannot start: %s\n", err.text);
    return err.code;
}

static int open_stacks(struct run *r, const coil_run_opts *o, uint64_t unused) {
    struct coil__driver *d = r->w.s.driver;
    if (coil__stack_probe_guard_install()) d->caps |= COIL__CAP_BIT(GUARD_INSTALL) & ~unused;
    struct coil__stack_opts so = {.default_size = o->stack_size,
                                  .cache_max = o->stack_cache_max,
                                  .guards_only = o->guards_only,
                                  .use_guard_install = d->caps & COIL__CAP_BIT(GUARD_INSTALL),
                                  .quiet = o->quiet};
    int err = coil__stack_pool_init(&r->w.s.stacks, &so);
    if (err) return err == -EINVAL ? bad_option(o, "stack_size", NULL) : out_of_memory(o->quiet);
    err = coil__stack_thread_begin(&r->w.s.stacks);
    if (err) coil__stack_pool_destroy(&r->w.s.stacks);
    return err ? out_of_memory(o->quiet) : 0;
}

static void open_worker(struct run *r, const coil_run_opts *o) {
    struct coil__worker *w = &r->w;
    coil__worker_join(w);
    coil__sched_init(&w->s, o->tasks_max);
    w->complete = coil__ops_complete;
    w->stuck = deadlock;
    w->external_wakes = o->external_wakes;
    w->quiet = o->quiet;
    w->slack_ns = o->timer_slack.ns;
    w->spin_max_ns = MAX(o->spin_max.ns, 0);
    r->exit_limit_ns = o->exit_limit.ns;
    block_sigpipe(r);
    coil__here = &w->s;
}

static void close_worker(struct run *r) {
    struct coil__worker *w = &r->w;
    coil__timer_disarm(&w->s, &r->exit_timer);
    coil__watchdog_leave(&r->watch);
    take_back_objects(w);
    coil__signals_leave(w);
    coil__worker_leave(w);
    coil__here = NULL;
    coil__ops_free(w);
    coil__block_cache_free(&w->blocks);
    coil__sched_free(&w->s);
    coil__stack_thread_end(&w->s.stacks);
    coil__stack_pool_destroy(&w->s.stacks);
    w->s.driver->ops->destroy(w->s.driver);
    unblock_sigpipe(r);
}

static int run_tasks(struct run *r, const coil_run_opts *o) {
    static const coil_spawn_opts named = {.name = "main"};
    struct coil__task *t;
    struct coil__sched *s = &r->w.s;
    int err = o->dump_signal ? coil__signals_watch(&r->w, o->dump_signal, coil__dump_worker) : 0;
    if (!err && o->blocked_limit.ns && !o->quiet)
        err = coil__watchdog_join(&r->watch, &r->w, o->blocked_limit.ns);
    if (err) return no_watch(r->w.quiet);
    if (coil__heap_take_seat(&s->timers)) return out_of_memory(r->w.quiet);
    if (coil__task_new(s, &named, main_task, r, NULL, &t)) return out_of_memory(r->w.quiet);
    t->detached = true;
    while (s->live || !coil__list_empty(&r->w.jobs))
        coil__worker_turn(&r->w);
    return r->deadlocked ? -EDEADLK : r->result;
}

int coil_run_with(const coil_run_opts *opts, coil_fn *fn, void *arg) {
    coil_run_opts o = opts ? *opts : (coil_run_opts){0};
    struct run r = {.fn = fn, .arg = arg};
    uint64_t unused = 0;
    if (coil__forked) coil__outside_task("coil_run");
    if (coil__here) return COIL_ESTART_NESTED;
    const char *bad = fn ? complete_options(&o) : "a task function that is NULL";
    if (bad) return bad_option(&o, bad, NULL);
    int err = read_environment(&o, &unused);
    if (!err) err = open_driver(&r, &o, unused);
    if (err) return err;
    coil__threads_limits(o.blocking_threads, o.blocking_queue, 0);
    err = open_stacks(&r, &o, unused);
    if (err) {
        r.w.s.driver->ops->destroy(r.w.s.driver);
        return err;
    }
    open_worker(&r, &o);
    int result = run_tasks(&r, &o);
    close_worker(&r);
    return result;
}

int coil_run(coil_fn *fn, void *arg) {
    return coil_run_with(NULL, fn, arg);
}

void coil_stats_get(coil_stats *out) {
    struct coil__sched *s = coil__current("coil_stats_get")->sched;
    const struct coil__worker *w = &run_of(s)->w;
    *out = (coil_stats){.driver = s->driver->kind,
                        .turns = w->stats.turns,
                        .enters = s->driver->stats.enters,
                        .ops = w->stats.ops,
                        .completions = w->stats.completions,
                        .cancels = w->stats.cancels,
                        .resumes = coil__resumes(s),
                        .spins = w->stats.spins,
                        .sq_full = s->driver->stats.sq_full,
                        .cq_overflow = s->driver->stats.cq_overflow,
                        .pool_empty = w->stats.pool_empty,
                        .tasks_now = s->live,
                        .tasks_peak = s->peak,
                        .stacks_unguarded = coil__stack_unguarded(&s->stacks),
                        .streams_now = w->stats.streams_now,
                        .jobs = w->stats.jobs,
                        .jobs_wait_ns = w->stats.jobs_wait_ns};
}
