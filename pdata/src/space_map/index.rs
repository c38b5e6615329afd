//! Where the bitmaps are: one block with 255 entries, mirrored in core, or a btree of entries (reference 2.3).

use crate::block::{Block, BlockKind};
use crate::block_manager::{BlockManager, Stop};
use crate::btree::{BTree, Plain};
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use hashbrown::HashMap;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One bitmap: where it is, and hints about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct IndexEntry {
    pub bitmap: U64,
    /// Entries with count 0, out of 16,320 even where the map ends inside the bitmap. Others count otherwise: only
    /// "zero or not" can be relied on.
    pub nr_free: U32,
    /// No free entry is below this one, or so they say.
    pub none_free_before: U32,
}

/// The bitmap as of the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It is the current one.
    Same,
    /// It was in this block, which still holds it.
    At(u64),
    /// There was none.
    Absent,
}

/// The two kinds of index.
pub(crate) trait Index {
    /// The entry of bitmap `k`.
    fn try_entry(&self, blocks: &BlockManager, k: u64) -> Result<IndexEntry, Stop>;

    /// Sets the entry of bitmap `k`; `before` is what it was, if there was one.
    fn set_entry(&self, k: u64, before: Option<IndexEntry>, entry: IndexEntry);

    /// Bitmap `k` as of the last commit.
    fn committed(&self, k: u64) -> Committed;
}

/// Entries of the metadata map.
pub(crate) const INDEX_ENTRIES: usize = 255;

const HEADER_BYTES: usize = 16;

/// The metadata map's one index block.
pub(crate) static INDEX: BlockKind =
    BlockKind { name: "metadata space map index", salt: 160478, number_at: 8, check: |_| Ok(()) };

type Entries = [IndexEntry; INDEX_ENTRIES];

/// The index of the metadata map, in core.
pub(crate) struct CoreIndex {
    entries: RefCell<Box<Entries>>,
    committed: RefCell<Box<Entries>>,
    changed: Cell<bool>,
}

impl CoreIndex {
    /// No bitmaps.
    pub fn empty() -> CoreIndex {
        let none = || RefCell::new(Box::new([IndexEntry::default(); INDEX_ENTRIES]));
        CoreIndex { entries: none(), committed: none(), changed: Cell::new(false) }
    }

    /// The entries of an index block.
    pub fn load(block: &Block) -> CoreIndex {
        let index = CoreIndex::empty();
        if let Ok((entries, _)) = Entries::ref_from_prefix(block.get(HEADER_BYTES..).unwrap_or_default()) {
            **index.entries.borrow_mut() = *entries;
        }
        index.commit();
        index
    }

    /// The first `bitmaps` entries.
    pub fn first(&self, bitmaps: u64) -> Vec<IndexEntry> {
        self.entries.borrow().iter().take(usize::try_from(bitmaps).unwrap_or(usize::MAX)).copied().collect()
    }

    /// Writes the entries into an index block.
    pub fn store(&self, block: &mut Block) {
        if let Ok((entries, _)) = Entries::mut_from_prefix(block.get_mut(HEADER_BYTES..).unwrap_or_default()) {
            *entries = **self.entries.borrow();
        }
    }

    /// An entry changed since the last commit.
    pub fn changed(&self) -> bool {
        self.changed.get()
    }

    /// What is now is what is committed.
    pub fn commit(&self) {
        **self.committed.borrow_mut() = **self.entries.borrow();
        self.changed.set(false);
    }
}

impl Index for CoreIndex {
    fn try_entry(&self, _: &BlockManager, k: u64) -> Result<IndexEntry, Stop> {
        let entries = self.entries.borrow();
        let entry = usize::try_from(k).ok().and_then(|k| entries.get(k)).copied();
        entry.ok_or(Stop::Failed(Error::OutOfRange { block: k, blocks: INDEX_ENTRIES as u64 }))
    }

    fn set_entry(&self, k: u64, _before: Option<IndexEntry>, entry: IndexEntry) {
        let mut entries = self.entries.borrow_mut();
        if let Some(place) = usize::try_from(k).ok().and_then(|k| entries.get_mut(k)) {
            *place = entry;
            self.changed.set(true);
        }
    }

    fn committed(&self, k: u64) -> Committed {
        let k = usize::try_from(k).unwrap_or(usize::MAX);
        let bitmap = |entries: &Entries| entries.get(k).map_or(0, |entry| entry.bitmap.get());
        match (bitmap(&self.committed.borrow()), bitmap(&self.entries.borrow())) {
            // Block 0 is the superblock: no bitmap.
            (0, _) => Committed::Absent,
            (before, now) if before == now => Committed::Same,
            (before, _) => Committed::At(before),
        }
    }
}

struct Touched {
    entry: IndexEntry,
    /// The committed bitmap's block, if there was one.
    committed: Option<u64>,
}

/// The index of a disk map: a btree, and in core the entries that the open transaction changed.
pub(crate) struct TreeIndex {
    root: Cell<u64>,
    touched: RefCell<HashMap<u64, Touched>>,
}

const TREE: BTree<Plain<IndexEntry>> = BTree::plain();

/// Nodes of the index of so many bitmaps, at most: 56 of 168 entries are the least in a leaf, 84 of 252 in a node above.
pub(crate) fn index_blocks(bitmaps: u64) -> u64 {
    let leaves = bitmaps.div_ceil(56);
    leaves.saturating_add(leaves.div_ceil(83)).saturating_add(2)
}

impl TreeIndex {
    /// An index without entries.
    pub async fn create(tm: &TransactionManager) -> Result<TreeIndex> {
        Ok(TreeIndex::open(TREE.create(tm).await?))
    }

    /// The index at `root`.
    pub fn open(root: u64) -> TreeIndex {
        TreeIndex { root: Cell::new(root), touched: RefCell::default() }
    }

    /// Root of the btree; up to date after [`TreeIndex::close`].
    pub fn root(&self) -> u64 {
        self.root.get()
    }

    /// Writes the changed entries into the btree.
    pub async fn close(&self, tm: &TransactionManager) -> Result<()> {
        let mut changed: Vec<_> = self.touched.borrow().iter().map(|(k, touched)| (*k, touched.entry)).collect();
        changed.sort_unstable_by_key(|(k, _)| *k);
        for (k, entry) in changed {
            let (root, _) = TREE.insert(tm, self.root.get(), k, entry).await?;
            self.root.set(root);
        }
        Ok(())
    }

    /// Entries changed since the last commit.
    pub fn changed(&self) -> usize {
        self.touched.borrow().len()
    }

    /// What is now is what is committed.
    pub fn commit(&self) {
        self.touched.borrow_mut().clear();
    }
}

impl Index for TreeIndex {
    fn try_entry(&self, blocks: &BlockManager, k: u64) -> Result<IndexEntry, Stop> {
        if let Some(touched) = self.touched.borrow().get(&k) {
            return Ok(touched.entry);
        }
        let missing = Error::Damaged { block: self.root.get(), kind: "space map index", what: "an entry is missing" };
        TREE.try_lookup(blocks, self.root.get(), k)?.ok_or(Stop::Failed(missing))
    }

    fn set_entry(&self, k: u64, before: Option<IndexEntry>, entry: IndexEntry) {
        // The first change in a transaction finds the committed entry.
        let committed = before.map(|before| before.bitmap.get());
        self.touched.borrow_mut().entry(k).or_insert(Touched { entry, committed }).entry = entry;
    }

    fn committed(&self, k: u64) -> Committed {
        match self.touched.borrow().get(&k) {
            None => Committed::Same,
            Some(Touched { committed: None, .. }) => Committed::Absent,
            Some(Touched { committed: Some(before), .. }) => Committed::At(*before),
        }
    }
}
