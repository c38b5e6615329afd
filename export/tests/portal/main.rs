//! The portal against a fake initiator over pipes in memory: what goes over the wire, and what is on the disk.

mod chap;
#[path = "../common/mod.rs"]
mod common;
mod initiator;
mod pipe;

mod clients;
mod copies;
mod data;
mod hostile;
mod limits;
mod portals;
mod protocol;
mod sanitize;
mod sessions;
mod units;
