//! What a step may know beside its own fields.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;

use bytes::Bytes;
use chrono::DateTime;
use chrono::Utc;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Tx;
use crate::worker::Control;

/// What a step may know beside its own fields; the argument of steps that are declared as `impl Step<Task, Context>`.
pub struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) task_id: Uuid,
    pub(crate) token: i64,
    pub(crate) tried: i32,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub(crate) due: i64,
    pub(crate) queue: Bytes,
    /// JSON; none for a task without options.
    pub(crate) options: Option<Bytes>,
    pub(crate) control: Arc<Control>,
    /// The transaction of a step that has ended well in one, for the worker to commit.
    pub(crate) transaction: OnceLock<Box<Tx>>,
}

/// What all steps of a worker share.
pub(crate) struct Shared {
    pub(crate) db: PgPool,
    /// Nil in tests without a worker.
    pub(crate) worker: Uuid,
    /// Whether there is a pooler between.
    pub(crate) pooled: bool,
    pub(crate) state: Option<Arc<dyn Any + Send + Sync>>,
}

impl Context {
    /// The same for a step's transaction.
    pub(crate) fn for_transaction(&self) -> Self {
        let Self { task_id, token, tried, due, .. } = *self;
        let (shared, queue, control) = (self.shared.clone(), self.queue.clone(), self.control.clone());
        let options = self.options.clone();
        Self { shared, task_id, token, tried, due, queue, options, control, transaction: OnceLock::new() }
    }

    /// Keeps the transaction of a step that has ended well.
    pub(crate) fn keep(&self, tx: Tx) {
        // A context is of one run of one step: there is none yet.
        let _ = self.transaction.set(Box::new(tx));
    }

    /// The pool that the worker was made with.
    pub fn db(&self) -> &PgPool {
        &self.shared.db
    }

    /// The task's id.
    pub fn task_id(&self) -> Uuid {
        self.task_id
    }

    /// Which attempt of the step this is, from 1.
    pub fn attempt(&self) -> i32 {
        self.tried.saturating_add(1)
    }

    /// The attempt's token: larger than that of every earlier attempt of any task, across restarts.
    ///
    /// Keep the largest one seen beside what the step writes elsewhere, and refuse smaller ones there: then an
    /// attempt that was given up and goes on nevertheless cannot overwrite the work of a later one.
    pub fn token(&self) -> i64 {
        self.token
    }

    /// When the step was due.
    pub fn due_at(&self) -> DateTime<Utc> {
        const START: i64 = 946_684_800_000_000; // 2000-01-01 in microseconds since 1970
        DateTime::from_timestamp_micros(self.due.saturating_add(START)).unwrap_or_default()
    }

    /// The queue that the task is in.
    pub fn queue(&self) -> &str {
        std::str::from_utf8(&self.queue).unwrap_or_default()
    }

    /// What the task was enqueued with as `meta`, or was given since; null when there is none.
    pub fn meta(&self) -> serde_json::Value {
        #[derive(Default, serde::Deserialize)]
        struct Options {
            #[serde(default)]
            meta: serde_json::Value,
        }
        let options = self.options.as_deref().map(serde_json::from_slice::<Options>);
        options.and_then(Result::ok).unwrap_or_default().meta
    }

    /// Cancelled when the task was deleted (`pg_task.cancel`) or handed to another worker. The step's result will be refused; a few
    /// seconds later the step is dropped.
    pub fn cancellation(&self) -> &CancellationToken {
        self.control.token()
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
            .field("task_id", &self.task_id)
            .field("attempt", &self.attempt())
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
