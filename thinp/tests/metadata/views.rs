//! Views: several readers of former moments while the pool changes at random on tiny metadata disks.

use crate::harness::*;
use crate::model::{Driver, Mappings, Tally, dump};
use platform::block::{BlockDevice, Class, Disk, Io, Limits};
use platform::mem::MemDisk;
use platform::task::{Executor, block_on_ready};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use thinp::metadata::view::{VIEWS_MAX, View};
use thinp::metadata::{DataBlock, Metadata, MetadataError, OpenMode, Progress, VirtualBlock};

const ENDED: MetadataError = MetadataError::Storage(pdata::Error::Ended);

async fn open_view(metadata: &Metadata, holder: &str) -> thinp::metadata::Result<View> {
    metadata.open_view(holder, None, async || Ok(())).await
}

/// All that a view shows.
async fn contents(view: &View) -> thinp::metadata::Result<Mappings> {
    let mut all = Mappings::new();
    let mut devices = view.devices().await?;
    while let Some((device, details)) = devices.next().await? {
        let mut mappings = BTreeMap::new();
        let mut iter = view.mappings(device).await?;
        while let Some((block, data)) = iter.next().await? {
            mappings.insert(block.0, data.0);
        }
        assert_eq!(details.mapped_blocks, mappings.len() as u64);
        all.insert(device, mappings);
    }
    Ok(all)
}

/// The blocks that the metadata space map on a disk says are in use, read from its bytes alone.
fn used(disk: &MemDisk) -> BTreeSet<u64> {
    let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let root = disk.peek(192, 32);
    let (nr_blocks, index) = (u64_at(&root, 0), u64_at(&root, 16));
    let mut used = BTreeSet::new();
    for first in (0..nr_blocks).step_by(16_320) {
        let bitmap = u64_at(&disk.peek(index * 4096 + 16 + first / 16_320 * 16, 8), 0);
        let counts = disk.peek(bitmap * 4096 + 16, 4080);
        let in_use = |block: &u64| counts[(block - first) as usize / 4] >> ((block - first) % 4 * 2) & 3 != 0;
        used.extend((first..nr_blocks.min(first + 16_320)).filter(in_use));
    }
    used
}

/// A view beside what it should show.
struct Held {
    view: View,
    contents: Mappings,
    /// The disk as it was, and what of it was in use.
    moment: MemDisk,
    used: BTreeSet<u64>,
}

impl Held {
    async fn open(driver: &mut Driver) -> Option<Held> {
        let view = match open_view(&driver.metadata, "test").await {
            Ok(view) => view,
            Err(error) => {
                assert_eq!(error, MetadataError::TooManyViews { most: VIEWS_MAX });
                return None;
            }
        };
        driver.committed = driver.now.clone();
        let moment = driver.disk.fork();
        Some(Held { view, contents: driver.committed.clone(), used: used(&moment), moment })
    }

    /// It shows its moment, or was ended.
    async fn look(&self, disk: &MemDisk, tally: &mut Tally) {
        if self.view.is_ended() {
            *tally.entry("ended").or_default() += 1;
            return;
        }
        assert_eq!(contents(&self.view).await.unwrap(), self.contents);
        for block in &self.used {
            // Block 0 is the superblock, of which the view has its own copy.
            let (now, then) = (disk.peek(block * 4096, 4096), self.moment.peek(block * 4096, 4096));
            assert!(*block == 0 || now == then, "block {block} of a view was written");
        }
        let data = self.contents.values().flat_map(|mappings| mappings.values().copied()).next();
        if let Some(data) = data {
            assert!(self.view.data_block_count(DataBlock(data)).await.unwrap() > 0);
        }
        let report = self.view.check(1 << 20).await.unwrap();
        assert_eq!(Ok(&report), crate::harness::report(&self.moment).as_ref());
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        if let Some(snapshot) = self.view.metadata_snapshot().await.unwrap() {
            let of_moment = open_read_only(&self.moment).await.held_root();
            assert!(self.view.held_root() == of_moment && of_moment.is_some());
            contents(&snapshot).await.unwrap();
        }
        *tally.entry("looked").or_default() += 1;
    }
}

/// Status and free counts leave out what views hold back, exactly.
fn compare_free(metadata: &Metadata, disk: &MemDisk, held: &[Held], tally: &mut Tally) {
    let now = used(disk);
    let views = held.iter().filter(|held| !held.view.is_ended()).flat_map(|held| held.used.iter().copied());
    let held_back: BTreeSet<u64> = views.filter(|block| !now.contains(block)).collect();
    assert_eq!(metadata.held_back_blocks(), held_back.len() as u64);
    let total = metadata.metadata_blocks();
    let reserve = (total / 10).min(4096);
    let free = (total - now.len() as u64 - held_back.len() as u64).saturating_sub(reserve);
    assert_eq!(metadata.free_metadata_blocks(), free);
    assert!(metadata.held_back_blocks() <= total / 4);
    *tally.entry("held back").or_default() += u64::from(!held_back.is_empty());
}

async fn history(seed: u64, metadata_blocks: u64, data_blocks: u64, cache_blocks: usize, steps: u64) -> Tally {
    let disk = MemDisk::new(metadata_blocks * 8);
    let mut driver = Driver::new(disk.clone(), Disk::new(disk.clone()), seed, data_blocks, cache_blocks).await;
    let (mut held, mut tally) = (Vec::<Held>::new(), Tally::new());
    for _ in 0..steps {
        let reopened = driver.tally.get("reopen").copied();
        driver.step().await;
        if driver.tally.get("reopen").copied() != reopened {
            // As after a power cut: the views are gone, and with them all that they held back.
            for gone in held.drain(..).filter(|held| !held.contents.is_empty()) {
                assert_eq!(contents(&gone.view).await, Err(ENDED));
            }
            compare_free(&driver.metadata, &disk, &held, &mut tally);
        }
        match driver.dice.below(24) {
            0 => {
                held.extend(Held::open(&mut driver).await);
                compare_free(&driver.metadata, &disk, &held, &mut tally);
            }
            1 if !held.is_empty() => drop(held.swap_remove(driver.dice.below(held.len() as u64) as usize)),
            2 | 3 if !held.is_empty() => {
                held[driver.dice.below(held.len() as u64) as usize].look(&disk, &mut tally).await;
            }
            4 | 5 => {
                driver.commit().await;
                compare_free(&driver.metadata, &disk, &held, &mut tally);
                check(&disk);
                if driver.dice.chance(40) {
                    thin_check(&disk);
                }
            }
            _ => {}
        }
    }
    assert_eq!(dump(&disk).await, driver.committed);
    tally
}

#[test]
fn views_show_their_moment_to_their_end() {
    let seed = seed();
    let mut total = Tally::new();
    for round in 0..effort() {
        // Ample, short of data, short of metadata.
        for (n, (metadata_blocks, data_blocks)) in (0..).zip([(1024, 8000), (512, 700), (110, 20_000), (160, 20_000)]) {
            let cache_blocks = if n % 2 == 0 { 16 } else { 1000 };
            let seed = seed.wrapping_add(1000 * round + n);
            let tally = block_on_ready(history(seed, metadata_blocks, data_blocks, cache_blocks, 800));
            tally.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
        }
    }
    println!("{total:#?}");
    for what in ["ended", "looked", "held back"] {
        assert!(total.get(what).is_some_and(|count| *count > 0), "{what} is too rare: {total:?}");
    }
}

/// A device with so many mappings, committed.
async fn pool(disk: Disk, mappings: u64) -> Metadata {
    let metadata = format_on(disk, 100_000, CACHE).await;
    metadata.create_thin(id(1)).await.unwrap();
    metadata.open_device(id(1)).await.unwrap();
    for block in 0..mappings {
        provision(&metadata, id(1), block).await;
    }
    commit(&metadata).await;
    metadata
}

#[test]
fn as_many_views_as_promised_and_no_more() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 4000);
        let metadata = pool(Disk::new(disk.clone()), 0).await;
        let mut views = Vec::new();
        for block in 0..VIEWS_MAX as u64 {
            views.push(open_view(&metadata, &format!("job {block}")).await.unwrap());
            provision(&metadata, id(1), block).await;
        }
        let refused = open_view(&metadata, "one more").await.err();
        assert_eq!(refused, Some(MetadataError::TooManyViews { most: VIEWS_MAX }));
        for (mapped, view) in (0..).zip(&views) {
            assert_eq!(contents(view).await.unwrap()[&id(1)].len(), mapped);
        }
        let holders: Vec<String> = metadata.views().into_iter().map(|view| view.holder).collect();
        assert_eq!(holders.first().zip(holders.last()), Some((&"job 0".into(), &"job 15".into())));
        assert!(metadata.held_back_blocks() > 0);
        drop(views);
        assert_eq!((metadata.held_back_blocks(), metadata.views().len()), (0, 0));
    });
}

#[test]
fn full_metadata_ends_the_oldest_view_and_deletes_go_on() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 300);
        let metadata = pool(Disk::new(disk.clone()), 10_000).await;
        let oldest = open_view(&metadata, "oldest").await.unwrap();
        // Every leaf changes: what the view has of them is held back.
        metadata.create_snap(id(2), id(1)).await.unwrap();
        metadata.open_device(id(2)).await.unwrap();
        for block in (0..10_000).step_by(100) {
            provision(&metadata, id(1), block).await;
        }
        commit(&metadata).await;
        let younger = open_view(&metadata, "younger").await.unwrap();
        let (mut block, reserve) = (10_000, metadata.metadata_blocks() / 10);
        let error = loop {
            let data = metadata.reserve_data_block().await.unwrap();
            match metadata.insert(id(2), VirtualBlock(block), data).await {
                Ok(()) => block += 1,
                Err(error) => {
                    metadata.unreserve_data_block(data);
                    if error.spoils() || !metadata.any_changes() {
                        break error;
                    }
                    commit(&metadata).await;
                }
            }
            if metadata.is_tight() {
                commit(&metadata).await;
            }
            if metadata.free_metadata_blocks() == 0 {
                assert!(oldest.is_ended(), "the reserve is touched while a view holds blocks back");
            }
        };
        assert!(error.is_no_metadata_space());
        metadata.roll_back().await.unwrap();
        assert!(oldest.is_ended() && reserve > 0);
        assert_eq!(contents(&oldest).await, Err(ENDED));
        assert_eq!(oldest.check(1 << 20).await, Err(ENDED));
        drop(younger);
        let held = open_view(&metadata, "beside deletes").await.unwrap();
        metadata.close_device(id(1));
        metadata.close_device(id(2));
        for device in [1, 2] {
            while metadata.delete(id(device)).await.unwrap() != Progress::Complete {
                commit(&metadata).await;
                thin_check(&disk);
            }
            commit(&metadata).await;
        }
        drop(held);
        thin_check(&disk);
        assert_eq!((metadata.free_data_blocks(), metadata.held_back_blocks()), (100_000, 0));
    });
}

/// Holds the reads of views back while told to.
#[derive(Clone)]
struct Slow {
    inner: MemDisk,
    hold: Rc<Cell<bool>>,
    reads: Rc<RefCell<Vec<Io>>>,
}

impl BlockDevice for Slow {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        if self.hold.get() && io.request().flow.class == Class::Background {
            self.reads.borrow_mut().push(io)
        } else {
            self.inner.submit(io)
        }
    }
}

#[test]
fn a_view_ends_after_its_reads_in_flight() {
    let executor = Executor::new();
    let slow = Slow { inner: MemDisk::new(8 * 300), hold: Rc::default(), reads: Rc::default() };
    let metadata = Rc::new(block_on_ready(pool(Disk::new(slow.clone()), 20_000)));
    let view = Rc::new(block_on_ready(open_view(&metadata, "reader")).unwrap());
    slow.hold.set(true);
    let results = Rc::new(RefCell::new(Vec::new()));
    let (reader, seen) = (view.clone(), results.clone());
    executor.spawner().spawn(async move {
        let read = contents(&reader).await;
        seen.borrow_mut().push(read);
    });
    executor.run_ready(100);
    assert_eq!(slow.reads.borrow().len(), 1);
    // Rewrites one leaf after the other, until what the view holds back is too much.
    let writer = metadata.clone();
    let done = Rc::new(Cell::new(false));
    let written = done.clone();
    executor.spawner().spawn(async move {
        for time in 0..20 {
            for n in 0..50 {
                let data = writer.reserve_data_block().await.unwrap();
                let block = (time * 5_000 + n * 100) % 20_000;
                if writer.insert(id(1), VirtualBlock(block), data).await.is_err() {
                    writer.unreserve_data_block(data);
                }
            }
            commit(&writer).await;
        }
        written.set(true);
    });
    executor.run_ready(1_000_000);
    assert!(view.is_ended(), "{} blocks are held back", metadata.held_back_blocks());
    assert!(!done.get(), "the change waits for the read under way");
    slow.hold.set(false);
    let reads = slow.reads.take();
    reads.into_iter().for_each(|io| slow.inner.submit(io));
    executor.run_ready(1_000_000);
    assert!(done.get());
    assert_eq!(results.take(), [Err(ENDED)]);
    check(&slow.inner);
}

#[test]
fn a_view_commits_first_and_opens_read_only_pools() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = pool(Disk::new(disk.clone()), 10).await;
        provision(&metadata, id(1), 77).await;
        let view = open_view(&metadata, "test").await.unwrap();
        assert!(!metadata.any_changes());
        assert_eq!(contents(&view).await.unwrap(), dump(&disk).await);
        let other = Metadata::open(&runtime(), Disk::new(disk.clone()), OpenMode::Existing, 16, true).await.unwrap();
        let view = open_view(&other, "test").await.unwrap();
        assert_eq!(contents(&view).await.unwrap(), dump(&disk).await);
    });
}
