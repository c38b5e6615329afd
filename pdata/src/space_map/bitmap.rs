//! One bitmap block: 16,320 counts of two bits (reference 2.2).

use crate::block::{Block, BlockKind};
use core::ops::Range;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

/// Counts in a bitmap.
pub const ENTRIES_PER_BITMAP: u64 = 16320;

/// Bytes before the counts: checksum, padding, block number.
const HEADER_BYTES: usize = 16;

/// Counts in a word.
const PER_WORD: u64 = 32;

/// Words in a bitmap.
pub(crate) const WORDS_PER_BITMAP: u64 = ENTRIES_PER_BITMAP / PER_WORD;

/// The upper bit of every pair.
const UPPER: u64 = 0xAAAA_AAAA_AAAA_AAAA;

/// Recognised by its salt alone: every bit pattern is a valid bitmap.
pub(crate) static BITMAP: BlockKind =
    BlockKind { name: "space map bitmap", salt: 240779, number_at: 8, check: |_| Ok(()) };

/// The stored value that stands for "3 or more".
pub(crate) const MANY: u32 = 3;

/// A word of counts of 0.
pub(crate) const ALL_0: u64 = 0;

/// A word of counts of 1.
pub(crate) const ALL_1: u64 = UPPER;

/// The counts, 32 a word.
pub(crate) fn words(block: &Block) -> &[U64] {
    block.get(HEADER_BYTES..).and_then(|bytes| <[U64]>::ref_from_bytes(bytes).ok()).unwrap_or_default()
}

fn words_mut(block: &mut Block) -> Option<&mut [U64]> {
    <[U64]>::mut_from_bytes(block.get_mut(HEADER_BYTES..)?).ok()
}

/// The pair's lower bit weighs 2 and its upper bit 1.
fn swap(pair: u64) -> u64 {
    (pair & 1) << 1 | pair >> 1
}

/// The count of entry `index`: 0, 1, 2 or [`MANY`]. Beyond the bitmap: 0.
pub(crate) fn get(block: &Block, index: u64) -> u32 {
    let word = usize::try_from(index / PER_WORD).ok().and_then(|at| words(block).get(at)).map_or(0, |w| w.get());
    swap(word >> (index % PER_WORD * 2) & 3) as u32
}

/// Sets the count of entry `index` to `count`, at most [`MANY`].
pub(crate) fn set(block: &mut Block, index: u64, count: u32) {
    let at = usize::try_from(index / PER_WORD).unwrap_or(usize::MAX);
    if let Some(word) = words_mut(block).and_then(|w| w.get_mut(at)) {
        let shift = index % PER_WORD * 2;
        let pair = swap(u64::from(count.min(MANY)));
        word.set(word.get() & !(3 << shift) | pair << shift);
    }
}

/// The first entry in `range` that is 0 here, and in `committed` too if that is another block, and not skipped. A bit of
/// `pinned` stands for one that is in use nonetheless; behind its end there are none.
pub(crate) fn find_free(
    block: &Block,
    committed: Option<&Block>,
    pinned: &[u32],
    range: Range<u64>,
    mut skip: impl FnMut(u64) -> bool,
) -> Option<u64> {
    let current = words(block);
    let committed = committed.map_or(current, words);
    let first = usize::try_from(range.start / PER_WORD).ok()?;
    for (word, (a, b)) in (range.start / PER_WORD..).zip(current.iter().zip(committed).skip(first)) {
        let (begin, used) = (word * PER_WORD, a.get() | b.get());
        if begin >= range.end {
            return None;
        }
        // A pair is free if both of its bits are clear; one bit for each, in the upper place.
        let mut free = !(used | used << 1) & UPPER;
        if free != 0
            && let Some(pinned) = usize::try_from(word).ok().and_then(|word| pinned.get(word))
        {
            free &= !upper_bits(*pinned);
        }
        while free != 0 {
            let index = begin + u64::from(free.trailing_zeros() / 2);
            free &= free - 1;
            if range.contains(&index) && !skip(index) {
                return Some(index);
            }
        }
    }
    None
}

/// Entries of `range` that are 0.
pub(crate) fn free(block: &Block, range: Range<u64>) -> u64 {
    let below = |place: u64| !u64::MAX.checked_shl(u32::try_from(2 * place).unwrap_or(u32::MAX)).unwrap_or(0);
    let free_in = |(word, pairs): (u64, &U64)| {
        let inside = [range.end, range.start].map(|end| below(end.saturating_sub(word * PER_WORD).min(PER_WORD)));
        let free = !(pairs.get() | pairs.get() << 1) & UPPER;
        u64::from((free & inside[0] & !inside[1]).count_ones())
    };
    (0..).zip(words(block)).map(free_in).sum()
}

/// Bit `i` in the upper place of pair `i`.
fn upper_bits(bits: u32) -> u64 {
    let spread = [(16, 0x0000_FFFF_0000_FFFF), (8, 0x00FF_00FF_00FF_00FF), (4, 0x0F0F_0F0F_0F0F_0F0F)];
    let spread = spread.into_iter().chain([(2, 0x3333_3333_3333_3333), (1, 0x5555_5555_5555_5555)]);
    spread.fold(u64::from(bits), |bits, (shift, mask)| (bits | bits << shift) & mask) << 1
}

/// A bit for each entry that is not 0, 32 a word.
pub(crate) fn used_bits(block: &Block) -> impl Iterator<Item = u32> {
    words(block).iter().map(|word| {
        let used = (word.get() | word.get() << 1) & UPPER;
        let unspread = [(1, 0x3333_3333_3333_3333), (2, 0x0F0F_0F0F_0F0F_0F0F), (4, 0x00FF_00FF_00FF_00FF)];
        let unspread = unspread.into_iter().chain([(8, 0x0000_FFFF_0000_FFFF), (16, 0x0000_0000_FFFF_FFFF)]);
        unspread.fold(used >> 1, |bits: u64, (shift, mask)| (bits | bits >> shift) & mask) as u32
    })
}

/// Entries that are not 0.
pub(crate) fn used(block: &Block) -> u64 {
    words(block).iter().map(|w| u64::from(((w.get() | w.get() << 1) & UPPER).count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_1_the_pair_is_swapped() {
        let mut block = [0; 4096];
        for (index, count) in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2), (8, 3), (16319, 1)] {
            set(&mut block, index, count);
        }
        assert_eq!(block[16..19], [0xAA, 0x55, 0x03]);
        assert_eq!(block[4095], 0x80);
        assert_eq!([0, 4, 8, 9, 16319].map(|i| get(&block, i)), [1, 2, 3, 0, 1]);
        set(&mut block, 4, 0);
        assert_eq!((get(&block, 4), get(&block, 5), used(&block)), (0, 2, 9));
    }

    #[test]
    fn free_means_free_in_both_and_not_skipped() {
        let (mut now, mut before) = ([0; 4096], [0; 4096]);
        (0..40).for_each(|i| set(&mut now, i, 1 + i as u32 % 3));
        (42..45).for_each(|i| set(&mut before, i, 1));
        assert_eq!(find_free(&now, None, &[], 0..16320, |_| false), Some(40));
        assert_eq!(find_free(&now, Some(&before), &[], 41..16320, |_| false), Some(41));
        assert_eq!(find_free(&now, Some(&before), &[], 42..16320, |i| i == 45), Some(46));
        assert_eq!(find_free(&now, Some(&before), &[], 42..45, |_| false), None);
        assert_eq!(find_free(&now, None, &[], 16319..16320, |_| false), Some(16319));
    }

    #[test]
    fn what_is_pinned_is_not_free() {
        let mut now = [0; 4096];
        (0..40).for_each(|i| set(&mut now, i, 1 + i as u32 % 3));
        let bits: alloc::vec::Vec<u32> = used_bits(&now).collect();
        assert_eq!((bits.len() as u64 * 32, bits[..3].to_vec()), (ENTRIES_PER_BITMAP, [u32::MAX, 0xFF, 0].into()));
        let pinned = [0, 0x0000_8100, 0xFFFF_FFFE];
        let free: alloc::vec::Vec<u64> =
            (0..100).filter(|i| find_free(&now, None, &pinned, *i..*i + 1, |_| false).is_some()).collect();
        let expected = (41..47).chain(48..65).chain(96..100).collect::<alloc::vec::Vec<u64>>();
        assert_eq!(free, expected);
        assert_eq!(find_free(&now, None, &pinned, 0..16320, |i| i < 65), Some(96));
        for bit in 0..32 {
            assert_eq!(upper_bits(1 << bit), 2 << (2 * bit));
        }
    }

    #[test]
    fn what_is_free_is_counted_from_any_entry_to_any_other() {
        let mut block = [0; 4096];
        [3, 31, 32, 64, 16319].into_iter().for_each(|index| set(&mut block, index, 1));
        for range in [0..16320, 0..0, 3..4, 4..31, 31..33, 30..65, 16319..16320, 100..16320, 5..16319] {
            let expected = range.clone().filter(|index| get(&block, *index) == 0).count() as u64;
            assert_eq!(free(&block, range.clone()), expected, "{range:?}");
        }
    }
}
