//! Enqueueing, on any executor: a pool, a connection, a transaction of the caller's.

mod copy;
mod options;
mod unique;

use std::time::Duration;

use chrono::DateTime;
use chrono::Utc;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgExecutor;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::postgres::types::PgInterval;
use sqlx::types::Json;
use uuid::Uuid;

use crate::Error;
use crate::Result;
use crate::RetryPolicy;
use crate::Scheduler;
pub use copy::enqueue_copy;
use options::Options;
pub use unique::OnConflict;
pub use unique::Unique;
pub use unique::UniqueOutcome;
pub use unique::UniqueScope;

/// Enqueues a task that is due now. Returns its id.
///
/// # Errors
/// [`Error::SerializeStep`] when the step is no JSON, [`Error::AddTask`] when the database refuses it.
pub async fn enqueue<'e>(db: impl PgExecutor<'e>, task: &impl Scheduler) -> Result<Uuid> {
    Enqueue::new().enqueue(db, task).await
}

/// Enqueues a task that is due after a delay, which the server counts from the start of the transaction.
///
/// # Errors
/// As [`enqueue`].
pub async fn delay<'e>(db: impl PgExecutor<'e>, task: &impl Scheduler, delay: Duration) -> Result<Uuid> {
    Enqueue::new().delay(db, task, delay).await
}

/// Enqueues a task that is due at a moment. One in the past is due now.
///
/// # Errors
/// As [`enqueue`].
pub async fn schedule<'e>(db: impl PgExecutor<'e>, task: &impl Scheduler, at: DateTime<Utc>) -> Result<Uuid> {
    Enqueue::new().schedule(db, task, at).await
}

/// Enqueues many tasks in one statement. Returns their ids in the order of the tasks.
///
/// # Errors
/// As [`enqueue`]; none is enqueued then.
pub async fn enqueue_many<'e, T: Scheduler>(db: impl PgExecutor<'e>, tasks: &[T]) -> Result<Vec<Uuid>> {
    Enqueue::new().enqueue_many(db, tasks).await
}

/// Where and how urgently a task is enqueued, and its own options.
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # async fn demo<T: pg_task::Scheduler>(db: sqlx::PgPool, task: T) -> pg_task::Result<()> {
/// pg_task::Enqueue::new().queue("mail").priority(-10).enqueue(&db, &task).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Enqueue<'a> {
    queue: &'a str,
    priority: i16,
    options: Options<'a>,
}

impl Default for Enqueue<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Enqueue<'a> {
    /// The queue `default`, priority 0.
    pub const fn new() -> Self {
        Self { queue: "default", priority: 0, options: Options::NONE }
    }

    /// The queue: a name of 1 to 63 bytes.
    pub const fn queue(mut self, queue: &'a str) -> Self {
        self.queue = queue;
        self
    }

    /// The priority: lower runs first.
    pub const fn priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// The group: its tasks run one at a time, in the order in which they were enqueued, across retries. A name of 1 to 200 bytes.
    ///
    /// A task that is parked blocks its group until it is resumed or cancelled.
    pub const fn group(mut self, group: &'a str) -> Self {
        self.options.group = Some(group);
        self
    }

    /// The key, a tenant say: keys of a queue take turns, and [`crate::QueueLimits::key_concurrency`] limits what runs at once of each. A name of
    /// 1 to 200 bytes.
    pub const fn key(mut self, key: &'a str) -> Self {
        self.options.key = Some(key);
        self
    }

    /// Data of the program's own, an object: for people, for searching, for [`crate::Context::meta`].
    pub const fn meta(mut self, meta: &'a serde_json::Map<String, serde_json::Value>) -> Self {
        self.options.meta = Some(meta);
        self
    }

    /// Tags, for people and for searching by `pg_task.find`: [`crate::Context::tags`].
    pub const fn tags(mut self, tags: &'a [&'a str]) -> Self {
        self.options.tags = Some(tags);
        self
    }

    /// The W3C trace context that the task belongs to: [`crate::Context::traceparent`]. By default that of [`crate::with_traceparent`], or of the
    /// task whose step enqueues this one.
    pub const fn traceparent(mut self, traceparent: &'a str) -> Self {
        self.options.traceparent = Some(traceparent);
        self
    }

    /// How long an attempt of each of its steps may take, instead of what their own code says ([`crate::Step::TIMEOUT`]).
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout.as_secs_f64());
        self
    }

    /// The moment after which no step of the task is begun: it is parked instead.
    pub const fn deadline(mut self, deadline: DateTime<Utc>) -> Self {
        self.options.deadline = Some(deadline);
        self
    }

    /// A policy of the task's own for its retries, instead of what its steps' own code says. An operator can change it: `pg_task.set_retry`.
    pub const fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = Some(policy);
        self
    }

    /// The queue, the priority and the options, for a schedule.
    pub(crate) fn parts(self) -> Result<(String, i16, Option<Stored>)> {
        Ok((self.queue.to_owned(), self.priority, self.options.json()?))
    }

    /// Enqueues a task that is due now.
    ///
    /// # Errors
    /// As [`enqueue()`].
    pub async fn enqueue<'e>(self, db: impl PgExecutor<'e>, task: &impl Serialize) -> Result<Uuid> {
        let options = self.options.json()?;
        let call = match options {
            None => "SELECT pg_task.enqueue($1, $2, $3)",
            Some(_) => "SELECT pg_task.enqueue($1, $2, $3, options => $4)",
        };
        let call = sqlx::query_scalar(call).bind(step(task)?).bind(self.queue).bind(i32::from(self.priority));
        bind(call, options).fetch_one(db).await.map_err(Error::AddTask)
    }

    /// Enqueues a task that is due after a delay.
    ///
    /// # Errors
    /// As [`enqueue()`].
    pub async fn delay<'e>(
        self,
        db: impl PgExecutor<'e>,
        task: &impl Serialize,
        delay: Duration,
    ) -> Result<Uuid> {
        let options = self.options.json()?;
        let call = match options {
            None => "SELECT pg_task.delay($1, $2, $3, $4)",
            Some(_) => "SELECT pg_task.delay($1, $2, $3, $4, options => $5)",
        };
        let call = sqlx::query_scalar(call)
            .bind(step(task)?)
            .bind(interval(delay))
            .bind(self.queue)
            .bind(i32::from(self.priority));
        bind(call, options).fetch_one(db).await.map_err(Error::AddTask)
    }

    /// Enqueues a task that is due at a moment.
    ///
    /// # Errors
    /// As [`enqueue()`].
    pub async fn schedule<'e>(
        self,
        db: impl PgExecutor<'e>,
        task: &impl Serialize,
        at: DateTime<Utc>,
    ) -> Result<Uuid> {
        let options = self.options.json()?;
        let call = match options {
            None => "SELECT pg_task.schedule($1, $2, $3, $4)",
            Some(_) => "SELECT pg_task.schedule($1, $2, $3, $4, options => $5)",
        };
        let call = sqlx::query_scalar(call)
            .bind(step(task)?)
            .bind(at)
            .bind(self.queue)
            .bind(i32::from(self.priority));
        bind(call, options).fetch_one(db).await.map_err(Error::AddTask)
    }

    /// Enqueues many tasks that are due now, in one statement.
    ///
    /// # Errors
    /// As [`enqueue()`]; none is enqueued then.
    pub async fn enqueue_many<'e, T: Serialize>(
        self,
        db: impl PgExecutor<'e>,
        tasks: &[T],
    ) -> Result<Vec<Uuid>> {
        let steps = tasks.iter().map(step).collect::<Result<Vec<_>>>()?;
        let options = self.options.json()?;
        let call = match options {
            None => "SELECT pg_task.enqueue_many($1, $2, $3)",
            Some(_) => "SELECT pg_task.enqueue_many($1, $2, $3, options => $4)",
        };
        let call = sqlx::query_scalar(call).bind(steps).bind(self.queue).bind(i32::from(self.priority));
        bind(call, options).fetch_one(db).await.map_err(Error::AddTask)
    }
}

type Call<'q, O> = sqlx::query::QueryScalar<'q, Postgres, O, PgArguments>;

/// Binds the options where there are some: the statement has a parameter for them then.
fn bind<O>(call: Call<'_, O>, options: Option<Json<Box<RawValue>>>) -> Call<'_, O>
where
    (O,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
{
    match options {
        None => call,
        Some(options) => call.bind(options),
    }
}

/// JSON as it is stored.
pub(crate) type Stored = Json<Box<RawValue>>;

/// A step as it is stored. Also used for next steps.
pub(crate) fn step<T: Serialize>(task: &T) -> Result<Json<Box<RawValue>>> {
    serde_json::value::to_raw_value(task)
        .map(Json)
        .map_err(|error| Error::SerializeStep(error, std::any::type_name::<T>().to_owned()))
}

/// A duration in microseconds; one that is too long for the type is as good as for ever.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(crate) fn interval(duration: Duration) -> PgInterval {
    const MICROS_PER_DAY: i64 = 86_400_000_000;
    let micros = micros(duration);
    // Days apart, so that durations beyond an interval's microseconds keep their meaning.
    PgInterval {
        months: 0,
        days: i32::try_from(micros / MICROS_PER_DAY).unwrap_or(i32::MAX),
        microseconds: micros % MICROS_PER_DAY,
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use crate::NextStep;
    use crate::Scheduler;
    use crate::Step;
    use crate::StepResult;

    #[derive(Debug, serde::Deserialize, serde::Serialize)]
    pub struct Wave;

    impl Step<Greeter> for Wave {
        async fn step(self, _db: &PgPool) -> StepResult<Greeter> {
            NextStep::none()
        }
    }

    crate::task!(Greeter { Wave });
    crate::scheduler!(Tasks { Greeter });

    fn spawned<T: Send>(_: impl Future<Output = T> + Send + 'static) {}

    #[test]
    fn enqueueing_can_be_part_of_a_spawned_task() {
        // Compiles or not; nothing is run.
        let _ = |db: PgPool, task: Tasks, at| {
            spawned({
                let (db, task) = (db.clone(), Tasks::Greeter(Wave.into()));
                async move {
                    let delay = std::time::Duration::ZERO;
                    crate::enqueue(&db, &task).await?;
                    crate::delay(&db, &task, delay).await?;
                    crate::schedule(&db, &task, at).await?;
                    let mut transaction = db.begin().await.map_err(crate::Error::AddTask)?;
                    crate::enqueue_copy(&mut transaction, [&task]).await?;
                    crate::enqueue_many(&db, &[task]).await
                }
            });
            spawned(async move { task.enqueue(&db).await });
        };
    }
}
