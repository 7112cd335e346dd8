//! pg_task, measured: a worker as a user would write it, and producers.

use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use bench_driver::Fill;
use bench_driver::System;
use pg_task::CancellationToken;
use pg_task::Layer;
use pg_task::LayerResult;
use pg_task::Next;
use pg_task::Worker;
use pg_task_bench::tasks;
use pg_task_bench::tasks::Stamped;
use pg_task_bench::tasks::Tasks;
use sqlx::AssertSqlSafe;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;
use uuid::Uuid;

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::ERROR)
        .init();
    bench_driver::main::<PgTask>()
}

/// pg_task.
struct PgTask {
    url: String,
    db: PgPool,
    /// Results taken before this program began.
    finished_before: i64,
}

impl System for PgTask {
    type Worker = (CancellationToken, JoinHandle<pg_task::Result<()>>);
    type Producer = PgPool;

    async fn connect(url: String) -> anyhow::Result<Self> {
        let db = PgPool::connect(&url).await.context("failed to connect")?;
        let finished_before = finished(&db).await?;
        Ok(Self { url, db, finished_before })
    }

    async fn setup(&self) -> anyhow::Result<()> {
        sqlx::raw_sql("CREATE EXTENSION IF NOT EXISTS pg_task").execute(&self.db).await?;
        Ok(())
    }

    async fn fill(&self, fill: Fill) -> anyhow::Result<()> {
        let step = tasks::first_step(fill);
        let statement = format!(
            "INSERT INTO pg_task.task (step) SELECT {step} FROM generate_series(1, {}) AS i",
            fill.count
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&self.db).await?;
        sqlx::raw_sql("VACUUM ANALYZE pg_task.task").execute(&self.db).await?;
        Ok(())
    }

    async fn start(&self, concurrency: usize) -> anyhow::Result<Self::Worker> {
        let stop = CancellationToken::new();
        let mut worker = Worker::<Tasks>::new(self.db.clone())
            .with_concurrency(NonZeroUsize::new(concurrency).context("no concurrency")?)
            .with_cancellation(stop.clone());
        for _ in 0..layers()? {
            worker = worker.with_layer(Figures::default());
        }
        Ok((stop, tokio::spawn(async move { worker.run().await })))
    }

    async fn is_done(&self) -> anyhow::Result<bool> {
        // Counted by the server when the results have been committed.
        let finished = finished(&self.db).await? - self.finished_before;
        Ok(u64::try_from(finished)? >= bench_driver::count())
    }

    async fn stop(&self, (stop, worker): Self::Worker) -> anyhow::Result<()> {
        stop.cancel();
        worker.await??;
        Ok(())
    }

    async fn producer(&self) -> anyhow::Result<Self::Producer> {
        // One connection, kept: a pool that pings it before each use would measure the ping.
        let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        Ok(options.connect(&self.url).await?)
    }

    async fn enqueue(&self, producer: &mut Self::Producer, at_us: i64) -> anyhow::Result<()> {
        enqueue(producer, &Tasks::Load(Stamped { at: at_us }.into())).await?;
        Ok(())
    }
}

/// How many layers the worker is to have.
fn layers() -> anyhow::Result<usize> {
    match std::env::var("BENCH_LAYERS") {
        Ok(text) => text.parse().with_context(|| format!("BENCH_LAYERS is no number: {text}")),
        Err(_) => Ok(0),
    }
}

/// A layer as users have: it counts attempts and adds up their time.
#[derive(Default)]
struct Figures {
    attempts: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Layer for Figures {
    async fn call(&self, _cx: &pg_task::Context, next: Next<'_>) -> LayerResult {
        let began = Instant::now();
        let result = next.run().await;
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
        result
    }
}

/// Boxed: rustc does not see through the lifetimes of the executor in a trait's future otherwise (its issue 100013).
fn enqueue<'a>(
    db: &'a PgPool,
    task: &'a Tasks,
) -> Pin<Box<dyn Future<Output = pg_task::Result<Uuid>> + Send + 'a>> {
    Box::pin(pg_task::Enqueue::new().enqueue(db, task))
}

async fn finished(db: &PgPool) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar("SELECT finished FROM pg_task.scheduler_state()").fetch_one(db).await?)
}
