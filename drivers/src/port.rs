//! x86 I/O ports.

use core::arch::asm;

/// A range of I/O ports that belongs to one device.
#[derive(Debug, Clone, Copy)]
pub struct Ports(u16);

impl Ports {
    /// The ports from `base` on.
    ///
    /// # Safety
    /// No access to these ports may change memory that Rust code owns (as a DMA controller would).
    pub const unsafe fn new(base: u16) -> Ports {
        Ports(base)
    }

    /// Reads a byte.
    pub fn read8(self, offset: u16) -> u8 {
        let value: u8;
        // SAFETY: the constructor's caller vouches that the port touches no memory.
        unsafe {
            asm!("in al, dx", out("al") value, in("dx") self.0 + offset, options(nomem, nostack, preserves_flags))
        };
        value
    }

    /// Reads 16 bits.
    pub fn read16(self, offset: u16) -> u16 {
        let value: u16;
        // SAFETY: as for `read8`.
        unsafe {
            asm!("in ax, dx", out("ax") value, in("dx") self.0 + offset, options(nomem, nostack, preserves_flags))
        };
        value
    }

    /// Reads 32 bits.
    pub fn read32(self, offset: u16) -> u32 {
        let value: u32;
        // SAFETY: as for `read8`.
        unsafe {
            asm!("in eax, dx", out("eax") value, in("dx") self.0 + offset, options(nomem, nostack, preserves_flags))
        };
        value
    }

    /// Writes a byte.
    pub fn write8(self, offset: u16, value: u8) {
        // SAFETY: as for `read8`.
        unsafe {
            asm!("out dx, al", in("al") value, in("dx") self.0 + offset, options(nomem, nostack, preserves_flags))
        };
    }

    /// Writes 16 bits.
    pub fn write16(self, offset: u16, value: u16) {
        // SAFETY: as for `read8`.
        unsafe {
            asm!("out dx, ax", in("ax") value, in("dx") self.0 + offset, options(nomem, nostack, preserves_flags))
        };
    }

    /// Writes 32 bits.
    pub fn write32(self, offset: u16, value: u32) {
        // SAFETY: as for `read8`.
        unsafe {
            asm!("out dx, eax", in("eax") value, in("dx") self.0 + offset, options(nomem, nostack, preserves_flags))
        };
    }
}
