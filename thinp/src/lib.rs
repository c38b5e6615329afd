//! The thin pool.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod control;
pub mod metadata;
