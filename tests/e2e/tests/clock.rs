//! A server whose clock is set while it runs: nothing waits for an old time, and nobody is taken for lost.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::ensure;
use pg_task_cluster::Clock;
use pg_task_cluster::Cluster;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;

const HOUR: i64 = 3_600;

fn server(name: &str) -> Result<(Cluster, Clock)> {
    let server = own_server(name, &[])?;
    server.stop(Stop::Fast)?;
    let clock = Clock::of(&server)?;
    clock.start(&server)?;
    Ok((server, clock))
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

/// Tasks that are due at once, soon, and by the rate of their keys.
async fn enqueue(db: &Database) -> Result<()> {
    const NOTE: &str = r#"'{"Test": {"Note": {"key": "k"}}}'"#;
    db.run(&format!(
        "SELECT pg_task.enqueue({NOTE}), pg_task.delay({NOTE}, n * interval '20 ms'),
             pg_task.enqueue({NOTE}, 'rated', options => jsonb_build_object('key', 'k' || n % 2)) FROM generate_series(1, 10) AS n"
    ))
    .await
}

#[tokio::test]
async fn a_clock_that_is_set_back_an_hour_holds_no_task_up() -> Result<()> {
    let (server, clock) = server("e2e-clock-back")?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("clock-back")?);
    db.run("SELECT pg_task.set_queue('rated', rate => 20, burst => 2, key_rate => 10, key_burst => 1)")
        .await?;
    let worker = db.known_worker(options(&ledger)).await?;
    enqueue(&db).await?;
    db.until_done().await?;
    for ahead in [-HOUR, -3 * HOUR] {
        // There is work at the moment of the step too.
        enqueue(&db).await?;
        clock.set(ahead)?;
        let began = Instant::now();
        enqueue(&db).await?;
        // What was to come soon by the old clock comes at its time.
        db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE wakeup_at <= now())").await?;
        db.run("UPDATE pg_task.task SET wakeup_at = now()").await?;
        db.until_done().await?;
        // Nothing has gathered by the step: ten of a key at ten a second, and two at once at first.
        ensure!(began.elapsed() > Duration::from_millis(700), "the rate was not kept: {:?}", began.elapsed());
    }
    assert_eq!(ledger.lines().len(), 5 * 30);
    assert_eq!(db.ask("SELECT lost + failures FROM pg_task.scheduler").await?, "0");
    // A worker that is killed is lost at once, not in an hour.
    drop(worker);
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.workers)").await
}

#[tokio::test]
async fn a_clock_that_is_set_forward_an_hour_takes_no_worker_for_lost_and_misses_no_tick() -> Result<()> {
    let (server, clock) = server("e2e-clock-forward")?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("clock-forward")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(
        r#"SELECT pg_task.set_schedule('s', 'every 10 s', '{"Test": {"Note": {"key": "tick"}}}', missed => 'all', missed_limit => 1000)"#,
    )
    .await?;
    let first = db.ask("SELECT extract(epoch FROM next_at)::bigint FROM pg_task.schedule").await?;
    for ahead in [HOUR, 0, 2 * HOUR] {
        clock.set(ahead)?;
        enqueue(&db).await?;
        db.until_done().await?;
    }
    db.until("SELECT next_at > now() AND last_at > now() - interval '11 s' FROM pg_task.schedule").await?;
    db.run("SELECT pg_task.pause_schedule('s')").await?;
    db.until_done().await?;
    let ticks =
        format!("SELECT (extract(epoch FROM last_at)::bigint - {first}) / 10 + 1 FROM pg_task.schedule");
    let ticks: usize = db.ask(&ticks).await?.parse()?;
    ensure!(ticks >= 719, "{ticks} ticks");
    assert_eq!(ledger.lines().iter().filter(|line| *line == "tick").count(), ticks);
    assert_eq!(ledger.lines().iter().filter(|line| *line == "k").count(), 90);
    assert_eq!(db.ask("SELECT lost + failures FROM pg_task.scheduler").await?, "0");
    Ok(())
}
