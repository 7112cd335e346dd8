//! Drain, chains and latency of pg_task, each beside a bare loop of the same run. `cargo xtask bench quick` runs it.
#![expect(clippy::print_stdout, reason = "results are for people")]

mod bare;
mod tasks;

use std::num::NonZeroUsize;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use pg_task::CancellationToken;
use pg_task::Worker;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::PgPool;
use tasks::Tasks;
use tokio::sync::mpsc;

const DRAIN: i64 = 200_000;
const CHAINS: i64 = 2_000;
const CHAIN_STEPS: u32 = 10;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let db = PgPool::connect(&url).await?;
    bare::prepare(&db).await?;
    let mut rows = Table::default();
    for _ in 0..ROUNDS {
        rows.add("drain of no-op tasks", "tasks/s", drain(&db).await?);
        rows.add("  bare client that knows the ids", "tasks/s", bare::drain(&db, DRAIN).await?);
        rows.add("ten-step chains, 1,000 at a time", "steps/s", chains(&db).await?);
        let (insert, start) = latency(&db, &url).await?;
        rows.add("idle: enqueue called -> step starts, p50", "us", percentile(&start, 50));
        rows.add("idle: enqueue called -> step starts, p99", "us", percentile(&start, 99));
        rows.add("  bare INSERT, commit included, p50", "us", percentile(&insert, 50));
    }
    rows.print();
    Ok(())
}

/// Tasks per second: a backlog of no-ops, one worker.
async fn drain(db: &PgPool) -> anyhow::Result<f64> {
    sqlx::query(
        "INSERT INTO pg_task.task (step) SELECT '{\"Load\":{\"Nothing\":null}}' FROM generate_series(1, $1)",
    )
    .bind(DRAIN)
    .execute(db)
    .await?;
    sqlx::query("VACUUM ANALYZE pg_task.task").execute(db).await?;
    sqlx::query("CHECKPOINT").execute(db).await?;
    let began = Instant::now();
    run_until_empty(db).await?;
    Ok(DRAIN as f64 / began.elapsed().as_secs_f64())
}

/// Steps per second: chains that go on at once.
async fn chains(db: &PgPool) -> anyhow::Result<f64> {
    sqlx::query("INSERT INTO pg_task.task (step) SELECT jsonb_build_object('Load', jsonb_build_object('Chain', jsonb_build_object('left', $2::int))) FROM generate_series(1, $1)")
        .bind(CHAINS)
        .bind(i32::try_from(CHAIN_STEPS)? - 1)
        .execute(db)
        .await?;
    let began = Instant::now();
    run_until_empty(db).await?;
    Ok(CHAINS as f64 * f64::from(CHAIN_STEPS) / began.elapsed().as_secs_f64())
}

async fn run_until_empty(db: &PgPool) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let worker = Worker::<Tasks>::new(db.clone())
        .with_concurrency(NonZeroUsize::new(1000).context("not zero")?)
        .with_cancellation(stop.clone());
    let worker = tokio::spawn(async move { worker.run().await });
    loop {
        // Cheap: the first row that is left, if any.
        let left: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_task.task)").fetch_one(db).await?;
        if !left {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    worker.await??;
    Ok(())
}

/// Microseconds of bare INSERTs and of enqueue to start, one at a time, interleaved.
async fn latency(db: &PgPool, url: &str) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (sender, mut started) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let worker = Worker::<Tasks>::new(db.clone()).with_state(sender).with_cancellation(stop.clone());
    let worker = tokio::spawn(async move { worker.run().await });
    let mut connection = PgConnection::connect(url).await?;
    let (mut inserts, mut starts) = (Vec::new(), Vec::new());
    for round in 0..300 {
        // Long enough for the worker to be idle again.
        tokio::time::sleep(Duration::from_millis(3)).await;
        let began = Instant::now();
        bare::insert(&mut connection).await?;
        let insert = began.elapsed();
        tokio::time::sleep(Duration::from_millis(3)).await;
        let began = Instant::now();
        sqlx::query("SELECT pg_task.enqueue('{\"Load\":{\"Report\":null}}')")
            .execute(&mut connection)
            .await?;
        let at: Instant = started.recv().await.context("the worker has ended")?;
        if round >= 50 {
            inserts.push(insert.as_secs_f64() * 1e6);
            starts.push(at.saturating_duration_since(began).as_secs_f64() * 1e6);
        }
    }
    stop.cancel();
    worker.await??;
    Ok((inserts, starts))
}

fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}

/// Figures of all rounds.
#[derive(Default)]
struct Table {
    rows: Vec<(&'static str, &'static str, Vec<f64>)>,
}

impl Table {
    fn add(&mut self, what: &'static str, unit: &'static str, value: f64) {
        match self.rows.iter_mut().find(|row| row.0 == what) {
            Some(row) => row.2.push(value),
            None => self.rows.push((what, unit, vec![value])),
        }
    }

    fn median(&self, what: &str) -> f64 {
        self.rows.iter().find(|row| row.0 == what).map_or(f64::NAN, |row| percentile(&row.2, 50))
    }

    fn print(&self) {
        println!(
            "{:<44} {:>12} {:>12} {:>12}",
            format!("medians of {ROUNDS} rounds"),
            "least",
            "median",
            "most"
        );
        for (what, unit, values) in &self.rows {
            println!(
                "{what:<44} {:>12.0} {:>12.0} {:>12.0} {unit}",
                percentile(values, 0),
                percentile(values, 50),
                percentile(values, 100)
            );
        }
        let bare = self.median("  bare client that knows the ids");
        let insert = self.median("  bare INSERT, commit included, p50");
        println!("drain / bare client:     {:.2}", self.median("drain of no-op tasks") / bare);
        println!(
            "p50 start / bare INSERT: {:.2}",
            self.median("idle: enqueue called -> step starts, p50") / insert
        );
        println!(
            "p99 start / bare INSERT: {:.2}",
            self.median("idle: enqueue called -> step starts, p99") / insert
        );
    }
}
