//! Keys: how many tasks of each run at once, and turns between them.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
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
    Database::create(shared_server("e2e-keys")).await
}

/// Enqueues steps of each key that sleep, in turns.
async fn enqueue_sleeps(db: &Database, queue: &str, keys: u32, count: u32, millis: u32) -> Result<()> {
    let step = format!(r#"{{"Test":{{"Sleep":{{"key":"k# task","millis":{millis}}}}}}}"#);
    db.run(&format!(
        "SELECT pg_task.enqueue(replace('{step}', '#', k::text)::jsonb, '{queue}', options => jsonb_build_object('key', 'k' || k))
         FROM generate_series(1, {count}) AS n, generate_series(1, {keys}) AS k"
    ))
    .await
}

/// Enqueues notes of a key, in one transaction.
async fn enqueue_notes(db: &Database, key: &str, count: u32) -> Result<()> {
    db.run(&format!(
        "SELECT pg_task.enqueue_many(array_agg('{}'::jsonb), options => '{{\"key\":\"{key}\"}}') FROM generate_series(1, {count})",
        format_args!(r#"{{"Test":{{"Note":{{"key":"{key}"}}}}}}"#)
    ))
    .await
}

/// How many sleeps of a key were under way at once, at most; of all for an empty name.
fn most_at_once(ledger: &Ledger, key: &str) -> i32 {
    let (mut now, mut most) = (0, 0);
    for line in ledger.lines().iter().filter(|line| line.starts_with(key)) {
        now += if line.ends_with("begins") { 1 } else { -1 };
        most = most.max(now);
    }
    most
}

fn count(ledger: &Ledger, key: &str) -> usize {
    ledger.lines().iter().filter(|line| *line == key).count()
}

#[tokio::test]
async fn each_key_has_its_limit_with_several_workers_and_uses_it_to_the_full() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("keys")?);
    let limits = pg_task::QueueLimits::new().key_concurrency(2);
    pg_task::set_queue(&db.pool, "q", limits).await?;
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    enqueue_sleeps(&db, "q", 6, 15, 20).await?;
    db.until("SELECT bool_and(running <= 2 AND key_concurrency = 2) AND count(*) > 3 FROM pg_task.keys")
        .await?;
    db.until_done().await?;
    for key in 1..=6 {
        assert_eq!(most_at_once(&ledger, &format!("k{key} ")), 2);
    }
    ensure!(most_at_once(&ledger, "") > 4, "keys hold each other up");
    // Another queue has no such limit, and the same names are other keys there.
    enqueue_sleeps(&db, "other", 1, 12, 2_000).await?;
    db.until("SELECT running = 12 FROM pg_task.keys WHERE queue = 'other' AND key = 'k1'").await?;
    // A limit that is lowered takes nothing back; one that is set counts what runs.
    db.run("SELECT pg_task.set_queue('other', key_concurrency => 3)").await?;
    enqueue_sleeps(&db, "other", 1, 6, 10).await?;
    db.until_done().await?;
    assert_eq!(db.ask("SELECT failures + rescans FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn the_backlog_of_one_key_does_not_hold_up_another() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("keys-turns")?);
    // More than fits into memory, which holds 4,096.
    enqueue_notes(&db, "a", 20_000).await?;
    let one = WorkerOptions { concurrency: 4, ..options(&ledger) };
    let _worker = db.known_worker(one).await?;
    db.until("SELECT count(*) < 19900 FROM pg_task.task").await?;
    for _ in 0..5 {
        let before = ledger.lines().len();
        enqueue_notes(&db, "b", 10).await?;
        db.until("SELECT NOT EXISTS (SELECT FROM pg_task.keys WHERE key = 'b')").await?;
        let lines = ledger.lines();
        let is_b = |line: &String| line == "b";
        let first = lines[before..].iter().position(is_b).context("b has run")?;
        let last = lines[before..].iter().rposition(is_b).context("b has run")?;
        ensure!(last - first < 200, "between the ten of b came {} of a", last - first - 9);
    }
    ensure!(db.ask("SELECT count(*) > 1000 FROM pg_task.task").await? == "t", "too few to say anything");
    db.until_done().await?;
    assert_eq!((count(&ledger, "a"), count(&ledger, "b")), (20_000, 50));
    Ok(())
}

#[tokio::test]
async fn tasks_of_a_key_that_sleep_fail_or_have_several_steps_are_not_forgotten() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("keys-steps")?);
    db.run("SELECT pg_task.set_queue('default', key_concurrency => 1)").await?;
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    db.run(
        "SELECT pg_task.delay(
            jsonb_build_object('Test', jsonb_build_object('Turn', jsonb_build_object(
                'key', format('k%s %s', k, n), 'left', n % 3, 'fails', CASE WHEN n % 4 = 0 THEN 1 ELSE 0 END, 'millis', 1))),
            CASE WHEN n % 5 = 3 THEN interval '50 ms' ELSE interval '0' END,
            priority => n % 3, options => jsonb_build_object('key', 'k' || k))
         FROM generate_series(1, 20) AS n, generate_series(1, 5) AS k",
    )
    .await?;
    db.until_done().await?;
    for key in 1..=5 {
        let mut under_way = false;
        for line in ledger.lines().iter().filter(|line| line.starts_with(&format!("k{key} "))) {
            // A step that leads to the next one notes no end.
            let begins = line.ends_with("begins");
            ensure!(begins || under_way, "{line}");
            under_way = begins;
        }
        assert_eq!(
            ledger
                .lines()
                .iter()
                .filter(|line| line.starts_with(&format!("k{key} ")) && line.ends_with("ends"))
                .count(),
            20
        );
    }
    assert_eq!(db.ask("SELECT rescans FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn tasks_that_wait_for_their_group_do_not_hold_up_their_key() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("keys-groups")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"INSERT INTO pg_task.task (step, error, options) VALUES ('{"Test":{"Note":{"key":"x"}}}', 'parked', '{"group":"g","key":"k"}')"#)
        .await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"waits"}}}', options => '{"group":"g","key":"k"}') FROM generate_series(1, 300)"#)
        .await?;
    enqueue_notes(&db, "k", 100).await?;
    db.until("SELECT count(*) = 301 FROM pg_task.task").await?;
    assert_eq!((count(&ledger, "k"), count(&ledger, "waits")), (100, 0));
    db.run("UPDATE pg_task.task SET error = NULL WHERE error IS NOT NULL").await?;
    db.until_done().await?;
    assert_eq!(count(&ledger, "waits"), 300);
    Ok(())
}

#[tokio::test]
async fn what_is_unknown_to_the_worker_does_not_hold_up_its_key() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("keys-gone")?);
    let enqueue = async |step: &str, count: u32| {
        db.run(&format!(
            r#"SELECT pg_task.enqueue('{{"Test":{{"{step}":{{"key":"k"}}}}}}', options => '{{"key":"k"}}') FROM generate_series(1, {count})"#
        ))
        .await
    };
    enqueue("Unheard", 40).await?;
    enqueue("Note", 20).await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.until("SELECT count(*) = 40 FROM pg_task.task").await?;
    assert_eq!(count(&ledger, "k"), 20);
    Ok(())
}

#[tokio::test]
async fn what_is_deleted_moved_parked_or_freed_of_its_key_does_not_hold_up_others() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("keys-moved")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    // While it is paused the first are ready; then they go, by each of the ways in which a task can.
    db.run("SELECT pg_task.pause_queue('default')").await?;
    enqueue_notes(&db, "k", 100).await?;
    db.until("SELECT ready = 16 FROM pg_task.scheduler").await?;
    let first = "id IN (SELECT id FROM pg_task.task WHERE queue = 'default' AND error IS NULL AND options IS NOT NULL ORDER BY wakeup_at, id LIMIT 16)";
    db.run(&format!("DELETE FROM pg_task.task WHERE {first}")).await?;
    db.run(&format!("UPDATE pg_task.task SET queue = 'elsewhere' WHERE {first}")).await?;
    db.run(&format!("UPDATE pg_task.task SET error = 'parked' WHERE {first}")).await?;
    db.run(&format!("UPDATE pg_task.task SET options = NULL WHERE {first}")).await?;
    db.run("SELECT pg_task.resume_queue('default')").await?;
    db.until("SELECT count(*) = 16 FROM pg_task.task").await?;
    assert_eq!(count(&ledger, "k"), 100 - 32);
    assert_eq!(db.ask("SELECT rescans FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn the_limit_holds_over_a_crash_of_the_server_and_over_killed_workers() -> Result<()> {
    // Long enough for a worker to come back.
    let server = own_server("e2e-keys-crash", &["pg_task.settle_time = 5s"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("keys-crash")?);
    db.run("SELECT pg_task.set_queue('q', key_concurrency => 1)").await?;
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    enqueue_sleeps(&db, "q", 4, 12, 150).await?;
    let grows = async |by: usize| {
        let before = ledger.lines().len();
        let more = async {
            while ledger.lines().len() < before + by {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), more).await.context("nothing goes on")
    };
    grows(20).await?;
    server.stop(Stop::Immediate)?;
    server.start()?;
    grows(20).await?;
    for key in 1..=4 {
        assert_eq!(most_at_once(&ledger, &format!("k{key} ")), 1);
    }
    db.until_done().await?;
    Ok(())
}

#[tokio::test]
async fn a_key_is_a_name_and_tasks_without_one_have_no_entry_in_its_index() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    for (call, code, message) in [
        (
            "SELECT pg_task.set_queue('*', key_concurrency => 1)",
            "22023",
            "\"key_concurrency\" cannot be set for all queues together",
        ),
        (
            "SELECT pg_task.set_queue('a', key_concurrency => 0)",
            "22023",
            "\"key_concurrency\" must be between 1 and 2147483647, not 0",
        ),
        ("INSERT INTO pg_task.queue (name, key_concurrency) VALUES ('*', 1)", "23514", ""),
        (
            r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"a"}}}', options => '{"key":7}')"#,
            "22023",
            "the option \"key\" must be a text of 1 to 200 bytes",
        ),
    ] {
        let refusal = session.refusal(call).await?;
        assert_eq!(refusal.code, code, "{call}");
        ensure!(
            message.is_empty() || (refusal.message == message && !refusal.hint.is_empty()),
            "{refusal:?}"
        );
    }
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"a"}}}', options => CASE WHEN n % 2 = 0 THEN '{"meta":{}}'::jsonb END) FROM generate_series(1, 1000) AS n"#)
        .await?;
    assert_eq!(db.ask("SELECT pg_relation_size('pg_task.task_key')").await?, "8192", "its first page alone");
    let step = serde_json::json!({ "Test": { "Note": { "key": "a" } } });
    pg_task::Enqueue::new().queue("q").key("ann").enqueue(&db.pool, &step).await?;
    assert_eq!(
        db.ask("SELECT concat_ws(' ', queue, key, due, running) FROM pg_task.keys").await?,
        "q ann 1 0"
    );
    Ok(())
}
