//! awa 0.6.9 on its queue storage, measured.
//!
//! Jobs without a deadline take its compact path, and two claimers share the queue: the settings of its own throughput
//! benchmark, with more workers.

use std::time::Duration;

use awa::Client;
use awa::InsertOpts;
use awa::JobArgs;
use awa::JobResult;
use awa::QueueConfig;
use awa::QueueStorage;
use awa::QueueStorageConfig;
use awa::model::insert::params_with;
use bench_driver::Fill;
use bench_driver::System;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::runtime::Handle;

fn main() -> anyhow::Result<()> {
    bench_driver::main::<Awa>()
}

const QUEUE: &str = "bench";

/// Jobs that one COPY adds.
const BATCH: u64 = 5_000;

#[derive(Clone, Deserialize, JobArgs, Serialize)]
struct Nothing {}

#[derive(Clone, Deserialize, JobArgs, Serialize)]
struct Chain {
    left: u32,
}

#[derive(Clone, Deserialize, JobArgs, Serialize)]
struct Stamped {
    at: i64,
}

struct Awa {
    url: String,
    db: PgPool,
    store: QueueStorage,
}

fn opts() -> InsertOpts {
    InsertOpts { queue: QUEUE.to_owned(), ..InsertOpts::default() }
}

impl System for Awa {
    type Worker = Client;
    type Producer = PgPool;

    async fn connect(url: String) -> anyhow::Result<Self> {
        let db = PgPoolOptions::new().max_connections(20).connect(&url).await?;
        Ok(Self { url, db, store: QueueStorage::new(QueueStorageConfig::default())? })
    }

    async fn setup(&self) -> anyhow::Result<()> {
        // Neither its future nor that of a COPY is Send.
        let migrations = awa::migrations::run(&self.db);
        tokio::task::block_in_place(|| Handle::current().block_on(migrations))?;
        // The first start of a worker in a new database moves it to the queue storage.
        let worker = self.start(1).await?;
        self.stop(worker).await
    }

    async fn fill(&self, fill: Fill) -> anyhow::Result<()> {
        let job = match fill.steps {
            1 => params_with(&Nothing {}, opts())?,
            steps => params_with(&Chain { left: steps - 1 }, opts())?,
        };
        let mut left = fill.count;
        while left > 0 {
            let batch = left.min(BATCH);
            let jobs = vec![job.clone(); usize::try_from(batch)?];
            let copy = awa::insert_many_copy_from_pool(&self.db, &jobs);
            tokio::task::block_in_place(|| Handle::current().block_on(copy))?;
            left -= batch;
        }
        sqlx::query("VACUUM ANALYZE").execute(&self.db).await?;
        Ok(())
    }

    async fn start(&self, concurrency: usize) -> anyhow::Result<Self::Worker> {
        let config = QueueConfig {
            max_workers: u32::try_from(concurrency.clamp(100, 1_000))?,
            claimers: 2,
            deadline_duration: Duration::ZERO,
            ..QueueConfig::default()
        };
        let chain_db = self.db.clone();
        let client = Client::builder(self.db.clone())
            .queue(QUEUE, config)
            .register::<Nothing, _, _>(|_, _| async {
                bench_driver::ran();
                Ok(JobResult::Completed)
            })
            .register::<Chain, _, _>(move |args: Chain, _| {
                let db = chain_db.clone();
                async move {
                    if args.left > 0 {
                        let next = Chain { left: args.left - 1 };
                        awa::insert_with(&db, &next, opts()).await.map_err(awa::JobError::retryable)?;
                    }
                    bench_driver::ran();
                    Ok(JobResult::Completed)
                }
            })
            .register::<Stamped, _, _>(|args: Stamped, _| async move {
                bench_driver::started(args.at);
                Ok(JobResult::Completed)
            })
            .build()?;
        client.start().await?;
        Ok(client)
    }

    async fn is_done(&self) -> anyhow::Result<bool> {
        let counts = self.store.queue_counts(&self.db, QUEUE).await?;
        Ok(counts.available == 0 && counts.running == 0)
    }

    async fn stop(&self, worker: Self::Worker) -> anyhow::Result<()> {
        worker.shutdown(Duration::from_secs(10)).await;
        Ok(())
    }

    async fn producer(&self) -> anyhow::Result<Self::Producer> {
        let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        Ok(options.connect(&self.url).await?)
    }

    async fn enqueue(&self, producer: &mut Self::Producer, at_us: i64) -> anyhow::Result<()> {
        awa::insert_with(&*producer, &Stamped { at: at_us }, opts()).await?;
        Ok(())
    }
}
