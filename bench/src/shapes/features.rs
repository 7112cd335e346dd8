//! What the features cost where they are used, each beside the same work without it.

use std::time::Duration;

use tokio_postgres::Client;

use crate::bench::Bench;
use crate::bench::rate;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Series;
use crate::programs::Who;
use crate::server;
use crate::shapes::produce;

/// The history: a drain that leaves a row of each task, and the WAL of it.
pub async fn history(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(500_000, 100_000);
    let client = bench.connect().await?;
    let (mut with, mut without) = (Series::default(), Series::default());
    let (mut wal_with, mut wal_without) = (Series::default(), Series::default());
    for _ in 0..bench.rounds {
        for (history, rates, wal) in
            [("off", &mut without, &mut wal_without), ("on", &mut with, &mut wal_with)]
        {
            switch_history(&client, history).await?;
            client.batch_execute("TRUNCATE pg_task.task, pg_task.history; CHECKPOINT").await?;
            let before = server::counts(&client).await?;
            fill(bench, count, "NULL").await?;
            rates.0.push(rate(bench.run(Who::Ours, &format!("drain --count {count}")).await?));
            let after = server::counts(&client).await?;
            wal.0.push((after.wal_bytes - before.wal_bytes) as f64 / count as f64);
            let rows: i64 = client.query_one("SELECT count(*) FROM pg_task.history", &[]).await?.get(0);
            let expected = if history == "on" { i64::try_from(count)? } else { 0 };
            anyhow::ensure!(rows == expected, "the history has {rows} rows, not {expected}");
        }
    }
    switch_history(&client, "off").await?;
    bench.sql(&["TRUNCATE pg_task.history"]).await?;
    bench.add(
        Figure::new("history", "drain with a row of history for each task", "tasks/s", with)
            .beside("without history", without)
            .bar(Bar::RatioAtLeast(0.8)),
    );
    bench.add(
        Figure::new("history", "WAL of a task with its row of history, enqueue to gone", "B/task", wal_with)
            .beside("without history", wal_without),
    );
    Ok(())
}

/// The setting, once this session has it, as the others have.
async fn switch_history(client: &Client, to: &str) -> anyhow::Result<()> {
    client.batch_execute(&format!("ALTER SYSTEM SET pg_task.history = {to}")).await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    loop {
        let row = client.query_one("SELECT current_setting('pg_task.history')", &[]).await?;
        if row.get::<_, String>(0) == to {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn fill(bench: &mut Bench, count: u64, options: &str) -> anyhow::Result<()> {
    let insert = format!(
        r#"INSERT INTO pg_task.task (step, options)
           SELECT '{{"Load":{{"Nothing":null}}}}', {options} FROM generate_series(1, {count}) AS i"#
    );
    bench.sql(&[&insert, "VACUUM ANALYZE pg_task.task", "CHECKPOINT"]).await
}

/// Options of tasks: a drain of tasks that use one, beside a drain of tasks that use none.
pub async fn options(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(300_000, 50_000);
    let kinds = [
        ("tasks with a retry policy", r#"'{"retry": {"limit": 5, "delay": "1 second"}}'"#),
        ("tasks of 1,000 keys", "jsonb_build_object('key', 'tenant ' || i % 1000)"),
        ("tasks of 1,000 FIFO groups", "jsonb_build_object('group', 'group ' || i % 1000)"),
    ];
    let mut without = Series::default();
    let mut with = kinds.map(|_| Series::default());
    for _ in 0..bench.side_rounds() {
        fill(bench, count, "NULL").await?;
        without.0.push(rate(bench.run(Who::Ours, &format!("drain --count {count}")).await?));
        for ((_, options), series) in kinds.iter().zip(&mut with) {
            fill(bench, count, options).await?;
            series.0.push(rate(bench.run(Who::Ours, &format!("drain --count {count}")).await?));
        }
    }
    for ((what, _), series) in kinds.iter().zip(with) {
        bench.add(
            Figure::new("options", format!("drain of {what}"), "tasks/s", series)
                .beside("tasks without options", without.clone()),
        );
    }
    Ok(())
}

/// Producers of unique tasks, each of a key of its own and all of one key, beside producers of ordinary ones.
pub async fn unique(bench: &mut Bench) -> anyhow::Result<()> {
    const OTHER_KEYS: &str = "SELECT pg_task.enqueue_unique($1::text::jsonb, gen_random_uuid()::text)";
    const ONE_KEY: &str = "SELECT pg_task.enqueue_unique($1::text::jsonb, 'the same')";
    let seconds = bench.scale(6, 2);
    let (mut plain, mut other, mut one) = (Series::default(), Series::default(), Series::default());
    for _ in 0..bench.side_rounds() {
        bench.sql(&["TRUNCATE pg_task.task"]).await?;
        plain.0.push(produce::producers(bench, produce::ENQUEUE, seconds).await?);
        other.0.push(produce::producers(bench, OTHER_KEYS, seconds).await?);
        one.0.push(produce::producers(bench, ONE_KEY, seconds).await?);
    }
    bench.sql(&["TRUNCATE pg_task.task"]).await?;
    for (what, series) in [("each with a key of its own", other), ("all with the same key, held", one)] {
        bench.add(
            Figure::new("unique", format!("16 clients call enqueue_unique, {what}"), "calls/s", series)
                .beside("16 clients call enqueue", plain.clone()),
        );
    }
    Ok(())
}
