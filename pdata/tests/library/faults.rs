//! Every n-th request to the disk fails, and every n-th buffer, for n = 1, 2, 3 ... until the operation and its commit
//! succeed. After each failure the committed state is what it was and sound, and the operation can be done again.

use crate::harness::*;
use pdata::array::Array;
use pdata::bitset::Bitset;
use pdata::block_manager::BlockManager;
use pdata::btree::{BTree, Node};
use pdata::check::{Checker, Counts, Walk};
use pdata::space_map::{DiskMap, SpaceMapRoot};
use pdata::{Result, TransactionManager};
use platform::block::{Disk, IoError};
use platform::buf::BufPool;
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use zerocopy::little_endian::U64;

const METADATA_BLOCKS: u64 = 1000;
const DATA_BLOCKS: u64 = 3000;

/// What a superblock would hold.
#[derive(Clone, Copy, Default)]
struct Roots {
    maps: (SpaceMapRoot, SpaceMapRoot),
    tree: u64,
    /// Shares nodes with the tree; 0 once it is deleted.
    snapshot: u64,
    array: u64,
    len: u64,
    /// Shares blocks with the array; 0 once it is deleted.
    array_snapshot: u64,
    bits: u64,
    len_bits: u64,
}

/// What is in it all.
#[derive(PartialEq)]
struct Contents {
    trees: Vec<BTreeMap<u64, u64>>,
    arrays: Vec<Vec<u64>>,
    bits: Vec<bool>,
}

struct Target {
    tm: TransactionManager,
    data: Rc<DiskMap>,
    tree: BTree<Refs>,
    array: Array<Refs>,
    roots: Roots,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Insert,
    InsertSorted,
    Remove,
    DeleteTree,
    SetInArray,
    GrowArray,
    ShortenArray,
    DeleteArray,
    SetBits,
    ResizeBits,
    GrowMaps,
}

const OPERATIONS: [Operation; 11] = [
    Operation::Insert,
    Operation::InsertSorted,
    Operation::Remove,
    Operation::DeleteTree,
    Operation::SetInArray,
    Operation::GrowArray,
    Operation::ShortenArray,
    Operation::DeleteArray,
    Operation::SetBits,
    Operation::ResizeBits,
    Operation::GrowMaps,
];

impl Target {
    fn over(tm: TransactionManager, data: DiskMap, roots: Roots) -> Target {
        let data = Rc::new(data);
        let refs = || Refs { data: data.clone() };
        Target { tm, tree: BTree::new(refs()), array: Array::new(refs()), data, roots }
    }

    async fn open(blocks: BlockManager, roots: Roots) -> Result<Target> {
        let tm = TransactionManager::open(blocks, &roots.maps.1).await?;
        Ok(Target::over(tm, DiskMap::open(&roots.maps.0), roots))
    }

    /// A tree and an array, with half of which another of each shares.
    async fn format(disk: &MemDisk) -> Target {
        let tm = TransactionManager::create(blocks_on(Disk::new(disk.clone()), 16), METADATA_BLOCKS).await.unwrap();
        let data = DiskMap::create(&tm, DATA_BLOCKS).await.unwrap();
        let mut target = Target::over(tm, data, Roots::default());
        let tm = &target.tm;
        target.data.inc(tm, 0..800).await.unwrap();
        let entries = (0..400).map(|key| (key * 3, Long::new(key)));
        let root = target.tree.create(tm).await.unwrap();
        target.roots.tree = target.tree.insert_sorted(tm, root, entries, |_, _| ()).await.unwrap();
        let root = target.array.create(tm).await.unwrap();
        target.roots.array = target.array.extend(tm, root, 0, (400..800).map(Long::new)).await.unwrap();
        target.roots.len = 400;
        let mut bits = Bitset::create(tm).await.unwrap();
        bits.extend(tm, (0..100_000).map(|bit| bit % 3 == 0)).await.unwrap();
        (target.roots.bits, target.roots.len_bits) = (bits.flush(tm).await.unwrap(), bits.len_bits());
        (target.roots.snapshot, target.roots.array_snapshot) = (target.roots.tree, target.roots.array);
        tm.inc(target.roots.tree);
        tm.inc(target.roots.array);
        target.data.inc(tm, 2000..2200).await.unwrap();
        for n in 0..100 {
            let (tree, array) = (target.roots.tree, target.roots.array);
            let (root, key) = (target.tree.insert(tm, tree, n * 6, Long::new(2000 + n)).await.unwrap(), n * 3);
            let (array, value) = target.array.set(tm, array, key, Long::new(2100 + n)).await.unwrap();
            (target.roots.tree, target.roots.array) = (root.0, array);
            for block in [root.1.unwrap(), value].map(|value| value.block.get()) {
                target.data.dec(tm, block..block + 1, &mut |_| ()).await.unwrap();
            }
        }
        target.commit().await.unwrap();
        target
    }

    async fn commit(&mut self) -> Result<()> {
        let maps = (self.data.close(&self.tm).await?, self.tm.close().await?);
        self.tm.blocks().write_out().await?;
        self.tm.blocks().flush().await?;
        self.roots.maps = maps;
        self.data.committed();
        self.tm.committed();
        Ok(())
    }

    async fn run(&mut self, operation: Operation) -> Result<()> {
        let (tm, roots) = (&self.tm, &mut self.roots);
        match operation {
            Operation::Insert => {
                for n in 0..60 {
                    let (key, block) = (n * 47 % 1200, 1000 + n);
                    self.data.inc(tm, block..block + 1).await?;
                    let (root, before) = self.tree.insert(tm, roots.tree, key, Long::new(block)).await?;
                    roots.tree = root;
                    if let Some(before) = before {
                        let block = before.block.get();
                        self.data.dec(tm, block..block + 1, &mut |_| ()).await?;
                    }
                }
            }
            Operation::InsertSorted => {
                self.data.inc(tm, 1000..1300).await?;
                let entries = (0..300).map(|n| (1001 + n * 3, Long::new(1000 + n)));
                roots.tree = self.tree.insert_sorted(tm, roots.tree, entries, |_, _| panic!("a key twice")).await?;
            }
            Operation::Remove => {
                let look = |blocks: &BlockManager, root| self.tree.try_next(blocks, root, 300);
                while let Some((key, _)) = tm.blocks().look(|blocks| look(blocks, roots.tree)).await? {
                    if key > 900 {
                        break;
                    }
                    let (root, gone) = self.tree.remove_run(tm, roots.tree, key, 900, 20).await?;
                    roots.tree = root;
                    for (_, value) in gone {
                        self.data.dec(tm, value.block.get()..value.block.get() + 1, &mut |_| ()).await?;
                    }
                    tm.settle_some().await?;
                }
            }
            Operation::DeleteTree => self.tree.delete(tm, std::mem::take(&mut roots.snapshot)).await?,
            Operation::DeleteArray => self.array.delete(tm, std::mem::take(&mut roots.array_snapshot)).await?,
            Operation::SetInArray => {
                self.data.inc(tm, 1000..1040).await?;
                for n in 0..40 {
                    let (root, before) = self.array.set(tm, roots.array, n * 9, Long::new(1000 + n)).await?;
                    roots.array = root;
                    self.data.dec(tm, before.block.get()..before.block.get() + 1, &mut |_| ()).await?;
                }
            }
            Operation::GrowArray => {
                roots.array = self.array.resize(tm, roots.array, roots.len, 700, Long::new(5)).await?;
                roots.len = 700;
            }
            Operation::ShortenArray => {
                roots.array = self.array.resize(tm, roots.array, roots.len, 100, Long::new(5)).await?;
                roots.len = 100;
            }
            Operation::SetBits => {
                let mut bits = Bitset::open(roots.bits, roots.len_bits);
                for bit in (0..100_000).step_by(900) {
                    bits.set(tm, bit, bit % 2 == 0).await?;
                }
                roots.bits = bits.flush(tm).await?;
            }
            Operation::ResizeBits => {
                let mut bits = Bitset::open(roots.bits, roots.len_bits);
                bits.resize(tm, 20_001, true).await?;
                bits.resize(tm, 70_007, true).await?;
                (roots.bits, roots.len_bits) = (bits.flush(tm).await?, bits.len_bits());
            }
            Operation::GrowMaps => {
                tm.grow(METADATA_BLOCKS + 20_000).await?;
                self.data.grow(tm, DATA_BLOCKS + 40_000).await?;
            }
        }
        tm.settle_some().await
    }

    async fn contents(&self) -> Contents {
        let (blocks, roots) = (self.tm.blocks(), &self.roots);
        let mut contents = Contents { trees: Vec::new(), arrays: Vec::new(), bits: Vec::new() };
        for root in [roots.tree, roots.snapshot].into_iter().filter(|root| *root != 0) {
            let (mut entries, mut cursor) = (BTreeMap::new(), self.tree.cursor(blocks, root, 0, 4));
            while let Some((key, value)) = cursor.next().await.unwrap() {
                entries.insert(key, value.block.get());
            }
            contents.trees.push(entries);
        }
        for root in [roots.array, roots.array_snapshot].into_iter().filter(|root| *root != 0) {
            let mut values = Vec::new();
            self.array.scan(blocks, root, 4, |_, value| values.push(value.block.get())).await.unwrap();
            contents.arrays.push(values);
        }
        let bits = Bitset::open(roots.bits, roots.len_bits);
        bits.scan(blocks, 4, |_, bit| contents.bits.push(bit)).await.unwrap();
        contents
    }
}

/// Recounts what is committed on a disk, and reads all of it.
async fn check(disk: &MemDisk, roots: Roots) -> Contents {
    let blocks = || blocks_on(Disk::new(disk.clone()), 500);
    let mut checker = Checker::new(blocks(), roots.maps.1.nr_blocks.get());
    let (mut walk, mut counts) = (Walk::default(), Counts::new(roots.maps.0.nr_blocks.get(), 1 << 20));
    checker.metadata.add(0);
    for root in [roots.tree, roots.snapshot].into_iter().filter(|root| *root != 0) {
        let count = |_: &mut Checker, _: &Node<'_>, values: &[Long]| {
            values.iter().for_each(|value| counts.add(value.block.get()));
        };
        walk.tree(&mut checker, root, count).await;
    }
    let snapshot = (roots.array_snapshot, 400);
    for (root, len) in [(roots.array, roots.len), snapshot].into_iter().filter(|(root, _)| *root != 0) {
        let count = |_: &mut Checker, _, value: Long| counts.add(value.block.get());
        walk.array(&mut checker, root, len, count).await;
    }
    walk.array(&mut checker, roots.bits, roots.len_bits.div_ceil(64), |_, _, _: U64| ()).await;
    compare(checker, roots.maps, counts).await;
    Target::open(blocks(), roots).await.unwrap().contents().await
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failing {
    Request,
    Buffer,
}

/// A disk of which, or of whose buffers, the one fails that brings `left` to 0.
fn spoil(disk: &MemDisk, failing: Failing, left: &Rc<Cell<i64>>) -> BlockManager {
    let countdown = |kind| {
        let left = left.clone();
        move || {
            left.set(left.get() - i64::from(failing == kind));
            failing == kind && left.get() == 0
        }
    };
    let (request_fails, buffer_fails) = (countdown(Failing::Request), countdown(Failing::Buffer));
    let fault = Fault::new(Rc::new(disk.clone()), move |request| {
        request_fails().then_some(IoError::Device { op: request.op, sector: request.sector })
    });
    let bufs = BufPool::with_heap(256 << 10, move |_| !buffer_fails());
    BlockManager::new(Disk::new(fault), bufs, 16)
}

fn every_nth_fails(failing: Failing) {
    block_on_ready(async {
        let base = MemDisk::new((METADATA_BLOCKS + 20_000) * 8);
        let roots = Target::format(&base).await.roots;
        let before = check(&base, roots).await;
        for operation in OPERATIONS {
            let disk = base.fork();
            let mut target = Target::open(blocks_on(Disk::new(disk.clone()), 16), roots).await.unwrap();
            target.run(operation).await.unwrap();
            target.commit().await.unwrap();
            let after = check(&disk, target.roots).await;
            let mut failures = 0;
            for n in 1.. {
                let (disk, left) = (base.fork(), Rc::new(Cell::new(n)));
                let done = async {
                    let mut target = Target::open(spoil(&disk, failing, &left), roots).await?;
                    target.run(operation).await?;
                    target.commit().await?;
                    Ok::<_, pdata::Error>(target.roots)
                };
                match done.await {
                    Ok(roots) => {
                        assert!(check(&disk, roots).await == after, "{operation:?}, {n}");
                        // A write-out that gets no buffer waits for one of its own instead.
                        assert!(left.get() > 0 || failing == Failing::Buffer, "{operation:?}: {n} went unnoticed");
                    }
                    Err(error) => {
                        assert!(error.is_io(), "{operation:?}, {n}: {error}");
                        failures += 1;
                        assert!(check(&disk, roots).await == before, "{operation:?}, {n}");
                        let mut target = Target::open(blocks_on(Disk::new(disk.clone()), 16), roots).await.unwrap();
                        target.run(operation).await.unwrap();
                        target.commit().await.unwrap();
                        assert!(check(&disk, target.roots).await == after, "{operation:?}, {n}, again");
                    }
                }
                if left.get() > 0 {
                    break;
                }
            }
            println!("{operation:?}: {failures} failures of a {failing:?}");
            assert!(failures > 3, "{operation:?}");
        }
    });
}

#[test]
fn every_nth_request_fails() {
    every_nth_fails(Failing::Request);
}

#[test]
fn every_nth_buffer_fails() {
    every_nth_fails(Failing::Buffer);
}
