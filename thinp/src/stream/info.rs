//! What a stream of ours says of itself.
//!
//! | off | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | version of this table, 1 |
//! | 2 | 2 | flags: 1 there is a base, 2 it goes on with a transfer that broke off |
//! | 4 | 4 | bytes of a block of the sender's pool |
//! | 8 | 8 | bytes of the volume |
//! | 16 | 16 | identity of the snapshot that is sent |
//! | 32 | 16 | identity of its base, or zeroes |
//! | 48 | 8 | offset in the volume below which all was sent before, or 0 |
//! | 56 | 32 | the digest at that place, or zeroes |
//! | 88 | 2 | bytes of the name that follows |
//! | 90 | | name of the external origin, UTF-8, at most 255 bytes; none: there is no origin |

use super::bounds::SECTOR_BYTES;
use super::error::Reason;
use super::token::Resume;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest name of an external origin.
pub const ORIGIN_BYTES_MAX: usize = 255;

/// Most bytes of the body of an info chunk.
pub(super) const INFO_BYTES_MAX: u64 = (size_of::<Raw>() + ORIGIN_BYTES_MAX) as u64;

const VERSION: u16 = 1;
const HAS_BASE: u16 = 1;
const RESUMES: u16 = 2;

/// Tells one state of a volume from all others, in all pools. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub [u8; 16]);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Identity, NotAnIdentity> {
        let mut bytes = [0; 16];
        super::token::from_hex(text, &mut bytes).ok_or(NotAnIdentity)?;
        Ok(Identity(bytes))
    }
}

/// A text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an identity has 32 hexadecimal digits")]
pub struct NotAnIdentity;

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Size of the volume, in bytes.
    pub volume_bytes: u64,
    /// Size of the blocks of the sender's pool, in bytes: chunks are whole ones, but for the volume's last.
    pub block_bytes: u32,
    /// The snapshot that is sent.
    pub target: Identity,
    /// The snapshot on which it is put; none for a full stream.
    pub base: Option<Identity>,
    /// Name of the external origin, which holds what the volume does not map.
    pub origin: Option<String>,
    /// The stream is the rest of one that broke off.
    pub resume: Option<Resume>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    version: U16,
    flags: U16,
    block_bytes: U32,
    volume_bytes: U64,
    target: [u8; 16],
    base: [u8; 16],
    resume_offset: U64,
    resume_digest: [u8; 32],
    origin_bytes: U16,
}

impl Info {
    pub(super) fn parse(bytes: &[u8]) -> Result<Info, Reason> {
        let short = Reason::InfoMalformed("too few bytes");
        let (version, _) = U16::read_from_prefix(bytes).map_err(|_| short)?;
        if version.get() != VERSION {
            return Err(Reason::InfoVersion(version.get()));
        }
        let (raw, name) = Raw::read_from_prefix(bytes).map_err(|_| short)?;
        let flags = raw.flags.get();
        let name = core::str::from_utf8(name).map_err(|_| Reason::InfoMalformed("a name that is no UTF-8"))?;
        let resume = Resume { offset: raw.resume_offset.get(), digest: raw.resume_digest };
        let info = Info {
            volume_bytes: raw.volume_bytes.get(),
            block_bytes: raw.block_bytes.get(),
            target: Identity(raw.target),
            base: (flags & HAS_BASE != 0).then_some(Identity(raw.base)),
            origin: (!name.is_empty()).then(|| name.to_string()),
            resume: (flags & RESUMES != 0).then_some(resume),
        };
        if info.to_bytes() != bytes {
            return Err(Reason::InfoMalformed("fields that contradict each other"));
        }
        info.check()?;
        Ok(info)
    }

    /// What holds for every info chunk, sent or received.
    pub(super) fn check(&self) -> Result<(), Reason> {
        let (volume_bytes, block_bytes) = (self.volume_bytes, u64::from(self.block_bytes));
        if volume_bytes == 0 || !volume_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Reason::InfoMalformed("a size of the volume that is not in whole sectors"));
        }
        if block_bytes == 0 || !block_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Reason::InfoMalformed("blocks that are not in whole sectors"));
        }
        if self.origin.as_ref().is_some_and(|name| name.is_empty() || name.len() > ORIGIN_BYTES_MAX) {
            return Err(Reason::InfoMalformed("a name that is empty or too long"));
        }
        let from = self.resume.map_or(0, |resume| resume.offset);
        if from > volume_bytes || !from.is_multiple_of(SECTOR_BYTES) {
            return Err(Reason::InfoMalformed("a place to go on from that is not in the volume"));
        }
        Ok(())
    }

    /// The body of the chunk.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let flag = |set, flag| if set { flag } else { 0 };
        let name = self.origin.as_deref().unwrap_or_default();
        let raw = Raw {
            version: VERSION.into(),
            flags: (flag(self.base.is_some(), HAS_BASE) | flag(self.resume.is_some(), RESUMES)).into(),
            block_bytes: self.block_bytes.into(),
            volume_bytes: self.volume_bytes.into(),
            target: self.target.0,
            base: self.base.map_or([0; 16], |base| base.0),
            resume_offset: self.resume.map_or(0, |resume| resume.offset).into(),
            resume_digest: self.resume.map_or([0; 32], |resume| resume.digest),
            origin_bytes: (name.len() as u16).into(),
        };
        [raw.as_bytes(), name.as_bytes()].concat()
    }
}
