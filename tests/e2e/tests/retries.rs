//! When a step that failed is tried again, and what is kept of its failures.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Result;
use pg_task::RetryPolicy;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;
use serde_json::json;

const WORKER: &str = "'00000000-0000-0000-0000-000000000077'";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-retries")).await
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

fn flaky(how: &str) -> String {
    format!(r#"'{{"Test": {{"Flaky": {{"how": "{how}"}}}}}}'"#)
}

#[tokio::test]
async fn the_last_failures_stay_in_the_row_across_retries_and_resume() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("history")?);
    let worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Fail": {"until_attempt": 99}}}')"#).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    let seen = "SELECT string_agg(e.attempt::text, ',' ORDER BY e.at, e.attempt) || ' ' || count(DISTINCT e.worker) || ' ' || bool_and(e.parked)
        || ' ' || min(e.step) FROM pg_task.task_errors AS e WHERE e.error LIKE '%could not be written%the disk is on fire%'";
    assert_eq!(db.ask(seen).await?, "1,2,3 1 true Test/Fail");
    assert_eq!(
        db.ask("SELECT count(*) FROM pg_task.task_errors AS e JOIN pg_task.workers AS w ON w.id = e.worker")
            .await?,
        "3"
    );
    // Resumed it fails as often again; what is kept is bounded.
    db.run("SELECT pg_task.resume(id) FROM pg_task.failed").await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    assert_eq!(db.ask("SELECT jsonb_array_length(errors) FROM pg_task.task").await?, "5");
    assert_eq!(
        db.ask("SELECT string_agg(e->>'attempt', ',') FROM pg_task.task, jsonb_array_elements(errors) AS e")
            .await?,
        "2,3,1,2,3"
    );
    drop(worker);
    Ok(())
}

#[tokio::test]
async fn an_error_of_any_length_and_kind_is_kept_in_bounded_space() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    session.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    for round in 1..=7 {
        let error = r#"'"\u0000\' || chr(7) || repeat('é', 5000)"#;
        fail(&db, &mut session, 3, "0", error).await?;
        assert_eq!(session.ask("SELECT tried FROM pg_task.task").await?, round.to_string());
    }
    let seen = "SELECT count(*) || ' ' || max(length(error)) || ' ' || min(attempt) FROM pg_task.task_errors";
    assert_eq!(session.ask(seen).await?, "5 1001 3");
    // Without a text, and with a column that someone has spoilt.
    session.run("UPDATE pg_task.task SET errors = '[]'").await?;
    fail(&db, &mut session, 3, "0", "NULL").await?;
    assert_eq!(session.ask("SELECT count(*) || ' ' || count(error) FROM pg_task.task_errors").await?, "1 0");
    Ok(())
}

/// Lets the worker claim the task, whenever it is due, and fail.
async fn fail(db: &Database, session: &mut Session, outcome: i32, delay: &str, error: &str) -> Result<()> {
    session.run("UPDATE pg_task.task SET wakeup_at = now() WHERE wakeup_at > now()").await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    session
        .run(&format!(
            "CREATE TEMP TABLE claim AS SELECT * FROM pg_task.exchange({WORKER}, 1) WHERE event = 0;
             SELECT pg_task.exchange({WORKER}, 0, ARRAY[id], ARRAY[fence], ARRAY[token], ARRAY[{outcome}::smallint],
                 delays => ARRAY[{delay}::bigint], errors => ARRAY[{error}]) FROM claim;
             DROP TABLE claim"
        ))
        .await
}

#[tokio::test]
async fn a_task_s_own_policy_decides_for_workers_of_any_language() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    let delay = "SELECT extract(epoch FROM wakeup_at - updated_at)::float8 FROM pg_task.task";
    let policy =
        r#"'{"retry": {"limit": 3, "delay": "2 min", "backoff": "exponential", "max_delay": "5 min"}}'"#;
    session.run(&format!(r#"SELECT pg_task.enqueue('{{"A": {{"B": 1}}}}', options => {policy})"#)).await?;
    // Whatever delay the worker asks for, and also when its own code would give up.
    for (outcome, seconds) in [(3, "120"), (8, "240"), (3, "300")] {
        fail(&db, &mut session, outcome, "1000", "'broke'").await?;
        assert_eq!(session.ask(delay).await?, seconds);
    }
    fail(&db, &mut session, 3, "0", "'broke at last'").await?;
    assert_eq!(session.ask("SELECT error || ' ' || tried FROM pg_task.failed").await?, "broke at last 4");
    // What failed for good is parked, and a worker that says exactly when is heard.
    session.run("SELECT pg_task.resume(id) FROM pg_task.failed").await?;
    fail(&db, &mut session, 10, "7000000", "'busy'").await?;
    assert_eq!(session.ask(delay).await?, "7");
    fail(&db, &mut session, 4, "NULL", "'for good'").await?;
    assert_eq!(session.ask("SELECT error || ' ' || tried FROM pg_task.failed").await?, "for good 2");
    // Without a policy 8 parks.
    session.run("SELECT pg_task.set_retry(id, NULL), pg_task.resume(id) FROM pg_task.failed").await?;
    fail(&db, &mut session, 8, "0", "'no retry'").await?;
    assert_eq!(session.ask("SELECT error || ' ' || tried FROM pg_task.failed").await?, "no retry 1");
    // A list, with jitter: never longer than it says.
    session
        .run(r#"SELECT pg_task.set_retry(id, '{"delays": [10, "1 h"], "jitter": 0.5}'), pg_task.resume(id) FROM pg_task.failed"#)
        .await?;
    fail(&db, &mut session, 8, "0", "'x'").await?;
    assert_eq!(session.ask(&format!("SELECT v BETWEEN 5 AND 10 FROM ({delay}) AS d (v)")).await?, "true");
    fail(&db, &mut session, 8, "0", "'x'").await?;
    assert_eq!(
        session.ask(&format!("SELECT v BETWEEN 1800 AND 3600 FROM ({delay}) AS d (v)")).await?,
        "true"
    );
    fail(&db, &mut session, 8, "0", "'x'").await?;
    assert_eq!(session.ask("SELECT tried FROM pg_task.failed").await?, "3");
    // What does not count does not count.
    session.run("SELECT pg_task.resume(id) FROM pg_task.failed").await?;
    fail(&db, &mut session, 9, "60000000", "NULL").await?;
    assert_eq!(session.ask(delay).await?, "60");
    assert_eq!(session.ask("SELECT tried FROM pg_task.task").await?, "0");
    Ok(())
}

#[tokio::test]
async fn instead_of_being_parked_a_task_goes_on_with_the_step_that_the_worker_names() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    session
        .run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}', options => '{"retry": {"limit": 1, "delay": 0}}')"#)
        .await?;
    for (outcome, step) in [(3, "B"), (3, "Undo")] {
        db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
        session
            .run(&format!(
                r#"CREATE TEMP TABLE claim AS SELECT * FROM pg_task.exchange({WORKER}, 1) WHERE event = 0;
                 SELECT pg_task.exchange({WORKER}, 0, ARRAY[id], ARRAY[fence], ARRAY[token], ARRAY[{outcome}::smallint],
                     ARRAY['{{"A": {{"Undo": 1}}}}'::jsonb], ARRAY[0::bigint], ARRAY['broke']) FROM claim;
                 DROP TABLE claim"#
            ))
            .await?;
        let row = format!("SELECT step->'A' ? '{step}' AND error IS NULL FROM pg_task.task");
        assert_eq!(session.ask(&row).await?, "true", "{step}");
    }
    assert_eq!(
        session.ask("SELECT tried || ' ' || jsonb_array_length(errors) FROM pg_task.task").await?,
        "0 2"
    );
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await
}

#[tokio::test]
async fn steps_in_rust_say_what_is_done_about_each_error() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("flaky")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    for how in ["plain", "never", "busy", "undo"] {
        db.run(&format!("SELECT pg_task.enqueue({})", flaky(how))).await?;
    }
    // More than the code allows, also after what it calls final; not after what no policy mends.
    let more = RetryPolicy::constant(5, Duration::ZERO);
    for how in ["more", "never"] {
        let step = json!({ "Test": { "Flaky": { "how": how } } });
        pg_task::Enqueue::new().retry(more).enqueue(&db.pool, &step).await?;
    }
    db.until("SELECT count(*) = 5 FROM pg_task.failed").await?;
    db.until("SELECT count(*) = 5 FROM pg_task.task").await?;
    let mut lines = ledger.lines();
    lines.sort();
    let mut expected: Vec<String> =
        ["busy 1", "busy 2", "never 1", "never 1", "undone: not today"].map(str::to_owned).into();
    for (how, attempts) in [("more", 6), ("plain", 4), ("undo", 4)] {
        expected.extend((1..=attempts).map(|attempt| format!("{how} {attempt}")));
    }
    expected.sort();
    assert_eq!(lines, expected);
    // Again after the time that the error names.
    db.run(&format!("SELECT pg_task.enqueue({})", flaky("after"))).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE wakeup_at - updated_at = '1 hour' AND tried = 1")
        .await?;
    db.run("DELETE FROM pg_task.task").await?;
    // Not yet: it comes back, and no attempt was counted. An even microsecond snoozes, an odd one does not.
    db.run(&format!("SELECT pg_task.schedule({}, '2020-01-01 00:00:00.000002Z')", flaky("snooze"))).await?;
    db.until_done().await?;
    let snoozes: Vec<String> = ledger.lines().into_iter().filter(|line| line.starts_with("snooze")).collect();
    assert!(snoozes.len() > 1 && snoozes.iter().all(|line| line == "snooze 1"), "{snoozes:?}");
    Ok(())
}

#[tokio::test]
async fn an_operator_changes_the_policy_of_a_task_that_waits() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("operator")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!(
        r#"SELECT pg_task.enqueue({}, options => '{{"meta": {{"a": 1}}, "retry": {{"limit": 50, "delay": "1 day"}}}}')"#,
        flaky("plain")
    ))
    .await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE tried = 1").await?;
    db.run(r#"SELECT pg_task.set_retry(id, '{"limit": 2, "delay": 0}') FROM pg_task.task"#).await?;
    assert_eq!(db.ask("SELECT options->'meta'->>'a' FROM pg_task.task").await?, "1");
    assert_eq!(db.ask("SELECT tried FROM pg_task.task").await?, "1");
    db.run("UPDATE pg_task.task SET wakeup_at = now()").await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed WHERE tried = 3").await?;
    assert_eq!(ledger.lines(), ["plain 1", "plain 2", "plain 3"]);
    assert_eq!(db.ask("SELECT pg_task.set_retry(pg_task.uuid7(), NULL)").await?, "f");
    Ok(())
}

#[tokio::test]
async fn a_lost_worker_is_a_failure_and_the_task_s_own_policy_holds_for_it() -> Result<()> {
    let server = own_server("e2e-retries-lost", &["pg_task.worker_grace = 50", "pg_task.lost_limit = 0"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("lost")?);
    // Its code allows no retry, its own policy one.
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Abort": null}}', options => '{"retry": {"limit": 1}}')"#)
        .await?;
    for attempt in 1..=2 {
        let mut worker = db.worker(options(&ledger))?;
        assert!(!worker.ended().await?);
        db.until(&format!("SELECT tried = {attempt} FROM pg_task.task")).await?;
    }
    // The next worker is asked what to do instead, and names nothing.
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.failed").await?, "0");
    let worker = db.known_worker(options(&ledger)).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed WHERE tried = 2").await?;
    let error = db.ask("SELECT error FROM pg_task.failed").await?;
    assert_eq!(error, "the worker was lost while it ran this step (attempt 2)");
    assert_eq!(
        db.ask("SELECT string_agg(attempt::text, ',') || ' ' || min(error) FROM pg_task.task_errors").await?,
        "1,2 the worker was lost while it ran this step"
    );
    drop(worker);
    // A worker that cannot be asked does not keep it from being parked.
    db.run(r#"TRUNCATE pg_task.task; SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange({WORKER}, 1) WHERE event = 0")).await?;
    drop(session);
    db.until("SELECT count(*) = 1 FROM pg_task.failed WHERE tried = 1").await
}

#[tokio::test]
async fn a_step_whose_worker_is_lost_too_often_goes_on_with_the_one_that_its_code_names() -> Result<()> {
    let server = own_server("e2e-retries-undo", &["pg_task.worker_grace = 50", "pg_task.lost_limit = 0"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("undo-lost")?);
    let flaky = flaky("undo abort");
    db.run(&format!(
        r#"SELECT pg_task.enqueue({flaky}, options => '{{"retry": {{"limit": 0}}, "meta": {{"a": 1}}}}')"#
    ))
    .await?;
    let mut worker = db.worker(options(&ledger))?;
    assert!(!worker.ended().await?);
    db.until("SELECT tried = 1 AND locked_by IS NOT NULL FROM pg_task.task").await?;
    // Whoever is asked gets the reason beside the task's own options; this one is lost before it answers.
    let mut asked = db.session().await?;
    asked.run(&format!("SELECT pg_task.register({WORKER}, gives_up => true)")).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    asked
        .run(&format!(
            "CREATE TEMP TABLE claim AS SELECT * FROM pg_task.exchange({WORKER}, 1) WHERE event = 0"
        ))
        .await?;
    assert_eq!(
        asked.ask("SELECT concat(options - 'retry', ' ', tried) FROM claim").await?,
        r#"{"meta": {"a": 1}, "give_up": "the worker was lost while it ran this step (attempt 1)"} 1"#
    );
    drop(asked);
    // Once and no more: it is parked, and no attempt is counted, for none was made.
    db.until("SELECT count(*) = 1 FROM pg_task.failed WHERE tried = 1 AND error = 'the worker was lost while it ran this step (attempt 1)'").await?;
    db.run("SELECT pg_task.resume(id) FROM pg_task.task").await?;
    let mut worker = db.worker(options(&ledger))?;
    assert!(!worker.ended().await?);
    db.until("SELECT tried = 1 AND locked_by IS NOT NULL FROM pg_task.task").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.until_done().await?;
    assert_eq!(
        ledger.lines(),
        ["undo abort 1", "undo abort 1", "undone: the worker was lost while it ran this step (attempt 1)"]
    );
    Ok(())
}

/// Asks for a task until there is one: memory may still have an entry of one that is gone, which yields nothing.
async fn claimed(session: &mut Session, ask: &str) -> Result<()> {
    for _ in 0..10_000 {
        session.run(ask).await?;
        if session.ask("SELECT count(*) FROM claim").await? == "1" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    anyhow::bail!("nothing is handed out")
}

#[tokio::test]
async fn what_a_worker_answers_when_it_is_asked_is_one_transition_under_its_fence() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER}, gives_up => true)")).await?;
    let ask = format!(
        "DROP TABLE IF EXISTS claim; CREATE TEMP TABLE claim AS SELECT * FROM pg_task.exchange({WORKER}, 1) WHERE event = 0"
    );
    let bring = |more: &str| {
        format!(
            "SELECT coalesce(string_agg(e.event::text, ','), '') FROM claim AS c, pg_task.exchange({WORKER}, 0, ARRAY[c.id], ARRAY[c.fence], ARRAY[c.token], '{{11}}', {more}) AS e"
        )
    };
    let overdue = r#"SELECT pg_task.enqueue('{"A": {"B": 1}}', options => '{"deadline": "2020-01-01T00:00:00Z", "tags": ["a"]}')"#;
    for (changed, answer, refused, row) in [
        // Without a step it is parked, and no attempt is counted.
        (
            false,
            "errors => '{late}'",
            "",
            r#"0 1 B late {"tags": ["a"], "deadline": "2020-01-01T00:00:00Z"}"#,
        ),
        // With one it goes on, whatever its deadline was.
        (false, r#"ARRAY['{"A": {"C": 1}}'::jsonb]"#, "", r#"0 1 C {"tags": ["a"]}"#),
        // One that cannot be stored.
        (
            false,
            "ARRAY['7'::jsonb], errors => '{late}'",
            "",
            r#"1 1 B the next step was not stored: a step must be an object with one key, the task's name, that holds an object with one key, the step's name {"tags": ["a"], "deadline": "2020-01-01T00:00:00Z"}"#,
        ),
        // A user was faster.
        (
            true,
            r#"ARRAY['{"A": {"C": 1}}'::jsonb]"#,
            "2",
            r#"0 4294967296 D {"tags": ["a"], "deadline": "2020-01-01T00:00:00Z"}"#,
        ),
    ] {
        session.run(&format!("SELECT pg_task.cancel_all(); {overdue}")).await?;
        claimed(&mut session, &ask).await?;
        assert_eq!(session.ask("SELECT options ->> 'give_up' LIKE 'the task was not begun before its deadline, %' FROM claim").await?, "true");
        if changed {
            session.run(r#"UPDATE pg_task.task SET step = '{"A": {"D": 1}}'"#).await?;
        }
        assert_eq!(session.ask(&bring(answer)).await?, refused, "{answer}");
        let seen = "SELECT concat_ws(' ', tried, fence, (SELECT * FROM jsonb_object_keys(step->'A')), error, options) FROM pg_task.task";
        assert_eq!(session.ask(seen).await?, row, "{answer}");
        if changed {
            // It is asked again about what the user wrote; given back, it is asked once more.
            claimed(&mut session, &ask).await?;
            session
                .run(&format!("SELECT pg_task.exchange({WORKER}, 0, ARRAY[id], ARRAY[fence], ARRAY[token], '{{5}}') FROM claim"))
                .await?;
            claimed(&mut session, &ask).await?;
            assert_eq!(session.ask(&bring("errors => '{late}'")).await?, "");
        }
    }
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.failed").await?, "1");
    let refusal = session
        .refusal(&format!(
            "SELECT pg_task.exchange({WORKER}, 0, ARRAY[pg_task.uuid7()], '{{0}}', '{{0}}', '{{11}}')"
        ))
        .await?;
    assert!(refusal.code == "22004" && refusal.message.contains("errors"), "{refusal:?}");
    let refusal = session
        .refusal(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}', options => '{"give_up": "no"}')"#)
        .await?;
    assert_eq!(refusal.code, "22023");
    Ok(())
}

#[tokio::test]
async fn a_policy_that_is_none_is_refused_with_what_it_takes() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    for (policy, detail) in [
        ("1", "The value is 1"),
        (r#"{"limits": 1}"#, "\"limits\" is none of limit, delay"),
        (r#"{"limit": -1}"#, "a whole number of retries"),
        (r#"{"limit": 1.5}"#, "a whole number of retries"),
        (r#"{"limit": 99999999999}"#, "a whole number of retries"),
        (r#"{"delay": -1}"#, "a number of seconds"),
        (r#"{"delay": "soon"}"#, "a number of seconds"),
        (r#"{"delay": "1 fortnight"}"#, "a number of seconds"),
        (r#"{"delay": "100000 days"}"#, "at most 10 years"),
        (r#"{"delay": null}"#, "a number of seconds"),
        (r#"{"delay": 1, "backoff": "linear"}"#, "\"constant\" or \"exponential\""),
        (r#"{"backoff": "exponential"}"#, "needs a \"delay\""),
        (r#"{"delay": 1, "backoff": "exponential", "factor": 0.5}"#, "from 1 to 100"),
        (r#"{"delay": 1, "jitter": 2}"#, "from 0 to 1"),
        (r#"{"delays": []}"#, "a list of 1 to 100"),
        (r#"{"delays": [1, "x"]}"#, "a list of 1 to 100"),
        (r#"{"delays": [1], "delay": 1}"#, "instead of \"delay\""),
    ] {
        for call in [
            format!("SELECT pg_task.set_retry(id, '{policy}') FROM pg_task.task"),
            format!(r#"SELECT pg_task.enqueue('{{"A": {{"B": 1}}}}', options => '{{"retry": {policy}}}')"#),
        ] {
            let refusal = session.refusal(&call).await?;
            assert_eq!(refusal.code, "22023", "{policy}: {refusal:?}");
            assert!(refusal.message.contains("\"retry\""), "{policy}: {refusal:?}");
            assert!(refusal.detail.contains(detail), "{policy}: {refusal:?}");
            assert!(!refusal.hint.is_empty(), "{policy}: {refusal:?}");
        }
    }
    let null = session.refusal("SELECT pg_task.set_retry(NULL, '{}')").await?;
    assert_eq!(null.code, "22004");
    Ok(())
}
