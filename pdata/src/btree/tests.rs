//! Trees as only others leave them behind, or as it would take millions of keys to grow them.

mod pairs;

use super::{BTree, DEPTH_MAX, LeafPlaces, NODE, Node, NodeMut, Pairs, Place, Plain, Shared, ValueType, edit};
use crate::block::BLOCK_BYTES;
use crate::block_manager::BlockManager;
use crate::space_map::DiskMap;
use crate::{Error, TransactionManager};
use alloc::rc::Rc;
use alloc::vec::Vec;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use zerocopy::little_endian::U64;

/// Values that are blocks of a disk map.
struct Blocks(Rc<DiskMap>);

impl ValueType for Blocks {
    type Value = U64;

    async fn inc(&self, tm: &TransactionManager, values: &[U64]) -> crate::Result<()> {
        for value in values {
            self.0.inc(tm, value.get()..value.get() + 1).await?;
        }
        Ok(())
    }

    async fn dec(&self, tm: &TransactionManager, values: &[U64]) -> crate::Result<()> {
        for value in values {
            self.0.dec(tm, value.get()..value.get() + 1, &mut |_| ()).await?;
        }
        Ok(())
    }
}

/// Older kernels leave roots with one child. When one is replaced by its child, which another tree shares, both refer to
/// what is in it (reference 4.4).
#[test]
fn trap_4_a_root_takes_the_place_of_a_shared_child() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 200)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 200).await.unwrap();
        let data = Rc::new(DiskMap::create(&tm, 100).await.unwrap());
        let tree = BTree::new(Blocks(data.clone()));
        let count = async |block| tm.blocks().look(|blocks| data.try_count(blocks, block)).await.unwrap();
        for shared in [false, true] {
            let mut leaf = tree.create(&tm).await.unwrap();
            data.inc(&tm, 0..50).await.unwrap();
            for key in 0..50 {
                leaf = tree.insert(&tm, leaf, key, key.into()).await.unwrap().0;
            }
            let root = tm.new_block(&NODE).await.unwrap();
            NodeMut::format(&mut root.bytes_mut(), true, 8);
            edit(&root, |root| root.insert(0, 0, &leaf.to_le_bytes())).unwrap();
            let root = root.number();
            if shared {
                tm.inc(root);
            }
            let (smaller, gone) = tree.remove(&tm, root, 7).await.unwrap();
            assert_eq!(gone, Some(7.into()));
            data.dec(&tm, 7..8, &mut |_| ()).await.unwrap();
            let references = 1 + u32::from(shared);
            assert_eq!((count(7).await, count(8).await), (references - 1, references));
            tree.delete(&tm, smaller).await.unwrap();
            assert_eq!((count(7).await, count(8).await), (references - 1, references - 1));
            if shared {
                tree.delete(&tm, root).await.unwrap();
            }
            assert_eq!(data.nr_free(), 100);
        }
    });
}

/// A node of these entries, which takes them in the given order.
async fn node(tm: &TransactionManager, internal: bool, entries: impl Iterator<Item = (u64, u64)>) -> u64 {
    let node = tm.new_block(&NODE).await.unwrap();
    NodeMut::format(&mut node.bytes_mut(), internal, 8);
    for (index, (key, value)) in entries.enumerate() {
        edit(&node, |node| node.insert(index, key, &value.to_le_bytes())).unwrap();
    }
    node.number()
}

/// How many entries each child of a node has.
fn leaf_lens(tm: &TransactionManager, number: u64) -> Vec<usize> {
    let bytes = |number| *tm.blocks().try_read(number, &NODE).unwrap().bytes();
    let children = Node::parse(&bytes(number), number).unwrap().children().collect::<Vec<_>>();
    children.into_iter().map(|leaf| Node::parse(&bytes(leaf), leaf).unwrap().len()).collect()
}

/// An internal node over leaves with a key each; keys are 10 apart, values are keys.
async fn internal(tm: &TransactionManager, leaves: core::ops::Range<u64>) -> u64 {
    let mut children = Vec::new();
    for leaf in leaves {
        children.push((leaf * 10, node(tm, false, core::iter::once((leaf * 10, leaf * 10))).await));
    }
    node(tm, true, children.into_iter()).await
}

/// Room is made in a full internal node before its child is looked at: the key may be the first of what goes to the
/// right.
#[test]
fn a_key_is_found_again_in_the_part_that_begins_with_it() {
    const FULL: u64 = 252;
    block_on_ready(async {
        // How many children the left, the full and the right node have, and which of the full one's begins another.
        let cases = [
            (0, 0, 126),
            (100, 0, 76),
            (0, 100, 176),
            (FULL, 0, 126),
            (0, FULL, 126),
            (126, 126, 63),
            (FULL, FULL, 84),
        ];
        for (before, after, cut) in cases {
            for chosen in [0, cut - 1, cut, cut + 1, FULL - 1].map(|child| before + child) {
                let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
                let tm = TransactionManager::create(blocks, 100).await.unwrap();
                let tree = BTree::new(Plain::<U64>::new());
                let right = node(&tm, false, [(chosen * 10, 0)].into_iter()).await;
                // All other children are one leaf: none of them is gone to.
                let wrong = node(&tm, false, core::iter::empty()).await;
                let parts = [0..before, before..before + FULL, before + FULL..before + FULL + after];
                let mut children = Vec::new();
                for part in parts.into_iter().filter(|part| !part.is_empty()) {
                    let first = part.start * 10;
                    let leaves = part.map(|child| (child * 10, if child == chosen { right } else { wrong }));
                    children.push((first, node(&tm, true, leaves).await));
                }
                let root = node(&tm, true, children.into_iter()).await;
                let (root, old) = tree.insert(&tm, root, chosen * 10, 7.into()).await.unwrap();
                assert_eq!(old, Some(0.into()), "{before}, {after}: {chosen}");
                let found = tm.blocks().look(|blocks| tree.try_lookup(blocks, root, chosen * 10)).await;
                assert_eq!(found, Ok(Some(7.into())));
            }
        }
    });
}

#[test]
fn an_empty_leaf_is_a_tree_or_damage() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 100).await.unwrap();
        let tree = BTree::new(Plain::<U64>::new());
        let empty = node(&tm, false, core::iter::empty()).await;
        assert_eq!(tree.cursor(tm.blocks(), empty, 0, 4).next().await, Ok(None));
        let leaf = node(&tm, false, [(0, 7), (5, 8)].into_iter()).await;
        let root = node(&tm, true, [(0, leaf), (10, empty)].into_iter()).await;
        let mut cursor = tree.cursor(tm.blocks(), root, 0, 4);
        assert_eq!(cursor.next().await, Ok(Some((0, 7.into()))));
        assert_eq!(cursor.next().await, Ok(Some((5, 8.into()))));
        let what = "it is empty but no root";
        assert_eq!(cursor.next().await, Err(Error::Damaged { block: empty, kind: "btree node", what }));
    });
}

#[test]
fn damaged_neighbours_are_told_and_not_merged() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 100).await.unwrap();
        let tree = BTree::new(Plain::<U64>::new());
        let leaf = async |keys: core::ops::Range<u64>| node(&tm, false, keys.map(|key| (key, key))).await;
        let damage = |block, what| Some(Error::Damaged { block, kind: "btree node", what });
        let (left, right) = (leaf(0..10).await, leaf(9..20).await);
        let root = node(&tm, true, [(0, left), (9, right)].into_iter()).await;
        assert_eq!(tree.remove(&tm, root, 15).await.err(), damage(right, "its keys overlap its neighbour's"));
        let deeper = internal(&tm, 1..2).await;
        let root = node(&tm, true, [(0, leaf(0..10).await), (10, deeper)].into_iter()).await;
        assert_eq!(tree.remove(&tm, root, 5).await.err(), damage(deeper, "it is of another kind than its neighbour"));
        // The left leaf is empty: all entries of the right one fit.
        let full = leaf(100..352).await;
        let root = node(&tm, true, [(0, leaf(0..0).await), (100, full)].into_iter()).await;
        let inserted = tree.insert_sorted(&tm, root, [(400, 0.into())], |_, _| ()).await;
        assert_eq!(inserted.err(), damage(full, "it lost all entries"));
    });
}

/// As Linux does it: fewer than twice as many as one above the floor are merged.
#[test]
fn neighbours_are_merged_if_both_would_be_at_their_floor() {
    block_on_ready(async {
        for (right_len, expected) in [(85, &[168][..]), (86, &[84, 85]), (87, &[84, 86])] {
            let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
            let tm = TransactionManager::create(blocks, 100).await.unwrap();
            let tree = BTree::new(Plain::<U64>::new());
            let leaf = async |keys: core::ops::Range<u64>| node(&tm, false, keys.map(|key| (key, key))).await;
            let leaves = [(0, leaf(0..84).await), (100, leaf(100..100 + right_len).await), (900, leaf(900..999).await)];
            let root = node(&tm, true, leaves.into_iter()).await;
            let (root, removed) = tree.remove(&tm, root, 5).await.unwrap();
            assert_eq!(removed, Some(5.into()));
            let lens = leaf_lens(&tm, root);
            assert_eq!(lens[..lens.len() - 1], *expected);
        }
    });
}

/// Its children fall together to one while they are filled up.
#[test]
fn a_node_below_the_root_that_has_one_child_left_is_damage() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 300)), BufPool::new(1 << 18), 300);
        let tm = TransactionManager::create(blocks, 300).await.unwrap();
        let mut children = Vec::new();
        for leaf in 0..85 {
            children.push((leaf * 10, internal(&tm, leaf..leaf + 1).await));
        }
        let below = node(&tm, true, children.into_iter()).await;
        let root = node(&tm, true, [(0, below), (10_000, internal(&tm, 1000..1010).await)].into_iter()).await;
        let removed = BTree::new(Plain::<U64>::new()).remove(&tm, root, 0).await;
        let what = "it has one child but is no root";
        assert_eq!(removed, Err(Error::Damaged { block: below, kind: "btree node", what }));
    });
}

#[test]
fn a_leaf_of_other_values_is_told() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 100).await.unwrap();
        let block = node(&tm, false, [(0, 7)].into_iter()).await;
        let tree = BTree::<Plain<[u8; 4]>>::plain();
        let found = tm.blocks().look(|blocks| tree.try_lookup(blocks, block, 0)).await;
        let what = "its values are not of the size of this tree's";
        assert_eq!(found, Err(Error::Damaged { block, kind: "btree node", what }));
    });
}

#[test]
fn the_leaves_of_a_tree_are_bounded_by_what_its_root_says() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 100).await.unwrap();
        let tree = BTree::new(Plain::<U64>::new());
        let (left, right) = (internal(&tm, 0..5).await, internal(&tm, 5..20).await);
        let most = async |root| tm.blocks().look(|blocks| tree.try_leaves_at_most(blocks, root)).await;
        assert_eq!(most(left).await, Ok(5));
        let root = node(&tm, true, [(0, left), (50, right)].into_iter()).await;
        assert_eq!(most(root).await, Ok(2 * 252));
    });
}

#[test]
fn only_keys_that_lead_to_a_place_fit_it() {
    let place = Place { number: 3, first: 10, last: 20 };
    let cases: [(&[u64], bool); 4] = [(&[10, 20], true), (&[9, 20], false), (&[10, 21], false), (&[], false)];
    for (keys, fits) in cases {
        let mut block = [0; BLOCK_BYTES];
        NodeMut::format(&mut block, false, 8);
        let mut node = NodeMut::parse(&mut block, 3).unwrap();
        keys.iter().enumerate().for_each(|(index, key)| node.insert(index, *key, &[0; 8]).unwrap());
        assert_eq!(place.check(Node::parse(&block, 3).unwrap(), false).is_ok(), fits, "{keys:?}");
        assert!(place.check(Node::parse(&block, 3).unwrap(), true).is_err());
    }
}

#[test]
fn a_node_that_is_its_own_child_is_too_deep() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 100).await.unwrap();
        let (blocks, tree) = (tm.blocks(), BTree::new(Plain::<U64>::new()));
        let root = node(&tm, true, core::iter::empty()).await;
        let own = blocks.change(blocks.try_read(root, &NODE).unwrap());
        for (index, key) in [0, 10].into_iter().enumerate() {
            edit(&own, |node| node.insert(index, key, &root.to_le_bytes())).unwrap();
        }
        blocks.write_out().await.unwrap();
        let too_deep = Some(Error::TooDeep { root });
        assert_eq!(blocks.look(|blocks| tree.try_lookup(blocks, root, 5)).await.err(), too_deep);
        assert_eq!(blocks.look(|blocks| tree.try_leaves_at_most(blocks, root)).await.err(), too_deep);
        assert_eq!(blocks.look(|blocks| tree.try_next(blocks, root, 5)).await.err(), too_deep);
        assert_eq!(blocks.look(|blocks| tree.try_prev(blocks, root, 5)).await.err(), too_deep);
        assert_eq!(tree.cursor(blocks, root, 0, 4).next().await.err(), too_deep);
        assert_eq!(LeafPlaces::open(blocks, root).await.err(), too_deep);
        assert_eq!(Pairs::<U64>::open(blocks, Some(root), None, 0, Shared::Skip).await.err(), too_deep);
        assert_eq!(tree.is_way_shared(&tm, root, 5).await.err(), too_deep);
        assert_eq!(tree.exclusive_leaves(&tm, root, usize::MAX).await.err(), too_deep);
        assert_eq!(tree.insert(&tm, root, 5, 0.into()).await.err(), too_deep);
        assert_eq!(tree.insert_sorted(&tm, root, [(5, 0.into())], |_, _| ()).await.err(), too_deep);
        assert_eq!(tree.delete(&tm, root).await.err(), too_deep);
    });
}

/// A pointer to a free block, say, that becomes the new place of the node itself, or of the one beside it.
#[test]
fn a_node_that_is_its_own_child_or_neighbour_takes_no_part_in_a_removal() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 100).await.unwrap();
        let tree = BTree::new(Plain::<U64>::new());
        let damage = |block, what| Some(Error::Damaged { block, kind: "btree node", what });
        let leaf = node(&tm, false, [(0, 0)].into_iter()).await;
        let root = node(&tm, true, [(0, leaf), (10, leaf)].into_iter()).await;
        assert_eq!(tree.remove(&tm, root, 0).await.err(), damage(leaf, "it is its own neighbour"));
        let root = node(&tm, true, core::iter::empty()).await;
        let own = tm.blocks().change(tm.blocks().try_read(root, &NODE).unwrap());
        edit(&own, |node| node.insert(0, 0, &root.to_le_bytes())).unwrap();
        assert_eq!(tree.remove_run(&tm, root, 0, 0, 1).await.err(), damage(root, "it is its own child"));
        assert_eq!(tree.shrink(&tm, root, 1, |_| true).await.err(), damage(root, "it is its own child"));
    });
}

#[test]
fn a_tree_may_have_as_many_levels_as_are_believed() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 200)), BufPool::new(1 << 18), 200);
        let tm = TransactionManager::create(blocks, 200).await.unwrap();
        let tree = BTree::new(Plain::<U64>::new());
        for (nodes_above, believed) in [(DEPTH_MAX - 1, true), (DEPTH_MAX, false)] {
            let mut root = node(&tm, false, [(0, 0)].into_iter()).await;
            for _ in 0..nodes_above {
                root = node(&tm, true, [(0, root)].into_iter()).await;
            }
            let expected = if believed { Ok(1) } else { Err(Error::TooDeep { root }) };
            assert_eq!(tree.exclusive_leaves(&tm, root, usize::MAX).await, expected);
        }
    });
}

/// The last child leads back to its node, which has enough children to lose one.
#[test]
fn a_node_that_leads_to_itself_for_ever_is_not_shrunk_for_ever() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 200)), BufPool::new(1 << 18), 200);
        let tm = TransactionManager::create(blocks, 200).await.unwrap();
        let root = internal(&tm, 0..100).await;
        let own = tm.blocks().change(tm.blocks().try_read(root, &NODE).unwrap());
        edit(&own, |node| node.set_child(99, root)).unwrap();
        let shrunk = BTree::new(Plain::<U64>::new()).shrink(&tm, root, 1, |_| true).await;
        assert_eq!(shrunk.err(), Some(Error::TooDeep { root }));
    });
}

/// A full leaf between two others takes the entries of its left one along, unless that would have to be copied.
#[test]
fn two_full_leaves_become_three_if_no_other_tree_has_them() {
    block_on_ready(async {
        for (shared, expected) in [(false, [168, 168, 169, 252]), (true, [252, 126, 127, 252])] {
            let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
            let tm = TransactionManager::create(blocks, 100).await.unwrap();
            let mut leaves = Vec::new();
            for first in [0, 300, 600] {
                leaves.push((first, node(&tm, false, (first..first + 252).map(|key| (key, key))).await));
            }
            if shared {
                tm.inc(leaves[0].1);
            }
            let root = node(&tm, true, leaves.into_iter()).await;
            let (root, _) = BTree::new(Plain::<U64>::new()).insert(&tm, root, 560, 0.into()).await.unwrap();
            assert_eq!(leaf_lens(&tm, root), expected);
        }
    });
}

#[test]
fn a_node_takes_no_more_than_fits_and_no_more_than_its_neighbour_has() {
    for (len, left_len) in [(200, 253), (200, 147), (100, 201)] {
        let mut blocks = [[0; BLOCK_BYTES]; 2];
        for (block, first) in blocks.iter_mut().zip([0, 1000]) {
            NodeMut::format(block, false, 8);
            let mut node = NodeMut::parse(block, 3).unwrap();
            (0..len).for_each(|index| node.insert(index, first + index as u64, &[1; 8]).unwrap());
        }
        let [left, right] = &mut blocks;
        let (mut left, mut right) = (NodeMut::parse(left, 3).unwrap(), NodeMut::parse(right, 4).unwrap());
        assert!(left.spread(&mut right, left_len).is_err(), "{left_len} of {len} and {len}");
        assert_eq!((left.len(), right.len(), right.key(0)), (len, len, Some(1000)));
    }
}

/// Nodes that each lead to the next many times over, and to a leaf that has nothing of what their keys promise.
#[test]
fn no_walk_is_as_long_as_damaged_nodes_can_make_it() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 200)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 200).await.unwrap();
        let leaf = node(&tm, false, [(0, 0)].into_iter()).await;
        let mut root = leaf;
        for _ in 0..3 {
            root = node(&tm, true, [(0, root)].into_iter().chain((0..99).map(|n| (1000 + n, root)))).await;
        }
        let tree = BTree::<Plain<U64>>::plain();
        let found = tm.blocks().look(|blocks| tree.try_next(blocks, root, 1)).await;
        assert!(matches!(found, Err(Error::Damaged { block, .. }) if block == leaf), "{found:?}");
    });
}
