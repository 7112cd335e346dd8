//! The worker protocol of docs/protocol.md, spoken in plain SQL.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Session;
use pg_task_e2e::shared_server;

const WORKER: &str = "'0190aaaa-0000-7000-8000-00000000000a'";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-protocol")).await
}

#[tokio::test]
async fn a_claim_that_was_written_down_is_taken_back_when_its_worker_leaves_or_returns_it() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    for give_back in [
        format!("SELECT pg_task.leave({WORKER})"),
        format!(
            "SELECT pg_task.exchange({WORKER}, 0, ARRAY[c.id], ARRAY[c.fence], ARRAY[c.token], '{{5}}') FROM pg_task.claims() AS c"
        ),
        // It has forgotten what it holds: the answer of the last exchange was lost on its way.
        format!("SELECT pg_task.register({WORKER})"),
    ] {
        session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
        session.run(r#"SELECT pg_task.enqueue('{"A":{"B":1}}')"#).await?;
        db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange({WORKER}, 1) WHERE event = 0")).await?;
        db.until("SELECT count(*) = 1 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
        session.run(&give_back).await?;
        assert_eq!(
            session.ask("SELECT (tried, fence, locked_by, locked_at) FROM pg_task.task").await?,
            "(0,0,,)",
            "{give_back}"
        );
        assert_eq!(session.ask("SELECT count(*) FROM pg_task.running").await?, "0", "{give_back}");
        session.run("DELETE FROM pg_task.task").await?;
        session.run(&format!("SELECT pg_task.leave({WORKER})")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn more_queues_than_memory_has_names_for_are_served_one_after_the_other() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    let done = format!(
        "WITH task AS (SELECT array_agg(id) AS ids, array_agg(fence) AS fences, array_agg(token) AS tokens
            FROM pg_task.exchange({WORKER}, 100) WHERE event = 0)
         SELECT count(*) FROM task, pg_task.exchange({WORKER}, 0, ids, fences, tokens)"
    );
    // There is place for 1024 names.
    for round in 0..4 {
        session
            .run(&format!(
                "SELECT pg_task.enqueue_many(ARRAY['{{\"A\":{{\"B\":1}}}}'::jsonb], 'queue-{round}-' || n) FROM generate_series(1, 400) AS n"
            ))
            .await?;
        db.until(&format!("SELECT ({done}) >= 0 AND NOT EXISTS (SELECT FROM pg_task.task)")).await?;
    }
    // A worker that names queues gets those, whatever names were given up for theirs.
    session.run(&format!("SELECT pg_task.leave({WORKER})")).await?;
    let names: Vec<String> = (0..32).map(|n| format!("mine-{n}")).collect();
    session.run(&format!("SELECT pg_task.register({WORKER}, queues => '{{{}}}')", names.join(","))).await?;
    assert_eq!(
        session.ask("SELECT array_to_string(queues, ',') FROM pg_task.workers").await?,
        names.join(",")
    );
    Ok(())
}

/// Waits until the session waits for a lock.
async fn until_blocked(db: &Database, pid: &str) -> Result<()> {
    db.until(&format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)")).await
}

/// Enqueues a task of this number and lets the worker claim it: its id, fence and token, as arrays for the next call.
async fn claimed(db: &Database, session: &mut Session, number: u32) -> Result<String> {
    session.run(&format!(r#"SELECT pg_task.enqueue('{{"A": {{"B": {number}}}}}')"#)).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    session
        .ask(&format!(
            "SELECT format('ARRAY[%L]::uuid[], ARRAY[%s]::bigint[], ARRAY[%s]::bigint[]', id, fence, token)
             FROM pg_task.exchange({WORKER}, 1) WHERE event = 0"
        ))
        .await
}

/// The same arrays as arguments of `register`.
fn named(held: &str) -> String {
    let names = ["held_ids", "held_fences", "held_tokens"];
    let arrays = held.split(", ARRAY").map(|array| array.trim_start_matches("ARRAY"));
    names
        .iter()
        .zip(arrays)
        .map(|(name, array)| format!("{name} => ARRAY{array}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[tokio::test]
async fn a_call_that_names_an_older_registration_brings_its_results_and_gets_nothing() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let register = |held: &str| format!("SELECT registration FROM pg_task.register({WORKER}{held})");
    let old = session.ask(&register("")).await?;
    let held = claimed(&db, &mut session, 1).await?;
    let held_named = format!(", {}", named(&held));
    let new = session.ask(&register(&held_named)).await?;
    assert_ne!(old, new);
    session.run(r#"SELECT pg_task.enqueue('{"A": {"B": 2}}')"#).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    let next = r#"'{1}', ARRAY['{"A": {"C": 1}}'::jsonb], NULL, NULL"#;
    let answer = session
        .ask(&format!(
            "SELECT string_agg(event::text, ',') FROM pg_task.exchange({WORKER}, 5, {held}, {next}, {old})"
        ))
        .await?;
    // Not registered, and neither the next step (1) nor a task (0); but the result is written.
    assert_eq!(answer, "5");
    assert_eq!(
        session.ask("SELECT count(*) FROM pg_task.task WHERE step->'A' ? 'C' AND fence = 1").await?,
        "1"
    );
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.running").await?, "0");
    db.until("SELECT ready = 2 FROM pg_task.scheduler").await?;
    let given =
        format!("SELECT count(*) FROM pg_task.exchange({WORKER}, 5, registration => {new}) WHERE event = 0");
    assert_eq!(session.ask(&given).await?, "2");
    Ok(())
}

#[tokio::test]
async fn a_call_that_is_under_way_while_its_worker_registers_again_gets_no_task_and_keeps_no_next_step()
-> Result<()> {
    for holds in [true, false] {
        let db = database().await?;
        let (mut call, mut session, mut user) =
            (db.session().await?, db.session().await?, db.session().await?);
        session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
        let held = claimed(&db, &mut session, 1).await?;
        // Another task is ready, which the call would be given.
        session.run(r#"SELECT pg_task.enqueue('{"A": {"B": 2}}')"#).await?;
        db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
        user.run("BEGIN; SELECT FROM pg_task.task WHERE step->'A' @> '{\"B\": 1}' FOR UPDATE").await?;
        let pid = call.ask("SELECT pg_backend_pid()").await?;
        let next = r#"'{1}', ARRAY['{"A": {"C": 1}}'::jsonb]"#;
        let sql = format!(
            "SELECT coalesce(string_agg(event::text, ',' ORDER BY event), 'nothing') FROM pg_task.exchange({WORKER}, 5, {held}, {next})"
        );
        let call = tokio::spawn(async move { call.ask(&sql).await });
        until_blocked(&db, &pid).await?;
        let held = if holds { format!(", {}", named(&held)) } else { String::new() };
        session.run(&format!("SELECT pg_task.register({WORKER}{held})")).await?;
        user.run("ROLLBACK").await?;
        let answer = call.await??;
        assert!(!answer.contains('0'), "it was given a task that its worker never hears of: {answer}");
        // The step is written, and everything is free for the worker as it is registered now.
        assert_eq!(
            session.ask("SELECT count(*) FROM pg_task.task WHERE step->'A' ? 'C' AND fence = 1").await?,
            "1"
        );
        assert_eq!(
            session.ask("SELECT count(*) FROM pg_task.running").await?,
            "0",
            "the worker holds what it does not know of"
        );
        db.until("SELECT ready = 2 FROM pg_task.scheduler").await?;
        let given = format!("SELECT count(*) FROM pg_task.exchange({WORKER}, 5) WHERE event = 0");
        assert_eq!(session.ask(&given).await?, "2");
    }
    Ok(())
}
