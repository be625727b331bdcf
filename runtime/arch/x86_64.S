/* The context switch for x86-64, System V ABI. See ctx.h for what the symbols promise.
 *
 * The switch leaves by an indirect jump. A `ret` to another stack's caller is always mispredicted, because
 * the processor's return stack still expects the caller on the old one: 8.8 ns against 2.9. It is entered by a
 * jump too, and so is a context's entry, so that calls and returns stay balanced: see coil__ctx_swap.
 *
 * The unwind tables are exact at each instruction, so that a profiler's sample inside the switch unwinds as
 * well. After the stack pointer has changed they speak of the new stack, whose frame has the same layout. */
#if defined(__x86_64__)

    .text

    .globl  coil__ctx_jump
    .hidden coil__ctx_jump
    .type   coil__ctx_jump, @function
    .p2align 5
coil__ctx_jump:
    .cfi_startproc
    .cfi_def_cfa_offset 0
    .cfi_register %rip, %rdx
    pushq   %rdx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rip, 0
    pushq   %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    pushq   %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    pushq   %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r12, 0
    pushq   %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r13, 0
    pushq   %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    pushq   %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    movq    %rsp, (%rdi)
    movq    %rsi, %rsp
    popq    %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    popq    %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    popq    %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r13
    popq    %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r12
    popq    %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    popq    %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    popq    %rdx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rdx
    notrack jmp *%rdx               /* There is no endbr64 to land on. */
    .cfi_endproc
    .size   coil__ctx_jump, . - coil__ctx_jump

    /* Unwinders look up the instruction before a return address. On a stack that has not run yet that
     * address is coil__ctx_start itself, so the nop belongs to it, or they would find the end of the
     * function above. */
    .hidden coil__ctx_trampoline
    .globl  coil__ctx_trampoline
    .type   coil__ctx_trampoline, @function
    .globl  coil__ctx_start
    .hidden coil__ctx_start
    .p2align 4
coil__ctx_trampoline:
    .cfi_startproc
    .cfi_undefined %rip
    nop
coil__ctx_start:
    endbr64
    movq    %r13, %rdi
    leaq    1f(%rip), %rax
    pushq   %rax                    /* Where entry would return to, which it must not. */
    .cfi_adjust_cfa_offset 8
    jmp     *%r12
1:  ud2
    .cfi_endproc
    .size   coil__ctx_trampoline, . - coil__ctx_trampoline

    /* During the call the tables say that the caller is the context saved at %rbx, by the layout of
     * coil__ctx_jump. */
    .globl  coil__ctx_visit
    .hidden coil__ctx_visit
    .type   coil__ctx_visit, @function
    .p2align 4
coil__ctx_visit:
    .cfi_startproc
    endbr64
    pushq   %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    movq    %rdi, %rbx
    movq    %rdx, %rdi
    .cfi_remember_state
    .cfi_def_cfa %rbx, 56
    .cfi_offset %rip, -8
    .cfi_offset %rbp, -16
    .cfi_offset %rbx, -24
    .cfi_offset %r12, -32
    .cfi_offset %r13, -40
    .cfi_offset %r14, -48
    .cfi_offset %r15, -56
    call    *%rsi
    .cfi_restore_state
    popq    %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    ret
    .cfi_endproc
    .size   coil__ctx_visit, . - coil__ctx_visit

    /* Indirect branch tracking is supported. Shadow stacks are not, and leaving that bit out makes the linker
     * leave it out of the whole program, so that the kernel never turns them on. */
    .section .note.gnu.property, "a", @note
    .p2align 3
    .long   4                       /* Size of the name. */
    .long   16                      /* Size of the descriptor. */
    .long   5                       /* NT_GNU_PROPERTY_TYPE_0 */
    .asciz  "GNU"
    .long   0xc0000002              /* GNU_PROPERTY_X86_FEATURE_1_AND */
    .long   4
    .long   1                       /* GNU_PROPERTY_X86_FEATURE_1_IBT */
    .long   0

#endif

    .section .note.GNU-stack, "", @progbits
