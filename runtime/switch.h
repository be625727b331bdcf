/* The switch as the rest of coil uses it, with what ASan, TSan and valgrind must be told. This is the only
 * file that names one of them. Without them a switch is a bare call of coil__ctx_swap. */
#ifndef COIL__SWITCH_H
#define COIL__SWITCH_H

#include "arch/ctx.h"

#include <stdbool.h>
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define COIL__ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define COIL__TSAN 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COIL__ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define COIL__TSAN 1
#endif
#endif

#ifdef COIL__ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef COIL__TSAN
#include <sanitizer/tsan_interface.h>
#include <signal.h>
#endif
#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define COIL__VALGRIND 1
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Instrumented frames are several times larger. */
#if defined(COIL__ASAN) || defined(COIL__TSAN)
#define COIL__STACK_SCALE 4
#else
#define COIL__STACK_SCALE 1
#endif

/* TSan keeps a call stack of its own per context. No function may return between telling TSan of a switch and
 * making it, or the wrong one is popped; so the function that does both is never inlined, and what it calls
 * in between is balanced. */
#if defined(COIL__ASAN) || defined(COIL__TSAN)
#define COIL__UNSEEN unused, no_sanitize("address"), no_sanitize("thread")
#define COIL__SWITCH_FN static __attribute__((noinline, COIL__UNSEEN))
#else
#define COIL__SWITCH_FN static inline
#endif

/* The life of a context: 1. make (a stack of its own) or adopt (the thread's stack), 2. switch to it and away
 * from it, with entered as the first thing that a made one does, 3. leave, for a made one that ran, 4.
 * release, from another context. */
struct coil__ctx {
    void *sp; /* Valid while another context runs. */
#ifdef COIL__ASAN
    void *fake_stack; /* ASan's heap of frames; valid while another context runs. */
    const void *lo;   /* An adopted context's bounds are known once it has been switched away from. */
    size_t size;
    struct coil__ctx *left; /* Who switched here; NULL if that was its last switch. */
#endif
#ifdef COIL__TSAN
    void *fiber;
    bool made, ran;
#endif
};

/* ---- ASan --------------------------------------------------------------------------------------------- */
#ifdef COIL__ASAN
COIL__SWITCH_FN void coil__asan_depart(struct coil__ctx *from, struct coil__ctx *to) {
    to->left = from;
    __sanitizer_start_switch_fiber(&from->fake_stack, to->lo, to->size);
}

/* Frames that never return stay marked, and would be found by the next user of the stack. */
COIL__SWITCH_FN void coil__asan_depart_for_good(struct coil__ctx *from, struct coil__ctx *to) {
    char *lo = (char *)__builtin_frame_address(0);
    size_t used = (size_t)((const char *)from->lo + from->size - lo);
    if (used <= from->size) __asan_unpoison_memory_region(lo, used);
    to->left = NULL;
    __sanitizer_start_switch_fiber(NULL, to->lo, to->size);
}

COIL__SWITCH_FN void coil__asan_arrive(struct coil__ctx *self) {
    const void *lo;
    size_t size;
    __sanitizer_finish_switch_fiber(self->fake_stack, &lo, &size);
    if (!self->left) return;
    self->left->lo = lo;
    self->left->size = size;
}
#endif

/* ---- TSan --------------------------------------------------------------------------------------------- */
#ifdef COIL__TSAN
/* TSan keeps a signal back that comes outside a blocking call, on a list of the context that runs, and looks
 * only at that of the context that blocks. So none may be on the list of one that leaves. While it makes and
 * destroys a context it changes places too, and forgets what came meanwhile. So, around all three: the first
 * call handles what is there, and lets no more come until the last one. In a switch that one is on the old
 * stack still, and in the new context: so is the handler of what came in between. */
static inline __attribute__((always_inline, COIL__UNSEEN)) void coil__tsan_hold_signals(sigset_t *mask) {
    sigset_t all;
    sigfillset(&all);
    for (int i = 0; i < 4; i++)
        sigdelset(&all,
                  (const int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL}[i]); /* a fault must still be reported */
    pthread_sigmask(SIG_SETMASK, &all, mask);
}

static inline __attribute__((always_inline, COIL__UNSEEN)) void coil__tsan_let_signals(const sigset_t *mask) {
    pthread_sigmask(SIG_SETMASK, mask, NULL);
}

COIL__SWITCH_FN void coil__tsan_make(struct coil__ctx *c) {
    sigset_t mask;
    coil__tsan_hold_signals(&mask);
    c->fiber = __tsan_create_fiber(0);
    coil__tsan_let_signals(&mask);
    c->made = true;
    c->ran = false;
}

/* Destroying a fiber that never ran crashes some versions, so it runs for no time at all. */
COIL__SWITCH_FN void coil__tsan_destroy(struct coil__ctx *c) {
    sigset_t mask;
    if (!c->made) return;
    coil__tsan_hold_signals(&mask);
    if (!c->ran) {
        void *self = __tsan_get_current_fiber();
        __tsan_switch_to_fiber(c->fiber, 0);
        __tsan_switch_to_fiber(self, 0);
    }
    __tsan_destroy_fiber(c->fiber);
    coil__tsan_let_signals(&mask);
}

/* To be followed by the switch itself. */
static inline __attribute__((always_inline, COIL__UNSEEN)) void coil__tsan_switch(struct coil__ctx *to) {
    sigset_t mask;
    coil__tsan_hold_signals(&mask);
    to->ran = true;
    __tsan_switch_to_fiber(to->fiber, 0);
    coil__tsan_let_signals(&mask);
}

/* The kernel orders what came before a request before what follows its completion, and TSan can't see it. */
#define COIL__TSAN_RELEASE(p) __tsan_release(p)
#define COIL__TSAN_ACQUIRE(p) __tsan_acquire(p)
enum { COIL__TSAN_ON = 1 };
#else
enum { COIL__TSAN_ON = 0 };
#define COIL__TSAN_RELEASE(p) ((void)(p))
#define COIL__TSAN_ACQUIRE(p) ((void)(p))
#endif

/* ---- contexts ----------------------------------------------------------------------------------------- */

/* A context on the stack [lo, lo + size); its first frame starts colour_bytes below the top. The first switch
 * to it calls entry(arg), which must begin with coil__ctx_entered and end with coil__ctx_leave. */
static inline void coil__ctx_make(struct coil__ctx *c, void *lo, size_t size, size_t colour_bytes,
                                  void (*entry)(void *), void *arg) {
    c->sp = coil__ctx_first((char *)lo + size - colour_bytes, entry, arg);
#ifdef COIL__ASAN
    c->fake_stack = NULL;
    c->lo = lo;
    c->size = size;
    c->left = NULL;
#endif
#ifdef COIL__TSAN
    coil__tsan_make(c);
#endif
}

/* The calling thread's own stack becomes a context, which can be switched away from and back to. */
static inline void coil__ctx_adopt(struct coil__ctx *c) {
    c->sp = NULL;
#ifdef COIL__ASAN
    c->fake_stack = NULL;
    c->lo = NULL;
    c->size = 0;
    c->left = NULL;
#endif
#ifdef COIL__TSAN
    c->fiber = __tsan_get_current_fiber();
    c->made = false;
    c->ran = true;
#endif
}

/* The counterpart of make and of adopt. A made context is not running: it never ran, or it has left. */
static inline void coil__ctx_release(struct coil__ctx *c) {
    (void)c;
#ifdef COIL__TSAN
    coil__tsan_destroy(c);
#endif
}

/* The first thing that a made context does. */
static inline void coil__ctx_entered(struct coil__ctx *self) {
    (void)self;
#ifdef COIL__ASAN
    coil__asan_arrive(self);
#endif
}

/* Returns when another context switches back to `from`. */
COIL__SWITCH_FN void coil__ctx_switch(struct coil__ctx *from, struct coil__ctx *to) {
#ifdef COIL__ASAN
    coil__asan_depart(from, to);
#endif
#ifdef COIL__TSAN
    coil__tsan_switch(to);
#endif
    coil__ctx_swap(&from->sp, to->sp);
#ifdef COIL__ASAN
    coil__asan_arrive(from);
#endif
}

/* The last switch away from `from`. Its stack may be used again as soon as another context runs. */
__attribute__((noreturn)) COIL__SWITCH_FN void coil__ctx_leave(struct coil__ctx *from, struct coil__ctx *to) {
#ifdef COIL__ASAN
    coil__asan_depart_for_good(from, to);
#endif
#ifdef COIL__TSAN
    coil__tsan_switch(to);
#endif
    coil__ctx_swap(&from->sp, to->sp);
    __builtin_trap();
}

/* ---- memory ------------------------------------------------------------------------------------------- */

/* Memory that nobody may touch until it is unpoisoned. */
static inline void coil__mem_poison(const void *p, size_t n) {
    (void)p;
    (void)n;
#ifdef COIL__ASAN
    __asan_poison_memory_region(p, n);
#endif
}

static inline void coil__mem_unpoison(const void *p, size_t n) {
    (void)p;
    (void)n;
#ifdef COIL__ASAN
    __asan_unpoison_memory_region(p, n);
#endif
}

/* Tells valgrind of a stack, or it takes a switch for one huge frame. The number is for coil__stack_unnote.
 */
static inline unsigned coil__stack_note(void *lo, void *hi) {
    (void)lo;
    (void)hi;
#ifdef COIL__VALGRIND
    return VALGRIND_STACK_REGISTER(lo, hi);
#else
    return 0;
#endif
}

static inline void coil__stack_unnote(unsigned note) {
    (void)note;
#ifdef COIL__VALGRIND
    VALGRIND_STACK_DEREGISTER(note);
#endif
}

/* A client request costs several instructions also where nobody listens: whoever makes many of them asks
 * first. */
static inline bool coil__on_valgrind(void) {
#ifdef COIL__VALGRIND
    return RUNNING_ON_VALGRIND != 0;
#else
    return false;
#endif
}

/* A stack that is used again: what its last user left below its stack pointer may be written, and has no
 * value. */
static inline void coil__stack_renew(void *lo, size_t size) {
    (void)lo;
    (void)size;
#ifdef COIL__VALGRIND
    (void)VALGRIND_MAKE_MEM_UNDEFINED(lo, size);
#endif
}

#ifdef __cplusplus
}
#endif

#endif
