//! What is exported: volumes, and the bytes of the metadata disk.

use crate::catalog::{BlockSizes, VolumeRecord};
use crate::errors::{not_sanitized, unit_error, unwritten};
use crate::reservations;
use crate::service::Service;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::Cell;
use export::{Attributes, Identity, Kept, LogicalUnit, Sanitize, Space, UnitError};
use platform::block::{Bufs, Class, Disk, Flow, IoError, SECTOR_BYTES};
use platform::buf::Buf;
use platform::sync::Notify;
use thinp::{CopySource, Thin};

/// A volume, or the metadata: what a session holds while it is logged in.
pub enum Unit {
    /// A thin device within its recorded size.
    Volume(VolumeUnit),
    /// The metadata disk, read-only.
    Metadata(MetadataUnit),
}

/// A volume in use.
pub struct VolumeUnit {
    service: Rc<Service>,
    thin: Thin,
    name: String,
    identity: [u8; 16],
    size_bytes: Cell<u64>,
    read_only: bool,
    blocks: BlockSizes,
    data_block_bytes: u64,
    /// Requests under way.
    requests: Cell<usize>,
    idle: Notify,
}

/// A request under way, until it is dropped: sectors within the volume.
struct Request<'v> {
    volume: &'v VolumeUnit,
    sector: u64,
    sectors: u64,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.volume.requests.set(self.volume.requests.get() - 1);
        if self.volume.requests.get() == 0 {
            self.volume.idle.notify_all();
        }
    }
}

/// The metadata disk in use: always what is on the disk, never what a cache holds.
pub struct MetadataUnit {
    disk: Disk,
    identity: [u8; 16],
}

impl VolumeUnit {
    /// Serves `thin`, of a pool with blocks of `data_block_bytes`, as its record says, with a size; for reads only unless it
    /// is `writable`.
    pub fn new(
        service: &Rc<Service>,
        thin: Thin,
        record: &VolumeRecord,
        size_bytes: u64,
        data_block_bytes: u64,
        writable: bool,
    ) -> VolumeUnit {
        VolumeUnit {
            service: service.clone(),
            thin,
            name: record.name.clone(),
            identity: record.identity,
            size_bytes: Cell::new(size_bytes),
            read_only: !writable,
            blocks: record.blocks.unwrap_or_default(),
            data_block_bytes,
            requests: Cell::new(0),
            idle: Notify::new(),
        }
    }

    /// The thin device.
    pub fn thin(&self) -> &Thin {
        &self.thin
    }

    /// Begins a request for a range, which must lie within the volume.
    fn request(&self, offset_bytes: u64, len_bytes: u64) -> Result<Request<'_>, UnitError> {
        if self.service.sanitize(self.thin.id()).is_some() {
            return Err(UnitError::Sanitizing);
        }
        let (sector, sectors) = range(self.size_bytes.get(), offset_bytes, len_bytes)?;
        self.requests.set(self.requests.get() + 1);
        Ok(Request { volume: self, sector, sectors })
    }

    fn write_request(&self, offset_bytes: u64, len_bytes: u64) -> Result<Request<'_>, UnitError> {
        if self.read_only { Err(UnitError::ReadOnly) } else { self.request(offset_bytes, len_bytes) }
    }

    /// Waits until no request is under way.
    async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.requests.get() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// What an initiator is told. The pool's own words go to the log.
    fn told(&self, error: thinp::Error, offset_bytes: u64) -> UnitError {
        log::warn!("volume {}: at byte {offset_bytes}: {error}", self.name);
        unit_error(&error, offset_bytes)
    }
}

impl Unit {
    /// Takes a new size of a volume into account.
    pub fn set_size_bytes(&self, size_bytes: u64) {
        if let Unit::Volume(volume) = self {
            volume.size_bytes.set(size_bytes);
        }
    }
}

impl MetadataUnit {
    /// Serves `disk`, behind everything else that uses it.
    pub fn new(disk: &Disk, identity: [u8; 16]) -> MetadataUnit {
        let disk = disk.with_flow(Flow { class: Class::Background, volume: 0 });
        MetadataUnit { disk, identity }
    }
}

fn range(size_bytes: u64, offset_bytes: u64, len_bytes: u64) -> Result<(u64, u64), UnitError> {
    let unit = SECTOR_BYTES as u64;
    let end = offset_bytes.checked_add(len_bytes).ok_or(UnitError::OutOfRange)?;
    let whole = offset_bytes.is_multiple_of(unit) && len_bytes.is_multiple_of(unit);
    if end > size_bytes || !whole { Err(UnitError::OutOfRange) } else { Ok((offset_bytes / unit, len_bytes / unit)) }
}

impl LogicalUnit for Unit {
    fn attributes(&self) -> Attributes {
        let (size_bytes, blocks, granularity_bytes, read_only) = match self {
            Unit::Volume(v) => (v.size_bytes.get(), v.blocks, v.data_block_bytes, v.read_only),
            Unit::Metadata(m) => (m.disk.size_sectors() * SECTOR_BYTES as u64, BlockSizes::default(), 0, true),
        };
        let logical_bytes = u64::from(blocks.logical_bytes);
        Attributes {
            blocks: size_bytes / logical_bytes,
            block_bytes: blocks.logical_bytes,
            physical_block_bytes: blocks.physical_bytes,
            unmap_granularity_blocks: u32::try_from(granularity_bytes / logical_bytes).unwrap_or(0),
            read_only,
        }
    }

    fn space(&self) -> Space {
        match self {
            Unit::Volume(v) => v.service.pool_space(),
            Unit::Metadata(_) => Space::default(),
        }
    }

    fn kept_reservations(&self) -> Option<Kept> {
        match self {
            Unit::Volume(v) => v.service.reservations_of(&v.identity).map(reservations::kept),
            Unit::Metadata(_) => None,
        }
    }

    async fn keep_reservations(&self, kept: Kept) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Err(UnitError::ReadOnly) };
        v.service.set_reservations(&v.identity, reservations::record(kept)).await.map_err(|error| {
            log::warn!("volume {}: its reservations cannot be kept: {error}", v.name);
            unwritten(&error)
        })
    }

    fn identity(&self) -> Identity {
        let (identity, product) = match self {
            Unit::Volume(v) => (&v.identity, "Volume"),
            Unit::Metadata(m) => (&m.identity, "Metadata"),
        };
        Identity {
            naa: naa(identity),
            serial: serial(identity),
            vendor: "GOSSAMER",
            product,
            revision: concat!("0", env!("CARGO_PKG_VERSION_MAJOR"), "0", env!("CARGO_PKG_VERSION_MINOR")),
        }
    }

    async fn read(&self, offset_bytes: u64, buf: Buf) -> (Result<(), UnitError>, Buf) {
        match self {
            Unit::Volume(v) => {
                let request = match v.request(offset_bytes, buf.len() as u64) {
                    Ok(request) => request,
                    Err(error) => return (Err(error), buf),
                };
                let (result, buf) = v.thin.read(request.sector, buf).await;
                (result.map_err(|error| v.told(error, offset_bytes)), buf)
            }
            Unit::Metadata(m) => {
                let size_bytes = m.disk.size_sectors() * SECTOR_BYTES as u64;
                let sector = match range(size_bytes, offset_bytes, buf.len() as u64) {
                    Ok((sector, _)) => sector,
                    Err(error) => return (Err(error), buf),
                };
                let (result, buf) = m.disk.read(sector, buf).await;
                (result.map_err(|error| disk_told(error, offset_bytes)), buf)
            }
        }
    }

    async fn write(&self, offset_bytes: u64, bufs: Bufs, fua: bool) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Err(UnitError::ReadOnly) };
        let len_bytes = bufs.iter().map(|buf| buf.len() as u64).sum();
        let request = v.write_request(offset_bytes, len_bytes)?;
        v.thin.write(request.sector, bufs, fua).await.map_err(|error| v.told(error, offset_bytes))
    }

    async fn flush(&self) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Ok(()) };
        v.thin.flush().await.map_err(|error| v.told(error, 0))
    }

    async fn unmap(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Err(UnitError::ReadOnly) };
        let request = v.write_request(offset_bytes, len_bytes)?;
        v.thin.unmap(request.sector, request.sectors).await.map_err(|error| v.told(error, offset_bytes))
    }

    async fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Err(UnitError::ReadOnly) };
        let request = v.write_request(offset_bytes, len_bytes)?;
        v.thin.write_zeroes(request.sector, request.sectors).await.map_err(|error| v.told(error, offset_bytes))
    }

    async fn share(
        &self,
        offset_bytes: u64,
        source: &Unit,
        source_offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<bool, UnitError> {
        let Unit::Volume(v) = self else { return Err(UnitError::ReadOnly) };
        let Unit::Volume(from) = source else { return Ok(false) };
        let request = v.write_request(offset_bytes, len_bytes)?;
        let theirs = from.request(source_offset_bytes, len_bytes)?;
        // A read-only snapshot is known by its root: as a base of increments it must stay as it is.
        let source = CopySource { thin: &from.thin, sector: theirs.sector, stays: from.read_only };
        match v.thin.share(request.sector, source, request.sectors).await {
            Ok(()) => Ok(true),
            Err(thinp::Error::NotShareable(_)) => Ok(false),
            Err(error) => Err(v.told(error, offset_bytes)),
        }
    }

    fn sanitize(&self) -> Option<Sanitize> {
        match self {
            Unit::Volume(v) => v.service.sanitize(v.thin.id()),
            Unit::Metadata(_) => None,
        }
    }

    async fn begin_sanitize(&self, unrestricted: bool) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Err(UnitError::ReadOnly) };
        if v.read_only {
            return Err(UnitError::ReadOnly);
        }
        v.service.begin_sanitize(&v.thin, unrestricted, v.idle()).await.map_err(|error| {
            log::warn!("volume {} is not sanitized: {error}", v.name);
            not_sanitized(&error)
        })
    }

    async fn sanitized(&self) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Ok(()) };
        if v.service.sanitized(v.thin.id()).await { Ok(()) } else { Err(UnitError::Failed) }
    }

    async fn leave_sanitize(&self) -> Result<(), UnitError> {
        let Unit::Volume(v) = self else { return Ok(()) };
        v.service.leave_sanitize(v.thin.id()).await.map_err(|error| {
            log::warn!("volume {}: that it is not sanitized cannot be written down: {error}", v.name);
            unwritten(&error)
        })
    }

    async fn mapped(&self, offset_bytes: u64, len_bytes: u64) -> Result<(bool, u64), UnitError> {
        let Unit::Volume(v) = self else { return Ok((true, len_bytes)) };
        let request = v.request(offset_bytes, len_bytes)?;
        let run =
            v.thin.mapped_run(request.sector, request.sectors).await.map_err(|error| v.told(error, offset_bytes))?;
        Ok((run.0, run.1 * SECTOR_BYTES as u64))
    }
}

fn disk_told(error: IoError, offset_bytes: u64) -> UnitError {
    log::warn!("metadata export: at byte {offset_bytes}: {error}");
    match error {
        IoError::OutOfRange { .. } => UnitError::OutOfRange,
        IoError::Device { .. } => UnitError::Medium { offset_bytes },
        _ => UnitError::Failed,
    }
}

/// What people and initiators see as the serial number.
pub fn serial(identity: &[u8; 16]) -> String {
    hexadecimal(identity)
}

/// An identity as people and programs see it.
pub fn hexadecimal(identity: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*identity))
}

/// A NAA IEEE registered extended designator: the first nibble says so, and where an IEEE company id would
/// stand is a locally administered one (bit 1 of its first byte set), for the project has no registered one.
pub fn naa(identity: &[u8; 16]) -> [u8; 16] {
    let mut naa = *identity;
    // 6h, then the 24-bit company id 02:47:53 shifted by one nibble; the rest is the unit's own.
    naa[..4].copy_from_slice(&[0x60, 0x24, 0x75, 0x30 | (identity[3] & 0x0f)]);
    naa
}
