//! P7: what it costs when there is nothing to do. Counted from the outside: queries by `pg_stat_statements`, transaction ids and WAL
//! by the server, processor time by `/proc`.

use std::time::Duration;

use crate::bench::Bench;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Series;
use crate::process;
use crate::programs::Who;
use crate::server;
use crate::shapes::timed::stop;

const WORKERS: usize = 4;

pub async fn idle(bench: &mut Bench) -> anyhow::Result<()> {
    let seconds = bench.scale(60, 30);
    let client = bench.connect().await?;
    client.batch_execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await?;
    client.batch_execute("VACUUM pg_task.task").await?;
    client.batch_execute("ALTER SYSTEM SET pg_stat_statements.track = 'all'").await?;
    // What the shapes before have left to be vacuumed, here and in the peers' databases, is no cost of an idle scheduler.
    client.batch_execute("ALTER SYSTEM SET autovacuum = off").await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(bench.spawn(Who::Ours, "serve", &[]).await?);
    }
    let registered = "SELECT count(*) = $1 FROM pg_task.worker_states() WHERE state = 'idle'";
    let wanted = i64::try_from(WORKERS)?;
    for attempt in 0.. {
        if client.query_one(registered, &[&wanted]).await?.get(0) {
            break;
        }
        anyhow::ensure!(attempt < 3_000, "the workers are not idle within 30 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.batch_execute("CHECKPOINT").await?;
    let vacuuming = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'autovacuum worker')";
    for attempt in 0.. {
        if !client.query_one(vacuuming, &[]).await?.get::<_, bool>(0) {
            break;
        }
        anyhow::ensure!(attempt < 6_000, "autovacuum goes on for a minute");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.batch_execute("SELECT pg_stat_statements_reset()").await?;
    let pids: Vec<u32> = workers.iter().filter_map(tokio::process::Child::id).collect();
    let postmaster = bench.server.cluster.postmaster_pid().unwrap_or_default();
    let before = server::counts(&client).await?;
    let (server_before, workers_before) = (process::children(postmaster), cpu(&pids));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (server_after, workers_after) = (process::children(postmaster), cpu(&pids));
    // All queries but those that this connection has made to count.
    let calls = client
        .query_one(
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid \
             WHERE d.datname = current_database() AND query !~ 'pg_stat_statements|pg_current_wal_insert_lsn'",
            &[],
        )
        .await?
        .get::<_, i64>(0);
    let after = server::counts(&client).await?;
    for worker in workers {
        stop(worker).await?;
    }
    client.batch_execute("ALTER SYSTEM RESET pg_stat_statements.track").await?;
    client.batch_execute("ALTER SYSTEM RESET autovacuum").await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    let one = |value: f64| Series(vec![value]);
    let what = format!("{WORKERS} idle workers for {seconds} s");
    let per_5_s = calls as f64 / WORKERS as f64 / (seconds as f64 / 5.0);
    bench.add(
        Figure::new("P7", format!("{what}: queries of each in 5 s"), "queries", one(per_5_s))
            .bar(Bar::AtMost(1.0))
            .note(format!("{calls} queries in all")),
    );
    let wakes = (after.ticks - before.ticks) as f64 / (seconds as f64 / 30.0);
    bench.add(
        Figure::new("P7", format!("{what}: scheduler wake-ups in 30 s"), "wake-ups", one(wakes))
            .bar(Bar::AtMost(1.0)),
    );
    let xids = (after.xid - before.xid) as f64;
    bench.add(Figure::new("P7", format!("{what}: transaction ids"), "xids", one(xids)).bar(Bar::AtMost(0.0)));
    let wal = (after.wal_bytes - before.wal_bytes) as f64;
    bench.add(Figure::new("P7", format!("{what}: WAL"), "B", one(wal)));
    let spent = |name: &str| {
        let sum = |list: &[process::Process]| -> f64 {
            list.iter().filter(|process| process.title.contains(name)).map(|process| process.cpu).sum()
        };
        one((sum(&server_after) - sum(&server_before)) * 1_000.0)
    };
    bench.add(Figure::new(
        "P7",
        format!("{what}: scheduler and launcher, processor time"),
        "ms",
        spent("pg_task "),
    ));
    let workers_spent = one((workers_after - workers_before) * 1_000.0 / WORKERS as f64);
    bench.add(Figure::new("P7", format!("{what}: each worker process, processor time"), "ms", workers_spent));
    Ok(())
}

fn cpu(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|&pid| process::read(pid)).map(|process| process.cpu).sum()
}
