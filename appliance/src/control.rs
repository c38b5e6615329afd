//! The service in the words of the management interface.

use crate::access::{self, Proof, Rule};
use crate::catalog::{ApplianceRecord, BlockSizes, Edit, VolumeRecord};
use crate::holds::{Held, Hold};
use crate::owner;
use crate::repair::Workshop;
use crate::runs;
use crate::service::{METADATA_TARGET, Served, Service, ServiceError, Targets};
use crate::startup;
use crate::units::{hexadecimal, serial};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Reverse;
use export::{Peer, Portal};
use mgmt::{
    Authentication, CheckReport, CheckState, Control, ControlError, Deletion, DeltaRequest, DiscoveryAuth, Export,
    Health, MappingsRequest, MetadataExport, NewVolume, PoolInfo, Repair, RepairReport, RunsError, TokenHash, View,
    ViewState, Views, Volume, VolumeChange, VolumeName, VolumeSpace,
};
use platform::Runtime;
use platform::block::SECTOR_BYTES;
use thinp::Message;
use thinp::control::{DeviceId, ThinStatus, ViewInfo, ViewsInfo};
use thinp::metadata::MetadataError;
use thinp::metadata::check::{Report, Severity};
use thinp::records::Change;

/// The appliance as its manager sees it.
pub(crate) struct Manager {
    pub runtime: Runtime,
    pub service: Rc<Service>,
    pub portal: Portal<Targets>,
    pub workshop: Workshop,
}

impl Control for Manager {
    fn health(&self) -> Health {
        self.service.health()
    }

    fn tokens(&self) -> Vec<TokenHash> {
        let mut tokens = self.service.tokens.borrow().clone();
        if let Ok(served) = self.service.served() {
            tokens.extend(served.catalog().appliance().token_hashes.iter().map(|hash| TokenHash(**hash)));
        }
        tokens
    }

    fn sessions(&self) -> usize {
        self.portal.sessions().len()
    }

    fn pool(&self) -> Result<PoolInfo, ControlError> {
        let served = self.service.served()?;
        let pool = &served.pool;
        Ok(PoolInfo {
            status: pool.status(),
            disk_blocks: pool.disk_blocks(),
            events: pool.events(),
            adopted: served.adopted(),
        })
    }

    async fn message(&self, text: &str) -> Result<String, ControlError> {
        let answer = self.service.alone(async |served| {
            let _hold = match Message::parse(text) {
                Ok(Message::Delete(device)) => Some(self.service.hold_to_delete(served, device)?),
                _ => None,
            };
            let answer = served.pool.message(text).await?;
            served.reconcile().await?;
            Ok(answer)
        });
        Ok(answer.await?)
    }

    async fn adopt(&self) -> Result<(), ControlError> {
        Ok(self.service.alone(async |served| startup::adopt(&self.service, served).await).await?)
    }

    async fn grow(&self) -> Result<(), ControlError> {
        // Not after other changes: one of them may wait for just this.
        let served = self.service.served()?;
        served.pool.grow().await.map_err(ServiceError::Pool)?;
        Ok(owner::grown(&self.service).await?)
    }

    async fn event_after(&self, seen: u64) -> Result<(), ControlError> {
        self.service.served()?.pool.event_after(seen).await;
        Ok(())
    }

    async fn start_check(&self) -> Result<CheckState, ControlError> {
        self.service.start_check(&self.runtime)?;
        self.check_state()
    }

    fn check_state(&self) -> Result<CheckState, ControlError> {
        self.service.served()?;
        Ok(self.service.check.state(self.runtime.timers.now()))
    }

    async fn space(&self) -> Result<Vec<VolumeSpace>, ControlError> {
        let served = self.service.served()?;
        let (volumes, found) = self.service.space.get(&self.service).await?;
        let of_device: BTreeMap<_, _> = found.iter().map(|space| (space.device, *space)).collect();
        let block_bytes = served.pool.data_block_sectors().saturating_mul(SECTOR_BYTES as u64);
        let describe = |record: &VolumeRecord| {
            let space = of_device.get(&DeviceId::new(record.device.into())?)?;
            Some(VolumeSpace {
                name: VolumeName::parse(&record.name).ok()?,
                id: space.device,
                mapped_bytes: space.mapped_blocks.saturating_mul(block_bytes),
                exclusive_bytes: space.exclusive_blocks.saturating_mul(block_bytes),
                shared_bytes: space.shared_blocks().saturating_mul(block_bytes),
            })
        };
        Ok(volumes.iter().filter_map(describe).collect())
    }

    async fn freed_by(&self, deletion: &Deletion) -> Result<u64, ControlError> {
        let served = self.service.served()?;
        // The numbers of the volumes at the moment of the view: later they may be given to others.
        let at_once = self.service.alone(async |served| {
            let devices = deletion.volumes.iter().map(|name| device_of(served, name)).collect::<Result<Vec<_>, _>>()?;
            Ok((devices, served.pool.open_view("space accounting", None).await?))
        });
        let (devices, view) = at_once.await?;
        let blocks = served.pool.freed_by(&view, &devices).await.map_err(ServiceError::Pool)?;
        Ok(blocks.saturating_mul(served.pool.data_block_sectors()).saturating_mul(SECTOR_BYTES as u64))
    }

    fn views(&self) -> Result<Views, ControlError> {
        let ViewsInfo { views, views_max, held_back_blocks } = self.service.served()?.pool.views();
        let view = |ViewInfo { holder, age, ending, held_back_blocks }| View {
            holder,
            seconds: age.as_secs(),
            state: if ending.is_some() { ViewState::Ending } else { ViewState::Open },
            ending_seconds: ending.map(|ending| ending.as_secs()),
            held_back_blocks,
        };
        Ok(Views { views: views.into_iter().map(view).collect(), views_max, held_back_blocks })
    }

    async fn clear_needs_check(&self) -> Result<CheckReport, ControlError> {
        let cleared = self.service.alone(async |served| {
            owner::must_be_ours(&self.service, &served.catalog().appliance().clone())?;
            let report = served.pool.clear_needs_check().await?;
            served.stale.set(true);
            startup::reload(served).await?;
            owner::unless_full(owner::activate(&self.service, served).await)?;
            Ok(report)
        });
        Ok(told(&cleared.await?))
    }

    async fn repair(&self, wanted: Repair) -> Result<RepairReport, ControlError> {
        Ok(self.workshop.repair(&self.runtime, &self.service, wanted).await?)
    }

    async fn reserve_metadata_snapshot(&self) -> Result<u64, ControlError> {
        let served = self.service.served()?;
        Ok(served.pool.reserve_metadata_snap().await.map_err(ServiceError::Pool)?)
    }

    async fn release_metadata_snapshot(&self) -> Result<(), ControlError> {
        let served = self.service.served()?;
        Ok(served.pool.release_metadata_snap().await.map_err(ServiceError::Pool)?)
    }

    fn metadata_export(&self) -> Result<MetadataExport, ControlError> {
        let served = self.service.served()?;
        let export = served.catalog().appliance().metadata_rule().map(Export::from);
        let target = export.is_some().then(|| self.service.target_name(METADATA_TARGET));
        Ok(MetadataExport { export, target })
    }

    async fn set_metadata_export(&self, rule: Option<Export>) -> Result<MetadataExport, ControlError> {
        let rule = rule.map(Rule::from);
        self.change_appliance(|record| record.set_metadata_rule(rule.clone())).await?;
        self.end_sessions(METADATA_TARGET, rule.as_ref()).await;
        self.metadata_export()
    }

    fn discovery_auth(&self) -> Result<DiscoveryAuth, ControlError> {
        let wanted = self.service.served()?.catalog().appliance().guards.discovery.clone();
        Ok(DiscoveryAuth { authentication: wanted.map(Authentication::from) })
    }

    async fn set_discovery_auth(&self, wanted: Option<Authentication>) -> Result<DiscoveryAuth, ControlError> {
        let wanted = wanted.map(Proof::from);
        self.change_appliance(|record| record.guards.discovery = wanted.clone()).await?;
        self.portal.end_sessions(None, |peer| access::is_proven(wanted.as_ref(), peer)).await;
        self.discovery_auth()
    }

    async fn volumes(&self, after: Option<&VolumeName>, most: usize) -> Result<Vec<Volume>, ControlError> {
        let served = self.service.served()?;
        let mut after = after.map(ToString::to_string);
        loop {
            let records: Vec<_> = served.catalog().by_name(after.as_deref(), most).cloned().collect();
            let volumes = self.describe(&served, &records).await?;
            match records.last() {
                // They were all deleted meanwhile, but an empty answer is the end.
                Some(last) if volumes.is_empty() => after = Some(last.name.clone()),
                _ => return Ok(volumes),
            }
        }
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume, ControlError> {
        let served = self.service.served()?;
        let record = served.catalog().named(name.as_str()).cloned().ok_or_else(|| no_volume(name))?;
        let found = self.describe(&served, &[record]).await?.pop();
        Ok(found.ok_or_else(|| no_volume(name))?)
    }

    async fn delta<E>(
        &self,
        request: &DeltaRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        let _turn = self.service.streams.acquire(1).await;
        let work = async |served: &Rc<Served>| {
            let devices = (device_of(served, &request.left)?, device_of(served, &request.right)?);
            Ok((devices, runs::open_view(served, "a delta", request.metadata_snapshot).await?))
        };
        let (devices, view) = self.service.alone(work).await.map_err(ControlError::from)?;
        runs::delta(&view, devices, request, sink).await
    }

    async fn mappings<E>(
        &self,
        request: &MappingsRequest,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        let _turn = self.service.streams.acquire(1).await;
        let work = async |served: &Rc<Served>| {
            let device = device_of(served, &request.volume)?;
            Ok((device, runs::open_view(served, "mappings", request.metadata_snapshot).await?))
        };
        let (device, view) = self.service.alone(work).await.map_err(ControlError::from)?;
        runs::mappings(&view, device, request, sink).await
    }

    async fn create_volume(&self, new: NewVolume) -> Result<Volume, ControlError> {
        self.service
            .alone(async |served| {
                let blocks = block_sizes(&new)?;
                check_free(served, &new.name)?;
                let device = vacancies(&self.service, served).await?.next().ok_or(ServiceError::NoFreeId)?;
                let blank = VolumeRecord::new(device, new.name.as_str(), self.service.new_identity());
                let blocks = Some(blocks).filter(|blocks| *blocks != BlockSizes::default());
                let record = VolumeRecord { size_bytes: Some(new.size_bytes.bytes()), blocks, ..blank };
                served.change(&[Change::CreateThin(device)], [Edit::Put(record)].into()).await
            })
            .await?;
        self.volume(&new.name).await
    }

    async fn change_volume(&self, name: &VolumeName, change: VolumeChange) -> Result<Volume, ControlError> {
        match change {
            VolumeChange::SizeBytes(size) => {
                self.service.alone(async |served| self.resize(served, name, size.bytes()).await).await?;
                self.portal.capacity_changed(&self.service.target_name(name.as_str()));
            }
            VolumeChange::ReadOnly(read_only) => self.set_read_only(name, read_only).await?,
        }
        self.volume(name).await
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<(), ControlError> {
        Ok(self.service.delete(name).await?)
    }

    async fn set_export(&self, name: &VolumeName, rule: Option<Export>) -> Result<Volume, ControlError> {
        let rule = rule.map(Rule::from);
        self.service
            .alone(async |served| {
                let mut record = living(served, name)?;
                if rule.is_some() && record.size_bytes.is_none() {
                    return Err(ServiceError::SizeUnset(name.to_string()));
                }
                record.set_rule(rule.clone());
                served.change(&[], [Edit::Put(record)].into()).await
            })
            .await?;
        self.end_sessions(name.as_str(), rule.as_ref()).await;
        self.volume(name).await
    }

    fn power_off(&self) {
        self.service.want_power_off();
    }
}

impl Manager {
    /// Ends the sessions that the rule no longer admits.
    async fn end_sessions(&self, name: &str, rule: Option<&Rule>) {
        let admits = |peer: &Peer| rule.is_some_and(|rule| rule.admits(peer));
        self.portal.end_sessions(Some(&self.service.target_name(name)), admits).await;
    }

    /// Changes the appliance's own record.
    async fn change_appliance(&self, change: impl FnOnce(&mut ApplianceRecord)) -> Result<(), ServiceError> {
        self.service
            .alone(async |served| {
                let mut record = served.catalog().appliance().clone();
                change(&mut record);
                served.change(&[], [Edit::Appliance(record)].into()).await
            })
            .await
    }

    /// Growing never shows what a volume held before it was made smaller.
    async fn resize(&self, served: &Served, name: &VolumeName, size_bytes: u64) -> Result<(), ServiceError> {
        let mut record = living(served, name)?;
        whole_blocks(size_bytes, record.blocks.unwrap_or_default())?;
        let device = device_of(served, name)?;
        if record.read_only {
            return Err(ServiceError::ReadOnly(name.to_string()));
        }
        if record.size_bytes.is_some_and(|old| size_bytes < old) {
            self.service.check_unused(device, name)?;
        }
        let unit = self.service.unit(device);
        if let Some(old_bytes) = record.size_bytes
            && size_bytes != old_bytes
        {
            forget(served, device, size_bytes.min(old_bytes)).await?;
            // How large it is belongs to what it holds.
            record.contents = None;
        }
        record.size_bytes = Some(size_bytes);
        served.change(&[], [Edit::Put(record)].into()).await?;
        if let Some(unit) = unit {
            unit.set_size_bytes(size_bytes);
        }
        Ok(())
    }

    /// Volumes in the words of the interface; not those that are shown to nobody, nor what was deleted meanwhile.
    async fn describe(&self, served: &Served, records: &[VolumeRecord]) -> Result<Vec<Volume>, ServiceError> {
        let block_bytes = served.pool.data_block_sectors().saturating_mul(SECTOR_BYTES as u64);
        let details: BTreeMap<_, _> = served.pool.devices().await?.into_iter().collect();
        let mut volumes = Vec::new();
        for record in records.iter().filter(|record| !record.is_hidden()) {
            let (Some(id), Ok(name)) = (record.id(), VolumeName::parse(&record.name)) else { continue };
            let Some(details) = details.get(&id) else { continue };
            let contents = match served.contents(record).await {
                Err(ServiceError::Pool(thinp::Error::Metadata(MetadataError::NoDevice(_)))) => continue,
                contents => contents?,
            };
            let origin = record.origin.and_then(|identity| {
                let catalog = served.catalog();
                catalog.identified(&identity).and_then(|r| VolumeName::parse(&r.name).ok())
            });
            let rule = record.rule();
            volumes.push(Volume {
                name,
                id,
                size_bytes: record.size_bytes,
                mapped_bytes: details.mapped_blocks.saturating_mul(block_bytes),
                snapshot_of: origin,
                read_only: record.read_only,
                intact: record.contents.map(|_| contents.is_some()),
                identity: hexadecimal(&record.identity),
                contents: contents.as_ref().map(hexadecimal),
                block_bytes: record.blocks.unwrap_or_default().logical_bytes,
                physical_block_bytes: record.blocks.unwrap_or_default().physical_bytes,
                serial: serial(&record.identity),
                target: rule.as_ref().map(|_| self.service.target_name(&record.name)),
                export: rule.map(Export::from),
                in_use: self.service.is_in_use(id),
            });
        }
        Ok(volumes)
    }
}

/// Problems of a check that are told one by one.
const PROBLEMS_TOLD: usize = 100;

/// What a check found, in the words of the interface.
pub(crate) fn told(report: &Report) -> CheckReport {
    let count = |severity| report.problems.iter().filter(|problem| problem.severity() == severity).count() as u64;
    let mut problems: Vec<_> = report.problems.iter().collect();
    problems.sort_by_key(|problem| Reverse(problem.severity()));
    CheckReport {
        clean: report.problems.is_empty(),
        damage: count(Severity::Damage),
        leaks: count(Severity::Leak),
        hints: count(Severity::Hint),
        untold: report.untold,
        devices: report.devices,
        mappings: report.mappings,
        problems: problems.iter().take(PROBLEMS_TOLD).map(ToString::to_string).collect(),
    }
}

/// Unmaps what lies beyond `size_bytes`, and zeroes the rest of the block in which that is.
pub(crate) async fn forget(served: &Served, device: DeviceId, size_bytes: u64) -> Result<(), ServiceError> {
    let unit = SECTOR_BYTES as u64;
    let block_sectors = served.pool.data_block_sectors();
    let thin = served.pool.open_thin(device, None).await?;
    let begin = size_bytes / unit;
    let whole = begin.next_multiple_of(block_sectors);
    if begin < whole && thin.mapped_run(begin, 1).await?.0 {
        thin.write_zeroes(begin, whole - begin).await?;
    }
    if let ThinStatus::Mapped { highest_mapped_sector: Some(highest), .. } = thin.status().await?
        && highest >= whole
    {
        thin.unmap(whole, (highest + 1 - whole).next_multiple_of(block_sectors)).await?;
    }
    thin.flush().await?;
    Ok(())
}

/// The blocks of a new volume: of 512 bytes, unless something else is asked for.
fn block_sizes(new: &NewVolume) -> Result<BlockSizes, ServiceError> {
    let logical_bytes = new.block_bytes.unwrap_or(BlockSizes::default().logical_bytes);
    let blocks = BlockSizes { logical_bytes, physical_bytes: new.physical_block_bytes.unwrap_or(logical_bytes) };
    if ![blocks.logical_bytes, blocks.physical_bytes].iter().all(|bytes| matches!(bytes, 512 | 4096)) {
        return Err(ServiceError::Blocks("blocks have 512 or 4096 bytes"));
    }
    if blocks.physical_bytes < blocks.logical_bytes {
        return Err(ServiceError::Blocks("physical blocks are smaller than logical ones"));
    }
    whole_blocks(new.size_bytes.bytes(), blocks)?;
    Ok(blocks)
}

pub(crate) fn whole_blocks(size_bytes: u64, blocks: BlockSizes) -> Result<(), ServiceError> {
    let whole = size_bytes.is_multiple_of(blocks.logical_bytes.into());
    if whole { Ok(()) } else { Err(ServiceError::Blocks("the size is not in whole blocks")) }
}

/// A new volume can have this name.
pub(crate) fn check_free(served: &Served, name: &VolumeName) -> Result<(), ServiceError> {
    let taken = served.catalog().named(name.as_str()).is_some();
    if taken { Err(ServiceError::NameTaken(name.to_string())) } else { Ok(()) }
}

/// Thin ids for new volumes: of no device, and of none that a job has still to do with.
pub(crate) async fn vacancies<'s>(
    service: &'s Service,
    served: &Served,
) -> Result<impl Iterator<Item = DeviceId> + use<'s>, ServiceError> {
    if !served.adopted() {
        return Err(ServiceError::NotAdopted);
    }
    let taken: BTreeSet<DeviceId> = served.pool.devices().await?.into_iter().map(|(id, _)| id).collect();
    let ids = (1..=DeviceId::MAX.get()).filter_map(|id| DeviceId::new(id.into()));
    Ok(ids.filter(move |id| !taken.contains(id) && service.holds.of(*id) == Held::Not))
}

/// A thin id for a volume of a job's own, held from the start on.
pub(crate) async fn hold_vacant(service: &Service, served: &Served) -> Result<Hold, ServiceError> {
    let mut ids = vacancies(service, served).await?;
    ids.find_map(|id| service.holds.take(id)).ok_or(ServiceError::NoFreeId)
}

pub(crate) fn device_of(served: &Served, name: &VolumeName) -> Result<DeviceId, ServiceError> {
    let catalog = served.catalog();
    let record = catalog.named(name.as_str()).ok_or_else(|| no_volume(name))?;
    DeviceId::new(record.device.into()).ok_or_else(|| no_volume(name))
}

/// The record of a volume that is not being deleted.
pub(crate) fn living(served: &Served, name: &VolumeName) -> Result<VolumeRecord, ServiceError> {
    let record = served.catalog().named(name.as_str()).cloned().ok_or_else(|| no_volume(name))?;
    match DeviceId::new(record.device.into()) {
        Some(device) if record.deleting => Err(thinp::Error::Deleting(device).into()),
        _ => Ok(record),
    }
}

pub(crate) fn no_volume(name: &VolumeName) -> ServiceError {
    ServiceError::NoVolume(name.to_string())
}
