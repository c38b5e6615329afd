# The entry points of exceptions and interrupts.

    .text

# 32 stubs of 16 bytes: push a zero where the processor pushed no error code, push the vector.
    .global exception_stubs
    .balign 16
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
    push $0
    .endif
    push $vector
    jmp exception_common
    .set vector, vector + 1
    .endr
    .balign 16

exception_common:
    push %rax
    push %rbx
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %rbp
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    and $-16, %rsp
    call exception
    ud2

# The timer's and the devices' interrupts end a `hlt`; that is all they are for.
    .global interrupt_stub
    .balign 16
interrupt_stub:
    push %rax
    mov $0xfee000b0, %eax       # the local APIC's end-of-interrupt register
    movl $0, (%rax)
    pop %rax
    iretq

    .global spurious_stub
    .balign 16
spurious_stub:
    iretq
