//! Thin devices: what is known of them in core, making and deleting them (reference 6.2).

use super::change::Change;
use super::state::Core;
use super::trees::{DETAILS, TIME_MAX};
use super::{Details, Metadata, MetadataError, Result};
use crate::control::DeviceId;
use alloc::vec::Vec;
use core::ops::ControlFlow;

/// A device in core: one that is open, or changed in this transaction.
pub(super) struct Device {
    pub opens: u32,
    pub details: Details,
    /// Root of the device's tree. The tree of devices learns of it at commit.
    pub root: u64,
    /// In this transaction the way to the device in the tree of devices was shadowed, so that `root` is referred to from
    /// nowhere but there and snapshots. Before that it must not be shadowed itself.
    pub owned: bool,
    /// Since the last commit.
    pub changed: bool,
    pub aborted_with_changes: bool,
}

impl Device {
    fn new(details: Details, root: u64) -> Device {
        Device { opens: 0, details, root, owned: false, changed: false, aborted_with_changes: false }
    }
}

impl Metadata {
    /// Makes an empty device.
    pub async fn create_thin(&self, device: DeviceId) -> Result<()> {
        let change = self.change_with_room().await?;
        self.must_not_exist(&change.core, device).await?;
        let core = &change.core;
        change.begin_apart();
        let root = core.tree.mappings().create(&core.tm).await?;
        core.set_device_root(device, root).await?;
        let (time, transaction_id) = (self.time(), self.transaction_id());
        let details = Details { mapped_blocks: 0, transaction_id, creation_time: time, snapshotted_time: time };
        self.put(device, Device { owned: true, ..Device::new(details, root) });
        self.update(device, |_| ())?;
        core.tm.settle_some().await?;
        change.done();
        Ok(())
    }

    /// Makes a snapshot. An active origin must be quiesced: no lookup of it between verdict and write.
    pub async fn create_snap(&self, device: DeviceId, origin: DeviceId) -> Result<()> {
        let change = self.change_with_room().await?;
        let core = &change.core;
        self.must_not_exist(core, device).await?;
        self.load(core, origin).await?;
        let time = self.time();
        if time >= TIME_MAX {
            self.forget_if_unused(origin);
            return Err(MetadataError::ClockExhausted(time));
        }
        let (origin_details, root) = self.with(origin, |origin| (origin.details, origin.root))?;
        change.begin_apart();
        core.tm.inc(root);
        core.set_device_root(device, root).await?;
        let time = time.saturating_add(1);
        core.superblock.borrow_mut().time.set(time);
        let details = Details {
            mapped_blocks: origin_details.mapped_blocks,
            transaction_id: self.transaction_id(),
            creation_time: time,
            snapshotted_time: time,
        };
        self.put(device, Device { owned: true, ..Device::new(details, root) });
        self.update(device, |_| ())?;
        self.update(origin, |origin| origin.details.snapshotted_time = time)?;
        core.tm.settle_some().await?;
        change.done();
        Ok(())
    }

    /// Exchanges the trees of two devices, with all that is known of them. Active ones must be quiesced.
    pub async fn exchange(&self, a: DeviceId, b: DeviceId) -> Result<()> {
        let change = self.change_with_room().await?;
        let core = &change.core;
        self.load(core, a).await?;
        if let Err(error) = self.load(core, b).await {
            self.forget_if_unused(a);
            return Err(error);
        }
        change.begin();
        let (root_a, root_b) = (self.own(&change, a).await?, self.own(&change, b).await?);
        core.set_device_root(a, root_b).await?;
        core.set_device_root(b, root_a).await?;
        let (details_a, details_b) = (self.with(a, |a| a.details)?, self.with(b, |b| b.details)?);
        self.update(a, |a| (a.root, a.details) = (root_b, details_b))?;
        self.update(b, |b| (b.root, b.details) = (root_a, details_a))?;
        log::trace!("trees exchanged");
        core.tm.settle_some().await?;
        change.done();
        Ok(())
    }

    /// Root of a device's tree, up to the moment. The first change of its mappings after a commit changes it.
    pub async fn root(&self, device: DeviceId) -> Result<u64> {
        let look = self.look().await?;
        self.load(&look.core, device).await?;
        let root = self.with(device, |device| device.root);
        self.forget_if_unused(device);
        root
    }

    /// Loads a device's details; needed before its mappings can be used. Opens nest.
    pub async fn open_device(&self, device: DeviceId) -> Result<Details> {
        let look = self.look().await?;
        self.load(&look.core, device).await?;
        self.with(device, |device| {
            device.opens = device.opens.saturating_add(1);
            device.details
        })
    }

    /// Undoes one [`Metadata::open_device`].
    pub fn close_device(&self, device: DeviceId) {
        if let Some(device) = self.devices.borrow_mut().get_mut(&device) {
            device.opens = device.opens.saturating_sub(1);
        }
        self.forget_if_unused(device);
    }

    /// Details of an open device, up to the moment.
    pub fn details(&self, device: DeviceId) -> Option<Details> {
        self.devices.borrow().get(&device).filter(|device| device.opens > 0).map(|device| device.details)
    }

    /// All devices by id, up to the moment.
    pub async fn devices(&self) -> Result<Vec<(DeviceId, Details)>> {
        let look = self.look().await?;
        let (blocks, root) = (look.core.tm.blocks(), look.core.details_root());
        let mut found = alloc::collections::BTreeMap::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let visit = |blocks: &_| {
                DETAILS.try_scan(blocks, root, from, |id, record| {
                    found.insert(id, Details::from(record));
                    ControlFlow::Continue(())
                })
            };
            next = blocks.look(visit).await?;
        }
        let in_core = self.devices.borrow();
        found.extend(in_core.iter().map(|(id, device)| (u64::from(id.get()), device.details)));
        Ok(found.into_iter().filter_map(|(id, details)| Some((DeviceId::new(id)?, details))).collect())
    }

    /// The open device has uncommitted changes (reference 6.5).
    pub fn changed(&self, device: DeviceId) -> bool {
        self.devices.borrow().get(&device).is_some_and(|device| device.changed)
    }

    /// The device had uncommitted changes when the transaction was aborted (reference 6.6).
    pub fn aborted_with_changes(&self, device: DeviceId) -> bool {
        self.devices.borrow().get(&device).is_some_and(|device| device.aborted_with_changes)
    }

    /// Makes sure that a device is in core. The caller has a turn.
    pub(super) async fn load(&self, core: &Core, device: DeviceId) -> Result<()> {
        if self.devices.borrow().contains_key(&device) {
            return Ok(());
        }
        let details = core.device_details(device).await?.ok_or(MetadataError::NoDevice(device))?;
        let root = core.device_root(device).await?.ok_or(MetadataError::NoDevice(device))?;
        self.put(device, Device::new(details, root));
        Ok(())
    }

    async fn must_not_exist(&self, core: &Core, device: DeviceId) -> Result<()> {
        let exists = self.devices.borrow().contains_key(&device) || core.device_details(device).await?.is_some();
        if exists { Err(MetadataError::Exists(device)) } else { Ok(()) }
    }

    /// Makes sure that a device's tree may be shadowed: whatever else refers to its root has been counted.
    pub(super) async fn own(&self, change: &Change<'_>, device: DeviceId) -> Result<u64> {
        let (root, owned) = self.with(device, |device| (device.root, device.owned))?;
        if !owned {
            change.core.set_device_root(device, root).await?;
            self.with(device, |device| device.owned = true)?;
        }
        Ok(root)
    }

    fn put(&self, id: DeviceId, device: Device) {
        self.devices.borrow_mut().insert(id, device);
    }

    pub(super) fn forget_if_unused(&self, id: DeviceId) {
        let mut devices = self.devices.borrow_mut();
        if devices.get(&id).is_some_and(|device| device.opens == 0 && !device.changed && !device.owned) {
            devices.remove(&id);
        }
    }

    /// Looks at or changes a device in core.
    pub(super) fn with<T>(&self, id: DeviceId, f: impl FnOnce(&mut Device) -> T) -> Result<T> {
        self.devices.borrow_mut().get_mut(&id).map(f).ok_or(MetadataError::NotOpen(id))
    }

    /// Changes a device in core, of which the next commit must tell the trees.
    pub(super) fn update(&self, id: DeviceId, f: impl FnOnce(&mut Device)) -> Result<()> {
        let was_changed = self.with(id, |device| {
            f(device);
            core::mem::replace(&mut device.changed, true)
        })?;
        self.devices_changed.set(self.devices_changed.get().saturating_add(u64::from(!was_changed)));
        Ok(())
    }

    /// As [`Metadata::with`], of a device that is open.
    pub(super) fn with_open<T>(&self, id: DeviceId, f: impl FnOnce(&mut Device) -> T) -> Result<T> {
        let mut devices = self.devices.borrow_mut();
        devices.get_mut(&id).filter(|device| device.opens > 0).map(f).ok_or(MetadataError::NotOpen(id))
    }
}
