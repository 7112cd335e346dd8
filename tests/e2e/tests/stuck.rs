//! What does not come to its end, a step, a call or a commit, holds up nothing else for ever.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-stuck")).await
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

/// One step that never ends, not even when it is asked to, and runs.
async fn hang(db: &Database, options: &str) -> Result<()> {
    db.run(&format!(
        r#"SELECT pg_task.enqueue('{{"Test": {{"Hang": {{"key": "a"}}}}}}', options => '{options}')"#
    ))
    .await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await
}

#[tokio::test]
async fn a_cancelled_step_that_does_not_end_leaves_its_queue_s_only_place_to_the_next() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("place")?);
    db.run("SELECT pg_task.set_queue('default', concurrency => 1)").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    hang(&db, "{}").await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "b"}}}')"#).await?;
    db.run("SELECT pg_task.cancel(id) FROM pg_task.running").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["a begins", "b"]);
    db.until("SELECT count(*) = 0 FROM pg_task.running").await
}

#[tokio::test]
async fn a_cancelled_step_that_does_not_end_gives_way_to_the_next_of_its_group() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("group")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    hang(&db, r#"{"group": "g"}"#).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "b"}}}', options => '{"group": "g"}')"#)
        .await?;
    db.run("SELECT pg_task.cancel_all(state => 'running')").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["a begins", "b"]);
    Ok(())
}

#[tokio::test]
async fn an_interrupted_step_that_does_not_end_gives_way_to_the_new_one() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("interrupted")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    hang(&db, "{}").await?;
    db.run(
        r#"SELECT pg_task.edit(id, '{"Test": {"Note": {"key": "new"}}}', interrupt => true) FROM pg_task.running"#,
    )
    .await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["a begins", "new"]);
    // That nothing came of the old one is no attempt.
    assert_eq!(db.ask("SELECT attempts FROM pg_task.history WHERE outcome = 'done'").await?, "1");
    Ok(())
}

#[tokio::test]
async fn a_worker_without_room_for_more_hears_at_once_that_its_task_was_cancelled() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("full")?);
    // Its heart beats every twenty minutes.
    let lease = Duration::from_secs(3_600);
    let _worker = db.known_worker(WorkerOptions { concurrency: 1, lease, ..options(&ledger) }).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Sleep": {"key": "a", "millis": 3600000}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    db.run("SELECT pg_task.cancel(id) FROM pg_task.running").await?;
    db.until("SELECT count(*) = 0 FROM pg_task.running").await?;
    assert_eq!(ledger.lines(), ["a begins", "a cancelled"]);
    Ok(())
}

#[tokio::test]
async fn a_call_that_hangs_does_not_hold_up_what_other_steps_end_in() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("call")?);
    db.run(
        "CREATE TABLE say (key text, value float8, text text);
         CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_catalog.pg_sleep(3600); RETURN old; END';
         CREATE TRIGGER hang BEFORE DELETE ON pg_task.task FOR EACH ROW WHEN (old.priority = 9) EXECUTE FUNCTION hang()",
    )
    .await?;
    // With this lease the worker itself gives a call up after half an hour.
    let lease = Duration::from_secs(3_600);
    let _worker = db.known_worker(WorkerOptions { lease, ..options(&ledger) }).await?;
    for key in ["long"; 9].iter().chain(&["short"]) {
        db.run(&format!(r#"SELECT pg_task.enqueue('{{"Test": {{"Report": {{"key": "{key}"}}}}}}')"#)).await?;
    }
    db.until("SELECT count(*) = 10 FROM pg_task.running").await?;
    db.run(r#"INSERT INTO pg_task.task (priority, step) VALUES (9, '{"Test": {"Note": {"key": "stuck"}}}')"#)
        .await?;
    db.until("SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'")
        .await?;
    // The one of ten: not the good part for which it would be worth waiting.
    db.run("INSERT INTO say VALUES ('short', NULL, 'end')").await?;
    db.until("SELECT count(*) = 10 FROM pg_task.task").await?;
    assert_eq!(
        db.ask("SELECT count(*) FROM pg_task.task WHERE step #>> '{Test,Report,key}' = 'long'").await?,
        "9"
    );
    Ok(())
}

#[tokio::test]
async fn a_commit_that_hangs_is_given_up_when_the_step_s_time_is_up() -> Result<()> {
    let server = own_server("e2e-stuck-commit", &["synchronous_commit = local"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("commit")?);
    db.run(
        "CREATE TABLE effect (key text, seq bigint); CREATE TABLE gate (open bool);
         CREATE FUNCTION wait_for_standby() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM set_config(''synchronous_commit'', ''on'', true); RETURN new; END';
         CREATE TRIGGER wait_for_standby BEFORE INSERT ON effect FOR EACH ROW EXECUTE FUNCTION wait_for_standby()",
    )
    .await?;
    let options = WorkerOptions { queues: "default", ..options(&ledger) };
    let mut worker = db.known_worker(options).await?;
    // A standby that does not come: the scheduler's start would wait for it too.
    db.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await?;
    db.run("SELECT pg_reload_conf()").await?;
    db.until("SELECT current_setting('synchronous_standby_names') = 'nobody'").await?;
    db.run(
        r#"SELECT pg_task.enqueue('{"Test": {"Exact": {"key": "a", "left": 0, "how": ""}}}', options => '{"timeout": 0.1}')"#,
    )
    .await?;
    // The worker asks the row what has become of it.
    db.until(
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%exchange_packed%'",
    )
    .await?;
    db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'default')").await?;
    // It had committed: what the worker made of it meanwhile is refused, and it can stop.
    db.until("SELECT refused = 1 FROM pg_task.scheduler").await?;
    assert_eq!(db.ask("SELECT count(*) FROM effect").await?, "1");
    assert_eq!(ledger.lines().len(), 1);
    db.run("SELECT pg_task.stop_workers()").await?;
    assert!(worker.ended().await?);
    Ok(())
}
