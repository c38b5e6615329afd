//! The battery-backed clock of the PC (MC146818), for the time of day.

use crate::port::Ports;
use platform::calendar::days_since_1970;
use platform::time::WallClock;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const CENTURY: u8 = 0x32;
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const PM: u8 = 1 << 7;

/// Reads until two in a row agree, but not for ever.
const ATTEMPTS: usize = 64;

/// Time of day. The clock is read whenever somebody asks: the time-stamp counter is measured too shortly to tell the time of
/// day for long, and stands still while a virtual machine is paused.
pub struct Rtc {
    /// There is such a clock: to look for it takes long.
    present: bool,
}

impl Rtc {
    /// Looks for the clock of the machine.
    pub fn find() -> Rtc {
        Rtc { present: now().is_some() }
    }
}

impl WallClock for Rtc {
    fn unix_seconds(&self) -> Option<u64> {
        if self.present { now() } else { None }
    }
}

fn now() -> Option<u64> {
    read()?.unix_seconds()
}

/// The registers, as the clock keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Registers {
    /// Seconds, minutes, hours, day, month, year, century.
    fields: [u8; 7],
    status_b: u8,
}

fn read() -> Option<Registers> {
    // SAFETY: the clock has no access to memory.
    let cmos = unsafe { Ports::new(0x70) };
    let register = |index: u8| {
        cmos.write8(0, index);
        cmos.read8(1)
    };
    let snapshot = || Registers {
        fields: [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY].map(register),
        status_b: register(STATUS_B),
    };
    for _ in 0..ATTEMPTS {
        let (first, second) = (snapshot(), snapshot());
        if register(STATUS_A) & UPDATE_IN_PROGRESS == 0 && first == second {
            return Some(first);
        }
    }
    None
}

impl Registers {
    /// `None` if the registers hold no date: there is no such clock in the machine.
    fn unix_seconds(self) -> Option<u64> {
        let [seconds, minutes, hours, day, month, year, century] = self.fields;
        let number = |value: u8| match self.status_b & BINARY {
            0 => u64::from(value >> 4) * 10 + u64::from(value & 0xf),
            _ => u64::from(value),
        };
        let hours = match self.status_b & HOURS_24 {
            0 => number(hours & !PM) % 12 + if hours & PM != 0 { 12 } else { 0 },
            _ => number(hours),
        };
        let century = Some(number(century)).filter(|c| (19..=21).contains(c)).unwrap_or(20);
        let year = century * 100 + number(year);
        let (month, day, minutes, seconds) = (number(month), number(day), number(minutes), number(seconds));
        let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hours < 24 && minutes < 60 && seconds < 61;
        let days = days_since_1970(year, month, day)?;
        valid.then_some(days * 86_400 + hours * 3_600 + minutes * 60 + seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(fields: [u8; 7], status_b: u8) -> Option<u64> {
        Registers { fields, status_b }.unix_seconds()
    }

    #[test]
    fn registers_become_unix_time() {
        // 2026-11-22 10:28:59 UTC.
        assert_eq!(unix([0x59, 0x28, 0x10, 0x22, 0x11, 0x26, 0x20], HOURS_24), Some(1_795_343_339));
        assert_eq!(unix([59, 28, 10, 22, 11, 26, 20], HOURS_24 | BINARY), Some(1_795_343_339));
        // A leap day, 12-hour clock: 2024-02-29 12:00 noon and midnight.
        assert_eq!(unix([0, 0, 0x12 | PM, 0x29, 0x02, 0x24, 0x20], 0), Some(1_709_208_000));
        assert_eq!(unix([0, 0, 0x12, 0x29, 0x02, 0x24, 0x20], 0), Some(1_709_164_800));
        assert_eq!(unix([0, 0, 0, 1, 1, 0x70, 0x19], HOURS_24), Some(0));
    }

    #[test]
    fn an_absent_clock_has_no_time() {
        assert_eq!(unix([0xff; 7], 0xff), None);
        assert_eq!(unix([0; 7], 0), None);
    }
}
