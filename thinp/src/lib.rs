//! The thin pool: thin-provisioned volumes and their snapshots in exactly the on-disk format of Linux dm-thin.
//!
//! A [`Pool`] lives on two disks, one of metadata and one of data blocks, and follows the contract of dm-thin: its
//! messages, errno values, status lines and modes. A [`Thin`] is the handle on one device of it, a volume or a snapshot:
//! reads, writes, discards, flushes. [`Records`] are pages in a device reserved for the appliance, which
//! change in the same commit as the devices that they describe.
//!
//! It rests on [`pdata`] (copy-on-write trees and reference counts, under [`metadata`]) and on the seams of
//! [`platform`]: disks, buffers, tasks and time come in through its `Runtime`. It reads no clock, knows no protocol and
//! no names of volumes.
//!
//! - A mapping enters the tree only when the data that it points to has completed.
//! - A commit is one superblock write, behind flushes of both disks; a flush commits only if its device changed.
//! - A mapped block of one's own is the hot path: a lookup in memory and a request to the data disk.
//!
//! ```
//! use platform::{block::{Bufs, Disk}, mem::MemDisk, random::Seeded, simulated, task::Executor};
//! use std::rc::Rc;
//! use thinp::{Pool, PoolOptions, control::DeviceId};
//!
//! simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(1)), 4 << 20, async |runtime| {
//!     let (meta, data) = (Disk::new(MemDisk::new(4096)), Disk::new(MemDisk::new(1 << 16)));
//!     let pool = Pool::open(&runtime, meta, data, PoolOptions::default()).await.unwrap();
//!     pool.message("create_thin 0").await.unwrap();
//!     let thin = pool.open_thin(DeviceId::new(0).unwrap(), None).await.unwrap();
//!     let page = runtime.bufs.zeroed(4096).unwrap();
//!     thin.write(8, Bufs::from_iter([page]), false).await.unwrap();
//!     thin.flush().await.unwrap();
//!     assert_eq!(thin.status().await.unwrap().to_string(), "128 127");
//!     assert!(pool.status().to_string().contains(" 1/512 - rw discard_passdown queue_if_no_space - "));
//! });
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod control;
pub mod error;
pub mod metadata;
mod open;
pub mod pool;
pub mod records;
pub mod stream;
mod thin;

#[cfg(test)]
mod tests;

pub use error::{Error, OpenError, PoolDisk};
pub use open::Format;
pub use pool::{Features, Message, Pool, PoolOptions};
pub use records::{Change, Records, Roots};
pub use thin::{CopySource, Erasure, Thin};
