//! One node: sorted keys, then as many values (reference 2.1).
//!
//! [`NODE`]'s check is made once, when a node is read; the views here rely on nothing but lengths, which they check again,
//! so that not even a wrong node in the cache can lead outside it.

use super::{Value, damaged};
use crate::block::{BLOCK_BYTES, Block, BlockKind};
use crate::{Error, Result};
use core::ops::Range;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
const HEADER_BYTES: usize = size_of::<Header>();
const KEY_BYTES: usize = 8;
const CHILD_BYTES: usize = 8;
/// Keys in two lines of the processor's cache.
const STRIDE: usize = 16;

/// A btree node, of any tree.
pub static NODE: BlockKind = BlockKind { name: "btree node", salt: 121107, number_at: 8, check };

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    csum: U32,
    flags: U32,
    blocknr: U64,
    nr_entries: U32,
    max_entries: U32,
    value_size: U32,
    padding: U32,
}

/// Entries that fit a node, a multiple of three.
pub(super) const fn capacity(value_bytes: usize) -> usize {
    (BLOCK_BYTES - HEADER_BYTES) / (KEY_BYTES + value_bytes) / 3 * 3
}

fn check(block: &Block) -> core::result::Result<(), &'static str> {
    let (header, _) = Header::ref_from_prefix(block).map_err(|_| "it is too short")?;
    let value_bytes = header.value_size.get() as usize;
    match header.flags.get() {
        INTERNAL if value_bytes != CHILD_BYTES => return Err("an internal node's values are not 8 bytes long"),
        INTERNAL if header.nr_entries.get() == 0 => return Err("an internal node has no children"),
        INTERNAL | LEAF => {}
        _ => return Err("it is neither internal node nor leaf"),
    }
    if value_bytes == 0 || value_bytes >= BLOCK_BYTES || header.max_entries.get() as usize != capacity(value_bytes) {
        return Err("its capacity does not fit its value size");
    }
    if header.nr_entries.get() > header.max_entries.get() {
        return Err("it has more entries than it can hold");
    }
    let node = Node::parse(block, 0).map_err(|_| "it is too short")?;
    if node.keys.is_sorted_by(|a, b| a.get() < b.get()) { Ok(()) } else { Err("its keys are out of order") }
}

/// A node to read.
pub struct Node<'a> {
    number: u64,
    internal: bool,
    value_bytes: usize,
    max_entries: usize,
    keys: &'a [U64],
    values: &'a [u8],
}

impl<'a> Node<'a> {
    /// The node in block `number`.
    pub fn parse(block: &'a Block, number: u64) -> Result<Node<'a>> {
        let wrong = || damaged(number, "its entries do not fit");
        let (header, rest) = Header::ref_from_prefix(block).map_err(|_| wrong())?;
        let (value_bytes, max_entries) = (header.value_size.get() as usize, header.max_entries.get() as usize);
        let nr_entries = header.nr_entries.get() as usize;
        let (keys, values) = <[U64]>::ref_from_prefix_with_elems(rest, max_entries).map_err(|_| wrong())?;
        let keys = keys.get(..nr_entries).ok_or_else(wrong)?;
        let values = values.get(..nr_entries.saturating_mul(value_bytes)).ok_or_else(wrong)?;
        let internal = header.flags.get() == INTERNAL;
        Ok(Node { number, internal, value_bytes, max_entries, keys, values })
    }

    /// Its block.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its values are children, not the tree's values.
    pub fn is_internal(&self) -> bool {
        self.internal
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Entries that it can hold.
    pub fn max_entries(&self) -> usize {
        self.max_entries
    }

    /// Nothing more fits.
    pub fn is_full(&self) -> bool {
        self.len() >= self.max_entries
    }

    /// The least number of entries of a node that is no root.
    pub fn floor(&self) -> usize {
        self.max_entries / 3
    }

    /// The key of entry `index`.
    pub fn key(&self, index: usize) -> Option<u64> {
        self.keys.get(index).map(|key| key.get())
    }

    /// The keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + use<'a> {
        self.keys.iter().map(|key| key.get())
    }

    /// The keys in order, as stored.
    pub(super) fn stored_keys(&self) -> &'a [U64] {
        self.keys
    }

    /// Index of the greatest key that is at most `key`.
    pub fn lower_bound(&self, key: u64) -> Option<usize> {
        // Every 16th key first, then the 16 before the first of them that is greater: a cold node's lines are fetched side by
        // side. Each step of a binary search would wait for its own.
        let up_to_key = |k: &&U64| k.get() <= key;
        let begin = self.keys.iter().skip(STRIDE - 1).step_by(STRIDE).filter(up_to_key).count() * STRIDE;
        let within = self.keys.iter().skip(begin).take(STRIDE).filter(up_to_key).count();
        begin.saturating_add(within).checked_sub(1)
    }

    /// Index of `key`, or where it would go.
    pub fn search(&self, key: u64) -> core::result::Result<usize, usize> {
        match self.lower_bound(key) {
            Some(index) if self.key(index) == Some(key) => Ok(index),
            below => Err(below.map_or(0, |index| index.saturating_add(1))),
        }
    }

    /// The values of a leaf.
    pub fn values<T: Value>(&self) -> Result<&'a [T]> {
        let values =
            <[T]>::ref_from_bytes(self.values).ok().filter(|_| !self.internal && self.value_bytes == size_of::<T>());
        values.ok_or(damaged(self.number, "its values are not of the size of this tree's"))
    }

    /// The value of entry `index` of a leaf.
    pub fn value<T: Value>(&self, index: usize) -> Result<T> {
        self.values()?.get(index).copied().ok_or(damaged(self.number, "an entry is missing"))
    }

    /// The children of an internal node, none of a leaf.
    pub fn children(&self) -> impl DoubleEndedIterator<Item = u64> + use<'a> {
        let values = if self.internal { <[U64]>::ref_from_bytes(self.values).unwrap_or_default() } else { &[] };
        values.iter().map(|child| child.get())
    }

    /// Child `index` of an internal node.
    pub fn child(&self, index: usize) -> Result<u64> {
        let at = index.saturating_mul(CHILD_BYTES);
        let bytes = self.values.get(at..).and_then(|tail| tail.first_chunk()).filter(|_| self.internal);
        bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(damaged(self.number, "a child is missing"))
    }
}

/// A node to change.
pub(super) struct NodeMut<'a> {
    header: &'a mut Header,
    keys: &'a mut [U64],
    values: &'a mut [u8],
    number: u64,
}

impl<'a> NodeMut<'a> {
    /// An empty node.
    pub fn format(block: &mut Block, internal: bool, value_bytes: usize) {
        block.fill(0);
        if let Ok((header, _)) = Header::mut_from_prefix(block) {
            header.flags = if internal { INTERNAL } else { LEAF }.into();
            header.max_entries = (capacity(value_bytes) as u32).into();
            header.value_size = (value_bytes as u32).into();
        }
    }

    /// The node in block `number`.
    pub fn parse(block: &'a mut Block, number: u64) -> Result<NodeMut<'a>> {
        let wrong = || damaged(number, "its entries do not fit");
        let (header, rest) = Header::mut_from_prefix(block).map_err(|_| wrong())?;
        let (value_bytes, max_entries) = (header.value_size.get() as usize, header.max_entries.get() as usize);
        let (keys, values) = <[U64]>::mut_from_prefix_with_elems(rest, max_entries).map_err(|_| wrong())?;
        let values = values.get_mut(..max_entries.saturating_mul(value_bytes)).ok_or_else(wrong)?;
        if header.nr_entries.get() as usize > max_entries {
            Err(wrong())
        } else {
            Ok(NodeMut { header, keys, values, number })
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn len(&self) -> usize {
        self.header.nr_entries.get() as usize
    }

    pub fn is_internal(&self) -> bool {
        self.header.flags.get() == INTERNAL
    }

    pub fn value_bytes(&self) -> usize {
        self.header.value_size.get() as usize
    }

    pub fn key(&self, index: usize) -> Option<u64> {
        self.keys.get(..self.len())?.get(index).map(|key| key.get())
    }

    /// Index of `key`, or where it would go.
    pub fn search(&self, key: u64) -> core::result::Result<usize, usize> {
        let keys = self.keys.get(..self.len()).unwrap_or_default();
        // Runs of keys come in at the end.
        if keys.last().is_none_or(|last| last.get() < key) {
            return Err(keys.len());
        }
        keys.binary_search_by_key(&key, |key| key.get())
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.keys.len()
    }

    /// The value of entry `index`.
    pub fn value<T: Value>(&self, index: usize) -> Result<T> {
        let bytes = self.values.get(self.bytes_of(index..index.saturating_add(1)));
        bytes.and_then(|bytes| T::read_from_bytes(bytes).ok()).ok_or(self.entry_error())
    }

    fn set_len(&mut self, len: usize) {
        self.header.nr_entries = (len as u32).into();
    }

    fn bytes_of(&self, entries: Range<usize>) -> Range<usize> {
        let size = self.value_bytes();
        entries.start.saturating_mul(size)..entries.end.saturating_mul(size)
    }

    fn entry_error(&self) -> Error {
        damaged(self.number, "an entry is missing")
    }

    /// Changes the key of entry `index`.
    pub fn set_key(&mut self, index: usize, key: u64) -> Result<()> {
        let error = self.entry_error();
        self.keys.get_mut(index).ok_or(error)?.set(key);
        Ok(())
    }

    /// Changes the value of entry `index`.
    pub fn set_value(&mut self, index: usize, value: &[u8]) -> Result<()> {
        let error = self.entry_error();
        let range = self.bytes_of(index..index.saturating_add(1));
        let place = self.values.get_mut(range).filter(|place| place.len() == value.len());
        place.ok_or(error)?.copy_from_slice(value);
        Ok(())
    }

    /// Points entry `index` of an internal node to `child`.
    pub fn set_child(&mut self, index: usize, child: u64) -> Result<()> {
        self.set_value(index, &child.to_le_bytes())
    }

    /// Inserts an entry before `index`.
    pub fn insert(&mut self, index: usize, key: u64, value: &[u8]) -> Result<()> {
        self.shift(index, index.saturating_add(1))?;
        self.set_key(index, key)?;
        self.set_value(index, value)
    }

    /// Removes entries.
    pub fn remove(&mut self, range: Range<usize>) -> Result<()> {
        self.shift(range.end, range.start)
    }

    /// Moves the entries from `from` on so that they start at `to`, and sets the length accordingly.
    fn shift(&mut self, from: usize, to: usize) -> Result<()> {
        let error = self.entry_error();
        let tail = self.len().checked_sub(from).ok_or(error)?;
        let end = to.checked_add(tail).filter(|end| *end <= self.keys.len()).ok_or(error)?;
        let bytes = self.bytes_of(from..self.len());
        let bytes_to = self.bytes_of(to..to).start;
        self.keys.copy_within(from..from + tail, to);
        self.values.copy_within(bytes, bytes_to);
        self.set_len(end);
        Ok(())
    }

    /// Copies entries of `other` over this node's, from `to` on.
    fn copy(&mut self, to: usize, other: &NodeMut<'_>, range: Range<usize>) -> Result<()> {
        let error = self.entry_error();
        let keys = other.keys.get(range.clone()).ok_or(error)?;
        let values = other.values.get(other.bytes_of(range.clone())).ok_or(error)?;
        let places = to..to.saturating_add(range.len());
        let bytes = self.bytes_of(places.clone());
        self.keys.get_mut(places).ok_or(error)?.copy_from_slice(keys);
        let bytes = self.values.get_mut(bytes).filter(|bytes| bytes.len() == values.len());
        bytes.ok_or(error)?.copy_from_slice(values);
        Ok(())
    }

    /// Moves entries between this node and its right neighbour until this one has `left_len`.
    pub fn spread(&mut self, right: &mut NodeMut<'_>, left_len: usize) -> Result<()> {
        let left = self.len();
        self.check_neighbour(right)?;
        if left_len > left {
            let moved = left_len - left;
            self.copy(left, right, 0..moved)?;
            right.remove(0..moved)?;
        } else {
            let moved = left - left_len;
            right.shift(0, moved)?;
            right.copy(0, self, left_len..left)?;
        }
        self.set_len(left_len);
        Ok(())
    }

    /// Neighbours hold the same kind of entries, and all keys of the left come before those of the right.
    fn check_neighbour(&self, right: &NodeMut<'_>) -> Result<()> {
        if self.is_internal() != right.is_internal() || self.value_bytes() != right.value_bytes() {
            return Err(damaged(right.number, "it is of another kind than its neighbour"));
        }
        let last = self.len().checked_sub(1).and_then(|last| self.key(last));
        match (last, right.key(0)) {
            (Some(last), Some(first)) if last >= first => {
                Err(damaged(right.number, "its keys overlap its neighbour's"))
            }
            _ => Ok(()),
        }
    }
}
