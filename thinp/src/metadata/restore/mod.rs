//! Restoring: a pool's metadata made of a dump, in either of `thin_dump`'s XML forms (reference 8.1).
//!
//! The dump is read piece by piece and the trees are built from the bottom as it goes. Leaves of a `def` are written once and
//! shared by all devices that refer to it, unless they are too small for their place. The first step makes the metadata
//! disk blank, the last writes the superblock: whatever goes wrong in between leaves a disk that nobody takes for a pool.

mod xml;

use self::xml::{Kind, ReadError, Reader, Tag, Wrong};
use super::state::{Core, disk_blocks};
use super::trees::{Mappings, Packed, TIME_MAX};
use super::{DataBlock, Details, MetadataError};
use crate::control::DeviceId;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use hashbrown::HashMap;
use pdata::btree::{Builder, Leaf, SharedLeaves};
use platform::Runtime;
use platform::block::Disk;

/// A tag, or none where there is none left.
type Found<'a, E> = Result<Option<Tag<'a>>, RestoreError<E>>;

/// What to put in place of what the dump says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Userland's transaction id.
    pub transaction_id: Option<u64>,
    /// Sectors in a data block.
    pub data_block_sectors: Option<u32>,
    /// Size of the data disk in such blocks. The dump of a metadata snapshot says 0.
    pub data_blocks: Option<u64>,
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Thin devices.
    pub devices: u64,
    /// Mappings of all devices together.
    pub mappings: u64,
    /// Metadata blocks that there are.
    pub metadata_blocks: u64,
    /// Metadata blocks in use.
    pub metadata_blocks_used: u64,
}

/// Why a restore failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError<E> {
    /// The dump is not what a dump must be.
    #[error("line {line}: {what}")]
    Wrong {
        /// The line of the dump, counted from 1.
        line: u64,
        /// What is wrong there.
        what: String,
    },
    /// The dump cannot be read.
    #[error("the dump cannot be read: {0}")]
    Source(E),
    /// The metadata disk is too small for what the dump holds.
    #[error("the metadata disk of {blocks} blocks of 4 KiB is too small for this pool: take a larger one")]
    TooSmall {
        /// Blocks of the disk.
        blocks: u64,
    },
    /// The metadata disk failed, or cannot hold any pool.
    #[error(transparent)]
    Metadata(MetadataError),
}

impl<E> From<Wrong> for RestoreError<E> {
    fn from(Wrong { line, what }: Wrong) -> RestoreError<E> {
        RestoreError::Wrong { line, what }
    }
}

impl<E> From<MetadataError> for RestoreError<E> {
    fn from(error: MetadataError) -> RestoreError<E> {
        RestoreError::Metadata(error)
    }
}

impl<E> From<pdata::Error> for RestoreError<E> {
    fn from(error: pdata::Error) -> RestoreError<E> {
        RestoreError::Metadata(error.into())
    }
}

/// Makes the pool that a dump describes on `disk`; what was there is lost. `source` appends a piece of the dump at each
/// call, and nothing at its end. The metadata snapshot and needs_check are not restored: the new pool holds none and
/// needs none. The cache holds `cache_blocks` of 4 KiB.
pub async fn restore<E>(
    runtime: &Runtime,
    disk: &Disk,
    cache_blocks: usize,
    overrides: &Overrides,
    source: impl AsyncFnMut(&mut Vec<u8>) -> Result<(), E>,
) -> Result<Restored, RestoreError<E>> {
    let mut input = Input { reader: Reader::new(source) };
    let superblock = input.superblock(overrides).await?;
    build(runtime, disk, cache_blocks, superblock, &mut input).await.map_err(|error| match error {
        RestoreError::Metadata(MetadataError::Storage(storage)) if storage.is_no_space() => {
            RestoreError::TooSmall { blocks: disk_blocks(disk) }
        }
        error => error,
    })
}

/// Makes the pool, from its blank disk to its superblock.
async fn build<E, S>(
    runtime: &Runtime,
    disk: &Disk,
    cache_blocks: usize,
    superblock: Pool,
    input: &mut Input<S>,
) -> Result<Restored, RestoreError<E>>
where
    S: AsyncFnMut(&mut Vec<u8>) -> Result<(), E>,
{
    let core = Core::create(runtime, disk, cache_blocks, superblock.data_block_sectors, superblock.data_blocks).await?;
    let mut restore = Restore { core: &core, superblock, definitions: HashMap::new(), shared: SharedLeaves::default() };
    let restored = restore.contents(input).await?;
    core.commit(async || Ok(())).await?;
    let metadata_blocks = core.tm.nr_blocks();
    let metadata_blocks_used = metadata_blocks.saturating_sub(core.tm.free_blocks());
    Ok(Restored { metadata_blocks, metadata_blocks_used, ..restored })
}

/// What the dump says of the pool as a whole.
struct Pool {
    time: u32,
    transaction_id: u64,
    data_block_sectors: u32,
    data_blocks: u64,
}

/// A range of mappings.
struct Range {
    line: u64,
    virtual_begin: u64,
    data_begin: u64,
    blocks: u64,
    time: u32,
}

struct Input<S> {
    reader: Reader<S>,
}

impl<E, S: AsyncFnMut(&mut Vec<u8>) -> Result<(), E>> Input<S> {
    async fn next(&mut self) -> Found<'_, E> {
        self.reader.next().await.map_err(|error| match error {
            ReadError::Source(error) => RestoreError::Source(error),
            ReadError::Wrong(wrong) => wrong.into(),
        })
    }

    /// The next tag within `parent`; nothing where that is closed.
    async fn inside(&mut self, parent: &str) -> Found<'_, E> {
        let line = self.reader.line();
        match self.next().await? {
            None => Err(Wrong { line, what: format!("the dump ends within <{parent}>") }.into()),
            Some(tag) if tag.kind == Kind::Close && tag.name == parent => Ok(None),
            Some(tag) if tag.kind == Kind::Close => {
                Err(tag.wrong(format!("</{}> where </{parent}> is due", tag.name)).into())
            }
            Some(tag) => Ok(Some(tag)),
        }
    }

    /// The opening of the one element that a dump consists of.
    async fn superblock(&mut self, overrides: &Overrides) -> Result<Pool, RestoreError<E>> {
        let line = self.reader.line();
        let Some(mut tag) = self.next().await? else {
            return Err(Wrong { line, what: "the dump is empty".to_string() }.into());
        };
        if tag.name != "superblock" || tag.kind != Kind::Open {
            return Err(tag.wrong(format!("<{}> where <superblock> is due", tag.name)).into());
        }
        let pool = Pool {
            time: tag.number("time")?,
            transaction_id: overrides.transaction_id.unwrap_or(tag.number("transaction")?),
            data_block_sectors: overrides.data_block_sectors.unwrap_or(tag.number("data_block_size")?),
            data_blocks: overrides.data_blocks.unwrap_or(tag.number("nr_data_blocks")?),
        };
        // Of no further use: a restored pool is of version 2, clean, and holds no metadata snapshot.
        for ignored in ["uuid", "flags", "version", "metadata_snap"] {
            tag.optional(ignored);
        }
        if pool.time > TIME_MAX {
            return Err(tag.wrong(format!("time {} is later than any clock of a pool, {TIME_MAX}", pool.time)).into());
        }
        tag.done()?;
        Ok(pool)
    }
}

impl Tag<'_> {
    /// The element has no contents.
    fn must_be_empty(&self) -> Result<(), Wrong> {
        if self.kind == Kind::Empty {
            Ok(())
        } else {
            Err(self.wrong(format!("<{}> must be empty: <…/>", self.name)))
        }
    }

    /// A mapping or a range of them.
    fn range(mut self, pool: &Pool) -> Result<Range, Wrong> {
        self.must_be_empty()?;
        let (line, single) = (self.line, self.name == "single_mapping");
        let [virtual_begin, data_begin] =
            if single { ["origin_block", "data_block"] } else { ["origin_begin", "data_begin"] };
        let (virtual_begin, data_begin) = (self.number(virtual_begin)?, self.number(data_begin)?);
        let blocks = if single { 1 } else { self.number("length")? };
        let time = self.number("time")?;
        let end = |begin: u64| begin.checked_add(blocks).filter(|_| blocks > 0);
        let (Some(_), Some(data_end)) = (end(virtual_begin), end(data_begin)) else {
            return Err(self.wrong(format!("a range of {blocks} blocks cannot be")));
        };
        if data_end > pool.data_blocks {
            let last = data_end.saturating_sub(1);
            let what = format!("data block {last} lies beyond nr_data_blocks, which is {}", pool.data_blocks);
            return Err(self.wrong(what));
        }
        if time > pool.time {
            return Err(self.wrong(format!("time {time} is later than the superblock's, {}", pool.time)));
        }
        self.done()?;
        Ok(Range { line, virtual_begin, data_begin, blocks, time })
    }
}

/// A restore under way.
struct Restore<'a> {
    core: &'a Core,
    superblock: Pool,
    definitions: HashMap<String, Vec<Leaf>>,
    shared: SharedLeaves,
}

impl Restore<'_> {
    /// Everything within the superblock element, and what follows from it.
    async fn contents<E, S>(&mut self, input: &mut Input<S>) -> Result<Restored, RestoreError<E>>
    where
        S: AsyncFnMut(&mut Vec<u8>) -> Result<(), E>,
    {
        let mut restored = Restored::default();
        while let Some(tag) = input.inside("superblock").await? {
            match (tag.name, tag.kind) {
                ("def", _) => self.definition(tag.line, tag.kind, definition_name(tag)?, input).await?,
                ("device", _) => {
                    let (line, kind) = (tag.line, tag.kind);
                    let (id, details) = self.device_details(tag)?;
                    self.device(line, kind, id, details, input).await?;
                    restored.devices = restored.devices.saturating_add(1);
                    restored.mappings = restored.mappings.saturating_add(details.mapped_blocks);
                }
                (other, _) => return Err(tag.wrong(format!("<{other}> is unknown here")).into()),
            }
        }
        if let Some(tag) = input.next().await? {
            return Err(tag.wrong(format!("<{}> behind the end of the superblock", tag.name)).into());
        }
        for leaves in self.definitions.values() {
            self.shared.drop_unused(self.core.tree.mappings(), &self.core.tm, leaves).await?;
        }
        let mut superblock = self.core.superblock.borrow_mut();
        superblock.time.set(self.superblock.time);
        superblock.transaction_id.set(self.superblock.transaction_id);
        Ok(restored)
    }

    /// Writes the leaves of a definition.
    async fn definition<E, S>(
        &mut self,
        line: u64,
        kind: Kind,
        name: String,
        input: &mut Input<S>,
    ) -> Result<(), RestoreError<E>>
    where
        S: AsyncFnMut(&mut Vec<u8>) -> Result<(), E>,
    {
        if self.definitions.contains_key(&name) {
            return Err(Wrong { line, what: format!("{name:?} is defined twice") }.into());
        }
        let mut builder = self.core.tree.mappings().build(&self.core.tm);
        if kind == Kind::Open {
            while let Some(tag) = input.inside("def").await? {
                match tag.name {
                    "single_mapping" | "range_mapping" => add(&mut builder, tag.range(&self.superblock)?).await?,
                    other => return Err(tag.wrong(format!("<{other}> is unknown within <def>")).into()),
                }
            }
        }
        let leaves = builder.finish_leaves().await?;
        self.definitions.insert(name, leaves);
        Ok(())
    }

    fn device_details(&self, mut tag: Tag<'_>) -> Result<(DeviceId, Details), Wrong> {
        let id: u64 = tag.number("dev_id")?;
        let details = Details {
            mapped_blocks: tag.number("mapped_blocks")?,
            transaction_id: tag.number("transaction")?,
            creation_time: tag.number("creation_time")?,
            snapshotted_time: tag.number("snap_time")?,
        };
        let id = DeviceId::new(id).ok_or_else(|| tag.wrong(format!("dev_id {id} is more than 16777215")))?;
        let (time, now) = (details.creation_time.max(details.snapshotted_time), self.superblock.time);
        if time > now {
            return Err(tag.wrong(format!("time {time} of device {id} is later than the superblock's, {now}")));
        }
        tag.done()?;
        Ok((id, details))
    }

    /// Builds the tree of a device and enters it.
    async fn device<E, S>(
        &mut self,
        line: u64,
        kind: Kind,
        id: DeviceId,
        details: Details,
        input: &mut Input<S>,
    ) -> Result<(), RestoreError<E>>
    where
        S: AsyncFnMut(&mut Vec<u8>) -> Result<(), E>,
    {
        let wrong = |what: String| RestoreError::from(Wrong { line, what });
        if self.core.device_root(id).await?.is_some() {
            return Err(wrong(format!("device {id} comes twice")));
        }
        let mut builder = self.core.tree.mappings().build(&self.core.tm);
        if kind == Kind::Open {
            while let Some(tag) = input.inside("device").await? {
                match tag.name {
                    "single_mapping" | "range_mapping" => add(&mut builder, tag.range(&self.superblock)?).await?,
                    "ref" => self.reference(&mut builder, tag).await?,
                    other => return Err(tag.wrong(format!("<{other}> is unknown within <device>")).into()),
                }
            }
        }
        let (root, mappings) = builder.finish(&mut self.shared).await?;
        if mappings != details.mapped_blocks {
            let stored = details.mapped_blocks;
            return Err(wrong(format!("device {id} has {mappings} mappings, its mapped_blocks says {stored}")));
        }
        self.core.set_device_root(id, root).await?;
        self.core.set_device_details(id, details).await?;
        Ok(())
    }

    /// Appends the leaves of a definition to a device.
    async fn reference<E>(&self, builder: &mut Builder<'_, Mappings>, mut tag: Tag<'_>) -> Result<(), RestoreError<E>> {
        tag.must_be_empty()?;
        let name = tag.text("name")?;
        let Some(leaves) = self.definitions.get(name) else {
            return Err(tag.wrong(format!("{name:?} is not defined before it is referred to")).into());
        };
        let line = tag.line;
        tag.done()?;
        for leaf in leaves {
            check_order(builder, leaf.first, line)?;
            builder.share(*leaf).await?;
        }
        Ok(())
    }
}

fn definition_name(mut tag: Tag<'_>) -> Result<String, Wrong> {
    let name = tag.text("name")?.to_string();
    tag.done()?;
    Ok(name)
}

/// Appends mappings to a device or definition.
async fn add<E>(builder: &mut Builder<'_, Mappings>, range: Range) -> Result<(), RestoreError<E>> {
    check_order(builder, range.virtual_begin, range.line)?;
    for (virtual_block, data_block) in (range.virtual_begin..).zip(range.data_begin..).take(range.blocks as usize) {
        builder.push(virtual_block, Packed::new(DataBlock(data_block), range.time)).await?;
    }
    Ok(())
}

/// Virtual blocks come in ascending order.
fn check_order(builder: &Builder<'_, Mappings>, first: u64, line: u64) -> Result<(), Wrong> {
    match builder.last_key() {
        Some(last) if first <= last => {
            Err(Wrong { line, what: format!("virtual block {first} comes after {last}: they must ascend") })
        }
        _ => Ok(()),
    }
}
