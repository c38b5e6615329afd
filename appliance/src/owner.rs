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
use thinp::control::Mode;

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

/// Begins to use a pool that could not be changed when it was opened.
pub(crate) async fn activate(service: &Service, served: &Served) -> Result<(), ServiceError> {
    if !served.adopted() {
        return Ok(());
    }
    let mut record = served.catalog().appliance().clone();
    record.activation = Some(activation(service, &record));
    served.change(&[], [Edit::Appliance(record)].into()).await
}

/// Tells whoever comes next that the pool is free.
pub(crate) async fn release(served: &Served) -> Result<(), ServiceError> {
    let mut record = served.catalog().appliance().clone();
    let open = record.activation.filter(|activation| activation.open);
    let Some(activation) = open.filter(|_| served.adopted() && served.pool.status().mode <= Mode::OutOfDataSpace)
    else {
        return Ok(());
    };
    record.activation = Some(Activation { open: false, ..activation });
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
