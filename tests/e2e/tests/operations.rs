//! What can go wrong in running pg_task, as `docs/operations.md` tells it: how it looks, and that it mends.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Context;
use anyhow::Result;
use pg_task_cluster::Cluster;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

const NOTE: &str = r#"{"Test": {"Note": {"key": "a"}}}"#;

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-operations")).await
}

/// Waits until the view names a problem, and returns its detail.
async fn problem(db: &Database, name: &str) -> Result<String> {
    db.until(&format!("SELECT EXISTS (SELECT FROM pg_task.problems WHERE problem = '{name}')")).await?;
    db.ask(&format!("SELECT detail FROM pg_task.problems WHERE problem = '{name}'")).await
}

async fn until_well(db: &Database) -> Result<()> {
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.problems)").await
}

/// What psql says of a statement that fails, with its detail and hint.
fn refusal(server: &Cluster, database: &str, sql: &str) -> Result<String> {
    let output =
        server.psql_command(database).args(["-qAtX", "-v", "VERBOSITY=verbose", "-c", sql]).output()?;
    anyhow::ensure!(!output.status.success(), "allowed: {sql}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn append(server: &Cluster, line: &str) -> Result<()> {
    let conf = server.data().join("postgresql.conf");
    let text = std::fs::read_to_string(&conf)?;
    std::fs::write(&conf, format!("{text}\n{line}\n"))?;
    Ok(())
}

#[tokio::test]
async fn without_preloading_everything_says_which_line_is_missing_and_rows_outlive_it() -> Result<()> {
    let server = own_server("e2e-no-preload", &[])?;
    let db = Database::create(&server).await?;
    db.run(&format!("SELECT pg_task.enqueue('{NOTE}')")).await?;
    let name = db.ask("SELECT current_database()").await?;
    db.pool.close().await;
    server.stop(Stop::Fast)?;
    append(&server, "shared_preload_libraries = ''")?;
    server.start()?;
    server.psql("postgres", "CREATE DATABASE fresh")?;
    for (database, sql) in [
        ("fresh", "CREATE EXTENSION pg_task"),
        (name.as_str(), &format!("SELECT pg_task.enqueue('{NOTE}')")),
        (name.as_str(), &format!("INSERT INTO pg_task.task (step) VALUES ('{NOTE}')")),
        (name.as_str(), "UPDATE pg_task.task SET priority = 1"),
        (name.as_str(), "TABLE pg_task.problems"),
        (name.as_str(), "SELECT pg_task.register(pg_task.uuid7())"),
    ] {
        let text = refusal(&server, database, sql)?;
        assert!(
            text.contains("55000") && text.contains("shared_preload_libraries = 'pg_task'"),
            "{sql}: {text}"
        );
    }
    server.stop(Stop::Fast)?;
    append(&server, "shared_preload_libraries = 'pg_task'")?;
    server.start()?;
    let db = Database::attach(&server, &name).await?;
    let ledger = Ledger::new("preload")?;
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.until_done().await
}

#[tokio::test]
async fn a_database_without_a_scheduler_takes_tasks_and_says_why_none_runs() -> Result<()> {
    let server = own_server("e2e-absent", &["pg_task.max_databases = 1"])?;
    let one = Database::create(&server).await?;
    server.psql("postgres", "CREATE DATABASE second")?;
    let two = Database::attach(&server, "second").await?;
    two.run("CREATE EXTENSION pg_task").await?;
    two.run(&format!("SELECT pg_task.enqueue('{NOTE}')")).await?;
    problem(&two, "no scheduler").await?;
    assert_eq!(two.ask("SELECT state FROM pg_task.scheduler").await?, "absent");
    until_well(&one).await?;
    // A place becomes free, and the waiting database takes it.
    one.run("DROP EXTENSION pg_task").await?;
    two.until("SELECT pg_task.start_scheduler() IS NOT NULL AND EXISTS (SELECT FROM pg_task.scheduler WHERE state = 'running')").await?;
    problem(&two, "no worker").await?;
    let ledger = Ledger::new("absent")?;
    let _worker = two.known_worker(options(&ledger)).await?;
    two.until_done().await
}

#[tokio::test]
async fn a_server_without_a_free_process_says_so_and_the_scheduler_starts_when_there_is_one() -> Result<()> {
    // The launcher and PostgreSQL's own for logical replication take one each.
    let server = own_server("e2e-slots", &["max_worker_processes = 2", "pg_task.max_databases = 2"])?;
    server.psql("postgres", "CREATE DATABASE d")?;
    let db = Database::attach(&server, "d").await?;
    db.run("CREATE EXTENSION pg_task").await?;
    let detail = problem(&db, "scheduler not running").await?;
    assert!(detail.contains("max_worker_processes"), "{detail}");
    db.pool.close().await;
    server.stop(Stop::Fast)?;
    append(&server, "max_worker_processes = 8")?;
    server.start()?;
    let db = Database::attach(&server, "d").await?;
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    until_well(&db).await
}

#[tokio::test]
async fn a_scheduler_that_fails_backs_off_says_why_and_goes_on_when_the_cause_is_gone() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("backoff")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run("ALTER TABLE pg_task.task RENAME COLUMN priority TO urgency").await?;
    let pid = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until("SELECT EXISTS (SELECT FROM pg_task.problems WHERE problem = 'scheduler not running' AND detail LIKE '%priority%')")
        .await?;
    db.until("SELECT failures > 1 FROM pg_task.scheduler").await?;
    db.run("ALTER TABLE pg_task.task RENAME COLUMN urgency TO priority").await?;
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    until_well(&db).await?;
    db.run(&format!("SELECT pg_task.enqueue('{NOTE}')")).await?;
    db.until_done().await
}

#[tokio::test]
async fn when_all_places_for_workers_are_taken_the_next_one_waits_for_one_to_leave() -> Result<()> {
    let server = own_server("e2e-places", &["pg_task.max_workers = 1"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("places")?);
    let one = db.known_worker(options(&ledger)).await?;
    problem(&db, "worker places taken").await?;
    let name = db.ask("SELECT current_database()").await?;
    let text = refusal(&server, &name, "SELECT pg_task.register(pg_task.uuid7())")?;
    assert!(text.contains("53400") && text.contains("pg_task.max_workers"), "{text}");
    let first = db.ask("SELECT id FROM pg_task.workers").await?;
    let _two = db.worker(options(&ledger))?;
    one.signal("TERM")?;
    db.until(&format!("SELECT EXISTS (SELECT FROM pg_task.workers WHERE id <> '{first}')")).await
}

#[tokio::test]
async fn an_inbox_that_overflows_costs_a_read_of_the_table_and_no_task() -> Result<()> {
    let server = own_server("e2e-inbox", &["pg_task.inbox_capacity = 64"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("inbox")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    let (pid, before) = (
        db.ask("SELECT pid FROM pg_task.scheduler").await?,
        db.ask("SELECT rescans FROM pg_task.scheduler").await?,
    );
    std::process::Command::new("kill").args(["-STOP", &pid]).status()?;
    for n in 0..200 {
        db.run(&format!("SELECT pg_task.enqueue('{{\"Test\": {{\"Note\": {{\"key\": \"{n}\"}}}}}}')"))
            .await?;
    }
    std::process::Command::new("kill").args(["-CONT", &pid]).status()?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 200);
    db.until(&format!("SELECT rescans > {before} FROM pg_task.scheduler")).await
}

#[tokio::test]
async fn a_transaction_that_stays_open_holds_nothing_up() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("long")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    let mut long = db.pool.begin().await?;
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_task.task")
        .execute(&mut *long)
        .await?;
    for round in 1..=5 {
        db.run(&format!("SELECT pg_task.enqueue('{NOTE}') FROM generate_series(1, 1000)")).await?;
        db.until_done().await?;
        assert_eq!(ledger.lines().len(), round * 1000);
    }
    // The documentation's query names the session that keeps the dead rows.
    db.until("SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' AND age(backend_xmin) > 10").await?;
    long.rollback().await?;
    Ok(())
}

#[tokio::test]
async fn parked_tasks_are_counted_and_run_again_when_they_are_resumed() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("parked")?);
    db.run(&format!("INSERT INTO pg_task.task (step, error) SELECT '{NOTE}', 'the world is broken' FROM generate_series(1, 3)")).await?;
    assert!(problem(&db, "parked tasks").await?.starts_with("3 tasks"));
    let _worker = db.known_worker(options(&ledger)).await?;
    assert_eq!(db.ask("SELECT pg_task.resume_all(error_like => 'the world%')").await?, "3");
    db.until_done().await?;
    until_well(&db).await
}

#[tokio::test]
async fn a_queue_that_nobody_takes_and_a_step_that_nobody_knows_are_named() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("nobody")?);
    let _worker = db.known_worker(WorkerOptions { queues: "here", ..options(&ledger) }).await?;
    db.run(&format!(r#"SELECT pg_task.enqueue('{NOTE}', 'elsewhere'), pg_task.enqueue('{{"Test": {{"Unheard": 1}}}}', 'here')"#)).await?;
    assert!(problem(&db, "queue without a worker").await?.contains("\"elsewhere\""));
    assert!(problem(&db, "step without a worker").await?.contains("Test/Unheard"));
    let _other = db.known_worker(WorkerOptions { queues: "elsewhere", ..options(&ledger) }).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'elsewhere')").await?;
    db.run("DELETE FROM pg_task.task WHERE queue = 'here'").await?;
    db.run(&format!("SELECT pg_task.enqueue('{NOTE}', 'here')")).await?;
    db.until_done().await
}

#[tokio::test]
async fn switched_off_nothing_is_begun_and_the_view_says_so() -> Result<()> {
    let server = own_server("e2e-off", &[])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("off")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run("ALTER SYSTEM SET pg_task.enabled = off").await?;
    db.run("SELECT pg_reload_conf()").await?;
    problem(&db, "switched off").await?;
    db.run(&format!("SELECT pg_task.enqueue('{NOTE}')")).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    assert!(ledger.lines().is_empty());
    db.run("ALTER SYSTEM RESET pg_task.enabled").await?;
    db.run("SELECT pg_reload_conf()").await?;
    db.until_done().await?;
    until_well(&db).await
}

#[tokio::test]
async fn a_standby_refuses_to_write_and_hands_out_after_its_promotion() -> Result<()> {
    let server = own_server("e2e-primary", &["wal_level = replica", "max_wal_senders = 4"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("standby")?);
    let name = db.ask("SELECT current_database()").await?;
    db.run(&format!("SELECT pg_task.enqueue('{NOTE}')")).await?;
    let standby = server.standby("e2e-standby")?;
    let other = Database::attach(&standby, &name).await?;
    problem(&other, "standby").await?;
    assert_eq!(other.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    for sql in [
        &*format!("SELECT pg_task.enqueue('{NOTE}')"),
        "SELECT pg_task.resume_all()",
        "SELECT pg_task.register(pg_task.uuid7())",
    ] {
        let text = refusal(&standby, &name, sql)?;
        assert!(text.contains("25006") && text.contains("primary"), "{sql}: {text}");
    }
    server.stop(Stop::Immediate)?;
    standby.psql("postgres", "SELECT pg_promote()").context("failed to promote")?;
    other.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    let _worker = other.known_worker(options(&ledger)).await?;
    other.run(&format!("SELECT pg_task.enqueue('{NOTE}')")).await?;
    other.until_done().await?;
    assert_eq!(ledger.lines().len(), 2);
    until_well(&other).await
}
