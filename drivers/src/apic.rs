//! Interrupts, as far as an idle processor needs them.
//!
//! No interrupt carries information here: completions are polled, and an interrupt only ends a `hlt`. So one
//! vector serves all devices, and every pin of every I/O APIC is sent to it, edge-triggered: a device that
//! keeps its line raised cannot storm. The race that edges invite is closed by the order of things: with
//! interrupts off, first acknowledge all devices, then look for completions, and only when there are none
//! `sti; hlt`. Whatever completes after the acknowledgement makes an edge that ends the `hlt`.

use crate::port::Ports;
use core::ptr::NonNull;

/// The vector of the local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x20;
/// The vector of all devices.
pub const DEVICE_VECTOR: u8 = 0x21;
/// The vector of interrupts that vanished before they were delivered; it takes no end-of-interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Where the local APIC is after reset.
pub const LOCAL_APIC_ADDRESS: u64 = 0xfee0_0000;
/// The end-of-interrupt register's offset.
pub const END_OF_INTERRUPT: usize = 0xb0;
const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;
const MASKED: u32 = 1 << 16;
const ENABLED: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

/// The processor's own interrupt controller and timer.
#[derive(Debug)]
pub struct LocalApic(NonNull<u32>);

impl LocalApic {
    /// Turns it on.
    ///
    /// # Safety
    /// `at` is the virtual address of the local APIC's 4 KiB of registers, and the handlers of the three
    /// vectors above are installed.
    pub unsafe fn init(at: NonNull<u32>) -> LocalApic {
        let apic = LocalApic(at);
        apic.write(TASK_PRIORITY, 0);
        apic.write(SPURIOUS, ENABLED | u32::from(SPURIOUS_VECTOR));
        apic.write(TIMER_DIVIDE, DIVIDE_BY_1);
        apic.write(TIMER, MASKED);
        apic
    }

    /// Lets the timer run down from its maximum without an interrupt: for calibration.
    pub fn count_freely(&self) {
        self.write(TIMER, MASKED);
        self.write(TIMER_INITIAL, u32::MAX);
    }

    /// The timer, which counts down.
    pub fn count(&self) -> u32 {
        self.read(TIMER_CURRENT)
    }

    /// One interrupt after `ticks`; 0 stops the timer.
    pub fn arm(&self, ticks: u32) {
        self.write(TIMER, u32::from(TIMER_VECTOR));
        self.write(TIMER_INITIAL, ticks);
    }

    fn id(&self) -> u32 {
        self.read(ID) >> 24
    }

    fn read(&self, register: usize) -> u32 {
        // SAFETY: the constructor's caller vouches for the registers; all offsets are below 4 KiB.
        unsafe { self.0.byte_add(register).read_volatile() }
    }

    fn write(&self, register: usize, value: u32) {
        // SAFETY: as for `read`; the local APIC touches no memory.
        unsafe { self.0.byte_add(register).write_volatile(value) }
    }
}

/// Masks the two 8259 controllers: their lines arrive at the I/O APIC as well.
pub fn mask_legacy_controllers() {
    for base in [0x20, 0xa0] {
        // SAFETY: the 8259 has no access to memory.
        let controller = unsafe { Ports::new(base) };
        controller.write8(1, 0xff);
    }
}

const IO_SELECT: usize = 0x00;
const IO_WINDOW: usize = 0x10;
const IO_VERSION: u32 = 1;
const IO_REDIRECTION: u32 = 0x10;

/// Sends every pin of an I/O APIC to [`DEVICE_VECTOR`] of this processor.
///
/// # Safety
/// `io_apic` is the virtual address of an I/O APIC's registers.
pub unsafe fn route_all_pins(io_apic: NonNull<u32>, to: &LocalApic) {
    let write = |register: u32, value: u32| {
        // SAFETY: the caller vouches for the registers, which touch no memory.
        unsafe {
            io_apic.byte_add(IO_SELECT).write_volatile(register);
            io_apic.byte_add(IO_WINDOW).write_volatile(value);
        }
    };
    // SAFETY: as above.
    let version = unsafe {
        io_apic.byte_add(IO_SELECT).write_volatile(IO_VERSION);
        io_apic.byte_add(IO_WINDOW).read_volatile()
    };
    let pins = ((version >> 16) & 0xff) + 1;
    for pin in 0..pins {
        write(IO_REDIRECTION + 2 * pin + 1, to.id() << 24);
        write(IO_REDIRECTION + 2 * pin, u32::from(DEVICE_VECTOR));
    }
}
