//! The crate pg_task 1.0.0, measured.

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::Context;
use async_trait::async_trait;
use bench_driver::Fill;
use bench_driver::System;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::Worker;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;

pg_task::task!(Load { Chain, Nothing, Stamped });
pg_task::scheduler!(Tasks { Load });

fn main() -> anyhow::Result<()> {
    bench_driver::main::<PgTask1>()
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Nothing;

#[async_trait]
impl Step<Load> for Nothing {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        bench_driver::ran();
        NextStep::none()
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Chain {
    left: u32,
}

#[async_trait]
impl Step<Load> for Chain {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        bench_driver::ran();
        match self.left {
            0 => NextStep::none(),
            left => NextStep::now(Chain { left: left - 1 }),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Stamped {
    at: i64,
}

#[async_trait]
impl Step<Load> for Stamped {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        bench_driver::started(self.at);
        NextStep::none()
    }
}

struct PgTask1 {
    url: String,
    db: PgPool,
}

impl System for PgTask1 {
    type Worker = JoinHandle<pg_task::Result<()>>;
    type Producer = PgPool;

    async fn connect(url: String) -> anyhow::Result<Self> {
        let db = PgPoolOptions::new().max_connections(20).connect(&url).await?;
        Ok(Self { url, db })
    }

    async fn setup(&self) -> anyhow::Result<()> {
        let migrations = Migrator::new(Path::new(env!("PG_TASK_MIGRATIONS"))).await?;
        Ok(migrations.run(&self.db).await?)
    }

    async fn fill(&self, fill: Fill) -> anyhow::Result<()> {
        let step = match fill.steps {
            1 => r#"{"Load":{"Nothing":null}}"#.to_owned(),
            steps => format!(r#"{{"Load":{{"Chain":{{"left":{}}}}}}}"#, steps - 1),
        };
        sqlx::query("INSERT INTO pg_task (step) SELECT $1 FROM generate_series(1, $2)")
            .bind(step)
            .bind(i64::try_from(fill.count)?)
            .execute(&self.db)
            .await?;
        sqlx::query("VACUUM ANALYZE pg_task").execute(&self.db).await?;
        Ok(())
    }

    /// With as many steps at a time as `CONCURRENCY` says, by default as many as the crate takes by itself. Beyond about a hundred
    /// they only wait for each other: every claim and every result is a transaction of its own.
    async fn start(&self, _concurrency: usize) -> anyhow::Result<Self::Worker> {
        let mut worker = Worker::<Tasks>::new(self.db.clone());
        if let Ok(concurrency) = std::env::var("CONCURRENCY") {
            let concurrency: NonZeroUsize = concurrency.parse().context("CONCURRENCY is no number above 0")?;
            worker = worker.with_concurrency(concurrency);
        }
        Ok(tokio::spawn(async move { worker.run().await }))
    }

    async fn is_done(&self) -> anyhow::Result<bool> {
        Ok(sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM pg_task)").fetch_one(&self.db).await?)
    }

    async fn stop(&self, worker: Self::Worker) -> anyhow::Result<()> {
        sqlx::query("SELECT pg_notify('pg_task_changed', 'stop_worker')").execute(&self.db).await?;
        worker.await??;
        Ok(())
    }

    async fn producer(&self) -> anyhow::Result<Self::Producer> {
        let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        Ok(options.connect(&self.url).await?)
    }

    async fn enqueue(&self, producer: &mut Self::Producer, at_us: i64) -> anyhow::Result<()> {
        pg_task::enqueue(&*producer, &Tasks::Load(Stamped { at: at_us }.into())).await?;
        Ok(())
    }
}
