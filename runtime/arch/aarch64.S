/* The context switch for 64-bit ARM, AAPCS64. See ctx.h for what the symbols promise.
 *
 * x18 is the platform's register (a shadow call stack, for one): it is neither saved nor used here.
 *
 * The switch leaves by an indirect jump, because a `ret` to another stack's caller is always mispredicted, and is
 * entered by a jump too, and so is a context's entry, so that calls and returns stay balanced. It lands on the pad that
 * coil__ctx_swap has behind its jump.
 *
 * Return addresses are signed where the compiler signs its own, with the stack pointer at entry as the
 * modifier, so that a saved context is no easier to forge than any other frame. */
#if defined(__aarch64__)

#if defined(__ARM_FEATURE_PAC_DEFAULT) && __ARM_FEATURE_PAC_DEFAULT
#define SIGN_LR \
    hint    #25; /* paciasp, also a landing pad for calls */ \
    .cfi_negate_ra_state
#define CHECK_LR \
    hint    #29; /* autiasp */ \
    .cfi_negate_ra_state
#define FEATURE_PAC 2
#else
#define SIGN_LR hint #34 /* bti c */
#define CHECK_LR
#define FEATURE_PAC 0
#endif

#if defined(__ARM_FEATURE_BTI_DEFAULT) && __ARM_FEATURE_BTI_DEFAULT
#define FEATURE_BTI 1
#else
#define FEATURE_BTI 0
#endif

    .text

    .globl  coil__ctx_jump
    .hidden coil__ctx_jump
    .type   coil__ctx_jump, %function
    .p2align 5
coil__ctx_jump:
    .cfi_startproc
    SIGN_LR
    sub     sp, sp, #224
    .cfi_def_cfa_offset 224
    stp     q8, q9, [sp, #0]
    .cfi_rel_offset d8, 0
    .cfi_rel_offset d9, 16
    stp     q10, q11, [sp, #32]
    .cfi_rel_offset d10, 32
    .cfi_rel_offset d11, 48
    stp     q12, q13, [sp, #64]
    .cfi_rel_offset d12, 64
    .cfi_rel_offset d13, 80
    stp     q14, q15, [sp, #96]
    .cfi_rel_offset d14, 96
    .cfi_rel_offset d15, 112
    stp     x19, x20, [sp, #128]
    .cfi_rel_offset x19, 128
    .cfi_rel_offset x20, 136
    stp     x21, x22, [sp, #144]
    .cfi_rel_offset x21, 144
    .cfi_rel_offset x22, 152
    stp     x23, x24, [sp, #160]
    .cfi_rel_offset x23, 160
    .cfi_rel_offset x24, 168
    stp     x25, x26, [sp, #176]
    .cfi_rel_offset x25, 176
    .cfi_rel_offset x26, 184
    stp     x27, x28, [sp, #192]
    .cfi_rel_offset x27, 192
    .cfi_rel_offset x28, 200
    stp     x29, x30, [sp, #208]
    .cfi_rel_offset x29, 208
    .cfi_rel_offset x30, 216
    mov     x9, sp
    str     x9, [x0]
    mov     sp, x1
    ldp     q8, q9, [sp, #0]
    .cfi_restore d8
    .cfi_restore d9
    ldp     q10, q11, [sp, #32]
    .cfi_restore d10
    .cfi_restore d11
    ldp     q12, q13, [sp, #64]
    .cfi_restore d12
    .cfi_restore d13
    ldp     q14, q15, [sp, #96]
    .cfi_restore d14
    .cfi_restore d15
    ldp     x19, x20, [sp, #128]
    .cfi_restore x19
    .cfi_restore x20
    ldp     x21, x22, [sp, #144]
    .cfi_restore x21
    .cfi_restore x22
    ldp     x23, x24, [sp, #160]
    .cfi_restore x23
    .cfi_restore x24
    ldp     x25, x26, [sp, #176]
    .cfi_restore x25
    .cfi_restore x26
    ldp     x27, x28, [sp, #192]
    .cfi_restore x27
    .cfi_restore x28
    ldp     x29, x30, [sp, #208]
    .cfi_restore x29
    .cfi_restore x30
    add     sp, sp, #224
    .cfi_def_cfa_offset 0
    CHECK_LR
    br      x30
    .cfi_endproc
    .size   coil__ctx_jump, . - coil__ctx_jump

    /* Unwinders look up the instruction before a return address. On a stack that has not run yet that
     * address is coil__ctx_start itself, so the nop belongs to it, or they would find the end of the
     * function above. */
    .globl  coil__ctx_trampoline
    .hidden coil__ctx_trampoline
    .type   coil__ctx_trampoline, %function
    .globl  coil__ctx_start
    .hidden coil__ctx_start
    .p2align 4
coil__ctx_trampoline:
    .cfi_startproc
    .cfi_undefined x30
    nop
coil__ctx_start:
    hint    #38                     /* bti jc */
    mov     x0, x20
    adr     x30, 1f                 /* Where entry would return to, which it must not. */
    mov     x17, x19
    br      x17                     /* From x16 and x17 a jump may go where a call may. */
1:  brk     #1
    .cfi_endproc
    .size   coil__ctx_trampoline, . - coil__ctx_trampoline

    /* During the call the tables say that the caller is the context saved at x19, by the layout of coil__ctx_jump,
     * which signs its return address as this function does. */
    .globl  coil__ctx_visit
    .hidden coil__ctx_visit
    .type   coil__ctx_visit, %function
    .p2align 4
coil__ctx_visit:
    .cfi_startproc
    SIGN_LR
    stp     x29, x30, [sp, #-32]!
    .cfi_def_cfa_offset 32
    .cfi_offset x29, -32
    .cfi_offset x30, -24
    str     x19, [sp, #16]
    .cfi_offset x19, -16
    mov     x29, sp
    mov     x19, x0
    mov     x0, x2
    .cfi_remember_state
    .cfi_def_cfa x19, 224
    .cfi_offset d8, -224
    .cfi_offset d9, -208
    .cfi_offset d10, -192
    .cfi_offset d11, -176
    .cfi_offset d12, -160
    .cfi_offset d13, -144
    .cfi_offset d14, -128
    .cfi_offset d15, -112
    .cfi_offset x19, -96
    .cfi_offset x20, -88
    .cfi_offset x21, -80
    .cfi_offset x22, -72
    .cfi_offset x23, -64
    .cfi_offset x24, -56
    .cfi_offset x25, -48
    .cfi_offset x26, -40
    .cfi_offset x27, -32
    .cfi_offset x28, -24
    .cfi_offset x29, -16
    .cfi_offset x30, -8
    blr     x1
    .cfi_restore_state
    ldr     x19, [sp, #16]
    .cfi_restore x19
    ldp     x29, x30, [sp], #32
    .cfi_restore x29
    .cfi_restore x30
    .cfi_def_cfa_offset 0
    CHECK_LR
    ret
    .cfi_endproc
    .size   coil__ctx_visit, . - coil__ctx_visit

    .globl  coil__ctx_sign
    .hidden coil__ctx_sign
    .type   coil__ctx_sign, %function
    .p2align 4
coil__ctx_sign:
    .cfi_startproc
    hint    #34                     /* bti c */
#if FEATURE_PAC
    mov     x17, x0
    mov     x16, x1
    hint    #8                      /* pacia1716 */
    mov     x0, x17
#endif
    ret
    .cfi_endproc
    .size   coil__ctx_sign, . - coil__ctx_sign

    /* Guarded control stacks are not supported, and leaving that bit out makes the linker leave it out of the whole
     * program. */
#if FEATURE_BTI || FEATURE_PAC
    .section .note.gnu.property, "a", %note
    .p2align 3
    .word   4                       /* Size of the name. */
    .word   16                      /* Size of the descriptor. */
    .word   5                       /* NT_GNU_PROPERTY_TYPE_0 */
    .asciz  "GNU"
    .word   0xc0000000              /* GNU_PROPERTY_AARCH64_FEATURE_1_AND */
    .word   4
    .word   FEATURE_BTI | FEATURE_PAC
    .word   0
#endif

#endif

    .section .note.GNU-stack, "", %progbits
