//! Walks through two trees at once against a merge of their models, with the blocks that they read counted at the disk.

use crate::harness::*;
use crate::trees::Trees;
use pdata::btree::{NODE, Node, Pairs, Shared, Stretch};
use pdata::{Error, Result};
use platform::block::Disk;
use platform::layers::Stats;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Enough for the ways down two trees.
const CACHE_BLOCKS: usize = 64;

/// What a walk told.
#[derive(Debug, Default, PartialEq)]
struct Told {
    shared: BTreeMap<u64, u64>,
    left: BTreeMap<u64, u64>,
    right: BTreeMap<u64, u64>,
    blocks_read: u64,
}

/// Walks, and checks that keys ascend from stretch to stretch and that no key is told by one side too late.
async fn walk(disk: &MemDisk, left: Option<u64>, right: Option<u64>, from: u64, shared: Shared) -> Result<Told> {
    let stats = Stats::new(Rc::new(disk.clone()));
    let counters = stats.counters();
    let blocks = blocks_on(Disk::new(stats), CACHE_BLOCKS);
    let mut pairs = Pairs::<Long>::open(&blocks, left, right, from, shared).await?;
    let (mut told, mut next) = (Told::default(), from);
    let list = |entries: pdata::btree::Entries<'_, Long>| -> Vec<(u64, u64)> {
        entries.into_iter().map(|(key, value)| (key.get(), value.block.get())).collect()
    };
    while let Some(stretch) = pairs.next().await? {
        let told_now = match stretch {
            Stretch::Shared(entries) => [list(entries), vec![], vec![]],
            Stretch::Own { left, right } => [vec![], list(left), list(right)],
        };
        assert!(told_now.iter().all(|entries| entries.is_sorted_by(|a, b| a.0 < b.0)));
        let keys = || told_now.iter().flatten().map(|(key, _)| *key);
        assert!(keys().min().unwrap() >= next, "{} was told before", keys().min().unwrap());
        next = keys().max().unwrap().saturating_add(1);
        for (all, now) in [&mut told.shared, &mut told.left, &mut told.right].into_iter().zip(told_now) {
            all.extend(now);
        }
    }
    told.blocks_read = counters.read_sectors.get() / 8;
    Ok(told)
}

/// The nodes of a tree that may have keys from `from` on.
fn nodes(disk: &MemDisk, root: u64, from: u64, found: &mut BTreeSet<u64>) -> usize {
    found.insert(root);
    let bytes: [u8; 4096] = disk.peek(root * 4096, 4096).try_into().unwrap();
    let node = Node::parse(&bytes, root).unwrap();
    let lasts = node.keys().skip(1).map(|key| key - 1).chain([u64::MAX]);
    let children = node.children().zip(lasts).filter(|(_, last)| *last >= from);
    1 + children.map(|(child, _)| nodes(disk, child, from, found)).max().unwrap_or(0)
}

/// One pair of trees, in both ways.
async fn compare(trees: &Trees, (left, right): (usize, usize), from: u64) -> bool {
    let disk = &trees.store.disk;
    let (left, right) = (&trees.trees[left], &trees.trees[right]);
    let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
    let depths = [nodes(disk, left.root, from, &mut ours), nodes(disk, right.root, from, &mut theirs)];
    // Beside what it has to read, a walk reads the ways to the first leaves, to learn how deep the trees are.
    let ways = (depths[0] + depths[1]) as u64;
    let since = |model: &BTreeMap<u64, u64>| model.range(from..).map(|(key, value)| (*key, *value)).collect();
    let models: [BTreeMap<u64, u64>; 2] = [since(&left.model), since(&right.model)];

    let all = walk(disk, Some(left.root), Some(right.root), from, Shared::Read).await.unwrap();
    for (own, model) in [&all.left, &all.right].into_iter().zip(&models) {
        assert!(own.keys().all(|key| !all.shared.contains_key(key)));
        let both: BTreeMap<u64, u64> = all.shared.iter().chain(own).map(|(key, value)| (*key, *value)).collect();
        assert_eq!(both, *model);
    }
    let union = ours.union(&theirs).count() as u64;
    assert!(all.blocks_read <= union + ways, "{} blocks read of {union}", all.blocks_read);

    let own = walk(disk, Some(left.root), Some(right.root), from, Shared::Skip).await.unwrap();
    assert_eq!((&own.left, &own.right), (&all.left, &all.right));
    assert!(own.shared.is_empty());
    let differ = ours.symmetric_difference(&theirs).count() as u64;
    assert!(own.blocks_read <= differ + ways, "{} blocks read, {differ} differ", own.blocks_read);
    depths[0] != depths[1] && differ < union
}

/// Trees that share nodes in every way, of many shapes.
#[test]
fn two_trees_are_walked_as_their_models_are_merged() {
    let seed = seed();
    let mut shared_at_other_depths = 0;
    for round in 0..2 {
        block_on_ready(async {
            let mut trees = Trees::new(seed + round, 1000).await;
            for _ in 0..6 {
                for _ in 0..120 {
                    trees.step().await;
                }
                trees.commit().await;
                for (left, right) in (0..trees.trees.len()).flat_map(|l| (0..trees.trees.len()).map(move |r| (l, r))) {
                    let from = if trees.dice.below(2) == 0 { 0 } else { trees.dice.below(14_000) };
                    shared_at_other_depths += u64::from(compare(&trees, (left, right), from).await);
                }
            }
        });
    }
    println!("{shared_at_other_depths} pairs of trees of different depths share nodes");
}

/// A large tree, and a copy of it that lost nearly all: what is left of that hangs higher.
#[test]
fn shared_nodes_are_found_at_any_depth() {
    block_on_ready(async {
        let mut trees = Trees::new(seed(), 1000).await;
        let store = &trees.store;
        store.data.inc(&store.tm, 0..9000).await.unwrap();
        let entries = (0..9000).map(|key| (key * 2, Long::new(key)));
        let large = store.tree.insert_sorted(&store.tm, trees.trees[0].root, entries, |_, _| ()).await.unwrap();
        store.tm.inc(large);
        let (mut small, mut model) = (large, (0..9000).map(|key| (key * 2, key)).collect::<BTreeMap<u64, u64>>());
        trees.trees[0].root = large;
        trees.trees[0].model = model.clone();
        // Out of the middle, so that the last leaves stay shared, and from the end.
        for range in [600..17_400, 17_600..20_000] {
            while let Some((first, _)) = model.range(range.clone()).next() {
                let gone = store.tree.remove_run(&store.tm, small, *first, range.end - 1, 100).await.unwrap();
                small = gone.0;
                for (key, value) in gone.1 {
                    model.remove(&key).unwrap();
                    store.data.dec(&store.tm, value.block.get()..value.block.get() + 1, &mut |_| ()).await.unwrap();
                }
            }
        }
        trees.trees.push(crate::trees::Tree { root: small, model });
        trees.commit().await;
        for from in [0, 301, 599, 600, 10_000, 17_450, 30_000, u64::MAX] {
            let other_depths = compare(&trees, (0, 1), from).await;
            assert_eq!(compare(&trees, (1, 0), from).await, other_depths);
            assert!(other_depths || from > 600, "nothing is shared from {from} on");
        }
    });
}

/// A tree beside none is that tree.
#[test]
fn no_tree_has_no_entries() {
    block_on_ready(async {
        let mut trees = Trees::new(seed(), 1000).await;
        (0..100).for_each(|_| block_on_ready(trees.step()));
        trees.commit().await;
        let (tree, disk) = (&trees.trees[0], &trees.store.disk);
        let left = walk(disk, Some(tree.root), None, 0, Shared::Skip).await.unwrap();
        assert_eq!((&left.left, left.right.len()), (&tree.model, 0));
        let right = walk(disk, None, Some(tree.root), 0, Shared::Read).await.unwrap();
        assert_eq!((&right.right, right.left.len(), right.shared.len()), (&tree.model, 0, 0));
        assert_eq!(walk(disk, None, None, 0, Shared::Read).await, Ok(Told::default()));
    });
}

/// Nodes with children and keys that are not theirs: an error or less, never an endless walk, and never keys out of order.
#[test]
fn damaged_trees_end_in_errors() {
    let seed = seed();
    let (mut failed, mut ended) = (0, 0);
    for round in 0..3 {
        block_on_ready(async {
            let mut trees = Trees::new(seed + round, 1000).await;
            (0..200).for_each(|_| block_on_ready(trees.step()));
            trees.commit().await;
            let dice = &trees.dice;
            for _ in 0..200 {
                let pick = || &trees.trees[dice.below(trees.trees.len() as u64) as usize];
                let (left, right) = (pick(), pick());
                let mut all = BTreeSet::new();
                nodes(&trees.store.disk, left.root, 0, &mut all);
                nodes(&trees.store.disk, right.root, 0, &mut all);
                let all: Vec<u64> = all.into_iter().collect();
                let any = || all[dice.below(all.len() as u64) as usize];
                let copy = trees.store.disk.fork();
                let victim = any();
                let mut bytes: [u8; 4096] = copy.peek(victim * 4096, 4096).try_into().unwrap();
                let internal = bytes[4] == 1;
                let at = match dice.below(3) {
                    0 if internal => 32 + 8 * 252 + 8 * dice.below(u64::from(bytes[16])),
                    1 => 4 + 4 * dice.below(6),
                    _ => 32 + 8 * dice.below(u64::from(bytes[16]).max(1)),
                } as usize;
                let word = if dice.below(2) == 0 { any() } else { dice.below(20_000) };
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
                NODE.seal(&mut bytes, victim);
                copy.poke(victim * 4096, &bytes);
                let way = if dice.below(2) == 0 { Shared::Read } else { Shared::Skip };
                match walk(&copy, Some(left.root), Some(right.root), 0, way).await {
                    Ok(_) => ended += 1,
                    Err(Error::Damaged { .. } | Error::OutOfRange { .. } | Error::TooDeep { .. }) => failed += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    println!("{failed} walks failed, {ended} went past the damage");
    assert!(failed > 100);
}

#[test]
fn thirty_two_leaves_are_read_together() {
    block_on_ready(async {
        let mut store = Store::new(2000, 2000, 1000).await;
        store.data.inc(&store.tm, 0..1500).await.unwrap();
        let entries = (0..1500).map(|key| (key, Long::new(key)));
        let root = store.tree.create(&store.tm).await.unwrap();
        let root = store.tree.insert_sorted(&store.tm, root, entries, |_, _| ()).await.unwrap();
        store.commit().await;
        let stats = Stats::new(Rc::new(store.disk.clone()));
        let counters = stats.counters();
        let blocks = blocks_on(Disk::new(stats), CACHE_BLOCKS);
        let mut pairs = Pairs::<Long>::open(&blocks, Some(root), None, 0, Shared::Skip).await.unwrap();
        pairs.next().await.unwrap().unwrap();
        // Beside them, the way to the first.
        let blocks_read = counters.read_sectors.get() / 8;
        assert!((32..=35).contains(&blocks_read), "{blocks_read}");
    });
}
