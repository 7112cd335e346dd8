//! Every way to enqueue, and everything a step can end in, with a worker in a process of its own.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-hand-out")).await
}

fn note(key: &str) -> String {
    format!(r#"{{"Test":{{"Note":{{"key":"{key}"}}}}}}"#)
}

#[tokio::test]
async fn whatever_commits_a_row_gets_it_run_once_and_what_is_rolled_back_never_runs() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("ways")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!("SELECT pg_task.enqueue('{}')", note("function"))).await?;
    db.run(&format!("INSERT INTO pg_task.task (step) VALUES ('{}'), ('{}')", note("row-1"), note("row-2")))
        .await?;
    db.run(&format!("BEGIN; SELECT pg_task.enqueue('{}'); ROLLBACK", note("rolled-back"))).await?;
    db.run(&format!(
        "DO $$ BEGIN
            PERFORM pg_task.enqueue('{}');
            BEGIN PERFORM pg_task.enqueue('{}'); RAISE 'back'; EXCEPTION WHEN OTHERS THEN NULL; END;
         END $$",
        note("kept"),
        note("savepoint-rolled-back")
    ))
    .await?;
    db.run(&format!(
        "BEGIN; SELECT pg_task.enqueue('{}'); PREPARE TRANSACTION 'two-phase'",
        note("prepared")
    ))
    .await?;
    db.run("COMMIT PREPARED 'two-phase'").await?;
    db.run(&format!(
        "SELECT pg_task.enqueue_many(array_agg(replace('{}', '#', n::text)::jsonb)) FROM generate_series(1, 500) AS n",
        note("many-#")
    ))
    .await?;
    db.run(
        "CREATE TABLE thing (key text);
         CREATE TRIGGER thing_task AFTER INSERT OR DELETE ON thing
            FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row('Test', 'Note');
         INSERT INTO thing VALUES ('triggered'); DELETE FROM thing",
    )
    .await?;
    let mut copy = db.pool.acquire().await?;
    let mut copy = copy.copy_in_raw("COPY pg_task.task (step) FROM STDIN").await?;
    copy.send(format!("{}\n{}\n", note("copied-1"), note("copied-2")).as_bytes()).await?;
    copy.finish().await?;

    db.until_done().await?;
    let mut lines = ledger.lines();
    lines.sort();
    let mut expected: Vec<String> = (1..=500).map(|n| format!("many-{n}")).collect();
    expected.extend(
        ["function", "row-1", "row-2", "kept", "prepared", "triggered", "triggered", "copied-1", "copied-2"]
            .map(str::to_owned),
    );
    expected.sort();
    assert_eq!(lines, expected);
    Ok(())
}

#[tokio::test]
async fn a_failing_step_is_retried_then_parked_with_its_causes_and_goes_on_when_the_error_is_cleared()
-> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("fail")?);
    let mut errors = pg_task::listen_for_task_errors(&db.pool).await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Fail":{"until_attempt":2}}}')"#).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["attempt 1", "attempt 2"]);

    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Fail":{"until_attempt":9}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    let news = errors.recv().await?;
    assert_eq!(news.error, "the report could not be written\nCaused by:\n\tthe disk is on fire");
    assert_eq!(news.tried, 3);
    db.run(r#"UPDATE pg_task.task SET error = NULL, step = '{"Test":{"Note":{"key":"mended"}}}'"#).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().last().map(String::as_str), Some("mended"));
    Ok(())
}

#[tokio::test]
async fn a_panic_and_a_step_that_does_not_deserialise_are_parked_and_the_worker_lives_on() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("panic")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Panic":null}}')"#).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":7}}}')"#).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.failed").await?;
    assert_eq!(
        db.ask("SELECT error FROM pg_task.failed WHERE step->'Test' ? 'Panic'").await?,
        "the step panicked: the step was not ready for this"
    );
    let broken = db.ask("SELECT error FROM pg_task.failed WHERE step->'Test' ? 'Note'").await?;
    assert!(broken.contains("invalid type: integer `7`"), "{broken}");
    assert_eq!(db.ask("SELECT tried FROM pg_task.failed WHERE step->'Test' ? 'Note'").await?, "0");
    db.run(&format!("SELECT pg_task.enqueue('{}')", note("after"))).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task").await?;
    assert_eq!(ledger.lines(), ["after"]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_step_is_left_to_a_worker_that_knows_it() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("unknown")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"OfTheNextRelease":null}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.lanes() WHERE step = 'Test/OfTheNextRelease'").await?;
    assert_eq!(db.ask("SELECT tried || coalesce(error, '') FROM pg_task.task").await?, "0");

    let newer = "0190aaaa-0000-7000-8000-000000000001";
    let mut connection = db.pool.acquire().await?;
    let register = format!("SELECT pg_task.register('{newer}', steps => '{{Test/OfTheNextRelease}}')");
    sqlx::raw_sql(sqlx::AssertSqlSafe(register)).execute(&mut *connection).await?;
    let got = format!("SELECT count(*) = 1 FROM pg_task.exchange('{newer}', 5) WHERE event = 0");
    db.until(&got).await
}

#[tokio::test]
async fn delayed_tasks_and_steps_run_when_they_are_due_and_not_before() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("delay")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!("SELECT pg_task.delay('{}', '300 ms')", note("delayed"))).await?;
    db.run(&format!("SELECT pg_task.schedule('{}', now() - interval '1 year')", note("past"))).await?;
    db.run(&format!("SELECT pg_task.schedule('{}', now() + interval '1 hour')", note("future"))).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Later":{"key":"stepped","millis":200}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    let lines: BTreeSet<String> = ledger.lines().into_iter().collect();
    assert_eq!(lines, ["delayed", "past", "stepped"].map(str::to_owned).into());
    // By the server's clock, whatever this machine is doing: each was handed out when it was due, or later.
    let history = "SELECT concat_ws(' ', count(*), bool_and(started_at >= wakeup_at), \
                   count(*) FILTER (WHERE wakeup_at > created_at)) FROM pg_task.history";
    assert_eq!(db.ask(history).await?, "3 t 2");
    // Moved to now by its user: it runs at once.
    db.run("UPDATE pg_task.task SET wakeup_at = now()").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 4);
    Ok(())
}

#[tokio::test]
async fn priorities_are_honoured_and_workers_take_only_their_queues() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("priority")?);
    for (key, queue, priority) in
        [("last", "a", 5), ("second", "a", 0), ("other", "b", -9), ("first", "a", -5), ("third", "a", 1)]
    {
        db.run(&format!(
            "SELECT pg_task.enqueue('{}', queue => '{queue}', priority => {priority})",
            note(key)
        ))
        .await?;
    }
    db.until("SELECT sum(ready) = 5 FROM pg_task.lanes()").await?;
    let _worker = db.known_worker(WorkerOptions { queues: "a", concurrency: 1, ..options(&ledger) }).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    assert_eq!(ledger.lines(), ["first", "second", "third", "last"]);
    assert_eq!(db.ask("SELECT queue FROM pg_task.queues").await?, "b");
    Ok(())
}

#[tokio::test]
async fn a_cancelled_task_ends_its_step_and_a_stopped_worker_finishes_what_it_runs() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("cancel")?);
    let mut worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Sleep":{"key":"long","millis":600000}}}')"#).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Sleep":{"key":"short","millis":1500}}}')"#).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.running").await?;
    db.run(r#"SELECT pg_task.cancel(id) FROM pg_task.task WHERE step->'Test'->'Sleep'->>'key' = 'long'"#)
        .await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    // Slow enough to be written down in its row.
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
    db.run("SELECT pg_task.stop_workers()").await?;
    assert!(worker.ended().await?);
    db.until_done().await?;
    let lines: BTreeSet<String> = ledger.lines().into_iter().collect();
    let expected = ["long begins", "long cancelled", "short begins", "short ends"];
    assert_eq!(lines, expected.map(str::to_owned).into());
    db.until("SELECT count(*) = 0 FROM pg_task.workers").await
}

#[tokio::test]
async fn a_worker_that_polls_keeps_nothing_in_a_session_and_works_as_the_others_do() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("polling")?);
    let polling = Some(Duration::from_millis(50));
    let mut worker = db.known_worker(WorkerOptions { polling, ..options(&ledger) }).await?;
    db.until("SELECT coalesce(pid, 0) = 0 FROM pg_task.workers").await?;
    db.run(
        r#"SELECT pg_task.enqueue('{"Test":{"Chain":{"key":"a","left":3}}}') FROM generate_series(1, 100)"#,
    )
    .await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 400);
    // Whatever session its calls met, they left no statement and no channel behind.
    db.run("SELECT pg_notify('pg_task_changed', 'stop_worker')").await?;
    db.run(&format!("SELECT pg_task.enqueue('{}')", note("b"))).await?;
    db.until_done().await?;
    db.run("SELECT pg_task.stop_workers()").await?;
    assert!(worker.ended().await?);
    Ok(())
}

#[tokio::test]
async fn the_seed_s_stop_message_stops_every_worker() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("stop")?);
    let (mut one, mut two) =
        (db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?);
    db.run("SELECT pg_notify('pg_task_changed', 'stop_worker')").await?;
    assert!(one.ended().await?);
    assert!(two.ended().await?);
    assert_eq!(db.ask("SELECT EXISTS (SELECT 1 FROM pg_task.running)").await?, "f");
    Ok(())
}

#[tokio::test]
async fn a_user_s_change_of_a_running_task_refuses_the_old_run_and_the_new_row_runs() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("change")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Sleep":{"key":"old","millis":500}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    db.run(&format!("UPDATE pg_task.task SET step = '{}'", note("new"))).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["old begins", "old ends", "new"]);
    assert_eq!(db.ask("SELECT refused FROM pg_task.scheduler").await?, "1");
    Ok(())
}

#[tokio::test]
async fn idle_workers_and_the_scheduler_burn_no_transaction_ids() -> Result<()> {
    let server = own_server("e2e-idle", &["autovacuum = off"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("idle")?);
    let lease = Duration::from_secs(3);
    let _worker = db.known_worker(WorkerOptions { lease, ..options(&ledger) }).await?;
    db.until("SELECT state = 'idle' FROM pg_task.workers").await?;
    let next_xid = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
    let heard = "SELECT extract(epoch FROM heartbeat_at) * 1000000 FROM pg_task.workers";
    let mut burnt = Vec::new();
    // What belongs to the start may still go on at first.
    for _ in 0..3 {
        let before = db.ask(next_xid).await?;
        for _ in 0..3 {
            let last = db.ask(heard).await?;
            db.until(&format!(
                "SELECT extract(epoch FROM heartbeat_at) * 1000000 > {last} FROM pg_task.workers"
            ))
            .await?;
        }
        let after = db.ask(next_xid).await?;
        if after == before {
            return Ok(());
        }
        burnt.push(format!("{before} to {after}"));
    }
    anyhow::bail!("nothing goes on, and transaction ids go by: {burnt:?}")
}
