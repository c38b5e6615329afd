//! The header of a chunk.

use super::error::Reason;
use alloc::vec::Vec;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header.
pub const HEADER_BYTES: usize = size_of::<Raw>();

/// Body of the end: three counts.
pub(super) const END_BYTES: u64 = 24;
/// Body of a digest.
pub(super) const DIGEST_BYTES: u64 = 32;

/// Optional information: who does not know it skips it. The rest of ours is `gs` and a number.
const OPTIONAL: u32 = 1 << 31;
const INFO: u32 = OPTIONAL | 0x0067_7301;
const DIGEST: u32 = OPTIONAL | 0x0067_7302;

/// The version of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Chunks of data and unmaps, until the bytes end.
    V1_0,
    /// With a beginning and an end, and optional chunks.
    V1_1,
}

impl Version {
    fn magic(self) -> u64 {
        match self {
            Version::V1_0 => 0xCA7F_00D5_DE7E_C7ED,
            Version::V1_1 => 0x24C4_F02A_AE2E_4FA9,
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U64,
    offset: U64,
    length: U64,
    command: U32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Data,
    Unmap,
    Begin,
    End,
    Info,
    Digest,
    /// Not one of ours.
    Optional,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub version: Version,
    pub offset: u64,
    pub length: u64,
    pub command: Command,
}

impl Header {
    /// Of 1.1, what we write.
    pub fn new(command: Command, offset: u64, length: u64) -> Header {
        Header { version: Version::V1_1, offset, length, command }
    }

    pub fn parse(bytes: &[u8]) -> Result<Header, Reason> {
        let raw = Raw::read_from_bytes(bytes).map_err(|_| Reason::Truncated)?;
        let magic = raw.magic.get();
        let version = [Version::V1_0, Version::V1_1].into_iter().find(|version| version.magic() == magic);
        let version = version.ok_or(Reason::BadMagic(magic))?;
        let command = match raw.command.get() {
            0 => Command::Data,
            1 => Command::Unmap,
            2 if version == Version::V1_1 => Command::Begin,
            3 if version == Version::V1_1 => Command::End,
            INFO => Command::Info,
            DIGEST => Command::Digest,
            other if other & OPTIONAL != 0 => Command::Optional,
            other => return Err(Reason::UnknownCommand(other)),
        };
        Ok(Header { version, offset: raw.offset.get(), length: raw.length.get(), command })
    }

    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let command = match self.command {
            Command::Data => 0,
            Command::Unmap => 1,
            Command::Begin => 2,
            Command::End => 3,
            Command::Info => INFO,
            Command::Digest => DIGEST,
            Command::Optional => OPTIONAL,
        };
        let raw = Raw {
            magic: self.version.magic().into(),
            offset: self.offset.into(),
            length: self.length.into(),
            command: command.into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }

    /// Bytes of the stream behind the header that are the chunk's, too. An unmap has none: its length is of the volume.
    pub fn body_bytes(&self) -> u64 {
        match self.command {
            Command::Unmap | Command::Begin => 0,
            _ => self.length,
        }
    }
}
