//! Where in the volume chunks may stand.

use super::error::Reason;

/// What offsets and lengths are multiples of.
pub(super) const SECTOR_BYTES: u64 = platform::block::SECTOR_BYTES as u64;

/// What an encoder keeps to and a decoder demands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The volume's size, if it is known.
    pub volume_bytes: Option<u64>,
    /// Chunks are in ascending order.
    pub ordered: bool,
    /// The end of the last chunk.
    pub end: u64,
}

impl Bounds {
    /// Takes the next DATA or UNMAP chunk.
    pub fn take(&mut self, offset: u64, length: u64) -> Result<(), Reason> {
        let end = offset.checked_add(length).ok_or(Reason::Overflow { offset, length })?;
        if !offset.is_multiple_of(SECTOR_BYTES) || !length.is_multiple_of(SECTOR_BYTES) {
            return Err(Reason::NotSectors { offset, length });
        }
        if let Some(volume_bytes) = self.volume_bytes.filter(|bytes| end > *bytes) {
            return Err(Reason::BeyondVolume { offset, length, volume_bytes });
        }
        if self.ordered && offset < self.end {
            return Err(Reason::OutOfOrder { offset, least: self.end });
        }
        self.end = end;
        Ok(())
    }
}
