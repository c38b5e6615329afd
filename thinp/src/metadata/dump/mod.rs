//! Dumping: a pool's devices and mappings as text, in the formats of `thin_dump` (reference 8.1).
//!
//! What is committed on disk is read past any cache, leaf by leaf, and written to a sink piece by piece, so memory does not
//! grow with the number of mappings but for a few bytes a leaf, by which shared ones are found.

mod runs;
mod text;

use self::runs::{Run, Runs};
use super::superblock::{self, SUPERBLOCK, Superblock};
use super::trees::{DetailsRecord, Packed};
use super::{Details, MetadataError};
use crate::control::DeviceId;
use alloc::vec::Vec;
use pdata::block_manager::{Batch, BlockManager};
use pdata::btree::{LeafPlaces, Leaves, NODE, Node, Place};
use platform::Runtime;
use platform::block::Disk;
use text::Text;
use zerocopy::little_endian::U64;

/// Leaves that are read together.
const LEAVES_AT_ONCE: usize = 252;

/// What a dump looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// XML as `thin_dump` 1.x writes it: leaves that several devices share are defined once and referred to.
    #[default]
    Xml,
    /// XML as `thin_dump` 0.9 writes it: every device has all of its mappings.
    Xml09,
    /// For people: every device has all of its mappings, ends of ranges are inclusive.
    HumanReadable,
}

/// What to dump, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// The format.
    pub format: Format,
    /// Dump the metadata snapshot that the pool holds, not the pool.
    pub metadata_snap: bool,
    /// Only these devices; none given means all.
    pub devices: Vec<DeviceId>,
    /// Only the superblock and the devices.
    pub skip_mappings: bool,
}

/// Why a dump failed. What the sink was given by then is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DumpError<E> {
    /// The metadata cannot be read or understood.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The sink failed.
    #[error("the dump cannot be written: {0}")]
    Sink(E),
}

impl<E> From<pdata::Error> for DumpError<E> {
    fn from(error: pdata::Error) -> DumpError<E> {
        DumpError::Metadata(error.into())
    }
}

/// Dumps what is committed on `disk` into `sink`, which is called with one piece after the other.
pub async fn dump<E>(
    runtime: &Runtime,
    disk: &Disk,
    options: &Options,
    sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), DumpError<E>> {
    let blocks = BlockManager::new(disk.clone(), runtime.bufs.clone(), 0);
    let mut superblock = Superblock::open(&*blocks.read_raw(SUPERBLOCK).await.map_err(MetadataError::from)?, true)?;
    if options.metadata_snap {
        let held = superblock.held_root().ok_or(MetadataError::NoSnapshotHeld)?;
        let block = blocks.read(held, &superblock::KIND).await?;
        superblock = Superblock::of_snapshot(&block.bytes())?;
    }
    let mut dump = Dump { blocks: &blocks, text: Text::new(options.format, sink), batch: Batch::default() };
    dump.text.begin(&superblock).await?;
    let mappings = if options.skip_mappings {
        Mappings::Skip
    } else if options.format == Format::Xml {
        let runs = dump.find_runs(&superblock, options).await?;
        for run in runs.shared() {
            dump.definition(&runs, run).await?;
        }
        Mappings::Referring(runs)
    } else {
        Mappings::All
    };
    dump.devices(&superblock, options, &mappings).await?;
    dump.text.end().await
}

/// What of a device's mappings is written.
enum Mappings {
    Skip,
    All,
    /// What other devices share is referred to.
    Referring(Runs),
}

struct Dump<'a, S> {
    blocks: &'a BlockManager,
    text: Text<S>,
    batch: Batch,
}

impl<E, S: AsyncFnMut(&[u8]) -> Result<(), E>> Dump<'_, S> {
    /// Finds the leaves that devices share.
    async fn find_runs(&self, superblock: &Superblock, options: &Options) -> Result<Runs, DumpError<E>> {
        let mut runs = Runs::default();
        let mut devices = Devices::open(self.blocks, superblock, options).await?;
        while let Some((_, root, _)) = devices.next().await? {
            let mut places = LeafPlaces::open(self.blocks, root).await?;
            runs.begin_device();
            while let Some(group) = places.next().await? {
                group.iter().for_each(|place| runs.add(place.number));
            }
            runs.end_device();
        }
        Ok(runs)
    }

    /// Writes the definition of a shared run.
    async fn definition(&mut self, runs: &Runs, run: Run) -> Result<(), DumpError<E>> {
        self.text.begin_definition(run.first).await?;
        let mut leaves = runs.leaves(run).peekable();
        while leaves.peek().is_some() {
            let numbers: Vec<u64> = leaves.by_ref().take(LEAVES_AT_ONCE).collect();
            self.blocks.read_batch(&numbers, &NODE, &mut self.batch).await;
            for (index, number) in numbers.iter().enumerate() {
                let node = Node::parse(self.batch.get(index)?, *number)?;
                write_leaf(&mut self.text, &node).await?;
            }
        }
        self.text.end_definition().await
    }

    async fn devices(
        &mut self,
        superblock: &Superblock,
        options: &Options,
        mappings: &Mappings,
    ) -> Result<(), DumpError<E>> {
        let mut devices = Devices::open(self.blocks, superblock, options).await?;
        while let Some((id, root, details)) = devices.next().await? {
            self.text.begin_device(id, &details).await?;
            if !matches!(mappings, Mappings::Skip) {
                let mut places = LeafPlaces::open(self.blocks, root).await?;
                while let Some(group) = places.next().await? {
                    self.leaves(&group, mappings).await?;
                }
            }
            self.text.end_device().await?;
        }
        devices.finish()
    }

    /// Writes leaves of a device, or refers to them.
    async fn leaves(&mut self, group: &[Place], mappings: &Mappings) -> Result<(), DumpError<E>> {
        let shared = |place: &Place| match mappings {
            Mappings::Referring(runs) => runs.is_shared(place.number),
            Mappings::Skip | Mappings::All => false,
        };
        let own = group.iter().filter(|place| !shared(place));
        let numbers: Vec<u64> = own.map(|place| place.number).collect();
        self.blocks.read_batch(&numbers, &NODE, &mut self.batch).await;
        let mut index = 0;
        for place in group {
            match mappings {
                Mappings::Referring(runs) if runs.is_shared(place.number) => {
                    if runs.is_first(place.number) {
                        self.text.reference(place.number).await?;
                    }
                }
                _ => {
                    let node = Node::parse(self.batch.get(index)?, place.number)?;
                    write_leaf(&mut self.text, &place.check(node, false)?).await?;
                    index = index.saturating_add(1);
                }
            }
        }
        Ok(())
    }
}

/// Writes the mappings of a leaf.
async fn write_leaf<E, S>(text: &mut Text<S>, leaf: &Node<'_>) -> Result<(), DumpError<E>>
where
    S: AsyncFnMut(&[u8]) -> Result<(), E>,
{
    for (key, mapping) in leaf.keys().zip(leaf.values::<Packed>()?) {
        text.mapping(key, mapping.block().0, mapping.time());
    }
    text.flush_if_full().await
}

/// The devices of a superblock that are asked for, in order.
struct Devices<'a> {
    roots: Leaves<'a>,
    details: Leaves<'a>,
    /// Read ahead, the next last.
    ready_roots: Vec<(u64, U64)>,
    ready_details: Vec<(u64, DetailsRecord)>,
    details_root: u64,
    /// Asked for and not yet found; nothing if all are.
    wanted: Option<Vec<u64>>,
}

impl<'a> Devices<'a> {
    async fn open(
        blocks: &'a BlockManager,
        superblock: &Superblock,
        options: &Options,
    ) -> Result<Devices<'a>, MetadataError> {
        let wanted = options.devices.iter().map(|id| u64::from(id.get())).collect();
        let details_root = superblock.details_root.get();
        Ok(Devices {
            roots: Leaves::open(blocks, superblock.mapping_root.get()).await?,
            details: Leaves::open(blocks, details_root).await?,
            ready_roots: Vec::new(),
            ready_details: Vec::new(),
            details_root,
            wanted: Some(wanted).filter(|wanted: &Vec<u64>| !wanted.is_empty()),
        })
    }

    /// The next device: its id, the root of its tree, and its details.
    async fn next(&mut self) -> Result<Option<(u64, u64, Details)>, MetadataError> {
        loop {
            let root = next_entry(&mut self.roots, &mut self.ready_roots).await?;
            let details = next_entry(&mut self.details, &mut self.ready_details).await?;
            match (root, details) {
                (None, None) => return Ok(None),
                (Some((id, root)), Some((same, record))) if id == same => {
                    let Some(wanted) = &mut self.wanted else { return Ok(Some((id, root.get(), record.into()))) };
                    if let Some(found) = wanted.iter().position(|wanted| *wanted == id) {
                        wanted.remove(found);
                        return Ok(Some((id, root.get(), record.into())));
                    }
                }
                _ => return Err(self.differ().into()),
            }
        }
    }

    fn differ(&self) -> pdata::Error {
        let what = "it has not the same devices as the mapping tree";
        pdata::Error::Damaged { block: self.details_root, kind: "details tree", what }
    }

    /// Every device asked for was found.
    fn finish<E>(self) -> Result<(), DumpError<E>> {
        let missing = self.wanted.unwrap_or_default().first().and_then(|id| DeviceId::new(*id));
        missing.map_or(Ok(()), |id| Err(MetadataError::NoDevice(id).into()))
    }
}

async fn next_entry<T: pdata::btree::Value>(
    leaves: &mut Leaves<'_>,
    ready: &mut Vec<(u64, T)>,
) -> Result<Option<(u64, T)>, MetadataError> {
    while ready.is_empty() {
        let Some(leaf) = leaves.next().await? else { return Ok(None) };
        ready.extend(leaf.keys().zip(leaf.values()?.iter().copied()).rev());
    }
    Ok(ready.pop())
}
