//! Why a stream is refused.

use super::Counts;

/// A stream is refused; nothing of it may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is refused at its byte {at}: {reason}")]
pub struct StreamError {
    /// Where the chunk begins that is at fault, or where the bytes end, counted from the beginning of the stream.
    pub at: u64,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It is no chunk.
    #[error("{0:#018x} is not the magic of thin-send-recv 1.0 or 1.1: send what thin_send or Gossamer made")]
    BadMagic(u64),
    /// It has the other version's magic.
    #[error("its version is not that of the chunks before it: send the stream anew")]
    OtherVersion,
    /// A 1.1 stream has to say that it begins.
    #[error("a stream of version 1.1 begins with BEGIN_STREAM: send it from its beginning")]
    NoBegin,
    /// BEGIN_STREAM stands at the beginning only.
    #[error("a second BEGIN_STREAM: send one stream at a time")]
    BeginAgain,
    /// A chunk of this kind has a fixed offset or length.
    #[error("{chunk} with offset {offset} and length {length}, which it never has: send the stream anew")]
    BadHeader {
        /// Which kind.
        chunk: &'static str,
        /// The offset that it gives.
        offset: u64,
        /// The length that it gives.
        length: u64,
    },
    /// A command that is neither known nor optional.
    #[error("command {0} is unknown and not optional: send what thin_send or Gossamer made")]
    UnknownCommand(u32),
    /// Offset and length do not fit into 64 bits.
    #[error("offset {offset} and length {length} lead beyond all volumes: send the stream anew")]
    Overflow {
        /// In the volume, or of the stream.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Not in whole sectors.
    #[error("offset {offset} and length {length} are not in whole sectors of 512 bytes: send the stream anew")]
    NotSectors {
        /// In the volume.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Beyond the end of the volume.
    #[error(
        "offset {offset} and length {length} lead beyond the volume's {volume_bytes} bytes: give the volume the sender's size"
    )]
    BeyondVolume {
        /// In the volume.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The volume's size.
        volume_bytes: u64,
    },
    /// The stream's info chunk promises ascending offsets.
    #[error("offset {offset}, but everything below {least} was sent before: send the stream anew")]
    OutOfOrder {
        /// In the volume.
        offset: u64,
        /// Where the chunk before it ended.
        least: u64,
    },
    /// More bytes than any stream into a volume of this size needs.
    #[error("it leads beyond {most} bytes of stream, far more than this volume takes: send the stream anew")]
    TooLong {
        /// The most that are taken.
        most: u64,
    },
    /// An info chunk stands right behind BEGIN_STREAM only.
    #[error("an info chunk that is not the second chunk of a 1.1 stream: send the stream anew")]
    InfoMisplaced,
    /// The info chunk is of a later version of Gossamer.
    #[error("an info chunk of version {0}, while 1 is known here: upgrade the receiver")]
    InfoVersion(u16),
    /// The info chunk makes no sense.
    #[error("an info chunk with {0}: send the stream anew")]
    InfoMalformed(&'static str),
    /// A digest in a stream that has no info chunk.
    #[error("a digest in a stream without an info chunk: send the stream anew")]
    DigestMisplaced,
    /// What was received is not what was sent.
    #[error("the digest of what was received so far is another: it was damaged on the way; resume, or send it anew")]
    DigestDiffers,
    /// The last bytes before the end are not vouched for.
    #[error("chunks before END_STREAM that no digest covers: send the stream anew")]
    NotDigested,
    /// Something is missing, or too much.
    #[error("END_STREAM counts {said:?}, but {counted:?} came: send the stream anew")]
    CountsDiffer {
        /// What the sender counted.
        said: Counts,
        /// What the receiver counted.
        counted: Counts,
    },
    /// Nothing may follow END_STREAM.
    #[error("bytes behind END_STREAM: send one stream at a time")]
    AfterEnd,
    /// The bytes ended before the stream did.
    #[error("it ends within a chunk, or without END_STREAM: resume, or send it anew")]
    Truncated,
    /// The bytes given for a DATA chunk are not as many as its header says. Only an encoder sees this.
    #[error("{0} bytes more or fewer of payload than the header of the DATA chunk says")]
    PayloadDiffers(u64),
}
