//! River's Rust client, riverqueue 0.5.0, measured.
//!
//! Fetches follow each other at the least allowed distance (1 ms): River's documentation names the fetch cooldown as what
//! limits throughput.

use std::time::Duration;

use bench_driver::Fill;
use bench_driver::System;
use riverqueue::BoxError;
use riverqueue::Client;
use riverqueue::FETCH_COOLDOWN_MIN;
use riverqueue::Job;
use riverqueue::JobArgs;
use riverqueue::QueueConfig;
use riverqueue::RunHandle;
use riverqueue::WorkContext;
use riverqueue::WorkOutcome;
use riverqueue::Workers;
use riverqueue::migrate::PostgresMigrator;
use riverqueue::sqlx;
use riverqueue::sqlx::PgPool;
use riverqueue::sqlx::postgres::PgPoolOptions;
use serde::Deserialize;
use serde::Serialize;

fn main() -> anyhow::Result<()> {
    bench_driver::main::<River>()
}

/// Jobs that one statement adds.
const BATCH: u64 = 5_000;

#[derive(Clone, Debug, Deserialize, JobArgs, Serialize)]
#[river(kind = "nothing")]
struct Nothing {}

#[derive(Clone, Debug, Deserialize, JobArgs, Serialize)]
#[river(kind = "chain")]
struct Chain {
    left: u32,
}

#[derive(Clone, Debug, Deserialize, JobArgs, Serialize)]
#[river(kind = "stamped")]
struct Stamped {
    at: i64,
}

async fn nothing(_: WorkContext, _: Job<Nothing>) -> Result<WorkOutcome, BoxError> {
    bench_driver::ran();
    Ok(WorkOutcome::Complete)
}

async fn chain(context: WorkContext, job: Job<Chain>) -> Result<WorkOutcome, BoxError> {
    if job.args.left > 0 {
        let client = context.client().ok_or("there is no client")?;
        client.insert(Chain { left: job.args.left - 1 }).await?;
    }
    bench_driver::ran();
    Ok(WorkOutcome::Complete)
}

async fn stamped(_: WorkContext, job: Job<Stamped>) -> Result<WorkOutcome, BoxError> {
    bench_driver::started(job.args.at);
    Ok(WorkOutcome::Complete)
}

struct River {
    url: String,
    db: PgPool,
}

impl River {
    fn client(pool: PgPool, concurrency: Option<usize>) -> anyhow::Result<Client> {
        let builder = Client::builder(pool).fetch_cooldown(FETCH_COOLDOWN_MIN);
        let Some(concurrency) = concurrency else { return Ok(builder.build()?) };
        let mut workers = Workers::new();
        workers.add_fn(nothing)?;
        workers.add_fn(chain)?;
        workers.add_fn(stamped)?;
        Ok(builder.workers(workers).queue("default", QueueConfig::new(concurrency)).build()?)
    }
}

impl System for River {
    type Worker = RunHandle;
    type Producer = Client;

    async fn connect(url: String) -> anyhow::Result<Self> {
        let db = PgPoolOptions::new().max_connections(20).connect(&url).await?;
        Ok(Self { url, db })
    }

    async fn setup(&self) -> anyhow::Result<()> {
        PostgresMigrator::new(self.db.clone()).migrate_up().await?;
        Ok(())
    }

    async fn fill(&self, fill: Fill) -> anyhow::Result<()> {
        // Finished jobs stay for a day: those of the last round are not part of this one.
        sqlx::query("TRUNCATE river_job").execute(&self.db).await?;
        let client = Self::client(self.db.clone(), None)?;
        let mut left = fill.count;
        while left > 0 {
            let batch = left.min(BATCH);
            if fill.steps == 1 {
                client.insert_many((0..batch).map(|_| Nothing {})).await?;
            } else {
                client.insert_many((0..batch).map(|_| Chain { left: fill.steps - 1 })).await?;
            }
            left -= batch;
        }
        sqlx::query("VACUUM ANALYZE river_job").execute(&self.db).await?;
        Ok(())
    }

    async fn start(&self, concurrency: usize) -> anyhow::Result<Self::Worker> {
        let mut run = Self::client(self.db.clone(), Some(concurrency.clamp(100, 2_000)))?.start()?;
        run.wait_ready().await?;
        Ok(run)
    }

    async fn is_done(&self) -> anyhow::Result<bool> {
        let done = "SELECT NOT EXISTS (SELECT FROM river_job WHERE state IN ('available', 'running'))";
        Ok(sqlx::query_scalar(done).fetch_one(&self.db).await?)
    }

    async fn stop(&self, mut worker: Self::Worker) -> anyhow::Result<()> {
        tokio::time::timeout(Duration::from_secs(30), worker.stop()).await??;
        Ok(())
    }

    async fn producer(&self) -> anyhow::Result<Self::Producer> {
        let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        Self::client(options.connect(&self.url).await?, None)
    }

    async fn enqueue(&self, producer: &mut Self::Producer, at_us: i64) -> anyhow::Result<()> {
        producer.insert(Stamped { at: at_us }).await?;
        Ok(())
    }
}
