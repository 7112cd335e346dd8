//! Settings of queues: what runs at once, how much in a time, pauses, and what holds for tasks that do not say it themselves.

use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::Json;

use crate::Error;
use crate::Result;
use crate::RetryPolicy;
use crate::enqueue::interval;

/// All queues together, for the functions that take a queue's name.
pub const ALL_QUEUES: &str = "*";

/// The settings of a queue: its limits, and what holds for its tasks if they do not say it themselves. What is not set has no limit and says nothing.
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # use std::time::Duration;
/// # async fn demo(db: sqlx::PgPool) -> pg_task::Result<()> {
/// let limits = pg_task::QueueLimits::new().concurrency(5).rate(100, Duration::from_secs(60)).burst(10);
/// pg_task::set_queue(&db, "mail", limits.timeout(Duration::from_secs(30))).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueLimits<'a> {
    concurrency: Option<u32>,
    rate: Option<(u32, Duration)>,
    burst: Option<u32>,
    key_concurrency: Option<u32>,
    retry: Option<RetryPolicy>,
    timeout: Option<Duration>,
    retention: Option<Duration>,
    key_rate: Option<(u32, Duration)>,
    key_burst: Option<u32>,
    key_weights: Option<&'a [(&'a str, u32)]>,
}

impl<'a> QueueLimits<'a> {
    /// No limits.
    pub const fn new() -> Self {
        Self {
            concurrency: None,
            rate: None,
            burst: None,
            key_concurrency: None,
            retry: None,
            timeout: None,
            retention: None,
            key_rate: None,
            key_burst: None,
            key_weights: None,
        }
    }

    /// So many tasks run at once, at most, with however many workers.
    pub const fn concurrency(mut self, concurrency: u32) -> Self {
        self.concurrency = Some(concurrency);
        self
    }

    /// So many tasks are handed out in a time of 1 millisecond to 30 days, at most.
    pub const fn rate(mut self, rate: u32, per: Duration) -> Self {
        self.rate = Some((rate, per));
        self
    }

    /// So many hand-outs of the rate gather while there is nothing to do; by default as many as the rate.
    pub const fn burst(mut self, burst: u32) -> Self {
        self.burst = Some(burst);
        self
    }

    /// So many tasks of each key ([`crate::Enqueue::key`]) run at once, at most.
    pub const fn key_concurrency(mut self, concurrency: u32) -> Self {
        self.key_concurrency = Some(concurrency);
        self
    }

    /// The policy of retries of tasks that have none of their own ([`crate::Enqueue::retry`]), instead of what their steps' code says.
    pub const fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// How long an attempt may take, 1 millisecond to 10 years, where the task does not say it itself ([`crate::Enqueue::timeout`]), instead of what its step's
    /// code says.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long the history keeps what became of the queue's tasks, zero for not at all. By default, and at most, as `pg_task.history_retention` says.
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// So many tasks of each key are handed out in a time of 1 millisecond to 30 days, at most.
    pub const fn key_rate(mut self, rate: u32, per: Duration) -> Self {
        self.key_rate = Some((rate, per));
        self
    }

    /// So many hand-outs of the rate gather for each key while there is nothing to do; by default as many as the rate.
    pub const fn key_burst(mut self, burst: u32) -> Self {
        self.key_burst = Some(burst);
        self
    }

    /// Weights of keys, from 1 to 100, for at most 1,000 of them: with a backlog, a key with the weight 3 has three tasks handed out where one that is
    /// not named, whose weight is 1, has one.
    pub const fn key_weights(mut self, weights: &'a [(&'a str, u32)]) -> Self {
        self.key_weights = Some(weights);
        self
    }
}

/// Sets the limits of a queue and what it says for its tasks, in place of all that was set. It holds from the commit on; a pause stays.
///
/// # Errors
/// [`Error::Db`] when the server refuses them: a number or time out of its range, a burst without a rate, a missing privilege.
pub async fn set_queue<'e>(db: impl PgExecutor<'e>, name: &str, limits: QueueLimits<'_>) -> Result<()> {
    let int = |value: u32| i64::from(value);
    let per = limits.rate.map(|(_, per)| interval(per));
    let key_per = limits.key_rate.map(|(_, per)| interval(per));
    let weights = |weights: &[(&str, u32)]| {
        serde_json::Value::Object(
            weights.iter().map(|(key, weight)| ((*key).to_owned(), (*weight).into())).collect(),
        )
    };
    sqlx::query(
        "SELECT pg_task.set_queue($1, $2::bigint::integer, $3::bigint::integer, $4, $5::bigint::integer, $6::bigint::integer, $7, $8, $9, \
            $10::bigint::integer, $11, $12::bigint::integer, $13)",
    )
    .bind(name)
    .bind(limits.concurrency.map(int))
    .bind(limits.rate.map(|(rate, _)| int(rate)))
    .bind(per)
    .bind(limits.burst.map(int))
    .bind(limits.key_concurrency.map(int))
    .bind(limits.retry.map(Json))
    .bind(limits.timeout.map(interval))
    .bind(limits.retention.map(interval))
    .bind(limits.key_rate.map(|(rate, _)| int(rate)))
    .bind(key_per)
    .bind(limits.key_burst.map(int))
    .bind(limits.key_weights.map(weights))
    .execute(db)
    .await
    .map_err(|error| failed(error, "set the limits of", name))?;
    Ok(())
}

/// From the commit on nothing of the queue is handed out; what runs goes on. False when it was paused already.
///
/// # Errors
/// [`Error::Db`], as for [`set_queue`].
pub async fn pause_queue<'e>(db: impl PgExecutor<'e>, name: &str) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.pause_queue($1)").bind(name).fetch_one(db).await;
    answer.map_err(|error| failed(error, "pause", name))
}

/// Ends a pause. False when the queue was not paused.
///
/// # Errors
/// [`Error::Db`], as for [`set_queue`].
pub async fn resume_queue<'e>(db: impl PgExecutor<'e>, name: &str) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.resume_queue($1)").bind(name).fetch_one(db).await;
    answer.map_err(|error| failed(error, "resume", name))
}

/// Forgets what is set for a queue, a pause included; its tasks stay. False when nothing was set.
///
/// # Errors
/// [`Error::Db`], as for [`set_queue`].
pub async fn drop_queue<'e>(db: impl PgExecutor<'e>, name: &str) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.drop_queue($1)").bind(name).fetch_one(db).await;
    answer.map_err(|error| failed(error, "forget the settings of", name))
}

/// From the commit on so many tasks at most are at the step `Task/Step` at once, in all queues together; `None` for any number.
///
/// # Errors
/// [`Error::Db`], as for [`set_queue`].
pub async fn limit_step<'e>(db: impl PgExecutor<'e>, step: &str, concurrency: Option<u32>) -> Result<()> {
    sqlx::query("SELECT pg_task.limit_step($1, $2::bigint::integer)")
        .bind(step)
        .bind(concurrency.map(i64::from))
        .execute(db)
        .await
        .map_err(|error| Error::Db(error, format!("limit the step {step}")))?;
    Ok(())
}

fn failed(error: sqlx::Error, what: &str, name: &str) -> Error {
    Error::Db(error, format!("{what} the queue {name}"))
}
