//! Looking mappings up, removing them, and sharing them with another device.

use super::{commit, details, device, format_on, id, map, open, sound};
use crate::control::DeviceId;
use crate::metadata::{Blocked, DataBlock, DataRun, MappedRange, Mapping, Metadata, MetadataError};
use crate::metadata::{Source, VirtualBlock};
use futures_util::future::join;
use platform::block::{BlockDevice, Disk, Io, IoError, Limits, Op};
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec::Vec;

async fn lookup(metadata: &Metadata, device: u64, block: u64) -> Option<Mapping> {
    metadata.lookup(id(device), VirtualBlock(block)).await.unwrap()
}

async fn mapped(metadata: &Metadata, device: u64) -> u64 {
    details(metadata, id(device)).await.mapped_blocks
}

async fn range(metadata: &Metadata, begin: u64, end: u64) -> Option<MappedRange> {
    metadata.mapped_range(id(1), VirtualBlock(begin), VirtualBlock(end)).await.unwrap()
}

fn run(begin: u64, end: u64, data_begin: u64, shared: bool) -> Option<MappedRange> {
    let data_begin = DataBlock(data_begin);
    Some(MappedRange { begin: VirtualBlock(begin), end: VirtualBlock(end), data_begin, shared })
}

#[test]
fn a_device_that_is_not_open_shows_nothing_though_it_was_just_made() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 200), 100).await;
        metadata.create_thin(id(1)).await.unwrap();
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(0)), Err(Blocked));
        assert_eq!(metadata.lookup(id(1), VirtualBlock(0)).await, Err(MetadataError::NotOpen(id(1))));
        assert_eq!(metadata.details(id(1)), None);
        metadata.open_device(id(1)).await.unwrap();
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(0)), Ok(None));
        assert!(metadata.details(id(1)).is_some());
    });
}

#[test]
fn a_mapped_range_ends_where_it_was_asked_to_and_where_sharing_changes() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 200), 100).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..10).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        assert_eq!(range(&metadata, 2, 5).await, run(2, 5, 2, false));
        assert_eq!(range(&metadata, 0, 100).await, run(0, 10, 0, false));
        assert_eq!(range(&metadata, 10, 100).await, None);
        metadata.create_snap(id(2), id(1)).await.unwrap();
        metadata.map_run(id(1), 10..14).await.unwrap();
        assert_eq!(range(&metadata, 8, 100).await, run(8, 10, 8, true));
        assert_eq!(range(&metadata, 10, 100).await, run(10, 14, 10, false));
    });
}

#[test]
fn a_mapping_beyond_the_data_disk_is_damage() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 200), 100).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_uncounted(id(1), 0, DataBlock(99)).await.unwrap();
        metadata.map_uncounted(id(1), 1, DataBlock(100)).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        let last = Mapping { block: DataBlock(99), shared: false };
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(0)), Ok(Some(last)));
        assert_eq!(lookup(&metadata, 1, 0).await, Some(last));
        let damage = MetadataError::BadMapping { device: id(1), block: 1, data_block: 100 };
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(1)), Err(Blocked));
        assert_eq!(metadata.lookup(id(1), VirtualBlock(1)).await, Err(damage));
        assert_eq!(metadata.mapped_range(id(1), VirtualBlock(1), VirtualBlock(2)).await, Err(damage));
    });
}

#[test]
fn as_many_mappings_are_removed_as_were_asked_for() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 200);
        let metadata = format_on(&disk, 1000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..900).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        let remove = async |begin, end, most| {
            metadata.remove_range(id(1), VirtualBlock(begin), VirtualBlock(end), most).await.unwrap()
        };
        let few = remove(0, 10, 5).await;
        assert_eq!((few.mappings, few.next), (5, Some(VirtualBlock(5))));
        assert_eq!(few.freed, [DataRun { begin: DataBlock(0), blocks: 5 }]);
        // More than go in one pass.
        let many = remove(5, 900, 300).await;
        assert_eq!((many.mappings, many.next), (300, Some(VirtualBlock(305))));
        let all = remove(305, 800, u64::MAX).await;
        assert_eq!((all.mappings, all.next), (495, None));
        assert_eq!(mapped(&metadata, 1).await, 100);
        commit(&metadata).await;
        sound(&disk);
    });
}

/// With too little room for the counts of many mappings: a few at a time, each with a commit of its own.
#[test]
fn without_room_a_few_mappings_are_removed_at_a_time() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = format_on(&disk, 1_000_000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..20).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        metadata.spare_only(120).await.unwrap();
        let remove = async |begin| metadata.remove_range(id(1), VirtualBlock(begin), VirtualBlock(20), 100).await;
        for (begin, mappings, next) in [(0, 8, Some(8)), (8, 8, Some(16)), (16, 4, None)] {
            let removed = remove(begin).await.unwrap();
            assert_eq!((removed.mappings, removed.next), (mappings, next.map(VirtualBlock)));
            assert!(metadata.is_tight());
            commit(&metadata).await;
        }
        assert_eq!(mapped(&metadata, 1).await, 0);
    });
}

/// Keeps reads while it is told to.
#[derive(Clone)]
struct Hold {
    inner: MemDisk,
    holds: Rc<Cell<bool>>,
    held: Rc<RefCell<Vec<Io>>>,
}

impl Hold {
    fn new(inner: &MemDisk) -> Hold {
        Hold { inner: inner.clone(), holds: Rc::default(), held: Rc::default() }
    }

    /// What it keeps fails; it keeps nothing more.
    fn fail(&self) {
        self.holds.set(false);
        let held = self.held.take();
        assert!(!held.is_empty());
        held.into_iter().for_each(|io| io.complete(Err(IoError::Gone)));
    }
}

impl BlockDevice for Hold {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        if self.holds.get() && io.request().op == Op::Read {
            self.held.borrow_mut().push(io);
        } else {
            self.inner.submit(io);
        }
    }
}

/// Devices 1 and 2, block 0 of each mapped, both open; of the tree of device 1 nothing is in memory.
async fn two_devices(disk: &MemDisk) -> (Hold, Metadata) {
    let metadata = format_on(disk, 100).await;
    for number in [1, 2] {
        device(&metadata, number, 0).await;
        map(&metadata, number, 0).await.unwrap();
    }
    commit(&metadata).await;
    let hold = Hold::new(disk);
    let metadata = open(Disk::new(hold.clone())).await;
    for number in [1, 2] {
        metadata.open_device(id(number)).await.unwrap();
    }
    map(&metadata, 2, 1).await.unwrap();
    (hold, metadata)
}

/// While a block was being read it may have become something else.
#[test]
fn a_read_that_fails_counts_only_if_nothing_changed_meanwhile() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 200);
        for (changes, looks) in [(false, false), (false, true), (true, false)] {
            let (hold, metadata) = two_devices(&disk).await;
            hold.holds.set(true);
            let (found, ()) = join(metadata.lookup(id(1), VirtualBlock(0)), async {
                if changes {
                    map(&metadata, 2, 2).await.unwrap();
                }
                if looks {
                    metadata.root(id(2)).await.unwrap();
                }
                hold.fail();
            })
            .await;
            match found {
                Ok(found) => assert!(changes && found.is_some()),
                Err(error) => assert!(!changes && !error.is_damage(), "{error}"),
            }
        }
    });
}

/// The clock and the two devices' times of their latest snapshots.
async fn times(metadata: &Metadata, a: DeviceId, b: DeviceId) -> [u32; 3] {
    [metadata.time(), details(metadata, a).await.snapshotted_time, details(metadata, b).await.snapshotted_time]
}

#[test]
fn what_was_shared_is_seen_as_shared_on_either_side() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 1000);
        let metadata = format_on(&disk, 100).await;
        device(&metadata, 1, 0).await;
        device(&metadata, 2, 0).await;
        for block in 0..2 {
            map(&metadata, 1, block).await.unwrap();
        }
        assert_eq!(times(&metadata, id(1), id(2)).await, [0, 0, 0]);
        let share = async |source, from, target, to, most| {
            let source = Source { device: id(source), first: VirtualBlock(from), stays: false };
            metadata.share(source, id(target), VirtualBlock(to), most).await.unwrap().blocks
        };
        assert_eq!(share(1, 0, 2, 7, 1).await, 1);
        // The clock ticks once, for there is no time before 0.
        assert_eq!(times(&metadata, id(1), id(2)).await, [1, 1, 1]);
        let shared = lookup(&metadata, 1, 0).await.unwrap();
        assert!(shared.shared && lookup(&metadata, 2, 7).await == Some(shared));

        // Device 4 is older than the snapshots and took no part in them: the clock goes on, not back, and so does the
        // time of the other, or what its snapshots have would be overwritten.
        device(&metadata, 4, 0).await;
        metadata.create_snap(id(3), id(1)).await.unwrap();
        metadata.create_snap(id(5), id(1)).await.unwrap();
        assert_eq!(metadata.time(), 3);
        let new = map(&metadata, 1, 5).await.unwrap();
        assert!(!lookup(&metadata, 1, 5).await.unwrap().shared);
        assert_eq!(share(1, 5, 4, 9, 1).await, 1);
        assert_eq!(times(&metadata, id(1), id(4)).await, [3, 3, 1]);
        let shared = Some(Mapping { block: new, shared: true });
        assert_eq!((lookup(&metadata, 1, 5).await, lookup(&metadata, 4, 9).await), (shared, shared));
        commit(&metadata).await;
        sound(&disk);
    });
}

/// A source that stays as it is shares what it sees as shared already: what it got as a snapshot.
#[test]
fn a_source_that_stays_has_the_same_tree_afterwards() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 1000);
        let metadata = format_on(&disk, 100).await;
        device(&metadata, 1, 0).await;
        device(&metadata, 2, 0).await;
        for block in 0..4 {
            map(&metadata, 1, block).await.unwrap();
        }
        metadata.create_snap(id(3), id(1)).await.unwrap();
        metadata.remove_range(id(1), VirtualBlock(0), VirtualBlock(4), 4).await.unwrap();
        metadata.open_device(id(3)).await.unwrap();
        let new = map(&metadata, 3, 2).await.unwrap();
        commit(&metadata).await;
        let root = metadata.root(id(3)).await.unwrap();
        let share = async |stays, first, to| {
            let source = Source { device: id(3), first: VirtualBlock(first), stays };
            metadata.share(source, id(2), VirtualBlock(to), 9).await.unwrap().blocks
        };
        assert_eq!([share(true, 0, 10).await, share(true, 2, 12).await, share(true, 3, 13).await], [2, 0, 1]);
        assert_eq!(metadata.root(id(3)).await.unwrap(), root);
        assert_eq!(share(false, 2, 12).await, 1);
        assert_ne!(metadata.root(id(3)).await.unwrap(), root);
        assert_eq!(lookup(&metadata, 2, 12).await.unwrap(), Mapping { block: new, shared: true });
        commit(&metadata).await;
        sound(&disk);
    });
}

#[test]
fn nothing_is_shared_when_metadata_blocks_run_short() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 1000), 100).await;
        device(&metadata, 1, 0).await;
        device(&metadata, 2, 0).await;
        map(&metadata, 1, 0).await.unwrap();
        for (spare, blocks) in [(256, 1), (255, 0)] {
            metadata.spare_only(spare).await.unwrap();
            let to = VirtualBlock(spare);
            let source = Source { device: id(1), first: VirtualBlock(0), stays: false };
            let shared = metadata.share(source, id(2), to, 1).await.unwrap();
            assert_eq!(shared.blocks, blocks, "{spare} blocks to spare");
            if blocks > 0 {
                metadata.remove_range(id(2), to, VirtualBlock(spare + 1), 1).await.unwrap();
                map(&metadata, 1, 0).await.unwrap();
            }
        }
    });
}
