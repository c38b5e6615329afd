//! Repair: metadata whose superblock or trees are damaged is rebuilt, from what is whole, onto another disk.
//!
//! Every block of the damaged disk is read once ([`Scan`]); it is never written. The nodes found make up trees ([`Forest`]): those of
//! the last commit, of a metadata snapshot, and of earlier commits whose blocks were not used again. Pairs of trees
//! that belong together are states of the pool ([`states`]). The state that the superblock leads to is taken if nothing
//! of it is lost. Else that, the newest state that is whole, and without a superblock the newest of all are compared: the one
//! with the most mappings is taken. Where a tree has holes they are filled as far as can be ([`fill`]). What then is there is dumped, and restored on the other disk.
//!
//! Memory: a quarter of what is given caches blocks. The rest holds what is known of all nodes, those of earlier states
//! included: 38 bytes of each, and 67 more of each that is more than a leaf of mappings. What that leaves is for nodes without a
//! parent where something is missing, 44 bytes each, and afterwards for the leaves that are dumped and restored, about
//! [`LEAF_BYTES`] each. What does not fit is refused before anything is written. 64 MiB are enough for a disk of 2 GiB full of
//! nodes that hold ten million mappings of two devices.

mod fill;
mod forest;
mod known;
#[cfg(test)]
mod made;
mod report;
mod salvage;
mod scan;
mod states;
mod table;

pub use report::{Alternative, DamagedDevice, LostRange, Parameter, Report, Source};
pub use states::{Origin, State};

use self::forest::Forest;
use self::known::Known;
use self::report::TOLD_MAX;
use self::salvage::{Remains, Salvage};
use self::scan::{Scan, TooMany};
use super::dump::{Dump, DumpError, Format, Mappings, Runs};
use super::restore::{self, Overrides, RestoreError, Restored};
use super::state::disk_blocks;
use super::superblock::{SUPERBLOCK, Superblock, check_data_block_sectors};
use super::trees::TIME_MAX;
use super::{Details, MetadataError};
use alloc::vec::Vec;
use futures_util::future::join;
use pdata::TransactionManager;
use pdata::block::BLOCK_BYTES;
use pdata::block_manager::BlockManager;
use pdata::btree::Place;
use platform::Runtime;
use platform::block::Disk;
use platform::sync::Queue;

/// Leaves that are dumped together.
const LEAVES_AT_ONCE: usize = 252;

/// Pieces of the dump that wait for the restore.
const PIECES_MAX: usize = 2;

/// Blocks that each of the two disks' caches holds at most.
const CACHE_BLOCKS_MAX: usize = 4096;

/// The caches of both disks take a part in so many of the memory.
const CACHE_SHARE: usize = 4;

/// Memory for a leaf of a device that is rebuilt, while it is dumped and restored.
const LEAF_BYTES: usize = 96;

/// What to put in place of what is found, and which state to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Taken for what was lost with the superblock, or instead of what it says.
    pub overrides: Overrides,
    /// Take the state that the superblock leads to even where another gives more mappings.
    pub last_commit: bool,
}

/// Why a repair failed. The damaged disk is as it was; the other one holds no pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// There is nothing of a pool.
    #[error("none of the {blocks} blocks of this disk holds a tree of a thin pool: attach the right metadata disk")]
    NothingFound {
        /// Blocks of the disk.
        blocks: u64,
    },
    /// There is more than the memory holds.
    #[error(
        "this metadata has {nodes} nodes or more, for which {mebibytes} MiB are too little: repair it on a larger host"
    )]
    TooManyNodes {
        /// Nodes that were found up to there.
        nodes: u64,
        /// The memory.
        mebibytes: u64,
    },
    /// The size of data blocks is nowhere to be found.
    #[error("the size of the pool's data blocks was lost with the superblock: give it (data block size, in sectors)")]
    BlockSizeUnknown,
    /// The new disk holds something.
    #[error(
        "the disk for the new metadata is not blank at sector {sector}: attach a blank one, or force its overwriting"
    )]
    NotBlank {
        /// The first sector seen that is not zero.
        sector: u64,
    },
    /// The new disk is too small.
    #[error("the disk for the new metadata has {blocks} blocks of 4 KiB: make it as large as the old one, {enough}")]
    TooSmall {
        /// Blocks that it has.
        blocks: u64,
        /// Blocks that are enough.
        enough: u64,
    },
    /// A disk failed, or a parameter that was given cannot be.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// Rebuilds on `to` what can be found on `from`. What `to` held is lost. It takes no more than `memory_bytes`, but for
/// buffers of requests and a few hundred kilobytes.
pub async fn repair(
    runtime: &Runtime,
    from: &Disk,
    to: &Disk,
    memory_bytes: usize,
    options: &Options,
) -> Result<Report, RepairError> {
    let (cache_blocks, tables_bytes) = shares(memory_bytes);
    let (from, overrides) = (&from.lockable(), &options.overrides);
    from.lock();
    let blocks = BlockManager::new(from.clone(), runtime.bufs.clone(), cache_blocks);
    let nr_blocks = disk_blocks(from);
    let superblock = match blocks.read_raw(SUPERBLOCK).await {
        Ok(block) => Superblock::open(&block, true),
        Err(error) => Err(error.into()),
    };
    let known = superblock.as_ref().ok();
    let data_blocks = known.map_or(u64::MAX, |known| {
        let data_blocks = known.data_space_map.root.nr_blocks.get();
        data_blocks.max(overrides.data_blocks.unwrap_or(0))
    });
    let too_many = |TooMany { nodes }| too_many(nodes, memory_bytes);
    let fits = |scan: &Scan| known_bytes(scan) <= tables_bytes;
    let scan = Scan::run(&blocks, nr_blocks, data_blocks, fits).await.map_err(too_many)?;
    let left_bytes = tables_bytes.saturating_sub(known_bytes(&scan));
    let mut forest = Forest::grow(&blocks, &scan).await;
    let found = best(runtime, &mut forest, known, options, from, left_bytes).await.map_err(too_many)?;
    let Some((salvage, alternatives)) = found else { return Err(RepairError::NothingFound { blocks: nr_blocks }) };
    leaves_fit(salvage.leaves_kept(&forest).await.len(), left_bytes).map_err(too_many)?;
    let pool = parameters(&forest, &salvage, known, overrides).await?;
    let restored = write(runtime, &blocks, &forest, &salvage, &pool, to, cache_blocks).await?;
    let mut report = Report {
        restored,
        state: salvage.state,
        alternatives,
        superblock: superblock.err(),
        unreadable: scan.unreadable,
        beyond: scan.beyond,
        devices_missing: salvage.devices_missing,
        transaction_id: pool.transaction_id,
        data_block_sectors: pool.data_block_sectors,
        data_blocks: pool.data_blocks,
        damaged: Vec::new(),
        untold: 0,
    };
    tell_losses(&forest, &salvage, &mut report).await;
    Ok(report)
}

/// Of the memory: blocks of each of the two caches, and bytes for what is known of nodes.
fn shares(memory_bytes: usize) -> (usize, usize) {
    let caches_bytes = memory_bytes / CACHE_SHARE;
    ((caches_bytes / 2 / BLOCK_BYTES).min(CACHE_BLOCKS_MAX), memory_bytes.saturating_sub(caches_bytes))
}

fn too_many(nodes: u64, memory_bytes: usize) -> RepairError {
    RepairError::TooManyNodes { nodes, mebibytes: (memory_bytes >> 20) as u64 }
}

/// So many leaves can be dumped and restored with so much memory.
fn leaves_fit(leaves: usize, memory_bytes: usize) -> Result<(), TooMany> {
    let leaves_max = memory_bytes / LEAF_BYTES;
    if leaves > leaves_max { Err(TooMany { nodes: leaves_max as u64 }) } else { Ok(()) }
}

/// What the records of all nodes take.
fn known_bytes(scan: &Scan) -> usize {
    Scan::bytes(scan.count).saturating_add(Known::bytes(scan.inner))
}

/// The state that gives the most mappings, and the others.
async fn best(
    runtime: &Runtime,
    forest: &mut Forest<'_>,
    superblock: Option<&Superblock>,
    options: &Options,
    from: &Disk,
    memory_bytes: usize,
) -> Result<Option<(Salvage, Vec<Alternative>)>, TooMany> {
    let space = match superblock {
        Some(superblock) => {
            let blocks = BlockManager::new(from.clone(), runtime.bufs.clone(), 0);
            TransactionManager::open(blocks, &superblock.metadata_space_map.root).await.ok()
        }
        None => None,
    };
    let mut best: Option<(u64, Salvage)> = None;
    let mut alternatives = Vec::new();
    let mut states = states::states(forest, superblock).await;
    if options.last_commit && superblock.is_some() {
        states.truncate(1);
    }
    for state in states {
        let mut salvage = Salvage::open(forest, state).await;
        fill::fill(&mut salvage, forest, space.as_ref(), memory_bytes).await?;
        let mut mappings = 0u64;
        for device in &salvage.devices {
            mappings = mappings.saturating_add(salvage.remains(forest, device).await.mappings);
        }
        if best.as_ref().is_some_and(|(most, _)| mappings <= *most) {
            alternatives.push(Alternative { state, mappings });
        } else if let Some((mappings, worse)) = best.replace((mappings, salvage)) {
            alternatives.push(Alternative { state: worse.state, mappings });
        }
    }
    Ok(best.map(|(_, salvage)| (salvage, alternatives)))
}

/// The pool as a whole.
struct Pool {
    time: u32,
    transaction_id: Parameter,
    data_block_sectors: Parameter,
    data_blocks: Parameter,
}

/// What the superblock says, or a copy of it, or who asked; else what the devices and mappings allow at least.
async fn parameters(
    forest: &Forest<'_>,
    salvage: &Salvage,
    superblock: Option<&Superblock>,
    overrides: &Overrides,
) -> Result<Pool, RepairError> {
    let (mut time, mut data_end, mut transaction_id, mut details_lost) = (0, 0, 0, false);
    for device in &salvage.devices {
        let remains = salvage.remains(forest, device).await;
        (time, data_end) = (remains.time.max(time), remains.data_end.max(data_end));
        details_lost |= device.details.is_none();
        if let Some(details) = device.details {
            time = time.max(details.creation_time).max(details.snapshotted_time);
            // A device is made in the transaction before the one whose id userland then sets.
            transaction_id = transaction_id.max(details.transaction_id.saturating_add(1));
        }
    }
    // Of several copies the latest.
    let copy = forest.scan.copies.iter().max_by_key(|(_, copy)| (copy.time.get(), copy.transaction_id.get()));
    let known = superblock.map(|superblock| (Source::Superblock, superblock));
    let known = known.or(copy.map(|(block, copy)| (Source::Copy(*block), copy)));
    let choose = |given: Option<u64>, stored: fn(&Superblock) -> u64, least: u64| {
        let given = given.map(|value| Parameter { value, source: Source::Given });
        let stored = known.map(|(source, superblock)| Parameter { value: stored(superblock), source });
        given.or(stored).filter(|parameter| parameter.value >= least)
    };
    let sectors = choose(overrides.data_block_sectors.map(u64::from), |known| known.data_block_sectors.get().into(), 0)
        .ok_or(RepairError::BlockSizeUnknown)?;
    check_data_block_sectors(u32::try_from(sectors.value).unwrap_or(0))?;
    time = time.max(known.map_or(0, |(_, superblock)| superblock.time.get()));
    Ok(Pool {
        // A device without details passes for one that was snapshotted after its last write.
        time: time.saturating_add(details_lost.into()).min(TIME_MAX),
        transaction_id: choose(overrides.transaction_id, |known| known.transaction_id.get(), 0)
            .unwrap_or(Parameter { value: transaction_id, source: Source::Inferred }),
        data_block_sectors: sectors,
        data_blocks: choose(overrides.data_blocks, |known| known.data_space_map.root.nr_blocks.get(), data_end)
            .unwrap_or(Parameter { value: data_end, source: Source::Inferred }),
    })
}

impl Pool {
    /// What a device's details become.
    fn details(&self, details: Option<Details>, mapped_blocks: u64) -> Details {
        let unknown = Details { snapshotted_time: self.time, ..Details::default() };
        let Details { creation_time, snapshotted_time, .. } = details.unwrap_or(unknown);
        Details {
            mapped_blocks,
            creation_time: creation_time.min(self.time),
            snapshotted_time: snapshotted_time.min(self.time),
            ..details.unwrap_or(unknown)
        }
    }

    fn superblock(&self) -> Superblock {
        let sectors = u32::try_from(self.data_block_sectors.value).unwrap_or(0);
        let mut superblock = Superblock::format(sectors, 0);
        superblock.time.set(self.time);
        superblock.transaction_id.set(self.transaction_id.value);
        superblock.data_space_map.root.nr_blocks.set(self.data_blocks.value);
        superblock
    }
}

/// The restore does not take any more; its own error says why.
#[derive(Debug, thiserror::Error)]
#[error("the restore has ended")]
struct Ended;

/// Dumps the salvage and restores the dump on `to`, both at once.
async fn write(
    runtime: &Runtime,
    blocks: &BlockManager,
    forest: &Forest<'_>,
    salvage: &Salvage,
    pool: &Pool,
    to: &Disk,
    cache_blocks: usize,
) -> Result<Restored, RepairError> {
    let pieces = Queue::<Vec<u8>>::new(PIECES_MAX);
    let dumping = async {
        let sink = async |piece: &[u8]| pieces.push(piece.to_vec()).await.map_err(|_| Ended);
        let dumped = dump(blocks, forest, salvage, pool, sink).await;
        pieces.close();
        dumped
    };
    let restoring = async {
        let source = async |text: &mut Vec<u8>| {
            text.extend(pieces.pop().await.unwrap_or_default());
            Ok::<(), Ended>(())
        };
        let restored = restore::restore(runtime, to, cache_blocks, &Overrides::default(), source).await;
        pieces.close();
        restored
    };
    let (dumped, restored) = join(dumping, restoring).await;
    match (dumped, restored) {
        (Err(DumpError::Metadata(error)), _) | (_, Err(RestoreError::Metadata(error))) => Err(error.into()),
        (_, Err(RestoreError::TooSmall { blocks: small })) => {
            Err(RepairError::TooSmall { blocks: small, enough: blocks.disk_blocks() })
        }
        (_, Ok(restored)) => Ok(restored),
        // What is dumped here is what a restore takes: the salvage has sorted out everything else.
        (_, Err(RestoreError::Wrong { .. } | RestoreError::Source(Ended))) => {
            let what = "what was salvaged contradicts itself";
            Err(MetadataError::from(pdata::Error::Damaged { block: SUPERBLOCK, kind: "pool", what }).into())
        }
    }
}

async fn dump<E>(
    blocks: &BlockManager,
    forest: &Forest<'_>,
    salvage: &Salvage,
    pool: &Pool,
    sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), DumpError<E>> {
    let mut runs = Runs::default();
    for device in &salvage.devices {
        salvage.remains(forest, device).await.leaves.into_iter().for_each(|leaf| runs.add(leaf));
        runs.end_device();
    }
    let mut dump = Dump::new(blocks, Format::Xml, &salvage.dropped, sink);
    dump.text.begin(&pool.superblock()).await?;
    for run in runs.shared() {
        dump.definition(&runs, run).await?;
    }
    let mappings = Mappings::Referring(runs);
    for device in &salvage.devices {
        let Remains { leaves, mappings: mapped, .. } = salvage.remains(forest, device).await;
        dump.text.begin_device(device.id.get().into(), &pool.details(device.details, mapped)).await?;
        for group in leaves.chunks(LEAVES_AT_ONCE) {
            let places: Vec<Place> = group.iter().map(|leaf| Place::root(*leaf)).collect();
            dump.leaves(&places, &mappings).await?;
        }
        dump.text.end_device().await?;
    }
    dump.text.end().await
}

/// Tells what is missing or assumed of each device.
async fn tell_losses(forest: &Forest<'_>, salvage: &Salvage, report: &mut Report) {
    for device in &salvage.devices {
        let remains = salvage.remains(forest, device).await;
        let expected = device.details.map(|details| details.mapped_blocks);
        let adopted = salvage.adopted.contains(&device.id);
        let complete = remains.holes.is_empty() && expected == Some(remains.mappings);
        if complete && !adopted {
            continue;
        }
        if report.damaged.len() >= TOLD_MAX {
            report.untold = report.untold.saturating_add(1);
            continue;
        }
        let ranges = remains.holes.iter().take(TOLD_MAX);
        report.damaged.push(DamagedDevice {
            device: device.id,
            mappings: remains.mappings,
            expected,
            assumed: if adopted { remains.mappings } else { remains.filled },
            details_lost: device.details.is_none(),
            ranges: ranges.map(|hole| LostRange { first: hole.first, last: hole.last }).collect(),
            untold: remains.holes.len().saturating_sub(TOLD_MAX) as u64,
        });
    }
}

/// Refuses a disk with anything in its first or last MiB.
pub async fn must_be_blank(runtime: &Runtime, disk: &Disk) -> Result<(), RepairError> {
    const EDGE: u64 = 256;
    let blocks = BlockManager::new(disk.clone(), runtime.bufs.clone(), 0);
    let end = blocks.disk_blocks();
    let edges = (0..end.min(EDGE)).chain(end.saturating_sub(EDGE).max(EDGE.min(end))..end);
    for number in edges {
        let block = blocks.read_raw(number).await.map_err(MetadataError::from)?;
        if let Some(at) = block.iter().position(|byte| *byte != 0) {
            let sector = number.saturating_mul(pdata::block::BLOCK_SECTORS);
            return Err(RepairError::NotBlank { sector: sector.saturating_add((at / 512) as u64) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::made::{Made, leaf, node};
    use super::scan::What;
    use super::*;
    use platform::mem::MemDisk;
    use platform::random::Seeded;
    use platform::simulated;
    use platform::task::block_on_ready;

    #[test]
    fn a_quarter_of_the_memory_is_for_two_caches() {
        assert_eq!(shares(1 << 20), (32, 3 << 18));
        assert_eq!(shares(64 << 20), (CACHE_BLOCKS_MAX.min(2048), 48 << 20));
        assert_eq!(shares(1 << 30), (CACHE_BLOCKS_MAX, 3 << 28));
        let made = Made::new(&[leaf(1, 2, 3), node(4, What::Internal)]);
        assert_eq!(known_bytes(&made.scan), Scan::bytes(2) + Known::bytes(1));
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_memory_that_there_is() {
        assert_eq!(too_many(9, 3 << 20), RepairError::TooManyNodes { nodes: 9, mebibytes: 3 });
        assert!(leaves_fit(10, 10 * LEAF_BYTES).is_ok());
        assert_eq!(leaves_fit(11, 10 * LEAF_BYTES).map_err(|TooMany { nodes }| nodes), Err(10));
        assert!(leaves_fit(0, 0).is_ok());
    }

    /// A device that is newer than the pool's clock would share nothing with the next snapshot.
    #[test]
    fn no_device_is_from_the_future() {
        let parameter = Parameter { value: 1, source: Source::Inferred };
        let (data_block_sectors, data_blocks) = (parameter, parameter);
        let pool = Pool { time: 5, transaction_id: parameter, data_block_sectors, data_blocks };
        let found = Details { mapped_blocks: 1, transaction_id: 3, creation_time: 9, snapshotted_time: 7 };
        let told = pool.details(Some(found), 40);
        assert_eq!(told, Details { mapped_blocks: 40, creation_time: 5, snapshotted_time: 5, ..found });
        let (creation_time, snapshotted_time) = (2, 3);
        let found = Details { creation_time, snapshotted_time, ..found };
        assert_eq!(pool.details(Some(found), 1), found);
        let unknown = pool.details(None, 40);
        assert_eq!((unknown.mapped_blocks, unknown.creation_time, unknown.snapshotted_time), (40, 0, 5));
    }

    #[test]
    fn a_disk_is_blank_if_its_ends_are() {
        let runtime = simulated::runtime_at_once(alloc::rc::Rc::new(Seeded::from_u64(1)), 1 << 20);
        let found = |blocks: u64, at_bytes: u64| {
            let disk = MemDisk::new(blocks * 8);
            disk.poke(at_bytes, &[1]);
            block_on_ready(must_be_blank(&runtime, &Disk::new(disk)))
        };
        for (blocks, at) in
            [(600, 0), (600, 256 * 4096 - 1), (600, 344 * 4096), (600, 600 * 4096 - 1), (3, 3 * 4096 - 1)]
        {
            assert_eq!(found(blocks, at), Err(RepairError::NotBlank { sector: at / 512 }), "{at} of {blocks}");
        }
        assert_eq!([found(600, 256 * 4096), found(600, 344 * 4096 - 1)], [Ok(()), Ok(())], "between the ends");
        assert_eq!(block_on_ready(must_be_blank(&runtime, &Disk::new(MemDisk::new(300 * 8)))), Ok(()));
    }
}
