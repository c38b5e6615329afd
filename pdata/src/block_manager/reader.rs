//! Reading a former commit, beside whoever changes the same disk.

use super::BlockManager;
use crate::Result;
use crate::block::BLOCK_BYTES;
use crate::pins::{Pin, Reading};
use alloc::rc::Rc;
use core::cell::Cell;
use core::time::Duration;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::time::{Instant, Timers};

/// Most blocks in one request of who reads at a pace: others wait for it no longer than for a request of their own.
pub(super) const PACED_BLOCKS_MAX: usize = 4;

/// How fast a reader reads at most: one request after the other, of 16 KiB at most, and never more than the rate allows,
/// however long it had nothing to read before. A shorter request counts as one of 16 KiB: a disk is held up by it as long.
pub struct Pace {
    timers: Timers,
    bytes_per_second: u64,
    /// When the next request may be sent.
    next: Cell<Instant>,
}

impl Pace {
    /// At most so many bytes a second, and at least a block.
    pub fn new(timers: &Timers, bytes_per_second: u64) -> Pace {
        let bytes_per_second = bytes_per_second.max(BLOCK_BYTES as u64);
        Pace { timers: timers.clone(), bytes_per_second, next: Cell::new(timers.now()) }
    }

    /// Waits until so many blocks may be read.
    async fn wait(&self, blocks: usize) {
        let now = self.timers.now();
        let at = self.next.get().max(now);
        let bytes = (blocks.max(PACED_BLOCKS_MAX) as u64).saturating_mul(BLOCK_BYTES as u64);
        let nanos = bytes.saturating_mul(1_000_000_000) / self.bytes_per_second;
        self.next.set(at + Duration::from_nanos(nanos));
        if at > now {
            self.timers.sleep_until(at).await;
        }
    }
}

/// What a reader of a former commit has beside its disk and cache.
pub(super) struct Reader {
    pin: Rc<Pin>,
    pace: Option<Pace>,
    blocks_read: Cell<u64>,
}

impl BlockManager {
    /// Reads what `pin` holds, past the cache of who changes the disk: it would find little in that, and push the rest out.
    pub fn reader(disk: Disk, bufs: BufPool, cache_blocks: usize, pin: Rc<Pin>, pace: Option<Pace>) -> BlockManager {
        let reader = Some(Reader { pin, pace, blocks_read: Cell::new(0) });
        BlockManager { reader, ..BlockManager::new(disk, bufs, cache_blocks) }
    }

    /// Blocks that a reader has read so far, from the disk.
    pub fn blocks_read(&self) -> u64 {
        self.reader.as_ref().map_or(0, |reader| reader.blocks_read.get())
    }

    /// What is read is read at a pace.
    pub(super) fn is_paced(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.pace.is_some())
    }

    /// Waits until a paced reader may read so many blocks.
    pub(super) async fn wait_turn(&self, blocks: usize) {
        if let Some(pace) = self.reader.as_ref().and_then(|reader| reader.pace.as_ref()) {
            pace.wait(blocks).await;
        }
    }

    /// A read of so many blocks is about to be sent; a reader's pin stays at least until what is returned is dropped.
    pub(super) fn begin_read(&self, blocks: usize) -> Result<Option<Reading>> {
        let Some(reader) = &self.reader else { return Ok(None) };
        reader.blocks_read.set(reader.blocks_read.get().saturating_add(blocks as u64));
        reader.pin.begin_read().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TransactionManager;
    use crate::block_manager::Batch;
    use alloc::vec::Vec;
    use platform::mem::MemDisk;
    use platform::random::Seeded;
    use platform::simulated;
    use platform::task::Executor;

    fn run(test: impl AsyncFnOnce(Timers) + 'static) {
        let random = Rc::new(Seeded::from_u64(1));
        simulated::run(&Executor::new(), random, 1 << 20, async move |runtime| test(runtime.timers).await);
    }

    /// A request of up to four blocks takes an eighth of a second.
    const RATE: u64 = 32 * BLOCK_BYTES as u64;

    #[test]
    fn requests_are_no_closer_than_the_pace_allows() {
        run(async |timers| {
            let (begun, pace) = (timers.now(), Pace::new(&timers, RATE));
            for (blocks, millis) in [(1, 0), (4, 125), (8, 250), (1, 500)] {
                pace.wait(blocks).await;
                assert_eq!(timers.now() - begun, Duration::from_millis(millis), "{blocks} blocks");
            }
            // Time in which nothing was read is not made up for.
            timers.sleep(Duration::from_secs(10)).await;
            let rested = timers.now();
            for millis in [0, 125] {
                pace.wait(4).await;
                assert_eq!(timers.now() - rested, Duration::from_millis(millis));
            }
        });
    }

    #[test]
    fn what_is_read_at_a_pace_is_read_in_small_requests_and_counted() {
        run(async |timers| {
            let (disk, bufs) = (Disk::new(MemDisk::new(200 * 8)), BufPool::new(1 << 20));
            let tm = TransactionManager::create(BlockManager::new(disk.clone(), bufs.clone(), 100), 200).await.unwrap();
            tm.close().await.unwrap();
            tm.blocks().write_out().await.unwrap();
            tm.committed();
            let numbers: Vec<u64> = (0..12).collect();
            for (rate, millis) in [(None, 0), (Some(RATE), 250)] {
                let pace = rate.map(|rate| Pace::new(&timers, rate));
                let reader = BlockManager::reader(disk.clone(), bufs.clone(), 0, tm.pin().await.unwrap(), pace);
                let (begun, mut batch) = (timers.now(), Batch::default());
                reader.read_batch_raw(&numbers, &mut batch).await;
                assert_eq!(timers.now() - begun, Duration::from_millis(millis));
                assert!((0..12).all(|index| batch.get(index).is_ok()));
                assert_eq!(reader.blocks_read(), 12);
            }
            assert_eq!(tm.blocks().blocks_read(), 0, "who changes the disk counts nothing");
        });
    }
}
