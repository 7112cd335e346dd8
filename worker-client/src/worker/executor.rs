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
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::types::Json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;
use uuid::Uuid;

use super::layered;
use crate::Context;
use crate::NextStep;
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
use crate::source_chain;
use crate::transaction::Finish;

/// How long a runner may go on before it lets others of its thread have a turn.
const TURN: Duration = Duration::from_micros(200);

/// Retries of a transaction that failed for its surroundings, if the step has fewer: as many as the server allows for lost workers by
/// default (`pg_task.lost_limit`). Nothing that the step did is left then.
const LOST_LIMIT: i32 = 3;

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
    /// The last step of the same task.
    Memory(T),
}

/// How the dispatcher reaches a step that runs, and the step hears of it. Most steps never ask: the token is made when it is needed.
#[derive(Debug, Default)]
pub(crate) struct Control {
    token: OnceLock<CancellationToken>,
    drop: Notify,
}

impl Control {
    /// The token that is cancelled when the step is to end.
    pub(crate) fn token(&self) -> &CancellationToken {
        self.token.get_or_init(CancellationToken::new)
    }

    /// Asks the step to end.
    pub(super) fn cancel(&self) {
        self.token().cancel();
    }

    /// Drops the step at its next point of waiting.
    pub(super) fn drop_step(&self) {
        self.drop.notify_one();
    }
}

/// A result for the server.
pub(super) struct Finished<T> {
    pub(super) claim: Claim,
    pub(super) outcome: Outcome<T>,
}

/// What a step ended in, as the protocol has it. The next step is kept, to go on with it without reading it back.
pub(super) enum Outcome<T> {
    Done,
    Next(Json<Box<RawValue>>, T),
    NextAfter(Json<Box<RawValue>>, i64),
    Retry(i64),
    Park(String),
    Release,
    Unknown,
    Broken(String),
    /// Its transaction has committed together with the transition: there is nothing to bring. Whether the next step is due now.
    Committed(bool),
    /// It was dropped; nothing is told to the server, which has given the task away.
    Dropped,
}

impl<T> Outcome<T> {
    pub(super) fn code(&self) -> i16 {
        match self {
            Self::Done => 0,
            Self::Next(..) => 1,
            Self::NextAfter(..) => 2,
            Self::Retry(_) => 3,
            Self::Park(_) => 4,
            Self::Release | Self::Committed(_) | Self::Dropped => 5,
            Self::Unknown => 6,
            Self::Broken(_) => 7,
        }
    }

    pub(super) fn step(&self) -> Option<&Json<Box<RawValue>>> {
        match self {
            Self::Next(step, _) | Self::NextAfter(step, _) => Some(step),
            _ => None,
        }
    }

    pub(super) fn delay(&self) -> Option<i64> {
        match self {
            Self::NextAfter(_, delay) | Self::Retry(delay) => Some(*delay),
            _ => None,
        }
    }

    pub(super) fn error(&self) -> Option<&str> {
        match self {
            Self::Park(error) | Self::Broken(error) => Some(error),
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
    /// Something is finished.
    news: Notify,
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
            news: Notify::new(),
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

    /// Waits until something is finished.
    pub(super) async fn news(&self) {
        self.inner.news.notified().await;
    }

    /// Fetches what is finished.
    pub(super) fn take_finished(&self) -> Vec<Finished<T>> {
        std::mem::take(&mut *lock(&self.inner.finished))
    }
}

/// No holder of these locks runs foreign code: a poisoned one is as good as any.
fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            self.news.notify_one();
        }
    }
}

/// Polls a step once. What it ended in, or nothing if it goes on in a task of its own.
async fn begin<T: Step<T, Context> + 'static>(inner: &Arc<Inner<T>>, start: Start<T>) -> Option<Finished<T>> {
    let Start { claim, tried, source, control } = start;
    let Claim { id, fence, token, due, .. } = claim;
    let (queue, options) = (claim.queue.clone(), claim.options.clone());
    let finished = move |outcome| Finished { claim, outcome };
    let step = match decode::<T>(source) {
        Ok(step) => step,
        Err(outcome) => {
            error!("[{id}] the step can't be run here: {}", outcome.error().unwrap_or("it is not known"));
            return Some(finished(outcome));
        }
    };
    let attempt = Attempt::new(id, fence, tried, &step);
    let mut context =
        attempt.context(inner.shared.clone(), token, due, (queue, options), control.clone(), &step);
    let span = tracing::info_span!("step", task = %id, step = %context.step_name(), queue = context.queue(), attempt = context.attempt(), traceparent = context.traceparent());
    if !inner.shared.layers.is_empty() || context.traceparent().is_some() {
        return begin_layered(inner, finished, control, layered::run(step, context).instrument(span)).await;
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
    let inner = inner.clone();
    tokio::spawn(async move {
        let outcome = match first {
            Some((next, tx)) => attempt.committed(next, tx).await,
            None => tokio::select! {
                result = future => match result {
                    Ok((next, Some(tx))) => attempt.committed(next, tx).await,
                    Ok((next, None)) => attempt.outcome(Ok(next)),
                    Err(error) => attempt.outcome(Err(error)),
                },
                () = control.drop.notified() => Outcome::Dropped,
            },
        };
        inner.finish(finished(outcome));
    });
    None
}

/// The same for a step within layers.
async fn begin_layered<T: Step<T, Context> + 'static>(
    inner: &Arc<Inner<T>>,
    finished: impl FnOnce(Outcome<T>) -> Finished<T> + Send + 'static,
    control: Arc<Control>,
    future: impl Future<Output = Outcome<T>> + Send + 'static,
) -> Option<Finished<T>> {
    let mut future = Box::pin(future);
    let first = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    if let Poll::Ready(outcome) = first {
        return Some(finished(outcome));
    }
    let inner = inner.clone();
    tokio::spawn(async move {
        let outcome = tokio::select! {
            outcome = future => outcome,
            () = control.drop.notified() => Outcome::Dropped,
        };
        inner.finish(finished(outcome));
    });
    None
}

/// Makes a panic of a future an error.
pub(crate) fn caught<F: ?Sized>(what: &'static str, future: Pin<Box<F>>) -> Caught<F> {
    Caught { what, future }
}

/// A future whose panic is an error.
pub(crate) struct Caught<F: ?Sized> {
    what: &'static str,
    future: Pin<Box<F>>,
}

impl<T, F: Future<Output = Result<T, StepError>> + ?Sized> Future for Caught<F> {
    type Output = Result<T, StepError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no message".to_owned());
                Poll::Ready(Err(format!("{} panicked: {text}", self.what).into()))
            }
        }
    }
}

fn decode<T: DeserializeOwned>(source: Source<T>) -> Result<T, Outcome<T>> {
    let json = match source {
        Source::Memory(step) => return Ok(step),
        Source::Json(json) => json,
    };
    serde_json::from_slice(&json).map_err(|error| {
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

/// What is known of a run before it ends.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) id: Uuid,
    fence: i64,
    pub(crate) tried: i32,
    limit: i32,
    delay: Duration,
}

impl Attempt {
    fn new<T: Step<T, Context>>(id: Uuid, fence: i64, tried: i32, step: &T) -> Self {
        Self { id, fence, tried, limit: step.retry_limit(), delay: step.retry_delay() }
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

    /// How many retries there are after an error.
    fn limit(&self, error: &StepError) -> i32 {
        let begin = error.downcast_ref().map(|BeginError(error)| error);
        let commit = || error.downcast_ref().map(|CommitError(error)| error);
        match begin.or_else(commit) {
            Some(error) if error::is_about_surroundings(error) => self.limit.max(LOST_LIMIT),
            _ => self.limit,
        }
    }

    /// When the attempt is retried after an error, if it is.
    pub(crate) fn retry_after(&self, error: &StepError) -> Option<Duration> {
        (self.tried < self.limit(error)).then_some(self.delay)
    }

    pub(super) fn outcome<T: Step<T, Context>>(self, result: StepResult<T>) -> Outcome<T> {
        let Self { id, tried, .. } = self;
        let attempt = tried.saturating_add(1);
        match result {
            Ok(NextStep::None) => {
                info!("[{id}] done");
                Outcome::Done
            }
            Ok(NextStep::Now(step)) => match enqueue::step(&step) {
                Ok(json) => {
                    debug!("[{id}] goes on with {step:?}");
                    Outcome::Next(json, step)
                }
                Err(error) => Outcome::Park(source_chain::text(&error)),
            },
            Ok(NextStep::Delayed(step, after)) => match enqueue::step(&step) {
                Ok(json) => {
                    debug!("[{id}] goes on in {after:?} with {step:?}");
                    Outcome::NextAfter(json, enqueue::micros(after))
                }
                Err(error) => Outcome::Park(source_chain::text(&error)),
            },
            Err(error) => {
                let text = source_chain::text(&*error);
                if let Some(delay) = self.retry_after(&error) {
                    let limit = self.limit(&error);
                    debug!("[{id}] attempt {attempt} failed, {limit} retries, the next in {delay:?}: {text}");
                    Outcome::Retry(enqueue::micros(delay))
                } else {
                    error!("[{id}] parked after attempt {attempt}: {text}");
                    Outcome::Park(text)
                }
            }
        }
    }

    /// Commits a step's transaction together with its transition.
    ///
    /// When the answer is lost, whether it committed is asked of the row: what is brought then names the old fence, waits for
    /// the transaction if it still goes on, and is refused if it has committed.
    pub(super) async fn commit<T: Step<T, Context>>(
        self,
        next: NextStep<T>,
        tx: Box<Tx>,
    ) -> Result<Outcome<T>, CommitError> {
        let Self { id, fence, .. } = self;
        let outcome = self.outcome(Ok(next));
        if matches!(outcome, Outcome::Park(_)) {
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
}

/// What came of it; delays in microseconds.
pub(crate) enum Tried {
    Done,
    Next(Json<Box<RawValue>>, i64),
    Parked(String),
    Retry(i64),
}

impl Trial {
    /// Runs the step as a worker would.
    pub(crate) async fn run<T: Step<T, Context>>(self, shared: &Arc<Shared>) -> Tried {
        let Self { id, queue, step, options, tried, due, token } = self;
        let step = match decode::<T>(Source::Json(step.into())) {
            Ok(step) => step,
            Err(Outcome::Broken(error)) => return Tried::Parked(error),
            Err(_) => return Tried::Parked("the program does not know the step".to_owned()),
        };
        let attempt = Attempt::new(id, 0, tried, &step);
        let named = (queue.into(), options.map(Bytes::from));
        let context = attempt.context(shared.clone(), token, due, named, Arc::default(), &step);
        match layered::run(step, context).await {
            Outcome::Next(step, _) => Tried::Next(step, 0),
            Outcome::NextAfter(step, delay) => Tried::Next(step, delay),
            Outcome::Park(error) | Outcome::Broken(error) => Tried::Parked(error),
            Outcome::Retry(delay) => Tried::Retry(delay),
            _ => Tried::Done,
        }
    }
}
