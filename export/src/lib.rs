//! The block export: an iSCSI target (RFC 7143) that serves SCSI disks with thin provisioning (SPC-4, SBC-3).
//!
//! The crate knows disks behind [`LogicalUnit`], who may use which behind [`Directory`], connections behind
//! [`platform::net::Stream`]; it names no pool and reads no clock of its own. The protocols are parsers and state
//! machines ([`iscsi`], [`scsi`]) under a thin layer of tasks: one receives, one sends, one for each command.
//!
//! Nothing that a peer sends makes it allocate without bound: see [`PortalOptions`]. A write's payload is received
//! into the buffers that the unit is given, a read's is sent from the buffer that the unit filled.
//!
//! What a disk has to do, and a portal to it (`examples/serve.rs` has the whole of it):
//!
//! ```
//! use export::{Attributes, Chap, Directory, Identity, Kept, LogicalUnit, Peer, Portal, PortalOptions, Refusal, Sanitize};
//! use export::{Space, UnitError};
//! use platform::{block::Bufs, buf::Buf};
//! use std::rc::Rc;
//!
//! /// A disk of zeroes that takes no writes.
//! struct Zero;
//!
//! impl LogicalUnit for Zero {
//!     fn attributes(&self) -> Attributes {
//!         let blocks = 1 << 21;
//!         let (block_bytes, physical_block_bytes) = (512, 4096);
//!         Attributes { blocks, block_bytes, physical_block_bytes, unmap_granularity_blocks: 0, read_only: true }
//!     }
//!     fn identity(&self) -> Identity {
//!         let (vendor, product, revision) = ("EXAMPLE", "zero", "1");
//!         Identity { naa: *b"\x60example-naa-id-", serial: "1".into(), vendor, product, revision }
//!     }
//!     fn space(&self) -> Space {
//!         Space::default()
//!     }
//!     fn kept_reservations(&self) -> Option<Kept> {
//!         None
//!     }
//!     async fn keep_reservations(&self, _: Kept) -> Result<(), UnitError> {
//!         Err(UnitError::ReadOnly)
//!     }
//!     async fn read(&self, _: u64, mut buf: Buf) -> (Result<(), UnitError>, Buf) {
//!         buf.fill(0);
//!         (Ok(()), buf)
//!     }
//!     async fn write(&self, _: u64, _: Bufs, _: bool) -> Result<(), UnitError> {
//!         Err(UnitError::ReadOnly)
//!     }
//!     async fn flush(&self) -> Result<(), UnitError> {
//!         Ok(())
//!     }
//!     async fn unmap(&self, _: u64, _: u64) -> Result<(), UnitError> {
//!         Err(UnitError::ReadOnly)
//!     }
//!     async fn write_zeroes(&self, _: u64, _: u64) -> Result<(), UnitError> {
//!         Err(UnitError::ReadOnly)
//!     }
//!     async fn share(&self, _: u64, _: &Zero, _: u64, _: u64) -> Result<bool, UnitError> {
//!         Ok(false)
//!     }
//!     fn sanitize(&self) -> Option<Sanitize> {
//!         None
//!     }
//!     async fn begin_sanitize(&self, _: bool) -> Result<(), UnitError> {
//!         Err(UnitError::ReadOnly)
//!     }
//!     async fn sanitized(&self) -> Result<(), UnitError> {
//!         Ok(())
//!     }
//!     async fn leave_sanitize(&self) -> Result<(), UnitError> {
//!         Ok(())
//!     }
//!     async fn mapped(&self, _: u64, len_bytes: u64) -> Result<(bool, u64), UnitError> {
//!         Ok((true, len_bytes))
//!     }
//! }
//!
//! /// One target for everybody.
//! struct Everybody(Rc<Zero>);
//!
//! impl Directory for Everybody {
//!     type Unit = Zero;
//!     fn targets(&self, _: &Peer) -> Vec<String> {
//!         vec!["iqn.2026-11.example:zero".into()]
//!     }
//!     fn wanted(&self, _: Option<&str>, _: &Peer) -> Option<Rc<Chap>> {
//!         None
//!     }
//!     fn named(&self, naa: &[u8; 16], _: &Peer) -> Option<String> {
//!         (*naa == self.0.identity().naa).then(|| "iqn.2026-11.example:zero".into())
//!     }
//!     async fn open(&self, target: &str, _: &Peer) -> Result<Rc<Zero>, Refusal> {
//!         if target == "iqn.2026-11.example:zero" { Ok(self.0.clone()) } else { Err(Refusal::NotFound) }
//!     }
//! }
//!
//! /// Serves the connections of a listener.
//! async fn serve(runtime: platform::Runtime, listener: impl platform::net::Listener) {
//!     let portal = Portal::new(&runtime, Rc::new(Everybody(Rc::new(Zero))), PortalOptions::default());
//!     while let Ok(stream) = listener.accept().await {
//!         let portal = portal.clone();
//!         runtime.spawner.spawn(async move { portal.serve(stream).await });
//!     }
//! }
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod budget;
mod entrance;
pub mod iscsi;
mod portal;
pub mod scsi;
mod session;
mod throttle;
mod unit;

pub use budget::{Account, Budget, Chunk, Claim};
pub use portal::{Portal, PortalGroup, PortalOptions};
pub use scsi::reserve::{Kept, Path};
pub use session::{Session, SessionInfo};
pub use unit::{
    Attributes, Chap, Credentials, Directory, Identity, LogicalUnit, Peer, Refusal, Sanitize, Space, UnitError,
};
