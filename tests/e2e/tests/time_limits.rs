//! How long a step may take, and until when a task is begun.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::shared_server;
use serde_json::json;

const NOTE: &str = r#"'{"Test": {"Note": {"key": "a"}}}'"#;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-time-limits")).await
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

#[tokio::test]
async fn a_step_whose_time_is_up_is_asked_to_end_and_then_dropped() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("slow")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    for how in ["ends", "fails", "never"] {
        db.run(&format!(r#"SELECT pg_task.enqueue('{{"Test": {{"Slow": {{"how": "{how}"}}}}}}')"#)).await?;
    }
    db.until("SELECT count(*) = 2 FROM pg_task.failed").await?;
    let errors = "SELECT string_agg(error, '; ' ORDER BY error) FROM pg_task.failed";
    assert_eq!(
        db.ask(errors).await?,
        "it took too long; the step did not end within 100ms, nor when it was asked to"
    );
    // What ended well when it was asked to is done.
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "2");
    let mut lines = ledger.lines();
    lines.sort();
    assert_eq!(lines, ["ends begins", "ends ends", "fails begins", "never begins"]);
    // The worker is as good as before.
    db.run(&format!("SELECT pg_task.enqueue({NOTE})")).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task").await
}

#[tokio::test]
async fn a_task_s_own_limit_holds_instead_of_its_step_s() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("own-limit")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    let patient = json!({ "Test": { "Slow": { "how": "patient" } } });
    let enqueue = pg_task::Enqueue::new();
    // Longer than the step's, as a number and as a text.
    enqueue.timeout(Duration::from_secs(60)).enqueue(&db.pool, &patient).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Slow": {"how": "patient"}}}', options => '{"timeout": "1 min"}')"#).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().iter().filter(|line| *line == "patient ends").count(), 2);
    // Shorter than that of a step that has none.
    let sleep = json!({ "Test": { "Sleep": { "key": "s", "millis": 600_000 } } });
    enqueue.timeout(Duration::from_millis(50)).enqueue(&db.pool, &sleep).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().last().map(String::as_str), Some("s cancelled"));
    Ok(())
}

#[tokio::test]
async fn a_task_is_not_begun_after_its_deadline() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("deadline")?);
    let enqueue = pg_task::Enqueue::new();
    let note = json!({ "Test": { "Note": { "key": "too late" } } });
    enqueue.deadline("2020-01-01T00:00:00Z".parse()?).enqueue(&db.pool, &note).await?;
    db.run(
        r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "in time"}}}', options => jsonb_build_object('deadline', now() + interval '1 day'))"#,
    )
    .await?;
    // One that is retried has a deadline too.
    db.run(
        r#"SELECT pg_task.enqueue('{"Test": {"Flaky": {"how": "after"}}}', options => jsonb_build_object('deadline', now() + interval '1 day'))"#,
    )
    .await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE tried = 1").await?;
    db.run(r#"UPDATE pg_task.task SET wakeup_at = now(), options = '{"deadline": "2020-01-01 00:00:00+01:00"}' WHERE tried = 1"#)
        .await?;
    db.until("SELECT count(*) = 2 FROM pg_task.failed").await?;
    let error = "SELECT count(*) FROM pg_task.failed WHERE error LIKE 'the task was not begun before its deadline, %'";
    assert_eq!(db.ask(error).await?, "2");
    let mut begun = ledger.lines();
    begun.sort();
    assert_eq!(begun, ["after 1", "in time"]);
    assert_eq!(db.ask("SELECT sum(tried) FROM pg_task.failed").await?, "1");
    // With another deadline it can be resumed.
    db.run(
        "UPDATE pg_task.task SET options = NULL WHERE step->'Test' ? 'Note'; SELECT pg_task.resume(id) FROM pg_task.failed WHERE step->'Test' ? 'Note'",
    )
    .await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    assert_eq!(ledger.lines().last().map(String::as_str), Some("too late"));
    Ok(())
}

#[tokio::test]
async fn a_task_whose_deadline_has_passed_goes_on_with_the_step_that_its_code_names_and_then_its_group()
-> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("deadline-undo")?);
    let flaky = |group: &str| {
        format!(
            r#"SELECT pg_task.enqueue('{{"Test": {{"Flaky": {{"how": "undo"}}}}}}', options => '{{"group": "{group}", "key": "k", "deadline": "2020-01-01T00:00:00Z"}}')"#
        )
    };
    let note = |key: &str, more: &str| {
        format!(
            r#"SELECT pg_task.enqueue('{{"Test": {{"Note": {{"key": "{key}"}}}}}}', options => '{{"group": "{}"{more}}}')"#,
            &key[..1]
        )
    };
    db.run(&flaky("a")).await?;
    db.run(&note("a 2", "")).await?;
    // The second of this group has a deadline too, and its code names nothing: parked, it blocks its group as every parked task does.
    db.run(&note("b 1", "")).await?;
    db.run(&note("b 2", r#", "deadline": "2020-01-01T00:00:00Z""#)).await?;
    db.run(&note("b 3", "")).await?;
    db.run("SELECT pg_task.set_queue('default', key_concurrency => 1)").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.until("SELECT count(*) = 2 AND count(error) = 1 FROM pg_task.task").await?;
    let mut lines = ledger.lines();
    assert!(
        lines[..].iter().position(|line| line == "a 2")
            > lines.iter().position(|line| line.starts_with("undone"))
    );
    lines.sort();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[2].starts_with("undone: the task was not begun before its deadline, 2020-01-01"),
        "{lines:?}"
    );
    assert_eq!(db.ask("SELECT head_state || ' ' || waiting FROM pg_task.groups").await?, "parked 1");
    db.run("SELECT pg_task.cancel(id) FROM pg_task.failed").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().last().map(String::as_str), Some("b 3"));
    Ok(())
}

#[tokio::test]
async fn nobody_waits_for_the_row_of_a_task_whose_deadline_has_passed() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("deadline-lock")?);
    db.run(&format!(
        r#"SELECT pg_task.enqueue({NOTE}, options => '{{"deadline": "2020-01-01T00:00:00Z"}}')"#
    ))
    .await?;
    let mut session = db.session().await?;
    session.run("BEGIN; SELECT FROM pg_task.task FOR UPDATE").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!("SELECT pg_task.enqueue({NOTE})")).await?;
    // The other one runs while the row is locked.
    db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.failed").await?, "0");
    session.run("COMMIT").await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    assert_eq!(ledger.lines(), ["a"]);
    Ok(())
}

#[tokio::test]
async fn limits_that_are_none_are_refused() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    for (option, message) in [
        (r#"{"timeout": 0}"#, "a number of seconds"),
        (r#"{"timeout": -1}"#, "a number of seconds"),
        (r#"{"timeout": "soon"}"#, "a number of seconds"),
        (r#"{"timeout": null}"#, "a number of seconds"),
        (r#"{"deadline": 1}"#, "a moment with its offset"),
        (r#"{"deadline": "tomorrow"}"#, "a moment with its offset"),
        // Whose noon it is nobody could say.
        (r#"{"deadline": "2030-01-31T12:00:00"}"#, "a moment with its offset"),
        (r#"{"deadline": "infinity"}"#, "a moment with its offset"),
        (r#"{"deadline": "2030-02-31T12:00:00Z"}"#, "a moment with its offset"),
    ] {
        let refusal =
            session.refusal(&format!("SELECT pg_task.enqueue({NOTE}, options => '{option}')")).await?;
        assert_eq!(refusal.code, "22023", "{option}: {refusal:?}");
        assert!(refusal.message.contains(message), "{option}: {refusal:?}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{option}: {refusal:?}");
    }
    Ok(())
}
