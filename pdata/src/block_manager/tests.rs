//! What reaches the disk, how much at once, and what stays in the cache.

use super::*;
use crate::space_map::BITMAP;
use core::pin::pin;
use platform::block::{BlockDevice, Io, Limits};
use platform::layers::ShortTransfers;
use platform::mem::MemDisk;
use platform::task::block_on_ready;

/// Notes the requests, and fails those to one sector.
#[derive(Clone)]
struct Noting {
    disk: MemDisk,
    /// The first block of each and how many; a flush has none.
    requests: Rc<RefCell<Vec<(u64, u64)>>>,
    bad_sector: Rc<Cell<Option<u64>>>,
}

impl BlockDevice for Noting {
    fn limits(&self) -> Limits {
        self.disk.limits()
    }

    fn submit(&self, io: Io) {
        let (sector, sectors) = (io.request().sector, io.request().sectors);
        self.requests.borrow_mut().push((sector / BLOCK_SECTORS, sectors / BLOCK_SECTORS));
        match self.bad_sector.get().filter(|bad| (sector..sector + sectors).contains(bad)) {
            Some(sector) => {
                let op = io.request().op;
                io.complete(Err(IoError::Device { op, sector }));
            }
            None => self.disk.submit(io),
        }
    }
}

fn disk() -> MemDisk {
    MemDisk::new(1000 * BLOCK_SECTORS)
}

/// The blocks of a disk that notes what is asked of it.
fn noted(pool_bytes: usize, cache_blocks: usize) -> (Noting, BlockManager) {
    let device = Noting { disk: disk(), requests: Rc::default(), bad_sector: Rc::default() };
    let blocks = BlockManager::new(Disk::new(device.clone()), BufPool::new(pool_bytes), cache_blocks);
    (device, blocks)
}

/// Completes nothing until it is told to.
#[derive(Clone)]
struct Waiting {
    disk: MemDisk,
    requests: Rc<RefCell<Vec<Io>>>,
}

impl BlockDevice for Waiting {
    fn limits(&self) -> Limits {
        self.disk.limits()
    }

    fn submit(&self, io: Io) {
        self.requests.borrow_mut().push(io);
    }
}

impl Waiting {
    /// Completes all that waits whenever the future waits for it. How many requests that was each time.
    fn answered(&self, future: impl Future<Output = ()>) -> Vec<usize> {
        let (mut future, mut together) = (pin!(future), Vec::new());
        while future.as_mut().now_or_never().is_none() {
            let requests = self.requests.take();
            assert!(!requests.is_empty(), "it waits for nothing");
            together.push(requests.len());
            requests.into_iter().for_each(|io| self.disk.submit(io));
        }
        together
    }
}

#[test]
fn neighbours_are_written_together_and_stay_dirty_together() {
    let (Noting { disk, requests, bad_sector }, blocks) = noted(1 << 20, 100);
    for number in (100..120).chain([130]).rev() {
        blocks.create(number, &BITMAP, &[number as u8; BLOCK_BYTES]);
    }
    bad_sector.set(Some(110 * BLOCK_SECTORS));
    assert!(matches!(block_on_ready(blocks.write_out()), Err(Error::Io { block: 108, action: "written", .. })));
    assert_eq!(requests.take(), [(100, 8), (108, 8)]);
    bad_sector.set(None);
    block_on_ready(blocks.write_out()).unwrap();
    assert_eq!(requests.take(), [(108, 8), (116, 4), (130, 1)]);
    block_on_ready(blocks.write_out()).unwrap();
    assert!(requests.take().is_empty(), "nothing is dirty any more");
    for number in (100..120).chain([130]) {
        let bytes = disk.peek(number * BLOCK_BYTES as u64, BLOCK_BYTES);
        BITMAP.verify(bytes.first_chunk().unwrap(), number).unwrap();
        assert_eq!(bytes[BLOCK_BYTES - 1], number as u8);
    }
}

#[test]
fn a_write_takes_a_quarter_of_a_small_pool() {
    let (Noting { requests, .. }, blocks) = noted(64 << 10, 100);
    for number in 100..110 {
        blocks.create(number, &BITMAP, &[0; BLOCK_BYTES]);
    }
    block_on_ready(blocks.write_out()).unwrap();
    assert_eq!(requests.take(), [(100, 4), (104, 4), (108, 2)]);
}

#[test]
fn a_block_that_is_made_anew_takes_the_place_of_the_old_one() {
    let (Noting { disk, requests, .. }, blocks) = noted(1 << 20, 100);
    for (number, byte) in [(100, 1), (110, 1), (100, 2)] {
        blocks.create(number, &BITMAP, &[byte; BLOCK_BYTES]);
    }
    assert_eq!(blocks.cached_blocks(), 2);
    block_on_ready(blocks.write_out()).unwrap();
    assert_eq!(requests.take(), [(100, 1), (110, 1)]);
    assert_eq!(disk.peek(101 * BLOCK_BYTES as u64 - 1, 1), [2]);
}

#[test]
fn a_block_that_somebody_looks_at_is_copied_and_another_just_moves() {
    let blocks = BlockManager::new(Disk::new(disk()), BufPool::new(1 << 20), 100);
    for number in [100, 101] {
        blocks.create(number, &BITMAP, &[7; BLOCK_BYTES]);
    }
    block_on_ready(blocks.write_out()).unwrap();
    blocks.relocate(blocks.try_read(100, &BITMAP).unwrap(), 200).bytes_mut().fill(8);
    assert_eq!(blocks.cached_blocks(), 2);
    let held = blocks.try_read(101, &BITMAP).unwrap();
    blocks.relocate(held.clone(), 201).bytes_mut().fill(8);
    assert_eq!((held.number(), held.bytes()[0]), (101, 7));
    assert_eq!(blocks.cached_blocks(), 3);
}

#[test]
fn no_write_is_larger_than_the_disk_takes() {
    let (device, _) = noted(1 << 20, 100);
    let short = ShortTransfers::new(Rc::new(device.clone()), 3 * BLOCK_SECTORS);
    let blocks = BlockManager::new(Disk::new(short), BufPool::new(1 << 20), 100);
    for number in 100..107 {
        blocks.create(number, &BITMAP, &[0; BLOCK_BYTES]);
    }
    block_on_ready(blocks.write_out()).unwrap();
    assert_eq!(device.requests.take(), [(100, 3), (103, 3), (106, 1)]);
}

#[test]
fn the_last_write_is_waited_for() {
    let (Noting { bad_sector, .. }, blocks) = noted(1 << 20, 100);
    blocks.create(100, &BITMAP, &[0; BLOCK_BYTES]);
    bad_sector.set(Some(100 * BLOCK_SECTORS));
    assert!(matches!(block_on_ready(blocks.write_out()), Err(Error::Io { block: 100, action: "written", .. })));
}

#[test]
fn no_more_than_64_requests_are_under_way() {
    let device = Waiting { disk: disk(), requests: Rc::default() };
    let blocks = BlockManager::new(Disk::new(device.clone()), BufPool::new(1 << 20), 100);
    // None is the neighbour of another.
    let numbers: Vec<u64> = (0..70).map(|number| 2 * number).collect();
    for number in &numbers {
        blocks.create(*number, &BITMAP, &[0; BLOCK_BYTES]);
    }
    assert_eq!(device.answered(async { blocks.write_out().await.unwrap() }), [64, 6]);
    let mut batch = Batch::default();
    assert_eq!(device.answered(blocks.read_batch(&numbers, &BITMAP, &mut batch)), [64, 6]);
}

#[test]
fn changed_blocks_are_written_when_they_are_three_quarters_of_the_cache() {
    let (Noting { requests, .. }, blocks) = noted(1 << 20, 16);
    for number in 100..112 {
        block_on_ready(blocks.make_room()).unwrap();
        blocks.create(number, &BITMAP, &[0; BLOCK_BYTES]);
    }
    assert_eq!(requests.take(), []);
    block_on_ready(blocks.make_room()).unwrap();
    assert_eq!(requests.take(), [(100, 8), (108, 4)]);
}

/// The clock's hand stops at the first block that was not used since it last passed, and never at one that is held.
#[test]
fn a_full_cache_keeps_what_is_held_and_what_was_used_lately() {
    let blocks = BlockManager::new(Disk::new(disk()), BufPool::new(1 << 20), 16);
    block_on_ready(async {
        for number in 0..22 {
            blocks.write_raw(number, &BITMAP, &[0; BLOCK_BYTES]).await.unwrap();
        }
        let held = blocks.read(0, &BITMAP).await.unwrap();
        // The last of these takes the place of the first that is not held, after all were passed.
        for number in 1..17 {
            blocks.read(number, &BITMAP).await.unwrap();
        }
        blocks.read(5, &BITMAP).await.unwrap();
        for number in 17..22 {
            blocks.read(number, &BITMAP).await.unwrap();
        }
        let gone: Vec<u64> = (0..22).filter(|number| blocks.try_read(*number, &BITMAP).is_err()).collect();
        // Block 15 had moved to the place of block 1.
        assert_eq!(gone, [1, 2, 3, 4, 6, 15]);
        assert_eq!((held.number(), blocks.cached_blocks()), (0, 16));
    });
}

#[test]
fn a_block_is_erased_for_good() {
    let (Noting { disk, requests, .. }, blocks) = noted(1 << 20, 16);
    disk.poke(100 * BLOCK_BYTES as u64, &[7; BLOCK_BYTES]);
    block_on_ready(blocks.erase(100)).unwrap();
    assert_eq!(requests.take(), [(100, 1), (0, 0)], "it is flushed, too");
    assert_eq!(disk.peek(100 * BLOCK_BYTES as u64, BLOCK_BYTES), [0; BLOCK_BYTES]);
}
