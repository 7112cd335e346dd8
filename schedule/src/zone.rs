//! What the clocks of a place show.

use crate::Seconds;

/// A time zone.
pub trait Zone {
    /// Seconds that the clocks are ahead of UTC at a moment.
    fn offset(&self, at: Seconds) -> i64;

    /// The next moment after this one at which the clocks change; a change that leaves the offset as it is does no harm.
    fn next_change(&self, after: Seconds) -> Option<Seconds>;
}

/// The zone in which nothing ever changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Utc;

impl Zone for Utc {
    fn offset(&self, _at: Seconds) -> i64 {
        0
    }

    fn next_change(&self, _after: Seconds) -> Option<Seconds> {
        None
    }
}

/// No offset is larger than this, so that the offsets a day before and after a moment are those around it.
const DAY: i64 = 86_400;

/// The moment at which the clocks show `local`: the first one if they show it twice, and the end of the gap if they never do.
pub(crate) fn first_moment(zone: &impl Zone, local: i64) -> Seconds {
    let (before, after) = (zone.offset(local - DAY), zone.offset(local + DAY));
    let shown =
        [before, after].into_iter().map(|offset| local - offset).filter(|&at| at + zone.offset(at) == local);
    shown.min().unwrap_or_else(|| {
        // The clocks were set forward over it, after the moment that it would be by the later offset.
        let early = local - before.max(after);
        zone.next_change(early).unwrap_or(early)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use chrono::DateTime;
    use chrono::Offset;
    use chrono::TimeZone;
    use chrono_tz::Tz;

    use super::*;

    impl Zone for Tz {
        fn offset(&self, at: Seconds) -> i64 {
            let at = DateTime::from_timestamp(at, 0).unwrap_or_default().naive_utc();
            i64::from(self.offset_from_utc_datetime(&at).fix().local_minus_utc())
        }

        fn next_change(&self, after: Seconds) -> Option<Seconds> {
            let was = Zone::offset(self, after);
            // Hour by hour for three years, then second by second.
            let hour = (1..26_400).find(|hour| Zone::offset(self, after + hour * 3_600) != was)?;
            (after + (hour - 1) * 3_600 + 1..=after + hour * 3_600).find(|&at| Zone::offset(self, at) != was)
        }
    }

    /// A moment as RFC 3339 writes it.
    pub fn at(text: &str) -> Seconds {
        DateTime::parse_from_rfc3339(text).expect("a moment").timestamp()
    }

    #[test]
    fn what_clocks_show_once_twice_or_never_has_its_first_moment() {
        let berlin = chrono_tz::Europe::Berlin;
        let local = |text: &str| at(&format!("{text}Z"));
        for (shown, moment) in [
            ("2026-01-01T12:00:00", "2026-01-01T12:00:00+01:00"),
            ("2026-07-01T12:00:00", "2026-07-01T12:00:00+02:00"),
            // Forward at two, back at three.
            ("2026-03-29T01:59:59", "2026-03-29T01:59:59+01:00"),
            ("2026-03-29T02:00:00", "2026-03-29T03:00:00+02:00"),
            ("2026-03-29T02:30:00", "2026-03-29T03:00:00+02:00"),
            ("2026-03-29T03:00:00", "2026-03-29T03:00:00+02:00"),
            ("2026-10-25T01:59:59", "2026-10-25T01:59:59+02:00"),
            ("2026-10-25T02:30:00", "2026-10-25T02:30:00+02:00"),
            ("2026-10-25T03:00:00", "2026-10-25T03:00:00+01:00"),
        ] {
            assert_eq!(first_moment(&berlin, local(shown)), at(moment), "{shown}");
        }
        // A whole day that there was not.
        let apia = chrono_tz::Pacific::Apia;
        assert_eq!(first_moment(&apia, local("2011-12-30T12:00:00")), at("2011-12-31T00:00:00+14:00"));
        // Half an hour.
        let lord_howe = chrono_tz::Australia::Lord_Howe;
        assert_eq!(first_moment(&lord_howe, local("2026-10-04T02:15:00")), at("2026-10-04T02:30:00+11:00"));
    }
}
