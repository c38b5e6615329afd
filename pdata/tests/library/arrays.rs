//! Arrays and bitsets against vectors, with sharing, tiny caches and random commits.

use crate::harness::*;
use pdata::Error;
use pdata::array::Array;
use pdata::bitset::Bitset;
use pdata::btree::{BTree, Plain};
use pdata::check::{Checker, Counts, Walk};
use platform::block::Disk;
use platform::task::{Executor, block_on_ready};
use std::ops::Range;
use zerocopy::little_endian::U64;

const DATA_BLOCKS: u64 = 20_000;

#[derive(Clone)]
struct Model {
    root: u64,
    values: Vec<u64>,
}

/// Arrays of references to data blocks, which may share array blocks and tree nodes.
struct Arrays {
    store: Store,
    array: Array<Refs>,
    dice: Dice,
    arrays: Vec<Model>,
    committed: Vec<Model>,
    shared_changes: u64,
}

impl Arrays {
    async fn new(seed: u64, cache_blocks: usize) -> Arrays {
        let store = Store::new(10_000, DATA_BLOCKS, cache_blocks).await;
        let array = Array::new(Refs { data: store.data.clone() });
        let root = array.create(&store.tm).await.unwrap();
        let arrays = vec![Model { root, values: Vec::new() }];
        Arrays { store, array, dice: Dice::new(seed), arrays, committed: Vec::new(), shared_changes: 0 }
    }

    fn pick(&self) -> usize {
        self.dice.below(self.arrays.len() as u64) as usize
    }

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..=44 => self.set().await,
            45..=49 => self.lengthen().await,
            50..=59 => self.resize().await,
            60..=69 => self.extend().await,
            70..=79 => self.get().await,
            80..=85 if self.arrays.len() < 6 => self.share(),
            86..=89 if self.arrays.len() > 1 => {
                let gone = self.arrays.swap_remove(self.pick());
                self.array.delete(&self.store.tm, gone.root).await.unwrap();
            }
            90..=93 => self.commit().await,
            94 if !self.committed.is_empty() => {
                self.store.reopen().await;
                self.array = Array::new(Refs { data: self.store.data.clone() });
                self.arrays = self.committed.clone();
            }
            _ => self.get().await,
        }
        self.store.tm.settle_some().await.unwrap();
    }

    async fn set(&mut self) {
        let at = self.pick();
        for _ in 0..self.dice.below(20) {
            let len = self.arrays[at].values.len() as u64;
            if len == 0 {
                return;
            }
            let (index, block) = (self.dice.below(len), self.dice.below(DATA_BLOCKS));
            let (store, model) = (&self.store, &mut self.arrays[at]);
            store.data.inc(&store.tm, block..block + 1).await.unwrap();
            self.shared_changes += u64::from(store.tm.is_shared(model.root).await.unwrap());
            let (root, before) = self.array.set(&store.tm, model.root, index, Long::new(block)).await.unwrap();
            model.root = root;
            let expected = std::mem::replace(&mut model.values[index as usize], block);
            assert_eq!(before, Long::new(expected));
            store.data.dec(&store.tm, expected..expected + 1, &mut |_| ()).await.unwrap();
        }
    }

    async fn resize(&mut self) {
        let at = self.pick();
        let from = self.arrays[at].values.len() as u64;
        let to = (from + self.dice.below(500)).saturating_sub(self.dice.below(500));
        let fill = self.dice.below(DATA_BLOCKS);
        let (store, model) = (&self.store, &mut self.arrays[at]);
        model.root = self.array.resize(&store.tm, model.root, from, to, Long::new(fill)).await.unwrap();
        model.values.resize(to as usize, fill);
    }

    /// Makes one so long that its tree has two levels.
    async fn lengthen(&mut self) {
        let at = self.pick();
        let (store, model) = (&self.store, &mut self.arrays[at]);
        let (from, to) = (model.values.len() as u64, 5000);
        if from < to {
            model.root = self.array.resize(&store.tm, model.root, from, to, Long::new(7)).await.unwrap();
            model.values.resize(to as usize, 7);
        }
    }

    async fn extend(&mut self) {
        let at = self.pick();
        let more: Vec<u64> = (0..self.dice.below(200)).map(|_| self.dice.below(DATA_BLOCKS)).collect();
        let (store, model) = (&self.store, &mut self.arrays[at]);
        for block in &more {
            store.data.inc(&store.tm, *block..*block + 1).await.unwrap();
        }
        let len = model.values.len() as u64;
        let values = more.iter().map(|block| Long::new(*block));
        model.root = self.array.extend(&store.tm, model.root, len, values).await.unwrap();
        model.values.extend(more);
    }

    async fn get(&self) {
        let (model, blocks) = (&self.arrays[self.pick()], self.store.tm.blocks());
        let index = self.dice.below(model.values.len() as u64 + 20);
        let found = blocks.look(|blocks| self.array.try_get(blocks, model.root, index)).await;
        match model.values.get(index as usize) {
            Some(block) => assert_eq!(found, Ok(Long::new(*block))),
            None => assert!(matches!(found, Err(Error::Damaged { kind: "array", .. })), "{found:?}"),
        }
    }

    fn share(&mut self) {
        let model = self.arrays[self.pick()].clone();
        self.store.tm.inc(model.root);
        self.arrays.push(model);
    }

    async fn commit(&mut self) {
        self.store.commit().await;
        self.committed = self.arrays.clone();
        let roots = self.store.roots;
        let mut checker = Checker::new(blocks_on(Disk::new(self.store.disk.clone()), 4096), roots.1.nr_blocks.get());
        let (mut walk, mut counts) = (Walk::default(), Counts::new(DATA_BLOCKS, 1 << 20));
        checker.metadata.add(0);
        for model in &self.arrays {
            let count = |_: &mut Checker, _, value: Long| {
                counts.add(value.block.get());
            };
            walk.array(&mut checker, model.root, model.values.len() as u64, count).await;
            let mut all = Vec::new();
            let see = |index, value: Long| {
                assert_eq!((index, value), (all.len() as u64, Long::new(value.block.get())));
                all.push(value.block.get());
            };
            let read_ahead = 1 + self.dice.below(40) as usize;
            self.array.scan(self.store.tm.blocks(), model.root, read_ahead, see).await.unwrap();
            assert_eq!(all, model.values);
        }
        compare(checker, roots, counts).await;
    }
}

#[test]
fn arrays_agree_with_vectors() {
    let seed = seed();
    for (n, cache_blocks) in [16, 5000].into_iter().enumerate() {
        block_on_ready(async {
            let mut arrays = Arrays::new(seed + n as u64, cache_blocks).await;
            for _ in 0..600 {
                arrays.step().await;
            }
            assert!(arrays.shared_changes > 5, "{}", arrays.shared_changes);
            for model in &mut arrays.arrays {
                let (tm, len) = (&arrays.store.tm, model.values.len() as u64);
                model.root = arrays.array.resize(tm, model.root, len, 0, Long::new(0)).await.unwrap();
                model.values.clear();
            }
            arrays.commit().await;
            assert_eq!(arrays.store.data.nr_free(), DATA_BLOCKS);
        });
    }
}

#[test]
fn bitsets_agree_with_vectors() {
    let dice = Dice::new(seed());
    block_on_ready(async {
        let mut store = Store::new(2000, 100, 16).await;
        let mut bits = Bitset::create(&store.tm).await.unwrap();
        let mut model = Vec::<bool>::new();
        let (mut root, mut committed) = (0, Vec::new());
        for step in 0..600 {
            match dice.below(20) {
                0 => {
                    let len = (model.len() as u64 + dice.below(60_000)).saturating_sub(dice.below(50_000));
                    let fill = dice.below(2) == 0;
                    bits.resize(&store.tm, len, fill).await.unwrap();
                    model.resize(len as usize, fill);
                }
                1 => {
                    let more: Vec<bool> = (0..dice.below(200)).map(|_| dice.below(2) == 0).collect();
                    bits.extend(&store.tm, more.iter().copied()).await.unwrap();
                    model.extend(more);
                }
                2 | 3 if step > 0 => {
                    root = bits.flush(&store.tm).await.unwrap();
                    store.commit().await;
                    committed.clone_from(&model);
                    check_bitset(&store, root, &model).await;
                }
                4 if root != 0 => {
                    store.reopen().await;
                    bits = Bitset::open(root, committed.len() as u64);
                    model.clone_from(&committed);
                }
                _ if model.is_empty() => {}
                _ => {
                    let first = dice.below(model.len() as u64);
                    for bit in first..(first + dice.below(1000)).min(model.len() as u64) {
                        let value = dice.below(3) == 0;
                        bits.set(&store.tm, bit, value).await.unwrap();
                        model[bit as usize] = value;
                    }
                }
            }
            store.tm.settle_some().await.unwrap();
            let bit = dice.below(model.len() as u64 + 3);
            let found = store.tm.blocks().look(|blocks| bits.try_test(blocks, bit)).await;
            assert_eq!(found.ok(), model.get(bit as usize).copied());
            if dice.below(20) == 0 {
                let mut all = Vec::new();
                bits.scan(store.tm.blocks(), 8, |bit, value| {
                    assert_eq!(bit, all.len() as u64);
                    all.push(value);
                })
                .await
                .unwrap();
                assert!(all == model);
            }
        }
        bits.delete(&store.tm).await.unwrap();
        store.commit().await;
        store.check([]).await;
    });
}

/// On disk every bit beyond the end is zero, whatever was there when the bitset was longer.
async fn check_bitset(store: &Store, root: u64, model: &[bool]) {
    let mut checker = Checker::new(blocks_on(Disk::new(store.disk.clone()), 4096), store.roots.1.nr_blocks.get());
    checker.metadata.add(0);
    let words = model.len().div_ceil(64) as u64;
    let mut wrong = Vec::new();
    let see = |_: &mut Checker, index: u64, word: U64| {
        let bits: Range<usize> = index as usize * 64..model.len().min(index as usize * 64 + 64);
        let expected = bits.rev().fold(0, |word, bit| word << 1 | u64::from(model[bit]));
        if expected != word.get() {
            wrong.push(index);
        }
    };
    Walk::default().array(&mut checker, root, words, see).await;
    assert!(wrong.is_empty(), "{wrong:?}");
    compare(checker, store.roots, Counts::new(100, 1 << 20)).await;
}

/// A block that is longer or shorter than it should be, or a length that is not the array's, is found.
#[test]
fn a_wrong_length_is_told() {
    block_on_ready(async {
        let mut store = Store::new(200, 100, 16).await;
        let words = Array::<Plain<U64>>::plain();
        let root = words.create(&store.tm).await.unwrap();
        let root = words.extend(&store.tm, root, 0, (0..1000).map(U64::new)).await.unwrap();
        store.commit().await;
        for (len, sound) in [(1000, true), (999, false), (1001, false), (509, false), (1019, false), (0, false)] {
            let mut checker = Checker::new(blocks_on(Disk::new(store.disk.clone()), 64), 200);
            Walk::default().array(&mut checker, root, len, |_, _, _: U64| ()).await;
            assert_eq!(checker.into_problems().0.is_empty(), sound, "{len}");
        }
        let error = words.extend(&store.tm, root, 998, [U64::ZERO]).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { kind: "array block", .. }), "{error}");
        let shorts = Array::<Plain<[u8; 4]>>::plain();
        let found = store.tm.blocks().look(|blocks| shorts.try_get(blocks, root, 0)).await;
        assert!(matches!(found, Err(Error::Damaged { kind: "array block", .. })), "{found:?}");
        let found = store.tm.blocks().look(|blocks| words.try_get(blocks, root, 1000)).await;
        assert!(matches!(found, Err(Error::Damaged { .. } | Error::OutOfRange { .. })), "{found:?}");
    });
}

#[test]
fn a_resize_to_the_same_length_changes_nothing() {
    block_on_ready(async {
        let mut store = Store::new(200, 100, 16).await;
        let words = Array::<Plain<U64>>::plain();
        let root = words.create(&store.tm).await.unwrap();
        let root = words.resize(&store.tm, root, 0, 1000, U64::ZERO).await.unwrap();
        store.commit().await;
        assert_eq!(words.resize(&store.tm, root, 1000, 1000, U64::ZERO).await, Ok(root));
    });
}

#[test]
fn an_array_with_a_block_that_is_free_is_not_deleted() {
    block_on_ready(async {
        let store = Store::new(200, 100, 16).await;
        let words = Array::<Plain<U64>>::plain();
        let root = words.create(&store.tm).await.unwrap();
        let root = words.extend(&store.tm, root, 0, [U64::ZERO]).await.unwrap();
        let tree = BTree::<Plain<U64>>::new(Plain::new());
        let block = store.tm.blocks().look(|blocks| tree.try_lookup(blocks, root, 0)).await.unwrap().unwrap().get();
        store.tm.dec(block);
        assert_eq!(words.delete(&store.tm, root).await, Err(Error::BadCount { block, count: 0, by: -1 }));
    });
}

#[test]
fn a_scan_reads_as_many_blocks_together_as_the_cache_has_room_for() {
    let mut store = block_on_ready(Store::new(200, 100, 16));
    let words = Array::<Plain<U64>>::plain();
    let root = block_on_ready(async {
        let root = words.create(&store.tm).await.unwrap();
        let root = words.resize(&store.tm, root, 0, 20 * 509, U64::ZERO).await.unwrap();
        store.commit().await;
        root
    });
    for (wanted, most) in [(3, 3), (100, 4)] {
        let slow = Slow::new(store.disk.clone());
        let (blocks, executor) = (blocks_on(Disk::new(slow.clone()), 16), Executor::new());
        executor.spawner().spawn(async move {
            Array::<Plain<U64>>::plain().scan(&blocks, root, wanted, |_, _| ()).await.unwrap();
        });
        let mut together = 0;
        loop {
            while executor.run_ready(1) {}
            match slow.answer() {
                0 => break,
                answered => together = together.max(answered),
            }
        }
        assert_eq!(together, most);
    }
}

#[test]
fn a_bitset_has_no_bit_beyond_its_end() {
    block_on_ready(async {
        let store = Store::new(200, 100, 16).await;
        let mut bits = Bitset::create(&store.tm).await.unwrap();
        bits.resize(&store.tm, 10, true).await.unwrap();
        assert_eq!(store.tm.blocks().look(|blocks| bits.try_test(blocks, 9)).await, Ok(true));
        let error = store.tm.blocks().look(|blocks| bits.try_test(blocks, 10)).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { kind: "array", .. }), "{error}");
        assert_eq!(bits.set(&store.tm, 10, true).await, Err(error));
    });
}

/// 64 KiB of changed words stay in core.
#[test]
fn changed_words_of_a_bitset_are_written_when_they_are_many() {
    block_on_ready(async {
        let mut store = Store::new(200, 100, 16).await;
        let mut bits = Bitset::create(&store.tm).await.unwrap();
        bits.resize(&store.tm, 8193 * 64, false).await.unwrap();
        store.commit().await;
        let free = store.tm.free_blocks();
        for word in 0..8192 {
            bits.set(&store.tm, word * 64, true).await.unwrap();
        }
        assert_eq!(store.tm.free_blocks(), free);
        bits.set(&store.tm, 8192 * 64, true).await.unwrap();
        assert!(store.tm.free_blocks() < free);
    });
}
