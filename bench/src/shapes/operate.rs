//! What operators and programs do to many tasks at once, and waiting for one.

use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use pg_task::Enqueue;
use pg_task_bench::tasks::Nothing;
use pg_task_bench::tasks::Tasks;
use sqlx::PgPool;
use uuid::Uuid;

use crate::bench::Bench;
use crate::figure::Figure;
use crate::figure::Series;
use crate::programs::Who;
use crate::shapes::features::switch_history;
use crate::shapes::timed::stop;

/// 100,000 tasks in one call.
pub async fn bulk(bench: &mut Bench) -> anyhow::Result<()> {
    copy(bench).await?;
    filters(bench).await
}

/// Tasks from a program, by COPY and by one statement.
async fn copy(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(100_000, 20_000);
    let (mut by_copy, mut by_array) = (Series::default(), Series::default());
    let client = bench.connect().await?;
    let db = PgPool::connect(&bench.server.url("pg_task")).await?;
    let tasks = || (0..count).map(|_| Tasks::Load(Nothing.into()));
    for _ in 0..bench.rounds {
        client.batch_execute("TRUNCATE pg_task.task; CHECKPOINT").await?;
        let began = Instant::now();
        let mut transaction = db.begin().await?;
        Enqueue::new().enqueue_copy(&mut transaction, tasks()).await?;
        transaction.commit().await?;
        by_copy.0.push(count as f64 / began.elapsed().as_secs_f64());
        client.batch_execute("TRUNCATE pg_task.task; CHECKPOINT").await?;
        let began = Instant::now();
        Enqueue::new().enqueue_many(&db, &tasks().collect::<Vec<_>>()).await?;
        by_array.0.push(count as f64 / began.elapsed().as_secs_f64());
    }
    client.batch_execute("TRUNCATE pg_task.task").await?;
    let what = format!("{count} tasks from Rust by enqueue_copy");
    bench.add(Figure::new("bulk", what, "tasks/s", by_copy).beside("by enqueue_many", by_array));
    Ok(())
}

/// Changes by a filter, beside the statement that does the same to a table without a scheduler.
async fn filters(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(100_000, 20_000);
    let kinds = [
        (
            "reprioritize_all",
            "SELECT pg_task.reprioritize_all(5, queue => 'bench')",
            "UPDATE bare SET priority = 5 WHERE queue = 'bench'",
        ),
        (
            "move_all",
            "SELECT pg_task.move_all('other', queue => 'bench')",
            "UPDATE bare SET queue = 'other' WHERE queue = 'bench'",
        ),
        (
            "cancel_all",
            "SELECT pg_task.cancel_all(queue => 'bench')",
            "DELETE FROM bare WHERE queue = 'bench'",
        ),
    ];
    let client = bench.connect().await?;
    for (what, ours, bare) in kinds {
        let (mut with, mut without) = (Series::default(), Series::default());
        for _ in 0..bench.side_rounds() {
            for (table, statement, series) in
                [("pg_task.task", ours, &mut with), ("bare", bare, &mut without)]
            {
                let insert = format!(
                    r#"INSERT INTO {table} (queue, step)
                       SELECT 'bench', '{{"Load":{{"Nothing":null}}}}' FROM generate_series(1, {count})"#
                );
                client.batch_execute(&format!("TRUNCATE {table}")).await?;
                client.batch_execute(&insert).await?;
                client.batch_execute(&format!("VACUUM ANALYZE {table}")).await?;
                client.batch_execute("CHECKPOINT").await?;
                let began = Instant::now();
                client.batch_execute(statement).await?;
                series.0.push(count as f64 / began.elapsed().as_secs_f64());
            }
        }
        bench.add(
            Figure::new("bulk", format!("{what} of {count} tasks"), "tasks/s", with)
                .beside("an UPDATE or DELETE of a bare copy", without),
        );
    }
    bench.sql(&["TRUNCATE pg_task.task, bare"]).await
}

/// From the call of enqueue to the end that `wait` tells.
pub async fn wait(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(1_000, 300);
    let (mut ended, mut committed) = (Series::default(), Series::default());
    let client = bench.connect().await?;
    let enqueue = client.prepare(r#"SELECT pg_task.enqueue('{"Load":{"Nothing":null}}')"#).await?;
    let wait = client.prepare("SELECT outcome FROM pg_task.wait($1, '10 s')").await?;
    // What has become of a task is read there.
    switch_history(&client, "on").await?;
    for _ in 0..bench.side_rounds() {
        let worker = bench.spawn(Who::Ours, "serve", &[]).await?;
        let (mut whole, mut call) = (Series::default(), Series::default());
        for _ in 0..count {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let began = Instant::now();
            let id: Uuid = client.query_one(&enqueue, &[]).await?.get(0);
            call.0.push(began.elapsed().as_secs_f64() * 1e6);
            let outcome: String = client.query_one(&wait, &[&id]).await?.get(0);
            whole.0.push(began.elapsed().as_secs_f64() * 1e6);
            anyhow::ensure!(outcome == "done", "a task that was waited for is {outcome}");
        }
        ended.0.push(whole.median().context("nothing was waited for")?);
        committed.0.push(call.median().context("nothing was waited for")?);
        stop(worker).await?;
    }
    switch_history(&client, "off").await?;
    bench.sql(&["TRUNCATE pg_task.history"]).await?;
    bench.add(
        Figure::new("wait", "enqueue called → wait returns, p50", "µs", ended)
            .beside("enqueue called → returned", committed),
    );
    Ok(())
}
