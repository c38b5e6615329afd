//! A second target over the library: a dm-cache metadata that Linux's tools read, and one of theirs that we change.

mod target;
mod tools;

use crate::harness::*;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::HashSet;
use target::Cache;
use tools::{Dump, Tool};

const METADATA_BLOCKS: u64 = 1024;
const ORIGIN_BLOCKS: u64 = 100_000;

/// What the cache should hold.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    mappings: Vec<(Option<u64>, bool)>,
    hints: Vec<u32>,
    discards: Vec<bool>,
}

struct Driver {
    disk: MemDisk,
    cache: Cache,
    dice: Dice,
    memory_blocks: usize,
    now: Model,
    committed: Model,
}

impl Driver {
    async fn step(&mut self) {
        match self.dice.below(60) {
            0 => self.resize().await,
            1 => self.resize_discards().await,
            2 | 3 => self.commit().await,
            4 => {
                self.cache = Cache::open(&self.disk, self.memory_blocks).await.unwrap();
                self.now = self.committed.clone();
            }
            5..=9 if !self.now.discards.is_empty() => {
                let first = self.dice.below(self.now.discards.len() as u64);
                let value = self.dice.below(3) > 0;
                for block in first..(first + self.dice.below(3000)).min(self.now.discards.len() as u64) {
                    self.cache.set_discard(block, value).await.unwrap();
                    self.now.discards[block as usize] = value;
                }
            }
            _ => self.use_blocks().await,
        }
    }

    /// Maps, unmaps, soils and cleans some cache blocks, and changes hints.
    async fn use_blocks(&mut self) {
        let len = self.now.mappings.len() as u64;
        let mut cached: HashSet<u64> = self.now.mappings.iter().filter_map(|(origin, _)| *origin).collect();
        for _ in 0..self.dice.below(60).min(len) {
            let block = self.dice.below(len);
            let at = block as usize;
            if self.now.mappings[at].0.is_none() || self.dice.below(3) == 0 {
                let origin = Some(self.dice.below(ORIGIN_BLOCKS)).filter(|origin| cached.insert(*origin));
                self.cache.map(block, origin).await.unwrap();
                self.now.mappings[at].0 = origin;
            }
            let dirty = self.now.mappings[at].0.is_some() && self.dice.below(2) == 0;
            self.cache.set_dirty(block, dirty).await.unwrap();
            self.now.mappings[at].1 = dirty;
            if self.cache.has_hints() {
                let hint = self.dice.word() as u32;
                self.cache.set_hint(block, hint).await.unwrap();
                self.now.hints[at] = hint;
            }
        }
    }

    /// Never to nothing: `cache_dump` 1.x panics at an empty array.
    async fn resize(&mut self) {
        let to = (self.cache.len() + self.dice.below(3000)).saturating_sub(self.dice.below(2000)).max(1);
        self.cache.resize(to).await.unwrap();
        self.now.mappings.resize(to as usize, (None, false));
        if self.cache.has_hints() {
            self.now.hints.resize(to as usize, 0);
        }
    }

    /// Never to less than is mapped: `cache_check` takes the length for the origin's.
    async fn resize_discards(&mut self) {
        let to = ORIGIN_BLOCKS + self.dice.below(ORIGIN_BLOCKS);
        self.cache.resize_discards(to).await.unwrap();
        self.now.discards.resize(to as usize, false);
    }

    async fn commit(&mut self) {
        self.cache.commit(self.dice.below(2) == 0).await.unwrap();
        self.committed = self.now.clone();
        self.check().await;
    }

    /// Everybody reads the committed state and finds it sound: the library, and the tools of both generations.
    async fn check(&self) {
        let opened = Cache::open(&self.disk, self.memory_blocks).await.unwrap();
        let (mappings, hints, discards) = opened.read_all().await.unwrap();
        let read = Model { mappings, hints, discards };
        let found = Dump::of(&read).difference(&Dump::of(&self.committed));
        assert!(read == self.committed, "read back otherwise: {found:?}");
        assert_eq!(Cache::problems(&self.disk).await, []);
        let expected = Dump::of(&self.committed);
        for tool in [Tool::Modern, Tool::Packaged] {
            tool.check(&self.disk);
            if let Some(dump) = tool.dump(&self.disk, self.cache.has_hints()) {
                assert_eq!(dump.difference(&expected.as_seen_by(tool)), None, "{tool:?}");
            }
        }
    }
}

fn drive(hints: bool, memory_blocks: usize, seed: u64) {
    block_on_ready(async {
        let disk = MemDisk::new(METADATA_BLOCKS * 8);
        let cache = Cache::format(&disk, hints, memory_blocks).await.unwrap();
        let (now, committed) = (Model::default(), Model::default());
        let mut driver = Driver { disk, cache, dice: Dice::new(seed), memory_blocks, now, committed };
        driver.resize().await;
        driver.resize_discards().await;
        driver.commit().await;
        for _ in 0..200 {
            driver.step().await;
        }
        driver.commit().await;
    });
}

#[test]
fn linux_tools_read_a_cache_of_ours() {
    let seed = seed();
    drive(true, 16, seed);
    drive(true, 500, seed + 1);
}

/// A policy that keeps no hints has no hint array at all.
#[test]
fn linux_tools_read_a_cache_without_hints() {
    drive(false, 16, seed());
}

/// `cache_restore` makes it, we change it. The one of 1.x: what 0.9 makes of version 2 is refused by `cache_check` 1.x
/// itself, for blocks in no use are dirty and the hints are of no size.
#[test]
fn we_change_a_cache_of_linux_tools() {
    let dice = Dice::new(seed());
    block_on_ready(async {
        let mut cached = HashSet::new();
        let mut mapping = |_| {
            let origin = Some(dice.below(ORIGIN_BLOCKS)).filter(|origin| dice.below(3) > 0 && cached.insert(*origin));
            (origin, origin.is_some() && dice.below(2) == 0)
        };
        let mappings: Vec<_> = (0..1500 + dice.below(2000)).map(&mut mapping).collect();
        let hints = mappings.iter().map(|(origin, _)| if origin.is_some() { dice.word() as u32 } else { 0 });
        let model = Model { hints: hints.collect(), mappings, discards: Vec::new() };
        let Some(disk) = Tool::Modern.restore(&model, METADATA_BLOCKS) else { return };
        let cache = Cache::open(&disk, 16).await.unwrap();
        let (now, committed) = (model.clone(), model);
        let mut driver = Driver { disk, cache, dice, memory_blocks: 16, now, committed };
        driver.check().await;
        for _ in 0..100 {
            driver.step().await;
        }
        driver.commit().await;
    });
}
