//! One task changed by an operator: another step or payload, another time to resume, a copy.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::shared_server;
use serde_json::json;
use uuid::Uuid;

const ID: &str = "'00000000-0000-0000-0000-000000000001'";
const WORKER: &str = "'00000000-0000-0000-0000-0000000000aa'";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-edit")).await
}

async fn insert(db: &Database, step: &str, error: &str) -> Result<()> {
    db.run(&format!(
        "INSERT INTO pg_task.task (id, queue, priority, step, tried, error, options) VALUES ({ID}, 'q', 3, '{step}', 2, {error}, '{{\"meta\": {{}}}}')"
    ))
    .await
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

#[tokio::test]
async fn a_parked_task_gets_another_payload_stays_parked_and_goes_on_when_it_is_resumed() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("payload")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    insert(&db, r#"{"Test":{"Note":{"key":7}}}"#, "'invalid type'").await?;
    let edit = format!(r#"SELECT pg_task.edit({ID}, payload => '{{"key": "mended"}}')"#);
    assert_eq!(db.ask(&edit).await?, "t");
    assert_eq!(
        db.ask("SELECT step #>> '{Test,Note,key}' || ' ' || tried || ' ' || error FROM pg_task.task").await?,
        "mended 2 invalid type"
    );
    // Once more it changes nothing.
    let fence = db.ask("SELECT fence FROM pg_task.task").await?;
    assert_eq!(db.ask(&edit).await?, "t");
    assert_eq!(db.ask("SELECT fence FROM pg_task.task").await?, fence);
    assert_eq!(db.ask(&format!("SELECT pg_task.resume({ID})")).await?, "t");
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["mended"]);
    assert_eq!(db.ask(&edit).await?, "f");
    Ok(())
}

#[tokio::test]
async fn a_program_edits_resumes_later_clones_and_cancels() -> Result<()> {
    let db = database().await?;
    insert(&db, r#"{"A":{"B":1}}"#, "'broke'").await?;
    let (id, nobody) = (Uuid::from_u128(1), Uuid::from_u128(99));
    assert!(pg_task::edit_payload(&db.pool, id, &json!(null)).await?);
    assert_eq!(db.ask("SELECT step FROM pg_task.task").await?, r#"{""A"": {""B"": null}}"#);
    assert!(!pg_task::edit_payload(&db.pool, nobody, &json!(1)).await?);
    let at = "2033-03-03T03:03:03Z".parse()?;
    assert!(pg_task::resume_at(&db.pool, id, at).await?);
    assert!(!pg_task::resume_at(&db.pool, id, at).await?, "it is not parked any more");
    assert!(!pg_task::resume(&db.pool, id).await?);
    assert_eq!(
        db.ask("SELECT concat_ws(' ', tried, error IS NULL, wakeup_at = '2033-03-03 03:03:03Z') FROM pg_task.task").await?,
        "0 t t"
    );
    let copy = pg_task::clone_task(&db.pool, id).await?.expect("there is such a task");
    assert_ne!(copy, id);
    assert_eq!(pg_task::clone_task(&db.pool, nobody).await?, None);
    assert_eq!(
        db.ask(&format!("SELECT concat_ws(' ', queue, priority, step, options, fence, tried, wakeup_at <= now(), error IS NULL) FROM pg_task.task WHERE id = '{copy}'")).await?,
        r#"q 3 {""A"": {""B"": null}} {""meta"": {}} 0 0 t t"#
    );
    assert!(pg_task::cancel(&db.pool, id).await? && !pg_task::cancel(&db.pool, id).await?);
    Ok(())
}

#[tokio::test]
async fn a_clone_of_a_parked_task_is_run_and_the_parked_one_stays() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("clone")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    insert(&db, r#"{"Test":{"Note":{"key":"again"}}}"#, "'broke'").await?;
    db.run(&format!("SELECT pg_task.clone({ID}), pg_task.clone({ID}, '2033-03-03')")).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task").await?;
    assert_eq!(ledger.lines(), ["again"]);
    assert_eq!(
        db.ask(
            "SELECT string_agg(coalesce(error, wakeup_at::date::text), ' ' ORDER BY id) FROM pg_task.task"
        )
        .await?,
        "broke 2033-03-03"
    );
    Ok(())
}

#[tokio::test]
async fn a_running_task_is_left_alone_unless_it_is_interrupted_and_then_runs_the_new_step() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("interrupt")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!(r#"INSERT INTO pg_task.task (id, step) VALUES ({ID}, '{{"Test":{{"Sleep":{{"key":"old","millis":600000}}}}}}')"#)).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.running WHERE token IS NOT NULL").await?;
    let note = r#"'{"Test":{"Note":{"key":"new"}}}'"#;
    let mut session = db.session().await?;
    let refusal = session.refusal(&format!("SELECT pg_task.edit({ID}, {note})")).await?;
    assert_eq!((&*refusal.code, &*refusal.message), ("55006", "a worker runs the task"));
    assert!(refusal.hint.contains("interrupt => true") && !refusal.detail.is_empty(), "{refusal:?}");
    // The same step is no change: nothing is interrupted.
    session.run("SELECT pg_task.edit(id, step, interrupt => true) FROM pg_task.task").await?;
    session.run("BEGIN; SAVEPOINT s").await?;
    session
        .run(&format!("SELECT pg_task.edit({ID}, {note}, interrupt => true); ROLLBACK TO s; COMMIT"))
        .await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
    assert_eq!(ledger.lines(), ["old begins"]);
    assert_eq!(session.ask(&format!("SELECT pg_task.edit({ID}, {note}, interrupt => true)")).await?, "true");
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["old begins", "old cancelled", "new"]);
    Ok(())
}

#[tokio::test]
async fn a_new_step_is_checked_as_one_that_is_enqueued() -> Result<()> {
    let db = database().await?;
    insert(&db, r#"{"A":{"B":1}}"#, "'broke'").await?;
    let mut session = db.session().await?;
    for (arguments, code, message) in [
        (ID.to_owned(), "22023", "pass either \"step\" or \"payload\""),
        (format!("{ID}, '{{}}', '{{}}'"), "22023", "pass either \"step\" or \"payload\""),
        ("NULL, payload => '1'".to_owned(), "22004", "\"id\" must not be NULL"),
        (format!("{ID}, payload => '1', interrupt => NULL"), "22004", "\"interrupt\" must not be NULL"),
        (format!("{ID}, '[]'"), "22023", "a step must be an object with one key"),
        (format!(r#"{ID}, '{{"A": {{"B": 1, "C": 2}}}}'"#), "22023", "a step must be an object with one key"),
        (format!("{ID}, payload => to_jsonb(repeat('x', 9000000))"), "54000", "the step has 9"),
    ] {
        let refusal = session.refusal(&format!("SELECT pg_task.edit({arguments})")).await?;
        assert_eq!(refusal.code, code, "{arguments:.100}: {refusal:?}");
        assert!(refusal.message.starts_with(message), "{arguments:.100}: {refusal:?}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
    }
    for (call, code) in [
        (format!("resume_at({ID}, NULL)"), "22004"),
        ("resume_at(NULL, now())".to_owned(), "22004"),
        (format!("resume_at({ID}, 'infinity')"), "22008"),
        ("clone(NULL)".to_owned(), "22004"),
        (format!("clone({ID}, '-infinity')"), "22008"),
    ] {
        assert_eq!(session.refusal(&format!("SELECT pg_task.{call}")).await?.code, code, "{call}");
    }
    assert_eq!(session.ask("SELECT step::text || fence FROM pg_task.task").await?, r#"{"A": {"B": 1}}0"#);
    Ok(())
}

#[tokio::test]
async fn a_task_is_running_from_the_moment_it_is_handed_out_until_its_worker_has_left() -> Result<()> {
    let db = database().await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    insert(&db, r#"{"A":{"B":1}}"#, "NULL").await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    worker.run(&format!("SELECT pg_task.exchange({WORKER}, 1)")).await?;
    let mut session = db.session().await?;
    assert_eq!(session.refusal(&format!("SELECT pg_task.edit({ID}, payload => '2')")).await?.code, "55006");
    worker.run(&format!("SELECT pg_task.leave({WORKER})")).await?;
    assert_eq!(session.ask(&format!("SELECT pg_task.edit({ID}, payload => '2')")).await?, "true");
    Ok(())
}
