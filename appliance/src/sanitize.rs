//! Sanitizing volumes: a volume's record says so before anything is erased, and until all of it is, so that a restart goes on
//! with it and nobody sees half of a volume.

use crate::catalog::{Edit, VolumeRecord};
use crate::holds::Held;
use crate::service::{Served, Service, ServiceError};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use export::Sanitize;
use minicbor::{Decode, Encode};
use platform::sync::Notify;
use thinp::control::DeviceId;
use thinp::{Erasure, Thin};

/// What a volume's record has of a sanitize operation that has not succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct SanitizeRecord {
    /// If it fails it may be left at that.
    #[n(0)]
    pub unrestricted: bool,
    /// It has failed. If not, it is to go on.
    #[n(1)]
    pub failed: bool,
}

/// The operations that are under way. What a volume's record has of another has failed.
#[derive(Default)]
pub(crate) struct Operations {
    /// How far each is, of 10000h.
    running: RefCell<BTreeMap<DeviceId, u16>>,
    changed: Notify,
}

impl Operations {
    /// Nobody may use the device now.
    pub fn is_running(&self, device: DeviceId) -> bool {
        self.running.borrow().contains_key(&device)
    }

    fn go_on(&self, device: DeviceId, progress: u16) {
        self.running.borrow_mut().insert(device, progress);
        self.changed.notify_all();
    }

    /// Call when the volume's record says what became of it.
    fn end(&self, device: DeviceId) {
        self.running.borrow_mut().remove(&device);
        self.changed.notify_all();
    }
}

impl Service {
    /// The operation on a volume that is under way, or failed.
    pub(crate) fn sanitize(&self, device: DeviceId) -> Option<Sanitize> {
        if let Some(progress) = self.sanitizing.running.borrow().get(&device) {
            return Some(Sanitize::Running { progress: *progress });
        }
        let recorded = self.served().ok()?.catalog().of(device)?.sanitize?;
        Some(Sanitize::Failed { unrestricted: recorded.unrestricted })
    }

    /// Waits until none is running on the device; false if it failed.
    pub(crate) async fn sanitized(&self, device: DeviceId) -> bool {
        loop {
            let changed = self.sanitizing.changed.notified();
            if !self.sanitizing.is_running(device) {
                return self.sanitize(device).is_none();
            }
            changed.await;
        }
    }

    /// Begins to sanitize the volume that `thin` is, on which nothing else is under way once `quiet` resolves. Requests that
    /// come from now on are to be refused. It goes on in a task of its own.
    pub(crate) async fn begin_sanitize(
        self: &Rc<Self>,
        thin: &Thin,
        unrestricted: bool,
        quiet: impl Future<Output = ()>,
    ) -> Result<(), ServiceError> {
        let device = thin.id();
        let record = SanitizeRecord { unrestricted, failed: false };
        self.sanitizing.go_on(device, 0);
        quiet.await;
        match self.claim_to_sanitize(thin, record).await {
            Ok(erasure) => {
                self.spawner.spawn(self.clone().erase(thin.clone(), record, erasure));
                Ok(())
            }
            Err(error) => {
                self.sanitizing.end(device);
                Err(error)
            }
        }
    }

    /// Makes sure that a volume can be erased, and writes down that it is.
    async fn claim_to_sanitize(&self, thin: &Thin, record: SanitizeRecord) -> Result<Erasure, ServiceError> {
        let device = thin.id();
        if !self.served()?.adopted() {
            return Err(ServiceError::NotAdopted);
        }
        let erasure = thin.begin_erasure().await?;
        if self.holds.of(device) != Held::Not {
            return Err(ServiceError::InUse(self.name_of_device(device)));
        }
        self.record_sanitize(device, Some(record)).await?;
        Ok(erasure)
    }

    /// Goes on with the operations that a restart interrupted. Call before anybody can log in.
    pub(crate) fn resume_sanitizing(self: &Rc<Self>) {
        let Ok(served) = self.served() else { return };
        let recorded = |record: &VolumeRecord| Some((record.id()?, record.sanitize.filter(|found| !found.failed)?));
        let found: Vec<_> = served.catalog().volumes().filter(|record| !record.deleting).filter_map(recorded).collect();
        for (device, record) in found {
            self.sanitizing.go_on(device, 0);
            self.spawner.spawn(self.clone().resume(device, record));
        }
    }

    async fn resume(self: Rc<Self>, device: DeviceId, record: SanitizeRecord) {
        log::info!("volume {} goes on being sanitized", self.name_of_device(device));
        let begin = async || {
            let thin = self.served()?.pool.open_thin(device, None).await?;
            let erasure = thin.begin_erasure().await?;
            Ok::<_, ServiceError>((thin, erasure))
        };
        match begin().await {
            Ok((thin, erasure)) => self.clone().erase(thin, record, erasure).await,
            Err(error) => self.failed(device, record, &error).await,
        }
    }

    /// Erases a volume to the end, which the power-off is, too: then it goes on with the next start.
    async fn erase(self: Rc<Self>, thin: Thin, record: SanitizeRecord, erasure: Erasure) {
        let device = thin.id();
        let total = erasure.left_blocks().max(1);
        let ended = loop {
            let done = total.saturating_sub(erasure.left_blocks());
            let progress = u16::try_from(done.saturating_mul(0x1_0000) / total).unwrap_or(u16::MAX);
            self.sanitizing.go_on(device, progress);
            if self.is_powering_off() {
                return;
            }
            match erasure.step().await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        drop(erasure);
        // What was erased is durable with that.
        let ended = match ended {
            Ok(()) => self.record_sanitize(device, None).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => {
                log::info!("volume {} is sanitized", self.name_of_device(device));
                self.sanitizing.end(device);
            }
            Err(_) if self.is_powering_off() => {}
            Err(error) => self.failed(device, record, &error).await,
        }
    }

    async fn failed(&self, device: DeviceId, record: SanitizeRecord, error: &ServiceError) {
        let name = self.name_of_device(device);
        log::error!("volume {name} could not be sanitized, and nobody can use it: {error}; then SANITIZE it again");
        let record = SanitizeRecord { failed: true, ..record };
        if let Err(error) = self.record_sanitize(device, Some(record)).await {
            log::error!("volume {name}: that cannot be written down: {error}; the next start goes on with it");
        }
        self.sanitizing.end(device);
    }

    /// Leaves a failed operation at that.
    pub(crate) async fn leave_sanitize(&self, device: DeviceId) -> Result<(), ServiceError> {
        self.record_sanitize(device, None).await?;
        log::warn!("volume {} is used again, though it could not be sanitized", self.name_of_device(device));
        Ok(())
    }

    async fn record_sanitize(&self, device: DeviceId, sanitize: Option<SanitizeRecord>) -> Result<(), ServiceError> {
        self.alone(async |served| {
            let record = served.catalog().of(device).cloned();
            let record = record.ok_or_else(|| ServiceError::NoVolume(device.to_string()))?;
            served.change(&[], [Edit::Put(VolumeRecord { sanitize, ..record })].into()).await
        })
        .await
    }

    pub(crate) fn name_of_device(&self, device: DeviceId) -> String {
        let name = |served: &Served| served.catalog().of(device).map(|record| record.name.clone());
        self.served().ok().and_then(|served| name(&served)).unwrap_or_else(|| device.to_string())
    }
}
