//! The bare loops, measured: what the database does for clients that need no scheduler.

mod client;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use anyhow::Context;
use bench_driver::Fill;
use bench_driver::System;
use client::Client;
use pg_task_bench::bare;
use pg_task_bench::tasks;
use tokio::task::JoinHandle;
use tokio_postgres::Statement;
use uuid::Uuid;

fn main() -> anyhow::Result<()> {
    bench_driver::main::<Bare>()
}

/// Connections of the bare client.
const CONNECTIONS: usize = 3;

/// What a producer runs unless `BENCH_STATEMENT` says otherwise. The argument is the step.
const INSERT: &str = "INSERT INTO bare (step) VALUES ($1::text::jsonb)";

/// A table that is a bare copy of `pg_task.task`, and a client that knows the ids.
struct Bare {
    url: String,
    client: tokio_postgres::Client,
    ids: Vec<Uuid>,
    /// Loops that have not ended.
    running: Arc<AtomicUsize>,
    /// What its producers run.
    statement: String,
}

impl System for Bare {
    type Worker = Vec<JoinHandle<anyhow::Result<()>>>;
    type Producer = (tokio_postgres::Client, Statement);

    async fn connect(url: String) -> anyhow::Result<Self> {
        let client = bare::connect(&url).await?;
        // The client knows the ids, as a scheduler would: reading them is not part of what is measured.
        let known = client.query_one("SELECT to_regclass('public.bare') IS NOT NULL", &[]).await?;
        let ids = if known.get(0) {
            let rows = client.query("SELECT id FROM bare ORDER BY id", &[]).await?;
            rows.iter().map(|row| row.get(0)).collect()
        } else {
            Vec::new()
        };
        let statement = std::env::var("BENCH_STATEMENT").unwrap_or_else(|_| INSERT.to_owned());
        Ok(Self { url, client, ids, running: Arc::default(), statement })
    }

    async fn setup(&self) -> anyhow::Result<()> {
        Ok(bare::make_table(&self.client).await?)
    }

    async fn fill(&self, fill: Fill) -> anyhow::Result<()> {
        let step = tasks::first_step(fill);
        let statement =
            format!("INSERT INTO bare (step) SELECT {step} FROM generate_series(1, {}) AS i", fill.count);
        self.client.batch_execute("TRUNCATE bare").await?;
        self.client.batch_execute(&statement).await?;
        self.client.batch_execute("VACUUM ANALYZE bare").await?;
        Ok(())
    }

    async fn start(&self, concurrency: usize) -> anyhow::Result<Self::Worker> {
        let share = self.ids.len().div_ceil(CONNECTIONS).max(1);
        let mut loops = Vec::new();
        for ids in self.ids.chunks(share) {
            let client = Client::connect(&self.url, concurrency).await?;
            let ids = ids.to_vec();
            self.running.fetch_add(1, Ordering::AcqRel);
            let running = Arc::clone(&self.running);
            loops.push(tokio::spawn(async move {
                client.drain(&ids).await?;
                running.fetch_sub(1, Ordering::AcqRel);
                Ok(())
            }));
        }
        Ok(loops)
    }

    async fn is_done(&self) -> anyhow::Result<bool> {
        // The ids' rows, by id: nothing is left of the last batch, nor of the others.
        let left =
            self.client.query_one("SELECT count(*) FROM bare WHERE id = ANY ($1)", &[&self.ids]).await?;
        Ok(left.get::<_, i64>(0) == 0)
    }

    async fn stop(&self, worker: Self::Worker) -> anyhow::Result<()> {
        for part in worker {
            part.await??;
        }
        Ok(())
    }

    async fn producer(&self) -> anyhow::Result<Self::Producer> {
        let client = bare::connect(&self.url).await?;
        let statement = client.prepare(&self.statement).await?;
        Ok((client, statement))
    }

    async fn enqueue(&self, (client, statement): &mut Self::Producer, at_us: i64) -> anyhow::Result<()> {
        let step = format!(r#"{{"Load":{{"Stamped":{{"at":{at_us}}}}}}}"#);
        client.execute(statement, &[&step]).await.context("failed to insert")?;
        // Nothing is to start: what is measured is the time until the row is durable.
        bench_driver::started(at_us);
        Ok(())
    }
}
