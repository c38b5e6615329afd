//! The persistent-data library: copy-on-write trees and reference counts in 4 KiB blocks.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod block_manager;
pub mod btree;
pub mod check;
pub mod checksum;
mod error;
pub mod space_map;
pub mod transaction_manager;

pub use block_manager::Stop;
pub use error::{Error, Result};
pub use transaction_manager::TransactionManager;
