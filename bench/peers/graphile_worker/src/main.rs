//! graphile_worker 0.14.1 with its local queue and batched completion, measured.
//!
//! The settings are those of its own throughput benchmark (`benches/perf_test.rs`).

use std::sync::Arc;
use std::time::Duration;

use bench_driver::Fill;
use bench_driver::System;
use graphile_worker::IntoTaskHandlerResult;
use graphile_worker::JobSpec;
use graphile_worker::LocalQueueConfig;
use graphile_worker::RawJobSpec;
use graphile_worker::TaskHandler;
use graphile_worker::Worker;
use graphile_worker::WorkerContext;
use graphile_worker::WorkerContextExt;
use graphile_worker::WorkerOptions;
use graphile_worker::WorkerUtils;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;

fn main() -> anyhow::Result<()> {
    bench_driver::main::<Graphile>()
}

/// Jobs that one local queue fetches at a time, at most.
const LOCAL_QUEUE: usize = 5_000;

/// Jobs that one statement adds.
const BATCH: usize = 10_000;

#[derive(Clone, Deserialize, Serialize)]
struct Nothing {}

impl TaskHandler for Nothing {
    const IDENTIFIER: &'static str = "nothing";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        bench_driver::ran();
        Ok::<(), String>(())
    }
}

#[derive(Clone, Deserialize, Serialize)]
struct Chain {
    left: u32,
}

impl TaskHandler for Chain {
    const IDENTIFIER: &'static str = "chain";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        if self.left > 0 {
            let next = Chain { left: self.left - 1 };
            context.add_job(next, JobSpec::default()).await.map_err(|error| error.to_string())?;
        }
        bench_driver::ran();
        Ok::<(), String>(())
    }
}

#[derive(Clone, Deserialize, Serialize)]
struct Stamped {
    at: i64,
}

impl TaskHandler for Stamped {
    const IDENTIFIER: &'static str = "stamped";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        bench_driver::started(self.at);
        Ok::<(), String>(())
    }
}

struct Graphile {
    url: String,
    db: PgPool,
}

impl Graphile {
    async fn utils(&self, connections: u32) -> anyhow::Result<WorkerUtils> {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .test_before_acquire(false)
            .connect(&self.url)
            .await?;
        Ok(WorkerUtils::new(pool, "graphile_worker"))
    }
}

impl System for Graphile {
    type Worker = (Arc<Worker>, JoinHandle<Result<(), String>>);
    type Producer = WorkerUtils;

    async fn connect(url: String) -> anyhow::Result<Self> {
        let db = PgPoolOptions::new().max_connections(20).connect(&url).await?;
        Ok(Self { url, db })
    }

    async fn setup(&self) -> anyhow::Result<()> {
        Ok(self.utils(1).await?.migrate().await?)
    }

    async fn fill(&self, fill: Fill) -> anyhow::Result<()> {
        let utils = self.utils(1).await?;
        let (identifier, payload) = match fill.steps {
            1 => (Nothing::IDENTIFIER, serde_json::to_value(Nothing {})?),
            steps => (Chain::IDENTIFIER, serde_json::to_value(Chain { left: steps - 1 })?),
        };
        let job = RawJobSpec { identifier: identifier.to_owned(), payload, spec: JobSpec::default() };
        let mut left = usize::try_from(fill.count)?;
        while left > 0 {
            let batch = left.min(BATCH);
            utils.add_raw_jobs(&vec![job.clone(); batch]).await?;
            left -= batch;
        }
        sqlx::query("VACUUM ANALYZE graphile_worker._private_jobs").execute(&self.db).await?;
        Ok(())
    }

    async fn start(&self, concurrency: usize) -> anyhow::Result<Self::Worker> {
        let worker = WorkerOptions::default()
            .pg_pool(self.db.clone())
            .schema("graphile_worker")
            .concurrency(concurrency.min(500))
            .poll_interval(Duration::from_millis(5))
            .complete_job_batch_delay(Duration::from_millis(5))
            .local_queue(LocalQueueConfig::default().with_size(LOCAL_QUEUE))
            .listen_os_shutdown_signals(false)
            .define_job::<Nothing>()
            .define_job::<Chain>()
            .define_job::<Stamped>()
            .init()
            .await?;
        let worker = Arc::new(worker);
        let running = Arc::clone(&worker);
        let handle = tokio::spawn(async move { running.run().await.map_err(|error| error.to_string()) });
        Ok((worker, handle))
    }

    async fn is_done(&self) -> anyhow::Result<bool> {
        let done = "SELECT NOT EXISTS (SELECT FROM graphile_worker._private_jobs)";
        Ok(sqlx::query_scalar(done).fetch_one(&self.db).await?)
    }

    async fn stop(&self, (worker, handle): Self::Worker) -> anyhow::Result<()> {
        worker.request_shutdown();
        handle.await?.map_err(anyhow::Error::msg)
    }

    async fn producer(&self) -> anyhow::Result<Self::Producer> {
        self.utils(1).await
    }

    async fn enqueue(&self, producer: &mut Self::Producer, at_us: i64) -> anyhow::Result<()> {
        producer.add_job(Stamped { at: at_us }, JobSpec::default()).await?;
        Ok(())
    }
}
