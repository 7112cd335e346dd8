//! How often: a cron expression, or `every 90 seconds`.

use chrono::DateTime;
use croner::Cron;
use croner::parser::CronParser;
use croner::parser::Year;

use crate::Seconds;
use crate::Zone;
use crate::zone::first_moment;

/// An expression has at most so many bytes.
pub const MAX_LEN: usize = 256;

/// The longest time between two ticks of `every`: ten years.
const MAX_PERIOD: i64 = 3_660 * 86_400;

const NICKNAMES: [&str; 6] = ["@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@annually"];

/// How often a schedule ticks.
#[derive(Clone, Debug)]
pub struct Expression(Form);

#[derive(Clone, Debug)]
enum Form {
    /// Seconds between two ticks.
    Every(i64),
    Cron {
        cron: Box<Cron>,
        /// Seconds, minutes or hours are `*`: it follows the time that passes, not what the clocks show.
        follows_time: bool,
    },
}

/// Why an expression is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BadExpression(String);

impl Expression {
    /// Reads an expression: five fields (minute, hour, day of the month, month, day of the week), six with seconds before them, one of
    /// `@hourly @daily @weekly @monthly @yearly`, or `every` with times such as `90 seconds`, `1 hour 30 minutes`, `15m`.
    ///
    /// # Errors
    /// When it is none, or when no moment ever fits it.
    pub fn parse(text: &str) -> Result<Self, BadExpression> {
        if text.len() > MAX_LEN {
            return Err(BadExpression(format!("it has {} bytes, more than {MAX_LEN}", text.len())));
        }
        let text = text.trim();
        if let Some(times) =
            text.get(..5).filter(|word| word.eq_ignore_ascii_case("every")).map(|_| &text[5..])
        {
            return period(times).map(|period| Self(Form::Every(period)));
        }
        if !text.is_ascii() {
            return Err(BadExpression("it has characters that no field can have".into()));
        }
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let count = fields.len();
        let is_nickname = NICKNAMES.iter().any(|name| name.eq_ignore_ascii_case(text));
        if text.starts_with('@') && !is_nickname {
            return Err(BadExpression(format!("\"{text}\" is none of {}", NICKNAMES.join(", "))));
        }
        if !(count == 5 || count == 6 || is_nickname) {
            return Err(BadExpression(format!("it has {count} fields instead of 5 or 6")));
        }
        let parser = CronParser::builder().year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| {
            let field = (0..count).find_map(|field| bad_field(&parser, &fields, field));
            field.unwrap_or_else(|| BadExpression(reason(&error)))
        })?;
        let pattern = cron.pattern.as_str().to_owned();
        let fields: Vec<&str> = pattern.split_ascii_whitespace().collect();
        let of_the_day = &fields[..fields.len().saturating_sub(3)];
        let follows_time = of_the_day.iter().any(|field| field.contains('*'));
        let expression = Self(Form::Cron { cron: Box::new(cron), follows_time });
        // Fits the 29th of February on each day of the week.
        if expression.local_match(0, true).is_none() {
            return Err(BadExpression("no day fits it".into()));
        }
        Ok(expression)
    }

    /// The first tick after a moment. Ticks of `every` are counted from `origin`.
    pub fn next(&self, after: Seconds, zone: &impl Zone, origin: Seconds) -> Option<Seconds> {
        match &self.0 {
            Form::Every(period) => {
                let past = after.checked_sub(origin)?.rem_euclid(*period);
                after.checked_add(period - past)
            }
            Form::Cron { follows_time: true, .. } => self.next_by_time(after, zone),
            Form::Cron { follows_time: false, .. } => self.next_by_clock(after, zone),
        }
    }

    /// Each moment at which the clocks show what fits: what they show twice counts twice, what they skip does not count.
    fn next_by_time(&self, after: Seconds, zone: &impl Zone) -> Option<Seconds> {
        let (mut from, mut inclusive) = (after, false);
        loop {
            let offset = zone.offset(from);
            let found = self.local_match(from + offset, inclusive)? - offset;
            match zone.next_change(from).filter(|&change| change > from) {
                // From the change on the clocks show something else.
                Some(change) if change <= found => (from, inclusive) = (change, true),
                _ => return Some(found),
            }
        }
    }

    /// Each time of the day that fits, once: the first of two, the end of a gap for those in it.
    fn next_by_clock(&self, after: Seconds, zone: &impl Zone) -> Option<Seconds> {
        let mut local = after + zone.offset(after);
        loop {
            local = self.local_match(local, false)?;
            let found = first_moment(zone, local);
            if found > after {
                return Some(found);
            }
        }
    }

    /// The first local time that fits, as seconds since the local 1970.
    fn local_match(&self, from: i64, inclusive: bool) -> Option<i64> {
        let Form::Cron { cron, .. } = &self.0 else { return None };
        let from = DateTime::from_timestamp(from, 0)?.naive_utc();
        let found = cron.find_next_occurrence(&from, inclusive).ok()?;
        Some(found.and_utc().timestamp())
    }
}

/// What is wrong with one of the fields, when it is wrong by itself.
fn bad_field(parser: &CronParser, fields: &[&str], index: usize) -> Option<BadExpression> {
    const NAMES: [&str; 6] =
        ["seconds", "minutes", "hours", "days of the month", "months", "days of the week"];
    let (name, field) = (NAMES.get(6_usize.checked_sub(fields.len())? + index)?, fields[index]);
    let mut alone = vec!["*"; fields.len()];
    alone[index] = field;
    let error = parser.parse(&alone.join(" ")).err()?;
    Some(BadExpression(format!("the {name} \"{field}\" are not understood: {}", reason(&error))))
}

/// What croner has against a pattern, without its own names for things.
fn reason(error: &croner::errors::CronError) -> String {
    use croner::errors::CronError;
    match error {
        CronError::InvalidPattern(text)
        | CronError::IllegalCharacters(text)
        | CronError::ComponentError(text) => text.trim_end_matches('.').replace("CronPattern", "it"),
        other => other.to_string().trim_end_matches('.').to_owned(),
    }
}

/// The seconds that `1 hour 30 minutes` are.
fn period(text: &str) -> Result<i64, BadExpression> {
    let bad = |what: String| Err(BadExpression(what));
    let mut rest = text.trim();
    if rest.is_empty() {
        return bad("\"every\" needs a time, such as 15 minutes".into());
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, after) = after.split_at(letters);
        let seconds = match unit.to_ascii_lowercase().as_str() {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ if digits == 0 => return bad(format!("\"{rest}\" does not begin with a number")),
            _ => {
                return bad(format!(
                    "\"{unit}\" is no unit of time: it takes seconds, minutes, hours, days, weeks"
                ));
            }
        };
        // "every day" is every 1 day.
        let Ok(number) = (if digits == 0 { Ok(1) } else { number.parse::<i64>() }) else {
            return bad(format!("\"{number}\" is no number of units"));
        };
        total = total.saturating_add(number.saturating_mul(seconds));
        rest = after.trim_start();
    }
    if (1..=MAX_PERIOD).contains(&total) {
        Ok(total)
    } else {
        bad("it must be between 1 second and 3660 days".into())
    }
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;
    use proptest::prelude::*;

    use super::*;
    use crate::Utc;
    use crate::zone::tests::at;

    fn ticks(text: &str, zone: &impl Zone, after: &str, count: usize) -> Vec<Seconds> {
        let expression = Expression::parse(text).expect(text);
        let next = |after: &Seconds| expression.next(*after, zone, 0);
        std::iter::successors(next(&at(after)), next).take(count).collect()
    }

    fn check(text: &str, zone: Tz, after: &str, expected: &[&str]) {
        let expected: Vec<Seconds> = expected.iter().map(|text| at(text)).collect();
        assert_eq!(ticks(text, &zone, after, expected.len()), expected, "{text} in {zone}");
    }

    const BERLIN: Tz = chrono_tz::Europe::Berlin;

    #[test]
    fn five_and_six_fields_and_nicknames() {
        let utc = chrono_tz::UTC;
        check("30 4 * * *", utc, "2026-01-01T04:30:00Z", &["2026-01-02T04:30:00Z", "2026-01-03T04:30:00Z"]);
        check(
            "*/20 * * * * *",
            utc,
            "2026-01-01T00:00:01Z",
            &["2026-01-01T00:00:20Z", "2026-01-01T00:00:40Z"],
        );
        check("0 9 * * mon-fri", utc, "2026-01-02T09:00:00Z", &["2026-01-05T09:00:00Z"]);
        check("0 0 13 * FRI", utc, "2026-01-01T00:00:00Z", &["2026-01-02T00:00:00Z"]);
        check("0 12 L * *", utc, "2026-02-01T00:00:00Z", &["2026-02-28T12:00:00Z", "2026-03-31T12:00:00Z"]);
        check("0 0 * * FRI#2", utc, "2026-01-01T00:00:00Z", &["2026-01-09T00:00:00Z"]);
        check("@hourly", utc, "2026-01-01T00:59:59Z", &["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"]);
        check("@monthly", utc, "2026-01-01T00:00:00Z", &["2026-02-01T00:00:00Z"]);
    }

    #[test]
    fn the_29th_of_february_comes_in_leap_years() {
        let expected = ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"];
        check("0 0 29 2 *", chrono_tz::UTC, "2026-01-01T00:00:00Z", &expected);
        check("0 0 29 2 *", chrono_tz::UTC, "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00Z"]);
        check(
            "0 0 L 2 *",
            chrono_tz::UTC,
            "2027-12-01T00:00:00Z",
            &["2028-02-29T00:00:00Z", "2029-02-28T00:00:00Z"],
        );
    }

    #[test]
    fn a_time_of_the_day_that_is_skipped_comes_at_the_end_of_the_gap_and_once() {
        check(
            "30 2 * * *",
            BERLIN,
            "2026-03-28T00:00:00Z",
            &["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        );
        // Three in the gap and one at its end are one tick.
        check(
            "0,20,40 2,3 * * *",
            BERLIN,
            "2026-03-29T00:59:59Z",
            &["2026-03-29T03:00:00+02:00", "2026-03-29T03:20:00+02:00", "2026-03-29T03:40:00+02:00"],
        );
        // From within the hour after the change.
        check("30 2 * * *", BERLIN, "2026-03-29T03:10:00+02:00", &["2026-03-30T02:30:00+02:00"]);
        check("30 2 * * *", BERLIN, "2026-03-29T03:00:00+02:00", &["2026-03-30T02:30:00+02:00"]);
    }

    #[test]
    fn a_time_of_the_day_that_comes_twice_ticks_at_the_first() {
        check(
            "30 2 * * *",
            BERLIN,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        );
        check("30 2 * * *", BERLIN, "2026-10-25T02:10:00+01:00", &["2026-10-26T02:30:00+01:00"]);
        check(
            "0 1,2,3 * * *",
            BERLIN,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T01:00:00+02:00", "2026-10-25T02:00:00+02:00", "2026-10-25T03:00:00+01:00"],
        );
    }

    #[test]
    fn what_follows_time_keeps_its_distance_through_both_changes() {
        check(
            "*/30 * * * *",
            BERLIN,
            "2026-03-29T01:29:59+01:00",
            &["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"],
        );
        check(
            "*/30 * * * *",
            BERLIN,
            "2026-10-25T01:59:59+02:00",
            &[
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:00:00+01:00",
                "2026-10-25T02:30:00+01:00",
                "2026-10-25T03:00:00+01:00",
            ],
        );
        // Only in the hour that is skipped: not on this day. Only in the hour that is repeated: in both.
        check("*/30 2 * * *", BERLIN, "2026-03-29T00:00:00Z", &["2026-03-30T02:00:00+02:00"]);
        check(
            "*/30 2 * * *",
            BERLIN,
            "2026-10-25T02:30:00+02:00",
            &["2026-10-25T02:00:00+01:00", "2026-10-25T02:30:00+01:00", "2026-10-26T02:00:00+01:00"],
        );
        // The other half of the year in between changes nothing.
        check("*/30 2 25 10 *", BERLIN, "2026-01-01T00:00:00Z", &["2026-10-25T02:00:00+02:00"]);
    }

    #[test]
    fn the_southern_half_half_hours_and_a_day_that_was_left_out() {
        let sydney = chrono_tz::Australia::Sydney;
        check(
            "30 2 * * *",
            sydney,
            "2026-10-03T12:00:00Z",
            &["2026-10-04T03:00:00+11:00", "2026-10-05T02:30:00+11:00"],
        );
        check(
            "30 2 * * *",
            sydney,
            "2026-04-04T12:00:00Z",
            &["2026-04-05T02:30:00+11:00", "2026-04-06T02:30:00+10:00"],
        );
        let lord_howe = chrono_tz::Australia::Lord_Howe;
        check("15 2 * * *", lord_howe, "2026-10-03T12:00:00Z", &["2026-10-04T02:30:00+11:00"]);
        check(
            "0 12 * * *",
            chrono_tz::Pacific::Apia,
            "2011-12-29T12:00:00-10:00",
            &["2011-12-31T00:00:00+14:00", "2011-12-31T12:00:00+14:00"],
        );
    }

    #[test]
    fn intervals_are_counted_from_their_origin_whatever_the_clocks_do() {
        let every =
            |text: &str, after, origin| Expression::parse(text).expect(text).next(after, &BERLIN, origin);
        assert_eq!(every("every 15 minutes", 0, 0), Some(900));
        assert_eq!(every("EVERY 1h30m", 5_399, 0), Some(5_400));
        assert_eq!(every("every 1 hour 30 minutes", 5_400, 0), Some(10_800));
        assert_eq!(every("every 10s", 100, 3), Some(103));
        assert_eq!(every("every 10 s", -5, 3), Some(3));
        assert_eq!(every("every 2 weeks 1 day", 0, 0), Some(15 * 86_400));
        assert_eq!(every("every day", 0, 0), Some(86_400));
    }

    #[test]
    fn a_bad_expression_says_what_is_wrong_with_it() {
        for (text, reason) in [
            ("", "it has 0 fields instead of 5 or 6"),
            ("* * * *", "it has 4 fields instead of 5 or 6"),
            ("0 0 0 1 1 * 2030", "it has 7 fields instead of 5 or 6"),
            ("61 * * * *", "the minutes \"61\" are not understood"),
            ("* * 24 * * *", "the hours \"24\" are not understood"),
            ("0 0 * * 8", "the days of the week \"8\" are not understood"),
            ("0 0 30 2 *", "no day fits it"),
            ("0 0 31 4,6,9,11 *", "no day fits it"),
            ("a b c d e", "the minutes \"a\" are not understood"),
            ("@never", "\"@never\" is none of @hourly"),
            ("every", "needs a time"),
            ("every x", "does not begin with a number"),
            ("every 5 fortnights", "\"fortnights\" is no unit of time"),
            ("every 0 seconds", "between 1 second and 3660 days"),
            ("every 99999999999999999999 days", "is no number of units"),
            ("every 9999999999999 days", "between 1 second and 3660 days"),
            ("every 1.5 hours", "unit of time"),
            ("ümlaut * * * *", "characters that no field can have"),
        ] {
            let error = Expression::parse(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(Expression::parse(&"*".repeat(300)).is_err());
    }

    #[test]
    fn an_end_of_time_is_no_tick() {
        assert_eq!(Expression::parse("0 0 * * *").unwrap().next(i64::MAX / 2, &Utc, 0), None);
        assert_eq!(Expression::parse("every 1 day").unwrap().next(i64::MAX - 1, &Utc, 0), None);
    }

    /// What fits, looked for second by second (minute by minute where there are no seconds).
    fn fits(cron: &Expression, zone: Tz, at: Seconds) -> bool {
        let local = at + Zone::offset(&zone, at);
        cron.local_match(local, true) == Some(local)
    }

    const ZONES: [Tz; 5] = [
        BERLIN,
        chrono_tz::America::New_York,
        chrono_tz::Australia::Lord_Howe,
        chrono_tz::Asia::Kathmandu,
        chrono_tz::America::Santiago,
    ];

    fn field(all: &'static str, low: u32, high: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            Just(all.to_owned()),
            (low..=high).prop_map(|n| n.to_string()),
            (low..=high, low..=high).prop_map(|(a, b)| format!("{},{}", a.min(b), a.max(b))),
            (2..=high).prop_map(|n| format!("*/{n}")),
        ]
    }

    proptest! {
        #[test]
        fn ticks_that_follow_time_are_the_moments_that_fit(
            minute in field("*", 0, 59),
            hour in field("*", 0, 3),
            zone in 0..ZONES.len(),
            days in 0..730_i64,
        ) {
            let Ok(cron) = Expression::parse(&format!("{minute} {hour} * * *")) else { return Ok(()) };
            let Form::Cron { follows_time: true, .. } = &cron.0 else { return Ok(()) };
            let (zone, after) = (ZONES[zone], at("2025-01-01T00:00:00Z") + days * 86_400);
            let next = cron.next(after, &zone, 0).expect("there is a next one");
            prop_assert!(fits(&cron, zone, next));
            let between = (after + 60..next).step_by(60).find(|&at| fits(&cron, zone, at));
            prop_assert_eq!(between, None);
        }

        #[test]
        fn ticks_by_the_clock_are_one_for_each_time_of_each_day_or_fall_together_at_the_end_of_a_gap(
            minutes in prop::collection::btree_set(0..60_u32, 1..4),
            hours in prop::collection::btree_set(0..24_u32, 1..4),
            zone in 0..ZONES.len(),
            days in 0..730_i64,
        ) {
            let list = |set: &std::collections::BTreeSet<u32>| {
                set.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
            };
            let cron = Expression::parse(&format!("{} {} * * *", list(&minutes), list(&hours))).unwrap();
            let zone = ZONES[zone];
            // A local day from midnight to midnight.
            let midnight = at("2025-01-01T00:00:00Z") + days * 86_400;
            let (from, to) = (first_moment(&zone, midnight), first_moment(&zone, midnight + 86_400));
            let mut expected: Vec<Seconds> = Vec::new();
            for hour in &hours {
                for minute in &minutes {
                    expected.push(first_moment(&zone, midnight + i64::from(hour * 3_600 + minute * 60)));
                }
            }
            expected.sort_unstable();
            expected.dedup();
            let next = |after: &Seconds| cron.next(*after, &zone, 0);
            let found: Vec<Seconds> =
                std::iter::successors(next(&(from - 1)), next).take_while(|&at| at < to).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_text_makes_it_fail_otherwise(text in "[ -~]{0,40}", wild in ".{0,40}") {
            for text in [text, wild] {
                if let Ok(expression) = Expression::parse(&text) {
                    prop_assert!(expression.next(0, &BERLIN, 0).is_none_or(|next| next > 0));
                }
            }
        }

        #[test]
        fn fields_of_any_kind_give_growing_ticks(text in "[0-9*/,L#W?-]{1,5} [0-9*/,-]{1,5} [0-9*/,LW?-]{1,5} [0-9*/,-]{1,4} [0-9*/,L#?-]{1,4}") {
            if let Ok(expression) = Expression::parse(&text) {
                let first = expression.next(0, &BERLIN, 0);
                let second = first.and_then(|first| expression.next(first, &BERLIN, 0));
                prop_assert!(first.is_some() && second > first, "{text}: {first:?} {second:?}");
            }
        }
    }
}
