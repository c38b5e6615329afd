//! The language of histories: what both sides carry out, and what they answer.

use std::fmt;

use platform::block::SECTOR_BYTES;
use thinp::Features;
use thinp::control::Mode;

/// One operation on a pool or one of its thin devices, the same for both sides. Displays as a line of the script that
/// `guest/replay.c` understands. Devices are thin ids; sizes and places are sectors where nothing else is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Opens the pool on its disks.
    OpenPool(PoolArguments),
    /// Closes the pool.
    ClosePool,
    /// The text of a `dmsetup message`.
    Message(String),
    /// Activates a device of this size, with the first `origin` sectors of the origins' disk as its external origin.
    OpenThin { id: u64, sectors: u64, origin: Option<u64> },
    /// Deactivates a device.
    CloseThin(u64),
    /// Gives an active device another size.
    ResizeThin { id: u64, sectors: u64 },
    /// Writes [`pattern`].
    Write { id: u64, at: Extent, seed: u64, kind: WriteKind },
    /// Waits for the write that was queued.
    JoinQueued,
    /// Waits until writes that wait for space have failed.
    WaitForTimeout,
    /// Reads; the answer is the [`digest`].
    Read { id: u64, at: Extent },
    /// Discards.
    Discard { id: u64, at: Extent },
    /// Flushes a device.
    Flush(u64),
    /// The pool's status line.
    Status,
    /// A device's status line.
    ThinStatus(u64),
    /// Gives the pool another number of data blocks.
    GrowData { blocks: u64 },
    /// Enlarges the metadata disk.
    GrowMetadata { sectors: u64 },
}

/// Sectors of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
}

/// How a write is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    /// And waited for.
    Plain,
    /// With FUA and a flush behind it.
    Durable,
    /// It waits for data space: the answer is "queued".
    Queued,
}

/// The arguments of a pool's table line that a history chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolArguments {
    /// The feature arguments.
    pub features: Features,
    /// Low water mark in data blocks.
    pub low_water_blocks: u64,
    /// After so many seconds writes that wait for space fail.
    pub no_space_timeout_seconds: u64,
}

impl fmt::Display for PoolArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = &self.features;
        let names = [
            (features.skip_block_zeroing, "skip_block_zeroing"),
            (features.ignore_discard, "ignore_discard"),
            (features.no_discard_passdown, "no_discard_passdown"),
            (features.read_only, "read_only"),
            (features.error_if_no_space, "error_if_no_space"),
        ];
        let set: Vec<_> = names.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        write!(f, "{} {} {}", self.no_space_timeout_seconds, self.low_water_blocks, set.len())?;
        set.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::OpenPool(arguments) => write!(f, "P {arguments}"),
            Op::ClosePool => f.write_str("X"),
            Op::Message(text) => write!(f, "M {text}"),
            Op::OpenThin { id, sectors, origin } => write!(f, "O {id} {sectors} {}", origin.unwrap_or(0)),
            Op::CloseThin(id) => write!(f, "C {id}"),
            Op::ResizeThin { id, sectors } => write!(f, "Z {id} {sectors}"),
            Op::Write { id, at, seed, kind } => {
                let letter = match kind {
                    WriteKind::Plain => 'w',
                    WriteKind::Durable => 'F',
                    WriteKind::Queued => 'q',
                };
                write!(f, "{letter} {id} {} {} {seed}", at.sector, at.sectors)
            }
            Op::JoinQueued => f.write_str("j"),
            Op::WaitForTimeout => f.write_str("T"),
            Op::Read { id, at } => write!(f, "r {id} {} {}", at.sector, at.sectors),
            Op::Discard { id, at } => write!(f, "d {id} {} {}", at.sector, at.sectors),
            Op::Flush(id) => write!(f, "f {id}"),
            Op::Status => f.write_str("s"),
            Op::ThinStatus(id) => write!(f, "t {id}"),
            Op::GrowData { blocks } => write!(f, "g {blocks}"),
            Op::GrowMetadata { sectors } => write!(f, "G {sectors}"),
        }
    }
}

/// An operation and what it was answered with: "ok", "E" and Linux's error number, or what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The operation.
    pub op: Op,
    /// The mode of our pool before it.
    pub mode: Mode,
    /// Our answer.
    pub answer: String,
}

/// What a write with this seed puts into these sectors: it tells each sector of each write.
pub fn pattern(at: Extent, seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(at.sectors as usize * SECTOR_BYTES);
    for sector in at.sector..at.sector + at.sectors {
        let start =
            seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ sector.wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        let words = (0..SECTOR_BYTES as u64 / 8).map(|i| start.wrapping_add(i.wrapping_mul(0x1656_67B1_9E37_79F9)));
        words.for_each(|word| out.extend(word.to_le_bytes()));
    }
    out
}

/// What a read is answered with.
pub fn digest(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks();
    let mix = |hash: u64, word: &[u8; 8]| {
        (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    };
    words.iter().fold(0, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_lines_of_the_script() {
        let at = Extent { sector: 7, sectors: 9 };
        let line = Op::Write { id: 3, at, seed: 5, kind: WriteKind::Durable }.to_string();
        assert_eq!(line, "F 3 7 9 5");
        let features = Features { read_only: true, error_if_no_space: true, ..Features::default() };
        let arguments = PoolArguments { features, low_water_blocks: 4, no_space_timeout_seconds: 60 };
        assert_eq!(Op::OpenPool(arguments).to_string(), "P 60 4 2 read_only error_if_no_space");
    }

    #[test]
    fn every_sector_of_every_write_is_told_apart() {
        let sector = |sector, seed| digest(&pattern(Extent { sector, sectors: 1 }, seed));
        assert_ne!(sector(0, 1), sector(1, 1));
        assert_ne!(sector(0, 1), sector(0, 2));
        let two = pattern(Extent { sector: 4, sectors: 2 }, 9);
        assert_eq!(digest(&two[SECTOR_BYTES..]), sector(5, 9));
    }
}
