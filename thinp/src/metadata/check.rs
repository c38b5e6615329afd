//! Checking a whole pool: what `thin_check` does, and what it does not look at (reference 9.2).

pub use pdata::check::Severity;

use super::Details;
use super::superblock::{self, SUPERBLOCK, Superblock};
use super::trees::{DetailsRecord, Entries, Packed};
use super::view::Committed;
use super::{MetadataError, Result};
use alloc::vec::Vec;
use pdata::block_manager::{Batch, BlockManager};
use pdata::btree::{NODE, Node, Value};
use pdata::check::{Checker, Compared, Counts, PROBLEMS_MAX, Walk};
use platform::Runtime;
use platform::block::Disk;
use zerocopy::little_endian::U64;

/// Leaves that are read together when they are read again.
const LEAVES_AT_ONCE: usize = 256;

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
    /// The time of a mapping lies in the pool's future: a snapshot's data would be overwritten.
    #[error("a mapping in btree node {block} has a time of {time}, the pool's clock stands at {now}")]
    FutureMapping {
        /// The leaf.
        block: u64,
        /// The mapping's.
        time: u32,
        /// The pool's.
        now: u32,
    },
    /// A field of a superblock is not what any tool writes, although all of them accept it.
    #[error("the superblock at block {block} has {field} {found}, it should be {expected}")]
    Field {
        /// The superblock's block: 0, or the metadata snapshot's.
        block: u64,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: u64,
    },
}

impl Problem {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Problem::Structure(problem) => problem.severity(),
            Problem::Field { .. } => Severity::Hint,
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
    /// The superblock says that a check is needed.
    pub needs_check: bool,
    /// Thin devices.
    pub devices: u64,
    /// Mappings of all devices together, shared ones counted for each.
    pub mappings: u64,
}

impl Report {
    fn tell(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.untold = self.untold.saturating_add(1);
        }
    }

    /// How many problems were found.
    pub fn found(&self) -> u64 {
        self.untold.saturating_add(self.problems.len() as u64)
    }

    /// The worst that was found.
    pub fn worst(&self) -> Option<Severity> {
        self.problems.iter().map(Problem::severity).max()
    }

    /// The pool can be used: at most hints and totals are wrong, as Linux leaves them.
    pub fn is_sound(&self) -> bool {
        self.untold == 0 && self.worst().is_none_or(|worst| worst == Severity::Hint)
    }
}

/// Checks the committed state of the pool on `disk`: every node, every count, every total. Changes nothing. Fails only if
/// there is no superblock to start from. `memory_bytes` is about what the counts of data blocks may take; if that is not
/// enough for all of them the leaves are read again for the rest.
pub async fn check(runtime: &Runtime, disk: &Disk, memory_bytes: usize) -> Result<Report> {
    Ok(check_committed(&Committed::on_disk(runtime, disk).await?, memory_bytes).await)
}

/// As [`check`], of a moment that is held.
pub(super) async fn check_committed(committed: &Committed, memory_bytes: usize) -> Report {
    let Committed { blocks, superblock } = committed;
    let mut check = Check {
        checker: Checker::new(blocks.clone(), superblock.metadata_space_map.root.nr_blocks.get()),
        devices: Walk::default(),
        mappings: Walk::default(),
        details: Walk::default(),
        data: Counts::new(superblock.data_space_map.root.nr_blocks.get(), memory_bytes),
        report: Report { needs_check: superblock.needs_check(), ..Report::default() },
    };
    check.checker.metadata.add(SUPERBLOCK);
    check.superblock(superblock);
    check.trees(superblock, true).await;
    if let Some(held) = superblock.held_root() {
        check.snapshot(superblock, held).await;
    }
    check.maps(superblock).await;
    let Check { checker, mut report, .. } = check;
    let (problems, untold) = checker.into_problems();
    report.problems.extend(problems.into_iter().map(Problem::Structure));
    report.untold = report.untold.saturating_add(untold);
    report
}

/// One walk each for the pool and its snapshot together: they share nodes.
struct Check {
    checker: Checker,
    /// Thin id to root.
    devices: Walk,
    /// The trees of the devices.
    mappings: Walk,
    details: Walk,
    data: Counts,
    report: Report,
}

impl Check {
    /// The fields that nothing depends on.
    fn superblock(&mut self, superblock: &Superblock) {
        for (field, found, expected) in superblock.odd_fields() {
            self.report.tell(Problem::Field { block: SUPERBLOCK, field, found, expected });
        }
    }

    /// Walks the trees of a superblock, `live` or a metadata snapshot's.
    async fn trees(&mut self, superblock: &Superblock, live: bool) {
        self.walk(superblock).await;
        // The walk does not show again what other trees share with these, so the ids are read apart from it. What cannot be
        // read was told by it.
        let blocks = self.checker.blocks().clone();
        let mut roots = Readable::<U64>::open(&blocks, superblock.mapping_root.get()).await;
        let mut details = Readable::<DetailsRecord>::open(&blocks, superblock.details_root.get()).await;
        let (mut root, mut record) = (roots.next().await, details.next().await);
        loop {
            let ids = root.map(|(id, _)| id).into_iter().chain(record.map(|(id, _)| id));
            let Some(device) = ids.min() else { return };
            let (of_root, of_record) = (root.filter(|(id, _)| *id == device), record.filter(|(id, _)| *id == device));
            let counted = of_root.map_or(0, |(_, root)| self.mappings.entries_below(root.get()));
            match (of_root, of_record) {
                (Some(_), Some((_, record))) => self.device(device, record.into(), counted, superblock.time.get()),
                (Some(_), None) => self.report.tell(Problem::NoDetails { device }),
                (None, _) => self.report.tell(Problem::NoMappings { device }),
            }
            if of_root.is_some() {
                root = roots.next().await;
                if live {
                    self.report.devices = self.report.devices.saturating_add(1);
                    self.report.mappings = self.report.mappings.saturating_add(counted);
                }
            }
            if of_record.is_some() {
                record = details.next().await;
            }
        }
    }

    fn device(&mut self, device: u64, details: Details, counted: u64, now: u32) {
        let stored = details.mapped_blocks;
        if stored != counted {
            self.report.tell(Problem::MappedBlocks { device, stored, counted });
        }
        let time = details.creation_time.max(details.snapshotted_time);
        if time > now {
            self.report.tell(Problem::Future { device, time, now });
        }
    }

    /// Counts every reference within the trees of a superblock.
    async fn walk(&mut self, superblock: &Superblock) {
        let Check { checker, devices, mappings, details, data, report } = self;
        details.tree(checker, superblock.details_root.get(), |_, _, _: &[DetailsRecord]| ()).await;
        let mut roots = Vec::new();
        let keep = |_: &mut Checker, _: &Node<'_>, values: &[U64]| roots.extend(values.iter().map(|root| root.get()));
        devices.tree(checker, superblock.mapping_root.get(), keep).await;
        let now = superblock.time.get();
        for root in roots {
            let count = |_: &mut Checker, node: &Node<'_>, values: &[Packed]| {
                count_data(data, values);
                let time = values.iter().map(|mapping| mapping.time()).max().unwrap_or(0);
                if time > now {
                    report.tell(Problem::FutureMapping { block: node.number(), time, now });
                }
            };
            mappings.tree(checker, root, count).await;
        }
    }

    /// Walks the metadata snapshot in block `held`.
    async fn snapshot(&mut self, live: &Superblock, held: u64) {
        self.checker.metadata.add(held);
        let block = self.checker.blocks().read(held, &superblock::KIND).await.map_err(MetadataError::from);
        match block.and_then(|block| Superblock::of_snapshot(&block.bytes())) {
            Ok(superblock) => {
                for (field, found, expected) in superblock.odd_snapshot_fields(live) {
                    self.report.tell(Problem::Field { block: held, field, found, expected });
                }
                self.trees(&superblock, false).await;
            }
            Err(why) => self.report.tell(Problem::Snapshot { block: held, why }),
        }
    }

    /// Walks and compares the space maps.
    async fn maps(&mut self, superblock: &Superblock) {
        let (data_map, metadata_map) = (&superblock.data_space_map.root, &superblock.metadata_space_map.root);
        self.checker.disk_map(data_map).await;
        self.checker.metadata_map(metadata_map).await;
        let mut compared = Compared::default();
        loop {
            self.checker.compare_disk_map(data_map, &self.data, &mut compared).await;
            if !self.data.next_pass() {
                break;
            }
            self.count_again().await;
        }
        self.checker.compare_metadata_map(metadata_map).await;
    }

    /// Counts the data blocks that another pass had no memory for.
    async fn count_again(&mut self) {
        let mut batch = Batch::default();
        let mut leaves = self.mappings.leaves().peekable();
        while leaves.peek().is_some() {
            let numbers: Vec<u64> = leaves.by_ref().take(LEAVES_AT_ONCE).collect();
            self.checker.blocks().read_batch(&numbers, &NODE, &mut batch).await;
            for (index, number) in numbers.iter().enumerate() {
                // What cannot be read was told by the walk.
                let node = batch.get(index).and_then(|block| Node::parse(block, *number));
                count_data(&mut self.data, node.and_then(|node| node.values()).unwrap_or_default());
            }
        }
    }
}

/// Counts the data blocks of a leaf, runs of consecutive ones at once.
fn count_data(data: &mut Counts, mappings: &[Packed]) {
    let (mut first, mut blocks) = (0, 0);
    for mapping in mappings {
        let block = mapping.block().0;
        if block == first + blocks {
            blocks += 1;
        } else {
            data.add_run(first, blocks);
            (first, blocks) = (block, 1);
        }
    }
    data.add_run(first, blocks);
}

/// The entries of a tree in order; behind what cannot be read there are none.
struct Readable<'a, T>(Option<Entries<'a, T>>);

impl<'a, T: Value> Readable<'a, T> {
    async fn open(blocks: &'a BlockManager, root: u64) -> Readable<'a, T> {
        Readable(Entries::open(blocks, root).await.ok())
    }

    async fn next(&mut self) -> Option<(u64, T)> {
        self.0.as_mut()?.next().await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::DataBlock;
    use crate::metadata::tests::{commit, device, format, runtime};
    use platform::task::block_on_ready;

    /// A map without blocks tells what it was given.
    #[test]
    fn a_data_block_is_counted_as_often_as_a_leaf_has_it() {
        for blocks in [&[0, 0, 1][..], &[3, 3, 4, 7, 8], &[1, 1], &[2, 3, 4, 6], &[5, 4, 3], &[]] {
            let mut counts = Counts::new(0, 0);
            let mappings: Vec<Packed> = blocks.iter().map(|block| Packed::new(DataBlock(*block), 1)).collect();
            count_data(&mut counts, &mappings);
            assert_eq!(counts.beyond(), blocks);
        }
    }

    #[test]
    fn problems_beyond_those_that_are_kept_are_counted() {
        let mut report = Report::default();
        for device in 0..PROBLEMS_MAX as u64 {
            report.tell(Problem::NoDetails { device });
            assert_eq!((report.problems.len() as u64, report.untold), (device + 1, 0));
        }
        report.tell(Problem::NoDetails { device: 0 });
        report.tell(Problem::NoDetails { device: 0 });
        assert_eq!((report.problems.len(), report.untold), (PROBLEMS_MAX, 2));
        assert_eq!(report.found(), PROBLEMS_MAX as u64 + 2);
    }

    #[test]
    fn another_pass_counts_the_same_leaves() {
        block_on_ready(async {
            let (disk, metadata) = format(512, 1000).await;
            device(&metadata, 1, 300).await;
            commit(&metadata).await;
            let Committed { blocks, superblock } = Committed::on_disk(&runtime(), &Disk::new(disk)).await.unwrap();
            for again in [true, false] {
                let mut check = Check {
                    checker: Checker::new(blocks.clone(), 512),
                    devices: Walk::default(),
                    mappings: Walk::default(),
                    details: Walk::default(),
                    data: Counts::new(1000, 0),
                    report: Report::default(),
                };
                check.walk(&superblock).await;
                check.data = Counts::new(1000, 0);
                if again {
                    check.count_again().await;
                }
                let (map, mut compared) = (&superblock.data_space_map.root, Compared::default());
                check.checker.compare_disk_map(map, &check.data, &mut compared).await;
                assert_eq!(check.checker.into_problems().0.is_empty(), again);
            }
        });
    }
}
