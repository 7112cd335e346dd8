//! Rows that a user keeps locked: nobody waits for them but the one whose result it is, and that one not for long.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;

const WORKER: &str = "'0190aaaa-0000-7000-8000-0000000000e1'";

async fn enqueue(db: &Database, count: u32) -> Result<()> {
    db.run(&format!(
        r#"INSERT INTO pg_task.task (id, step) SELECT lpad(n::text, 32, '0')::uuid, '{{"A": {{"B": 1}}}}' FROM generate_series(1, {count}) AS n"#
    ))
    .await
}

/// The row of this number.
fn row(n: u32) -> String {
    format!("'{n:032}'::uuid")
}

/// A session that keeps the first row locked.
async fn lock_first(db: &Database) -> Result<Session> {
    let mut user = db.session().await?;
    user.run(&format!("BEGIN; SELECT FROM pg_task.task WHERE id = {} FOR UPDATE", row(1))).await?;
    Ok(user)
}

async fn claim_all(db: &Database, worker: &mut Session, count: u32) -> Result<()> {
    db.until(&format!("SELECT ready = {count} FROM pg_task.scheduler")).await?;
    worker.run(&format!("SELECT pg_task.exchange({WORKER}, {count})")).await?;
    assert_eq!(worker.ask("SELECT count(*) FROM pg_task.running").await?, count.to_string());
    Ok(())
}

#[tokio::test]
async fn what_a_lost_worker_held_is_handed_out_again_beside_a_row_that_is_locked() -> Result<()> {
    let server = own_server("e2e-locks-lost", &["pg_task.worker_grace = 0"])?;
    let db = Database::create(&server).await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue(&db, 3).await?;
    claim_all(&db, &mut worker, 3).await?;
    let mut user = lock_first(&db).await?;
    drop(worker);
    db.until("SELECT count(*) = 2 FROM pg_task.task WHERE tried = 1").await?;
    // The two are ready while the third is still the lost worker's.
    db.until("SELECT ready = 2 FROM pg_task.scheduler").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.running").await?, "1");
    // The scheduler does its other work meanwhile.
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 2}}')"#).await?;
    db.until("SELECT ready = 3 FROM pg_task.scheduler").await?;
    assert_eq!(
        user.ask("SELECT tried FROM pg_task.task WHERE step->'A'->>'B' = '1' ORDER BY id LIMIT 1").await?,
        "0"
    );
    user.run("ROLLBACK").await?;
    db.until("SELECT count(*) = 3 FROM pg_task.task WHERE tried = 1").await?;
    db.until("SELECT ready = 4 FROM pg_task.scheduler").await
}

#[tokio::test]
async fn claims_are_written_behind_beside_a_row_that_is_locked() -> Result<()> {
    let server = own_server("e2e-locks-behind", &[])?;
    let db = Database::create(&server).await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue(&db, 3).await?;
    claim_all(&db, &mut worker, 3).await?;
    let mut user = lock_first(&db).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
    assert_eq!(
        user.ask(&format!("SELECT locked_by IS NULL FROM pg_task.task WHERE id = {}", row(1))).await?,
        "true"
    );
    user.run("ROLLBACK").await?;
    db.until("SELECT count(*) = 3 FROM pg_task.task WHERE locked_by IS NOT NULL").await
}

#[tokio::test]
async fn claims_in_writing_pass_over_a_row_that_is_locked() -> Result<()> {
    let server = own_server("e2e-locks-writing", &["pg_task.settle_time = 0"])?;
    let db = Database::create(&server).await?;
    let name = db.ask("SELECT current_database()").await?;
    enqueue(&db, 3).await?;
    db.pool.close().await;
    server.stop(Stop::Immediate)?;
    server.start()?;
    let db = Database::attach(&server, &name).await?;
    db.until("SELECT state = 'running' AND ready = 3 FROM pg_task.scheduler").await?;
    let mut user = lock_first(&db).await?;
    let mut worker = db.session().await?;
    // A call that waited for the lock would be ended by its limit of two seconds, and this would fail.
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    let given = format!("SELECT count(*) FROM pg_task.exchange({WORKER}, 10) WHERE event = 0");
    assert_eq!(worker.ask(&given).await?, "2");
    assert_eq!(worker.ask("SELECT count(*) FROM pg_task.task WHERE tried = 1").await?, "2");
    // Still locked when it is looked at again.
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    assert_eq!(worker.ask(&given).await?, "0");
    user.run("ROLLBACK").await?;
    db.until(&format!("{given} HAVING count(*) = 1").replace("SELECT count(*)", "SELECT count(*) = 1"))
        .await?;
    assert_eq!(worker.ask("SELECT count(*) FROM pg_task.task WHERE tried = 1").await?, "3");
    Ok(())
}

#[tokio::test]
async fn a_result_whose_row_is_locked_fails_its_call_soon_and_with_it_nothing_is_written() -> Result<()> {
    let server = own_server("e2e-locks-result", &[])?;
    let db = Database::create(&server).await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue(&db, 2).await?;
    claim_all(&db, &mut worker, 2).await?;
    let finish = |which: &str| {
        format!(
            "SELECT count(*) FROM (SELECT array_agg(id) AS i, array_agg(fence) AS f, array_agg(token) AS t FROM pg_task.claims() AS c WHERE {which}) AS c,
             LATERAL pg_task.exchange({WORKER}, 0, c.i, c.f, c.t)"
        )
    };
    let mut user = lock_first(&db).await?;
    let both = finish("true");
    let call = tokio::time::timeout(Duration::from_secs(60), worker.refusal(&both));
    let refusal = call.await.context("the call waits for ever")??;
    assert_eq!(refusal.code, "55P03", "{refusal:?}");
    assert_eq!(worker.ask("SELECT count(*) FROM pg_task.task").await?, "2");
    assert_eq!(worker.ask("SELECT count(*) FROM pg_task.running").await?, "2");
    // One by one only the one fails.
    worker.run(&finish(&format!("id = {}", row(2)))).await?;
    assert_eq!(worker.refusal(&finish(&format!("id = {}", row(1)))).await?.code, "55P03");
    user.run("ROLLBACK").await?;
    worker.run(&both).await?;
    assert_eq!(worker.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_worker_brings_its_other_results_while_the_row_of_one_is_locked() -> Result<()> {
    other_results_get_through("e2e-locks-client", Duration::from_secs(60)).await
}

#[tokio::test]
async fn a_worker_with_a_short_lease_waits_long_enough_to_hear_that_a_row_is_locked() -> Result<()> {
    other_results_get_through("e2e-locks-lease", Duration::from_secs(2)).await
}

async fn other_results_get_through(name: &str, lease: Duration) -> Result<()> {
    let server = own_server(name, &[])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new(name)?);
    let program = env!("CARGO_BIN_EXE_e2e_worker");
    let options = WorkerOptions { ledger: Some(ledger.path()), lease, ..WorkerOptions::new(program) };
    let _worker = db.known_worker(options).await?;
    // All of them run and end together, so that their results would be brought by one call.
    db.run(
        r#"INSERT INTO pg_task.task (id, step) SELECT lpad(n::text, 32, '0')::uuid, '{"Test": {"Sleep": {"key": "a", "millis": 500}}}'
           FROM generate_series(1, 8) AS n"#,
    )
    .await?;
    let mut user = lock_first(&db).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    assert_eq!(db.ask("SELECT id FROM pg_task.task").await?, format!("{:08}-0000-0000-0000-{:012}", 0, 1));
    // The worker works on.
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "b"}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    user.run("ROLLBACK").await?;
    db.until_done().await?;
    let lines = ledger.lines();
    assert_eq!(lines.iter().filter(|line| *line == "a begins").count(), 8, "each ran once: {lines:?}");
    Ok(())
}

#[tokio::test]
async fn a_call_that_writes_after_it_has_looked_into_an_index_is_no_deadlock_with_reindex() -> Result<()> {
    let server = own_server("e2e-locks-reindex", &[])?;
    let db = Database::create(&server).await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue(&db, 1).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    worker.run("BEGIN").await?;
    let claim = worker
        .ask(&format!("SELECT fence || ', ' || token FROM pg_task.exchange({WORKER}, 1) WHERE event = 0"))
        .await?;
    let (fence, token) = claim.split_once(", ").context("it was handed out")?;
    let mut user = db.session().await?;
    let reindex = tokio::spawn(async move { user.run("REINDEX TABLE pg_task.task").await });
    db.until(
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'REINDEX%'",
    )
    .await?;
    // Had it not the lock of a writer yet, it would wait for the table, which REINDEX had locked, and REINDEX for the index.
    let bring =
        format!("SELECT pg_task.exchange({WORKER}, 0, ARRAY[{}], ARRAY[{fence}], ARRAY[{token}])", row(1));
    worker.run(&format!("{bring}; COMMIT")).await?;
    reindex.await??;
    db.until_done().await
}

#[tokio::test]
async fn what_reads_before_it_writes_has_the_lock_of_a_writer_from_the_start() -> Result<()> {
    let server = own_server("e2e-locks-writers", &[])?;
    let db = Database::create(&server).await?;
    db.run(r#"SELECT pg_task.enqueue_unique('{"A": {"B": 1}}', 'k')"#).await?;
    let mut session = db.session().await?;
    for call in [
        "pg_task.cancel_all(queue => 'none')",
        "pg_task.edit(pg_task.uuid7(), payload => '1')",
        r#"pg_task.enqueue_unique('{"A": {"B": 1}}', 'k')"#,
    ] {
        // None of them finds anything to write.
        session.run(&format!("BEGIN; SELECT {call}")).await?;
        let held = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'pg_task.task'::regclass AND mode = 'RowExclusiveLock'";
        assert_eq!(session.ask(held).await?, "1", "{call}");
        session.run("ROLLBACK").await?;
    }
    Ok(())
}
