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
use crate::shapes::backlogs::PLAIN;
use crate::shapes::backlogs::fill;
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
            fill(bench, &PLAIN.insert(count)).await?;
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
///
/// # Errors
/// When the server refuses.
pub async fn switch_history(client: &Client, to: &str) -> anyhow::Result<()> {
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
