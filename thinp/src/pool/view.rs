//! Views of an open pool: who reads a moment of it while it goes on.

use super::{Inner, Pool};
use crate::control::{DeviceId, Mode, ViewInfo, ViewsInfo};
use crate::error::Error;
use crate::metadata::check::Report;
use crate::metadata::space::DeviceSpace;
use crate::metadata::view::{Shown, VIEWS_MAX, View};
use crate::metadata::{self, DataBlock, MetadataError};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use platform::block::{Class, Flow, SECTOR_BYTES};
use platform::buf::Buf;

impl Pool {
    /// Opens a view of this moment; commits first if anything changed. `holder` tells everybody who has it. With
    /// `bytes_per_second` it never reads faster, and has one request under way at a time.
    pub async fn open_view(&self, holder: &str, bytes_per_second: Option<u64>) -> Result<View, Error> {
        let (inner, holder) = (self.0.clone(), holder.to_string());
        self.detached(async move {
            inner.check_working()?;
            inner.open_view(holder, bytes_per_second).await
        })
        .await
    }

    /// Checks all that a view shows.
    pub async fn check_view(&self, view: &View) -> Result<Report, Error> {
        let report = view.check(self.0.check_memory_bytes()).await;
        self.0.seen(report).await
    }

    /// What each device maps, and what it has alone, at the moment of a view.
    pub async fn space(&self, view: &View) -> Result<Vec<DeviceSpace>, Error> {
        let space = view.space(self.0.check_memory_bytes()).await;
        self.0.seen(space).await
    }

    /// Data blocks that deleting these devices, all of them, would have freed at the moment of a view.
    pub async fn freed_by(&self, view: &View, devices: &[DeviceId]) -> Result<u64, Error> {
        let freed = view.freed_by(devices, self.0.check_memory_bytes()).await;
        self.0.seen(freed).await
    }

    /// Reads a data block, from `sector` of it on, in the background class: for who knows from a view where data is, and sees to
    /// it that the device is neither written to nor deleted. The buffer, of whole sectors, may reach into the blocks behind.
    pub async fn read_data(&self, block: DataBlock, sector: u64, buf: Buf) -> (Result<(), Error>, Buf) {
        let inner = &self.0;
        if let Err(error) = inner.check_working() {
            return (Err(error), buf);
        }
        let disk = inner.data.with_flow(Flow { class: Class::Background, volume: 0 });
        let sector = block.0.saturating_mul(inner.block_sectors).saturating_add(sector);
        let (read, buf) = disk.read(sector, buf).await;
        let failed = |source| Error::DataIo { sector, source };
        match inner.check_working() {
            Ok(()) => (read.map_err(failed), buf),
            Err(error) => (Err(error), buf),
        }
    }

    /// Most bytes that one [`Pool::read_data`] can read.
    pub fn data_transfer_bytes_max(&self) -> u64 {
        self.0.data.limits().transfer_sectors_max.max(1).saturating_mul(SECTOR_BYTES as u64)
    }

    /// Which commit a view would show that is opened now ([`View::commit`]); none if something is uncommitted.
    pub fn committed_state(&self) -> Option<u64> {
        let metadata = &self.0.metadata;
        (!metadata.any_changes()).then(|| metadata.commits())
    }

    /// The views that are open or ending, and what they hold back.
    pub fn views(&self) -> ViewsInfo {
        let (metadata, now) = (&self.0.metadata, self.0.runtime.timers.now());
        let info = |Shown { holder, since, ending, held_back_blocks }| ViewInfo {
            holder,
            age: now - since,
            ending: ending.map(|ending| now - ending),
            held_back_blocks,
        };
        let views = metadata.views().into_iter().map(info).collect();
        ViewsInfo { views, views_max: VIEWS_MAX, held_back_blocks: metadata.held_back_blocks() }
    }
}

impl Inner {
    /// What a view showed, if nobody else can have overwritten it meanwhile.
    async fn seen<T>(&self, result: metadata::Result<T>) -> Result<T, Error> {
        if self.mode() < Mode::ReadOnly && self.metadata.check_owner().await == Err(MetadataError::TakenOver) {
            return Err(self.taken_over());
        }
        if self.state.is_taken_over() { Err(Error::TakenOver) } else { Ok(result?) }
    }

    async fn open_view(self: &Rc<Self>, holder: String, bytes_per_second: Option<u64>) -> Result<View, Error> {
        let held = self.commits.hold().await;
        if self.mode() < Mode::ReadOnly {
            self.commit_held(&held).await?;
        }
        // What changed since then is committed by the opening itself.
        let opened = self.metadata.open_view(&holder, bytes_per_second, async || self.data.flush().await).await;
        match opened {
            Ok(view) => Ok(view),
            Err(error) => Err(self.failed(error).await),
        }
    }
}
