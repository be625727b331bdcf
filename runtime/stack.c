/* Stacks: slabs, guards, the warm cache, the overflow report.
 *
 * A slab is one mapping: gap, stack, gap, stack, and so on, all of one size class. Its stacks are cut from it
 * one by one, when they are first wanted, because a guard costs microseconds. A stack is then in one of three
 * states: in use; warm (put back, its pages kept, in its class's list); cold (its pages given back, in its
 * slab's list). A slab whose stacks are all cold is unmapped, but for one spare. Getting and putting a warm
 * stack touches nothing but the pool and the stack's own record; slabs are looked at only when stacks become
 * cold or stop being it. */
#include "stack.h"

#include "switch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUARD_SIZE_MIN ((size_t)64 << 10)
#define SLAB_STACKS_MAX 64
#define SLAB_BYTES_MAX ((size_t)64 << 20)
#define SIGNAL_STACK_SIZE_MIN ((size_t)64 << 10)
#define IDLE_POISON_BYTES ((size_t)8 << 10)
#define MAPPINGS_PER_GUARD 2 /* A protected gap splits one mapping into three. */
#define MAX_MAP_COUNT_DEFAULT 65530
#define SIGNAL_FRAME_SIZE 51 /* AT_MINSIGSTKSZ, which older headers lack. */
#define GUARD_INSTALL 102    /* MADV_GUARD_INSTALL, which older headers lack. */

struct coil__slab {
    struct coil__node node;      /* In the pool's list of all slabs. */
    struct coil__node room_node; /* In its class's list, while it has a stack to give. */
    char *base;
    size_t bytes, slot_bytes;
    unsigned class_index;
    unsigned stack_count, cut_count;
    unsigned live_count; /* Stacks that are in use or warm. */
    size_t mappings;     /* What this slab's guards use of the process's mappings. */
    struct coil__stack *cold;
    struct coil__stack stacks[]; /* The first cut_count are valid. */
};

/* Guards made by mprotect, of all pools in the process: the limit is the process's, too. */
static atomic_size_t mappings_used;
static atomic_bool unguarded_said;

static size_t round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

static unsigned class_of(size_t size) {
    unsigned c = 0;
    while (COIL__STACK_SIZE_MIN << c < size)
        c++;
    return c;
}

static bool size_ok(size_t size) {
    return size >= COIL__STACK_SIZE_MIN && size <= COIL__STACK_SIZE_MAX;
}

static size_t max_map_count(void) {
    unsigned long n = MAX_MAP_COUNT_DEFAULT;
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
    if (!f) return n;
    if (fscanf(f, "%lu", &n) != 1) n = MAX_MAP_COUNT_DEFAULT;
    fclose(f);
    return n;
}

/* ---- guards ------------------------------------------------------------------------------------------- */

static bool mappings_take(const struct coil__stack_pool *p) {
    size_t used = atomic_fetch_add(&mappings_used, MAPPINGS_PER_GUARD) + MAPPINGS_PER_GUARD;
    if (used <= p->mappings_max) return true;
    atomic_fetch_sub(&mappings_used, MAPPINGS_PER_GUARD);
    return false;
}

static bool guard_gap(const struct coil__stack_pool *p, struct coil__slab *slab, char *gap) {
    if (p->use_guard_install && madvise(gap, p->guard_size, GUARD_INSTALL) == 0) return true;
    if (!mappings_take(p)) return false;
    if (mprotect(gap, p->guard_size, PROT_NONE) == 0) {
        slab->mappings += MAPPINGS_PER_GUARD;
        return true;
    }
    atomic_fetch_sub(&mappings_used, MAPPINGS_PER_GUARD);
    return false;
}

static COLD void say_unguarded(const struct coil__stack_pool *p) {
    if (p->quiet || atomic_exchange(&unguarded_said, true)) return;
    fprintf(stderr,
            "coil: half of vm.max_map_count (%zu mappings) is used up by stack guards: further stacks have "
            "none, and "
            "are checked at each switch instead; raise vm.max_map_count for more\n",
            p->mappings_max);
}

bool coil__stack_probe_guard_install(void) {
    /* valgrind reads what a system call reads by itself, knows nothing of such guards, and dies of the one
     * below. */
    if (coil__on_valgrind()) return false;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *m = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) return false;
    /* Emulators say yes to advice that they don't know. A guard makes a path there unreadable, not merely
     * empty. */
    bool ok = madvise(m, page, GUARD_INSTALL) == 0 && access(m, F_OK) < 0 && errno == EFAULT;
    munmap(m, page);
    return ok;
}

/* ---- slabs -------------------------------------------------------------------------------------------- */

/* A pointer into a stack that is in the pool is a mistake of whoever kept it: the top is where such pointers
 * lead. */
static void poison_top(struct coil__stack *s) {
    size_t n = MIN(s->size, IDLE_POISON_BYTES);
    coil__mem_poison(s->lo + s->size - n, n);
}

static void unpoison_top(struct coil__stack *s) {
    size_t n = MIN(s->size, IDLE_POISON_BYTES);
    coil__mem_unpoison(s->lo + s->size - n, n);
}

static struct coil__slab *slab_map(struct coil__stack_pool *p, unsigned class_index) {
    size_t stack = round_up((COIL__STACK_SIZE_MIN << class_index) * COIL__STACK_SCALE, p->page_size);
    size_t slot = stack + p->guard_size;
    size_t count = MIN(MAX(SLAB_BYTES_MAX / slot, 1), SLAB_STACKS_MAX);
    struct coil__slab *slab = calloc(1, sizeof(*slab) + count * sizeof(*slab->stacks));
    if (!slab) return NULL;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK;
    slab->base = mmap(NULL, count * slot, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (slab->base == MAP_FAILED) {
        free(slab);
        return NULL;
    }
    /* A huge page under small stacks makes each of them wholly resident, and their guards as well. */
    (void)madvise(slab->base, count * slot, MADV_NOHUGEPAGE);
    slab->bytes = count * slot;
    slab->slot_bytes = slot;
    slab->class_index = class_index;
    slab->stack_count = (unsigned)count;
    coil__list_push(&p->slabs, &slab->node);
    coil__list_push(&p->classes[class_index].slabs, &slab->room_node);
    return slab;
}

static void slab_unmap(struct coil__stack_pool *p, struct coil__slab *slab) {
    for (unsigned i = 0; i < slab->cut_count; i++) {
        if (!slab->stacks[i].guarded) p->unguarded--;
        coil__stack_unnote(slab->stacks[i].note);
        unpoison_top(&slab->stacks[i]);
    }
    atomic_fetch_sub(&mappings_used, slab->mappings);
    coil__node_unlink(&slab->node);
    if (coil__node_linked(&slab->room_node)) coil__node_unlink(&slab->room_node);
    CHECK(munmap(slab->base, slab->bytes) == 0);
    free(slab);
}

/* No stack of this slab is in use or warm. */
static void slab_idle(struct coil__stack_pool *p, struct coil__slab *slab) {
    CHECK(slab->live_count == 0);
    if (p->spare == slab) return;
    if (p->spare)
        slab_unmap(p, slab);
    else
        p->spare = slab;
}

static struct coil__stack *slab_cut(struct coil__stack_pool *p, struct coil__slab *slab) {
    char *gap = slab->base + slab->cut_count * slab->slot_bytes;
    bool guarded = guard_gap(p, slab, gap);
    if (!guarded && p->guards_only) return NULL;
    if (!guarded) {
        p->unguarded++;
        say_unguarded(p);
    }
    struct coil__stack *s = &slab->stacks[slab->cut_count++];
    s->lo = gap + p->guard_size;
    s->size = slab->slot_bytes - p->guard_size;
    s->slab = slab;
    s->note = coil__stack_note(s->lo, s->lo + s->size);
    s->class_index = (uint8_t)slab->class_index;
    s->guarded = guarded;
    return s;
}

/* ---- getting and putting ------------------------------------------------------------------------------ */

static void hand_out(struct coil__stack_pool *p, struct coil__stack *s, struct coil__stack **out) {
    unpoison_top(s);
    if (UNLIKELY(p->on_valgrind)) coil__stack_renew(s->lo, s->size);
    s->label = NULL;
    *out = s;
}

static COLD int get_cold(struct coil__stack_pool *p, unsigned class_index, struct coil__stack **out) {
    struct coil__node *room = coil__list_first(&p->classes[class_index].slabs);
    struct coil__slab *slab =
        room ? CONTAINER_OF(room, struct coil__slab, room_node) : slab_map(p, class_index);
    if (!slab) return -ENOMEM;
    struct coil__stack *s = slab->cold;
    if (s)
        slab->cold = s->next;
    else
        s = slab_cut(p, slab);
    if (!s) {
        if (slab->live_count == 0) slab_idle(p, slab);
        return -ENOMEM;
    }
    if (p->spare == slab) p->spare = NULL;
    slab->live_count++;
    if (!slab->cold && slab->cut_count == slab->stack_count) coil__node_unlink(&slab->room_node);
    hand_out(p, s, out);
    return 0;
}

int coil__stack_get(struct coil__stack_pool *p, size_t size, struct coil__stack **out) {
    unsigned c = p->default_class;
    if (size != 0) {
        if (!size_ok(size)) return -EINVAL;
        c = class_of(size);
    }
    struct coil__stack *s = p->classes[c].warm;
    if (UNLIKELY(!s)) return get_cold(p, c, out);
    p->classes[c].warm = s->next;
    p->classes[c].warm_count--;
    p->warm_count--;
    hand_out(p, s, out);
    return 0;
}

/* Stacks that become cold together, neighbours in their slab, so that one call gives back the pages of all:
 * most of such a call is spent on the processors' caches of the page table. The gaps between them keep their
 * guards, or lose no more than what a run below an unguarded stack has left. */
struct run {
    char *lo, *hi;
};

static void run_end(struct run *r) {
    if (r->lo) (void)madvise(r->lo, (size_t)(r->hi - r->lo), MADV_DONTNEED);
    *r = (struct run){NULL, NULL};
}

static void run_add(struct run *r, const struct coil__stack *s, size_t gap) {
    char *hi = s->lo + s->size;
    if (r->lo && hi + gap == r->lo) {
        r->lo = s->lo;
    } else if (r->lo && r->hi + gap == s->lo) {
        r->hi = hi;
    } else {
        run_end(r);
        *r = (struct run){s->lo, hi};
    }
}

static void make_cold(struct coil__stack_pool *p, struct coil__stack *s, struct run *r) {
    struct coil__slab *slab = s->slab;
    s->next = slab->cold;
    slab->cold = s;
    if (!coil__node_linked(&slab->room_node))
        coil__list_push(&p->classes[slab->class_index].slabs, &slab->room_node);
    slab->live_count--;
    if (slab->live_count > 0 || !p->spare) run_add(r, s, p->guard_size);
    if (slab->live_count > 0) return;
    run_end(r); /* before its memory can be unmapped */
    slab_idle(p, slab);
}

/* The cache is over its cap: the stacks unused for longest, in the class that has most, become cold. It is a
 * batch, so that a program that swings around the cap doesn't pay for each task, and so that the walk down
 * the list is paid by many. */
static COLD void trim(struct coil__stack_pool *p) {
    struct coil__stack_class *k = &p->classes[0];
    for (int i = 1; i < COIL__STACK_CLASSES; i++)
        if (p->classes[i].warm_count > k->warm_count) k = &p->classes[i];
    size_t batch = MIN(p->warm_max / 32 + 1, k->warm_count);
    struct coil__stack **at = &k->warm;
    for (size_t keep = k->warm_count - batch; keep > 0; keep--)
        at = &(*at)->next;
    struct coil__stack *s = *at;
    *at = NULL;
    k->warm_count -= batch;
    p->warm_count -= batch;
    struct run run = {NULL, NULL};
    while (s) {
        struct coil__stack *next = s->next;
        make_cold(p, s, &run);
        s = next;
    }
    run_end(&run);
}

void coil__stack_put(struct coil__stack_pool *p, struct coil__stack *s) {
    struct coil__stack_class *k = &p->classes[s->class_index];
    poison_top(s);
    s->next = k->warm;
    k->warm = s;
    k->warm_count++;
    p->warm_count++;
    if (UNLIKELY(p->warm_count > p->warm_max)) trim(p);
}

/* ---- the pool ----------------------------------------------------------------------------------------- */

int coil__stack_pool_init(struct coil__stack_pool *p, const struct coil__stack_opts *o) {
    size_t size = o->default_size ? o->default_size : COIL__STACK_SIZE_DEFAULT;
    if (!size_ok(size)) return -EINVAL;
    memset(p, 0, sizeof(*p));
    for (int i = 0; i < COIL__STACK_CLASSES; i++)
        coil__list_init(&p->classes[i].slabs);
    coil__list_init(&p->slabs);
    p->default_class = class_of(size);
    p->warm_max = o->cache_max;
    p->guards_only = o->guards_only;
    p->use_guard_install = o->use_guard_install;
    p->quiet = o->quiet;
    p->on_valgrind = coil__on_valgrind();
    p->page_size = o->page_size ? o->page_size : (size_t)sysconf(_SC_PAGESIZE);
    /* One page more than a power of two: stacks that are 32 pages apart share a few sets of the TLB. */
    p->guard_size = round_up(GUARD_SIZE_MIN, p->page_size) + p->page_size;
    p->mappings_max = max_map_count() / 2;
    return 0;
}

void coil__stack_pool_destroy(struct coil__stack_pool *p) {
    size_t live_count = 0;
    while (!coil__list_empty(&p->slabs)) {
        struct coil__slab *slab = CONTAINER_OF(coil__list_first(&p->slabs), struct coil__slab, node);
        live_count += slab->live_count;
        slab_unmap(p, slab);
    }
    CHECK(live_count == p->warm_count);
    p->spare = NULL;
    p->warm_count = 0;
}

/* ---- overflow ----------------------------------------------------------------------------------------- */

/* A line made without stdio: it is written inside a signal handler. What doesn't fit is cut off. */
struct line {
    char text[512];
    size_t len;
};

static void add_text(struct line *l, const char *s) {
    while (*s && l->len < sizeof(l->text))
        l->text[l->len++] = *s++;
}

static void add_number(struct line *l, uint64_t n, unsigned base) {
    char digits[24];
    size_t i = sizeof(digits) - 1;
    digits[i] = '\0';
    do {
        digits[--i] = "0123456789abcdef"[n % base];
        n /= base;
    } while (n > 0);
    add_text(l, digits + i);
}

static void report_overflow(const struct coil__stack *s) {
    struct line l = {.len = 0};
    const char *name = s->label && s->label->name ? s->label->name : "?";
    add_text(&l, name[0] ? "coil: stack overflow in task '" : "coil: stack overflow in task ");
    add_text(&l, name);
    if (name[0]) {
        add_text(&l, "'");
    } else {
        add_number(&l, s->label->number, 10);
    }
    if (s->label && s->label->fn) {
        add_text(&l, " (spawned with 0x");
        add_number(&l, (uintptr_t)s->label->fn, 16);
        add_text(&l, ")");
    }
    add_text(&l, ", stack of ");
    add_number(&l, s->size, 10);
    add_text(&l, " bytes; give it more with stack_size\n");
    ssize_t n = write(STDERR_FILENO, l.text, l.len);
    (void)n;
}

_Noreturn void coil__stack_overflowed(const struct coil__stack *s) {
    report_overflow(s);
    abort();
}

/* Read in the handler, where a lazily allocated thread-local would be a call of malloc. */
static __thread struct coil__stack_pool *thread_pool __attribute__((tls_model("initial-exec")));

static pthread_mutex_t handler_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned handler_users;
static const int fault_signals[] = {SIGSEGV, SIGBUS};
static struct sigaction handlers_before[ARRAY_SIZE(fault_signals)];

static const struct coil__stack *stack_of_guard(const struct coil__stack_pool *p, const char *addr) {
    LIST_EACH(it, &p->slabs) {
        const struct coil__slab *slab = CONTAINER_OF(it, struct coil__slab, node);
        size_t offset = (size_t)((uintptr_t)addr - (uintptr_t)slab->base);
        if (offset >= slab->bytes) continue;
        size_t i = offset / slab->slot_bytes;
        bool in_gap = offset % slab->slot_bytes < p->guard_size;
        return in_gap && i < slab->cut_count ? &slab->stacks[i] : NULL;
    }
    return NULL;
}

/* The faulting instruction runs again when the handler returns, so that the core shows where it was. A signal
 * that somebody sent doesn't come again by itself. */
static void die_by(int sig, bool was_sent) {
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    sigaction(sig, &dfl, NULL);
    if (was_sent) raise(sig);
}

/* Does with a fault that is none of ours what would have happened without us. */
static void pass_on(int sig, siginfo_t *info, void *context) {
    struct sigaction *before = &handlers_before[sig == SIGBUS];
    struct sigaction h = *before;
    bool was_sent = info->si_code <= 0;
    if (h.sa_handler == SIG_IGN && was_sent) return;
    if (h.sa_handler == SIG_DFL || h.sa_handler == SIG_IGN) {
        die_by(sig, was_sent);
        return;
    }
    if (h.sa_flags & SA_RESETHAND) *before = (struct sigaction){.sa_handler = SIG_DFL};
    pthread_sigmask(SIG_BLOCK, &h.sa_mask, NULL);
    if (h.sa_flags & SA_NODEFER) {
        sigset_t own;
        sigemptyset(&own);
        sigaddset(&own, sig);
        pthread_sigmask(SIG_UNBLOCK, &own, NULL);
    }
    if (h.sa_flags & SA_SIGINFO)
        h.sa_sigaction(sig, info, context);
    else
        h.sa_handler(sig);
}

static void on_fault(int sig, siginfo_t *info, void *context) {
    int saved_errno = errno;
    const struct coil__stack *s = NULL;
    if (thread_pool && info->si_code > 0) s = stack_of_guard(thread_pool, info->si_addr);
    if (s) {
        report_overflow(s);
        die_by(sig, false);
    } else {
        pass_on(sig, info, context);
    }
    errno = saved_errno;
}

static void handlers_install(void) {
    struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    for (size_t i = 0; i < ARRAY_SIZE(fault_signals); i++) {
        sigaction(fault_signals[i], NULL, &handlers_before[i]);
        sigaction(fault_signals[i], &ours, NULL);
    }
}

/* Somebody who put a handler over ours keeps it. */
static void handlers_restore(void) {
    for (size_t i = 0; i < ARRAY_SIZE(fault_signals); i++) {
        struct sigaction now;
        sigaction(fault_signals[i], NULL, &now);
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault)
            sigaction(fault_signals[i], &handlers_before[i], NULL);
    }
}

/* Of runs that other threads of the parent's made, or were about to make, nothing is left but this. */
static void in_forked_child(void) {
    pthread_mutex_init(&handler_lock, NULL);
    if (thread_pool) return; /* forked inside a run, to exec or to exit */
    handlers_restore();
    handler_users = 0;
}

static void watch_forks(void) {
    pthread_atfork(NULL, NULL, in_forked_child);
}

static void lock_handlers(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&handler_lock);
}

int coil__stack_thread_begin(struct coil__stack_pool *p) {
    /* What the kernel saves there grows with the processor's registers; a kernel that doesn't tell has small
     * ones. */
    size_t size = MAX(SIGNAL_STACK_SIZE_MIN, 4 * (size_t)getauxval(SIGNAL_FRAME_SIZE)) * COIL__STACK_SCALE;
    size = round_up(size, p->page_size);
    void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) return -ENOMEM;
    stack_t ours = {.ss_sp = m, .ss_size = size};
    if (sigaltstack(&ours, &p->signal_stack_before) != 0) {
        int err = errno;
        munmap(m, size);
        return -err;
    }
    p->signal_stack = m;
    p->signal_stack_size = size;
    thread_pool = p;
    lock_handlers();
    if (handler_users++ == 0) handlers_install();
    pthread_mutex_unlock(&handler_lock);
    return 0;
}

void coil__stack_thread_end(struct coil__stack_pool *p) {
    CHECK(thread_pool == p);
    lock_handlers();
    if (--handler_users == 0) handlers_restore();
    pthread_mutex_unlock(&handler_lock);
    thread_pool = NULL;
    CHECK(sigaltstack(&p->signal_stack_before, NULL) == 0);
    munmap(p->signal_stack, p->signal_stack_size);
    p->signal_stack = NULL;
}
