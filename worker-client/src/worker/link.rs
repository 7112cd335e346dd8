//! The session's connection: one that listens, or one through a pooler, which cannot.
//!
//! A pooler in transaction mode gives each transaction another server session. So nothing may outlive one there: no `LISTEN`, no
//! prepared statement, no registration that is bound to a session. Each call is a transaction of its own with a statement
//! that is not kept, and instead of notifications there is a clock.

use std::time::Duration;

use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::PgPool;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::postgres::PgListener;
use sqlx::postgres::PgPoolOptions;
use sqlx::postgres::PgRow;
use sqlx::query::Query;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

const STOP_CHANNEL: &str = "pg_task_changed";
const STOP_PAYLOAD: &str = "stop_worker";

/// How long a connection may take, until it listens.
pub(super) const CONNECT_TIME: Duration = Duration::from_secs(10);

/// The session's connection.
pub(super) enum Link {
    /// It listens.
    Listening(PgListener),
    /// It goes through a pooler; the clock says when to look for work.
    Pooled(PgConnection, Interval),
}

/// What comes without being asked for.
pub(super) enum News {
    /// Nothing that concerns the worker.
    Nothing,
    /// The worker is to stop.
    Stop,
    /// There is work, or may be.
    Wake,
}

impl Link {
    /// Opens a connection within `time`; with `polling` one that looks for work so often.
    pub(super) async fn open(
        db: &PgPool,
        worker: Uuid,
        polling: Option<Duration>,
        time: Duration,
    ) -> sqlx::Result<Self> {
        let opened = tokio::time::timeout(time, Self::connect(db, worker, polling)).await;
        opened.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
    }

    async fn connect(db: &PgPool, worker: Uuid, polling: Option<Duration>) -> sqlx::Result<Self> {
        let options = (*db.connect_options()).clone().application_name("pg_task worker");
        if let Some(polling) = polling {
            let connection = PgConnection::connect_with(&options).await?;
            let mut clock = tokio::time::interval(polling);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            return Ok(Self::Pooled(connection, clock));
        }
        // A pool of its own with one connection: the user's pool is left to the steps.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen_all([format!("pg_task_{worker}").as_str(), STOP_CHANNEL]).await?;
        Ok(Self::Listening(listener))
    }

    /// Makes a call.
    pub(super) async fn call(&mut self, query: Query<'_, Postgres, PgArguments>) -> sqlx::Result<Vec<PgRow>> {
        match self {
            Self::Listening(listener) => query.fetch_all(listener).await,
            Self::Pooled(connection, _) => call_through_pooler(connection, query).await,
        }
    }

    /// Waits for what comes without being asked for. May be dropped at any time.
    pub(super) async fn news(&mut self) -> sqlx::Result<News> {
        match self {
            Self::Listening(listener) => match listener.try_recv().await? {
                Some(news) if news.channel() != STOP_CHANNEL => Ok(News::Wake),
                Some(news) if news.payload() == STOP_PAYLOAD => Ok(News::Stop),
                Some(_) => Ok(News::Nothing),
                None => Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into())),
            },
            Self::Pooled(_, clock) => {
                clock.tick().await;
                Ok(News::Wake)
            }
        }
    }
}

/// A call in a transaction of its own: the parts of its statement, parsed and then run, must meet in one server session.
pub(super) async fn call_through_pooler(
    connection: &mut PgConnection,
    query: Query<'_, Postgres, PgArguments>,
) -> sqlx::Result<Vec<PgRow>> {
    let mut transaction = connection.begin().await?;
    let rows = query.persistent(false).fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_server_that_falls_silent_before_the_connection_listens_is_given_up() -> std::io::Result<()> {
        let server = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("postgres://user@{}/db?sslmode=disable", server.local_addr()?);
        let silent = async {
            let (mut client, _) = server.accept().await?;
            let mut start = [0; 1024];
            let _ = client.read(&mut start).await?;
            // Authenticated, and ready for a query; which gets no answer.
            client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
            std::future::pending::<std::io::Result<()>>().await
        };
        let db = PgPool::connect_lazy(&url).expect("it is a URL");
        let open = Link::open(&db, Uuid::nil(), None, Duration::from_millis(200));
        tokio::select! {
            silent = silent => silent,
            opened = tokio::time::timeout(CONNECT_TIME, open) => {
                assert!(matches!(opened, Ok(Err(sqlx::Error::Io(_)))), "it waits for the answer");
                Ok(())
            }
        }
    }
}
