//! Deleting devices and releasing the metadata snapshot, in as many transactions as that takes. Between two of them other
//! I/O and other messages have their turn.

use super::{Inner, Needs, Pool};
use crate::control::DeviceId;
use crate::error::Error;
use crate::metadata::Progress;
use alloc::rc::Rc;

/// A device that nobody else may touch, because it is being deleted.
pub(crate) struct Deletion {
    pool: Rc<Inner>,
    device: DeviceId,
}

impl Drop for Deletion {
    fn drop(&mut self) {
        self.pool.deleting.borrow_mut().remove(&self.device);
    }
}

impl Deletion {
    /// Claims a device, which must not be active.
    pub(crate) fn begin(pool: &Rc<Inner>, device: DeviceId) -> Result<Deletion, Error> {
        pool.check_not_reserved(device)?;
        pool.check_not_active(device)?;
        pool.check_not_deleting(device)?;
        pool.deleting.borrow_mut().insert(device);
        Ok(Deletion { pool: pool.clone(), device })
    }
}

impl Pool {
    /// Deletes a device that is not active, and commits. Its data blocks are free once that is done. If it is interrupted,
    /// a large device may be left with some of its mappings: it is to be deleted again.
    pub async fn delete(&self, device: DeviceId) -> Result<(), Error> {
        let pool = self.clone();
        self.detached(async move {
            let begin = async move |inner: Rc<Inner>| Deletion::begin(&inner, device);
            let _deletion = pool.control(Needs::Nothing, begin).await?;
            let step = async move |inner: Rc<Inner>| {
                let progress = inner.change(async || inner.metadata.delete(device).await).await?;
                inner.commit().await.map(|()| progress)
            };
            while pool.control(Needs::Nothing, step).await? == Progress::Partial {}
            Ok(())
        })
        .await
    }

    /// Deleting a device takes more than one transaction.
    pub async fn is_large(&self, device: DeviceId) -> Result<bool, Error> {
        self.0.check_working()?;
        Ok(self.0.metadata.is_large(device).await?)
    }

    /// Takes so much from a device that is not active that one transaction can delete the rest.
    pub async fn shrink_to_delete(&self, device: DeviceId) -> Result<(), Error> {
        let pool = self.clone();
        self.detached(async move { pool.begin_deletion(device).await.map(drop) }).await
    }

    /// Claims a device and makes it so small that one transaction can delete it.
    pub(crate) async fn begin_deletion(&self, device: DeviceId) -> Result<Deletion, Error> {
        let begin = async move |inner: Rc<Inner>| Deletion::begin(&inner, device);
        let deletion = self.control(Needs::Nothing, begin).await?;
        let step = async move |inner: Rc<Inner>| {
            let progress = inner.change(async || inner.metadata.shrink_if_large(device).await).await?;
            if progress == Progress::Partial {
                inner.commit().await?;
            }
            Ok(progress)
        };
        while self.control(Needs::Nothing, step).await? == Progress::Partial {}
        Ok(deletion)
    }

    /// Lets the metadata snapshot go. If it is interrupted, a large one may be left in part: it is to be released again.
    pub async fn release_metadata_snap(&self) -> Result<(), Error> {
        let pool = self.clone();
        self.detached(async move {
            let step = async |inner: Rc<Inner>| {
                let release = async || {
                    let _held = inner.commits.hold().await;
                    inner.metadata.release_metadata_snap(async || inner.data.flush().await).await
                };
                let progress = inner.change(release).await?;
                inner.look_at_space();
                Ok(progress)
            };
            while pool.control(Needs::Nothing, step).await? == Progress::Partial {}
            Ok(())
        })
        .await
    }
}
