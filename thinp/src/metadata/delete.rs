//! Deleting devices and letting the metadata snapshot go (reference 6.2, 6.7).
//!
//! Both drop whole trees, which may be of any size; a transaction may not. So they are made in steps, each of which leaves
//! a smaller device or a smaller snapshot that is sound in itself.

use super::change::Change;
use super::mappings::REMOVED_IN_NEED;
use super::room::CHANGES_BY_LEAF;
use super::state::Core;
use super::superblock::{self, Superblock};
use super::trees::{DETAILS, DetailsRecord, LEAF_MAPPINGS_MIN, NODE_ENTRIES};
use super::{Details, Metadata, MetadataError, Removed, Result};
use crate::control::DeviceId;
use pdata::btree::Shrunk;
use platform::block::IoError;
use zerocopy::little_endian::U64;

/// Leaves that one step frees at most: some 64,000 mappings.
const STEP_LEAVES: usize = 256;

/// How far a step went. Each step goes on by something, or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "what is partial is to be called again"]
pub enum Progress {
    /// All is done.
    Complete,
    /// There is more to do: another call goes on.
    Partial,
}

impl Metadata {
    /// Deletes a device that is not open, or a part of it if it is large: then this is to be called again, best after a
    /// commit.
    pub async fn delete(&self, device: DeviceId) -> Result<Progress> {
        let change = self.change_to_delete(device).await?;
        let core = &change.core;
        if self.needs_steps(core, device).await? {
            self.shrink_device(&change, device).await?;
            return Ok(Progress::Partial);
        }
        change.begin_apart();
        let root = self.own(&change, device).await?;
        core.tree.mappings().delete(&core.tm, root).await?;
        self.forget(core, device).await?;
        log::trace!("device deleted");
        core.tm.settle_some().await?;
        change.done();
        Ok(Progress::Complete)
    }

    /// Takes a part of a large device away. Complete when it is small: [`Metadata::delete`] takes the rest at once.
    pub async fn shrink_if_large(&self, device: DeviceId) -> Result<Progress> {
        let change = self.change_to_delete(device).await?;
        let large = self.needs_steps(&change.core, device).await?;
        if large {
            self.shrink_device(&change, device).await?;
        }
        self.forget_if_unused(device);
        Ok(if large { Progress::Partial } else { Progress::Complete })
    }

    /// Deleting a device takes more than one call of [`Metadata::delete`].
    pub async fn is_large(&self, device: DeviceId) -> Result<bool> {
        let look = self.look().await?;
        self.load(&look.core, device).await?;
        let large = self.needs_steps(&look.core, device).await;
        self.forget_if_unused(device);
        large
    }

    async fn change_to_delete(&self, device: DeviceId) -> Result<Change<'_>> {
        let change = self.change_to_free().await?;
        self.load(&change.core, device).await?;
        let opens = self.with(device, |device| device.opens)?;
        if opens > 0 { Err(MetadataError::InUse(device)) } else { Ok(change) }
    }

    /// Deleting the device takes more than one step, by its size or for want of free metadata blocks.
    async fn needs_steps(&self, core: &Core, device: DeviceId) -> Result<bool> {
        let (root, mapped_blocks) = self.with(device, |device| (device.root, device.details.mapped_blocks))?;
        let key = u64::from(device.get());
        // On a way that others share, everything below is theirs as well.
        if mapped_blocks == 0 || core.tree.devices.is_way_shared(&core.tm, core.mapping_root(), key).await? {
            return Ok(false);
        }
        let costs = self.costs(core).await?;
        let fit_a_step = |leaves: usize| {
            // Twice, because other changes may come in between.
            let needed = costs.blocks(values(leaves).min(mapped_blocks), changes(leaves)).saturating_mul(2);
            leaves <= STEP_LEAVES && needed <= self.spare_blocks()
        };
        // Mostly their greatest number tells, and the tree need not be walked for it.
        let most = (mapped_blocks / LEAF_MAPPINGS_MIN).saturating_add(1).try_into().unwrap_or(usize::MAX);
        if fit_a_step(most) {
            return Ok(false);
        }
        let leaves = core.tree.mappings().exclusive_leaves(&core.tm, root, STEP_LEAVES.saturating_add(1)).await?;
        Ok(leaves > 0 && !fit_a_step(leaves))
    }

    /// Removes as many leaves of a device's mappings as fit a step.
    async fn shrink_device(&self, change: &Change<'_>, device: DeviceId) -> Result<()> {
        let core = &change.core;
        change.begin_apart();
        let root = self.own(change, device).await?;
        let shrunk = self.shrink(core, root, STEP_LEAVES).await?;
        let root = match shrunk.root {
            Some(root) => root,
            None => core.tree.mappings().create(&core.tm).await?,
        };
        self.update(device, |device| {
            device.root = root;
            let left = device.details.mapped_blocks.saturating_sub(shrunk.entries);
            device.details.mapped_blocks = if shrunk.root.is_some() { left } else { 0 };
        })?;
        log::trace!("step of a long delete");
        core.tm.settle_some().await?;
        change.done();
        if shrunk.root.is_some() && shrunk.entries == 0 { self.remove_few(change, device).await } else { Ok(()) }
    }

    /// Lets the metadata snapshot go, or a part of it if it holds much alone, and commits. If a part, this is to be called
    /// again, and until then the snapshot lacks devices or mappings, and has moved.
    pub async fn release_metadata_snap(
        &self,
        flush_data: impl AsyncFnOnce() -> Result<(), IoError>,
    ) -> Result<Progress> {
        let change = self.change_to_free().await?;
        let core = &change.core;
        let held = core.superblock.borrow().held_root().ok_or(MetadataError::NoSnapshotHeld)?;
        let copy = {
            let block = core.tm.blocks().read(held, &superblock::KIND).await?;
            Superblock::of_snapshot(&block.bytes())?
        };
        change.begin_apart();
        let (rest, taken) = self.shrink_snapshot(core, copy).await?;
        if !taken && change.alone {
            return Err(pdata::Error::NoSpace.into());
        }
        // Together with other changes even a commit helps: what they freed can be taken after it.
        core.tm.dec(held);
        let block = match &rest {
            Some(copy) => core.tm.copy_in(&superblock::KIND, &copy.to_block()).await?,
            None => 0,
        };
        core.superblock.borrow_mut().held_root.set(block);
        core.changed.set(true);
        log::trace!("metadata snapshot released");
        self.commit_in(&change, flush_data).await?;
        Ok(if rest.is_none() { Progress::Complete } else { Progress::Partial })
    }

    /// Takes devices, or a part of the last, out of a metadata snapshot; returns what is left of it, and whether anything was
    /// taken.
    async fn shrink_snapshot(&self, core: &Core, mut copy: Superblock) -> Result<(Option<Superblock>, bool)> {
        let (devices, tm) = (&core.tree.devices, &core.tm);
        let leaves = devices.exclusive_leaves(tm, copy.mapping_root.get(), STEP_LEAVES.saturating_add(1)).await?;
        let costs = self.costs(core).await?;
        if leaves <= STEP_LEAVES && costs.blocks(values(leaves), changes(leaves)) <= self.spare_blocks() {
            devices.delete(tm, copy.mapping_root.get()).await?;
            DETAILS.delete(tm, copy.details_root.get()).await?;
            return Ok((None, true));
        }
        let (mut left, mut taken) = (STEP_LEAVES, false);
        while left > 0 && self.spare_blocks() > 0 {
            let root = copy.mapping_root.get();
            let Some((device, tree)) = tm.blocks().look(|blocks| devices.try_last(blocks, root)).await? else {
                // What is left are two empty leaves.
                devices.delete(tm, root).await?;
                DETAILS.delete(tm, copy.details_root.get()).await?;
                return Ok((None, true));
            };
            // First the way to the device: its tree is referred to once from here only when that is not shared.
            let (root, _) = devices.insert(tm, root, device, tree).await?;
            let shrunk = self.shrink(core, tree.get(), left).await?;
            copy.mapping_root = match shrunk.root {
                Some(tree) => devices.insert(tm, root, device, U64::new(tree)).await?.0,
                None => devices.remove(tm, root, device).await?.0,
            }
            .into();
            copy.details_root = self.shrink_details(core, copy.details_root.get(), device, &shrunk).await?.into();
            taken |= shrunk.root.is_none() || shrunk.entries > 0;
            if shrunk.root.is_some() {
                break;
            }
            left = left.saturating_sub(shrunk.leaves.max(1));
        }
        Ok((Some(copy), taken))
    }

    /// Takes note in a snapshot's details of what became of a device's tree.
    async fn shrink_details(&self, core: &Core, root: u64, device: u64, shrunk: &Shrunk) -> Result<u64> {
        if shrunk.root.is_none() {
            return Ok(DETAILS.remove(&core.tm, root, device).await?.0);
        }
        let found = core.tm.blocks().look(|blocks| DETAILS.try_lookup(blocks, root, device)).await?;
        let Some(mut details) = found.map(Details::from) else { return Ok(root) };
        details.mapped_blocks = details.mapped_blocks.saturating_sub(shrunk.entries);
        Ok(DETAILS.insert(&core.tm, root, device, DetailsRecord::from(details)).await?.0)
    }

    /// Drops a device's tree, or as many leaves of it as fit the step and the free metadata blocks.
    async fn shrink(&self, core: &Core, root: u64, leaves_max: usize) -> Result<Shrunk> {
        let (mappings, tm) = (core.tree.mappings(), &core.tm);
        let leaves = mappings.exclusive_leaves(tm, root, leaves_max.saturating_add(1)).await?;
        let costs = self.costs(core).await?;
        if leaves <= leaves_max && costs.blocks(values(leaves), changes(leaves)) <= self.spare_blocks() {
            mappings.delete(tm, root).await?;
            return Ok(Shrunk { leaves, ..Shrunk::default() });
        }
        let room = |values: usize| costs.blocks(values as u64, CHANGES_BY_LEAF) <= self.spare_blocks();
        Ok(mappings.shrink(tm, root, leaves_max, room).await?)
    }

    /// With too little room for a whole leaf: some mappings of it.
    async fn remove_few(&self, change: &Change<'_>, device: DeviceId) -> Result<()> {
        let floor = self.check_room_to_delete(change)?;
        let root = self.with(device, |device| device.root)?;
        let mappings = change.core.tree.mappings();
        let first = change.core.tm.blocks().look(|blocks| mappings.try_next(blocks, root, 0)).await?;
        let Some((first, _)) = first else {
            // It has fewer than its details say, none: nothing keeps it from going as a whole.
            return self.update(device, |device| device.details.mapped_blocks = 0);
        };
        self.remove_run(change, device, first..=u64::MAX, REMOVED_IN_NEED, &floor, &mut Removed::default()).await?;
        Ok(())
    }

    /// A device whose mappings are gone.
    async fn forget(&self, core: &Core, device: DeviceId) -> Result<()> {
        let key = u64::from(device.get());
        let (details_root, _) = DETAILS.remove(&core.tm, core.details_root(), key).await?;
        core.set_details_root(details_root);
        let (mapping_root, _) = core.tree.devices.remove(&core.tm, core.mapping_root(), key).await?;
        core.set_mapping_root(mapping_root);
        self.devices.borrow_mut().remove(&device);
        Ok(())
    }
}

/// Mappings in so many leaves at most.
fn values(leaves: usize) -> u64 {
    (leaves as u64).saturating_mul(NODE_ENTRIES)
}

/// Counts of metadata blocks that dropping a tree with so many leaves of its own changes at most: if each has an internal
/// node of its own, those of its neighbours there.
fn changes(leaves: usize) -> u64 {
    (leaves as u64).saturating_add(1).saturating_mul(CHANGES_BY_LEAF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_reckoned_by_what_its_leaves_hold_at_most() {
        // In each leaf; of metadata blocks, as many for the last one's neighbours at either side as for each.
        assert_eq!((values(0), values(3)), (0, 3 * 252));
        assert_eq!((changes(0), changes(3)), (2 * 252, 4 * 2 * 252));
        assert_eq!((values(usize::MAX), changes(usize::MAX)), (u64::MAX, u64::MAX));
    }
}
