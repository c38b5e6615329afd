//! Ways out: power off, reset, and stopping with a failing exit code.

use crate::console;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
use drivers::acpi::SoftOff;
use drivers::port::Ports;
use embedded_hal::delay::DelayNs;
use spin::Once;

/// QEMU's `isa-debug-exit`: writing `v` ends QEMU with status `2 v + 1`. Nothing happens where it is absent.
// SAFETY: none of these ports gives access to memory.
const DEBUG_EXIT: Ports = unsafe { Ports::new(0xf4) };
const EXIT_OFF: u32 = 0x10;
const EXIT_FAILED: u32 = 0x11;
// SAFETY: as above.
const RESET_CONTROL: Ports = unsafe { Ports::new(0xcf9) };
// SAFETY: as above.
const KEYBOARD_CONTROLLER: Ports = unsafe { Ports::new(0x64) };

static EXIT_ON_FAILURE: AtomicBool = AtomicBool::new(false);
static SOFT_OFF: Once<SoftOff> = Once::new();

/// [`fail`] is to exit with a failing code where it would reset.
pub fn exit_on_failure() {
    EXIT_ON_FAILURE.store(true, Ordering::Relaxed);
}

/// Remembers how the machine is switched off.
pub fn set_soft_off(soft_off: SoftOff) {
    SOFT_OFF.call_once(|| soft_off);
}

/// Switches the machine off.
pub fn off() -> ! {
    const SLEEP_ENABLE: u16 = 1 << 13;
    // QEMU's sleep types of S5: 0 with the PIIX/ICH9 register, 5 with the hardware-reduced one.
    const SLEEP_CONTROL_S5: u8 = 1 << 5 | 5 << 2;
    DEBUG_EXIT.write32(0, EXIT_OFF);
    match SOFT_OFF.get() {
        // SAFETY: the FADT says that this is the power management port, which gives no access to memory.
        Some(SoftOff::Pm1a { port }) => unsafe { Ports::new(*port) }.write16(0, SLEEP_ENABLE),
        // SAFETY: the FADT says that the register is there.
        Some(SoftOff::SleepControl { address }) => unsafe { (*address as *mut u8).write_volatile(SLEEP_CONTROL_S5) },
        None => {}
    }
    give_time();
    console::line("gossamer: this machine cannot be switched off: it stands still");
    halt()
}

/// What was asked of the machine happens beside us, and soon.
fn give_time() {
    if let Some(mut clock) = console::clock() {
        clock.delay_ms(200);
    }
}

/// Resets, or exits with a failing code if that was set.
pub fn fail() -> ! {
    if EXIT_ON_FAILURE.load(Ordering::Relaxed) {
        DEBUG_EXIT.write32(0, EXIT_FAILED);
    }
    RESET_CONTROL.write8(0, 0x06);
    KEYBOARD_CONTROLLER.write8(0, 0xfe);
    give_time();
    // Not every machine has these two: an exception without vectors resets all of them.
    let no_vectors = [0u16; 5];
    // SAFETY: nothing is to run afterwards.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &no_vectors, options(nostack)) };
    halt()
}

/// For machines that neither switch off nor reset.
fn halt() -> ! {
    loop {
        // SAFETY: interrupts stay off; the processor sleeps.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
