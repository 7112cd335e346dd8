//! What steps say of how far they are, and where it is seen.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

const WORKER: &str = "'0190aaaa-0000-7000-8000-00000000000c'";
const OTHER: &str = "'0190aaaa-0000-7000-8000-00000000000d'";

/// What the view shows of the progress of the only task.
const SHOWN: &str = "SELECT concat_ws(' ', progress, progress_text) FROM pg_task.running";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-progress")).await
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

/// Tells the step `Report` what to say.
async fn say(db: &Database, value: &str, text: &str) -> Result<()> {
    db.run(&format!(
        "INSERT INTO say VALUES ('a', {value}, {text}) ON CONFLICT (key) DO UPDATE SET value = excluded.value, text = excluded.text"
    ))
    .await
}

/// Enqueues a step that says what it is told.
async fn report(db: &Database) -> Result<()> {
    db.run(
        r#"CREATE TABLE IF NOT EXISTS say (key text PRIMARY KEY, value float8, text text);
        SELECT pg_task.enqueue('{"Test": {"Report": {"key": "a"}}}')"#,
    )
    .await
}

async fn until_shown(db: &Database, text: &str) -> Result<()> {
    db.until(&format!("SELECT ({SHOWN}) = '{text}'")).await
}

/// Registers the worker on the session and lets it claim tasks.
async fn claims(db: &Database, session: &mut Session, count: u32) -> Result<()> {
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    session
        .run(&format!(
            r#"SELECT pg_task.enqueue_many(array_agg('{{"A": {{"B": 1}}}}'::jsonb)) FROM generate_series(1, {count})"#
        ))
        .await?;
    all_claimed(db, count).await
}

/// Lets the worker claim until it has so many.
async fn all_claimed(db: &Database, count: u32) -> Result<()> {
    db.until(&format!(
        "SELECT (SELECT count(*) FROM pg_task.exchange({WORKER}, {count})) >= 0 AND (SELECT count(*) FROM pg_task.claims()) = {count}"
    ))
    .await
}

#[tokio::test]
async fn what_a_step_says_is_seen_changes_and_goes_with_its_run() -> Result<()> {
    for polling in [None, Some(Duration::from_millis(100))] {
        let (db, ledger) = (database().await?, Ledger::new("progress")?);
        let _worker = db.known_worker(WorkerOptions { polling, ..options(&ledger) }).await?;
        report(&db).await?;
        db.until("SELECT count(*) = 1 FROM pg_task.running").await?;
        let nothing = "SELECT num_nulls(progress, progress_text, progress_at) FROM pg_task.running";
        assert_eq!(db.ask(nothing).await?, "3");
        say(&db, "0.4", "'400 of 1000 rows'").await?;
        until_shown(&db, "0.4 400 of 1000 rows").await?;
        let at = db.ask("SELECT progress_at FROM pg_task.running").await?;
        assert_eq!(
            db.ask("SELECT progress_at BETWEEN claimed_at AND clock_timestamp() FROM pg_task.running")
                .await?,
            "t"
        );
        say(&db, "'NaN'", "'é' || repeat('x', 10000)").await?;
        db.until("SELECT progress IS NULL AND progress_text = 'é' || repeat('x', 198) FROM pg_task.running")
            .await?;
        assert_eq!(db.ask(&format!("SELECT progress_at > '{at}' FROM pg_task.running")).await?, "t");
        say(&db, "'Infinity'", "''").await?;
        db.until("SELECT progress = 1 AND progress_text IS NULL FROM pg_task.running").await?;
        say(&db, "NULL", "'end'").await?;
        db.until_done().await?;
        assert_eq!(db.ask("SELECT count(*) FROM pg_task.running").await?, "0");
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_says_how_far_a_step_is_hears_by_that_that_it_was_cancelled() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("progress-cancelled")?);
    report(&db).await?;
    // It looks for work once a minute, and its heartbeats come every 20 seconds.
    let polling = Some(Duration::from_secs(60));
    let _worker = db.known_worker(WorkerOptions { polling, concurrency: 1, ..options(&ledger) }).await?;
    say(&db, "0.5", "'half'").await?;
    until_shown(&db, "0.5 half").await?;
    let known = "SELECT concat(id, registered_at) FROM pg_task.workers";
    let worker = db.ask(known).await?;
    db.run("SELECT pg_task.cancel(id) FROM pg_task.task").await?;
    // What it says is to change: only then it is brought.
    say(&db, "0.6", "'more'").await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.running)").await?;
    assert_eq!(db.ask(known).await?, worker, "it did not register again for that");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_comes_back_says_again_how_far_its_steps_are() -> Result<()> {
    let server = own_server("e2e-progress-crash", &[])?;
    let (mut db, ledger) = (Database::create(&server).await?, Ledger::new("progress-crash")?);
    let name = db.ask("SELECT current_database()").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    report(&db).await?;
    say(&db, "0.5", "'half'").await?;
    until_shown(&db, "0.5 half").await?;
    // What is new reaches the server on the worker's next connection.
    let pid = db.ask("SELECT pid FROM pg_task.workers").await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until(&format!("SELECT pid <> {pid} FROM pg_task.workers")).await?;
    until_shown(&db, "0.5 half").await?;
    say(&db, "0.6", "'more'").await?;
    until_shown(&db, "0.6 more").await?;
    // The step says nothing any more: what it has said last is said again by its worker.
    db.run("DELETE FROM say").await?;
    let token = db.ask("SELECT token FROM pg_task.running").await?;
    db.pool.close().await;
    server.stop(Stop::Immediate)?;
    server.start()?;
    db = Database::attach(&server, &name).await?;
    until_shown(&db, "0.6 more").await?;
    assert_eq!(db.ask("SELECT token FROM pg_task.running").await?, token);
    say(&db, "NULL", "'end'").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().iter().filter(|line| *line == "a begins").count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_worker_calls_at_most_once_a_second_and_never_for_steps_that_say_nothing() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("progress-calls")?);
    let name = db.ask("SELECT current_database()").await?;
    db.run(&format!("ALTER DATABASE {name} SET track_functions = 'all'")).await?;
    let calls =
        "SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname LIKE 'set_progress%'";
    let mut worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Chain": {"key": "c", "left": 20}}}') FROM generate_series(1, 20)"#).await?;
    db.until_done().await?;
    db.run("SELECT pg_task.stop_workers()").await?;
    assert!(worker.ended().await?);
    db.until("SELECT sum(calls) > 0 FROM pg_stat_user_functions WHERE funcname = 'register'").await?;
    db.until("SELECT sum(calls) > 0 FROM pg_stat_user_functions WHERE funcname = 'exchange_packed'").await?;
    assert_eq!(db.ask(calls).await?, "0");

    let mut worker = db.known_worker(options(&ledger)).await?;
    let began = Instant::now();
    report(&db).await?;
    say(&db, "0.1", "'one'").await?;
    until_shown(&db, "0.1 one").await?;
    say(&db, "0.2", "'two'").await?;
    until_shown(&db, "0.2 two").await?;
    say(&db, "0.3", "'end'").await?;
    db.until_done().await?;
    db.run("SELECT pg_task.stop_workers()").await?;
    assert!(worker.ended().await?);
    let seconds = began.elapsed().as_secs();
    db.until(&format!("SELECT ({calls}) >= 2")).await?;
    let calls: u64 = db.ask(calls).await?.parse()?;
    let said: u64 =
        ledger.lines().last().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or_default();
    assert!(said >= 2 && calls <= seconds + 1, "{said} words in {seconds} s made {calls} calls");
    Ok(())
}

#[tokio::test]
async fn an_extension_that_is_older_or_a_right_that_is_missing_costs_the_view_and_nothing_else() -> Result<()>
{
    // The test's worker is a superuser's, whom no right can be taken from: the function says it instead.
    const FORBIDDEN: &str = "CREATE FUNCTION pg_task.set_progress_many(uuid, uuid[], bigint[], float8[], text[])
        RETURNS TABLE (event smallint, id uuid) LANGUAGE plpgsql AS 'BEGIN RAISE insufficient_privilege; END'";
    for (missing, back) in [("", ""), (FORBIDDEN, "DROP FUNCTION pg_task.set_progress_many;")] {
        let (db, ledger) = (database().await?, Ledger::new("progress-older")?);
        db.run(&format!(
            "ALTER EXTENSION pg_task DROP FUNCTION pg_task.set_progress_many;
             ALTER FUNCTION pg_task.set_progress_many RENAME TO set_progress_later; {missing}"
        ))
        .await?;
        let _worker = db.known_worker(options(&ledger)).await?;
        let pid = db.ask("SELECT pid FROM pg_task.workers").await?;
        report(&db).await?;
        say(&db, "0.5", "'half'").await?;
        // The worker has tried; its other steps are not held up, and it keeps its connection.
        db.until(&format!(
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND query LIKE '%set_progress_many%' AND state = 'idle'"
        ))
        .await?;
        db.run(r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "b"}}}')"#).await?;
        db.until("SELECT count(*) = 1 FROM pg_task.task").await?;
        assert_eq!(db.ask("SELECT pid FROM pg_task.workers").await?, pid);
        assert_eq!(db.ask(SHOWN).await?, "");
        // The extension is as new as the worker now: it is asked again with the next registration.
        db.run(&format!("{back} ALTER FUNCTION pg_task.set_progress_later RENAME TO set_progress_many"))
            .await?;
        db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
        until_shown(&db, "0.5 half").await?;
        say(&db, "NULL", "'end'").await?;
        db.until_done().await?;
        assert_eq!(db.ask("SELECT lost FROM pg_task.scheduler").await?, "0");
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_in_sql_speaks_of_what_it_holds_and_of_nothing_else() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    claims(&db, &mut session, 1).await?;
    let of = |worker: &str, token: &str, rest: &str| {
        format!("SELECT pg_task.set_progress({worker}, id, token {token}{rest}) FROM pg_task.claims()")
    };
    assert_eq!(session.ask(&of(WORKER, "", ", 0.25, 'a quarter'")).await?, "true");
    assert_eq!(session.ask(SHOWN).await?, "0.25 a quarter");
    // Another attempt, another worker, one that is not registered.
    session.run(&format!("SELECT pg_task.register({OTHER}, queues => '{{elsewhere}}')")).await?;
    for call in [
        of(WORKER, "+ 1", ", 0.9, 'wrong'"),
        of(WORKER, "- 1", ", 0.9, 'wrong'"),
        of(OTHER, "", ", 0.9, 'wrong'"),
        of("pg_task.uuid7()", "", ", 0.9, 'wrong'"),
        format!(
            "SELECT pg_task.set_progress({WORKER}, pg_task.uuid7(), token, 0.9, 'wrong') FROM pg_task.claims()"
        ),
    ] {
        assert_eq!(session.ask(&call).await?, "false", "{call}");
    }
    assert_eq!(session.ask(SHOWN).await?, "0.25 a quarter");
    // Many in one call: what is not held is passed over. A NULL is a word, too: the step is alive.
    session
        .run(&format!(
            "SELECT pg_task.set_progress_many({WORKER}, ARRAY[pg_task.uuid7(), id, id], ARRAY[1, token, token + 1], '{{0.1, NULL, 0.9}}', '{{x, alive, y}}') FROM pg_task.claims()"
        ))
        .await?;
    assert_eq!(session.ask(SHOWN).await?, "alive");
    session.run(&of(WORKER, "", "")).await?;
    assert_eq!(
        session.ask("SELECT progress_text IS NULL AND progress_at IS NOT NULL FROM pg_task.running").await?,
        "true"
    );
    // It is a heartbeat: it says what that says.
    let events = |worker: &str| {
        format!(
            "SELECT string_agg(event::text, ',') FROM pg_task.set_progress_many({worker}, '{{}}', '{{}}')"
        )
    };
    assert_eq!(session.ask(&events(WORKER)).await?, "");
    assert_eq!(session.ask(&events("pg_task.uuid7()")).await?, "5");
    session.run("SELECT pg_task.cancel(id) FROM pg_task.task").await?;
    assert_eq!(session.ask(&events(WORKER)).await?, "3");
    session.run(&format!("SELECT pg_task.leave({WORKER})")).await?;
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.running").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_progress_that_is_none_is_refused_and_a_long_text_is_cut() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    claims(&db, &mut session, 1).await?;
    for value in ["'NaN'", "'Infinity'", "'-Infinity'", "-0.1", "1.0000001", "1e308"] {
        for call in [
            format!(
                "SELECT pg_task.set_progress({WORKER}, id, token, {value}, 'wrong') FROM pg_task.claims()"
            ),
            format!(
                "SELECT pg_task.set_progress_many({WORKER}, ARRAY[id, id], ARRAY[token, token], ARRAY[0.5, {value}]::float8[]) FROM pg_task.claims()"
            ),
        ] {
            let refusal = session.refusal(&call).await?;
            assert_eq!(refusal.code, "22023", "{call}: {refusal:?}");
            assert!(refusal.message.contains("between 0 and 1"), "{call}: {refusal:?}");
            assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{call}: {refusal:?}");
        }
    }
    for arrays in ["'{1,2}'", "'{1}', '{0.1,0.2}'", "'{1}', '{0.1}', '{a,b}'"] {
        let call =
            format!("SELECT pg_task.set_progress_many({WORKER}, ARRAY[id], {arrays}) FROM pg_task.claims()");
        assert_eq!(session.refusal(&call).await?.code, "22023", "{call}");
    }
    assert_eq!(session.ask("SELECT progress_at IS NULL FROM pg_task.running").await?, "true");
    for (value, text, shown) in [
        ("0", "repeat('€', 1000000)", "repeat('€', 66)"),
        ("1", "repeat('x', 200) || 'é'", "repeat('x', 200)"),
        ("-0.0", r"E'tab\t\x01'", r"E'tab\t\x01'"),
    ] {
        session
            .run(&format!(
                "SELECT pg_task.set_progress({WORKER}, id, token, {value}, {text}) FROM pg_task.claims()"
            ))
            .await?;
        let equal = format!("SELECT progress = {value} AND progress_text = {shown} FROM pg_task.running");
        assert_eq!(session.ask(&equal).await?, "true", "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn when_all_places_are_taken_the_rest_is_not_shown_and_places_come_back() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    claims(&db, &mut session, 1_100).await?;
    let all = format!(
        "SELECT count(*) FROM (SELECT array_agg(id) AS ids, array_agg(token) AS tokens, array_agg(0.5::float8) AS half
             FROM pg_task.claims()) AS c, pg_task.set_progress_many({WORKER}, ids, tokens, half) AS e"
    );
    session.run(&all).await?;
    let shown = "SELECT count(progress) || ' ' || count(*) FROM pg_task.running";
    assert_eq!(session.ask(shown).await?, "1024 1100");
    assert_eq!(
        session
            .ask(&format!(
                "SELECT bool_or(pg_task.set_progress({WORKER}, id, token, 0.6)) FROM pg_task.claims() WHERE progress IS NULL"
            ))
            .await?,
        "false"
    );
    // Those that have a place keep it; the end of a run makes place for another.
    session
        .run(&format!(
            "SELECT pg_task.exchange({WORKER}, 0, array_agg(id), array_agg(fence), array_agg(token))
             FROM (SELECT * FROM pg_task.claims() WHERE progress IS NOT NULL LIMIT 100) AS c"
        ))
        .await?;
    assert_eq!(session.ask(shown).await?, "924 1000");
    session.run(&all).await?;
    assert_eq!(session.ask(shown).await?, "1000 1000");
    // Who comes next gets nothing of what was said.
    session.run(&format!("SELECT pg_task.leave({WORKER})")).await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    all_claimed(&db, 1_000).await?;
    assert_eq!(session.ask(shown).await?, "0 1000");
    Ok(())
}
