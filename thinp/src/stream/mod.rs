//! The stream in which a volume, or the difference between two of its snapshots, travels: thin-send-recv 1.1.
//!
//! [`Encoder`] writes it, [`Decoder`] reads it in whatever pieces it arrives; neither does any I/O or copies payload.
//! Ours carry two kinds of optional chunk, which a foreign receiver skips: what is sent ([`Info`], right behind the
//! beginning), and digests. A digest covers every byte of the stream up to it: truncated, changed, repeated, left out,
//! swapped and added chunks are all found at the next one, and a stream ends behind one. In a stream with an info chunk, chunks
//! come in ascending order of offsets, so the last digest is also where a transfer that broke off goes on ([`Token`]).
//! Streams without an info chunk are foreign ones; they are taken in any order, and nothing vouches for their bytes.
//!
//! All numbers are big-endian (`docs/stream.md` has the tables). A chunk is a header of [`HEADER_BYTES`] and a body:
//!
//! | off | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic: 1.1, or 1.0, which has neither beginning nor end |
//! | 8 | 8 | offset in the volume, in bytes |
//! | 16 | 8 | length in bytes |
//! | 24 | 4 | command |

mod bounds;
mod decode;
mod digest;
mod encode;
mod error;
mod header;
mod info;
mod token;

#[cfg(test)]
mod tests;

pub use decode::{Decoder, Event};
pub use encode::{Encoder, STRETCH_BYTES, STRETCH_CHUNKS};
pub use error::{Reason, StreamError};
pub use header::HEADER_BYTES;
pub use info::{Identity, Info, NotAnIdentity, ORIGIN_BYTES_MAX};
pub use token::{BadToken, Checkpoint, Resume, Token};

/// What the end of a stream counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Chunks of all kinds, beginning and end included.
    pub chunks: u64,
    /// DATA chunks.
    pub data: u64,
    /// UNMAP chunks.
    pub unmap: u64,
}
