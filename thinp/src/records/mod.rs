//! The reserved device: pages of records that change in the same commit as the devices they describe
//! (design decision 6).
//!
//! Logical page *i* has two provisioned copies, at virtual blocks 2*i* and 2*i* + 1. The copy at 2*i* is the truth. A change
//! writes the other one, and the transaction swaps the two mappings, so nothing is allocated and nothing that a
//! superblock refers to is overwritten. The device is known by the mark in its first page, which names its own id.
//! It takes the highest free id and does not touch userland's transaction id.

mod apply;
mod page;

pub use apply::{Change, Roots};

use crate::control::DeviceId;
use crate::error::Error;
use crate::metadata::{Metadata, MetadataError, VirtualBlock};
use crate::pool::{Inner, Needs, Pool, Reserved};
use crate::thin::Thin;
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use apply::undo;
use core::cell::{Cell, RefCell};
use page::{HEADER_BYTES, Header, PAGE_BYTES};
use platform::block::{Bufs, SECTOR_BYTES};
use platform::buf::Buf;

/// The reserved device is one of the topmost ids. Nobody gives those to volumes by counting up, so what some initiator
/// writes on its volume is not taken for the pool's records, and opening a pool looks at few devices.
const RESERVED_ID_MIN: u32 = DeviceId::MAX.get() - 4095;

/// The records of a pool. Clones are the same.
#[derive(Clone)]
pub struct Records(Rc<Shared>);

struct Shared {
    pool: Pool,
    thin: Thin,
    pages: Cell<u32>,
    /// For the writing of spare copies: kept, so that volumes that wait for space while they hold all other
    /// buffers cannot keep a deletion from its record.
    buffer: RefCell<Option<Buf>>,
}

impl Records {
    /// Bytes that a page holds.
    pub const PAGE_CAPACITY_BYTES: usize = PAGE_BYTES - HEADER_BYTES;

    /// Looks for the reserved device, from the highest id down: it took the highest that was free, so what carries its
    /// mark below is an imitation that some initiator wrote, and is not even looked at.
    ///
    /// # Errors
    /// [`Error::DamagedRecords`] if it is there but unreadable.
    pub async fn find(pool: &Pool) -> Result<Option<Records>, Error> {
        let devices = pool.devices().await?;
        let top = devices.into_iter().rev().take_while(|(device, _)| device.get() >= RESERVED_ID_MIN);
        for (device, details) in top.filter(|(_, details)| details.mapped_blocks >= 2) {
            let thin = pool.open_any(device, None).await?;
            if is_marked(pool, &thin, details.mapped_blocks).await? {
                let records = Records::over(pool, thin).await?;
                records.read(0).await?;
                return Ok(Some(records.reserve()));
            }
        }
        Ok(None)
    }

    /// Makes the reserved device, with one empty page, in one commit: a pool made elsewhere is adopted by this.
    pub async fn create(pool: &Pool) -> Result<Records, Error> {
        if let Some(records) = Records::find(pool).await? {
            return Err(Error::RecordsExist(records.device()));
        }
        let device = pool.control(Needs::Space, async |inner: Rc<Inner>| make_device(&inner).await).await?;
        let thin = pool.open_any(device, None).await?;
        Ok(Records::over(pool, thin).await?.reserve())
    }

    /// From now on nobody else gets at the device. Damaged records stay open to a raw delete: it is the way out.
    fn reserve(self) -> Records {
        self.0.pool.0.reserved.set(Some(self.device()));
        self
    }

    async fn over(pool: &Pool, thin: Thin) -> Result<Records, Error> {
        let highest = pool.0.metadata.highest_mapped(thin.id()).await?;
        let pages = highest.map_or(0, |block| block.0.saturating_add(1) / 2);
        thin.never_queue();
        let buffer = RefCell::new(Some(pool.0.runtime.bufs.alloc(PAGE_BYTES)?));
        let pages = Cell::new(u32::try_from(pages).unwrap_or(u32::MAX));
        Ok(Records(Rc::new(Shared { pool: pool.clone(), thin, pages, buffer })))
    }

    /// The reserved device.
    pub fn device(&self) -> DeviceId {
        self.0.thin.id()
    }

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        self.0.pages.get()
    }

    /// What was last applied to a page; nothing if it was only provisioned.
    pub async fn read(&self, page: u32) -> Result<Vec<u8>, Error> {
        if page >= self.pages() {
            return Err(Error::NoPage(page));
        }
        let buf = self.0.pool.0.runtime.bufs.wait(PAGE_BYTES).await?;
        let (result, buf) = self.0.thin.read(self.sector(truth(page)), buf).await;
        result?;
        let device = self.device();
        let payload = page::decode(&buf, device, page);
        payload.map(<[u8]>::to_vec).map_err(|what| Error::DamagedRecords { device, page, what })
    }

    /// Makes the pages up to this one.
    async fn provision(&self, page: u32) -> Result<(), Error> {
        while self.pages() <= page {
            let next = self.pages();
            for copy in [truth(next), spare(next)] {
                let mut buf = self.0.pool.0.runtime.bufs.wait(PAGE_BYTES).await?;
                page::encode(&mut buf, Header { device: self.device(), page: next, sequence: 0 }, &[]);
                self.0.thin.write(self.sector(copy), Bufs::from_iter([buf]), false).await?;
            }
            self.0.pages.set(next.checked_add(1).ok_or(Error::NoPage(page))?);
        }
        Ok(())
    }

    /// Writes the copy of a page that is not the truth.
    async fn write_spare(&self, inner: &Rc<Inner>, page: u32, payload: &[u8]) -> Result<(), Error> {
        let kept = self.0.buffer.take();
        let buf = match kept {
            Some(buf) => buf,
            None => inner.runtime.bufs.wait(PAGE_BYTES).await?,
        };
        let (read, mut buf) = self.0.thin.read(self.sector(truth(page)), buf).await;
        read?;
        let sequence = page::sequence(&buf).unwrap_or(0).wrapping_add(1);
        page::encode(&mut buf, Header { device: self.device(), page, sequence }, payload);
        match inner.metadata.lookup(self.device(), spare(page)).await? {
            Some(mapping) if !mapping.shared => {
                let place = mapping.block.0.saturating_mul(inner.block_sectors);
                let (written, buf) = inner.data.write(place, buf, false).await;
                self.0.buffer.replace((buf.len() == PAGE_BYTES).then_some(buf));
                let (device, sector) = (self.device(), self.sector(spare(page)));
                written.map_err(|source| Error::Io { device, sector, source })
            }
            // Somebody made a snapshot of the device elsewhere.
            _ => self.0.thin.write(self.sector(spare(page)), Bufs::from_iter([buf]), false).await,
        }
    }

    fn sector(&self, block: VirtualBlock) -> u64 {
        block.0.saturating_mul(self.0.pool.0.block_sectors)
    }
}

/// Where the truth of a page is.
fn truth(page: u32) -> VirtualBlock {
    VirtualBlock(u64::from(page) * 2)
}

/// Where the copy is that a change writes.
fn spare(page: u32) -> VirtualBlock {
    VirtualBlock(u64::from(page) * 2 + 1)
}

/// The device has no holes and its first page carries the mark.
async fn is_marked(pool: &Pool, thin: &Thin, mapped_blocks: u64) -> Result<bool, Error> {
    let highest = pool.0.metadata.highest_mapped(thin.id()).await?;
    if highest.is_none_or(|block| block.0.saturating_add(1) != mapped_blocks) {
        return Ok(false);
    }
    let buf = pool.0.runtime.bufs.wait(8 * SECTOR_BYTES).await?;
    let (result, buf) = thin.read(0, buf).await;
    result?;
    Ok(page::is_marked(&buf, thin.id()))
}

/// Makes the reserved device with its first page; called alone.
async fn make_device(inner: &Rc<Inner>) -> Result<DeviceId, Error> {
    if inner.metadata.free_data_blocks() < 2 {
        return Err(Error::NoDataSpace);
    }
    let taken: BTreeSet<u32> = inner.metadata.devices().await?.into_iter().map(|(id, _)| id.get()).collect();
    let free = (RESERVED_ID_MIN..=DeviceId::MAX.get()).rev().find(|id| !taken.contains(id));
    let device = free.and_then(|id| DeviceId::new(u64::from(id))).ok_or(Error::NoFreeId)?;
    let mut buf = inner.runtime.bufs.wait(PAGE_BYTES).await?;
    let copies = [inner.reserve().await?, inner.reserve().await?];
    for (block, copy) in [truth(0), spare(0)].into_iter().zip(&copies) {
        page::encode(&mut buf, Header { device, page: 0, sequence: 0 }, &[]);
        let [sector, place] = [block.0, copy.block().0].map(|block| block.saturating_mul(inner.block_sectors));
        let (written, back) = inner.data.write(place, buf, false).await;
        written.map_err(|source| Error::Io { device, sector, source })?;
        buf = back;
    }
    let held = inner.commits.hold().await;
    let result = inner.metadata.create_thin(device).await;
    inner.changed(result).await?;
    for (block, copy) in [truth(0), spare(0)].into_iter().zip(copies) {
        if let Err(error) = insert(&inner.metadata, device, block, copy).await {
            return Err(undo(inner, &[Change::CreateThin(device)], error).await);
        }
    }
    inner.commit_held(&held).await?;
    Ok(device)
}

async fn insert(
    metadata: &Metadata,
    device: DeviceId,
    block: VirtualBlock,
    copy: Reserved,
) -> Result<(), MetadataError> {
    metadata.open_device(device).await?;
    let result = metadata.insert(device, block, copy.block()).await;
    metadata.close_device(device);
    result.map(|()| copy.mapped())
}
