//! The job that checks the pool's metadata while it is served: one at a time, from a view, no faster than the settings
//! allow.

use crate::control::told;
use crate::service::{Served, Service, ServiceError};
use alloc::rc::Rc;
use alloc::string::ToString;
use core::cell::RefCell;
use mgmt::{CheckOutcome, CheckProgress, CheckReport, CheckState};
use platform::Runtime;
use platform::time::Instant;
use thinp::metadata::view::View;

/// The check under way, and the last.
#[derive(Default)]
pub(crate) struct CheckJob {
    running: RefCell<Option<Running>>,
    last: RefCell<Option<Ended>>,
}

struct Running {
    since: Instant,
    /// What is checked, once it is open.
    view: Option<Rc<View>>,
}

struct Ended {
    at: Instant,
    since: Instant,
    transaction_id: u64,
    result: Result<CheckReport, ServiceError>,
}

impl CheckJob {
    /// What is known of both.
    pub fn state(&self, now: Instant) -> CheckState {
        let running = self.running.borrow().as_ref().map(|running| CheckProgress {
            seconds: (now - running.since).as_secs(),
            blocks_read: running.view.as_ref().map_or(0, |view| view.blocks_read()),
            blocks_in_use: running.view.as_ref().map_or(0, |view| view.metadata_blocks_in_use()),
        });
        let last = self.last.borrow().as_ref().map(|ended| CheckOutcome {
            seconds_ago: (now - ended.at).as_secs(),
            took_seconds: (ended.at - ended.since).as_secs(),
            transaction_id: ended.transaction_id,
            report: ended.result.as_ref().ok().cloned(),
            error: ended.result.as_ref().err().map(ToString::to_string),
        });
        CheckState { running, last }
    }

    /// Problems by which data is lost that the last check found.
    pub fn damage(&self) -> u64 {
        let last = self.last.borrow();
        last.as_ref().and_then(|ended| ended.result.as_ref().ok()).map_or(0, |report| report.damage)
    }
}

impl Service {
    /// Begins a check, unless one is under way.
    pub(crate) fn start_check(self: &Rc<Self>, runtime: &Runtime) -> Result<(), ServiceError> {
        let served = self.served()?;
        if self.check.running.borrow().is_some() {
            return Ok(());
        }
        let since = runtime.timers.now();
        *self.check.running.borrow_mut() = Some(Running { since, view: None });
        let (service, timers) = (self.clone(), runtime.timers.clone());
        runtime.spawner.spawn(async move {
            let (transaction_id, result) = service.check(&served).await;
            match &result {
                Ok(report) if report.clean => log::info!("the metadata was checked: it is clean"),
                Ok(report) => log::warn!("the metadata was checked: {} damage, {} leaks", report.damage, report.leaks),
                Err(error) => log::warn!("the metadata could not be checked: {error}"),
            }
            let ended = Ended { at: timers.now(), since, transaction_id, result };
            *service.check.last.borrow_mut() = Some(ended);
            *service.check.running.borrow_mut() = None;
        });
        Ok(())
    }

    /// Checks a view of this moment; with the transaction id of that.
    async fn check(&self, served: &Served) -> (u64, Result<CheckReport, ServiceError>) {
        let view = match served.pool.open_view("check", Some(self.settings.check_bytes_per_second)).await {
            Ok(view) => Rc::new(view),
            Err(error) => return (served.pool.status().transaction_id, Err(error.into())),
        };
        if let Some(running) = &mut *self.check.running.borrow_mut() {
            running.view = Some(view.clone());
        }
        let report = served.pool.check_view(&view).await;
        (view.transaction_id(), report.map(|report| told(&report)).map_err(ServiceError::from))
    }
}
