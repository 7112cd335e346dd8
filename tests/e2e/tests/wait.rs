//! Waiting for the end of a task, and what it returned.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use pg_task::Handle;
use pg_task::Outcome;
use pg_task_e2e::Database;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;
use tokio::task::JoinHandle;
use uuid::Uuid;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-wait")).await
}

fn options<'a>() -> WorkerOptions<'a> {
    WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
}

/// What `pg_task.wait` returns, as text.
fn wait(id: &str, timeout: &str) -> String {
    format!("SELECT concat_ws('|', outcome, result, error) FROM pg_task.wait('{id}', '{timeout}')")
}

/// A session that waits; returns when it sleeps.
async fn waiter(db: &Database, id: &str) -> Result<JoinHandle<Result<String>>> {
    let (mut session, sql) = (db.session().await?, wait(id, "1 hour"));
    let pid = session.ask("SELECT pg_backend_pid()").await?;
    let waiting = tokio::spawn(async move { session.ask(&sql).await });
    db.until(&format!("SELECT wait_event = 'Extension' FROM pg_stat_activity WHERE pid = {pid}")).await?;
    Ok(waiting)
}

async fn asleep(db: &Database) -> Result<String> {
    db.ask(r#"SELECT pg_task.delay('{"Test":{"Return":{"value":{"a":[1,null,"ü"]}}}}', '1 day')"#).await
}

#[tokio::test]
async fn every_end_wakes_those_who_wait_for_it_and_says_what_it_was() -> Result<()> {
    let db = database().await?;
    let _worker = db.known_worker(options()).await?;
    let change = |sql: &str, id: &str| sql.replace("$1", &format!("'{id}'"));
    for (sql, expected) in [
        ("UPDATE pg_task.task SET wakeup_at = now() WHERE id = $1", r#"done|{"a": [1, null, "ü"]}"#),
        (
            r#"UPDATE pg_task.task SET wakeup_at = now(), step = '{"Test":{"Note":{"key":"a"}}}' WHERE id = $1"#,
            "done",
        ),
        ("SELECT pg_task.cancel($1)", "cancelled"),
        ("DELETE FROM pg_task.task WHERE id = $1", "cancelled"),
        ("DELETE FROM pg_task.task WHERE id = $1 OR queue = 'crowd'", "cancelled"),
        ("UPDATE pg_task.task SET error = 'for a reason' WHERE id = $1", "parked|for a reason"),
        (
            r#"UPDATE pg_task.task SET wakeup_at = now(), step = '{"Test":{"Note":[]}}' WHERE id = $1"#,
            "parked|can't deserialize",
        ),
    ] {
        db.run("SELECT pg_task.delay('{\"A\":{\"B\":1}}', '1 day', 'crowd') FROM generate_series(1, 1000)")
            .await?;
        let id = asleep(&db).await?;
        let other = asleep(&db).await?;
        let (one, two) = (waiter(&db, &id).await?, waiter(&db, &id).await?);
        let third = waiter(&db, &other).await?;
        db.run(&change(sql, &id)).await?;
        for waiting in [one, two] {
            let found = waiting.await??;
            assert!(found.starts_with(expected), "{sql}: {found}");
        }
        assert!(!third.is_finished(), "{sql}");
        db.run(&change("SELECT pg_task.cancel($1)", &other)).await?;
        third.await??;
        // Whoever comes later finds the same.
        let late = db.ask(&wait(&id, "0")).await?;
        assert!(late.starts_with(expected.split('|').next().unwrap_or_default()), "{late}");
        db.run("DELETE FROM pg_task.task").await?;
    }
    let id = asleep(&db).await?;
    assert_eq!(db.ask(&wait(&id, "1 ms")).await?, "timed out");
    assert_eq!(db.ask(&wait("00000000-0000-0000-0000-000000000001", "1 hour")).await?, "unknown");
    // What is rolled back wakes nobody for good.
    let waiting = waiter(&db, &id).await?;
    db.run(&change("BEGIN; SELECT pg_task.cancel($1); ROLLBACK", &id)).await?;
    assert!(!waiting.is_finished());
    db.run(&change("BEGIN; SAVEPOINT a; SELECT pg_task.cancel($1); RELEASE a; COMMIT", &id)).await?;
    assert_eq!(waiting.await??, "cancelled");
    Ok(())
}

#[tokio::test]
async fn a_task_that_ends_at_once_is_never_missed() -> Result<()> {
    let db = database().await?;
    let _worker = db.known_worker(options()).await?;
    // Each that is missed would take half a minute until the next look.
    let all = async {
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let mut session = db.session().await?;
            waiting.push(tokio::spawn(async move {
                for round in 0..40 {
                    let id = session
                        .ask(&format!(r#"SELECT pg_task.delay('{{"Test":{{"Return":{{"value":{round}}}}}}}', '{round} ms')"#))
                        .await?;
                    assert_eq!(session.ask(&wait(&id, "1 hour")).await?, format!("done|{round}"));
                }
                anyhow::Ok(())
            }));
        }
        for waiting in waiting {
            waiting.await??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.context("an end was missed")?
}

#[tokio::test]
async fn a_handle_gives_the_result_as_the_program_s_own_type() -> Result<()> {
    let db = database().await?;
    let _worker = db.known_worker(options()).await?;
    let task = async |sql: &str| anyhow::Ok(Handle::new(&db.pool, db.ask(sql).await?.parse::<Uuid>()?));
    let one = task(r#"SELECT pg_task.enqueue('{"Test":{"Return":{"value":[3,4]}}}')"#).await?;
    assert_eq!(one.result::<Vec<u64>>().await?, Outcome::Done(Some(vec![3, 4])));
    assert_eq!(one.result_within::<(u8, u8)>(Duration::ZERO).await?, Outcome::Done(Some((3, 4))));
    let error = one.result::<String>().await.expect_err("it is no text");
    assert!(
        matches!(error, pg_task::Error::DeserializeResult(..)) && error.to_string().contains("[3, 4]"),
        "{error}"
    );
    let none = task(r#"SELECT pg_task.enqueue('{"Test":{"Chain":{"key":"c","left":3}}}')"#).await?;
    assert_eq!(none.result::<u64>().await?, Outcome::Done(None));
    let late = task(r#"SELECT pg_task.delay('{"Test":{"Return":{"value":1}}}', '1 day')"#).await?;
    assert_eq!(late.result_within::<u64>(Duration::from_millis(10)).await?, Outcome::TimedOut);
    db.run(&format!("SELECT pg_task.cancel('{}')", late.id())).await?;
    assert_eq!(late.result::<u64>().await?, Outcome::Cancelled);
    let parked = task(r#"SELECT pg_task.enqueue('{"Test":{"Panic":null}}')"#).await?;
    assert!(matches!(parked.result::<u64>().await?, Outcome::Parked(error) if error.contains("not ready")));
    assert_eq!(Handle::new(&db.pool, Uuid::nil()).result::<u64>().await?, Outcome::Unknown);
    // A step in a transaction of its own.
    db.run("CREATE TABLE effect (key text, seq bigint)").await?;
    let exact =
        task(r#"SELECT pg_task.enqueue('{"Test":{"Exact":{"key":"e","left":1,"how":"fails"}}}')"#).await?;
    assert_eq!(exact.result::<String>().await?, Outcome::Done(Some("e".to_owned())));
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_waited_for_is_refused_with_what_to_do() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let id = asleep(&db).await?;
    let late = wait(&id, "1 hour");
    for (sql, code) in [
        (wait(&id, "-1 ms"), "22023"),
        (wait(&id, "2 days"), "22023"),
        ("SELECT pg_task.wait(NULL)".to_owned(), "22004"),
        (format!("SELECT pg_task.wait('{id}', NULL)"), "22004"),
        (format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {late}"), "25001"),
        (format!("BEGIN; UPDATE pg_task.task SET priority = 1; {late}"), "25001"),
        (r#"BEGIN; SELECT pg_task.wait(pg_task.enqueue('{"A":{"B":1}}'))"#.to_owned(), "25001"),
    ] {
        let refusal = session.refusal(&sql).await?;
        assert_eq!(refusal.code, code, "{sql}: {refusal:?}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{sql}: {refusal:?}");
        session.run("ROLLBACK").await?;
    }
    session.run(&format!("BEGIN; SELECT 1; {}; COMMIT", wait(&id, "1 ms"))).await?;
    // Without history nobody knows what a task that is gone was.
    let name = db.ask("SELECT current_database()").await?;
    db.run(&format!("ALTER DATABASE {name} SET pg_task.history = off")).await?;
    let waiting = waiter(&db, &id).await?;
    db.session().await?.run(&format!("SELECT pg_task.cancel('{id}')")).await?;
    assert_eq!(waiting.await??, "unknown");
    Ok(())
}

#[tokio::test]
async fn a_result_that_is_too_large_parks_its_task_and_fails_a_finish() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let worker = "0190aaaa-0000-7000-8000-00000000000b";
    session.run(&format!("SELECT pg_task.register('{worker}')")).await?;
    let large = "to_jsonb((SELECT string_agg(md5(n::text), '') FROM generate_series(1, 40000) AS n))";
    let claim = async |session: &mut Session| {
        db.run(r#"SELECT pg_task.enqueue('{"A":{"B":1}}')"#).await?;
        db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
        session
            .ask(&format!("SELECT format('ARRAY[''%s''::uuid], ARRAY[%s::bigint], ARRAY[%s::bigint]', id, fence, token) FROM pg_task.exchange('{worker}', 1) WHERE event = 0"))
            .await
    };
    let first = claim(&mut session).await?;
    session
        .run(&format!("SELECT pg_task.exchange('{worker}', 0, {first}, ARRAY[0::smallint], ARRAY[{large}])"))
        .await?;
    let error = db.ask("SELECT error FROM pg_task.task").await?;
    assert!(error.starts_with("the result was not stored: the result has 1"), "{error}");
    db.run("DELETE FROM pg_task.task").await?;
    let second = claim(&mut session).await?.replace("ARRAY[", "").replace(']', "");
    let refusal =
        session.refusal(&format!("SELECT pg_task.finish('{worker}', {second}, step => {large})")).await?;
    assert_eq!((&*refusal.code, refusal.hint.contains("table of your own")), ("54000", true), "{refusal:?}");
    assert_eq!(
        session.ask(&format!("SELECT pg_task.finish('{worker}', {second}, step => '7')")).await?,
        "true"
    );
    assert_eq!(db.ask("SELECT result FROM pg_task.history WHERE outcome = 'done'").await?, "7");
    // Of results that come together each finds its own row.
    db.run(r#"SELECT pg_task.enqueue(jsonb_build_object('A', jsonb_build_object('B', n))) FROM generate_series(1, 100) AS n"#).await?;
    db.until("SELECT ready = 100 FROM pg_task.scheduler").await?;
    session
        .run(&format!(
            "SELECT pg_task.exchange('{worker}', 0, array_agg(id), array_agg(fence), array_agg(token), NULL, array_agg(step #> '{{A,B}}')) FROM pg_task.exchange('{worker}', 100) WHERE event = 0"
        ))
        .await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.history WHERE result = step #> '{A,B}'").await?, "100");
    Ok(())
}

#[tokio::test]
async fn only_so_many_sessions_wait_at_once_and_one_that_ends_makes_room() -> Result<()> {
    let server = own_server("e2e-wait-places", &[])?;
    let db = Database::create(&server).await?;
    let id = asleep(&db).await?;
    let mut waiting = Vec::new();
    for _ in 0..256 {
        let (mut session, sql) = (db.session().await?, wait(&id, "1 hour"));
        waiting.push(tokio::spawn(async move { session.ask(&sql).await }));
    }
    let sleepers = "FROM pg_stat_activity WHERE wait_event = 'Extension' AND query LIKE '%pg_task.wait(%'";
    db.until(&format!("SELECT count(*) = 256 {sleepers}")).await?;
    let mut last = db.session().await?;
    let refusal = last.refusal(&wait(&id, "1 hour")).await?;
    assert_eq!((&*refusal.code, refusal.message.contains("256")), ("53400", true), "{refusal:?}");
    // Cancelled, terminated, or told: each gives its place back.
    db.run(&format!("SELECT pg_cancel_backend(pid) FROM (SELECT pid {sleepers} LIMIT 100) AS x")).await?;
    db.until(&format!("SELECT count(*) = 156 {sleepers}")).await?;
    db.run(&format!("SELECT pg_terminate_backend(pid) FROM (SELECT pid {sleepers} LIMIT 100) AS x")).await?;
    db.until(&format!("SELECT count(*) = 56 {sleepers}")).await?;
    for _ in 0..200 {
        let (mut session, sql) = (db.session().await?, wait(&id, "1 hour"));
        waiting.push(tokio::spawn(async move { session.ask(&sql).await }));
    }
    db.until(&format!("SELECT count(*) = 256 {sleepers}")).await?;
    db.run(&format!("SELECT pg_task.cancel('{id}')")).await?;
    let mut told = 0;
    for waiting in waiting {
        told += usize::from(waiting.await?.is_ok_and(|found| found == "cancelled"));
    }
    assert_eq!(told, 256);
    assert_eq!(last.ask(&wait(&id, "1 hour")).await?, "cancelled");
    Ok(())
}

#[tokio::test]
async fn the_right_to_wait_is_enough_and_is_not_a_producer_s() -> Result<()> {
    let db = database().await?;
    let id = asleep(&db).await?;
    db.run("CREATE ROLE wait_producer; SELECT pg_task.grant_produce('wait_producer')").await?;
    let mut session = db.session().await?;
    session.run("SET ROLE wait_producer").await?;
    assert_eq!(session.refusal(&wait(&id, "0")).await?.code, "42501");
    db.run("GRANT EXECUTE ON FUNCTION pg_task.wait(uuid, interval) TO wait_producer").await?;
    assert_eq!(session.ask(&wait(&id, "0")).await?, "timed out");
    db.run(&format!("SELECT pg_task.cancel('{id}')")).await?;
    assert_eq!(session.ask(&wait(&id, "0")).await?, "cancelled");
    assert_eq!(session.refusal("TABLE pg_task.history").await?.code, "42501");
    Ok(())
}
