//! TCP/IP over a frame device: smoltcp as asynchronous streams and listeners.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
