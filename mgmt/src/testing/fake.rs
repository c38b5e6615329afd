//! An appliance that keeps its volumes in a map.

use crate::access::{Authentication, DiscoveryAuth, Export};
use crate::control::*;
use crate::error::ControlError;
use crate::names::VolumeName;
use crate::runs::{DeltaRequest, MappingsRequest, RunsError};
use crate::token::TokenHash;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Bound;
use platform::sync::Notify;
use thinp::control::{DeviceId, DiscardPolicy, DiskBlocks, Errno, Mode, Status};

pub(crate) struct Fake {
    token: TokenHash,
    pub health: RefCell<Health>,
    pub pool: RefCell<Result<PoolInfo, ControlError>>,
    pub volumes: RefCell<BTreeMap<VolumeName, Volume>>,
    policies: RefCell<BTreeMap<VolumeName, Policy>>,
    pub metadata_export: RefCell<Option<Export>>,
    pub discovery_auth: RefCell<Option<Authentication>>,
    pub messages: RefCell<Vec<String>>,
    event: Notify,
    /// What the next call fails with.
    pub fails: RefCell<Option<ControlError>>,
    /// The page of a list that fails, counted from 0.
    pub page_fails: Cell<Option<usize>>,
    pub powered_off: Cell<bool>,
    /// How many lines of runs there are.
    pub pieces: Cell<usize>,
    /// And that those are not all.
    pub pieces_end_early: Cell<bool>,
}

impl Fake {
    pub(crate) fn new(token: TokenHash) -> Fake {
        let status = Status {
            transaction_id: 3,
            metadata_used_blocks: 21,
            metadata_total_blocks: 1024,
            data_used_blocks: 40,
            data_total_blocks: 16384,
            data_block_sectors: 128,
            held_root: None,
            mode: Mode::Write,
            discard: DiscardPolicy::Passdown,
            error_if_no_space: false,
            needs_check: false,
            metadata_low_water_blocks: 256,
        };
        let disk_blocks = DiskBlocks { metadata: 1024, data: 16384 };
        Fake {
            token,
            health: RefCell::new(Health { state: HealthState::Ok, reason: None }),
            pool: RefCell::new(Ok(PoolInfo { status, disk_blocks, events: 7, adopted: false })),
            volumes: RefCell::default(),
            policies: RefCell::default(),
            metadata_export: RefCell::default(),
            discovery_auth: RefCell::default(),
            messages: RefCell::default(),
            event: Notify::new(),
            fails: RefCell::default(),
            page_fails: Cell::default(),
            powered_off: Cell::default(),
            pieces: Cell::new(1),
            pieces_end_early: Cell::default(),
        }
    }

    fn fail_if_told(&self) -> Result<(), ControlError> {
        self.fails.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Sets the root that the pool's status shows.
    fn hold(&self, root: Option<u64>) {
        self.pool.borrow_mut().as_mut().unwrap().status.held_root = root;
    }

    /// Writes a line as often as [`Fake::pieces`] says, and fails then if it was told to.
    async fn pieces<E>(
        &self,
        line: &str,
        mut sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        for _ in 0..self.pieces.get() {
            sink(line.as_bytes()).await.map_err(RunsError::Sink)?;
        }
        let ended = || ControlError::new(Errno::EBUSY, "the view -- was ended", "ask again");
        if self.pieces_end_early.get() { Err(ended().into()) } else { Ok(()) }
    }

    /// Something happened to the pool.
    pub(crate) fn raise_event(&self) {
        self.pool.borrow_mut().as_mut().unwrap().events += 1;
        self.event.notify_all();
    }

    fn change<T>(&self, name: &VolumeName, f: impl FnOnce(&mut Volume) -> T) -> Result<T, ControlError> {
        self.fail_if_told()?;
        let mut volumes = self.volumes.borrow_mut();
        let missing = || ControlError::new(Errno::ENODATA, format!("no volume {name}"), "list them");
        volumes.get_mut(name).map(f).ok_or_else(missing)
    }

    fn insert(
        &self,
        name: VolumeName,
        size_bytes: Option<u64>,
        origin: Option<VolumeName>,
    ) -> Result<Volume, ControlError> {
        self.fail_if_told()?;
        let mut volumes = self.volumes.borrow_mut();
        if volumes.contains_key(&name) {
            return Err(ControlError::new(Errno::EEXIST, format!("there is a volume {name}"), "take another name"));
        }
        let id = DeviceId::new(volumes.len() as u64).unwrap();
        let volume = Volume {
            name: name.clone(),
            id,
            size_bytes,
            mapped_bytes: 0,
            snapshot_of: origin,
            read_only: false,
            block_bytes: 512,
            physical_block_bytes: 512,
            intact: None,
            identity: format!("identity{id}"),
            contents: None,
            serial: format!("serial{id}"),
            export: None,
            target: None,
            in_use: false,
        };
        volumes.insert(name, volume.clone());
        Ok(volume)
    }
}

impl Control for Fake {
    fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    fn tokens(&self) -> Vec<TokenHash> {
        [TokenHash([0; 32]), self.token].to_vec()
    }

    fn sessions(&self) -> usize {
        2
    }

    fn pool(&self) -> Result<PoolInfo, ControlError> {
        self.fail_if_told()?;
        self.pool.borrow().clone()
    }

    async fn message(&self, text: &str) -> Result<String, ControlError> {
        self.fail_if_told()?;
        self.messages.borrow_mut().push(text.to_string());
        Ok(String::new())
    }

    async fn adopt(&self) -> Result<(), ControlError> {
        self.fail_if_told()?;
        self.pool.borrow_mut().as_mut().unwrap().adopted = true;
        Ok(())
    }

    async fn grow(&self) -> Result<(), ControlError> {
        self.fail_if_told()?;
        let mut pool = self.pool.borrow_mut();
        let PoolInfo { status, disk_blocks, .. } = pool.as_mut().unwrap();
        status.data_total_blocks = disk_blocks.data;
        status.metadata_total_blocks = disk_blocks.metadata;
        Ok(())
    }

    async fn event_after(&self, seen: u64) -> Result<(), ControlError> {
        self.fail_if_told()?;
        loop {
            let event = self.event.notified();
            if self.pool()?.events != seen {
                return Ok(());
            }
            event.await;
        }
    }

    async fn start_check(&self) -> Result<CheckState, ControlError> {
        self.fail_if_told()?;
        let running = Some(CheckProgress { seconds: 0, blocks_read: 0, blocks_in_use: 21 });
        Ok(CheckState { running, last: None })
    }

    fn check_state(&self) -> Result<CheckState, ControlError> {
        self.fail_if_told()?;
        let problems = ["btree node 9 has too few entries".to_string()].to_vec();
        let (leaks, hints, untold, mappings) = (0, 0, 0, 40);
        let report = CheckReport { clean: false, damage: 1, leaks, hints, untold, devices: 2, mappings, problems };
        let (report, error) = (Some(report), None);
        let last = Some(CheckOutcome { seconds_ago: 60, took_seconds: 2, transaction_id: 3, report, error });
        Ok(CheckState { running: None, last })
    }

    async fn space(&self) -> Result<Vec<VolumeSpace>, ControlError> {
        self.fail_if_told()?;
        let volumes = self.volumes.borrow();
        let space = |volume: &Volume| VolumeSpace {
            name: volume.name.clone(),
            id: volume.id,
            mapped_bytes: 3 << 16,
            exclusive_bytes: 1 << 16,
            shared_bytes: 2 << 16,
        };
        Ok(volumes.values().map(space).collect())
    }

    async fn freed_by(&self, deletion: &Deletion) -> Result<u64, ControlError> {
        for name in &deletion.volumes {
            self.volume(name).await?;
        }
        Ok((deletion.volumes.len() as u64) << 16)
    }

    fn views(&self) -> Result<Views, ControlError> {
        self.fail_if_told()?;
        let (state, ending_seconds) = (ViewState::Ending, Some(3));
        let view = View { holder: "check".to_string(), seconds: 12, state, ending_seconds, held_back_blocks: 5 };
        let views = [view].into();
        Ok(Views { views, views_max: 16, held_back_blocks: 5 })
    }

    async fn clear_needs_check(&self) -> Result<CheckReport, ControlError> {
        self.fail_if_told()?;
        self.pool.borrow_mut().as_mut().unwrap().status.needs_check = false;
        let (damage, leaks, hints, untold) = (0, 0, 0, 0);
        Ok(CheckReport { clean: true, damage, leaks, hints, untold, devices: 2, mappings: 40, problems: Vec::new() })
    }

    async fn repair(&self, wanted: Repair) -> Result<RepairReport, ControlError> {
        self.fail_if_told()?;
        let report = [format!("{wanted:?}")].to_vec();
        let next = "swap the disks".to_string();
        Ok(RepairReport { devices: 2, mappings: 40, mappings_lost: 3, damaged_devices: 1, report, next })
    }

    async fn reserve_metadata_snapshot(&self) -> Result<u64, ControlError> {
        self.fail_if_told()?;
        self.hold(Some(17));
        Ok(17)
    }

    async fn release_metadata_snapshot(&self) -> Result<(), ControlError> {
        self.fail_if_told()?;
        self.hold(None);
        Ok(())
    }

    fn metadata_export(&self) -> Result<MetadataExport, ControlError> {
        self.fail_if_told()?;
        let export = self.metadata_export.borrow().clone();
        let target = export.is_some().then(|| "iqn.2026-11.io.gossamer:pool:metadata".to_string());
        Ok(MetadataExport { export, target })
    }

    async fn set_metadata_export(&self, rule: Option<Export>) -> Result<MetadataExport, ControlError> {
        self.fail_if_told()?;
        *self.metadata_export.borrow_mut() = rule;
        self.metadata_export()
    }

    fn discovery_auth(&self) -> Result<DiscoveryAuth, ControlError> {
        self.fail_if_told()?;
        Ok(DiscoveryAuth { authentication: self.discovery_auth.borrow().clone() })
    }

    async fn set_discovery_auth(&self, wanted: Option<Authentication>) -> Result<DiscoveryAuth, ControlError> {
        self.fail_if_told()?;
        *self.discovery_auth.borrow_mut() = wanted;
        self.discovery_auth()
    }

    async fn volumes(&self, after: Option<&VolumeName>, most: usize) -> Result<Vec<Volume>, ControlError> {
        self.fail_if_told()?;
        if let Some(page) = self.page_fails.take() {
            if page == 0 {
                return Err(ControlError::new(Errno::EIO, "the list cannot be read", "look at the disk"));
            }
            self.page_fails.set(Some(page - 1));
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let volumes = self.volumes.borrow();
        Ok(volumes.range::<VolumeName, _>((from, Bound::Unbounded)).take(most).map(|(_, v)| v.clone()).collect())
    }

    async fn delta<E>(
        &self,
        request: &DeltaRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        self.volume(&request.left).await?;
        self.volume(&request.right).await?;
        self.pieces(&format!("{request:?}\n"), sink).await
    }

    async fn mappings<E>(
        &self,
        request: &MappingsRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        self.volume(&request.volume).await?;
        self.pieces(&format!("{request:?}\n"), sink).await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume, ControlError> {
        self.change(name, |volume| volume.clone())
    }

    async fn create_volume(&self, new: NewVolume) -> Result<Volume, ControlError> {
        let mut volume = self.insert(new.name, Some(new.size_bytes.bytes()), None)?;
        volume.block_bytes = new.block_bytes.unwrap_or(512);
        volume.physical_block_bytes = new.physical_block_bytes.unwrap_or(volume.block_bytes);
        self.volumes.borrow_mut().insert(volume.name.clone(), volume.clone());
        Ok(volume)
    }

    async fn change_volume(&self, name: &VolumeName, change: VolumeChange) -> Result<Volume, ControlError> {
        self.change(name, |volume| {
            match change {
                VolumeChange::SizeBytes(size) => volume.size_bytes = Some(size.bytes()),
                VolumeChange::ReadOnly(read_only) => volume.set_read_only(read_only),
            }
            volume.clone()
        })
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<(), ControlError> {
        if self.change(name, |volume| volume.in_use)? {
            return Err(ControlError::new(Errno::EBUSY, format!("{name} is in use"), "log out first"));
        }
        self.volumes.borrow_mut().remove(name);
        Ok(())
    }

    async fn set_export(&self, name: &VolumeName, rule: Option<Export>) -> Result<Volume, ControlError> {
        self.change(name, |volume| {
            volume.target = rule.is_some().then(|| format!("iqn.2026-11.io.gossamer:{name}"));
            volume.export = rule;
            volume.clone()
        })
    }

    fn power_off(&self) {
        self.powered_off.set(true);
    }
}

impl Policies for Fake {
    fn policies(&self) -> Result<PolicyList, ControlError> {
        self.fail_if_told()?;
        let policies = self.policies.borrow().values().cloned().collect();
        Ok(PolicyList { time: Some("20261129t100000z".to_string()), policies })
    }

    async fn set_policy(&self, name: &VolumeName, new: NewPolicy) -> Result<Policy, ControlError> {
        self.fail_if_told()?;
        let NewPolicy { volumes, every_minutes, keep, hourly, daily, weekly } = new;
        let (name, last, next, trouble, snapshots) = (name.clone(), None, None, None, 0);
        let policy =
            Policy { name, volumes, every_minutes, keep, hourly, daily, weekly, last, next, trouble, snapshots };
        self.policies.borrow_mut().insert(policy.name.clone(), policy.clone());
        Ok(policy)
    }

    async fn delete_policy(&self, name: &VolumeName) -> Result<(), ControlError> {
        let missing = || ControlError::new(Errno::ENODATA, format!("no policy {name}"), "list them");
        self.policies.borrow_mut().remove(name).map(|_| ()).ok_or_else(missing)
    }
}

impl Streams for Fake {
    async fn send<E>(
        &self,
        request: &SendRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        self.volume(&request.snapshot).await?;
        self.pieces(&format!("{request:?}\n"), sink).await
    }

    /// Keeps what it was asked for, and how many bytes came, as messages.
    async fn receive<E>(
        &self,
        request: &ReceiveRequest,
        mut source: impl AsyncFnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Volume, ReceiveError<E>> {
        self.fail_if_told()?;
        let (mut piece, mut bytes) = ([0; 1000], 0);
        loop {
            match source(&mut piece).await.map_err(ReceiveError::Source)? {
                0 => break,
                len => bytes += len,
            }
        }
        self.messages.borrow_mut().push(format!("{request:?}: {bytes} bytes"));
        Ok(self.insert(request.volume.clone(), request.size_bytes.map(|size| size.bytes()), None)?)
    }

    fn receive_state(&self, _: &VolumeName) -> Result<ReceiveState, ControlError> {
        self.fail_if_told()?;
        Ok(ReceiveState { running: false, resume: Some("gs1ab".to_string()), verified_bytes: 65536 })
    }

    async fn forget_receive(&self, name: &VolumeName) -> Result<(), ControlError> {
        self.fail_if_told()?;
        self.messages.borrow_mut().push(format!("forget {name}"));
        Ok(())
    }
}

impl Volume {
    fn set_read_only(&mut self, read_only: bool) {
        self.read_only = read_only;
        self.intact = read_only.then_some(true);
        self.contents = read_only.then(|| self.identity.clone());
    }
}

impl Snapshots for Fake {
    async fn create_snapshot(&self, origin: &VolumeName, new: NewSnapshot) -> Result<Volume, ControlError> {
        let size_bytes = self.change(origin, |volume| volume.size_bytes)?;
        self.insert(new.name.clone(), size_bytes, Some(origin.clone()))?;
        self.change_volume(&new.name, VolumeChange::ReadOnly(new.read_only)).await
    }

    async fn create_snapshots(&self, new: NewSnapshots) -> Result<Vec<Volume>, ControlError> {
        let mut made = Vec::new();
        for SnapshotOf { volume, name } in new.snapshots {
            made.push(self.create_snapshot(&volume, NewSnapshot { name, read_only: new.read_only }).await?);
        }
        Ok(made)
    }

    async fn roll_back(&self, name: &VolumeName, wanted: RollBack) -> Result<Volume, ControlError> {
        let size_bytes = self.change(&wanted.to, |snapshot| snapshot.size_bytes)?;
        if self.change(name, |volume| volume.in_use)? && !wanted.force {
            return Err(ControlError::new(Errno::EBUSY, format!("{name} is in use"), "log out first"));
        }
        self.change(name, |volume| {
            volume.size_bytes = size_bytes;
            volume.clone()
        })
    }
}
