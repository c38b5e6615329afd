//! Pairs of trees of chosen shapes: what is told together, and which blocks are read for it.

use super::{internal, node};
use crate::TransactionManager;
use crate::block_manager::BlockManager;
use crate::btree::{Entries, Pairs, Shared, Stretch};
use alloc::rc::Rc;
use alloc::vec::Vec;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::layers::Stats;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use zerocopy::little_endian::U64;

const BLOCKS: u64 = 200;

/// Keys that both have, that the left has and that the right has, stretch by stretch, and the blocks read until the first
/// and until the end.
#[derive(Debug, PartialEq)]
struct Told {
    stretches: Vec<[Vec<u64>; 3]>,
    blocks_read: [u64; 2],
}

/// Makes two trees and walks through them.
fn walk(shared: Shared, make: impl AsyncFn(&TransactionManager) -> (u64, u64)) -> Told {
    let disk = MemDisk::new(8 * BLOCKS);
    let keys = |entries: Entries<'_, U64>| entries.into_iter().map(|(key, _)| key.get()).collect::<Vec<_>>();
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(disk.clone()), BufPool::new(1 << 18), BLOCKS as usize);
        let tm = TransactionManager::create(blocks, BLOCKS).await.unwrap();
        let (left, right) = make(&tm).await;
        tm.blocks().write_out().await.unwrap();
        let stats = Stats::new(Rc::new(disk.clone()));
        let counters = stats.counters();
        let blocks_read = || counters.read_sectors.get() / 8;
        let blocks = BlockManager::new(Disk::new(stats), BufPool::new(1 << 18), BLOCKS as usize);
        let mut pairs = Pairs::open(&blocks, Some(left), Some(right), 0, shared).await.unwrap();
        let (mut stretches, mut first) = (Vec::new(), None);
        while let Some(stretch) = pairs.next().await.unwrap() {
            first = first.or(Some(blocks_read()));
            stretches.push(match stretch {
                Stretch::Shared(entries) => [keys(entries), Vec::new(), Vec::new()],
                Stretch::Own { left, right } => [Vec::new(), keys(left), keys(right)],
            });
            assert!(stretches.len() < 1000);
        }
        Told { stretches, blocks_read: [first.unwrap_or(blocks_read()), blocks_read()] }
    })
}

fn none() -> Vec<u64> {
    Vec::new()
}

#[test]
fn what_one_tree_has_before_the_other_begins_is_told_before_that_is_read() {
    // The other tree is nothing but a leaf of this one.
    let make = async |tm: &TransactionManager| {
        let (own, shared) =
            (node(tm, false, [(0, 0)].into_iter()).await, node(tm, false, [(10, 10)].into_iter()).await);
        let long = node(tm, true, [(0, own), (10, shared)].into_iter()).await;
        (long, node(tm, true, [(10, shared)].into_iter()).await)
    };
    let swapped = async |tm: &TransactionManager| {
        let (long, short) = make(tm).await;
        (short, long)
    };
    let before = |left: &[u64], right: &[u64]| [none(), left.to_vec(), right.to_vec()];
    // Two roots, the first leaves, to learn how deep the trees are, and the leaf that is told.
    let told = Told { stretches: [before(&[0], &[])].into(), blocks_read: [5, 5] };
    assert_eq!(walk(Shared::Skip, make), told);
    let told = Told { stretches: [before(&[], &[0])].into(), blocks_read: [5, 5] };
    assert_eq!(walk(Shared::Skip, swapped), told);
    // The left tree's walk is what reads the shared leaf, and knows that it comes next.
    let shared = [[10].into(), none(), none()];
    let told = Told { stretches: [before(&[0], &[]), shared.clone()].into(), blocks_read: [6, 6] };
    assert_eq!(walk(Shared::Read, make), told);
    let told = Told { stretches: [before(&[], &[0]), shared].into(), blocks_read: [5, 6] };
    assert_eq!(walk(Shared::Read, swapped), told);
}

#[test]
fn a_tree_is_found_within_a_deeper_one() {
    let make = async |tm: &TransactionManager| {
        let (low, more) = (internal(tm, 0..3).await, internal(tm, 3..5).await);
        (low, node(tm, true, [(0, low), (30, more)].into_iter()).await)
    };
    let swapped = async |tm: &TransactionManager| {
        let (low, high) = make(tm).await;
        (high, low)
    };
    let told = walk(Shared::Skip, make);
    assert_eq!(told.stretches, [[none(), none(), [30].into()], [none(), none(), [40].into()]]);
    let told = walk(Shared::Skip, swapped);
    assert_eq!(told.stretches, [[none(), [30].into(), none()], [none(), [40].into(), none()]]);
}

#[test]
fn leaves_that_either_tree_has_alone_are_read_together() {
    let make = async |tm: &TransactionManager| (internal(tm, 0..20).await, internal(tm, 0..20).await);
    let told = walk(Shared::Skip, make);
    // Two roots with 20 leaves each, and the first leaves to learn how deep the trees are.
    let expected = (0..20).map(|leaf| [none(), [leaf * 10].into(), [leaf * 10].into()]).collect::<Vec<_>>();
    assert_eq!(told, Told { stretches: expected, blocks_read: [44, 44] });
}

/// Beyond what is known of the other tree's leaves those of this may be found in it.
#[test]
fn leaves_that_may_be_shared_are_not_read_before_it_is_known() {
    let mut reads = Vec::new();
    for levels_above in [0, 3] {
        let make = async |tm: &TransactionManager| {
            let leaf = async |key| (key, node(tm, false, [(key, key)].into_iter()).await);
            let shared = [leaf(10).await, leaf(20).await, leaf(30).await];
            let left = node(tm, true, [leaf(0).await].into_iter().chain(shared)).await;
            // Of a tree as deep as this only the way to its first leaf is known.
            let mut parts = [(0, [leaf(0).await].to_vec()), (10, shared.to_vec())].map(|(key, leaves)| (key, leaves));
            let mut nodes = Vec::new();
            for (key, leaves) in &mut parts {
                let mut top = node(tm, true, leaves.drain(..)).await;
                for _ in 0..levels_above {
                    top = node(tm, true, [(*key, top)].into_iter()).await;
                }
                nodes.push((*key, top));
            }
            (left, node(tm, true, nodes.into_iter()).await)
        };
        let told = walk(Shared::Skip, make);
        assert_eq!(told.stretches, [[none(), [0].into(), [0].into()]]);
        reads.push(told.blocks_read[1] - 2 * levels_above);
    }
    // Two roots, one node above the other tree's first leaf and one above the shared ones, and each first leaf twice.
    assert_eq!(reads, [8, 8]);
}
