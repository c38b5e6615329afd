//! Which writes overlap which.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// Writes up to this length are found by their start; the few longer ones (discards) are looked through.
const SHORT_SECTORS: u64 = 8192;

/// The writes that are queued or under way, and who waits for them.
#[derive(Default)]
pub(super) struct Writes {
    /// End by start and id.
    short: BTreeMap<(u64, u64), u64>,
    long: Vec<(u64, Range<u64>)>,
    waiting: BTreeMap<u64, Vec<u64>>,
}

impl Writes {
    /// Adds write `id`, which from now on waits for all that overlap it. Returns how many these are.
    pub(super) fn add(&mut self, id: u64, range: Range<u64>) -> usize {
        let from = range.start.saturating_sub(SHORT_SECTORS);
        let near = self.short.range((from, 0)..(range.end, 0)).map(|((start, other), end)| (*other, *start..*end));
        let overlapping = near
            .chain(self.long.iter().cloned())
            .filter(|(_, other)| other.start < range.end && range.start < other.end);
        let mut earlier = 0;
        for (other, _) in overlapping {
            self.waiting.entry(other).or_default().push(id);
            earlier += 1;
        }
        if range.end - range.start <= SHORT_SECTORS {
            self.short.insert((range.start, id), range.end);
        } else {
            self.long.push((id, range));
        }
        earlier
    }

    /// Removes write `id`, which is done. Returns those that waited for it.
    pub(super) fn remove(&mut self, id: u64, range: Range<u64>) -> Vec<u64> {
        if self.short.remove(&(range.start, id)).is_none() {
            self.long.retain(|(other, _)| *other != id);
        }
        self.waiting.remove(&id).unwrap_or_default()
    }
}
