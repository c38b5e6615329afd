//! What became of a nexus's copies, by list id: RECEIVE COPY STATUS (LID1) and RECEIVE COPY FAILURE DETAILS (LID1) (SPC-4
//! sections 6.20 and 6.22). Kept in memory as long as the session lives, the last few of them.

use super::limits::RESULTS_MAX;
use crate::scsi::{CHECK_CONDITION, Failure, Status};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;

/// The copies of a nexus.
#[derive(Default)]
pub struct Results(RefCell<VecDeque<Copy>>);

struct Copy {
    list_id: u8,
    /// `None` while it runs.
    outcome: Option<Outcome>,
    segments: u16,
    bytes: u64,
}

enum Outcome {
    Done,
    /// Status and sense data of the command.
    Failed(u8, Vec<u8>),
}

impl Results {
    /// Notes that a copy begins. The result of an earlier one of that id is forgotten. False if one of that id is
    /// running, or as many as can be kept.
    pub fn begin(&self, list_id: u8) -> bool {
        let mut copies = self.0.borrow_mut();
        if copies.iter().any(|copy| copy.list_id == list_id && copy.outcome.is_none()) {
            return false;
        }
        copies.retain(|copy| copy.list_id != list_id);
        if copies.len() >= usize::from(RESULTS_MAX) {
            let Some(oldest) = copies.iter().position(|copy| copy.outcome.is_some()) else { return false };
            copies.remove(oldest);
        }
        copies.push_back(Copy { list_id, outcome: None, segments: 0, bytes: 0 });
        true
    }

    /// A segment was copied.
    pub fn segment_done(&self, list_id: u8, bytes: u64) {
        self.change(list_id, |copy| {
            copy.segments = copy.segments.saturating_add(1);
            copy.bytes = copy.bytes.saturating_add(bytes);
        });
    }

    /// The copy has ended.
    pub fn end(&self, list_id: u8, result: &Result<(), Failure>) {
        self.change(list_id, |copy| {
            copy.outcome = Some(match result {
                Ok(()) => Outcome::Done,
                Err(Failure::Check(sense)) => Outcome::Failed(CHECK_CONDITION, sense.encode(false)),
                Err(Failure::Status(status)) => Outcome::Failed(*status as u8, Vec::new()),
                Err(Failure::Aborted) => Outcome::Failed(Status::TaskAborted as u8, Vec::new()),
            });
        });
    }

    fn change(&self, list_id: u8, change: impl FnMut(&mut Copy)) {
        self.0.borrow_mut().iter_mut().filter(|copy| copy.list_id == list_id).for_each(change);
    }

    /// COPY STATUS; `None` if nothing is known of such a copy.
    pub fn status(&self, list_id: u8) -> Option<Vec<u8>> {
        let copies = self.0.borrow();
        let copy = copies.iter().find(|copy| copy.list_id == list_id)?;
        let status = match copy.outcome {
            None => 0,
            Some(Outcome::Done) => 1,
            Some(Outcome::Failed(..)) => 2,
        };
        let (units, count) = transfer_count(copy.bytes);
        let [a, b] = copy.segments.to_be_bytes();
        let mut data = alloc::vec![0, 0, 0, 8, status, a, b, units];
        data.extend(count.to_be_bytes());
        Some(data)
    }

    /// FAILED SEGMENT DETAILS; `None` if nothing is known of such a copy that failed.
    pub fn failure(&self, list_id: u8) -> Option<Vec<u8>> {
        let copies = self.0.borrow();
        let copy = copies.iter().find(|copy| copy.list_id == list_id)?;
        let Some(Outcome::Failed(status, sense)) = &copy.outcome else { return None };
        let mut data = alloc::vec![0; 56];
        data.extend([*status, 0]);
        data.extend((sense.len() as u16).to_be_bytes());
        data.extend(sense);
        let available = data.len() as u32 - 4;
        data.splice(..4, available.to_be_bytes());
        Some(data)
    }
}

/// Bytes as a count of 32 bits in units of 2^0, 2^10, 2^20, or 2^30 bytes.
fn transfer_count(bytes: u64) -> (u8, u32) {
    for (code, shift) in [(0, 0), (1, 10), (2, 20)] {
        if let Ok(count) = u32::try_from(bytes >> shift) {
            return (code, count);
        }
    }
    (3, u32::try_from(bytes >> 30).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::sense::Sense;

    #[test]
    fn a_copy_is_in_progress_and_then_done() {
        let results = Results::default();
        assert_eq!(results.status(4), None);
        assert!(results.begin(4));
        assert!(!results.begin(4), "it runs");
        results.segment_done(4, 512);
        assert_eq!(results.status(4).unwrap(), [0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 2, 0]);
        results.end(4, &Ok(()));
        assert_eq!(results.status(4).unwrap()[4..8], [1, 0, 1, 0]);
        assert_eq!(results.failure(4), None);
        assert!(results.begin(4), "the id is free again");
    }

    #[test]
    fn why_a_copy_failed() {
        let results = Results::default();
        results.begin(9);
        results.end(9, &Err(Sense::COPY_TARGET_NOT_REACHABLE.into()));
        assert_eq!(results.status(9).unwrap()[4], 2);
        let details = results.failure(9).unwrap();
        assert_eq!(details[..4], (details.len() as u32 - 4).to_be_bytes());
        assert_eq!(details[56..60], [CHECK_CONDITION, 0, 0, 18]);
        assert_eq!([details[62], details[72], details[73]], [0x0a, 0x0d, 0x02]);
    }

    #[test]
    fn as_many_as_are_told_are_kept() {
        let results = Results::default();
        for id in 0..RESULTS_MAX {
            assert!(results.begin(id));
        }
        assert!(!results.begin(100), "all run");
        results.end(3, &Ok(()));
        assert!(results.begin(100));
        assert_eq!((results.status(3), results.status(0).is_some()), (None, true));
    }

    #[test]
    fn bytes_are_counted_in_units_that_fit() {
        assert_eq!(transfer_count(u64::from(u32::MAX)), (0, u32::MAX));
        assert_eq!(transfer_count(1 << 32), (1, 1 << 22));
        assert_eq!(transfer_count(u64::MAX), (3, u32::MAX));
    }
}
