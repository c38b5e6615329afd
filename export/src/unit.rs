//! What is exported, and who may use it: the traits that the appliance implements.

use crate::scsi::reserve::Kept;
use alloc::{rc::Rc, string::String, vec::Vec};
use core::future::Future;
use core::net::IpAddr;
use platform::secret::Secret;
use platform::{block::Bufs, buf::Buf};

/// What a unit can do and how big it is. Asked for with each command: a size may change at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Bytes of a physical block, a power of two times `block_bytes`.
    pub physical_block_bytes: u32,
    /// The pool's block in logical blocks: what `unmap` can free. 0 where nothing can be freed.
    pub unmap_granularity_blocks: u32,
    /// Writes are refused.
    pub read_only: bool,
}

impl Attributes {
    /// Space can be given back, and what is unmapped reads as zero.
    pub fn is_thin(&self) -> bool {
        self.unmap_granularity_blocks > 0 && !self.read_only
    }

    /// In what blocks of logical blocks space is counted, as a power of two: what divides a pool's block.
    pub fn threshold_exponent(&self) -> u8 {
        self.unmap_granularity_blocks.trailing_zeros().min(31) as u8
    }

    /// Bytes as a number of such blocks; saturates.
    pub fn threshold_sets(&self, bytes: u64) -> u32 {
        let set_bytes = u64::from(self.block_bytes.max(1)) << self.threshold_exponent();
        u32::try_from(bytes / set_bytes).unwrap_or(u32::MAX)
    }

    /// Size of the unit; saturates.
    pub fn size_bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_bytes))
    }
}

/// The space that thin units share, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Free, and theirs if they need it.
    pub available_bytes: u64,
    /// In use.
    pub used_bytes: u64,
    /// The soft threshold: initiators are warned when no more than this is available. 0: never.
    pub threshold_bytes: u64,
}

/// Who a unit is. Must never change while the unit exists, over restarts included: initiators recognise a
/// disk, and paths to it, by this alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// A NAA IEEE registered extended designator (first nibble 6) that no other unit has.
    pub naa: [u8; 16],
    /// The unit's serial number: printable ASCII.
    pub serial: String,
    /// T10 vendor identification, at most 8 ASCII characters.
    pub vendor: &'static str,
    /// Product, at most 16 ASCII characters.
    pub product: &'static str,
    /// Product revision, at most 4 ASCII characters.
    pub revision: &'static str,
}

/// A sanitize operation (SBC-4 section 4.11): meanwhile, and after it has failed, nothing of the medium can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitize {
    /// It is under way.
    Running {
        /// How much of it is done, in 65536ths.
        progress: u16,
    },
    /// It has failed. Begin another, which is to succeed.
    Failed {
        /// The initiator allowed to leave it at that ([`LogicalUnit::leave_sanitize`]).
        unrestricted: bool,
    },
}

/// Why a unit could not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// Beyond the end of the unit.
    #[error("beyond the end of the unit")]
    OutOfRange,
    /// The pool has no space for this write.
    #[error("the pool has no free space")]
    NoSpace,
    /// There is no room to write down what is to outlive a restart.
    #[error("the unit's records are full")]
    RecordsFull,
    /// The unit or its pool takes no writes now.
    #[error("the unit is read-only")]
    ReadOnly,
    /// The medium failed at this place.
    #[error("the medium failed at byte {offset_bytes}")]
    Medium {
        /// First bad byte known.
        offset_bytes: u64,
    },
    /// The unit is being sanitized.
    #[error("the unit is being sanitized")]
    Sanitizing,
    /// Something has to change before the unit can do it; what is in the unit's own log.
    #[error("the unit is in no state for this")]
    NotNow,
    /// No I/O buffer became free.
    #[error("no buffers are free")]
    Busy,
    /// Anything else; the reason is in the unit's own log.
    #[error("the unit failed")]
    Failed,
}

/// A disk as an initiator sees it. Offsets and lengths are in bytes and whole logical blocks, within the size.
///
/// Requests may overlap in time and complete in any order. Their futures are never dropped half-way.
pub trait LogicalUnit: 'static {
    /// Size and abilities now.
    fn attributes(&self) -> Attributes;

    /// Who it is.
    fn identity(&self) -> Identity;

    /// The space that it takes what it needs from, where it is thin.
    fn space(&self) -> Space;

    /// What was kept last; `None` if the unit cannot keep anything.
    fn kept_reservations(&self) -> Option<Kept>;

    /// Keeps reservations over restarts, in the place of those before. They are durable on completion.
    fn keep_reservations(&self, kept: Kept) -> impl Future<Output = Result<(), UnitError>>;

    /// Fills the buffer.
    fn read(&self, offset_bytes: u64, buf: Buf) -> impl Future<Output = (Result<(), UnitError>, Buf)>;

    /// Writes the buffers one after the other. With `fua` the data is durable on completion.
    fn write(&self, offset_bytes: u64, bufs: Bufs, fua: bool) -> impl Future<Output = Result<(), UnitError>>;

    /// Makes durable what completed before.
    fn flush(&self) -> impl Future<Output = Result<(), UnitError>>;

    /// Frees whole pool blocks, which then read as zero. The range is aligned to them, but for the unit's end.
    fn unmap(&self, offset_bytes: u64, len_bytes: u64) -> impl Future<Output = Result<(), UnitError>>;

    /// Makes the range read as zero.
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> impl Future<Output = Result<(), UnitError>>;

    /// Copies from `source`, another unit, by sharing what both have then: no data moves. The ranges are aligned to the
    /// pool's blocks. False if that is not possible for all of it: then all of it has to be copied.
    fn share(
        &self,
        offset_bytes: u64,
        source: &Self,
        source_offset_bytes: u64,
        len_bytes: u64,
    ) -> impl Future<Output = Result<bool, UnitError>>;

    /// The sanitize operation that is under way, or that failed last. Asked for with each command.
    fn sanitize(&self) -> Option<Sanitize>;

    /// Begins to destroy all contents, so that everything is unmapped and nothing can be recovered. It goes on by itself,
    /// whoever goes away, and after a restart, which it is sure of on completion. [`UnitError::NotNow`] if others would
    /// lose what they share with the unit.
    fn begin_sanitize(&self, unrestricted: bool) -> impl Future<Output = Result<(), UnitError>>;

    /// Waits until the operation that is under way has ended, and tells whether it succeeded. May be dropped.
    fn sanitized(&self) -> impl Future<Output = Result<(), UnitError>>;

    /// Leaves a failed operation at that. Durable on completion.
    fn leave_sanitize(&self) -> impl Future<Output = Result<(), UnitError>>;

    /// Whether the block at `offset_bytes` is mapped, and for how many bytes (1..=`len_bytes`) that holds.
    fn mapped(&self, offset_bytes: u64, len_bytes: u64) -> impl Future<Output = Result<(bool, u64), UnitError>>;
}

/// Why a login to a target is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such target.
    #[error("no such target")]
    NotFound,
    /// This initiator may not use it.
    #[error("the initiator has no access")]
    Forbidden,
    /// It is there, but cannot be served now.
    #[error("the target is not available now")]
    Unavailable,
}

/// A name and the secret that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// CHAP_N.
    pub name: String,
    /// The CHAP secret.
    pub secret: Secret,
}

/// What a login has to prove by CHAP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chap {
    /// As whom the initiator proves itself.
    pub initiator: Credentials,
    /// As whom the target does if the initiator asks for it. Its secret is another.
    pub target: Option<Credentials>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The iSCSI name that it gave.
    pub initiator: String,
    /// The address that it connects from; an IPv4 one is never written as IPv6.
    pub address: IpAddr,
    /// What it has proven.
    pub proven: Option<Rc<Chap>>,
}

/// The targets: which there are and who may use them. Names are compared in lower case.
pub trait Directory: 'static {
    /// What a target's LUN 0 is.
    type Unit: LogicalUnit;

    /// The targets that `peer` may use, if need be with a secret that it has yet to prove: all that discovery shows it.
    fn targets(&self, peer: &Peer) -> Vec<String>;

    /// What `peer`, which has proven nothing yet, has to prove before it may use a target, or before discovery
    /// (`None`). For a target that it cannot use anyway nothing.
    fn wanted(&self, target: Option<&str>, peer: &Peer) -> Option<Rc<Chap>>;

    /// The target whose unit has this designator ([`Identity::naa`]), if `peer` may use it as far as it is known
    /// without [`Directory::open`]: how copies name units.
    fn named(&self, naa: &[u8; 16], peer: &Peer) -> Option<String>;

    /// Opens a target. What `peer` has proven is judged by the rules as they are now. The unit stays open while a
    /// session holds it; two sessions of one target that get the same `Rc` share its task set and unit attentions.
    fn open(&self, target: &str, peer: &Peer) -> impl Future<Output = Result<Rc<Self::Unit>, Refusal>>;
}
