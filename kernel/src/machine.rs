//! The processor as the executor's machine: polls the devices, and sleeps when there is nothing to do.

use crate::paging::{self, Access};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::arch::asm;
use core::ptr::NonNull;
use drivers::acpi::Acpi;
use drivers::apic::{self, LocalApic};
use drivers::clock::{self, TscClock};
use drivers::virtio::Polled;
use platform::task;
use platform::time::{Clock, Duration, Instant};

/// The longest sleep: should an interrupt ever be lost, the devices are looked at all the same.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Where the first I/O APIC is on every PC; for machines without ACPI.
const IO_APIC_ADDRESS: u64 = 0xfec0_0000;

/// The processor and its devices.
pub struct Machine {
    apic: LocalApic,
    apic_hz: u64,
    clock: TscClock,
    devices: Vec<Rc<dyn Polled>>,
}

impl Machine {
    /// Readies interrupts and the clock. Only once.
    pub fn new(acpi: &Acpi) -> Machine {
        apic::mask_legacy_controllers();
        let registers = map_registers(apic::LOCAL_APIC_ADDRESS);
        // SAFETY: the registers are mapped, and `exceptions::init` installed the handlers.
        let apic = unsafe { LocalApic::init(registers) };
        let io_apics = if acpi.io_apics.is_empty() { &[IO_APIC_ADDRESS][..] } else { &acpi.io_apics };
        for address in io_apics {
            // SAFETY: ACPI says (or every PC has it) that an I/O APIC is there.
            unsafe { apic::route_all_pins(map_registers(*address), &apic) };
        }
        let calibration = clock::calibrate(&apic);
        Machine { apic, apic_hz: calibration.apic_hz, clock: calibration.clock, devices: Vec::new() }
    }

    /// The clock.
    pub fn clock(&self) -> TscClock {
        self.clock
    }

    /// Polls `device`, too.
    pub fn add(&mut self, device: Rc<dyn Polled>) {
        self.devices.push(device);
    }

    fn sleep(&self, deadline: Option<Instant>) {
        let most = self.clock.now() + SLEEP_MAX;
        let duration = deadline.map_or(most, |deadline| deadline.min(most)) - self.clock.now();
        let ticks = duration.as_nanos() * u128::from(self.apic_hz) / 1_000_000_000;
        let Ok(ticks) = u32::try_from(ticks) else { return };
        if ticks == 0 {
            return;
        }
        self.apic.arm(ticks);
        // SAFETY: this is the one place where interrupts are on; the handlers change nothing. Interrupts are
        // taken from the instruction after `sti` on, so none is lost between it and `hlt`.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
    }
}

impl task::Machine for Machine {
    fn poll(&self) -> bool {
        self.devices.iter().fold(false, |moved, device| device.poll() | moved)
    }

    fn park(&self, deadline: Option<Instant>) {
        self.devices.iter().for_each(|device| device.listen());
        if !self.poll() {
            self.sleep(deadline);
        }
        self.devices.iter().for_each(|device| device.mute());
    }
}

fn map_registers(address: u64) -> NonNull<u32> {
    // SAFETY: interrupt controllers are not RAM.
    unsafe { paging::map_large(address..address + 4096, Access::Device) };
    NonNull::new(address as usize as *mut u32).expect("interrupt controllers are not at address 0")
}
