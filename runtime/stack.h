/* Stacks for tasks: guarded, cached, one pool per worker thread. Nothing here is locked, and nothing knows of
 * tasks: a stack carries a label that its owner fills, and the overflow report reads it.
 *
 * Every stack has a gap of at least 64 KiB below it. Where the gap is guarded, an overflow faults there;
 * where it is not, for want of mappings, a run that reaches it leaves a trace in its topmost bytes: the
 * canary. */
#ifndef COIL__STACK_H
#define COIL__STACK_H

#include "base.h"
#include "list.h"

#include <signal.h>

#define COIL__STACK_SIZE_MIN ((size_t)16 << 10)
#define COIL__STACK_SIZE_MAX ((size_t)64 << 20)
#define COIL__STACK_SIZE_DEFAULT ((size_t)64 << 10)
#define COIL__STACK_CLASSES 13 /* Powers of two from the least size to the greatest. */
#define COIL__STACK_CANARY_WORDS 8

/* What the overflow report says of a stack's user. */
struct coil__stack_label {
    const char *name; /* "": it has none, and the number is told instead */
    void (*fn)(void);
    uint32_t number;
};

struct coil__slab;

struct coil__stack {
    char *lo; /* Usable: [lo, lo + size). */
    size_t size;
    struct coil__stack_label *label; /* The owner's; NULL when the stack is handed out. */
    struct coil__slab *slab;
    struct coil__stack *next; /* Set only while the stack is in the pool. */
    unsigned note;
    uint8_t class_index;
    bool guarded;
};

struct coil__stack_opts {
    size_t default_size;    /* Bytes; 0: 64 KiB. */
    size_t cache_max;       /* Stacks kept warm, of all sizes together; 0: none. */
    size_t page_size;       /* Bytes; 0: the kernel's. Tests ask for more, as if pages were larger. */
    bool guards_only;       /* Rather -ENOMEM than a stack without a guard. */
    bool use_guard_install; /* The kernel has MADV_GUARD_INSTALL. */
    bool quiet; /* Say nothing when guards run out. The overflow report is printed all the same. */
};

struct coil__stack_class {
    struct coil__stack *warm; /* The last one put is the first one got. */
    size_t warm_count;
    struct coil__list slabs; /* Those with a stack to give that is not warm. */
};

struct coil__stack_pool {
    struct coil__stack_class classes[COIL__STACK_CLASSES];
    size_t warm_count; /* Over all classes. */
    size_t warm_max;
    unsigned default_class;
    bool guards_only, use_guard_install, quiet, on_valgrind;
    size_t page_size, guard_size;
    size_t mappings_max; /* What the guards of the whole process may use up. */
    uint64_t unguarded;
    struct coil__list slabs;
    struct coil__slab *spare; /* Wholly unused, and kept so that growing and shrinking by one maps nothing. */
    void *signal_stack;       /* These three: between thread_begin and thread_end. */
    size_t signal_stack_size;
    stack_t signal_stack_before;
};

/* 0; -EINVAL: the default size is out of range. */
int coil__stack_pool_init(struct coil__stack_pool *p, const struct coil__stack_opts *o);
/* Unmaps everything. All stacks must have been put back. */
void coil__stack_pool_destroy(struct coil__stack_pool *p);

/* A stack of at least `size` bytes, 0 meaning the default. Its contents are undefined.
 * 0; -EINVAL: size is not within 16 KiB to 64 MiB; -ENOMEM: no memory, or no guard where only guards are
 * wanted. */
int coil__stack_get(struct coil__stack_pool *p, size_t size, struct coil__stack **out);
/* Not for the stack that the caller is running on. */
void coil__stack_put(struct coil__stack_pool *p, struct coil__stack *s);

/* How many stacks the pool has, in use or not, that have no guard. */
static inline uint64_t coil__stack_unguarded(const struct coil__stack_pool *p) {
    return p->unguarded;
}

/* False: the stack has overflowed. Means nothing for a guarded one, whose gap must not be read.
 *
 * The canary is all zeros, as the kernel gives the memory: a pattern would cost every stack a page. */
static inline bool coil__stack_canary_ok(const struct coil__stack *s) {
    const uint64_t *canary = (const uint64_t *)(const void *)s->lo - COIL__STACK_CANARY_WORDS;
    uint64_t written = 0;
    for (int i = 0; i < COIL__STACK_CANARY_WORDS; i++)
        written |= canary[i];
    return written == 0;
}

/* Prints the overflow report and aborts. */
_Noreturn COLD void coil__stack_overflowed(const struct coil__stack *s);

/* Whether the running kernel has MADV_GUARD_INSTALL, tried on a mapping made for this. */
bool coil__stack_probe_guard_install(void);

/* From here to thread_end, a fault in a guard of this pool on this thread prints the overflow report before
 * the process dies of it; all other faults reach whoever handled them before. The pool is this thread's only
 * one. 0; -ENOMEM; -EPERM: called on a signal stack. */
int coil__stack_thread_begin(struct coil__stack_pool *p);
void coil__stack_thread_end(struct coil__stack_pool *p);

#endif
