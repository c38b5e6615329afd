//! Views: readers of one moment, any number of them beside each other and beside the pool that goes on.
//!
//! The format has one metadata snapshot, and that is the user's. A [`View`] is of nobody but its reader: it pins one
//! committed superblock and what that leads to, space maps included, in memory (see [`pdata::pins`]). After a crash there
//! are no views, and nothing of them is on disk. Data blocks are not pinned: a view says where data was, not that it is
//! still there.
//!
//! What views hold back is not free: neither for the status nor for modes and low water. It never comes to more than a
//! quarter of the metadata blocks, and before the pool's reserve is touched or a change refused for want of metadata
//! blocks, the oldest view is ended: its reads under way are awaited, its later ones fail with [`pdata::Error::Ended`].

use super::check::{self, Report};
use super::superblock::{self, SUPERBLOCK, Superblock};
use super::trees::{DETAILS, DetailsRecord, Entries, Packed};
use super::{DataBlock, Details, Metadata, MetadataError, Result, VirtualBlock};
use crate::control::DeviceId;
use alloc::rc::{Rc, Weak};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use pdata::block_manager::{BlockManager, Pace};
use pdata::btree::{BTree, Plain};
use pdata::pins::Pin;
use pdata::space_map::DiskMap;
use platform::Runtime;
use platform::block::{Class, Disk, Flow, IoError};
use platform::buf::BufPool;
use platform::time::Instant;
use zerocopy::little_endian::U64;

/// Thin id to the root of a device's tree, to be read.
const ROOTS: BTree<Plain<U64>> = BTree::plain();

/// Views that are open at a time, at most.
pub const VIEWS_MAX: usize = 16;

/// Blocks that a view keeps in memory.
const CACHE_BLOCKS: usize = 64;

/// Budget of buffers for the reads of all views.
const BUFS_BYTES: usize = 1 << 20;

/// Views hold back at most a part in so many of the metadata blocks.
const HELD_BACK_SHARE: u64 = 4;

/// One committed state, to be read: of a disk that nobody changes, or of a view.
pub(super) struct Committed {
    pub blocks: Rc<BlockManager>,
    pub superblock: Superblock,
}

impl Committed {
    pub async fn on_disk(runtime: &Runtime, disk: &Disk) -> Result<Committed> {
        let blocks = BlockManager::new(disk.clone(), runtime.bufs.clone(), 0);
        let superblock = Superblock::open(&*blocks.read_raw(SUPERBLOCK).await?, true)?;
        Ok(Committed { blocks: Rc::new(blocks), superblock })
    }

    /// The metadata snapshot that it holds, if it holds one.
    pub async fn snapshot(&self) -> Result<Option<Committed>> {
        let Some(held) = self.superblock.held_root() else { return Ok(None) };
        let superblock = Superblock::of_snapshot(&self.blocks.read(held, &superblock::KIND).await?.bytes())?;
        Ok(Some(Committed { blocks: self.blocks.clone(), superblock }))
    }

    /// The root of a device's tree.
    pub async fn root_of(&self, device: DeviceId) -> Result<u64> {
        let (root, key) = (self.superblock.mapping_root.get(), device.get().into());
        let found = self.blocks.look(|blocks| ROOTS.try_lookup(blocks, root, key)).await?;
        found.map(U64::get).ok_or(MetadataError::NoDevice(device))
    }

    /// The details of a device.
    pub async fn details_of(&self, device: DeviceId) -> Result<Details> {
        let (root, key) = (self.superblock.details_root.get(), device.get().into());
        let found = self.blocks.look(|blocks| DETAILS.try_lookup(blocks, root, key)).await?;
        found.map(Details::from).ok_or(MetadataError::NoDevice(device))
    }

    /// The devices, in order.
    pub async fn devices(&self) -> Result<Devices<'_>> {
        let (mapping_root, details_root) = (self.superblock.mapping_root.get(), self.superblock.details_root.get());
        Ok(Devices {
            roots: Entries::open(&self.blocks, mapping_root).await?,
            details: Entries::open(&self.blocks, details_root).await?,
            details_root,
        })
    }
}

/// The devices of one committed state.
pub(super) struct Devices<'a> {
    roots: Entries<'a, U64>,
    details: Entries<'a, DetailsRecord>,
    details_root: u64,
}

impl Devices<'_> {
    /// The next device: its id, the root of its tree, and its details.
    pub async fn next(&mut self) -> Result<Option<(DeviceId, u64, Details)>> {
        let Some((id, root, details)) = self.next_of_any_id().await? else { return Ok(None) };
        let device = DeviceId::new(id).ok_or_else(|| self.damaged("a device has an id of more than 24 bits"))?;
        Ok(Some((device, root, details)))
    }

    /// As [`Devices::next`], for those who do not mind whether the id is one that a device can have.
    pub async fn next_of_any_id(&mut self) -> Result<Option<(u64, u64, Details)>> {
        match (self.roots.next().await?, self.details.next().await?) {
            (None, None) => Ok(None),
            (Some((id, root)), Some((same, record))) if id == same => Ok(Some((id, root.get(), record.into()))),
            _ => Err(self.damaged("it has not the same devices as the mapping tree").into()),
        }
    }

    fn damaged(&self, what: &'static str) -> pdata::Error {
        pdata::Error::Damaged { block: self.details_root, kind: "details tree", what }
    }
}

/// The views of one [`Metadata`].
pub(super) struct Views {
    listed: RefCell<Vec<Rc<Listed>>>,
    bufs: BufPool,
}

/// A view as it is told of, until it holds no block back any more.
struct Listed {
    pin: Weak<Pin>,
    holder: String,
    since: Instant,
    /// It was ended, and waits for reads under way.
    ending: Cell<Option<Instant>>,
}

/// What is told of a view.
pub struct Shown {
    /// Who has it.
    pub holder: String,
    /// When it was opened.
    pub since: Instant,
    /// When it was ended, if reads that are still under way keep it from giving its blocks back.
    pub ending: Option<Instant>,
    /// Metadata blocks that it holds back, alone or with others.
    pub held_back_blocks: u64,
}

impl Views {
    pub fn new(runtime: &Runtime) -> Views {
        Views { listed: RefCell::default(), bufs: runtime.bufs.apart(BUFS_BYTES) }
    }

    /// Those that may hold blocks back, oldest first, and how many.
    fn listed(&self) -> Vec<(Rc<Listed>, Rc<Pin>, u64)> {
        let held = |view: &Rc<Listed>| {
            let pin = view.pin.upgrade()?;
            let blocks = pin.held_back_blocks()?;
            Some((view.clone(), pin, blocks))
        };
        let mut listed = self.listed.borrow_mut();
        let held: Vec<_> = listed.iter().filter_map(held).collect();
        *listed = held.iter().map(|(view, ..)| view.clone()).collect();
        held
    }
}

/// A reader's hold on one moment of a pool, until it is dropped or [ended](self).
pub struct View {
    pin: Rc<Pin>,
    pub(super) committed: Committed,
}

impl Metadata {
    /// Opens a view of this moment. Commits first if anything changed. `holder` tells who has it; with
    /// `bytes_per_second` it never reads faster than that.
    pub async fn open_view(
        &self,
        holder: &str,
        bytes_per_second: Option<u64>,
        flush_data: impl AsyncFnOnce() -> Result<(), IoError>,
    ) -> Result<View> {
        let change = self.look().await?;
        if self.any_changes() {
            if self.read_only.get() {
                return Err(MetadataError::ReadOnly);
            }
            self.commit_in(&change, flush_data).await?;
        }
        if self.views.listed().len() >= VIEWS_MAX {
            return Err(MetadataError::TooManyViews { most: VIEWS_MAX });
        }
        let core = &change.core;
        let pin = core.tm.pin().await?;
        let disk = self.disk.with_flow(Flow { class: Class::Background, volume: 0 });
        let pace = bytes_per_second.map(|bytes| Pace::new(&self.runtime.timers, bytes));
        let blocks = BlockManager::reader(disk, self.views.bufs.clone(), CACHE_BLOCKS, pin.clone(), pace);
        let (holder, since, ending) = (holder.to_string(), self.runtime.timers.now(), Cell::new(None));
        let listed = Rc::new(Listed { pin: Rc::downgrade(&pin), holder, since, ending });
        self.views.listed.borrow_mut().push(listed);
        let superblock = core.committed.get();
        Ok(View { pin, committed: Committed { blocks: Rc::new(blocks), superblock } })
    }

    /// Commits since this was opened.
    pub fn commits(&self) -> u64 {
        self.core.borrow().tm.pins().commits()
    }

    /// Who holds views, and since when, the oldest first: also those that were ended and still hold blocks back.
    pub fn views(&self) -> Vec<Shown> {
        let shown = |(view, _, held_back_blocks): (Rc<Listed>, Rc<Pin>, u64)| Shown {
            holder: view.holder.clone(),
            since: view.since,
            ending: view.ending.get(),
            held_back_blocks,
        };
        self.views.listed().into_iter().map(shown).collect()
    }

    /// Metadata blocks that nothing but views uses any more.
    pub fn held_back_blocks(&self) -> u64 {
        self.core.borrow().tm.pins().held_back_blocks()
    }

    /// Ends all views at once: somebody else may overwrite what they show.
    pub fn revoke_views(&self) {
        self.views.listed().iter().for_each(|(_, pin, _)| pin.revoke());
    }

    /// Ends views, the oldest first, until there is room without them and they hold back no more than they may.
    pub(super) async fn end_views_for_room(&self) {
        let within = || self.held_back_blocks() <= self.metadata_blocks() / HELD_BACK_SHARE;
        self.end_views_until(|| within() && self.has_room()).await;
    }

    /// Ends views, the oldest first, until there is enough without them, or they hold nothing back.
    pub(super) async fn end_views_until(&self, enough: impl Fn() -> bool) {
        while self.held_back_blocks() > 0 && !enough() {
            let open = self.views.listed().into_iter().find(|(view, ..)| view.ending.get().is_none());
            let Some((oldest, pin, _)) = open else { return };
            log::warn!("metadata blocks run short: the view of {} is ended", oldest.holder);
            oldest.ending.set(Some(self.runtime.timers.now()));
            pin.end().await;
        }
    }
}

impl View {
    /// It was ended because its blocks were needed; what it is has to read for it fails with [`pdata::Error::Ended`].
    pub fn is_ended(&self) -> bool {
        self.pin.is_ended()
    }

    /// Which commit it shows, as [`Metadata::commits`] counts them.
    pub fn commit(&self) -> u64 {
        self.pin.commit()
    }

    /// Userland's transaction id.
    pub fn transaction_id(&self) -> u64 {
        self.committed.superblock.transaction_id.get()
    }

    /// Metadata blocks in use.
    pub fn metadata_blocks_in_use(&self) -> u64 {
        self.committed.superblock.metadata_space_map.root.nr_allocated.get()
    }

    /// Metadata blocks read through this view so far.
    pub fn blocks_read(&self) -> u64 {
        self.committed.blocks.blocks_read()
    }

    /// Block of the metadata snapshot that was held.
    pub fn held_root(&self) -> Option<u64> {
        self.committed.superblock.held_root()
    }

    /// The metadata snapshot that was held at that moment, if one was: as a view of its own moment, which lasts as long as
    /// this one.
    pub async fn metadata_snapshot(&self) -> Result<Option<View>> {
        let snapshot = self.committed.snapshot().await?;
        Ok(snapshot.map(|committed| View { pin: self.pin.clone(), committed }))
    }

    /// The devices with their details, in order.
    pub async fn devices(&self) -> Result<ViewDevices<'_>> {
        Ok(ViewDevices(self.committed.devices().await?))
    }

    /// The mappings of a device, in order.
    pub async fn mappings(&self, device: DeviceId) -> Result<ViewMappings<'_>> {
        let root = self.committed.root_of(device).await?;
        Ok(ViewMappings(Entries::open(&self.committed.blocks, root).await?))
    }

    /// How many leaves referred to a data block, as the space map had it.
    pub async fn data_block_count(&self, block: DataBlock) -> Result<u32> {
        let map = DiskMap::open(&self.committed.superblock.data_space_map.root);
        Ok(self.committed.blocks.look(|blocks| map.try_count(blocks, block.0)).await?)
    }

    /// Checks everything, with the verdicts of [`check`](check::check).
    pub async fn check(&self, memory_bytes: usize) -> Result<Report> {
        let report = check::check_committed(&self.committed, memory_bytes).await;
        // What could not be read for this is no damage.
        if self.is_ended() { Err(pdata::Error::Ended.into()) } else { Ok(report) }
    }
}

/// Devices of a [`View`].
pub struct ViewDevices<'a>(Devices<'a>);

impl ViewDevices<'_> {
    /// The next device.
    pub async fn next(&mut self) -> Result<Option<(DeviceId, Details)>> {
        Ok(self.0.next().await?.map(|(device, _, details)| (device, details)))
    }
}

/// Mappings of a [`View`]'s device.
pub struct ViewMappings<'a>(Entries<'a, Packed>);

impl ViewMappings<'_> {
    /// The next mapping.
    pub async fn next(&mut self) -> Result<Option<(VirtualBlock, DataBlock)>> {
        let next = self.0.next().await?;
        Ok(next.map(|(block, packed)| (VirtualBlock(block), packed.block())))
    }
}
