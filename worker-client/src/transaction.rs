//! Steps that run in a transaction which commits together with their transition.

use std::fmt;
use std::ops::DerefMut;

use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::stream::BoxStream;
use serde_json::value::RawValue;
use sqlx::Either;
use sqlx::Execute;
use sqlx::Executor;
use sqlx::PgConnection;
use sqlx::Postgres;
use sqlx::postgres::PgQueryResult;
use sqlx::postgres::PgRow;
use sqlx::postgres::PgStatement;
use sqlx::postgres::PgTypeInfo;
use sqlx::types::Json;
use tokio::sync::MappedMutexGuard;
use tokio::sync::Mutex;
use tokio::sync::MutexGuard;
use uuid::Uuid;

use crate::Context;

/// A transaction that commits together with the step's transition, or not at all; the argument of steps that are declared as `impl
/// Step<Task, Tx>`.
///
/// It begins before the step and ends after it: `&Tx` is an executor like a [`sqlx::PgPool`], and everything that is run on it, tasks that
/// are enqueued included, is there when the task has gone on, and is not there when it has not. An error, a panic, a
/// claim that was given to another worker or the end of the connection roll it back.
///
/// ```rust
/// # use pg_task_client as pg_task;
/// use pg_task::{NextStep, Step, StepResult, Tx};
/// # #[derive(Debug, serde::Deserialize, serde::Serialize)]
/// # pub struct Deposit { account: i64, cents: i64 }
/// # pg_task_client::task!(Account { Deposit });
/// impl Step<Account, Tx> for Deposit {
///     async fn step(self, tx: &Tx) -> StepResult<Account> {
///         sqlx::query("UPDATE account SET cents = cents + $2 WHERE id = $1")
///             .bind(self.account)
///             .bind(self.cents)
///             .execute(tx)
///             .await?;
///         NextStep::none()
///     }
/// }
/// ```
///
/// Results that are fetched through `&Tx` are kept in memory until the last row has come; a stream of many rows, `COPY` and savepoints go
/// through [`Tx::connection`]. `COMMIT` and `ROLLBACK` are the worker's to run, not the step's: a savepoint that is still open at the
/// end, or another isolation level than READ COMMITTED, fails the attempt.
pub struct Tx {
    connection: Mutex<sqlx::Transaction<'static, Postgres>>,
    context: Context,
}

impl Tx {
    /// Begins the transaction of a step.
    pub(crate) async fn begin(cx: &Context) -> sqlx::Result<Self> {
        // Whatever the default is: the finish reads the row as it is at that moment.
        let transaction = match cx.shared.worker.is_nil() {
            false => cx.db().begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?,
            // In a test's transaction: a savepoint.
            true => cx.db().begin().await?,
        };
        Ok(Self { connection: Mutex::new(transaction), context: cx.for_transaction() })
    }

    /// The task's id, the attempt, its token, the application's state. What is run on its pool is not part of the transaction.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The connection, for what needs it for more than one call: a savepoint, `COPY`, a stream of rows.
    ///
    /// Nothing else can run on the transaction until it is dropped: a call through `&Tx` would wait for ever.
    pub async fn connection(&self) -> impl DerefMut<Target = PgConnection> + Send + '_ {
        self.lock().await
    }

    async fn lock(&self) -> MappedMutexGuard<'_, PgConnection> {
        MutexGuard::map(self.connection.lock().await, |transaction| &mut **transaction)
    }

    /// Brings the step's result and commits.
    pub(crate) async fn finish(
        self,
        fence: i64,
        outcome: i16,
        step: Option<&Json<Box<RawValue>>>,
        delay: Option<i64>,
    ) -> Finish {
        let Self { connection, context } = self;
        let mut transaction = connection.into_inner();
        let accepted = sqlx::query_scalar::<_, bool>(FINISH)
            .bind(context.shared.worker)
            .bind(context.task_id())
            .bind(fence)
            .bind(context.token)
            .bind(i32::from(outcome))
            .bind(step)
            .bind(delay)
            // Through a pooler the server session is another one each time.
            .persistent(!context.shared.pooled)
            .fetch_one(&mut *transaction)
            .await;
        match accepted {
            Ok(true) => match transaction.commit().await {
                Ok(()) => Finish::Committed,
                Err(error) => Finish::Failed(error),
            },
            Ok(false) => {
                rolled_back(context.task_id(), transaction).await;
                Finish::Refused
            }
            Err(error) => {
                rolled_back(context.task_id(), transaction).await;
                Finish::Failed(error)
            }
        }
    }

    /// Keeps what the step did in a test's transaction.
    pub(crate) async fn release(self) -> sqlx::Result<()> {
        self.connection.into_inner().commit().await
    }

    /// Takes back what the step did.
    pub(crate) async fn roll_back(self) {
        rolled_back(self.context.task_id(), self.connection.into_inner()).await;
    }
}

const FINISH: &str = "SELECT pg_task.finish($1, $2, $3, $4, $5, $6, $7)";

/// How a step's transaction ended.
pub(crate) enum Finish {
    /// With the transition.
    Committed,
    /// It did not commit, or the answer to its commit was lost: the row tells, for its fence is another one then.
    Failed(sqlx::Error),
    /// The claim was stale: rolled back.
    Refused,
}

async fn rolled_back(id: Uuid, transaction: sqlx::Transaction<'static, Postgres>) {
    // If it fails the connection is gone, and the server rolls back by itself.
    if let Err(error) = transaction.rollback().await {
        tracing::debug!("[{id}] the transaction ended with its connection: {error}");
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("context", &self.context).finish_non_exhaustive()
    }
}

impl<'c> Executor<'c> for &'c Tx {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let all = async move {
            let mut connection = self.lock().await;
            let all: Vec<_> = connection.fetch_many(query).try_collect().await?;
            Ok::<_, sqlx::Error>(stream::iter(all.into_iter().map(Ok)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move { self.lock().await.fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: sqlx::SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.lock().await.prepare_with(sql, parameters).await })
    }

    /// Part of the trait as soon as anyone's sqlx has its feature `macros`, which is why this crate asks for it.
    fn describe<'e>(self, sql: sqlx::SqlStr) -> BoxFuture<'e, sqlx::Result<sqlx::Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.lock().await.describe(sql).await })
    }
}
