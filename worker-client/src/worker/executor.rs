//! The executor: decodes steps, runs them, and turns what they end in into results.
//!
//! Steps wait in one queue. *Runners*, at most as many as the runtime has threads, take one after the other and poll it
//! once; those that are done then (a step that only computes) cost neither a runtime task nor a message of their own. A step that
//! waits goes on in a runtime task of its own, so that it holds up nobody; one that computes for long holds up its runner
//! alone, and the results of others are with the dispatcher already.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::types::Json;
use tracing::Instrument;
use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;
use uuid::Uuid;

use super::caught::caught;
use super::control::Control;
use super::control::lock;
use super::layered;
use crate::Context;
use crate::NextStep;
use crate::Retry;
use crate::Step;
use crate::StepError;
use crate::StepName;
use crate::StepResult;
use crate::Tx;
use crate::context::OwnOptions;
use crate::context::Shared;
use crate::enqueue;
use crate::error;
use crate::error::BeginError;
use crate::error::CommitError;
use crate::retry;
use crate::retry::Directed;
use crate::retry::Snoozed;
use crate::source_chain;
use crate::step::RetryRule;
use crate::transaction::Finish;
use pg_task_rules::retry::Policy;

/// How long a runner may go on before it lets others of its thread have a turn.
const TURN: Duration = Duration::from_micros(200);

/// A cancelled step has so long to notice before it is dropped.
pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Retries of a transaction that failed for its surroundings, if the step has fewer: as many as the server allows for lost workers by
/// default (`pg_task.lost_limit`). Nothing that the step did is left then.
const LOST_LIMIT: i32 = 3;

/// After which time the server retries a step of which neither its code nor its task says it, in microseconds.
const SERVER_DELAY: i64 = 1_000_000;

/// A step to run.
pub(super) struct Start<T> {
    pub(super) claim: Claim,
    pub(super) tried: i32,
    pub(super) source: Source<T>,
    pub(super) control: Arc<Control>,
}

/// Which attempt of which task it is.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) id: Uuid,
    pub(super) fence: i64,
    pub(super) token: i64,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub(super) due: i64,
    pub(super) queue: Bytes,
    /// JSON; none for a task without options.
    pub(super) options: Option<Bytes>,
}

/// Where the step comes from.
pub(super) enum Source<T> {
    /// The JSON that was handed out: still to be decoded.
    Json(Bytes),
    /// The last step of the same task, and its JSON.
    Memory(T, Json<Box<RawValue>>),
}

/// A result for the server.
pub(super) struct Finished<T> {
    pub(super) claim: Claim,
    pub(super) outcome: Outcome<T>,
}

/// What a step ended in, as the protocol has it. The next step is kept, to go on with it without reading it back.
pub(super) enum Outcome<T> {
    Done(Option<Json<Box<RawValue>>>),
    Next(Json<Box<RawValue>>, T),
    NextAfter(Json<Box<RawValue>>, i64),
    Retry {
        delay: i64,
        exact: bool,
        error: String,
        instead: Option<Json<Box<RawValue>>>,
    },
    /// No retry is left, unless the task's own policy allows more.
    GiveUp {
        error: String,
        instead: Option<Json<Box<RawValue>>>,
    },
    Park {
        error: String,
        instead: Option<Json<Box<RawValue>>>,
    },
    Snooze(i64),
    /// Not run: what the step's code says about a task that is to be parked.
    GivenUp {
        error: String,
        instead: Option<Json<Box<RawValue>>>,
    },
    Release,
    Unknown,
    Broken(String),
    /// Its transaction has committed together with the transition: there is nothing to bring. Whether the next step is due now.
    Committed(bool),
    /// It was dropped: given back, unless the task is another worker's by now.
    Dropped,
    /// The server has refused to write what it ended in, for this reason: the task is parked.
    NotWritten(String),
}

impl<T> Outcome<T> {
    /// A next step that is no JSON: another attempt would make it again.
    pub(super) fn unstorable(error: &crate::Error) -> Self {
        Self::Park { error: source_chain::text(error), instead: None }
    }

    /// Takes along what the task returns.
    fn with_result_of(self, control: &Control) -> Self {
        match (self, control.take_result()) {
            (Self::Done(None), result) => Self::Done(result),
            (outcome, _) => outcome,
        }
    }

    pub(super) fn code(&self) -> i16 {
        match self {
            Self::Done(_) => 0,
            Self::Next(..) => 1,
            Self::NextAfter(..) => 2,
            Self::Retry { exact: false, .. } => 3,
            Self::Park { .. } | Self::NotWritten(_) => 4,
            Self::Release | Self::Committed(_) | Self::Dropped => 5,
            Self::Unknown => 6,
            Self::Broken(_) => 7,
            Self::GiveUp { .. } => 8,
            Self::Snooze(_) => 9,
            Self::Retry { exact: true, .. } => 10,
            Self::GivenUp { .. } => 11,
        }
    }

    pub(super) fn step(&self) -> Option<&Json<Box<RawValue>>> {
        match self {
            Self::Next(step, _) | Self::NextAfter(step, _) | Self::Done(Some(step)) => Some(step),
            Self::Retry { instead, .. }
            | Self::GiveUp { instead, .. }
            | Self::GivenUp { instead, .. }
            | Self::Park { instead, .. } => instead.as_ref(),
            _ => None,
        }
    }

    pub(super) fn delay(&self) -> Option<i64> {
        match self {
            Self::NextAfter(_, delay) | Self::Retry { delay, .. } | Self::Snooze(delay) => Some(*delay),
            _ => None,
        }
    }

    pub(super) fn error(&self) -> Option<&str> {
        match self {
            Self::Retry { error, .. }
            | Self::GiveUp { error, .. }
            | Self::GivenUp { error, .. }
            | Self::Park { error, .. }
            | Self::NotWritten(error)
            | Self::Broken(error) => Some(error),
            _ => None,
        }
    }
}

/// Runs the steps of a worker.
pub(super) struct Executor<T> {
    inner: Arc<Inner<T>>,
}

struct Inner<T> {
    shared: Arc<Shared>,
    /// What is to be run, and how many runners are at it.
    work: Mutex<Work<T>>,
    max_runners: usize,
    /// What the dispatcher has not fetched yet.
    finished: Mutex<Vec<Finished<T>>>,
}

struct Work<T> {
    waiting: VecDeque<Start<T>>,
    runners: usize,
}

impl<T: Step<T, Context> + 'static> Executor<T> {
    /// An executor on the current runtime.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let max_runners = tokio::runtime::Handle::current().metrics().num_workers();
        let inner = Inner {
            shared,
            work: Mutex::new(Work { waiting: VecDeque::new(), runners: 0 }),
            max_runners,
            finished: Mutex::new(Vec::new()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts steps.
    pub(super) fn start(&self, starts: Vec<Start<T>>) {
        if starts.is_empty() {
            return;
        }
        let more = {
            let mut work = lock(&self.inner.work);
            work.waiting.extend(starts);
            let more = self.inner.max_runners.min(work.waiting.len()).saturating_sub(work.runners);
            work.runners += more;
            more
        };
        for _ in 0..more {
            tokio::spawn(run(self.inner.clone()));
        }
    }

    /// Fetches what is finished.
    pub(super) fn take_finished(&self) -> Vec<Finished<T>> {
        std::mem::take(&mut *lock(&self.inner.finished))
    }
}

/// A runner: ends when nothing waits.
async fn run<T: Step<T, Context> + 'static>(inner: Arc<Inner<T>>) {
    let mut began = Instant::now();
    loop {
        let start = {
            let mut work = lock(&inner.work);
            match work.waiting.pop_front() {
                Some(start) => start,
                None => {
                    work.runners -= 1;
                    return;
                }
            }
        };
        if let Some(finished) = begin(&inner, start).await {
            inner.finish(finished);
        }
        if began.elapsed() > TURN {
            tokio::task::yield_now().await;
            began = Instant::now();
        }
    }
}

impl<T> Inner<T> {
    fn finish(&self, result: Finished<T>) {
        let mut finished = lock(&self.finished);
        finished.push(result);
        if finished.len() == 1 {
            self.shared.bell.ring();
        }
    }
}

/// Polls a step once. What it ended in, or nothing if it goes on in a task of its own.
async fn begin<T: Step<T, Context> + 'static>(inner: &Arc<Inner<T>>, start: Start<T>) -> Option<Finished<T>> {
    let Start { claim, tried, source, control } = start;
    let Claim { id, fence, token, due, .. } = claim;
    let (queue, options) = (claim.queue.clone(), claim.options.clone());
    let finished = {
        let control = control.clone();
        move |outcome: Outcome<T>| Finished { claim, outcome: outcome.with_result_of(&control) }
    };
    let (step, json) = match decode::<T>(source) {
        Ok(decoded) => decoded,
        Err(outcome) => {
            error!("[{id}] the step can't be run here: {}", outcome.error().unwrap_or("it is not known"));
            return Some(finished(outcome));
        }
    };
    let attempt = Attempt::new(id, fence, tried, &step, json);
    if let Some(error) = options.as_deref().and_then(given_up) {
        return Some(finished(attempt.given_up::<T>(error)));
    }
    let mut context =
        attempt.clone().context(inner.shared.clone(), token, due, (queue, options), control.clone(), &step);
    let limit = time_limit(&context, &step);
    let span = tracing::info_span!("step", task = %id, step = %context.step_name(), queue = context.queue(), attempt = context.attempt(), traceparent = context.traceparent());
    if !inner.shared.layers.is_empty() || context.traceparent().is_some() {
        let future = layered::run(step, context).instrument(span);
        return begin_layered(inner, finished, control, attempt, limit, future).await;
    }
    let future = async move {
        info!("[{id}] run step {step:?}");
        let result = step.step(&context).await;
        result.map(|next| (next, context.take_transaction()))
    };
    let mut future = caught("the step", Box::pin(future.instrument(span)));
    let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx))).await;
    let first = match first {
        Poll::Ready(Ok((next, None))) => return Some(finished(attempt.outcome(Ok(next)))),
        Poll::Ready(Err(error)) => return Some(finished(attempt.outcome(Err(error)))),
        Poll::Ready(Ok((next, Some(tx)))) => Some((next, tx)),
        Poll::Pending => None,
    };
    let ending = attempt.clone();
    let future = async move {
        let result = match first {
            Some((next, tx)) => Ok((next, Some(tx))),
            None => future.await,
        };
        match result {
            Ok((next, Some(tx))) => ending.committed(next, tx).await,
            Ok((next, None)) => ending.outcome(Ok(next)),
            Err(error) => ending.outcome(Err(error)),
        }
    };
    go_on(inner, finished, control, attempt, limit, future);
    None
}

/// The same for a step within layers.
async fn begin_layered<T: Step<T, Context> + 'static>(
    inner: &Arc<Inner<T>>,
    finished: impl FnOnce(Outcome<T>) -> Finished<T> + Send + 'static,
    control: Arc<Control>,
    attempt: Attempt,
    limit: Option<Duration>,
    future: impl Future<Output = Outcome<T>> + Send + 'static,
) -> Option<Finished<T>> {
    let mut future = Box::pin(future);
    let first = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    if let Poll::Ready(outcome) = first {
        return Some(finished(outcome));
    }
    go_on(inner, finished, control, attempt, limit, future);
    None
}

/// Goes on with a step, its commit included, in a runtime task of its own: to its end, for its time at most, or until it is to be dropped.
fn go_on<T: Step<T, Context> + 'static>(
    inner: &Arc<Inner<T>>,
    finished: impl FnOnce(Outcome<T>) -> Finished<T> + Send + 'static,
    control: Arc<Control>,
    attempt: Attempt,
    limit: Option<Duration>,
    future: impl Future<Output = Outcome<T>> + Send + 'static,
) {
    let inner = inner.clone();
    tokio::spawn(async move {
        let future = std::pin::pin!(future);
        let outcome = tokio::select! {
            outcome = within(limit, control.clone(), future) => outcome.unwrap_or_else(|| attempt.timed_out(limit)),
            () = control.dropped() => Outcome::Dropped,
        };
        inner.finish(finished(outcome));
    });
}

/// Why the server will park the task, if it only asks what to do instead.
fn given_up(options: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\"give_up\"";
    #[derive(serde::Deserialize)]
    struct Options {
        give_up: Option<String>,
    }
    // Most options have no such key, and are not read for it.
    options.windows(KEY.len()).any(|part| part == KEY).then_some(())?;
    serde_json::from_slice::<Options>(options).ok()?.give_up
}

/// How long an attempt may take: what the task's own options say, else what the step's code says.
fn time_limit<T: Step<T, Context>>(context: &Context, step: &T) -> Option<Duration> {
    #[derive(serde::Deserialize)]
    struct Options {
        timeout: Option<serde_json::Value>,
    }
    let own = || {
        let options: Options = serde_json::from_slice(context.options.as_deref()?).ok()?;
        Some(Duration::from_micros(u64::try_from(retry::duration(&options.timeout?)?).ok()?))
    };
    own().or_else(|| step.timeout())
}

/// Waits for a step, but not for ever: when its time is up it is asked to end, and is given up if it does not.
async fn within<V>(
    limit: Option<Duration>,
    control: Arc<Control>,
    mut future: impl Future<Output = V> + Send + Unpin,
) -> Option<V> {
    let Some(limit) = limit else { return Some(future.await) };
    if let Ok(output) = tokio::time::timeout(limit, &mut future).await {
        return Some(output);
    }
    control.cancel();
    tokio::time::timeout(CANCEL_GRACE, future).await.ok()
}

/// The step, and its JSON to make it from again.
fn decode<T: DeserializeOwned>(source: Source<T>) -> Result<(T, Bytes), Outcome<T>> {
    let json = match source {
        Source::Memory(step, json) => return Ok((step, String::from(Box::<str>::from(json.0)).into())),
        Source::Json(json) => json,
    };
    let step = serde_json::from_slice(&json);
    step.map(|step| (step, json.clone())).map_err(|error| {
        // A step of a newer program: another worker may know it. serde_json gives the reason as text only.
        if error.to_string().starts_with("unknown variant") {
            Outcome::Unknown
        } else {
            let error = crate::Error::DeserializeStep(
                error,
                String::from_utf8_lossy(&json).chars().take(200).collect(),
            );
            Outcome::Broken(source_chain::text(&error))
        }
    })
}

/// An error, or the one within it, and what it says itself about the next attempt: after which time, or never.
fn directed(error: &StepError) -> (&StepError, Option<Option<Duration>>) {
    match error.downcast_ref::<Directed>() {
        Some(Directed { error, after }) => (error, Some(*after)),
        None => (error, None),
    }
}

/// What is known of a run before it ends.
#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) id: Uuid,
    fence: i64,
    pub(crate) tried: i32,
    rule: RetryRule,
    delay: Duration,
    /// The step's, to make it from again.
    json: Bytes,
}

impl Attempt {
    fn new<T: Step<T, Context>>(id: Uuid, fence: i64, tried: i32, step: &T, json: Bytes) -> Self {
        Self { id, fence, tried, rule: step.retry_rule(), delay: step.retry_delay(), json }
    }

    /// What the step may know.
    fn context<T: Step<T, Context>>(
        self,
        shared: Arc<Shared>,
        token: i64,
        due: i64,
        (queue, options): (Bytes, Option<Bytes>),
        control: Arc<Control>,
        step: &T,
    ) -> Context {
        let [task, name] = step.variant();
        let traceparent = options.as_ref().and_then(|options| OwnOptions::of(Some(options)).traceparent);
        Context {
            shared,
            attempt: self,
            token,
            due,
            queue,
            options,
            traceparent: traceparent.map(Arc::from),
            step_name: StepName { task, step: name },
            control,
            transaction: Mutex::default(),
            extensions: OnceLock::new(),
        }
    }

    /// What is done about an error, and whether it has named the time itself.
    fn decision(&self, error: &StepError) -> (Retry, bool) {
        let attempt = self.tried.saturating_add(1);
        let (error, directed) = directed(error);
        let begin = error.downcast_ref().map(|BeginError(error)| error);
        let commit = || error.downcast_ref().map(|CommitError(error)| error);
        match ((self.rule)(attempt, error), directed) {
            (_, Some(None)) => (Retry::Never, false),
            (Retry::After(_), Some(Some(after))) => (Retry::After(after), true),
            (Retry::GiveUp, None)
                if attempt <= LOST_LIMIT
                    && begin.or_else(commit).is_some_and(error::is_about_surroundings) =>
            {
                (Retry::After(self.delay), false)
            }
            (retry, _) => (retry, false),
        }
    }

    /// When the attempt is retried after an error, if it is, as far as the step's code decides.
    pub(crate) fn retry_after(&self, error: &StepError) -> Option<Duration> {
        if let Some(Snoozed(delay)) = error.downcast_ref() {
            return Some(*delay);
        }
        match self.decision(error).0 {
            Retry::After(delay) => Some(delay),
            Retry::GiveUp | Retry::Never => None,
        }
    }

    pub(super) fn outcome<T: Step<T, Context>>(&self, result: StepResult<T>) -> Outcome<T> {
        let Self { id, tried, .. } = *self;
        let attempt = tried.saturating_add(1);
        match result {
            Ok(NextStep::None) => {
                info!("[{id}] done");
                Outcome::Done(None)
            }
            Ok(NextStep::Now(step)) => match enqueue::step(&step) {
                Ok(json) => {
                    debug!("[{id}] goes on with {step:?}");
                    Outcome::Next(json, step)
                }
                Err(error) => Outcome::unstorable(&error),
            },
            Ok(NextStep::Delayed(step, after)) => match enqueue::step(&step) {
                Ok(json) => {
                    debug!("[{id}] goes on in {after:?} with {step:?}");
                    Outcome::NextAfter(json, enqueue::micros(after))
                }
                Err(error) => Outcome::unstorable(&error),
            },
            Err(error) => match error.downcast_ref() {
                Some(Snoozed(delay)) => {
                    debug!("[{id}] again in {delay:?}");
                    Outcome::Snooze(enqueue::micros(*delay))
                }
                None => self.failed(attempt, &error),
            },
        }
    }

    /// The step did not end in its time, and was dropped.
    fn timed_out<T: Step<T, Context>>(&self, limit: Option<Duration>) -> Outcome<T> {
        let limit = limit.unwrap_or_default();
        self.outcome(Err(format!("the step did not end within {limit:?}, nor when it was asked to").into()))
    }

    /// What is done about a failure.
    fn failed<T: Step<T, Context>>(&self, attempt: i32, error: &StepError) -> Outcome<T> {
        let id = self.id;
        let text = source_chain::text(&**error);
        let (retry, exact) = self.decision(error);
        let instead = self.instead::<T>(directed(error).0);
        match retry {
            Retry::After(delay) => {
                debug!("[{id}] attempt {attempt} failed, the next in {delay:?}: {text}");
                Outcome::Retry { delay: enqueue::micros(delay), exact, error: text, instead }
            }
            Retry::GiveUp => {
                error!("[{id}] attempt {attempt} failed, and there is no retry left: {text}");
                Outcome::GiveUp { error: text, instead }
            }
            Retry::Never => {
                error!("[{id}] attempt {attempt} failed for good: {text}");
                Outcome::Park { error: text, instead }
            }
        }
    }

    /// The task is to be parked without a run.
    fn given_up<T: Step<T, Context>>(&self, error: String) -> Outcome<T> {
        let instead = self.instead::<T>(&StepError::from(error.clone()));
        let id = self.id;
        match instead {
            Some(_) => error!("[{id}] given up, and goes on with another step: {error}"),
            None => error!("[{id}] given up: {error}"),
        }
        Outcome::GivenUp { error, instead }
    }

    /// The step with which the task goes on instead of being parked. The one that failed is gone: it is read again.
    fn instead<T: Step<T, Context>>(&self, error: &StepError) -> Option<Json<Box<RawValue>>> {
        let step: T = serde_json::from_slice(&self.json).ok()?;
        let instead = catch_unwind(AssertUnwindSafe(|| step.give_up(error)));
        match instead.ok().flatten().map(|step| enqueue::step(&step))? {
            Ok(json) => Some(json),
            Err(error) => {
                error!("[{}] what to do instead is no JSON: {}", self.id, source_chain::text(&error));
                None
            }
        }
    }

    /// Commits a step's transaction together with its transition.
    ///
    /// When the answer is lost, whether it committed is asked of the row: what is brought then names the old fence, waits for
    /// the transaction if it still goes on, and is refused if it has committed.
    pub(super) async fn commit<T: Step<T, Context>>(
        &self,
        next: NextStep<T>,
        tx: Box<Tx>,
    ) -> Result<Outcome<T>, CommitError> {
        let Self { id, fence, .. } = *self;
        if tx.context().control.is_refused() {
            tx.roll_back().await;
            return Ok(Outcome::Dropped);
        }
        let outcome = self.outcome(Ok(next)).with_result_of(&tx.context().control);
        if matches!(outcome, Outcome::Park { .. }) {
            tx.roll_back().await;
            return Ok(outcome);
        }
        match tx.finish(fence, outcome.code(), outcome.step(), outcome.delay()).await {
            Finish::Committed => Ok(Outcome::Committed(matches!(outcome, Outcome::Next(..)))),
            Finish::Failed(error) => Err(CommitError(error)),
            Finish::Refused => {
                warn!(
                    "[{id}] the step's transaction was rolled back: the task was changed, cancelled or given to another worker"
                );
                // Nothing was written: the claim, if there still is one, is given back, and the row read anew.
                Ok(Outcome::Release)
            }
        }
    }

    async fn committed<T: Step<T, Context>>(self, next: NextStep<T>, tx: Box<Tx>) -> Outcome<T> {
        self.commit(next, tx).await.unwrap_or_else(|error| self.outcome(Err(error.into())))
    }
}

/// One attempt without a worker: what [`crate::testing`] runs.
pub(crate) struct Trial {
    pub(crate) id: Uuid,
    pub(crate) queue: String,
    /// JSON.
    pub(crate) step: String,
    /// JSON; none for a task without options.
    pub(crate) options: Option<String>,
    pub(crate) tried: i32,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub(crate) due: i64,
    pub(crate) token: i64,
    /// How long a step that has a time limit is waited for at most, until its time is up and again after that.
    pub(crate) patience: Duration,
}

/// What came of it; delays in microseconds.
pub(crate) enum Tried {
    /// With what the task returns.
    Done(Option<Json<Box<RawValue>>>),
    Next(Json<Box<RawValue>>, i64),
    /// It failed for the last time, and this step is what is done about it.
    Instead(Json<Box<RawValue>>),
    Parked(String),
    Retry(i64),
    Snoozed(i64),
}

impl Trial {
    /// Runs the step as a worker would, and decides what becomes of it as the server does. Also the time that was up, if the step did not end in it.
    pub(crate) async fn run<T: Step<T, Context>>(self, shared: &Arc<Shared>) -> (Tried, Option<Duration>) {
        let Self { id, queue, step, options, tried, due, token, patience } = self;
        let (step, json) = match decoded::<T>(step) {
            Ok(decoded) => decoded,
            Err(parked) => return (parked, None),
        };
        let attempt = Attempt::new(id, 0, tried, &step, json);
        let options = options.map(Bytes::from);
        let own = options.as_deref().and_then(|options| serde_json::from_slice(options).ok());
        let control: Arc<Control> = Arc::default();
        let context = attempt.clone().context(
            shared.clone(),
            token,
            due,
            (queue.into(), options),
            control.clone(),
            &step,
        );
        let limit = time_limit(&context, &step);
        let mut future = Box::pin(layered::run(step, context));
        let (outcome, over) = match limit {
            None => (future.await, None),
            Some(limit) => match tokio::time::timeout(limit.min(patience), &mut future).await {
                Ok(outcome) => (outcome, None),
                Err(_) => {
                    control.cancel();
                    let ended = tokio::time::timeout(CANCEL_GRACE.min(patience), future).await;
                    (ended.unwrap_or_else(|_| attempt.timed_out(Some(limit))), Some(limit))
                }
            },
        };
        let policy = retry::own_policy(&own.unwrap_or_default());
        (tried_under(&policy, tried.saturating_add(1), outcome.with_result_of(&control)), over)
    }

    /// Asks the step's code what to do about a task that is to be parked without a run, as a worker does.
    pub(crate) fn give_up<T: Step<T, Context>>(self, error: String) -> Tried {
        match decoded::<T>(self.step) {
            Ok((step, json)) => {
                let outcome = Attempt::new(self.id, 0, self.tried, &step, json).given_up::<T>(error);
                tried_under(&Policy::NONE, self.tried, outcome)
            }
            Err(_) => Tried::Parked(error),
        }
    }
}

/// A step without a worker, or why its task is parked.
fn decoded<T: Step<T, Context>>(step: String) -> Result<(T, Bytes), Tried> {
    decode::<T>(Source::Json(step.into())).map_err(|outcome| match outcome {
        Outcome::Broken(error) => Tried::Parked(error),
        _ => Tried::Parked("the program does not know the step".to_owned()),
    })
}

/// What the server makes of an outcome under the task's own policy.
fn tried_under<T>(policy: &Policy, attempt: i32, outcome: Outcome<T>) -> Tried {
    let parked = |error: String, instead: Option<Json<Box<RawValue>>>| match instead {
        Some(step) => Tried::Instead(step),
        None => Tried::Parked(error),
    };
    let limit = policy.limit();
    let own = || policy.delay(attempt, retry::random());
    match outcome {
        Outcome::Next(step, _) => Tried::Next(step, 0),
        Outcome::NextAfter(step, delay) => Tried::Next(step, delay),
        Outcome::Retry { error, instead, .. } if limit.is_some_and(|limit| attempt > limit) => {
            parked(error, instead)
        }
        Outcome::Retry { delay, exact, .. } => {
            Tried::Retry(if exact { delay } else { own().unwrap_or(delay) })
        }
        Outcome::GiveUp { .. } if limit.is_some_and(|limit| attempt <= limit) => {
            Tried::Retry(own().unwrap_or(SERVER_DELAY))
        }
        Outcome::GiveUp { error, instead }
        | Outcome::GivenUp { error, instead }
        | Outcome::Park { error, instead } => parked(error, instead),
        Outcome::Broken(error) => Tried::Parked(error),
        Outcome::Snooze(delay) => Tried::Snoozed(delay),
        Outcome::Done(result) => Tried::Done(result),
        _ => Tried::Done(None),
    }
}
