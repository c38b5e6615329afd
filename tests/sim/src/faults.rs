//! What goes wrong with disks, how often, and what of it was done: a failure that comes after a lost flush says so.

use std::cell::Cell;

/// What goes wrong from now on. A probability is "once in so many requests"; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Requests that take a hundred times longer.
    pub slow: u64,
    /// Requests that take half a minute.
    pub hung: u64,
    pub failed_reads: u64,
    pub failed_writes: u64,
    pub failed_flushes: u64,
    /// The flush after so many fails.
    pub failing_flush: Option<u64>,
    /// After so many writes the disk is full.
    pub full_after: Option<u64>,
    /// Reads after which one of the sectors is bad.
    pub sectors_going_bad: u64,
    /// Reads with a bit flipped.
    pub flipped_reads: u64,
    /// Sectors in which a bit stays flipped.
    pub flipped_sectors: u64,
    /// Writes that end up elsewhere.
    pub misdirected_writes: u64,
    /// Writes that do nothing.
    pub lost_writes: u64,
    pub lost_flushes: u64,
}

/// What was done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    FlushLost,
    WriteLost,
    WriteMisdirected,
    BitFlipped,
    SectorBad,
    Failed,
    Full,
    Hung,
    Slowed,
}

/// All of them, as they are told.
const DEEDS: [(Deed, &str); 9] = [
    (Deed::FlushLost, "flushes lost"),
    (Deed::WriteLost, "writes lost"),
    (Deed::WriteMisdirected, "writes misdirected"),
    (Deed::BitFlipped, "bits flipped"),
    (Deed::SectorBad, "sectors gone bad"),
    (Deed::Failed, "requests failed"),
    (Deed::Full, "writes refused, for the disk is full"),
    (Deed::Hung, "requests hung"),
    (Deed::Slowed, "requests slow"),
];

/// Of the first three no storage can make up for any.
const LIES: usize = 3;

/// So many times each.
pub type Counts = [u64; DEEDS.len()];

/// The name of the metadata disk, of all that the simulation has.
pub const META: u64 = 1;

/// That of the data disk.
pub const DATA: u64 = 2;

thread_local! {
    /// In this run, of the metadata disk and of all others.
    static DONE: Cell<[Counts; 2]> = const { Cell::new([[0; DEEDS.len()]; 2]) };
}

/// A new run.
pub fn forget() {
    DONE.set(Default::default());
}

/// Counts what was done to the disk of this name.
pub fn count(name: u64, deed: Deed) {
    let mut done = DONE.get();
    done[usize::from(name != META)][deed as usize] += 1;
    DONE.set(done);
}

/// More was done in this run than that requests were slow.
pub fn harmed() -> bool {
    DEEDS.iter().zip(done()).any(|((deed, _), times)| *deed != Deed::Slowed && times > 0)
}

/// What was done in this run.
pub fn done() -> Counts {
    let [mut all, data] = DONE.get();
    add(&mut all, &data);
    all
}

/// Adds up what was done in several runs.
pub fn add(all: &mut Counts, more: &Counts) {
    all.iter_mut().zip(more).for_each(|(all, more)| *all += more);
}

/// The metadata disk said that something was done which was not.
pub fn metadata_lied() -> bool {
    DONE.get()[0][..LIES].iter().any(|count| *count > 0)
}

/// A disk said so.
pub fn lied() -> bool {
    done()[..LIES].iter().any(|count| *count > 0)
}

/// What was done, in words; nothing if nothing was.
pub fn tell(counts: &Counts) -> String {
    let told = DEEDS.iter().zip(counts).filter(|(_, count)| **count > 0);
    told.map(|((_, what), count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}
