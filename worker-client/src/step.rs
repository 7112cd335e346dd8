//! The traits behind `task!` and `scheduler!`.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use chrono::DateTime;
use chrono::Utc;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgExecutor;
use sqlx::PgPool;
use uuid::Uuid;

use crate::Context;
use crate::Enqueue;
use crate::NextStep;
use crate::Result;
use crate::Retry;
use crate::RetryPolicy;
use crate::StepError;
use crate::StepResult;
use crate::Tx;
use crate::error::BeginError;

/// A step of the task `Task`.
///
/// `Cx` is what the step is given: the [`PgPool`] unless it says otherwise, the whole [`Context`], or a transaction, [`Tx`], that commits
/// together with the transition. A type parameter, rather than more methods, lets all kinds of step stand side by side in one task
/// and keeps each of them to one function:
///
/// ```rust
/// # use pg_task_client as pg_task;
/// use pg_task::{Context, NextStep, Step, StepResult};
/// # use serde::{Deserialize, Serialize};
/// # use sqlx::PgPool;
/// # #[derive(Debug, Deserialize, Serialize)]
/// # pub struct Charge;
/// # #[derive(Debug, Deserialize, Serialize)]
/// # pub struct Thank;
/// # pg_task_client::task!(Order { Charge, Thank });
/// impl Step<Order> for Thank {
///     async fn step(self, _db: &PgPool) -> StepResult<Order> {
///         NextStep::none()
///     }
/// }
///
/// impl Step<Order, Context> for Charge {
///     async fn step(self, cx: &Context) -> StepResult<Order> {
///         println!("attempt {} of {}", cx.attempt(), cx.task_id());
///         NextStep::now(Thank)
///     }
/// }
/// ```
pub trait Step<Task, Cx = PgPool>:
    Into<Task> + Send + Sized + fmt::Debug + DeserializeOwned + Serialize
where
    Task: Sized,
    Cx: StepArgument,
{
    /// How often the step is tried again after an error.
    const RETRY_LIMIT: i32 = 0;

    /// How long to wait before each retry.
    const RETRY_DELAY: Duration = Duration::from_secs(1);

    /// How often and how long after each failure the step is tried again: [`Step::RETRY_LIMIT`] and [`Step::RETRY_DELAY`] unless it says
    /// otherwise. A task can have a policy of its own instead: [`Enqueue::retry`].
    const RETRY: RetryPolicy = RetryPolicy::constant(Self::RETRY_LIMIT, Self::RETRY_DELAY);

    /// How long an attempt may take; for ever unless it says otherwise. A task can have a limit of its own instead: [`Enqueue::timeout`].
    ///
    /// Then the step's token is cancelled ([`Context::cancelled`]), and a few seconds later, if it still runs, the step is dropped at its next
    /// point of waiting. The attempt has failed then; what it returns in time counts.
    const TIMEOUT: Option<Duration> = None;

    /// What is done about an attempt (from 1) that failed with this error: what [`Step::RETRY`] says unless it looks closer.
    ///
    /// A single error can say it itself: [`crate::non_retryable`], [`crate::retry_after`].
    fn retry(attempt: i32, error: &StepError) -> Retry {
        let _ = error;
        Self::RETRY.after(attempt)
    }

    /// The step with which the task goes on instead of being parked: to undo, to tell someone. It is asked after every failure, before it
    /// is known whether that was the last one, so it only makes the step. It is asked too when the step's worker was lost too often, and when the task's deadline has
    /// passed before it was begun: the error is the text then that it would be parked with.
    fn give_up(self, error: &StepError) -> Option<Task> {
        let _ = error;
        None
    }

    /// Runs the step. A panic counts as an error.
    fn step(self, cx: &Cx) -> impl Future<Output = StepResult<Task>> + Send;

    /// [`Step::RETRY_LIMIT`] of the step at hand; not meant to be overridden.
    fn retry_limit(&self) -> i32 {
        Self::RETRY.limit()
    }

    /// [`Step::RETRY_DELAY`] of the step at hand; not meant to be overridden.
    fn retry_delay(&self) -> Duration {
        Self::RETRY_DELAY
    }

    /// The name of the variant that this is, if it is an enum of tasks or steps, and of the one below; written by the macros.
    #[doc(hidden)]
    fn variant(&self) -> [&'static str; 2] {
        ["", ""]
    }

    /// [`Step::TIMEOUT`] of the step at hand; written by the macros.
    #[doc(hidden)]
    fn timeout(&self) -> Option<Duration> {
        Self::TIMEOUT
    }

    /// [`Step::retry`] of the step at hand; written by the macros.
    #[doc(hidden)]
    fn retry_rule(&self) -> RetryRule {
        Self::retry
    }

    /// The names of the steps below this one, for the worker's registration; written by the macros.
    #[doc(hidden)]
    fn steps(name: &str, out: &mut Vec<StepInfo>) {
        out.push(StepInfo { name: name.to_owned(), retry_limit: Self::RETRY.limit() });
    }
}

/// What a step can be given: a [`PgPool`], a [`Context`] or a [`Tx`].
pub trait StepArgument: private::Sealed + Sized + Sync {
    /// Runs a step with the argument, which comes out of the context.
    #[doc(hidden)]
    fn run<Task, S: Step<Task, Self>>(step: S, cx: &Context)
    -> impl Future<Output = StepResult<Task>> + Send;
}

impl StepArgument for PgPool {
    fn run<Task, S: Step<Task>>(step: S, cx: &Context) -> impl Future<Output = StepResult<Task>> + Send {
        step.step(cx.db())
    }
}

impl StepArgument for Context {
    fn run<Task, S: Step<Task, Self>>(
        step: S,
        cx: &Context,
    ) -> impl Future<Output = StepResult<Task>> + Send {
        step.step(cx)
    }
}

impl StepArgument for Tx {
    async fn run<Task, S: Step<Task, Self>>(step: S, cx: &Context) -> StepResult<Task> {
        let tx = Self::begin(cx).await.map_err(BeginError)?;
        let error = match step.step(&tx).await {
            Ok(next) => {
                // The task that this step is part of wraps what comes next: only the worker can store it.
                cx.keep(tx);
                return Ok(next);
            }
            Err(error) => error,
        };
        tx.roll_back().await;
        Err(error)
    }
}

mod private {
    pub trait Sealed {}
    impl Sealed for sqlx::PgPool {}
    impl Sealed for crate::Context {}
    impl Sealed for crate::Tx {}
}

/// All tasks of a program, as the enum that [`crate::scheduler!`] makes.
pub trait Scheduler: fmt::Debug + DeserializeOwned + Serialize + Sized + Sync {
    /// Enqueues the task; it is due now.
    fn enqueue<'e>(&self, db: impl PgExecutor<'e>) -> impl Future<Output = Result<Uuid>> + Send {
        Enqueue::new().enqueue(db, self)
    }

    /// Enqueues the task; it is due after a delay, by the server's clock.
    fn delay<'e>(
        &self,
        db: impl PgExecutor<'e>,
        delay: Duration,
    ) -> impl Future<Output = Result<Uuid>> + Send {
        Enqueue::new().delay(db, self, delay)
    }

    /// Enqueues the task; it is due at a moment.
    fn schedule<'e>(
        &self,
        db: impl PgExecutor<'e>,
        at: DateTime<Utc>,
    ) -> impl Future<Output = Result<Uuid>> + Send {
        Enqueue::new().schedule(db, self, at)
    }
}

/// The name of a step and of its task; written as `Task/Step`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StepName {
    /// The task: a variant of the enum that [`crate::scheduler!`] makes.
    pub task: &'static str,
    /// The step: a variant of the enum that [`crate::task!`] makes.
    pub step: &'static str,
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, step } = self;
        write!(f, "{task}/{step}")
    }
}

/// What is done about a failed attempt.
#[doc(hidden)]
pub type RetryRule = fn(i32, &StepError) -> Retry;

/// A step's name as the server knows it, and its retries.
#[doc(hidden)]
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StepInfo {
    /// `Task/Step`.
    pub name: String,
    /// That of [`Step::RETRY`].
    pub retry_limit: i32,
}

/// Runs a variant's step and wraps what comes next; `Inner` and `Cx` follow from the only impl that the step has.
#[doc(hidden)]
pub async fn run<Outer, Inner, Cx, S>(step: S, cx: &Context) -> StepResult<Outer>
where
    Cx: StepArgument,
    Inner: Into<Outer>,
    S: Step<Inner, Cx>,
{
    Cx::run(step, cx).await.map(|next: NextStep<Inner>| next.map(Into::into))
}

#[doc(hidden)]
pub fn retry_limit<Inner, Cx: StepArgument, S: Step<Inner, Cx>>(step: &S) -> i32 {
    step.retry_limit()
}

#[doc(hidden)]
pub fn retry_delay<Inner, Cx: StepArgument, S: Step<Inner, Cx>>(step: &S) -> Duration {
    step.retry_delay()
}

#[doc(hidden)]
pub fn variant<Inner, Cx: StepArgument, S: Step<Inner, Cx>>(step: &S) -> &'static str {
    step.variant()[0]
}

#[doc(hidden)]
pub fn timeout<Inner, Cx: StepArgument, S: Step<Inner, Cx>>(step: &S) -> Option<Duration> {
    step.timeout()
}

#[doc(hidden)]
pub fn retry_rule<Inner, Cx: StepArgument, S: Step<Inner, Cx>>(step: &S) -> RetryRule {
    step.retry_rule()
}

#[doc(hidden)]
pub fn give_up<Outer, Inner: Into<Outer>, Cx: StepArgument, S: Step<Inner, Cx>>(
    step: S,
    error: &StepError,
) -> Option<Outer> {
    step.give_up(error).map(Into::into)
}

#[doc(hidden)]
pub fn steps_of<Inner, Cx: StepArgument, S: Step<Inner, Cx>>(
    prefix: &str,
    variant: &str,
    out: &mut Vec<StepInfo>,
) {
    if prefix.is_empty() {
        S::steps(variant, out);
    } else {
        S::steps(&format!("{prefix}/{variant}"), out);
    }
}
