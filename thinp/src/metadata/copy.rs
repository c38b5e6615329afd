//! Copying by sharing: a device's blocks are mapped to the data blocks of others, and no data moves (reference 6.3).
//!
//! Who writes asks no count, it compares times. So both sides must be seen as shared from now on: a device's mapping gets
//! a time before the device's latest snapshot. A device that never took part in one since the clock stood at 0 has no
//! such time; it is treated as if it had at time 1, for which the clock ticks if it still stands at 0. That happens once to a
//! device, and what it wrote at time 0 is copied when it is next written, as after a snapshot.
//!
//! No device maps a data block twice: dm-thin never makes that, discards one of the two only, and `thin_check` 1.x counts one.
//! So a block is shared only if one leaf alone refers to it, and the device does not have that leaf.

use super::change::Change;
use super::trees::{self, NODE_ENTRIES, Packed};
use super::{DataBlock, DataRun, Mapping, Metadata, MetadataError, Result, VirtualBlock};
use crate::control::DeviceId;
use alloc::vec::Vec;
use core::ops::ControlFlow;

/// With fewer metadata blocks to spare nothing is shared: they are for what cannot be done in another way.
const SPARE_BLOCKS_MIN: u64 = 256;

/// Where blocks are shared from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The device.
    pub device: DeviceId,
    /// Its first block.
    pub first: VirtualBlock,
    /// Its tree must stay as it is.
    pub stays: bool,
}

/// What [`Metadata::share`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shared {
    /// Blocks mapped, from the first on. None: the device may map the first data block already, the source would have to
    /// change, or metadata blocks run short.
    pub blocks: u64,
    /// Data blocks that nothing refers to any more, as in [`super::Removed::freed`].
    pub freed: Vec<DataRun>,
}

impl Metadata {
    /// Maps blocks of `device` from `to` on to the data blocks of `source`, which must be mapped, in place of what they were
    /// mapped to. As many as are mapped one behind the other and one pass through the trees reaches, at most
    /// `blocks_max`. The blocks of both devices must be quiesced: no lookup of them between verdict and write.
    pub async fn share(&self, source: Source, device: DeviceId, to: VirtualBlock, blocks_max: u64) -> Result<Shared> {
        let Source { device: source, first: from, stays } = source;
        let change = self.change_with_room().await?;
        self.with_open(device, |_| ())?;
        if self.spare_blocks() < SPARE_BLOCKS_MIN {
            return Ok(Shared::default());
        }
        let floor = self.check_room_to_share(&change).await?;
        let mut run = self.run_from(&change, source, from, blocks_max.min(NODE_ENTRIES)).await?;
        run.truncate(self.count_foreign(&change, device, from, &run).await?);
        if stays {
            run.truncate(self.count_seen_as_shared(source, &run)?);
        }
        if run.is_empty() {
            return Ok(Shared::default());
        }
        change.begin();
        self.have_time_for_shared(&change, source)?;
        self.have_time_for_shared(&change, device)?;
        self.stamp_shared(&change, source, from, &run).await?;
        let shared = self.map_shared(&change, device, to, &run).await?;
        log::trace!("mappings shared by copy");
        change.core.tm.settle_some().await?;
        self.check_left(&change.core, &floor).await?;
        change.done();
        Ok(shared)
    }

    /// The mappings of `source` from `from` on, as far as one leaf has them and there is no gap.
    async fn run_from(
        &self,
        change: &Change<'_>,
        source: DeviceId,
        from: VirtualBlock,
        most: u64,
    ) -> Result<Vec<Packed>> {
        let (root, core) = (self.with_open(source, |source| source.root)?, &change.core);
        let look = core.tm.blocks().look(|blocks| {
            let mut run = Vec::new();
            core.tree.mappings().try_scan(blocks, root, from.0, |block, packed| {
                let next = from.0.saturating_add(run.len() as u64);
                if next != block || run.len() as u64 >= most {
                    return ControlFlow::Break(());
                }
                run.push(packed);
                ControlFlow::Continue(())
            })?;
            Ok(run)
        });
        let run = look.await?;
        for (block, packed) in entries(from, &run, 0) {
            self.check_mapping(source, VirtualBlock(block), Mapping { block: packed.block(), shared: true })?;
        }
        if run.is_empty() { Err(MetadataError::NotMapped { device: source, block: from.0 }) } else { Ok(run) }
    }

    /// How many of a run's data blocks, from the first on, the device surely does not map: what one leaf refers to is where
    /// the run has it, and nowhere else.
    async fn count_foreign(
        &self,
        change: &Change<'_>,
        device: DeviceId,
        from: VirtualBlock,
        run: &[Packed],
    ) -> Result<usize> {
        let (root, core) = (self.with(device, |device| device.root)?, &change.core);
        let mut foreign = 0usize;
        for (block, packed) in entries(from, run, 0) {
            let alone = core.tm.blocks().look(|blocks| {
                let mapped = core.tree.mappings().try_lookup(blocks, root, block)?;
                let has_leaf = mapped.is_some_and(|mapped| mapped.block() == packed.block());
                Ok(!has_leaf && core.data.try_count(blocks, packed.block().0)? == 1)
            });
            if !alone.await? {
                break;
            }
            foreign = foreign.saturating_add(1);
        }
        Ok(foreign)
    }

    /// How many of a run of the device's mappings, from the first on, it sees as shared.
    fn count_seen_as_shared(&self, device: DeviceId, run: &[Packed]) -> Result<usize> {
        let snapshotted = self.with(device, |device| device.details.snapshotted_time)?;
        Ok(run.iter().take_while(|packed| packed.time() < snapshotted).count())
    }

    /// Makes sure that there is a time before the device's latest snapshot.
    fn have_time_for_shared(&self, change: &Change<'_>, device: DeviceId) -> Result<()> {
        if self.with(device, |device| device.details.snapshotted_time)? > 0 {
            return Ok(());
        }
        if self.time() == 0 {
            change.core.superblock.borrow_mut().time.set(1);
            change.core.changed.set(true);
        }
        self.update(device, |device| device.details.snapshotted_time = 1)
    }

    /// Gives those of a run of the device's mappings that are not seen as shared a time at which they are.
    async fn stamp_shared(
        &self,
        change: &Change<'_>,
        device: DeviceId,
        from: VirtualBlock,
        run: &[Packed],
    ) -> Result<()> {
        let snapshotted = self.with(device, |device| device.details.snapshotted_time)?;
        let shared = entries(from, run, snapshotted.saturating_sub(1));
        let alone = shared.zip(run).filter(|(_, before)| before.time() >= snapshotted).map(|(entry, _)| entry);
        let mut alone = alone.peekable();
        if alone.peek().is_none() {
            return Ok(());
        }
        let core = &change.core;
        let root = self.own(change, device).await?;
        // They are in one leaf, and need no room in it: one pass takes them all.
        let root = core.tree.mappings().insert_pass(&core.tm, root, &mut alone, |_, _| ()).await?;
        self.update(device, |device| device.root = root)
    }

    /// Maps blocks of the device to the data blocks of a run, as many as go into one leaf.
    async fn map_shared(
        &self,
        change: &Change<'_>,
        device: DeviceId,
        to: VirtualBlock,
        run: &[Packed],
    ) -> Result<Shared> {
        let snapshotted = self.with(device, |device| device.details.snapshotted_time)?;
        let mut new = entries(to, run, snapshotted.saturating_sub(1)).peekable();
        let mut before = Vec::new();
        let core = &change.core;
        let root = self.own(change, device).await?;
        let replaced = |_, packed: Packed| before.push(packed.block());
        let root = core.tree.mappings().insert_pass(&core.tm, root, &mut new, replaced).await?;
        let taken = run.len().saturating_sub(new.len());
        for run in trees::runs(run.iter().take(taken).map(|packed| packed.block())) {
            core.data.inc(&core.tm, run.range()).await?;
        }
        let mut shared = Shared { blocks: taken as u64, freed: Vec::new() };
        let added = shared.blocks.saturating_sub(before.len() as u64);
        for run in trees::runs(before) {
            let freed = &mut shared.freed;
            core.data.dec(&core.tm, run.range(), &mut |block| trees::append(freed, DataBlock(block))).await?;
        }
        self.update(device, |device| {
            device.root = root;
            device.details.mapped_blocks = device.details.mapped_blocks.saturating_add(added);
        })?;
        Ok(shared)
    }
}

/// A run as entries of a tree from block `first` on, with a time.
fn entries(first: VirtualBlock, run: &[Packed], time: u32) -> impl ExactSizeIterator<Item = (u64, Packed)> {
    let at = move |index: usize| first.0.saturating_add(index as u64);
    run.iter().enumerate().map(move |(index, packed)| (at(index), Packed::new(packed.block(), time)))
}
