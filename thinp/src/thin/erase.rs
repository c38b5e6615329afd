//! Erasing a device: the data blocks that it maps are overwritten where they lie, and only then unmapped, so that what they
//! held is gone from the data disk, too.

use super::{Device, Thin};
use crate::control::DeviceId;
use crate::error::Error;
use crate::metadata::VirtualBlock;
use crate::pool::{Inner, Needs, Pool};
use alloc::rc::Rc;

/// Most sectors that are overwritten in one step, between which other I/O goes on; but at least a block.
const STEP_SECTORS: u64 = 32 << 10;

/// A device that is being erased. Until this is dropped no snapshot is taken of it, no metadata snapshot either, and no block
/// of it shared: what is overwritten is its own.
pub struct Erasure {
    device: Rc<Device>,
}

impl Drop for Erasure {
    fn drop(&mut self) {
        self.device.pool.erasing.borrow_mut().remove(&self.device.id);
    }
}

impl Thin {
    /// Begins to erase all that the device maps; nothing is changed yet. [`Error::SharesBlocks`] if another device or the
    /// metadata snapshot maps some of it, too. Nobody may write to the device until it is erased: the caller sees to that.
    pub async fn begin_erasure(&self) -> Result<Erasure, Error> {
        let (device, pool) = (&self.0, Pool(self.0.pool.clone()));
        let claimed = device.clone();
        let claim = async move |inner: Rc<Inner>| {
            inner.check_not_reserved(claimed.id)?;
            inner.check_not_erasing(claimed.id)?;
            inner.erasing.borrow_mut().insert(claimed.id);
            Ok(Erasure { device: claimed })
        };
        let erasure = pool.control(Needs::Nothing, claim).await?;
        // Who was sharing blocks has done so.
        drop(device.quiesce().await);
        let view = pool.open_view("erasing a device", None).await?;
        let mapped = device.mapped_blocks();
        let alone = pool.freed_by(&view, &[device.id]).await?;
        match mapped.saturating_sub(alone) {
            0 => Ok(erasure),
            blocks => Err(Error::SharesBlocks { device: device.id, blocks }),
        }
    }
}

impl Erasure {
    /// Data blocks that are left to erase.
    pub fn left_blocks(&self) -> u64 {
        self.device.mapped_blocks()
    }

    /// Erases some blocks; false if there are none left. It is durable with the next flush of the device.
    pub async fn step(&self) -> Result<bool, Error> {
        let (device, pool) = (&self.device, &self.device.pool);
        pool.check_changeable()?;
        let Some(begin) = pool.metadata.next_mapped(device.id, VirtualBlock(0)).await? else { return Ok(false) };
        let blocks = (STEP_SECTORS / pool.block_sectors).max(1);
        let step = device.clone().erase_step(begin, VirtualBlock(begin.0.saturating_add(blocks)));
        pool.runtime.spawner.spawn(step).await.unwrap_or(Err(Error::Closed))?;
        Ok(true)
    }
}

impl Device {
    fn mapped_blocks(&self) -> u64 {
        self.pool.metadata.details(self.id).map_or(0, |details| details.mapped_blocks)
    }

    async fn erase_step(self: Rc<Self>, begin: VirtualBlock, end: VirtualBlock) -> Result<(), Error> {
        let lock = self.lock(begin.0..end.0).await?;
        self.in_flight.drain().await;
        let block_sectors = self.pool.block_sectors;
        let mut at = begin;
        while let Some(run) = self.pool.metadata.mapped_range(self.id, at, end).await? {
            let blocks = run.end.0.saturating_sub(run.begin.0);
            let zeroed = self.zero(self.block_sector(run.data_begin), blocks.saturating_mul(block_sectors)).await?;
            let sector = run.begin.0.saturating_mul(block_sectors);
            zeroed.map_err(|source| Error::Io { device: self.id, sector, source })?;
            at = run.end;
        }
        self.unmap(begin, end).await?;
        drop(lock);
        self.freed_blocks().await
    }
}

impl Inner {
    /// A metadata snapshot would share their blocks.
    pub(crate) fn check_none_erasing(&self) -> Result<(), Error> {
        self.erasing.borrow().first().map_or(Ok(()), |device| Err(Error::Erasing(*device)))
    }

    /// Its blocks may be shared.
    pub(crate) fn check_not_erasing(&self, device: DeviceId) -> Result<(), Error> {
        if self.erasing.borrow().contains(&device) { Err(Error::Erasing(device)) } else { Ok(()) }
    }
}
