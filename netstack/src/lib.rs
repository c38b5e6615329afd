//! TCP/IP over a network card: smoltcp as asynchronous listeners and streams.
//!
//! A [`Stack`] owns one IPv4 address, given or leased by DHCP, and runs as one task on the executor. Its
//! [`TcpListener`]s and [`TcpStream`]s implement the seams of [`platform::net`]; below it is [`device::FrameDevice`],
//! which a driver implements. It rests on smoltcp for the protocols and adds what smoltcp leaves to its user: a backlog
//! for listeners, wakers, closing in the background, limits.
//!
//! Memory is bounded: a listener holds at most `connections_max` connections, half-open and closing ones included, with
//! two buffers each. Beyond that a peer is refused with a reset.
//!
//! ```
//! use core::task::Waker;
//! use netstack::device::{FrameDevice, Link, TcpOffload};
//! use netstack::{Address, ListenOptions, Stack};
//! use platform::net::Listener;
//! use std::rc::Rc;
//!
//! /// A card with no cable.
//! struct Unplugged;
//!
//! impl FrameDevice for Unplugged {
//!     fn link(&self) -> Link {
//!         let mac = [2, 0, 0, 0, 0, 1];
//!         Link { mac, mtu_bytes: 1500, finishes_tcp_checksums: false, verifies_tcp_checksums: false, segments_tcp4_bytes: None }
//!     }
//!     fn can_receive(&self) -> bool { false }
//!     fn receive(&self, _: &mut dyn FnMut(&[u8])) {}
//!     fn can_transmit(&self) -> bool { false }
//!     fn transmit(&self, _: usize, _: &mut dyn FnMut(&mut [u8]) -> Option<TcpOffload>) {}
//!     fn kick(&self) {}
//!     fn register(&self, _: &Waker) {}
//! }
//!
//! # use platform::{buf::BufPool, random::Seeded, task::Executor, time, Runtime};
//! # struct Still;
//! # impl time::Clock for Still { fn now(&self) -> time::Instant { time::Instant::default() } }
//! # let executor = Executor::new();
//! # let runtime = Runtime {
//! #     spawner: executor.spawner(),
//! #     timers: time::Timers::new(Rc::new(Still)),
//! #     random: Rc::new(Seeded::from_u64(1)),
//! #     bufs: BufPool::new(0),
//! # };
//! let gateway = Some([10, 0, 2, 2].into());
//! let address = Address::Static { address: [10, 0, 2, 15].into(), prefix_bits: 24, gateway };
//! let stack = Stack::start(&runtime, Rc::new(Unplugged), address);
//! let listener = stack.listen(3260, ListenOptions::default()).unwrap();
//! assert_eq!(listener.describe(), "10.0.2.15:3260");
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
mod port;
mod stack;
mod stream;
#[cfg(test)]
mod tests;

pub use port::ListenOptions;
pub use stack::{Address, ListenError, Stack};
pub use stream::{TcpListener, TcpReader, TcpStream, TcpWriter};
