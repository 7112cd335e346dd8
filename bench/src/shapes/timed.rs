//! Tasks that become due later.

use std::time::Duration;

use crate::bench::Bench;
use crate::bench::curve;
use crate::bench::delays;
use crate::bench::until_finished;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Plot;
use crate::figure::Series;
use crate::programs;
use crate::programs::Who;
use crate::server;

const MINUTE: Duration = Duration::from_secs(60);

/// P4: start − wakeup_at, at 1,000 due each second among sleepers.
pub async fn delayed(bench: &mut Bench) -> anyhow::Result<()> {
    let sleepers = bench.scale(1_000_000, 100_000);
    let seconds = bench.scale(20, 5);
    let insert = format!(
        r#"INSERT INTO pg_task.task (step, wakeup_at)
           SELECT '{{"Load":{{"Nothing":null}}}}', now() + interval '1 day' FROM generate_series(1, {sleepers})"#
    );
    bench.sql(&[&insert, "VACUUM ANALYZE pg_task.task", "CHECKPOINT"]).await?;
    let (mut p50, mut p99) = (Series::default(), Series::default());
    let mut lines = Vec::new();
    let client = bench.connect().await?;
    for round in 0..bench.rounds {
        let worker = bench.spawn(Who::Ours, "serve", &[]).await?;
        let before = server::counts(&client).await?.finished;
        let due = seconds * 1_000;
        client
            .batch_execute(&format!(
                r#"INSERT INTO pg_task.task (step, wakeup_at)
                   SELECT '{{"Load":{{"Due":null}}}}', clock_timestamp() + interval '2 s' + i * interval '1 ms'
                   FROM generate_series(1, {due}) AS i"#
            ))
            .await?;
        until_finished(&client, before + i64::try_from(due)?, MINUTE).await?;
        let latency = delays(stop(worker).await?)?;
        p50.0.push(latency.p50 as f64);
        p99.0.push(latency.p99 as f64);
        if round == 0 {
            lines.push(("pg_task".to_owned(), curve(&latency)));
        }
    }
    client.batch_execute("TRUNCATE pg_task.task").await?;
    bench.plots.push(Plot {
        name: "delayed",
        title: format!("1,000 due each second among {sleepers} sleepers: start − wakeup_at"),
        x: "percentile",
        y: "µs",
        log: true,
        lines,
        bars: Vec::new(),
    });
    let what = format!("start − wakeup_at, 1,000 due/s among {sleepers} sleepers");
    bench.add(Figure::new("P4", format!("{what}: p50"), "µs", p50).bar(Bar::AtMost(1_000.0)));
    bench.add(Figure::new("P4", format!("{what}: p99"), "µs", p99).bar(Bar::AtMost(5_000.0)));
    Ok(())
}

/// A herd: all are due in the same millisecond.
pub async fn herd(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(100_000, 50_000);
    let (mut p50, mut last) = (Series::default(), Series::default());
    let client = bench.connect().await?;
    for _ in 0..bench.side_rounds() {
        let worker = bench.spawn(Who::Ours, "serve", &[]).await?;
        let before = server::counts(&client).await?.finished;
        client
            .batch_execute(&format!(
                r#"INSERT INTO pg_task.task (step, wakeup_at)
                   SELECT '{{"Load":{{"Due":null}}}}', now() + interval '8 s' FROM generate_series(1, {count})"#
            ))
            .await?;
        until_finished(&client, before + i64::try_from(count)?, MINUTE).await?;
        take(stop(worker).await?, &mut p50, &mut last)?;
    }
    bench.add(Figure::new("herd", format!("{count} due at once: median start − wakeup_at"), "ms", p50));
    bench.add(Figure::new("herd", format!("{count} due at once: the last start − wakeup_at"), "ms", last));
    Ok(())
}

/// Keeps the median and the last delay of a worker's answer, in milliseconds.
fn take(answer: bench_driver::Answer, p50: &mut Series, last: &mut Series) -> anyhow::Result<()> {
    let latency = delays(answer)?;
    p50.0.push(latency.p50 as f64 / 1_000.0);
    last.0.push(latency.max as f64 / 1_000.0);
    Ok(())
}

/// Schedules that all tick in the same second, each second.
pub async fn schedules(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(1_000, 300);
    let seconds = bench.scale(10, 4);
    let (mut p50, mut last) = (Series::default(), Series::default());
    let client = bench.connect().await?;
    for _ in 0..bench.side_rounds() {
        let worker = bench.spawn(Who::Ours, "serve", &[]).await?;
        let before = server::counts(&client).await?.finished;
        client
            .batch_execute(&format!(
                r#"SELECT pg_task.set_schedule('bench ' || i, 'every 1 second', '{{"Load":{{"Due":null}}}}')
                   FROM generate_series(1, {count}) AS i"#
            ))
            .await?;
        until_finished(&client, before + i64::try_from(count * seconds)?, MINUTE).await?;
        client.batch_execute("SELECT pg_task.drop_schedule(name) FROM pg_task.schedule").await?;
        take(stop(worker).await?, &mut p50, &mut last)?;
        client.batch_execute("TRUNCATE pg_task.task").await?;
    }
    let what = format!("{count} schedules, each every second");
    bench.add(Figure::new("schedules", format!("{what}: median start − tick"), "ms", p50));
    bench.add(Figure::new("schedules", format!("{what}: the last start − tick"), "ms", last));
    Ok(())
}

/// Ends a worker that serves, and returns what it has seen.
pub async fn stop(mut worker: tokio::process::Child) -> anyhow::Result<bench_driver::Answer> {
    drop(worker.stdin.take());
    programs::answer(worker).await
}
