//! Ending a transaction: commit, abort, and the metadata snapshot, which is made of commits (reference 5.2, 6.6, 6.7).

use super::change::Change;
use super::state::Core;
use super::superblock;
use super::{Metadata, MetadataError, Result};
use alloc::rc::Rc;
use alloc::vec::Vec;
use platform::block::IoError;

impl Metadata {
    /// Anything is uncommitted.
    pub fn any_changes(&self) -> bool {
        self.core.borrow().changed.get() || self.devices_changed.get() > 0
    }

    /// Makes the transaction durable. `flush_data` makes the data durable that new mappings point to; it may overlap the
    /// write-out of metadata, and is awaited before the superblock is written. Without changes nothing but that is done.
    pub async fn commit(&self, flush_data: impl AsyncFnOnce() -> Result<(), IoError>) -> Result<()> {
        let change = self.change().await?;
        self.commit_in(&change, flush_data).await
    }

    pub(super) async fn commit_in(
        &self,
        change: &Change<'_>,
        flush_data: impl AsyncFnOnce() -> Result<(), IoError>,
    ) -> Result<()> {
        change.begin_apart();
        if self.any_changes() {
            self.write_devices(&change.core).await?;
            change.core.commit(flush_data).await?;
            self.devices_changed.set(0);
            self.devices.borrow_mut().retain(|_, device| {
                device.changed = false;
                device.owned = false;
                device.opens > 0
            });
            self.end_views_for_room().await;
            self.look_for_more();
        } else {
            flush_data().await.map_err(MetadataError::DataFlush)?;
        }
        change.done();
        Ok(())
    }

    /// Tells the trees of devices and of details what is known only in core.
    async fn write_devices(&self, core: &Core) -> Result<()> {
        let devices: Vec<_> = {
            let devices = self.devices.borrow();
            let changed = devices.iter().filter(|(_, device)| device.changed);
            changed.map(|(id, device)| (*id, device.root, device.details)).collect()
        };
        for (id, root, details) in devices {
            core.set_device_root(id, root).await?;
            core.set_device_details(id, details).await?;
        }
        Ok(())
    }

    /// Drops the transaction, goes back to what was committed and sets needs_check on disk. Reservations and holds of data
    /// blocks stay. If this fails the metadata is of no further use: nothing is changed or looked up any more.
    pub async fn abort(&self) -> Result<()> {
        let aborted = self.try_abort().await;
        if aborted.is_err() {
            self.give_up();
        }
        aborted
    }

    /// Nothing is changed or looked up any more.
    pub fn give_up(&self) {
        self.set_read_only(true);
        self.turns.give_up();
    }

    async fn try_abort(&self) -> Result<()> {
        let change = self.turn().await;
        for device in self.devices.borrow_mut().values_mut() {
            device.aborted_with_changes |= device.changed;
        }
        let core = self.reopen().await?;
        core.set_needs_check(true).await?;
        *self.core.borrow_mut() = Rc::new(core);
        change.restored();
        Ok(())
    }

    /// Drops a transaction in which there was nothing but a change that failed for want of metadata blocks
    /// ([`Metadata::ran_out_alone`]): as if it had been refused.
    pub async fn roll_back(&self) -> Result<()> {
        // Whoever has the next turn does it.
        self.look().await.map(|_| ())
    }

    /// Undoes the only change of the transaction.
    pub(super) async fn undo(&self, change: &mut Change<'_>) -> Result<()> {
        let core = self.reopen().await?;
        *self.core.borrow_mut() = Rc::new(core);
        (change.core, change.alone) = (self.core(), true);
        self.was_too_little();
        change.restored();
        Ok(())
    }

    /// The committed state once more, and the devices in core as they are in it.
    async fn reopen(&self) -> Result<Core> {
        let pins = self.core().tm.pins().clone();
        let core = Core::open(&self.runtime, &self.disk, self.cache_blocks, false, &pins).await?;
        self.core.borrow().block0.check_same(&core.block0)?;
        let ids: Vec<_> = self.devices.borrow().keys().copied().collect();
        for id in ids {
            let found = core.device_details(id).await?.zip(core.device_root(id).await?);
            let mut devices = self.devices.borrow_mut();
            match (found, devices.get_mut(&id)) {
                (Some((details, root)), Some(device)) => {
                    (device.details, device.root) = (details, root);
                    (device.changed, device.owned) = (false, false);
                }
                _ => {
                    devices.remove(&id);
                }
            }
        }
        self.devices_changed.set(0);
        Ok(core)
    }

    /// Sets needs_check in the superblock, on disk at once.
    pub async fn set_needs_check(&self) -> Result<()> {
        self.turn().await.core.set_needs_check(true).await
    }

    /// Clears needs_check in the superblock, on disk at once. Only for metadata that a full check found sound.
    pub async fn clear_needs_check(&self) -> Result<()> {
        let change = self.turn().await;
        self.costs(&change.core).await?;
        change.core.set_needs_check(false).await
    }

    /// Changes the transaction id from `current` to `new`.
    pub async fn set_transaction_id(&self, current: u64, new: u64) -> Result<()> {
        let change = self.change().await?;
        let found = self.transaction_id();
        if found != current {
            return Err(MetadataError::WrongTransactionId { expected: current, found });
        }
        change.core.superblock.borrow_mut().transaction_id.set(new);
        change.core.changed.set(true);
        Ok(())
    }

    /// Takes a metadata snapshot and returns its block. Commits before and after; so `flush_data` runs twice.
    ///
    /// Unlike in Linux `held_root` reaches the disk with the second commit's superblock and not before: a crash finds the
    /// snapshot either complete or not there.
    pub async fn reserve_metadata_snap(&self, flush_data: impl AsyncFn() -> Result<(), IoError>) -> Result<u64> {
        let change = self.change().await?;
        let core = &change.core;
        if let Some(held) = core.superblock.borrow().held_root() {
            return Err(MetadataError::SnapshotHeld(held));
        }
        self.commit_in(&change, &flush_data).await?;
        if !self.has_room() {
            return Err(MetadataError::NoMetadataSpace);
        }
        change.begin_apart();
        let copy = core.committed.get().to_snapshot();
        let block = core.tm.copy_in(&superblock::KIND, &copy.to_block()).await?;
        // These two roots only: what is below them is counted when it is shadowed.
        core.tm.inc(copy.mapping_root.get());
        core.tm.inc(copy.details_root.get());
        core.superblock.borrow_mut().held_root.set(block);
        core.changed.set(true);
        log::trace!("metadata snapshot reserved");
        self.commit_in(&change, &flush_data).await?;
        Ok(block)
    }
}
