//! What breaks, and what must hold nevertheless: nothing lost, no transition doubled.
#![expect(
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    reason = "an integration test that reports figures"
)]

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-crash")).await
}

#[tokio::test]
async fn the_tasks_of_a_killed_worker_run_elsewhere_and_the_attempt_is_counted() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("killed")?);
    let worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Sleep":{"key":"a","millis":1500}}}') FROM generate_series(1, 5)"#)
        .await?;
    db.until("SELECT count(*) = 5 FROM pg_task.running").await?;
    let _other = db.known_worker(options(&ledger)).await?;
    worker.signal("KILL")?;
    let killed = Instant::now();
    db.until("SELECT count(*) = 5 FROM pg_task.task WHERE tried = 1").await?;
    db.until("SELECT count(*) = 5 FROM pg_task.running").await?;
    println!("kill -9 of a worker: its tasks ran elsewhere after {:.1} s", killed.elapsed().as_secs_f64());
    db.until_done().await?;
    let lines = ledger.lines();
    assert_eq!(lines.iter().filter(|line| *line == "a begins").count(), 10);
    assert_eq!(lines.iter().filter(|line| *line == "a ends").count(), 5);
    assert_eq!(db.ask("SELECT lost FROM pg_task.scheduler").await?, "5");
    let history = "SELECT count(*) || ' ' || count(DISTINCT id) || ' ' || min(attempts) FROM pg_task.history WHERE outcome = 'done'";
    assert_eq!(db.ask(history).await?, "5 5 2");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_falls_silent_loses_its_tasks_after_its_lease_and_its_late_result_is_refused()
-> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("silent")?);
    let lease = Duration::from_secs(3);
    let worker = db.known_worker(WorkerOptions { lease, ..options(&ledger) }).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Sleep":{"key":"a","millis":1000}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    worker.signal("STOP")?;
    let _other = db.known_worker(options(&ledger)).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE tried = 1").await?;
    db.until_done().await?;
    worker.signal("CONT")?;
    // It finds out that it was given up, and works again.
    db.until("SELECT count(*) = 2 FROM pg_task.workers WHERE state = 'idle'").await?;
    assert_eq!(ledger.lines().iter().filter(|line| *line == "a begins").count(), 2);
    Ok(())
}

#[tokio::test]
async fn a_step_whose_task_was_given_to_another_worker_does_not_end_it_when_that_one_is_lost_too()
-> Result<()> {
    let server = own_server("e2e-refused", &["pg_task.settle_time = 0"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("refused")?);
    let lines = |line: &str| ledger.lines().iter().filter(|noted| *noted == line).count();
    let worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Linger":{"key":"a"}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
    // While the worker sleeps, the server forgets what it holds, and another worker takes it; its call does not come to its end.
    db.run("UPDATE pg_task.task SET locked_by = NULL, locked_at = NULL").await?;
    worker.signal("STOP")?;
    let db = db.restarted(&server, Stop::Immediate).await?;
    let other = "0190aaaa-0000-7000-8000-00000000000b";
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register('{other}'); BEGIN")).await?;
    let claim = format!("SELECT count(*) FROM pg_task.exchange('{other}', 1) WHERE event = 0");
    while session.ask(&claim).await? == "0" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.signal("CONT")?;
    while lines("a cancelled") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let db = db.restarted(&server, Stop::Immediate).await?;
    while lines("a begins") < 2 {
        assert_eq!(
            db.ask("SELECT count(*) FROM pg_task.task").await?,
            "1",
            "a step that was cancelled has ended it"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_step_that_takes_its_worker_down_is_parked_at_its_limit() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("abort")?);
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Abort":null}}')"#).await?;
    let mut deaths = 0;
    while db.ask("SELECT count(*) FROM pg_task.failed").await? == "0" {
        let mut worker = db.worker(options(&ledger))?;
        let dies = async { worker.ended().await.map(|well| !well) };
        let parked = db.until("SELECT count(*) = 1 FROM pg_task.failed");
        tokio::select! {
            dead = dies => deaths += u32::from(dead?),
            parked = parked => parked?,
        }
        assert!(deaths <= 4, "it goes on and on");
    }
    // The default of pg_task.lost_limit is 3: the first attempt and three more.
    assert_eq!(deaths, 4);
    let error = db.ask("SELECT error FROM pg_task.failed").await?;
    assert!(error.starts_with("the worker was lost while it ran this step"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_step_that_takes_the_machine_down_is_parked_at_its_limit() -> Result<()> {
    // Long enough to unlock the row before it is looked at: otherwise it waits a minute for a worker that will not come back.
    let server = own_server("e2e-machine", &["pg_task.settle_time = 4s"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("machine")?);
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"CrashMachine":null}}')"#).await?;
    while db.ask("SELECT count(*) FROM pg_task.failed").await? == "0" {
        let scheduler = db.ask("SELECT pid FROM pg_task.scheduler").await?;
        let mut worker = db.worker(options(&ledger))?;
        let parked = db.until("SELECT count(*) = 1 FROM pg_task.failed");
        tokio::select! {
            well = worker.ended() => {
                assert!(!well?);
                // The server goes down a moment after the worker.
                let up = format!("SELECT pid <> {scheduler} AND state IN ('running', 'settling') FROM pg_task.scheduler");
                db.until(&up).await?;
                db.run("UPDATE pg_task.task SET locked_by = NULL, locked_at = NULL").await?;
            }
            parked = parked => parked?,
        }
        assert!(ledger.lines().len() <= 5, "it goes on and on");
    }
    // The first run is not counted before it takes the server down; from then on each is counted before it begins.
    assert_eq!(ledger.lines(), ["attempt 1", "attempt 1", "attempt 2", "attempt 3", "attempt 4"]);
    let (tried, error) = (
        db.ask("SELECT tried FROM pg_task.failed").await?,
        db.ask("SELECT error FROM pg_task.failed").await?,
    );
    assert_eq!(tried, "4");
    assert!(
        error.starts_with("the worker or the server was lost while it ran this step (attempt 4"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_worker_that_leaves_gives_back_what_was_written_down_as_its_own() -> Result<()> {
    let db = database().await?;
    let worker = "0190aaaa-0000-7000-8000-00000000000a";
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"a"}}}')"#).await?;
    db.run(&format!("SELECT pg_task.register('{worker}', bind => false)")).await?;
    db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange('{worker}', 1) WHERE event = 0")).await?;
    db.until("SELECT locked_by IS NOT NULL FROM pg_task.task").await?;
    assert_eq!(db.ask(&format!("SELECT pg_task.leave('{worker}')")).await?, "1");
    assert_eq!(db.ask("SELECT tried || coalesce(locked_by::text, '') FROM pg_task.task").await?, "0");
    db.run(&format!("SELECT pg_task.register('{worker}', bind => false)")).await?;
    db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange('{worker}', 1) WHERE event = 0")).await
}

#[tokio::test]
async fn a_scheduler_and_a_launcher_that_are_terminated_come_back_and_nothing_is_lost() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("terminate")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    let pid = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"a"}}}') FROM generate_series(1, 100)"#).await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"b"}}}') FROM generate_series(1, 100)"#).await?;
    db.until(&format!("SELECT pid <> {pid} AND state = 'running' FROM pg_task.scheduler")).await?;
    db.until_done().await?;
    let scheduler = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_task launcher'")
        .await?;
    db.until("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_task launcher'").await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"c"}}}')"#).await?;
    db.until_done().await?;
    assert_eq!(db.ask("SELECT pid FROM pg_task.scheduler").await?, scheduler);
    assert_eq!(ledger.lines().len(), 201);
    Ok(())
}

#[tokio::test]
async fn two_databases_keep_apart_and_one_can_be_dropped_or_renamed_while_its_scheduler_runs() -> Result<()> {
    let (one, two, ledger) = (database().await?, database().await?, Ledger::new("two")?);
    let _worker = one.known_worker(options(&ledger)).await?;
    two.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"two"}}}')"#).await?;
    one.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"one"}}}')"#).await?;
    one.until_done().await?;
    assert_eq!(two.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    assert_eq!(ledger.lines(), ["one"]);
    let name = two.ask("SELECT current_database()").await?;
    two.pool.close().await;
    one.run(&format!("ALTER DATABASE {name} RENAME TO {name}_renamed")).await?;
    one.run(&format!("DROP DATABASE {name}_renamed")).await
}

#[tokio::test]
async fn a_database_that_finds_no_place_gets_the_one_of_a_database_that_is_dropped() -> Result<()> {
    let server = own_server("e2e-places", &["pg_task.max_databases = 2", "pg_task.max_sleep = 1s"])?;
    let (one, _two) = (Database::create(&server).await?, Database::create(&server).await?);
    server.psql("postgres", "CREATE DATABASE waiting")?;
    let waiting = Database::attach(&server, "waiting").await?;
    waiting.run("CREATE EXTENSION pg_task").await?;
    let name = one.ask("SELECT current_database()").await?;
    one.pool.close().await;
    server.psql("postgres", &format!("DROP DATABASE {name}"))?;
    waiting.until("SELECT state = 'running' FROM pg_task.scheduler").await
}

#[tokio::test]
async fn the_extension_can_be_dropped_and_made_again_under_a_worker_that_lives_on() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("drop")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run("DROP EXTENSION pg_task").await?;
    db.run("CREATE EXTENSION pg_task").await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"again"}}}')"#).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["again"]);
    Ok(())
}

#[tokio::test]
async fn a_thousand_producers_rows_are_all_run_once() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("producers")?);
    let _worker = db.known_worker(WorkerOptions { concurrency: 200, ..options(&ledger) }).await?;
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(50)
        .acquire_timeout(Duration::from_secs(60))
        .connect(&db.url)
        .await?;
    let producers: Vec<_> = (0..1000)
        .map(|producer| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for row in 0..5 {
                    sqlx::query("INSERT INTO pg_task.task (step) VALUES (jsonb_build_object('Test', jsonb_build_object('Note', jsonb_build_object('key', $1))))")
                        .bind(format!("{producer}-{row}"))
                        .execute(&pool)
                        .await?;
                }
                Ok::<_, sqlx::Error>(())
            })
        })
        .collect();
    for producer in producers {
        producer.await??;
    }
    db.until_done().await?;
    let mut lines = ledger.lines();
    lines.sort();
    lines.dedup();
    assert_eq!((lines.len(), ledger.lines().len()), (5000, 5000));
    Ok(())
}

/// Each chain notes every step with its token. A step may run twice (at least once), but the tokens of a chain must grow with its steps, and
/// every chain must come to its end.
fn check_chains(ledger: &Ledger, chains: usize, steps: u32) {
    let mut runs: BTreeMap<String, Vec<(u32, i64)>> = BTreeMap::new();
    for line in ledger.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (left, token) = (words[1].parse().expect("a number"), words[2].parse().expect("a number"));
        runs.entry(words[0].to_owned()).or_default().push((left, token));
    }
    assert_eq!(runs.len(), chains);
    let mut repeated = 0;
    for (key, mut runs) in runs {
        runs.sort_by_key(|run| run.1);
        for step in 0..steps {
            assert!(runs.iter().any(|run| run.0 == step), "{key} never ran its step {step}");
        }
        // In the order of the tokens the chain goes forward or repeats a step; never back.
        assert!(runs.windows(2).all(|pair| pair[1].0 <= pair[0].0), "{key} went back: {runs:?}");
        repeated += runs.len() - steps as usize;
    }
    println!("{chains} chains of {steps} steps; {repeated} steps ran more than once");
}

#[tokio::test]
async fn a_crash_in_the_middle_of_ten_thousand_tasks_loses_nothing_and_doubles_no_transition() -> Result<()> {
    let server = own_server("e2e-restart", &["fsync = on", "synchronous_commit = on"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("restart")?);
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(db.known_worker(WorkerOptions { concurrency: 100, ..options(&ledger) }).await?);
    }
    db.run("INSERT INTO pg_task.task (step) SELECT jsonb_build_object('Test', jsonb_build_object('Chain', jsonb_build_object('key', n::text, 'left', 4))) FROM generate_series(1, 10000) AS n")
        .await?;
    for how in [Stop::Immediate, Stop::Fast, Stop::Immediate] {
        let left = db.ask("SELECT count(*) FROM pg_task.task").await?;
        db.until(&format!("SELECT count(*) < {left} - 500 FROM pg_task.task")).await?;
        server.stop(how)?;
        server.start()?;
    }
    db.until_done().await?;
    check_chains(&ledger, 10_000, 5);
    // The history is written with the end of a task: each ended once.
    assert_eq!(
        db.ask("SELECT count(*) || ' ' || count(DISTINCT id) || ' ' || count(*) FILTER (WHERE outcome = 'done') FROM pg_task.history").await?,
        "10000 10000 10000"
    );
    Ok(())
}

#[tokio::test]
async fn a_lost_attempt_is_on_disk_before_its_task_runs_again() -> Result<()> {
    // Without a commit that waits for it, nothing is written to disk meanwhile.
    let server = own_server("e2e-lost-attempt", &["fsync = on", "wal_writer_delay = 10s"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("lost-attempt")?);
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Sleep":{"key":"it","millis":600000}}}')"#).await?;
    let first = db.known_worker(options(&ledger)).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    first.signal("KILL")?;
    let second = db.known_worker(options(&ledger)).await?;
    while ledger.lines().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop(Stop::Immediate)?;
    drop((first, second));
    server.start()?;
    assert_eq!(db.ask("SELECT tried FROM pg_task.task").await?, "1");
    Ok(())
}
