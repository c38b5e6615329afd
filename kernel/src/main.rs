//! The bare-metal image: boot, memory, exceptions, and the wiring of drivers to the appliance. No policy.
#![cfg_attr(panic = "abort", no_std)]
#![no_main]

extern crate alloc;

mod budget;
mod console;
mod devices;
mod exceptions;
mod heap;
mod machine;
mod memory;
mod paging;
mod power;
mod pvh;
mod wiring;

use alloc::format;
use alloc::rc::Rc;
use appliance::settings::{OnPanic, Settings};
use core::arch::global_asm;
use devices::Devices;
use drivers::acpi::Acpi;
use drivers::rtc::Rtc;
use machine::Machine;
use platform::time::WallClock;

global_asm!(include_str!("boot.s"), options(att_syntax));

/// Where the boot code arrives: 64-bit mode, the first 4 GiB mapped, interrupts off.
#[unsafe(no_mangle)]
extern "C" fn start(start_info: u32) -> ! {
    exceptions::init();
    console::init();
    // SAFETY: the boot code passes what the hypervisor passed, and nothing was written but the image's own memory.
    let boot = unsafe { pvh::read(start_info) }.unwrap_or_else(|why| panic!("{why}"));
    // SAFETY: called once, with the memory map of this machine.
    let heap_bytes = unsafe { memory::init(&boot.ram) };
    let (settings, warnings) = Settings::parse(&boot.command_line);
    if settings.on_panic == OnPanic::Exit {
        power::exit_on_failure();
    }
    console::log_debug(settings.log_debug);
    let acpi = Acpi::read(&memory::Firmware, boot.rsdp);
    if let Some(soft_off) = acpi.soft_off {
        power::set_soft_off(soft_off);
    }
    let machine = Machine::new(&acpi);
    console::set_clock(machine.clock());
    log::info!("{} MiB of heap, a clock of {} MHz", heap_bytes >> 20, machine.clock().hz() / 1_000_000);
    let rtc = Rc::new(Rtc::find());
    match rtc.unix_seconds() {
        Some(seconds) => log::info!("it is {seconds} s after 1970-01-01 UTC"),
        None => log::info!("the machine does not know the time of day"),
    }
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    let devices = Devices::find(&boot.command_line);
    match wiring::run(machine, devices, rtc, settings, heap_bytes) {
        Ok(()) => power::off(),
        Err(lack) => {
            console::line(&format!("gossamer: cannot start: {lack}"));
            power::fail()
        }
    }
}
