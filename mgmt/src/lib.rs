//! The management interface: HTTP/1.1, JSON, tokens, metrics.
//!
//! An [`Api`] serves connections of any [`platform::net::Stream`] and asks the appliance through [`Control`];
//! it is the only place that knows JSON, and it knows no disk. `docs/api.md` describes the interface for its
//! users. From the outside in:
//!
//! - `http`: parsers without I/O (RFC 9110, RFC 9112), and a thin shell with a limit on every size and every wait.
//!   A malformed request ends its connection, with the error that the RFCs name, and no other.
//! - `routes`: the one table of paths. `handlers`: one short piece for each. [`Code`]: the one table of errors.
//! - [`Token`]: who may ask. Everything but `/healthz` needs one.
//!
//! It rests on httparse for request heads, serde_json, and sha2 and subtle for tokens.
//!
//! ```
//! use mgmt::{Api, Control};
//! use platform::{Runtime, net::Listener};
//! use std::rc::Rc;
//!
//! async fn listen<C: Control>(runtime: Runtime, listener: impl Listener, api: Rc<Api<C>>) {
//!     while let Ok(stream) = listener.accept().await {
//!         let api = api.clone();
//!         runtime.spawner.spawn(async move { api.serve(stream).await });
//!     }
//! }
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod access;
mod api;
mod control;
mod error;
mod handlers;
mod http;
mod metrics;
mod names;
mod query;
mod routes;
mod runs;
mod streams;
mod token;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use access::{Account, Authentication, DiscoveryAuth, Export};
pub use api::Api;
pub use control::{
    CheckOutcome, CheckProgress, CheckReport, CheckState, Control, Deletion, Health, HealthState, MetadataExport,
    NewPolicy, NewSnapshot, NewSnapshots, NewVolume, Policies, Policy, PolicyList, PoolInfo, ReceiveError,
    ReceiveRequest, ReceiveState, Repair, RepairReport, RollBack, SendRequest, SnapshotOf, Snapshots, Streams, View,
    ViewState, Views, Volume, VolumeChange, VolumeSpace, Wait,
};
pub use error::{Code, ControlError};
pub use http::Limits;
pub use names::{InitiatorError, InitiatorName, Initiators, NameError, SizeError, VolumeName, VolumeSize};
pub use runs::{DeltaRequest, MappingsRequest, RunsError, RunsFormat};
pub use token::{Token, TokenError, TokenHash};
