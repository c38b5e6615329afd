//! The Gregorian calendar.

/// Days from 0000-03-01, from which years are counted so that the leap day comes last, to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;

/// Days of 400 years.
const DAYS_IN_ERA: u64 = 146_097;

/// Days from 1970-01-01 to a date; `None` before that, and for years beyond all reason. Whether there is such a day is not asked.
pub fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day.checked_sub(1)?;
    days.checked_sub(DAYS_TO_1970)
}

/// Year, month and day.
pub fn date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970.saturating_add(DAYS_TO_1970);
    let (era, day_of_era) = (days / DAYS_IN_ERA, days % DAYS_IN_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = (if month < 10 { month + 3 } else { month - 9 }, era * 400 + year_of_era);
    (year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates_and_days_again() {
        for (days, date) in
            [(0, (1970, 1, 1)), (11_016, (2000, 2, 29)), (20_779, (2026, 11, 22)), (47_541, (2100, 3, 1))]
        {
            assert_eq!(super::date(days), date);
        }
        for days in 0..60_000 {
            let (year, month, day) = date(days);
            assert_eq!(days_since_1970(year, month, day), Some(days));
        }
        assert_eq!(days_since_1970(1969, 12, 31), None);
    }
}
