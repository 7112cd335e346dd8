//! Steps that take time or carry much, and work that is spread over processes and queues.

use std::time::Duration;
use std::time::Instant;

use crate::bench::Bench;
use crate::bench::rate;
use crate::bench::until_finished;
use crate::figure::Figure;
use crate::figure::Series;
use crate::programs::Who;
use crate::server;
use crate::shapes::timed::stop;

/// Steps that wait, 1,000 at a time.
pub async fn waits(bench: &mut Bench) -> anyhow::Result<()> {
    for (ms, count) in [(5, bench.scale(200_000, 50_000)), (1_000, bench.scale(5_000, 3_000))] {
        let mut ours = Series::default();
        for _ in 0..bench.side_rounds() {
            let insert = format!(
                r#"INSERT INTO pg_task.task (step) SELECT '{{"Load":{{"Wait":{{"ms":{ms}}}}}}}' FROM generate_series(1, {count})"#
            );
            bench.sql(&[&insert, "VACUUM ANALYZE pg_task.task", "CHECKPOINT"]).await?;
            ours.0.push(rate(bench.run(Who::Ours, &format!("drain --count {count}")).await?));
        }
        bench.add(
            Figure::new("waits", format!("steps of {ms} ms, 1,000 at a time"), "tasks/s", ours)
                .beside("1,000 places without any cost", Series(vec![1_000.0 / (f64::from(ms) / 1_000.0)])),
        );
    }
    Ok(())
}

/// Payloads.
pub async fn payload(bench: &mut Bench) -> anyhow::Result<()> {
    for (bytes, count) in [(100, bench.scale(200_000, 50_000)), (10_000, bench.scale(30_000, 5_000))] {
        let (mut ours, mut bare) = (Series::default(), Series::default());
        for _ in 0..bench.side_rounds() {
            for (who, series) in [(Who::Ours, &mut ours), (Who::Bare, &mut bare)] {
                let answer = bench.drain(who, count, &format!("--payload {bytes}"), 1).await?;
                series.0.push(rate(answer));
            }
        }
        bench.add(
            Figure::new("payload", format!("drain with payloads of {bytes} B"), "tasks/s", ours)
                .beside(Who::Bare.name(), bare),
        );
    }
    Ok(())
}

/// Four worker processes.
pub async fn processes(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(1_000_000, 200_000);
    let (mut four, mut one) = (Series::default(), Series::default());
    let client = bench.connect().await?;
    for _ in 0..bench.side_rounds() {
        for (processes, series) in [(1, &mut one), (4, &mut four)] {
            bench.run(Who::Ours, &format!("fill --count {count}")).await?;
            client.batch_execute("CHECKPOINT").await?;
            let before = server::counts(&client).await?.finished;
            let began = Instant::now();
            let mut workers = Vec::new();
            for _ in 0..processes {
                workers.push(bench.spawn(Who::Ours, "serve", &[]).await?);
            }
            until_finished(&client, before + i64::try_from(count)?, Duration::from_secs(120)).await?;
            series.0.push(count as f64 / began.elapsed().as_secs_f64());
            for worker in workers {
                stop(worker).await?;
            }
        }
    }
    bench.add(
        Figure::new("processes", "drain by four worker processes", "tasks/s", four)
            .beside("one worker process", one),
    );
    Ok(())
}

/// Ten queues, each with another priority, filled in turns.
pub async fn queues(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(500_000, 100_000);
    let (mut ten, mut one) = (Series::default(), Series::default());
    for _ in 0..bench.side_rounds() {
        for (queues, series) in [(1, &mut one), (10, &mut ten)] {
            let insert = format!(
                r#"INSERT INTO pg_task.task (step, queue, priority)
                   SELECT '{{"Load":{{"Nothing":null}}}}', 'queue_' || i % {queues}, i % {queues} FROM generate_series(1, {count}) AS i"#
            );
            bench.sql(&[&insert, "VACUUM ANALYZE pg_task.task", "CHECKPOINT"]).await?;
            series.0.push(rate(bench.run(Who::Ours, &format!("drain --count {count}")).await?));
        }
    }
    bench.add(
        Figure::new("queues", "drain of ten queues with ten priorities", "tasks/s", ten)
            .beside("one queue, one priority", one),
    );
    Ok(())
}
