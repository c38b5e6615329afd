//! The seams between Gossamer and the machine it runs on.
//!
//! Everything above this crate is the same code on bare metal ([`kernel`]), in a Linux process
//! (`hosted`) and in the simulator; what differs is who implements the traits found here:
//!
//! - [`block`]: a disk. Requests own their buffers until they complete.
//! - [`buf`]: those buffers, from one counted pool.
//! - [`net`]: listeners and byte streams.
//! - [`time`], [`random`]: the clock and the dice. No core crate has its own. [`secret`]: what is kept hidden.
//! - [`task`]: a single-core executor; [`sync`]: what its tasks wait on. [`simulated`]: time that passes at once.
//! - [`crc32c`]: a checksum that processors have an instruction for. [`calendar`]: days and dates.
//!
//! [`layers`] holds disks that wrap a disk, [`mem`] a disk in memory. There is no policy here.
//!
//! ```
//! use platform::{block::Disk, buf::BufPool, mem::MemDisk, task::block_on_ready};
//!
//! let disk = Disk::new(MemDisk::new(2048));
//! let pool = BufPool::new(1 << 20);
//! block_on_ready(async {
//!     let mut page = pool.zeroed(4096).unwrap();
//!     page[0] = 7;
//!     let (written, _) = disk.write(8, page, false).await;
//!     written.unwrap();
//!     let (read, page) = disk.read(8, pool.alloc(4096).unwrap()).await;
//!     read.unwrap();
//!     assert_eq!(page[0], 7);
//! });
//! ```
//!
//! [`kernel`]: https://en.wikipedia.org/wiki/Bare_machine
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod buf;
pub mod calendar;
pub mod crc32c;
pub mod layers;
pub mod mem;
pub mod net;
pub mod random;
pub mod secret;
pub mod simulated;
pub mod sync;
pub mod task;
pub mod time;

use alloc::rc::Rc;

/// What every core crate is handed: where to run tasks, what time it is, randomness, buffers.
#[derive(Clone)]
pub struct Runtime {
    /// Starts tasks.
    pub spawner: task::Spawner,
    /// Monotonic time and sleeping.
    pub timers: time::Timers,
    /// One generator for the whole appliance.
    pub random: Rc<dyn random::Random>,
    /// Where I/O buffers come from.
    pub bufs: buf::BufPool,
}
