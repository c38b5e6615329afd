//! Changes of devices together with the records that describe them.

use super::{Records, spare, truth};
use crate::control::{DeviceId, Mode};
use crate::error::Error;
use crate::metadata::{Metadata, MetadataError, Progress};
use crate::pool::{Deletion, Inner, Needs};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A change of the set of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Makes an empty device.
    CreateThin(DeviceId),
    /// Makes a snapshot; the origin may be active, or created by the same call before.
    CreateSnap {
        /// The new device.
        device: DeviceId,
        /// What it is a snapshot of.
        origin: DeviceId,
    },
    /// Exchanges what two devices map, with their details; either may be active, or created by the same call before.
    Exchange(DeviceId, DeviceId),
    /// Deletes a device, which must not be active. Deletions come after all other changes.
    Delete(DeviceId),
}

impl Change {
    /// The devices that must keep still for it.
    fn sources(self) -> impl Iterator<Item = DeviceId> {
        let sources = match self {
            Change::CreateSnap { origin, .. } => [Some(origin), None],
            Change::Exchange(a, b) => [Some(a), Some(b)],
            Change::CreateThin(_) | Change::Delete(_) => [None, None],
        };
        sources.into_iter().flatten()
    }
}

/// Roots of devices' trees, before a change for which they keep still. A snapshot gets its origin's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots(BTreeMap<DeviceId, u64>);

impl Roots {
    /// The root of a device's tree: metadata block 0, which is none, as long as it is not known.
    pub fn of(&self, device: DeviceId) -> u64 {
        self.0.get(&device).copied().unwrap_or(0)
    }
}

/// Pages of records to write: their numbers and what they are to hold.
pub type Pages = Vec<(u32, Vec<u8>)>;

impl Records {
    /// Changes devices and pages in one commit: all of it is durable on success, none of it after an error, unless the
    /// pool left write mode. Works on a full pool if it makes no new page. All sources of snapshots keep still before
    /// the first is taken: no write that was issued after the end of another is in without it. Devices to delete that are
    /// too large for one transaction ([`is_large`](crate::Pool::is_large)) are emptied before that: write down first that
    /// they are to be deleted.
    pub async fn apply(&self, changes: &[Change], pages: &[(u32, Vec<u8>)]) -> Result<(), Error> {
        let pages = pages.to_vec();
        self.apply_with(changes, &[], move |_| Ok((pages.clone(), ()))).await
    }

    /// As [`Records::apply`], with pages that tell of the roots of devices. These keep still from before `plan` is called
    /// until the change is made. It is called once before, without the roots, so that pages are provisioned: what it
    /// returns then must be of the same pages.
    pub async fn apply_with<T: 'static, E: From<Error> + 'static>(
        &self,
        changes: &[Change],
        still: &[DeviceId],
        plan: impl Fn(&Roots) -> Result<(Pages, T), E> + 'static,
    ) -> Result<T, E> {
        let frees = changes.iter().all(|change| matches!(change, Change::Delete(_)));
        let needs = if frees { Needs::Nothing } else { Needs::Space };
        let (this, changes, still) = (self.clone(), changes.to_vec(), still.to_vec());
        let pool = self.0.pool.clone();
        let work = async move {
            let _deletions = this.begin_deletions(&changes).await?;
            let work = async move |inner: Rc<Inner>| this.apply_alone(&inner, &changes, &still, plan).await;
            pool.control(needs, work).await
        };
        self.0.pool.detached(work).await?
    }

    /// Makes the devices that are to be deleted small enough for one transaction.
    async fn begin_deletions(&self, changes: &[Change]) -> Result<Vec<Deletion>, Error> {
        let mut deletions = Vec::new();
        for change in changes {
            if let Change::Delete(device) = *change {
                deletions.push(self.0.pool.begin_deletion(device).await?);
            }
        }
        Ok(deletions)
    }

    /// The inner error is the plan's.
    async fn apply_alone<T, E>(
        &self,
        inner: &Rc<Inner>,
        changes: &[Change],
        still: &[DeviceId],
        plan: impl Fn(&Roots) -> Result<(Pages, T), E>,
    ) -> Result<Result<T, E>, Error> {
        check_changes(inner, changes).await?;
        let (mut pages, mut planned) = match plan(&Roots::default()) {
            Ok((pages, planned)) => (pages, planned),
            Err(error) => return Ok(Err(error)),
        };
        self.write_spares(inner, &pages).await?;
        let sources: BTreeSet<DeviceId> =
            changes.iter().flat_map(|change| change.sources()).chain(still.iter().copied()).collect();
        let active: Vec<_> = sources.into_iter().filter_map(|source| inner.active(source)).collect();
        let mut quiet = Vec::new();
        for device in &active {
            quiet.push(device.quiesce().await);
        }
        if !still.is_empty() {
            (pages, planned) = match plan(&roots(inner, still).await?) {
                Ok((pages, planned)) => (pages, planned),
                Err(error) => return Ok(Err(error)),
            };
            self.write_spares(inner, &pages).await?;
        }
        if !inner.metadata.has_room() && inner.mode() != Mode::OutOfMetadataSpace {
            inner.commit().await?;
        }
        let held = inner.commits.hold().await;
        self.change_all(inner, changes, &pages).await?;
        drop(quiet);
        inner.commit_held(&held).await?;
        Ok(Ok(planned))
    }

    /// Writes the copies that become the truth.
    async fn write_spares(&self, inner: &Rc<Inner>, pages: &Pages) -> Result<(), Error> {
        if let Some((_, payload)) = pages.iter().find(|(_, payload)| payload.len() > Self::PAGE_CAPACITY_BYTES) {
            return Err(Error::PageTooLong { len: payload.len(), most: Self::PAGE_CAPACITY_BYTES });
        }
        for (page, payload) in pages {
            self.provision(*page).await?;
            self.write_spare(inner, *page, payload).await?;
        }
        Ok(())
    }

    /// The changes, between two commits. What is refused is undone, so that it does not get into the next one.
    async fn change_all(&self, inner: &Rc<Inner>, changes: &[Change], pages: &Pages) -> Result<(), Error> {
        let metadata = &inner.metadata;
        for (done, change) in changes.iter().enumerate() {
            let result = match *change {
                Change::CreateThin(device) => metadata.create_thin(device).await,
                Change::CreateSnap { device, origin } => metadata.create_snap(device, origin).await,
                Change::Exchange(a, b) => metadata.exchange(a, b).await,
                Change::Delete(_) => Ok(()),
            };
            if let Err(error) = result {
                return Err(undo(inner, changes.get(..done).unwrap_or_default(), error).await);
            }
        }
        let device = self.device();
        for (done, (page, _)) in pages.iter().enumerate() {
            match metadata.swap(device, truth(*page), spare(*page)).await {
                Ok(()) => {}
                Err(refusal) if done == 0 => return Err(undo(inner, changes, refusal).await),
                // There may be no room for swapping the others back, either.
                Err(error) => return Err(inner.abort(error).await),
            }
        }
        for change in changes {
            if let Change::Delete(device) = *change
                && let Err(error) = delete(metadata, device).await
            {
                return Err(inner.abort(error).await);
            }
        }
        inner.changed(Ok(())).await
    }
}

/// The roots of devices that keep still.
async fn roots(inner: &Rc<Inner>, still: &[DeviceId]) -> Result<Roots, Error> {
    let mut roots = Roots::default();
    for device in still {
        roots.0.insert(*device, inner.metadata.root(*device).await?);
    }
    Ok(roots)
}

/// Whether the changes can be made, so that the transaction does not have to be undone.
async fn check_changes(inner: &Rc<Inner>, changes: &[Change]) -> Result<(), Error> {
    let mut known: BTreeSet<DeviceId> = inner.metadata.devices().await?.into_iter().map(|(id, _)| id).collect();
    for change in changes {
        for source in change.sources() {
            inner.check_not_reserved(source)?;
            inner.check_not_deleting(source)?;
            inner.check_not_erasing(source)?;
            if !known.contains(&source) {
                return Err(MetadataError::NoDevice(source).into());
            }
        }
        if let Change::CreateThin(device) | Change::CreateSnap { device, .. } = *change
            && !known.insert(device)
        {
            return Err(MetadataError::Exists(device).into());
        }
    }
    for change in changes {
        if let Change::Delete(device) = *change
            && !known.remove(&device)
        {
            return Err(MetadataError::NoDevice(device).into());
        }
    }
    Ok(())
}

/// Takes changes back after the next one was refused.
pub(super) async fn undo(inner: &Rc<Inner>, done: &[Change], refusal: MetadataError) -> Error {
    if !refusal.spoils() {
        for change in done.iter().rev() {
            let result = match *change {
                Change::CreateThin(device) | Change::CreateSnap { device, .. } => delete(&inner.metadata, device).await,
                Change::Exchange(a, b) => inner.metadata.exchange(a, b).await,
                Change::Delete(_) => Ok(()),
            };
            if let Err(error) = result {
                return inner.abort(error).await;
            }
        }
    }
    inner.failed(refusal).await
}

/// Deletes a device within the open transaction.
async fn delete(metadata: &Metadata, device: DeviceId) -> Result<(), MetadataError> {
    while metadata.delete(device).await? == Progress::Partial {}
    Ok(())
}
