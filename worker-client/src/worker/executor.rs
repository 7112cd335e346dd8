//! The executor: decodes steps, runs them, and turns what they end in into results.
//!
//! Steps come in chunks. A chunk polls each of its steps once; those that are done then (a step that only computes) cost neither a
//! runtime task nor a message of their own. A step that waits goes on in a runtime task, so that it holds up nobody, and a chunk that
//! has computed for a while hands what is left of it to another thread.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use chrono::DateTime;
use chrono::Utc;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing::debug;
use tracing::error;
use tracing::info;
use uuid::Uuid;

use super::dispatcher::Event;
use crate::Context;
use crate::NextStep;
use crate::Step;
use crate::StepResult;
use crate::context::Shared;
use crate::enqueue;
use crate::source_chain;

/// Steps that are handed to one runtime task at a time.
pub(super) const CHUNK: usize = 32;

/// How long a chunk may compute before it hands the rest of it on.
const CHUNK_TIME: Duration = Duration::from_micros(200);

/// A step to run.
pub(super) struct Start<T> {
    pub(super) id: Uuid,
    pub(super) fence: i64,
    pub(super) token: i64,
    pub(super) tried: i32,
    pub(super) due_at: DateTime<Utc>,
    pub(super) source: Source<T>,
    pub(super) control: Arc<Control>,
}

/// Where the step comes from.
pub(super) enum Source<T> {
    /// A row that `exchange` returned: still to be decoded.
    Row(PgRow),
    /// The last step of the same task.
    Memory(T),
}

/// How the dispatcher reaches a step that runs.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Asks the step to end.
    pub(super) cancellation: CancellationToken,
    /// Drops it.
    pub(super) drop: Notify,
}

/// A result for the server.
pub(super) struct Finished<T> {
    pub(super) id: Uuid,
    pub(super) fence: i64,
    pub(super) token: i64,
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
}

impl<T> Outcome<T> {
    pub(super) fn code(&self) -> i16 {
        match self {
            Self::Done => 0,
            Self::Next(..) => 1,
            Self::NextAfter(..) => 2,
            Self::Retry(_) => 3,
            Self::Park(_) => 4,
            Self::Release => 5,
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
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::UnboundedSender<Event<T>>,
}

impl<T> Clone for Executor<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), events: self.events.clone() }
    }
}

impl<T: Step<T, Context> + 'static> Executor<T> {
    /// Starts steps.
    pub(super) fn start(&self, mut starts: Vec<Start<T>>) {
        while starts.len() > CHUNK {
            let rest = starts.split_off(CHUNK);
            self.spawn_chunk(starts);
            starts = rest;
        }
        if !starts.is_empty() {
            self.spawn_chunk(starts);
        }
    }

    fn spawn_chunk(&self, starts: Vec<Start<T>>) {
        let executor = self.clone();
        // Boxed, because a chunk may spawn the rest of itself.
        let chunk: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let began = Instant::now();
            let mut finished = Vec::with_capacity(starts.len());
            let mut starts = starts.into_iter();
            for start in starts.by_ref() {
                if let Some(result) = executor.begin(start).await {
                    finished.push(result);
                }
                if began.elapsed() > CHUNK_TIME {
                    break;
                }
            }
            if !finished.is_empty() {
                let _ = executor.events.send(Event::Finished(finished));
            }
            let rest: Vec<_> = starts.collect();
            if !rest.is_empty() {
                executor.spawn_chunk(rest);
            }
        });
        tokio::spawn(chunk);
    }

    /// Polls a step once. What it ended in, or nothing if it goes on in a task of its own.
    async fn begin(&self, start: Start<T>) -> Option<Finished<T>> {
        let Start { id, fence, token, tried, due_at, source, control } = start;
        let finished = move |outcome| Finished { id, fence, token, outcome };
        let step = match decode::<T>(source) {
            Ok(step) => step,
            Err(outcome) => {
                error!("[{id}] the step can't be run here: {}", outcome.error().unwrap_or("it is not known"));
                return Some(finished(outcome));
            }
        };
        let (limit, delay) = (step.retry_limit(), step.retry_delay());
        let context = Context {
            shared: self.shared.clone(),
            task_id: id,
            token,
            tried,
            due_at,
            cancellation: control.cancellation.clone(),
        };
        let span = tracing::info_span!("step", task = %id, attempt = context.attempt());
        let future = async move {
            info!("[{id}] run step {step:?}");
            step.step(&context).await
        };
        let mut future = Caught(Box::pin(future.instrument(span)));
        let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx))).await;
        if let Poll::Ready(result) = first {
            return Some(finished(outcome(id, tried, limit, delay, result)));
        }
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = tokio::select! {
                result = future => Event::Finished(vec![finished(outcome(id, tried, limit, delay, result))]),
                () = control.drop.notified() => Event::Dropped(id, token),
            };
            let _ = events.send(event);
        });
        None
    }
}

/// A future whose panic is an error.
struct Caught<F>(Pin<Box<F>>);

impl<T, F: Future<Output = StepResult<T>>> Future for Caught<F> {
    type Output = StepResult<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no message".to_owned());
                Poll::Ready(Err(format!("the step panicked: {text}").into()))
            }
        }
    }
}

fn decode<T: DeserializeOwned>(source: Source<T>) -> Result<T, Outcome<T>> {
    let row = match source {
        Source::Memory(step) => return Ok(step),
        Source::Row(row) => row,
    };
    let value = row.try_get_raw(6).map_err(|error| Outcome::Broken(error.to_string()))?;
    let bytes = value.as_bytes().map_err(|error| Outcome::Broken(error.to_string()))?;
    // Binary jsonb is a version byte and then text.
    let json = bytes.strip_prefix(&[1]).unwrap_or(bytes);
    serde_json::from_slice(json).map_err(|error| {
        // A step of a newer program: another worker may know it. serde_json gives the reason as text only.
        if error.to_string().starts_with("unknown variant") {
            Outcome::Unknown
        } else {
            let error = crate::Error::DeserializeStep(
                error,
                String::from_utf8_lossy(json).chars().take(200).collect(),
            );
            Outcome::Broken(source_chain::text(&error))
        }
    })
}

fn outcome<T: Step<T, Context>>(
    id: Uuid,
    tried: i32,
    limit: i32,
    delay: Duration,
    result: StepResult<T>,
) -> Outcome<T> {
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
            if tried < limit {
                debug!("[{id}] attempt {attempt} failed, {limit} retries, the next in {delay:?}: {text}");
                Outcome::Retry(enqueue::micros(delay))
            } else {
                error!("[{id}] parked after attempt {attempt}: {text}");
                Outcome::Park(text)
            }
        }
    }
}
