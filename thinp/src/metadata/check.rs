//! Checking a whole pool: what `thin_check` does, and what it does not look at (reference 9.2).

use super::Details;
use super::superblock::{self, SUPERBLOCK, Superblock};
use super::trees::{DetailsRecord, Packed};
use super::{MetadataError, Result};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::ControlFlow;
use pdata::block_manager::BlockManager;
use pdata::btree::{BTree, Plain, Value};
use pdata::check::{Checker, Counts, Severity, Walk};
use platform::Runtime;
use platform::block::Disk;
use zerocopy::little_endian::U64;

/// Something that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// In a tree or a space map.
    #[error(transparent)]
    Structure(#[from] pdata::check::Problem),
    /// The copy of the superblock that a metadata snapshot is cannot be used.
    #[error("the metadata snapshot at block {block} is no good: {why}")]
    Snapshot {
        /// Its block.
        block: u64,
        /// What is wrong.
        why: MetadataError,
    },
    /// A thin device has no details.
    #[error("thin device {device} has mappings but no details")]
    NoDetails {
        /// Its id.
        device: u64,
    },
    /// A thin device has no mapping tree.
    #[error("thin device {device} has details but no mappings")]
    NoMappings {
        /// Its id.
        device: u64,
    },
    /// A device has another number of mappings than its details say.
    #[error("thin device {device} has {counted} mappings, its details say {stored}")]
    MappedBlocks {
        /// Its id.
        device: u64,
        /// As stored.
        stored: u64,
        /// As they are.
        counted: u64,
    },
    /// A time lies in the pool's future.
    #[error("thin device {device} has a time of {time}, the pool's clock stands at {now}")]
    Future {
        /// Its id.
        device: u64,
        /// The device's.
        time: u32,
        /// The pool's.
        now: u32,
    },
}

impl Problem {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Problem::Structure(problem) => problem.severity(),
            _ => Severity::Damage,
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The problems, the first of them if there are very many.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub untold: u64,
    /// Thin devices.
    pub devices: u64,
    /// Mappings of all devices together, shared ones counted for each.
    pub mappings: u64,
}

impl Report {
    /// The worst that was found.
    pub fn worst(&self) -> Option<Severity> {
        self.problems.iter().map(Problem::severity).max()
    }
}

/// Checks the committed state of the pool on `disk`: every node, every count, every total. Changes nothing. Fails only if
/// there is no superblock to start from.
pub async fn check(runtime: &Runtime, disk: &Disk, cache_blocks: usize) -> Result<Report> {
    let blocks = BlockManager::new(disk.clone(), runtime.bufs.clone(), cache_blocks);
    let superblock = Superblock::open(&*blocks.read_raw(SUPERBLOCK).await?, true)?;
    let mut check = Check {
        checker: Checker::new(blocks, superblock.metadata_space_map.root.nr_blocks.get()),
        walk: Walk::default(),
        data: Counts::new(superblock.data_space_map.root.nr_blocks.get()),
        report: Report::default(),
    };
    check.checker.metadata.add(SUPERBLOCK);
    check.devices(&superblock, true).await;
    if let Some(held) = superblock.held_root() {
        check.snapshot(held).await;
    }
    let Check { mut checker, data, mut report, .. } = check;
    let data_map = checker.disk_map(&superblock.data_space_map.root).await;
    let metadata_map = checker.metadata_map(&superblock.metadata_space_map.root).await;
    checker.compare_disk_map(&data_map, &data).await;
    checker.compare_metadata_map(&metadata_map).await;
    let (problems, untold) = checker.into_problems();
    report.problems.extend(problems.into_iter().map(Problem::Structure));
    report.untold = untold;
    Ok(report)
}

struct Check {
    checker: Checker,
    /// One walk for the pool and its snapshot: they share nodes.
    walk: Walk,
    data: Counts,
    report: Report,
}

impl Check {
    /// Walks the trees of a superblock, `live` or a metadata snapshot's.
    async fn devices(&mut self, superblock: &Superblock, live: bool) {
        self.walk_trees(superblock).await;
        // The walk does not show again what other trees share with these, so the ids are read apart from it.
        let roots = self.entries::<U64>(superblock.mapping_root.get()).await;
        let details = self.entries::<DetailsRecord>(superblock.details_root.get()).await;
        for (&device, root) in &roots {
            let counted = self.walk.entries_below(root.get());
            match details.get(&device) {
                Some(record) => self.details(device, Details::from(*record), counted, superblock.time.get()),
                None => self.report.problems.push(Problem::NoDetails { device }),
            }
            if live {
                self.report.devices += 1;
                self.report.mappings = self.report.mappings.saturating_add(counted);
            }
        }
        for &device in details.keys().filter(|device| !roots.contains_key(device)) {
            self.report.problems.push(Problem::NoMappings { device });
        }
    }

    fn details(&mut self, device: u64, details: Details, counted: u64, now: u32) {
        let stored = details.mapped_blocks;
        if stored != counted {
            self.report.problems.push(Problem::MappedBlocks { device, stored, counted });
        }
        let time = details.creation_time.max(details.snapshotted_time);
        if time > now {
            self.report.problems.push(Problem::Future { device, time, now });
        }
    }

    /// Counts every reference within the trees of a superblock.
    async fn walk_trees(&mut self, superblock: &Superblock) {
        let details = superblock.details_root.get();
        self.walk.tree(&mut self.checker, details, |_, _, _: DetailsRecord| ()).await;
        let mut roots = Vec::new();
        let top = superblock.mapping_root.get();
        self.walk.tree(&mut self.checker, top, |_, _, root: U64| roots.push(root.get())).await;
        for root in roots {
            let count = |_: &mut Checker, _, mapping: Packed| {
                self.data.add(mapping.block().0);
            };
            self.walk.tree(&mut self.checker, root, count).await;
        }
    }

    /// All entries of a tree; those that cannot be read are missing, of which the walk tells.
    async fn entries<T: Value>(&self, root: u64) -> BTreeMap<u64, T> {
        let tree = BTree::<Plain<T>>::plain();
        let mut entries = BTreeMap::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let scan = |blocks: &BlockManager| {
                tree.try_scan(blocks, root, from, |key, value| {
                    entries.insert(key, value);
                    ControlFlow::Continue(())
                })
            };
            next = self.checker.blocks().look(scan).await.ok().flatten();
        }
        entries
    }

    /// Walks the metadata snapshot in block `held`.
    async fn snapshot(&mut self, held: u64) {
        self.checker.metadata.add(held);
        let block = self.checker.blocks().read(held, &superblock::KIND).await.map_err(MetadataError::from);
        match block.and_then(|block| Superblock::of_snapshot(&block.bytes())) {
            Ok(superblock) => self.devices(&superblock, false).await,
            Err(why) => self.report.problems.push(Problem::Snapshot { block: held, why }),
        }
    }
}
