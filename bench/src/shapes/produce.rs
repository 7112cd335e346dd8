//! Producers: 16 clients that enqueue single rows durably, alone and beside a worker; many rows in one statement.

use std::time::Duration;
use std::time::Instant;

use crate::bench::Bench;
use crate::bench::rate;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Plot;
use crate::figure::Series;
use crate::programs;
use crate::programs::Who;
use crate::shapes::timed::stop;

/// Statements of a producer. All are run by the same program, over the same kind of connection.
const BARE: &str = "INSERT INTO bare (step) VALUES ($1::text::jsonb)";
const INSERT: &str = "INSERT INTO pg_task.task (step) VALUES ($1::text::jsonb)";
pub const ENQUEUE: &str = "SELECT pg_task.enqueue($1::text::jsonb)";

/// What they reach with a statement, in calls per second.
///
/// # Errors
/// When they fail.
pub async fn producers(bench: &mut Bench, statement: &str, seconds: u64) -> anyhow::Result<f64> {
    let arguments = format!("produce --clients 16 --seconds {seconds}");
    let child = bench.spawn(Who::Bare, &arguments, &[("BENCH_STATEMENT", statement)]).await?;
    Ok(rate(programs::answer(child).await?))
}

/// P5.
pub async fn produce(bench: &mut Bench) -> anyhow::Result<()> {
    let seconds = bench.scale(6, 2);
    let (mut bare, mut insert, mut enqueue) = (Series::default(), Series::default(), Series::default());
    for _ in 0..bench.rounds {
        bench.sql(&["TRUNCATE pg_task.task, bare"]).await?;
        bare.0.push(producers(bench, BARE, seconds).await?);
        insert.0.push(producers(bench, INSERT, seconds).await?);
        enqueue.0.push(producers(bench, ENQUEUE, seconds).await?);
    }
    let beside = "INSERT into a bare copy of the table";
    bench.add(
        Figure::new("P5", "16 clients INSERT single rows", "tasks/s", insert)
            .beside(beside, bare.clone())
            .bar(Bar::RatioAtLeast(0.9)),
    );
    bench.add(
        Figure::new("P5", "16 clients call enqueue", "tasks/s", enqueue)
            .beside(beside, bare)
            .bar(Bar::RatioAtLeast(0.9)),
    );
    many(bench).await
}

/// Many rows in one statement, by function and by INSERT … SELECT.
async fn many(bench: &mut Bench) -> anyhow::Result<()> {
    let rows = bench.scale(200_000, 50_000);
    let step = r#"'{"Load":{"Nothing":null}}'::jsonb"#;
    let insert = format!("INSERT INTO pg_task.task (step) SELECT {step} FROM generate_series(1, {rows})");
    let function = format!(
        "SELECT pg_task.enqueue_many(array_agg({step})) FROM generate_series(1, {rows}) AS i GROUP BY i / 10000"
    );
    let (mut by_function, mut by_insert) = (Series::default(), Series::default());
    let client = bench.connect().await?;
    for _ in 0..bench.rounds {
        for (statement, series) in [(&function, &mut by_function), (&insert, &mut by_insert)] {
            client.batch_execute("TRUNCATE pg_task.task").await?;
            let began = Instant::now();
            client.batch_execute(statement).await?;
            series.0.push(rows as f64 / began.elapsed().as_secs_f64());
        }
    }
    client.batch_execute("TRUNCATE pg_task.task").await?;
    bench.add(
        Figure::new("many", "enqueue_many, 10,000 at a time", "tasks/s", by_function)
            .beside("INSERT … SELECT of the same rows", by_insert)
            .bar(Bar::RatioAtLeast(0.8)),
    );
    Ok(())
}

/// P11.
pub async fn steady(bench: &mut Bench) -> anyhow::Result<()> {
    let seconds = bench.scale(15, 4);
    let (mut alone, mut beside) = (Series::default(), Series::default());
    let mut behind = Series::default();
    let mut lines = Vec::new();
    let client = bench.connect().await?;
    for round in 0..bench.rounds {
        client.batch_execute("TRUNCATE pg_task.task").await?;
        alone.0.push(producers(bench, ENQUEUE, seconds).await?);
        client.batch_execute("TRUNCATE pg_task.task").await?;
        let worker = bench.spawn(Who::Ours, "serve", &[]).await?;
        let arguments = format!("produce --clients 16 --seconds {seconds}");
        let producers = bench.spawn(Who::Bare, &arguments, &[("BENCH_STATEMENT", ENQUEUE)]).await?;
        let answer = tokio::spawn(programs::answer(producers));
        let mut waiting = Vec::new();
        let began = Instant::now();
        while !answer.is_finished() {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let row = client.query_one("SELECT ready FROM pg_task.scheduler_state()", &[]).await?;
            waiting.push((began.elapsed().as_secs_f64(), f64::from(row.get::<_, i32>(0))));
        }
        let answer = answer.await??;
        // How far the worker is behind when the producers stop: the time until nothing is left.
        let stopped = Instant::now();
        let count = i64::try_from(answer.count)?;
        while left(&client).await? {
            anyhow::ensure!(stopped.elapsed() < Duration::from_secs(60), "the backlog does not go away");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        behind.0.push(stopped.elapsed().as_secs_f64() * 1_000.0);
        let ran = stop(worker).await?;
        anyhow::ensure!(i64::try_from(ran.count)? == count, "{} of {count} tasks have run", ran.count);
        beside.0.push(rate(answer));
        if round == 0 {
            lines.push(("ready tasks".to_owned(), waiting));
        }
    }
    bench.plots.push(Plot {
        name: "steady",
        title: "16 producers beside one worker process: tasks that wait".to_owned(),
        x: "seconds",
        y: "ready",
        log: false,
        lines,
        bars: Vec::new(),
    });
    bench.add(
        Figure::new("P11", "16 clients call enqueue while one worker process drains", "tasks/s", beside)
            .beside("the same with nobody working", alone)
            .bar(Bar::RatioAtLeast(0.8)),
    );
    bench.add(
        Figure::new("P11", "backlog when the producers stop: time until it is gone", "ms", behind)
            .bar(Bar::AtMost(1_000.0)),
    );
    Ok(())
}

async fn left(client: &tokio_postgres::Client) -> anyhow::Result<bool> {
    let row = client
        .query_one(
            "SELECT ready + claimed > 0 OR EXISTS (SELECT FROM pg_task.task) FROM pg_task.scheduler_state()",
            &[],
        )
        .await?;
    Ok(row.get(0))
}
