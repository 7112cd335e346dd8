//! Unique tasks: a key stands for one task.

use std::time::Duration;

use chrono::DateTime;
use chrono::Utc;
use serde::Serialize;
use sqlx::PgExecutor;
use uuid::Uuid;

use super::Enqueue;
use super::interval;
use super::step;
use crate::Error;
use crate::Result;

/// How a task with a key is enqueued: made by [`Enqueue::unique`].
///
/// Without more said, a task holds its key until it is done, and what comes meanwhile is skipped. A debounce, that runs the last payload
/// five seconds after the last call:
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # use std::time::Duration;
/// # async fn demo<T: pg_task::Scheduler>(db: sqlx::PgPool, task: T) -> pg_task::Result<()> {
/// use pg_task::{OnConflict, UniqueScope};
///
/// pg_task::Enqueue::new()
///     .unique("search-index:7")
///     .scope(UniqueScope::Queued)
///     .on_conflict(OnConflict::ReplaceAndMove)
///     .delay(&db, &task, Duration::from_secs(5))
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Unique<'a> {
    enqueue: Enqueue<'a>,
    key: &'a str,
    scope: UniqueScope,
    on_conflict: OnConflict,
    period: Option<Duration>,
}

/// Until when a task holds its key.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum UniqueScope {
    /// Until it has ended; a parked one holds it, too.
    #[default]
    Done,
    /// For the [period](Unique::period), whatever becomes of it.
    Period,
    /// Until a worker takes it.
    Queued,
    /// Until it has ended or is parked.
    Running,
}

/// What is to happen when a task holds the key.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum OnConflict {
    /// The call fails: [`Error::AddTask`] with the SQLSTATE 23505.
    Error,
    /// The task is due when the new one would be.
    Move,
    /// The task gets the new step, queue, priority and options; it is due when it was.
    Replace,
    /// Both.
    ReplaceAndMove,
    /// Nothing.
    #[default]
    Skip,
}

/// What happened, and the task that the key stands for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum UniqueOutcome {
    /// The key was free: this is a new task.
    Enqueued(Uuid),
    /// The task was there and is due at the new time.
    Moved(Uuid),
    /// The task was there and has the new step.
    Replaced(Uuid),
    /// The task is, or within the period was, there.
    Skipped(Uuid),
}

impl UniqueOutcome {
    /// The task that the key stands for.
    #[must_use]
    pub const fn id(self) -> Uuid {
        match self {
            Self::Enqueued(id) | Self::Moved(id) | Self::Replaced(id) | Self::Skipped(id) => id,
        }
    }
}

impl<'a> Enqueue<'a> {
    /// Enqueues a task unless one with the same key is there. A key has 1 to 255 bytes; there is one name space for the whole database.
    pub const fn unique(self, key: &'a str) -> Unique<'a> {
        Unique { enqueue: self, key, scope: UniqueScope::Done, on_conflict: OnConflict::Skip, period: None }
    }
}

impl Unique<'_> {
    /// Until when the new task holds its key. A task that is there holds it as the call said that enqueued it.
    pub const fn scope(mut self, scope: UniqueScope) -> Self {
        self.scope = scope;
        self
    }

    /// What is to happen when a task holds the key.
    pub const fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.on_conflict = on_conflict;
        self
    }

    /// The new task holds its key for so long in any case, even when it has ended before.
    pub const fn period(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }

    /// Enqueues a task that is due now.
    ///
    /// # Errors
    /// As [`crate::enqueue`].
    pub async fn enqueue<'e>(self, db: impl PgExecutor<'e>, task: &impl Serialize) -> Result<UniqueOutcome> {
        self.send(db, task, None, None).await
    }

    /// Enqueues a task that is due after a delay, which the server counts from the start of the transaction.
    ///
    /// # Errors
    /// As [`crate::enqueue`].
    pub async fn delay<'e>(
        self,
        db: impl PgExecutor<'e>,
        task: &impl Serialize,
        delay: Duration,
    ) -> Result<UniqueOutcome> {
        self.send(db, task, None, Some(delay)).await
    }

    /// Enqueues a task that is due at a moment.
    ///
    /// # Errors
    /// As [`crate::enqueue`].
    pub async fn schedule<'e>(
        self,
        db: impl PgExecutor<'e>,
        task: &impl Serialize,
        at: DateTime<Utc>,
    ) -> Result<UniqueOutcome> {
        self.send(db, task, Some(at), None).await
    }

    async fn send<'e>(
        self,
        db: impl PgExecutor<'e>,
        task: &impl Serialize,
        at: Option<DateTime<Utc>>,
        delay: Option<Duration>,
    ) -> Result<UniqueOutcome> {
        let (id, outcome): (Uuid, String) = sqlx::query_as(
            "SELECT u.id, u.outcome FROM pg_task.enqueue_unique($1, $2, $3, $4, $5, \
             COALESCE($6, pg_catalog.now() OPERATOR(pg_catalog.+) $7), $8, $9, $10) AS u",
        )
        .bind(step(task)?)
        .bind(self.key)
        .bind(self.scope.name())
        .bind(self.on_conflict.name())
        .bind(self.period.map(interval))
        .bind(at)
        .bind(delay.map(interval))
        .bind(self.enqueue.queue)
        .bind(i32::from(self.enqueue.priority))
        .bind(self.enqueue.options.json()?)
        .fetch_one(db)
        .await
        .map_err(Error::AddTask)?;
        match &*outcome {
            "enqueued" => Ok(UniqueOutcome::Enqueued(id)),
            "moved" => Ok(UniqueOutcome::Moved(id)),
            "replaced" => Ok(UniqueOutcome::Replaced(id)),
            "skipped" => Ok(UniqueOutcome::Skipped(id)),
            other => Err(Error::AddTask(sqlx::Error::Protocol(format!("unknown outcome \"{other}\"")))),
        }
    }
}

impl UniqueScope {
    const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Period => "period",
            Self::Queued => "queued",
            Self::Running => "running",
        }
    }
}

impl OnConflict {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Move => "move",
            Self::Replace => "replace",
            Self::ReplaceAndMove => "replace_and_move",
            Self::Skip => "skip",
        }
    }
}
