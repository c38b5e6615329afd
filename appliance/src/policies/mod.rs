//! Snapshot policies: read-only snapshots by the clock, of one volume or of several at one instant, and how long they are kept.
//!
//! A policy is kept in the appliance's record, with the time of its last snapshots, which changes in the commit that makes them:
//! neither a restart nor a power cut takes them twice, and what was missed meanwhile is taken once. Which snapshots are a
//! policy's is told by their names, `VOLUME.POLICY.TIME`, and by their being read-only snapshots of that volume.

mod schedule;

pub use schedule::Schedule;

use crate::catalog::{ApplianceRecord, Edit, VolumeRecord};
use crate::control::Manager;
use crate::fixed;
use crate::service::{Served, Service, ServiceError};
use crate::snapshots;
use crate::utc;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use mgmt::{ControlError, NewPolicy, NewSnapshots, Policies, Policy, PolicyList, SnapshotOf, VolumeName};
use minicbor::{Decode, Encode};
use platform::Runtime;
use platform::sync::Notify;
use platform::time::Duration;

/// Most policies.
const POLICIES_MAX: usize = 64;

/// Most volumes of a policy.
const VOLUMES_MAX: usize = 256;

/// The clock of the day is looked at after this time at the latest, for somebody may set it.
const LOOK_PERIOD: Duration = Duration::from_secs(60);

/// A policy, as the appliance's record has it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PolicyRecord {
    /// Its name.
    #[n(0)]
    pub name: String,
    /// The names of its volumes.
    #[n(1)]
    pub volumes: Vec<String>,
    /// When, and how many.
    #[n(2)]
    pub schedule: Schedule,
    /// When it took the last, in seconds since 1970; first when it was made.
    #[cbor(n(3), encode_with = "fixed::encode")]
    pub last: u64,
}

/// What is known of policies until the restart.
#[derive(Default)]
pub(crate) struct Runs {
    changed: Notify,
    /// Why those that took nothing when it was due did so, by their names.
    troubles: RefCell<BTreeMap<String, String>>,
}

impl Runs {
    /// A policy was made, replaced or deleted.
    fn changed(&self, policy: &str) {
        self.troubles.borrow_mut().remove(policy);
        self.changed.notify_all();
    }

    /// A policy had its turn; tells whether the trouble is a new one.
    fn ran(&self, policy: &str, trouble: Option<&String>) -> bool {
        let mut troubles = self.troubles.borrow_mut();
        let before = match trouble {
            Some(trouble) => troubles.insert(policy.to_string(), trouble.clone()),
            None => troubles.remove(policy),
        };
        trouble.is_some() && before.as_ref() != trouble
    }

    fn trouble(&self, policy: &str) -> Option<String> {
        self.troubles.borrow().get(policy).cloned()
    }
}

impl PolicyRecord {
    /// The name of a volume's snapshot at a time.
    fn snapshot_name(&self, volume: &str, time: u64) -> String {
        format!("{volume}.{}.{}", self.name, utc::format(time))
    }

    /// When this policy took a snapshot, if it did.
    fn time_of(&self, volume: &VolumeRecord, snapshot: &VolumeRecord) -> Option<u64> {
        let is_one = snapshot.read_only && snapshot.origin == Some(volume.identity) && !snapshot.deleting;
        let rest = snapshot.name.strip_prefix(volume.name.as_str())?.strip_prefix('.')?;
        let time = rest.strip_prefix(self.name.as_str())?.strip_prefix('.')?;
        utc::parse(time).filter(|_| is_one)
    }

    /// The snapshots of one of its volumes.
    fn snapshots(&self, served: &Served, volume: &str) -> Vec<(u64, VolumeRecord)> {
        let catalog = served.catalog();
        let Some(volume) = catalog.named(volume) else { return Vec::new() };
        let of = |record: &VolumeRecord| Some((self.time_of(volume, record)?, record.clone()));
        catalog.volumes().filter_map(of).collect()
    }
}

impl Policies for Manager {
    fn policies(&self) -> Result<PolicyList, ControlError> {
        let served = self.service.served()?;
        let now = self.service.unix_seconds();
        let records = served.catalog().appliance().policies.clone();
        let trouble = |record: &PolicyRecord| self.service.policies.trouble(&record.name);
        let policies = records.iter().filter_map(|record| describe(&served, record, now, trouble(record))).collect();
        Ok(PolicyList { time: now.map(utc::format), policies })
    }

    async fn set_policy(&self, name: &VolumeName, new: NewPolicy) -> Result<Policy, ControlError> {
        let record = checked(name, &new)?;
        let now = self.service.unix_seconds();
        let set = self.service.alone(async |served| {
            if !served.adopted() {
                return Err(ServiceError::NotAdopted);
            }
            for volume in &new.volumes {
                crate::control::living(served, volume)?;
            }
            let mut appliance = served.catalog().appliance().clone();
            let before = appliance.policies.iter().find(|known| known.name == record.name).map(|known| known.last);
            let record = PolicyRecord { last: before.or(now).unwrap_or(0), ..record };
            appliance.policies.retain(|known| known.name != record.name);
            if appliance.policies.len() >= POLICIES_MAX {
                return Err(ServiceError::TooManyPolicies { most: POLICIES_MAX });
            }
            appliance.policies.push(record.clone());
            served.change(&[], [Edit::Appliance(appliance)].into()).await?;
            Ok((served.clone(), record))
        });
        let (served, record) = set.await?;
        self.service.policies.changed(name.as_str());
        Ok(describe(&served, &record, now, None).ok_or_else(|| ServiceError::NoPolicy(name.to_string()))?)
    }

    async fn delete_policy(&self, name: &VolumeName) -> Result<(), ControlError> {
        let deleted = self.service.alone(async |served| {
            let mut appliance = served.catalog().appliance().clone();
            let before = appliance.policies.len();
            appliance.policies.retain(|known| known.name != name.as_str());
            if appliance.policies.len() == before {
                return Err(ServiceError::NoPolicy(name.to_string()));
            }
            served.change(&[], [Edit::Appliance(appliance)].into()).await
        });
        deleted.await?;
        self.service.policies.changed(name.as_str());
        Ok(())
    }
}

/// A policy that makes sense.
fn checked(name: &VolumeName, new: &NewPolicy) -> Result<PolicyRecord, ControlError> {
    let hint = "as {\"volumes\":[\"v1\"],\"every_minutes\":15,\"keep\":8,\"hourly\":24,\"daily\":7,\"weekly\":4}";
    let invalid = |what: String| Err(ControlError::invalid(what, hint));
    let different: BTreeSet<&VolumeName> = new.volumes.iter().collect();
    if new.volumes.is_empty() || new.volumes.len() > VOLUMES_MAX || different.len() != new.volumes.len() {
        return invalid(format!("a policy is for 1 to {VOLUMES_MAX} volumes, each named once"));
    }
    let every_minutes = new.every_minutes.unwrap_or(0);
    if (new.keep > 0) != (every_minutes > 0) || every_minutes > 60 || every_minutes > 0 && 60 % every_minutes != 0 {
        return invalid("every_minutes divides an hour, and stands beside keep".to_string());
    }
    if new.keep == 0 && new.hourly == 0 && new.daily == 0 && new.weekly == 0 {
        return invalid("a policy keeps something".to_string());
    }
    let schedule = Schedule { every_minutes, keep: new.keep, hourly: new.hourly, daily: new.daily, weekly: new.weekly };
    let volumes: Vec<String> = new.volumes.iter().map(ToString::to_string).collect();
    let record = PolicyRecord { name: name.to_string(), volumes, schedule, last: 0 };
    match record.volumes.iter().find(|volume| record.snapshot_name(volume, 0).len() > VolumeName::LEN_MAX) {
        Some(volume) => {
            let (most, taken) = (VolumeName::LEN_MAX, utc::LEN + 2);
            let what = format!("names of policy and volume {volume} have more than {} bytes together", most - taken);
            Err(ControlError::invalid(what, "shorten the policy's name: both stand in names of snapshots"))
        }
        None => Ok(record),
    }
}

fn describe(served: &Served, record: &PolicyRecord, now: Option<u64>, trouble: Option<String>) -> Option<Policy> {
    let name = |text: &String| VolumeName::parse(text).ok();
    let schedule = &record.schedule;
    let snapshots = record.volumes.iter().map(|volume| record.snapshots(served, volume).len()).sum();
    Some(Policy {
        name: name(&record.name)?,
        volumes: record.volumes.iter().filter_map(name).collect(),
        every_minutes: (schedule.every_minutes > 0).then_some(schedule.every_minutes),
        keep: schedule.keep,
        hourly: schedule.hourly,
        daily: schedule.daily,
        weekly: schedule.weekly,
        last: (record.last > 0).then(|| utc::format(record.last)),
        next: now.and_then(|now| schedule.next(now)).map(utc::format),
        trouble,
        snapshots,
    })
}

/// Takes and deletes snapshots as long as the appliance runs.
pub(crate) fn start(runtime: &Runtime, service: &Rc<Service>) {
    let (service, timers) = (service.clone(), runtime.timers.clone());
    runtime.spawner.spawn(async move {
        while !service.is_powering_off() {
            let changed = service.policies.changed.notified();
            let Ok(served) = service.served() else { return };
            let policies = served.catalog().appliance().policies.clone();
            if policies.is_empty() {
                changed.await;
                continue;
            }
            let mut wait = LOOK_PERIOD;
            if let Some(now) = service.unix_seconds() {
                for policy in policies.iter().filter(|policy| policy.schedule.is_due(policy.last, now)) {
                    run(&service, &served, &policy.name, now).await;
                }
                let next = policies.iter().filter_map(|policy| policy.schedule.next(now)).min();
                wait = next.map_or(wait, |next| wait.min(Duration::from_secs(next.saturating_sub(now))));
            }
            // Elapsed or changed: either is a reason to look again.
            let _ = timers.timeout(wait, changed).await;
        }
    });
}

/// The policy of this name as it is now: others have their turn between the steps of a run, and may have replaced it.
fn current(served: &Served, name: &str) -> Option<PolicyRecord> {
    served.catalog().appliance().policies.iter().find(|policy| policy.name == name).cloned()
}

/// What of a volume's snapshots has had its time.
fn outdated(served: &Served, policy: &str, volume: &String, now: u64) -> Vec<VolumeRecord> {
    let Some(policy) = current(served, policy).filter(|policy| policy.volumes.contains(volume)) else {
        return Vec::new();
    };
    let snapshots = policy.snapshots(served, volume);
    let kept = policy.schedule.kept(&snapshots.iter().map(|(time, _)| *time).collect(), now);
    snapshots.into_iter().filter(|(time, _)| !kept.contains(time)).map(|(_, snapshot)| snapshot).collect()
}

/// Takes the snapshots that are due, and deletes those that had their time.
async fn run(service: &Rc<Service>, served: &Rc<Served>, policy: &str, now: u64) {
    let trouble = take(service, policy, now).await.err().map(|error| error.to_string());
    let is_new = service.policies.ran(policy, trouble.as_ref());
    if let Some(trouble) = trouble {
        if is_new {
            log::error!("snapshot policy {policy}: no snapshots at {}: {trouble}", utc::format(now));
        }
        return;
    }
    let volumes = current(served, policy).map(|policy| policy.volumes);
    for volume in volumes.unwrap_or_default() {
        for snapshot in outdated(served, policy, &volume, now) {
            let Ok(name) = VolumeName::parse(&snapshot.name) else { continue };
            let still = |served: &Served| outdated(served, policy, &volume, now).contains(&snapshot);
            if let Err(error) = service.delete_if(&name, still).await {
                // The next time, then: somebody may be using it.
                log::warn!("snapshot policy {policy}: {name} is not deleted: {error}");
            }
        }
    }
}

async fn take(service: &Rc<Service>, policy: &str, now: u64) -> Result<(), ServiceError> {
    let work = async |served: &Rc<Served>| {
        let due = |policy: &PolicyRecord| policy.schedule.is_due(policy.last, now);
        let Some(policy) = current(served, policy).filter(due) else { return Ok(()) };
        let known = |volume: &&String| served.catalog().named(volume).is_some_and(|record| !record.deleting);
        let of = |volume: &String| {
            let name = policy.snapshot_name(volume, now);
            Some(SnapshotOf { volume: VolumeName::parse(volume).ok()?, name: VolumeName::parse(&name).ok()? })
        };
        let snapshots: Vec<SnapshotOf> = policy.volumes.iter().filter(known).filter_map(of).collect();
        let mut appliance: ApplianceRecord = served.catalog().appliance().clone();
        for known in appliance.policies.iter_mut().filter(|known| known.name == policy.name) {
            known.last = now;
        }
        let new = NewSnapshots { snapshots, read_only: true };
        snapshots::take(service, served, &new, [Edit::Appliance(appliance)].into()).await
    };
    service.alone(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_news_once() {
        let (runs, one, another) = (Runs::default(), "one".to_string(), "another".to_string());
        let told = [Some(&one), Some(&one), Some(&another), None, Some(&another)].map(|trouble| runs.ran("p", trouble));
        assert_eq!(told, [true, false, true, false, true]);
        runs.changed("p");
        assert_eq!(runs.trouble("p"), None);
    }
}
