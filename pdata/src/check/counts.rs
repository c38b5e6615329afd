//! Recounted references: a byte a block, in pages that exist where something was counted.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

const PAGE: u64 = 4096;

/// Blocks beyond the end that are remembered.
const BEYOND_MAX: usize = 10;

/// Stands for a count in `large`.
const LARGE: u8 = u8::MAX;

/// How often each block was referred to.
pub struct Counts {
    /// Blocks that there are.
    end: u64,
    /// The first of those referred to that there are not.
    beyond: Vec<u64>,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    large: BTreeMap<u64, u32>,
}

impl Counts {
    /// Counts for the blocks below `end`.
    pub fn new(end: u64) -> Counts {
        Counts { end, beyond: Vec::new(), pages: BTreeMap::new(), large: BTreeMap::new() }
    }

    /// Counts one more reference to a block and returns how many there were before.
    pub fn add(&mut self, block: u64) -> u32 {
        if block >= self.end {
            if self.beyond.len() < BEYOND_MAX {
                self.beyond.push(block);
            }
            return 0;
        }
        let page = self.pages.entry(block / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
        let Some(count) = page.get_mut((block % PAGE) as usize) else { return 0 };
        if *count < LARGE - 1 {
            *count += 1;
            return u32::from(*count) - 1;
        }
        *count = LARGE;
        let large = self.large.entry(block).or_insert(u32::from(LARGE) - 1);
        let before = *large;
        *large = large.saturating_add(1);
        before
    }

    /// References to a block.
    pub fn get(&self, block: u64) -> u32 {
        let page = self.pages.get(&(block / PAGE));
        match page.and_then(|page| page.get((block % PAGE) as usize)) {
            Some(&LARGE) => self.large.get(&block).copied().unwrap_or(0),
            Some(&count) => u32::from(count),
            None => 0,
        }
    }

    /// Some of the blocks referred to that there are not.
    pub fn beyond(&self) -> &[u64] {
        &self.beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_counts() {
        let mut counts = Counts::new(10_000);
        for n in 0..1000 {
            assert_eq!((counts.get(7), counts.add(7)), (n, n));
        }
        assert_eq!((counts.add(9_999), counts.add(10_000), counts.add(u64::MAX)), (0, 0, 0));
        assert_eq!((counts.get(7), counts.get(6), counts.get(9_999)), (1000, 0, 1));
        assert_eq!(counts.beyond(), [10_000, u64::MAX]);
    }
}
