//! The records against a model, and against bad bytes. A failure prints its seed; `GOSSAMER_SEED=N` runs that one.

use appliance::access::{Access, Login, Proof, Rule};
use appliance::catalog::{
    Activation, ApplianceRecord, BlockSizes, Catalog, CatalogError, Contents, Edit, Guards, VolumeRecord,
};
use appliance::policies::{PolicyRecord, Schedule};
use appliance::reservations::{Held, Nexus, Registration, Reservations};
use appliance::sanitize::SanitizeRecord;
use appliance::settings::Settings;
use platform::random::{Random, Seeded};
use platform::secret::Secret;
use std::collections::{BTreeMap, BTreeSet};
use thinp::control::DeviceId;

struct Dice(Seeded);

impl Dice {
    /// Below `n`.
    fn below(&self, n: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % n as u64) as usize
    }

    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes);
        bytes
    }

    fn identity(&self) -> [u8; 16] {
        self.bytes(16).try_into().unwrap()
    }

    fn access(&self) -> Option<Access> {
        match self.below(3) {
            0 => None,
            1 => Some(Access::All),
            _ => Some(Access::Initiators((0..self.below(8)).map(|n| format!("iqn.2001-04.com.example:{n}")).collect())),
        }
    }

    fn proof(&self) -> Option<Proof> {
        let login = || Login { user: "user".into(), secret: Secret::new(self.bytes(12)) };
        let target = (self.below(2) == 0).then(login);
        (self.below(2) == 0).then(|| Proof { initiator: login(), target })
    }

    fn rule(&self) -> Option<Rule> {
        let addresses = (0..self.below(3)).map(|n| format!("192.0.{n}.0/24").parse().unwrap()).collect();
        self.access().map(|initiators| Rule { initiators, addresses, proof: self.proof() })
    }

    fn record(&self, device: u32, name: String) -> VolumeRecord {
        let size_bytes = (self.below(4) > 0).then(|| self.below(1 << 40) as u64);
        let origin = (self.below(2) == 0).then(|| self.identity());
        let (read_only, deleting) = (self.below(2) == 0, self.below(4) == 0);
        let contents = (self.below(2) == 0).then(|| Contents::new(self.identity(), self.below(1 << 40) as u64));
        let resume = (self.below(4) == 0).then(|| format!("gs1{:0150x}", self.below(1 << 40)));
        let blank = VolumeRecord::new(DeviceId::new(device.into()).unwrap(), &name, self.identity());
        let (reservations, blocks) = (self.reservations(), self.blocks());
        let known = VolumeRecord { size_bytes, origin, read_only, deleting, contents, resume, ..blank };
        let mut record = VolumeRecord { reservations, blocks, sanitize: self.sanitize(), ..known };
        record.set_rule(self.rule());
        record
    }

    fn sanitize(&self) -> Option<SanitizeRecord> {
        let record = SanitizeRecord { unrestricted: self.below(2) == 0, failed: self.below(2) == 0 };
        (self.below(4) == 0).then_some(record)
    }

    fn nexus(&self) -> Nexus {
        let initiator = format!("iqn.2001-04.com.example:{},i,0x00023d0000{:02x}", self.below(8), self.below(99));
        Nexus { initiator, target_port: self.below(4) as u16 }
    }

    fn reservations(&self) -> Option<Reservations> {
        let registration = || Registration { nexus: self.nexus(), key: self.below(1 << 40) as u64 };
        let registrations = (0..self.below(5)).map(|_| registration()).collect();
        let held = (self.below(2) == 0).then(|| Held { code: self.below(9) as u8, holder: self.nexus() });
        (self.below(3) == 0).then_some(Reservations { registrations, held })
    }

    fn blocks(&self) -> Option<BlockSizes> {
        (self.below(2) == 0).then_some(BlockSizes { logical_bytes: 512, physical_bytes: 4096 })
    }

    fn activation(&self) -> Option<Activation> {
        let (epoch, open) = (self.below(1 << 40) as u64, self.below(2) == 0);
        (self.below(3) > 0).then(|| Activation { epoch, instance: self.identity(), open })
    }

    fn policy(&self, n: usize) -> PolicyRecord {
        let volumes = (0..self.below(3)).map(|volume| format!("v{volume}")).collect();
        let number = || self.below(100) as u32;
        let (every_minutes, keep, hourly, daily, weekly) = (number(), number(), number(), number(), number());
        let schedule = Schedule { every_minutes, keep, hourly, daily, weekly };
        PolicyRecord { name: format!("p{n}"), volumes, schedule, last: self.below(1 << 40) as u64 }
    }

    fn appliance(&self) -> ApplianceRecord {
        let token_hashes = (0..self.below(3)).map(|_| <[u8; 32]>::try_from(self.bytes(32)).unwrap().into()).collect();
        let mut record = ApplianceRecord {
            identity: self.identity(),
            token_hashes,
            metadata_export: None,
            activation: self.activation(),
            policies: (0..self.below(3)).map(|n| self.policy(n)).collect(),
            guards: Guards { discovery: self.proof(), metadata: None },
        };
        record.set_metadata_rule(self.rule());
        record
    }
}

/// Runs `round` for seeds.
fn rounds(count: u64, round: impl Fn(&Dice)) {
    let one = std::env::var("GOSSAMER_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    for seed in one.map_or(0..count, |seed| seed..seed + 1) {
        println!("GOSSAMER_SEED={seed}");
        round(&Dice(Seeded::from_u64(seed)));
    }
}

#[derive(Default)]
struct Model {
    appliance: ApplianceRecord,
    volumes: BTreeMap<u32, VolumeRecord>,
}

impl Model {
    /// Edits that keep names unique: one to three, each of another device.
    fn edits(&self, dice: &Dice) -> Vec<Edit> {
        let devices: BTreeSet<u32> = (0..1 + dice.below(3)).map(|_| dice.below(60) as u32).collect();
        let edit = |device: u32| match dice.below(9) {
            0 => Edit::Appliance(dice.appliance()),
            1..=3 => Edit::Remove(DeviceId::new(device.into()).unwrap()),
            // The name tells the device, so that no other volume has it.
            _ => Edit::Put(dice.record(device, format!("v{device}.{}", dice.below(3)))),
        };
        devices.into_iter().map(edit).collect()
    }

    fn apply(&mut self, edits: &[Edit]) {
        for edit in edits.iter().cloned() {
            match edit {
                Edit::Appliance(record) => self.appliance = record,
                Edit::Remove(device) => drop(self.volumes.remove(&device.get())),
                Edit::Put(record) => drop(self.volumes.insert(record.device, record)),
            }
        }
    }

    fn assert_same(&self, catalog: &Catalog) {
        assert_eq!(*catalog.appliance(), self.appliance);
        assert!(catalog.volumes().eq(self.volumes.values()));
        let by_name: BTreeMap<&str, &VolumeRecord> = self.volumes.values().map(|r| (r.name.as_str(), r)).collect();
        assert!(catalog.by_name(None, usize::MAX).eq(by_name.into_values()));
        for record in self.volumes.values() {
            assert_eq!(catalog.named(&record.name), Some(record));
            assert_eq!(catalog.identified(&record.identity), Some(record));
        }
    }
}

const CAPACITY_BYTES: usize = 1200;

/// A catalog after a random history, its model, and its pages as a disk holds them.
fn history(dice: &Dice, changes: usize) -> (Catalog, Model, Vec<Vec<u8>>) {
    let (mut catalog, mut model, mut disk) = (Catalog::new(CAPACITY_BYTES), Model::default(), Vec::new());
    for _ in 0..changes {
        let edits = model.edits(dice);
        let plan = catalog.plan(edits.clone()).unwrap();
        if dice.below(5) == 0 {
            continue; // The commit failed: nothing has changed.
        }
        for (page, bytes) in &plan.pages {
            assert!(bytes.len() <= CAPACITY_BYTES, "page {page} overflows");
            disk.resize(disk.len().max(*page as usize + 1), Vec::new());
            disk[*page as usize] = bytes.clone();
        }
        catalog.enter_plan(plan).unwrap();
        model.apply(&edits);
    }
    (catalog, model, disk)
}

#[test]
fn what_was_planned_is_what_is_read() {
    rounds(100, |dice| {
        let (catalog, model, disk) = history(dice, 60);
        model.assert_same(&catalog);
        let read = Catalog::decode(&disk, CAPACITY_BYTES).unwrap();
        model.assert_same(&read);
        assert!(model.volumes.len() < 10 || disk.len() > 2, "several pages were in use");
    });
}

#[test]
fn reconciled_records_are_the_devices_that_are_there() {
    rounds(100, |dice| {
        let (mut catalog, model, _) = history(dice, 40);
        let devices = (0..30).filter_map(|_| DeviceId::new(dice.below(80) as u64)).collect::<BTreeSet<_>>();
        let edits = catalog.reconcile(&devices, |device| [device.get() as u8; 16]);
        let plan = catalog.plan(edits).unwrap();
        catalog.enter_plan(plan).unwrap();
        assert!(catalog.volumes().map(|r| r.device).eq(devices.iter().map(|d| d.get())));
        for record in catalog.volumes() {
            match model.volumes.get(&record.device) {
                Some(known) => assert_eq!(record, known),
                None => assert_eq!((record.size_bytes, &record.export), (None, &None), "{}", record.name),
            }
        }
        assert_eq!(catalog.reconcile(&devices, |_| [0; 16]), []);
    });
}

#[test]
fn damaged_pages_are_refused_by_number_or_read() {
    rounds(3000, |dice| {
        let (_, _, mut disk) = history(dice, 8);
        if disk.is_empty() {
            return;
        }
        let damaged = dice.below(disk.len());
        let page = &mut disk[damaged];
        match dice.below(3) {
            _ if page.is_empty() => page.extend(dice.bytes(40)),
            0 => page.truncate(dice.below(page.len())),
            1 => *page = dice.bytes(dice.below(100)),
            _ => {
                let at = dice.below(page.len());
                page[at] ^= 1 << dice.below(8);
            }
        }
        match Catalog::decode(&disk, CAPACITY_BYTES) {
            Ok(catalog) => assert!(catalog.volumes().all(|record| record.device <= DeviceId::MAX.get())),
            Err(CatalogError::Malformed { page, .. }) => assert_eq!(page as usize, damaged),
            Err(CatalogError::Duplicate { page, .. }) => assert!(page as usize >= damaged),
            Err(other) => panic!("{other}"),
        }
    });
}

#[test]
fn a_length_from_the_disk_allocates_nothing_by_itself() {
    // An array of 2^64 - 1 records, and a name of 2^62 bytes.
    let array = [&[0x9b][..], &[0xff; 8]].concat();
    let name = [&[0x81, 0x87, 0x01, 0x7b][..], &[0x40, 0, 0, 0, 0, 0, 0, 0]].concat();
    for page in [array, name] {
        let error = Catalog::decode(&[Vec::new(), page], CAPACITY_BYTES).unwrap_err();
        assert!(matches!(error, CatalogError::Malformed { page: 1, .. }), "{error}");
    }
}

#[test]
fn a_record_of_another_version_is_read() {
    let mut catalog = Catalog::new(CAPACITY_BYTES);
    let record = VolumeRecord {
        deleting: false,
        contents: None,
        resume: None,
        guarded: None,
        reservations: None,
        blocks: None,
        ..Dice(Seeded::from_u64(1)).record(7, "v7".into())
    };
    let plan = catalog.plan(vec![Edit::Put(record.clone())]).unwrap();
    let page = plan.pages[0].1.clone();
    catalog.enter_plan(plan).unwrap();
    // One record, an array of 8 fields: what is unknown at the end is left out. An earlier version had 7, without the
    // last of these, which is `false`.
    assert_eq!((&page[..2], page.last()), (&[0x81, 0x88][..], Some(&0xf4)));
    let mut earlier = page.clone();
    earlier[1] = 0x87;
    earlier.pop();
    // A later one has 64, the last of a shape that nobody knows.
    let mut later = [&[0x81, 0x98, 64], &page[2..], &[0xf6; 55]].concat();
    later.extend([0xa1, 0x61, b'x', 0x82, 0x01, 0x02]);
    for page in [earlier, later] {
        let read = Catalog::decode(&[Vec::new(), page], CAPACITY_BYTES).unwrap();
        assert_eq!(read.volumes().collect::<Vec<_>>(), [&record]);
    }
}

#[test]
fn no_command_line_upsets_the_settings() {
    rounds(3000, |dice| {
        let keys = ["net=", "iscsi.port=", "iqn=", "block=", "token=", "log", "console=ttyS0", "virtio_mmio.device="];
        let values = ["dhcp", "10.0.0.1/8", "64K", "4294967295G", "-1", "é", "=", "99999", "iqn."];
        let words: Vec<String> = (0..dice.below(9))
            .map(|_| format!("{}{}", keys[dice.below(keys.len())], values[dice.below(values.len())]))
            .collect();
        let noise = String::from_utf8_lossy(&dice.bytes(30)).into_owned();
        let (settings, warnings) = Settings::parse(&format!("{} {noise}", words.join(" ")));
        assert!(settings.data_block_sectors.is_multiple_of(128) && settings.data_block_sectors >= 128);
        assert!(warnings.iter().all(|warning| warning.contains("is ignored: ")));
    });
}
