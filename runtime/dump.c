/* Dumps of tasks with their call stacks.
 *
 * What prints runs on a stack of its own, because libdw and stdio need more of it than a task may have; the
 * worker's current task is switched away from meanwhile, like a parked one, and no call of coil is possible.
 * Where no such stack is to be had, it runs on the caller's, if there is room, and prints addresses alone.
 *
 * The tree of tasks is written into the tasks' records, so that neither their number nor the tree's depth
 * asks for memory: report_first is the first child, report_next the next sibling. */
#include "dump.h"
#include "blocking.h"
#include "group.h"
#include "unwind.h"

#include "coil/debug.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FRAMES_MAX = 64, INDENT_MAX = 20, REPORTED_TREE_MAX = 100, PRINT_STACK = 24 << 10 };

#define NO_TASK UINT32_MAX

struct dump {
    struct coil__worker *w;
    struct coil__task *current; /* NULL: called by the worker's loop */
    FILE *out;
    struct coil__symbols *symbols;
    int64_t now_ns;
    bool away; /* on a stack of its own */
    char indent[2 * INDENT_MAX + 5];
    void (*print)(struct dump *d);
    struct coil__ctx ctx, *back;
};

/* ---- call stacks ---- */

static bool is_public(const struct coil__symbol *sym) {
    return sym->ours && sym->function && strncmp(sym->function, "coil_", 5) == 0 && sym->function[5] != '_';
}

struct span {
    int first, last;
};

/* Which functions are shown: not coil's own at the inner end, up to the call that the task has made, nor at
 * the outer end, where the task was begun: that is always coil's. */
static struct span choose(struct coil__symbols *symbols, void *const *pc, int count, bool whole,
                          bool keep_call) {
    struct span s = {.first = -1, .last = -1};
    int at = 0, call = -1;
    for (int i = 0; i < count; i++) {
        const struct coil__symbol *sym;
        int n = coil__symbols_find(symbols, pc[i], &sym);
        for (int j = 0; j < n; j++, at++, sym++) {
            if (!sym->ours && !(whole && i == count - 1)) s.last = at;
            /* What is inside the call for a dump is coil's, also where nothing tells so. */
            bool dumps =
                !keep_call && call < 0 && is_public(sym) && strncmp(sym->function, "coil_dump_", 10) == 0;
            if (s.first >= 0 && !dumps) continue;
            if (!sym->ours) s.first = at;
            if (!is_public(sym)) continue;
            call = at;
            s.first = keep_call ? at : at + 1;
        }
    }
    s.first = MAX(s.first, 0);
    if (!whole) s.last = at - 1;
    if (s.last >= s.first) return s;
    /* Nothing but coil: the task's function has left by a jump into the call, and maybe that one by a jump to
     * what is now above the first frame. */
    s.first = s.last = call >= 0 ? call : MAX(at - 2, 0);
    return s;
}

void coil__dump_frames(FILE *out, struct coil__symbols *symbols, void *const *pc, int count, int total,
                       bool keep_call, const char *indent, int *number) {
    struct span shown = choose(symbols, pc, count, count == total, keep_call);
    int at = 0;
    for (int i = 0; i < count; i++) {
        const struct coil__symbol *sym;
        int n = coil__symbols_find(symbols, pc[i], &sym);
        for (int j = 0; j < n; j++, at++, sym++) {
            if (at < shown.first || at > shown.last) continue;
            fprintf(out, "%s[%d] ", indent, (*number)++);
            coil__symbol_print(out, sym);
            fputc('\n', out);
        }
    }
    if (total > count) fprintf(out, "%s... and %d more\n", indent, total - count);
}

/* The address of a function, as if the call before it were at hand. */
static const void *begin_of(coil_fn *fn) {
    return (const char *)(uintptr_t)fn + 1;
}

static void print_frames(struct dump *d, const struct coil__task *t, int *number) {
    void *pc[FRAMES_MAX];
    int total;
    if (t->state == COIL__RUNNING && !d->away) {
        total = coil__unwind_here(pc, FRAMES_MAX);
    } else {
        total = coil__unwind_ctx(&t->ctx, pc, FRAMES_MAX);
    }
    if (total == 0) { /* It has not begun. */
        pc[0] = (void *)(uintptr_t)begin_of(t->fn);
        total = 1;
    }
    coil__dump_frames(d->out, d->symbols, pc, MIN(total, FRAMES_MAX), total, t->state != COIL__RUNNING,
                      d->indent, number);
}

/* ---- one task ---- */

static void print_state(struct dump *d, const struct coil__task *t) {
    static const char *const names[] = {
        [COIL__READY] = "ready to run", [COIL__RUNNING] = "running", [COIL__PARKED] = "waits for "};
    if (t->state == COIL__ENDED) {
        fprintf(d->out, "has ended with %d, and was not joined yet", t->result);
        return;
    }
    fputs(names[t->state], d->out);
    if (t->state != COIL__PARKED) return;
    coil__print_wait(d->out, t, d->now_ns);
    /* So that those who wait for the same can be found. */
    if (t->wait->on && t->wait->fd < 0 && !t->wait->blocker) fprintf(d->out, ", at %p", t->wait->on);
}

static void print_limits(struct dump *d, const struct coil__task *t) {
    int64_t left_ns = t->limit_ns - d->now_ns;
    if (t->state == COIL__PARKED && t->wait->until_ns != COIL__NEVER) {
        fputs(", at most ", d->out);
        coil__print_ns(d->out, MAX(t->wait->until_ns - d->now_ns, 0));
        fputs(" more", d->out);
    }
    bool told = t->state == COIL__PARKED && t->wait->until_ns == t->limit_ns;
    if (t->limit_ns != COIL__NEVER && !told) {
        fputs(left_ns > 0 ? ", limit in " : ", limit over for ", d->out);
        coil__print_ns(d->out, left_ns > 0 ? left_ns : -left_ns);
    }
    if (t->cancelled) fputs(", cancelled", d->out);
    if (t->shielded) fputs(", shielded", d->out);
}

/* Bytes from the top down to the lowest page that is there: no more than that was ever used, but a former
 * user of the stack may have done it. 0: can't be told. */
static size_t touched(const struct coil__stack *stack) {
    unsigned char there[256];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), step = sizeof there * page;
    for (size_t at = 0; at < stack->size; at += step) {
        size_t n = MIN(step, stack->size - at);
        if (mincore(stack->lo + at, n, there) < 0) return 0;
        for (size_t i = 0; i < n / page; i++) {
            if (there[i] & 1) return stack->size - at - i * page;
        }
    }
    return 0;
}

static void print_stack_use(struct dump *d, const struct coil__task *t) {
    const char *sp = t->state == COIL__RUNNING && !d->away ? __builtin_frame_address(0) : t->ctx.sp;
    size_t used = (size_t)(t->stack->lo + t->stack->size - sp), most = touched(t->stack);
    fprintf(d->out, ", stack %zu of %zu bytes", used, t->stack->size);
    if (most) fprintf(d->out, ", %zu touched", most);
}

static void print_function(struct dump *d, const struct coil__task *t) {
    const struct coil__symbol *sym;
    int n = coil__symbols_find(d->symbols, begin_of(t->fn), &sym);
    if (sym[n - 1].function && !sym[n - 1].ours) fprintf(d->out, " (%s)", sym[n - 1].function);
}

static void print_site(struct dump *d, const struct coil__task *t) {
    const struct coil__symbol *sym;
    if (!t->site) return;
    coil__symbols_find(d->symbols, t->site, &sym);
    fprintf(d->out, "%sspawned in ", d->indent);
    coil__symbol_print(d->out, sym);
    fputc('\n', d->out);
}

static void print_task(struct dump *d, const struct coil__task *t, int depth) {
    char buf[32];
    int number = 0, indent = 2 * MIN(depth, INDENT_MAX);
    fprintf(d->out, "%*s%s", indent, "", coil__task_name(t, buf));
    print_function(d, t);
    fputs(": ", d->out);
    print_state(d, t);
    if (t->state != COIL__ENDED) {
        print_limits(d, t);
        print_stack_use(d, t);
    }
    if (depth > INDENT_MAX) fprintf(d->out, ", %d levels deep", depth);
    fputc('\n', d->out);
    snprintf(d->indent, sizeof d->indent, "%*s", indent + 4, "");
    print_site(d, t);
    if (t->state != COIL__ENDED) print_frames(d, t, &number);
}

/* ---- the tree ---- */

/* The owner of a child's group, or the task that spawned it while that one is there; NULL: neither. */
static struct coil__task *parent_of(const struct coil__task *t) {
    struct coil__sched *s = t->sched;
    if (t->state != COIL__ENDED && t->group) return coil__task_at(s, coil__group_owner(t->group)->slot);
    if (!t->parent_gen) return NULL;
    return coil__task_find(s, (coil_task){.worker = s->worker, .slot = t->parent_slot, .gen = t->parent_gen});
}

/* A parent is always older than its children, so there are no circles. Returns the first one without a
 * parent. From the last slot to the first, since each goes before its siblings. */
static uint32_t build_tree(struct coil__sched *s) {
    uint32_t slots = atomic_load(&s->slots), first = NO_TASK;
    for (uint32_t i = 0; i < slots; i++)
        coil__task_at(s, i)->report_first = NO_TASK;
    for (uint32_t i = slots; i-- > 0;) {
        struct coil__task *t = coil__task_at(s, i);
        if (t->state == COIL__FREE) continue;
        struct coil__task *parent = parent_of(t);
        uint32_t *list = parent ? &parent->report_first : &first;
        t->report_next = *list;
        *list = i;
    }
    return first;
}

static void print_tree(struct dump *d) {
    struct coil__sched *s = &d->w->s;
    int depth = 0;
    for (uint32_t at = build_tree(s); at != NO_TASK;) {
        struct coil__task *t = coil__task_at(s, at);
        print_task(d, t, depth);
        at = t->report_first;
        if (at != NO_TASK) {
            depth++;
            continue;
        }
        for (; (at = t->report_next) == NO_TASK && depth > 0; depth--)
            t = parent_of(t);
    }
}

/* What the pool has from this worker; also calls that their tasks have left behind. */
static void print_jobs(struct dump *d) {
    const struct coil__symbol *sym;
    LIST_EACH(n, &d->w->jobs) {
        const struct coil__blocking *b = CONTAINER_OF(n, struct coil__blocking, node);
        fprintf(d->out, "%son the blocking pool: %s", d->indent, b->wait.what);
        if (b->fd >= 0) fprintf(d->out, " on descriptor %d", b->fd);
        if (b->fn) {
            int innermost = coil__symbols_find(d->symbols, begin_of(b->fn), &sym) - 1;
            if (sym[innermost].function) fprintf(d->out, " of %s", sym[innermost].function);
        }
        fputs(", for ", d->out);
        coil__print_ns(d->out, MAX(d->now_ns - b->job.queued_ns, 0));
        fputc('\n', d->out);
    }
}

static void print_jobs_for_report(struct dump *d) {
    snprintf(d->indent, sizeof d->indent, "coil:   ");
    print_jobs(d);
}

static void print_tasks(struct dump *d) {
    static const char *const drivers[] = {[COIL_DRIVER_URING] = "io_uring", [COIL_DRIVER_EPOLL] = "epoll"};
    const struct coil__worker *w = d->w;
    fprintf(d->out, "coil: worker %u (%s), tasks: %u, requests in the kernel: %u\n", w->s.worker,
            drivers[w->s.driver->kind], w->s.live, w->ops.live);
    snprintf(d->indent, sizeof d->indent, "  ");
    print_jobs(d);
    print_tree(d);
}

/* ---- who waits for the current task ---- */

static bool waits_for(const struct coil__task *waiter, const struct coil__task *t) {
    const struct coil__wait *w = waiter->state == COIL__PARKED ? waiter->wait : NULL;
    const struct coil__task *b = w && w->blocker ? w->blocker(w, NULL) : NULL;
    while (b && b != t)
        b = w->blocker(w, b);
    return b != NULL;
}

/* One that waits for several things at once stands in the list of joiners with an entry of another kind,
 * which doesn't say whose it is: the tasks are asked one by one. */
static struct coil__task *joiner(struct coil__task *t) {
    uint32_t slots = atomic_load(&t->sched->slots);
    struct coil__node *n = coil__list_first(&t->joiners);
    if (!n) return NULL;
    struct coil__waiter *e = CONTAINER_OF(n, struct coil__waiter, node);
    if (!e->won) return CONTAINER_OF(e, struct coil__wait, entry)->task;
    for (uint32_t i = 0; i < slots; i++) {
        struct coil__task *other = coil__task_at(t->sched, i);
        if (waits_for(other, t)) return other;
    }
    return NULL;
}

/* The owner of its group, if it waits for that. */
static struct coil__task *group_waiter(struct coil__task *t) {
    if (!t->group) return NULL;
    struct coil__task *owner = coil__task_at(t->sched, coil__group_owner(t->group)->slot);
    if (owner->state != COIL__PARKED) return NULL;
    return owner->wait->on == t->group ? owner : NULL;
}

static void clear_marks(struct coil__sched *s) {
    uint32_t slots = atomic_load(&s->slots);
    for (uint32_t i = 0; i < slots; i++)
        coil__task_at(s, i)->report_mark = 0;
}

static void print_callstack(struct dump *d) {
    char buf[32];
    int number = 0;
    clear_marks(&d->w->s);
    for (struct coil__task *t = d->current; t && !t->report_mark;) {
        t->report_mark = 1;
        print_frames(d, t, &number);
        struct coil__task *by = joiner(t);
        const char *how = by ? "joined" : "awaited";
        t = by ? by : group_waiter(t);
        if (t) fprintf(d->out, "-- %s by %s --\n", how, coil__task_name(t, buf));
    }
}

/* ---- the calls ---- */

static ssize_t pass_on(void *out, const char *buf, size_t n) {
    return (ssize_t)fwrite(buf, 1, n, out);
}

/* What comes in small pieces goes out in large ones: stderr has no buffer. */
static void print_in_pieces(struct dump *d) {
    FILE *out = d->out, *pieces = fopencookie(out, "w", (cookie_io_functions_t){.write = pass_on});
    if (pieces) d->out = pieces;
    d->print(d);
    if (pieces) fclose(pieces);
    d->out = out;
}

static void print_away(void *arg) {
    struct dump *d = arg;
    coil__ctx_entered(&d->ctx);
    d->symbols = coil__symbols_open();
    print_in_pieces(d);
    coil__symbols_close(d->symbols);
    coil__ctx_leave(&d->ctx, d->back);
}

/* The caller's stack; a thread's own is large. Most of it is what stdio keeps there for a stream without a
 * buffer. */
static bool caller_has_room(const struct dump *d) {
    const char *here = __builtin_frame_address(0);
    return !d->current || here - d->current->stack->lo >= PRINT_STACK;
}

static void print_somewhere(struct dump *d) {
    struct coil__stack *stack;
    struct coil__sched *s = &d->w->s;
    if (coil__stack_get(&s->stacks, COIL__SYMBOLS_STACK, &stack) != 0) {
        if (caller_has_room(d)) {
            print_in_pieces(d);
        } else {
            fputs("coil: no memory for a dump\n", d->out);
        }
        return;
    }
    d->away = true;
    d->back = d->current ? &d->current->ctx : &s->loop;
    coil__ctx_make(&d->ctx, stack->lo, stack->size, 0, print_away, d);
    coil__ctx_switch(d->back, &d->ctx);
    coil__ctx_release(&d->ctx);
    coil__stack_put(&s->stacks, stack);
}

/* One at a time in the process. A call of coil by what `out` writes to would find no current task: it could
 * not park. */
static void make_dump(struct coil__worker *w, FILE *out, void (*print)(struct dump *d)) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct dump d = {.w = w, .current = w->s.current, .out = out, .print = print};
    d.now_ns = w->s.driver->sys->now();
    w->s.current = NULL;
    pthread_mutex_lock(&lock);
    print_somewhere(&d);
    pthread_mutex_unlock(&lock);
    w->s.current = d.current;
}

/* These two are calls of their own also where link-time optimisation puts the program and coil together:
 * their names on the stack tell where coil begins. */
__attribute__((noinline)) void coil_dump_callstack(FILE *out) {
    struct coil__task *t = coil__current("coil_dump_callstack");
    make_dump(coil__worker_of(t->sched), out, print_callstack);
}

__attribute__((noinline)) void coil_dump_tasks(FILE *out) {
    struct coil__task *t = coil__current("coil_dump_tasks");
    make_dump(coil__worker_of(t->sched), out, print_tasks);
}

void coil__dump_worker(struct coil__worker *w) {
    make_dump(w, stderr, print_tasks);
}

/* Which code the tasks are at. Of many, the lines for each have to do. */
static void report_tree(struct coil__worker *w) {
    if (w->s.live > 0 && w->s.live <= REPORTED_TREE_MAX) {
        make_dump(w, stderr, print_tasks);
    } else if (!coil__list_empty(&w->jobs)) {
        make_dump(w, stderr, print_jobs_for_report);
    }
}

void coil__report_exit(struct coil__worker *w, int64_t waited_ns) {
    fprintf(stderr, "coil: main has returned %.1f s ago, and ", (double)waited_ns / 1e9);
    if (w->s.live) {
        fprintf(stderr, "%u tasks that were cancelled have not ended:\n", w->s.live);
    } else {
        fputs("calls that no task waits for any more have not ended:\n", stderr);
    }
    coil__report_waits(w);
    report_tree(w);
}

void coil__report_deadlock(struct coil__worker *w, bool again) {
    fprintf(stderr, "coil: deadlock: %u tasks wait, and nothing is left that could wake one%s:\n", w->s.live,
            again ? ", not even their cancel" : "");
    coil__report_waits(w);
    coil__report_circles(w);
    report_tree(w);
}
