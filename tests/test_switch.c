/* The switch alone, between contexts on stacks of the test's own: what it keeps, and where unwinding ends. */
#include "check.h"

#include "switch.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <unwind.h>

enum { STACK_BYTES = (256 << 10) * COIL__STACK_SCALE };

static void *stack_new(size_t size) {
    void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) abort();
    return m;
}

/* A context with its stack and the context that it goes back to. */
struct peer {
    struct coil__ctx ctx;
    struct coil__ctx *back;
    void *stack;
    unsigned note;
    void (*body)(struct peer *p);
    void *arg;
    bool done;
};

static void peer_entry(void *arg) {
    struct peer *p = arg;
    coil__ctx_entered(&p->ctx);
    p->body(p);
    p->done = true;
    coil__ctx_leave(&p->ctx, p->back);
}

static void peer_init(struct peer *p, struct coil__ctx *back, void (*body)(struct peer *p), void *arg) {
    *p = (struct peer){.back = back, .stack = stack_new(STACK_BYTES), .body = body, .arg = arg};
    p->note = coil__stack_note(p->stack, (char *)p->stack + STACK_BYTES);
    coil__ctx_make(&p->ctx, p->stack, STACK_BYTES, 0, peer_entry, p);
}

static void peer_free(struct peer *p) {
    coil__ctx_release(&p->ctx);
    coil__stack_unnote(p->note);
    munmap(p->stack, STACK_BYTES);
}

static void yield(struct peer *p) {
    coil__ctx_switch(&p->ctx, p->back);
}

/* Runs one body to its end, resuming it each time that it yields. */
static void run_alone(void (*body)(struct peer *p), void *arg) {
    struct coil__ctx self;
    struct peer p;
    coil__ctx_adopt(&self);
    peer_init(&p, &self, body, arg);
    while (!p.done)
        coil__ctx_switch(&self, &p.ctx);
    peer_free(&p);
    coil__ctx_release(&self);
}

/* ---- registers ---------------------------------------------------------------------------------------- */

/* Fills every register that a switch keeps from `in`, swaps, and stores what is in them afterwards in `out`.
 * On aarch64 one more word on either side is for x18, which a switch leaves alone. */
void swap_with(void **save, void *to, const uint64_t *in, uint64_t *out);

#if defined(__x86_64__)
enum { REGISTERS = 6, WORD_OF_X18 = 6 };
__asm__(".text\n"
        ".type swap_with, @function\n"
        "swap_with:\n"
        "    endbr64\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    pushq %rcx\n"
        "    movq (%rdx), %rbp\n    movq 8(%rdx), %rbx\n    movq 16(%rdx), %r12\n"
        "    movq 24(%rdx), %r13\n    movq 32(%rdx), %r14\n    movq 40(%rdx), %r15\n"
        "    leaq 1f(%rip), %rdx\n    jmp coil__ctx_jump\n1:\n"
        "    popq %rcx\n"
        "    movq %rbp, (%rcx)\n    movq %rbx, 8(%rcx)\n    movq %r12, 16(%rcx)\n"
        "    movq %r13, 24(%rcx)\n    movq %r14, 32(%rcx)\n    movq %r15, 40(%rcx)\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size swap_with, . - swap_with\n");
#elif defined(__aarch64__)
enum { REGISTERS = 27, WORD_OF_X18 = 27 };
__asm__(".text\n"
        ".type swap_with, %function\n"
        "swap_with:\n"
        "    hint #34\n"
        "    sub sp, sp, #240\n"
        "    stp q8, q9, [sp, #0]\n"
        "    stp q10, q11, [sp, #32]\n"
        "    stp q12, q13, [sp, #64]\n"
        "    stp q14, q15, [sp, #96]\n"
        "    stp x19, x20, [sp, #128]\n"
        "    stp x21, x22, [sp, #144]\n"
        "    stp x23, x24, [sp, #160]\n"
        "    stp x25, x26, [sp, #176]\n"
        "    stp x27, x28, [sp, #192]\n"
        "    stp x29, x30, [sp, #208]\n"
        "    str x3, [sp, #224]\n"
        "    ldp q8, q9, [x2, #0]\n"
        "    ldp q10, q11, [x2, #32]\n"
        "    ldp q12, q13, [x2, #64]\n"
        "    ldp q14, q15, [x2, #96]\n"
        "    ldp x19, x20, [x2, #128]\n"
        "    ldp x21, x22, [x2, #144]\n"
        "    ldp x23, x24, [x2, #160]\n"
        "    ldp x25, x26, [x2, #176]\n"
        "    ldp x27, x28, [x2, #192]\n"
        "    ldp x29, x18, [x2, #208]\n"
        "    adr x30, 1f\n"
        "    b coil__ctx_jump\n"
        "1:  hint #36\n"
        "    ldr x3, [sp, #224]\n"
        "    stp q8, q9, [x3, #0]\n"
        "    stp q10, q11, [x3, #32]\n"
        "    stp q12, q13, [x3, #64]\n"
        "    stp q14, q15, [x3, #96]\n"
        "    stp x19, x20, [x3, #128]\n"
        "    stp x21, x22, [x3, #144]\n"
        "    stp x23, x24, [x3, #160]\n"
        "    stp x25, x26, [x3, #176]\n"
        "    stp x27, x28, [x3, #192]\n"
        "    stp x29, x18, [x3, #208]\n"
        "    ldp q8, q9, [sp, #0]\n"
        "    ldp q10, q11, [sp, #32]\n"
        "    ldp q12, q13, [sp, #64]\n"
        "    ldp q14, q15, [sp, #96]\n"
        "    ldp x19, x20, [sp, #128]\n"
        "    ldp x21, x22, [sp, #144]\n"
        "    ldp x23, x24, [sp, #160]\n"
        "    ldp x25, x26, [sp, #176]\n"
        "    ldp x27, x28, [sp, #192]\n"
        "    ldp x29, x30, [sp, #208]\n"
        "    add sp, sp, #240\n"
        "    ret\n"
        ".size swap_with, . - swap_with\n");
#endif

/* Two bare stack pointers, so that nothing but the assembly runs between the registers being filled and
 * looked at. */
static void *main_sp, *other_sp;
static int wrong_in_other;

static void fill(uint64_t *r, uint64_t seed) {
    for (int i = 0; i < REGISTERS; i++)
        r[i] = seed * 0x9e3779b97f4a7c15u + (uint64_t)i * 0x0101010101010101u;
}

/* x18 has what the other side put there: no switch has written it. */
static bool x18_untouched(const uint64_t *out, uint64_t expected) {
#ifdef __aarch64__
    return out[WORD_OF_X18] == expected;
#else
    return out[WORD_OF_X18] == 0 && expected != 0;
#endif
}

static void registers_entry(void *arg) {
    (void)arg;
    for (uint64_t round = 1;; round++) {
        uint64_t in[REGISTERS + 1], out[REGISTERS + 1] = {0};
        fill(in, ~round);
        in[WORD_OF_X18] = ~round;
        swap_with(&other_sp, main_sp, in, out);
        if (memcmp(in, out, REGISTERS * sizeof(*in)) != 0) wrong_in_other++;
        if (!x18_untouched(out, round + 1)) wrong_in_other++;
    }
}

Test(switch_, keeps_every_callee_saved_register_of_both_sides_and_leaves_x18_alone) {
    char *stack = stack_new(STACK_BYTES);
    unsigned note = coil__stack_note(stack, stack + STACK_BYTES);
    other_sp = coil__ctx_first(stack + STACK_BYTES, registers_entry, NULL);
    for (uint64_t round = 1; round <= 1000; round++) {
        uint64_t in[REGISTERS + 1], out[REGISTERS + 1] = {0};
        fill(in, round);
        in[WORD_OF_X18] = round;
        swap_with(&main_sp, other_sp, in, out);
        cr_assert_arr_eq(in, out, REGISTERS * sizeof(*in), "round %d", (int)round);
        cr_assert(x18_untouched(out, ~round), "round %d", (int)round);
    }
    cr_assert_eq(wrong_in_other, 0);
    coil__stack_unnote(note);
    munmap(stack, STACK_BYTES);
}

/* Ruins what a call may change. */
static inline __attribute__((always_inline)) void ruin_registers(void) {
#if defined(__x86_64__)
    __asm__ volatile("movq $-1, %%rax\n movq %%rax, %%rcx\n movq %%rax, %%rdx\n movq %%rax, %%r8\n"
                     "movq %%rax, %%r9\n movq %%rax, %%r10\n movq %%rax, %%r11\n"
                     "pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm1, %%xmm1\n pcmpeqd %%xmm2, %%xmm2\n"
                     "pcmpeqd %%xmm3, %%xmm3\n pcmpeqd %%xmm4, %%xmm4\n pcmpeqd %%xmm5, %%xmm5\n"
                     "pcmpeqd %%xmm6, %%xmm6\n pcmpeqd %%xmm7, %%xmm7\n pcmpeqd %%xmm8, %%xmm8\n"
                     "pcmpeqd %%xmm9, %%xmm9\n pcmpeqd %%xmm10, %%xmm10\n pcmpeqd %%xmm11, %%xmm11\n"
                     "pcmpeqd %%xmm12, %%xmm12\n pcmpeqd %%xmm13, %%xmm13\n pcmpeqd %%xmm14, %%xmm14\n"
                     "pcmpeqd %%xmm15, %%xmm15"
                     :
                     :
                     : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
                       "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
                       "xmm15");
#elif defined(__aarch64__)
    __asm__ volatile(".irp n, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18\n"
                     "mov x\\n, #-1\n"
                     ".endr\n"
                     ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
                     "movi v\\n\\().16b, #255\n"
                     ".endr\n"
                     ".irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n"
                     "movi v\\n\\().16b, #255\n"
                     ".endr"
                     :
                     :
                     : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",
                       "x15", "x16", "x17", "x18", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9",
                       "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21",
                       "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
#endif
}

static void ruining_entry(void *arg) {
    (void)arg;
    for (;;) {
        ruin_registers();
        coil__ctx_swap(&other_sp, main_sp);
    }
}

typedef double pair __attribute__((vector_size(16)));

/* More values of each kind than there are registers. A switch that says too little of what it changes leaves
 * some of them where the other side has been. */
enum { VALUES = 34 };

static __attribute__((noinline)) int values_lost(const uint64_t *from, const pair *pairs_from) {
    uint64_t v[VALUES];
    pair w[VALUES];
#pragma GCC unroll 34
    for (int i = 0; i < VALUES; i++) {
        v[i] = from[i] + 1;
        w[i] = pairs_from[i] + 0.5;
    }
    coil__ctx_swap(&main_sp, other_sp);
    int lost = 0;
#pragma GCC unroll 34
    for (int i = 0; i < VALUES; i++)
        lost += v[i] != (uint64_t)i + 1 || w[i][0] != i + 0.5 || w[i][1] != i + 0.75;
    return lost;
}

Test(switch_, loses_no_value_that_the_compiler_keeps_across_it) {
    uint64_t from[VALUES];
    pair pairs[VALUES];
    char *stack = stack_new(STACK_BYTES);
    unsigned note = coil__stack_note(stack, stack + STACK_BYTES);
    other_sp = coil__ctx_first(stack + STACK_BYTES, ruining_entry, NULL);
    for (int i = 0; i < VALUES; i++) {
        from[i] = (uint64_t)i;
        pairs[i] = (pair){i, i + 0.25};
    }
    for (int round = 0; round < 10; round++)
        cr_assert_eq(values_lost(from, pairs), 0, "round %d", round);
    coil__stack_unnote(note);
    munmap(stack, STACK_BYTES);
}

/* ---- the first frame ---------------------------------------------------------------------------------- */

struct seen {
    uintptr_t arg, local, frame;
};

static struct seen seen;

/* The compiler assumes what is to be tested here, so the addresses go through an asm that hides where they
 * are from. */
static void look_at_stack(struct peer *p) {
    _Alignas(16) char local[16];
    uintptr_t at = (uintptr_t)local, frame = (uintptr_t)__builtin_frame_address(0);
    __asm__ volatile("" : "+r"(at), "+r"(frame) : : "memory");
    seen = (struct seen){.arg = (uintptr_t)p->arg, .local = at, .frame = frame};
}

Test(switch_, starts_on_an_aligned_stack_with_its_argument_whatever_the_colour) {
    struct coil__ctx self;
    coil__ctx_adopt(&self);
    for (size_t colour = 0; colour < 16 * 64; colour += 8) {
        struct peer p;
        peer_init(&p, &self, look_at_stack, &p);
        coil__ctx_release(&p.ctx);
        coil__ctx_make(&p.ctx, p.stack, STACK_BYTES, colour, peer_entry, &p);
        coil__ctx_switch(&self, &p.ctx);
        cr_assert(p.done);
        cr_assert_eq(seen.arg, (uintptr_t)&p);
        if (!CHECK_ASAN) cr_assert_eq(seen.local % 16, 0, "colour %zu", colour);
        cr_assert_eq(seen.frame % 16, 0, "colour %zu", colour);
        uintptr_t below_top = (uintptr_t)p.stack + STACK_BYTES - seen.frame;
        cr_assert_geq(below_top, colour);
        cr_assert_lt(below_top, colour + 1024);
        peer_free(&p);
    }
    coil__ctx_release(&self);
}

/* What the first instruction of an entry finds. */
struct at_entry {
    uint64_t sp, fp;
};

/* Stores sp and the frame pointer in its argument and goes back for good. */
void entry_probe(void *at);

#if defined(__x86_64__)
enum { BELOW_ALIGNED = 8 }; /* The return address. */
__asm__(".text\n"
        ".globl entry_probe\n"
        ".type entry_probe, @function\n"
        "entry_probe:\n"
        "    endbr64\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rbp, 8(%rdi)\n"
        "    andq $-16, %rsp\n"
        "    call entry_probed\n"
        ".size entry_probe, . - entry_probe\n");
#elif defined(__aarch64__)
enum { BELOW_ALIGNED = 0 };
__asm__(".text\n"
        ".globl entry_probe\n"
        ".type entry_probe, %function\n"
        "entry_probe:\n"
        "    hint #34\n"
        "    mov x9, sp\n"
        "    stp x9, x29, [x0]\n"
        "    and x9, x9, #-16\n"
        "    mov sp, x9\n"
        "    bl entry_probed\n"
        ".size entry_probe, . - entry_probe\n");
#endif

__attribute__((used)) void entry_probed(void);
void entry_probed(void) {
    coil__ctx_swap(&other_sp, main_sp);
}

Test(switch_, enters_on_an_aligned_stack_at_the_top_with_no_frame_before) {
    check_needs(!CHECK_SANITIZED, "switches that the sanitizer isn't told of");
    char *stack = stack_new(STACK_BYTES);
    unsigned note = coil__stack_note(stack, stack + STACK_BYTES);
    for (uintptr_t off = 0; off < 64; off++) {
        struct at_entry at = {0, 1};
        uintptr_t top = (uintptr_t)stack + STACK_BYTES - off;
        other_sp = coil__ctx_first((void *)top, entry_probe, &at);
        coil__ctx_swap(&main_sp, other_sp);
        cr_assert_eq((at.sp + BELOW_ALIGNED) % 16, 0, "top %d", (int)off);
        cr_assert_leq(at.sp, top);
        cr_assert_geq(at.sp + 48, top);
        cr_assert_eq(at.fp, 0);
    }
    coil__stack_unnote(note);
    munmap(stack, STACK_BYTES);
}

static void nothing(struct peer *p) {
    (void)p;
}

Test(switch_, lets_a_context_that_never_ran_go) {
    struct coil__ctx self;
    coil__ctx_adopt(&self);
    for (int i = 0; i < 100; i++) {
        struct peer p;
        peer_init(&p, &self, nothing, NULL);
        peer_free(&p);
    }
    coil__ctx_release(&self);
}

static void returns_from_entry(void *arg) {
    (void)arg;
}

static int run_entry_that_returns(void *arg) {
    signal(SIGILL, SIG_DFL);
    signal(SIGTRAP, SIG_DFL);
    void *sp;
    coil__ctx_swap(&sp, coil__ctx_first((char *)arg + STACK_BYTES, returns_from_entry, NULL));
    return 0;
}

Test(switch_, traps_when_an_entry_returns) {
    char err[256];
    int status;
    cr_assert(check_in_child(run_entry_that_returns, stack_new(STACK_BYTES), &status, err, sizeof(err)));
    int sig = status & 0x7f;
    cr_assert(sig == SIGILL || sig == SIGTRAP, "wait status %#x", (unsigned)status);
}

/* ---- many contexts, many switches --------------------------------------------------------------------- */

enum { RING = 50, ROUNDS = 2000 };

struct ring {
    struct coil__ctx self;
    struct peer peers[RING];
    uint64_t sum;
    int wrong;
};

/* Each goes straight to the next, as ready tasks do, and keeps values in registers and on its stack
 * meanwhile. */
static void ring_body(struct peer *p) {
    struct ring *r = p->arg;
    int me = (int)(p - r->peers);
    struct coil__ctx *next = me + 1 < RING ? &r->peers[me + 1].ctx : &r->self;
    volatile uint64_t on_stack = (uint64_t)me;
    double half = me * 0.5;
    for (int i = 0; i < ROUNDS; i++) {
        r->sum += on_stack++;
        half += 0.5;
        coil__ctx_switch(&p->ctx, next);
    }
    if (on_stack != (uint64_t)me + ROUNDS || half != (me + ROUNDS) * 0.5) r->wrong++;
}

Test(switch_, goes_from_context_to_context_in_a_ring) {
    static struct ring r;
    coil__ctx_adopt(&r.self);
    for (int i = 0; i < RING; i++)
        peer_init(&r.peers[i], &r.self, ring_body, &r);
    for (int i = 0; i < ROUNDS; i++)
        coil__ctx_switch(&r.self, &r.peers[0].ctx);
    uint64_t expected = 0;
    for (uint64_t me = 0; me < RING; me++)
        expected += ROUNDS * me + (uint64_t)ROUNDS * (ROUNDS - 1) / 2;
    cr_assert_eq(r.sum, expected);
    for (int i = 0; i < RING; i++) {
        coil__ctx_switch(&r.self, &r.peers[i].ctx);
        cr_assert(r.peers[i].done);
        peer_free(&r.peers[i]);
    }
    cr_assert_eq(r.wrong, 0);
    coil__ctx_release(&r.self);
}

static __attribute__((noinline)) int fill_frame(char *frame, size_t n, int value) {
    memset(frame, value, n);
    __asm__ volatile("" : : "r"(frame) : "memory");
    return frame[n - 1];
}

static void dirty_body(struct peer *p) {
    char frame[4000];
    *(int *)p->arg += fill_frame(frame, sizeof(frame), 1);
    coil__ctx_switch(&p->ctx, p->back);
    *(int *)p->arg += fill_frame(frame, sizeof(frame), 1);
    coil__ctx_leave(&p->ctx, p->back); /* From within, past frames that never return. */
}

Test(switch_, lets_a_stack_be_used_again_after_the_last_switch_away) {
    struct coil__ctx self;
    struct peer p;
    int sum = 0;
    coil__ctx_adopt(&self);
    peer_init(&p, &self, dirty_body, &sum);
    coil__ctx_release(&p.ctx);
    for (int i = 0; i < 500; i++) {
        coil__stack_renew(p.stack, STACK_BYTES);
        coil__ctx_make(&p.ctx, p.stack, STACK_BYTES, (size_t)(i % 16) * 64, peer_entry, &p);
        coil__ctx_switch(&self, &p.ctx);
        coil__ctx_switch(&self, &p.ctx);
        coil__ctx_release(&p.ctx);
    }
    cr_assert_eq(sum, 1000);
    coil__stack_unnote(p.note);
    munmap(p.stack, STACK_BYTES);
    coil__ctx_release(&self);
}

static __attribute__((noinline)) uint64_t descend(struct peer *p, int depth) {
    volatile char frame[128];
    frame[depth % 128] = (char)depth;
    if (depth == 0) return 0;
    if (depth % 100 == 0) yield(p);
    uint64_t below = descend(p, depth - 1);
    return below + 1 + (frame[depth % 128] != (char)depth);
}

static void descend_body(struct peer *p) {
    *(uint64_t *)p->arg = descend(p, 1000);
}

Test(switch_, recurses_deeply_and_switches_on_the_way_down) {
    uint64_t depth = 0;
    run_alone(descend_body, &depth);
    cr_assert_eq(depth, 1000);
}

struct text {
    char s[200];
};

static void print_body(struct peer *p) {
    double third = 1.0 / 3;
    long double wide = 2.0L / 3;
    yield(p);
    third *= 3;
    yield(p);
    struct text *t = p->arg;
    snprintf(t->s, sizeof(t->s), "%d %s %.3f %.3Lf %c %lld %.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f", 1, "two",
             third, wide, 'c', 1ll << 40, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5);
}

Test(switch_, formats_floating_point_and_variable_arguments_in_a_context) {
    struct text t;
    run_alone(print_body, &t);
    cr_assert_str_eq(t.s, "1 two 1.000 0.667 c 1099511627776 1.0 2.0 3.0 4.0 5.0 6.0 7.0 8.5");
}

static void *thread_body(void *arg) {
    for (int i = 0; i < 20; i++) {
        uint64_t depth = 0;
        run_alone(descend_body, &depth);
        if (depth != 1000) ++*(int *)arg;
    }
    return NULL;
}

Test(switch_, works_in_several_threads_at_once) {
    pthread_t threads[4];
    int wrong[4] = {0};
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, thread_body, &wrong[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        cr_assert_eq(wrong[i], 0);
    }
}

/* ---- unwinding ---------------------------------------------------------------------------------------- */

struct trace {
    int count;
    uintptr_t ip[64];
    _Unwind_Reason_Code end;
};

static _Unwind_Reason_Code trace_frame(struct _Unwind_Context *c, void *arg) {
    struct trace *t = arg;
    if (t->count == (int)(sizeof(t->ip) / sizeof(*t->ip))) return _URC_FOREIGN_EXCEPTION_CAUGHT;
    uintptr_t ip = _Unwind_GetIP(c);
    if (ip != 0) t->ip[t->count++] = ip; /* Some unwinders show the end as a frame at zero. */
    return _URC_NO_REASON;
}

static void trace_take(struct trace *t) {
    t->count = 0;
    t->end = _Unwind_Backtrace(trace_frame, t);
}

static bool is_first_frame(uintptr_t ip) {
    return ip >= (uintptr_t)coil__ctx_start && ip < (uintptr_t)coil__ctx_start + 32;
}

static __attribute__((noinline)) void trace_below(struct trace *t, int depth) {
    if (depth == 0)
        trace_take(t);
    else
        trace_below(t, depth - 1);
    __asm__ volatile("" : : : "memory");
}

static void trace_body(struct peer *p) {
    trace_below(p->arg, 5);
}

Test(switch_, ends_unwinding_at_the_first_frame) {
    static struct trace t;
    run_alone(trace_body, &t);
    cr_assert_eq(t.end, _URC_END_OF_STACK);
    cr_assert_geq(t.count, 5 + 3, "%d frames", t.count);
    cr_assert(is_first_frame(t.ip[t.count - 1]), "the last of %d frames is elsewhere", t.count);
    for (int i = 0; i < t.count - 1; i++)
        cr_assert_not(is_first_frame(t.ip[i]));
}

#if defined(__x86_64__) && !CHECK_SANITIZED

/* Runs a switch instruction by instruction and unwinds from each: this is what a profiler's samples meet. */
static volatile int steps_inside, steps_wrong;

static void on_step(int sig, siginfo_t *info, void *context) {
    (void)sig;
    (void)info;
    (void)context;
    static struct trace t;
    trace_take(&t);
    int inside = -1;
    for (int i = 0; i < t.count; i++)
        if (t.ip[i] >= (uintptr_t)coil__ctx_jump && t.ip[i] < (uintptr_t)coil__ctx_start - 1) inside = i;
    if (inside < 0) return;
    steps_inside++;
    if (t.end != _URC_END_OF_STACK || !is_first_frame(t.ip[t.count - 1])) steps_wrong++;
    /* Behind the switch there are the body, its entry and the first frame; or on a new stack the first frame
     * alone. */
    int behind = t.count - 1 - inside;
    if (behind < 1 || behind > 4) steps_wrong++;
}

static void step_on(void) {
    __asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq" : : : "cc", "memory");
}

static void step_off(void) {
    __asm__ volatile("pushfq\n andq $~0x100, (%%rsp)\n popfq" : : : "cc", "memory");
}

static void stepped_peer_body(struct peer *p) {
    struct peer *other = p->arg;
    for (int i = 0; i < 2; i++)
        coil__ctx_switch(&p->ctx, &other->ctx);
}

static void stepping_body(struct peer *p) {
    struct peer *other = p->arg;
    step_on();
    for (int i = 0; i < 2; i++)
        coil__ctx_switch(&p->ctx, &other->ctx);
    step_off();
}

Test(switch_, can_be_unwound_at_each_of_its_instructions) {
    check_needs(!coil__on_valgrind() && !check_on_uml(), "a processor that can single-step");
    struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    stack_t alternate = {.ss_sp = stack_new(STACK_BYTES), .ss_size = STACK_BYTES};
    sigaltstack(&alternate, NULL);
    sigaction(SIGTRAP, &step, NULL);
    struct coil__ctx self;
    struct peer a, b;
    coil__ctx_adopt(&self);
    peer_init(&a, &self, stepping_body, &b);
    peer_init(&b, &self, stepped_peer_body, &a);
    coil__ctx_switch(&self, &a.ctx);
    cr_assert(a.done);
    cr_assert_geq(steps_inside, 4 * 17, "%d steps", steps_inside);
    cr_assert_eq(steps_wrong, 0, "%d of %d steps", steps_wrong, steps_inside);
}

#endif

#if defined(__aarch64__)

/* ---- landing pads and signed addresses ---------------------------------------------------------------- */

#include <link.h>
#include <sys/auxv.h>

enum { PROT_LANDING_PADS = 0x10 }; /* PROT_BTI, which older headers lack. */

/* Only with what the library is built with do the instructions mean something. */
#if defined(__ARM_FEATURE_BTI_DEFAULT)
static bool have_landing_pads(void) {
    return getauxval(AT_HWCAP2) & 1 << 17;
}

/* The program itself comes first, and its libraries are let be: theirs need no pads to run. */
static int guard_code(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type != PT_LOAD || !(h->p_flags & PF_X)) continue;
        uintptr_t lo = (info->dlpi_addr + h->p_vaddr) & ~(uintptr_t)(page - 1);
        uintptr_t hi = info->dlpi_addr + h->p_vaddr + h->p_memsz;
        if (mprotect((void *)lo, hi - lo, PROT_READ | PROT_EXEC | PROT_LANDING_PADS) == 0)
            *(bool *)arg = true;
    }
    return 1;
}

static int switch_between_guarded(void *arg) {
    bool guarded = false;
    dl_iterate_phdr(guard_code, &guarded);
    if (!guarded) return 1;
    uint64_t depth = 0;
    run_alone(descend_body, &depth);
    if (arg) /* To an instruction that is no pad: the guard is real. */
        __asm__ volatile("adr x9, 1f\n br x9\n nop\n1: nop" : : : "x9");
    _exit(depth == 1000 ? 0 : 2);
}

Test(switch_, lands_on_landing_pads_alone) {
    check_needs(have_landing_pads(), "branch target identification");
    char err[256];
    int status;
    cr_assert(check_in_child(switch_between_guarded, NULL, &status, err, sizeof(err)));
    cr_assert_eq(status, 0, "wait status %#x: %s", (unsigned)status, err);
    cr_assert(check_in_child(switch_between_guarded, &status, &status, err, sizeof(err)));
    cr_assert_eq(status & 0x7f, SIGILL, "wait status %#x: %s", (unsigned)status, err);
}
#endif

#if defined(__ARM_FEATURE_PAC_DEFAULT)
static bool have_signed_addresses(void) {
    return getauxval(AT_HWCAP) & 1ul << 30;
}

static void hijacked(void) {
    _exit(7);
}

static void yield_once(struct peer *p) {
    yield(p);
}

/* A context that has not run yet, or one that has yielded, at one of many depths of its stack. */
struct changed {
    bool has_run;
    size_t colour;
};

/* Changes where a saved context would go on. */
static int go_on_with_a_changed_address(void *arg) {
    const struct changed *c = arg;
    struct coil__ctx self;
    struct peer p;
    coil__ctx_adopt(&self);
    peer_init(&p, &self, yield_once, NULL);
    coil__ctx_release(&p.ctx);
    coil__ctx_make(&p.ctx, p.stack, STACK_BYTES, c->colour, peer_entry, &p);
    if (c->has_run) coil__ctx_switch(&self, &p.ctx);
    struct coil__ctx_frame *f = p.ctx.sp;
    f->lr = (uint64_t)(uintptr_t)hijacked;
    coil__ctx_switch(&self, &p.ctx);
    return 0;
}

/* A signature may have as few as 7 bits, so now and then an address is its own by chance: once in 128 tries.
 * Each depth has a signature of its own, and more than three of eight are no chance. */
Test(switch_, goes_on_at_signed_addresses_alone) {
    check_needs(have_signed_addresses(), "pointer authentication");
    enum { DEPTHS = 8, BY_CHANCE = 3 };
    char err[256];
    for (int has_run = 0; has_run < 2; has_run++) {
        int stopped = 0, status = 0;
        for (size_t i = 0; i < DEPTHS; i++) {
            struct changed c = {.has_run = has_run, .colour = i * 64};
            cr_assert(check_in_child(go_on_with_a_changed_address, &c, &status, err, sizeof(err)));
            int sig = status & 0x7f;
            stopped += sig == SIGSEGV || sig == SIGILL || sig == SIGBUS;
        }
        cr_assert_geq(stopped, DEPTHS - BY_CHANCE, "%d of %d, the last wait status %#x", stopped, DEPTHS,
                      (unsigned)status);
    }
}
#endif

#endif
