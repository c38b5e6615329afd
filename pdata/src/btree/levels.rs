//! Keys of several levels: trees whose values are the roots of trees (reference 4.3, 4.6).
//!
//! Each level is a tree of its own with its own value type, so three levels are a `BTree<Roots<Roots<V>>>`. A target that
//! changes one lower tree often keeps that tree's root at hand and tells the upper one at commit; all others go through
//! [`BTree::change_lower`].
//!
//! ```
//! use pdata::{TransactionManager, block_manager::BlockManager, btree::{BTree, Plain, Roots}};
//! # use platform::{block::Disk, buf::BufPool, mem::MemDisk, task::block_on_ready};
//! use zerocopy::little_endian::U64;
//!
//! # block_on_ready(async {
//! # let disk = Disk::new(MemDisk::new(8 * 1024));
//! # let blocks = BlockManager::new(disk, BufPool::new(1 << 20), 64);
//! # let tm = TransactionManager::create(blocks, 1024).await?;
//! let tree = BTree::new(Roots::new(BTree::<Plain<U64>>::plain()));
//! let root = tree.create(&tm).await?;
//! // Value 7 at key (3, 5): the tree of 3 is made on the way.
//! let insert = async |lower: &BTree<_>, root| lower.insert(&tm, root, 5, U64::new(7)).await;
//! let (root, before) = tree.change_lower(&tm, root, 3, insert).await?;
//! assert_eq!(before, None);
//! # Ok::<(), pdata::Error>(())
//! # }).unwrap();
//! ```

use super::{BTree, ValueType};
use crate::Result;
use crate::transaction_manager::TransactionManager;
use zerocopy::little_endian::U64;

/// Values that are roots of trees: each refers to a tree of the next level.
pub struct Roots<V> {
    lower: BTree<V>,
}

impl<V> Roots<V> {
    /// The roots of such trees.
    pub const fn new(lower: BTree<V>) -> Roots<V> {
        Roots { lower }
    }
}

impl<V: ValueType> ValueType for Roots<V> {
    type Value = U64;

    async fn inc(&self, tm: &TransactionManager, roots: &[U64]) -> Result<()> {
        roots.iter().for_each(|root| tm.inc(root.get()));
        Ok(())
    }

    async fn dec(&self, tm: &TransactionManager, roots: &[U64]) -> Result<()> {
        for root in roots {
            self.lower.delete(tm, root.get()).await?;
        }
        Ok(())
    }

    async fn exclusive_leaves(&self, tm: &TransactionManager, roots: &[U64], most: usize) -> Result<usize> {
        let mut found = 0usize;
        for root in roots {
            let most = most.saturating_sub(found);
            found = found.saturating_add(self.lower.exclusive_leaves(tm, root.get(), most).await?);
        }
        Ok(found)
    }
}

impl<V: ValueType> BTree<Roots<V>> {
    /// The trees of the next level.
    pub fn lower(&self) -> &BTree<V> {
        &self.value_type().lower
    }

    /// Changes the tree of `key`, an empty one if there is none yet: `change` is given its root, and returns the new one
    /// and whatever else it has to say. Returns this tree's new root, and that.
    pub async fn change_lower<T>(
        &self,
        tm: &TransactionManager,
        root: u64,
        key: u64,
        change: impl AsyncFnOnce(&BTree<V>, u64) -> Result<(u64, T)>,
    ) -> Result<(u64, T)> {
        let lower = match tm.blocks().look(|blocks| self.try_lookup(blocks, root, key)).await? {
            Some(lower) => lower.get(),
            None => self.lower().create(tm).await?,
        };
        // The way to the lower tree comes first: where another tree shares it, only then is the lower one known to be
        // shared.
        let (root, _) = self.insert(tm, root, key, lower.into()).await?;
        let (lower, told) = change(self.lower(), lower).await?;
        let (root, _) = self.insert(tm, root, key, lower.into()).await?;
        Ok((root, told))
    }
}
