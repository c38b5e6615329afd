//! Random histories. They are made while our side carries them out, so that what comes next can depend on what is
//! there: which devices exist, whether the pool is full, whether a write waits. The kernel replays the outcome.

use std::collections::{BTreeMap, VecDeque};

use thinp::Features;
use thinp::control::{DiscardPolicy, Mode};
use xtask::dice::Dice;

use crate::ours::Ours;
use crate::script::{Extent, Op, PoolArguments, Step, WriteKind};

/// Sectors of a slot of the data disk: what a pool can grow to.
pub const DATA_SLOT_SECTORS: u64 = 80 << 11;
/// The same of metadata.
pub const META_SLOT_SECTORS: u64 = 16 << 11;
/// Sectors of the disk of which external origins are the front.
pub const ORIGIN_SECTORS: u64 = 8 << 11;
/// Most sectors of one read or write.
const TRANSFER_SECTORS_MAX: u64 = 4096;
/// More devices than this are rarely made.
const DEVICES_WANTED: usize = 8;
/// Most devices active at a time.
const ACTIVE_MAX: usize = 5;
/// Blocks that the data device can always be grown by, to end a history in which a write waits.
const GROWTH_KEPT_BLOCKS: u64 = 2;
/// Ids that histories use.
const IDS: [u64; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 300, 4242, 16_777_215];

/// What a history starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Sectors in a data block.
    pub block_sectors: u64,
    /// Data blocks.
    pub data_blocks: u64,
    /// Size of the metadata disk.
    pub meta_sectors: u64,
    /// The data disk is full of what others left on it.
    pub dirty_seed: Option<u64>,
    /// So many blocks for so few writes that none is given out twice: both sides must give out the same.
    pub strict: bool,
    /// Writes are large, and many.
    pub wide: bool,
    /// Writes wait for space for a second only.
    pub impatient: bool,
}

impl Start {
    /// A new pool.
    pub fn new(dice: &mut Dice) -> Start {
        let block_sectors = [128, 128, 128, 384, 256, 640, 1024][dice.below(7) as usize];
        let kind = dice.below(10);
        let (strict, wide) = (kind < 4, kind == 4);
        let block_sectors = if wide { 128 } else { block_sectors };
        let data_blocks = match (strict, wide) {
            (true, _) => (DATA_SLOT_SECTORS / block_sectors - GROWTH_KEPT_BLOCKS).min(400),
            (_, true) => 900,
            _ => dice.between(6, 40).min(DATA_SLOT_SECTORS / block_sectors / 2),
        };
        Start {
            block_sectors,
            data_blocks,
            meta_sectors: dice.between(1024, 2048) * 8 + dice.below(8),
            dirty_seed: dice.chance(60).then(|| dice.below(1 << 32)),
            strict,
            wide,
            impatient: dice.chance(15),
        }
    }

    /// Going on with a pool that another history left behind.
    pub fn after(played: &Played, dice: &mut Dice) -> Start {
        Start {
            data_blocks: played.data_blocks,
            meta_sectors: played.meta_sectors,
            strict: false,
            wide: false,
            impatient: dice.chance(15),
            ..played.start.clone()
        }
    }
}

/// A history, and how it ended on our side.
#[derive(Debug, Clone)]
pub struct Played {
    /// What it started from.
    pub start: Start,
    /// What was done.
    pub steps: Vec<Step>,
    /// Data blocks at the end.
    pub data_blocks: u64,
    /// Size of the metadata disk at the end.
    pub meta_sectors: u64,
}

struct Active {
    sectors: u64,
}

struct Player<'a> {
    ours: &'a mut Ours,
    dice: Dice,
    played: Played,
    arguments: PoolArguments,
    planned: VecDeque<Op>,
    devices: Vec<u64>,
    active: BTreeMap<u64, Active>,
    /// The device of the write that waits.
    queued: Option<u64>,
    /// Data blocks that writes may have been given.
    given_blocks: u64,
    /// Data blocks that were free at the last commit that both sides made, less those that writes may have been given.
    surely_free_blocks: u64,
    writes: u64,
}

/// Plays a history of so many operations (a few more, to end it).
pub async fn play(ours: &mut Ours, start: Start, mut dice: Dice, operations: usize) -> Played {
    let arguments = arguments(&mut dice, &start);
    let (data_blocks, meta_sectors) = (start.data_blocks, start.meta_sectors);
    let played = Played { start, steps: Vec::new(), data_blocks, meta_sectors };
    let mut player = Player {
        ours,
        dice,
        played,
        arguments,
        planned: VecDeque::from([Op::OpenPool(arguments)]),
        devices: Vec::new(),
        active: BTreeMap::new(),
        queued: None,
        given_blocks: 0,
        surely_free_blocks: 0,
        writes: 0,
    };
    while player.played.steps.len() < operations {
        let op = match player.planned.pop_front() {
            Some(op) => op,
            None => player.choose().await,
        };
        player.step(op).await;
    }
    player.end().await;
    player.played
}

/// Blocks that the extent touches.
fn touched_blocks(at: Extent, block_sectors: u64) -> u64 {
    (at.sector + at.sectors).div_ceil(block_sectors) - at.sector / block_sectors
}

/// The whole blocks within the extent.
fn whole_blocks(at: Extent, block_sectors: u64) -> Extent {
    let begin = at.sector.next_multiple_of(block_sectors);
    let end = (at.sector + at.sectors) / block_sectors * block_sectors;
    Extent { sector: begin, sectors: end.saturating_sub(begin) }
}

/// The part of a discard that Linux's block layer sends as one. Above dm-thin it cuts at multiples of the block size, but
/// takes that for a power of two; where it is none, the cut lies within a block, which then is not discarded.
fn unsplit(at: Extent, block_sectors: u64) -> Extent {
    let cut = (at.sector.wrapping_sub(1) | (block_sectors - 1)).wrapping_add(1);
    let sectors = if cut == at.sector { at.sectors } else { at.sectors.min(cut - at.sector) };
    if block_sectors.is_power_of_two() { at } else { Extent { sectors, ..at } }
}

fn arguments(dice: &mut Dice, start: &Start) -> PoolArguments {
    let features = Features {
        skip_block_zeroing: dice.chance(25),
        ignore_discard: dice.chance(5),
        no_discard_passdown: dice.chance(20),
        read_only: false,
        error_if_no_space: dice.chance(50),
    };
    let no_space_timeout_seconds = if start.impatient { 1 } else { 60 };
    PoolArguments { features, low_water_blocks: dice.below(start.data_blocks), no_space_timeout_seconds }
}

impl Player<'_> {
    /// Carries an operation out and notes it.
    async fn step(&mut self, mut op: Op) {
        let mode = self.ours.mode();
        let answer = self.ours.apply(&op).await;
        let ok = answer == "ok";
        match &mut op {
            Op::Write { id, at, kind, .. } => {
                let touched = touched_blocks(*at, self.played.start.block_sectors);
                self.surely_free_blocks = self.surely_free_blocks.saturating_sub(touched);
                if answer == "queued" {
                    *kind = WriteKind::Queued;
                    self.queued = Some(*id);
                }
            }
            Op::OpenPool(arguments) if ok => self.arguments = *arguments,
            Op::OpenThin { id, sectors, .. } if ok => {
                self.active.insert(*id, Active { sectors: *sectors });
            }
            Op::CloseThin(id) => {
                self.active.remove(id);
            }
            Op::ResizeThin { id, sectors } => {
                self.active.insert(*id, Active { sectors: *sectors });
            }
            Op::GrowData { blocks } if ok => self.played.data_blocks = *blocks,
            Op::GrowMetadata { sectors } => self.played.meta_sectors = *sectors,
            Op::JoinQueued => self.queued = None,
            _ => {}
        }
        if matches!(op, Op::OpenPool(_) | Op::Status | Op::GrowData { .. }) || ok && matches!(op, Op::Message(_)) {
            let status = self.ours.status();
            self.surely_free_blocks = status.data_total_blocks - status.data_used_blocks;
        }
        if matches!(op, Op::OpenPool(_) | Op::Message(_)) {
            self.devices = self.ours.devices().await.expect("an open pool tells its devices");
        }
        self.played.steps.push(Step { op, mode, answer });
        if self.ours.queued_is_done() && !matches!(self.played.steps.last(), Some(Step { op: Op::JoinQueued, .. })) {
            // First the commit that was to follow a discard: where Linux commits by itself while it passes a discard down,
            // what that frees waits for another change.
            let next = self.planned.pop_front().unwrap_or(Op::JoinQueued);
            Box::pin(self.step(next)).await;
        }
        if self.queued.is_none() && self.planned.is_empty() && self.dice.chance(5) && self.played.steps.len() > 1 {
            self.ours.idle().await;
        }
    }

    /// Ends what waits, reads every active device, and closes everything.
    async fn end(&mut self) {
        while let Some(op) = self.planned.pop_front() {
            self.step(op).await;
        }
        if self.queued.is_some() {
            self.step(Op::GrowData { blocks: self.played.data_blocks + 1 }).await;
        }
        let active: Vec<_> = self.active.iter().map(|(id, active)| (*id, active.sectors)).collect();
        for (id, sectors) in active {
            for sector in (0..sectors).step_by(TRANSFER_SECTORS_MAX as usize) {
                let at = Extent { sector, sectors: TRANSFER_SECTORS_MAX.min(sectors - sector) };
                self.step(Op::Read { id, at }).await;
            }
            self.step(Op::ThinStatus(id)).await;
            self.step(Op::CloseThin(id)).await;
        }
        self.step(Op::Status).await;
        self.step(Op::ClosePool).await;
    }

    async fn choose(&mut self) -> Op {
        if self.queued.is_some() {
            return self.choose_while_queued().await;
        }
        if self.active.is_empty() && self.dice.chance(60) {
            return if self.devices.is_empty() { self.message() } else { self.open() };
        }
        match self.dice.below(100) {
            0..20 => self.message(),
            20..27 => self.open(),
            27..31 => self.with_active(|_, id| Op::CloseThin(id)),
            31..34 => self.with_active(|player, id| Op::ResizeThin { id, sectors: player.thin_sectors() }),
            34..63 => self.write().await,
            63..74 => self.with_active(|player, id| Op::Read { id, at: player.extent(id) }),
            74..84 => self.discard().await,
            84..88 => self.flush().await,
            88..92 => Op::Status,
            92..96 => self.with_active(|_, id| Op::ThinStatus(id)),
            96..98 => self.grow(),
            _ => self.reopen(),
        }
    }

    /// What does not wait behind the write that waits, and what brings space.
    async fn choose_while_queued(&mut self) -> Op {
        if self.played.start.impatient {
            return Op::WaitForTimeout;
        }
        match self.dice.below(100) {
            0..20 => self.message(),
            20..35 => self.with_active(|player, id| Op::Read { id, at: player.extent(id) }),
            35..60 => self.discard().await,
            60..70 => Op::Status,
            70..80 => self.with_active(|_, id| Op::ThinStatus(id)),
            80..85 => self.flush().await,
            _ => self.grow(),
        }
    }

    fn with_active(&mut self, make: impl FnOnce(&mut Self, u64) -> Op) -> Op {
        let ids: Vec<u64> = self.active.keys().copied().collect();
        if ids.is_empty() {
            return Op::Status;
        }
        let id = ids[self.dice.below(ids.len() as u64) as usize];
        make(self, id)
    }

    /// A device's size: often no whole blocks, sometimes more than the pool has.
    fn thin_sectors(&mut self) -> u64 {
        let block = self.played.start.block_sectors;
        let blocks = self.dice.between(1, self.played.start.data_blocks.clamp(10, 120));
        let rest = if self.dice.chance(50) { self.dice.below(block) } else { 0 };
        blocks * block + rest
    }

    fn open(&mut self) -> Op {
        let id = match self.dice.chance(90) && !self.devices.is_empty() {
            true => self.devices[self.dice.below(self.devices.len() as u64) as usize],
            false => self.any_id(),
        };
        if self.active.contains_key(&id) || self.active.len() >= ACTIVE_MAX {
            return self.with_active(|_, id| Op::ThinStatus(id));
        }
        let block = self.played.start.block_sectors;
        let stale = self.arguments.features.skip_block_zeroing && !self.played.start.strict;
        let mut length = self.dice.between(1, ORIGIN_SECTORS.min(20 * block));
        // What remains behind the origin's end is not defined, and only in strict histories the same.
        if stale || self.dice.chance(20) {
            length = length.next_multiple_of(block).min(ORIGIN_SECTORS / block * block);
        }
        let origin = self.dice.chance(30).then_some(length);
        Op::OpenThin { id, sectors: self.thin_sectors(), origin }
    }

    /// Sectors of an active device: within a block, whole blocks, or any.
    fn extent(&mut self, id: u64) -> Extent {
        let (size, block) = (self.active[&id].sectors, self.played.start.block_sectors);
        let most = if self.played.start.wide { TRANSFER_SECTORS_MAX } else { TRANSFER_SECTORS_MAX.min(4 * block) };
        let sector = self.dice.below(size);
        match self.dice.below(3) {
            0 => {
                let end = (sector / block * block + block).min(size);
                Extent { sector, sectors: self.dice.between(1, end - sector) }
            }
            1 => {
                let begin = sector / block * block;
                let blocks = self.dice.between(1, (most / block).max(1));
                Extent { sector: begin, sectors: (blocks * block).min(size - begin) }
            }
            _ => Extent { sector, sectors: self.dice.between(1, most.min(size - sector)) },
        }
    }

    async fn write(&mut self) -> Op {
        let ids: Vec<u64> = self.active.keys().copied().collect();
        if ids.is_empty() {
            return Op::Status;
        }
        let id = ids[self.dice.below(ids.len() as u64) as usize];
        let (mut at, block, size) = (self.extent(id), self.played.start.block_sectors, self.active[&id].sectors);
        let status = self.ours.status();
        let touched = |at| touched_blocks(at, block);
        let free_blocks = status.data_total_blocks - status.data_used_blocks;
        let queues = !self.arguments.features.error_if_no_space;
        if free_blocks < touched(at) && (queues || free_blocks > 0) {
            // Only a write of one block waits as a whole; and one that runs out half-way may have freed blocks before,
            // by breaking sharing with nobody (deviation 16).
            let blocks = if queues { 1 } else { free_blocks };
            at.sectors = at.sectors.min(blocks * block - at.sector % block);
        }
        let stale = self.arguments.features.skip_block_zeroing && !self.played.start.strict;
        if stale && !self.ours.is_mapped(id, at).await.unwrap_or(false) {
            // The rest of new blocks would hold what somebody left there.
            let begin = at.sector / block * block;
            at = Extent { sector: begin, sectors: (at.sector + at.sectors).next_multiple_of(block) - begin };
        }
        let fits = at.sector + at.sectors <= size && at.sectors <= 2 * TRANSFER_SECTORS_MAX;
        let virgin = self.given_blocks + touched(at) <= self.played.start.data_blocks;
        if !fits || self.played.start.strict && !virgin {
            return Op::Read { id, at: self.extent(id) };
        }
        let needs_commit = touched(at) > self.surely_free_blocks && self.ours.mode() == Mode::Write;
        self.given_blocks += touched(at);
        self.writes += 1;
        let durable = self.ours.mode() == Mode::Write && self.dice.chance(10);
        let kind = if durable { WriteKind::Durable } else { WriteKind::Plain };
        let write = Op::Write { id, at, seed: self.writes, kind };
        if needs_commit {
            // Deviation 16: Linux does not look for what a commit would free.
            self.planned.push_back(write);
            return self.commit();
        }
        write
    }

    /// Out of data space Linux lets a flush wait, too, if block 0 is unmapped (deviation 11).
    async fn flush(&mut self) -> Op {
        let op = self.with_active(|_, id| Op::Flush(id));
        let Op::Flush(id) = op else { return op };
        let waits = self.ours.mode() == Mode::OutOfDataSpace && !self.ours.status().error_if_no_space;
        let first = Extent { sector: 0, sectors: 1 };
        if waits && !self.ours.is_mapped(id, first).await.unwrap_or(false) { Op::ThinStatus(id) } else { op }
    }

    /// What commits and changes nothing.
    fn commit(&self) -> Op {
        let current = self.ours.status().transaction_id;
        Op::Message(format!("set_transaction_id {current} {current}"))
    }

    async fn discard(&mut self) -> Op {
        let op = self.with_active(|player, id| {
            let size = player.active[&id].sectors;
            let at = match player.dice.below(10) {
                0 => Extent { sector: 0, sectors: size },
                1 | 2 => {
                    let sector = player.dice.below(size);
                    Extent { sector, sectors: player.dice.between(1, size - sector) }
                }
                _ => player.extent(id),
            };
            Op::Discard { id, at: unsplit(at, player.played.start.block_sectors) }
        });
        let (Op::Discard { id, at }, status) = (&op, self.ours.status()) else { return op };
        let untold = status.held_root.is_some() && status.discard == DiscardPolicy::NoPassdown;
        let whole = whole_blocks(*at, self.played.start.block_sectors);
        if untold && self.ours.is_unmapped(*id, whole).await.unwrap_or(false) {
            // Deviation 17: Linux copies nodes of which the metadata snapshot has the old ones.
            return Op::ThinStatus(*id);
        }
        if status.mode == Mode::OutOfDataSpace {
            // Space comes back with a commit, on both sides with this one at the latest.
            let commit = self.commit();
            self.planned.push_back(commit);
        }
        op
    }

    fn grow(&mut self) -> Op {
        let (played, mode) = (&self.played, self.ours.status().mode);
        let most = DATA_SLOT_SECTORS / played.start.block_sectors - GROWTH_KEPT_BLOCKS;
        let larger = |by: u64| (played.data_blocks + by).min(most).max(played.data_blocks);
        match mode {
            Mode::Write if self.dice.chance(25) => {
                let sectors = (played.meta_sectors + 8 * self.dice.between(1, 600)).min(META_SLOT_SECTORS);
                Op::GrowMetadata { sectors }
            }
            Mode::Write if self.dice.chance(15) => {
                Op::GrowData { blocks: played.data_blocks - self.dice.between(1, 3) }
            }
            Mode::Write => Op::GrowData { blocks: larger(self.dice.between(0, 8)) },
            // Deviation 12: in Linux a reload ends the mode, also one of metadata, one that brings no space, and one
            // that is refused (with which everything stops that waits).
            Mode::OutOfDataSpace if played.data_blocks < most => {
                Op::GrowData { blocks: larger(self.dice.between(1, 8)) }
            }
            _ => Op::Status,
        }
    }

    /// Closes the pool and opens it again, with other features.
    fn reopen(&mut self) -> Op {
        if self.played.start.strict {
            // The search for free blocks starts at the first again.
            return Op::Status;
        }
        let mut arguments = arguments(&mut self.dice, &self.played.start);
        arguments.features.read_only = self.dice.chance(30);
        let features = &mut arguments.features;
        if features.read_only && features.ignore_discard && features.no_discard_passdown && features.skip_block_zeroing
        {
            // Linux takes four feature arguments.
            features.error_if_no_space = false;
        }
        self.planned.extend(self.active.keys().map(|id| Op::CloseThin(*id)));
        self.planned.extend([Op::ClosePool, Op::OpenPool(arguments), Op::Status]);
        Op::Status
    }

    fn any_id(&mut self) -> u64 {
        IDS[self.dice.below(IDS.len() as u64) as usize]
    }

    fn message(&mut self) -> Op {
        let (a, b) = (self.any_id(), self.any_id());
        let existing = match self.devices.len() as u64 {
            0 => b,
            n => self.devices[self.dice.below(n) as usize],
        };
        let many = self.devices.len() > DEVICES_WANTED;
        let (a, existing) = (self.number(a), self.number(existing));
        let current = self.ours.status().transaction_id;
        let text = match self.dice.below(100) {
            0..22 if !many => format!("create_thin {a}"),
            0..50 if !many => format!("create_snap {a} {existing}"),
            0..25 => format!("delete {existing}"),
            25..62 => format!("delete {a}"),
            62..68 => format!("set_transaction_id {} {}", self.number(current), self.dice.below(9)),
            68..71 => format!("set_transaction_id {} {b}", self.dice.below(9)),
            71..81 => "reserve_metadata_snap".to_owned(),
            81..89 => "release_metadata_snap".to_owned(),
            _ => self.nonsense(),
        };
        Op::Message(self.in_any_case(text))
    }

    /// A message that no pool takes, or nearly none.
    fn nonsense(&mut self) -> String {
        const NONSENSE: [&str; 28] = [
            "nonsense",
            "create",
            "create_thin",
            "create_thin 1 2",
            "create_thin 0x10",
            "create_thin -1",
            "create_thin one",
            "create_thin 16777216",
            "create_thin 99999999999999999999",
            "create_thin ++1",
            "create_thin 1.5",
            "create_snap",
            "create_snap 1",
            "create_snap 1 2 3",
            "create_snap 1 16777216",
            "create_snap 0 0",
            "create_snap 7 7",
            "delete",
            "delete 1 2",
            "delete 16777216",
            "delete 0b1",
            "set_transaction_id 0",
            "set_transaction_id 0 1 2",
            "set_transaction_id 0 18446744073709551616",
            "set_transaction_id a b",
            "reserve_metadata_snap 1",
            "release_metadata_snap 1",
            "delete +",
        ];
        NONSENSE[self.dice.below(NONSENSE.len() as u64) as usize].to_owned()
    }

    /// A number as people write it.
    fn number(&mut self, number: u64) -> String {
        match self.dice.below(12) {
            0 => format!("+{number}"),
            1 => format!("000{number}"),
            _ => number.to_string(),
        }
    }

    fn in_any_case(&mut self, text: String) -> String {
        if !self.dice.chance(15) {
            return text;
        }
        text.chars().map(|c| if self.dice.chance(50) { c.to_ascii_uppercase() } else { c }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_new_pool_can_grow() {
        for seed in 0..1000 {
            let start = Start::new(&mut Dice::new(seed));
            let grown = (start.data_blocks + GROWTH_KEPT_BLOCKS) * start.block_sectors;
            assert!(grown <= DATA_SLOT_SECTORS, "SEED={seed}: {start:?}");
        }
    }
}
