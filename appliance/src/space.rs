//! Space accounting, kept until the pool changes.

use crate::catalog::VolumeRecord;
use crate::service::{Service, ServiceError};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use platform::sync::Semaphore;
use thinp::metadata::space::DeviceSpace;

/// What was last found, and of which state.
pub(crate) struct SpaceCache {
    found: RefCell<Option<(u64, Rc<Vec<DeviceSpace>>)>>,
    /// One at a time: who comes meanwhile has most often the same question.
    turns: Semaphore,
}

impl Default for SpaceCache {
    fn default() -> SpaceCache {
        SpaceCache { found: RefCell::default(), turns: Semaphore::new(1) }
    }
}

impl SpaceCache {
    /// What each device maps, and what it has alone: now, or what was found before if nothing changed since. With the volumes of
    /// the same moment, by name: later their numbers may be given to others.
    pub async fn get(&self, service: &Service) -> Result<(Vec<VolumeRecord>, Rc<Vec<DeviceSpace>>), ServiceError> {
        let _turn = self.turns.acquire(1).await;
        let changes = service.changes().await;
        let served = service.current().await?;
        let volumes = served.catalog().by_name(None, usize::MAX).cloned().collect();
        let known = |state| self.found.borrow().as_ref().filter(|(of, _)| *of == state).map(|(_, found)| found.clone());
        if let Some(found) = served.pool.committed_state().and_then(known) {
            return Ok((volumes, found));
        }
        let view = served.pool.open_view("space accounting", None).await?;
        drop(changes);
        let found = Rc::new(served.pool.space(&view).await?);
        *self.found.borrow_mut() = Some((view.commit(), found.clone()));
        Ok((volumes, found))
    }
}
