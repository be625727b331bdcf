/* Call stacks of the running context and of those that were switched away from. */
#include "check.h"

#include "unwind.h"

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>

enum { STACK_BYTES = (1 << 20) * COIL__STACK_SCALE, MAX = 64 };

struct peer {
    struct coil__ctx ctx, back;
    void *stack;
    unsigned note;
    int depth;
    bool done;
};

#ifdef COIL__HAVE_UNWIND
enum { HAVE_UNWIND = 1 };
#else
enum { HAVE_UNWIND = 0 };
#endif

static void peer_make(struct peer *p, void (*entry)(void *)) {
    check_needs(HAVE_UNWIND, "an unwinder");
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    p->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    cr_assert_neq(p->stack, MAP_FAILED);
    p->note = coil__stack_note(p->stack, (char *)p->stack + STACK_BYTES);
    coil__ctx_adopt(&p->back);
    coil__ctx_make(&p->ctx, p->stack, STACK_BYTES, 0, entry, p);
}

static void peer_free(struct peer *p) {
    coil__ctx_release(&p->ctx);
    coil__ctx_release(&p->back);
    coil__stack_unnote(p->note);
    munmap(p->stack, STACK_BYTES);
}

/* A frame is within a function whose code is short. */
static bool within(const void *pc, void (*fn)(void)) {
    return (uintptr_t)pc - (uintptr_t)fn < 2048;
}

static __attribute__((noinline)) int parks_below(struct peer *p, int depth) {
    int here = depth;
    if (depth > 0) {
        here += parks_below(p, depth - 1);
    } else {
        coil__ctx_switch(&p->ctx, &p->back);
    }
    __asm__ volatile("" : "+r"(here) : : "memory");
    return here;
}

static void parks(void *arg) {
    struct peer *p = arg;
    coil__ctx_entered(&p->ctx);
    parks_below(p, p->depth);
    p->done = true;
    coil__ctx_leave(&p->ctx, &p->back);
}

static int count_of(void *const *pc, int n, void (*fn)(void)) {
    int count = 0;
    for (int i = 0; i < n; i++)
        count += within(pc[i], fn);
    return count;
}

static void check_parked(int depth) {
    struct peer p = {.depth = depth};
    void *pc[MAX] = {NULL};
    peer_make(&p, parks);
    coil__ctx_switch(&p.back, &p.ctx);
    int n = coil__unwind_ctx(&p.ctx, pc, MAX);
    /* The switch has a frame of its own under sanitizers. */
    cr_expect(n >= depth + 2 && n <= depth + 3, "%d frames at a depth of %d", n, depth);
    int kept = n < MAX ? n : MAX;
    cr_expect_geq(count_of(pc, kept, (void (*)(void))parks_below), kept < depth ? kept - 1 : depth + 1);
    if (n <= MAX) cr_expect(within(pc[n - 1], (void (*)(void))parks), "the entry is not the last frame");
    /* Looking changes nothing. */
    void *again[MAX] = {NULL};
    cr_expect_eq(coil__unwind_ctx(&p.ctx, again, MAX), n);
    cr_expect_arr_eq(again, pc, sizeof pc);
    coil__ctx_switch(&p.back, &p.ctx);
    cr_expect(p.done);
    peer_free(&p);
}

Test(unwind, shows_the_frames_of_a_context_that_was_switched_away_from) {
    check_parked(0);
    check_parked(1);
    check_parked(5);
}

Test(unwind, counts_thousands_of_frames_and_keeps_the_innermost) {
    check_parked(1000);
    check_parked(3000);
}

Test(unwind, a_bound_of_zero_only_counts) {
    struct peer p = {.depth = 7};
    peer_make(&p, parks);
    coil__ctx_switch(&p.back, &p.ctx);
    int n = coil__unwind_ctx(&p.ctx, NULL, 0);
    cr_expect(n >= 9 && n <= 10, "%d frames", n);
    coil__ctx_switch(&p.back, &p.ctx);
    peer_free(&p);
}

Test(unwind, a_context_that_never_ran_has_no_frames) {
    struct peer p = {.depth = 0};
    void *pc[MAX];
    peer_make(&p, parks);
    cr_expect_eq(coil__unwind_ctx(&p.ctx, pc, MAX), 0);
    peer_free(&p);
}

/* ---- the running one ---- */

static void *here_pc[MAX];
static int here_count;

static __attribute__((noinline)) int looks_below(int depth) {
    int here = depth;
    if (depth > 0) {
        here += looks_below(depth - 1);
    } else {
        here_count = coil__unwind_here(here_pc, MAX);
    }
    __asm__ volatile("" : "+r"(here) : : "memory");
    return here;
}

static void looks(void *arg) {
    struct peer *p = arg;
    coil__ctx_entered(&p->ctx);
    looks_below(p->depth);
    coil__ctx_leave(&p->ctx, &p->back);
}

Test(unwind, shows_its_caller_first_and_ends_at_the_entry) {
    struct peer p = {.depth = 9};
    peer_make(&p, looks);
    coil__ctx_switch(&p.back, &p.ctx);
    cr_expect_eq(here_count, 11);
    for (int i = 0; i < 10; i++)
        cr_expect(within(here_pc[i], (void (*)(void))looks_below), "frame %d", i);
    /* What returns to different places: the innermost call, those between, the entry's. */
    cr_expect_neq(here_pc[0], here_pc[1]);
    cr_expect_eq(here_pc[1], here_pc[9 - 1]);
    cr_expect_neq(here_pc[10], here_pc[9]);
    peer_free(&p);
}

Test(unwind, goes_on_to_the_end_of_the_threads_own_stack) {
    check_needs(HAVE_UNWIND, "an unwinder");
    looks_below(3);
    cr_expect_gt(here_count, 4);
    for (int i = 0; i < 4; i++)
        cr_expect(within(here_pc[i], (void (*)(void))looks_below), "frame %d", i);
}

/* ---- behind a signal ---- */

static volatile sig_atomic_t handled;

static void on_signal(int sig) {
    (void)sig;
    here_count = coil__unwind_here(here_pc, MAX);
    handled = 1;
}

/* Interrupted in code of its own: a C library may be without tables. */
static __attribute__((noinline)) void is_interrupted(void) {
    struct itimerval soon = {.it_value = {.tv_usec = 1000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    while (!handled)
        continue;
}

Test(unwind, goes_through_a_signal_handler) {
    check_needs(HAVE_UNWIND, "an unwinder");
    if (CHECK_TSAN) cr_skip("a loop without calls gets no signal there");
    struct sigaction sa = {.sa_handler = on_signal};
    sigaction(SIGALRM, &sa, NULL);
    is_interrupted();
    int kept = here_count < MAX ? here_count : MAX;
    cr_expect_geq(count_of(here_pc, kept, (void (*)(void))is_interrupted), 1, "of %d frames", kept);
}
