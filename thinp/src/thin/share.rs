//! Copying blocks by sharing them (reference 6.3): the metadata changes, no data moves.

use super::discard::STEP_BLOCKS;
use super::lock::RangeLock;
use super::{Device, Thin, range};
use crate::error::Error;
use crate::metadata::{Source, VirtualBlock};
use alloc::rc::Rc;
use core::ops::Range;
use futures_util::future::join;

/// Where a copy comes from.
#[derive(Clone, Copy)]
pub struct CopySource<'a> {
    /// The device.
    pub thin: &'a Thin,
    /// The first sector.
    pub sector: u64,
    /// Its tree must stay as it is, for somebody knows by its root what the device holds. Then nothing is shared that it
    /// does not see as shared already.
    pub stays: bool,
}

impl<'a> CopySource<'a> {
    /// A device that may change.
    pub fn new(thin: &'a Thin, sector: u64) -> CopySource<'a> {
        CopySource { thin, sector, stays: false }
    }
}

impl Thin {
    /// Makes `sectors` from `sector` on the same as those of another device, `source`: both share the data blocks from then
    /// on, and what the source has not mapped is unmapped. What was acknowledged before the call is in the copy, what is
    /// written after it is not.
    ///
    /// Only whole blocks of two devices of one pool that have no external origin can be shared, and only what no other
    /// device, or older state of one, shares: no device maps a data block twice. Else it is [`Error::NotShareable`], and some
    /// of the blocks may have been shared. It takes no data block, so it works out of data space. Durable with the next
    /// flush of this device.
    pub async fn share(&self, sector: u64, source: CopySource<'_>, sectors: u64) -> Result<(), Error> {
        let (device, from_device) = (&self.0, &source.thin.0);
        device.check_shareable(from_device)?;
        let (to, from) = (device.whole_blocks(sector, sectors)?, device.whole_blocks(source.sector, sectors)?);
        let blocks = to.end - to.start;
        for n in 0..blocks.div_ceil(STEP_BLOCKS) {
            let first = n * STEP_BLOCKS;
            let count = STEP_BLOCKS.min(blocks - first);
            device.pool.check_changeable()?;
            let step = Step { from: from.start + first, to: to.start + first, blocks: count, stays: source.stays };
            let step = device.clone().share_step(from_device.clone(), step);
            device.pool.runtime.spawner.spawn(step).await.unwrap_or(Err(Error::Closed))?;
        }
        Ok(())
    }
}

/// Blocks that are shared at once.
struct Step {
    from: u64,
    to: u64,
    blocks: u64,
    stays: bool,
}

impl Device {
    fn check_shareable(&self, source: &Device) -> Result<(), Error> {
        if !Rc::ptr_eq(&self.pool, &source.pool) {
            return Err(Error::NotShareable("the devices are of different pools"));
        }
        if self.id == source.id {
            return Err(Error::NotShareable("a device maps no data block twice"));
        }
        if self.origin.is_some() || source.origin.is_some() {
            return Err(Error::NotShareable("what is unmapped in a device with an external origin is not empty"));
        }
        Ok(())
    }

    /// The blocks that sectors are, if they are whole ones.
    fn whole_blocks(&self, sector: u64, sectors: u64) -> Result<Range<u64>, Error> {
        let (sectors, block_sectors) = (range(sector, sectors)?, self.pool.block_sectors);
        if !sectors.start.is_multiple_of(block_sectors) || !sectors.end.is_multiple_of(block_sectors) {
            return Err(Error::NotShareable("the sectors are no whole blocks of the pool"));
        }
        Ok(sectors.start / block_sectors..sectors.end / block_sectors)
    }

    /// Shares some blocks, while nothing is under way on them on either side.
    async fn share_step(self: Rc<Self>, source: Rc<Device>, step: Step) -> Result<(), Error> {
        let Step { from, to, blocks, stays } = step;
        let locks = self.lock_with(to..to + blocks, &source, from..from + blocks).await?;
        self.pool.check_not_erasing(self.id).and_then(|()| self.pool.check_not_erasing(source.id))?;
        join(source.in_flight.drain(), self.in_flight.drain()).await;
        let mut done = 0;
        while done < blocks {
            let (from, to, left) = (from + done, to + done, blocks - done);
            let mapped = self.pool.metadata.next_mapped(source.id, VirtualBlock(from)).await?;
            let gap = mapped.map_or(left, |mapped| (mapped.0 - from).min(left));
            if gap > 0 {
                self.unmap(VirtualBlock(to), VirtualBlock(to + gap)).await?;
                done += gap;
                continue;
            }
            let (from, to) = (VirtualBlock(from), VirtualBlock(to));
            let source = Source { device: source.id, first: from, stays };
            let share = async || self.pool.metadata.share(source, self.id, to, left).await;
            let shared = self.pool.change_freeing(share, |shared| &mut shared.freed).await?;
            if shared.blocks == 0 {
                return Err(Error::NotShareable(
                    "others share them, the source must stay as it is, or metadata blocks run short",
                ));
            }
            done += shared.blocks;
        }
        drop(locks);
        self.freed_blocks().await
    }

    /// Locks blocks of this device and of another, first those of the one with the lower id, so that two who copy both ways do
    /// not wait for each other.
    async fn lock_with<'l>(
        &'l self,
        mine: Range<u64>,
        source: &'l Device,
        theirs: Range<u64>,
    ) -> Result<[RangeLock<'l>; 2], Error> {
        let ((first, first_range), (second, second_range)) =
            if self.id < source.id { ((self, mine), (source, theirs)) } else { ((source, theirs), (self, mine)) };
        let lock = first.lock(first_range).await?;
        Ok([lock, second.lock(second_range).await?])
    }
}
