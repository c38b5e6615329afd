//! The pool and its records as one thing: every change of either goes through here, one at a time.

use crate::Secrets;
use crate::access::{self, Rule};
use crate::catalog::{Catalog, CatalogError, Edit, VolumeRecord};
use crate::check::CheckJob;
use crate::holds::{Held, Holds};
use crate::owner;
use crate::policies;
use crate::reservations::Reservations;
use crate::runs::STREAMS_MAX;
use crate::sanitize::Operations;
use crate::settings::Settings;
use crate::space::SpaceCache;
use crate::streams::{TransferError, Transfers};
use crate::units::{self, MetadataUnit, Unit, VolumeUnit, serial};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, Ref, RefCell};
use export::{Chap, Directory, Peer, Refusal, Space};
use mgmt::{Health, HealthState, Token, TokenHash, VolumeName};
use platform::Runtime;
use platform::block::{Disk, SECTOR_BYTES};
use platform::random::Random;
use platform::sync::{Notify, Permit, Semaphore};
use platform::task::Spawner;
use platform::time::WallClock;
use sha2::{Digest, Sha256};
use thinp::Pool;
use thinp::control::{DeviceId, Mode};
use thinp::metadata::repair::RepairError;
use thinp::records::{Change, Records, Roots};

/// The name of the metadata export: no volume can have it, for volumes' names have no colon.
pub const METADATA_TARGET: &str = "pool:metadata";

/// What is served once the pool is open.
pub struct Served {
    pub(crate) pool: Pool,
    /// None in a pool that was made elsewhere and not adopted: then the catalog lives in memory only.
    pub(crate) records: RefCell<Option<Records>>,
    pub(crate) catalog: Rc<RefCell<Catalog>>,
    /// The pool takes changes again after a transaction failed, and the records were not read since. They may be those of that
    /// transaction: what is written over them must not come from an older memory.
    pub(crate) stale: Cell<bool>,
    pub(crate) metadata_disk: Disk,
    /// Why the records that the pool has cannot be used.
    pub(crate) trouble: Option<String>,
}

/// The appliance's state.
pub struct Service {
    pub(crate) settings: Settings,
    random: Rc<dyn Random>,
    pub(crate) spawner: Spawner,
    served: RefCell<Result<Rc<Served>, String>>,
    /// The token that was given from outside, or made for a pool that keeps none.
    pub(crate) tokens: RefCell<Vec<TokenHash>>,
    pub(crate) given_identity: Option<[u8; 16]>,
    units: RefCell<BTreeMap<DeviceId, Weak<Unit>>>,
    metadata_unit: RefCell<Weak<Unit>>,
    pub(crate) holds: Holds,
    pub(crate) sanitizing: Operations,
    /// One change of the catalog, or opening of a unit, at a time.
    changes: Semaphore,
    pub(crate) check: CheckJob,
    pub(crate) space: SpaceCache,
    /// Streams of runs that are made at a time.
    pub(crate) streams: Semaphore,
    pub(crate) transfers: Transfers,
    clock: Rc<dyn WallClock>,
    pub(crate) policies: policies::Runs,
    off: Cell<bool>,
    off_wanted: Notify,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// There is no pool.
    #[error("the pool is not available: {0}")]
    NoPool(String),
    /// The pool refused or failed.
    #[error(transparent)]
    Pool(#[from] thinp::Error),
    /// The records refused.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// There is no such volume.
    #[error("there is no volume {0}")]
    NoVolume(String),
    /// The name is taken.
    #[error("there is a volume {0} already")]
    NameTaken(String),
    /// The pool keeps no records.
    #[error("the pool was made elsewhere and keeps no names yet")]
    NotAdopted,
    /// Its size is unknown.
    #[error("the size of volume {0} is not set")]
    SizeUnset(String),
    /// Block sizes that make no disk.
    #[error("the block size does not fit: {0}")]
    Blocks(&'static str),
    /// All thin ids are taken.
    #[error("no thin id is free")]
    NoFreeId,
    /// The pool may be in use elsewhere.
    #[error(
        "instance {by} activated the pool (activation {epoch}) and did not close it: it may be using it; \
         if it is dead for certain, start with takeover=yes"
    )]
    Elsewhere {
        /// Its identity.
        by: String,
        /// Which activation it was.
        epoch: u64,
    },
    /// The pool is in use, and its metadata changes.
    #[error("the pool is in {0} mode: there is nothing to repair")]
    NothingToRepair(Mode),
    /// A disk is not there, or there are two.
    #[error("{0}")]
    NoDisk(String),
    /// The metadata cannot be repaired.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// There is no such policy.
    #[error("there is no snapshot policy {0}")]
    NoPolicy(String),
    /// There is no room for another.
    #[error("there are {most} snapshot policies already, as many as there can be")]
    TooManyPolicies {
        /// As many as there can be.
        most: usize,
    },
    /// A stream is not sent or not received.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The volume has sessions, or a job holds it.
    #[error("volume {0} is in use")]
    InUse(String),
    /// The volume is read-only.
    #[error("volume {0} is read-only")]
    ReadOnly(String),
    /// A roll-back to something else.
    #[error("{snapshot} is no snapshot of volume {volume}")]
    NotItsSnapshot {
        /// The volume.
        volume: String,
        /// What it was to go back to.
        snapshot: String,
    },
}

impl Service {
    /// Nothing is served yet.
    pub fn new(runtime: &Runtime, settings: Settings, secrets: &Secrets, clock: Rc<dyn WallClock>) -> Rc<Service> {
        let given = secrets.token.as_deref().and_then(|text| match Token::parse(text.trim()) {
            Ok(token) => Some(token.hash()),
            Err(error) => {
                log::error!("the token that was given is ignored: {error}");
                None
            }
        });
        let given_identity = secrets.identity.as_deref().and_then(|text| {
            let identity = parse_identity(text);
            if identity.is_none() {
                log::error!("the identity that was given is ignored: it is not 32 hexadecimal digits");
            }
            identity
        });
        Rc::new(Service {
            settings,
            random: runtime.random.clone(),
            spawner: runtime.spawner.clone(),
            served: RefCell::new(Err("the pool is being opened".to_string())),
            tokens: RefCell::new(given.into_iter().collect()),
            given_identity,
            units: RefCell::default(),
            metadata_unit: RefCell::default(),
            holds: Holds::default(),
            sanitizing: Operations::default(),
            changes: Semaphore::new(1),
            check: CheckJob::default(),
            space: SpaceCache::default(),
            streams: Semaphore::new(STREAMS_MAX),
            transfers: Transfers::default(),
            clock,
            policies: policies::Runs::default(),
            off: Cell::new(false),
            off_wanted: Notify::new(),
        })
    }

    pub(crate) fn serve(&self, served: Served) {
        *self.served.borrow_mut() = Ok(Rc::new(served));
    }

    /// Begins what goes on by itself while a pool is served.
    pub(crate) fn begin(self: &Rc<Self>, runtime: &Runtime) {
        self.resume_sanitizing();
        self.expire_transfers(runtime);
        policies::start(runtime, self);
        self.resume_deletions(runtime);
    }

    pub(crate) fn give_up(&self, reason: String) {
        log::error!("no pool: {reason}");
        *self.served.borrow_mut() = Err(reason);
    }

    /// What is served, or why nothing is.
    pub fn served(&self) -> Result<Rc<Served>, ServiceError> {
        self.served.borrow().clone().map_err(ServiceError::NoPool)
    }

    /// The pool, if it is open.
    pub fn pool(&self) -> Option<Pool> {
        self.served().ok().map(|served| served.pool.clone())
    }

    /// How the appliance is.
    pub(crate) fn health(&self) -> Health {
        let served = match self.served() {
            Ok(served) => served,
            Err(error) => return Health { state: HealthState::Unavailable, reason: Some(error.to_string()) },
        };
        let status = served.pool.status();
        let reason = match status.mode {
            _ if served.pool.is_taken_over() => Some(thinp::Error::TakenOver.to_string()),
            _ if served.trouble.is_some() => served.trouble.clone(),
            _ if status.needs_check => {
                Some("the metadata needs a check: POST /v1/pool/clear-needs-check does it".to_string())
            }
            Mode::Write if self.check.damage() > 0 => {
                let damage = self.check.damage();
                Some(format!("a check of the metadata found {damage} problems: GET /v1/pool/check has them"))
            }
            Mode::Write => None,
            mode => Some(format!("the pool is in {mode} mode: {}", mode.way_out())),
        };
        let state = if reason.is_none() { HealthState::Ok } else { HealthState::Degraded };
        Health { state, reason }
    }

    pub(crate) fn want_power_off(&self) {
        self.off.set(true);
        self.off_wanted.notify_all();
    }

    pub(crate) fn is_powering_off(&self) -> bool {
        self.off.get()
    }

    /// Resolves when somebody wants a power-off.
    pub(crate) async fn powered_off(&self) {
        let wanted = self.off_wanted.notified();
        if !self.off.get() {
            wanted.await;
        }
    }

    /// Commits and closes the pool. It is somebody else's only when nothing of ours can reach its disks any more.
    pub(crate) async fn close(&self) {
        let _alone = self.changes.acquire(1).await;
        let Ok(served) = self.served() else { return };
        let released = async {
            served.pool.end_io().await?;
            owner::release(self, &*self.current().await?).await
        };
        if let Err(error) = released.await {
            log::error!("releasing the pool: {error}");
        }
        if let Err(error) = served.pool.close().await {
            log::error!("closing the pool: {error}");
        }
    }

    /// Seconds since 1970, if somebody knows the time.
    pub(crate) fn unix_seconds(&self) -> Option<u64> {
        self.clock.unix_seconds()
    }

    /// A new identity for a volume or an instance.
    pub(crate) fn new_identity(&self) -> [u8; 16] {
        let mut identity = [0; 16];
        self.random.fill(&mut identity);
        identity
    }

    /// A token from the appliance's own dice.
    pub(crate) fn new_token(&self) -> Token {
        Token::generate(&*self.random)
    }

    /// Keeps changes away until what is returned is dropped.
    pub(crate) async fn changes(&self) -> Permit<'_> {
        self.changes.acquire(1).await
    }

    /// Carries out one change after the other.
    pub(crate) async fn alone<T>(
        &self,
        work: impl AsyncFnOnce(&Rc<Served>) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let _alone = self.changes.acquire(1).await;
        work(&self.current().await?).await
    }

    /// What is served, with the records that are on the disk. The caller keeps changes away.
    pub(crate) async fn current(&self) -> Result<Rc<Served>, ServiceError> {
        let served = self.served()?;
        if served.stale.get() {
            crate::startup::reload(&served).await?;
        }
        Ok(served)
    }

    /// The iSCSI name of a volume's target.
    pub fn target_name(&self, name: &str) -> String {
        format!("{}:{name}", self.settings.iqn_prefix)
    }

    /// The volume, or the metadata, that a target stands for.
    fn name_of(&self, target: &str) -> Option<String> {
        let (prefix, rest) = target.split_at_checked(self.settings.iqn_prefix.len())?;
        let name = if prefix.eq_ignore_ascii_case(&self.settings.iqn_prefix) { rest.strip_prefix(':') } else { None };
        name.map(str::to_ascii_lowercase)
    }

    /// The rule by which a target is exported; nothing for one that is not.
    fn rule(&self, served: &Served, target: &str) -> Option<Rule> {
        let name = self.name_of(target)?;
        let catalog = served.catalog();
        if name == METADATA_TARGET { catalog.appliance().metadata_rule() } else { catalog.named(&name)?.rule() }
    }

    /// The unit of a device, if a session holds it.
    pub(crate) fn unit(&self, device: DeviceId) -> Option<Rc<Unit>> {
        self.units.borrow().get(&device).and_then(Weak::upgrade)
    }

    /// A session is logged in to it, a job holds it, or it is being sanitized.
    pub(crate) fn is_in_use(&self, device: DeviceId) -> bool {
        self.unit(device).is_some() || self.holds.of(device) != Held::Not || self.sanitizing.is_running(device)
    }

    /// Refuses what needs the volume for itself.
    pub(crate) fn check_unused(&self, device: DeviceId, name: &VolumeName) -> Result<(), ServiceError> {
        if self.is_in_use(device) { Err(ServiceError::InUse(name.to_string())) } else { Ok(()) }
    }

    /// The space of the pool, as far as there is one.
    pub(crate) fn pool_space(&self) -> Space {
        let Some(status) = self.pool().map(|pool| pool.status()) else { return Space::default() };
        let block_bytes = u64::from(status.data_block_sectors) * SECTOR_BYTES as u64;
        let bytes = |blocks: u64| blocks.saturating_mul(block_bytes);
        Space {
            available_bytes: bytes(status.data_total_blocks.saturating_sub(status.data_used_blocks)),
            used_bytes: bytes(status.data_used_blocks),
            threshold_bytes: bytes(self.settings.low_water_blocks),
        }
    }

    /// The reservations in the record of the volume of this identity; `None` in a pool that keeps no records.
    pub(crate) fn reservations_of(&self, identity: &[u8; 16]) -> Option<Option<Reservations>> {
        let served = self.served().ok().filter(|served| served.adopted())?;
        let catalog = served.catalog();
        catalog.identified(identity).map(|record| record.reservations.clone())
    }

    /// Writes reservations into the record of the volume of this identity.
    pub(crate) async fn set_reservations(
        &self,
        identity: &[u8; 16],
        reservations: Option<Reservations>,
    ) -> Result<(), ServiceError> {
        self.alone(async |served| {
            let record = served.catalog().identified(identity).cloned();
            let record = record.ok_or_else(|| ServiceError::NoVolume(serial(identity)))?;
            if !served.adopted() {
                return Err(ServiceError::NotAdopted);
            }
            served.change(&[], [Edit::Put(VolumeRecord { reservations, ..record })].into()).await
        })
        .await
    }

    async fn open_volume(self: &Rc<Self>, served: &Served, record: &VolumeRecord) -> Result<Rc<Unit>, Refusal> {
        let device = record.id().ok_or(Refusal::NotFound)?;
        if self.holds.of(device) == Held::Alone {
            return Err(Refusal::Unavailable);
        }
        if let Some(unit) = self.unit(device) {
            return Ok(unit);
        }
        let size_bytes = record.size_bytes.ok_or(Refusal::Unavailable)?;
        let writable = self.may_be_written(served, record).await;
        let thin = served.pool.open_thin(device, None).await.map_err(|error| {
            log::warn!("volume {} cannot be served: {error}", record.name);
            Refusal::Unavailable
        })?;
        let data_block_bytes = served.pool.data_block_sectors().saturating_mul(SECTOR_BYTES as u64);
        let volume = VolumeUnit::new(self, thin, record, size_bytes, data_block_bytes, writable);
        let unit = Rc::new(Unit::Volume(volume));
        self.units.borrow_mut().retain(|_, unit| unit.strong_count() > 0);
        self.units.borrow_mut().insert(device, Rc::downgrade(&unit));
        Ok(unit)
    }

    /// Whether sessions may write to a volume. What it holds is not known any more from then on, which is written down
    /// first: its root alone would not tell for ever, after two changes it may be in the same block as before.
    async fn may_be_written(&self, served: &Served, record: &VolumeRecord) -> bool {
        if record.read_only || record.contents.is_none() {
            return !record.read_only;
        }
        let used = VolumeRecord { contents: None, ..record.clone() };
        let written = served.change(&[], [Edit::Put(used)].into()).await;
        if let Err(error) = &written {
            let name = &record.name;
            log::warn!("volume {name} is served write-protected: that it is used cannot be written down: {error}");
        }
        written.is_ok()
    }

    fn open_metadata(&self, served: &Served) -> Rc<Unit> {
        if let Some(unit) = self.metadata_unit.borrow().upgrade() {
            return unit;
        }
        let identity = derived(&served.catalog.borrow().appliance().identity, "metadata");
        let unit = Rc::new(Unit::Metadata(MetadataUnit::new(&served.metadata_disk, identity)));
        *self.metadata_unit.borrow_mut() = Rc::downgrade(&unit);
        unit
    }
}

impl Served {
    /// The records now.
    pub fn catalog(&self) -> Ref<'_, Catalog> {
        self.catalog.borrow()
    }

    /// The pool keeps records.
    pub fn adopted(&self) -> bool {
        self.records.borrow().is_some()
    }

    /// The pool may come to change its metadata. Without room for more, too: what frees some works, and then everything does.
    pub(crate) fn is_changeable(&self) -> bool {
        self.pool.status().mode < Mode::ReadOnly
    }

    /// Changes devices and their records in one metadata commit. Without records, only what needs no device
    /// changed is possible, and holds until the restart. The caller keeps other changes away.
    pub(crate) async fn change(&self, changes: &[Change], edits: Vec<Edit>) -> Result<(), ServiceError> {
        self.change_still(changes, &[], move |_| edits.clone()).await
    }

    /// As [`Served::change`], with records that tell of the roots of devices: those keep still meanwhile.
    pub(crate) async fn change_still(
        &self,
        changes: &[Change],
        still: &[DeviceId],
        edits: impl Fn(&Roots) -> Vec<Edit> + 'static,
    ) -> Result<(), ServiceError> {
        let catalog = self.catalog.clone();
        let plan = move |roots: &Roots| {
            let mut plan = catalog.borrow().plan(edits(roots))?;
            Ok::<_, ServiceError>((core::mem::take(&mut plan.pages), plan))
        };
        let records = self.records.borrow().clone();
        let plan = match records {
            Some(records) => records.apply_with(changes, still, plan).await?,
            None if changes.is_empty() && still.is_empty() => plan(&Roots::default())?.1,
            None => return Err(ServiceError::NotAdopted),
        };
        self.catalog.borrow_mut().enter_plan(plan)?;
        Ok(())
    }

    /// The identity of what a volume is known to hold, if it still holds it.
    pub(crate) async fn contents(&self, record: &VolumeRecord) -> Result<Option<[u8; 16]>, ServiceError> {
        let (Some(contents), Some(device)) = (&record.contents, record.id()) else { return Ok(None) };
        let intact = !record.deleting && contents.are_in(self.pool.root(device).await?);
        Ok(intact.then_some(contents.identity))
    }

    /// Deletes a device with its record. The caller keeps other changes away.
    pub(crate) async fn remove(&self, device: DeviceId) -> Result<(), ServiceError> {
        self.change(&[Change::Delete(device)], [Edit::Remove(device)].into()).await
    }

    /// Makes the records agree with the devices (design decision 6).
    pub(crate) async fn reconcile(&self) -> Result<(), ServiceError> {
        let reserved = self.records.borrow().as_ref().map(Records::device);
        let devices: BTreeSet<DeviceId> =
            self.pool.devices().await?.into_iter().map(|(id, _)| id).filter(|id| Some(*id) != reserved).collect();
        let own = self.catalog.borrow().appliance().identity;
        let edits = self.catalog.borrow().reconcile(&devices, |id| derived(&own, &format!("thin-{id}")));
        if edits.is_empty() {
            return Ok(());
        }
        for edit in &edits {
            match edit {
                Edit::Remove(id) => log::warn!("thin device {id} is gone: its record is dropped"),
                Edit::Put(record) => log::info!("thin device {} has no record: it is {}", record.device, record.name),
                Edit::Appliance(_) => {}
            }
        }
        self.change(&[], edits).await
    }
}

/// An identity that follows from another and a word, the same at every start.
pub(crate) fn derived(own: &[u8; 16], word: &str) -> [u8; 16] {
    let hash = Sha256::new().chain_update(own).chain_update(word).finalize();
    core::array::from_fn(|i| hash[i])
}

fn parse_identity(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b'-').collect();
    let digits = core::str::from_utf8(&digits).ok().filter(|digits| digits.len() == 32)?;
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}

/// The service as `export` sees it: a directory of targets.
pub struct Targets(pub Rc<Service>);

impl Directory for Targets {
    type Unit = Unit;

    fn targets(&self, peer: &Peer) -> Vec<String> {
        let Ok(served) = self.0.served() else { return Vec::new() };
        let catalog = served.catalog();
        let own = catalog.appliance();
        if !access::is_proven(own.guards.discovery.as_ref(), peer) {
            return Vec::new();
        }
        let knows = |rule: Option<Rule>| rule.is_some_and(|rule| rule.knows(peer));
        let volumes = catalog.volumes().filter(|record| knows(record.rule())).map(|record| record.name.as_str());
        let metadata = knows(own.metadata_rule()).then_some(METADATA_TARGET);
        volumes.chain(metadata).map(|name| self.0.target_name(name)).collect()
    }

    fn wanted(&self, target: Option<&str>, peer: &Peer) -> Option<Rc<Chap>> {
        let served = self.0.served().ok()?;
        match target {
            None => access::shared(served.catalog().appliance().guards.discovery.as_ref()),
            Some(target) => {
                access::shared(self.0.rule(&served, target).filter(|rule| rule.knows(peer))?.proof.as_ref())
            }
        }
    }

    fn named(&self, naa: &[u8; 16], peer: &Peer) -> Option<String> {
        let served = self.0.served().ok()?;
        let catalog = served.catalog();
        let named = catalog.volumes().filter(|record| units::naa(&record.identity) == *naa);
        let mut known = named.filter(|record| record.rule().is_some_and(|rule| rule.knows(peer)));
        known.next().map(|record| self.0.target_name(&record.name))
    }

    async fn open(&self, target: &str, peer: &Peer) -> Result<Rc<Unit>, Refusal> {
        let service = &self.0;
        let _alone = service.changes.acquire(1).await;
        let served = service.current().await.map_err(|_| Refusal::Unavailable)?;
        let rule = service.rule(&served, target).ok_or(Refusal::NotFound)?;
        if !rule.admits(peer) {
            return Err(Refusal::Forbidden);
        }
        let name = service.name_of(target).ok_or(Refusal::NotFound)?;
        if name == METADATA_TARGET {
            return Ok(service.open_metadata(&served));
        }
        let record = served.catalog().named(&name).cloned().ok_or(Refusal::NotFound)?;
        service.open_volume(&served, &record).await
    }
}
