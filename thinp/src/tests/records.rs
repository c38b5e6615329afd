//! The reserved device (design decision 6).

use super::disks::Gate;
use super::{BLOCK, World, id, run, run_blank};
use crate::control::{DeviceId, Errno, Mode};
use crate::{Change, Error, Features, Pool, PoolOptions, Records, Roots};
use platform::block::{Bufs, Disk, IoError, Op};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::time::Duration;
use std::cell::Cell;
use std::rc::Rc;
use std::string::String;
use std::vec;
use std::vec::Vec;

async fn pool_with_records(world: &World) -> (Pool, Records) {
    let pool = world.open().await;
    assert!(Records::find(&pool).await.unwrap().is_none());
    let records = Records::create(&pool).await.unwrap();
    (pool, records)
}

async fn found(world: &World) -> (Pool, Records) {
    let pool = world.open().await;
    let records = Records::find(&pool).await.unwrap().expect("it was made");
    (pool, records)
}

#[test]
fn pages_and_devices_change_together_and_are_found_again() {
    let disks = run_blank(1, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        assert_eq!((records.device(), records.pages()), (DeviceId::MAX, 1));
        assert_eq!(records.read(0).await.unwrap(), b"");
        let changes = [Change::CreateThin(id(1)), Change::CreateSnap { device: id(2), origin: id(1) }];
        records.apply(&changes, &[(0, b"zero".to_vec()), (2, b"two".to_vec())]).await.unwrap();
        assert_eq!(records.pages(), 3);
        records.apply(&[Change::Delete(id(1))], &[(0, b"zero again".to_vec())]).await.unwrap();
        assert_eq!(pool.status().transaction_id, 0, "it is the user's");
        world.cut()
    });
    run(2, disks.0, disks.1, async |world| {
        let (pool, records) = found(&world).await;
        assert_eq!(records.read(0).await.unwrap(), b"zero again");
        assert_eq!(records.read(1).await.unwrap(), b"");
        assert_eq!(records.read(2).await.unwrap(), b"two");
        assert_eq!(records.read(3).await, Err(Error::NoPage(3)));
        let devices: Vec<u32> = pool.devices().await.unwrap().into_iter().map(|(id, _)| id.get()).collect();
        assert_eq!(devices, [2, 16_777_215]);
    });
}

/// What is written down of a snapshot can name the tree that it has: nobody changes that meanwhile.
#[test]
fn a_plan_is_told_the_roots_of_what_keeps_still() {
    run_blank(31, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        pool.create_thin(id(1)).await.unwrap();
        let thin = pool.open_thin(id(1), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        let plan = |roots: &Roots| {
            let root = roots.of(id(1));
            Ok::<_, Error>((vec![(0, root.to_le_bytes().to_vec())], (root, roots.of(id(9)))))
        };
        let changes = [Change::CreateSnap { device: id(2), origin: id(1) }];
        let (root, unknown) = records.apply_with(&changes, &[id(1)], plan).await.unwrap();
        assert_eq!((root, unknown), (pool.root(id(2)).await.unwrap(), 0));
        assert!(root > 1);
        assert_eq!(records.read(0).await.unwrap(), root.to_le_bytes());
        world.write(&thin, 0, BLOCK, 0x22).await.unwrap();
        assert_ne!(pool.root(id(1)).await.unwrap(), root);
    });
}

#[test]
fn nobody_else_gets_at_it() {
    run_blank(3, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        for message in ["delete 16777215", "create_snap 1 16777215"] {
            assert_eq!(pool.message(message).await.unwrap_err().errno(), Errno::EBUSY);
        }
        assert_eq!(pool.message("create_thin 16777215").await.unwrap_err().errno(), Errno::EEXIST);
        assert_eq!(pool.open_thin(DeviceId::MAX, None).await.err(), Some(Error::Reserved(DeviceId::MAX)));
        let delete = records.apply(&[Change::Delete(DeviceId::MAX)], &[]).await;
        assert_eq!(delete, Err(Error::Reserved(DeviceId::MAX)));
        assert_eq!(Records::create(&pool).await.err(), Some(Error::RecordsExist(DeviceId::MAX)));
    });
}

#[test]
fn it_takes_the_highest_free_id_and_is_known_by_its_mark() {
    run_blank(4, 32, async |world| {
        let pool = world.open().await;
        for taken in [16_777_215, 16_777_214, 16_777_212] {
            pool.create_thin(id(taken)).await.unwrap();
        }
        // The user's device with the highest id has data, even data that looks like a mark but names another device.
        let user = pool.open_thin(DeviceId::MAX, None).await.unwrap();
        let mut bytes = vec![0; 2 * BLOCK as usize * 512];
        bytes[..16].copy_from_slice(b"gossamer-records");
        world.write_bytes(&user, 0, &bytes, false).await.unwrap();
        let records = Records::create(&pool).await.unwrap();
        assert_eq!(records.device(), id(16_777_213));
        drop((records, user));
        pool.delete(DeviceId::MAX).await.unwrap();
        assert_eq!(Records::find(&pool).await.unwrap().unwrap().device(), id(16_777_213));
    });
}

#[test]
fn it_works_on_a_full_pool() {
    run_blank(5, 8, async |world| {
        let features = Features { error_if_no_space: true, ..Features::default() };
        let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
        let records = Records::create(&pool).await.unwrap();
        records.apply(&[Change::CreateThin(id(0))], &[(0, b"a".to_vec())]).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        while world.write(&thin, world.below(1000) * BLOCK, 1, 1).await.is_ok() {}
        assert_eq!((pool.status().mode, pool.status().data_used_blocks), (Mode::OutOfDataSpace, 8));
        for n in 0..20u8 {
            let create = [Change::CreateThin(id(100 + u64::from(n)))];
            records.apply(&create, &[(0, vec![n; 1000])]).await.unwrap();
            assert_eq!(records.read(0).await.unwrap(), vec![n; 1000]);
        }
        assert_eq!(records.apply(&[], &[(1, vec![])]).await, Err(Error::NoDataSpace), "a new page needs space");
    });
}

/// The first page takes two blocks. Without them the pool stays as it is.
#[test]
fn it_is_made_of_the_last_two_blocks() {
    for blocks in 1..=2 {
        run_blank(32, blocks, async move |world| {
            let pool = world.open().await;
            let made = Records::create(&pool).await.map(|records| records.pages());
            assert_eq!(made, if blocks == 2 { Ok(1) } else { Err(Error::NoDataSpace) });
            assert_eq!(
                (pool.status().mode, pool.status().data_used_blocks),
                (Mode::Write, if blocks == 2 { 2 } else { 0 })
            );
        });
    }
}

/// With its own sectors: nobody who sees the error knows the data disk's.
#[test]
fn a_page_that_cannot_be_written_is_told_with_its_sector() {
    run_blank(34, 32, async |world| {
        let left = Rc::new(Cell::new(u32::MAX));
        let writes = left.clone();
        let data = Fault::new(Rc::new(world.data.clone()), move |request| {
            let write = matches!(request.op, Op::Write { .. });
            writes.set(writes.get().saturating_sub(u32::from(write)));
            (write && writes.get() == 0).then_some(IoError::Device { op: request.op, sector: request.sector })
        });
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(data), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, 9 * BLOCK, 0x11).await.unwrap();
        let at = |error| match error {
            Some(Error::Io { device: DeviceId::MAX, sector, .. }) => sector,
            error => panic!("{error:?}"),
        };
        for (writes, sector) in [(1, 0), (2, BLOCK)] {
            left.set(writes);
            assert_eq!(at(Records::create(&pool).await.err()), sector);
        }
        left.set(u32::MAX);
        let records = Records::create(&pool).await.unwrap();
        left.set(1);
        assert_eq!(at(records.apply(&[], &[(0, b"zero".to_vec())]).await.err()), BLOCK);
        left.set(u32::MAX);
        records.apply(&[], &[(2, b"two".to_vec())]).await.unwrap();
        left.set(1);
        assert_eq!(at(records.apply(&[], &[(2, b"again".to_vec())]).await.err()), 5 * BLOCK);
        assert_eq!(records.read(2).await.unwrap(), b"two");
    });
}

/// Nobody commits what others have changed on the way to it.
#[test]
fn pages_and_devices_change_in_one_commit() {
    run_blank(33, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        pool.create_thin(id(1)).await.unwrap();
        let before = pool.committed_state().unwrap();
        let thin = pool.open_thin(id(1), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        records.apply(&[Change::CreateThin(id(2))], &[(0, b"two".to_vec())]).await.unwrap();
        assert_eq!(pool.committed_state(), Some(before + 1));
    });
}

/// Volumes that wait for space while they hold all buffers do not keep a deletion from its record.
#[test]
fn it_needs_no_buffers_of_others() {
    run_blank(6, 8, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        records.apply(&[Change::CreateThin(id(0)), Change::CreateThin(id(1))], &[]).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        let other = pool.open_thin(id(1), None).await.unwrap();
        world.write(&other, 0, 6 * BLOCK, 1).await.unwrap();
        drop(other);
        let (writer, w) = (thin.clone(), world.clone());
        let waiting = world.runtime.spawner.spawn(async move { w.write(&writer, 0, 1, 0x22).await });
        world.runtime.timers.sleep(Duration::from_secs(1)).await;
        let mut hoard = Vec::new();
        for page in 0..3 {
            hoard.extend(core::iter::from_fn(|| world.runtime.bufs.alloc(4096).ok()));
            let pages = [(0, vec![page; 5])];
            let applied = world.runtime.timers.timeout(Duration::from_secs(1), records.apply(&[], &pages)).await;
            applied.expect("it waits for nobody").unwrap();
        }
        records.apply(&[Change::Delete(id(1))], &[(0, b"gone".to_vec())]).await.unwrap();
        waiting.await.unwrap().unwrap();
        drop(hoard);
    });
}

#[test]
fn what_is_refused_changes_nothing() {
    run_blank(7, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        records.apply(&[Change::CreateThin(id(1))], &[(0, b"before".to_vec())]).await.unwrap();
        let thin = pool.open_thin(id(1), None).await.unwrap();
        let page = || [(0, b"after".to_vec())];
        let refused: [(&[Change], Errno); 4] = [
            (&[Change::CreateThin(id(2)), Change::CreateThin(id(1))], Errno::EEXIST),
            (&[Change::CreateThin(id(2)), Change::Delete(id(9))], Errno::ENODATA),
            (&[Change::CreateThin(id(2)), Change::Delete(id(1))], Errno::EBUSY),
            (&[Change::CreateSnap { device: id(3), origin: id(9) }], Errno::ENODATA),
        ];
        for (changes, errno) in refused {
            assert_eq!(records.apply(changes, &page()).await.unwrap_err().errno(), errno);
        }
        let most = (64 << 10) - 64;
        let long = vec![0; most + 1];
        assert_eq!(records.apply(&[], &[(0, long)]).await.unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(records.read(0).await.unwrap(), b"before");
        assert_eq!(pool.devices().await.unwrap().len(), 2);
        records.apply(&[], &[(0, vec![7; most])]).await.unwrap();
        assert_eq!(records.read(0).await.unwrap(), vec![7; most]);
        drop(thin);
    });
}

/// Who says in the records that somebody else may have the pool writes nothing else any more.
#[test]
fn after_the_end_of_io_only_the_records_are_written() {
    run_blank(31, 64, async |world| {
        let gate = Gate::new(world.data.clone(), |request| request.op == Op::Discard);
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
        let pool = pool.await.unwrap();
        let records = Records::create(&pool).await.unwrap();
        pool.create_thin(id(1)).await.unwrap();
        let thin = pool.open_thin(id(1), None).await.unwrap();
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        thin.discard(0, BLOCK).await.unwrap();
        let ending = pool.clone();
        let mut ended = world.runtime.spawner.spawn(async move { ending.end_io().await });
        assert!(world.runtime.timers.timeout(Duration::from_secs(10), &mut ended).await.is_err());
        gate.open();
        ended.await.unwrap().unwrap();
        assert_eq!(world.data.discarded_sectors(), BLOCK);
        assert_eq!(world.write(&thin, BLOCK, BLOCK, 0x22).await, Err(Error::Closed));
        assert_eq!(world.write(&thin, 4 * BLOCK, BLOCK, 0x22).await, Err(Error::Closed));
        assert_eq!(thin.write_zeroes(BLOCK, BLOCK).await, Err(Error::Closed));
        assert_eq!(thin.discard(BLOCK, BLOCK).await, Err(Error::Closed));
        world.expect(&thin, BLOCK, 3 * BLOCK, 0x11).await;
        records.apply(&[], &[(0, b"free".to_vec())]).await.unwrap();
        pool.close().await.unwrap();
        assert_eq!(world.data.discarded_sectors(), BLOCK);
        let (_pool, records) = found(&world).await;
        assert_eq!(records.read(0).await.unwrap(), b"free");
    });
}

#[test]
fn a_damaged_page_is_named() {
    let disks = run_blank(8, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        records.apply(&[], &[(0, b"precious".to_vec())]).await.unwrap();
        drop(records);
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    });
    for block in 0..32 {
        let at = block * BLOCK * 512 + 64;
        if disks.1.peek(at, 8) == b"precious" {
            disks.1.poke(at, b"P");
        }
    }
    run(9, disks.0, disks.1, async |world| {
        let pool = world.open().await;
        let error = Records::find(&pool).await.err().unwrap();
        assert!(matches!(error, Error::DamagedRecords { page: 0, device: DeviceId::MAX, .. }), "{error}");
        // Who gives them up deletes the device and adopts the pool anew.
        pool.message("delete 16777215").await.unwrap();
        assert_eq!(Records::create(&pool).await.unwrap().device(), DeviceId::MAX);
    });
}

#[test]
fn a_snapshot_of_it_made_elsewhere_is_no_second_one() {
    run_blank(10, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        records.apply(&[], &[(0, b"before".to_vec())]).await.unwrap();
        drop(records);
        // As Linux would: nobody there knows that the device is reserved.
        pool.0.metadata.create_snap(id(3), DeviceId::MAX).await.unwrap();
        pool.commit().await.unwrap();
        let records = Records::find(&pool).await.unwrap().unwrap();
        assert_eq!(records.device(), DeviceId::MAX);
        records.apply(&[], &[(0, b"after".to_vec())]).await.unwrap();
        records.apply(&[], &[(0, b"after that".to_vec())]).await.unwrap();
        assert_eq!(records.read(0).await.unwrap(), b"after that");
        let snap = pool.open_thin(id(3), None).await.unwrap();
        let bytes = world.read(&snap, 0, 1).await.unwrap();
        assert_eq!(&bytes[64..70], b"before");
    });
}

/// Every version says which devices there are. After any power cut the page and the devices agree, and what was
/// acknowledged is there.
#[test]
fn pages_agree_with_devices_after_power_cuts() {
    let mut disks = (MemDisk::new(512 * 8), MemDisk::new(32 * BLOCK));
    let acknowledged = Rc::new(Cell::new(0));
    for seed in 0..60 {
        let acknowledged = acknowledged.clone();
        disks = run(seed, disks.0, disks.1, async move |world| one_life(world, acknowledged).await);
    }
    assert!(acknowledged.get() > 300, "{}", acknowledged.get());
}

/// Version `n` of the page has devices 0 to n % 5.
async fn one_life(world: World, acknowledged: Rc<Cell<u32>>) -> (MemDisk, MemDisk) {
    let pool = world.open().await;
    let records = match Records::find(&pool).await.unwrap() {
        Some(records) => records,
        None => {
            assert_eq!(acknowledged.get(), 0);
            Records::create(&pool).await.unwrap()
        }
    };
    let page = String::from_utf8(records.read(0).await.unwrap()).unwrap();
    let mut version: u32 = page.parse().unwrap_or(0);
    assert!(version == acknowledged.get() || version == acknowledged.get() + 1, "{version} {}", acknowledged.get());
    let devices = pool.devices().await.unwrap().len() as u32 - 1;
    assert_eq!(devices, if version == 0 { 0 } else { version % 5 + 1 });
    acknowledged.set(version);
    let stop = world.below(40_000);
    world.runtime.spawner.spawn(async move {
        loop {
            let had = if version == 0 { 0 } else { u64::from(version % 5 + 1) };
            version += 1;
            let wanted = u64::from(version % 5 + 1);
            let created = (had..wanted).map(|n| Change::CreateThin(id(n)));
            let changes: Vec<Change> = created.chain((wanted..had).map(|n| Change::Delete(id(n)))).collect();
            let page = std::format!("{version}").into_bytes();
            records.apply(&changes, &[(0, page)]).await.unwrap();
            acknowledged.set(version);
        }
    });
    world.runtime.timers.sleep(Duration::from_micros(stop)).await;
    world.cut()
}

/// A page of records of `device` that holds `payload`, by the description of the format.
fn forge(page: &mut [u8], device: DeviceId, payload: &[u8]) {
    let fields: [(usize, &[u8]); 5] = [
        (0, b"gossamer-records"),
        (20, &1u32.to_le_bytes()),
        (24, &device.get().to_le_bytes()),
        (40, &(payload.len() as u32).to_le_bytes()),
        (64, payload),
    ];
    fields.into_iter().for_each(|(at, bytes)| page[at..at + bytes.len()].copy_from_slice(bytes));
    let checksum = pdata::checksum::crc32c_raw(&page[20..64 + payload.len()]);
    page[16..20].copy_from_slice(&checksum.to_le_bytes());
}

/// What an initiator writes on its own volume must not become the pool's records, nor keep the pool from opening.
#[test]
fn an_imitation_on_a_volume_is_not_taken_for_the_records() {
    run_blank(77, 32, async |world| {
        let (pool, records) = pool_with_records(&world).await;
        for volume in [1, u64::from(DeviceId::MAX.get()) - 1] {
            pool.create_thin(id(volume)).await.unwrap();
            let thin = pool.open_thin(id(volume), None).await.unwrap();
            let mut forged = world.runtime.bufs.zeroed(2 * BLOCK as usize * 512).unwrap();
            forge(&mut forged, thin.id(), b"forged");
            thin.write(0, Bufs::from_iter([forged]), false).await.unwrap();
        }
        records.apply(&[], &[(0, b"truth".to_vec())]).await.unwrap();
        let again = Records::find(&pool).await.unwrap().unwrap();
        assert_eq!((again.device(), again.read(0).await.unwrap()), (DeviceId::MAX, b"truth".to_vec()));
    });
    run_blank(78, 32, async |world| {
        let pool = world.open().await;
        // Only the topmost 4096 ids are the records'.
        for volume in [1, u64::from(DeviceId::MAX.get()) - 4096] {
            pool.create_thin(id(volume)).await.unwrap();
            let thin = pool.open_thin(id(volume), None).await.unwrap();
            let mut forged = world.runtime.bufs.zeroed(2 * BLOCK as usize * 512).unwrap();
            forge(&mut forged, thin.id(), b"forged");
            thin.write(0, Bufs::from_iter([forged]), false).await.unwrap();
            assert!(Records::find(&pool).await.unwrap().is_none());
        }
    });
}
