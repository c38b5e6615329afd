//! Recounted references: a byte a block, in pages that exist where something was counted.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

const PAGE: u64 = 4096;

/// Stands for a count in `large`.
const LARGE: u8 = u8::MAX;

/// How often each block was referred to.
#[derive(Default)]
pub struct Counts {
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    large: BTreeMap<u64, u32>,
}

impl Counts {
    /// Counts one more reference to a block and returns how many there were before.
    pub fn add(&mut self, block: u64) -> u32 {
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

    /// Blocks at or beyond `end` that were referred to.
    pub fn beyond(&self, end: u64) -> impl Iterator<Item = u64> {
        let pages = self.pages.range(end / PAGE..);
        let blocks =
            pages.flat_map(|(page, counts)| (0..PAGE).map(move |at| page.saturating_mul(PAGE) + at).zip(counts.iter()));
        blocks.filter(move |(block, count)| *block >= end && **count > 0).map(|(block, _)| block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_counts() {
        let mut counts = Counts::default();
        for n in 0..1000 {
            assert_eq!((counts.get(7), counts.add(7)), (n, n));
        }
        counts.add(u64::MAX);
        assert_eq!((counts.get(7), counts.get(6), counts.get(u64::MAX)), (1000, 0, 1));
        assert!(counts.beyond(8).eq([u64::MAX]));
        assert!(counts.beyond(0).eq([7, u64::MAX]));
    }
}
