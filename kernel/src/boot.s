# PVH entry (Xen's x86/HVM direct boot ABI): 32-bit protected mode without paging, the physical address of
# hvm_start_info in EBX. Maps the first 4 GiB to themselves, turns on long mode and SSE, and calls `start`.

    .section .note.pvh, "a", @note
    .align 4
    .long 4                     # length of the name
    .long 4                     # length of the descriptor
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .text.entry, "ax"
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    mov %ebx, %edi              # the first argument of `start`

    # PML4[0] -> PDPT, PDPT[0..4] -> the four page directories: present, writable.
    movl $boot_pdpt + 3, boot_pml4
    xor %ecx, %ecx
    mov $boot_pd + 3, %eax
1:  mov %eax, boot_pdpt(, %ecx, 8)
    add $4096, %eax
    inc %ecx
    cmp $4, %ecx
    jne 1b
    # 2048 pages of 2 MiB: present, writable, large.
    xor %ecx, %ecx
    mov $0x83, %eax
1:  mov %eax, boot_pd(, %ecx, 8)
    add $0x200000, %eax
    inc %ecx
    cmp $2048, %ecx
    jne 1b

    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $0xc0000080, %ecx       # EFER
    xor %edx, %edx
    mov $0x900, %eax            # LME, NXE
    wrmsr
    mov $0x80010023, %eax       # PG, WP, NE, MP, PE
    mov %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $1f

    .code64
1:  xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    lea stack_top(%rip), %rsp
    xor %ebp, %ebp
    mov %edi, %edi
    call start
    ud2

    .section .rodata, "a"
    .align 8
boot_gdt:
    .quad 0
    .quad 0x00209b0000000000    # 64-bit code
boot_gdt_pointer:
    .word 15
    .long boot_gdt

    .section .bss.stack, "aw", @nobits
    .align 4096
    .global stack_guard
stack_guard:
    .skip 4096                  # unmapped once the page tables are ours
    .skip 256 << 10
    .global stack_top
stack_top:

    .section .bss.tables, "aw", @nobits
    .align 4096
    .global boot_pml4
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    .text
