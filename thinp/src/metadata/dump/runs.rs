//! Which leaves several devices share.
//!
//! A *run* is a maximal sequence of leaves that follow each other in every device that has any of them. A run that more than one
//! device has is written once.

use alloc::vec::Vec;
use hashbrown::HashMap;

/// Neighbours differ from device to device.
const MANY: u64 = u64::MAX;

/// Stands for the end of a device: no leaf is in block 0.
const END: u64 = 0;

/// What comes before and behind a leaf.
#[derive(Clone, Copy)]
struct Links {
    before: u64,
    behind: u64,
    shared: bool,
}

/// All leaves that were seen.
#[derive(Default)]
pub struct Runs {
    links: HashMap<u64, Links>,
    /// The last two leaves of the device being added.
    last: (u64, u64),
}

/// A run of leaves.
#[derive(Clone, Copy)]
pub struct Run {
    /// Its first leaf, which names it.
    pub first: u64,
}

impl Runs {
    /// The device's next leaf.
    pub fn add(&mut self, leaf: u64) {
        let (before, current) = self.last;
        self.link(before, current, leaf);
        self.last = (current, leaf);
    }

    /// The device has no more leaves; what comes next is another's.
    pub fn end_device(&mut self) {
        self.add(END);
    }

    fn link(&mut self, before: u64, leaf: u64, behind: u64) {
        if leaf == END {
            return;
        }
        let new = Links { before, behind, shared: false };
        self.links
            .entry(leaf)
            .and_modify(|links| {
                links.shared = true;
                links.before = if links.before == before { before } else { MANY };
                links.behind = if links.behind == behind { behind } else { MANY };
            })
            .or_insert(new);
    }

    /// More than one device has the leaf.
    pub fn is_shared(&self, leaf: u64) -> bool {
        self.links.get(&leaf).is_some_and(|links| links.shared)
    }

    /// A run starts with this leaf.
    pub fn is_first(&self, leaf: u64) -> bool {
        self.links.get(&leaf).is_none_or(|links| self.behind(links.before) != Some(leaf))
    }

    /// The leaf that always follows this one, and never another.
    fn behind(&self, leaf: u64) -> Option<u64> {
        let behind = self.links.get(&leaf)?.behind;
        self.links.get(&behind).filter(|next| next.before == leaf).map(|_| behind)
    }

    /// The runs that more than one device has, by their first leaves' places on disk.
    pub fn shared(&self) -> Vec<Run> {
        let shared = self.links.iter().filter(|(leaf, links)| links.shared && self.is_first(**leaf));
        let mut firsts: Vec<Run> = shared.map(|(first, _)| Run { first: *first }).collect();
        firsts.sort_unstable_by_key(|run| run.first);
        firsts
    }

    /// The leaves of a run in order.
    pub fn leaves(&self, run: Run) -> impl Iterator<Item = u64> {
        // No leaf comes twice in a sound device; of one that is not, some are left out rather than written for ever.
        let most = self.links.len();
        core::iter::successors(Some(run.first), |leaf| self.behind(*leaf)).take(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn runs(devices: &[&[u64]]) -> Vec<Vec<u64>> {
        let mut runs = Runs::default();
        for device in devices {
            device.iter().for_each(|leaf| runs.add(*leaf));
            runs.end_device();
        }
        runs.shared().into_iter().map(|run| runs.leaves(run).collect()).collect()
    }

    #[test]
    fn a_run_ends_where_any_device_goes_on_elsewhere() {
        assert_eq!(runs(&[&[5, 4, 6]]), Vec::<Vec<u64>>::new());
        assert_eq!(runs(&[&[5, 4, 6], &[5, 4, 6]]), [[5, 4, 6]]);
        assert_eq!(runs(&[&[5, 4, 6], &[5, 4, 7]]), [[5, 4]]);
        assert_eq!(runs(&[&[5, 4, 6], &[5, 4, 6], &[5, 4, 7]]), [vec![5, 4], vec![6]]);
        assert_eq!(runs(&[&[5, 4, 6], &[5, 4, 6], &[4, 6]]), [vec![4, 6], vec![5]]);
        assert_eq!(runs(&[&[5, 4, 6, 9], &[8, 4, 6, 7]]), [[4, 6]]);
    }
}
