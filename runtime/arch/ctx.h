/* The switch between two stacks: what a port supplies. It adds one .S with coil__ctx_jump, coil__ctx_start
 * and coil__ctx_visit, and below coil__ctx_swap and the layout of a stack's first frame; no other file knows
 * which processor this is.
 *
 * Floating-point control words (MXCSR and the x87 control word; FPCR) are not part of a context: they belong
 * to the thread. Saving them would cost two to three times the whole switch.
 *
 * This header and switch.h are also read by C++ (tests of exceptions), hence the casts and the linkage block.
 */
#ifndef COIL__ARCH_CTX_H
#define COIL__ARCH_CTX_H

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "coil runs on little-endian processors only"
#endif
#if __SIZEOF_POINTER__ != 8
#error "coil runs on 64-bit processors only, with 64-bit pointers"
#endif
#if defined(__has_feature)
#if __has_feature(shadow_call_stack)
#error "coil's tasks have no shadow call stack each: build without -fsanitize=shadow-call-stack"
#endif
#endif

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where the first swap to a new stack lands. It is not a function to call: it has no caller, and unwinders
 * stop there. */
void coil__ctx_start(void);

/* Does the work of coil__ctx_swap: saves, changes stacks, and jumps on. Entered by a jump, with the address
 * to come back to in a register. */
void coil__ctx_jump(void);

/* Calls fn(arg) on the caller's stack, but to an unwinder it looks as if the context saved at sp, which is
 * not running, had made the call: its frames follow. */
void coil__ctx_visit(void *sp, void (*fn)(void *arg), void *arg);

/* coil__ctx_swap(save, to) saves the callee-saved registers on the current stack, stores the stack pointer in
 * *save, and goes on where the context `to` was saved.
 *
 * It goes in by a jump because it comes out by one: a call would leave an entry on the processor's return
 * stack that no return takes off, and then every return of the context that goes on is predicted wrongly (two
 * tasks that yield, on x86-64: 25 ns instead of 7). So it is no call for the compiler, which is told of each
 * register that a call might change. */

#if defined(__x86_64__)

struct coil__ctx_frame {
    uint64_t r15, r14, r13, r12, rbx, rbp, rip; /* In the order in which coil__ctx_jump pops them. */
    uint64_t end[2];                            /* Zero where a caller's return address would be. */
};

#ifdef __AVX512F__
#define COIL__CTX_WIDE                                                                                   \
    , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", \
        "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7"
#else
#define COIL__CTX_WIDE
#endif

/* The compiler doesn't know that the stack below its pointer is used: build with -mno-red-zone. */
static inline __attribute__((always_inline)) void coil__ctx_swap(void **save, void *to) {
    __asm__ volatile("leaq 1f(%%rip), %%rdx\n\t"
                     "jmp coil__ctx_jump\n"
                     "1:"
                     : "+D"(save), "+S"(to)
                     :
                     : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
                       "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
                       "xmm15" COIL__CTX_WIDE, "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)",
                       "st(7)", "memory", "cc");
}

static inline void coil__ctx_frame_init(struct coil__ctx_frame *f, void (*entry)(void *), void *arg) {
    f->r12 = (uint64_t)(uintptr_t)entry;
    f->r13 = (uint64_t)(uintptr_t)arg;
    f->rip = (uint64_t)(uintptr_t)coil__ctx_start;
}

/* Rounding mode and exception masks of the vector unit, without its sticky flags. */
static inline uint32_t coil__fp_control(void) {
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr & ~UINT32_C(0x3f);
}

/* Tells the processor that this is a waiting loop. */
static inline void coil__cpu_relax(void) {
    __asm__ volatile("pause" ::: "memory");
}

#elif defined(__aarch64__)

struct coil__ctx_frame {
    uint64_t q[16]; /* q8 to q15: a call keeps the low halves only, but this is no call for the compiler. */
    uint64_t x[10]; /* x19 to x28 */
    uint64_t fp, lr;
};

/* Signs a code address for the stack pointer `sp`, as coil__ctx_jump does where it was built to sign at all.
 */
uint64_t coil__ctx_sign(uint64_t pc, const void *sp);

/* Registers that are wider than what is saved. */
#ifdef __ARM_FEATURE_SVE
#define COIL__CTX_WIDE                                                                                      \
    , "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", \
        "p8", "p9", "p10", "p11", "p12", "p13", "p14", "p15"
#else
#define COIL__CTX_WIDE
#endif

/* x18 belongs to the platform, or, as on Linux, it is one of the registers that a call may change. The switch
 * neither keeps nor uses it. */
#ifdef __ANDROID__
#define COIL__CTX_X18
#else
#define COIL__CTX_X18 , "x18"
#endif

/* The way back is an indirect jump, so it needs a landing pad: hint #36 is `bti j`. */
static inline __attribute__((always_inline)) void coil__ctx_swap(void **save, void *to) {
    register void **x0 __asm__("x0") = save;
    register void *x1 __asm__("x1") = to;
    __asm__ volatile("adr x30, 1f\n\t"
                     "b coil__ctx_jump\n"
                     "1: hint #36"
                     : "+r"(x0), "+r"(x1)
                     :
                     : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",
                       "x15", "x16", "x17", "x30", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16",
                       "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",
                       "v29", "v30", "v31" COIL__CTX_X18 COIL__CTX_WIDE, "memory", "cc");
}

static inline void coil__ctx_frame_init(struct coil__ctx_frame *f, void (*entry)(void *), void *arg) {
    f->x[0] = (uint64_t)(uintptr_t)entry;
    f->x[1] = (uint64_t)(uintptr_t)arg;
    f->lr = coil__ctx_sign((uint64_t)(uintptr_t)coil__ctx_start, f + 1);
}

static inline uint32_t coil__fp_control(void) {
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    return (uint32_t)fpcr;
}

static inline void coil__cpu_relax(void) {
    __asm__ volatile("yield" ::: "memory");
}

#else
#error "no context switch for this processor: it needs a .S file here, and in ctx.h a layout"
#endif

/* Lays out a first frame below `top`, so that the first swap to what this returns calls entry(arg) on an
 * aligned stack. entry must not return: coil__ctx_start traps if it does. All other registers start as zero,
 * the frame pointer among them, which ends the chain that profilers walk. */
static inline void *coil__ctx_first(void *top, void (*entry)(void *), void *arg) {
    uintptr_t sp = ((uintptr_t)top & ~(uintptr_t)15) - sizeof(struct coil__ctx_frame);
    struct coil__ctx_frame *f = (struct coil__ctx_frame *)sp;
    memset(f, 0, sizeof(*f));
    coil__ctx_frame_init(f, entry, arg);
    return f;
}

#ifdef __cplusplus
}
#endif

#endif
