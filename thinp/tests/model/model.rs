//! The pool as a naive model has it: maps in memory, and an undo journal of what is not committed.

use crate::world::{BLOCK, Origin, Stamps};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Nobody knows what is there: what a new block held before, without zeroing. Never written as a stamp.
pub const ANY: u32 = u32::MAX;

/// Names a data block for as long as something maps it, wherever it may lie.
pub type Slot = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub slot: Slot,
    pub time: u32,
}

pub type Mappings = BTreeMap<u64, Mapping>;

/// The contents of one data block.
struct Contents {
    /// Mappings of devices and of the held metadata snapshot.
    refs: u32,
    now: Box<Stamps>,
    /// What was there since the last flush of the data disk; the first is durable.
    #[expect(clippy::vec_box, reason = "they move here from above")]
    before: Vec<Box<Stamps>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Device {
    pub mappings: Mappings,
    pub transaction_id: u64,
    pub creation_time: u32,
    pub snapshotted_time: u32,
    /// Not in the metadata: whoever opens the device says it.
    pub origin: Option<usize>,
}

enum Undo {
    Mapped { device: u32, block: u64, before: Option<Mapping> },
    Created { device: u32 },
    Deleted { device: u32, was: Device },
    Snapshotted { device: u32, before: u32 },
}

#[derive(Default)]
pub struct Model {
    pub devices: BTreeMap<u32, Device>,
    pub time: u32,
    pub transaction_id: u64,
    /// The mappings seen through the held metadata snapshot.
    pub held: Option<BTreeMap<u32, Device>>,
    pub origins: Vec<Origin>,
    /// Data blocks that anything maps.
    pub used: u64,
    contents: Vec<Contents>,
    free: Vec<Slot>,
    /// Freed in this transaction.
    freed: Vec<Slot>,
    /// Overwritten since the last flush.
    unflushed: BTreeSet<Slot>,
    journal: Vec<Undo>,
    committed: (u32, u64),
}

impl Model {
    pub fn device(&self, device: u32) -> &Device {
        &self.devices[&device]
    }

    pub fn mapping(&self, device: u32, block: u64) -> Option<Mapping> {
        self.device(device).mappings.get(&block).copied()
    }

    /// Strictly, and per device (reference 6.3).
    pub fn is_shared(&self, device: u32, mapping: Mapping) -> bool {
        self.device(device).snapshotted_time > mapping.time
    }

    /// What was read from `sector` on is what must be there.
    pub fn compare(&self, device: u32, sector: u64, found: &[u32]) {
        let origin = self.device(device).origin.map(|origin| self.origins[origin]);
        let mut mapping = self.mapping(device, sector / BLOCK);
        for (at, stamp) in (sector..).zip(found) {
            if at.is_multiple_of(BLOCK) {
                mapping = self.mapping(device, at / BLOCK);
            }
            let expected = match mapping {
                Some(mapping) => self.contents[mapping.slot].now[(at % BLOCK) as usize],
                None => origin.map_or(0, |origin| origin.stamp(at)),
            };
            assert!(
                expected == *stamp || expected == ANY,
                "sector {at} of device {device} is {stamp:#x}, not {expected:#x}; mapped: {mapping:?}"
            );
        }
    }

    /// Makes a new data block hold `fill`; the caller maps it.
    pub fn new_slot(&mut self, now: Stamps) -> Slot {
        let contents = Contents { refs: 0, now: Box::new(now), before: Vec::new() };
        match self.free.pop() {
            Some(slot) => {
                self.contents[slot] = contents;
                slot
            }
            None => {
                self.contents.push(contents);
                self.contents.len() - 1
            }
        }
    }

    pub fn refs(&self, slot: Slot) -> u32 {
        self.contents[slot].refs
    }

    fn inc(&mut self, slot: Slot) {
        let refs = &mut self.contents[slot].refs;
        self.used += u64::from(*refs == 0);
        *refs += 1;
    }

    /// True if nothing maps it any more.
    fn dec(&mut self, slot: Slot) -> bool {
        let refs = &mut self.contents[slot].refs;
        *refs -= 1;
        let freed = *refs == 0;
        self.used -= u64::from(freed);
        if freed {
            self.freed.push(slot);
        }
        freed
    }

    /// What a new block for `block` of the device is filled with around the payload.
    pub fn filling(&self, device: u32, block: u64, zeroing: bool) -> Stamps {
        let mut stamps = [0; BLOCK as usize];
        if let Some(mapping) = self.mapping(device, block) {
            return *self.contents[mapping.slot].now;
        }
        let origin = self.device(device).origin.map(|origin| self.origins[origin]);
        for (stamp, sector) in stamps.iter_mut().zip(block * BLOCK..) {
            *stamp = match origin {
                Some(origin) if sector < origin.sectors => origin.stamp(sector),
                _ if zeroing => 0,
                _ => ANY,
            };
        }
        stamps
    }

    pub fn map(&mut self, device: u32, block: u64, slot: Slot) {
        self.inc(slot);
        let mapping = Mapping { slot, time: self.time };
        let before = self.devices.get_mut(&device).unwrap().mappings.insert(block, mapping);
        if let Some(before) = before {
            self.dec(before.slot);
        }
        self.journal.push(Undo::Mapped { device, block, before });
    }

    /// Overwrites sectors of a mapped block in place.
    pub fn overwrite(&mut self, slot: Slot, sectors: Range<u64>, stamp: u32) {
        let contents = &mut self.contents[slot];
        contents.before.push(contents.now.clone());
        contents.now[sectors.start as usize..sectors.end as usize].fill(stamp);
        self.unflushed.insert(slot);
    }

    /// The sectors are durable as they are now.
    pub fn force(&mut self, slot: Slot, sectors: Range<u64>) {
        let Contents { now, before, .. } = &mut self.contents[slot];
        let sectors = sectors.start as usize..sectors.end as usize;
        before.iter_mut().for_each(|stamps| stamps[sectors.clone()].copy_from_slice(&now[sectors.clone()]));
    }

    /// Removes the mappings of some blocks; returns how many, and how many data blocks nothing maps any more.
    pub fn unmap(&mut self, device: u32, blocks: Range<u64>) -> (u64, u64) {
        let mappings = &mut self.devices.get_mut(&device).unwrap().mappings;
        let gone: Vec<_> = mappings.range(blocks.clone()).map(|(block, mapping)| (*block, *mapping)).collect();
        for (block, _) in &gone {
            mappings.remove(block);
        }
        let mut freed = 0;
        for (block, mapping) in &gone {
            freed += u64::from(self.dec(mapping.slot));
            self.journal.push(Undo::Mapped { device, block: *block, before: Some(*mapping) });
        }
        (gone.len() as u64, freed)
    }

    pub fn create(&mut self, device: u32, origin: Option<usize>) {
        let (transaction_id, creation_time, snapshotted_time) = (self.transaction_id, self.time, self.time);
        let new = Device { mappings: Mappings::new(), transaction_id, creation_time, snapshotted_time, origin };
        assert!(self.devices.insert(device, new).is_none());
        self.journal.push(Undo::Created { device });
    }

    pub fn snapshot(&mut self, device: u32, of: u32) {
        self.time += 1;
        let (time, transaction_id) = (self.time, self.transaction_id);
        let origin = self.devices.get_mut(&of).unwrap();
        self.journal.push(Undo::Snapshotted { device: of, before: origin.snapshotted_time });
        origin.snapshotted_time = time;
        let copy = Device { creation_time: time, transaction_id, ..origin.clone() };
        copy.mappings.values().for_each(|mapping| self.inc(mapping.slot));
        assert!(self.devices.insert(device, copy).is_none());
        self.journal.push(Undo::Created { device });
    }

    /// Copies blocks by sharing them, as if all were read before any is written; returns how many data blocks nothing maps
    /// any more.
    pub fn share(&mut self, source: u32, from: u64, device: u32, to: u64, blocks: u64) -> u64 {
        let run: Vec<Option<Mapping>> = (from..from + blocks).map(|block| self.mapping(source, block)).collect();
        if run.iter().any(Option::is_some) {
            self.have_time_for_shared(source);
            self.have_time_for_shared(device);
        }
        let (theirs, mine) = (self.device(source).snapshotted_time, self.device(device).snapshotted_time);
        for (block, mapping) in (from..).zip(&run) {
            if let Some(mapping) = mapping.filter(|mapping| mapping.time >= theirs) {
                self.replace(source, block, Some(Mapping { time: theirs - 1, ..mapping }));
            }
        }
        let freed = self.freed.len();
        // What is only moved, in ranges that overlap, is never free.
        run.iter().flatten().for_each(|mapping| self.inc(mapping.slot));
        let new = run.iter().map(|mapping| mapping.map(|mapping| Mapping { time: mine - 1, ..mapping }));
        (to..).zip(new).for_each(|(block, new)| self.replace(device, block, new));
        for mapping in run.iter().flatten() {
            self.dec(mapping.slot);
        }
        (self.freed.len() - freed) as u64
    }

    /// A device that never took part in a snapshot gets a time before its latest one, for which the clock may have to tick.
    fn have_time_for_shared(&mut self, device: u32) {
        if self.device(device).snapshotted_time == 0 {
            self.time = self.time.max(1);
            self.journal.push(Undo::Snapshotted { device, before: 0 });
            self.devices.get_mut(&device).unwrap().snapshotted_time = 1;
        }
    }

    /// Exchanges a mapping for another, or none.
    fn replace(&mut self, device: u32, block: u64, new: Option<Mapping>) {
        new.into_iter().for_each(|new| self.inc(new.slot));
        let mappings = &mut self.devices.get_mut(&device).unwrap().mappings;
        let before = match new {
            Some(new) => mappings.insert(block, new),
            None => mappings.remove(&block),
        };
        if before.is_some() || new.is_some() {
            self.journal.push(Undo::Mapped { device, block, before });
        }
        if let Some(before) = before {
            self.dec(before.slot);
        }
    }

    pub fn delete(&mut self, device: u32) {
        let was = self.devices.remove(&device).unwrap();
        for mapping in was.mappings.values() {
            self.dec(mapping.slot);
        }
        self.journal.push(Undo::Deleted { device, was });
    }

    pub fn hold(&mut self) {
        let held = self.devices.clone();
        held.values().flat_map(|device| device.mappings.values()).for_each(|mapping| self.inc(mapping.slot));
        assert!(self.held.replace(held).is_none());
    }

    pub fn release(&mut self) {
        let held = self.held.take().unwrap();
        for mapping in held.values().flat_map(|device| device.mappings.values()) {
            self.dec(mapping.slot);
        }
    }

    /// Devices with uncommitted changes.
    pub fn changed(&self) -> BTreeSet<u32> {
        let device = |undo: &Undo| match undo {
            Undo::Mapped { device, .. }
            | Undo::Created { device }
            | Undo::Deleted { device, .. }
            | Undo::Snapshotted { device, .. } => *device,
        };
        self.journal.iter().map(device).collect()
    }

    pub fn any_changes(&self) -> bool {
        !self.journal.is_empty() || self.committed != (self.time, self.transaction_id)
    }

    /// Everything is durable.
    pub fn committed(&mut self) {
        self.journal.clear();
        self.committed = (self.time, self.transaction_id);
        let freed = self.freed.drain(..).filter(|slot| self.contents[*slot].refs == 0);
        self.free.extend(freed);
        self.flushed();
    }

    /// The contents of all blocks are durable.
    pub fn flushed(&mut self) {
        for slot in std::mem::take(&mut self.unflushed) {
            self.contents[slot].before.clear();
        }
    }

    /// The transaction was lost.
    pub fn roll_back(&mut self) {
        while let Some(undo) = self.journal.pop() {
            match undo {
                Undo::Mapped { device, block, before } => {
                    // A device made in this transaction may be gone already.
                    let Some(device) = self.devices.get_mut(&device) else { continue };
                    match before {
                        Some(before) => device.mappings.insert(block, before),
                        None => device.mappings.remove(&block),
                    };
                }
                Undo::Created { device } => drop(self.devices.remove(&device)),
                Undo::Deleted { device, was } => drop(self.devices.insert(device, was)),
                Undo::Snapshotted { device, before } => {
                    self.devices.get_mut(&device).unwrap().snapshotted_time = before;
                }
            }
        }
        (self.time, self.transaction_id) = self.committed;
        self.recount();
    }

    fn recount(&mut self) {
        self.contents.iter_mut().for_each(|contents| contents.refs = 0);
        let held = self.held.iter().flat_map(BTreeMap::values);
        for mapping in self.devices.values().chain(held).flat_map(|device| device.mappings.values()) {
            self.contents[mapping.slot].refs += 1;
        }
        self.freed.clear();
        self.free = (0..self.contents.len()).filter(|slot| self.contents[*slot].refs == 0).collect();
        self.used = (self.contents.len() - self.free.len()) as u64;
    }

    /// After a power cut: blocks of devices whose contents nobody knows for sure.
    pub fn unsure(&mut self) -> Vec<(u32, u64, Slot)> {
        let mut unsure = std::mem::take(&mut self.unflushed);
        let mut places = Vec::new();
        for (number, device) in &self.devices {
            let mine = device.mappings.iter().filter(|(_, mapping)| unsure.remove(&mapping.slot));
            places.extend(mine.map(|(block, mapping)| (*number, *block, mapping.slot)));
        }
        // Nobody can read the others: only a metadata snapshot maps them, if anything.
        unsure.into_iter().for_each(|slot| self.contents[slot].before.clear());
        places
    }

    /// What a power cut left of a block: each sector is one of what it may be.
    pub fn settle(&mut self, slot: Slot, found: &[u32]) {
        let Contents { now, before, .. } = &mut self.contents[slot];
        for (sector, stamp) in found.iter().enumerate() {
            let possible: Vec<u32> = before.iter().map(|stamps| stamps[sector]).chain([now[sector]]).collect();
            assert!(
                possible.contains(stamp) || possible.contains(&ANY),
                "after a power cut sector {sector} holds {stamp:#x}, not one of {possible:x?}"
            );
            now[sector] = *stamp;
        }
        before.clear();
    }
}
