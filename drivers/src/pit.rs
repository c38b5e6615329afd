//! The programmable interval timer, the one clock of known frequency that `q35` and `microvm` share.

use crate::port::Ports;

/// Ticks a second of every PIT since 1981.
pub const HZ: u64 = 1_193_182;

const CHANNEL_0: u16 = 0;
const COMMAND: u16 = 3;
/// Channel 0, low then high byte, mode 2 (counts down from the reload value, over and over).
const RATE_GENERATOR: u8 = 0x34;
/// Channel 0, low then high byte, mode 0: without a count it stands still and never interrupts.
const STOP: u8 = 0x30;
const LATCH_CHANNEL_0: u8 = 0x00;

// SAFETY: the PIT has no access to memory.
const PIT: Ports = unsafe { Ports::new(0x40) };

/// Channel 0 counting freely; stopped on drop.
pub struct Pit(());

impl Pit {
    /// Lets channel 0 count down from 65,536.
    pub fn start() -> Pit {
        PIT.write8(COMMAND, RATE_GENERATOR);
        PIT.write8(CHANNEL_0, 0);
        PIT.write8(CHANNEL_0, 0);
        Pit(())
    }

    /// Ticks since `earlier`, for intervals below 54 ms.
    pub fn since(&self, earlier: u16) -> u16 {
        earlier.wrapping_sub(self.count())
    }

    /// The counter, which runs downwards.
    pub fn count(&self) -> u16 {
        PIT.write8(COMMAND, LATCH_CHANNEL_0);
        let low = PIT.read8(CHANNEL_0);
        u16::from_le_bytes([low, PIT.read8(CHANNEL_0)])
    }
}

impl Drop for Pit {
    fn drop(&mut self) {
        PIT.write8(COMMAND, STOP);
    }
}
