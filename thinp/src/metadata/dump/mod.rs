//! Dumping: a pool's devices and mappings as text, in the formats of `thin_dump` (reference 8.1).
//!
//! What is committed on disk is read past any cache, leaf by leaf, and written to a sink piece by piece, so memory does not
//! grow with the number of mappings but for a few bytes a leaf, by which shared ones are found.

mod device;
mod runs;
mod text;

pub(super) use self::runs::Runs;

use self::runs::Run;
use super::trees::Packed;
use super::view::{Committed, Devices};
use super::{Details, MetadataError};
use crate::control::DeviceId;
use alloc::vec::Vec;
use hashbrown::{HashMap, HashSet};
use pdata::block_manager::{Batch, BlockManager};
use pdata::btree::{LeafPlaces, NODE, Node, Place};
use platform::Runtime;
use platform::block::Disk;
use text::Text;

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
    /// A JSON object a line for each range, with the device that has it. All else is left out.
    Json,
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
    let mut committed = Committed::on_disk(runtime, disk).await?;
    if options.metadata_snap {
        committed = committed.snapshot().await?.ok_or(MetadataError::NoSnapshotHeld)?;
    }
    let nothing = HashMap::new();
    let mut dump = Dump::new(&committed.blocks, options.format, &nothing, sink);
    dump.text.begin(&committed.superblock).await?;
    let mappings = if options.skip_mappings {
        Mappings::Skip
    } else if options.format == Format::Xml {
        let runs = dump.find_runs(&committed, options).await?;
        for run in runs.shared() {
            dump.definition(&runs, run).await?;
        }
        Mappings::Referring(runs)
    } else {
        Mappings::All
    };
    dump.devices(&committed, options, &mappings).await?;
    dump.text.end().await
}

/// What of a device's mappings is written.
pub(super) enum Mappings {
    Skip,
    All,
    /// What other devices share is referred to.
    Referring(Runs),
}

pub(super) struct Dump<'a, S> {
    blocks: &'a BlockManager,
    pub text: Text<S>,
    batch: Batch,
    /// Keys of entries that are left out, by leaf.
    left_out: &'a HashMap<u64, HashSet<u64>>,
}

impl<'a, E, S: AsyncFnMut(&[u8]) -> Result<(), E>> Dump<'a, S> {
    pub fn new(
        blocks: &'a BlockManager,
        format: Format,
        left_out: &'a HashMap<u64, HashSet<u64>>,
        sink: S,
    ) -> Dump<'a, S> {
        Dump { blocks, text: Text::new(format, sink), batch: Batch::default(), left_out }
    }

    /// Finds the leaves that devices share.
    async fn find_runs(&self, committed: &Committed, options: &Options) -> Result<Runs, DumpError<E>> {
        let mut runs = Runs::default();
        let mut devices = Wanted::open(committed, options).await?;
        while let Some((_, root, _)) = devices.next().await? {
            let mut places = LeafPlaces::open(self.blocks, root).await?;
            while let Some(group) = places.next().await? {
                group.iter().for_each(|place| runs.add(place.number));
            }
            runs.end_device();
        }
        Ok(runs)
    }

    /// Writes the definition of a shared run.
    pub async fn definition(&mut self, runs: &Runs, run: Run) -> Result<(), DumpError<E>> {
        self.text.begin_definition(run.first).await?;
        let mut leaves = runs.leaves(run).peekable();
        while leaves.peek().is_some() {
            let numbers: Vec<u64> = leaves.by_ref().take(LEAVES_AT_ONCE).collect();
            self.blocks.read_batch(&numbers, &NODE, &mut self.batch).await;
            for (index, number) in numbers.iter().enumerate() {
                let node = Node::parse(self.batch.get(index)?, *number)?;
                write_leaf(&mut self.text, &node, self.left_out.get(number)).await?;
            }
        }
        self.text.end_definition().await
    }

    async fn devices(
        &mut self,
        committed: &Committed,
        options: &Options,
        mappings: &Mappings,
    ) -> Result<(), DumpError<E>> {
        let mut devices = Wanted::open(committed, options).await?;
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
    pub async fn leaves(&mut self, group: &[Place], mappings: &Mappings) -> Result<(), DumpError<E>> {
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
                    let left_out = self.left_out.get(&place.number);
                    write_leaf(&mut self.text, &place.check(node, false)?, left_out).await?;
                    index = index.saturating_add(1);
                }
            }
        }
        Ok(())
    }
}

/// Writes the mappings of a leaf.
async fn write_leaf<E, S>(
    text: &mut Text<S>,
    leaf: &Node<'_>,
    left_out: Option<&HashSet<u64>>,
) -> Result<(), DumpError<E>>
where
    S: AsyncFnMut(&[u8]) -> Result<(), E>,
{
    for (key, mapping) in leaf.keys().zip(leaf.values::<Packed>()?) {
        if left_out.is_none_or(|keys| !keys.contains(&key)) {
            text.mapping(key, mapping.block().0, mapping.time());
        }
    }
    text.flush_if_full().await
}

/// The devices that are asked for, in order.
struct Wanted<'a> {
    devices: Devices<'a>,
    /// Asked for and not yet found; nothing if all are.
    missing: Option<Vec<DeviceId>>,
}

impl<'a> Wanted<'a> {
    async fn open(committed: &'a Committed, options: &Options) -> Result<Wanted<'a>, MetadataError> {
        let missing = Some(options.devices.clone()).filter(|devices| !devices.is_empty());
        Ok(Wanted { devices: committed.devices().await?, missing })
    }

    /// The next device: its id, the root of its tree, and its details.
    async fn next(&mut self) -> Result<Option<(u64, u64, Details)>, MetadataError> {
        while let Some((id, root, details)) = self.devices.next_of_any_id().await? {
            if let Some(missing) = &mut self.missing {
                let Some(found) = missing.iter().position(|missing| u64::from(missing.get()) == id) else { continue };
                missing.remove(found);
            }
            return Ok(Some((id, root, details)));
        }
        Ok(None)
    }

    /// Every device asked for was found.
    fn finish<E>(self) -> Result<(), DumpError<E>> {
        let missing = self.missing.unwrap_or_default().first().copied();
        missing.map_or(Ok(()), |id| Err(MetadataError::NoDevice(id).into()))
    }
}
