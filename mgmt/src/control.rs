//! What the interface asks of the appliance: plain data in, plain data or a [`ControlError`] out.

mod policies;
mod snapshots;
mod streams;

pub use policies::{NewPolicy, Policies, Policy, PolicyList};
pub use snapshots::{NewSnapshot, NewSnapshots, RollBack, SnapshotOf, Snapshots};
pub use streams::{ReceiveError, ReceiveRequest, ReceiveState, SendRequest, Streams};

use crate::access::{Authentication, DiscoveryAuth, Export};
use crate::error::ControlError;
use crate::names::{VolumeName, VolumeSize};
use crate::runs::{DeltaRequest, MappingsRequest, RunsError};
use crate::token::TokenHash;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use thinp::control::{DeviceId, DiscardPolicy, DiskBlocks, Mode, Status};

/// How the appliance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// The pool is open, in write mode.
    Ok,
    /// The pool is open, in another mode or in need of a check.
    Degraded,
    /// There is no pool.
    Unavailable,
}

/// How the appliance is, and why. Shown without a token: nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// How it is.
    #[serde(rename = "status")]
    pub state: HealthState,
    /// Why it is not [`HealthState::Ok`], naming the disk and the block.
    pub reason: Option<String>,
}

/// The pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolInfo {
    /// What `dmsetup status` would show.
    pub status: Status,
    /// What the disks have room for.
    pub disk_blocks: DiskBlocks,
    /// Events so far: changes of mode, low water, the end of the wait for space.
    pub events: u64,
    /// The pool has the reserved device that keeps names, sizes and exports.
    pub adopted: bool,
}

/// What a full check of the metadata found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Nothing is wrong.
    pub clean: bool,
    /// Problems by which data is lost.
    pub damage: u64,
    /// Space that nothing uses and nobody can have.
    pub leaks: u64,
    /// Hints and totals that are wrong, and harmless.
    pub hints: u64,
    /// Problems that were counted only, whatever they are.
    pub untold: u64,
    /// Thin devices.
    pub devices: u64,
    /// Mappings of all devices together.
    pub mappings: u64,
    /// The first problems, the worst before the others, each naming its block or device.
    pub problems: Vec<String>,
}

/// The check of the metadata that runs beside everything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckState {
    /// The check under way.
    pub running: Option<CheckProgress>,
    /// The one that ended last since the start.
    pub last: Option<CheckOutcome>,
}

/// How far a check has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckProgress {
    /// For how long it has been running.
    pub seconds: u64,
    /// Metadata blocks read so far; some are read more than once.
    pub blocks_read: u64,
    /// Metadata blocks in use at the moment that is checked.
    pub blocks_in_use: u64,
}

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckOutcome {
    /// When it ended, counted from now.
    pub seconds_ago: u64,
    /// How long it took.
    pub took_seconds: u64,
    /// The pool's transaction id at the moment that was checked.
    pub transaction_id: u64,
    /// What it found.
    pub report: Option<CheckReport>,
    /// Why it found nothing.
    pub error: Option<String>,
}

/// What a volume maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeSpace {
    /// Its name.
    pub name: VolumeName,
    /// Its thin device.
    #[serde(serialize_with = "serialize_id")]
    pub id: DeviceId,
    /// Space that it maps, shared or not.
    pub mapped_bytes: u64,
    /// Of that, what no other volume maps.
    pub exclusive_bytes: u64,
    /// Of that, what others map, too.
    pub shared_bytes: u64,
}

/// Volumes that might be deleted together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// Their names.
    pub volumes: Vec<VolumeName>,
}

/// The views of the metadata: who reads a former moment of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Views {
    /// Those that are open or ending, oldest first.
    pub views: Vec<View>,
    /// Views that there can be at a time.
    pub views_max: usize,
    /// Metadata blocks that only views use: they are not free, and counted as used.
    pub held_back_blocks: u64,
}

/// One view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    /// Who holds it.
    pub holder: String,
    /// Since when.
    pub seconds: u64,
    /// Whether it can be read.
    pub state: ViewState,
    /// Since when it is ending, if it is.
    pub ending_seconds: Option<u64>,
    /// Metadata blocks that it holds back, alone or with other views.
    pub held_back_blocks: u64,
}

/// What becomes of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ViewState {
    /// It can be read.
    Open,
    /// It was ended or dropped: its blocks are free when the reads that are under way have ended.
    Ending,
}

/// The export of the metadata disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MetadataExport {
    /// The rule, if it is exported.
    pub export: Option<Export>,
    /// The target's iSCSI name, if it is exported.
    pub target: Option<String>,
}

/// A volume or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Its thin device.
    #[serde(serialize_with = "serialize_id")]
    pub id: DeviceId,
    /// Its size; unknown for a device that the appliance did not make.
    pub size_bytes: Option<u64>,
    /// Space that it maps, shared or not.
    pub mapped_bytes: u64,
    /// What it is a snapshot of, if that still exists.
    pub snapshot_of: Option<VolumeName>,
    /// Refuses writes.
    pub read_only: bool,
    /// Whether it still holds what it held when it was made read-only, or received: then it can be the base of a stream.
    /// Unknown of a volume that was neither.
    pub intact: Option<bool>,
    /// Who it is, in hexadecimal digits.
    pub identity: String,
    /// The identity of what it holds, while it is intact: its own, or that of the snapshot that was received.
    pub contents: Option<String>,
    /// Size of a logical block.
    pub block_bytes: u32,
    /// Size of a physical block: what is best written at a time.
    pub physical_block_bytes: u32,
    /// What initiators see as its serial number.
    pub serial: String,
    /// The rule, if it is exported.
    pub export: Option<Export>,
    /// The target's iSCSI name, if it is exported.
    pub target: Option<String>,
    /// A session is logged in to it, or a job holds it.
    pub in_use: bool,
}

/// A volume to be made. The pool gives it an id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub size_bytes: VolumeSize,
    /// Size of a logical block, 512 or 4096. Unset: 512.
    #[serde(default)]
    pub block_bytes: Option<u32>,
    /// Size of a physical block, as large or larger. Unset: as a logical one.
    #[serde(default)]
    pub physical_block_bytes: Option<u32>,
}

/// A change of a volume: one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeChange {
    /// Its size.
    SizeBytes(VolumeSize),
    /// Whether it refuses writes.
    ReadOnly(bool),
}

/// What to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The count of events that is known already.
    pub after: u64,
}

/// A repair that is asked for: what was lost with the superblock, or is to be taken instead of what it says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Repair {
    /// Overwrite the new disk even if it is not blank.
    pub force: bool,
    /// Take the state of the last commit even where another has more mappings.
    pub last_commit: bool,
    /// Userland's transaction id.
    pub transaction_id: Option<u64>,
    /// Sectors in a data block.
    pub data_block_sectors: Option<u32>,
    /// Size of the data disk in such blocks.
    pub data_blocks: Option<u64>,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// Thin devices in the new metadata.
    pub devices: u64,
    /// Mappings of all devices together.
    pub mappings: u64,
    /// Mappings that are known to be lost.
    pub mappings_lost: u64,
    /// Devices of which something was lost or assumed.
    pub damaged_devices: u64,
    /// All of it, for people: where things came from, what was lost, what was assumed.
    pub report: Vec<String>,
    /// What to do next.
    pub next: String,
}

/// The appliance as its manager sees it. What changes something resolves once the change is durable.
///
/// Without a pool everything but [`Control::health`], [`Control::tokens`], [`Control::sessions`], [`Control::repair`] and
/// [`Control::power_off`] fails with [`Code::NoPool`](crate::Code::NoPool) and the reason.
#[expect(async_fn_in_trait, reason = "one thread: no future need be Send")]
pub trait Control: Snapshots + Streams + Policies + 'static {
    /// How the appliance is.
    fn health(&self) -> Health;

    /// The hashes of the tokens that open the interface.
    fn tokens(&self) -> Vec<TokenHash>;

    /// Sessions of initiators now.
    fn sessions(&self) -> usize;

    /// The pool now.
    fn pool(&self) -> Result<PoolInfo, ControlError>;

    /// A pool message, word for word what `dmsetup message POOL 0` takes; the answer is most often empty.
    async fn message(&self, text: &str) -> Result<String, ControlError>;

    /// Makes the reserved device in a pool that was made elsewhere.
    async fn adopt(&self) -> Result<(), ControlError>;

    /// Grows the pool to the present sizes of its disks.
    async fn grow(&self) -> Result<(), ControlError>;

    /// Resolves once the pool's count of events is no longer `seen`, or the pool is closed.
    async fn event_after(&self, seen: u64) -> Result<(), ControlError>;

    /// Begins to check all of the metadata, unless a check is under way, and returns.
    async fn start_check(&self) -> Result<CheckState, ControlError>;

    /// The check under way, and the last.
    fn check_state(&self) -> Result<CheckState, ControlError>;

    /// What each volume maps, and what it has alone.
    async fn space(&self) -> Result<Vec<VolumeSpace>, ControlError>;

    /// The bytes that deleting these volumes, all of them, would free.
    async fn freed_by(&self, deletion: &Deletion) -> Result<u64, ControlError>;

    /// Who reads former moments of the metadata.
    fn views(&self) -> Result<Views, ControlError>;

    /// Checks all of the metadata, and if nothing is wrong takes needs_check away.
    async fn clear_needs_check(&self) -> Result<CheckReport, ControlError>;

    /// Rebuilds damaged metadata onto another disk.
    async fn repair(&self, wanted: Repair) -> Result<RepairReport, ControlError>;

    /// Takes a metadata snapshot; its metadata block.
    async fn reserve_metadata_snapshot(&self) -> Result<u64, ControlError>;

    /// Drops the metadata snapshot.
    async fn release_metadata_snapshot(&self) -> Result<(), ControlError>;

    /// The export of the metadata disk.
    fn metadata_export(&self) -> Result<MetadataExport, ControlError>;

    /// Exports the metadata disk, or ends that and its sessions.
    async fn set_metadata_export(&self, rule: Option<Export>) -> Result<MetadataExport, ControlError>;

    /// What discovery has to prove.
    fn discovery_auth(&self) -> Result<DiscoveryAuth, ControlError>;

    /// Makes discovery prove something, or nothing, and ends the discovery sessions that did not prove it.
    async fn set_discovery_auth(&self, wanted: Option<Authentication>) -> Result<DiscoveryAuth, ControlError>;

    /// At most `most` volumes by name, beginning after the name `after`; none if there are no more.
    async fn volumes(&self, after: Option<&VolumeName>, most: usize) -> Result<Vec<Volume>, ControlError>;

    /// One volume.
    async fn volume(&self, name: &VolumeName) -> Result<Volume, ControlError>;

    /// Writes to `sink`, piece by piece, in which blocks two volumes differ.
    async fn delta<E>(
        &self,
        request: &DeltaRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>>;

    /// Writes to `sink`, piece by piece, where the blocks of a volume are.
    async fn mappings<E>(
        &self,
        request: &MappingsRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>>;

    /// Makes a volume.
    async fn create_volume(&self, new: NewVolume) -> Result<Volume, ControlError>;

    /// Changes a volume.
    async fn change_volume(&self, name: &VolumeName, change: VolumeChange) -> Result<Volume, ControlError>;

    /// Deletes a volume. One in use is [`EBUSY`](thinp::control::Errno::EBUSY).
    async fn delete_volume(&self, name: &VolumeName) -> Result<(), ControlError>;

    /// Exports a volume, or ends that and its sessions.
    async fn set_export(&self, name: &VolumeName, rule: Option<Export>) -> Result<Volume, ControlError>;

    /// Begins a clean power-off and returns; the answer to the request has been sent.
    fn power_off(&self);
}

fn serialize_id<S: Serializer>(id: &DeviceId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(id.get())
}

/// The word for a mode in JSON and in metrics.
pub(crate) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Write => "write",
        Mode::OutOfDataSpace => "out_of_data_space",
        Mode::OutOfMetadataSpace => "out_of_metadata_space",
        Mode::ReadOnly => "read_only",
        Mode::Fail => "fail",
    }
}

/// A pool and the appliance's health, as `GET /v1/pool` shows them together.
pub(crate) struct PoolView {
    pub info: PoolInfo,
    pub health: Health,
}

impl Serialize for PoolView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let status = &self.info.status;
        let discard = match status.discard {
            DiscardPolicy::Ignore => "ignore",
            DiscardPolicy::Passdown => "passdown",
            DiscardPolicy::NoPassdown => "no_passdown",
        };
        let mut s = serializer.serialize_struct("Pool", 19)?;
        s.serialize_field("state", &self.health.state)?;
        s.serialize_field("reason", &self.health.reason)?;
        s.serialize_field("status_line", &status.to_string())?;
        s.serialize_field("adopted", &self.info.adopted)?;
        s.serialize_field("mode", mode_name(status.mode))?;
        s.serialize_field("needs_check", &status.needs_check)?;
        s.serialize_field("transaction_id", &status.transaction_id)?;
        s.serialize_field("metadata_used_blocks", &status.metadata_used_blocks)?;
        s.serialize_field("metadata_total_blocks", &status.metadata_total_blocks)?;
        s.serialize_field("metadata_low_water_blocks", &status.metadata_low_water_blocks)?;
        s.serialize_field("data_used_blocks", &status.data_used_blocks)?;
        s.serialize_field("data_total_blocks", &status.data_total_blocks)?;
        s.serialize_field("data_block_sectors", &status.data_block_sectors)?;
        s.serialize_field("metadata_disk_blocks", &self.info.disk_blocks.metadata)?;
        s.serialize_field("data_disk_blocks", &self.info.disk_blocks.data)?;
        s.serialize_field("held_root", &status.held_root)?;
        s.serialize_field("discard", discard)?;
        s.serialize_field("error_if_no_space", &status.error_if_no_space)?;
        s.serialize_field("events", &self.info.events)?;
        s.end()
    }
}
