//! Reading a stream.

use super::Counts;
use super::bounds::Bounds;
use super::digest::Chain;
use super::error::{Reason, StreamError};
use super::header::{Command, DIGEST_BYTES, END_BYTES, HEADER_BYTES, Header, Version};
use super::info::{INFO_BYTES_MAX, Info};
use super::token::{Checkpoint, Resume, Token};
use alloc::vec::Vec;

/// The stream of a volume may have so many times its bytes, and [`SPARE_BYTES`] more: enough for chunks of single sectors.
const TIMES_VOLUME: u64 = 4;
const SPARE_BYTES: u64 = 64 << 20;

/// What was read. Only what is behind an [`Event::Digest`] is verified; nothing may be kept before [`Event::End`] and
/// [`Decoder::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'i> {
    /// The stream is one of ours: [`Decoder::info`] is there. Comes before anything else, if it comes.
    Info,
    /// The beginning of a DATA chunk. Its payload follows.
    Data {
        /// In the volume, in bytes, of whole sectors.
        offset: u64,
        /// Bytes, of whole sectors; 0 is possible.
        length: u64,
    },
    /// The next bytes of that chunk, as many as were there: they need not be whole sectors.
    Payload {
        /// In the volume, in bytes.
        offset: u64,
        /// What to write there. Never empty.
        bytes: &'i [u8],
    },
    /// An UNMAP chunk. It need not be whole blocks of the receiver's.
    Unmap {
        /// In the volume, in bytes, of whole sectors.
        offset: u64,
        /// Bytes, of whole sectors; 0 is possible.
        length: u64,
    },
    /// All so far is as it was sent.
    Digest(Checkpoint),
    /// The stream is complete, if no byte follows.
    End(Counts),
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Between two chunks, or within a header.
    Header,
    /// Within the body of a chunk that is looked at as a whole.
    Body(Header),
    /// Within the payload of a DATA chunk.
    Payload { offset: u64, left: u64 },
    /// Within a chunk that is of no interest.
    Skip { left: u64 },
    /// Behind END_STREAM.
    Ended,
}

/// Reads a stream from pieces of any size, and tells of it as [`Event`]s.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    version: Option<Version>,
    bounds: Bounds,
    /// Of a stream that has an info chunk, or still may.
    chain: Option<Chain>,
    info: Option<Info>,
    verified: Option<Resume>,
    counts: Counts,
    /// A header, or a body, that has not arrived whole.
    held: Vec<u8>,
    /// Bytes of the stream that were read, and where in it the present chunk began.
    at: u64,
    chunk_at: u64,
    failed: Option<StreamError>,
}

impl Decoder {
    /// A decoder for a stream into a volume of this size. An info chunk's size is taken instead, once it is read: the
    /// receiver looks at it then. Without either, nothing bounds the stream.
    pub fn new(volume_bytes: Option<u64>) -> Decoder {
        Decoder {
            state: State::Header,
            version: None,
            bounds: Bounds { volume_bytes, ordered: false, end: 0 },
            chain: Some(Chain::after([0; 32])),
            info: None,
            verified: None,
            counts: Counts::default(),
            held: Vec::new(),
            at: 0,
            chunk_at: 0,
            failed: None,
        }
    }

    /// What the stream says of itself, once that was read.
    pub fn info(&self) -> Option<&Info> {
        self.info.as_ref()
    }

    /// How to go on behind the last digest, of this stream or, as long as it has none, of the one that it goes on with.
    pub fn token(&self) -> Option<Token> {
        let info = self.info.as_ref()?;
        Some(Token::new(info, self.verified.or(info.resume)?))
    }

    /// Bytes of the stream that were read.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Reads on in `input`, of which the next event's bytes are taken off. None: all was taken, and more is needed. An error
    /// is the end of it, and is told again by every further call.
    pub fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, StreamError> {
        self.unless_failed(|decoder| decoder.step(input))
    }

    /// To be called where the bytes end.
    pub fn finish(&mut self) -> Result<Counts, StreamError> {
        self.unless_failed(|decoder| {
            let at_chunk = matches!(decoder.state, State::Header) && decoder.held.is_empty();
            let ended = matches!(decoder.state, State::Ended);
            decoder.chunk_at = decoder.at;
            match decoder.version {
                Some(Version::V1_0) if at_chunk => Ok(decoder.counts),
                Some(Version::V1_1) if ended => Ok(decoder.counts),
                _ => Err(Reason::Truncated),
            }
        })
    }

    fn unless_failed<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Reason>) -> Result<T, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        work(self).map_err(|reason| *self.failed.insert(StreamError { at: self.chunk_at, reason }))
    }

    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Reason> {
        while !input.is_empty() {
            let event = match self.state {
                State::Header => match self.gather(input, HEADER_BYTES as u64) {
                    Some(bytes) => self.header(&bytes)?,
                    None => None,
                },
                State::Body(header) => match self.gather(input, header.length) {
                    Some(bytes) => Some(self.body(header, &bytes)?),
                    None => None,
                },
                State::Payload { offset, left } => Some(self.payload(offset, left, input)),
                State::Skip { left } => {
                    self.skip(left, input);
                    None
                }
                State::Ended => {
                    self.chunk_at = self.at;
                    return Err(Reason::AfterEnd);
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Takes at most so many bytes off `input`.
    fn take<'i>(&mut self, input: &mut &'i [u8], most: u64) -> &'i [u8] {
        let len = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
        let (taken, rest) = input.split_at(len);
        *input = rest;
        self.at = self.at.saturating_add(len as u64);
        taken
    }

    /// Takes bytes off `input` until there are `wanted` of them.
    fn gather(&mut self, input: &mut &[u8], wanted: u64) -> Option<Vec<u8>> {
        let missing = wanted.saturating_sub(self.held.len() as u64);
        let taken = self.take(input, missing);
        self.held.extend_from_slice(taken);
        (taken.len() as u64 == missing).then(|| core::mem::take(&mut self.held))
    }

    fn digest(&mut self, bytes: &[u8]) {
        if let Some(chain) = &mut self.chain {
            chain.take(bytes);
        }
    }

    fn payload<'i>(&mut self, offset: u64, left: u64, input: &mut &'i [u8]) -> Event<'i> {
        let bytes = self.take(input, left);
        self.digest(bytes);
        let len = bytes.len() as u64;
        self.state = match left.saturating_sub(len) {
            0 => State::Header,
            left => State::Payload { offset: offset.saturating_add(len), left },
        };
        Event::Payload { offset, bytes }
    }

    fn skip(&mut self, left: u64, input: &mut &[u8]) {
        let bytes = self.take(input, left);
        self.digest(bytes);
        self.state = match left.saturating_sub(bytes.len() as u64) {
            0 => State::Header,
            left => State::Skip { left },
        };
    }

    fn header<'i>(&mut self, bytes: &[u8]) -> Result<Option<Event<'i>>, Reason> {
        self.chunk_at = self.at.saturating_sub(bytes.len() as u64);
        let header = Header::parse(bytes)?;
        self.belongs(&header)?;
        self.counts.chunks = self.counts.chunks.saturating_add(1);
        if !matches!(header.command, Command::Digest | Command::End) {
            self.digest(bytes);
        }
        let Header { offset, length, command, .. } = header;
        self.state = match command {
            Command::Data if length > 0 => State::Payload { offset, left: length },
            Command::Optional if length > 0 => State::Skip { left: length },
            Command::Info | Command::Digest | Command::End => State::Body(header),
            _ => State::Header,
        };
        match command {
            Command::Data => {
                self.bounds.take(offset, length)?;
                self.counts.data = self.counts.data.saturating_add(1);
                Ok(Some(Event::Data { offset, length }))
            }
            Command::Unmap => {
                self.bounds.take(offset, length)?;
                self.counts.unmap = self.counts.unmap.saturating_add(1);
                Ok(Some(Event::Unmap { offset, length }))
            }
            _ => Ok(None),
        }
    }

    /// Whether a chunk of this kind may stand here at all.
    fn belongs(&mut self, header: &Header) -> Result<(), Reason> {
        let Header { version, offset, length, command } = *header;
        if *self.version.get_or_insert(version) != version {
            return Err(Reason::OtherVersion);
        }
        let second = version == Version::V1_1 && self.counts.chunks == 1;
        if command != Command::Info && (second || version == Version::V1_0) {
            self.chain = None;
        }
        let bare = |chunk, right| if right { Ok(()) } else { Err(Reason::BadHeader { chunk, offset, length }) };
        match command {
            Command::Begin if self.counts.chunks > 0 => return Err(Reason::BeginAgain),
            Command::Begin => bare("BEGIN_STREAM", (offset, length) == (0, 0))?,
            _ if version == Version::V1_1 && self.counts.chunks == 0 => return Err(Reason::NoBegin),
            Command::Info if !second => return Err(Reason::InfoMisplaced),
            Command::Info => bare("an info chunk", offset == 0 && length <= INFO_BYTES_MAX)?,
            Command::Digest if self.info.is_none() => return Err(Reason::DigestMisplaced),
            Command::Digest => bare("a digest", (offset, length) == (0, DIGEST_BYTES))?,
            Command::End => bare("END_STREAM", (offset, length) == (0, END_BYTES))?,
            Command::Data | Command::Unmap | Command::Optional => {}
        }
        if command == Command::End && self.chain.as_ref().is_some_and(Chain::is_open) {
            return Err(Reason::NotDigested);
        }
        let end = self.at.checked_add(header.body_bytes()).ok_or(Reason::Overflow { offset, length })?;
        let most = |bytes: u64| bytes.saturating_mul(TIMES_VOLUME).saturating_add(SPARE_BYTES);
        match self.bounds.volume_bytes.map(most) {
            Some(most) if end > most => Err(Reason::TooLong { most }),
            _ => Ok(()),
        }
    }

    fn body<'i>(&mut self, header: Header, bytes: &[u8]) -> Result<Event<'i>, Reason> {
        self.state = State::Header;
        match (header.command, &mut self.chain) {
            (Command::Info, _) => {
                self.digest(bytes);
                let info = self.info.insert(Info::parse(bytes)?);
                let end = info.resume.map_or(0, |resume| resume.offset);
                self.bounds = Bounds { volume_bytes: Some(info.volume_bytes), ordered: true, end };
                Ok(Event::Info)
            }
            (Command::Digest, Some(chain)) => {
                let resume = Resume { offset: self.bounds.end, digest: chain.close() };
                if resume.digest != bytes {
                    return Err(Reason::DigestDiffers);
                }
                self.verified = Some(resume);
                Ok(Event::Digest(Checkpoint { resume, counts: self.counts }))
            }
            _ => {
                let count = |at: usize| bytes.get(at..)?.first_chunk().map(|count| u64::from_be_bytes(*count));
                let [chunks, data, unmap] = [0, 8, 16].map(|at| count(at).unwrap_or(0));
                let said = Counts { chunks, data, unmap };
                if said != self.counts {
                    return Err(Reason::CountsDiffer { said, counted: self.counts });
                }
                self.state = State::Ended;
                Ok(Event::End(said))
            }
        }
    }
}
