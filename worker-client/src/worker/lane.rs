//! A lane: one connection that carries `exchange` calls, one at a time.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::PgPool;
use sqlx::Postgres;
use sqlx::Row;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::types::Json;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::dispatcher::Event;
use super::executor::Finished;
use super::executor::Outcome;
use super::link::call_through_pooler;
use crate::error;

const EXCHANGE: &str = "SELECT pg_task.exchange_packed($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";

/// A call to make.
pub(super) struct Call<T> {
    /// The registration under which it is made.
    pub(super) registration: i64,
    /// How many tasks to ask for.
    pub(super) want: usize,
    /// The results to bring.
    pub(super) results: Vec<Finished<T>>,
}

/// A call that was made, with its results if they have to be brought again.
pub(super) struct Answer<T> {
    /// Which lane made it.
    pub(super) lane: usize,
    /// The call.
    pub(super) call: Call<T>,
    /// What came of it, packed.
    pub(super) answer: Result<Bytes, sqlx::Error>,
}

pub(super) struct Lane {
    pub(super) number: usize,
    pub(super) worker: Uuid,
    pub(super) db: PgPool,
    /// Whether there is a pooler between.
    pub(super) pooled: bool,
    /// How long a call may take. A connection that is half open answers nothing at all.
    pub(super) patience: Duration,
    /// Changes when a call under way is to be given up.
    pub(super) cut: watch::Receiver<u64>,
}

impl Lane {
    /// Serves calls until the dispatcher lets go of the other end.
    pub(super) async fn serve<T: Send + 'static>(
        mut self,
        mut calls: mpsc::Receiver<Call<T>>,
        events: mpsc::UnboundedSender<Event<T>>,
    ) {
        let mut connection: Option<PgConnection> = None;
        while let Some(call) = calls.recv().await {
            let query = query(self.worker, &call);
            let answer = self.exchange(&mut connection, query).await;
            if answer.as_ref().is_err_and(|error| !error::leaves_connection(error)) {
                // Whatever state it is in, or whatever ended it: the next call opens a new one.
                connection = None;
            }
            if events.send(Event::Answer(Answer { lane: self.number, call, answer })).is_err() {
                break;
            }
        }
        if let Some(connection) = connection {
            // The server would notice by itself; a polite end keeps its log quiet.
            let _ = connection.close().await;
        }
    }

    async fn exchange(
        &mut self,
        connection: &mut Option<PgConnection>,
        query: Query<'static, Postgres, PgArguments>,
    ) -> Result<Bytes, sqlx::Error> {
        self.cut.mark_unchanged();
        let (db, pooled, patience) = (&self.db, self.pooled, self.patience);
        let made = async {
            let connection = match connection {
                Some(connection) => connection,
                None => connection.insert(PgConnection::connect_with(&db.connect_options()).await?),
            };
            // To the end of the answer, not only to its row: only then has the call committed.
            let rows = match pooled {
                true => call_through_pooler(connection, query).await?,
                false => query.fetch_all(connection).await?,
            };
            let value = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get_raw(0)?;
            let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
            Ok(Bytes::copy_from_slice(bytes))
        };
        let given_up = |kind: ErrorKind| Err(sqlx::Error::Io(kind.into()));
        tokio::select! {
            made = timeout(patience, made) => made.unwrap_or_else(|_| given_up(ErrorKind::TimedOut)),
            _ = self.cut.changed() => given_up(ErrorKind::ConnectionAborted),
        }
    }
}

/// The call's statement with its arguments encoded. A batch in which every step is done needs three arrays only.
fn query<T>(worker: Uuid, call: &Call<T>) -> Query<'static, Postgres, PgArguments> {
    let results = &call.results;
    let query = sqlx::query(EXCHANGE).bind(worker).bind(i32::try_from(call.want).unwrap_or(i32::MAX));
    let query = if results.is_empty() {
        query.bind(None::<Vec<Uuid>>).bind(None::<Vec<i64>>).bind(None::<Vec<i64>>)
    } else {
        query
            .bind(results.iter().map(|result| result.claim.id).collect::<Vec<_>>())
            .bind(results.iter().map(|result| result.claim.fence).collect::<Vec<_>>())
            .bind(results.iter().map(|result| result.claim.token).collect::<Vec<_>>())
    };
    let query = if results.iter().all(|result| matches!(result.outcome, Outcome::Done(None))) {
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
    };
    query.bind(call.registration)
}
