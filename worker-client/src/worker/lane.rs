//! A lane: one connection that carries `exchange` calls, one at a time.

use serde_json::value::RawValue;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::PgPool;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::postgres::PgRow;
use sqlx::query::Query;
use sqlx::types::Json;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::dispatcher::Event;
use super::executor::Finished;
use super::executor::Outcome;
use crate::error;

const EXCHANGE: &str = "SELECT event, id, fence, token, tried, wakeup_at, step \
    FROM pg_task.exchange($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// A call to make.
pub(super) struct Call<T> {
    /// How many tasks to ask for.
    pub(super) want: usize,
    /// The results to bring.
    pub(super) results: Vec<Finished<T>>,
}

/// A call that was made, with its results if they have to be brought again.
pub(super) struct Answer<T> {
    /// Which lane made it.
    pub(super) lane: usize,
    /// What was asked for.
    pub(super) want: usize,
    /// What was brought.
    pub(super) results: Vec<Finished<T>>,
    /// What came of it.
    pub(super) rows: Result<Vec<PgRow>, sqlx::Error>,
}

/// Serves calls until the dispatcher lets go of the other end.
pub(super) async fn serve<T: Send + 'static>(
    lane: usize,
    worker: Uuid,
    db: PgPool,
    mut calls: mpsc::Receiver<Call<T>>,
    events: mpsc::UnboundedSender<Event<T>>,
) {
    let mut connection: Option<PgConnection> = None;
    while let Some(Call { want, results }) = calls.recv().await {
        let rows = exchange(&mut connection, &db, query(worker, want, &results)).await;
        if rows.as_ref().is_err_and(|error| !error::is_data(error)) {
            // Whatever state it is in, or whatever ended it: the next call opens a new one.
            connection = None;
        }
        if events.send(Event::Answer(Answer { lane, want, results, rows })).is_err() {
            break;
        }
    }
    if let Some(connection) = connection {
        // The server would notice by itself; a polite end keeps its log quiet.
        let _ = connection.close().await;
    }
}

async fn exchange(
    connection: &mut Option<PgConnection>,
    db: &PgPool,
    query: Query<'static, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(PgConnection::connect_with(&db.connect_options()).await?),
    };
    // All rows, to the end: only then has the call committed.
    query.fetch_all(connection).await
}

/// The call's statement with its arguments encoded. A batch in which every step is done needs three arrays only.
fn query<T>(worker: Uuid, want: usize, results: &[Finished<T>]) -> Query<'static, Postgres, PgArguments> {
    let query = sqlx::query(EXCHANGE).bind(worker).bind(i32::try_from(want).unwrap_or(i32::MAX));
    let query = if results.is_empty() {
        query.bind(None::<Vec<Uuid>>).bind(None::<Vec<i64>>).bind(None::<Vec<i64>>)
    } else {
        query
            .bind(results.iter().map(|result| result.id).collect::<Vec<_>>())
            .bind(results.iter().map(|result| result.fence).collect::<Vec<_>>())
            .bind(results.iter().map(|result| result.token).collect::<Vec<_>>())
    };
    if results.iter().all(|result| matches!(result.outcome, Outcome::Done)) {
        query
            .bind(None::<Vec<i16>>)
            .bind(None::<Vec<Option<Json<Box<RawValue>>>>>)
            .bind(None::<Vec<Option<i64>>>)
            .bind(None::<Vec<Option<String>>>)
    } else {
        query
            .bind(results.iter().map(|result| result.outcome.code()).collect::<Vec<i16>>())
            .bind(results.iter().map(|result| result.outcome.step().cloned()).collect::<Vec<_>>())
            .bind(results.iter().map(|result| result.outcome.delay()).collect::<Vec<_>>())
            .bind(results.iter().map(|result| result.outcome.error().map(str::to_owned)).collect::<Vec<_>>())
    }
}
