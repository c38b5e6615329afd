//! Snapshots, of one volume and of several at once, and the way back to them.

use super::Volume;
use crate::error::ControlError;
use crate::names::VolumeName;
use alloc::vec::Vec;
use serde::Deserialize;

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// Its name.
    pub name: VolumeName,
    /// It refuses writes: the base of deltas and streams.
    #[serde(default)]
    pub read_only: bool,
}

/// Snapshots to be made at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshots {
    /// Of which volumes, each once.
    pub snapshots: Vec<SnapshotOf>,
    /// They refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOf {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot's name.
    pub name: VolumeName,
}

/// A roll-back that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// The snapshot to go back to.
    pub to: VolumeName,
    /// Even if sessions are logged in: their initiators are told.
    #[serde(default)]
    pub force: bool,
}

/// What a manager does with snapshots.
#[expect(async_fn_in_trait, reason = "one thread: no future need be Send")]
pub trait Snapshots {
    /// Makes a snapshot of a volume.
    async fn create_snapshot(&self, origin: &VolumeName, new: NewSnapshot) -> Result<Volume, ControlError>;

    /// Makes snapshots of several volumes at one instant, in one commit: no write that was issued after the end of another
    /// is in without it.
    async fn create_snapshots(&self, new: NewSnapshots) -> Result<Vec<Volume>, ControlError>;

    /// Gives a volume the contents, and the size, of one of its snapshots.
    async fn roll_back(&self, name: &VolumeName, wanted: RollBack) -> Result<Volume, ControlError>;
}
