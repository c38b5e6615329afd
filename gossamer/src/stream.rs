//! Streams to and from files and connections, over [`thinp::stream`].

use crate::failure::{Failure, Result};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::path::Path;
use thinp::stream::{Checkpoint, Decoder, Encoder, Event, Info, Reason};

/// What is read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// Where bytes come from or go to: how it is called in errors, and what kind of failure these are.
#[derive(Debug, Clone)]
pub struct Place {
    name: String,
    failure: fn(String) -> Failure,
}

impl Place {
    /// A file or device.
    pub fn file(path: &Path) -> Place {
        Place { name: path.display().to_string(), failure: Failure::Here }
    }

    /// A connection with the appliance.
    pub fn appliance(what: &str) -> Place {
        Place { name: what.to_owned(), failure: Failure::Unreachable }
    }

    fn failed(&self, error: std::io::Error) -> Failure {
        (self.failure)(format!("{}: {error}", self.name))
    }
}

/// Where the changes of a stream go, in ascending order.
pub trait Sink {
    /// `length` bytes of [`Sink::payload`] follow, for this place.
    fn data(&mut self, offset: u64, length: u64) -> Result<()>;
    /// The next of them.
    fn payload(&mut self, bytes: &[u8]) -> Result<()>;
    /// What was there is gone.
    fn unmap(&mut self, offset: u64, length: u64) -> Result<()>;
}

/// The next of a stream that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// It has an info chunk: [`Reader::info`].
    Info,
    /// A DATA chunk begins.
    Data {
        /// In the volume.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Its next bytes lie there: [`Reader::bytes`].
    Payload(Range<usize>),
    /// An UNMAP chunk.
    Unmap {
        /// In the volume.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// All so far is verified.
    Digest(Checkpoint),
    /// It ends.
    End,
}

/// Reads a stream.
pub struct Reader<R> {
    source: R,
    place: Place,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// What of the buffer was not decoded yet.
    rest: Range<usize>,
}

impl<R: Read> Reader<R> {
    /// Reads the stream that comes from `source`.
    pub fn new(source: R, place: Place) -> Reader<R> {
        Reader { source, place, decoder: Decoder::new(None), buffer: vec![0; BUFFER_BYTES], rest: 0..0 }
    }

    /// The decoder: what is known of the stream so far.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What the stream says of itself; it has to be one of ours.
    pub fn info(&self) -> Result<&Info> {
        self.decoder.info().ok_or_else(|| self.damaged(&"not a stream of Gossamer: it has no info chunk"))
    }

    /// The payload of a piece.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.buffer.get(range).unwrap_or_default()
    }

    /// The next piece; none behind the end.
    pub fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if self.rest.is_empty() {
                let read = self.source.read(&mut self.buffer).map_err(|error| self.place.failed(error))?;
                self.rest = 0..read;
                if read == 0 {
                    self.decoder.finish().map_err(|error| self.damaged(&error))?;
                    return Ok(None);
                }
            }
            let mut input = self.buffer.get(self.rest.clone()).unwrap_or_default();
            let event = self.decoder.next(&mut input);
            let at = self.rest.end.saturating_sub(input.len());
            self.rest.start = at;
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(error) => return Err(self.damaged(&error)),
            };
            return Ok(Some(match event {
                Event::Info => Piece::Info,
                Event::Data { offset, length } => Piece::Data { offset, length },
                Event::Payload { bytes, .. } => Piece::Payload(at.saturating_sub(bytes.len())..at),
                Event::Unmap { offset, length } => Piece::Unmap { offset, length },
                Event::Digest(checkpoint) => Piece::Digest(checkpoint),
                Event::End(_) => Piece::End,
            }));
        }
    }

    /// Something is wrong with the stream.
    pub fn damaged(&self, what: &dyn std::fmt::Display) -> Failure {
        Failure::Damaged(format!("{}: {what}", self.place.name))
    }
}

/// Writes a stream.
pub struct Writer<W> {
    out: W,
    encoder: Encoder,
    /// What the encoder made last.
    made: Vec<u8>,
    place: Place,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    pub fn begin(out: W, info: &Info, place: Place) -> Result<Writer<W>> {
        let mut made = Vec::new();
        let encoder = Encoder::begin(info, &mut made).map_err(misuse)?;
        let mut writer = Writer { out, encoder, made, place };
        writer.pass()?;
        Ok(writer)
    }

    /// Goes on with a stream that ends behind a digest.
    pub fn behind(out: W, info: &Info, checkpoint: &Checkpoint, place: Place) -> Writer<W> {
        Writer { out, encoder: Encoder::behind(info, checkpoint), made: Vec::new(), place }
    }

    /// A digest here.
    pub fn digest(&mut self) -> Result<()> {
        self.encoder.digest(&mut self.made).map_err(misuse)?;
        self.pass()
    }

    /// The end; what was written to.
    pub fn end(mut self) -> Result<W> {
        self.encoder.end(&mut self.made).map_err(misuse)?;
        self.out.write_all(&self.made).and_then(|()| self.out.flush()).map_err(|error| self.place.failed(error))?;
        Ok(self.out)
    }

    /// What was written to, without the end.
    pub fn into_out(self) -> W {
        self.out
    }

    fn pass(&mut self) -> Result<()> {
        self.out.write_all(&self.made).map_err(|error| self.place.failed(error))?;
        self.made.clear();
        Ok(())
    }
}

impl<W: Write> Sink for Writer<W> {
    fn data(&mut self, offset: u64, length: u64) -> Result<()> {
        self.encoder.data(offset, length, &mut self.made).map_err(misuse)?;
        self.pass()
    }

    fn payload(&mut self, bytes: &[u8]) -> Result<()> {
        self.encoder.payload(bytes).map_err(misuse)?;
        self.out.write_all(bytes).map_err(|error| self.place.failed(error))
    }

    fn unmap(&mut self, offset: u64, length: u64) -> Result<()> {
        self.encoder.unmap(offset, length, &mut self.made).map_err(misuse)?;
        self.pass()
    }
}

/// What was read in order is not taken in that order: it is not what it says.
fn misuse(reason: Reason) -> Failure {
    Failure::Damaged(format!("what is to be sent makes no stream: {reason}"))
}

/// What of a stream is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it says of itself.
    pub info: Info,
    /// Its last digest.
    pub checkpoint: Checkpoint,
    /// Bytes of the file up to there, or up to the end.
    pub file_bytes: u64,
    /// Payload in them.
    pub data_bytes: u64,
    /// It has its end.
    pub complete: bool,
}

impl Found {
    /// Reads a file; none if not even a first digest is there. What is behind the last digest does not count.
    pub fn read(path: &Path) -> Result<Option<Found>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Failure::file(path))?,
        };
        let mut found = None;
        match Found::scan(&mut Reader::new(file, Place::file(path)), &mut found) {
            Ok(()) | Err(Failure::Damaged(_)) => Ok(found),
            Err(failure) => Err(failure),
        }
    }

    fn scan(reader: &mut Reader<File>, found: &mut Option<Found>) -> Result<()> {
        let (mut data_bytes, mut ended) = (0_u64, false);
        while let Some(piece) = reader.next()? {
            match piece {
                Piece::Payload(range) => data_bytes = data_bytes.saturating_add(range.len() as u64),
                Piece::Digest(checkpoint) => {
                    let (info, file_bytes) = (reader.info()?.clone(), reader.decoder().position());
                    *found = Some(Found { info, checkpoint, file_bytes, data_bytes, complete: false });
                }
                Piece::End => ended = true,
                Piece::Info | Piece::Data { .. } | Piece::Unmap { .. } => {}
            }
        }
        if let Some(found) = found.as_mut().filter(|_| ended) {
            (found.file_bytes, found.complete) = (reader.decoder().position(), true);
        }
        Ok(())
    }
}
