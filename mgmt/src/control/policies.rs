//! Snapshot policies.

use crate::error::ControlError;
use crate::names::VolumeName;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A policy to be made, or to be put in the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPolicy {
    /// The volumes, of which snapshots are taken at one instant.
    pub volumes: Vec<VolumeName>,
    /// Minutes from one to the next.
    #[serde(default)]
    pub every_minutes: Option<u32>,
    /// So many of these are kept.
    #[serde(default)]
    pub keep: u32,
    /// One is kept for each of so many hours.
    #[serde(default)]
    pub hourly: u32,
    /// One is kept for each of so many days.
    #[serde(default)]
    pub daily: u32,
    /// One is kept for each of so many weeks.
    #[serde(default)]
    pub weekly: u32,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Its name.
    pub name: VolumeName,
    /// The volumes.
    pub volumes: Vec<VolumeName>,
    /// Minutes from one snapshot to the next.
    pub every_minutes: Option<u32>,
    /// So many of these are kept.
    pub keep: u32,
    /// One is kept for each of so many hours.
    pub hourly: u32,
    /// One is kept for each of so many days.
    pub daily: u32,
    /// One is kept for each of so many weeks.
    pub weekly: u32,
    /// When the last were taken, or the policy was made.
    pub last: Option<String>,
    /// When the next are due, if the time is known.
    pub next: Option<String>,
    /// Why it took none when they were due: it tries again every minute.
    pub trouble: Option<String>,
    /// Snapshots of this policy now.
    pub snapshots: usize,
}

/// All policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyList {
    /// What the clock says, if there is one.
    pub time: Option<String>,
    /// The policies.
    pub policies: Vec<Policy>,
}

/// What a manager does with policies.
#[expect(async_fn_in_trait, reason = "one thread: no future need be Send")]
pub trait Policies {
    /// All policies, and the time.
    fn policies(&self) -> Result<PolicyList, ControlError>;

    /// Makes a policy, or puts it in the place of the one with this name.
    async fn set_policy(&self, name: &VolumeName, new: NewPolicy) -> Result<Policy, ControlError>;

    /// Ends a policy. Its snapshots stay.
    async fn delete_policy(&self, name: &VolumeName) -> Result<(), ControlError>;
}
