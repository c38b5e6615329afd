//! Streams of volumes: snapshots go out, and come in, as `thin_send` has them ([`thinp::stream`]).
//!
//! A receive never touches the volume before its end. It writes to a hidden one; at each digest of the stream a second hidden
//! volume, the *checkpoint*, becomes a snapshot of that, in one commit with the token by which the sender goes on. So what
//! is resumed is exactly what was verified, whatever else arrived. At the end the trees are exchanged, or a new volume gets
//! its name, in one commit with the records. What is not verified is swept away, after a power cut at the start.

mod receive;
mod send;
mod target;
mod writer;

use crate::catalog::VolumeRecord;
use crate::control::Manager;
use crate::service::{Served, Service, ServiceError};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::RefCell;
use core::time::Duration;
use mgmt::{
    Control, ControlError, ReceiveError, ReceiveRequest, ReceiveState, RunsError, SendRequest, Streams, Volume,
    VolumeName,
};
use platform::Runtime;
use platform::block::SECTOR_BYTES;
use platform::sync::{Notify, Semaphore};
use platform::time::Instant;
use target::given_up_checkpoint;
use thinp::stream::{Identity, StreamError, Token};

/// Streams that are sent at a time, and those that are received.
const STREAMS_MAX: usize = 4;

/// How long a transfer that broke off can be resumed. What it has received takes space.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Bytes of a stream that are in memory at a time.
const STEP_BYTES: usize = 256 << 10;

/// The transfers under way.
pub(crate) struct Transfers {
    sends: Semaphore,
    receives: Semaphore,
    /// Volumes that something is received into.
    receiving: RefCell<BTreeSet<String>>,
    /// Others are received into.
    changed: Notify,
}

impl Default for Transfers {
    fn default() -> Transfers {
        let (sends, receives) = (Semaphore::new(STREAMS_MAX), Semaphore::new(STREAMS_MAX));
        Transfers { sends, receives, receiving: RefCell::default(), changed: Notify::new() }
    }
}

/// Why a stream is not sent or not received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// It may be written to, or was.
    #[error("{0} is no read-only snapshot that is as it was when it was made read-only")]
    NotASnapshot(String),
    /// The text is no token.
    #[error("the resume token is not one that was given out")]
    BadToken,
    /// It belongs to another stream.
    #[error("the resume token is of a stream of {target} on {base}, not of this")]
    OtherToken {
        /// The snapshot that was sent.
        target: String,
        /// Its base.
        base: String,
    },
    /// The stream is no stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Its size is not known.
    #[error("the stream does not say how large volume {0} is")]
    SizeUnknown(String),
    /// What is below it lies elsewhere.
    #[error("the stream is of a volume over the external origin {0}, which volumes here cannot have")]
    Origin(String),
    /// The volume holds something else.
    #[error("the stream is an increment on {base}, and volume {volume} does not hold that")]
    WrongBase {
        /// The volume.
        volume: String,
        /// The base that is missing.
        base: String,
    },
    /// It says another size.
    #[error("the stream says that the volume has {said} bytes, not {given}")]
    OtherSize {
        /// What the stream says.
        said: u64,
        /// What was said beside it.
        given: u64,
    },
    /// Streams of ours name their base themselves.
    #[error("base is for streams that do not name theirs, and this names it")]
    BaseGiven,
    /// The rest of a stream whose beginning is not here.
    #[error("the stream goes on where another broke off, and volume {0} has no beginning of that")]
    NotBegun(String),
    /// Something is received into it.
    #[error("volume {0} is receiving a stream")]
    Receiving(String),
    /// No transfer.
    #[error("volume {0} has no transfer that could be resumed")]
    NoTransfer(String),
    /// The pool is full.
    #[error("the pool is full: at least {missing_bytes} bytes more are needed for volume {volume}")]
    NoSpace {
        /// The volume.
        volume: String,
        /// For the chunk at which it stopped.
        missing_bytes: u64,
    },
}

/// A name that nothing else receives into.
struct Receiving<'s> {
    transfers: &'s Transfers,
    name: String,
}

impl Transfers {
    fn begin(&self, name: &VolumeName) -> Result<Receiving<'_>, TransferError> {
        if !self.receiving.borrow_mut().insert(name.to_string()) {
            return Err(TransferError::Receiving(name.to_string()));
        }
        self.changed.notify_all();
        Ok(Receiving { transfers: self, name: name.to_string() })
    }

    fn is_running(&self, name: &str) -> bool {
        self.receiving.borrow().contains(name)
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.transfers.receiving.borrow_mut().remove(&self.name);
        self.transfers.changed.notify_all();
    }
}

/// The name of the hidden volume that holds what was verified of a transfer into a volume.
fn checkpoint_name(volume: &str) -> String {
    format!(".verified-{volume}")
}

/// The volume that a checkpoint is for.
fn volume_of(checkpoint: &VolumeRecord) -> Option<&str> {
    checkpoint.name.strip_prefix(".verified-")
}

fn token_of(checkpoint: &VolumeRecord) -> Option<Token> {
    checkpoint.resume.as_deref()?.parse().ok()
}

impl Streams for Manager {
    async fn send<E>(
        &self,
        request: &SendRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        let _turn = self.service.transfers.sends.acquire(1).await;
        send::send(self, request, sink).await
    }

    async fn receive<E>(
        &self,
        request: &ReceiveRequest,
        source: impl AsyncFnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Volume, ReceiveError<E>> {
        let transfers = &self.service.transfers;
        let receiving = transfers.begin(&request.volume).map_err(refused)?;
        let _turn = transfers.receives.acquire(1).await;
        let received = receive::receive(self, request, source).await;
        drop(receiving);
        received?;
        Ok(self.volume(&request.volume).await?)
    }

    fn receive_state(&self, name: &VolumeName) -> Result<ReceiveState, ControlError> {
        let served = self.service.served()?;
        let token = served.catalog().named(&checkpoint_name(name.as_str())).and_then(token_of);
        let running = self.service.transfers.is_running(name.as_str());
        if !running && token.is_none() {
            return Err(ServiceError::from(TransferError::NoTransfer(name.to_string())).into());
        }
        let verified_bytes = token.map_or(0, |token| token.resume.offset);
        Ok(ReceiveState { running, resume: token.map(|token| token.to_string()), verified_bytes })
    }

    async fn forget_receive(&self, name: &VolumeName) -> Result<(), ControlError> {
        Ok(self.service.forget_receive(name).await?)
    }
}

impl Service {
    /// Deletes what a transfer that broke off has received.
    async fn forget_receive(&self, name: &VolumeName) -> Result<(), ServiceError> {
        if self.transfers.is_running(name.as_str()) {
            return Err(TransferError::Receiving(name.to_string()).into());
        }
        self.drop_checkpoint(name).await
    }

    async fn drop_checkpoint(&self, name: &VolumeName) -> Result<(), ServiceError> {
        let given_up = self.alone(async |served| {
            let record = served.catalog().named(&checkpoint_name(name.as_str())).cloned();
            let found = record.and_then(|record| Some((record.id()?, record)));
            let (device, record) = found.ok_or_else(|| TransferError::NoTransfer(name.to_string()))?;
            let hold = self.hold_to_delete(served, device)?;
            served.change(&[], [given_up_checkpoint(record)].into()).await?;
            Ok(hold)
        });
        self.finish_deletion(&given_up.await?).await
    }

    /// Gives up transfers that are not resumed for too long, as long as the appliance runs. What was received before the start
    /// can be resumed for as long as after it.
    pub(crate) fn expire_transfers(self: &Rc<Self>, runtime: &Runtime) {
        let (service, timers) = (self.clone(), runtime.timers.clone());
        runtime.spawner.spawn(async move {
            // What can be resumed, and until when.
            let mut kept = BTreeMap::<VolumeName, (Token, Instant)>::new();
            while let Ok(served) = service.served() {
                let changed = service.transfers.changed.notified();
                let now = timers.now();
                let broken_off = service.broken_off(&served);
                kept.retain(|name, (token, _)| broken_off.get(name) == Some(token));
                for (name, token) in broken_off {
                    kept.entry(name).or_insert((token, now + KEPT));
                }
                let first = kept.iter().map(|(name, (_, until))| (*until, name.clone())).min();
                match first {
                    None => changed.await,
                    Some((until, name)) if until <= now => {
                        service.give_up_transfer(&name).await;
                        kept.remove(&name);
                    }
                    // Elapsed or changed: either is a reason to look again.
                    Some((until, _)) => drop(timers.timeout(until - now, changed).await),
                }
            }
        });
    }

    /// The transfers that could be resumed.
    fn broken_off(&self, served: &Served) -> BTreeMap<VolumeName, Token> {
        let catalog = served.catalog();
        let checkpoints = catalog.volumes().filter(|record| !record.deleting);
        let transfers = checkpoints.filter_map(|record| Some((volume_of(record)?, token_of(record)?)));
        let waiting = transfers.filter(|(name, _)| !self.transfers.is_running(name));
        waiting.filter_map(|(name, token)| Some((VolumeName::parse(name).ok()?, token))).collect()
    }

    async fn give_up_transfer(&self, name: &VolumeName) {
        match self.forget_receive(name).await {
            Ok(()) => log::info!("the transfer into volume {name} was not resumed: what it received is deleted"),
            Err(error) => log::warn!("the transfer into volume {name} is not deleted: {error}"),
        }
    }
}

fn refused<E>(error: impl Into<ServiceError>) -> ReceiveError<E> {
    ReceiveError::Refused(error.into().into())
}

fn identity_or_nothing(base: Option<Identity>) -> String {
    base.map_or_else(|| "nothing".to_string(), |base| base.to_string())
}

fn block_bytes(served: &Served) -> u64 {
    served.pool.data_block_sectors().saturating_mul(SECTOR_BYTES as u64)
}
