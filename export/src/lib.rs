//! The block export: an iSCSI target (RFC 7143) that serves SCSI disks with thin provisioning (SPC-4, SBC-3).
//!
//! The crate knows disks behind [`LogicalUnit`], who may use which behind [`Directory`], connections behind
//! [`platform::net::Stream`]; it names no pool and reads no clock of its own. The protocols are parsers and state
//! machines ([`iscsi`], [`scsi`]) under a thin layer of tasks: one receives, one sends, one for each command.
//!
//! Nothing that a peer sends makes it allocate without bound: see [`PortalOptions`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod budget;
pub mod iscsi;
mod portal;
pub mod scsi;
mod unit;

pub use budget::{Account, Budget, Chunk, Claim};
pub use portal::{Portal, PortalOptions, Session, SessionInfo};
pub use unit::{Attributes, Directory, Identity, LogicalUnit, Refusal, UnitError};
