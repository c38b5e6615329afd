//! A full backup and the increments on it as one stream: what the volume held at the last of them.
//!
//! Every stream goes upwards through the volume, so all are read side by side, once, in memory that does not grow. At each place
//! the newest one that says something wins. All of them are read to their ends, so that their digests are checked, too.

use crate::failure::{Failure, Result};
use crate::stream::{Piece, Place, Reader, Sink};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use thinp::stream::{Identity, Info, STRETCH_BYTES};

/// One stream, at the place that the merge has reached.
struct Layer {
    reader: Reader<File>,
    info: Info,
    /// What it says next; none when it has ended.
    extent: Option<Extent>,
    /// Payload of the extent that was read, and not passed on.
    payload: Range<usize>,
    digest: [u8; 32],
}

#[derive(Clone, Copy)]
struct Extent {
    begin: u64,
    end: u64,
    data: bool,
}

impl Layer {
    fn open(path: &Path) -> Result<Layer> {
        let file = File::open(path).map_err(Failure::file(path))?;
        let mut reader = Reader::new(file, Place::file(path));
        reader.next()?;
        let info = reader.info()?.clone();
        if info.resume.is_some() {
            return Err(reader.damaged(&"only the rest of a stream"));
        }
        let mut layer = Layer { reader, info, extent: None, payload: 0..0, digest: [0; 32] };
        layer.advance()?;
        Ok(layer)
    }

    /// On to the next extent. Behind the end of the volume, as it was then, is nothing.
    fn advance(&mut self) -> Result<()> {
        loop {
            let (begin, length, data) = match self.reader.next()? {
                Some(Piece::Data { offset, length }) => (offset, length, true),
                Some(Piece::Unmap { offset, length }) => (offset, length, false),
                Some(Piece::Digest(checkpoint)) => {
                    self.digest = checkpoint.resume.digest;
                    continue;
                }
                Some(_) => continue,
                None => {
                    let at_end = self.extent.is_some_and(|extent| extent.end == u64::MAX);
                    let tail = Extent { begin: self.info.volume_bytes, end: u64::MAX, data: false };
                    self.extent = (!at_end).then_some(tail);
                    return Ok(());
                }
            };
            if length > 0 {
                self.extent = Some(Extent { begin, end: begin.saturating_add(length), data });
                return Ok(());
            }
        }
    }

    /// Goes on to `to`, and shows the payload on the way.
    fn pass(&mut self, to: u64, mut show: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while let Some(extent) = self.extent.filter(|extent| extent.begin < to) {
            let wanted = extent.end.min(to).saturating_sub(extent.begin);
            let passed = if extent.data { self.pass_payload(wanted, &mut show)? } else { wanted };
            let begin = extent.begin.saturating_add(passed);
            self.extent = Some(Extent { begin, ..extent });
            if begin == extent.end {
                self.advance()?;
            }
        }
        Ok(())
    }

    /// Shows some payload, at most `most` bytes.
    fn pass_payload(&mut self, most: u64, show: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        while self.payload.is_empty() {
            match self.reader.next()? {
                Some(Piece::Payload(range)) => self.payload = range,
                _ => return Err(self.reader.damaged(&"a DATA chunk without its payload")),
            }
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let end = self.payload.end.min(self.payload.start.saturating_add(most));
        let shown = self.payload.start..end;
        self.payload.start = end;
        let len = shown.len() as u64;
        show(self.reader.bytes(shown))?;
        Ok(len)
    }
}

/// What a stream has to be, as the manifest has it.
pub struct Expected<'a> {
    /// The file.
    pub path: &'a Path,
    /// What it brings the volume to.
    pub target: Identity,
    /// On what it stands.
    pub base: Option<Identity>,
    /// Its last digest.
    pub digest: &'a str,
}

/// The streams of a chain, the oldest first.
pub struct Merge {
    layers: Vec<Layer>,
    digests: Vec<String>,
}

impl Merge {
    /// Opens them, and sees that each stands on the one before.
    pub fn open(chain: &[Expected<'_>]) -> Result<Merge> {
        let mut layers: Vec<Layer> = Vec::new();
        for expected in chain {
            let layer = Layer::open(expected.path)?;
            let Info { target, base, .. } = layer.info;
            if (target, base) != (expected.target, expected.base) {
                return Err(layer.reader.damaged(&format!("the stream of {target}, not of {}", expected.target)));
            }
            if layers.last().is_some_and(|before| base != Some(before.info.target)) {
                return Err(layer.reader.damaged(&"it does not stand on the backup before it"));
            }
            layers.push(layer);
        }
        if layers.is_empty() {
            return Err(Failure::Damaged("a chain without backups".into()));
        }
        Ok(Merge { layers, digests: chain.iter().map(|expected| expected.digest.to_owned()).collect() })
    }

    /// What the merged stream says of itself: the newest one's words, and the oldest one's base.
    pub fn info(&self) -> Option<Info> {
        let (oldest, newest) = (self.layers.first()?, self.layers.last()?);
        Some(Info { base: oldest.info.base, ..newest.info.clone() })
    }

    /// Passes on everything at or behind `from`. `done` hears how far in the volume it is.
    pub fn run(mut self, from: u64, sink: &mut impl Sink, mut done: impl FnMut(u64)) -> Result<()> {
        let volume_bytes = self.layers.last().map_or(0, |newest| newest.info.volume_bytes);
        let full = self.layers.first().is_some_and(|oldest| oldest.info.base.is_none());
        self.pass_all(from, self.layers.len())?;
        while let Some((begin, winner)) = self.next_place().filter(|(begin, _)| *begin < volume_bytes) {
            let Some((extent, end)) = self.piece(winner, begin, volume_bytes) else { break };
            let length = end.saturating_sub(begin);
            // Older layers have nothing to say here any more.
            self.pass_all(end, winner)?;
            match self.layers.get_mut(winner) {
                Some(layer) if extent.data => {
                    sink.data(begin, length)?;
                    layer.pass(end, |bytes| sink.payload(bytes))?;
                }
                Some(layer) => {
                    if !full {
                        sink.unmap(begin, length)?;
                    }
                    layer.pass(end, |_| Ok(()))?;
                }
                None => {}
            }
            done(end);
        }
        self.pass_all(u64::MAX, self.layers.len())?;
        for (layer, expected) in self.layers.iter().zip(&self.digests) {
            if crate::manifest::hex(&layer.digest) != *expected {
                return Err(layer.reader.damaged(&"its digest is not that of the manifest"));
            }
        }
        Ok(())
    }

    /// The lowest place of which a layer says something, and the newest that does.
    fn next_place(&self) -> Option<(u64, usize)> {
        let begins = self.layers.iter().filter_map(|layer| layer.extent.map(|extent| extent.begin));
        let begin = begins.min()?;
        let says = |layer: &Layer| layer.extent.is_some_and(|extent| extent.begin == begin);
        Some((begin, self.layers.iter().rposition(says)?))
    }

    /// What the winner says, and where it ends, or a newer layer begins.
    fn piece(&self, winner: usize, begin: u64, volume_bytes: u64) -> Option<(Extent, u64)> {
        let extent = self.layers.get(winner)?.extent?;
        let newer = self.layers.iter().skip(winner.saturating_add(1));
        let end = newer.filter_map(|layer| layer.extent.map(|extent| extent.begin)).fold(extent.end, u64::min);
        let most = if extent.data { begin.saturating_add(STRETCH_BYTES) } else { u64::MAX };
        Some((extent, end.min(volume_bytes).min(most)))
    }

    /// The first `layers` go on to `to` in silence.
    fn pass_all(&mut self, to: u64, layers: usize) -> Result<()> {
        self.layers.iter_mut().take(layers).try_for_each(|layer| layer.pass(to, |_| Ok(())))
    }
}
