//! Writing a stream.

use super::Counts;
use super::bounds::Bounds;
use super::digest::Chain;
use super::error::Reason;
use super::header::{Command, DIGEST_BYTES, END_BYTES, Header};
use super::info::Info;
use super::token::{Checkpoint, Resume};
use alloc::vec::Vec;

/// Most payload between two digests, and so of one DATA chunk: what a broken transfer repeats at most. Longer runs are sent in
/// several chunks.
pub const STRETCH_BYTES: u64 = 64 << 20;

/// Most DATA and UNMAP chunks between two digests.
pub const STRETCH_CHUNKS: u64 = 4096;

/// Makes the chunks of a stream of ours, in order. Everything but payload is appended to a buffer of the caller's, who
/// sends it before what comes next; payload is sent from where it lies and shown to the encoder.
///
/// Digests come by themselves, before the chunk that would make a stretch too long.
#[derive(Debug, Clone)]
pub struct Encoder {
    bounds: Bounds,
    chain: Chain,
    counts: Counts,
    stretch_bytes: u64,
    stretch_chunks: u64,
    /// Payload of the last DATA chunk that is still to come.
    payload_left: u64,
}

impl Encoder {
    /// Begins a stream. With a resume position in `info` it is the rest of one.
    pub fn begin(info: &Info, out: &mut Vec<u8>) -> Result<Encoder, Reason> {
        info.check()?;
        let start = Resume { offset: info.resume.map_or(0, |resume| resume.offset), digest: [0; 32] };
        let mut encoder = Encoder::behind(info, &Checkpoint { resume: start, counts: Counts::default() });
        encoder.chunk(Header::new(Command::Begin, 0, 0), &[], out);
        let body = info.to_bytes();
        encoder.chunk(Header::new(Command::Info, 0, body.len() as u64), &body, out);
        Ok(encoder)
    }

    /// Goes on writing a stream that was cut off right behind a digest.
    pub fn behind(info: &Info, checkpoint: &Checkpoint) -> Encoder {
        let Checkpoint { resume, counts } = *checkpoint;
        Encoder {
            bounds: Bounds { volume_bytes: Some(info.volume_bytes), ordered: true, end: resume.offset },
            chain: Chain::after(resume.digest),
            counts,
            stretch_bytes: 0,
            stretch_chunks: 0,
            payload_left: 0,
        }
    }

    /// A DATA chunk: `length` bytes of [`Encoder::payload`] follow, at most [`STRETCH_BYTES`].
    pub fn data(&mut self, offset: u64, length: u64, out: &mut Vec<u8>) -> Result<(), Reason> {
        self.place(offset, length, length, out)?;
        self.counts.data = self.counts.data.saturating_add(1);
        self.payload_left = length;
        self.chunk(Header::new(Command::Data, offset, length), &[], out);
        Ok(())
    }

    /// Takes in the next bytes of the last DATA chunk, which are sent as they are.
    pub fn payload(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let len = bytes.len() as u64;
        self.payload_left = self.payload_left.checked_sub(len).ok_or(Reason::PayloadDiffers(len))?;
        self.chain.take(bytes);
        Ok(())
    }

    /// An UNMAP chunk of any length.
    pub fn unmap(&mut self, offset: u64, length: u64, out: &mut Vec<u8>) -> Result<(), Reason> {
        self.place(offset, length, 0, out)?;
        self.counts.unmap = self.counts.unmap.saturating_add(1);
        self.chunk(Header::new(Command::Unmap, offset, length), &[], out);
        Ok(())
    }

    /// A digest at this place, unless it has one. They come by themselves; who needs one earlier asks for it.
    pub fn digest(&mut self, out: &mut Vec<u8>) -> Result<(), Reason> {
        self.payload_is_whole()?;
        if self.chain.is_open() {
            (self.stretch_bytes, self.stretch_chunks) = (0, 0);
            self.counts.chunks = self.counts.chunks.saturating_add(1);
            Header::new(Command::Digest, 0, DIGEST_BYTES).write(out);
            out.extend_from_slice(&self.chain.close());
        }
        Ok(())
    }

    /// The last digest and the end.
    pub fn end(mut self, out: &mut Vec<u8>) -> Result<Counts, Reason> {
        self.digest(out)?;
        self.counts.chunks = self.counts.chunks.saturating_add(1);
        Header::new(Command::End, 0, END_BYTES).write(out);
        let Counts { chunks, data, unmap } = self.counts;
        [chunks, data, unmap].iter().for_each(|count| out.extend_from_slice(&count.to_be_bytes()));
        Ok(self.counts)
    }

    /// Makes room for a chunk at this place, with a digest if one is due.
    fn place(&mut self, offset: u64, length: u64, payload_bytes: u64, out: &mut Vec<u8>) -> Result<(), Reason> {
        self.payload_is_whole()?;
        if payload_bytes > STRETCH_BYTES {
            return Err(Reason::PayloadDiffers(payload_bytes));
        }
        self.bounds.take(offset, length)?;
        let bytes = self.stretch_bytes.saturating_add(payload_bytes);
        if bytes > STRETCH_BYTES || self.stretch_chunks >= STRETCH_CHUNKS {
            self.digest(out)?;
        }
        self.stretch_bytes = self.stretch_bytes.saturating_add(payload_bytes);
        self.stretch_chunks = self.stretch_chunks.saturating_add(1);
        Ok(())
    }

    fn payload_is_whole(&self) -> Result<(), Reason> {
        if self.payload_left == 0 { Ok(()) } else { Err(Reason::PayloadDiffers(self.payload_left)) }
    }

    /// Appends a chunk that digests cover, but for its payload.
    fn chunk(&mut self, header: Header, body: &[u8], out: &mut Vec<u8>) {
        let from = out.len();
        header.write(out);
        out.extend_from_slice(body);
        self.chain.take(out.get(from..).unwrap_or_default());
        self.counts.chunks = self.counts.chunks.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::HEADER_BYTES;
    use super::super::info::Identity;
    use super::*;

    /// Of a stretch that has so much already: its payload is too much for a test.
    #[test]
    fn a_digest_comes_before_what_makes_a_stretch_too_long() {
        let target = Identity([7; 16]);
        let info = Info { volume_bytes: 4096, block_bytes: 65536, target, base: None, origin: None, resume: None };
        let (bytes, chunks) = (STRETCH_BYTES, STRETCH_CHUNKS);
        for (stretch_bytes, stretch_chunks, data, due) in [
            (bytes - 1024, 1, 1024, false),
            (bytes - 1024, 1, 1536, true),
            (0, chunks - 1, 512, false),
            (0, chunks, 512, true),
            (bytes, chunks - 1, 0, false),
        ] {
            let mut encoder = Encoder::begin(&info, &mut Vec::new()).unwrap();
            (encoder.stretch_bytes, encoder.stretch_chunks) = (stretch_bytes, stretch_chunks);
            let mut out = Vec::new();
            match data {
                0 => encoder.unmap(0, 512, &mut out).unwrap(),
                length => encoder.data(0, length, &mut out).unwrap(),
            }
            let first = Header::parse(out.get(..HEADER_BYTES).unwrap()).unwrap().command;
            assert_eq!(first == Command::Digest, due, "{stretch_bytes} bytes, {stretch_chunks} chunks");
            let begun = if due { (data, 1) } else { (stretch_bytes + data, stretch_chunks + 1) };
            assert_eq!((encoder.stretch_bytes, encoder.stretch_chunks), begun);
        }
    }
}
