//! Monotonic time from the time-stamp counter.
//!
//! Virtual machines seldom say how fast it runs (and QEMU's TCG answers CPUID leaves beyond its maximum
//! with other data), so it is measured against the PIT.

use crate::apic::LocalApic;
use crate::pit::{self, Pit};
use core::arch::x86_64::_rdtsc;
use embedded_hal::delay::DelayNs;
use platform::time::{Clock, Instant};

const SAMPLES: usize = 6;
/// A sample's length: 1 ms.
const SAMPLE_PIT_TICKS: u16 = (pit::HZ / 1000) as u16;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The time-stamp counter and its rate.
#[derive(Debug, Clone, Copy)]
pub struct TscClock {
    start: u64,
    /// Nanoseconds of a tick, 32 bits of it behind the point.
    nanos_per_tick: u64,
}

/// What [`calibrate`] found.
#[derive(Debug, Clone, Copy)]
pub struct Calibration {
    /// The clock.
    pub clock: TscClock,
    /// Ticks a second of the local APIC's timer.
    pub apic_hz: u64,
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and the kernel runs in ring 0.
    unsafe { _rdtsc() }
}

/// Measures the time-stamp counter and the local APIC's timer against the PIT.
///
/// Each sample reads the counter before the PIT at its start and after it at its end, so that a host that
/// steals time only ever makes it look faster: the slowest sample is the true one.
pub fn calibrate(apic: &LocalApic) -> Calibration {
    let pit = Pit::start();
    apic.count_freely();
    let mut best = (u64::MAX, 1u64, 0u64);
    for _ in 0..SAMPLES {
        let (tsc_start, apic_start, pit_start) = (tsc(), apic.count(), pit.count());
        let mut pit_ticks = 0;
        while pit_ticks < SAMPLE_PIT_TICKS {
            pit_ticks = pit.since(pit_start);
        }
        let tsc_ticks = tsc().wrapping_sub(tsc_start);
        let apic_ticks = u64::from(apic_start.wrapping_sub(apic.count()));
        let pit_ticks = u64::from(pit_ticks);
        if u128::from(tsc_ticks) * u128::from(best.1) < u128::from(best.0) * u128::from(pit_ticks) {
            best = (tsc_ticks, pit_ticks, apic_ticks);
        }
    }
    let (tsc_ticks, pit_ticks, apic_ticks) = best;
    let tsc_hz = (tsc_ticks.max(1) * pit::HZ / pit_ticks).max(1);
    let nanos_per_tick = ((NANOS_PER_SECOND << 32) / u128::from(tsc_hz)) as u64;
    let apic_hz = apic_ticks * pit::HZ / pit_ticks;
    Calibration { clock: TscClock { start: tsc(), nanos_per_tick }, apic_hz }
}

impl TscClock {
    /// Ticks a second.
    pub fn hz(&self) -> u64 {
        ((NANOS_PER_SECOND << 32) / u128::from(self.nanos_per_tick)) as u64
    }
}

impl Clock for TscClock {
    fn now(&self) -> Instant {
        let ticks = tsc().saturating_sub(self.start);
        Instant { nanos: ((u128::from(ticks) * u128::from(self.nanos_per_tick)) >> 32) as u64 }
    }
}

impl DelayNs for TscClock {
    fn delay_ns(&mut self, nanos: u32) {
        let end = self.now().nanos + u64::from(nanos);
        while self.now().nanos < end {
            core::hint::spin_loop();
        }
    }
}
