//! Mappings of a device: looking up, inserting, removing (reference 6.3, 6.4).

use super::change::Change;
use super::room::Floor;
use super::trees::{self, Mappings, Packed};
use super::{Blocked, DataBlock, MappedRange, Mapping, Metadata, MetadataError, Removed, Result, VirtualBlock};
use crate::control::DeviceId;
use core::ops::{ControlFlow, RangeInclusive};
use pdata::Stop;
use pdata::block_manager::{BlockManager, BlockRef};
use pdata::btree::BTree;
use smallvec::SmallVec;

/// Mappings removed in one pass through a tree, at most.
const REMOVED_AT_ONCE: usize = 256;

/// The same while metadata blocks are short: each mapping may need a bitmap and an overflow leaf of its own.
pub(super) const REMOVED_IN_NEED: usize = 8;

impl Metadata {
    /// Looks a block up if that takes no waiting: the hot path. The device must be open.
    pub fn try_lookup(&self, device: DeviceId, block: VirtualBlock) -> Result<Option<Mapping>, Blocked> {
        if !self.turns.readable() {
            return Err(Blocked);
        }
        let devices = self.devices.borrow();
        let state = devices.get(&device).filter(|device| device.opens > 0).ok_or(Blocked)?;
        let core = self.core.borrow();
        let found = core.tree.mappings().try_lookup(core.tm.blocks(), state.root, block.0).map_err(|_| Blocked)?;
        let mapping = found.map(|packed| mapping(packed, state.details.snapshotted_time));
        // A mapping beyond the data disk is damage: let the slow road say so.
        if mapping.is_some_and(|mapping| mapping.block.0 >= core.data.nr_blocks()) { Err(Blocked) } else { Ok(mapping) }
    }

    /// Looks a block up.
    pub async fn lookup(&self, device: DeviceId, block: VirtualBlock) -> Result<Option<Mapping>> {
        self.look_at(device, |blocks, tree, root, time| {
            let found = tree.try_lookup(blocks, root, block.0)?;
            Ok(found.map(|packed| mapping(packed, time)))
        })
        .await?
        .map(|mapping| self.check_mapping(device, block, mapping))
        .transpose()
    }

    /// The first mapped block at or after `from`.
    pub async fn next_mapped(&self, device: DeviceId, from: VirtualBlock) -> Result<Option<VirtualBlock>> {
        self.look_at(device, |blocks, tree, root, _| {
            Ok(tree.try_next(blocks, root, from.0)?.map(|(block, _)| VirtualBlock(block)))
        })
        .await
    }

    /// The last mapped block.
    pub async fn highest_mapped(&self, device: DeviceId) -> Result<Option<VirtualBlock>> {
        self.look_at(device, |blocks, tree, root, _| {
            Ok(tree.try_last(blocks, root)?.map(|(block, _)| VirtualBlock(block)))
        })
        .await
    }

    /// The first run of mappings in `begin..end`. A long run may be returned in pieces.
    pub async fn mapped_range(
        &self,
        device: DeviceId,
        begin: VirtualBlock,
        end: VirtualBlock,
    ) -> Result<Option<MappedRange>> {
        let found = self
            .look_at(device, |blocks, tree, root, time| {
                let mut range: Option<MappedRange> = None;
                tree.try_scan(blocks, root, begin.0, |block, packed| {
                    if block < end.0 && extend(&mut range, VirtualBlock(block), mapping(packed, time)) {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })?;
                Ok(range)
            })
            .await?;
        if let Some(range) = &found {
            let last = range.data_begin.0.saturating_add(range.end.0.saturating_sub(range.begin.0)).saturating_sub(1);
            self.check_mapping(device, range.begin, Mapping { block: DataBlock(last), shared: range.shared })?;
        }
        Ok(found)
    }

    /// Maps a virtual block to a reserved data block, in place of what it was mapped to, and counts the data block.
    pub async fn insert(&self, device: DeviceId, block: VirtualBlock, data: DataBlock) -> Result<()> {
        let change = self.change_with_room().await?;
        let floor = self.check_room_to_map(&change).await?;
        self.with_open(device, |_| ())?;
        if !self.space.borrow_mut().take_reserved(data) {
            return Err(MetadataError::NotReserved(data));
        }
        let core = &change.core;
        change.begin();
        let root = self.own(&change, device).await?;
        let packed = Packed::new(data, self.time());
        let (root, before) = core.tree.mappings().insert(&core.tm, root, block.0, packed).await?;
        core.data.inc(&core.tm, data.0..data.0.saturating_add(1)).await?;
        if let Some(before) = before {
            let old = before.block().0;
            core.data.dec(&core.tm, old..old.saturating_add(1), &mut |_| ()).await?;
        }
        self.update(device, |device| {
            device.root = root;
            device.details.mapped_blocks = device.details.mapped_blocks.saturating_add(u64::from(before.is_none()));
        })?;
        core.tm.settle_some().await?;
        self.check_left(core, &floor).await?;
        change.done();
        Ok(())
    }

    /// Exchanges the mappings of two mapped blocks of one device. Allocates no data block, and changes no count: each
    /// mapping leaves one leaf of this device and enters another, or the same.
    pub async fn swap(&self, device: DeviceId, a: VirtualBlock, b: VirtualBlock) -> Result<()> {
        let change = self.change_to_free().await?;
        let core = &change.core;
        let mappings = core.tree.mappings();
        let root = self.with_open(device, |device| device.root)?;
        let mut values = [None; 2];
        for (value, block) in values.iter_mut().zip([a, b]) {
            let found = core.tm.blocks().look(|blocks| mappings.try_lookup(blocks, root, block.0)).await?;
            *value = Some(found.ok_or(MetadataError::NotMapped { device, block: block.0 })?);
        }
        let [Some(value_a), Some(value_b)] = values else { return Ok(()) };
        change.begin();
        let root = self.own(&change, device).await?;
        let (root, _) = mappings.insert(&core.tm, root, a.0, value_b).await?;
        let (root, _) = mappings.insert(&core.tm, root, b.0, value_a).await?;
        self.update(device, |device| device.root = root)?;
        log::trace!("mappings swapped");
        core.tm.settle_some().await?;
        change.done();
        Ok(())
    }

    /// Removes the mappings in `begin..end`, at most `most` of them; fewer if metadata blocks run short, which is for the
    /// next commit to change.
    pub async fn remove_range(
        &self,
        device: DeviceId,
        begin: VirtualBlock,
        end: VirtualBlock,
        most: u64,
    ) -> Result<Removed> {
        let change = self.change_to_free().await?;
        let floor = self.check_room_to_unmap(&change).await?;
        self.with_open(device, |_| ())?;
        let mut removed = Removed::default();
        let mut at = begin.0;
        while at < end.0 {
            let root = self.with(device, |device| device.root)?;
            let (blocks, mappings) = (change.core.tm.blocks(), change.core.tree.mappings());
            let Some((first, _)) = blocks.look(|blocks| mappings.try_next(blocks, root, at)).await? else { break };
            if first >= end.0 {
                break;
            }
            // Asking may be what finds that it is tight.
            let short = self.check_room_to_unmap(&change).await.is_err() || self.is_tight();
            if removed.mappings >= most || short && removed.mappings > 0 {
                removed.next = Some(VirtualBlock(first));
                break;
            }
            let at_once = if short { REMOVED_IN_NEED } else { REMOVED_AT_ONCE };
            let most = usize::try_from(most - removed.mappings).unwrap_or(usize::MAX).min(at_once);
            at = self
                .remove_run(&change, device, first..=end.0 - 1, most, &floor, &mut removed)
                .await?
                .saturating_add(1);
        }
        if removed.mappings > 0 {
            log::trace!("mappings discarded");
        }
        Ok(removed)
    }

    /// Removes the first of the blocks and some of the others; returns the last that was removed. The tree is whole afterwards.
    pub(super) async fn remove_run(
        &self,
        change: &Change<'_>,
        device: DeviceId,
        blocks: RangeInclusive<u64>,
        most: usize,
        floor: &Floor,
        removed: &mut Removed,
    ) -> Result<u64> {
        let (first, last) = blocks.into_inner();
        let core = &change.core;
        change.begin();
        let root = self.own(change, device).await?;
        let (root, gone) = core.tree.mappings().remove_run(&core.tm, root, first, last, most).await?;
        for run in trees::runs(gone.iter().map(|(_, packed)| packed.block())) {
            let freed = &mut removed.freed;
            core.data.dec(&core.tm, run.range(), &mut |block| trees::append(freed, DataBlock(block))).await?;
        }
        let count = gone.len() as u64;
        removed.mappings = removed.mappings.saturating_add(count);
        self.update(device, |device| {
            device.root = root;
            device.details.mapped_blocks = device.details.mapped_blocks.saturating_sub(count);
        })?;
        core.tm.settle_some().await?;
        self.check_left(core, floor).await?;
        change.done();
        Ok(gone.last().map_or(first, |(block, _)| *block))
    }

    /// Looks at an open device's tree, as often as it takes: while a block is being read the tree may change.
    async fn look_at<T>(
        &self,
        device: DeviceId,
        look: impl Fn(&BlockManager, &BTree<Mappings>, u64, u32) -> Result<T, Stop>,
    ) -> Result<T> {
        // Pinned, so that a tiny cache does not drop one block of the way for the next.
        let mut pinned = SmallVec::<[BlockRef; 8]>::new();
        loop {
            self.turns.wait_readable().await?;
            let core = self.core();
            let (root, time) = self.with_open(device, |device| (device.root, device.details.snapshotted_time))?;
            let (block, kind) = match look(core.tm.blocks(), core.tree.mappings(), root, time) {
                Ok(found) => return Ok(found),
                Err(Stop::Failed(error)) => return Err(error.into()),
                Err(Stop::Miss { block, kind }) => (block, kind),
            };
            let ended = self.turns.ended();
            match core.tm.blocks().read(block, kind).await {
                Ok(block) => pinned.push(block),
                // If the tree changed meanwhile the block may have become something else.
                Err(_) if ended != self.turns.ended() || !self.turns.readable() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn check_mapping(&self, device: DeviceId, block: VirtualBlock, mapping: Mapping) -> Result<Mapping> {
        if mapping.block.0 < self.data_blocks() {
            return Ok(mapping);
        }
        Err(MetadataError::BadMapping { device, block: block.0, data_block: mapping.block.0 })
    }
}

fn mapping(packed: Packed, snapshotted_time: u32) -> Mapping {
    Mapping { block: packed.block(), shared: snapshotted_time > packed.time() }
}

/// Adds a mapping to a run if it continues it.
fn extend(range: &mut Option<MappedRange>, block: VirtualBlock, mapping: Mapping) -> bool {
    let end = VirtualBlock(block.0.saturating_add(1));
    match range {
        None => *range = Some(MappedRange { begin: block, end, data_begin: mapping.block, shared: mapping.shared }),
        Some(run) => {
            let len = run.end.0.saturating_sub(run.begin.0);
            let next = run.data_begin.0.checked_add(len);
            if run.end != block || next != Some(mapping.block.0) || run.shared != mapping.shared {
                return false;
            }
            run.end = end;
        }
    }
    true
}
