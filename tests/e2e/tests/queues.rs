//! Settings of queues: a pause, limits and rates hold from the commit that sets them, with any number of workers and over restarts.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

const WORKER: &str = "'00000000-0000-0000-0000-0000000000aa'";

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-queues")).await
}

/// Enqueues steps that sleep, named `queue-1` and so on.
async fn enqueue_sleeps(db: &Database, queue: &str, count: u32, millis: u32) -> Result<()> {
    let step = format!(r#"{{"Test":{{"Sleep":{{"key":"{queue}-#","millis":{millis}}}}}}}"#);
    db.run(&format!(
        "SELECT pg_task.enqueue(replace('{step}', '#', n::text)::jsonb, '{queue}') FROM generate_series(1, {count}) AS n"
    ))
    .await
}

async fn enqueue_notes(db: &Database, queue: &str, count: u32) -> Result<()> {
    let step = format!(r#"{{"Test":{{"Note":{{"key":"{queue}-#"}}}}}}"#);
    db.run(&format!(
        "SELECT pg_task.enqueue(replace('{step}', '#', n::text)::jsonb, '{queue}') FROM generate_series(1, {count}) AS n"
    ))
    .await
}

/// How many sleeps of a queue were under way at once, at most; all for an empty name.
fn most_at_once(ledger: &Ledger, queue: &str) -> i32 {
    let (mut now, mut most) = (0, 0);
    for line in ledger.lines().iter().filter(|line| line.starts_with(queue)) {
        now += if line.ends_with("begins") { 1 } else { -1 };
        most = most.max(now);
    }
    most
}

/// How many lines of the ledger are a queue's.
fn count(ledger: &Ledger, queue: &str) -> usize {
    ledger.lines().iter().filter(|line| line.starts_with(queue)).count()
}

/// The queues of the tasks that an `exchange` call gives.
async fn exchange(session: &mut Session, want: u32) -> Result<String> {
    session
        .ask(&format!(
            "SELECT coalesce(string_agg(queue, ' ' ORDER BY queue), '') FROM pg_task.exchange({WORKER}, {want}) WHERE event = 0"
        ))
        .await
}

#[tokio::test]
async fn from_the_commit_of_a_pause_on_nothing_of_the_queue_is_handed_out_and_the_rest_is() -> Result<()> {
    let db = database().await?;
    let (mut worker, mut operator) = (db.session().await?, db.session().await?);
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue_notes(&db, "a", 4).await?;
    enqueue_notes(&db, "b", 4).await?;
    db.until("SELECT ready = 8 FROM pg_task.scheduler").await?;
    operator.run("BEGIN; SELECT pg_task.pause_queue('a')").await?;
    assert_eq!(exchange(&mut worker, 1).await?, "a", "it is not paused before the commit");
    operator.run("COMMIT").await?;
    assert_eq!(exchange(&mut worker, 2).await?, "b b");
    // What runs goes on and counts; it shows.
    assert_eq!(
        db.ask("SELECT concat(due, running, paused_at IS NOT NULL) FROM pg_task.queues WHERE queue = 'a'")
            .await?,
        "41t"
    );
    db.until("SELECT EXISTS (SELECT FROM pg_task.problems WHERE problem = 'queue paused' AND detail LIKE '3 tasks%\"a\"%')")
        .await?;
    assert_eq!(operator.ask("SELECT pg_task.pause_queue('a')").await?, "false");
    // A pause of all; each is ended by itself.
    operator.run("SELECT pg_task.pause_queue('*'), pg_task.resume_queue('a')").await?;
    assert_eq!(exchange(&mut worker, 9).await?, "");
    assert_eq!(operator.ask("SELECT pg_task.resume_queue('*')").await?, "true");
    assert_eq!(exchange(&mut worker, 9).await?, "a a a b b");
    assert_eq!(operator.ask("SELECT count(*) FROM pg_task.queue").await?, "0", "nothing is set any more");
    Ok(())
}

#[tokio::test]
async fn what_a_savepoint_or_a_rollback_takes_back_never_holds() -> Result<()> {
    let db = database().await?;
    let (mut worker, mut operator) = (db.session().await?, db.session().await?);
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue_notes(&db, "a", 3).await?;
    db.until("SELECT ready = 3 FROM pg_task.scheduler").await?;
    operator.run("BEGIN; SELECT pg_task.pause_queue('a'); ROLLBACK").await?;
    assert_eq!(exchange(&mut worker, 1).await?, "a");
    operator.run("SELECT pg_task.pause_queue('a')").await?;
    operator
        .run("BEGIN; SAVEPOINT s; SELECT pg_task.resume_queue('a'); ROLLBACK TO s; SELECT 1; COMMIT")
        .await?;
    operator.run("BEGIN; SELECT pg_task.resume_queue('a'), pg_task.pause_queue('a'); COMMIT").await?;
    assert_eq!(exchange(&mut worker, 1).await?, "");
    // By hand, renamed and deleted.
    operator.run("UPDATE pg_task.queue SET name = 'other'").await?;
    assert_eq!(exchange(&mut worker, 1).await?, "a");
    operator.run("UPDATE pg_task.queue SET name = 'a'").await?;
    assert_eq!(exchange(&mut worker, 1).await?, "");
    operator.run("TRUNCATE pg_task.queue").await?;
    db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange({WORKER}, 1) WHERE event = 0")).await
}

#[tokio::test]
async fn under_load_a_paused_queue_comes_to_rest_and_goes_on_where_it_stood() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("pause")?);
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    db.run(&format!(
        "SELECT pg_task.enqueue_many(array_agg(replace('{}', '#', n::text)::jsonb), 'a') FROM generate_series(1, 20000) AS n",
        r##"{"Test":{"Chain":{"key":"a-#","left":1}}}"##
    ))
    .await?;
    db.until("SELECT count(*) < 20000 FROM pg_task.task").await?;
    db.run("SELECT pg_task.pause_queue('a')").await?;
    db.until("SELECT running = 0 FROM pg_task.queues WHERE queue = 'a'").await?;
    let (left, lines) = (db.ask("SELECT count(*) FROM pg_task.task").await?, ledger.lines().len());
    assert_ne!(left, "0", "it was paused too late to say anything");
    enqueue_notes(&db, "b", 500).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'b')").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, left);
    assert_eq!(ledger.lines().len(), lines + 500);
    db.run("SELECT pg_task.resume_queue('a')").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 40_500, "each step ran once");
    Ok(())
}

#[tokio::test]
async fn a_limit_is_exact_with_several_workers_and_is_used_to_the_full() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("limit")?);
    db.run("SELECT pg_task.set_queue('a', concurrency => 3), pg_task.set_queue('*', concurrency => 5)")
        .await?;
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(db.known_worker(options(&ledger)).await?);
    }
    enqueue_sleeps(&db, "a", 60, 15).await?;
    enqueue_sleeps(&db, "b", 60, 15).await?;
    db.until_done().await?;
    assert_eq!((count(&ledger, "a"), count(&ledger, "b")), (120, 120));
    assert_eq!((most_at_once(&ledger, "a"), most_at_once(&ledger, "")), (3, 5));
    Ok(())
}

#[tokio::test]
async fn a_limit_that_changes_holds_for_what_is_handed_out_from_then_on() -> Result<()> {
    let db = database().await?;
    let (mut worker, mut operator) = (db.session().await?, db.session().await?);
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue_notes(&db, "a", 20).await?;
    db.until("SELECT ready = 20 FROM pg_task.scheduler").await?;
    // What runs already counts when the limit is set.
    assert_eq!(exchange(&mut worker, 2).await?, "a a");
    operator.run("SELECT pg_task.set_queue('a', concurrency => 3)").await?;
    assert_eq!(exchange(&mut worker, 9).await?, "a");
    operator.run("SELECT pg_task.set_queue('a', concurrency => 5)").await?;
    assert_eq!(exchange(&mut worker, 9).await?, "a a");
    operator.run("SELECT pg_task.set_queue('a', concurrency => 4)").await?;
    // A call that brings a result takes over its place, but one that is too many is not taken over.
    let finish = format!(
        "WITH done AS (SELECT c.id, c.fence, c.token FROM pg_task.claims() AS c ORDER BY c.token LIMIT 1)
         SELECT count(*) FROM pg_task.exchange({WORKER}, 9, ARRAY(SELECT id FROM done), ARRAY(SELECT fence FROM done),
             ARRAY(SELECT token FROM done), '{{0}}') WHERE event = 0"
    );
    assert_eq!(worker.ask(&finish).await?, "0");
    assert_eq!(db.ask("SELECT running FROM pg_task.queues WHERE queue = 'a'").await?, "4");
    assert_eq!(worker.ask(&finish).await?, "1");
    operator.run("SELECT pg_task.drop_queue('a')").await?;
    assert_eq!(exchange(&mut worker, 99).await?.split(' ').count(), 14);
    Ok(())
}

#[tokio::test]
async fn a_rate_wakes_idle_workers_for_each_token_and_never_gives_more() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("rate")?);
    // Its heartbeats come every 20 seconds: what runs before was woken.
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run("SELECT pg_task.set_queue('a', rate => 10, per => '1 s', burst => 1)").await?;
    let set_at = db.ask("SELECT updated_at FROM pg_task.queue").await?;
    enqueue_notes(&db, "a", 12).await?;
    enqueue_notes(&db, "b", 50).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'b')").await?;
    db.until_done().await?;
    // True whatever the machine does: the first token comes after 100 ms, each other one 100 ms later.
    assert_eq!(
        db.ask(&format!("SELECT clock_timestamp() >= '{set_at}'::timestamptz + interval '1.2 s'")).await?,
        "t"
    );
    assert_eq!((count(&ledger, "a"), count(&ledger, "b")), (12, 50));

    // A rate for which nothing comes soon says when; another rate holds at once.
    db.run("SELECT pg_task.set_queue('a', rate => 1, per => '2 hours')").await?;
    enqueue_notes(&db, "a", 3).await?;
    db.until("SELECT opens_at > now() + interval '1 hour' FROM pg_task.queues WHERE queue = 'a'").await?;
    // A token may have come under the old rate while nothing was left to do: it is kept.
    assert!((12..=13).contains(&count(&ledger, "a")));
    db.run("SELECT pg_task.set_queue('a', rate => 1000)").await?;
    db.until_done().await
}

#[tokio::test]
async fn a_crash_keeps_a_pause_and_what_still_runs_counts_against_the_limit() -> Result<()> {
    crash("e2e-queues-crash", "SELECT pg_task.set_queue('a', concurrency => 1)").await
}

#[tokio::test]
async fn what_still_runs_after_a_crash_counts_against_the_limit_of_its_step() -> Result<()> {
    crash("e2e-steps-crash", "SELECT pg_task.limit_step('Test/Sleep', 1)").await
}

/// Crashes the server while one of three tasks runs of which only one may.
async fn crash(name: &str, limit: &str) -> Result<()> {
    let server = own_server(name, &[])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new(name)?);
    db.run(limit).await?;
    db.run("SELECT pg_task.pause_queue('b')").await?;
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    enqueue_sleeps(&db, "a", 3, 4_000).await?;
    enqueue_notes(&db, "b", 5).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
    server.stop(Stop::Immediate)?;
    server.start()?;
    // The worker has lived through it, with the step that it runs.
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'a')").await?;
    assert_eq!((count(&ledger, "a"), most_at_once(&ledger, "a")), (6, 1), "{:?}", ledger.lines());
    assert_eq!(count(&ledger, "b"), 0);
    // The scheduler alone is lost.
    let pid = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until(&format!("SELECT pid <> {pid} AND state = 'running' FROM pg_task.scheduler")).await?;
    enqueue_notes(&db, "c", 5).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'c')").await?;
    assert_eq!(count(&ledger, "b"), 0);
    db.run("SELECT pg_task.resume_queue('b')").await?;
    db.until_done().await
}

#[tokio::test]
async fn a_step_has_its_limit_in_all_queues_and_others_pass_what_waits() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("step")?);
    db.run("SELECT pg_task.limit_step('Test/Sleep', 3)").await?;
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(db.known_worker(options(&ledger)).await?);
    }
    enqueue_sleeps(&db, "a", 40, 15).await?;
    enqueue_sleeps(&db, "b", 40, 15).await?;
    enqueue_notes(&db, "a", 100).await?;
    db.until_done().await?;
    assert_eq!((count(&ledger, "a"), count(&ledger, "b")), (180, 80));
    let at_once = |ledger: &Ledger| {
        let lines = ledger.lines().into_iter().filter(|line| line.contains(' '));
        let steps = lines.map(|line| if line.ends_with("begins") { 1 } else { -1 });
        steps
            .scan(0, |now, step| {
                *now += step;
                Some(*now)
            })
            .max()
    };
    assert_eq!(at_once(&ledger), Some(3));

    // Long ones wait for the others, which nothing holds back; the view tells, and that is no problem.
    enqueue_sleeps(&db, "c", 8, 600_000).await?;
    db.until("SELECT running = 3 AND waiting = 5 FROM pg_task.step_limits").await?;
    enqueue_notes(&db, "c", 10).await?;
    db.until("SELECT count(*) = 8 FROM pg_task.task").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.problems").await?, "0");
    db.run("SELECT pg_task.limit_step('Test/Sleep', 5)").await?;
    db.until("SELECT running = 5 AND waiting = 3 FROM pg_task.step_limits").await?;
    db.run("BEGIN; SELECT pg_task.limit_step('Test/Sleep', 7); ROLLBACK").await?;
    db.run("SELECT pg_task.limit_step('Test/Sleep')").await?;
    db.until("SELECT count(*) = 8 FROM pg_task.running").await?;
    // A limit that comes later counts what runs.
    db.run("SELECT pg_task.limit_step('Test/Sleep', 8)").await?;
    assert_eq!(db.ask("SELECT pg_task.step_running('Test/Sleep')").await?, "8");
    db.run("SELECT pg_task.cancel(t.id) FROM pg_task.task AS t").await?;
    db.until("SELECT running = 0 FROM pg_task.step_limits").await
}

#[tokio::test]
async fn a_next_step_with_a_limit_waits_for_its_place() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("next")?);
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    db.run("SELECT pg_task.limit_step('Test/Chain', 1)").await?;
    db.run(&format!(
        "SELECT pg_task.enqueue_many(array_agg(replace('{}', '#', n::text)::jsonb)) FROM generate_series(1, 20) AS n",
        r##"{"Test":{"Chain":{"key":"a-#","left":4}}}"##
    ))
    .await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 100);
    db.until("SELECT running = 0 AND waiting = 0 FROM pg_task.step_limits").await
}

#[tokio::test]
async fn wrong_settings_are_refused_with_what_to_do() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let long = "q".repeat(64);
    for (sql, code, message) in [
        ("SELECT pg_task.set_queue(NULL)", "22004", "\"name\" must not be NULL"),
        ("SELECT pg_task.pause_queue(NULL)", "22004", "\"name\" must not be NULL"),
        ("SELECT pg_task.resume_queue('')", "22023", "1 to 63 bytes, not 0"),
        (&*format!("SELECT pg_task.drop_queue('{long}')"), "22023", "1 to 63 bytes, not 64"),
        ("SELECT pg_task.set_queue('a', concurrency => 0)", "22023", "\"concurrency\" must be between 1 and"),
        ("SELECT pg_task.set_queue('a', rate => 0)", "22023", "\"rate\" must be between 1 and 1000000"),
        ("SELECT pg_task.set_queue('a', rate => 1, per => NULL)", "22004", "\"per\" must not be NULL"),
        ("SELECT pg_task.set_queue('a', rate => 1, per => '31 days')", "22023", "\"per (in milliseconds)\""),
        ("SELECT pg_task.set_queue('a', rate => 1, per => '0')", "22023", "\"per (in milliseconds)\""),
        ("SELECT pg_task.set_queue('a', rate => 1, burst => -1)", "22023", "\"burst\" must be between"),
        ("SELECT pg_task.set_queue('a', burst => 1)", "22023", "\"burst\" needs a \"rate\""),
        ("SELECT pg_task.limit_step(NULL, 1)", "22004", "\"step\" must not be NULL"),
        ("SELECT pg_task.limit_step('Sleep', 1)", "22023", "is not the name of a step"),
        ("SELECT pg_task.limit_step('Test/Sleep', 0)", "22023", "\"concurrency\" must be between 1 and"),
        (
            "INSERT INTO pg_task.step_limit (step, concurrency) SELECT 'T/' || n, 1 FROM generate_series(1, 65) AS n",
            "53400",
            "no place for the limit",
        ),
        ("INSERT INTO pg_task.queue (name, rate) VALUES ('a', 1)", "23514", "queue_rate_is_whole"),
        (
            "INSERT INTO pg_task.queue (name, concurrency) VALUES ('a', 0)",
            "23514",
            "queue_concurrency_is_positive",
        ),
        (
            "INSERT INTO pg_task.queue (name, paused_at) SELECT 'q' || n, now() FROM generate_series(1, 600) AS n;",
            "53400",
            "no place for the settings",
        ),
    ] {
        let refusal = session.refusal(sql).await.with_context(|| sql.to_owned())?;
        ensure!(refusal.code == code && refusal.message.contains(message), "{sql}: {refusal:?}");
        ensure!(
            code.starts_with("23") || !(refusal.detail.is_empty() || refusal.hint.is_empty()),
            "{sql}: {refusal:?}"
        );
    }
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.queue, pg_task.step_limit").await?, "0");
    // As many as there is place for, one more, and the scheduler serves what has no settings.
    session.run("INSERT INTO pg_task.queue (name, paused_at) SELECT 'q' || n, now() FROM generate_series(1, 512) AS n").await?;
    assert_eq!(session.refusal("SELECT pg_task.pause_queue('one more')").await?.code, "53400");
    let ledger = Ledger::new("many")?;
    let _worker = db.known_worker(options(&ledger)).await?;
    enqueue_notes(&db, "q7", 1).await?;
    enqueue_notes(&db, "free", 1).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'free')").await?;
    assert_eq!(ledger.lines(), ["free-1"]);
    Ok(())
}

#[tokio::test]
async fn a_row_that_no_constraint_has_seen_does_not_stop_the_scheduler() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("bad-row")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(
        "ALTER TABLE pg_task.queue DROP CONSTRAINT queue_rate_is_in_range, DROP CONSTRAINT queue_rate_interval_is_in_range,
             DROP CONSTRAINT queue_burst_is_in_range, DROP CONSTRAINT queue_concurrency_is_positive;
         INSERT INTO pg_task.queue (name, rate, rate_interval, burst, concurrency) VALUES ('odd', -7, '-1 year', -3, -1)",
    )
    .await?;
    let pid = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until(&format!("SELECT pid <> {pid} AND state = 'running' FROM pg_task.scheduler")).await?;
    // A table that cannot be read: the last settings go on.
    db.run("SELECT pg_task.pause_queue('a')").await?;
    db.run("ALTER TABLE pg_task.queue RENAME COLUMN rate TO pace").await?;
    db.run("DELETE FROM pg_task.queue WHERE name = 'odd'").await?;
    db.until("SELECT last_error LIKE '%rate%' FROM pg_task.scheduler").await?;
    enqueue_notes(&db, "a", 1).await?;
    enqueue_notes(&db, "b", 1).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'b')").await?;
    assert_eq!(ledger.lines(), ["b-1"]);
    db.run("ALTER TABLE pg_task.queue RENAME COLUMN pace TO rate").await?;
    db.run("SELECT pg_task.resume_queue('a')").await?;
    db.until_done().await
}

#[tokio::test]
async fn a_lost_worker_gives_its_place_back_and_a_late_one_does_not_take_two() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("lost")?);
    db.run("SELECT pg_task.set_queue('a', concurrency => 1)").await?;
    let first = db.known_worker(options(&ledger)).await?;
    enqueue_sleeps(&db, "a", 1, 600_000).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    enqueue_notes(&db, "a", 3).await?;
    let _second = db.known_worker(options(&ledger)).await?;
    db.until("SELECT ready = 3 FROM pg_task.scheduler").await?;
    first.signal("KILL")?;
    db.run("DELETE FROM pg_task.task WHERE step->'Test' ? 'Sleep'").await?;
    tokio::time::timeout(Duration::from_secs(60), db.until_done()).await??;
    assert_eq!(db.ask("SELECT sum(running) FROM pg_task.queue_states()").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_worker_takes_its_queues_in_the_proportion_of_their_weights() -> Result<()> {
    let db = database().await?;
    let mut worker = db.session().await?;
    enqueue_notes(&db, "a", 100).await?;
    enqueue_notes(&db, "b", 100).await?;
    enqueue_notes(&db, "c", 100).await?;
    db.until("SELECT ready = 300 FROM pg_task.scheduler").await?;
    let register =
        |more: &str| format!("SELECT pg_task.register({WORKER}, queues => '{{a,b}}', weights => {more})");
    for (weights, code, message) in [
        ("'{1}'", "22023", "\"weights\" has 1 elements, \"queues\" has 2"),
        ("'{1,0}'", "22023", "\"weights\" must be between 1 and 1000"),
        ("'{1,65537}'", "22023", "\"weights\" must be between 1 and 1000"),
        ("'{1,NULL}'", "22004", "\"weights\" has a NULL at position 2"),
    ] {
        let refusal = worker.refusal(&register(weights)).await?;
        ensure!(refusal.code == code && refusal.message.contains(message), "{weights}: {refusal:?}");
    }
    worker.run(&register("'{1,4}'")).await?;
    let given = |want: u32| {
        format!(
            "SELECT concat(count(*) FILTER (WHERE queue = 'a'), ' ', count(*) FILTER (WHERE queue = 'b'), ' ', count(*))
             FROM pg_task.exchange({WORKER}, {want}) WHERE event = 0"
        )
    };
    assert_eq!(worker.ask(&given(50)).await?, "10 40 50");
    assert_eq!(worker.ask(&given(25)).await?, "5 20 25");
    assert_eq!(worker.ask(&given(200)).await?, "85 40 125", "what one queue does not need goes to the other");

    // The client's form.
    let ledger = Ledger::new("weights")?;
    let _worker = db.known_worker(WorkerOptions { queues: "c=2,d=1", ..options(&ledger) }).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'c')").await?;
    assert_eq!(count(&ledger, "c"), 100);
    Ok(())
}

#[tokio::test]
async fn with_ageing_what_waits_long_enough_runs_before_better_priorities() -> Result<()> {
    let server = own_server("e2e-ageing", &[])?;
    let db = Database::create(&server).await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    let step = |key: &str| format!(r#"'{{"Test":{{"Note":{{"key":"{key}"}}}}}}'"#);
    db.run(&format!(
        "SELECT pg_task.schedule({}, now() - interval '1 hour', priority => 5), pg_task.enqueue({}), pg_task.schedule({}, now() - interval '6 minutes', priority => 5)",
        step("old"),
        step("new"),
        step("younger")
    ))
    .await?;
    db.until("SELECT ready = 3 FROM pg_task.scheduler").await?;
    let next =
        format!("SELECT step->'Test'->'Note'->>'key' FROM pg_task.exchange({WORKER}, 1) WHERE event = 0");
    let release = format!(
        "SELECT count(*) FROM pg_task.claims() AS c, pg_task.exchange({WORKER}, 0, ARRAY[c.id], ARRAY[c.fence], ARRAY[c.token], '{{5}}')"
    );
    assert_eq!(worker.ask(&next).await?, "new");
    worker.run(&release).await?;
    db.until("SELECT ready = 3 FROM pg_task.scheduler").await?;
    // A step of priority for ten minutes: an hour makes good five steps, six minutes do not.
    db.run("ALTER SYSTEM SET pg_task.priority_ageing = '10 min'").await?;
    db.run("SELECT pg_reload_conf()").await?;
    // The scheduler brings it to memory in its own time.
    let mut first = worker.ask(&next).await?;
    for _ in 0..1_000 {
        if first == "old" {
            break;
        }
        worker.run(&release).await?;
        db.until("SELECT ready = 3 FROM pg_task.scheduler").await?;
        first = worker.ask(&next).await?;
    }
    assert_eq!(first, "old");
    assert_eq!(worker.ask(&next).await?, "new");
    assert_eq!(worker.ask(&next).await?, "younger");
    Ok(())
}
