//! iSCSI (RFC 7143 at error recovery level 0, with the task management of RFC 7144): the target side.
//!
//! Pure parts: [`pdu`], [`digest`], [`text`], [`params`], [`login`], [`chap`], [`text_phase`], [`window`], [`inbound`]. The
//! shell around them: [`wire`] receives, [`connection`] serves, [`task`] moves a command's data, [`send`] sends.
//! A session has one connection.

pub mod chap;
pub mod connection;
pub mod digest;
pub mod inbound;
pub mod link;
pub mod login;
pub mod params;
pub mod pdu;
pub mod send;
pub mod task;
pub mod text;
pub mod text_phase;
pub mod tmf;
pub mod window;
pub mod wire;
