//! What a step ends in.

use std::time::Duration;

use crate::StepResult;
use crate::retry::Snoozed;

/// What a step ends in when it does not fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NextStep<T> {
    /// The task is done; its row goes away.
    None,
    /// The next step, at once.
    Now(T),
    /// The next step, after a delay that the server counts from the moment at which it takes the result.
    Delayed(T, Duration),
}

impl<T> NextStep<T> {
    /// The task is done.
    pub fn none() -> StepResult<T> {
        Ok(Self::None)
    }

    /// Go on with `step` at once.
    pub fn now(step: impl Into<T>) -> StepResult<T> {
        Ok(Self::Now(step.into()))
    }

    /// Go on with `step` after a delay.
    pub fn delay(step: impl Into<T>, delay: Duration) -> StepResult<T> {
        Ok(Self::Delayed(step.into(), delay))
    }

    /// Not yet: the same step again after a delay, without an attempt being counted. It travels as an error, so that `?` passes it on; the
    /// transaction of a transactional step is rolled back.
    pub fn snooze(delay: Duration) -> StepResult<T> {
        Err(Box::new(Snoozed(delay)))
    }

    /// The same with the step wrapped by a task.
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> NextStep<U> {
        match self {
            Self::None => NextStep::None,
            Self::Now(step) => NextStep::Now(f(step)),
            Self::Delayed(step, delay) => NextStep::Delayed(f(step), delay),
        }
    }
}
