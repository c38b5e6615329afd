//! The machine's devices behind Gossamer's seams: virtio, PCI, serial console, clocks, and the I/O scheduler.
//!
//! - [`virtio`]: block, network and entropy devices over PCI and MMIO. The bus walk and the transports are
//!   those of the `virtio-drivers` crate; queues and drivers are ours, because the data path needs the whole
//!   queue depth, scatter-gather, flushes among other requests, and one kick for many requests.
//! - [`scheduler`]: the queue above a disk that decides what is sent next (design decision 10).
//! - [`bytes`]: memory functions. [`acpi`], [`apic`], [`clock`], [`entropy`], [`fw_cfg`], [`pit`], [`port`], [`rtc`], [`uart`]: the PC.
//!
//! Completions are polled; an interrupt only ends an idle processor's `hlt` (see [`apic`]). There is no
//! policy here but the scheduler's.
//!
//! ```
//! use drivers::scheduler::Scheduler;
//! use platform::{block::Disk, buf::BufPool, mem::MemDisk, task::block_on_ready};
//! use std::rc::Rc;
//!
//! let disk = Disk::new(Scheduler::new(Rc::new(MemDisk::new(2048)), 64));
//! let page = BufPool::new(1 << 20).zeroed(4096).unwrap();
//! let (written, _) = block_on_ready(disk.write(8, page, true));
//! written.unwrap();
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod apic;
pub mod bytes;
pub mod clock;
pub mod entropy;
pub mod fw_cfg;
pub mod pit;
pub mod port;
pub mod rtc;
pub mod scheduler;
pub mod uart;
pub mod virtio;
