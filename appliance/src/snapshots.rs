//! Snapshots, of one volume and of several at once; what makes them bases; the way back to them.

use crate::catalog::{Contents, Edit, VolumeRecord};
use crate::control::{Manager, check_free, device_of, hold_vacant, living, no_volume, vacancies};
use crate::holds::{Held, Hold};
use crate::service::{Served, Service, ServiceError};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use mgmt::{Control, ControlError, NewSnapshot, NewSnapshots, RollBack, SnapshotOf, Snapshots, Volume, VolumeName};
use thinp::control::DeviceId;
use thinp::records::{Change, Roots};

impl Snapshots for Manager {
    async fn create_snapshot(&self, origin: &VolumeName, new: NewSnapshot) -> Result<Volume, ControlError> {
        let of = SnapshotOf { volume: origin.clone(), name: new.name.clone() };
        let new_one = NewSnapshots { snapshots: [of].into(), read_only: new.read_only };
        self.service.alone(async |served| take(&self.service, served, &new_one, Vec::new()).await).await?;
        self.volume(&new.name).await
    }

    async fn create_snapshots(&self, new: NewSnapshots) -> Result<Vec<Volume>, ControlError> {
        self.service.alone(async |served| take(&self.service, served, &new, Vec::new()).await).await?;
        let mut volumes = Vec::new();
        for snapshot in &new.snapshots {
            volumes.push(self.volume(&snapshot.name).await?);
        }
        Ok(volumes)
    }

    async fn roll_back(&self, name: &VolumeName, wanted: RollBack) -> Result<Volume, ControlError> {
        let old = self.service.alone(async |served| self.go_back(served, name, &wanted).await).await?;
        let target = self.service.target_name(name.as_str());
        self.portal.contents_changed(&target);
        self.portal.capacity_changed(&target);
        self.service.clear_away(&self.runtime, old);
        self.volume(name).await
    }
}

/// Takes snapshots at one instant, in one commit, with `more` changes of records. The caller keeps other changes away.
pub(crate) async fn take(
    service: &Service,
    served: &Served,
    new: &NewSnapshots,
    more: Vec<Edit>,
) -> Result<(), ServiceError> {
    let mut ids = vacancies(service, served).await?;
    let (mut names, mut taken) = (BTreeSet::new(), Vec::new());
    for SnapshotOf { volume, name } in &new.snapshots {
        let origin = living(served, volume)?;
        if origin.sanitize.is_some() {
            return Err(ServiceError::InUse(volume.to_string()));
        }
        check_free(served, name)?;
        if !names.insert(name) {
            return Err(ServiceError::NameTaken(name.to_string()));
        }
        let origin_id = origin.id().ok_or_else(|| no_volume(volume))?;
        let device = ids.next().ok_or(ServiceError::NoFreeId)?;
        let inherited = served.contents(&origin).await?;
        let record = VolumeRecord {
            size_bytes: origin.size_bytes,
            origin: Some(origin.identity),
            read_only: new.read_only,
            blocks: origin.blocks,
            ..VolumeRecord::new(device, name.as_str(), service.new_identity())
        };
        // What is a copy of known contents has these; what may be written to has none for long.
        let identity = inherited.unwrap_or(record.identity);
        taken.push((Change::CreateSnap { device, origin: origin_id }, origin_id, record, identity));
    }
    let changes: Vec<Change> = taken.iter().map(|(change, ..)| *change).collect();
    let still: BTreeSet<DeviceId> = taken.iter().map(|(_, origin, ..)| *origin).collect();
    let still: Vec<DeviceId> = if new.read_only { still.into_iter().collect() } else { Vec::new() };
    let edits = move |roots: &Roots| {
        let edit = |(_, origin, record, identity): &(Change, DeviceId, VolumeRecord, [u8; 16])| {
            let contents = record.read_only.then(|| Contents::new(*identity, roots.of(*origin)));
            Edit::Put(VolumeRecord { contents, ..record.clone() })
        };
        more.iter().cloned().chain(taken.iter().map(edit)).collect()
    };
    served.change_still(&changes, &still, edits).await
}

impl Manager {
    /// Makes a volume a base for deltas and streams, or one that can be written to.
    pub(crate) async fn set_read_only(&self, name: &VolumeName, read_only: bool) -> Result<(), ServiceError> {
        let work = async |served: &Rc<Served>| {
            let (record, device) = (living(served, name)?, device_of(served, name)?);
            // Sessions know it as it was; jobs rely on it.
            self.service.check_unused(device, name)?;
            if !read_only {
                let record = VolumeRecord { read_only, contents: None, ..record };
                return served.change(&[], [Edit::Put(record)].into()).await;
            }
            // Not the volume's own identity: it may have held something else under that before.
            let identity = served.contents(&record).await?.unwrap_or_else(|| self.service.new_identity());
            let edits = move |roots: &Roots| {
                let contents = Some(Contents::new(identity, roots.of(device)));
                [Edit::Put(VolumeRecord { read_only, contents, ..record.clone() })].into()
            };
            served.change_still(&[], &[device], edits).await
        };
        self.service.alone(work).await
    }

    /// Exchanges a volume's tree for a shared one; returns the hold of the hidden device that has the old one and is to be
    /// deleted.
    async fn go_back(&self, served: &Rc<Served>, name: &VolumeName, wanted: &RollBack) -> Result<Hold, ServiceError> {
        let (volume, snapshot) = (living(served, name)?, living(served, &wanted.to)?);
        let (device, to) = (device_of(served, name)?, device_of(served, &wanted.to)?);
        if snapshot.origin != Some(volume.identity) {
            let (volume, snapshot) = (name.to_string(), wanted.to.to_string());
            return Err(ServiceError::NotItsSnapshot { volume, snapshot });
        }
        if volume.read_only {
            return Err(ServiceError::ReadOnly(name.to_string()));
        }
        let unit = self.service.unit(device);
        if !wanted.force || self.service.holds.of(device) != Held::Not {
            self.service.check_unused(device, name)?;
        }
        let known = if unit.is_none() { served.contents(&snapshot).await? } else { None };
        let hold = hold_vacant(&self.service, served).await?;
        let old = hold.device();
        let hidden = VolumeRecord::new(old, &format!(".old-{old}"), self.service.new_identity());
        let hidden = VolumeRecord { deleting: true, ..hidden };
        let changes = [Change::CreateSnap { device: old, origin: to }, Change::Exchange(device, old)];
        let size_bytes = snapshot.size_bytes;
        let edits = move |roots: &Roots| {
            let contents = known.map(|identity| Contents::new(identity, roots.of(to)));
            let volume = VolumeRecord { size_bytes, contents, ..volume.clone() };
            [Edit::Put(volume), Edit::Put(hidden.clone())].into()
        };
        served.change_still(&changes, &[to], edits).await?;
        if let (Some(unit), Some(size_bytes)) = (unit, size_bytes) {
            unit.set_size_bytes(size_bytes);
        }
        Ok(hold)
    }
}
