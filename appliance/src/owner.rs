//! One pool, one owner: the activation that the records keep.
//!
//! Whoever begins to use a pool for writing counts an activation in the reserved device and signs it; who closes the pool
//! says so. If the last activation was another instance's and is still open, that instance may be alive, and the pool
//! is not used unless somebody says that it is dead. Whoever is alive nevertheless finds block 0 changed, for an activation
//! is a commit, and stops ([`thinp`]).

use crate::catalog::{Activation, ApplianceRecord, Edit};
use crate::service::{Served, Service, ServiceError};
use crate::units::hexadecimal;
use alloc::format;
use alloc::rc::Rc;
use platform::Runtime;
use thinp::metadata::MetadataError;

/// Who this instance is: as given from outside, else as the pool says. Two hosts without identities of their own cannot be
/// told apart before both use the pool.
fn instance(service: &Service, record: &ApplianceRecord) -> [u8; 16] {
    service.given_identity.unwrap_or(record.identity)
}

/// Refuses a pool that another instance may be using.
pub(crate) fn must_be_ours(service: &Service, record: &ApplianceRecord) -> Result<(), ServiceError> {
    let Some(last) = record.activation.filter(|last| last.open) else { return Ok(()) };
    if last.instance == instance(service, record) {
        return Ok(());
    }
    let (by, epoch) = (hexadecimal(&last.instance), last.epoch);
    if service.settings.take_over {
        log::warn!("the pool is taken over from instance {by}, which did not close it (activation {epoch})");
        return Ok(());
    }
    Err(ServiceError::Elsewhere { by, epoch })
}

/// The activation that begins now.
pub(crate) fn activation(service: &Service, record: &ApplianceRecord) -> Activation {
    let before = record.activation.map_or(0, |last| last.epoch);
    Activation { epoch: before.saturating_add(1), instance: instance(service, record), open: true }
}

/// The activation that is open and this instance's own.
fn own(service: &Service, served: &Served) -> Option<Activation> {
    let catalog = served.catalog();
    let record = catalog.appliance();
    record.activation.filter(|last| last.open && last.instance == instance(service, record))
}

/// Begins to use a pool that could not be changed when it was opened.
pub(crate) async fn activate(service: &Service, served: &Served) -> Result<(), ServiceError> {
    if served.adopted() {
        let mut record = served.catalog().appliance().clone();
        record.activation = Some(activation(service, &record));
        served.change(&[], [Edit::Appliance(record)].into()).await?;
    }
    served.reconcile().await
}

/// A pool whose metadata is full to the last block, which another implementation may leave, is served nevertheless, and not
/// activated: nothing at all can be changed in it before it [has grown](grown).
pub(crate) fn unless_full(begun: Result<(), ServiceError>) -> Result<(), ServiceError> {
    match begun {
        Err(ServiceError::Pool(thinp::Error::Metadata(MetadataError::NoMetadataSpace))) => {
            log::warn!("the pool is full to the last metadata block and not activated before it has grown");
            Ok(())
        }
        begun => begun,
    }
}

/// Begins to use a pool that was full to the last metadata block, and is larger now.
pub(crate) async fn grown(service: &Service) -> Result<(), ServiceError> {
    let is_missing = |served: &Served| served.adopted() && own(service, served).is_none();
    if !is_missing(&*service.served()?) {
        return Ok(());
    }
    let work = async |served: &Rc<Served>| {
        if is_missing(served) { unless_full(activate(service, served).await) } else { Ok(()) }
    };
    service.alone(work).await
}

/// Tells whoever comes next that the pool is free.
pub(crate) async fn release(service: &Service, served: &Served) -> Result<(), ServiceError> {
    let Some(activation) = own(service, served).filter(|_| served.adopted() && served.is_changeable()) else {
        return Ok(());
    };
    let appliance = served.catalog().appliance().clone();
    let record = ApplianceRecord { activation: Some(Activation { open: false, ..activation }), ..appliance };
    served.change(&[], [Edit::Appliance(record)].into()).await
}

/// Tells the console if another host takes the pool over.
pub(crate) fn watch(runtime: &Runtime, service: &Rc<Service>, console: Rc<dyn Fn(&str)>) {
    let Some(pool) = service.pool() else { return };
    let service = service.clone();
    runtime.spawner.spawn(async move {
        while !pool.is_taken_over() && !service.is_powering_off() {
            pool.event_after(pool.events()).await;
        }
        if pool.is_taken_over() {
            console(&format!("gossamer: pool=taken-over reason={}", thinp::Error::TakenOver));
        }
    });
}
