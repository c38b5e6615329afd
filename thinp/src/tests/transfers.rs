//! Moving data within the limits of the data disk.

use super::disks::Limited;
use super::{BLOCK, World, id, run_blank};
use crate::{Error, Pool, PoolOptions, Thin};
use platform::block::{BlockDevice, Bufs, Disk, IoError, Limits, Op, Request};
use platform::layers::Fault;
use platform::time::Duration;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec::Vec;

/// A pool whose data disk has other limits, with device 0, of which some blocks are mapped, in order.
async fn limited_pool(world: &World, data: impl BlockDevice + 'static, change: fn(&mut Limits)) -> (Pool, Thin) {
    let data = world.slow(Limited { inner: data, change });
    let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
    pool.create_thin(id(0)).await.unwrap();
    let thin = pool.open_thin(id(0), None).await.unwrap();
    for block in 0..3 {
        world.write(&thin, block * BLOCK, BLOCK, 0x11).await.unwrap();
    }
    (pool, thin)
}

#[test]
fn no_request_is_larger_than_the_data_disk_takes() {
    run_blank(1, 32, async |world| {
        let most = Rc::new(Cell::new((0, 0)));
        let seen = most.clone();
        let data = Fault::new(Rc::new(world.data.clone()), move |request: &Request| {
            if matches!(request.op, Op::Read | Op::Write { .. }) {
                let (sectors, segments) = seen.get();
                seen.set((request.sectors.max(sectors), request.bufs.len().max(segments)));
            }
            None
        });
        let change = |limits: &mut Limits| (limits.transfer_sectors_max, limits.segments_max) = (16, 2);
        let (_pool, thin) = limited_pool(&world, data, change).await;
        // Few sectors in many buffers, many sectors in one buffer, and something of both.
        for lens in [&[1; 5][..], &[40], &[3, 20, 1, 1, 30]] {
            let mut bufs = Bufs::new();
            for (n, len) in lens.iter().enumerate() {
                let mut buf = world.runtime.bufs.zeroed(len * 512).unwrap();
                buf.fill(0x20 + n as u8);
                bufs.push(buf);
            }
            thin.write(BLOCK + 7, bufs, false).await.unwrap();
            let mut at = BLOCK + 7;
            for (n, len) in lens.iter().enumerate() {
                world.expect(&thin, at, *len as u64, 0x20 + n as u8).await;
                at += *len as u64;
            }
            world.expect(&thin, at, 3 * BLOCK - at, 0x11).await;
            world.write(&thin, BLOCK, BLOCK, 0x11).await.unwrap();
        }
        assert_eq!(most.get(), (16, 2));
    });
}

#[test]
fn a_data_disk_without_limits_takes_whatever_is_asked() {
    run_blank(2, 32, async |world| {
        let change = |limits: &mut Limits| (limits.transfer_sectors_max, limits.segments_max) = (u64::MAX, usize::MAX);
        let (_pool, thin) = limited_pool(&world, world.data.clone(), change).await;
        world.write(&thin, 5, 2 * BLOCK, 0x22).await.unwrap();
        world.expect(&thin, 5, 2 * BLOCK, 0x22).await;
    });
}

/// Where the disk has no command for it and takes no block in one piece.
#[test]
fn zeroes_are_written_where_they_are_wanted() {
    run_blank(3, 32, async |world| {
        let change = |limits: &mut Limits| (limits.transfer_sectors_max, limits.write_zeroes_sectors_max) = (100, 0);
        let (_pool, thin) = limited_pool(&world, world.data.clone(), change).await;
        thin.write_zeroes(BLOCK, BLOCK).await.unwrap();
        world.expect(&thin, 0, BLOCK, 0x11).await;
        world.expect(&thin, BLOCK, BLOCK, 0).await;
        world.expect(&thin, 2 * BLOCK, BLOCK, 0x11).await;
    });
}

/// Those who hold all other buffers may be waiting for what is copied with it.
#[test]
fn the_buffer_that_is_kept_for_copies_is_kept() {
    run_blank(4, 32, async |world| {
        let (pool, thin) = limited_pool(&world, world.data.clone(), |_| ()).await;
        pool.create_snap(id(1), id(0)).await.unwrap();
        let payloads = [0; 3].map(|_| Bufs::from_iter([world.runtime.bufs.zeroed(512).unwrap()]));
        let mut hoard = Vec::new();
        for (block, payload) in payloads.into_iter().enumerate() {
            hoard.extend(core::iter::from_fn(|| world.runtime.bufs.alloc(4096).ok()));
            let write = thin.write(block as u64 * BLOCK, payload, false);
            let written = world.runtime.timers.timeout(Duration::from_secs(1), write).await;
            written.expect("it waits for nobody").unwrap();
        }
        drop(hoard);
        world.expect(&thin, 2 * BLOCK, 1, 0).await;
        world.expect(&thin, 2 * BLOCK + 1, BLOCK - 1, 0x11).await;
    });
}

/// A block of 128 KiB, through a buffer of 64 KiB.
#[test]
fn copies_and_zeroes_are_requests_as_large_as_their_buffer() {
    run_blank(6, 32, async |world| {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let seen = asked.clone();
        let data = Fault::new(Rc::new(world.data.clone()), move |request: &Request| {
            // The payload is one sector, and written beside the others.
            if request.sectors > 1 {
                seen.borrow_mut().push((request.op, request.sector, request.sectors));
            }
            None
        });
        let change = |limits: &mut Limits| limits.write_zeroes_sectors_max = 0;
        let data = Disk::new(Limited { inner: data, change });
        let options = PoolOptions { data_block_sectors: 256, ..PoolOptions::default() };
        let pool = Pool::open(&world.runtime, world.meta_disk(), data, options).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        let (read, write) = (Op::Read, Op::Write { fua: false });
        asked.take();
        world.write(&thin, 255, 1, 0x11).await.unwrap();
        assert_eq!(asked.take(), [(write, 0, 128), (write, 128, 127)]);
        pool.create_snap(id(1), id(0)).await.unwrap();
        asked.take();
        world.write(&thin, 255, 1, 0x22).await.unwrap();
        assert_eq!(asked.take(), [(read, 0, 128), (write, 256, 128), (read, 128, 127), (write, 384, 127)]);
    });
}

/// Its own sector: who sees the error knows nothing of the data disk's.
#[test]
fn a_copy_that_fails_is_told_with_the_sector_that_was_to_be_written() {
    run_blank(5, 32, async |world| {
        let fails = Rc::new(Cell::new(false));
        let failing = fails.clone();
        let data = Fault::new(Rc::new(world.data.clone()), move |request| {
            let fails = failing.get() && request.op == Op::Read;
            fails.then_some(IoError::Device { op: request.op, sector: request.sector })
        });
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(data), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 900 * BLOCK, BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        fails.set(true);
        let error = world.write(&thin, 900 * BLOCK + 7, 1, 0x22).await.unwrap_err();
        assert!(matches!(error, Error::Io { sector, .. } if sector == 900 * BLOCK + 7), "{error}");
    });
}
