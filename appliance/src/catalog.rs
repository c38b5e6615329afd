//! The appliance's records: what the reserved device holds (design decision 6).
//!
//! Page 0 holds the [`ApplianceRecord`], each later page a list of [`VolumeRecord`]s, all in CBOR whose fields
//! are known by index, so that an older version reads what a newer one wrote. A change is planned first: a
//! [`Plan`] has the pages to write in the same metadata commit as the devices they describe, and enters the
//! catalog only when that commit succeeded.

use crate::access::{self, Access, Proof, Rule};
use crate::fixed;
use crate::policies::PolicyRecord;
use crate::reservations::Reservations;
use crate::sanitize::SanitizeRecord;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use thinp::control::DeviceId;

/// Who activated the pool last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Activation {
    /// Counts activations.
    #[cbor(n(0), encode_with = "fixed::encode")]
    pub epoch: u64,
    /// Which instance it was.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub instance: [u8; 16],
    /// It has not closed the pool: it may still use it, or it crashed.
    #[n(2)]
    pub open: bool,
}

/// What the appliance knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct ApplianceRecord {
    /// Who this instance is: the root of all serial numbers.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub identity: [u8; 16],
    /// SHA-256 of the tokens that open the management interface.
    #[n(1)]
    pub token_hashes: Vec<ByteArray<32>>,
    /// Who may read the metadata, where a name is enough: see [`ApplianceRecord::metadata_rule`].
    #[n(2)]
    pub metadata_export: Option<Access>,
    /// Who activated the pool last; nothing in a pool of before there were activations.
    #[n(3)]
    pub activation: Option<Activation>,
    /// By which snapshots are taken.
    #[cbor(n(4), default)]
    pub policies: Vec<PolicyRecord>,
    /// What access rests on besides names.
    #[cbor(n(5), default)]
    pub guards: Guards,
}

/// What access to the appliance's own targets rests on besides names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Guards {
    /// What discovery has to prove.
    #[n(0)]
    pub discovery: Option<Proof>,
    /// Who may read the metadata, where a name is not enough.
    #[n(1)]
    pub metadata: Option<Rule>,
}

impl ApplianceRecord {
    /// Who may read the metadata.
    pub fn metadata_rule(&self) -> Option<Rule> {
        access::join(self.metadata_export.as_ref(), self.guards.metadata.as_ref())
    }

    /// Sets who may read the metadata.
    pub fn set_metadata_rule(&mut self, rule: Option<Rule>) {
        (self.metadata_export, self.guards.metadata) = access::split(rule);
    }
}

/// Sizes of a volume's blocks as initiators see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct BlockSizes {
    /// Logical blocks: 512 or 4096.
    #[n(0)]
    pub logical_bytes: u32,
    /// Physical blocks, at least as large.
    #[n(1)]
    pub physical_bytes: u32,
}

impl Default for BlockSizes {
    fn default() -> BlockSizes {
        BlockSizes { logical_bytes: 512, physical_bytes: 512 }
    }
}

/// What the appliance knows of a thin device.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VolumeRecord {
    /// The thin id.
    #[n(0)]
    pub device: u32,
    /// The name.
    #[n(1)]
    pub name: String,
    /// The size; unset for a device found without a record.
    #[n(2)]
    pub size_bytes: Option<u64>,
    /// The identity of what it is a snapshot of. Not the thin id, which another volume may get.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub origin: Option<[u8; 16]>,
    /// Refuses writes.
    #[n(4)]
    pub read_only: bool,
    /// What its serial number is made of: stays when it is renamed or exported anew.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub identity: [u8; 16],
    /// Who may use it, where a name is enough: see [`VolumeRecord::rule`].
    #[n(6)]
    pub export: Option<Access>,
    /// It is being deleted, which takes more than one commit: nobody may use it any more.
    #[cbor(n(7), default)]
    pub deleting: bool,
    /// What it is known to hold; nothing of a volume that was written to.
    #[n(8)]
    pub contents: Option<Contents>,
    /// It holds the verified beginning of something that is being received: how its sender goes on.
    #[n(9)]
    pub resume: Option<String>,
    /// Who may use it, where a name is not enough.
    #[n(11)]
    pub guarded: Option<Rule>,
    /// Persistent reservations that outlive a restart.
    #[n(12)]
    pub reservations: Option<Reservations>,
    /// Its blocks; nothing for the default.
    #[n(13)]
    pub blocks: Option<BlockSizes>,
    /// It is being sanitized, or failed to be: nobody may use it.
    #[n(14)]
    pub sanitize: Option<SanitizeRecord>,
}

/// What a volume is known to hold. It holds that as long as the root of its tree is the one of then: whatever changes a
/// mapping changes the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Contents {
    /// The identity of the read-only snapshot that was made of it: here, or where it was received from.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub identity: [u8; 16],
    /// Root of the tree in the commit of which this was written, big-endian: its length must not depend on it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub root: [u8; 8],
}

impl Contents {
    /// Contents with this identity, in the tree with this root.
    pub fn new(identity: [u8; 16], root: u64) -> Contents {
        Contents { identity, root: root.to_be_bytes() }
    }

    /// The tree with this root still holds them.
    pub fn are_in(&self, root: u64) -> bool {
        self.root == root.to_be_bytes()
    }
}

impl VolumeRecord {
    /// The record of a volume of which nothing more is known.
    pub fn new(device: DeviceId, name: &str, identity: [u8; 16]) -> VolumeRecord {
        VolumeRecord {
            device: device.get(),
            name: name.into(),
            size_bytes: None,
            origin: None,
            read_only: false,
            identity,
            export: None,
            deleting: false,
            contents: None,
            resume: None,
            guarded: None,
            reservations: None,
            blocks: None,
            sanitize: None,
        }
    }

    /// The device.
    pub fn id(&self) -> Option<DeviceId> {
        DeviceId::new(self.device.into())
    }

    /// The appliance's own, shown to nobody: its name is none that a volume can have.
    pub fn is_hidden(&self) -> bool {
        self.name.starts_with('.')
    }

    /// Who may use it.
    pub fn rule(&self) -> Option<Rule> {
        access::join(self.export.as_ref(), self.guarded.as_ref())
    }

    /// Sets who may use it.
    pub fn set_rule(&mut self, rule: Option<Rule>) {
        (self.export, self.guarded) = access::split(rule);
    }
}

/// A page of the reserved device makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// Not CBOR of the right shape.
    #[error("page {page} of the appliance's records cannot be read: {why}")]
    Malformed {
        /// The page.
        page: u32,
        /// What the decoder said.
        why: String,
    },
    /// Two records claim one name or one device.
    #[error("page {page} of the appliance's records has {what} a second time")]
    Duplicate {
        /// The page.
        page: u32,
        /// The name or device.
        what: String,
    },
    /// A record cannot be encoded.
    #[error("a record cannot be encoded: {0}")]
    Unencodable(String),
    /// One record is larger than a page.
    #[error("a record of {record_bytes} bytes does not fit into a page of {capacity_bytes}: name fewer initiators")]
    TooLarge {
        /// The record, encoded.
        record_bytes: usize,
        /// A page.
        capacity_bytes: usize,
    },
}

/// One change of the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Adds a volume's record or puts it in the place of the old one.
    Put(VolumeRecord),
    /// Removes a volume's record, if there is one.
    Remove(DeviceId),
    /// Replaces the appliance's own record.
    Appliance(ApplianceRecord),
}

/// A change that is ready to be written.
#[derive(Debug)]
pub struct Plan {
    /// Pages to write, each once: its number and what it holds.
    pub pages: Vec<(u32, Vec<u8>)>,
    edits: Vec<Edit>,
    places: BTreeMap<u32, Option<u32>>,
}

/// All records, in memory.
#[derive(Debug)]
pub struct Catalog {
    appliance: ApplianceRecord,
    volumes: BTreeMap<u32, VolumeRecord>,
    names: BTreeMap<String, u32>,
    identities: BTreeMap<[u8; 16], u32>,
    /// Page 0 has no devices.
    pages: Vec<Page>,
    capacity_bytes: usize,
}

#[derive(Debug, Default)]
struct Page {
    devices: BTreeSet<u32>,
    /// Length of those devices' records, encoded.
    used_bytes: usize,
}

/// The first page of volumes.
const FIRST_VOLUME_PAGE: u32 = 1;

impl Catalog {
    /// No records yet. A page holds `capacity_bytes`.
    pub fn new(capacity_bytes: usize) -> Catalog {
        Catalog {
            appliance: ApplianceRecord::default(),
            volumes: BTreeMap::new(),
            names: BTreeMap::new(),
            identities: BTreeMap::new(),
            pages: vec![Page::default()],
            capacity_bytes,
        }
    }

    /// Reads the records from all pages, in order.
    pub fn decode(pages: &[Vec<u8>], capacity_bytes: usize) -> Result<Catalog, CatalogError> {
        let mut catalog = Catalog::new(capacity_bytes);
        for (page, bytes) in (0u32..).zip(pages) {
            let malformed = |e: minicbor::decode::Error| CatalogError::Malformed { page, why: format!("{e}") };
            if page == 0 {
                // Made, but not written before the power failed.
                if bytes.is_empty() {
                    continue;
                }
                catalog.appliance = minicbor::decode(bytes).map_err(malformed)?;
                continue;
            }
            catalog.pages.push(Page::default());
            // A page that was provisioned and never written is empty.
            let records: Vec<VolumeRecord> =
                if bytes.is_empty() { Vec::new() } else { minicbor::decode(bytes).map_err(malformed)? };
            for record in records {
                let duplicate = |what: String| CatalogError::Duplicate { page, what };
                if DeviceId::new(record.device.into()).is_none() || catalog.volumes.contains_key(&record.device) {
                    return Err(duplicate(format!("device {}", record.device)));
                }
                if catalog.names.contains_key(&record.name) {
                    return Err(duplicate(format!("name {}", record.name)));
                }
                catalog.enter(record, page)?;
            }
        }
        Ok(catalog)
    }

    /// What the appliance knows of itself.
    pub fn appliance(&self) -> &ApplianceRecord {
        &self.appliance
    }

    /// All volumes by device.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values()
    }

    /// At most `most` volumes by name, after the name `after`; not those that are shown to nobody.
    pub fn by_name<'a>(&'a self, after: Option<&'a str>, most: usize) -> impl Iterator<Item = &'a VolumeRecord> {
        use core::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let records = self.names.range::<str, _>((from, Unbounded)).filter_map(|(_, id)| self.volumes.get(id));
        records.filter(|record| !record.is_hidden()).take(most)
    }

    /// The volume of this name.
    pub fn named(&self, name: &str) -> Option<&VolumeRecord> {
        self.names.get(name).and_then(|id| self.volumes.get(id))
    }

    /// The volume of this identity.
    pub fn identified(&self, identity: &[u8; 16]) -> Option<&VolumeRecord> {
        self.identities.get(identity).and_then(|id| self.volumes.get(id))
    }

    /// The record of this device.
    pub fn of(&self, device: DeviceId) -> Option<&VolumeRecord> {
        self.volumes.get(&device.get())
    }

    /// Works out what has to be written for these edits. Changes nothing.
    pub fn plan(&self, edits: Vec<Edit>) -> Result<Plan, CatalogError> {
        let mut plan = Plan { pages: Vec::new(), edits, places: BTreeMap::new() };
        let mut dirty = BTreeSet::new();
        let mut changed: BTreeMap<u32, Option<&VolumeRecord>> = BTreeMap::new();
        let mut added_bytes: BTreeMap<u32, usize> = BTreeMap::new();
        for edit in &plan.edits {
            match edit {
                Edit::Appliance(_) => {
                    dirty.insert(0);
                }
                Edit::Remove(device) => {
                    changed.insert(device.get(), None);
                    dirty.extend(self.page_of(device.get()));
                    plan.places.insert(device.get(), None);
                }
                Edit::Put(record) => {
                    let old = self.page_of(record.device);
                    let page = self.place(record, old, &mut added_bytes)?;
                    changed.insert(record.device, Some(record));
                    dirty.extend(old);
                    dirty.insert(page);
                    plan.places.insert(record.device, Some(page));
                }
            }
        }
        for page in dirty {
            let bytes = match page {
                0 => encode(plan.edits.iter().rev().find_map(Edit::appliance).unwrap_or(&self.appliance))?,
                _ => encode(&self.contents(page, &changed, &plan.places))?,
            };
            plan.pages.push((page, bytes));
        }
        Ok(plan)
    }

    /// Enters a plan whose pages are durable.
    pub fn enter_plan(&mut self, plan: Plan) -> Result<(), CatalogError> {
        for edit in plan.edits {
            match edit {
                Edit::Appliance(record) => self.appliance = record,
                Edit::Remove(device) => self.forget(device.get())?,
                Edit::Put(record) => {
                    self.forget(record.device)?;
                    if let Some(page) = plan.places.get(&record.device).copied().flatten() {
                        self.enter(record, page)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Edits that make the records agree with the devices that are there (design decision 6): a device without a
    /// record gets one as `thin-<id>`; a record without its device is dropped.
    pub fn reconcile(&self, devices: &BTreeSet<DeviceId>, identity: impl Fn(DeviceId) -> [u8; 16]) -> Vec<Edit> {
        let stale = self.volumes.keys().filter_map(|id| DeviceId::new((*id).into())).filter(|id| !devices.contains(id));
        let unknown = devices.iter().filter(|id| self.of(**id).is_none());
        let dropped: Vec<Edit> = stale.map(Edit::Remove).collect();
        let found = unknown.map(|id| Edit::Put(VolumeRecord::new(*id, &self.free_name(*id), identity(*id))));
        dropped.into_iter().chain(found).collect()
    }

    /// `thin-<id>`, unless another volume was given that name.
    fn free_name(&self, device: DeviceId) -> String {
        let plain = format!("thin-{device}");
        let candidates = core::iter::once(plain.clone()).chain((2u32..).map(|n| format!("{plain}.{n}")));
        candidates.into_iter().find(|name| !self.names.contains_key(name)).unwrap_or(plain)
    }

    fn page_of(&self, device: u32) -> Option<u32> {
        (0u32..).zip(&self.pages).find(|(_, p)| p.devices.contains(&device)).map(|(page, _)| page)
    }

    /// Where a record goes: its old page if it still fits, else the first with room, else a new one.
    fn place(
        &self,
        record: &VolumeRecord,
        old: Option<u32>,
        added_bytes: &mut BTreeMap<u32, usize>,
    ) -> Result<u32, CatalogError> {
        let record_bytes = encode(record)?.len();
        let old_bytes = self.volumes.get(&record.device).map(encode).transpose()?.map_or(0, |bytes| bytes.len());
        let fits = |page: u32, added: usize| {
            let used = self.pages.get(page as usize).map_or(0, |p| p.used_bytes);
            let used = if old == Some(page) { used - old_bytes } else { used };
            // The list's own header takes at most 9 bytes.
            used + added + record_bytes + 9 <= self.capacity_bytes
        };
        let all = FIRST_VOLUME_PAGE..;
        // Pages that this plan itself adds are candidates like those that exist; behind them is an empty one.
        let end = (self.pages.len() as u32).max(added_bytes.keys().last().map_or(0, |page| page + 1));
        for page in old.into_iter().chain(all.take_while(|page| *page <= end)) {
            let added = added_bytes.entry(page).or_default();
            if fits(page, *added) {
                *added += record_bytes;
                return Ok(page);
            }
        }
        Err(CatalogError::TooLarge { record_bytes, capacity_bytes: self.capacity_bytes })
    }

    /// What a page holds once the changes are in.
    fn contents<'a>(
        &'a self,
        page: u32,
        changed: &BTreeMap<u32, Option<&'a VolumeRecord>>,
        places: &BTreeMap<u32, Option<u32>>,
    ) -> Vec<&'a VolumeRecord> {
        let kept =
            self.pages.get(page as usize).into_iter().flat_map(|p| &p.devices).filter(|id| !changed.contains_key(id));
        let kept = kept.filter_map(|id| self.volumes.get(id));
        let put = changed.iter().filter(|(id, _)| places.get(id) == Some(&Some(page)));
        kept.chain(put.filter_map(|(_, record)| *record)).collect()
    }

    fn enter(&mut self, record: VolumeRecord, page: u32) -> Result<(), CatalogError> {
        let record_bytes = encode(&record)?.len();
        while self.pages.len() <= page as usize {
            self.pages.push(Page::default());
        }
        if let Some(page) = self.pages.get_mut(page as usize) {
            page.devices.insert(record.device);
            page.used_bytes += record_bytes;
        }
        self.names.insert(record.name.clone(), record.device);
        self.identities.insert(record.identity, record.device);
        self.volumes.insert(record.device, record);
        Ok(())
    }

    fn forget(&mut self, device: u32) -> Result<(), CatalogError> {
        let Some(record) = self.volumes.remove(&device) else { return Ok(()) };
        let record_bytes = encode(&record)?.len();
        self.names.remove(&record.name);
        self.identities.remove(&record.identity);
        for page in self.pages.iter_mut().filter(|page| page.devices.contains(&device)) {
            page.devices.remove(&device);
            page.used_bytes -= record_bytes;
        }
        Ok(())
    }
}

impl Edit {
    fn appliance(&self) -> Option<&ApplianceRecord> {
        match self {
            Edit::Appliance(record) => Some(record),
            _ => None,
        }
    }
}

fn encode<T: Encode<()>>(value: &T) -> Result<Vec<u8>, CatalogError> {
    minicbor::to_vec(value).map_err(|e| CatalogError::Unencodable(format!("{e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(device: u32, name: &str, initiators: usize) -> VolumeRecord {
        let names = (0..initiators).map(|n| format!("iqn.2001-04.com.example:host-{n:0100}")).collect();
        VolumeRecord {
            size_bytes: Some(1 << 30),
            export: (initiators > 0).then_some(Access::Initiators(names)),
            ..VolumeRecord::new(DeviceId::new(device.into()).unwrap(), name, [device as u8; 16])
        }
    }

    /// Applies edits and keeps the pages as a disk would.
    fn apply(catalog: &mut Catalog, disk: &mut Vec<Vec<u8>>, edits: Vec<Edit>) -> usize {
        let plan = catalog.plan(edits).unwrap();
        let written = plan.pages.len();
        for (page, bytes) in &plan.pages {
            assert!(bytes.len() <= catalog.capacity_bytes);
            disk.resize(disk.len().max(*page as usize + 1), Vec::new());
            disk[*page as usize] = bytes.clone();
        }
        catalog.enter_plan(plan).unwrap();
        let again = Catalog::decode(disk, catalog.capacity_bytes).unwrap();
        assert_eq!(again.volumes, catalog.volumes);
        assert_eq!(again.names, catalog.names);
        assert_eq!(again.appliance, catalog.appliance);
        let used = |c: &Catalog| c.pages.iter().map(|p| p.used_bytes).collect::<Vec<_>>();
        assert_eq!(used(&again), used(catalog));
        written
    }

    #[test]
    fn a_change_writes_its_page_only_and_pages_never_overflow() {
        let mut catalog = Catalog::new(1500);
        let mut disk = Vec::new();
        apply(&mut catalog, &mut disk, vec![Edit::Appliance(ApplianceRecord::default())]);
        for n in 0..100 {
            let written = apply(&mut catalog, &mut disk, vec![Edit::Put(record(n, &format!("v{n}"), 0))]);
            assert_eq!(written, 1);
        }
        assert!(disk.len() > 3);
        // A record that outgrows its page moves to another.
        assert_eq!(apply(&mut catalog, &mut disk, vec![Edit::Put(record(0, "v0", 9))]), 2);
        assert_eq!(apply(&mut catalog, &mut disk, vec![Edit::Put(record(0, "renamed", 9))]), 1);
        assert!(catalog.named("v0").is_none() && catalog.named("renamed").is_some());
        let removed = Edit::Remove(DeviceId::new(50).unwrap());
        assert_eq!(apply(&mut catalog, &mut disk, vec![removed]), 1);
        assert_eq!(catalog.by_name(Some("v97"), 10).map(|r| r.device).collect::<Vec<_>>(), [98, 99]);
        let error = catalog.plan(vec![Edit::Put(record(200, "big", 30))]).unwrap_err();
        assert!(matches!(error, CatalogError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn several_edits_in_one_plan_share_new_pages() {
        let mut catalog = Catalog::new(1000);
        let mut disk = vec![encode(&ApplianceRecord::default()).unwrap()];
        let edits = (0..40).map(|n| Edit::Put(record(n, &format!("v{n}"), 0))).collect();
        let written = apply(&mut catalog, &mut disk, edits);
        assert_eq!(written, disk.len() - 1, "all but the appliance's own page");
    }

    #[test]
    fn devices_and_records_are_reconciled() {
        let id = |n| DeviceId::new(n).unwrap();
        let mut catalog = Catalog::new(4000);
        let mut disk = vec![encode(&ApplianceRecord::default()).unwrap()];
        let known = vec![Edit::Put(record(1, "one", 0)), Edit::Put(record(2, "thin-3", 0))];
        apply(&mut catalog, &mut disk, known);
        let edits = catalog.reconcile(&BTreeSet::from([id(2), id(3)]), |id| [id.get() as u8; 16]);
        apply(&mut catalog, &mut disk, edits);
        assert!(catalog.of(id(1)).is_none());
        let found = catalog.of(id(3)).unwrap();
        assert_eq!((found.name.as_str(), found.size_bytes, &found.export), ("thin-3.2", None, &None));
        assert_eq!(catalog.reconcile(&BTreeSet::from([id(2), id(3)]), |_| [0; 16]), []);
    }

    #[test]
    fn bad_pages_are_told_by_number() {
        let good = encode(&vec![record(1, "one", 1)]).unwrap();
        let appliance = encode(&ApplianceRecord::default()).unwrap();
        for cut in 1..good.len() {
            let error = Catalog::decode(&[appliance.clone(), good[..cut].to_vec()], 4000).unwrap_err();
            assert!(matches!(error, CatalogError::Malformed { page: 1, .. }), "{error}");
        }
        let error = Catalog::decode(&[appliance, good.clone(), good], 4000).unwrap_err();
        assert_eq!(error, CatalogError::Duplicate { page: 2, what: "device 1".into() });
    }
}
