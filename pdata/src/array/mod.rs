//! Arrays of values of one size, in a tree from block index to array block (reference 2.4).
//!
//! All blocks but the last are full. How long an array is, its target must know, as it must know its root: Linux keeps both
//! in the superblock. Every change returns the new root.
//!
//! Values are owned as in a [`BTree`]: what is set belongs to the array, what was there before belongs to the caller. The
//! array itself counts references, by the [`ValueType`], where a whole block is duplicated or dropped, and where
//! [`Array::resize`] fills or shortens.

mod block;

pub use block::ARRAY;
pub(crate) use block::values;

use crate::block_manager::{BlockManager, BlockMut, Stop};
use crate::btree::{BTree, Plain, ValueType};
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::vec;
use alloc::vec::Vec;
use block::{capacity, damaged, format, set_len, values_mut};
use core::iter::Peekable;
use zerocopy::little_endian::U64;

/// Values of the tree: each refers to an array block.
struct Blocks<V>(V);

impl<V: ValueType> ValueType for Blocks<V> {
    type Value = U64;

    async fn inc(&self, tm: &TransactionManager, blocks: &[U64]) -> Result<()> {
        blocks.iter().for_each(|block| tm.inc(block.get()));
        Ok(())
    }

    async fn dec(&self, tm: &TransactionManager, blocks: &[U64]) -> Result<()> {
        for block in blocks {
            let number = block.get();
            match tm.count(number).await? {
                0 => return Err(Error::BadCount { block: number, count: 0, by: -1 }),
                1 => {
                    let block = tm.blocks().read(number, &ARRAY).await?;
                    let dropped = values::<V::Value>(&block.bytes(), number)?.to_vec();
                    self.0.dec(tm, &dropped).await?;
                }
                _ => {}
            }
            tm.dec(number);
            tm.settle_some().await?;
        }
        Ok(())
    }
}

/// The operations on arrays of one value type.
pub struct Array<V> {
    tree: BTree<Blocks<V>>,
}

impl<T> Array<Plain<T>> {
    /// Arrays of values that refer to nothing.
    pub const fn plain() -> Array<Plain<T>> {
        Array::new(Plain::new())
    }
}

impl<V> Array<V> {
    /// Arrays of values of this type.
    pub const fn new(values: V) -> Array<V> {
        Array { tree: BTree::new(Blocks(values)) }
    }
}

impl<V: ValueType> Array<V> {
    /// Values in a block.
    pub const CAPACITY: u64 = capacity(size_of::<V::Value>()) as u64;

    /// An array of no values.
    pub async fn create(&self, tm: &TransactionManager) -> Result<u64> {
        self.tree.create(tm).await
    }

    /// Drops one reference to an array, and what nobody else refers to.
    pub async fn delete(&self, tm: &TransactionManager, root: u64) -> Result<()> {
        self.tree.delete(tm, root).await
    }

    /// The value at an index, which must be below the array's length.
    pub fn try_get(&self, blocks: &BlockManager, root: u64, index: u64) -> Result<V::Value, Stop> {
        let beyond = Stop::Failed(too_short(root));
        let number = self.tree.try_lookup(blocks, root, index / Self::CAPACITY)?.ok_or(beyond)?.get();
        let block = blocks.try_read(number, &ARRAY)?;
        let bytes = block.bytes();
        let found = values(&bytes, number)?.get((index % Self::CAPACITY) as usize);
        found.copied().ok_or(beyond)
    }

    /// Sets the value at an index, which must be below the array's length. Returns the new root, and the value that was there.
    pub async fn set(
        &self,
        tm: &TransactionManager,
        root: u64,
        index: u64,
        value: V::Value,
    ) -> Result<(u64, V::Value)> {
        let (root, block) = self.own_block(tm, root, index / Self::CAPACITY).await?;
        let place = (index % Self::CAPACITY) as usize;
        let before = edit(&block, |values: &mut [V::Value]| {
            let place = values.get_mut(place).ok_or(too_short(root))?;
            Ok(core::mem::replace(place, value))
        })?;
        Ok((root, before))
    }

    /// Changes the values of block `k` together.
    pub(crate) async fn edit_block(
        &self,
        tm: &TransactionManager,
        root: u64,
        k: u64,
        change: impl FnOnce(&mut [V::Value]) -> Result<()>,
    ) -> Result<u64> {
        let (root, block) = self.own_block(tm, root, k).await?;
        edit(&block, change)?;
        Ok(root)
    }

    /// Appends values to an array of `len`. Returns the new root.
    pub async fn extend(
        &self,
        tm: &TransactionManager,
        root: u64,
        len: u64,
        values: impl IntoIterator<Item = V::Value>,
    ) -> Result<u64> {
        let mut root = root;
        let mut values = values.into_iter().peekable();
        let (mut k, last_len) = (len / Self::CAPACITY, (len % Self::CAPACITY) as usize);
        if last_len > 0 && values.peek().is_some() {
            let (new_root, block) = self.own_block(tm, root, k).await?;
            append::<V>(&block, last_len, &mut values)?;
            (root, k) = (new_root, k.saturating_add(1));
        }
        while values.peek().is_some() {
            let block = tm.new_block(&ARRAY).await?;
            format::<V::Value>(&mut block.bytes_mut());
            append::<V>(&block, 0, &mut values)?;
            let (new_root, before) = self.tree.insert(tm, root, k, block.number().into()).await?;
            if before.is_some() {
                return Err(damaged(block.number(), "it takes the place of one beyond the array's end"));
            }
            (root, k) = (new_root, k.saturating_add(1));
            tm.settle_some().await?;
        }
        Ok(root)
    }

    /// Changes the length from `from` to `to`: what comes in is `fill`, referred to once more for each, what drops out is
    /// referred to once less. Returns the new root.
    pub async fn resize(&self, tm: &TransactionManager, root: u64, from: u64, to: u64, fill: V::Value) -> Result<u64> {
        if to < from {
            return self.shorten(tm, root, from, to).await;
        }
        let mut left = to.saturating_sub(from);
        while left > 0 {
            let some = left.min(Self::CAPACITY);
            self.values().inc(tm, &vec![fill; some as usize]).await?;
            left -= some;
        }
        let more = usize::try_from(to.saturating_sub(from)).map_err(|_| Error::NoMemory)?;
        self.extend(tm, root, from, core::iter::repeat_n(fill, more)).await
    }

    async fn shorten(&self, tm: &TransactionManager, root: u64, from: u64, to: u64) -> Result<u64> {
        let mut root = root;
        for k in (to.div_ceil(Self::CAPACITY)..from.div_ceil(Self::CAPACITY)).rev() {
            let (new_root, block) = self.tree.remove(tm, root, k).await?;
            root = new_root;
            let block = block.ok_or(too_short(root))?;
            self.tree.value_type().dec(tm, &[block]).await?;
        }
        let last_len = (to % Self::CAPACITY) as usize;
        if last_len > 0 {
            let (new_root, block) = self.own_block(tm, root, to / Self::CAPACITY).await?;
            root = new_root;
            let dropped: Vec<_> =
                edit(&block, |values: &mut [V::Value]| Ok(values.get(last_len..).unwrap_or_default().to_vec()))?;
            set_len(&mut block.bytes_mut(), block.number(), last_len)?;
            self.values().dec(tm, &dropped).await?;
        }
        Ok(root)
    }

    /// Shows all values in order. Up to `read_ahead` blocks are read together.
    pub async fn scan(
        &self,
        blocks: &BlockManager,
        root: u64,
        read_ahead: usize,
        mut visit: impl FnMut(u64, V::Value),
    ) -> Result<()> {
        let read_ahead = blocks.read_ahead(read_ahead);
        let mut cursor = self.tree.cursor(blocks, root, 0, read_ahead);
        loop {
            let mut some = Vec::new();
            while some.len() < read_ahead
                && let Some((k, number)) = cursor.next().await?
            {
                some.push((k.saturating_mul(Self::CAPACITY), number.get()));
            }
            if some.is_empty() {
                return Ok(());
            }
            let read = blocks.read_many(some.iter().map(|(_, number)| *number), &ARRAY).await?;
            for ((first, number), block) in some.into_iter().zip(read) {
                let bytes = block.bytes();
                (first..).zip(values(&bytes, number)?).for_each(|(index, value)| visit(index, *value));
            }
        }
    }

    fn values(&self) -> &V {
        &self.tree.value_type().0
    }

    /// Block `k`, to change, and the new root.
    async fn own_block<'a>(&self, tm: &'a TransactionManager, root: u64, k: u64) -> Result<(u64, BlockMut<'a>)> {
        let found = tm.blocks().look(|blocks| self.tree.try_lookup(blocks, root, k)).await?;
        let old = found.ok_or(too_short(root))?;
        // The way to the block comes first: where another array shares it, only then is the block known to be shared.
        let (root, _) = self.tree.insert(tm, root, k, old).await?;
        let shadow = tm.shadow(old.get(), &ARRAY).await?;
        let block = shadow.block;
        if shadow.duplicated {
            let copied = values::<V::Value>(&block.bytes(), block.number())?.to_vec();
            self.values().inc(tm, &copied).await?;
        }
        if block.number() == old.get() {
            return Ok((root, block));
        }
        let (root, _) = self.tree.insert(tm, root, k, block.number().into()).await?;
        Ok((root, block))
    }
}

/// An array has no value where its target says that there is one.
pub(crate) fn too_short(root: u64) -> Error {
    Error::Damaged { block: root, kind: "array", what: "it is too short for an index in use" }
}

/// Changes the values of a shadowed block.
fn edit<T: crate::btree::Value, R>(block: &BlockMut<'_>, change: impl FnOnce(&mut [T]) -> Result<R>) -> Result<R> {
    change(values_mut(&mut block.bytes_mut(), block.number())?)
}

/// Appends what fits to a block of `len` values.
fn append<V: ValueType>(
    block: &BlockMut<'_>,
    len: usize,
    values: &mut Peekable<impl Iterator<Item = V::Value>>,
) -> Result<()> {
    let number = block.number();
    let mut bytes = block.bytes_mut();
    if values_mut::<V::Value>(&mut bytes, number)?.len() != len {
        return Err(damaged(number, "it is not as long as its array says"));
    }
    let space = capacity(size_of::<V::Value>()).saturating_sub(len);
    let some: Vec<_> = values.take(space).collect();
    set_len(&mut bytes, number, len.saturating_add(some.len()))?;
    let places = values_mut(&mut bytes, number)?.iter_mut().skip(len);
    places.zip(some).for_each(|(place, value): (&mut V::Value, _)| *place = value);
    Ok(())
}
