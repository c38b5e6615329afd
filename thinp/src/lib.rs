//! The thin pool: thin-provisioned volumes and their snapshots in exactly the on-disk format of Linux dm-thin.
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
mod thin;

#[cfg(test)]
mod tests;

pub use error::{Error, OpenError, PoolDisk};
pub use open::Format;
pub use pool::{Features, Pool, PoolOptions};
pub use records::{Change, Records};
pub use thin::Thin;
