//! What an operator does, from a program: one task by its id, many by a filter.

use std::ops::RangeInclusive;
use std::time::Duration;

use chrono::DateTime;
use chrono::Utc;
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::Error;
use crate::Result;
use crate::Scheduler;
use crate::enqueue::interval;
use crate::enqueue::step;

/// Runs a parked task again at the step that failed, with all its retries. False when there is no such parked task.
///
/// # Errors
/// [`Error::Db`] when the statement fails.
pub async fn resume<'e>(db: impl PgExecutor<'e>, id: Uuid) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.resume($1)").bind(id).fetch_one(db).await;
    answer.map_err(|error| failed(error, "resume", id))
}

/// The same at a moment. One in the past is now.
///
/// # Errors
/// [`Error::Db`] when the statement fails.
pub async fn resume_at<'e>(db: impl PgExecutor<'e>, id: Uuid, at: DateTime<Utc>) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.resume_at($1, $2)").bind(id).bind(at).fetch_one(db).await;
    answer.map_err(|error| failed(error, "resume", id))
}

/// Deletes a task. If it runs, its worker is told and its result is refused. False when there is no such task.
///
/// # Errors
/// [`Error::Db`] when the statement fails.
pub async fn cancel<'e>(db: impl PgExecutor<'e>, id: Uuid) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.cancel($1)").bind(id).fetch_one(db).await;
    answer.map_err(|error| failed(error, "cancel", id))
}

/// Gives a parked or waiting task another step. A parked one stays parked: [`resume`] runs it. False when there is no such task.
///
/// # Errors
/// [`Error::SerializeStep`] when the step is no JSON; [`Error::Db`] when the statement fails: with SQLSTATE 55006 while a worker runs the task.
pub async fn edit<'e>(db: impl PgExecutor<'e>, id: Uuid, task: &impl Scheduler) -> Result<bool> {
    let answer =
        sqlx::query_scalar("SELECT pg_task.edit($1, $2)").bind(id).bind(step(task)?).fetch_one(db).await;
    answer.map_err(|error| failed(error, "edit", id))
}

/// Gives the step of a parked or waiting task another payload: what is within `{"Task": {"Step": …}}`. As [`edit`].
///
/// # Errors
/// As [`edit`].
pub async fn edit_payload<'e>(db: impl PgExecutor<'e>, id: Uuid, payload: &impl Serialize) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.edit($1, payload => $2)")
        .bind(id)
        .bind(step(payload)?)
        .fetch_one(db)
        .await;
    answer.map_err(|error| failed(error, "edit", id))
}

/// Enqueues a new task at the step, in the queue, with the priority and the options of another, due now. `None` when there is no such task.
///
/// # Errors
/// [`Error::Db`] when the statement fails.
pub async fn clone_task<'e>(db: impl PgExecutor<'e>, id: Uuid) -> Result<Option<Uuid>> {
    let answer = sqlx::query_scalar("SELECT pg_task.clone($1)").bind(id).fetch_one(db).await;
    answer.map_err(|error| failed(error, "clone", id))
}

fn failed(error: sqlx::Error, what: &str, id: Uuid) -> Error {
    Error::Db(error, format!("{what} the task {id}"))
}

/// In which state a task is. The words are those of the view `pg_task.queues`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TaskState {
    /// It is due later.
    Asleep,
    /// It is due and waits for a worker.
    Due,
    /// It has failed for good and waits for an operator.
    Parked,
    /// A worker holds it.
    Running,
}

impl TaskState {
    fn name(self) -> &'static str {
        match self {
            Self::Asleep => "asleep",
            Self::Due => "due",
            Self::Parked => "parked",
            Self::Running => "running",
        }
    }
}

/// A change of many tasks, chosen by a filter whose parts are joined by "and". Without one it is of all tasks.
///
/// It is done in batches, each a statement and, on a connection outside a transaction, a transaction of its own. Rows that someone else has locked
/// are passed over. Every method that changes tasks returns how many.
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # async fn demo(db: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut connection = db.acquire().await?;
/// let old = pg_task::Bulk::new().queue("mail").task("Mailer/Digest").older_than(std::time::Duration::from_secs(86_400));
/// let count = old.dry_run(true).cancel(&mut connection).await?;
/// println!("{count} tasks would be cancelled");
/// old.cancel(&mut connection).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Bulk<'a> {
    queue: Option<&'a str>,
    task: Option<&'a str>,
    error_like: Option<&'a str>,
    state: Option<TaskState>,
    older_than: Option<Duration>,
    min_priority: Option<i16>,
    max_priority: Option<i16>,
    ids: Option<&'a [Uuid]>,
    max: Option<u64>,
    batch: u32,
    dry_run: bool,
}

impl Default for Bulk<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The filter of every function but `resume_all`, which has no state, as the parameters from the first on.
const FILTER: &str = "queue => $1, task => $2, error_like => $3, older_than => $4, min_priority => $5::integer, \
    max_priority => $6::integer, ids => $7, max => $8::bigint::integer, dry_run => $9";

/// What is bound besides the filter.
#[derive(Clone, Copy)]
enum Target<'a> {
    None,
    Queue(&'a str),
    Priority(i16),
    Moment(DateTime<Utc>),
}

impl<'a> Bulk<'a> {
    /// All tasks, in batches of 1,000.
    pub const fn new() -> Self {
        Self {
            queue: None,
            task: None,
            error_like: None,
            state: None,
            older_than: None,
            min_priority: None,
            max_priority: None,
            ids: None,
            max: None,
            batch: 1_000,
            dry_run: false,
        }
    }

    /// Those of a queue.
    pub const fn queue(mut self, queue: &'a str) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Those of a task, by its name, or at a step: `Task/Step`.
    pub const fn task(mut self, task: &'a str) -> Self {
        self.task = Some(task);
        self
    }

    /// Parked ones whose error is `LIKE` a pattern: `%timeout%`.
    pub const fn error_like(mut self, pattern: &'a str) -> Self {
        self.error_like = Some(pattern);
        self
    }

    /// Those in a state. Without one, every method but [`Bulk::cancel`] leaves alone what runs.
    pub const fn state(mut self, state: TaskState) -> Self {
        self.state = Some(state);
        self
    }

    /// Those that were enqueued so long ago.
    pub const fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Those with priorities from one to another.
    pub const fn priorities(mut self, range: RangeInclusive<i16>) -> Self {
        self.min_priority = Some(*range.start());
        self.max_priority = Some(*range.end());
        self
    }

    /// Those with these ids; none for an empty list.
    pub const fn ids(mut self, ids: &'a [Uuid]) -> Self {
        self.ids = Some(ids);
        self
    }

    /// So many at most.
    pub const fn max(mut self, max: u64) -> Self {
        self.max = Some(max);
        self
    }

    /// How many are changed by one statement, 1,000 unless said otherwise: a step that ends meanwhile waits for its row that long.
    pub const fn batch(mut self, batch: u32) -> Self {
        self.batch = batch;
        self
    }

    /// Changes nothing and returns how many tasks would be changed.
    pub const fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Runs parked tasks again at the step that failed, with all their retries.
    ///
    /// # Errors
    /// [`Error::Db`] when a statement fails; the batches before it are done. [`Error::Settings`] when a state is set: it is that of parked tasks.
    pub async fn resume(self, db: &mut PgConnection) -> Result<u64> {
        if self.state.is_some_and(|state| state != TaskState::Parked) {
            return Err(Error::Settings("only parked tasks can be resumed"));
        }
        self.run(db, "resume", &format!("SELECT pg_task.resume_all({FILTER})"), Target::None).await
    }

    /// Deletes tasks. The workers of those that run are told, and their results refused.
    ///
    /// # Errors
    /// [`Error::Db`] when a statement fails; the batches before it are done.
    pub async fn cancel(self, db: &mut PgConnection) -> Result<u64> {
        self.run(db, "cancel", &format!("SELECT pg_task.cancel_all({FILTER}, state => $10)"), Target::None)
            .await
    }

    /// Moves tasks to another queue.
    ///
    /// # Errors
    /// [`Error::Db`] when a statement fails; the batches before it are done.
    pub async fn move_to(self, db: &mut PgConnection, queue: &str) -> Result<u64> {
        let sql = format!("SELECT pg_task.move_all($11, {FILTER}, state => $10)");
        self.run(db, "move", &sql, Target::Queue(queue)).await
    }

    /// Gives tasks another priority: lower runs first.
    ///
    /// # Errors
    /// [`Error::Db`] when a statement fails; the batches before it are done.
    pub async fn reprioritize(self, db: &mut PgConnection, priority: i16) -> Result<u64> {
        let sql = format!("SELECT pg_task.reprioritize_all($11, {FILTER}, state => $10)");
        self.run(db, "reprioritize", &sql, Target::Priority(priority)).await
    }

    /// Makes tasks due at a moment, parked ones when they are resumed.
    ///
    /// # Errors
    /// [`Error::Db`] when a statement fails; the batches before it are done.
    pub async fn reschedule(self, db: &mut PgConnection, at: DateTime<Utc>) -> Result<u64> {
        let sql = format!("SELECT pg_task.reschedule_all($11, {FILTER}, state => $10)");
        self.run(db, "reschedule", &sql, Target::Moment(at)).await
    }

    async fn run(self, db: &mut PgConnection, what: &str, sql: &str, target: Target<'_>) -> Result<u64> {
        let mut changed = 0;
        loop {
            let left = self.max.map(|max| max - changed);
            let want = match (self.dry_run, left) {
                (true, left) => left,
                (false, left) => Some(left.map_or(u64::from(self.batch), |left| left.min(self.batch.into()))),
            };
            if want == Some(0) {
                return Ok(changed);
            }
            let query = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql.to_owned()))
                .bind(self.queue)
                .bind(self.task)
                .bind(self.error_like)
                .bind(self.older_than.map(interval))
                .bind(self.min_priority)
                .bind(self.max_priority)
                .bind(self.ids)
                .bind(want.map(|want| i64::try_from(want).unwrap_or(i64::MAX).min(i32::MAX.into())))
                .bind(self.dry_run);
            let query = if sql.contains("$10") { query.bind(self.state.map(TaskState::name)) } else { query };
            let query = match target {
                Target::None => query,
                Target::Queue(queue) => query.bind(queue),
                Target::Priority(priority) => query.bind(i32::from(priority)),
                Target::Moment(at) => query.bind(at),
            };
            let count = query.fetch_one(&mut *db).await;
            let count = count.map_err(|error| Error::Db(error, format!("{what} tasks")))?.max(0) as u64;
            changed += count;
            // Fewer than asked for: there are no more.
            if self.dry_run || want.is_none_or(|want| count < want) {
                return Ok(changed);
            }
        }
    }
}
