//! Settings of single tasks: the column `options`.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::shared_server;
use serde_json::Value;
use serde_json::json;

const STEP: &str = r#"'{"Test": {"Meta": {"again": true}}}'"#;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-options")).await
}

#[tokio::test]
async fn options_come_with_the_task_however_it_was_enqueued() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("options")?);
    let enqueue = pg_task::Enqueue::new();
    let meta = |name: &str| json!({ "by": name }).as_object().cloned().unwrap_or_default();
    let step: Value = serde_json::from_str(STEP.trim_matches('\''))?;
    let soon = std::time::Duration::from_micros(1);
    enqueue.meta(&meta("enqueue")).enqueue(&db.pool, &step).await?;
    enqueue.meta(&meta("delay")).delay(&db.pool, &step, soon).await?;
    enqueue.meta(&meta("schedule")).schedule(&db.pool, &step, std::time::SystemTime::now().into()).await?;
    enqueue.meta(&meta("many")).enqueue_many(&db.pool, &[&step, &step]).await?;
    let mut connection = db.pool.acquire().await?;
    enqueue.meta(&meta("copy")).enqueue_copy(&mut connection, [&step]).await?;
    drop(connection);
    for call in [
        format!(r#"SELECT pg_task.enqueue({STEP}, options => '{{"meta": {{"by": "sql"}}}}')"#),
        format!(
            r#"INSERT INTO pg_task.task (step, options) VALUES ({STEP}, '{{"meta": {{"by": "insert"}}}}')"#
        ),
        // Through the executor, because of what the user has added.
        format!(
            r#"ALTER TABLE pg_task.task ADD CONSTRAINT users CHECK (priority < 100);
               SELECT pg_task.enqueue({STEP}, options => '{{"meta": {{"by": "executor"}}}}'),
                      pg_task.enqueue_many(ARRAY[{STEP}::jsonb], options => '{{"meta": {{"by": "executor many"}}}}')"#
        ),
        format!("SELECT pg_task.enqueue({STEP}), pg_task.enqueue({STEP}, options => '{{}}')"),
    ] {
        db.run(&call).await?;
    }
    let _worker = db
        .known_worker(WorkerOptions {
            ledger: Some(ledger.path()),
            ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
        })
        .await?;
    db.until_done().await?;
    let mut seen = ledger.lines();
    seen.sort();
    let mut expected = Vec::new();
    for by in
        ["copy", "delay", "enqueue", "executor", "executor many", "insert", "many", "many", "schedule", "sql"]
    {
        expected.extend([json!({ "by": by }).to_string(), json!({ "by": by }).to_string()]);
    }
    expected.extend(["null"; 4].map(str::to_owned));
    expected.sort();
    assert_eq!(seen, expected);
    Ok(())
}

#[tokio::test]
async fn options_that_are_none_are_refused_and_the_error_lists_those_that_are() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.enqueue({STEP})")).await?;
    let large = r#"jsonb_build_object('meta', jsonb_build_object('a', repeat('x', 9000)))"#;
    for (options, code, message) in [
        ("'[]'", "22023", "\"options\" must be an object"),
        ("'null'", "22023", "\"options\" must be an object"),
        ("'\"a\"'", "22023", "\"options\" must be an object"),
        (r#"'{"Meta": {}}'"#, "22023", "there is no option \"Meta\""),
        (r#"'{"meta": 1}'"#, "22023", "the option \"meta\" must be an object"),
        (r#"'{"tags": "a"}'"#, "22023", "the option \"tags\" must be an array of texts"),
        (r#"'{"tags": ["a", 1]}'"#, "22023", "the option \"tags\" must be an array of texts"),
        (r#"'{"tags": ["a", ""]}'"#, "22023", "the option \"tags\" must be an array of texts"),
        (r#"'{"tags": null}'"#, "22023", "the option \"tags\" must be an array of texts"),
        (r#"'{"traceparent": 1}'"#, "22023", "the option \"traceparent\" must be a W3C trace context"),
        (
            r#"'{"traceparent": "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"}'"#,
            "22023",
            "the option \"traceparent\" must be a W3C trace context",
        ),
        (r#"'{"meta": {"a": 1e999}}'"#, "22023", "\"options\" must be an object"),
        (large, "54000", "more than the limit of 8192"),
    ] {
        for call in [
            format!("SELECT pg_task.enqueue({STEP}, options => {options})"),
            format!("SELECT pg_task.enqueue_many(ARRAY[{STEP}::jsonb], options => {options})"),
            format!("INSERT INTO pg_task.task (step, options) VALUES ({STEP}, {options})"),
            format!("UPDATE pg_task.task SET options = {options}"),
        ] {
            let refusal = session.refusal(&call).await?;
            assert_eq!(refusal.code, code, "{call}: {refusal:?}");
            assert!(refusal.message.contains(message), "{call}: {refusal:?}");
            assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{call}: {refusal:?}");
        }
    }
    let unknown =
        session.refusal(&format!(r#"SELECT pg_task.enqueue({STEP}, options => '{{"x": 1}}')"#)).await?;
    assert!(unknown.hint.contains("\"meta\""), "{unknown:?}");
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.task WHERE options IS NULL").await?, "1");
    Ok(())
}

#[tokio::test]
async fn a_change_of_options_leaves_a_run_that_is_under_way_alone() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("options-change")?);
    let _worker = db
        .known_worker(WorkerOptions {
            ledger: Some(ledger.path()),
            ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
        })
        .await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Sleep": {"key": "s", "millis": 600000}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
    let before = db.ask("SELECT fence || ' ' || updated_at FROM pg_task.task").await?;
    db.run(r#"UPDATE pg_task.task SET options = '{"meta": {"a": 1}}'"#).await?;
    assert_eq!(db.ask("SELECT fence || ' ' || updated_at FROM pg_task.task").await?, before);
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.running").await?, "1");
    // Its result is accepted: a cancel is noticed by it, and it is not run twice.
    db.run("SELECT pg_task.cancel(id) FROM pg_task.task").await?;
    db.until("SELECT count(*) = 0 FROM pg_task.running").await?;
    assert_eq!(ledger.lines(), ["s begins", "s cancelled"]);
    Ok(())
}
