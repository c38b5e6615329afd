//! A small target: trees whose values refer to blocks of a disk map.

use pdata::block_manager::BlockManager;
use pdata::btree::{BTree, Node, ValueType};
use pdata::check::{Checker, Compared, Counts, Walk};
use pdata::space_map::{DiskMap, SpaceMapRoot};
use pdata::{Result, TransactionManager};
use platform::block::{BlockDevice, Disk, Io, Limits};
use platform::buf::BufPool;
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A value that refers to a block of the data disk. So long that a leaf holds 15 of them and trees are soon deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Long {
    pub block: U64,
    pub padding: [[u8; 31]; 8],
}

impl Long {
    pub fn new(block: u64) -> Long {
        Long { block: block.into(), padding: [[block as u8; 31]; 8] }
    }
}

pub struct Refs {
    pub data: Rc<DiskMap>,
}

impl ValueType for Refs {
    type Value = Long;

    async fn inc(&self, tm: &TransactionManager, values: &[Long]) -> Result<()> {
        for value in values {
            self.data.inc(tm, value.block.get()..value.block.get() + 1).await?;
        }
        Ok(())
    }

    async fn dec(&self, tm: &TransactionManager, values: &[Long]) -> Result<()> {
        for value in values {
            self.data.dec(tm, value.block.get()..value.block.get() + 1, &mut |_| ()).await?;
        }
        Ok(())
    }
}

pub struct Dice(Seeded);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Seeded::from_u64(seed))
    }

    pub fn word(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.word() % limit
    }
}

/// The seed of this run: `SEED=n` repeats one.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000_007
    });
    println!("SEED={seed}");
    seed
}

pub fn blocks_on(disk: Disk, cache_blocks: usize) -> BlockManager {
    BlockManager::new(disk, BufPool::new(256 << 10), cache_blocks)
}

pub struct Store {
    pub disk: MemDisk,
    pub tm: TransactionManager,
    pub data: Rc<DiskMap>,
    pub tree: BTree<Refs>,
    cache_blocks: usize,
    /// What a superblock would hold.
    pub roots: (SpaceMapRoot, SpaceMapRoot),
}

impl Store {
    pub async fn new(metadata_blocks: u64, data_blocks: u64, cache_blocks: usize) -> Store {
        let disk = MemDisk::new(metadata_blocks * 8);
        let blocks = blocks_on(Disk::new(disk.clone()), cache_blocks);
        let tm = TransactionManager::create(blocks, metadata_blocks).await.unwrap();
        let data = Rc::new(DiskMap::create(&tm, data_blocks).await.unwrap());
        let tree = BTree::new(Refs { data: data.clone() });
        Store { disk, tm, data, tree, cache_blocks, roots: Default::default() }
    }

    pub async fn commit(&mut self) {
        let data = self.data.close(&self.tm).await.unwrap();
        self.roots = (data, self.tm.close().await.unwrap());
        self.tm.blocks().write_out().await.unwrap();
        self.data.committed();
        self.tm.committed();
    }

    /// Drops everything in memory.
    pub async fn reopen(&mut self) {
        let blocks = blocks_on(Disk::new(self.disk.clone()), self.cache_blocks);
        self.tm = TransactionManager::open(blocks, &self.roots.1).await.unwrap();
        self.data = Rc::new(DiskMap::open(&self.roots.0));
        self.tree = BTree::new(Refs { data: self.data.clone() });
    }

    /// Recounts everything on disk; `trees` are all there are.
    #[track_caller]
    pub fn check(&self, trees: impl IntoIterator<Item = u64>) -> impl Future<Output = ()> {
        let mut checker = Checker::new(blocks_on(Disk::new(self.disk.clone()), 4096), self.roots.1.nr_blocks.get());
        let roots = self.roots;
        let trees: Vec<u64> = trees.into_iter().collect();
        async move {
            let (mut walk, mut counts) = (Walk::default(), Counts::new(roots.0.nr_blocks.get(), 1 << 20));
            checker.metadata.add(0);
            for root in trees {
                let count = |_: &mut Checker, _: &Node<'_>, values: &[Long]| {
                    values.iter().for_each(|value| counts.add(value.block.get()));
                };
                walk.tree(&mut checker, root, count).await;
            }
            compare(checker, roots, counts).await;
        }
    }
}

/// Compares what was walked with the space maps, and finds nothing wrong.
pub async fn compare(mut checker: Checker, roots: (SpaceMapRoot, SpaceMapRoot), counts: Counts) {
    checker.disk_map(&roots.0).await;
    checker.metadata_map(&roots.1).await;
    checker.compare_disk_map(&roots.0, &counts, &mut Compared::default()).await;
    checker.compare_metadata_map(&roots.1).await;
    let problems: Vec<String> = checker.into_problems().0.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// A disk that answers when it is told to.
#[derive(Clone)]
pub struct Slow {
    inner: MemDisk,
    waiting: Rc<RefCell<VecDeque<Io>>>,
}

impl BlockDevice for Slow {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        self.waiting.borrow_mut().push_back(io);
    }
}

impl Slow {
    pub fn new(inner: MemDisk) -> Slow {
        Slow { inner, waiting: Rc::default() }
    }

    /// Completes the requests that wait; returns how many there were.
    pub fn answer(&self) -> usize {
        let waiting = self.waiting.take();
        let answered = waiting.len();
        waiting.into_iter().for_each(|io| self.inner.submit(io));
        answered
    }
}
