//! P8 and P12: a table full of sleepers, a restart, and all of them due at once.

use std::time::Duration;
use std::time::Instant;

use crate::bench::Bench;
use crate::bench::rate;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Series;
use crate::process;
use crate::programs::Who;
use crate::shapes::timed::stop;

/// Sleepers that one statement makes.
const BATCH: u64 = 500_000;

/// How long the flood is watched.
const WATCH: Duration = Duration::from_secs(15);

const MIB: f64 = 1024.0 * 1024.0;

pub async fn asleep(bench: &mut Bench) -> anyhow::Result<()> {
    let sleepers = bench.scale(10_000_000, 1_000_000);
    let drained = bench.scale(1_000_000, 200_000);
    bench.sql(&["TRUNCATE pg_task.task"]).await?;
    // Half of the rounds before the sleepers come and half after they are gone: what drifts meanwhile falls on both sides.
    let before = bench.rounds.div_ceil(2);
    let mut empty = Series::default();
    drains(bench, drained, before, &mut empty).await?;
    let client = bench.connect().await?;
    client.batch_execute("TRUNCATE pg_task.task").await?;
    bench.say(&format!("enqueueing {sleepers} tasks for later"));
    let began = Instant::now();
    let mut left = sleepers;
    while left > 0 {
        let batch = left.min(BATCH);
        client
            .batch_execute(&format!(
                r#"INSERT INTO pg_task.task (step, wakeup_at)
                   SELECT '{{"Load":{{"Nothing":null}}}}', now() + interval '1 day' FROM generate_series(1, {batch})"#
            ))
            .await?;
        left -= batch;
    }
    client.batch_execute("VACUUM ANALYZE pg_task.task").await?;
    bench.say(&format!("they are there, {:.0} s later", began.elapsed().as_secs_f64()));
    let mut beside = Series::default();
    drains(bench, drained, bench.rounds, &mut beside).await?;
    let asleep = scheduler_memory(bench);
    let restart = restart(bench).await?;
    bench.sql(&["TRUNCATE pg_task.task"]).await?;
    drains(bench, drained, (bench.rounds - before).max(1), &mut empty).await?;
    bench.add(
        Figure::new("P8", format!("drain beside {sleepers} sleepers"), "tasks/s", beside)
            .beside("the same with an empty table", empty)
            .bar(Bar::RatioAtLeast(0.9)),
    );
    bench.add(
        Figure::new(
            "P8",
            format!("restart with {sleepers} asleep: start of the server → first step"),
            "s",
            restart,
        )
        .bar(Bar::AtMost(5.0)),
    );
    bench.add(
        Figure::new("P12", format!("scheduler's memory, {sleepers} asleep"), "MiB", asleep)
            .bar(Bar::AtMost(64.0)),
    );
    flood(bench, sleepers).await
}

async fn drains(bench: &mut Bench, count: u64, rounds: usize, series: &mut Series) -> anyhow::Result<()> {
    for _ in 0..rounds {
        series.0.push(rate(bench.drain(Who::Ours, count, "", 1).await?));
    }
    Ok(())
}

/// From the start of the server to the start of the step of a task that was due before.
async fn restart(bench: &mut Bench) -> anyhow::Result<Series> {
    let mut seconds = Series::default();
    for _ in 0..bench.rounds {
        bench.sql(&[r#"SELECT pg_task.enqueue('{"Load":{"Nothing":null}}')"#]).await?;
        bench.server.cluster.stop(pg_task_cluster::Stop::Fast)?;
        let began = Instant::now();
        bench.server.cluster.start()?;
        let started = began.elapsed().as_secs_f64();
        let answer = bench.run(Who::Ours, "drain --count 1 --marks 1").await?;
        let first = answer.marks.first().copied().unwrap_or(f64::NAN);
        seconds.0.push(started + first);
    }
    Ok(seconds)
}

/// All sleepers become due at the same moment, and a worker drains them for a while.
async fn flood(bench: &mut Bench, sleepers: u64) -> anyhow::Result<()> {
    let client = bench.connect().await?;
    client.batch_execute("TRUNCATE pg_task.task").await?;
    bench.say(&format!("{sleepers} tasks due at once"));
    let mut left = sleepers;
    while left > 0 {
        let batch = left.min(BATCH);
        client
            .batch_execute(&format!(
                r#"INSERT INTO pg_task.task (step) SELECT '{{"Load":{{"Nothing":null}}}}' FROM generate_series(1, {batch})"#
            ))
            .await?;
        left -= batch;
    }
    let worker = bench.spawn(Who::Ours, "serve", &[]).await?;
    let pid = worker.id().unwrap_or_default();
    let began = Instant::now();
    let (mut scheduler, mut worker_peak) = (0.0_f64, 0_u64);
    while began.elapsed() < WATCH {
        tokio::time::sleep(Duration::from_millis(200)).await;
        scheduler = scheduler.max(scheduler_memory(bench).median().unwrap_or_default());
        worker_peak = worker_peak.max(process::read(pid).map_or(0, |process| process.peak));
    }
    let ran = stop(worker).await?;
    let shared = client
        .query_one(
            "SELECT coalesce(sum(allocated_size), 0)::bigint FROM pg_shmem_allocations WHERE name = 'pg_task'",
            &[],
        )
        .await?
        .get::<_, i64>(0);
    client.batch_execute("TRUNCATE pg_task.task").await?;
    let what = format!("{sleepers} due at once, drained for {} s", WATCH.as_secs());
    bench.add(
        Figure::new("P12", format!("{what}: scheduler's memory"), "MiB", Series(vec![scheduler]))
            .bar(Bar::AtMost(64.0))
            .note(format!("{} tasks ran", ran.count)),
    );
    bench.add(
        Figure::new(
            "P12",
            format!("{what}: the worker's most memory"),
            "MiB",
            Series(vec![worker_peak as f64 / MIB]),
        )
        .bar(Bar::AtMost(128.0)),
    );
    bench.add(Figure::new(
        "P12",
        "shared memory, as configured by default",
        "MiB",
        Series(vec![shared as f64 / MIB]),
    ));
    Ok(())
}

/// Memory of the schedulers' own, in MiB: the largest.
fn scheduler_memory(bench: &Bench) -> Series {
    let postmaster = bench.server.cluster.postmaster_pid().unwrap_or_default();
    let own = process::children(postmaster)
        .into_iter()
        .filter(|process| process.title.contains("pg_task scheduler"))
        .map(|process| process.own)
        .max();
    own.map(|own| own as f64 / MIB).into_iter().collect()
}
