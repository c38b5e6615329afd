# The memory functions that compiled Rust calls, in 16-byte moves: under QEMU's TCG they run two to three times
# as fast as `rep movsb`. The C calling convention; they use no stack.

    .text

# copy(to, from, len): the ranges do not overlap, or `to` lies below `from`.
    .global gossamer_copy
    .balign 16
gossamer_copy:
    mov %rdi, %rax
    cmp $64, %rdx
    jb 2f
1:  movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups 32(%rsi), %xmm2
    movups 48(%rsi), %xmm3
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    movups %xmm2, 32(%rdi)
    movups %xmm3, 48(%rdi)
    add $64, %rsi
    add $64, %rdi
    sub $64, %rdx
    cmp $64, %rdx
    jae 1b
2:  test $32, %dl
    jz 3f
    movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    add $32, %rsi
    add $32, %rdi
3:  test $16, %dl
    jz 4f
    movups (%rsi), %xmm0
    movups %xmm0, (%rdi)
    add $16, %rsi
    add $16, %rdi
4:  test $8, %dl
    jz 5f
    mov (%rsi), %rcx
    mov %rcx, (%rdi)
    add $8, %rsi
    add $8, %rdi
5:  test $4, %dl
    jz 6f
    mov (%rsi), %ecx
    mov %ecx, (%rdi)
    add $4, %rsi
    add $4, %rdi
6:  test $2, %dl
    jz 7f
    movzwl (%rsi), %ecx
    mov %cx, (%rdi)
    add $2, %rsi
    add $2, %rdi
7:  test $1, %dl
    jz 8f
    movzbl (%rsi), %ecx
    mov %cl, (%rdi)
8:  ret

# move(to, from, len): any ranges.
    .global gossamer_move
    .balign 16
gossamer_move:
    mov %rdi, %rcx
    sub %rsi, %rcx
    cmp %rdx, %rcx
    jae gossamer_copy           # `to` lies below `from` (the difference wrapped) or beyond its end
    mov %rdi, %rax
    add %rdx, %rsi
    add %rdx, %rdi
    cmp $64, %rdx
    jb 2f
1:  movups -16(%rsi), %xmm0
    movups -32(%rsi), %xmm1
    movups -48(%rsi), %xmm2
    movups -64(%rsi), %xmm3
    movups %xmm0, -16(%rdi)
    movups %xmm1, -32(%rdi)
    movups %xmm2, -48(%rdi)
    movups %xmm3, -64(%rdi)
    sub $64, %rsi
    sub $64, %rdi
    sub $64, %rdx
    cmp $64, %rdx
    jae 1b
2:  cmp $8, %rdx
    jb 4f
3:  mov -8(%rsi), %rcx
    mov %rcx, -8(%rdi)
    sub $8, %rsi
    sub $8, %rdi
    sub $8, %rdx
    cmp $8, %rdx
    jae 3b
4:  test %rdx, %rdx
    jz 6f
5:  movzbl -1(%rsi), %ecx
    mov %cl, -1(%rdi)
    dec %rsi
    dec %rdi
    dec %rdx
    jnz 5b
6:  ret

# set(to, byte, len)
    .global gossamer_set
    .balign 16
gossamer_set:
    mov %rdi, %rax
    movzbl %sil, %ecx
    movabs $0x0101010101010101, %r8
    imul %r8, %rcx
    movq %rcx, %xmm0
    punpcklqdq %xmm0, %xmm0
    cmp $64, %rdx
    jb 2f
1:  movups %xmm0, (%rdi)
    movups %xmm0, 16(%rdi)
    movups %xmm0, 32(%rdi)
    movups %xmm0, 48(%rdi)
    add $64, %rdi
    sub $64, %rdx
    cmp $64, %rdx
    jae 1b
2:  cmp $8, %rdx
    jb 4f
3:  mov %rcx, (%rdi)
    add $8, %rdi
    sub $8, %rdx
    cmp $8, %rdx
    jae 3b
4:  test %rdx, %rdx
    jz 6f
5:  mov %cl, (%rdi)
    inc %rdi
    dec %rdx
    jnz 5b
6:  ret

# compare(a, b, len): negative, zero or positive as the first different byte of `a` is below or above that of `b`.
    .global gossamer_compare
    .balign 16
gossamer_compare:
    cmp $8, %rdx
    jb 2f
1:  mov (%rdi), %rax
    mov (%rsi), %rcx
    cmp %rcx, %rax
    jne 5f
    add $8, %rdi
    add $8, %rsi
    sub $8, %rdx
    cmp $8, %rdx
    jae 1b
2:  test %rdx, %rdx
    jz 4f
3:  movzbl (%rdi), %eax
    movzbl (%rsi), %ecx
    sub %ecx, %eax
    jne 6f
    inc %rdi
    inc %rsi
    dec %rdx
    jnz 3b
4:  xor %eax, %eax
    ret
5:  bswap %rax                  # the first byte decides: make it the highest
    bswap %rcx
    cmp %rcx, %rax
    sbb %eax, %eax
    or $1, %eax
6:  ret
