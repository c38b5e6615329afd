//! When a policy takes snapshots, and which it keeps: arithmetic of times, without a clock.

use crate::utc::DAY;
use alloc::collections::BTreeSet;
use minicbor::{Decode, Encode};

const HOUR: u64 = 3600;

/// 1970-01-01 was a Thursday: weeks, which begin on Monday, are counted from three days before.
const DAYS_TO_MONDAY: u64 = 3;

/// When snapshots are taken, and how many of each kind are kept; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Schedule {
    /// Minutes from one to the next, from the full hour on.
    #[n(0)]
    pub every_minutes: u32,
    /// The latest so many of these are kept.
    #[n(1)]
    pub keep: u32,
    /// One is kept for each of so many hours.
    #[n(2)]
    pub hourly: u32,
    /// One is kept for each of so many days, of UTC.
    #[n(3)]
    pub daily: u32,
    /// One is kept for each of so many weeks, which begin on Monday.
    #[n(4)]
    pub weekly: u32,
}

/// The number of the hour, day or week in which a time lies.
fn hour(time: u64) -> u64 {
    time / HOUR
}

fn day(time: u64) -> u64 {
    time / DAY
}

fn week(time: u64) -> u64 {
    (time / DAY).saturating_add(DAYS_TO_MONDAY) / 7
}

impl Schedule {
    /// Seconds of the shortest of its periods; none if it has none.
    fn period(&self) -> Option<u64> {
        let periods = [(self.keep, u64::from(self.every_minutes) * 60), (self.hourly, HOUR), (self.daily, DAY)];
        let shortest = periods.into_iter().filter(|(keep, seconds)| *keep > 0 && *seconds > 0).map(|(_, s)| s).min();
        shortest.or((self.weekly > 0).then_some(7 * DAY))
    }

    /// The latest time not after `now` at which one is due.
    pub(super) fn latest(&self, now: u64) -> Option<u64> {
        let offset = if self.period()? == 7 * DAY { DAYS_TO_MONDAY * DAY } else { 0 };
        let period = self.period()?;
        Some((now.saturating_add(offset) / period * period).saturating_sub(offset))
    }

    /// The first time after `now` at which one is due.
    pub(super) fn next(&self, now: u64) -> Option<u64> {
        Some(self.latest(now)?.saturating_add(self.period()?))
    }

    /// One is due: one was since the last was taken. A clock that was set back by more than a period begins anew.
    pub(super) fn is_due(&self, last: u64, now: u64) -> bool {
        let due = self.latest(now).is_some_and(|latest| latest > last);
        due || self.period().is_some_and(|period| last > now.saturating_add(period))
    }

    /// Which of the times are kept; the rest has had its time. The first of each period stands for it. What was just
    /// taken stays, and what is still to come, too, which takes no place: the clock was ahead, or is behind now.
    pub(super) fn kept(&self, times: &BTreeSet<u64>, now: u64) -> BTreeSet<u64> {
        let every = u64::from(self.every_minutes).saturating_mul(60).max(1);
        let mut kept: BTreeSet<u64> = times.range(now..).copied().collect();
        let mut keep = |most: u32, period: fn(u64) -> u64, divided: u64| {
            let number = |time: u64| period(time / divided);
            let numbers: BTreeSet<u64> = times.range(..=now).map(|time| number(*time)).collect();
            for wanted in numbers.into_iter().rev().take(most as usize) {
                kept.extend(times.iter().find(|time| number(**time) == wanted));
            }
        };
        keep(self.keep, |number| number, every);
        keep(self.hourly, hour, 1);
        keep(self.daily, day, 1);
        keep(self.weekly, week, 1);
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// 2026-11-30 00:00:00 UTC, a Monday.
    const MONDAY: u64 = 1_795_996_800;

    #[test]
    fn the_shortest_period_decides_when() {
        let quarter = Schedule { every_minutes: 15, keep: 4, daily: 2, ..Schedule::default() };
        assert_eq!(quarter.latest(MONDAY + 899), Some(MONDAY));
        assert_eq!(quarter.next(MONDAY + 899), Some(MONDAY + 900));
        assert_eq!(quarter.next(MONDAY), Some(MONDAY + 900));
        let weekly = Schedule { weekly: 1, ..Schedule::default() };
        assert_eq!(weekly.latest(MONDAY - 1), Some(MONDAY - 7 * DAY));
        assert_eq!(weekly.latest(MONDAY), Some(MONDAY));
        assert_eq!(Schedule::default().next(MONDAY), None);
    }

    #[test]
    fn what_was_missed_is_due_once() {
        let hourly = Schedule { hourly: 3, ..Schedule::default() };
        assert!(!hourly.is_due(MONDAY, MONDAY + 3599));
        assert!(hourly.is_due(MONDAY, MONDAY + 3600));
        let late = MONDAY + 50 * 3600 + 17;
        assert!(hourly.is_due(MONDAY, late) && !hourly.is_due(late, late + 60));
        assert!(!hourly.is_due(MONDAY + 1800, MONDAY), "set back a little");
        assert!(hourly.is_due(MONDAY + 900 * DAY, MONDAY), "it was years ahead");
    }

    #[test]
    fn each_period_keeps_its_first() {
        let schedule = Schedule { every_minutes: 15, keep: 3, hourly: 2, daily: 2, weekly: 2 };
        // Nine days of quarters, the last at MONDAY + 9 days.
        let times: BTreeSet<u64> = (0..=9 * 96).map(|n| MONDAY + n * 900).collect();
        let now = MONDAY + 9 * DAY;
        let kept: Vec<u64> = schedule.kept(&times, now).into_iter().map(|time| (time - MONDAY) / 900).collect();
        let of_days = |days: u64| days * 96;
        // Weeks: of MONDAY and a week later; days 8 and 9; hours: the last of day 8 and the first of day 9; three quarters.
        let expected = [0, of_days(7), of_days(8), of_days(9) - 4, of_days(9) - 2, of_days(9) - 1, of_days(9)];
        assert_eq!(kept, expected);
        assert_eq!(Schedule { every_minutes: 15, ..Schedule::default() }.kept(&times, now + 1), BTreeSet::new());
    }

    #[test]
    fn times_to_come_take_no_places_and_what_was_just_taken_stays() {
        let schedule = Schedule { every_minutes: 15, keep: 2, ..Schedule::default() };
        let kept = |times: &[u64]| {
            let times = times.iter().map(|minute| MONDAY + minute * 60).collect();
            let kept = schedule.kept(&times, MONDAY + 47 * 60);
            kept.into_iter().map(|time| (time - MONDAY) / 60).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[0, 15, 30, 47, 60, 1000, 1015]), [30, 47, 60, 1000, 1015]);
        assert_eq!(kept(&[15, 30, 45, 47, 48]), [30, 45, 47, 48], "set back, and one was taken in this period before");
    }
}
