//! Moments as people write them, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn date(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// As RFC 3339 writes it: `2026-11-29T10:00:00Z`.
pub fn rfc3339(seconds: i64) -> String {
    let t = date(seconds);
    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", t.hour(), t.minute(), t.second())
}

/// As a part of a name: `20261129-100000`.
pub fn compact(seconds: i64) -> String {
    let t = date(seconds);
    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", t.hour(), t.minute(), t.second())
}

/// A stretch of the calendar. Two moments with the same number are in the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week, which begins on Monday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// The number of the period that this moment is in.
    pub fn of(self, seconds: i64) -> i64 {
        let t = date(seconds);
        match self {
            Period::Hour => seconds.div_euclid(3600),
            Period::Day => seconds.div_euclid(86400),
            // 1970 began on a Thursday.
            Period::Week => seconds.div_euclid(86400).saturating_add(3).div_euclid(7),
            Period::Month => i64::from(t.year()) * 12 + i64::from(u8::from(t.month())),
            Period::Year => i64::from(t.year()),
        }
    }
}
