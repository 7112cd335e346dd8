//! What is done about an attempt that failed.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use pg_task_rules::Micros;
use pg_task_rules::retry as rules;
use pg_task_rules::retry::Backoff;
use pg_task_rules::retry::Policy;
use serde::Serialize;
use serde::Serializer;
use serde::ser::SerializeMap;

use crate::StepError;
use crate::enqueue::micros;

/// How often a step is tried again, and how long after each failure: a step's [`crate::Step::RETRY`], or that of one task
/// ([`crate::Enqueue::retry`]).
///
/// ```rust
/// use std::time::Duration;
/// use pg_task_client::RetryPolicy;
///
/// // After 1 s, 2 s, 4 s … 10 min, each up to a fifth sooner.
/// const POLITE: RetryPolicy =
///     RetryPolicy::exponential(12, Duration::from_secs(1)).max_delay(Duration::from_secs(600)).jitter(0.2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    limit: i32,
    delay: Duration,
    factor: Option<f64>,
    max_delay: Option<Duration>,
    jitter: f64,
    delays: &'static [Duration],
}

impl RetryPolicy {
    /// `limit` retries, each after `delay`.
    pub const fn constant(limit: i32, delay: Duration) -> Self {
        Self { limit, delay, factor: None, max_delay: None, jitter: 0.0, delays: &[] }
    }

    /// `limit` retries, the first after `first`, each next one after twice the time.
    pub const fn exponential(limit: i32, first: Duration) -> Self {
        Self { factor: Some(2.0), ..Self::constant(limit, first) }
    }

    /// A retry after each of these times.
    pub const fn delays(delays: &'static [Duration]) -> Self {
        Self { delays, ..Self::constant(delays.len() as i32, Duration::ZERO) }
    }

    /// Other than twice the time: from 1 to 100.
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = Some(factor);
        self
    }

    /// The longest delay.
    pub const fn max_delay(mut self, longest: Duration) -> Self {
        self.max_delay = Some(longest);
        self
    }

    /// Spreads each delay evenly between `(1 - jitter)` times itself and itself, so that what failed together does not come back together.
    pub const fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// How often the step is tried again.
    pub const fn limit(&self) -> i32 {
        self.limit
    }

    /// What is done after the failure of an attempt (from 1).
    pub fn after(&self, attempt: i32) -> Retry {
        if attempt > self.limit {
            return Retry::GiveUp;
        }
        let policy = Policy {
            limit: Some(self.limit),
            delay: Some(micros(self.delay)),
            backoff: if self.factor.is_some() { Backoff::Exponential } else { Backoff::Constant },
            factor: self.factor.unwrap_or(1.0),
            max_delay: self.max_delay.map(micros),
            jitter: self.jitter,
            delays: self.delays.iter().copied().map(micros).collect::<Vec<_>>().into(),
        };
        let delay = policy.delay(attempt, random()).unwrap_or_default();
        Retry::After(Duration::from_micros(u64::try_from(delay).unwrap_or(0)))
    }
}

/// As the option `retry` of a task has it: durations in seconds.
impl Serialize for RetryPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("limit", &self.limit)?;
        if self.delays.is_empty() {
            map.serialize_entry("delay", &self.delay.as_secs_f64())?;
            if let Some(factor) = self.factor {
                map.serialize_entry("backoff", "exponential")?;
                map.serialize_entry("factor", &factor)?;
            }
        } else {
            let delays: Vec<f64> = self.delays.iter().map(Duration::as_secs_f64).collect();
            map.serialize_entry("delays", &delays)?;
        }
        if let Some(longest) = self.max_delay {
            map.serialize_entry("max_delay", &longest.as_secs_f64())?;
        }
        if self.jitter > 0.0 {
            map.serialize_entry("jitter", &self.jitter)?;
        }
        map.end()
    }
}

/// The policy in a task's options, as the server reads it: it has checked the words and the numbers.
pub(crate) fn own_policy(options: &serde_json::Value) -> Policy {
    let Some(retry) = options.get("retry") else { return Policy::NONE };
    let number = |name: &str| retry.get(name).and_then(serde_json::Value::as_f64);
    let delays = retry.get("delays").and_then(serde_json::Value::as_array);
    let delays: Vec<Micros> = delays.into_iter().flatten().filter_map(duration).collect();
    Policy {
        limit: retry
            .get("limit")
            .and_then(serde_json::Value::as_i64)
            .and_then(|limit| i32::try_from(limit).ok()),
        delay: retry.get("delay").and_then(duration),
        backoff: match retry.get("backoff").and_then(serde_json::Value::as_str) {
            Some("exponential") => Backoff::Exponential,
            _ => Backoff::Constant,
        },
        factor: number("factor").unwrap_or(Policy::NONE.factor),
        max_delay: retry.get("max_delay").and_then(duration),
        jitter: number("jitter").unwrap_or(Policy::NONE.jitter),
        delays: delays.into(),
    }
}

/// A duration of a task's options: a number of seconds, or a text with its unit.
pub(crate) fn duration(value: &serde_json::Value) -> Option<Micros> {
    match value {
        serde_json::Value::Number(seconds) => rules::from_seconds(seconds.as_f64()?),
        serde_json::Value::String(text) => rules::duration(text),
        _ => None,
    }
}

/// From 0 to 1.
pub(crate) fn random() -> f64 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    f64::from(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])) / (f64::from(u32::MAX) + 1.0)
}

/// What is done about an attempt that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// The step is tried again after this time.
    After(Duration),
    /// It has no retry left: the task is parked, unless it has a policy of its own that allows more (the option `retry`).
    GiveUp,
    /// Another attempt would fail as well: the task is parked whatever its own policy says.
    Never,
}

/// An error that says itself what is to be done about it.
#[derive(Debug)]
pub(crate) struct Directed {
    pub(crate) error: StepError,
    /// None: never again.
    pub(crate) after: Option<Duration>,
}

impl fmt::Display for Directed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Directed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// What [`crate::NextStep::snooze`] is on its way to the worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snoozed(pub(crate) Duration);

impl fmt::Display for Snoozed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not yet: again in {:?}", self.0)
    }
}

impl Error for Snoozed {}

/// Makes an error one after which the step is not tried again, whatever the policies say: `return Err(non_retryable("no such order"))`.
pub fn non_retryable(error: impl Into<StepError>) -> StepError {
    Box::new(Directed { error: error.into(), after: None })
}

/// Makes an error one after which the step is tried again after exactly this time, as long as it has retries left: what a server says with `Retry-After`.
pub fn retry_after(error: impl Into<StepError>, delay: Duration) -> StepError {
    Box::new(Directed { error: error.into(), after: Some(delay) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_policy_counts_its_retries_and_then_gives_up() {
        let policy = RetryPolicy::exponential(3, SECOND).max_delay(3 * SECOND);
        let after: Vec<Retry> = (1..=4).map(|attempt| policy.after(attempt)).collect();
        let expected =
            [Retry::After(SECOND), Retry::After(2 * SECOND), Retry::After(3 * SECOND), Retry::GiveUp];
        assert_eq!(after, expected);
        assert_eq!(RetryPolicy::constant(0, SECOND).after(1), Retry::GiveUp);
        const LISTED: RetryPolicy = RetryPolicy::delays(&[Duration::ZERO, SECOND]);
        assert_eq!(
            [LISTED.after(1), LISTED.after(2), LISTED.after(3)],
            [Retry::After(Duration::ZERO), Retry::After(SECOND), Retry::GiveUp]
        );
    }

    #[test]
    fn a_policy_reads_as_the_option_of_a_task() -> serde_json::Result<()> {
        let policy = RetryPolicy::exponential(3, SECOND / 2).max_delay(3 * SECOND).jitter(0.5);
        assert_eq!(
            serde_json::to_string(&policy)?,
            r#"{"limit":3,"delay":0.5,"backoff":"exponential","factor":2.0,"max_delay":3.0,"jitter":0.5}"#
        );
        const LISTED: RetryPolicy = RetryPolicy::delays(&[SECOND]);
        assert_eq!(serde_json::to_string(&LISTED)?, r#"{"limit":1,"delays":[1.0]}"#);
        Ok(())
    }

    #[test]
    fn a_directed_error_reads_as_the_error_itself() {
        let error = non_retryable(std::io::Error::other("the disk is full"));
        assert_eq!(error.to_string(), "the disk is full");
        assert!(
            retry_after("busy", SECOND)
                .downcast_ref::<Directed>()
                .is_some_and(|directed| directed.after == Some(SECOND))
        );
    }
}
