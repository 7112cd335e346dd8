//! The ticks of a schedule between its start and its end.

use crate::Expression;
use crate::Seconds;
use crate::Zone;

/// Ticks that are counted one by one when a schedule has to catch up.
const COUNTED: usize = 1_000;

/// When a schedule ticks.
#[derive(Clone, Debug)]
pub struct Plan<Z> {
    /// How often.
    pub expression: Expression,
    /// Whose clocks.
    pub zone: Z,
    /// No tick is before this moment, and `every` counts from it.
    pub starts_at: Option<Seconds>,
    /// All ticks are before this moment.
    pub ends_at: Option<Seconds>,
}

/// What has come due.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Due {
    /// The last ones, in their order, as many as were asked for.
    pub ticks: Vec<Seconds>,
    /// How many there are in all; counted up to a thousand.
    pub count: u64,
    /// The first one that is not due.
    pub next: Option<Seconds>,
}

impl<Z: Zone> Plan<Z> {
    /// The first tick after a moment.
    pub fn next(&self, after: Seconds) -> Option<Seconds> {
        let after = self.starts_at.map_or(after, |start| after.max(start - 1));
        let next = self.expression.next(after, &self.zone, self.starts_at.unwrap_or(0))?;
        self.ends_at.is_none_or(|end| next < end).then_some(next)
    }

    /// What is due at a moment, from the tick `first` on: its last `limit` ticks.
    ///
    /// However long the time since `first`, and since the end of the schedule, this looks at some thousand ticks for each doubling of that time.
    pub fn due(&self, first: Seconds, now: Seconds, limit: usize) -> Due {
        if first > now {
            return Due { ticks: Vec::new(), count: 0, next: Some(first) };
        }
        let mut ticks = vec![first];
        let mut next = self.next(first);
        while let Some(tick) = next.filter(|&tick| tick <= now && ticks.len() < COUNTED) {
            ticks.push(tick);
            next = self.next(tick);
        }
        let count = ticks.len() as u64;
        if next.is_some_and(|tick| tick <= now) {
            // Too many: the last ones are looked for from the end.
            (ticks, next) = self.last_ticks(first, now, limit);
        }
        ticks.drain(..ticks.len().saturating_sub(limit));
        Due { ticks, count, next }
    }
}

impl<Z: Zone> Plan<Z> {
    /// At least the last `limit` ticks from `first` to `now`, if there are so many, and the tick after `now`. Between the two moments lie more than a
    /// thousand.
    fn last_ticks(&self, first: Seconds, now: Seconds, limit: usize) -> (Vec<Seconds>, Option<Seconds>) {
        let last = self.ends_at.map_or(now, |end| now.min(end - 1));
        let most = limit + COUNTED;
        // From `few` on there are too few; from `many` on, once it is known, more than can be looked at.
        let (mut few, mut many) = (last, None);
        let mut back = 60;
        loop {
            let from = many.map_or((last - back).max(first - 1), |many: Seconds| many.midpoint(few));
            let mut ticks = Vec::new();
            let mut next = self.next(from);
            while let Some(tick) = next.filter(|&tick| tick <= last && ticks.len() < most) {
                ticks.push(tick);
                next = self.next(tick);
            }
            if next.is_some_and(|tick| tick <= last) {
                // A second has one tick at most, so that the moments do not meet before there are few enough.
                many = Some(from);
            } else if ticks.len() >= limit || from < first {
                return (ticks, next);
            } else {
                few = from;
                back *= 2;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Utc;
    use crate::zone::tests::at;

    fn plan(text: &str) -> Plan<Utc> {
        Plan { expression: Expression::parse(text).expect(text), zone: Utc, starts_at: None, ends_at: None }
    }

    #[test]
    fn a_start_belongs_to_it_and_an_end_does_not() {
        let day = at("2026-01-01T00:00:00Z");
        let plan = Plan { starts_at: Some(day), ends_at: Some(day + 7_200), ..plan("@hourly") };
        assert_eq!(plan.next(0), Some(day));
        assert_eq!(plan.next(day), Some(day + 3_600));
        assert_eq!(plan.next(day + 3_600), None);
        let plan = Plan { starts_at: Some(7), ..self::plan("every 10 s") };
        assert_eq!((plan.next(0), plan.next(7)), (Some(7), Some(17)));
    }

    #[test]
    fn what_is_due_is_counted_and_only_its_end_is_kept() {
        let plan = plan("every 10 s");
        assert_eq!(plan.due(100, 99, 3), Due { ticks: vec![], count: 0, next: Some(100) });
        assert_eq!(plan.due(100, 100, 3), Due { ticks: vec![100], count: 1, next: Some(110) });
        assert_eq!(plan.due(100, 149, 3), Due { ticks: vec![120, 130, 140], count: 5, next: Some(150) });
        let year = 100 + 365 * 86_400;
        let due = plan.due(100, year, 2);
        assert_eq!(due, Due { ticks: vec![year - 10, year], count: 1_000, next: Some(year + 10) });
    }

    #[test]
    fn a_schedule_that_is_over_has_its_last_ticks_and_no_next() {
        let plan = Plan { ends_at: Some(50_000), ..plan("every 10 s") };
        let due = plan.due(100, 1_000_000, 2);
        assert_eq!(due, Due { ticks: vec![49_980, 49_990], count: 1_000, next: None });
    }

    /// A clock that counts how often it is asked.
    #[derive(Clone, Default)]
    struct Counting(std::rc::Rc<std::cell::Cell<usize>>);

    impl Zone for Counting {
        fn offset(&self, at: Seconds) -> Seconds {
            self.0.set(self.0.get() + 1);
            Utc.offset(at)
        }

        fn next_change(&self, after: Seconds) -> Option<Seconds> {
            Utc.next_change(after)
        }
    }

    #[test]
    fn however_old_a_schedule_is_and_however_long_it_is_over_few_ticks_are_looked_at() {
        let century = at("1900-01-01T00:00:00Z");
        let now = at("2026-01-01T00:00:00Z");
        for (cron, ends_at, last) in [
            ("* * * * * *", Some("1901-01-01T00:00:00Z"), "1900-12-31T23:59:59Z"),
            ("* * * * * *", Some("1900-01-01T01:00:00Z"), "1900-01-01T00:59:59Z"),
            ("* * * * * *", None, "2026-01-01T00:00:00Z"),
            // Many at once, then none for most of a year.
            ("* * * * 1 *", Some("1999-12-01T00:00:00Z"), "1999-01-31T23:59:59Z"),
        ] {
            let zone = Counting::default();
            let plan = Plan {
                expression: Expression::parse(cron).expect(cron),
                zone: zone.clone(),
                starts_at: None,
                ends_at: ends_at.map(at),
            };
            let due = plan.due(century, now, 1_000);
            assert_eq!(
                (due.count, due.ticks.len(), due.ticks.last()),
                (1_000, 1_000, Some(&at(last))),
                "{cron} {ends_at:?}"
            );
            assert!(due.ticks.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{cron} {ends_at:?}");
            assert_eq!(due.next, ends_at.is_none().then_some(now + 1));
            let asked = zone.0.get();
            assert!(asked < 1_000_000, "{cron} {ends_at:?}: asked {asked} times");
        }
    }

    proptest! {
        #[test]
        fn no_tick_is_left_out_or_comes_twice_whenever_one_looks(
            period in 1..40_i64,
            looks in prop::collection::vec(0..100_i64, 1..20),
        ) {
            let plan = plan(&format!("every {period} s"));
            let (mut now, mut next, mut found) = (0, plan.next(0), Vec::new());
            for pause in looks {
                now += pause;
                let due = plan.due(next.expect("it never ends"), now, 1_000);
                prop_assert_eq!(due.count as usize, due.ticks.len());
                found.extend(due.ticks);
                next = due.next;
            }
            let expected: Vec<Seconds> = (1..).map(|n| n * period).take_while(|&at| at <= now).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn the_long_way_and_the_short_way_agree(period in 1..500_i64, ticks in 1_000..5_000_i64, limit in 1..1_000_usize) {
            let plan = plan(&format!("every {period} s"));
            let now = period * ticks + period / 2;
            let due = plan.due(period, now, limit);
            let expected: Vec<Seconds> = (ticks - limit as i64 + 1..=ticks).map(|n| n * period).collect();
            prop_assert_eq!(due.ticks, expected);
            prop_assert_eq!(due.next, Some((ticks + 1) * period));
        }
    }
}
