//! Steps in a transaction: what they wrote, what they enqueued and their transition are there together, once, or not at all.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Result;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

/// Without a constraint: a row that is written twice shows.
const TABLES: &str = "CREATE TABLE effect (key text, seq bigint); CREATE TABLE gate (open bool)";

async fn database() -> Result<Database> {
    let db = Database::create(shared_server("e2e-transactional")).await?;
    db.run(TABLES).await?;
    Ok(db)
}

/// The children that the steps enqueue stay where they are.
fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    let options = WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"));
    WorkerOptions { ledger: Some(ledger.path()), queues: "default", ..options }
}

fn enqueue(key: &str, left: u32, how: &str) -> String {
    format!(
        r#"SELECT pg_task.enqueue('{{"Test":{{"Exact":{{"key":"{key}","left":{left},"how":"{how}"}}}}}}')"#
    )
}

/// How many effects and how many children there are, then how often each at most: `n n 1 1` when all is well.
async fn effects(db: &Database) -> Result<String> {
    db.ask(
        "WITH e AS (SELECT key, seq, count(*) AS n FROM effect GROUP BY 1, 2),
              c AS (SELECT step, count(*) AS n FROM pg_task.task WHERE queue = 'children' GROUP BY 1)
         SELECT concat_ws(' ', (SELECT count(*) FROM e), (SELECT count(*) FROM c), (SELECT max(n) FROM e), (SELECT max(n) FROM c))",
    )
    .await
}

async fn until_no_step_is_left(db: &Database) -> Result<()> {
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'default')").await
}

/// The session of a step that waits for the gate.
const WAITING: &str =
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";

#[tokio::test]
async fn a_step_s_writes_its_children_and_its_transition_commit_together() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("together")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&enqueue("a", 2, "")).await?;
    until_no_step_is_left(&db).await?;
    assert_eq!(effects(&db).await?, "3 3 1 1");
    assert_eq!(ledger.lines().len(), 3);
    // One transaction each: the row and the child were written by the same.
    let together = "SELECT count(DISTINCT e.xmin::text) = 3 AND bool_and(c.xmin = e.xmin) FROM effect AS e JOIN pg_task.task AS c
         ON c.step #>> '{Test,Note,key}' = 'child of ' || e.key || ' ' || e.seq";
    assert_eq!(db.ask(together).await?, "t");
    Ok(())
}

#[tokio::test]
async fn an_attempt_that_fails_in_whatever_way_leaves_nothing_and_is_counted() -> Result<()> {
    for how in ["fails", "panics", "breaks", "savepoint", "large"] {
        let (db, ledger) = (database().await?, Ledger::new(how)?);
        let _worker = db.known_worker(options(&ledger)).await?;
        db.run(&enqueue("a", 0, how)).await?;
        until_no_step_is_left(&db).await?;
        assert_eq!(ledger.lines().len(), 2, "{how}: {:?}", ledger.lines());
        assert_eq!(effects(&db).await?, "1 1 1 1", "{how}");
    }
    Ok(())
}

#[tokio::test]
async fn an_attempt_whose_session_ends_before_the_commit_leaves_nothing_and_runs_again() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("session")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&enqueue("a", 0, "waits")).await?;
    db.until(&format!("SELECT count(*) = 1 FROM ({WAITING}) AS w")).await?;
    // The next attempt may be at the gate before anybody looks: this one's session is what ends.
    let pid = db.ask(WAITING).await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until(&format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})")).await?;
    assert_eq!(effects(&db).await?, "0 0");
    db.run("INSERT INTO gate VALUES (true)").await?;
    until_no_step_is_left(&db).await?;
    assert_eq!(effects(&db).await?, "1 1 1 1");
    assert_eq!(ledger.lines().len(), 2);
    Ok(())
}

#[tokio::test]
async fn an_attempt_whose_session_ends_after_the_commit_has_happened_and_does_not_run_again() -> Result<()> {
    // A commit that waits for a standby, which will not come, is on this server's disk: when its session is ended then, it has
    // committed, and its client hears of an error.
    let server = own_server("e2e-after-commit", &["synchronous_commit = local"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("after-commit")?);
    db.run(TABLES).await?;
    db.run(
        "CREATE FUNCTION wait_for_standby() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM set_config(''synchronous_commit'', ''on'', true); RETURN new; END';
         CREATE TRIGGER wait_for_standby BEFORE INSERT ON effect FOR EACH ROW EXECUTE FUNCTION wait_for_standby()",
    )
    .await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    // The scheduler's start waits for standbys: only now.
    db.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await?;
    db.run("SELECT pg_reload_conf()").await?;
    db.until("SELECT current_setting('synchronous_standby_names') = 'nobody'").await?;
    db.run(&enqueue("a", 2, "")).await?;
    for seq in 1..4 {
        db.until("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await?;
        db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await?;
        db.until(&format!("SELECT count(*) = {seq} FROM effect")).await?;
    }
    until_no_step_is_left(&db).await?;
    assert_eq!(effects(&db).await?, "3 3 1 1");
    assert_eq!(ledger.lines().len(), 3, "{:?}", ledger.lines());
    // What the worker brought to find out was refused, unless it was given the next step before.
    db.until("SELECT refused BETWEEN 1 AND 3 FROM pg_task.scheduler").await?;
    Ok(())
}

#[tokio::test]
async fn a_task_that_is_changed_or_cancelled_meanwhile_takes_its_step_s_writes_back() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("changed")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&enqueue("changed", 0, "waits")).await?;
    db.run(&enqueue("cancelled", 0, "waits")).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.running").await?;
    db.until(&format!("SELECT count(*) = 2 FROM ({WAITING}) AS w")).await?;
    db.run("UPDATE pg_task.task SET priority = 7 WHERE step::text LIKE '%changed%'").await?;
    db.run("DELETE FROM pg_task.task WHERE step::text LIKE '%cancelled%'").await?;
    db.run("INSERT INTO gate VALUES (true)").await?;
    until_no_step_is_left(&db).await?;
    db.until("SELECT count(*) = 0 FROM pg_task.running").await?;
    assert_eq!(db.ask("SELECT string_agg(key, ',') FROM effect").await?, "changed");
    assert_eq!(effects(&db).await?, "1 1 1 1");
    assert_eq!(ledger.lines().len(), 3);
    // A refusal is no attempt.
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.failed").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_killed_or_stopped_in_the_middle_doubles_nothing() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("worker")?);
    let lease = Duration::from_secs(3);
    let silent = db.known_worker(WorkerOptions { lease, ..options(&ledger) }).await?;
    db.run(&enqueue("a", 1, "waits")).await?;
    db.until(&format!("SELECT count(*) = 1 FROM ({WAITING}) AS w")).await?;
    silent.signal("STOP")?;
    let killed = db.known_worker(options(&ledger)).await?;
    // The other one runs it as well, in a transaction of its own.
    db.until(&format!("SELECT count(*) = 2 FROM ({WAITING}) AS w")).await?;
    killed.signal("KILL")?;
    db.until(&format!("SELECT count(*) = 1 FROM ({WAITING}) AS w")).await?;
    db.run("INSERT INTO gate VALUES (true)").await?;
    let _last = db.known_worker(options(&ledger)).await?;
    until_no_step_is_left(&db).await?;
    silent.signal("CONT")?;
    // It hears that it was given up, takes back what it did and works again.
    db.until("SELECT count(*) = 2 FROM pg_task.workers WHERE state = 'idle'").await?;
    db.until(&format!("SELECT count(*) = 0 FROM ({WAITING}) AS w")).await?;
    assert_eq!(effects(&db).await?, "2 2 1 1");
    Ok(())
}

#[tokio::test]
async fn crashes_of_the_server_in_the_middle_of_a_thousand_chains_lose_and_double_no_effect() -> Result<()> {
    let server = own_server("e2e-exact", &["fsync = on", "synchronous_commit = on"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("exact")?);
    db.run(TABLES).await?;
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(db.known_worker(WorkerOptions { concurrency: 20, ..options(&ledger) }).await?);
    }
    db.run(
        "SELECT pg_task.enqueue_many(array_agg(jsonb_build_object('Test', jsonb_build_object('Exact',
             jsonb_build_object('key', n::text, 'left', 3, 'how', '')))))
         FROM generate_series(1, 1000) AS n",
    )
    .await?;
    for (stop, effects) in [(Stop::Immediate, 500), (Stop::Fast, 1500), (Stop::Immediate, 2500)] {
        db.until(&format!("SELECT count(*) > {effects} FROM effect")).await?;
        server.stop(stop)?;
        server.start()?;
    }
    // What was lost for the crash alone is tried again; one that had bad luck more often is parked, with nothing done.
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'default' AND error IS NULL)")
        .await?;
    assert_eq!(db.ask("SELECT string_agg(DISTINCT error, '; ') FROM pg_task.failed").await?, "");
    assert_eq!(effects(&db).await?, "4000 4000 1 1");
    Ok(())
}

#[tokio::test]
async fn finish_tells_a_stale_claim_and_refuses_what_makes_no_sense() -> Result<()> {
    const WORKER: &str = "'00000000-0000-0000-0000-0000000000f1'";
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    db.run(&enqueue("by hand", 0, "")).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    let claim = session
        .ask(&format!(
            "SELECT quote_literal(id) || ', ' || fence || ', ' || token FROM pg_task.exchange({WORKER}, 1)"
        ))
        .await?;
    let finish = |more: &str| format!("SELECT pg_task.finish({WORKER}, {claim}{more})");
    for (more, code) in [
        (", 3", "22023"),
        (", NULL", "22004"),
        (", 1", "22004"),
        (", 1, '[]'", "22023"),
        (r#", 2, '{"A": {"B": 1}}'"#, "22004"),
        (r#", 2, '{"A": {"B": 1}}', -1"#, "22023"),
    ] {
        let refusal = session.refusal(&finish(more)).await?;
        assert_eq!(refusal.code, code, "{more}: {refusal:?}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{more}: {refusal:?}");
    }
    session.run("BEGIN; SAVEPOINT a").await?;
    assert_eq!(session.refusal(&finish("")).await?.code, "25001");
    session.run("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    assert_eq!(session.refusal(&finish("")).await?.code, "25001");
    session.run("ROLLBACK").await?;
    // Rolled back: as if nothing had been said. Another worker's word, or another attempt's, counts for nothing.
    session.run("BEGIN").await?;
    assert_eq!(session.ask(&finish("")).await?, "true");
    session.run("ROLLBACK").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.running").await?, "1");
    let other = finish("").replace("0000f1", "0000f2");
    assert_eq!(session.ask(&other).await?, "false");
    assert_eq!(session.ask(&finish(r#", 2, '{"A": {"B": 1}}', 3600000000"#)).await?, "true");
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.running").await?, "0");
    assert_eq!(
        db.ask("SELECT step = '{\"A\": {\"B\": 1}}' AND wakeup_at > now() FROM pg_task.task").await?,
        "t"
    );
    assert_eq!(session.ask(&finish("")).await?, "false");
    Ok(())
}
