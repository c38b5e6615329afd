//! Deleting volumes. What is to be deleted is held before its record says so, and until it is gone: its number is nobody
//! else's meanwhile, and nobody else deletes it.

use crate::catalog::{Edit, VolumeRecord};
use crate::control::{device_of, no_volume};
use crate::holds::{Held, Hold};
use crate::service::{Served, Service, ServiceError};
use alloc::rc::Rc;
use alloc::vec::Vec;
use mgmt::VolumeName;
use platform::Runtime;
use thinp::control::DeviceId;

impl Service {
    /// Deletes a volume.
    pub(crate) async fn delete(&self, name: &VolumeName) -> Result<(), ServiceError> {
        self.delete_if(name, |_| true).await
    }

    /// Deletes a volume if that is still wanted when its turn has come.
    pub(crate) async fn delete_if(
        &self,
        name: &VolumeName,
        wanted: impl FnOnce(&Served) -> bool,
    ) -> Result<(), ServiceError> {
        let large = self.alone(async |served| {
            if !wanted(served) {
                return Ok(None);
            }
            let device = device_of(served, name)?;
            let hold = self.hold_to_delete(served, device)?;
            if !served.adopted() {
                served.pool.delete(device).await?;
                served.change(&[], [Edit::Remove(device)].into()).await?;
                return Ok(None);
            }
            if !served.pool.is_large(device).await? {
                served.remove(device).await?;
                return Ok(None);
            }
            // Written down first: a power cut must not leave a volume that looks whole and has lost blocks.
            let record = served.catalog().of(device).cloned().ok_or_else(|| no_volume(name))?;
            let record = VolumeRecord { export: None, guarded: None, deleting: true, ..record };
            served.change(&[], [Edit::Put(record)].into()).await?;
            Ok(Some(hold))
        });
        match large.await? {
            Some(hold) => self.finish_deletion(&hold).await,
            None => Ok(()),
        }
    }

    /// Holds a device that is to be deleted, unless it is in use. The caller keeps other changes away.
    pub(crate) fn hold_to_delete(&self, served: &Served, device: DeviceId) -> Result<Hold, ServiceError> {
        let deleting = served.catalog().of(device).is_some_and(|record| record.deleting);
        if deleting && self.holds.of(device) == Held::Alone {
            return Err(thinp::Error::Deleting(device).into());
        }
        let in_use = || ServiceError::InUse(self.name_of_device(device));
        if self.is_in_use(device) { Err(in_use()) } else { self.holds.take(device).ok_or_else(in_use) }
    }

    /// Deletes a large volume whose record says that it is to be deleted. Other changes have their turn meanwhile.
    pub(crate) async fn finish_deletion(&self, hold: &Hold) -> Result<(), ServiceError> {
        self.served()?.pool.shrink_to_delete(hold.device()).await?;
        self.alone(async |served| served.remove(hold.device()).await).await
    }

    /// Deletes a hidden volume whose record says that it is to be deleted, in a task of its own: nobody waits for that.
    pub(crate) fn clear_away(self: &Rc<Self>, runtime: &Runtime, hold: Hold) {
        let service = self.clone();
        runtime.spawner.spawn(async move {
            if let Err(error) = service.finish_deletion(&hold).await {
                log::error!("thin device {} is still to be deleted: {error}", hold.device());
            }
        });
    }

    /// Goes on with the deletions that a power cut interrupted. Call before anybody is served.
    pub(crate) fn resume_deletions(self: &Rc<Self>, runtime: &Runtime) {
        let Ok(served) = self.served() else { return };
        let held = |record: &VolumeRecord| Some((self.holds.take(record.id()?)?, record.name.clone()));
        let deleting: Vec<_> = served.catalog().volumes().filter(|record| record.deleting).filter_map(held).collect();
        let service = self.clone();
        runtime.spawner.spawn(async move {
            for (hold, name) in deleting {
                match service.finish_deletion(&hold).await {
                    Ok(()) => log::info!("volume {name} is deleted"),
                    Err(error) => log::error!("volume {name} is still to be deleted: {error}"),
                }
            }
        });
    }
}
