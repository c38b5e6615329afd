//! Bitsets: arrays of 64-bit words, bit n in word n / 64 (reference 2.4).
//!
//! Changed words are kept in core until [`Bitset::flush`], so that bits set one by one cost no walk through the array each.

use crate::array::{Array, too_short};
use crate::block_manager::{BlockManager, Stop};
use crate::btree::Plain;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::collections::BTreeMap;
use core::iter::Peekable;
use zerocopy::little_endian::U64;

const WORDS: Array<Plain<U64>> = Array::plain();

const WORD_BITS: u64 = 64;

/// Changed words that are kept in core: 64 KiB.
const CHANGED_MAX: usize = 8192;

/// A bitset. Bits beyond its end are zero on disk.
pub struct Bitset {
    root: u64,
    len_bits: u64,
    changed: BTreeMap<u64, u64>,
}

impl Bitset {
    /// A bitset of no bits.
    pub async fn create(tm: &TransactionManager) -> Result<Bitset> {
        Ok(Bitset::open(WORDS.create(tm).await?, 0))
    }

    /// The bitset of `len_bits` at `root`.
    pub fn open(root: u64, len_bits: u64) -> Bitset {
        Bitset { root, len_bits, changed: BTreeMap::new() }
    }

    /// Bits.
    pub fn len_bits(&self) -> u64 {
        self.len_bits
    }

    /// Whether a bit is set; it must be below the length.
    pub fn try_test(&self, blocks: &BlockManager, bit: u64) -> Result<bool, Stop> {
        let word = self.try_word(blocks, self.check(bit)?)?;
        Ok(word >> (bit % WORD_BITS) & 1 == 1)
    }

    /// Sets or clears a bit; it must be below the length.
    pub async fn set(&mut self, tm: &TransactionManager, bit: u64, value: bool) -> Result<()> {
        let word = self.check(bit)?;
        let before = tm.blocks().look(|blocks| self.try_word(blocks, word)).await?;
        let mask = 1 << (bit % WORD_BITS);
        let after = if value { before | mask } else { before & !mask };
        self.change(tm, word, before, after).await
    }

    /// Appends bits.
    pub async fn extend(&mut self, tm: &TransactionManager, bits: impl IntoIterator<Item = bool>) -> Result<()> {
        let mut bits = bits.into_iter().peekable();
        let used_bits = self.len_bits % WORD_BITS;
        if used_bits > 0 && bits.peek().is_some() {
            let word = self.len_bits / WORD_BITS;
            let before = tm.blocks().look(|blocks| self.try_word(blocks, word)).await?;
            // Others may have left something beyond the end.
            let kept = before & low_bits(used_bits);
            let (more, count) = pack(&mut bits, WORD_BITS.saturating_sub(used_bits));
            self.change(tm, word, before, kept | more << used_bits).await?;
            self.len_bits = self.len_bits.saturating_add(count);
        }
        let words = self.len_bits / WORD_BITS;
        let mut added_bits: u64 = 0;
        let packed = core::iter::from_fn(|| {
            bits.peek()?;
            let (word, count) = pack(&mut bits, WORD_BITS);
            added_bits = added_bits.saturating_add(count);
            Some(U64::new(word))
        });
        self.root = WORDS.extend(tm, self.root, words, packed).await?;
        self.len_bits = self.len_bits.saturating_add(added_bits);
        Ok(())
    }

    /// Changes the length; what comes in is `fill`.
    pub async fn resize(&mut self, tm: &TransactionManager, len_bits: u64, fill: bool) -> Result<()> {
        if let Some(more) = len_bits.checked_sub(self.len_bits) {
            let more = usize::try_from(more).map_err(|_| Error::NoMemory)?;
            return self.extend(tm, core::iter::repeat_n(fill, more)).await;
        }
        let (from, to) = (self.len_bits.div_ceil(WORD_BITS), len_bits.div_ceil(WORD_BITS));
        self.changed.retain(|word, _| *word < to);
        self.root = WORDS.resize(tm, self.root, from, to, U64::ZERO).await?;
        self.len_bits = len_bits;
        let used_bits = len_bits % WORD_BITS;
        if used_bits > 0 {
            let word = len_bits / WORD_BITS;
            let before = tm.blocks().look(|blocks| self.try_word(blocks, word)).await?;
            self.change(tm, word, before, before & low_bits(used_bits)).await?;
        }
        Ok(())
    }

    /// Shows all bits in order. Up to `read_ahead` blocks are read together.
    pub async fn scan(&self, blocks: &BlockManager, read_ahead: usize, mut visit: impl FnMut(u64, bool)) -> Result<()> {
        let see = |index: u64, stored: U64| {
            let word = self.changed.get(&index).copied().unwrap_or(stored.get());
            let first = index.saturating_mul(WORD_BITS);
            let end = self.len_bits.min(first.saturating_add(WORD_BITS));
            (first..end).for_each(|bit| visit(bit, word >> (bit - first) & 1 == 1));
        };
        WORDS.scan(blocks, self.root, read_ahead, see).await
    }

    /// Writes the changed words into the array. Returns its root: what belongs into the superblock.
    pub async fn flush(&mut self, tm: &TransactionManager) -> Result<u64> {
        while let Some((first, _)) = self.changed.first_key_value() {
            let k = first / Array::<Plain<U64>>::CAPACITY;
            let (begin, end) = (k.saturating_mul(CAPACITY), k.saturating_add(1).saturating_mul(CAPACITY));
            let change = |words: &mut [U64]| {
                for (index, word) in self.changed.range(begin..end) {
                    let place = words.get_mut((index % CAPACITY) as usize);
                    place.ok_or(too_short(self.root))?.set(*word);
                }
                Ok(())
            };
            self.root = WORDS.edit_block(tm, self.root, k, change).await?;
            self.changed = self.changed.split_off(&end);
            tm.settle_some().await?;
        }
        Ok(self.root)
    }

    /// Frees a bitset that is part of no superblock any more.
    pub async fn delete(self, tm: &TransactionManager) -> Result<()> {
        WORDS.delete(tm, self.root).await
    }

    /// The word of a bit.
    fn check(&self, bit: u64) -> Result<u64> {
        let inside = Some(bit / WORD_BITS).filter(|_| bit < self.len_bits);
        inside.ok_or(too_short(self.root))
    }

    fn try_word(&self, blocks: &BlockManager, word: u64) -> Result<u64, Stop> {
        match self.changed.get(&word) {
            Some(changed) => Ok(*changed),
            None => Ok(WORDS.try_get(blocks, self.root, word)?.get()),
        }
    }

    async fn change(&mut self, tm: &TransactionManager, word: u64, before: u64, after: u64) -> Result<()> {
        if before != after {
            self.changed.insert(word, after);
        }
        if self.changed.len() > CHANGED_MAX { self.flush(tm).await.map(|_| ()) } else { Ok(()) }
    }
}

/// Words in an array block.
const CAPACITY: u64 = Array::<Plain<U64>>::CAPACITY;

fn low_bits(count: u64) -> u64 {
    (1 << count) - 1
}

/// Up to `most` bits in a word, the first the lowest, and how many there were.
fn pack(bits: &mut Peekable<impl Iterator<Item = bool>>, most: u64) -> (u64, u64) {
    (0..most).zip(bits).fold((0, 0), |(word, count), (place, bit)| (word | u64::from(bit) << place, count + 1))
}
