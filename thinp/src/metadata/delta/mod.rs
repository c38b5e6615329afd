//! Deltas: in which blocks two devices differ, as `thin_delta` tells it (reference 8.2).
//!
//! Blocks are compared by where their data is and by nothing else: the times of mappings do not count. Two devices of one
//! committed state are walked together, past the subtrees that they share (see [`pdata::btree::Pairs`]). What is the same can be
//! left out; then those subtrees are not even read, and the cost follows what differs. Told it cannot be without reading them:
//! there may be holes in them, where neither device maps anything.

mod runs;
mod text;

pub use runs::{Found, Run, Runs};

use self::runs::Join;
use self::text::Text;
use super::dump::DumpError;
use super::view::{Committed, View};
use super::{MetadataError, Result, VirtualBlock};
use crate::control::DeviceId;
use pdata::btree::{Pairs, Shared};
use platform::Runtime;
use platform::block::Disk;
use platform::task::yield_now;

/// Runs between two chances for others.
const RUNS_AT_ONCE: usize = 1024;

/// What a delta looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// XML as `thin_delta` 1.x writes it: runs of consecutive virtual blocks.
    #[default]
    Xml,
    /// XML as `thin_delta --verbose` 1.x writes it: the same runs, each with the data block of its first virtual block.
    XmlVerbose,
    /// A JSON object a line for each run, of virtual blocks and data blocks that are both consecutive.
    Json,
}

/// What to compare, and how to tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The left device.
    pub left: DeviceId,
    /// The right device.
    pub right: DeviceId,
    /// The format.
    pub format: Format,
    /// What is the same in both is told, too.
    pub same: bool,
    /// The first virtual block that is told of.
    pub from: VirtualBlock,
}

/// Writes the delta of two devices of what is committed on `disk`, or of the metadata snapshot that it holds, into `sink`,
/// which is called with one piece after the other.
pub async fn delta<E>(
    runtime: &Runtime,
    disk: &Disk,
    metadata_snap: bool,
    options: &Options,
    sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), DumpError<E>> {
    let mut committed = Committed::on_disk(runtime, disk).await?;
    if metadata_snap {
        committed = committed.snapshot().await?.ok_or(MetadataError::NoSnapshotHeld)?;
    }
    write(&committed, options, sink).await
}

impl View {
    /// As [`delta`], at the moment of this view. The sink is not called before both devices are found.
    pub async fn delta<E>(
        &self,
        options: &Options,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), DumpError<E>> {
        write(&self.committed, options, sink).await
    }

    /// The runs of [`View::delta`], one by one.
    pub async fn delta_runs(&self, options: &Options) -> Result<Runs<'_>> {
        open(&self.committed, options).await
    }
}

impl View {
    /// What makes `base`, or nothing, into `target`: the runs in which they differ, of virtual blocks and data blocks that are
    /// both consecutive, from a virtual block on.
    pub async fn changes(&self, base: Option<DeviceId>, target: DeviceId, from: VirtualBlock) -> Result<Runs<'_>> {
        let base = match base {
            Some(base) => Some(self.committed.root_of(base).await?),
            None => None,
        };
        let target = self.committed.root_of(target).await?;
        let pairs = Pairs::open(&self.committed.blocks, base, Some(target), from.0, Shared::Skip).await?;
        Ok(Runs::new(pairs, Join::WhereDataGoesOn, false))
    }
}

async fn open<'a>(committed: &'a Committed, options: &Options) -> Result<Runs<'a>> {
    let left = committed.root_of(options.left).await?;
    let right = committed.root_of(options.right).await?;
    let shared = if options.same { Shared::Read } else { Shared::Skip };
    let pairs = Pairs::open(&committed.blocks, Some(left), Some(right), options.from.0, shared).await?;
    let join = if options.format == Format::Json { Join::WhereDataGoesOn } else { Join::WhereBlocksGoOn };
    Ok(Runs::new(pairs, join, options.same))
}

async fn write<E>(
    committed: &Committed,
    options: &Options,
    sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), DumpError<E>> {
    let mut runs = open(committed, options).await?;
    let mut text = Text::new(options.format, sink);
    text.begin(&committed.superblock, options.left, options.right);
    let mut told: usize = 0;
    while let Some(run) = runs.next().await? {
        text.run(&run).await?;
        told = told.wrapping_add(1);
        if told.is_multiple_of(RUNS_AT_ONCE) {
            // The disk may have answered at once, and others wait for the processor.
            yield_now().await;
        }
    }
    text.end().await
}
