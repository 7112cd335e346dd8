//! A program on the crate pg_task 1.0.0, as its users have it: it makes the old table, enqueues, and runs the old worker.
//!
//! `seed migrate FOLDER` runs the crate's migrations, `seed enqueue KIND` enqueues a task, `seed work` runs the crate's worker until it is
//! told to stop, `seed api` uses every public item of the crate.

mod api;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use async_trait::async_trait;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Test { Fail, Note, Sleep });
pg_task::scheduler!(Tasks { Test });

/// A step that the old worker parks: it knows it under this name, and so does the worker of the test.
#[derive(Debug, Deserialize, Serialize)]
pub struct Fail {
    until_attempt: i32,
}

#[async_trait]
impl Step<Test> for Fail {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::from_millis(10);

    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        Err(format!("not before attempt {}", self.until_attempt).into())
    }
}

/// A step that is only stored here.
#[derive(Debug, Deserialize, Serialize)]
pub struct Note {
    key: String,
}

#[async_trait]
impl Step<Test> for Note {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        NextStep::none()
    }
}

/// A step that holds its lease.
#[derive(Debug, Deserialize, Serialize)]
pub struct Sleep {
    key: String,
    millis: u64,
}

#[async_trait]
impl Step<Test> for Sleep {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        tokio::time::sleep(Duration::from_millis(self.millis)).await;
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = PgPool::connect(&std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?).await?;
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("api") => api::use_everything(db).await,
        Some("enqueue") => enqueue(&db, &arguments.next().context("which kind?")?).await,
        Some("migrate") => {
            let folder = PathBuf::from(arguments.next().context("which folder?")?);
            Ok(sqlx::migrate::Migrator::new(folder).await?.run(&db).await?)
        }
        Some("work") => Ok(pg_task::Worker::<Tasks>::new(db).run().await?),
        other => bail!("no such command: {other:?}"),
    }
}

/// A task that is due now, one that is due in an hour, one that the old worker parks, one that it goes on running.
async fn enqueue(db: &PgPool, kind: &str) -> anyhow::Result<()> {
    let note = |key: &str| Tasks::Test(Note { key: key.to_owned() }.into());
    match kind {
        "delayed" => pg_task::delay(db, &note(kind), Duration::from_secs(3600)).await?,
        "endless" => {
            let step = Sleep { key: kind.to_owned(), millis: 3_600_000 };
            pg_task::enqueue(db, &Tasks::Test(step.into())).await?
        }
        "failing" => pg_task::enqueue(db, &Tasks::Test(Fail { until_attempt: 1 }.into())).await?,
        "ready" => pg_task::enqueue(db, &note(kind)).await?,
        other => bail!("no such kind: {other:?}"),
    };
    Ok(())
}
