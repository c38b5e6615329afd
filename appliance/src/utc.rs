//! Unix time as it stands in names of snapshots, and on the command line: `20261129t101500z`.

use alloc::format;
use alloc::string::String;
use platform::calendar::{date, days_since_1970};

/// Bytes of a time in a name.
pub(crate) const LEN: usize = 16;

/// Seconds of a day.
pub(crate) const DAY: u64 = 86_400;

/// The time, in UTC. Only for years of four digits.
pub(crate) fn format(unix_seconds: u64) -> String {
    let (year, month, day) = date(unix_seconds / DAY);
    let second = unix_seconds % DAY;
    format!("{year:04}{month:02}{day:02}t{:02}{:02}{:02}z", second / 3600, second / 60 % 60, second % 60)
}

/// The time that [`format`] wrote.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse::<u64>().ok()
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let seconds = days_since_1970(year, month, day)? * DAY + hour * 3600 + minute * 60 + second;
    (format(seconds) == text).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        for (seconds, text) in [
            (0, "19700101t000000z"),
            (951_782_399, "20000228t235959z"),
            (951_782_400, "20000229t000000z"),
            (1_795_343_339, "20261122t102859z"),
            (4_107_542_400, "21000301t000000z"),
        ] {
            assert_eq!((format(seconds).as_str(), parse(text)), (text, Some(seconds)));
        }
        for day in 0..60_000 {
            assert_eq!(parse(&format(day * DAY + day)), Some(day * DAY + day));
        }
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "20261122",
            "20261122t102859",
            "20261122t102859Z",
            "20260230t000000z",
            "20261322t102859z",
            "20261122t242859z",
            "20261122t106059z",
            "+0261122t102859z",
            "20261122t102859zz",
            "19691231t235959z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
