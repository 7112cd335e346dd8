//! When a step that failed is tried again.

use std::borrow::Cow;

use crate::Micros;

/// The longest delay: 10 years of 365 days.
pub const MAX_DELAY: Micros = 10 * 365 * 86_400 * 1_000_000;

/// How delays grow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Backoff {
    /// Not at all.
    #[default]
    Constant,
    /// Each is `factor` times the one before.
    Exponential,
}

/// How often a step is tried again, and how long after each failure. What is left open is for someone else to decide: the step's own code.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Retries after the first attempt.
    pub limit: Option<i32>,
    /// How long after the first failure.
    pub delay: Option<Micros>,
    /// How the delays after the next ones grow.
    pub backoff: Backoff,
    /// Used by [`Backoff::Exponential`]; 1 or more.
    pub factor: f64,
    /// No delay is longer.
    pub max_delay: Option<Micros>,
    /// Which part of each delay is left to chance, from 0 (none) to 1 (all of it).
    pub jitter: f64,
    /// Instead of `delay`: how long after the first failure, the second, and so on; after more the last one.
    pub delays: Cow<'static, [Micros]>,
}

impl Policy {
    /// Leaves everything open.
    pub const NONE: Self = Self {
        limit: None,
        delay: None,
        backoff: Backoff::Constant,
        factor: 2.0,
        max_delay: None,
        jitter: 0.0,
        delays: Cow::Borrowed(&[]),
    };

    /// Retries after the first attempt: as many as there are delays unless it says otherwise.
    pub fn limit(&self) -> Option<i32> {
        let listed = || i32::try_from(self.delays.len()).ok().filter(|&count| count > 0);
        self.limit.or_else(listed)
    }

    /// How long after the failure of an attempt (from 1) the next one is due. `random` is at least 0 and less than 1.
    ///
    /// With jitter the delay is spread evenly between `(1 - jitter)` times itself and itself: never longer, so that `max_delay` holds.
    pub fn delay(&self, attempt: i32, random: f64) -> Option<Micros> {
        let failures = attempt.max(1) - 1;
        let delay = match self.delays.last() {
            Some(last) => {
                let listed = usize::try_from(failures).ok().and_then(|at| self.delays.get(at));
                *listed.unwrap_or(last) as f64
            }
            None => {
                let first = self.delay?.max(0) as f64;
                match self.backoff {
                    Backoff::Exponential if first > 0.0 => first * self.factor.max(1.0).powi(failures),
                    _ => first,
                }
            }
        };
        let longest = self.max_delay.unwrap_or(MAX_DELAY).clamp(0, MAX_DELAY) as f64;
        let spread = self.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0);
        // To the nearest: what a power is, in its last digits, is left to the platform.
        Some((delay.clamp(0.0, longest) * (1.0 - spread)).round() as Micros)
    }
}

/// A duration that someone has written: `"1.5 s"`, `"10 min"`, `"2 h"`, `"7 days"`; a number alone is seconds. Read here, not by PostgreSQL, so
/// that it means the same under every setting.
pub fn duration(text: &str) -> Option<Micros> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let seconds = match text[end..].trim() {
        "ms" | "millisecond" | "milliseconds" => 0.001,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3_600.0,
        "d" | "day" | "days" => 86_400.0,
        _ => return None,
    };
    from_seconds(number * seconds)
}

/// Seconds, if they are a duration: at least 0 and at most [`MAX_DELAY`].
pub fn from_seconds(seconds: f64) -> Option<Micros> {
    let micros = (seconds * 1e6).round();
    (0.0..=MAX_DELAY as f64).contains(&micros).then_some(micros as Micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Micros = 1_000_000;

    fn policy() -> Policy {
        Policy { delay: Some(SECOND), ..Policy::NONE }
    }

    fn delays(policy: &Policy, count: i32) -> Vec<Option<Micros>> {
        (1..=count).map(|attempt| policy.delay(attempt, 0.0)).collect()
    }

    #[test]
    fn durations_are_read_with_their_units_and_nothing_else_is_one() {
        for (text, micros) in [
            ("1.5 s", 1_500_000),
            ("10min", 600_000_000),
            ("0", 0),
            (" 2 h ", 7_200_000_000),
            ("500 ms", 500_000),
        ] {
            assert_eq!(duration(text), Some(micros), "{text}");
        }
        for text in ["", "s", "-1 s", "1 fortnight", "1 s 2", "1.2.3 s", "inf", "NaN", "4000 days", "1e3 s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_left_open_is_not_decided() {
        assert_eq!((Policy::NONE.limit(), Policy::NONE.delay(1, 0.5)), (None, None));
        let limit_only = Policy { limit: Some(3), ..Policy::NONE };
        assert_eq!((limit_only.limit(), limit_only.delay(1, 0.5)), (Some(3), None));
    }

    #[test]
    fn delays_are_constant_or_grow_up_to_the_longest() {
        assert_eq!(delays(&policy(), 3), [Some(SECOND); 3]);
        let exponential = Policy { backoff: Backoff::Exponential, max_delay: Some(5 * SECOND), ..policy() };
        assert_eq!(delays(&exponential, 5), [1, 2, 4, 5, 5].map(|seconds| Some(seconds * SECOND)));
        let by_three = Policy { factor: 3.0, ..exponential };
        assert_eq!(delays(&by_three, 3), [1, 3, 5].map(|seconds| Some(seconds * SECOND)));
    }

    #[test]
    fn a_list_of_delays_is_gone_through_and_its_last_one_stays() {
        let listed = Policy { delays: Cow::Borrowed(&[1, 10, 100]), ..Policy::NONE };
        assert_eq!(listed.limit(), Some(3));
        assert_eq!(delays(&listed, 5), [1, 10, 100, 100, 100].map(Some));
        let more = Policy { limit: Some(7), ..listed };
        assert_eq!(more.limit(), Some(7));
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds_whatever_the_numbers(
            limit in any::<Option<i32>>(),
            delay in any::<Option<Micros>>(),
            exponential in any::<bool>(),
            factor in any::<f64>(),
            max_delay in any::<Option<Micros>>(),
            jitter in any::<f64>(),
            listed in prop::collection::vec(any::<Micros>(), 0..4),
            attempt in any::<i32>(),
            random in 0.0..1.0,
        ) {
            let backoff = if exponential { Backoff::Exponential } else { Backoff::Constant };
            let open = delay.is_none() && listed.is_empty();
            let policy = Policy { limit, delay, backoff, factor, max_delay, jitter, delays: listed.into() };
            let got = policy.delay(attempt, random);
            prop_assert_eq!(got.is_none(), open);
            if let Some(got) = got {
                prop_assert!((0..=MAX_DELAY).contains(&got));
                prop_assert!(max_delay.is_none_or(|longest| got <= longest.max(0)));
            }
        }

        #[test]
        fn jitter_takes_from_a_delay_at_most_its_part(jitter in 0.0..=1.0, random in 0.0..1.0) {
            let got = Policy { jitter, ..policy() }.delay(1, random).unwrap_or(-1);
            prop_assert!(got <= SECOND && got as f64 >= SECOND as f64 * (1.0 - jitter) - 1.0);
        }
    }
}
