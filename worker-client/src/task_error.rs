//! News of parked tasks.

use chrono::DateTime;
use chrono::Utc;
use serde::de::DeserializeOwned;
use sqlx::FromRow;
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::Error;
use crate::Result;

const CHANNEL: &str = "pg_task_error";

/// A task that was parked: its row just after `error` was set.
#[derive(Clone, Debug, Eq, FromRow, PartialEq)]
pub struct TaskError {
    /// The task.
    pub id: Uuid,
    /// The step that failed, as JSON.
    pub step: String,
    /// How many attempts have failed.
    pub tried: i32,
    /// Why.
    pub error: String,
    /// When the task was enqueued.
    pub created_at: DateTime<Utc>,
    /// When it was parked.
    pub updated_at: DateTime<Utc>,
}

impl TaskError {
    /// The step that failed, as a value of the program.
    ///
    /// # Errors
    /// [`Error::DeserializeStep`] when it is not one.
    pub fn deserialize_step<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.step).map_err(|error| Error::DeserializeStep(error, self.step.clone()))
    }
}

/// Tasks that are parked from now on. See [`listen_for_task_errors`].
#[derive(Debug)]
pub struct TaskErrorListener {
    listener: PgListener,
}

/// Subscribes to tasks that are parked from now on, over a connection of the pool's. What is parked already is in `pg_task.failed`.
///
/// # Errors
/// [`Error::ListenerConnect`] or [`Error::ListenerListen`].
pub async fn listen_for_task_errors(db: &PgPool) -> Result<TaskErrorListener> {
    let mut listener = PgListener::connect_with(db).await.map_err(Error::ListenerConnect)?;
    listener.listen(CHANNEL).await.map_err(Error::ListenerListen)?;
    Ok(TaskErrorListener { listener })
}

impl TaskErrorListener {
    /// Waits for the next task that is parked.
    ///
    /// What is parked while the connection is lost and made again is missed. A task that was resumed or cancelled before its row could
    /// be read is left out.
    ///
    /// # Errors
    /// [`Error::ListenerReceive`] when the connection fails and cannot be made again, [`Error::Db`] when the row cannot be read.
    pub async fn recv(&mut self) -> Result<TaskError> {
        loop {
            let notification = self.listener.recv().await.map_err(Error::ListenerReceive)?;
            let Ok(id) = notification.payload().parse::<Uuid>() else { continue };
            let task = sqlx::query_as(
                "SELECT id, step::text AS step, tried, error, created_at, updated_at \
                 FROM pg_task.task WHERE id = $1 AND error IS NOT NULL",
            )
            .bind(id)
            .fetch_optional(&mut self.listener)
            .await
            .map_err(|error| Error::Db(error, "read a parked task".to_owned()))?;
            if let Some(task) = task {
                return Ok(task);
            }
        }
    }
}
