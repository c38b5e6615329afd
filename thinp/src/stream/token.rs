//! Where a transfer goes on that broke off.

use super::Counts;
use super::digest::{Chain, Digest};
use super::info::{Identity, Info};
use core::fmt;
use core::str::FromStr;
use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A place up to which all is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resume {
    /// Offset in the volume, in bytes; all below was received.
    pub offset: u64,
    /// The digest up to there.
    pub digest: Digest,
}

/// The state of a stream right behind a digest: who wrote the stream can go on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// What is verified.
    pub resume: Resume,
    /// What was counted up to here.
    pub counts: Counts,
}

/// What a receiver hands to the sender so that it goes on. All that a sender needs is in it; as text it has a
/// checksum and means something to this crate only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The snapshot that is sent.
    pub target: Identity,
    /// Its base; none for a full stream.
    pub base: Option<Identity>,
    /// Where to go on.
    pub resume: Resume,
}

/// A text is not a token that was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a resume token as it was given out: ask the receiver for it again")]
pub struct BadToken;

const PREFIX: &str = "gs1";
const CHECK_BYTES: usize = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    target: [u8; 16],
    base: [u8; 16],
    has_base: u8,
    offset: U64,
    digest: Digest,
    check: [u8; CHECK_BYTES],
}

impl Token {
    /// The token of a stream that was described by `info` and verified up to `resume`.
    pub fn new(info: &Info, resume: Resume) -> Token {
        Token { target: info.target, base: info.base, resume }
    }

    /// Whether the stream that `info` describes goes on where this token says.
    pub fn fits(&self, info: &Info) -> bool {
        info.resume.is_some_and(|resume| Token::new(info, resume) == *self)
    }

    fn to_raw(self) -> Raw {
        let mut raw = Raw {
            target: self.target.0,
            base: self.base.map_or([0; 16], |base| base.0),
            has_base: self.base.is_some().into(),
            offset: self.resume.offset.into(),
            digest: self.resume.digest,
            check: [0; CHECK_BYTES],
        };
        let mut chain = Chain::after([0; 32]);
        chain.take(raw.as_bytes());
        if let Some(check) = chain.close().first_chunk() {
            raw.check = *check;
        }
        raw
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.to_raw().as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Token, BadToken> {
        let mut bytes = [0; size_of::<Raw>()];
        text.strip_prefix(PREFIX).and_then(|digits| from_hex(digits, &mut bytes)).ok_or(BadToken)?;
        let raw = Raw::read_from_bytes(&bytes).map_err(|_| BadToken)?;
        let token = Token {
            target: Identity(raw.target),
            base: (raw.has_base != 0).then_some(Identity(raw.base)),
            resume: Resume { offset: raw.offset.get(), digest: raw.digest },
        };
        if token.to_raw().as_bytes() == bytes { Ok(token) } else { Err(BadToken) }
    }
}

/// Reads exactly so many bytes of lower-case hexadecimal digits.
pub(super) fn from_hex(text: &str, out: &mut [u8]) -> Option<()> {
    let pairs = text.as_bytes().chunks(2);
    if text.len() != out.len().checked_mul(2)? {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(pairs) {
        let digit = |digit: &u8| match digit {
            b'0'..=b'9' | b'a'..=b'f' => char::from(*digit).to_digit(16),
            _ => None,
        };
        let [high, low] = pair else { return None };
        *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
    }
    Some(())
}
