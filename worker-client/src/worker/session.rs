//! The session: the connection that stands for the worker. It registers, listens and beats the heart.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::Postgres;
use sqlx::Row;
use sqlx::postgres::PgArguments;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use sqlx::query::Query;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;
use uuid::Uuid;

use super::Settings;
use super::backoff;
use super::dispatcher::Event;
use super::link::CONNECT_TIME;
use super::link::Link;
use super::link::News;
use crate::Error;
use crate::enqueue::micros;
use crate::error;
use crate::step::StepInfo;

/// The version of the worker protocol that this crate speaks: see docs/protocol.md.
const PROTOCOL: i32 = 1;

const REGISTER: &str = "SELECT refused, registration FROM pg_task.register(worker => $1, queues => $2, steps => $3, retry_limits => $4, \
     lease => $5, name => $6, held_ids => $7, held_fences => $8, held_tokens => $9, bind => $10, protocol => $11, gives_up => true)";

const REGISTER_WITH_WEIGHTS: &str = "SELECT refused, registration FROM pg_task.register(worker => $1, queues => $2, steps => $3, retry_limits => $4, \
     lease => $5, name => $6, held_ids => $7, held_fences => $8, held_tokens => $9, bind => $10, protocol => $11, weights => $12, gives_up => true)";

/// What a worker is told by a heartbeat of either kind, as `Session::tell` reads it.
macro_rules! told_by {
    ($call:literal) => {
        concat!("SELECT event, id, token FROM pg_task.", $call)
    };
}

const HEARTBEAT: &str = told_by!("heartbeat($1)");

const PROGRESS: &str = told_by!("set_progress_many($1, $2, $3, $4, $5)");

/// Steps that a registration can name: the protocol's limit.
const MAX_STEPS: usize = 512;

/// What the dispatcher asks of the session.
pub(super) enum Command {
    /// Register, again if need be, with what the worker still holds.
    Register(Vec<Held>),
    /// Ask for news, as every heartbeat does.
    Beat,
    /// Bring what steps say of how far they are.
    Progress(Vec<Report>),
    /// Sign off and end.
    Leave,
}

/// How far a step says that it is.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) id: Uuid,
    pub(super) token: i64,
    pub(super) value: Option<f64>,
    pub(super) text: String,
}

/// A task that the worker holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) id: Uuid,
    pub(super) fence: i64,
    pub(super) token: i64,
}

pub(super) struct Session<T> {
    pub(super) worker: Uuid,
    pub(super) db: PgPool,
    pub(super) settings: Settings,
    pub(super) steps: Vec<StepInfo>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) events: mpsc::UnboundedSender<Event<T>>,
}

/// Why a connection is no longer served.
enum End {
    Leave,
    Lost(sqlx::Error),
}

impl<T> Session<T> {
    /// Keeps a connection for as long as the worker lives.
    pub(super) async fn serve(mut self) {
        let mut failures = 0;
        loop {
            let lost = match Link::open(&self.db, self.worker, self.settings.polling, CONNECT_TIME).await {
                Ok(mut link) => {
                    let _ = self.events.send(Event::Listening);
                    match self.listen(&mut link, &mut failures).await {
                        End::Leave => return,
                        End::Lost(error) => error,
                    }
                }
                Err(error) => error,
            };
            if self.events.send(Event::SessionLost(lost)).is_err() {
                return;
            }
            tokio::time::sleep(backoff(failures)).await;
            failures += 1;
            // Commands that were meant for the lost connection are void; the dispatcher gives them again.
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, Command::Leave) {
                    let _ = self.events.send(Event::Left);
                    return;
                }
            }
        }
    }

    async fn listen(&mut self, link: &mut Link, failures: &mut u32) -> End {
        let mut heartbeat = tokio::time::interval(self.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeat.reset();
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Register(held)) => match self.register(link, &held).await {
                        Ok((refused, registration)) => {
                            *failures = 0;
                            let _ = self.events.send(Event::Registered { refused, registration });
                        }
                        Err(error) => return End::Lost(error),
                    },
                    Some(Command::Beat) => {
                        if let Err(error) = self.beat(link).await {
                            return End::Lost(error);
                        }
                        heartbeat.reset();
                    }
                    Some(Command::Progress(reports)) => match self.progress(link, reports).await {
                        Ok(taken) => {
                            heartbeat.reset();
                            let _ = self.events.send(Event::Progress(taken));
                        }
                        Err(error) => return End::Lost(error),
                    },
                    Some(Command::Leave) | None => {
                        let left = link.call(sqlx::query("SELECT pg_task.leave($1)").bind(self.worker));
                        // If it fails, the end of the connection says the same a little later.
                        let _ = timeout(Duration::from_secs(5), left).await;
                        let _ = self.events.send(Event::Left);
                        return End::Leave;
                    }
                },
                news = link.news() => match news {
                    Ok(News::Nothing) => {}
                    Ok(News::Stop) => _ = self.events.send(Event::Stop),
                    Ok(News::Wake) => _ = self.events.send(Event::Notified),
                    Err(error) => return End::Lost(error),
                },
                _ = heartbeat.tick() => {
                    if let Err(error) = self.beat(link).await {
                        return End::Lost(error);
                    }
                }
            }
        }
    }

    async fn register(&self, link: &mut Link, held: &[Held]) -> Result<(Vec<Uuid>, i64), sqlx::Error> {
        let lease = PgInterval { months: 0, days: 0, microseconds: micros(self.settings.lease) };
        // Without names, or with more than the server keeps, the worker is given every step and returns what it does not know.
        let named = (1..=MAX_STEPS).contains(&self.steps.len());
        let names = named.then(|| self.steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>());
        let limits = named.then(|| self.steps.iter().map(|step| step.retry_limit).collect::<Vec<_>>());
        // An extension that is older than this program knows no weights, and need not as long as none are set.
        let weights = self.settings.weights.as_ref();
        let query = sqlx::query(if weights.is_some() { REGISTER_WITH_WEIGHTS } else { REGISTER });
        let query = query
            .bind(self.worker)
            .bind(&self.settings.queues)
            .bind(names)
            .bind(limits)
            .bind(lease)
            .bind(&self.settings.name)
            .bind(held.iter().map(|held| held.id).collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.fence).collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.token).collect::<Vec<_>>())
            // Through a pooler the session that registers is anyone's.
            .bind(self.settings.polling.is_none())
            .bind(PROTOCOL);
        let query = if weights.is_some() { query.bind(weights) } else { query };
        let rows = timeout(self.settings.lease / 2, link.call(query)).await.map_err(timed_out)??;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok((row.try_get("refused")?, row.try_get("registration")?))
    }

    async fn beat(&self, link: &mut Link) -> Result<(), sqlx::Error> {
        let query = sqlx::query(HEARTBEAT).bind(self.worker);
        self.tell(self.ask(link, query).await?)
    }

    /// A heartbeat that says how far the steps are. False when the server does not take that.
    async fn progress(&self, link: &mut Link, reports: Vec<Report>) -> Result<bool, sqlx::Error> {
        let query = sqlx::query(PROGRESS)
            .bind(self.worker)
            .bind(reports.iter().map(|report| report.id).collect::<Vec<_>>())
            .bind(reports.iter().map(|report| report.token).collect::<Vec<_>>())
            .bind(reports.iter().map(|report| report.value).collect::<Vec<_>>())
            .bind(reports.into_iter().map(|report| report.text).collect::<Vec<_>>());
        match self.ask(link, query).await {
            Ok(rows) => self.tell(rows).map(|()| true),
            Err(error) if error::is_refusal(&error) => {
                warn!("pg_task.running does not show how far the steps are: {error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn ask(
        &self,
        link: &mut Link,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        // A connection that is half open answers nothing: better a new one than silence until the lease is over.
        timeout(self.settings.lease / 3, link.call(query)).await.map_err(timed_out)?
    }

    /// Tells the dispatcher what the server says to a heartbeat.
    fn tell(&self, rows: Vec<PgRow>) -> Result<(), sqlx::Error> {
        let _ = self.events.send(Event::Heard);
        for row in rows {
            let event = match row.try_get::<i16, _>("event")? {
                3 => Event::Cancelled { id: row.try_get("id")?, token: row.try_get("token")? },
                4 => Event::Stop,
                5 => Event::Unregistered,
                6 => Event::Wake,
                _ => continue,
            };
            let _ = self.events.send(event);
        }
        Ok(())
    }
}

fn timed_out(_: tokio::time::error::Elapsed) -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// The error that ends a worker which the server refuses.
pub(super) fn refusal(error: sqlx::Error) -> Error {
    let unsupported = |error: &sqlx::Error| {
        error.as_database_error().is_some_and(|error| error.code().is_some_and(|code| code == "0A000"))
    };
    if unsupported(&error) {
        Error::Protocol(PROTOCOL, error)
    } else {
        Error::Db(error, "register the worker".to_owned())
    }
}

/// Whether the first registration failed for a reason that will not go away.
pub(super) fn is_final(error: &sqlx::Error) -> bool {
    error::is_configuration(error)
}
