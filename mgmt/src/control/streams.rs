//! Streams of volumes: thin-send-recv 1.1, with optional chunks of ours.

use super::Volume;
use crate::error::ControlError;
use crate::names::{VolumeName, VolumeSize};
use crate::runs::RunsError;
use alloc::string::String;
use serde::Serialize;

/// A stream that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendRequest {
    /// The snapshot to send: read-only, and intact.
    pub snapshot: VolumeName,
    /// What the receiver has already, of the same kind; nothing if all is to be sent.
    pub base: Option<VolumeName>,
    /// Where to go on, as the receiver said.
    pub resume: Option<String>,
}

/// A stream that is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveRequest {
    /// The volume to put it into: a new one, or one whose contents it replaces.
    pub volume: VolumeName,
    /// The volume's size; a stream of ours says it.
    pub size_bytes: Option<VolumeSize>,
    /// What the stream is an increment on, for a foreign stream, which does not say.
    pub base: Option<VolumeName>,
    /// A new volume refuses writes.
    pub read_only: bool,
}

/// Why a stream was not received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError<E> {
    /// It is refused, or the volume cannot take it.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// Whoever gives it failed.
    #[error("{0}")]
    Source(E),
}

/// How far a transfer into a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceiveState {
    /// It goes on at the moment; else it broke off and can be resumed.
    pub running: bool,
    /// What `resume=` of the sender's stream takes; nothing before the first digest, and in a foreign stream.
    pub resume: Option<String>,
    /// The offset in the volume below which all is received, verified and durable, in bytes.
    pub verified_bytes: u64,
}

/// What a manager does with streams.
#[expect(async_fn_in_trait, reason = "one thread: no future need be Send")]
pub trait Streams {
    /// Writes a snapshot to `sink`, piece by piece, or what makes another into it.
    async fn send<E>(
        &self,
        request: &SendRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>>;

    /// Reads a stream from `source`, which fills a buffer as far as it can, and returns 0 at the end. The volume shows its old
    /// contents until all of it was verified; then it has the new ones in one commit.
    async fn receive<E>(
        &self,
        request: &ReceiveRequest,
        source: impl AsyncFnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Volume, ReceiveError<E>>;

    /// The transfer into a volume that is under way or can be resumed.
    fn receive_state(&self, name: &VolumeName) -> Result<ReceiveState, ControlError>;

    /// Gives up a transfer that broke off, and what was received by it.
    async fn forget_receive(&self, name: &VolumeName) -> Result<(), ControlError>;
}
