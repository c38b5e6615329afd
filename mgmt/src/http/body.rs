//! Takes the framing off a request's body (RFC 9112 sections 6 and 7.1), a piece at a time.

use super::head::Framing;
use core::ops::Range;

/// Most bytes of a chunk's extensions, and of all trailers.
const OVERHEAD_MAX: u16 = 512;
/// Most hexadecimal digits of a chunk's size: 2^60 bytes.
const SIZE_DIGITS_MAX: u8 = 15;

/// The body breaks the rules of its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed: {0}")]
pub(crate) struct Malformed(&'static str);

/// What [`Decoder::decode`] found at the start of its input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Bytes of the body.
    pub data: Range<usize>,
    /// Bytes of input that are done with, `data` included. 0: more input is needed.
    pub consumed: usize,
}

/// Where in the body the next byte of input stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoder {
    /// In a body of known length.
    Length { left: u64 },
    /// In a chunk's size; `digits` of it were read.
    Size { value: u64, digits: u8 },
    /// In a chunk's extensions.
    Extension { size: u64, left: u16 },
    /// Before the line feed that ends a chunk's size.
    SizeEnd { size: u64 },
    /// In a chunk.
    Chunk { left: u64 },
    /// Before the carriage return after a chunk.
    ChunkCr,
    /// Before the line feed after a chunk.
    ChunkLf,
    /// At the start of a trailer line.
    Trailer { left: u16 },
    /// Within a trailer line.
    TrailerLine { left: u16 },
    /// Before the line feed that ends a trailer line.
    TrailerLineEnd { left: u16 },
    /// Before the last line feed.
    End,
    /// Behind the body.
    Done,
    /// The framing was broken; nobody knows where the body ends.
    Broken,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::None | Framing::Length(0) => Decoder::Done,
            Framing::Length(left) => Decoder::Length { left },
            Framing::Chunked => Decoder::Size { value: 0, digits: 0 },
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        *self == Decoder::Done
    }

    /// Takes framing and at most `data_max` bytes of body off the start of `input`.
    ///
    /// # Errors
    /// The framing is broken, now or earlier.
    pub(crate) fn decode(&mut self, input: &[u8], data_max: usize) -> Result<Piece, Malformed> {
        let mut at = 0;
        loop {
            if let Decoder::Length { left } | Decoder::Chunk { left } = *self {
                let rest = input.get(at..).unwrap_or_default();
                let len = rest.len().min(data_max).min(usize::try_from(left).unwrap_or(usize::MAX));
                self.advance(len as u64);
                return Ok(Piece { data: at..at + len, consumed: at + len });
            }
            if self.is_done() {
                return Ok(Piece { data: at..at, consumed: at });
            }
            let Some(byte) = input.get(at) else { return Ok(Piece { data: at..at, consumed: at }) };
            match self.step(*byte) {
                Ok(next) => *self = next,
                Err(error) => {
                    *self = Decoder::Broken;
                    return Err(error);
                }
            }
            at += 1;
        }
    }

    /// Leaves `len` bytes of data behind.
    fn advance(&mut self, len: u64) {
        *self = match *self {
            Decoder::Length { left } if left == len => Decoder::Done,
            Decoder::Length { left } => Decoder::Length { left: left.saturating_sub(len) },
            Decoder::Chunk { left } if left == len => Decoder::ChunkCr,
            Decoder::Chunk { left } => Decoder::Chunk { left: left.saturating_sub(len) },
            other => other,
        };
    }

    /// The state after one byte of framing.
    fn step(self, byte: u8) -> Result<Decoder, Malformed> {
        match (self, byte) {
            (Decoder::Size { value, digits }, _) => Decoder::size_byte(value, digits, byte),
            (Decoder::Extension { size, .. }, b'\r') => Ok(Decoder::SizeEnd { size }),
            (Decoder::Extension { size, left }, _) => Ok(Decoder::Extension { size, left: overhead(left, byte)? }),
            (Decoder::SizeEnd { size: 0 }, b'\n') => Ok(Decoder::Trailer { left: OVERHEAD_MAX }),
            (Decoder::SizeEnd { size }, b'\n') => Ok(Decoder::Chunk { left: size }),
            (Decoder::ChunkCr, b'\r') => Ok(Decoder::ChunkLf),
            (Decoder::ChunkLf, b'\n') => Ok(Decoder::Size { value: 0, digits: 0 }),
            (Decoder::Trailer { .. }, b'\r') => Ok(Decoder::End),
            (Decoder::TrailerLine { left }, b'\r') => Ok(Decoder::TrailerLineEnd { left }),
            (Decoder::Trailer { left } | Decoder::TrailerLine { left }, _) => {
                Ok(Decoder::TrailerLine { left: overhead(left, byte)? })
            }
            (Decoder::TrailerLineEnd { left }, b'\n') => Ok(Decoder::Trailer { left }),
            (Decoder::End, b'\n') => Ok(Decoder::Done),
            (Decoder::Broken, _) => Err(Malformed("it was before")),
            _ => Err(Malformed("a line does not end where it must")),
        }
    }

    fn size_byte(value: u64, digits: u8, byte: u8) -> Result<Decoder, Malformed> {
        match (byte, char::from(byte).to_digit(16)) {
            (_, Some(_)) if digits == SIZE_DIGITS_MAX => Err(Malformed("a chunk's size has too many digits")),
            (_, Some(digit)) => Ok(Decoder::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }),
            (_, None) if digits == 0 => Err(Malformed("a chunk has no size")),
            (b'\r', _) => Ok(Decoder::SizeEnd { size: value }),
            (b';' | b' ' | b'\t', _) => Ok(Decoder::Extension { size: value, left: OVERHEAD_MAX }),
            _ => Err(Malformed("a chunk's size is no number")),
        }
    }
}

fn overhead(left: u16, byte: u8) -> Result<u16, Malformed> {
    if byte.is_ascii_control() && byte != b'\t' {
        return Err(Malformed("a control character in an extension or trailer"));
    }
    left.checked_sub(1).ok_or(Malformed("extensions or trailers are too long"))
}
