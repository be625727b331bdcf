/* The context switch for 64-bit ARM, AAPCS64. See ctx.h for what the symbols promise.
 *
 * x18 is the platform's register (a shadow call stack, for one): it is neither saved nor used here.
 *
 * Without branch target identification the switch leaves by an indirect jump, because a `ret` to another
 * stack's caller is always mispredicted. With it only a `ret` may go to the instruction behind a call, where
 * no landing pad is.
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
#define LEAVE ret
#define FEATURE_BTI 1
#else
#define LEAVE br x30
#define FEATURE_BTI 0
#endif

    .text

    .globl  coil__ctx_swap
    .hidden coil__ctx_swap
    .type   coil__ctx_swap, %function
    .p2align 5
coil__ctx_swap:
    .cfi_startproc
    SIGN_LR
    sub     sp, sp, #160
    .cfi_def_cfa_offset 160
    stp     d8, d9, [sp, #0]
    .cfi_rel_offset d8, 0
    .cfi_rel_offset d9, 8
    stp     d10, d11, [sp, #16]
    .cfi_rel_offset d10, 16
    .cfi_rel_offset d11, 24
    stp     d12, d13, [sp, #32]
    .cfi_rel_offset d12, 32
    .cfi_rel_offset d13, 40
    stp     d14, d15, [sp, #48]
    .cfi_rel_offset d14, 48
    .cfi_rel_offset d15, 56
    stp     x19, x20, [sp, #64]
    .cfi_rel_offset x19, 64
    .cfi_rel_offset x20, 72
    stp     x21, x22, [sp, #80]
    .cfi_rel_offset x21, 80
    .cfi_rel_offset x22, 88
    stp     x23, x24, [sp, #96]
    .cfi_rel_offset x23, 96
    .cfi_rel_offset x24, 104
    stp     x25, x26, [sp, #112]
    .cfi_rel_offset x25, 112
    .cfi_rel_offset x26, 120
    stp     x27, x28, [sp, #128]
    .cfi_rel_offset x27, 128
    .cfi_rel_offset x28, 136
    stp     x29, x30, [sp, #144]
    .cfi_rel_offset x29, 144
    .cfi_rel_offset x30, 152
    mov     x9, sp
    str     x9, [x0]
    mov     sp, x1
    ldp     d8, d9, [sp, #0]
    .cfi_restore d8
    .cfi_restore d9
    ldp     d10, d11, [sp, #16]
    .cfi_restore d10
    .cfi_restore d11
    ldp     d12, d13, [sp, #32]
    .cfi_restore d12
    .cfi_restore d13
    ldp     d14, d15, [sp, #48]
    .cfi_restore d14
    .cfi_restore d15
    ldp     x19, x20, [sp, #64]
    .cfi_restore x19
    .cfi_restore x20
    ldp     x21, x22, [sp, #80]
    .cfi_restore x21
    .cfi_restore x22
    ldp     x23, x24, [sp, #96]
    .cfi_restore x23
    .cfi_restore x24
    ldp     x25, x26, [sp, #112]
    .cfi_restore x25
    .cfi_restore x26
    ldp     x27, x28, [sp, #128]
    .cfi_restore x27
    .cfi_restore x28
    ldp     x29, x30, [sp, #144]
    .cfi_restore x29
    .cfi_restore x30
    add     sp, sp, #160
    .cfi_def_cfa_offset 0
    CHECK_LR
    LEAVE
    .cfi_endproc
    .size   coil__ctx_swap, . - coil__ctx_swap

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
    blr     x19
    brk     #1
    .cfi_endproc
    .size   coil__ctx_trampoline, . - coil__ctx_trampoline

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
