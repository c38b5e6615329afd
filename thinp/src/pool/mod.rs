//! The pool: opening, thin devices and their snapshots, messages, status, growth.

mod check;
mod close;
mod commit;
mod delete;
mod message;
mod mode;
mod owner;
mod passdown;
mod view;

pub(crate) use delete::Deletion;
pub(crate) use mode::Reserved;

use crate::control::{DeviceId, DiscardPolicy, DiskBlocks, Mode, Status};
use crate::error::{Error, OpenError, PoolDisk};
use crate::metadata::{Details, Metadata, MetadataError, OpenMode};
use crate::open::{Format, inspect};
use crate::thin::{Device, Scratch, Thin};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use commit::Commits;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::time::Duration;
pub use message::Message;
use mode::State;
use passdown::Passdown;
use platform::Runtime;
use platform::block::Disk;
use platform::sync::{Notify, Semaphore};

/// The feature arguments of a pool's table line (reference 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Do not zero newly provisioned blocks: what the data disk held becomes readable.
    pub skip_block_zeroing: bool,
    /// Thin devices refuse discards.
    pub ignore_discard: bool,
    /// Discards unmap, and the data disk is not told.
    pub no_discard_passdown: bool,
    /// Open the metadata read-only.
    pub read_only: bool,
    /// Out of data space, writes fail at once instead of waiting.
    pub error_if_no_space: bool,
}

/// How a pool is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Whether a new pool may be made.
    pub format: Format,
    /// Sectors in a data block of a new pool; an existing pool keeps its own.
    pub data_block_sectors: u32,
    /// At so many free data blocks an event is raised.
    pub low_water_blocks: u64,
    /// Feature arguments.
    pub features: Features,
    /// Metadata blocks of 4 KiB to keep in memory.
    pub cache_blocks: usize,
    /// A change is committed after this time at the latest.
    pub commit_period: Duration,
    /// So long writes wait for data space before they fail; `None`: for ever.
    pub no_space_timeout: Option<Duration>,
}

impl Default for PoolOptions {
    /// What Linux does: 64 KiB blocks, a commit every second, a minute's wait for space.
    fn default() -> Self {
        PoolOptions {
            format: Format::default(),
            data_block_sectors: 128,
            low_water_blocks: 0,
            features: Features::default(),
            cache_blocks: 1024,
            commit_period: Duration::from_secs(1),
            no_space_timeout: Some(Duration::from_secs(60)),
        }
    }
}

/// An open pool. Clones are the same pool.
#[derive(Clone)]
pub struct Pool(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) runtime: Runtime,
    pub(crate) metadata: Metadata,
    pub(crate) data: Disk,
    pub(crate) options: PoolOptions,
    pub(crate) block_sectors: u64,
    pub(crate) state: State,
    pub(crate) commits: Commits,
    pub(crate) passdown: Passdown,
    pub(crate) scratch: Scratch,
    meta_disk: Disk,
    /// Active devices.
    devices: RefCell<BTreeMap<DeviceId, Weak<Device>>>,
    /// Told when a device becomes active, and when the pool ends.
    opened: Rc<Notify>,
    /// One change of the set of devices at a time, checks included.
    control: Semaphore,
    /// Devices that are being deleted, step by step.
    deleting: RefCell<BTreeSet<DeviceId>>,
    /// Devices that are being erased.
    pub(crate) erasing: RefCell<BTreeSet<DeviceId>>,
    /// The device that holds the pool's records, once it was found or made.
    pub(crate) reserved: Cell<Option<DeviceId>>,
    formatted: bool,
}

impl Pool {
    /// Opens the pool on two disks, or makes one where [`PoolOptions::format`] allows it. On an error nothing was
    /// written. A pool with needs_check set opens in read-only mode.
    pub async fn open(runtime: &Runtime, meta: Disk, data: Disk, options: PoolOptions) -> Result<Pool, OpenError> {
        let read_only = options.features.read_only;
        let mode = inspect(&runtime.bufs, &meta, &data, options.format, options.data_block_sectors).await?;
        if read_only && mode != OpenMode::Existing {
            return Err(OpenError::Blank);
        }
        for (disk, which) in [(&meta, PoolDisk::Metadata), (&data, PoolDisk::Data)] {
            if !read_only && disk.limits().read_only {
                return Err(OpenError::WriteProtected(which));
            }
        }
        // From here on whoever writes to them does so through these locks.
        let (meta, data) = (meta.lockable(), data.lockable());
        let scratch = Scratch::new(&runtime.bufs)?;
        // Buffers of its own: volumes that hold all others while they wait for space must not keep a commit, which may bring
        // it, from being written.
        let apart = Runtime { bufs: runtime.bufs.apart(METADATA_BUFS_BYTES), ..runtime.clone() };
        let metadata = Metadata::open(&apart, meta.clone(), mode, options.cache_blocks, read_only).await?;
        let block_sectors = metadata.data_block_sectors();
        let (disk_blocks, pool_blocks) = (data.size_sectors() / u64::from(block_sectors), metadata.data_blocks());
        if disk_blocks < pool_blocks {
            return Err(OpenError::DataTooSmall { disk_blocks, pool_blocks, block_sectors });
        }
        let changeable = !read_only && !metadata.needs_check();
        metadata.set_read_only(!changeable);
        let mode_at_start = if changeable { Mode::Write } else { Mode::ReadOnly };
        let inner = Rc::new(Inner {
            scratch,
            state: State::new(mode_at_start, options.features.error_if_no_space),
            commits: Commits::new(runtime.timers.now()),
            passdown: Passdown::default(),
            runtime: runtime.clone(),
            metadata,
            data,
            options,
            block_sectors: u64::from(block_sectors),
            meta_disk: meta,
            devices: RefCell::default(),
            opened: Rc::default(),
            control: Semaphore::new(1),
            deleting: RefCell::default(),
            erasing: RefCell::default(),
            reserved: Cell::new(None),
            formatted: mode != OpenMode::Existing,
        });
        inner.look_at_space();
        inner.start_periodic();
        if !read_only {
            inner.start_heartbeat();
        }
        Ok(Pool(inner))
    }

    /// The pool was made by this opening.
    pub fn formatted(&self) -> bool {
        self.0.formatted
    }

    /// Sectors in a data block.
    pub fn data_block_sectors(&self) -> u64 {
        self.0.block_sectors
    }

    /// The state now, uncommitted changes included ("no-flush").
    pub fn status(&self) -> Status {
        let (metadata, inner) = (&self.0.metadata, &*self.0);
        let metadata_total_blocks = metadata.metadata_blocks();
        let data_total_blocks = metadata.data_blocks();
        Status {
            transaction_id: metadata.transaction_id(),
            metadata_used_blocks: metadata_total_blocks.saturating_sub(metadata.free_metadata_blocks()),
            metadata_total_blocks,
            data_used_blocks: data_total_blocks.saturating_sub(metadata.free_data_blocks()),
            data_total_blocks,
            data_block_sectors: metadata.data_block_sectors(),
            held_root: metadata.held_root(),
            mode: inner.mode(),
            discard: inner.discard_policy(),
            error_if_no_space: inner.state.error_if_no_space(),
            needs_check: metadata.needs_check(),
            metadata_low_water_blocks: metadata.metadata_low_water_blocks(),
        }
    }

    /// The state after a commit, as a status query of dm-thin does it.
    pub async fn committed_status(&self) -> Result<Status, Error> {
        if self.0.mode() < Mode::ReadOnly {
            self.0.commit().await?;
        }
        Ok(self.status())
    }

    /// Another host has taken the pool over; this one does not use it any more.
    pub fn is_taken_over(&self) -> bool {
        self.0.state.is_taken_over()
    }

    /// How far the pool could [`grow`](Pool::grow) now.
    pub fn disk_blocks(&self) -> DiskBlocks {
        self.0.disk_blocks()
    }

    /// Counts events: changes of mode, low water, the end of the wait for space.
    pub fn events(&self) -> u64 {
        self.0.state.events()
    }

    /// Waits until the count of events is no longer `seen` (or the pool is closed) and returns it.
    pub async fn event_after(&self, seen: u64) -> u64 {
        self.0.state.event_after(seen).await
    }

    /// All devices by id.
    pub async fn devices(&self) -> Result<Vec<(DeviceId, Details)>, Error> {
        self.0.check_working()?;
        Ok(self.0.metadata.devices().await?)
    }

    /// Root of a device's tree, up to the moment: what shows whether its mappings are those of before.
    pub async fn root(&self, device: DeviceId) -> Result<u64, Error> {
        self.0.check_working()?;
        Ok(self.0.metadata.root(device).await?)
    }

    /// Carries out the text of a `dmsetup message` and returns its answer, which is empty for all that exist.
    pub async fn message(&self, text: &str) -> Result<String, Error> {
        self.0.check_owned()?;
        if matches!(self.0.mode(), Mode::ReadOnly | Mode::Fail) {
            return Err(Error::MessageRefused(self.0.mode()));
        }
        match Message::parse(text)? {
            Message::CreateThin(device) => self.create_thin(device).await?,
            Message::CreateSnap { device, origin } => self.create_snap(device, origin).await?,
            Message::Delete(device) => self.delete(device).await?,
            Message::SetTransactionId { current, new } => self.set_transaction_id(current, new).await?,
            Message::ReserveMetadataSnap => self.reserve_metadata_snap().await.map(|_| ())?,
            Message::ReleaseMetadataSnap => self.release_metadata_snap().await?,
        }
        Ok(String::new())
    }

    /// Makes an empty device and commits.
    pub async fn create_thin(&self, device: DeviceId) -> Result<(), Error> {
        self.control(Needs::Space, async move |inner: Rc<Inner>| {
            inner.change(async || inner.metadata.create_thin(device).await).await?;
            inner.commit().await
        })
        .await
    }

    /// Makes a snapshot of a device, which may be active, and commits.
    pub async fn create_snap(&self, device: DeviceId, origin: DeviceId) -> Result<(), Error> {
        self.control(Needs::Space, async move |inner: Rc<Inner>| {
            inner.check_not_reserved(origin)?;
            inner.check_not_deleting(origin)?;
            inner.check_not_erasing(origin)?;
            let active = inner.active(origin);
            let quiet = match &active {
                Some(active) => Some(active.quiesce().await),
                None => None,
            };
            inner.change(async || inner.metadata.create_snap(device, origin).await).await?;
            drop(quiet);
            inner.commit().await
        })
        .await
    }

    /// Changes userland's transaction id from `current` to `new`, and commits.
    pub async fn set_transaction_id(&self, current: u64, new: u64) -> Result<(), Error> {
        self.control(Needs::Space, async move |inner: Rc<Inner>| {
            inner.change(async || inner.metadata.set_transaction_id(current, new).await).await?;
            inner.commit().await
        })
        .await
    }

    /// Takes a metadata snapshot and returns the metadata block of its superblock (reference 6.7). [`Error::Erasing`] while a
    /// device is being erased.
    pub async fn reserve_metadata_snap(&self) -> Result<u64, Error> {
        self.control(Needs::Space, async move |inner: Rc<Inner>| {
            inner.check_none_erasing()?;
            let _held = inner.commits.hold().await;
            let result = inner.metadata.reserve_metadata_snap(async || inner.data.flush().await).await;
            let block = inner.changed(result).await?;
            inner.look_at_space();
            Ok(block)
        })
        .await
    }

    /// Grows the pool to the present sizes of its disks, like a resume after a reload (reference 7.7).
    pub async fn grow(&self) -> Result<(), Error> {
        self.control(Needs::Nothing, async move |inner: Rc<Inner>| {
            let (metadata, disks) = (&inner.metadata, inner.disk_blocks());
            // Metadata first, and committed, as is what was freed: more data needs more of it.
            if disks.metadata != metadata.metadata_blocks() {
                let result = metadata.grow_metadata(disks.metadata).await;
                inner.changed(result).await?;
            }
            inner.commit().await?;
            if disks.data != metadata.data_blocks() {
                let result = metadata.grow_data(disks.data).await;
                inner.changed(result).await?;
            }
            inner.commit().await
        })
        .await
    }

    /// Makes everything that completed before durable.
    pub async fn commit(&self) -> Result<(), Error> {
        self.0.commit().await
    }

    /// Opens a device. It is active while the handle, or a clone of it, lives. A device that is active already gets
    /// another handle, and keeps the external origin it was first opened with.
    pub async fn open_thin(&self, device: DeviceId, origin: Option<Disk>) -> Result<Thin, Error> {
        self.0.check_not_reserved(device)?;
        self.open_any(device, origin).await
    }

    /// As [`Pool::open_thin`], the reserved device included.
    pub(crate) async fn open_any(&self, device: DeviceId, origin: Option<Disk>) -> Result<Thin, Error> {
        let inner = self.0.clone();
        self.detached(async move {
            let _control = inner.control.acquire(1).await;
            inner.check_working()?;
            inner.check_not_deleting(device)?;
            if let Some(active) = inner.active(device) {
                return Ok(Thin::new(active));
            }
            inner.metadata.open_device(device).await?;
            let active = Rc::new(Device::new(inner.clone(), device, origin));
            inner.devices.borrow_mut().insert(device, Rc::downgrade(&active));
            inner.opened.notify_all();
            Ok(Thin::new(active))
        })
        .await
    }

    /// Runs a change of the set of devices, alone, as a task of its own: dropping the future does not
    /// stop it half-way.
    pub(crate) async fn control<T: 'static>(
        &self,
        needs: Needs,
        work: impl AsyncFnOnce(Rc<Inner>) -> Result<T, Error> + 'static,
    ) -> Result<T, Error> {
        let inner = self.0.clone();
        self.detached(async move {
            let _alone = inner.control.acquire(1).await;
            inner.check_message(needs)?;
            work(inner.clone()).await.map_err(|error| match error {
                // The mode does not keep it from working, the space does.
                Error::Refused(Mode::OutOfMetadataSpace) if needs == Needs::Nothing => {
                    MetadataError::NoMetadataSpace.into()
                }
                Error::Refused(mode) => Error::MessageRefused(mode),
                other => other,
            })
        })
        .await
    }

    pub(crate) async fn detached<T: 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + 'static,
    ) -> Result<T, Error> {
        self.0.runtime.spawner.spawn(work).await.unwrap_or(Err(Error::Closed))
    }
}

/// Budget of buffers for metadata I/O under way.
const METADATA_BUFS_BYTES: usize = 1 << 20;

/// The metadata map's limit (reference 1.5).
const METADATA_BLOCKS_MAX: u64 = 255 * 16_320;

/// What a message needs of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Free metadata.
    Space,
    /// It frees metadata itself, and works from the reserve.
    Nothing,
}

impl Inner {
    fn disk_blocks(&self) -> DiskBlocks {
        DiskBlocks {
            metadata: (self.meta_disk.size_sectors() / 8).min(METADATA_BLOCKS_MAX),
            data: self.data.size_sectors() / self.block_sectors,
        }
    }

    fn check_message(&self, needs: Needs) -> Result<(), Error> {
        if self.state.closed() {
            return Err(Error::Closed);
        }
        match self.mode() {
            Mode::Write | Mode::OutOfDataSpace => Ok(()),
            Mode::OutOfMetadataSpace if needs == Needs::Nothing => Ok(()),
            _ if self.state.is_taken_over() => Err(Error::TakenOver),
            mode => Err(Error::MessageRefused(mode)),
        }
    }

    /// Reads are possible.
    pub(crate) fn check_working(&self) -> Result<(), Error> {
        if self.state.closed() {
            return Err(Error::Closed);
        }
        if self.mode() == Mode::Fail { Err(self.state.refusal()) } else { Ok(()) }
    }

    /// No other host is known to have the pool.
    fn check_owned(&self) -> Result<(), Error> {
        if self.state.is_taken_over() { Err(Error::TakenOver) } else { Ok(()) }
    }

    pub(crate) fn check_not_reserved(&self, device: DeviceId) -> Result<(), Error> {
        if self.reserved.get() == Some(device) { Err(Error::Reserved(device)) } else { Ok(()) }
    }

    pub(crate) fn check_not_deleting(&self, device: DeviceId) -> Result<(), Error> {
        if self.deleting.borrow().contains(&device) { Err(Error::Deleting(device)) } else { Ok(()) }
    }

    pub(crate) fn check_not_active(&self, device: DeviceId) -> Result<(), Error> {
        if self.active(device).is_some() { Err(Error::Active(device)) } else { Ok(()) }
    }

    pub(crate) fn active(&self, device: DeviceId) -> Option<Rc<Device>> {
        self.devices.borrow().get(&device).and_then(Weak::upgrade)
    }

    /// All devices that are active.
    pub(crate) fn all_active(&self) -> Vec<Rc<Device>> {
        self.devices.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// The last handle of a device is gone.
    pub(crate) fn inactive(&self, device: DeviceId) {
        self.devices.borrow_mut().remove(&device);
        self.metadata.close_device(device);
    }

    /// What becomes of discards, the data disk's abilities taken into account.
    pub(crate) fn discard_policy(&self) -> DiscardPolicy {
        let features = &self.options.features;
        if features.ignore_discard {
            DiscardPolicy::Ignore
        } else if features.no_discard_passdown || self.data.limits().discard_sectors_max < self.block_sectors {
            DiscardPolicy::NoPassdown
        } else {
            DiscardPolicy::Passdown
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.commits.wake_periodic();
        self.opened.notify_all();
    }
}
