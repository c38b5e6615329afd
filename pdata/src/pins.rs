//! Readers of former commits, and the blocks that they keep from being used again.
//!
//! A [`Pin`] keeps what one commit leads to as it is: none of its blocks is handed out again before the pin is gone. That is
//! dm-thin's own rule (a block is free only if the last commit does not use it, reference 3.3) for more commits than the
//! last. Nothing of it is on disk: after a crash there are no pins, and the maps on disk never knew of any.
//!
//! All pins together are one bitmap to the search for a free block, a bit for a block that any of them uses. Beside it
//! stands which of those have become free: what the pins *hold back*. Each pin takes a bit for a block, at most 508 KiB;
//! those of one commit share it.

use crate::{Error, Result};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, Ref, RefCell};
use platform::sync::Notify;

/// Blocks in a word.
const PER_WORD: u64 = u32::BITS as u64;

/// A bit for each block, 32 a word: as many as a word of a bitmap has counts.
pub(crate) type Bits = Vec<u32>;

/// All pins of one metadata disk. Clones are the same pins.
#[derive(Clone, Default)]
pub struct Pins(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    open: Vec<Entry>,
    next_id: u64,
    /// Commits so far.
    commits: u64,
    /// What any pin uses; empty if there is none.
    union: Bits,
    /// Of those, what is free now, the open transaction included.
    freed: Bits,
    freed_blocks: u64,
    /// Of those, what the last commit does not use.
    held_back: Bits,
    held_back_blocks: u64,
}

struct Entry {
    id: u64,
    /// As of which commit.
    commit: u64,
    used: Rc<Bits>,
}

impl Pins {
    /// Nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().open.is_empty()
    }

    /// Commits so far, and changes of what was taken for the last.
    pub fn commits(&self) -> u64 {
        self.0.borrow().commits
    }

    /// Blocks that the last commit does not use, and that are not free because of pins.
    pub fn held_back_blocks(&self) -> u64 {
        self.0.borrow().held_back_blocks
    }

    /// As [`Pins::held_back_blocks`], as it will be after a commit of what was freed so far.
    pub(crate) fn freed_blocks(&self) -> u64 {
        self.0.borrow().freed_blocks
    }

    /// What is pinned of the blocks of words from `first` on: nothing if there are no pins.
    pub(crate) fn words(&self, first: u64) -> Ref<'_, [u32]> {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        Ref::map(self.0.borrow(), |state| state.union.get(first..).unwrap_or_default())
    }

    /// The count of a block changed to `count`.
    pub(crate) fn changed(&self, block: u64, count: u32) {
        let state = &mut *self.0.borrow_mut();
        if state.open.is_empty() || !get(&state.union, block) {
            return;
        }
        let free = count == 0;
        if free != get(&state.freed, block) {
            set(&mut state.freed, block, free);
            let change = if free { 1 } else { -1 };
            state.freed_blocks = state.freed_blocks.saturating_add_signed(change);
        }
    }

    /// The open transaction is committed.
    pub(crate) fn committed(&self) {
        let state = &mut *self.0.borrow_mut();
        state.commits = state.commits.saturating_add(1);
        state.held_back.clone_from(&state.freed);
        state.held_back_blocks = state.freed_blocks;
    }

    /// The open transaction was dropped, and the last commit was found to use `used`: it may be one whose end was not
    /// heard of.
    pub(crate) fn reopened(&self, used: &[u32]) {
        let state = &mut *self.0.borrow_mut();
        state.commits = state.commits.saturating_add(1);
        let now = used.iter().chain(core::iter::repeat(&0));
        state.freed = state.union.iter().zip(now).map(|(all, now)| all & !now).collect();
        state.freed_blocks = ones(&state.freed);
        state.held_back.clone_from(&state.freed);
        state.held_back_blocks = state.freed_blocks;
    }

    /// What a pin of the last commit uses, if one is open.
    pub(crate) fn of_last_commit(&self) -> Option<Rc<Bits>> {
        let state = self.0.borrow();
        let last = state.open.last().filter(|entry| entry.commit == state.commits);
        last.map(|entry| entry.used.clone())
    }

    /// Pins `used`, which is what the last commit uses.
    pub(crate) fn pin(&self, used: Rc<Bits>) -> Rc<Pin> {
        let state = &mut *self.0.borrow_mut();
        for bits in [&mut state.union, &mut state.freed, &mut state.held_back] {
            bits.resize(bits.len().max(used.len()), 0);
        }
        state.union.iter_mut().zip(used.iter()).for_each(|(all, one)| *all |= one);
        let id = state.next_id;
        state.next_id = id.saturating_add(1);
        let commit = state.commits;
        state.open.push(Entry { id, commit, used });
        let pins = Rc::downgrade(&self.0);
        Rc::new(Pin { pins, id, commit, ended: Cell::new(false), reads: Cell::new(0), idle: Notify::new() })
    }
}

impl State {
    fn unpin(&mut self, id: u64) {
        let Some(at) = self.open.iter().position(|entry| entry.id == id) else { return };
        self.open.remove(at);
        self.union.clear();
        for entry in &self.open {
            self.union.resize(self.union.len().max(entry.used.len()), 0);
            self.union.iter_mut().zip(entry.used.iter()).for_each(|(all, one)| *all |= one);
        }
        for bits in [&mut self.freed, &mut self.held_back] {
            bits.truncate(self.union.len());
            bits.iter_mut().zip(&self.union).for_each(|(one, all)| *one &= all);
        }
        self.freed_blocks = ones(&self.freed);
        self.held_back_blocks = ones(&self.held_back);
        if self.open.is_empty() {
            // The memory, too.
            (self.union, self.freed, self.held_back) = Default::default();
        }
    }
}

/// A reader's hold on one commit: until it is dropped, or ended, that stays on disk as it is.
pub struct Pin {
    pins: Weak<RefCell<State>>,
    id: u64,
    commit: u64,
    ended: Cell<bool>,
    /// Reads under way.
    reads: Cell<usize>,
    idle: Notify,
}

impl Pin {
    /// Which commit it pins, as [`Pins::commits`] counts them.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// Blocks that it holds back, alone or with others; none once it is let go of for good.
    pub fn held_back_blocks(&self) -> Option<u64> {
        let state = self.pins.upgrade()?;
        let state = state.borrow();
        let entry = state.open.iter().find(|entry| entry.id == self.id)?;
        let mine = state.held_back.iter().zip(entry.used.iter());
        Some(mine.map(|(held_back, used)| u64::from((held_back & used).count_ones())).sum())
    }

    /// It was let go of: nothing more can be read.
    pub fn is_ended(&self) -> bool {
        self.ended.get()
    }

    /// Lets go of the commit although somebody reads it: reads that begin fail with [`Error::Ended`] from now on. Those under
    /// way are awaited.
    pub async fn end(&self) {
        self.ended.set(true);
        loop {
            let idle = self.idle.notified();
            if self.reads.get() == 0 {
                break;
            }
            idle.await;
        }
        self.unpin();
    }

    /// As [`Pin::end`], for a commit that is no longer what it was: nobody waits for reads under way.
    pub fn revoke(&self) {
        self.ended.set(true);
        self.unpin();
    }

    /// A read that [`Pin::end`] waits for.
    pub(crate) fn begin_read(self: &Rc<Self>) -> Result<Reading> {
        // Without whom it was pinned by, nothing is.
        if self.ended.get() || self.pins.strong_count() == 0 {
            return Err(Error::Ended);
        }
        self.reads.set(self.reads.get().saturating_add(1));
        Ok(Reading(self.clone()))
    }

    fn unpin(&self) {
        if let Some(state) = self.pins.upgrade() {
            state.borrow_mut().unpin(self.id);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.unpin();
    }
}

/// A read under way.
pub(crate) struct Reading(Rc<Pin>);

impl Drop for Reading {
    fn drop(&mut self) {
        let left = self.0.reads.get().saturating_sub(1);
        self.0.reads.set(left);
        if left == 0 {
            self.0.idle.notify_all();
        }
    }
}

fn place(block: u64) -> (usize, u32) {
    (usize::try_from(block / PER_WORD).unwrap_or(usize::MAX), 1 << (block % PER_WORD))
}

fn get(bits: &[u32], block: u64) -> bool {
    let (word, bit) = place(block);
    bits.get(word).is_some_and(|word| word & bit != 0)
}

fn set(bits: &mut [u32], block: u64, value: bool) {
    let (word, bit) = place(block);
    if let Some(word) = bits.get_mut(word) {
        *word = if value { *word | bit } else { *word & !bit };
    }
}

fn ones(bits: &[u32]) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use platform::random::{Random, Seeded};

    const BLOCKS: u64 = 100;

    type Blocks = BTreeSet<u64>;

    fn bits(blocks: &Blocks) -> Bits {
        let mut bits = vec![0; BLOCKS.div_ceil(PER_WORD) as usize];
        blocks.iter().for_each(|block| set(&mut bits, *block, true));
        bits
    }

    fn below(dice: &Seeded, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        dice.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }

    /// What is pinned, and what of it is held back, while blocks are taken and freed, commits are made and lost, and pins come
    /// and go.
    #[test]
    fn pins_agree_with_sets_of_blocks() {
        for seed in 0..8 {
            let dice = Seeded::from_u64(seed);
            let pins = Pins::default();
            let (mut now, mut committed, mut commits) = (Blocks::new(), Blocks::new(), 0);
            let mut open: Vec<(Rc<Pin>, Blocks)> = Vec::new();
            for step in 0..400 {
                match below(&dice, 12) {
                    0 => {
                        now.clone_from(&committed);
                        pins.reopened(&bits(&committed));
                        commits += 1;
                    }
                    change @ 1..=2 => {
                        committed.clone_from(&now);
                        pins.committed();
                        commits += 1;
                        if change == 2 {
                            open.push((pins.pin(Rc::new(bits(&now))), now.clone()));
                        }
                    }
                    3 if !open.is_empty() => drop(open.remove(below(&dice, open.len() as u64) as usize)),
                    _ => {
                        let (block, count) = (below(&dice, BLOCKS), below(&dice, 4) as u32);
                        if count > 0 {
                            now.insert(block)
                        } else {
                            now.remove(&block)
                        };
                        pins.changed(block, count);
                    }
                }
                let told = (seed, step);
                let all: Blocks = open.iter().flat_map(|(_, used)| used.iter().copied()).collect();
                let pinned: Blocks = (0..BLOCKS).filter(|block| get(&pins.words(0), *block)).collect();
                assert_eq!(pinned, all, "{told:?}");
                assert_eq!(*pins.words(1), *pins.words(0).get(1..).unwrap_or_default(), "{told:?}");
                assert_eq!(pins.held_back_blocks(), all.difference(&committed).count() as u64, "{told:?}");
                assert_eq!(pins.freed_blocks(), all.difference(&now).count() as u64, "{told:?}");
                for (pin, used) in &open {
                    let held_back = used.difference(&committed).count() as u64;
                    assert_eq!(pin.held_back_blocks(), Some(held_back), "{told:?}");
                }
                assert_eq!((pins.is_empty(), pins.commits()), (open.is_empty(), commits), "{told:?}");
                let last = open.last().filter(|(pin, _)| pin.commit() == commits).map(|(_, used)| bits(used));
                assert_eq!(pins.of_last_commit().map(|used| used.to_vec()), last, "{told:?}");
            }
        }
    }
}
