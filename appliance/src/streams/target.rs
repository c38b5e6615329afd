//! What a stream is received into: hidden volumes, until all of it was verified.

use super::writer::Writer;
use super::{TransferError, checkpoint_name, token_of};
use crate::catalog::{Contents, Edit, VolumeRecord};
use crate::control::{Manager, check_free, forget, hold_vacant, living, no_volume, whole_blocks};
use crate::holds::Hold;
use crate::service::{Served, ServiceError};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;
use mgmt::{ReceiveRequest, VolumeName};
use platform::time::Instant;
use thinp::control::DeviceId;
use thinp::records::{Change, Roots};
use thinp::stream::{Identity, Info, Token};

/// From one checkpoint to the next: each is a commit.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(1);

/// A transfer into a volume.
pub(super) struct Target<'t> {
    manager: &'t Manager,
    request: &'t ReceiveRequest,
    served: Rc<Served>,
    /// The hidden device, held.
    work: Hold,
    /// Writes to it.
    pub writer: Writer<'t>,
    /// The device with what was verified, held.
    checkpoint: Option<Hold>,
    checkpoint_at: Option<Instant>,
    size_bytes: u64,
    /// The identity of what is received, if the stream says it.
    contents: Option<Identity>,
    /// The volume whose contents are replaced, held; none if it is a new one.
    replaced: Option<Hold>,
}

impl<'t> Target<'t> {
    /// Makes ready to receive, or refuses what the volume cannot take.
    pub async fn open(
        manager: &'t Manager,
        request: &'t ReceiveRequest,
        info: Option<&Info>,
    ) -> Result<Target<'t>, ServiceError> {
        manager.service.alone(async |served| Target::prepare(manager, request, info, served).await).await
    }

    async fn prepare(
        manager: &'t Manager,
        request: &'t ReceiveRequest,
        info: Option<&Info>,
        served: &Rc<Served>,
    ) -> Result<Target<'t>, ServiceError> {
        let (service, name) = (&manager.service, &request.volume);
        let volume = volume(served, name)?;
        let replaced = match volume.as_ref().and_then(VolumeRecord::id) {
            Some(device) => {
                service.check_unused(device, name)?;
                service.holds.take(device)
            }
            None => None,
        };
        let size_bytes = size(request, info, volume.as_ref())?;
        whole_blocks(size_bytes, volume.as_ref().and_then(|volume| volume.blocks).unwrap_or_default())?;
        if let Some(origin) = info.and_then(|info| info.origin.clone()) {
            return Err(TransferError::Origin(origin).into());
        }
        let base = base(served, request, info, volume.as_ref()).await?;
        let old = served.catalog().named(&checkpoint_name(name.as_str())).cloned();
        let resumed = match info.filter(|info| info.resume.is_some()) {
            Some(info) => Some(resumed(name, info, old.as_ref())?),
            None => None,
        };
        // Either way it will be deleted by its number: now, or with the next checkpoint.
        let old_device = old.as_ref().and_then(VolumeRecord::id);
        let old_hold = old_device.map(|device| service.hold_to_delete(served, device)).transpose()?;
        let hold = hold_vacant(service, served).await?;
        let work = hold.device();
        let change = match resumed.or(base) {
            Some(origin) => Change::CreateSnap { device: work, origin },
            None => Change::CreateThin(work),
        };
        // To be deleted, whatever happens: it gets other contents, or another name, when it is not.
        let hidden = VolumeRecord::new(work, &format!(".receiving-{work}"), service.new_identity());
        let mut edits = Vec::from([Edit::Put(VolumeRecord { deleting: true, ..hidden })]);
        edits.extend(old.filter(|_| resumed.is_none()).map(given_up_checkpoint));
        served.change(&[change], edits).await?;
        let checkpoint = match old_hold {
            Some(given_up) if resumed.is_none() => {
                service.clear_away(&manager.runtime, given_up);
                None
            }
            kept => kept,
        };
        let thin = served.pool.open_thin(work, None).await?;
        Ok(Target {
            manager,
            request,
            served: served.clone(),
            writer: Writer::new(name, manager.runtime.bufs.clone(), served.pool.clone(), thin),
            work: hold,
            checkpoint,
            checkpoint_at: None,
            size_bytes,
            contents: info.map(|info| info.target),
            replaced,
        })
    }

    /// All so far was verified: what comes later can be repeated from here on. Not too often.
    pub async fn checkpoint(&mut self, token: Token) -> Result<(), ServiceError> {
        let now = self.manager.runtime.timers.now();
        if self.checkpoint_at.is_some_and(|last| now - last < CHECKPOINT_PERIOD) {
            return Ok(());
        }
        // What was lost with a transaction is verified no longer.
        self.writer.flush().await?;
        let (service, name) = (&self.manager.service, checkpoint_name(self.request.volume.as_str()));
        let (work, size_bytes) = (self.work.device(), Some(self.size_bytes));
        let before = self.checkpoint.as_ref().map(Hold::device);
        let made = service.alone(async |served| {
            let hold = hold_vacant(service, served).await?;
            let device = hold.device();
            let record = VolumeRecord::new(device, &name, service.new_identity());
            let record = VolumeRecord { size_bytes, resume: Some(token.to_string()), ..record };
            let mut changes = Vec::from([Change::CreateSnap { device, origin: work }]);
            changes.extend(before.map(Change::Delete));
            let mut edits: Vec<Edit> = before.into_iter().map(Edit::Remove).collect();
            edits.push(Edit::Put(record));
            served.change(&changes, edits).await.map(|()| hold)
        });
        self.checkpoint = Some(made.await?);
        self.checkpoint_at = Some(self.manager.runtime.timers.now());
        Ok(())
    }

    /// All was verified: the volume gets it, in one commit.
    pub async fn finish(&mut self) -> Result<(), ServiceError> {
        let (work, size_bytes, name) = (self.work.device(), self.size_bytes, &self.request.volume);
        // What the base held behind the end of a smaller volume.
        forget(&self.served, work, size_bytes).await?;
        let service = &self.manager.service;
        let identity = self.contents.map(|contents| contents.0);
        let (checkpoint, replaces) = (self.checkpoint.as_ref().map(Hold::device), self.replaced.is_some());
        let put = service.alone(async |served| {
            let (mut changes, record) = match (volume(served, name)?, replaces) {
                (Some(old), true) => {
                    let device = old.id().ok_or_else(|| no_volume(name))?;
                    (Vec::from([Change::Exchange(device, work)]), old)
                }
                (None, false) => {
                    let new = VolumeRecord::new(work, name.as_str(), service.new_identity());
                    (Vec::new(), VolumeRecord { read_only: self.request.read_only, ..new })
                }
                // Somebody has made one meanwhile.
                (Some(_), false) => return Err(ServiceError::NameTaken(name.to_string())),
                (None, true) => return Err(no_volume(name)),
            };
            changes.extend(checkpoint.map(Change::Delete));
            // A read-only volume has known contents, even of a stream that does not say whose.
            let identity = identity.or_else(|| record.read_only.then(|| service.new_identity()));
            let edits = move |roots: &Roots| {
                let contents = identity.map(|identity| Contents::new(identity, roots.of(work)));
                let record = VolumeRecord { size_bytes: Some(size_bytes), contents, ..record.clone() };
                checkpoint.map(Edit::Remove).into_iter().chain([Edit::Put(record)]).collect()
            };
            served.change_still(&changes, &[work], edits).await
        });
        put.await?;
        self.checkpoint = None;
        Ok(())
    }

    /// Deletes what is not needed any more: the device that was written to, or has the volume's old contents. If there was no
    /// space, the checkpoint, too.
    pub async fn clear_away(self, full: bool) {
        let Target { manager, request, served, writer, work, checkpoint, replaced, .. } = self;
        let received = checkpoint.is_some();
        drop((writer, checkpoint, replaced));
        let service = &manager.service;
        if served.catalog().of(work.device()).is_some_and(|record| record.deleting) {
            service.clear_away(&manager.runtime, work);
        }
        if full
            && received
            && let Err(error) = service.drop_checkpoint(&request.volume).await
        {
            log::warn!("what was received for volume {} is kept: {error}", request.volume);
        }
    }
}

/// The record of a checkpoint that is to be deleted: the name is free for the next.
pub(super) fn given_up_checkpoint(record: VolumeRecord) -> Edit {
    let name = format!(".old-{}", record.device);
    Edit::Put(VolumeRecord { name, deleting: true, resume: None, ..record })
}

/// The volume, if there is one.
fn volume(served: &Served, name: &VolumeName) -> Result<Option<VolumeRecord>, ServiceError> {
    match check_free(served, name) {
        Ok(()) => Ok(None),
        Err(_) => living(served, name).map(Some),
    }
}

fn size(request: &ReceiveRequest, info: Option<&Info>, volume: Option<&VolumeRecord>) -> Result<u64, ServiceError> {
    let given = request.size_bytes.map(|size| size.bytes());
    match (info.map(|info| info.volume_bytes), given) {
        (Some(said), Some(given)) if said != given => Err(TransferError::OtherSize { said, given }.into()),
        (said, given) => {
            let known = said.or(given).or(volume.and_then(|volume| volume.size_bytes));
            known.ok_or_else(|| TransferError::SizeUnknown(request.volume.to_string()).into())
        }
    }
}

/// The device that holds what the stream is an increment on; none for a full stream.
async fn base(
    served: &Served,
    request: &ReceiveRequest,
    info: Option<&Info>,
    volume: Option<&VolumeRecord>,
) -> Result<Option<DeviceId>, ServiceError> {
    let wrong = |base| TransferError::WrongBase { volume: request.volume.to_string(), base };
    let found = match (info, &request.base) {
        (Some(_), Some(_)) => return Err(TransferError::BaseGiven.into()),
        (None, None) | (Some(Info { base: None, .. }), None) => return Ok(None),
        (Some(Info { base: Some(base), .. }), None) => {
            let candidates: Vec<VolumeRecord> = match volume {
                Some(volume) => [volume.clone()].into(),
                None => served.catalog().volumes().filter(|record| holds(record, base)).cloned().collect(),
            };
            let mut found = None;
            for record in candidates {
                if served.contents(&record).await? == Some(base.0) {
                    found = Some(record);
                    break;
                }
            }
            found.ok_or_else(|| wrong(base.to_string()))?
        }
        // The user says so; but not that the volume, if it is another, may lose what it holds.
        (None, Some(base)) => {
            let record = living(served, base)?;
            if let Some(volume) = volume.filter(|volume| volume.device != record.device) {
                let (ours, theirs) = (served.contents(volume).await?, served.contents(&record).await?);
                if ours.is_none() || ours != theirs {
                    return Err(wrong(base.to_string()).into());
                }
            }
            record
        }
    };
    Ok(found.id())
}

fn holds(record: &VolumeRecord, contents: &Identity) -> bool {
    record.contents.is_some_and(|known| known.identity == contents.0)
}

/// The device with the verified beginning of what the stream goes on with.
fn resumed(name: &VolumeName, info: &Info, checkpoint: Option<&VolumeRecord>) -> Result<DeviceId, ServiceError> {
    let fits = |record: &&VolumeRecord| token_of(record).is_some_and(|token| token.fits(info));
    let device = checkpoint.filter(fits).and_then(VolumeRecord::id);
    device.ok_or_else(|| TransferError::NotBegun(name.to_string()).into())
}
