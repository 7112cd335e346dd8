//! Unique tasks: what a key holds, for how long, what becomes of a call that meets it, and that no order of events makes two of one.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use pg_task::Enqueue;
use pg_task::OnConflict;
use pg_task::UniqueOutcome;
use pg_task::UniqueScope;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::PATIENCE;
use pg_task_e2e::Session;
use pg_task_e2e::interleave::Actor;
use pg_task_e2e::interleave::Part;
use pg_task_e2e::interleave::interleave;
use pg_task_e2e::interleave::orders;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;
use serde_json::json;
use sqlx::Connection;
use sqlx::PgConnection;

const WORKER: &str = "'00000000-0000-0000-0000-0000000000aa'";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-unique")).await
}

/// A call with the key `k` and a payload; `more` are named arguments.
fn call(payload: &str, more: &str) -> String {
    let comma = if more.is_empty() { "" } else { ", " };
    format!(
        r#"SELECT outcome FROM pg_task.enqueue_unique('{{"A": {{"B": "{payload}"}}}}', 'k'{comma}{more})"#
    )
}

/// The payloads of all tasks, in order.
const PAYLOADS: &str =
    "SELECT coalesce(string_agg(step #>> '{A,B}', ' ' ORDER BY step #>> '{A,B}'), '') FROM pg_task.task";

/// Takes what is ready; the payloads.
async fn take(worker: &mut Session) -> Result<String> {
    worker
        .ask(&format!(
            "SELECT coalesce(string_agg(step #>> '{{A,B}}', ' '), '') FROM pg_task.exchange({WORKER}, 10) WHERE event = 0"
        ))
        .await
}

/// Brings the result of the one task that the worker holds: the event that answers, 2 for a refusal, or nothing.
async fn bring(worker: &mut Session, held: &Held, outcome: &str) -> Result<String> {
    worker
        .ask(&format!(
            "SELECT coalesce(string_agg(event::text, ' '), '')
             FROM pg_task.exchange({WORKER}, 0, '{{{}}}', '{{{}}}', '{{{}}}', '{{{outcome}}}') WHERE event = 2",
            held.id, held.fence, held.token
        ))
        .await
}

/// What is claimed.
struct Held {
    id: String,
    token: String,
    fence: String,
}

async fn held(session: &mut Session) -> Result<Held> {
    let text = session
        .ask("SELECT concat_ws(' ', id, token, fence) FROM pg_task.claims() ORDER BY token DESC LIMIT 1")
        .await?;
    let mut words = text.split(' ').map(str::to_owned);
    let mut word = || words.next().context("nothing is claimed");
    Ok(Held { id: word()?, token: word()?, fence: word()? })
}

async fn registered(db: &Database) -> Result<Session> {
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    Ok(worker)
}

/// Takes the one task that is, or will soon be, ready, and says whether it has this payload. An entry that memory still has of a task that is gone
/// is ready too, and yields nothing: so a count of those that are ready does not say that this one is.
async fn takes(worker: &mut Session, payload: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let taken = take(worker).await?;
        if !taken.is_empty() {
            ensure!(taken == payload, "took {taken}, not {payload}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{payload} was never handed out");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn each_scope_holds_its_key_as_long_as_it_says() -> Result<()> {
    // Whether a second call is skipped while the task waits, runs, waits for its next step, is parked, has ended.
    for (scope, expected) in [
        ("queued", [true, false, false, false, false]),
        ("running", [true, true, true, false, false]),
        ("done", [true, true, true, true, false]),
        ("period", [true, true, true, true, true]),
    ] {
        let more =
            format!("scope => '{scope}', period => {}", if scope == "period" { "'1 hour'" } else { "NULL" });
        let db = database().await?;
        let mut worker = registered(&db).await?;
        let mut producer = db.session().await?;
        // In a transaction that is rolled back: what is there stays as it was.
        let mut seen = Vec::new();
        let states = ["queued", "running", "waiting", "parked", "gone"];
        assert_eq!(producer.ask(&call("1", &more)).await?, "enqueued");
        for state in states {
            let view = "SELECT concat_ws(' ', state, held) FROM pg_task.unique_keys";
            let skipped = expected[seen.len()];
            assert_eq!(
                db.ask(view).await?,
                format!("{state} {}", if skipped { "t" } else { "f" }),
                "{scope}"
            );
            producer.run("BEGIN").await?;
            seen.push(producer.ask(&call("2", &more)).await? == "skipped");
            producer.run("ROLLBACK").await?;
            match state {
                "queued" => {
                    takes(&mut worker, "1").await?;
                }
                "running" => {
                    let claim = held(&mut worker).await?;
                    let next = format!(
                        r#"SELECT count(*) FROM pg_task.exchange({WORKER}, 0, '{{{}}}', '{{{}}}', '{{{}}}', '{{1}}',
                           ARRAY['{{"A": {{"B": "1"}}}}'::jsonb], '{{3600000000}}')"#,
                        claim.id, claim.fence, claim.token
                    );
                    worker.ask(&next).await?;
                }
                "waiting" => db.run("UPDATE pg_task.task SET error = 'broken'").await?,
                "parked" => db.run("DELETE FROM pg_task.task").await?,
                _ => {}
            }
        }
        assert_eq!(seen, expected, "{scope}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_meets_the_key_skips_replaces_moves_or_fails_as_it_says() -> Result<()> {
    let db = database().await?;
    let mut producer = db.session().await?;
    assert_eq!(producer.ask(&call("1", "wakeup_at => '2100-01-01', queue => 'a'")).await?, "enqueued");
    let state = "SELECT concat_ws(' ', step #>> '{A,B}', extract(year FROM wakeup_at), queue, priority, options #>> '{meta,a}') FROM pg_task.task";
    for (payload, more, outcome, after) in [
        ("2", "", "skipped", "1 2100 a 0"),
        (
            "3",
            r#"on_conflict => 'replace', queue => 'b', priority => 7, options => '{"meta": {"a": 1}}'"#,
            "replaced",
            "3 2100 b 7 1",
        ),
        ("4", "on_conflict => 'move', wakeup_at => '2101-01-01'", "moved", "3 2101 b 7 1"),
        ("5", "on_conflict => 'replace_and_move', wakeup_at => '2102-01-01'", "replaced", "5 2102 default 0"),
    ] {
        assert_eq!(producer.ask(&call(payload, more)).await?, outcome, "{more}");
        assert_eq!(producer.ask(state).await?, after, "{more}");
    }
    let refusal = producer.refusal(&call("6", "on_conflict => 'error'")).await?;
    let id = producer.ask("SELECT id FROM pg_task.task").await?;
    assert_eq!((&*refusal.code, &*refusal.message), ("23505", "a task holds the key \"k\""));
    assert!(refusal.detail.contains(&id) && refusal.hint.contains("on_conflict => 'skip'"), "{refusal:?}");
    // A parked one runs again with what was changed, with all its retries.
    producer.run("UPDATE pg_task.task SET error = 'broken', tried = 3").await?;
    assert_eq!(producer.ask(&call("7", "on_conflict => 'replace'")).await?, "replaced");
    assert_eq!(
        producer
            .ask("SELECT concat_ws(' ', step #>> '{A,B}', error IS NULL, tried) FROM pg_task.task")
            .await?,
        "7 t 0"
    );
    // Moved to now it is handed out, and another key is another task.
    let mut worker = registered(&db).await?;
    assert_eq!(producer.ask(&call("8", "on_conflict => 'move'")).await?, "moved");
    takes(&mut worker, "7").await?;
    let other = call("9", "").replace("'k'", "'other'");
    assert_eq!(producer.ask(&other).await?, "enqueued");
    Ok(())
}

#[tokio::test]
async fn a_producer_that_was_skipped_gets_a_run_that_begins_after_its_commit() -> Result<()> {
    let db = database().await?;
    let mut worker = registered(&db).await?;
    let mut producer = db.session().await?;
    for policy in ["skip", "replace", "move"] {
        let more = format!("scope => 'queued', on_conflict => '{policy}'");
        assert_eq!(producer.ask(&call("1", &more)).await?, "enqueued");
        producer.run("BEGIN").await?;
        assert_ne!(producer.ask(&call("1", &more)).await?, "enqueued", "{policy}");
        // A worker takes it before the producer commits: what the producer wrote is not there yet.
        takes(&mut worker, "1").await?;
        let early = held(&mut worker).await?;
        producer.run("COMMIT").await?;
        assert_eq!(bring(&mut worker, &early, "0").await?, "2", "{policy}: the early run must not count");
        db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange({WORKER}, 1) WHERE event = 0")).await?;
        let late = held(&mut worker).await?;
        assert_eq!(bring(&mut worker, &late, "0").await?, "");
        assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0", "{policy}");
    }
    // Rolled back, the early run counts.
    assert_eq!(producer.ask(&call("1", "scope => 'queued'")).await?, "enqueued");
    producer.run("BEGIN").await?;
    assert_eq!(producer.ask(&call("1", "scope => 'queued'")).await?, "skipped");
    takes(&mut worker, "1").await?;
    let early = held(&mut worker).await?;
    producer.run("ROLLBACK").await?;
    assert_eq!(bring(&mut worker, &early, "0").await?, "");
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_change_of_a_task_that_runs_refuses_its_result_and_it_runs_again_changed() -> Result<()> {
    let db = database().await?;
    let mut worker = registered(&db).await?;
    let mut producer = db.session().await?;
    assert_eq!(producer.ask(&call("1", "")).await?, "enqueued");
    takes(&mut worker, "1").await?;
    let first = held(&mut worker).await?;
    assert_eq!(producer.ask(&call("2", "on_conflict => 'replace'")).await?, "replaced");
    // Nobody else runs it beside the old run.
    assert_eq!(take(&mut worker).await?, "");
    assert_eq!(bring(&mut worker, &first, "0").await?, "2");
    db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange({WORKER}, 1) WHERE event = 0")).await?;
    assert_eq!(producer.ask(PAYLOADS).await?, "2");
    // While queued: what runs is left alone, and another one waits.
    let queued = "scope => 'queued', on_conflict => 'replace'";
    let second = held(&mut worker).await?;
    assert_eq!(bring(&mut worker, &second, "0").await?, "");
    assert_eq!(producer.ask(&call("3", queued)).await?, "enqueued");
    takes(&mut worker, "3").await?;
    assert_eq!(producer.ask(&call("4", queued)).await?, "enqueued");
    assert_eq!(producer.ask(&call("5", queued)).await?, "replaced");
    assert_eq!(producer.ask(PAYLOADS).await?, "3 5");
    let third = held(&mut worker).await?;
    assert_eq!(bring(&mut worker, &third, "0").await?, "");
    Ok(())
}

#[tokio::test]
async fn a_task_that_someone_has_changed_before_it_began_is_still_queued() -> Result<()> {
    let db = database().await?;
    let (mut worker, mut producer) = (registered(&db).await?, db.session().await?);
    let more = "scope => 'queued', wakeup_at => '2040-01-01'";
    assert_eq!(producer.ask(&call("1", more)).await?, "enqueued");
    for change in [
        r#"UPDATE pg_task.task SET step = '{"A": {"B": "by hand"}}'"#,
        r#"SELECT pg_task.edit(id, payload => '"edited"') FROM pg_task.task"#,
        "SELECT pg_task.reschedule_all('2041-01-01')",
        "SELECT pg_task.move_all('elsewhere')",
        "SELECT pg_task.reprioritize_all(7)",
        // Parked by someone, and resumed.
        "UPDATE pg_task.task SET error = 'not now'; SELECT pg_task.resume_all()",
    ] {
        db.run(change).await?;
        assert_eq!(
            producer.ask("SELECT concat_ws(' ', state, held) FROM pg_task.unique_keys").await?,
            "queued t",
            "{change}"
        );
        assert_eq!(producer.ask(&call("2", more)).await?, "skipped", "{change}");
    }
    assert_eq!(producer.ask(&call("3", &format!("{more}, on_conflict => 'replace'"))).await?, "replaced");
    db.run("SELECT pg_task.reprioritize_all(1)").await?;
    assert_eq!(
        producer.ask(&call("4", "scope => 'queued', on_conflict => 'replace_and_move'")).await?,
        "replaced"
    );
    assert_eq!(producer.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    // Begun, and then changed: it has begun all the same.
    takes(&mut worker, "4").await?;
    let claim = held(&mut producer).await?;
    worker
        .run(&format!(
            "SELECT pg_task.exchange({WORKER}, 0, '{{{}}}', '{{{}}}', '{{{}}}', '{{9}}', delays => '{{3600000000}}')",
            claim.id, claim.fence, claim.token
        ))
        .await?;
    db.run("SELECT pg_task.reprioritize_all(2)").await?;
    assert_eq!(producer.ask(&call("5", more)).await?, "enqueued");
    Ok(())
}

#[tokio::test]
async fn what_waits_behind_a_task_that_loses_its_group_or_key_goes_on_at_once() -> Result<()> {
    let db = database().await?;
    let _worker = registered(&db).await?;
    let replace = |more: &str| call("2", &format!("on_conflict => 'replace', {more}"));
    let goes_on = |ready: u32, rescans: &str| {
        // Not by the read of the whole table, once a minute.
        format!("SELECT ready = {ready} AND rescans = {rescans} FROM pg_task.scheduler")
    };
    let rescans = || db.ask("SELECT rescans FROM pg_task.scheduler");
    // A group, whose oldest is due later; the second one waits for it.
    db.run(&call("1", "wakeup_at => '2040-01-01', options => '{\"group\": \"g\"}'")).await?;
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": "behind"}}', options => '{"group": "g"}')"#).await?;
    let before = rescans().await?;
    for options in ["'{\"group\": \"other\"}'", "NULL"] {
        db.run(&replace(&format!("options => {options}"))).await?;
        db.until(&goes_on(1, &before)).await?;
        db.run("SELECT pg_task.cancel(id) FROM pg_task.task WHERE step #>> '{A,B}' = 'behind'").await?;
        db.until("SELECT ready = 0 FROM pg_task.scheduler").await?;
        db.run(&replace("options => '{\"group\": \"g\"}'")).await?;
        db.run(r#"SELECT pg_task.enqueue('{"A": {"B": "behind"}}', options => '{"group": "g"}')"#).await?;
    }
    // A key, of which sixteen tasks are in memory: moved to another queue, with the options that it had, it is of another key.
    db.run("SELECT pg_task.cancel_all(); DELETE FROM pg_task.unique_key").await?;
    db.until("SELECT ready = 0 FROM pg_task.scheduler").await?;
    db.run(&call("1", "priority => -1, options => '{\"key\": \"k\"}'")).await?;
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": "behind"}}', options => '{"key": "k"}') FROM generate_series(1, 40)"#).await?;
    db.until("SELECT ready = 16 FROM pg_task.scheduler").await?;
    let before = rescans().await?;
    db.run(&replace("queue => 'elsewhere', options => '{\"key\": \"k\"}'")).await?;
    db.until(&goes_on(17, &before)).await?;
    db.run(&replace("options => NULL, queue => 'elsewhere'")).await?;
    db.until(&goes_on(17, &before)).await
}

#[tokio::test]
async fn a_period_holds_its_key_after_the_task_and_not_longer() -> Result<()> {
    let db = database().await?;
    let mut producer = db.session().await?;
    let asked = |more: &str| call("1", more).replace("outcome", "concat_ws(' ', outcome, id)");
    let first = producer.ask(&asked("period => '1 day'")).await?;
    let id = first.strip_prefix("enqueued ").context("it is new")?.to_owned();
    producer.run("DELETE FROM pg_task.task").await?;
    // The same answer to a request that comes twice; nothing can be replaced any more.
    assert_eq!(producer.ask(&asked("")).await?, format!("skipped {id}"));
    assert_eq!(producer.ask(&asked("on_conflict => 'replace_and_move'")).await?, format!("skipped {id}"));
    assert_eq!(producer.refusal(&asked("on_conflict => 'error'")).await?.code, "23505");
    producer.run("UPDATE pg_task.unique_key SET expires_at = clock_timestamp()").await?;
    assert!(producer.ask(&asked("scope => 'period', period => '1 day'")).await?.starts_with("enqueued "));
    // Past its period a task that still waits holds nothing with the scope period; with another scope it does.
    producer.run("UPDATE pg_task.unique_key SET expires_at = clock_timestamp()").await?;
    assert!(producer.ask(&asked("period => '1 day'")).await?.starts_with("enqueued "));
    producer.run("UPDATE pg_task.unique_key SET expires_at = clock_timestamp()").await?;
    assert!(producer.ask(&asked("")).await?.starts_with("skipped "));
    assert_eq!(producer.ask("SELECT count(*) FROM pg_task.task").await?, "2");
    Ok(())
}

#[tokio::test]
async fn two_sessions_in_every_order_leave_one_task() -> Result<()> {
    let db = database().await?;
    let mut observer = PgConnection::connect(&db.url).await?;
    let (mut one, mut two) = (Actor::connect(&db.url).await?, Actor::connect(&db.url).await?);
    for scope in ["done", "queued"] {
        for (policy, outcome) in [("skip", "skipped"), ("replace", "replaced")] {
            for ends in [["COMMIT", "COMMIT"], ["COMMIT", "ROLLBACK"], ["ROLLBACK", "COMMIT"]] {
                for order in orders(3, 3) {
                    let place = format!("{scope}, {policy}, {ends:?}, {order:?}");
                    db.run("DELETE FROM pg_task.task; DELETE FROM pg_task.unique_key").await?;
                    let more =
                        format!("scope => '{scope}', on_conflict => '{policy}', wakeup_at => '2100-01-01'");
                    let steps =
                        |payload, end: &str| vec!["BEGIN".to_owned(), call(payload, &more), end.to_owned()];
                    let parts = [
                        Part { actor: &mut one, steps: steps("1", ends[0]) },
                        Part { actor: &mut two, steps: steps("2", ends[1]) },
                    ];
                    let answers = interleave(&mut observer, parts, &order).await?;
                    let said = answers.map(|answers| {
                        answers.get(1).cloned().and_then(Result::ok).unwrap_or_default().concat()
                    });
                    let left = db.ask(PAYLOADS).await?;
                    // Whose call came second, and found what the first one had committed.
                    let second = said.iter().position(|said| said == outcome);
                    let expected = match (ends, second, policy) {
                        (["COMMIT", "COMMIT"], Some(second), "skip") => ["1", "2"][1 - second],
                        (["COMMIT", "COMMIT"], Some(second), _) => ["1", "2"][second],
                        (["COMMIT", "ROLLBACK"], ..) => "1",
                        (["ROLLBACK", "COMMIT"], ..) => "2",
                        _ => "one of the two finds the other's",
                    };
                    assert_eq!(left, expected, "{place}: {said:?}");
                    assert!(
                        said.iter().all(|said| said == "enqueued" || said == outcome),
                        "{place}: {said:?}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_many_producers_at_once_one_enqueues_and_the_others_are_told_its_id() -> Result<()> {
    const PRODUCERS: usize = 16;
    const CALLS: usize = 25;
    let db = database().await?;
    let mut producers = tokio::task::JoinSet::new();
    for _ in 0..PRODUCERS {
        let mut db = PgConnection::connect(&db.url).await?;
        producers.spawn(async move {
            let mut outcomes = Vec::new();
            for key in 0..CALLS {
                let key = format!("key {key}");
                let unique = Enqueue::new().queue("later").unique(&key);
                let task = json!({ "A": { "B": &key } });
                outcomes.push(unique.delay(&mut db, &task, Duration::from_secs(3600)).await?);
            }
            anyhow::Ok(outcomes)
        });
    }
    let outcomes: Vec<Vec<UniqueOutcome>> = producers.join_all().await.into_iter().collect::<Result<_>>()?;
    for key in 0..CALLS {
        let of_key = outcomes.iter().map(|outcomes| outcomes[key]);
        let ids: BTreeSet<String> = of_key.clone().map(|outcome| outcome.id().to_string()).collect();
        let enqueued = of_key.filter(|outcome| matches!(outcome, UniqueOutcome::Enqueued(_))).count();
        assert_eq!((ids.len(), enqueued), (1, 1), "key {key}");
    }
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, CALLS.to_string());
    Ok(())
}

#[tokio::test]
async fn under_load_with_workers_there_is_never_more_than_one_task_of_a_key() -> Result<()> {
    const PRODUCERS: usize = 4;
    const CALLS: usize = 300;
    let db = database().await?;
    // A second live task of a key ends the transaction that makes it.
    db.run("CREATE UNIQUE INDEX one ON pg_task.task ((step #>> '{Test,Note,key}'))").await?;
    let ledger = pg_task_e2e::Ledger::new("unique")?;
    let options = pg_task_e2e::WorkerOptions {
        ledger: Some(ledger.path()),
        ..pg_task_e2e::WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
    };
    let _workers = [db.known_worker(options).await?, db.known_worker(options).await?];
    let mut producers = tokio::task::JoinSet::new();
    for producer in 0..PRODUCERS {
        let mut db = PgConnection::connect(&db.url).await?;
        producers.spawn(async move {
            let mut enqueued = 0;
            for call in 0..CALLS {
                let key = format!("key {}", call % 3);
                let policy = [OnConflict::Skip, OnConflict::Replace, OnConflict::ReplaceAndMove]
                    [(producer + call) % 3];
                let task = json!({ "Test": { "Note": { "key": &key } } });
                let outcome = Enqueue::new().unique(&key).on_conflict(policy).enqueue(&mut db, &task).await?;
                enqueued += usize::from(matches!(outcome, UniqueOutcome::Enqueued(_)));
            }
            anyhow::Ok(enqueued)
        });
    }
    let enqueued: usize = producers.join_all().await.into_iter().sum::<Result<usize>>()?;
    db.until_done().await?;
    // Each task ran once, or more often when it was changed while it ran.
    ensure!(enqueued >= 3 && ledger.lines().len() >= enqueued, "{enqueued}, {}", ledger.lines().len());
    Ok(())
}

#[tokio::test]
async fn an_old_snapshot_that_cannot_know_fails_and_does_not_guess() -> Result<()> {
    let db = database().await?;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let (mut old, mut other) = (db.session().await?, db.session().await?);
        let begin = format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_task.task");
        // The key came after the snapshot.
        old.run(&begin).await?;
        assert_eq!(other.ask(&call("1", "")).await?, "enqueued");
        assert_eq!(old.refusal(&call("2", "")).await?.code, "40001", "{level}");
        old.run("ROLLBACK").await?;
        // The task went after it.
        old.run(&begin).await?;
        other.run("DELETE FROM pg_task.task").await?;
        assert_eq!(old.refusal(&call("2", "")).await?.code, "40001", "{level}");
        old.run("ROLLBACK").await?;
        // Nothing has happened since: as ever.
        old.run(&begin).await?;
        assert_eq!(old.ask(&call("2", "")).await?, "enqueued", "{level}");
        old.run("COMMIT").await?;
        old.run(&begin).await?;
        assert_eq!(old.ask(&call("3", "")).await?, "skipped", "{level}");
        assert_eq!(old.ask(&call("3", "on_conflict => 'replace'")).await?, "replaced", "{level}");
        old.run("COMMIT").await?;
        assert_eq!(other.ask(PAYLOADS).await?, "3", "{level}");
        other.run("DELETE FROM pg_task.task; DELETE FROM pg_task.unique_key").await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_statement_and_a_savepoint_see_what_the_transaction_did_before() -> Result<()> {
    let db = database().await?;
    let mut producer = db.session().await?;
    let many = r#"SELECT string_agg(outcome, ' ') FROM (
        SELECT (pg_task.enqueue_unique('{"A": {"B": 1}}', 'k')).outcome FROM generate_series(1, 3)) AS x"#;
    assert_eq!(producer.ask(many).await?, "enqueued skipped skipped");
    producer.run("DELETE FROM pg_task.task").await?;
    producer.run("BEGIN; SAVEPOINT a").await?;
    assert_eq!(producer.ask(&call("2", "")).await?, "enqueued");
    producer.run("ROLLBACK TO a").await?;
    assert_eq!(producer.ask(&call("3", "")).await?, "enqueued");
    assert_eq!(producer.ask(&call("4", "on_conflict => 'replace'")).await?, "replaced");
    producer.run("COMMIT").await?;
    assert_eq!(producer.ask(PAYLOADS).await?, "4");
    Ok(())
}

#[tokio::test]
async fn a_crash_keeps_what_was_committed_and_frees_what_was_not() -> Result<()> {
    let server = own_server("e2e-unique-crash", &[])?;
    let db = Database::create(&server).await?;
    let mut open = db.session().await?;
    assert_eq!(db.ask(&call("1", "period => '1 day'")).await?, "enqueued");
    let other = call("2", "").replace("'k'", "'other'");
    open.run("BEGIN").await?;
    assert_eq!(open.ask(&other).await?, "enqueued");
    assert_eq!(open.ask(&call("3", "on_conflict => 'replace'")).await?, "replaced");
    server.stop(Stop::Immediate)?;
    server.start()?;
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    assert_eq!(db.ask(PAYLOADS).await?, "1");
    assert_eq!(db.ask(&call("4", "")).await?, "skipped");
    assert_eq!(db.ask(&other).await?, "enqueued");
    Ok(())
}

#[tokio::test]
async fn keys_that_hold_nothing_are_removed_and_others_stay() -> Result<()> {
    let db = database().await?;
    db.run(
        r#"SELECT pg_task.enqueue_unique('{"A": {"B": 1}}', 'gone ' || n) FROM generate_series(1, 2500) AS n;
           SELECT pg_task.enqueue_unique('{"A": {"B": 1}}', 'held for a period', period => '1 day')"#,
    )
    .await?;
    db.run("DELETE FROM pg_task.task").await?;
    db.run(
        r#"SELECT pg_task.enqueue_unique('{"A": {"B": 1}}', 'lives', wakeup_at => '2100-01-01');
           UPDATE pg_task.unique_key SET check_at = '2020-01-01'"#,
    )
    .await?;
    db.until("SELECT count(*) = 2 FROM pg_task.unique_key").await?;
    let left =
        "SELECT string_agg(concat_ws(' ', key, check_at > now()), ', ' ORDER BY key) FROM pg_task.unique_key";
    assert_eq!(db.ask(left).await?, "held for a period t, lives t");
    assert_eq!(db.ask("SELECT failures FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn bad_arguments_are_refused_with_what_to_do() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let key = |key: &str| call("1", "").replace("'k'", key);
    for (sql, code, message) in [
        (key("''"), "22023", "a key must have 1 to 255 bytes, not 0"),
        (key("repeat('ß', 128)"), "22023", "a key must have 1 to 255 bytes, not 256"),
        (key("NULL"), "22004", "\"key\" must not be NULL"),
        (call("1", "scope => 'always'"), "22023", "\"scope\" cannot be \"always\""),
        (call("1", "scope => NULL"), "22004", "\"scope\" must not be NULL"),
        (call("1", "on_conflict => 'Skip'"), "22023", "\"on_conflict\" cannot be \"Skip\""),
        (call("1", "on_conflict => NULL"), "22004", "\"on_conflict\" must not be NULL"),
        (call("1", "scope => 'period'"), "22023", "the scope \"period\" needs a \"period\""),
        (call("1", "period => '-1 s'"), "22023", "a period must be longer than zero"),
        (call("1", "period => '0'"), "22023", "a period must be longer than zero"),
        (call("1", "period => '400000 years'"), "22008", "timestamp out of range"),
        (call("1", "wakeup_at => 'infinity'"), "22008", "\"wakeup_at\" must be a finite time"),
        (call("1", "queue => ''"), "22023", "a queue's name must have"),
        (call("1", "options => '{\"no such\": 1}'"), "22023", "no such"),
        (call("1", "priority => 40000"), "22023", "\"priority\" must be between"),
        ("SELECT pg_task.enqueue_unique('[]', 'k')".to_owned(), "22023", "a step must be"),
        ("SELECT pg_task.enqueue_unique(NULL, 'k')".to_owned(), "22004", "\"step\" must not be NULL"),
    ] {
        let refusal = session.refusal(&sql).await?;
        assert_eq!(refusal.code, code, "{sql}: {refusal:?}");
        assert!(refusal.message.contains(message), "{sql}: {refusal:?}");
        let is_ours = refusal.message != "timestamp out of range";
        ensure!(!is_ours || !(refusal.detail.is_empty() || refusal.hint.is_empty()), "{sql}: {refusal:?}");
    }
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.unique_key").await?, "0", "nothing is half done");
    // The longest key there may be.
    assert_eq!(session.ask(&key("repeat('x', 255)")).await?, "enqueued");
    Ok(())
}

#[tokio::test]
async fn a_producer_needs_no_right_to_keys_and_its_policies_hold() -> Result<()> {
    let db = database().await?;
    let role = "unique_producer";
    db.run(&format!(
        "DROP ROLE IF EXISTS {role}; CREATE ROLE {role}; SELECT pg_task.grant_produce('{role}');
         ALTER TABLE pg_task.task ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON pg_task.task FOR INSERT TO {role} WITH CHECK (queue = 'own');
         CREATE POLICY ids ON pg_task.task FOR SELECT TO {role} USING (true)"
    ))
    .await?;
    let mut producer = db.session().await?;
    producer.run(&format!("SET ROLE {role}")).await?;
    assert_eq!(producer.ask(&call("1", "queue => 'own'")).await?, "enqueued");
    assert_eq!(producer.ask(&call("2", "queue => 'own', on_conflict => 'replace'")).await?, "replaced");
    assert_eq!(producer.ask("SELECT current_user").await?, role);
    for sql in [
        &call("3", "queue => 'other'").replace("'k'", "'j'"),
        "SELECT * FROM pg_task.unique_key",
        "DELETE FROM pg_task.unique_key",
        "TABLE pg_task.unique_keys",
        "SELECT step FROM pg_task.task",
    ] {
        assert_eq!(producer.refusal(sql).await?.code, "42501", "{sql}");
    }
    // An error in between has left it who it is.
    assert_eq!(
        producer.ask("SELECT current_user || current_setting('search_path')").await?,
        format!("{role}\"$user\", public")
    );
    producer.run("RESET ROLE").await?;
    assert_eq!(
        producer.ask("SELECT count(*) FROM pg_task.unique_key").await?,
        "1",
        "the refused one left no key"
    );
    producer.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await?;
    Ok(())
}

#[tokio::test]
async fn from_rust_the_answer_says_what_happened() -> Result<()> {
    let db = database().await?;
    let task = |text: &str| json!({ "A": { "B": text } });
    let unique = Enqueue::new().queue("q").priority(3).unique("k").scope(UniqueScope::Running);
    let later = sqlx::types::chrono::DateTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    let first = unique.schedule(&db.pool, &task("1"), later).await?;
    let id = first.id();
    assert_eq!(first, UniqueOutcome::Enqueued(id));
    assert_eq!(unique.enqueue(&db.pool, &task("2")).await?, UniqueOutcome::Skipped(id));
    let with = |on_conflict| unique.on_conflict(on_conflict);
    assert_eq!(with(OnConflict::Replace).enqueue(&db.pool, &task("3")).await?, UniqueOutcome::Replaced(id));
    assert_eq!(
        db.ask("SELECT concat_ws(' ', step #>> '{A,B}', wakeup_at > '2099-01-01', queue, priority) FROM pg_task.task").await?,
        "3 t q 3"
    );
    assert_eq!(
        with(OnConflict::Move).delay(&db.pool, &task("4"), Duration::from_secs(60)).await?,
        UniqueOutcome::Moved(id)
    );
    assert_eq!(
        with(OnConflict::ReplaceAndMove).enqueue(&db.pool, &task("5")).await?,
        UniqueOutcome::Replaced(id)
    );
    assert_eq!(
        db.ask("SELECT concat_ws(' ', step #>> '{A,B}', wakeup_at <= now()) FROM pg_task.task").await?,
        "5 t"
    );
    let error = with(OnConflict::Error).enqueue(&db.pool, &task("6")).await.expect_err("it is held");
    let pg_task::Error::AddTask(sqlx::Error::Database(error)) = error else { anyhow::bail!("{error}") };
    assert_eq!(error.code().as_deref(), Some("23505"));
    // A period without the task; the key of a transaction that is rolled back is free.
    db.run("DELETE FROM pg_task.task").await?;
    let request = Enqueue::new().unique("r").scope(UniqueScope::Period).period(Duration::from_secs(60));
    let mut transaction = db.pool.begin().await?;
    request.enqueue(&mut *transaction, &task("7")).await?;
    transaction.rollback().await?;
    let outcome = request.enqueue(&db.pool, &task("7")).await?;
    assert_eq!(outcome, UniqueOutcome::Enqueued(outcome.id()));
    db.run("DELETE FROM pg_task.task").await?;
    assert_eq!(request.enqueue(&db.pool, &task("7")).await?, UniqueOutcome::Skipped(outcome.id()));
    Ok(())
}
