//! Recounted references, in as little memory as they need.
//!
//! Counts are kept for ranges of [`CHUNK`] blocks: as the list of what was referred to while that is short, as a byte a
//! block when it is not. So ten million references scattered over a huge disk take 2 to 3 bytes each, and a disk in dense use
//! one byte a block. If even that is more than the budget, the blocks with the highest numbers are left for another pass.

use crate::space_map::ENTRIES_PER_BITMAP;
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use hashbrown::HashMap;

/// Bitmaps whose blocks are counted together.
pub(super) const CHUNK_BITMAPS: u64 = 4;

/// Blocks that are counted together: as many as 16 bits can tell apart, and whole bitmaps of them.
const CHUNK: u64 = CHUNK_BITMAPS * ENTRIES_PER_BITMAP;

/// A list longer than this is turned into bytes, which take no more.
const LIST_MAX: usize = CHUNK as usize / 2;

/// Lists grow by as many entries.
const LIST_STEP: usize = 256;

/// Blocks beyond the end that are remembered.
const BEYOND_MAX: usize = 10;

/// The least budget: some chunks.
const BUDGET_MIN_BYTES: usize = 512 << 10;

enum Chunk {
    /// Each reference, by the place of its block in the chunk.
    List(Vec<u16>),
    /// The count of each block; what exceeds a byte is in [`Counts::large`].
    Bytes(Box<[u8]>),
}

impl Chunk {
    fn memory_bytes(&self) -> usize {
        match self {
            Chunk::List(list) => list.capacity() * 2 + size_of::<(u64, Chunk)>(),
            Chunk::Bytes(bytes) => bytes.len() + size_of::<(u64, Chunk)>(),
        }
    }
}

/// How often each block was referred to.
pub struct Counts {
    /// Blocks that there are.
    end: u64,
    /// Chunks that this pass counts; references to others are ignored.
    window: Range<u64>,
    /// The first of the blocks referred to that there are not.
    beyond: Vec<u64>,
    chunks: HashMap<u64, Chunk>,
    /// By how much a count exceeds 255.
    large: HashMap<u64, u32>,
    memory_bytes: usize,
    budget_bytes: usize,
}

impl Counts {
    /// Counts for the blocks below `end`, in about `budget_bytes` of memory.
    pub fn new(end: u64, budget_bytes: usize) -> Counts {
        Counts {
            end,
            window: 0..end.div_ceil(CHUNK),
            beyond: Vec::new(),
            chunks: HashMap::new(),
            large: HashMap::new(),
            memory_bytes: 0,
            budget_bytes: budget_bytes.max(BUDGET_MIN_BYTES),
        }
    }

    /// Counts one more reference to a block.
    pub fn add(&mut self, block: u64) {
        self.add_run(block, 1);
    }

    /// Counts one more reference to each of `blocks` consecutive blocks.
    pub fn add_run(&mut self, first: u64, blocks: u64) {
        let end = first.saturating_add(blocks).min(self.end);
        let beyond = blocks.saturating_sub(end.saturating_sub(first));
        if beyond > 0 {
            let room = BEYOND_MAX.saturating_sub(self.beyond.len());
            let numbers = first.max(self.end)..=first.saturating_add(blocks.saturating_sub(1));
            self.beyond.extend(numbers.take(room));
        }
        let mut at = first;
        while at < end {
            let chunk = at / CHUNK;
            let next = chunk.saturating_add(1).saturating_mul(CHUNK).min(end);
            if self.window.contains(&chunk) {
                self.add_in(chunk, (at % CHUNK) as usize, (next - at) as usize);
            }
            at = next;
        }
    }

    fn add_in(&mut self, number: u64, first: usize, blocks: usize) {
        let chunk = self.chunks.entry(number).or_insert_with(|| Chunk::List(Vec::new()));
        match chunk {
            Chunk::Bytes(bytes) => {
                bump(&mut self.large, number, bytes, first, blocks);
                return;
            }
            Chunk::List(list) if list.len() + blocks <= list.capacity() => {
                list.extend((first..first + blocks).map(|place| place as u16));
                return;
            }
            Chunk::List(_) => {}
        }
        let before = chunk.memory_bytes();
        match chunk {
            Chunk::List(list) if list.len() + blocks <= LIST_MAX => {
                list.reserve_exact(blocks.next_multiple_of(LIST_STEP));
                list.extend((first..first + blocks).map(|place| place as u16));
            }
            Chunk::List(list) => {
                let mut bytes = vec![0; CHUNK as usize].into_boxed_slice();
                for place in list.iter() {
                    bump(&mut self.large, number, &mut bytes, usize::from(*place), 1);
                }
                bump(&mut self.large, number, &mut bytes, first, blocks);
                *chunk = Chunk::Bytes(bytes);
            }
            Chunk::Bytes(_) => {}
        }
        // A list of a few entries counts from its first allocation on.
        self.memory_bytes = self.memory_bytes.saturating_add(chunk.memory_bytes()).saturating_sub(before);
        if self.memory_bytes > self.budget_bytes {
            self.shrink();
        }
    }

    /// Leaves the upper half of what was counted for another pass.
    fn shrink(&mut self) {
        let mut numbers: Vec<u64> = self.chunks.keys().copied().collect();
        numbers.sort_unstable();
        // One chunk must remain, or no pass would get anywhere.
        let Some(end) = numbers.get((numbers.len() / 2).max(1)).copied() else { return };
        self.window.end = end;
        self.chunks.retain(|number, _| *number < end);
        self.chunks.shrink_to_fit();
        self.large.retain(|block, _| *block / CHUNK < end);
        self.memory_bytes = self.chunks.values().map(Chunk::memory_bytes).sum();
    }

    /// Bitmaps whose blocks were counted in this pass.
    pub(super) fn bitmaps(&self) -> Range<u64> {
        self.window.start.saturating_mul(CHUNK_BITMAPS)..self.window.end.saturating_mul(CHUNK_BITMAPS)
    }

    /// No block is left for another pass.
    pub(super) fn is_last_pass(&self) -> bool {
        self.window.end >= self.end.div_ceil(CHUNK)
    }

    /// Forgets what was counted and prepares for counting the blocks that were left out; false if there are none.
    pub fn next_pass(&mut self) -> bool {
        self.window = self.window.end..self.end.div_ceil(CHUNK);
        self.chunks.clear();
        self.large.clear();
        self.beyond.clear();
        self.memory_bytes = 0;
        !self.window.is_empty()
    }

    /// Writes the counts of the blocks of a bitmap into `counts`; false if all of them are 0.
    pub(super) fn of_bitmap(&self, bitmap: u64, counts: &mut [u32]) -> bool {
        let (number, part) = (bitmap / CHUNK_BITMAPS, (bitmap % CHUNK_BITMAPS * ENTRIES_PER_BITMAP) as usize);
        let first = number.saturating_mul(CHUNK).saturating_add(part as u64);
        match self.chunks.get(&number) {
            None => return false,
            Some(Chunk::List(list)) => {
                counts.fill(0);
                for place in list {
                    let count = usize::from(*place).checked_sub(part).and_then(|index| counts.get_mut(index));
                    count.into_iter().for_each(|count| *count += 1);
                }
            }
            Some(Chunk::Bytes(bytes)) => {
                let bytes = bytes.get(part..).unwrap_or_default();
                for ((count, byte), block) in counts.iter_mut().zip(bytes).zip(first..) {
                    *count = u32::from(*byte);
                    if *byte == u8::MAX {
                        *count = count.saturating_add(self.large.get(&block).copied().unwrap_or(0));
                    }
                }
            }
        }
        true
    }

    /// Some of the blocks referred to that there are not.
    pub fn beyond(&self) -> &[u64] {
        &self.beyond
    }
}

/// Adds 1 to some of a chunk's counts.
fn bump(large: &mut HashMap<u64, u32>, chunk: u64, bytes: &mut [u8], first: usize, blocks: usize) {
    for (place, byte) in (first as u64..).zip(bytes.iter_mut().skip(first).take(blocks)) {
        match byte.checked_add(1) {
            Some(sum) => *byte = sum,
            None => {
                let excess = large.entry(chunk.saturating_mul(CHUNK).saturating_add(place)).or_insert(0);
                *excess = excess.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(counts: &Counts, block: u64) -> u32 {
        let mut all = vec![0; ENTRIES_PER_BITMAP as usize];
        let any = counts.of_bitmap(block / ENTRIES_PER_BITMAP, &mut all);
        if any { all[(block % ENTRIES_PER_BITMAP) as usize] } else { 0 }
    }

    #[test]
    fn small_and_large_counts_in_lists_and_bytes() {
        let end = 3 * CHUNK;
        let mut counts = Counts::new(end, 1 << 20);
        for _ in 0..1000 {
            counts.add(7);
            counts.add(end - 1);
        }
        assert_eq!((get(&counts, 7), get(&counts, 6), get(&counts, end - 1)), (1000, 0, 1000));
        // A run over a border makes the first chunk one of bytes.
        counts.add_run(0, CHUNK + 10);
        counts.add(7);
        assert_eq!(
            (get(&counts, 7), get(&counts, 6), get(&counts, CHUNK + 9), get(&counts, CHUNK + 10)),
            (1002, 1, 1, 0)
        );
        counts.add_run(end - 2, 4);
        counts.add(u64::MAX);
        assert_eq!((get(&counts, end - 2), get(&counts, end - 1)), (1, 1001));
        assert_eq!(counts.beyond()[..2], [end, end + 1]);
    }

    #[test]
    fn what_exceeds_the_budget_is_counted_by_another_pass() {
        let (chunks, budget) = (100, BUDGET_MIN_BYTES);
        let mut counts = Counts::new(chunks * CHUNK, budget);
        let mut seen = vec![0; chunks as usize];
        for pass in 0.. {
            for chunk in 0..chunks {
                counts.add_run(chunk * CHUNK, CHUNK / 2 + chunk);
                assert!(counts.memory_bytes <= budget);
            }
            let bitmaps = counts.bitmaps();
            for chunk in (0..chunks).filter(|chunk| bitmaps.contains(&(chunk * CHUNK_BITMAPS))) {
                assert_eq!(get(&counts, chunk * CHUNK + CHUNK / 2 + chunk - 1), 1);
                assert_eq!(get(&counts, chunk * CHUNK + CHUNK / 2 + chunk), 0);
                seen[chunk as usize] += 1;
            }
            if !counts.next_pass() {
                assert!((10..60).contains(&pass), "{pass} passes");
                break;
            }
        }
        assert!(seen.iter().all(|times| *times == 1));
    }

    #[test]
    fn a_list_takes_two_bytes_an_entry_and_the_rest_a_byte_a_block() {
        let mut counts = Counts::new(CHUNK, usize::MAX);
        let mut taken = |blocks: u64| {
            counts.add_run(0, blocks);
            counts.memory_bytes
        };
        // Room for 256 more at a time.
        assert_eq!([1, 255, 1].map(&mut taken), [512, 512, 1024]);
        let few = CHUNK / 2 - 1000;
        assert!((few as usize * 2..few as usize * 2 + 2048).contains(&taken(few)));
        // From here on there is nothing that more references could take.
        assert!(
            [CHUNK, CHUNK, 7]
                .map(&mut taken)
                .iter()
                .all(|bytes| (CHUNK as usize..CHUNK as usize + 100).contains(bytes))
        );
        assert_eq!((get(&counts, 0), get(&counts, few - 1), get(&counts, few)), (7, 3, 2));
        let mut at_once = Counts::new(CHUNK, usize::MAX);
        at_once.add_run(0, CHUNK);
        assert_eq!(at_once.memory_bytes, CHUNK as usize);
    }

    /// Two chunks take a byte a block, as much as 255 lists of a few entries.
    #[test]
    fn the_lower_half_is_counted_and_the_upper_left_when_the_budget_is_exceeded() {
        let (chunks, half) = (BUDGET_MIN_BYTES as u64 / 512 - 255 + 2, 386);
        let (low, high) = (CHUNK - 1, half * CHUNK + 7);
        let mut counts = Counts::new((chunks + 1) * CHUNK, 0);
        for block in [low, high] {
            counts.add_run(block / CHUNK * CHUNK, CHUNK);
            (0..299).for_each(|_| counts.add(block));
        }
        (0..chunks).for_each(|chunk| counts.add(chunk * CHUNK));
        assert_eq!((counts.memory_bytes, counts.is_last_pass()), (BUDGET_MIN_BYTES, true));
        assert_eq!((get(&counts, low), get(&counts, high)), (300, 300));
        counts.add(chunks * CHUNK);
        assert_eq!((counts.bitmaps(), counts.is_last_pass()), (0..half * CHUNK_BITMAPS, false));
        assert_eq!((get(&counts, low), get(&counts, (half - 1) * CHUNK)), (300, 1));
        // Nothing is kept of what another pass counts.
        assert_eq!((get(&counts, high), counts.large.len()), (0, 1));
        assert!(counts.next_pass() && counts.is_last_pass());
    }
}
