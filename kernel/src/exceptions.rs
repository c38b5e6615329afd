//! Segments, interrupt vectors, and what happens when the processor or the program gives up.
//!
//! Every vector has a stack of its own kind (IST), because compiled code keeps data below the stack pointer (the
//! red zone). Exceptions end the machine: they print what and where, then [`power::fail`]. So their stubs
//! save registers only to show them. Interrupts come in one place, after the `sti` of an idle processor, and
//! their handlers are the few instructions that acknowledge them; they touch no vector register.

use crate::power;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};
use drivers::apic;
use drivers::uart::Uart;

global_asm!(include_str!("exceptions.s"), options(att_syntax));

unsafe extern "C" {
    static exception_stubs: [[u8; STUB_BYTES]; EXCEPTIONS];
    static interrupt_stub: u8;
    static spurious_stub: u8;
}

const EXCEPTIONS: usize = 32;
const STUB_BYTES: usize = 16;
const CODE_SELECTOR: u16 = 8;
const TASK_SELECTOR: u16 = 16;
const STACK_BYTES: usize = 16 << 10;

/// Which of the stacks a vector runs on; 1-based, as the processor counts them.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Stack {
    Exception = 1,
    NonMaskable,
    DoubleFault,
    MachineCheck,
    Interrupt,
}
const STACKS: usize = 5;

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

const ABSENT: Gate =
    Gate { offset_low: 0, selector: 0, stack: 0, kind: 0, offset_middle: 0, offset_high: 0, reserved: 0 };

impl Gate {
    fn new(handler: *const u8, stack: Stack) -> Gate {
        let offset = handler as u64;
        Gate {
            offset_low: offset as u16,
            selector: CODE_SELECTOR,
            stack: stack as u8,
            kind: 0x8e, // present, interrupt gate: interrupts are off in the handler
            offset_middle: (offset >> 16) as u16,
            offset_high: (offset >> 32) as u32,
            reserved: 0,
        }
    }
}

#[repr(C, packed(4))]
struct TaskState {
    reserved_0: u32,
    privilege_stacks: [u64; 3],
    reserved_1: u64,
    interrupt_stacks: [u64; 7],
    reserved_2: u64,
    reserved_3: u16,
    io_map_base: u16,
}

#[repr(C, align(16))]
struct Tables {
    stacks: [[u8; STACK_BYTES]; STACKS],
    gates: [Gate; 256],
    task: TaskState,
    segments: [u64; 4],
}

struct Static(UnsafeCell<Tables>);

// SAFETY: written once, in `init`, before anything can interrupt; afterwards only the processor reads it.
unsafe impl Sync for Static {}

static TABLES: Static = Static(UnsafeCell::new(Tables {
    stacks: [[0; STACK_BYTES]; STACKS],
    gates: [ABSENT; 256],
    task: TaskState {
        reserved_0: 0,
        privilege_stacks: [0; 3],
        reserved_1: 0,
        interrupt_stacks: [0; 7],
        reserved_2: 0,
        reserved_3: 0,
        io_map_base: 0,
    },
    segments: [0; 4],
}));

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Installs segments and vectors. The first thing that the kernel does.
pub fn init() {
    // SAFETY: called once, with interrupts off.
    let tables = unsafe { &mut *TABLES.0.get() };
    for (n, stack) in tables.stacks.iter().enumerate() {
        tables.task.interrupt_stacks[n] = stack.as_ptr_range().end as u64;
    }
    tables.task.io_map_base = size_of::<TaskState>() as u16; // there is none
    // SAFETY: the symbols are those of exceptions.s.
    let (stubs, interrupt, spurious) =
        unsafe { (&exception_stubs, &raw const interrupt_stub, &raw const spurious_stub) };
    for (vector, stub) in stubs.iter().enumerate() {
        let stack = match vector {
            2 => Stack::NonMaskable,
            8 => Stack::DoubleFault,
            18 => Stack::MachineCheck,
            _ => Stack::Exception,
        };
        tables.gates[vector] = Gate::new(stub.as_ptr(), stack);
    }
    for vector in [apic::TIMER_VECTOR, apic::DEVICE_VECTOR] {
        tables.gates[usize::from(vector)] = Gate::new(interrupt, Stack::Interrupt);
    }
    tables.gates[usize::from(apic::SPURIOUS_VECTOR)] = Gate::new(spurious, Stack::Interrupt);
    let task = &raw const tables.task as u64;
    tables.segments = [
        0,
        0x0020_9b00_0000_0000, // 64-bit code
        0x0000_8900_0000_0000
            | (size_of::<TaskState>() as u64 - 1)
            | (task & 0xff_ffff) << 16
            | (task >> 24 & 0xff) << 56,
        task >> 32,
    ];
    let segments =
        TablePointer { limit: size_of_val(&tables.segments) as u16 - 1, base: tables.segments.as_ptr() as u64 };
    let gates = TablePointer { limit: size_of_val(&tables.gates) as u16 - 1, base: tables.gates.as_ptr() as u64 };
    // SAFETY: the tables are complete and live for ever; the code selector is that of the boot code.
    unsafe {
        asm!("lgdt [{}]", "ltr {:x}", "lidt [{}]", in(reg) &segments, in(reg) TASK_SELECTOR, in(reg) &gates, options(nostack));
    }
}

/// The registers at an exception, as exceptions.s pushes them.
#[repr(C)]
#[derive(Debug)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Set when the machine began to fail: a second failure says nothing more.
static FAILING: AtomicBool = AtomicBool::new(false);

/// A serial console for the last words; `None` if they are being spoken already.
fn last_words() -> Option<Uart> {
    (!FAILING.swap(true, Ordering::Relaxed)).then_some(Uart::COM1)
}

#[unsafe(no_mangle)]
extern "C" fn exception(frame: &Frame) -> ! {
    if let Some(mut console) = last_words() {
        let cr2: u64;
        // SAFETY: reading CR2 changes nothing.
        unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
        // Formatting to a UART cannot fail, and nobody would be there to hear of it.
        let _ = write!(
            console,
            "\ngossamer: exception {} ({}) rip={:#x} error={:#x} cr2={cr2:#x} rsp={:#x} rflags={:#x}\n\
             rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} rbp={:#x}\n\
             r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} r13={:#x} r14={:#x} r15={:#x}\n",
            frame.vector,
            name(frame.vector),
            frame.rip,
            frame.error,
            frame.rsp,
            frame.rflags,
            frame.rax,
            frame.rbx,
            frame.rcx,
            frame.rdx,
            frame.rsi,
            frame.rdi,
            frame.rbp,
            frame.r8,
            frame.r9,
            frame.r10,
            frame.r11,
            frame.r12,
            frame.r13,
            frame.r14,
            frame.r15,
        );
    }
    power::fail()
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 | 19 => "floating point",
        18 => "machine check",
        _ => "see the processor's manual",
    }
}

#[cfg(panic = "abort")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    if let Some(mut console) = last_words() {
        // As above.
        let _ = match info.location() {
            Some(place) => writeln!(console, "\ngossamer: panic at {place}: {}", info.message()),
            None => writeln!(console, "\ngossamer: panic: {}", info.message()),
        };
    }
    power::fail()
}

/// The prebuilt `alloc` has landing pads that name this. Nothing unwinds, so nothing arrives here.
#[cfg(panic = "abort")]
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    power::fail()
}

/// As above.
#[cfg(panic = "abort")]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    power::fail()
}
