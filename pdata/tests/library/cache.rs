//! The block cache: bounds, shared reads, damage, failing and slow disks.

use crate::harness::*;
use pdata::Error;
use pdata::block::{BLOCK_BYTES, Block, BlockKind};
use platform::block::{Disk, IoError, Op};
use platform::layers::{Fault, Stats};
use platform::mem::MemDisk;
use platform::task::{Executor, block_on_ready};
use std::cell::Cell;
use std::rc::Rc;

fn check(block: &Block) -> Result<(), &'static str> {
    if block[16] < 200 { Ok(()) } else { Err("byte 16 is large") }
}

static KIND: BlockKind = BlockKind { name: "test block", salt: 7, number_at: 8, check };
static OTHER: BlockKind = BlockKind { name: "other block", salt: 8, number_at: 8, check };

fn sealed(number: u64, byte: u8) -> Block {
    let mut block = [0; BLOCK_BYTES];
    block[16] = byte;
    KIND.seal(&mut block, number);
    block
}

fn disk_of(blocks: u64) -> MemDisk {
    let disk = MemDisk::new(blocks * 8);
    (0..blocks).for_each(|number| disk.poke(number * 4096, &sealed(number, number as u8 % 100)));
    disk
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let stats = Stats::new(Rc::new(disk_of(1000)));
    let blocks = blocks_on(Disk::new(stats.clone()), 50);
    block_on_ready(async {
        for number in 0..1000 {
            assert_eq!(blocks.read(number, &KIND).await.unwrap().bytes()[16], number as u8 % 100);
            blocks.read(3, &KIND).await.unwrap();
            assert!(blocks.cached_blocks() <= 50);
        }
    });
    assert!(stats.counters().reads.get() <= 1002, "block 3 was used all the time and read again");
}

#[test]
fn what_is_wrong_with_a_block_is_said() {
    let disk = disk_of(10);
    disk.poke(4096 + 100, &[1]);
    disk.poke(2 * 4096, &sealed(3, 1));
    disk.poke(4 * 4096, &sealed(4, 250));
    let blocks = blocks_on(Disk::new(disk), 50);
    let what = |number| match block_on_ready(blocks.read(number, &KIND)).err() {
        Some(Error::Damaged { block, kind: "test block", what }) if block == number => what,
        other => panic!("{number}: {other:?}"),
    };
    assert_eq!(what(1), "its checksum is wrong");
    assert_eq!(what(2), "it carries another block's number");
    assert_eq!(what(4), "byte 16 is large");
    block_on_ready(async {
        assert!(matches!(
            blocks.read(5, &OTHER).await.err(),
            Some(Error::Damaged { what: "its checksum is wrong", .. })
        ));
        blocks.read(5, &KIND).await.unwrap();
        assert!(matches!(
            blocks.read(5, &OTHER).await.err(),
            Some(Error::Damaged { what: "it is of another kind", .. })
        ));
        for number in [10, u64::MAX] {
            assert_eq!(blocks.read(number, &KIND).await.err(), Some(Error::OutOfRange { block: number, blocks: 10 }));
        }
    });
}

#[test]
fn a_failed_read_can_be_tried_again() {
    let failing = Rc::new(Cell::new(true));
    let rule = failing.clone();
    let fault = Fault::new(Rc::new(disk_of(10)), move |request| {
        rule.get().then_some(IoError::Device { op: request.op, sector: request.sector })
    });
    let blocks = blocks_on(Disk::new(fault), 50);
    block_on_ready(async {
        assert!(matches!(blocks.read(1, &KIND).await.err(), Some(Error::Io { block: 1, action: "read", .. })));
        failing.set(false);
        blocks.read(1, &KIND).await.unwrap();
    });
}

#[test]
fn reads_of_one_block_share_a_request_and_a_dropped_one_does_not_hang_the_rest() {
    let slow = Slow::new(disk_of(10));
    let blocks = Rc::new(blocks_on(Disk::new(slow.clone()), 50));
    let executor = Executor::new();
    let done = Rc::new(Cell::new(0));
    for _ in 0..5 {
        let (blocks, done) = (blocks.clone(), done.clone());
        executor.spawner().spawn(async move {
            blocks.read(1, &KIND).await.unwrap();
            done.set(done.get() + 1);
        });
    }
    while executor.run_ready(1) {}
    assert_eq!(slow.answer(), 1);
    while executor.run_ready(1) {}
    assert_eq!(done.get(), 5);

    // The first of two readers goes away before its read ends.
    let mut first = Box::pin(blocks.read(2, &KIND));
    let waker = std::task::Waker::noop();
    assert!(first.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    let (reader, second_done) = (blocks.clone(), done.clone());
    executor.spawner().spawn(async move {
        reader.read(2, &KIND).await.unwrap();
        second_done.set(second_done.get() + 1);
    });
    while executor.run_ready(1) {}
    drop(first);
    while executor.run_ready(1) {}
    slow.answer();
    while executor.run_ready(1) {}
    assert_eq!(done.get(), 6);
}

#[test]
fn a_write_out_keeps_many_writes_under_way_and_a_failed_block_stays_dirty() {
    block_on_ready(async {
        let mut store = Store::new(2000, 1000, 400).await;
        let mut root = store.tree.create(&store.tm).await.unwrap();
        store.commit().await;
        let failing = Rc::new(Cell::new(true));
        let rule = failing.clone();
        let fault = Fault::new(Rc::new(store.disk.clone()), move |request| {
            // Every fifth block is bad.
            let bad = request.sector.next_multiple_of(40) < request.sector + request.sectors;
            let fails = rule.get() && matches!(request.op, Op::Write { .. }) && bad;
            fails.then_some(IoError::Device { op: request.op, sector: request.sector })
        });
        store.tm = pdata::TransactionManager::open(blocks_on(Disk::new(fault), 400), &store.roots.1).await.unwrap();
        for block in 0..1000 {
            store.data.inc(&store.tm, block..block + 1).await.unwrap();
            root = store.tree.insert(&store.tm, root, block, Long::new(block)).await.unwrap().0;
        }
        let data = store.data.close(&store.tm).await.unwrap();
        store.roots = (data, store.tm.close().await.unwrap());
        assert!(matches!(store.tm.blocks().write_out().await, Err(Error::Io { action: "written", .. })));
        failing.set(false);
        store.tm.blocks().write_out().await.unwrap();
        store.check([root]).await;
    });
}
