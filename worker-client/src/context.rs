//! What a step may know beside its own fields.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use chrono::Utc;
use serde::Serialize;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Error;
use crate::StepError;
use crate::StepName;
use crate::Tx;
use crate::layer::AnyLayer;
use crate::layer::Extensions;
use crate::progress::Bell;
use crate::worker::Attempt;
use crate::worker::Control;

/// What a step may know beside its own fields; the argument of steps that are declared as `impl Step<Task, Context>`.
pub struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) attempt: Attempt,
    pub(crate) token: i64,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub(crate) due: i64,
    pub(crate) queue: Bytes,
    /// JSON; none for a task without options.
    pub(crate) options: Option<Bytes>,
    pub(crate) traceparent: Option<Arc<str>>,
    pub(crate) step_name: StepName,
    pub(crate) control: Arc<Control>,
    /// The transaction of a step that has ended well in one, for the worker to commit.
    pub(crate) transaction: Mutex<Option<Box<Tx>>>,
    pub(crate) extensions: OnceLock<Arc<Extensions>>,
}

/// What all steps of a worker share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) db: PgPool,
    /// Nil in tests without a worker.
    pub(crate) worker: Uuid,
    /// Whether there is a pooler between.
    pub(crate) pooled: bool,
    pub(crate) state: Option<Arc<dyn Any + Send + Sync>>,
    /// The outermost first.
    pub(crate) layers: Vec<Arc<dyn AnyLayer>>,
    pub(crate) bell: Arc<Bell>,
}

/// What of a task's options its steps are told.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct OwnOptions {
    meta: serde_json::Value,
    tags: Vec<String>,
    pub(crate) traceparent: Option<String>,
}

impl OwnOptions {
    /// Out of the JSON; the server has checked it.
    pub(crate) fn of(options: Option<&Bytes>) -> Self {
        options.and_then(|options| serde_json::from_slice(options).ok()).unwrap_or_default()
    }
}

impl Context {
    /// The same for a step's transaction.
    pub(crate) fn for_transaction(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            attempt: self.attempt.clone(),
            queue: self.queue.clone(),
            options: self.options.clone(),
            traceparent: self.traceparent.clone(),
            control: self.control.clone(),
            transaction: Mutex::default(),
            extensions: self.extensions.clone(),
            ..*self
        }
    }

    /// Keeps the transaction of a step that has ended well.
    pub(crate) fn keep(&self, tx: Tx) {
        *self.transaction.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tx));
    }

    /// The same of a context of one's own.
    pub(crate) fn take_transaction(&mut self) -> Option<Box<Tx>> {
        self.transaction.get_mut().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The transaction of a step that has ended well in one.
    pub(crate) fn kept(&self) -> Option<Box<Tx>> {
        self.transaction.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The pool that the worker was made with.
    pub fn db(&self) -> &PgPool {
        &self.shared.db
    }

    /// The task's id.
    pub fn task_id(&self) -> Uuid {
        self.attempt.id
    }

    /// Which attempt of the step this is, from 1.
    pub fn attempt(&self) -> i32 {
        self.attempt.tried.saturating_add(1)
    }

    /// The attempt's token: larger than that of every earlier attempt of any task, across restarts.
    ///
    /// Keep the largest one seen beside what the step writes elsewhere, and refuse smaller ones there: then an
    /// attempt that was given up and goes on nevertheless cannot overwrite the work of a later one.
    pub fn token(&self) -> i64 {
        self.token
    }

    /// Sets what the task returns if it ends with this step: any value that is JSON. It is kept in `pg_task.history`, for
    /// [`crate::Handle::result`] and `pg_task.wait`; a later call replaces it, and a step that fails or has a next one returns nothing.
    ///
    /// # Errors
    /// [`crate::Error::SerializeResult`] when the value is no JSON. One that is larger than `pg_task.max_step_size` parks the task.
    pub fn set_result(&self, value: &impl Serialize) -> crate::Result<()> {
        let json = serde_json::value::to_raw_value(value).map_err(Error::SerializeResult)?;
        self.control.set_result(json);
        Ok(())
    }

    /// Says how far the step is, for people: shown in `pg_task.running` about a second later, until the step ends. Nothing waits for it, and only
    /// the last word counts, so it may be called for every row.
    ///
    /// The value is the part that is done, 0 to 1, or `None` if that is not known; of the text the first 200 bytes are kept, and none of it is
    /// made into a string of its own if it comes as `format_args!`.
    ///
    /// ```rust,no_run
    /// # fn demo(context: &pg_task_client::Context, done: usize, rows: usize) {
    /// context.set_progress(done as f64 / rows as f64, format_args!("{done} of {rows} rows"));
    /// context.set_progress(None, "waiting for the printer");
    /// # }
    /// ```
    pub fn set_progress(&self, value: impl Into<Option<f64>>, text: impl fmt::Display) {
        self.control.set_progress(value.into(), text);
        self.shared.bell.note_progress();
    }

    /// When the step was due.
    pub fn due_at(&self) -> DateTime<Utc> {
        const START: i64 = 946_684_800_000_000; // 2000-01-01 in microseconds since 1970
        DateTime::from_timestamp_micros(self.due.saturating_add(START)).unwrap_or_default()
    }

    /// Which step of which task it is.
    pub fn step_name(&self) -> StepName {
        self.step_name
    }

    /// What becomes of the attempt if it ends in the error: the time until it is retried, or none if the task is parked.
    pub fn retry_after(&self, error: &StepError) -> Option<Duration> {
        self.attempt.retry_after(error)
    }

    /// Leaves a value for the layers and the step of this attempt, in place of one of the same type: [`Context::extension`].
    pub fn insert<V: Any + Send + Sync>(&self, value: V) {
        self.extensions.get_or_init(Arc::default).insert(value);
    }

    /// The value of a type that a [`crate::Layer`] or the step has left in this attempt.
    pub fn extension<V: Any + Send + Sync>(&self) -> Option<Arc<V>> {
        self.extensions.get()?.value()
    }

    /// The queue that the task is in.
    pub fn queue(&self) -> &str {
        std::str::from_utf8(&self.queue).unwrap_or_default()
    }

    /// What the task was enqueued with as `meta`, or was given since; null when there is none.
    pub fn meta(&self) -> serde_json::Value {
        self.own_options().meta
    }

    /// The tags that the task was enqueued with, or was given since.
    pub fn tags(&self) -> Vec<String> {
        self.own_options().tags
    }

    /// The W3C trace context of whoever enqueued the task, if it came with one.
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    fn own_options(&self) -> OwnOptions {
        OwnOptions::of(self.options.as_ref())
    }

    /// Cancelled when the task was deleted (`pg_task.cancel`) or handed to another worker: the step's result will be refused. Cancelled too when its
    /// time is up: a result counts still. A few seconds later the step is dropped.
    pub fn cancellation(&self) -> &CancellationToken {
        self.control.token()
    }

    /// Waits until the step is to end: its task was cancelled or handed to another worker, or its time is up ([`crate::Step::TIMEOUT`]).
    pub async fn cancelled(&self) {
        self.cancellation().cancelled().await;
    }

    /// The application's state, as given to [`crate::Worker::with_state`].
    ///
    /// # Panics
    /// If the worker has no state or one of another type: a mistake in the program, which parks the task as every panic does.
    pub fn state<T: Any + Send + Sync>(&self) -> &T {
        self.shared.state.as_deref().and_then(|state| state.downcast_ref()).unwrap_or_else(|| {
            panic!("the worker has no state of type {}: see Worker::with_state", std::any::type_name::<T>())
        })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("task_id", &self.task_id())
            .field("step", &self.step_name())
            .field("attempt", &self.attempt())
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
