//! Metadata blocks on a disk behind a bounded write-back cache.
//!
//! A block is checked when it is read and sealed (number and checksum) when it is written; in between it is only
//! bytes. Reads of one block at a time share one request. A dirty block is always a block of the open transaction
//! that no committed block refers to, so it may be written at any time: early, when the cache fills up, or at commit.

mod batch;
mod reader;
#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use reader::Pace;

use crate::block::{BLOCK_BYTES, BLOCK_SECTORS, Block, BlockKind};
use crate::{Error, Result};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, Ref, RefCell, RefMut};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use platform::block::{Bufs, Completion, Disk, IoError, Op, SECTOR_BYTES};
use platform::buf::{Buf, BufPool};
use platform::sync::{Notify, Semaphore};
use reader::Reader;
use smallvec::SmallVec;

/// Most writes under way at once.
const WRITES_IN_FLIGHT_MAX: usize = 64;

/// Most blocks in one write: enough that the request costs little next to its blocks.
const WRITE_BLOCKS_MAX: usize = 8;

/// Why a plain call that reads blocks did not get through.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// A block is not in the cache: [`BlockManager::read`] it and try again.
    Miss {
        /// The block.
        block: u64,
        /// What it is read as.
        kind: &'static BlockKind,
    },
    /// It can never succeed.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

/// A cached block. Whoever holds an `Rc` of it pins it.
// In this order a lookup finds all that it wants, a node's header included, in two lines of the processor's cache.
#[repr(C)]
struct Frame {
    number: Cell<u64>,
    kind: &'static BlockKind,
    /// Index in [`Cache::ring`].
    place: Cell<usize>,
    dirty: Cell<bool>,
    /// Used since the clock's hand last passed.
    used: Cell<bool>,
    bytes: RefCell<Block>,
}

impl Frame {
    fn new(number: u64, kind: &'static BlockKind, bytes: &Block) -> Rc<Frame> {
        Rc::new(Frame {
            number: Cell::new(number),
            kind,
            place: Cell::new(0),
            dirty: Cell::new(false),
            used: Cell::new(true),
            bytes: RefCell::new(*bytes),
        })
    }
}

/// A block to read. Stays in the cache as long as this lives.
#[derive(Clone)]
pub struct BlockRef(Rc<Frame>);

impl BlockRef {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.0.number.get()
    }

    /// Its bytes. Not to be held across an `.await`.
    pub fn bytes(&self) -> Ref<'_, Block> {
        self.0.bytes.borrow()
    }
}

/// A block of the open transaction, to be changed.
pub struct BlockMut<'a> {
    frame: Rc<Frame>,
    manager: &'a BlockManager,
}

impl BlockMut<'_> {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.frame.number.get()
    }

    /// Its bytes. Not to be held across an `.await`.
    pub fn bytes(&self) -> Ref<'_, Block> {
        self.frame.bytes.borrow()
    }

    /// Its bytes to change. Not to be held across an `.await`.
    pub fn bytes_mut(&self) -> RefMut<'_, Block> {
        // Marked at every access, not once: an early write-out may have cleaned the frame since the last.
        self.manager.mark_dirty(&self.frame);
        self.frame.bytes.borrow_mut()
    }
}

enum Slot {
    /// Being read; told when that ended, well or not.
    Loading(Rc<Notify>),
    Ready(Rc<Frame>),
}

#[derive(Default)]
struct Cache {
    slots: HashMap<u64, Slot>,
    /// All frames of `slots`, in the clock's order.
    ring: Vec<Rc<Frame>>,
    hand: usize,
    /// Dirty frames, and some that are no longer.
    dirty: Vec<Rc<Frame>>,
}

impl Cache {
    fn insert(&mut self, frame: Rc<Frame>, limit: usize) {
        while self.ring.len() >= limit && self.evict() {}
        frame.place.set(self.ring.len());
        self.ring.push(frame.clone());
        self.slots.insert(frame.number.get(), Slot::Ready(frame));
    }

    /// Drops whatever is known of a block.
    fn forget(&mut self, number: u64) {
        if let Some(Slot::Ready(old)) = self.slots.remove(&number) {
            old.dirty.set(false);
            self.remove_from_ring(&old);
        }
    }

    fn remove_from_ring(&mut self, frame: &Frame) {
        let place = frame.place.get();
        if place < self.ring.len() {
            self.ring.swap_remove(place);
        }
        if let Some(moved) = self.ring.get(place) {
            moved.place.set(place);
        }
    }

    /// Drops one clean frame that nobody holds; false if there is none. The clock's hand passes a frame that was
    /// used since it last came by.
    fn evict(&mut self) -> bool {
        for _ in 0..self.ring.len().saturating_mul(2) {
            if self.hand >= self.ring.len() {
                self.hand = 0;
            }
            let Some(frame) = self.ring.get(self.hand) else { return false };
            // One owner is the slot, one the ring.
            let free = !frame.dirty.get() && Rc::strong_count(frame) == 2;
            if free && !frame.used.replace(false) {
                let frame = frame.clone();
                self.slots.remove(&frame.number.get());
                self.remove_from_ring(&frame);
                log::trace!("cached block evicted");
                return true;
            }
            self.hand += 1;
        }
        false
    }
}

/// The blocks of one disk, cached.
pub struct BlockManager {
    disk: Disk,
    bufs: BufPool,
    cache: RefCell<Cache>,
    cache_blocks: usize,
    /// One write-out at a time, so that two versions of a block are never under way together.
    writing: Semaphore,
    /// What is read is a former commit.
    reader: Option<Reader>,
}

impl BlockManager {
    /// The blocks of `disk`. The cache holds about `cache_blocks` of them; `bufs` is where I/O buffers come from.
    pub fn new(disk: Disk, bufs: BufPool, cache_blocks: usize) -> BlockManager {
        let cache_blocks = cache_blocks.max(16);
        let (cache, writing) = (RefCell::default(), Semaphore::new(1));
        BlockManager { disk, bufs, cache, cache_blocks, writing, reader: None }
    }

    /// Whole blocks on the disk now.
    pub fn disk_blocks(&self) -> u64 {
        self.disk.size_sectors() / BLOCK_SECTORS
    }

    /// How many blocks somebody who wants to read `wanted` ahead may hold at once without crowding the cache.
    pub fn read_ahead(&self, wanted: usize) -> usize {
        wanted.min(self.cache_blocks / 4).max(1)
    }

    /// Blocks in the cache now.
    pub fn cached_blocks(&self) -> usize {
        self.cache.borrow().ring.len()
    }

    /// A block, if it is in the cache.
    pub fn try_read(&self, number: u64, kind: &'static BlockKind) -> Result<BlockRef, Stop> {
        let cache = self.cache.borrow();
        match cache.slots.get(&number) {
            Some(Slot::Ready(frame)) if frame.kind == kind => {
                frame.used.set(true);
                Ok(BlockRef(frame.clone()))
            }
            Some(Slot::Ready(frame)) => {
                let what =
                    if frame.dirty.get() { "it is newly in use as another kind" } else { "it is of another kind" };
                Err(Stop::Failed(Error::Damaged { block: number, kind: kind.name, what }))
            }
            Some(Slot::Loading(_)) | None => Err(Stop::Miss { block: number, kind }),
        }
    }

    /// A block, read and checked if it is not in the cache.
    pub async fn read(&self, number: u64, kind: &'static BlockKind) -> Result<BlockRef> {
        loop {
            match self.try_read(number, kind) {
                Ok(block) => return Ok(block),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Miss { .. }) => {}
            }
            let notify = match self.cache.borrow_mut().slots.entry(number) {
                Entry::Occupied(slot) => match slot.get() {
                    Slot::Loading(notify) => Ok(notify.clone()),
                    Slot::Ready(_) => continue,
                },
                Entry::Vacant(slot) => {
                    let notify = Rc::new(Notify::new());
                    slot.insert(Slot::Loading(notify.clone()));
                    Err(notify)
                }
            };
            match notify {
                Ok(somebody_elses) => somebody_elses.notified().await,
                Err(ours) => {
                    let loading = Loading { manager: self, number, notify: ours };
                    let bytes = self.fetch(number, kind).await?;
                    loading.finish(&bytes, kind);
                }
            }
        }
    }

    /// Several blocks, whose reads are under way together.
    pub async fn read_many(
        &self,
        numbers: impl IntoIterator<Item = u64>,
        kind: &'static BlockKind,
    ) -> Result<Vec<BlockRef>> {
        try_join_all(numbers.into_iter().map(|number| self.read(number, kind))).await
    }

    /// Runs `look` until every block that it asks for is in the cache.
    pub async fn look<T>(&self, mut look: impl FnMut(&BlockManager) -> Result<T, Stop>) -> Result<T> {
        // What was fetched stays pinned, or a tiny cache would drop one block for the other for ever.
        let mut pinned = SmallVec::<[BlockRef; 8]>::new();
        loop {
            match look(self) {
                Ok(found) => return Ok(found),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Miss { block, kind }) => pinned.push(self.read(block, kind).await?),
            }
        }
    }

    /// Reads a block past the cache and unchecked.
    pub async fn read_raw(&self, number: u64) -> Result<Box<Block>> {
        let failed = |source| Error::Io { block: number, action: "read", source };
        let sector = number.checked_mul(BLOCK_SECTORS).filter(|_| number < self.disk_blocks());
        let sector = sector.ok_or(Error::OutOfRange { block: number, blocks: self.disk_blocks() })?;
        self.wait_turn(1).await;
        let buf = self.bufs.wait(BLOCK_BYTES).await.map_err(|_| Error::NoMemory)?;
        let _reading = self.begin_read(1)?;
        let (result, buf) = self.disk.read(sector, buf).await;
        result.map_err(failed)?;
        let bytes = buf.first_chunk::<BLOCK_BYTES>().ok_or(failed(IoError::Malformed { sector }))?;
        Ok(Box::new(*bytes))
    }

    /// Writes a block past the cache, sealed.
    pub async fn write_raw(&self, number: u64, kind: &BlockKind, block: &Block) -> Result<()> {
        let mut buf = self.bufs.wait(BLOCK_BYTES).await.map_err(|_| Error::NoMemory)?;
        if let Some(bytes) = buf.first_chunk_mut() {
            *bytes = *block;
            kind.seal(bytes, number);
        }
        self.start_write(number, buf).await.result.map_err(|source| write_failed(number, source))
    }

    /// Overwrites a block with zeroes, past the cache, durably.
    pub async fn erase(&self, number: u64) -> Result<()> {
        let buf = self.bufs.zeroed(BLOCK_BYTES).map_err(|_| Error::NoMemory)?;
        let (result, _) = self.disk.write(number.saturating_mul(BLOCK_SECTORS), buf, false).await;
        result.map_err(|source| write_failed(number, source))?;
        self.flush().await
    }

    /// Writes dirty blocks early if they crowd the cache. To be called before [`BlockManager::create`].
    pub(crate) async fn make_room(&self) -> Result<()> {
        let crowded = self.cache.borrow().dirty.len() >= self.cache_blocks / 4 * 3;
        if !crowded {
            return Ok(());
        }
        log::trace!("dirty blocks written early");
        self.write_out().await
    }

    /// A block of the open transaction, in place of whatever the cache has under its number.
    pub(crate) fn create(&self, number: u64, kind: &'static BlockKind, bytes: &Block) -> BlockMut<'_> {
        let frame = Frame::new(number, kind, bytes);
        let mut cache = self.cache.borrow_mut();
        cache.forget(number);
        cache.insert(frame.clone(), self.cache_blocks);
        drop(cache);
        self.mark_dirty(&frame);
        BlockMut { frame, manager: self }
    }

    /// A block of the open transaction with the bytes of another.
    pub(crate) fn copy(&self, source: BlockRef, number: u64) -> BlockMut<'_> {
        self.create(number, source.0.kind, &source.bytes())
    }

    /// As [`BlockManager::copy`], of a committed block that nothing asks for any more. Takes its frame over, without copying,
    /// unless somebody else looks at it.
    pub(crate) fn relocate(&self, source: BlockRef, number: u64) -> BlockMut<'_> {
        let frame = source.0;
        // One owner is the slot, one the ring, one we are.
        if frame.dirty.get() || Rc::strong_count(&frame) != 3 {
            return self.copy(BlockRef(frame), number);
        }
        let mut cache = self.cache.borrow_mut();
        cache.forget(number);
        cache.slots.remove(&frame.number.replace(number));
        cache.slots.insert(number, Slot::Ready(frame.clone()));
        drop(cache);
        self.mark_dirty(&frame);
        BlockMut { frame, manager: self }
    }

    /// A block that was read, to be changed: it must be one of the open transaction.
    pub(crate) fn change(&self, block: BlockRef) -> BlockMut<'_> {
        BlockMut { frame: block.0, manager: self }
    }

    /// Writes every dirty block and waits for all of them. A block that failed stays dirty.
    pub async fn write_out(&self) -> Result<()> {
        let _turn = self.writing.acquire(1).await;
        let mut frames = core::mem::take(&mut self.cache.borrow_mut().dirty);
        frames.retain(|frame| frame.dirty.get());
        frames.sort_unstable_by_key(|frame| frame.number.get());
        let mut frames = VecDeque::from(frames);
        let mut under_way = UnderWay { manager: self, writes: VecDeque::new(), failure: None };
        while let Some(first) = frames.front().map(|frame| frame.number.get()) {
            let neighbours = frames.iter().zip(first..).take_while(|(frame, number)| frame.number.get() == *number);
            let Some(buf) = under_way.buffer(neighbours.take(self.write_blocks_max()).count()).await else {
                self.cache.borrow_mut().dirty.extend(frames);
                break;
            };
            let run: Run = (0..buf.len() / BLOCK_BYTES).filter_map(|_| frames.pop_front()).collect();
            let completion = self.start_write_out(first, &run, buf);
            under_way.writes.push_back((run, completion));
        }
        while under_way.reap().await {}
        under_way.failure.map_or(Ok(()), Err)
    }

    /// Makes durable what was written.
    pub async fn flush(&self) -> Result<()> {
        self.disk.flush().await.map_err(Error::Flush)
    }

    /// Most blocks in one write. The pool of buffers may be small, and others use it, too.
    fn write_blocks_max(&self) -> usize {
        let transfer = usize::try_from(self.disk.limits().transfer_sectors_max / BLOCK_SECTORS).unwrap_or(usize::MAX);
        transfer.min(self.bufs.budget_bytes() / BLOCK_BYTES / 4).clamp(1, WRITE_BLOCKS_MAX)
    }

    /// Starts to write neighbours, from `first` on.
    fn start_write_out(&self, first: u64, run: &[Rc<Frame>], mut buf: Buf) -> Completion {
        let (blocks, _) = buf.as_chunks_mut::<BLOCK_BYTES>();
        for (bytes, frame) in blocks.iter_mut().zip(run) {
            frame.dirty.set(false);
            *bytes = *frame.bytes.borrow();
            frame.kind.seal(bytes, frame.number.get());
        }
        self.start_write(first, buf)
    }

    fn start_write(&self, number: u64, buf: Buf) -> Completion {
        let sectors = (buf.len() / SECTOR_BYTES) as u64;
        self.disk.start(Op::Write { fua: false }, number.saturating_mul(BLOCK_SECTORS), sectors, Bufs::from_iter([buf]))
    }

    async fn fetch(&self, number: u64, kind: &'static BlockKind) -> Result<Box<Block>> {
        let block = self.read_raw(number).await?;
        kind.verify(&block, number)?;
        Ok(block)
    }

    fn mark_dirty(&self, frame: &Rc<Frame>) {
        if !frame.dirty.replace(true) {
            self.cache.borrow_mut().dirty.push(frame.clone());
        }
    }
}

fn write_failed(block: u64, source: IoError) -> Error {
    Error::Io { block, action: "written", source }
}

/// The slot of a block that is being read. However that ends, those who wait for it are told.
struct Loading<'a> {
    manager: &'a BlockManager,
    number: u64,
    notify: Rc<Notify>,
}

impl Loading<'_> {
    /// Puts the block in its slot, unless a new block was made there meanwhile.
    fn finish(self, bytes: &Block, kind: &'static BlockKind) {
        if !self.is_current() {
            return;
        }
        let frame = Frame::new(self.number, kind, bytes);
        self.manager.cache.borrow_mut().insert(frame, self.manager.cache_blocks);
    }

    fn is_current(&self) -> bool {
        let cache = self.manager.cache.borrow();
        matches!(cache.slots.get(&self.number), Some(Slot::Loading(notify)) if Rc::ptr_eq(notify, &self.notify))
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if self.is_current() {
            self.manager.cache.borrow_mut().slots.remove(&self.number);
        }
        self.notify.notify_all();
    }
}

/// Neighbours that one request writes.
type Run = SmallVec<[Rc<Frame>; WRITE_BLOCKS_MAX]>;

/// The writes of one write-out, oldest first.
struct UnderWay<'a> {
    manager: &'a BlockManager,
    writes: VecDeque<(Run, Completion)>,
    failure: Option<Error>,
}

impl UnderWay<'_> {
    /// A buffer for one more write, of `blocks` blocks or if need be of one, after as many completions as that takes; none
    /// once something failed.
    async fn buffer(&mut self, blocks: usize) -> Option<Buf> {
        self.reap_completed();
        loop {
            if self.failure.is_some() {
                return None;
            }
            if self.writes.len() < WRITES_IN_FLIGHT_MAX {
                if let Ok(buf) = self.manager.bufs.alloc(blocks.saturating_mul(BLOCK_BYTES)) {
                    return Some(buf);
                }
                if self.writes.is_empty() {
                    // Whoever has the other buffers may wait for this write-out: one block has to do.
                    let waited = self.manager.bufs.wait(BLOCK_BYTES).await;
                    self.failure = waited.as_ref().err().map(|_| Error::NoMemory);
                    return waited.ok();
                }
            }
            self.reap().await;
        }
    }

    /// Takes over what has completed by now: its buffer is the next to be used, while the processor's cache still has it.
    fn reap_completed(&mut self) {
        while let Some(done) = self.writes.front_mut().and_then(|(_, completion)| completion.now_or_never()) {
            if let Some((run, _)) = self.writes.pop_front() {
                self.finish(&run, done.result);
            }
        }
    }

    /// Waits for the oldest write; false if there is none.
    async fn reap(&mut self) -> bool {
        let Some((run, completion)) = self.writes.pop_front() else { return false };
        self.finish(&run, completion.await.result);
        true
    }

    fn finish(&mut self, run: &[Rc<Frame>], result: Result<(), IoError>) {
        if let Err(source) = result {
            self.failure.get_or_insert(write_failed(run.first().map_or(0, |frame| frame.number.get()), source));
            run.iter().for_each(|frame| self.manager.mark_dirty(frame));
        }
    }
}
