//! What snapshots hold, as streams and from them.

use crate::model::{BLOCK, Words};
use crate::recover::words;
use std::collections::BTreeMap;
use std::rc::Rc;
use thinp::stream::{Decoder, Encoder, Event, Identity, Info, Resume, StreamError};

const BLOCK_BYTES: u64 = BLOCK * 512;

/// What a snapshot holds, for good.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The volume that it was received from.
    pub name: String,
    pub identity: Identity,
    pub size_sectors: u64,
    /// Those that are mapped.
    pub blocks: BTreeMap<u64, Rc<Words>>,
}

impl Snapshot {
    /// What a block holds.
    pub fn block(&self, block: u64) -> Words {
        self.blocks.get(&block).map_or([0; BLOCK as usize], |words| **words)
    }

    /// Reads a stream of the appliance's: whole blocks, from the beginning, on top of what its base holds. `None` if it has
    /// another base.
    pub fn decode(name: &str, base: Option<&Snapshot>, stream: &[u8]) -> Result<Option<Snapshot>, StreamError> {
        let (mut decoder, mut input) = (Decoder::new(None), stream);
        let mut blocks = base.map(|base| base.blocks.clone()).unwrap_or_default();
        let mut block = Vec::new();
        while let Some(event) = decoder.next(&mut input)? {
            match event {
                Event::Payload { offset, bytes } => {
                    block.extend_from_slice(bytes);
                    let end = offset + bytes.len() as u64;
                    while block.len() as u64 >= BLOCK_BYTES {
                        let number = (end - block.len() as u64) / BLOCK_BYTES;
                        let whole: Vec<u8> = block.drain(..BLOCK_BYTES as usize).collect();
                        blocks.insert(number, Rc::new(words(&whole)));
                    }
                }
                Event::Unmap { offset, length } => {
                    let gone = offset / BLOCK_BYTES..(offset + length) / BLOCK_BYTES;
                    blocks.retain(|block, _| !gone.contains(block));
                }
                Event::Info | Event::Data { .. } | Event::Digest(_) | Event::End(_) => {}
            }
        }
        decoder.finish()?;
        let info = decoder.info().expect("a stream of the appliance's says what it is");
        if info.base != base.map(|base| base.identity) {
            return Ok(None);
        }
        let size_sectors = info.volume_bytes / 512;
        blocks.retain(|block, _| *block < size_sectors.div_ceil(BLOCK));
        Ok(Some(Snapshot { name: name.to_owned(), identity: info.target, size_sectors, blocks }))
    }

    /// A stream of it, whole or on top of a base, from the beginning or from where one broke off; with a digest wherever
    /// `digests` says.
    pub fn encode(
        &self,
        base: Option<&Snapshot>,
        resume: Option<Resume>,
        mut digests: impl FnMut() -> bool,
    ) -> Vec<u8> {
        let info = Info {
            volume_bytes: self.size_sectors * 512,
            block_bytes: BLOCK_BYTES as u32,
            target: self.identity,
            base: base.map(|base| base.identity),
            origin: None,
            resume,
        };
        let mut out = Vec::new();
        let mut encoder = Encoder::begin(&info, &mut out).expect("what a volume can be");
        let before = |block: u64| base.and_then(|base| base.blocks.get(&block));
        for block in resume.map_or(0, |resume| resume.offset) / BLOCK_BYTES..self.size_sectors / BLOCK {
            let at = block * BLOCK_BYTES;
            match (before(block), self.blocks.get(&block)) {
                (before, after) if before == after => continue,
                (_, None) => encoder.unmap(at, BLOCK_BYTES, &mut out).expect("in order"),
                (_, Some(words)) => {
                    encoder.data(at, BLOCK_BYTES, &mut out).expect("in order");
                    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes().repeat(64)).collect();
                    encoder.payload(&bytes).expect("as long as was said");
                    out.extend_from_slice(&bytes);
                }
            }
            if digests() {
                encoder.digest(&mut out).expect("between two chunks");
            }
        }
        encoder.end(&mut out).expect("all was sent");
        out
    }
}
