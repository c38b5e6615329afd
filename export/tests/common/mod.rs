//! A thin disk in memory behind a directory of one target: what the tests and the example serve.

use export::{Attributes, Chap, Directory, Identity, Kept, LogicalUnit, Peer, Refusal, Sanitize, Space, UnitError};
use platform::block::{Bufs, Disk, Op, SECTOR_BYTES};
use platform::buf::{Buf, BufPool};
use platform::mem::MemDisk;
use platform::sync::Notify;
use platform::time::{Duration, Timers};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Name of the target.
pub const TARGET: &str = "iqn.2026-11.io.gossamer:disk";
/// What is mapped and unmapped at a time.
pub const POOL_BLOCK_BYTES: u64 = 64 << 10;

/// A disk that remembers which pool blocks are mapped.
pub struct ThinDisk {
    /// Its blocks.
    pub contents: MemDisk,
    /// Writes are refused.
    pub read_only: Cell<bool>,
    /// Nothing more can be mapped.
    pub full: Cell<bool>,
    /// Reads and writes fail so.
    pub fails: Cell<Option<UnitError>>,
    /// Flushes and writes with FUA.
    pub flushes: Cell<u32>,
    /// Nothing completes while it hangs (with a clock to look by).
    pub hangs: Cell<bool>,
    /// With a clock each read and write takes a while.
    pub slow: Cell<Option<Timers>>,
    /// Its NAA designator.
    pub naa: Cell<[u8; 16]>,
    /// Bytes that copies got without a read or a write.
    pub shared_bytes: Cell<u64>,
    /// What initiators have to prove.
    pub chap: RefCell<Option<Rc<Chap>>>,
    /// What it tells of its pool.
    pub space: Cell<Space>,
    /// What was kept of reservations; `None`: it cannot keep any.
    pub kept: RefCell<Option<Kept>>,
    /// What it shares with others must not be destroyed.
    pub shares: Cell<bool>,
    /// A sanitize operation goes on until it is ended.
    pub sanitizes_long: Cell<bool>,
    /// The sanitize operation that goes on, or that failed.
    pub sanitize: Cell<Option<Sanitize>>,
    sanitize_ended: Notify,
    /// It tells of one pool block at a time whether it is mapped.
    pub tells_little: Cell<bool>,
    block_bytes: u32,
    bufs: BufPool,
    mapped: RefCell<BTreeSet<u64>>,
}

impl ThinDisk {
    /// A disk of which nothing is mapped.
    pub fn new(size_bytes: u64, block_bytes: u32, bufs: BufPool) -> ThinDisk {
        ThinDisk {
            contents: MemDisk::new(size_bytes / SECTOR_BYTES as u64),
            read_only: Cell::new(false),
            full: Cell::new(false),
            fails: Cell::new(None),
            flushes: Cell::new(0),
            hangs: Cell::new(false),
            slow: Cell::new(None),
            naa: Cell::new(*b"\x60gossamer-disk-1"),
            shared_bytes: Cell::new(0),
            chap: RefCell::new(None),
            space: Cell::default(),
            kept: RefCell::new(Some(Kept::default())),
            shares: Cell::new(false),
            sanitizes_long: Cell::new(false),
            sanitize: Cell::new(None),
            sanitize_ended: Notify::new(),
            tells_little: Cell::new(false),
            block_bytes,
            bufs,
            mapped: RefCell::default(),
        }
    }

    /// Ends the sanitize operation.
    pub fn end_sanitize(&self, failed: Option<Sanitize>) {
        self.sanitize.set(failed);
        self.sanitize_ended.notify_all();
    }

    fn disk(&self) -> Disk {
        Disk::new(self.contents.clone())
    }

    fn map(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), UnitError> {
        let blocks = offset_bytes / POOL_BLOCK_BYTES..(offset_bytes + len_bytes).div_ceil(POOL_BLOCK_BYTES);
        let mut mapped = self.mapped.borrow_mut();
        if self.full.get() && blocks.clone().any(|block| !mapped.contains(&block)) {
            return Err(UnitError::NoSpace);
        }
        mapped.extend(blocks);
        Ok(())
    }

    /// Waits if the disk is slow: longer each time, and then shorter again.
    async fn linger(&self) {
        let timers = self.slow.take();
        self.slow.set(timers.clone());
        if let Some(timers) = timers {
            let nanos = timers.now().nanos;
            timers.sleep(Duration::from_micros(nanos / 1000 * 7 % 90 + 10)).await;
            while self.hangs.get() {
                timers.sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn sector(&self, offset_bytes: u64, len_bytes: u64) -> Result<u64, UnitError> {
        if let Some(error) = self.fails.get() {
            return Err(error);
        }
        assert!(
            offset_bytes.is_multiple_of(self.block_bytes.into()) && len_bytes.is_multiple_of(self.block_bytes.into())
        );
        assert!(len_bytes > 0, "an empty request at byte {offset_bytes}");
        if offset_bytes + len_bytes > self.attributes().size_bytes() {
            return Err(UnitError::OutOfRange);
        }
        Ok(offset_bytes / SECTOR_BYTES as u64)
    }
}

impl LogicalUnit for ThinDisk {
    fn attributes(&self) -> Attributes {
        Attributes {
            blocks: self.disk().size_sectors() * SECTOR_BYTES as u64 / u64::from(self.block_bytes),
            block_bytes: self.block_bytes,
            physical_block_bytes: self.block_bytes,
            unmap_granularity_blocks: POOL_BLOCK_BYTES as u32 / self.block_bytes,
            read_only: self.read_only.get(),
        }
    }

    fn identity(&self) -> Identity {
        Identity {
            naa: self.naa.get(),
            serial: "0123456789".into(),
            vendor: "GOSSAMER",
            product: "thin volume",
            revision: "0001",
        }
    }

    fn space(&self) -> Space {
        self.space.get()
    }

    fn kept_reservations(&self) -> Option<Kept> {
        self.kept.borrow().clone()
    }

    async fn keep_reservations(&self, kept: Kept) -> Result<(), UnitError> {
        self.linger().await;
        if let Some(error) = self.fails.get() {
            return Err(error);
        }
        self.kept.replace(Some(kept));
        Ok(())
    }

    async fn read(&self, offset_bytes: u64, buf: Buf) -> (Result<(), UnitError>, Buf) {
        self.linger().await;
        match self.sector(offset_bytes, buf.len() as u64) {
            Err(error) => (Err(error), buf),
            Ok(sector) => {
                let (result, buf) = self.disk().read(sector, buf).await;
                (result.map_err(|_| UnitError::Medium { offset_bytes }), buf)
            }
        }
    }

    async fn write(&self, offset_bytes: u64, bufs: Bufs, fua: bool) -> Result<(), UnitError> {
        self.linger().await;
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let sector = self.sector(offset_bytes, len)?;
        self.map(offset_bytes, len)?;
        self.flushes.set(self.flushes.get() + u32::from(fua));
        let done = self.disk().start(Op::Write { fua }, sector, len / SECTOR_BYTES as u64, bufs).await;
        done.result.map_err(|_| UnitError::Medium { offset_bytes })
    }

    async fn flush(&self) -> Result<(), UnitError> {
        self.flushes.set(self.flushes.get() + 1);
        self.disk().flush().await.map_err(|_| UnitError::Failed)
    }

    async fn unmap(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), UnitError> {
        let sector = self.sector(offset_bytes, len_bytes)?;
        let end = offset_bytes + len_bytes;
        assert!(offset_bytes.is_multiple_of(POOL_BLOCK_BYTES), "unmap starts within a pool block");
        assert!(end.is_multiple_of(POOL_BLOCK_BYTES) || end == self.attributes().size_bytes());
        let blocks = offset_bytes / POOL_BLOCK_BYTES..end.div_ceil(POOL_BLOCK_BYTES);
        self.mapped.borrow_mut().retain(|block| !blocks.contains(block));
        self.disk().discard(sector, len_bytes / SECTOR_BYTES as u64).await.map_err(|_| UnitError::Failed)
    }

    async fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), UnitError> {
        let mut at = offset_bytes;
        while at < offset_bytes + len_bytes {
            let len = (offset_bytes + len_bytes - at).min(POOL_BLOCK_BYTES);
            let buf = self.bufs.zeroed(len as usize).map_err(|_| UnitError::Busy)?;
            self.write(at, Bufs::from_iter([buf]), false).await?;
            at += len;
        }
        Ok(())
    }

    async fn share(
        &self,
        offset_bytes: u64,
        source: &ThinDisk,
        source_offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<bool, UnitError> {
        self.sector(offset_bytes, len_bytes)?;
        source.sector(source_offset_bytes, len_bytes)?;
        for offset in [offset_bytes, source_offset_bytes, len_bytes] {
            assert!(offset.is_multiple_of(POOL_BLOCK_BYTES), "whole pool blocks are shared");
        }
        let bytes = source.contents.peek(source_offset_bytes, len_bytes as usize);
        self.contents.poke(offset_bytes, &bytes);
        let place = |offset: u64, block: u64| offset / POOL_BLOCK_BYTES + block;
        for block in 0..len_bytes / POOL_BLOCK_BYTES {
            let is_mapped = source.mapped.borrow().contains(&place(source_offset_bytes, block));
            let mut mapped = self.mapped.borrow_mut();
            match is_mapped {
                true => mapped.insert(place(offset_bytes, block)),
                false => mapped.remove(&place(offset_bytes, block)),
            };
        }
        self.shared_bytes.set(self.shared_bytes.get() + len_bytes);
        Ok(true)
    }

    fn sanitize(&self) -> Option<Sanitize> {
        self.sanitize.get()
    }

    async fn begin_sanitize(&self, _unrestricted: bool) -> Result<(), UnitError> {
        if self.shares.get() {
            return Err(UnitError::NotNow);
        }
        self.sanitize.set(Some(Sanitize::Running { progress: 0x4000 }));
        self.mapped.borrow_mut().clear();
        let erased = self.disk().discard(0, self.disk().size_sectors()).await.map_err(|_| UnitError::Failed);
        if !self.sanitizes_long.get() {
            self.end_sanitize(None);
        }
        erased
    }

    async fn sanitized(&self) -> Result<(), UnitError> {
        loop {
            let ended = self.sanitize_ended.notified();
            match self.sanitize.get() {
                None => return Ok(()),
                Some(Sanitize::Failed { .. }) => return Err(UnitError::Failed),
                Some(Sanitize::Running { .. }) => ended.await,
            }
        }
    }

    async fn leave_sanitize(&self) -> Result<(), UnitError> {
        self.sanitize.set(None);
        Ok(())
    }

    async fn mapped(&self, offset_bytes: u64, len_bytes: u64) -> Result<(bool, u64), UnitError> {
        self.linger().await;
        let mapped = self.mapped.borrow();
        let first = mapped.contains(&(offset_bytes / POOL_BLOCK_BYTES));
        let mut end = offset_bytes - offset_bytes % POOL_BLOCK_BYTES;
        while end < offset_bytes + len_bytes && mapped.contains(&(end / POOL_BLOCK_BYTES)) == first {
            end += POOL_BLOCK_BYTES;
            if self.tells_little.get() {
                break;
            }
        }
        Ok((first, (end - offset_bytes).min(len_bytes)))
    }
}

/// One target for all.
pub struct OneTarget(pub Rc<ThinDisk>);

impl Directory for OneTarget {
    type Unit = ThinDisk;

    fn targets(&self, peer: &Peer) -> Vec<String> {
        if is_stranger(peer) { Vec::new() } else { vec![TARGET.into()] }
    }

    fn wanted(&self, _: Option<&str>, _: &Peer) -> Option<Rc<Chap>> {
        self.0.chap.borrow().clone()
    }

    fn named(&self, naa: &[u8; 16], peer: &Peer) -> Option<String> {
        (*naa == self.0.naa.get() && !is_stranger(peer)).then(|| TARGET.into())
    }

    async fn open(&self, target: &str, peer: &Peer) -> Result<Rc<ThinDisk>, Refusal> {
        match target {
            TARGET if is_stranger(peer) || peer.proven != *self.0.chap.borrow() => Err(Refusal::Forbidden),
            TARGET => Ok(self.0.clone()),
            _ => Err(Refusal::NotFound),
        }
    }
}

fn is_stranger(peer: &Peer) -> bool {
    peer.initiator.ends_with("stranger")
}
