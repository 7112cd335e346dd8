//! Schedules: tasks that the server enqueues again and again, and how a program declares its own.

use std::time::Duration;

use chrono::DateTime;
use chrono::Utc;
use serde::Serialize;
use sqlx::PgExecutor;
use sqlx::PgPool;
use uuid::Uuid;

use crate::Enqueue;
use crate::Error;
use crate::Result;
use crate::enqueue;
use crate::enqueue::Stored;
use crate::error::is_configuration;

/// What becomes of ticks that nobody was there for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Missed {
    /// Each gets its task, the last so many of them: 1 to 1000.
    All(u16),
    /// One task stands for all of them. The default.
    Once,
    /// They get none.
    Skip,
}

/// What becomes of a tick while a task of the schedule is still there and not parked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overlap {
    /// Its task is enqueued beside the other. The default.
    Allow,
    /// It waits for the end of the other.
    Queue,
    /// It gets no task.
    Skip,
}

/// A schedule: when it ticks, and the task that each tick enqueues.
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # async fn demo<T: pg_task::Scheduler>(db: sqlx::PgPool, task: T) -> pg_task::Result<()> {
/// use pg_task::{Enqueue, Missed, Overlap, Schedule};
///
/// let nightly = Schedule::new("nightly", "30 3 * * *", &task)?
///     .time_zone("Europe/Berlin")
///     .tasks(Enqueue::new().queue("reports"))?
///     .missed(Missed::All(10))
///     .overlap(Overlap::Skip);
/// let next = nightly.set(&db).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Schedule {
    name: String,
    cron: String,
    step: Stored,
    time_zone: String,
    queue: String,
    priority: i16,
    missed: Missed,
    overlap: Overlap,
    jitter: Duration,
    starts_at: Option<DateTime<Utc>>,
    ends_at: Option<DateTime<Utc>>,
    tick_field: Option<String>,
    options: Option<Stored>,
}

impl Schedule {
    /// A schedule that ticks as `cron` says: five fields, six with seconds before them, `@daily` or its like, or `every 90 seconds`.
    ///
    /// # Errors
    /// [`Error::SerializeStep`] when the step is no JSON. Whether the expression is one says the server.
    pub fn new(name: impl Into<String>, cron: impl Into<String>, task: &impl Serialize) -> Result<Self> {
        Ok(Self {
            name: name.into(),
            cron: cron.into(),
            step: enqueue::step(task)?,
            time_zone: "UTC".into(),
            queue: "default".into(),
            priority: 0,
            missed: Missed::Once,
            overlap: Overlap::Allow,
            jitter: Duration::ZERO,
            starts_at: None,
            ends_at: None,
            tick_field: None,
            options: None,
        })
    }

    /// Whose clocks the fields are about: a name such as `Europe/Berlin`; by default UTC.
    #[must_use]
    pub fn time_zone(mut self, time_zone: impl Into<String>) -> Self {
        self.time_zone = time_zone.into();
        self
    }

    /// Where and how its tasks are enqueued: queue, priority, options.
    ///
    /// # Errors
    /// [`Error::SerializeStep`] when the options are no JSON.
    pub fn tasks(mut self, place: Enqueue<'_>) -> Result<Self> {
        (self.queue, self.priority, self.options) = place.parts()?;
        Ok(self)
    }

    /// What becomes of ticks that nobody was there for.
    #[must_use]
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// What becomes of a tick while a task of the schedule is still there.
    #[must_use]
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Each task is due up to so long after its tick, at random; at most a day.
    #[must_use]
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// No tick is before this moment, and `every` counts from it.
    #[must_use]
    pub fn starts_at(mut self, at: DateTime<Utc>) -> Self {
        self.starts_at = Some(at);
        self
    }

    /// All ticks are before this moment.
    #[must_use]
    pub fn ends_at(mut self, at: DateTime<Utc>) -> Self {
        self.ends_at = Some(at);
        self
    }

    /// The field of the step, a `DateTime<Utc>` say, that gets the time of the tick.
    #[must_use]
    pub fn tick_field(mut self, field: impl Into<String>) -> Self {
        self.tick_field = Some(field.into());
        self
    }

    /// Makes the schedule, or changes the one of this name to exactly this; a pause stays. Returns the next tick, if there is one.
    ///
    /// # Errors
    /// [`Error::Db`] when the server refuses it: an expression or a time zone that is none, a number out of its range, a missing privilege.
    pub async fn set<'e>(&self, db: impl PgExecutor<'e>) -> Result<Option<DateTime<Utc>>> {
        self.set_as(db, None).await
    }

    async fn set_as<'e>(
        &self,
        db: impl PgExecutor<'e>,
        declared_by: Option<&str>,
    ) -> Result<Option<DateTime<Utc>>> {
        let (missed, limit) = match self.missed {
            Missed::All(limit) => ("all", i32::from(limit)),
            Missed::Once => ("once", 100),
            Missed::Skip => ("skip", 100),
        };
        let overlap = match self.overlap {
            Overlap::Allow => "allow",
            Overlap::Queue => "queue",
            Overlap::Skip => "skip",
        };
        sqlx::query_scalar(
            "SELECT pg_task.set_schedule($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(&self.name)
        .bind(&self.cron)
        .bind(&self.step)
        .bind(&self.time_zone)
        .bind(&self.queue)
        .bind(i32::from(self.priority))
        .bind(missed)
        .bind(limit)
        .bind(overlap)
        .bind(enqueue::interval(self.jitter))
        .bind(self.starts_at)
        .bind(self.ends_at)
        .bind(self.tick_field.as_deref())
        .bind(declared_by)
        .persistent(false)
        .fetch_one(db)
        .await
        .map_err(|error| failed(error, "set", &self.name))
    }
}

/// All schedules of a program, which brings the table to them: see [`crate::Worker::with_schedules`].
#[derive(Clone, Debug)]
pub struct Schedules {
    declared_by: String,
    schedules: Vec<Schedule>,
    keep: bool,
}

/// What a declaration has found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Declared {
    /// Schedules that the program no longer declares, which were removed.
    pub removed: Vec<String>,
    /// Schedules that were left as they are: SQL has made them, or another program declares them.
    pub untouched: Vec<String>,
}

impl Schedules {
    /// The schedules of the program of this name.
    pub fn new(program: impl Into<String>, schedules: impl IntoIterator<Item = Schedule>) -> Self {
        Self { declared_by: program.into(), schedules: schedules.into_iter().collect(), keep: false }
    }

    /// Those that an older version of the program has declared, and this one does not, are kept.
    #[must_use]
    pub fn keep_undeclared(mut self) -> Self {
        self.keep = true;
        self
    }

    /// Brings the table to what is declared, in one transaction: makes what is not there, changes what is another, removes what the program has
    /// declared before and does not any more. What is as declared already is not written: its next tick stays, and so does a pause. Schedules of
    /// other programs, and those that were made by SQL, are left alone.
    ///
    /// # Errors
    /// As [`Schedule::set`]; then nothing has changed.
    pub async fn declare(&self, db: &PgPool) -> Result<Declared> {
        let program = &self.declared_by;
        let error = |error| failed(error, "declare", program);
        let mut transaction = db.begin().await.map_err(error)?;
        // In one order, so that programs that start together do not wait for each other in a circle.
        let mut schedules: Vec<&Schedule> = self.schedules.iter().collect();
        schedules.sort_by(|one, other| one.name.cmp(&other.name));
        for schedule in &schedules {
            schedule.set_as(&mut *transaction, Some(program)).await?;
        }
        let names: Vec<&str> = schedules.iter().map(|schedule| schedule.name.as_str()).collect();
        let mut declared = Declared::default();
        if !self.keep {
            let removed = sqlx::query_scalar(
                "DELETE FROM pg_task.schedule WHERE declared_by = $1 AND name <> ALL ($2) RETURNING name",
            );
            let removed = removed.bind(program).bind(&names).persistent(false);
            declared.removed = removed.fetch_all(&mut *transaction).await.map_err(error)?;
        }
        let untouched = sqlx::query_scalar(
            "SELECT name FROM pg_task.schedule WHERE name = ANY ($2) AND declared_by IS DISTINCT FROM $1 ORDER BY name",
        );
        let untouched = untouched.bind(program).bind(&names).persistent(false);
        declared.untouched = untouched.fetch_all(&mut *transaction).await.map_err(error)?;
        transaction.commit().await.map_err(error)?;
        Ok(declared)
    }
}

/// Whether what has failed may go well when it is tried again.
pub(crate) fn is_passing(error: &Error) -> bool {
    match error {
        Error::Db(sqlx::Error::Database(error), _) => error.code().is_some_and(|code| {
            // Connections, transactions that met, resources, an operator's intervention; a server that is a standby still.
            ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)) || code == "25006"
        }),
        Error::Db(error, _) => !is_configuration(error),
        _ => false,
    }
}

/// Removes a schedule; tasks that it has enqueued stay. False when there is no such schedule.
///
/// # Errors
/// [`Error::Db`], as for [`Schedule::set`].
pub async fn drop_schedule<'e>(db: impl PgExecutor<'e>, name: &str) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.drop_schedule($1)").bind(name).fetch_one(db).await;
    answer.map_err(|error| failed(error, "remove", name))
}

/// From the commit on the schedule enqueues nothing. False when it was paused already.
///
/// # Errors
/// [`Error::Db`], as for [`Schedule::set`], and when there is no such schedule.
pub async fn pause_schedule<'e>(db: impl PgExecutor<'e>, name: &str) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.pause_schedule($1)").bind(name).fetch_one(db).await;
    answer.map_err(|error| failed(error, "pause", name))
}

/// Ends a pause: the next tick is the first one from now on. False when the schedule was not paused.
///
/// # Errors
/// [`Error::Db`], as for [`pause_schedule`].
pub async fn resume_schedule<'e>(db: impl PgExecutor<'e>, name: &str) -> Result<bool> {
    let answer = sqlx::query_scalar("SELECT pg_task.resume_schedule($1)").bind(name).fetch_one(db).await;
    answer.map_err(|error| failed(error, "resume", name))
}

/// Enqueues the schedule's task now, whatever its policies and a pause say; its ticks stay as they are. Returns the task's id.
///
/// # Errors
/// [`Error::Db`], as for [`pause_schedule`].
pub async fn run_schedule<'e>(db: impl PgExecutor<'e>, name: &str) -> Result<Uuid> {
    let answer = sqlx::query_scalar("SELECT pg_task.run_schedule($1)").bind(name).fetch_one(db).await;
    answer.map_err(|error| failed(error, "run", name))
}

fn failed(error: sqlx::Error, what: &str, name: &str) -> Error {
    Error::Db(error, format!("{what} the schedule {name}"))
}
