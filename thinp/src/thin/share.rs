//! Copying blocks by sharing them (reference 6.3): the metadata changes, no data moves.

use super::discard::STEP_BLOCKS;
use super::lock::RangeLock;
use super::{Device, Thin, range};
use crate::error::Error;
use crate::metadata::VirtualBlock;
use alloc::rc::Rc;
use core::ops::Range;
use futures_util::future::join;

impl Thin {
    /// Makes `sectors` from `sector` on the same as those of another device, `source`, from `source_sector` on: both share
    /// the data blocks from then on, and what `source` has not mapped is unmapped. What was acknowledged before the call is
    /// in the copy, what is written after it is not.
    ///
    /// Only whole blocks of two devices of one pool that have no external origin can be shared, and only what no other
    /// device, or older state of one, shares: no device maps a data block twice. Else it is [`Error::NotShareable`], and some
    /// of the blocks may have been shared. It takes no data block, so it works out of data space. Durable with the next
    /// flush of this device.
    pub async fn share(&self, sector: u64, source: &Thin, source_sector: u64, sectors: u64) -> Result<(), Error> {
        let (device, source) = (&self.0, &source.0);
        device.check_shareable(source)?;
        let (to, from) = (device.whole_blocks(sector, sectors)?, device.whole_blocks(source_sector, sectors)?);
        let blocks = to.end - to.start;
        for n in 0..blocks.div_ceil(STEP_BLOCKS) {
            let first = n * STEP_BLOCKS;
            let count = STEP_BLOCKS.min(blocks - first);
            device.pool.check_changeable()?;
            let step = device.clone().share_step(source.clone(), from.start + first, to.start + first, count);
            device.pool.runtime.spawner.spawn(step).await.unwrap_or(Err(Error::Closed))?;
        }
        Ok(())
    }
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
    async fn share_step(self: Rc<Self>, source: Rc<Device>, from: u64, to: u64, blocks: u64) -> Result<(), Error> {
        let locks = self.lock_with(to..to + blocks, &source, from..from + blocks).await;
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
            let share = async || self.pool.metadata.share(source.id, from, self.id, to, left).await;
            let shared = self.pool.change_freeing(share, |shared| &mut shared.freed).await?;
            if shared.blocks == 0 {
                return Err(Error::NotShareable("others share them, or metadata blocks run short"));
            }
            done += shared.blocks;
        }
        drop(locks);
        self.freed_blocks().await
    }

    /// Locks blocks of this device and of another, first those of the one with the lower id, so that two who copy both ways do
    /// not wait for each other.
    async fn lock_with<'l>(&'l self, mine: Range<u64>, source: &'l Device, theirs: Range<u64>) -> [RangeLock<'l>; 2] {
        let ((first, first_range), (second, second_range)) =
            if self.id < source.id { ((self, mine), (source, theirs)) } else { ((source, theirs), (self, mine)) };
        let lock = first.locks.lock(first_range).await;
        [lock, second.locks.lock(second_range).await]
    }
}
