//! Tests of a program's own tasks: run in a transaction that is rolled back, with a clock that is moved by hand.
//!
//! A [`Bench`] has one connection with an open transaction. Tasks are enqueued and run in it, by the steps' own code, without a worker, and nobody else
//! ever sees them; when the bench is dropped nothing is left. Its clock stands still until [`Bench::advance`] moves it, so that retries and delays of
//! days are tested in milliseconds. What the options of a task say of its retries, its time limit and its deadline holds as it does with a
//! worker, and so does what its queue says of the first two.
//!
//! ```rust,no_run
//! # use pg_task_client as pg_task;
//! # use std::time::Duration;
//! # use pg_task::{NextStep, Step, StepResult};
//! # #[derive(Debug, serde::Deserialize, serde::Serialize)]
//! # pub struct Remind { user: i64 }
//! # impl Step<Mail> for Remind { async fn step(self, _db: &sqlx::PgPool) -> StepResult<Mail> { NextStep::none() } }
//! # pg_task_client::task!(Mail { Remind });
//! # pg_task_client::scheduler!(Tasks { Mail });
//! # async fn test(db: sqlx::PgPool) -> pg_task::Result<()> {
//! use pg_task::testing::Bench;
//! use pg_task::testing::End;
//!
//! let mut bench = Bench::<Tasks>::begin(&db).await?;
//! let task = Tasks::Mail(Remind { user: 7 }.into());
//! let id = pg_task::delay(bench.db(), &task, Duration::from_secs(86_400)).await?;
//! pg_task::assert_enqueued!(bench.tasks().await?, Tasks::Mail(Mail::Remind(remind)) if remind.user == 7);
//! assert_eq!(bench.run_due().await?, 0);
//! bench.advance(Duration::from_secs(86_400)).await?;
//! assert_eq!(bench.run_to_end(id).await?, End::Done);
//! assert_eq!(bench.tasks().await?.len(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! What differs from a worker: steps run one after the other, in the order in which they are due. [`crate::Context::db`] is a pool of the one
//! connection: a step that wants two at a time waits for ever, and `COMMIT` is a savepoint's. What a step wrote before it failed is taken back, also that
//! of a step with a plain pool. The role needs the rights of `pg_task.grant_administer` and `grant_work`.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::Acquire;
use sqlx::PgExecutor;
use sqlx::PgPool;
use sqlx::Row;
use sqlx::postgres::PgPoolOptions;
use sqlx::types::Json;
use uuid::Uuid;

use crate::Context;
use crate::Error;
use crate::Layer;
use crate::Result;
use crate::Step;
use crate::context::Shared;
use crate::enqueue::interval;
use crate::worker::Trial;
use crate::worker::Tried;

/// How long a step that has a time limit is waited for, unless [`Bench::with_patience`] says otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// A place for tests of tasks: see the [module](self).
pub struct Bench<T> {
    shared: Arc<Shared>,
    patience: Duration,
    /// What tasks that are done have returned.
    results: HashMap<Uuid, Json<Box<RawValue>>>,
    /// Of the attempts; a worker's grow as well.
    token: i64,
    tasks: PhantomData<fn() -> T>,
}

/// How a task ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// It is done, and its row is gone.
    Done,
    /// It is parked with this error.
    Parked(String),
}

/// A task that waits.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Its id.
    pub id: Uuid,
    /// Its queue.
    pub queue: String,
    /// Its priority.
    pub priority: i16,
    /// Its current step.
    pub step: T,
    /// How long until it is due, by the bench's clock; zero when it is.
    pub due_in: Duration,
    /// Attempts of the step that have failed.
    pub tried: i32,
    /// Why it is parked, if it is.
    pub error: Option<String>,
    /// Its own options, as `docs/options.md` tells; null for none.
    pub options: serde_json::Value,
}

/// What waits, in the order in which it is due, parked tasks last: of a database of the test's own, or of any other executor. [`Bench::tasks`] is the same
/// of a bench.
///
/// # Errors
/// [`Error::Db`] when the statement fails; [`Error::DeserializeStep`] when a row is no step of this program.
pub async fn tasks<'e, T: DeserializeOwned>(db: impl PgExecutor<'e>) -> Result<Vec<Waiting<T>>> {
    let rows = sqlx::query(
        "SELECT id, queue, priority, step, greatest((extract(epoch FROM wakeup_at - now()) * 1000000)::bigint, 0), tried, error, options
         FROM pg_task.task ORDER BY error IS NOT NULL, wakeup_at, id",
    )
    .fetch_all(db)
    .await
    .map_err(look)?;
    let waiting = |row: &sqlx::postgres::PgRow| {
        let Json(step): Json<Box<RawValue>> = row.try_get(3).map_err(look)?;
        let step = serde_json::from_str(step.get())
            .map_err(|error| Error::DeserializeStep(error, step.get().chars().take(200).collect()))?;
        let options: Option<Json<serde_json::Value>> = row.try_get(7).map_err(look)?;
        Ok(Waiting {
            id: row.try_get(0).map_err(look)?,
            queue: row.try_get(1).map_err(look)?,
            priority: row.try_get(2).map_err(look)?,
            step,
            due_in: micros(row.try_get(4).map_err(look)?),
            tried: row.try_get(5).map_err(look)?,
            error: row.try_get(6).map_err(look)?,
            options: options.map_or(serde_json::Value::Null, |Json(options)| options),
        })
    };
    rows.iter().map(waiting).collect()
}

impl<T: Step<T, Context> + 'static> Bench<T> {
    /// Opens a connection like those of the pool and begins the transaction. Tasks that are in the database already are left alone, but would run as well.
    ///
    /// # Errors
    /// [`Error::Db`] when the database cannot be reached.
    pub async fn begin(db: &PgPool) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    let transaction = connection.begin().await?;
                    // It ends with the connection. From here on `begin` is a savepoint, as in every open transaction.
                    std::mem::forget(transaction);
                    Ok(())
                })
            })
            .connect_with((*db.connect_options()).clone())
            .await
            .map_err(|error| failed(error, "begin a test"))?;
        let shared = Shared {
            db: pool,
            worker: Uuid::nil(),
            pooled: false,
            state: None,
            layers: Vec::new(),
            bell: Arc::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            patience: PATIENCE,
            results: HashMap::new(),
            token: 0,
            tasks: PhantomData,
        })
    }

    /// The application's state, for [`Context::state`].
    #[must_use]
    pub fn with_state<S: Any + Send + Sync>(mut self, state: S) -> Self {
        self.change(|shared| shared.state = Some(Arc::new(state)));
        self
    }

    /// Adds a layer around every step, within those that were added before: see [`Layer`].
    #[must_use]
    pub fn with_layer(mut self, layer: impl Layer) -> Self {
        self.change(|shared| shared.layers.push(Arc::new(layer)));
        self
    }

    /// How long to wait, by the real clock, for a step that has a time limit: 5 seconds by default. A step that has not ended by then, or within its
    /// limit if that is shorter, is taken for one that never does: its time is up, and the bench's clock moves by the limit. So one that hangs with a limit
    /// of an hour is tested in a moment.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn change(&mut self, change: impl FnOnce(&mut Shared)) {
        change(Arc::make_mut(&mut self.shared));
    }

    /// The transaction, as a pool of its one connection: for what the test prepares, enqueues and looks at.
    pub fn db(&self) -> &PgPool {
        &self.shared.db
    }

    /// Moves the clock: whatever waits is due so much sooner, and deadlines are so much nearer.
    ///
    /// # Errors
    /// [`Error::Db`] when the statement fails.
    pub async fn advance(&mut self, time: Duration) -> Result<()> {
        for move_all in [
            "UPDATE pg_task.task SET wakeup_at = wakeup_at - $1 WHERE error IS NULL",
            "UPDATE pg_task.task SET options = jsonb_set(options, '{deadline}', to_jsonb((options->>'deadline')::timestamptz - $1))
             WHERE options ? 'deadline'",
        ] {
            let moved = sqlx::query(move_all).bind(interval(time)).execute(self.db()).await;
            moved.map_err(|error| failed(error, "move the clock"))?;
        }
        Ok(())
    }

    /// Runs what is due until nothing is, also what becomes due by that. Returns how many steps were run.
    ///
    /// # Errors
    /// [`Error::Db`] when a statement fails that is none of a step's; [`Error::DeserializeStep`] when a row is no step of this program.
    pub async fn run_due(&mut self) -> Result<usize> {
        let mut count = 0;
        loop {
            match self.run_one(None).await? {
                Ran::Step => count += 1,
                Ran::Overdue => {}
                Ran::Nothing => return Ok(count),
            }
        }
    }

    /// Runs one task until it is done or parked, and moves the clock to whenever it is due next.
    ///
    /// # Errors
    /// As [`Bench::run_due`].
    pub async fn run_to_end(&mut self, id: Uuid) -> Result<End> {
        loop {
            let row = sqlx::query(
                "SELECT error, greatest((extract(epoch FROM wakeup_at - now()) * 1000000)::bigint, 0) FROM pg_task.task WHERE id = $1",
            )
            .bind(id)
            .fetch_optional(self.db())
            .await
            .map_err(look)?;
            let Some(row) = row else { return Ok(End::Done) };
            if let Some(error) = row.try_get(0).map_err(look)? {
                return Ok(End::Parked(error));
            }
            let due_in: i64 = row.try_get(1).map_err(look)?;
            if due_in > 0 {
                self.advance(micros(due_in)).await?;
            }
            self.run_one(Some(id)).await?;
        }
    }

    /// What a task that is done has returned: the value of [`Context::set_result`] in its last step. None if it gave none, or is not done.
    ///
    /// # Errors
    /// [`Error::DeserializeResult`] when it is no `R`.
    pub fn result<R: DeserializeOwned>(&self, id: Uuid) -> Result<Option<R>> {
        let result = self.results.get(&id).map(|Json(json)| {
            serde_json::from_str(json.get())
                .map_err(|error| Error::DeserializeResult(error, json.get().chars().take(200).collect()))
        });
        result.transpose()
    }

    /// What waits, in the order in which it is due, parked tasks last.
    ///
    /// # Errors
    /// As [`Bench::run_due`].
    pub async fn tasks(&self) -> Result<Vec<Waiting<T>>> {
        tasks(self.db()).await
    }

    /// Runs the step that is due first; if the task's deadline has passed, what the step's code says about that.
    async fn run_one(&mut self, id: Option<Uuid>) -> Result<Ran> {
        // Of retries and time limits a queue says what its tasks do not, and the name * what neither does.
        let row = sqlx::query(
            "SELECT t.id, t.queue, t.step, t.tried, (extract(epoch FROM t.wakeup_at - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint,
                 nullif(jsonb_strip_nulls(jsonb_build_object(
                     'retry', coalesce(q.retry, every.retry), 'timeout', extract(epoch FROM coalesce(q.timeout, every.timeout))
                 )) || coalesce(t.options, '{}'), '{}')::text,
                 CASE WHEN (t.options->>'deadline')::timestamptz < now()
                     THEN format('the task was not begun before its deadline, %s', (t.options->>'deadline')::timestamptz) END
             FROM pg_task.task AS t LEFT JOIN pg_task.queue AS q ON q.name = t.queue LEFT JOIN pg_task.queue AS every ON every.name = '*'
             WHERE t.error IS NULL AND t.wakeup_at <= now() AND ($1 IS NULL OR t.id = $1)
             ORDER BY t.priority, t.wakeup_at, t.id LIMIT 1",
        )
        .bind(id)
        .fetch_optional(self.db())
        .await
        .map_err(look)?;
        let Some(row) = row else { return Ok(Ran::Nothing) };
        let id: Uuid = row.try_get(0).map_err(look)?;
        self.token += 1;
        let Json(step): Json<Box<RawValue>> = row.try_get(2).map_err(look)?;
        let trial = Trial {
            id,
            queue: row.try_get(1).map_err(look)?,
            step: step.get().to_owned(),
            options: row.try_get(5).map_err(look)?,
            tried: row.try_get(3).map_err(look)?,
            due: row.try_get(4).map_err(look)?,
            token: self.token,
            patience: self.patience,
        };
        if let Some(overdue) = row.try_get(6).map_err(look)? {
            self.write(id, trial.give_up::<T>(overdue), false).await?;
            return Ok(Ran::Overdue);
        }
        self.run("SAVEPOINT pg_task_step").await?;
        let (mut tried, over) = trial.run::<T>(&self.shared).await;
        if matches!(tried, Tried::Instead(_) | Tried::Parked(_) | Tried::Retry(_)) {
            self.run("ROLLBACK TO SAVEPOINT pg_task_step").await?;
        } else if let Err(error) = self.run("RELEASE SAVEPOINT pg_task_step").await {
            // A statement failed whose error the step swallowed. A worker would go on; here nothing can.
            self.run("ROLLBACK TO SAVEPOINT pg_task_step").await?;
            tried = Tried::Parked(format!("a statement of the step failed, and the step went on: {error}"));
        }
        if let Some(limit) = over {
            self.advance(limit).await?;
        }
        let counts = !matches!(tried, Tried::Snoozed(_));
        self.write(id, tried, counts).await?;
        Ok(Ran::Step)
    }

    /// The transition, as the server writes it; whether the attempt counts if it is one that failed.
    async fn write(&mut self, id: Uuid, tried: Tried, counts: bool) -> Result<()> {
        let (step, delay, error) = match tried {
            Tried::Done(result) => {
                self.results.extend(result.map(|result| (id, result)));
                let delete = sqlx::query("DELETE FROM pg_task.task WHERE id = $1").bind(id);
                delete.execute(self.db()).await.map_err(|error| failed(error, "end a task"))?;
                return Ok(());
            }
            Tried::Next(step, delay) => (Some(step), Some(delay), None),
            Tried::Instead(step) => (Some(step), Some(0), None),
            Tried::Retry(delay) | Tried::Snoozed(delay) => (None, Some(delay), None),
            Tried::Parked(error) => (None, None, Some(error)),
        };
        sqlx::query(
            "UPDATE pg_task.task SET step = coalesce($2, step), wakeup_at = now() + coalesce($3, interval '0'), error = $4,
                 tried = CASE WHEN $2 IS NULL THEN tried + $5::integer ELSE 0 END, fence = fence + 1, updated_at = now()
             WHERE id = $1",
        )
        .bind(id)
        .bind(step)
        .bind(delay.map(|delay| interval(micros(delay))))
        .bind(error)
        .bind(i32::from(counts))
        .execute(self.db())
        .await
        .map_err(|error| failed(error, "write what a step ended in"))?;
        Ok(())
    }

    async fn run(&self, statement: &'static str) -> Result<()> {
        sqlx::raw_sql(statement)
            .execute(self.db())
            .await
            .map_err(|error| failed(error, "keep a step apart"))?;
        Ok(())
    }
}

/// What there was to run.
enum Ran {
    Step,
    /// No step: the deadline of the task had passed.
    Overdue,
    Nothing,
}

impl<T> fmt::Debug for Bench<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").finish_non_exhaustive()
    }
}

fn failed(error: sqlx::Error, what: &str) -> Error {
    Error::Db(error, what.to_owned())
}

fn look(error: sqlx::Error) -> Error {
    failed(error, "look at the tasks of a test")
}

fn micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
