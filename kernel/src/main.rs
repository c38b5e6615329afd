//! The bare-metal image: boot, memory, exceptions, and the wiring of drivers to the appliance. No policy.
#![cfg_attr(panic = "abort", no_std)]
#![no_main]

extern crate alloc;

mod console;
mod exceptions;
mod heap;
mod memory;
mod paging;
mod power;
mod pvh;

use core::arch::global_asm;

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
    log::info!("heap {} MiB, {}", heap_bytes >> 20, boot.command_line);
    for word in boot.command_line.split_ascii_whitespace() {
        if word == "on_panic=exit" {
            power::exit_on_failure(true)
        }
    }
    power::off()
}
