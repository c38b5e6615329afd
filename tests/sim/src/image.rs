//! What a disk holds, cheap to copy: copies share what neither of them changed.

use crate::world::mix;
use platform::block::SECTOR_BYTES;
use std::ops::Range;
use std::rc::Rc;

/// A sector's bytes.
pub type Sector = [u8; SECTOR_BYTES];

const PAGE_SECTORS: u64 = 8;
const PAGE_BYTES: usize = SECTOR_BYTES * PAGE_SECTORS as usize;
const CHUNK_PAGES: u64 = 512;

/// `None` is zeroes.
type Page = Option<Rc<[u8; PAGE_BYTES]>>;
type Chunk = Rc<[Page; CHUNK_PAGES as usize]>;

/// The sectors of a disk.
#[derive(Clone)]
pub struct Image {
    chunks: Vec<Chunk>,
    size_sectors: u64,
    /// Of all sectors that are not zero.
    hash: u64,
}

impl Image {
    /// Zeroes.
    pub fn new(size_sectors: u64) -> Image {
        let mut image = Image { chunks: Vec::new(), size_sectors: 0, hash: 0 };
        image.grow(size_sectors);
        image
    }

    /// Adds zeroes behind the end.
    pub fn grow(&mut self, size_sectors: u64) {
        self.size_sectors = self.size_sectors.max(size_sectors);
        let chunks = size_sectors.div_ceil(CHUNK_PAGES * PAGE_SECTORS) as usize;
        self.chunks.resize(chunks.max(self.chunks.len()), Rc::new([const { None }; CHUNK_PAGES as usize]));
    }

    pub fn size_sectors(&self) -> u64 {
        self.size_sectors
    }

    /// Equal for equal contents.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Reads whole sectors.
    pub fn read(&self, sector: u64, mut out: &mut [u8]) {
        let mut at = sector;
        while !out.is_empty() {
            let (page, offset) = (at / PAGE_SECTORS, (at % PAGE_SECTORS) as usize * SECTOR_BYTES);
            let (piece, rest) = out.split_at_mut(out.len().min(PAGE_BYTES - offset));
            match &self.chunks[(page / CHUNK_PAGES) as usize][(page % CHUNK_PAGES) as usize] {
                Some(bytes) => piece.copy_from_slice(&bytes[offset..offset + piece.len()]),
                None => piece.fill(0),
            }
            at += (piece.len() / SECTOR_BYTES) as u64;
            out = rest;
        }
    }

    /// Writes one sector.
    pub fn write(&mut self, sector: u64, bytes: &Sector) {
        let (page, offset) = (sector / PAGE_SECTORS, (sector % PAGE_SECTORS) as usize * SECTOR_BYTES);
        let chunk = Rc::make_mut(&mut self.chunks[(page / CHUNK_PAGES) as usize]);
        let page = &mut chunk[(page % CHUNK_PAGES) as usize];
        if page.is_none() && bytes.iter().all(|byte| *byte == 0) {
            return;
        }
        let page = Rc::make_mut(page.get_or_insert_with(|| Rc::new([0; PAGE_BYTES])));
        let place: &mut Sector = page[offset..].first_chunk_mut().expect("a sector lies in its page");
        self.hash ^= sector_hash(sector, place) ^ sector_hash(sector, bytes);
        *place = *bytes;
    }

    /// Whether there is a page for each of some sectors.
    pub fn has_pages(&self, sectors: Range<u64>) -> bool {
        let mut pages = sectors.start / PAGE_SECTORS..sectors.end.div_ceil(PAGE_SECTORS);
        pages.all(|page| self.chunks[(page / CHUNK_PAGES) as usize][(page % CHUNK_PAGES) as usize].is_some())
    }

    /// The first word of each sector, but for zeroes.
    pub fn first_words(&self) -> impl Iterator<Item = u64> {
        let pages = self.chunks.iter().flat_map(|chunk| chunk.iter().flatten());
        let words = pages.flat_map(|page| page.chunks_exact(SECTOR_BYTES));
        words.map(|sector| u64::from_le_bytes(*sector.first_chunk().expect("eight bytes"))).filter(|word| *word != 0)
    }

    /// Everything, as a file would hold it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size_sectors as usize * SECTOR_BYTES];
        self.read(0, &mut bytes);
        bytes
    }
}

/// Zero for zeroes.
fn sector_hash(sector: u64, bytes: &Sector) -> u64 {
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(*word.first_chunk().expect("eight bytes")));
    let hash = words.fold(0u64, |hash, word| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95));
    if hash == 0 { 0 } else { mix(hash ^ mix(sector)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_apart_and_hashes_tell_contents() {
        let mut image = Image::new(1000);
        let (empty, other) = (image.hash(), [7; SECTOR_BYTES]);
        image.write(999, &other);
        let mut copy = image.clone();
        assert_eq!(copy.hash(), image.hash());
        copy.write(0, &[1; SECTOR_BYTES]);
        assert_ne!(copy.hash(), image.hash());
        let mut found = [0; 2 * SECTOR_BYTES];
        image.read(998, &mut found);
        assert_eq!((&found[..SECTOR_BYTES], &found[SECTOR_BYTES..]), (&[0; SECTOR_BYTES][..], &other[..]));
        image.read(0, &mut found);
        assert_eq!(found, [0; 2 * SECTOR_BYTES]);
        copy.write(0, &[0; SECTOR_BYTES]);
        copy.write(999, &[0; SECTOR_BYTES]);
        assert_eq!(copy.hash(), empty);
    }
}
