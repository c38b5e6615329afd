//! The persistent-data library: copy-on-write trees and reference counts in 4 KiB blocks.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod error;

pub use error::{Error, Result};
