//! From entries to runs.

use super::super::trees::Packed;
use super::super::{DataBlock, Result, VirtualBlock};
use alloc::collections::VecDeque;
use pdata::btree::{Entries, Pairs, Stretch};

/// Where a virtual block's data is in two devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// In one place.
    Same(DataBlock),
    /// In two places.
    Different {
        /// Of the left device.
        left: DataBlock,
        /// Of the right device.
        right: DataBlock,
    },
    /// The right device does not map it.
    LeftOnly(DataBlock),
    /// The left device does not map it.
    RightOnly(DataBlock),
}

/// Consecutive virtual blocks that were found alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub begin: VirtualBlock,
    /// How many.
    pub blocks: u64,
    /// Where the data of the first is.
    pub found: Found,
}

/// What joins virtual blocks that follow each other to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// That they were found alike.
    WhereBlocksGoOn,
    /// That their data blocks follow each other, too.
    WhereDataGoesOn,
}

impl Run {
    /// The block after its last was found so, and goes on with it.
    fn goes_on(&self, block: u64, found: Found, join: Join) -> bool {
        let next = |data: DataBlock| DataBlock(data.0.saturating_add(self.blocks));
        let (alike, data) = match (self.found, found) {
            (Found::Same(a), Found::Same(b))
            | (Found::LeftOnly(a), Found::LeftOnly(b))
            | (Found::RightOnly(a), Found::RightOnly(b)) => (true, next(a) == b),
            (Found::Different { left: a, right: x }, Found::Different { left: b, right: y }) => {
                (true, next(a) == b && next(x) == y)
            }
            _ => (false, false),
        };
        alike && self.begin.0.checked_add(self.blocks) == Some(block) && (data || join == Join::WhereBlocksGoOn)
    }
}

/// The runs of a delta, in ascending order.
pub struct Runs<'a> {
    pairs: Pairs<'a, Packed>,
    joined: Joined,
}

/// Runs under construction.
struct Joined {
    join: Join,
    /// What is the same is told.
    same: bool,
    /// May go on.
    last: Option<Run>,
    ready: VecDeque<Run>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(pairs: Pairs<'a, Packed>, join: Join, same: bool) -> Runs<'a> {
        Runs { pairs, joined: Joined { join, same, last: None, ready: VecDeque::new() } }
    }

    /// The next run; none at the end. After an error there is no going on.
    pub async fn next(&mut self) -> Result<Option<Run>> {
        loop {
            if let Some(run) = self.joined.ready.pop_front() {
                return Ok(Some(run));
            }
            match self.pairs.next().await? {
                Some(Stretch::Shared(entries)) => {
                    for (key, value) in entries {
                        self.joined.add(key.get(), Found::Same(value.block()));
                    }
                }
                Some(Stretch::Own { left, right }) => self.joined.merge(left, right),
                None => return Ok(self.joined.last.take()),
            }
        }
    }
}

impl Joined {
    /// Adds what two leaves have between the same keys.
    fn merge(&mut self, left: Entries<'_, Packed>, right: Entries<'_, Packed>) {
        let entry = |(key, value): (&zerocopy::little_endian::U64, &Packed)| (key.get(), value.block());
        let (mut left, mut right) = (left.into_iter().map(entry), right.into_iter().map(entry));
        let (mut l, mut r) = (left.next(), right.next());
        loop {
            match (l, r) {
                (Some((key, a)), Some((same_key, b))) if key == same_key => {
                    match a == b {
                        true if self.same => self.add(key, Found::Same(a)),
                        true => {}
                        false => self.add(key, Found::Different { left: a, right: b }),
                    }
                    (l, r) = (left.next(), right.next());
                }
                (Some((key, data)), other) if other.is_none_or(|(other, _)| key < other) => {
                    self.add(key, Found::LeftOnly(data));
                    l = left.next();
                }
                (_, Some((key, data))) => {
                    self.add(key, Found::RightOnly(data));
                    r = right.next();
                }
                (_, None) => return,
            }
        }
    }

    /// Adds the next block.
    fn add(&mut self, block: u64, found: Found) {
        if let Some(last) = &mut self.last {
            if last.goes_on(block, found, self.join) {
                last.blocks = last.blocks.saturating_add(1);
                return;
            }
            self.ready.push_back(*last);
        }
        self.last = Some(Run { begin: VirtualBlock(block), blocks: 1, found });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn runs_end_where_they_must() {
        let of = |join| {
            let mut joined = Joined { join, same: true, last: None, ready: VecDeque::new() };
            let same = |block, data| (block, Found::Same(DataBlock(data)));
            let found = [same(3, 7), same(4, 8), same(5, 10), same(7, 12), (8, Found::LeftOnly(DataBlock(13)))];
            found.into_iter().for_each(|(block, found)| joined.add(block, found));
            joined.ready.iter().chain(&joined.last).map(|run| (run.begin.0, run.blocks)).collect::<Vec<_>>()
        };
        assert_eq!(of(Join::WhereBlocksGoOn), [(3, 3), (7, 1), (8, 1)]);
        assert_eq!(of(Join::WhereDataGoesOn), [(3, 2), (5, 1), (7, 1), (8, 1)]);
    }

    #[test]
    fn what_differs_goes_on_where_both_sides_do() {
        let of = |join| {
            let mut joined = Joined { join, same: true, last: None, ready: VecDeque::new() };
            // The data of both goes on, of the left, of the right, of none.
            let data = [(10, 20), (11, 21), (12, 30), (20, 31), (30, 40)];
            for (block, (left, right)) in (5..).zip(data) {
                joined.add(block, Found::Different { left: DataBlock(left), right: DataBlock(right) });
            }
            joined.ready.iter().chain(&joined.last).map(|run| (run.begin.0, run.blocks)).collect::<Vec<_>>()
        };
        assert_eq!(of(Join::WhereBlocksGoOn), [(5, 5)]);
        assert_eq!(of(Join::WhereDataGoesOn), [(5, 2), (7, 1), (8, 1), (9, 1)]);
    }
}
