//! What a queue says for those of its tasks that do not say it themselves: retries, the time limit, how long the history keeps them.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Result;
use pg_task::QueueLimits;
use pg_task::RetryPolicy;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;
use serde_json::json;

const WORKER: &str = "'00000000-0000-0000-0000-0000000000dd'";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-queue-defaults")).await
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

/// Enqueues a task that sleeps for ever, with options of its own.
async fn enqueue(db: &Database, queue: &str, options: &str) -> Result<()> {
    db.run(&format!(
        "SELECT pg_task.enqueue('{}', '{queue}', options => {options})",
        json!({ "Test": { "Sleep": { "key": "s", "millis": 600_000 } } })
    ))
    .await
}

/// A session that is registered as a worker.
async fn sql_worker(db: &Database) -> Result<Session> {
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    Ok(session)
}

/// Claims the only task that is due; the options that it is handed out with.
async fn claim(db: &Database, worker: &mut Session) -> Result<String> {
    for _ in 0..1_000 {
        db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
        worker
            .run(&format!(
                "DROP TABLE IF EXISTS claim; CREATE TEMP TABLE claim AS SELECT * FROM pg_task.exchange({WORKER}, 1) WHERE event = 0"
            ))
            .await?;
        // Memory may have had the task in the queue that it was moved from, which yields nothing.
        if worker.ask("SELECT count(*) FROM claim").await? == "1" {
            return worker.ask("SELECT options FROM claim").await;
        }
    }
    anyhow::bail!("nothing is handed out")
}

/// Brings a failure of what was claimed, as a worker whose code has no retry left. How long until the next attempt; empty for a task that is parked.
async fn give_up(worker: &mut Session) -> Result<String> {
    worker
        .run(&format!(
            "SELECT pg_task.exchange({WORKER}, 0, ARRAY[id], ARRAY[fence], ARRAY[token], ARRAY[8::smallint], errors => ARRAY['no']) FROM claim"
        ))
        .await?;
    worker
        .ask("SELECT extract(epoch FROM t.wakeup_at - t.updated_at)::float8 FROM pg_task.task AS t JOIN claim USING (id) WHERE t.error IS NULL")
        .await
}

#[tokio::test]
async fn a_task_s_own_options_come_first_then_its_queue_s_then_those_of_all_queues() -> Result<()> {
    let db = database().await?;
    let mut worker = sql_worker(&db).await?;
    let limits = QueueLimits::new().retry(RetryPolicy::constant(2, Duration::from_secs(300)));
    pg_task::set_queue(&db.pool, "q", limits.timeout(Duration::from_millis(1_500))).await?;
    db.run(r#"SELECT pg_task.set_queue('*', retry => '{"limit": 1, "delay": 60}', timeout => '1 min')"#)
        .await?;
    let shown = "SELECT concat(retry->>'delay', ' ', timeout) FROM pg_task.queues WHERE queue = 'q'";
    assert_eq!(db.ask(shown).await?, "300.0 00:00:01.5");
    for (queue, own, handed_out, delay) in [
        ("q", "NULL", r#"{"retry": {"delay": 300.0, "limit": 2}, "timeout": 1.5}"#, "300"),
        (
            "q",
            r#"'{"timeout": "2 h", "meta": {"a": 1}}'"#,
            r#"{"meta": {"a": 1}, "retry": {"delay": 300.0, "limit": 2}, "timeout": "2 h"}"#,
            "300",
        ),
        // A policy holds as a whole.
        (
            "q",
            r#"'{"retry": {"limit": 1, "delay": 7}}'"#,
            r#"{"retry": {"delay": 7, "limit": 1}, "timeout": 1.5}"#,
            "7",
        ),
        ("q", r#"'{"retry": {"limit": 0}}'"#, r#"{"retry": {"limit": 0}, "timeout": 1.5}"#, ""),
        ("other", "NULL", r#"{"retry": {"delay": 60, "limit": 1}, "timeout": 60.0}"#, "60"),
    ] {
        enqueue(&db, queue, own).await?;
        assert_eq!(claim(&db, &mut worker).await?, handed_out);
        let rows =
            format!("SELECT count(*) FROM pg_task.task WHERE options IS NOT DISTINCT FROM {own}::jsonb");
        assert_eq!(db.ask(&rows).await?, "1", "the row keeps its own options");
        assert_eq!(give_up(&mut worker).await?, delay, "{queue} {own}");
        db.run("DELETE FROM pg_task.task").await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_changed_holds_for_the_next_attempt_of_tasks_that_wait_already() -> Result<()> {
    let db = database().await?;
    let mut worker = sql_worker(&db).await?;
    let mut operator = db.session().await?;
    enqueue(&db, "q", "NULL").await?;
    operator.run(r#"SELECT pg_task.set_queue('q', retry => '{"limit": 5, "delay": 0}')"#).await?;
    assert_eq!(claim(&db, &mut worker).await?, r#"{"retry": {"delay": 0, "limit": 5}}"#);
    // What was never committed never held.
    operator.run(r#"BEGIN; SELECT pg_task.set_queue('q', retry => '{"limit": 0}'); ROLLBACK"#).await?;
    assert_eq!(give_up(&mut worker).await?, "0");
    // Changed by hand, also while the step runs.
    claim(&db, &mut worker).await?;
    operator.run(r#"UPDATE pg_task.queue SET retry = '{"limit": 5, "delay": 40}', timeout = '1 s'"#).await?;
    assert_eq!(give_up(&mut worker).await?, "40");
    operator.run("UPDATE pg_task.task SET wakeup_at = now()").await?;
    assert_eq!(claim(&db, &mut worker).await?, r#"{"retry": {"delay": 40, "limit": 5}, "timeout": 1.0}"#);
    // Moved to another queue it goes by that one's.
    operator
        .run(r#"SELECT pg_task.set_queue('r', timeout => '3 s'); UPDATE pg_task.task SET queue = 'r'"#)
        .await?;
    assert_ne!(give_up(&mut worker).await?, "", "what was begun before the change is refused");
    assert_eq!(claim(&db, &mut worker).await?, r#"{"timeout": 3.0}"#);
    // Set to nothing, dropped, emptied: the step's own code decides.
    operator.run("SELECT pg_task.set_queue('r'), pg_task.drop_queue('q')").await?;
    assert_eq!(operator.ask("SELECT count(*) FROM pg_task.queue").await?, "0");
    assert_eq!(give_up(&mut worker).await?, "", "no retry is left");
    operator.run("SELECT pg_task.set_queue('r', timeout => '3 s')").await?;
    operator.run("TRUNCATE pg_task.queue; SELECT pg_task.resume(id) FROM pg_task.task").await?;
    // The scheduler sees it at its next tick.
    for _ in 0..1_000 {
        if claim(&db, &mut worker).await?.is_empty() {
            return Ok(());
        }
        worker
            .run(&format!("SELECT pg_task.exchange({WORKER}, 0, ARRAY[id], ARRAY[fence], ARRAY[token], ARRAY[5::smallint]) FROM claim"))
            .await?;
    }
    anyhow::bail!("it holds although the table is empty")
}

#[tokio::test]
async fn a_worker_keeps_the_time_limit_of_the_queue() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("queue-limit")?);
    let limits = QueueLimits::new().timeout(Duration::from_millis(50));
    pg_task::set_queue(&db.pool, "short", limits).await?;
    pg_task::set_queue(&db.pool, "long", QueueLimits::new().timeout(Duration::from_secs(60))).await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    // A step without a limit, and one whose code has 100 ms.
    enqueue(&db, "short", "NULL").await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Slow": {"how": "patient"}}}', 'long')"#).await?;
    db.until_done().await?;
    let mut lines = ledger.lines();
    lines.retain(|line| !line.ends_with("begins"));
    lines.sort();
    assert_eq!(lines, ["patient ends", "s cancelled"]);
    Ok(())
}

#[tokio::test]
async fn a_lost_worker_costs_an_attempt_of_the_queue_s_policy() -> Result<()> {
    let server =
        own_server("e2e-queue-defaults-lost", &["pg_task.worker_grace = 0", "pg_task.lost_limit = 0"])?;
    let db = Database::create(&server).await?;
    db.run(r#"SELECT pg_task.set_queue('q', retry => '{"limit": 2}')"#).await?;
    enqueue(&db, "q", "NULL").await?;
    for attempt in 1..=3 {
        let mut worker = sql_worker(&db).await?;
        claim(&db, &mut worker).await?;
        drop(worker);
        db.until(&format!("SELECT tried = {attempt} FROM pg_task.task")).await?;
        let parked = db.ask("SELECT count(*) FROM pg_task.failed").await?;
        assert_eq!(parked, if attempt == 3 { "1" } else { "0" }, "attempt {attempt}");
    }
    Ok(())
}

#[tokio::test]
async fn settings_hold_again_after_a_crash_and_on_a_promoted_standby() -> Result<()> {
    let server = own_server("e2e-queue-defaults-restart", &[])?;
    let db = Database::create(&server).await?;
    db.run("SELECT pg_task.set_queue('q', timeout => '5 s', retention => '0')").await?;
    server.stop(Stop::Immediate)?;
    server.start()?;
    let name = db.url.rsplit('/').next().unwrap_or_default();
    let db = Database::attach(&server, name).await?;
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    enqueue(&db, "q", "NULL").await?;
    assert_eq!(claim(&db, &mut sql_worker(&db).await?).await?, r#"{"timeout": 5.0}"#);
    db.run("DELETE FROM pg_task.task").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.history").await?, "0");

    let standby = server.standby("e2e-queue-defaults-standby")?;
    let copy = Database::attach(&standby, name).await?;
    server.stop(Stop::Fast)?;
    standby.promote()?;
    copy.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    enqueue(&copy, "q", "NULL").await?;
    assert_eq!(claim(&copy, &mut sql_worker(&copy).await?).await?, r#"{"timeout": 5.0}"#);
    Ok(())
}

#[tokio::test]
async fn a_queue_without_retention_leaves_no_history() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("no-history")?);
    db.run("SELECT pg_task.set_queue('quiet', retention => '0')").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    let notes = |queue: &str, key: &str| {
        format!(
            r#"SELECT pg_task.enqueue('{{"Test": {{"Note": {{"key": "{key}"}}}}}}', '{queue}') FROM generate_series(1, 100)"#
        )
    };
    let waits = r#"pg_task.schedule('{"A": {"B": 1}}', '2040-01-01', 'quiet')"#;
    db.run(&format!("SELECT {waits}")).await?;
    let id = db.ask("SELECT id FROM pg_task.task").await?;
    db.run(&format!("{}; {}", notes("quiet", "a"), notes("loud", "b"))).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    assert_eq!(
        db.ask("SELECT string_agg(DISTINCT queue, ',') || ' ' || count(*) FROM pg_task.history").await?,
        "loud 100"
    );
    // Whoever waits hears of the end, and that nothing is known of it.
    let (pool, waited) = (db.pool.clone(), id.clone());
    let waiting = tokio::spawn(async move {
        let handle = pg_task::Handle::new(&pool, waited.parse()?);
        anyhow::Ok(format!("{:?}", handle.result::<i32>().await?))
    });
    db.until("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%pg_task.wait(%' AND wait_event_type = 'Extension' AND datname = current_database()").await?;
    db.run(&format!("SELECT pg_task.cancel('{id}')")).await?;
    assert_eq!(waiting.await??, "Unknown");
    assert_eq!(db.ask(&format!("SELECT outcome FROM pg_task.wait('{id}')")).await?, "unknown");
    // By a role that may delete tasks and not read settings, beside settings that are taken back.
    db.run(&format!(
        "SELECT {waits}, pg_task.schedule('{{\"A\": {{\"B\": 1}}}}', '2040-01-01', 'loud') FROM generate_series(1, 2);
         DROP ROLE IF EXISTS deleter; CREATE ROLE deleter; GRANT USAGE ON SCHEMA pg_task TO deleter; GRANT DELETE, SELECT ON pg_task.task TO deleter"
    ))
    .await?;
    let mut session = db.session().await?;
    session
        .run("BEGIN; SELECT pg_task.set_queue('*', retention => '0'), pg_task.drop_queue('quiet'); DELETE FROM pg_task.task; ROLLBACK")
        .await?;
    session.run("SET ROLE deleter; DELETE FROM pg_task.task; RESET ROLE").await?;
    assert_eq!(
        db.ask("SELECT string_agg(DISTINCT queue, ',') || ' ' || count(*) FROM pg_task.history").await?,
        "loud 102"
    );
    db.run("DROP OWNED BY deleter; DROP ROLE deleter").await
}

#[tokio::test]
async fn a_queue_s_rows_go_after_its_own_time_and_others_stay() -> Result<()> {
    let db = database().await?;
    let rows = |queue: &str, part: u32, age: &str, count: u32| {
        format!(
            "INSERT INTO pg_task.history (id, ended_at, created_at, wakeup_at, attempts, priority, part, outcome, queue, step)
             SELECT pg_task.uuid7(), now() - interval '{age}', now(), now(), 1, 0, {part}, 'done', '{queue}', '{{\"A\": {{\"B\": 1}}}}' FROM generate_series(1, {count})"
        )
    };
    for part in [0, 3, 7] {
        // More than are deleted at a time.
        db.run(&rows("short", part, "2 hours", 7_000)).await?;
        db.run(&format!("{}; {}", rows("short", part, "5 min", 10), rows("long", part, "2 hours", 10)))
            .await?;
    }
    // One that somebody has locked is left for later and holds up nobody.
    let mut session = db.session().await?;
    session.run("BEGIN; SELECT FROM pg_task.history_3 WHERE queue = 'short' AND ended_at < now() - interval '1 hour' LIMIT 1 FOR UPDATE").await?;
    pg_task::set_queue(&db.pool, "short", QueueLimits::new().retention(Duration::from_secs(3_600))).await?;
    let left = "SELECT string_agg(queue || ' ' || count, ', ' ORDER BY queue) FROM (SELECT queue, count(*) FROM pg_task.history GROUP BY queue) AS x";
    db.until(&format!("SELECT ({left}) = 'long 30, short 31'")).await?;
    session.run("COMMIT").await?;
    // Nothing of the queue any more, and little of all others; its own setting holds for the queue.
    db.run("SELECT pg_task.set_queue('short', retention => '0')").await?;
    db.until(&format!("SELECT ({left}) = 'long 30'")).await?;
    db.run("SELECT pg_task.set_queue('*', retention => '1 hour'), pg_task.set_queue('long', retention => '1 day')").await?;
    db.run(&format!("{}; {}", rows("other", 0, "2 hours", 5), rows("other", 1, "1 min", 5))).await?;
    db.run("SELECT pg_task.set_queue('*', retention => '30 min')").await?;
    db.until(&format!("SELECT ({left}) = 'long 30, other 5'")).await?;
    assert_eq!(db.ask("SELECT coalesce(last_error, '') FROM pg_task.scheduler").await?, "");
    Ok(())
}

#[tokio::test]
async fn settings_that_are_none_are_refused_with_what_to_do() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    for (call, code, message) in [
        (r#"set_queue('q', retry => '{"limit": -1}')"#, "22023", "\"retry\" must be an object"),
        (r#"set_queue('q', retry => '{"limits": 1}')"#, "22023", "\"retry\" must be an object"),
        ("set_queue('q', retry => '[]')", "22023", "\"retry\" must be an object"),
        ("set_queue('q', timeout => '0')", "22023", "\"timeout (in milliseconds)\" must be between 1 and"),
        ("set_queue('q', timeout => '-1 s')", "22023", "\"timeout (in milliseconds)\" must be between 1 and"),
        ("set_queue('q', timeout => '11 years')", "22023", "\"timeout (in milliseconds)\""),
        ("set_queue('q', retention => '-1 us')", "22023", "\"retention\" must not be negative"),
        ("set_queue('q', retention => '8 days')", "22023", "604800 seconds, but is 691200 seconds"),
    ] {
        let refusal = session.refusal(&format!("SELECT pg_task.{call}")).await?;
        assert_eq!(refusal.code, code, "{call}: {refusal:?}");
        assert!(refusal.message.contains(message), "{call}: {refusal:?}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{call}: {refusal:?}");
    }
    let by_hand = |setting: &str| format!("INSERT INTO pg_task.queue (name, {setting}");
    for (sql, message) in [
        (by_hand("timeout) VALUES ('q', '0')"), "queue_timeout_is_in_range"),
        (by_hand("retention) VALUES ('q', '-1 day')"), "queue_retention_is_not_negative"),
        // At the commit.
        (by_hand(r#"retry) VALUES ('q', '{"delay": "soon"}')"#), "\"retry\" must be an object"),
    ] {
        let refusal = session.refusal(&sql).await?;
        assert!(refusal.message.contains(message), "{sql}: {refusal:?}");
    }
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.queue").await?, "0");
    let refused = pg_task::set_queue(&db.pool, "q", QueueLimits::new().timeout(Duration::ZERO)).await;
    assert!(refused.is_err_and(|error| format!("{error:?}").contains("timeout")));
    // Settings that only say something for tasks need no place in memory.
    session
        .run("INSERT INTO pg_task.queue (name, timeout) SELECT 'q' || n, '1 s' FROM generate_series(1, 2000) AS n")
        .await?;
    enqueue(&db, "q1999", "NULL").await?;
    assert_eq!(claim(&db, &mut sql_worker(&db).await?).await?, r#"{"timeout": 1.0}"#);
    Ok(())
}
