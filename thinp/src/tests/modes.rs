//! Running out of space, failing disks, events (reference 7.4, 7.5).

use super::disks::{CachedDisk, Gate, Log, logged};
use super::{BLOCK, World, id, run, run_blank};
use crate::control::{Errno, Mode};
use crate::metadata::MetadataError;
use crate::{Error, Features, Pool, PoolOptions, Thin};
use platform::block::{Bufs, Disk, IoError, Op, Request};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::time::Duration;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::string::ToString;
use std::vec::Vec;

/// A full pool of 8 blocks: device 0 has them all.
async fn full_pool(world: &World, error_if_no_space: bool) -> (Pool, Thin) {
    let features = Features { error_if_no_space, ..Features::default() };
    let (pool, thin) = world.pool_with_device(PoolOptions { features, ..PoolOptions::default() }).await;
    world.write(&thin, 0, 8 * BLOCK, 0x11).await.unwrap();
    (pool, thin)
}

#[test]
fn a_full_pool_is_rw_until_somebody_wants_more() {
    run_blank(1, 8, async |world| {
        let (pool, thin) = full_pool(&world, true).await;
        assert_eq!(pool.status().mode, Mode::Write);
        let error = world.write(&thin, 8 * BLOCK, 1, 0x22).await.unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        assert!(pool.status().to_string().contains(" 8/8 - out_of_data_space discard_passdown error_if_no_space - "));
        // What is mapped works, and so do messages.
        world.write(&thin, 0, 1, 0x22).await.unwrap();
        thin.flush().await.unwrap();
        pool.message("create_thin 5").await.unwrap();
        // A discard commits, for that is what brings space back.
        thin.discard(0, 2 * BLOCK).await.unwrap();
        assert_eq!(pool.status().mode, Mode::Write);
        world.write(&thin, 8 * BLOCK, 1, 0x22).await.unwrap();
    });
}

/// Who does not wait for space has no time-out either.
#[test]
fn nobody_watches_how_long_space_lacks_where_nobody_waits() {
    run_blank(23, 8, async |world| {
        let (pool, thin) = full_pool(&world, true).await;
        assert_eq!(world.write(&thin, 8 * BLOCK, 1, 0x22).await, Err(Error::NoDataSpace));
        let seen = pool.events();
        world.runtime.timers.sleep(Duration::from_secs(120)).await;
        assert_eq!((pool.status().mode, pool.events()), (Mode::OutOfDataSpace, seen));
    });
}

#[test]
fn uncommitted_frees_are_reclaimed_before_a_pool_is_called_full() {
    run_blank(2, 8, async |world| {
        let (pool, thin) = full_pool(&world, true).await;
        thin.discard(0, BLOCK).await.unwrap();
        world.write(&thin, 9 * BLOCK, 1, 0x22).await.unwrap();
        assert_eq!(pool.status().mode, Mode::Write);
    });
}

#[test]
fn writes_wait_for_space_and_go_on_when_it_comes() {
    run_blank(3, 8, async |world| {
        let (pool, thin) = full_pool(&world, false).await;
        let (writer, w) = (thin.clone(), world.clone());
        let waiting = world.runtime.spawner.spawn(async move { w.write(&writer, 8 * BLOCK + 1, 1, 0x22).await });
        world.runtime.timers.sleep(Duration::from_secs(10)).await;
        assert_eq!(pool.status().mode, Mode::OutOfDataSpace);
        // Nobody waits for the waiting write: neither a reader of its block nor a snapshot.
        world.expect(&thin, 8 * BLOCK, BLOCK, 0).await;
        pool.create_snap(id(1), id(0)).await.unwrap();
        pool.delete(id(1)).await.unwrap();
        world.data_resize(16);
        pool.grow().await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(pool.status().mode, Mode::Write);
        world.expect(&thin, 8 * BLOCK + 1, 1, 0x22).await;
    });
}

impl World {
    fn data_resize(&self, blocks: u64) {
        self.data.resize(blocks * BLOCK);
    }
}

#[test]
fn writes_that_waited_too_long_fail_and_later_ones_at_once() {
    run_blank(4, 8, async |world| {
        let (pool, thin) = full_pool(&world, false).await;
        let before = world.runtime.timers.now();
        assert_eq!(world.write(&thin, 8 * BLOCK, 1, 0x22).await, Err(Error::NoDataSpace));
        let waited = world.runtime.timers.now() - before;
        assert!((60..61).contains(&waited.as_secs()), "{waited:?}");
        assert!(pool.status().to_string().contains(" out_of_data_space discard_passdown error_if_no_space - "));
        let before = world.runtime.timers.now();
        assert_eq!(world.write(&thin, 8 * BLOCK, 1, 0x22).await, Err(Error::NoDataSpace));
        assert!((world.runtime.timers.now() - before).as_secs() < 1);
        thin.discard(0, BLOCK).await.unwrap();
        pool.commit().await.unwrap();
        world.runtime.timers.sleep(Duration::from_secs(1)).await;
        assert!(pool.status().to_string().contains(" rw discard_passdown queue_if_no_space - "));
    });
}

/// It is of that mode only, as in dm-thin.
#[test]
fn the_time_out_ends_with_the_mode_that_it_is_of() {
    run_blank(25, 8, async |world| {
        let (pool, thin) = full_pool(&world, false).await;
        let (writer, w) = (thin.clone(), world.clone());
        let waiting = world.runtime.spawner.spawn(async move { w.write(&writer, 8 * BLOCK, 1, 0x22).await });
        world.runtime.timers.sleep(Duration::from_secs(10)).await;
        assert_eq!(pool.status().mode, Mode::OutOfDataSpace);
        pool.0.failed(MetadataError::Storage(pdata::Error::NoMemory)).await;
        assert_eq!(waiting.await.unwrap(), Err(Error::Refused(Mode::ReadOnly)));
        let (line, seen) = (pool.status().to_string(), pool.events());
        world.runtime.timers.sleep(Duration::from_secs(120)).await;
        assert_eq!((pool.status().to_string(), pool.events()), (line, seen));
    });
}

/// Requests to a disk that a rule fails.
type Rule = Rc<RefCell<Option<fn(&Request) -> bool>>>;

async fn failing_pool(world: &World, meta: &Rule, data: &Rule) -> (Pool, Thin) {
    let fault = |inner: CachedDisk, rule: &Rule| {
        let rule = rule.clone();
        world.slow(Fault::new(Rc::new(inner), move |request| {
            let fails = rule.borrow().is_some_and(|rule| rule(request));
            fails.then_some(IoError::Device { op: request.op, sector: request.sector })
        }))
    };
    let (meta, data) = (fault(world.meta.clone(), meta), fault(world.data.clone(), data));
    let pool = Pool::open(&world.runtime, meta, data, PoolOptions::default()).await.unwrap();
    pool.create_thin(id(0)).await.unwrap();
    let thin = pool.open_thin(id(0), None).await.unwrap();
    (pool, thin)
}

/// Trap 23, and the first row of reference 7.4's transitions to read-only.
#[test]
fn trap_23_a_failed_commit_is_told_and_makes_the_pool_read_only() {
    let disks = run_blank(5, 32, async |world| {
        let (meta, data) = (Rule::default(), Rule::default());
        let (pool, thin) = failing_pool(&world, &meta, &data).await;
        pool.create_thin(id(1)).await.unwrap();
        let untouched = pool.open_thin(id(1), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        let seen = pool.events();
        world.write(&thin, BLOCK, BLOCK, 0x22).await.unwrap();
        *data.borrow_mut() = Some(|request| request.op == Op::Flush);
        assert_eq!(thin.flush().await.unwrap_err().errno(), Errno::EIO);
        *data.borrow_mut() = None;
        let line = pool.status().to_string();
        assert!(line.contains(" 1/32 - ro discard_passdown queue_if_no_space needs_check "), "{line}");
        assert!(pool.events() > seen);
        // Its changes are lost, and it says so for ever; others are not concerned.
        assert_eq!(thin.flush().await, Err(Error::ChangesLost(id(0))));
        untouched.flush().await.unwrap();
        world.expect(&thin, 0, BLOCK, 0x11).await;
        world.expect(&thin, BLOCK, BLOCK, 0).await;
        world.write(&thin, 0, 1, 0x33).await.unwrap();
        assert_eq!(world.write(&thin, BLOCK, 1, 0x33).await, Err(Error::Refused(Mode::ReadOnly)));
        assert_eq!(pool.message("create_thin 9").await.unwrap_err().errno(), Errno::EOPNOTSUPP);
        assert_eq!(thin.status().await.unwrap().to_string(), "128 127", "the lost block is not counted");
        world.cut()
    });
    // The flag is on disk at once, and stays.
    run(6, disks.0, disks.1, async |world| {
        let pool = world.open().await;
        assert!(pool.status().to_string().contains(" ro discard_passdown queue_if_no_space needs_check "));
        assert_eq!(pool.grow().await.unwrap_err().errno(), Errno::EOPNOTSUPP);
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.expect(&thin, 1, BLOCK - 1, 0x11).await;
    });
}

#[test]
fn a_metadata_disk_that_takes_no_writes_fails_the_pool() {
    run_blank(7, 32, async |world| {
        let (meta, data) = (Rule::default(), Rule::default());
        let (pool, thin) = failing_pool(&world, &meta, &data).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        *meta.borrow_mut() = Some(|request| request.op != Op::Read);
        assert_eq!(thin.flush().await.unwrap_err().errno(), Errno::EIO);
        assert_eq!(pool.status().mode, Mode::Fail);
        assert_eq!(pool.status().to_string(), "Fail");
        assert_eq!(thin.status().await.unwrap().to_string(), "Fail");
        assert_eq!(world.read(&thin, 0, 1).await, Err(Error::Refused(Mode::Fail)));
        assert_eq!(world.write(&thin, 0, 1, 1).await, Err(Error::Refused(Mode::Fail)));
        assert_eq!(thin.discard(0, BLOCK).await, Err(Error::Refused(Mode::Fail)));
        assert_eq!(pool.message("delete 0").await.unwrap_err().errno(), Errno::EOPNOTSUPP);
    });
}

/// Deviation 1: deletes and discards are how metadata space comes back.
#[test]
fn out_of_metadata_space_deletes_and_discards_bring_it_back() {
    run(8, MemDisk::new(720 * 8), MemDisk::new(256 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 100 * BLOCK, 0x11).await.unwrap();
        let mut devices = 1;
        // Each takes a metadata block.
        while pool.create_thin(id(devices)).await.is_ok() {
            devices += 1;
        }
        assert!(devices > 500, "{devices}");
        let line = pool.status().to_string();
        assert!(line.contains(" 720/720 ") && line.contains(" ro ") && line.ends_with(" - 180 "), "{line}");
        assert_eq!(pool.message("create_thin 9999").await.unwrap_err().errno(), Errno::EOPNOTSUPP);
        let refused = world.write(&thin, 100 * BLOCK, 1, 0x11).await.unwrap_err();
        assert_eq!((refused, refused.errno()), (Error::Refused(Mode::OutOfMetadataSpace), Errno::EIO));
        world.write(&thin, 0, 1, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        for block in 0..50 {
            thin.discard(block * 2 * BLOCK, BLOCK).await.unwrap();
        }
        thin.flush().await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 50);
        world.expect(&thin, 0, BLOCK, 0).await;
        pool.delete(id(1)).await.unwrap();
        pool.delete(id(2)).await.unwrap();
        assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::Write, false));
        world.write(&thin, 0, 1, 0x22).await.unwrap();
        pool.create_thin(id(1)).await.unwrap();
    });
}

/// What discards copy of trees that a metadata snapshot holds uses the reserve up in the end; releasing it needs none.
#[test]
fn discards_that_used_the_reserve_up_go_on_after_a_release() {
    run(9, MemDisk::new(720 * 8), MemDisk::new(1024 * BLOCK), async |world| {
        let pool = world.open().await;
        let mut thins = Vec::new();
        for n in 0..150 {
            pool.create_thin(id(n)).await.unwrap();
            let thin = pool.open_thin(id(n), None).await.unwrap();
            world.write(&thin, 0, 2 * BLOCK, 0x11).await.unwrap();
            thins.push(thin);
        }
        pool.message("reserve_metadata_snap").await.unwrap();
        let mut devices = 1000;
        while pool.create_thin(id(devices)).await.is_ok() {
            devices += 1;
        }
        assert_eq!(pool.status().mode, Mode::OutOfMetadataSpace);
        let mut discards = 0;
        let refused = loop {
            match thins[discards].discard(0, BLOCK).await {
                Ok(()) => discards += 1,
                Err(error) => break error,
            }
        };
        // Each had a leaf copied: of a reserve of 72 blocks, less what commits and deletes need.
        assert_eq!(refused, Error::Refused(Mode::OutOfMetadataSpace));
        assert!((15..72).contains(&discards), "{discards}");
        pool.message("release_metadata_snap").await.unwrap();
        for thin in &thins[discards..] {
            thin.discard(0, BLOCK).await.unwrap();
        }
        assert_eq!((pool.status().data_used_blocks, pool.status().needs_check), (150, false));
        for thin in &thins {
            world.expect(thin, 0, BLOCK, 0).await;
            world.expect(thin, BLOCK, BLOCK, 0x11).await;
        }
    });
}

#[test]
fn low_water_is_told_once() {
    run_blank(9, 16, async |world| {
        let options = PoolOptions { low_water_blocks: 4, ..PoolOptions::default() };
        let (pool, thin) = world.pool_with_device(options).await;
        let seen = pool.events();
        world.write(&thin, 0, 11 * BLOCK, 0x11).await.unwrap();
        assert_eq!(pool.events(), seen);
        world.write(&thin, 11 * BLOCK, 3 * BLOCK, 0x11).await.unwrap();
        assert_eq!(pool.event_after(seen).await, seen + 1);
        thin.discard(0, 4 * BLOCK).await.unwrap();
        pool.commit().await.unwrap();
        world.runtime.timers.sleep(Duration::from_secs(1)).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        assert_eq!(pool.event_after(seen).await, seen + 2, "armed again");
    });
}

/// By creating devices: each takes a metadata block for good, and a few until its commit.
#[test]
fn low_water_of_metadata_is_told_once() {
    run_blank(15, 16, async |world| {
        let pool = world.open().await;
        let mut devices = 0;
        let mut create = async |until: &dyn Fn(u64) -> bool| {
            while !until(pool.0.metadata.free_metadata_blocks()) {
                pool.create_thin(id(devices)).await.unwrap();
                devices += 1;
            }
        };
        let mark = pool.status().metadata_low_water_blocks;
        create(&|free| free <= mark + 20).await;
        assert_eq!(pool.events(), 0);
        create(&|free| free + 10 <= mark).await;
        let told = pool.events();
        create(&|free| free + 30 <= mark).await;
        assert!(told > 0 && pool.events() == told);
    });
}

/// Only space ends a lack of space.
#[test]
fn a_commit_without_space_leaves_the_mode_as_it_is() {
    run_blank(16, 8, async |world| {
        let (pool, thin) = full_pool(&world, true).await;
        assert_eq!(world.write(&thin, 8 * BLOCK, 1, 0x22).await, Err(Error::NoDataSpace));
        let seen = pool.events();
        pool.create_thin(id(1)).await.unwrap();
        pool.commit().await.unwrap();
        assert_eq!((pool.status().mode, pool.events()), (Mode::OutOfDataSpace, seen));
    });
    run_blank(17, 8, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        // The commit of the last one that there is room for tells at once that there is no more.
        let mut devices = 1;
        while pool.status().mode == Mode::Write {
            pool.create_thin(id(devices)).await.unwrap();
            devices += 1;
        }
        let seen = pool.events();
        assert_eq!(pool.status().mode, Mode::OutOfMetadataSpace);
        pool.commit().await.unwrap();
        thin.discard(0, BLOCK).await.unwrap();
        assert_eq!((pool.status().mode, pool.events()), (Mode::OutOfMetadataSpace, seen));
        assert_eq!(pool.create_thin(id(devices)).await, Err(Error::MessageRefused(Mode::OutOfMetadataSpace)));
    });
}

/// Who is not to wait for space does not, whatever the pool's other users do.
#[test]
fn a_device_that_never_queues_fails_at_once() {
    run_blank(18, 8, async |world| {
        let (pool, thin) = full_pool(&world, false).await;
        pool.create_thin(id(1)).await.unwrap();
        let hasty = pool.open_thin(id(1), None).await.unwrap();
        hasty.never_queue();
        let before = world.runtime.timers.now();
        assert_eq!(world.write(&hasty, 0, 1, 0x22).await, Err(Error::NoDataSpace));
        assert!((world.runtime.timers.now() - before).as_secs() < 1);
        assert_eq!(world.write(&thin, 8 * BLOCK, 1, 0x22).await, Err(Error::NoDataSpace));
        assert!((world.runtime.timers.now() - before).as_secs() >= 60, "the others wait");
    });
}

/// Blocks that a lost transaction would have freed are held for nobody.
#[test]
fn what_a_lost_transaction_freed_can_be_freed_again() {
    run_blank(19, 8, async |world| {
        let (meta, data) = (Rule::default(), Rule::default());
        let (pool, thin) = failing_pool(&world, &meta, &data).await;
        world.write(&thin, 0, 8 * BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        thin.discard(0, 3 * BLOCK).await.unwrap();
        *data.borrow_mut() = Some(|request| request.op == Op::Flush);
        thin.flush().await.unwrap_err();
        *data.borrow_mut() = None;
        pool.clear_needs_check().await.unwrap();
        assert_eq!((pool.status().mode, pool.status().data_used_blocks), (Mode::Write, 8));
        world.expect(&thin, 0, 8 * BLOCK, 0x11).await;
        thin.discard(0, 3 * BLOCK).await.unwrap();
        world.write(&thin, 8 * BLOCK, 3 * BLOCK, 0x22).await.unwrap();
        assert_eq!((pool.status().mode, pool.status().data_used_blocks), (Mode::Write, 8));
    });
}

/// Whichever way it can be freed: a delete does not tell the data disk.
#[test]
fn what_a_lost_transaction_freed_is_held_for_nobody() {
    run_blank(21, 8, async |world| {
        let (meta, data) = (Rule::default(), Rule::default());
        let (pool, thin) = failing_pool(&world, &meta, &data).await;
        world.write(&thin, 0, 8 * BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        thin.discard(0, 3 * BLOCK).await.unwrap();
        *data.borrow_mut() = Some(|request| request.op == Op::Flush);
        thin.flush().await.unwrap_err();
        *data.borrow_mut() = None;
        pool.clear_needs_check().await.unwrap();
        drop(thin);
        pool.delete(id(0)).await.unwrap();
        pool.create_thin(id(1)).await.unwrap();
        let other = pool.open_thin(id(1), None).await.unwrap();
        world.write(&other, 0, 8 * BLOCK, 0x22).await.unwrap();
        assert_eq!((pool.status().mode, pool.status().data_used_blocks), (Mode::Write, 8));
    });
}

/// Who waited for its turn behind a change that failed has nothing more to abort.
#[test]
fn a_transaction_is_aborted_once() {
    run_blank(22, 8, async |world| {
        let fails = Rc::new(Cell::new(false));
        let failing = fails.clone();
        let data = Fault::new(Rc::new(world.data.clone()), move |request| {
            failing.get().then_some(IoError::Device { op: request.op, sector: request.sector })
        });
        let gate = Gate::new(data, |request| request.op == Op::Flush);
        gate.open();
        let options = PoolOptions::default();
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), options).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        gate.close();
        let (seen, spawner) = (pool.events(), &world.runtime.spawner);
        let committing = pool.clone();
        let committed = spawner.spawn(async move { committing.commit().await });
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        let creating = pool.clone();
        let created = spawner.spawn(async move { creating.create_thin(id(1)).await });
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        fails.set(true);
        gate.open();
        committed.await.unwrap().unwrap_err();
        created.await.unwrap().unwrap_err();
        world.runtime.timers.sleep(Duration::from_millis(10)).await;
        assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::ReadOnly, true));
        assert_eq!(pool.events(), seen + 1);
    });
}

/// A change that finds no metadata space while another one's transaction is being aborted waits for space in vain.
#[test]
fn out_of_metadata_space_is_no_way_out_of_read_only() {
    run_blank(24, 64, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.0.metadata.hog(5).await.unwrap();
        assert_eq!(pool.status().mode, Mode::Write, "nobody has noticed yet");
        let (spawner, timers) = (world.runtime.spawner.clone(), world.runtime.timers.clone());
        // A commit has the turn for a while; behind it wait first a change, then an abort.
        let (committing, sleep) = (pool.clone(), timers.sleep(Duration::from_secs(1)));
        let slow_flush = async || {
            sleep.await;
            Ok(())
        };
        let committed = spawner.spawn(async move { committing.0.metadata.commit(slow_flush).await });
        timers.sleep(Duration::from_millis(100)).await;
        let creating = pool.clone();
        let created = spawner.spawn(async move { creating.create_thin(id(7)).await });
        timers.sleep(Duration::from_millis(100)).await;
        pool.0.failed(MetadataError::Storage(pdata::Error::NoMemory)).await;
        committed.await.unwrap().unwrap();
        assert_eq!(created.await.unwrap(), Err(Error::MessageRefused(Mode::ReadOnly)));
        assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::ReadOnly, true));
    });
}

/// After the end of the pool every request is told so, and nobody waits.
#[test]
fn a_closed_pool_answers_that_it_is_closed() {
    run_blank(20, 8, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        let (waiter, seen) = (pool.clone(), pool.events());
        let waiting = world.runtime.spawner.spawn(async move { waiter.event_after(seen).await });
        pool.close().await.unwrap();
        assert_eq!(waiting.await.unwrap(), seen);
        assert_eq!(pool.create_thin(id(1)).await, Err(Error::Closed));
        assert_eq!(pool.devices().await.err(), Some(Error::Closed));
        assert_eq!(world.write(&thin, 0, 1, 0x11).await, Err(Error::Closed));
        assert_eq!(thin.flush().await, Err(Error::Closed));
    });
}

/// Neither what is under way on the data disk nor what waits for it comes after the end.
#[test]
fn a_closed_pool_does_not_write() {
    run_blank(26, 8, async |world| {
        let log = Log::default();
        // Writes of just three sectors are answered late.
        let gate = Gate::new(world.data.clone(), |r| matches!(r.op, Op::Write { .. }) && r.sectors == 3);
        let data = Disk::new(logged("data", gate.clone(), &log));
        let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, BLOCK, BLOCK, 0x11).await.unwrap();
        let (spawner, timers) = (world.runtime.spawner.clone(), world.runtime.timers.clone());
        let write = |sector, sectors: usize| {
            let (thin, buf) = (thin.clone(), world.runtime.bufs.zeroed(sectors * 512).unwrap());
            spawner.spawn(async move { thin.write(sector, Bufs::from_iter([buf]), false).await })
        };
        let (new, in_place) = (write(0, 3), write(BLOCK, 3));
        timers.sleep(Duration::from_secs(1)).await;
        let behind = write(5, 1);
        timers.sleep(Duration::from_millis(10)).await;
        let closing = pool.clone();
        let mut closed = spawner.spawn(async move { closing.close().await });
        assert!(timers.timeout(Duration::from_secs(10), &mut closed).await.is_err());
        gate.open();
        closed.await.unwrap().unwrap();
        let seen = log.borrow().len();
        assert_eq!((new.await.unwrap(), in_place.await.unwrap()), (Ok(()), Ok(())));
        assert_eq!(behind.await.unwrap(), Err(Error::Closed));
        timers.sleep(Duration::from_secs(5)).await;
        assert_eq!(log.borrow().len(), seen);
    });
}

/// Asked for, out of metadata space, after a failure: the status says `ro` of all three, and only the last is damage.
#[test]
fn trap_30_ro_has_several_meanings_and_one_needs_a_check() {
    let ro = |pool: &Pool| {
        let (status, line) = (pool.status(), pool.status().to_string());
        assert!(line.contains(" ro discard_passdown queue_if_no_space "), "{line}");
        assert_eq!(status.needs_check, line.contains(" needs_check "));
        (status.mode, status.needs_check)
    };
    let disks = run(11, MemDisk::new(720 * 8), MemDisk::new(32 * BLOCK), async move |world| {
        let (pool, _) = world.pool_with_device(PoolOptions::default()).await;
        let mut devices = 1;
        while pool.create_thin(id(devices)).await.is_ok() {
            devices += 1;
        }
        assert_eq!(ro(&pool), (Mode::OutOfMetadataSpace, false));
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    });
    run(12, disks.0, disks.1, async move |world| {
        let features = Features { read_only: true, ..Features::default() };
        let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
        assert_eq!(ro(&pool), (Mode::ReadOnly, false));
    });
    run_blank(13, 32, async move |world| {
        let (meta, data) = (Rule::default(), Rule::default());
        let (pool, thin) = failing_pool(&world, &meta, &data).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        *data.borrow_mut() = Some(|request| request.op == Op::Flush);
        thin.flush().await.unwrap_err();
        assert_eq!(ro(&pool), (Mode::ReadOnly, true));
    });
}

/// A device with 4,000 blocks mapped: more metadata than the smallest cache holds.
fn large_device() -> (MemDisk, MemDisk) {
    run_blank(14, 4096, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        for block in 0..4000 {
            world.write(&thin, block * BLOCK, 1, 0x11).await.unwrap();
        }
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    })
}

/// Whatever is under way when the metadata disk goes for good is answered: also what waits for the end of a change that
/// no abort can undo.
#[test]
fn no_request_waits_for_an_abort_that_fails() {
    let disks = large_device();
    let mut failed = 0;
    for seed in 0..50 {
        failed += run(seed, disks.0.fork(), disks.1.fork(), async move |world| {
            let left = Rc::new(Cell::new(u64::MAX));
            let goes = left.clone();
            let meta = Fault::new(Rc::new(world.meta.clone()), move |request| {
                goes.set(goes.get().saturating_sub(1));
                (goes.get() == 0).then_some(IoError::Device { op: request.op, sector: request.sector })
            });
            let options = PoolOptions { cache_blocks: 1, ..PoolOptions::default() };
            let pool = Pool::open(&world.runtime, world.slow(meta), world.data_disk(), options).await.unwrap();
            let thin = pool.open_thin(id(0), None).await.unwrap();
            left.set(1 + world.below(24));
            let (discarded, spawner) = (thin.clone(), world.runtime.spawner.clone());
            let mut requests = std::vec![spawner.spawn(async move { discarded.discard(0, 2000 * BLOCK).await })];
            for _ in 0..8 {
                let (reader, thin, at) = (world.clone(), thin.clone(), world.below(4000) * BLOCK);
                requests.push(spawner.spawn(async move { reader.read(&thin, at, 1).await.map(drop) }));
            }
            let mut errors = 0;
            for request in requests {
                errors += u64::from(request.await.unwrap().is_err());
            }
            errors
        });
    }
    assert!(failed > 50, "{failed}");
}
