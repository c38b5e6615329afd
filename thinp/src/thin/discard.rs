//! Discards: whole blocks are unmapped; the data disk is told later of those that nothing refers to any more
//! (reference 7.6).

use super::{Device, Thin, range};
use crate::control::{DiscardPolicy, Mode};
use crate::error::Error;
use crate::metadata::VirtualBlock;
use alloc::rc::Rc;

/// Most blocks whose mappings are changed in one step, between which other I/O goes on.
pub(super) const STEP_BLOCKS: u64 = 1024;

impl Thin {
    /// As [`Thin::unmap`], but in read-only mode it succeeds and does nothing, as in dm-thin.
    pub async fn discard(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        match self.unmap(sector, sectors).await {
            Err(Error::Refused(Mode::ReadOnly)) => Ok(()),
            unmapped => unmapped,
        }
    }

    /// Unmaps the whole blocks within the sectors; partial blocks at the ends keep their contents. Unmapped blocks read
    /// as zeroes, or as the external origin: who promises that must not take a discard for done that does nothing. So in
    /// read-only mode this fails with [`Error::Refused`] if anything is mapped there.
    pub async fn unmap(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        let (device, block_sectors) = (&self.0, self.0.pool.block_sectors);
        device.pool.check_working()?;
        if device.pool.discard_policy() == DiscardPolicy::Ignore {
            return Err(Error::DiscardsIgnored);
        }
        let sectors = range(sector, sectors)?;
        let (mut next, end) = (sectors.start.div_ceil(block_sectors), sectors.end / block_sectors);
        while next < end {
            let Some(mapped) = device.pool.metadata.next_mapped(device.id, VirtualBlock(next)).await? else { break };
            if mapped.0 >= end {
                break;
            }
            if device.pool.mode() == Mode::ReadOnly {
                return Err(device.pool.state.refusal());
            }
            let step_end = mapped.0.saturating_add(STEP_BLOCKS).min(end);
            let step = device.clone().discard_step(mapped, VirtualBlock(step_end));
            device.pool.runtime.spawner.spawn(step).await.unwrap_or(Err(Error::Closed))?;
            next = step_end;
        }
        Ok(())
    }
}

impl Device {
    async fn discard_step(self: Rc<Self>, begin: VirtualBlock, end: VirtualBlock) -> Result<(), Error> {
        let lock = self.lock(begin.0..end.0).await?;
        // What is under way on these blocks must not reach them after they were freed.
        self.in_flight.drain().await;
        self.unmap(begin, end).await?;
        drop(lock);
        self.freed_blocks().await
    }

    /// Unmaps blocks. The caller holds the lock on them, and nothing is under way there.
    pub(super) async fn unmap(&self, begin: VirtualBlock, end: VirtualBlock) -> Result<(), Error> {
        let mut from = Some(begin);
        while let Some(next) = from {
            let remove = async || self.pool.metadata.remove_range(self.id, next, end, STEP_BLOCKS).await;
            let removed = self.pool.change_freeing(remove, |removed| &mut removed.freed).await?;
            from = removed.next;
        }
        Ok(())
    }

    /// After blocks were freed: whoever waits for space gets it with the commit.
    pub(super) async fn freed_blocks(&self) -> Result<(), Error> {
        if matches!(self.pool.mode(), Mode::OutOfDataSpace | Mode::OutOfMetadataSpace) {
            self.pool.commit().await?;
        }
        self.pool.bound_passdown().await
    }
}
