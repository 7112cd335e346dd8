//! Waiting for a task, and what it returned.

use std::fmt;
use std::time::Duration;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::Row;
use sqlx::types::Json;
use uuid::Uuid;

use crate::Error;
use crate::Result;
use crate::enqueue::interval;

/// One call waits no longer: the snapshot of its statement holds back vacuum for as long as it lasts, and its connection serves nobody else.
const ROUND: Duration = Duration::from_secs(10);

/// What became of a task.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outcome<T = serde_json::Value> {
    /// Its row was deleted by a user.
    Cancelled,
    /// Its last step ended well, with what it gave to [`crate::Context::set_result`], if anything.
    Done(Option<T>),
    /// It failed and waits for someone to resume it. The text is its error.
    Parked(String),
    /// It has not ended within the time that was allowed.
    TimedOut,
    /// There is no such task, and the history knows nothing of one: it never was, or ended while no history was kept, or too long ago.
    Unknown,
}

/// A task of which one wants to know what becomes of it.
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # async fn demo<T: pg_task::Scheduler>(db: sqlx::PgPool, task: T) -> pg_task::Result<()> {
/// let id = pg_task::enqueue(&db, &task).await?;
/// match pg_task::Handle::new(&db, id).result::<u64>().await? {
///     pg_task::Outcome::Done(Some(sum)) => println!("the sum is {sum}"),
///     other => println!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
///
/// Waiting asks nothing again and again: the server wakes the call with the commit that ends the task. It takes a connection of the pool
/// for up to ten seconds at a time, and the right to call `pg_task.wait`.
#[derive(Clone)]
pub struct Handle {
    db: PgPool,
    id: Uuid,
}

impl Handle {
    /// A handle of the task with this id. That it was enqueued must be committed by the time at which it is waited for.
    pub fn new(db: &PgPool, id: Uuid) -> Self {
        Self { db: db.clone(), id }
    }

    /// The task's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Waits until the task has ended or is parked, however long that takes.
    ///
    /// # Errors
    /// [`Error::Db`] when the server refuses or cannot be reached, [`Error::DeserializeResult`] when what the task returned is no `T`.
    pub async fn result<T: DeserializeOwned>(&self) -> Result<Outcome<T>> {
        loop {
            match wait(&self.db, self.id, ROUND).await? {
                Outcome::TimedOut => {}
                outcome => return Ok(outcome),
            }
        }
    }

    /// Waits no longer than `timeout`, if it is zero not at all.
    ///
    /// # Errors
    /// As [`Handle::result`].
    pub async fn result_within<T: DeserializeOwned>(&self, timeout: Duration) -> Result<Outcome<T>> {
        wait(&self.db, self.id, timeout).await
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Waits until a task has ended or is parked, but no longer than `timeout`: `pg_task.wait`.
///
/// # Errors
/// As [`Handle::result`].
pub async fn wait<T: DeserializeOwned>(db: &PgPool, id: Uuid, timeout: Duration) -> Result<Outcome<T>> {
    let failed = |error| Error::Db(error, "wait for a task".to_owned());
    let begin = Instant::now();
    loop {
        let left = timeout.saturating_sub(begin.elapsed());
        let row = sqlx::query("SELECT outcome, result, error FROM pg_task.wait($1, $2)")
            .bind(id)
            .bind(interval(left.min(ROUND)))
            .fetch_one(db)
            .await
            .map_err(failed)?;
        let outcome: String = row.try_get(0).map_err(failed)?;
        return Ok(match outcome.as_str() {
            "done" => {
                let result: Option<Json<Box<RawValue>>> = row.try_get(1).map_err(failed)?;
                let result = result.map(|Json(json)| {
                    serde_json::from_str(json.get()).map_err(|error| {
                        Error::DeserializeResult(error, json.get().chars().take(200).collect())
                    })
                });
                Outcome::Done(result.transpose()?)
            }
            "cancelled" => Outcome::Cancelled,
            "parked" => Outcome::Parked(row.try_get(2).map_err(failed)?),
            "timed out" if begin.elapsed() < timeout => continue,
            "timed out" => Outcome::TimedOut,
            _ => Outcome::Unknown,
        });
    }
}
