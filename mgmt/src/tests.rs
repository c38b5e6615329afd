//! The interface as a peer sees it.

mod docs;
mod endpoints;
mod errors;
mod fuzz;
mod protocol;
mod runs;
mod secrets;
mod streams;
mod time;
