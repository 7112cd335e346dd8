//! Schedules: each tick has its task once, whatever happens to the server, and the policies say what becomes of the others.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeSet;

use anyhow::Result;
use pg_task::Enqueue;
use pg_task::Missed;
use pg_task::NextStep;
use pg_task::Overlap;
use pg_task::Schedule;
use pg_task::Schedules;
use pg_task::Step;
use pg_task::StepResult;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;

pg_task::task!(Test { Note });
pg_task::scheduler!(Tasks { Test });

/// What a worker within this program runs.
#[derive(Debug, Deserialize, Serialize)]
pub struct Note {
    key: String,
}

impl Step<Test> for Note {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        assert!(self.key.ends_with('Z'), "{} is no tick", self.key);
        NextStep::none()
    }
}

/// The time of its tick is the key that it notes.
const NOTE: &str = r#"'{"Test":{"Note":{"key":""}}}', tick_field => 'key'"#;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-schedules")).await
}

/// The ticks whose tasks are there, in seconds from a moment.
async fn ticks(db: &Database, from: &str) -> Result<String> {
    db.ask(&format!(
        "SELECT string_agg(extract(epoch FROM tick - '{from}')::int::text, ' ' ORDER BY tick)
         FROM (SELECT (step->'Test'->'Note'->>'key')::timestamptz FROM pg_task.task) AS t (tick)"
    ))
    .await
}

/// A schedule that began 35 minutes ago, ticks every 10 minutes and has not been served yet: 4 ticks are due. Returns its start.
async fn behind(db: &Database, name: &str, settings: &str) -> Result<String> {
    let start = db.ask("SELECT date_trunc('second', now() - interval '35 minutes')").await?;
    let (columns, values) = settings.split_once(" = ").unwrap_or(("missed", "'once'"));
    db.run(&format!(
        "INSERT INTO pg_task.schedule (name, cron, step, tick_field, starts_at, next_at, {columns})
         VALUES ('{name}', 'every 10 minutes', '{{\"Test\":{{\"Note\":{{\"key\":\"\"}}}}}}', 'key', '{start}', '{start}', {values})"
    ))
    .await?;
    db.until(&format!("SELECT next_at > now() FROM pg_task.schedules WHERE name = '{name}'")).await?;
    Ok(start)
}

async fn counts(db: &Database, name: &str) -> Result<String> {
    db.ask(&format!(
        "SELECT concat_ws(' ', fired, skipped, waiting, unfinished, state) FROM pg_task.schedules WHERE name = '{name}'"
    ))
    .await
}

#[tokio::test]
async fn a_schedule_fires_at_each_tick_and_shows_what_comes_and_what_was() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("schedule-fires")?);
    let options =
        WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) };
    let _worker = db.known_worker(options).await?;
    db.run(&format!("SELECT pg_task.set_schedule('often', '* * * * * *', {NOTE}, missed => 'all')")).await?;
    db.until("SELECT fired >= 3 FROM pg_task.schedules").await?;
    db.run("SELECT pg_task.drop_schedule('often')").await?;
    db.until_done().await?;
    let lines = ledger.lines();
    let distinct: BTreeSet<&String> = lines.iter().collect();
    assert!(lines.len() >= 3 && distinct.len() == lines.len(), "{lines:?}");
    // Each second from the first to the last.
    let span = db
        .ask(&format!(
            "SELECT extract(epoch FROM '{}'::timestamptz - '{}'::timestamptz)::int + 1",
            distinct.last().expect("there are lines"),
            distinct.first().expect("there are lines")
        ))
        .await?;
    assert_eq!(span, distinct.len().to_string());
    // Nothing is left of it: the scheduler sleeps as if there had never been one.
    db.until("SELECT next_wake > now() + interval '5 s' FROM pg_task.scheduler").await
}

#[tokio::test]
async fn what_was_missed_is_run_as_the_policy_says() -> Result<()> {
    let db = database().await?;
    for (settings, seconds, told) in [
        ("missed = 'once'", "1800", "1 3 0 1 active"),
        ("missed = 'skip'", "", "0 4 0 0 active"),
        ("missed = 'all'", "0 600 1200 1800", "4 0 0 4 active"),
        ("missed, missed_limit = 'all', 3", "600 1200 1800", "3 1 0 3 active"),
    ] {
        let start = behind(&db, "s", settings).await?;
        assert_eq!(ticks(&db, &start).await?, seconds, "{settings}");
        assert_eq!(counts(&db, "s").await?, told, "{settings}");
        assert_eq!(
            db.ask(&format!(
                "SELECT concat_ws(' ', last_at - '{start}', next_at - '{start}') FROM pg_task.schedules"
            ))
            .await?,
            "00:30:00 00:40:00"
        );
        // The task is due since its tick.
        assert_eq!(
            db.ask("SELECT count(*) FROM pg_task.task WHERE wakeup_at <> (step->'Test'->'Note'->>'key')::timestamptz").await?,
            "0"
        );
        db.run("DELETE FROM pg_task.schedule; DELETE FROM pg_task.task").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_tick_beside_an_unfinished_task_is_run_left_out_or_waits() -> Result<()> {
    let db = database().await?;
    let start = behind(&db, "s", "missed, overlap = 'all', 'skip'").await?;
    assert_eq!(
        (ticks(&db, &start).await?.as_str(), counts(&db, "s").await?.as_str()),
        ("0", "1 3 0 1 active")
    );
    db.run("DELETE FROM pg_task.schedule; DELETE FROM pg_task.task").await?;

    let start = behind(&db, "s", "missed, overlap = 'all', 'queue'").await?;
    assert_eq!(counts(&db, "s").await?, "1 0 3 1 active");
    for (seconds, end) in [
        ("0", "DELETE FROM pg_task.task"),
        ("600", "SELECT pg_task.cancel(id) FROM pg_task.task"),
        ("1200", "UPDATE pg_task.task SET error = 'parked'"),
    ] {
        assert_eq!(ticks(&db, &start).await?, seconds);
        let waiting = db.ask("SELECT waiting FROM pg_task.schedules").await?;
        db.run(end).await?;
        db.until(&format!("SELECT waiting < {waiting} FROM pg_task.schedules")).await?;
    }
    // What is parked is left to people; the schedule has gone on.
    assert_eq!(ticks(&db, &start).await?, "1200 1800");
    assert_eq!(counts(&db, "s").await?, "4 0 0 1 active");
    // Once it is resumed it counts again.
    db.run("SELECT pg_task.resume_all()").await?;
    assert_eq!(db.ask("SELECT unfinished FROM pg_task.schedules").await?, "1");
    Ok(())
}

#[tokio::test]
async fn the_end_of_a_run_wakes_the_scheduler_which_does_not_look_for_it() -> Result<()> {
    let db = database().await?;
    behind(&db, "s", "missed, overlap = 'all', 'queue'").await?;
    let looks = "SELECT ticks FROM pg_task.scheduler_state()";
    db.until("SELECT next_wake > now() + interval '10 s' FROM pg_task.scheduler_state()").await?;
    let before: i64 = db.ask(looks).await?.parse()?;
    db.run("SELECT pg_sleep(4)").await?;
    let made = db.ask(looks).await?.parse::<i64>()? - before;
    assert!(made <= 1, "the scheduler woke {made} times while a tick waited");
    for waiting in ["2", "1", "0"] {
        db.run("DELETE FROM pg_task.task").await?;
        db.until(&format!("SELECT waiting = {waiting} FROM pg_task.schedules WHERE name = 's'")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_more_ticks_wait_than_the_limit_allows() -> Result<()> {
    let db = database().await?;
    let start = behind(&db, "s", "missed, overlap, missed_limit = 'all', 'queue', 2").await?;
    // Four were due, the last two were kept, one of them waits.
    assert_eq!(
        (ticks(&db, &start).await?.as_str(), counts(&db, "s").await?.as_str()),
        ("1200", "1 2 1 1 active")
    );
    // The same again, with one waiting and one running.
    db.run(&format!("UPDATE pg_task.schedule SET next_at = '{start}'")).await?;
    db.until("SELECT next_at > now() FROM pg_task.schedules").await?;
    assert_eq!(counts(&db, "s").await?, "1 5 2 1 active");
    Ok(())
}

#[tokio::test]
async fn a_pause_leaves_out_what_ticks_meanwhile_and_run_now_runs_all_the_same() -> Result<()> {
    let db = database().await?;
    db.run(&format!("SELECT pg_task.set_schedule('s', '* * * * * *', {NOTE})")).await?;
    db.until("SELECT fired > 0 FROM pg_task.schedules").await?;
    assert_eq!(db.ask("SELECT pg_task.pause_schedule('s')").await?, "t");
    assert_eq!(db.ask("SELECT pg_task.pause_schedule('s')").await?, "f");
    assert_eq!(db.ask("SELECT state FROM pg_task.schedules").await?, "paused");
    let fired = db.ask("SELECT fired FROM pg_task.schedules").await?;
    // Nobody looks at it any more; time passes.
    db.until("SELECT next_wake > now() + interval '5 s' FROM pg_task.scheduler").await?;
    db.until("SELECT now() > next_at + interval '2 s' FROM pg_task.schedules").await?;
    assert_eq!(db.ask("SELECT fired FROM pg_task.schedules").await?, fired);
    // It is enqueued with the caller's transaction.
    db.run("BEGIN; SELECT pg_task.run_schedule('s'); ROLLBACK").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, fired);
    let id = db.ask("SELECT pg_task.run_schedule('s')").await?;
    assert_eq!(
        db.ask(&format!(
            "SELECT tasks[cardinality(tasks)] = '{id}' AND fired = {fired} + 1 FROM pg_task.schedule"
        ))
        .await?,
        "t"
    );
    assert_eq!(db.ask(&format!("SELECT count(*) FROM pg_task.task WHERE id = '{id}'")).await?, "1");
    // The first tick after the pause is one that was not there when it ended.
    let before = db.ask("SELECT clock_timestamp()").await?;
    assert_eq!(db.ask("SELECT pg_task.resume_schedule('s')").await?, "t");
    assert_eq!(db.ask("SELECT pg_task.resume_schedule('s')").await?, "f");
    db.until(&format!("SELECT fired > {fired} + 1 FROM pg_task.schedules")).await?;
    assert_eq!(
        db.ask(&format!(
            "SELECT count(*) FROM pg_task.task WHERE created_at >= '{before}' AND (step->'Test'->'Note'->>'key')::timestamptz < '{before}'"
        ))
        .await?,
        "0"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_set_again_as_it_is_stays_and_a_change_counts_from_now() -> Result<()> {
    let db = database().await?;
    let set = format!("SELECT pg_task.set_schedule('s', '30 4 * * *', {NOTE}, time_zone => 'Europe/Berlin')");
    let next = db.ask(&set).await?;
    assert_eq!(next, db.ask("SELECT (pg_task.next_ticks('30 4 * * *', 'Europe/Berlin'))[1]").await?);
    // A tick that is overdue is not forgotten when a program declares the schedule again.
    db.run("SELECT pg_task.pause_schedule('s'); UPDATE pg_task.schedule SET next_at = '2020-01-01'").await?;
    let row = db.ask("SELECT s::text FROM pg_task.schedule AS s").await?;
    db.run(&set).await?;
    assert_eq!(db.ask("SELECT s::text FROM pg_task.schedule AS s").await?, row);
    // Another step, queue or policy leaves the tick as it is; another time does not.
    db.run(&set.replace(", time_zone", ", priority => -3, overlap => 'skip', time_zone")).await?;
    assert_eq!(
        db.ask("SELECT concat_ws(' ', next_at AT TIME ZONE 'UTC', priority, overlap, wake_at) FROM pg_task.schedule").await?,
        db.ask("SELECT concat_ws(' ', '2020-01-01'::timestamptz AT TIME ZONE 'UTC', -3, 'skip')").await?
    );
    db.run(&set.replace("30 4", "31 4")).await?;
    assert_eq!(db.ask("SELECT next_at > now() FROM pg_task.schedule").await?, "t");
    db.run("SELECT pg_task.resume_schedule('s')").await?;
    assert_eq!(
        db.ask("SELECT next_at = wake_at AND next_at = (pg_task.next_ticks('31 4 * * *', 'Europe/Berlin'))[1] FROM pg_task.schedule").await?,
        "t"
    );
    // A start and an end; then it is over.
    db.run(&format!(
        "SELECT pg_task.set_schedule('s', 'every 1 s', {NOTE}, missed => 'all',
            starts_at => date_trunc('second', now()) + interval '1 s', ends_at => date_trunc('second', now()) + interval '3 s')"
    ))
    .await?;
    db.until("SELECT state = 'over' FROM pg_task.schedules").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "2");
    assert_eq!(db.ask("SELECT pg_task.drop_schedule('s') AND NOT pg_task.drop_schedule('s')").await?, "t");
    Ok(())
}

#[tokio::test]
async fn what_a_program_declares_is_changed_by_no_other_and_sql_may_take_it_over() -> Result<()> {
    let db = database().await?;
    let set = |cron: &str, by: &str| {
        format!("SELECT pg_task.set_schedule('s', '{cron}', {NOTE}, declared_by => {by})")
    };
    let cron = || db.ask("SELECT cron || ' ' || coalesce(declared_by, '-') FROM pg_task.schedule");
    db.run(&set("@daily", "'app'")).await?;
    db.run(&set("@hourly", "'other'")).await?;
    assert_eq!(cron().await?, "@daily app");
    db.run(&set("@weekly", "'app'")).await?;
    assert_eq!(cron().await?, "@weekly app");
    db.run(&set("@weekly", "NULL")).await?;
    assert_eq!(cron().await?, "@weekly -");
    db.run(&set("@daily", "'app'")).await?;
    assert_eq!(cron().await?, "@weekly -");
    Ok(())
}

#[tokio::test]
async fn an_error_of_one_schedule_lands_in_its_row_and_holds_up_no_other() -> Result<()> {
    let db = database().await?;
    db.run("ALTER TABLE pg_task.task ADD CONSTRAINT no_bad CHECK (queue <> 'bad')").await?;
    db.run(&format!(
        "SELECT pg_task.set_schedule('bad', '* * * * * *', {NOTE}, queue => 'bad', missed => 'all');
         SELECT pg_task.set_schedule('good', '* * * * * *', {NOTE})"
    ))
    .await?;
    db.until("SELECT bool_and(failures > 1 OR name = 'good') FROM pg_task.schedule").await?;
    db.until("SELECT fired > 3 FROM pg_task.schedules WHERE name = 'good'").await?;
    assert_eq!(
        db.ask("SELECT state || ' ' || (error LIKE '%no_bad%') FROM pg_task.schedules WHERE name = 'bad'")
            .await?,
        "failing true"
    );
    assert_eq!(
        db.ask("SELECT detail LIKE '%\"bad\"%' FROM pg_task.problems WHERE problem = 'schedule failing'")
            .await?,
        "t"
    );
    assert_eq!(db.ask("SELECT state || failures FROM pg_task.scheduler").await?, "running0");
    // When the cause is gone, nothing of it is missing.
    db.run("ALTER TABLE pg_task.task DROP CONSTRAINT no_bad").await?;
    db.until("SELECT state = 'active' AND fired > 0 FROM pg_task.schedules WHERE name = 'bad'").await?;
    db.run("DELETE FROM pg_task.schedule").await?;
    assert_eq!(
        db.ask(
            "SELECT count(*) = count(DISTINCT tick) AND count(*) = extract(epoch FROM max(tick) - min(tick))::int + 1
             FROM (SELECT (step->'Test'->'Note'->>'key')::timestamptz FROM pg_task.task WHERE queue = 'bad') AS t (tick)"
        )
        .await?,
        "t"
    );
    // A row that no check has seen.
    db.run(&format!(
        "SELECT pg_task.set_schedule('good', '* * * * * *', {NOTE}), pg_task.set_schedule('odd', '* * * * * *', {NOTE});
         ALTER TABLE pg_task.schedule DISABLE TRIGGER USER; UPDATE pg_task.schedule SET time_zone = 'Nowhere' WHERE name = 'odd';
         ALTER TABLE pg_task.schedule ENABLE TRIGGER USER"
    ))
    .await?;
    db.until("SELECT error LIKE '%time zone%Nowhere%' FROM pg_task.schedules WHERE name = 'odd'").await?;
    db.until("SELECT fired > 1 FROM pg_task.schedules WHERE name = 'good'").await
}

#[tokio::test]
async fn a_row_that_someone_keeps_locked_is_passed_over_and_others_are_not() -> Result<()> {
    let db = database().await?;
    db.run(&format!(
        "SELECT pg_task.set_schedule('locked', '* * * * * *', {NOTE}, missed => 'all');
         SELECT pg_task.set_schedule('free', '* * * * * *', {NOTE})"
    ))
    .await?;
    let mut session = db.session().await?;
    session.run("BEGIN; SELECT FROM pg_task.schedule WHERE name = 'locked' FOR UPDATE").await?;
    let fired = |name: &str| format!("SELECT fired FROM pg_task.schedules WHERE name = '{name}'");
    let (locked, free) = (db.ask(&fired("locked")).await?, db.ask(&fired("free")).await?);
    db.until(&format!("SELECT fired > {free} + 2 FROM pg_task.schedules WHERE name = 'free'")).await?;
    assert_eq!(db.ask(&fired("locked")).await?, locked);
    session.run("COMMIT").await?;
    db.until(&format!("SELECT fired > {locked} + 2 FROM pg_task.schedules WHERE name = 'locked'")).await
}

/// Each schedule's ticks: none is there twice, none is missing between the first and the last.
const WHOLE: &str = "SELECT coalesce(string_agg(format('%s: %s tasks, %s ticks, %s seconds', queue, n, distinct_n, span), '; '), '') FROM (
        SELECT queue, count(*) AS n, count(DISTINCT tick) AS distinct_n, extract(epoch FROM max(tick) - min(tick))::int + 1 AS span
        FROM (SELECT queue, (step->'Test'->'Note'->>'key')::timestamptz FROM pg_task.task) AS t (queue, tick) GROUP BY queue) AS q
    WHERE n <> distinct_n OR n <> span";

async fn many_schedules(db: &Database) -> Result<()> {
    db.run(&format!(
        "SELECT count(pg_task.set_schedule('s' || n, '* * * * * *', {NOTE}, queue => 'q' || n, missed => 'all', missed_limit => 1000))
         FROM generate_series(1, 30) AS n"
    ))
    .await
}

#[tokio::test]
async fn a_server_that_crashes_again_and_again_doubles_no_tick_and_forgets_none() -> Result<()> {
    let server = own_server("e2e-schedule-crash", &[])?;
    let db = Database::create(&server).await?;
    many_schedules(&db).await?;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for round in 1..=4 {
        db.until(&format!("SELECT sum(fired) > {} FROM pg_task.schedule", round * 40)).await?;
        // What is seen has happened: a worker may have begun it.
        let ids = db.ask("SELECT string_agg(id::text, ' ') FROM pg_task.task").await?;
        server.stop(Stop::Immediate)?;
        seen.extend(ids.split(' ').map(str::to_owned));
        server.start()?;
        db.until("SELECT true").await?;
        let found = db.ask("SELECT string_agg(id::text, ' ') FROM pg_task.task").await?;
        let found: BTreeSet<String> = found.split(' ').map(str::to_owned).collect();
        assert!(
            seen.is_subset(&found),
            "{} of {} were taken back",
            seen.difference(&found).count(),
            seen.len()
        );
    }
    let fired = db.ask("SELECT sum(fired) FROM pg_task.schedule").await?;
    db.until(&format!("SELECT sum(fired) > {fired} FROM pg_task.schedule")).await?;
    db.run("DELETE FROM pg_task.schedule").await?;
    assert_eq!(db.ask(WHOLE).await?, "");
    assert_eq!(db.ask("SELECT count(DISTINCT queue) FROM pg_task.task").await?, "30");
    Ok(())
}

#[tokio::test]
async fn a_standby_that_is_promoted_goes_on_with_the_next_tick() -> Result<()> {
    let server = own_server("e2e-schedule-primary", &[])?;
    let db = Database::create(&server).await?;
    many_schedules(&db).await?;
    let standby = server.standby("e2e-schedule-standby")?;
    let name = db.url.rsplit('/').next().unwrap_or_default();
    let copy = Database::attach(&standby, name).await?;
    copy.until("SELECT min(fired) > 1 FROM pg_task.schedule").await?;
    assert_eq!(copy.ask("SELECT count(*) FROM pg_task.schedules WHERE state = 'active'").await?, "30");
    server.stop(Stop::Fast)?;
    let fired = copy.ask("SELECT min(fired) FROM pg_task.schedule").await?;
    standby.promote()?;
    copy.until(&format!("SELECT min(fired) > {fired} + 1 FROM pg_task.schedule")).await?;
    copy.run("DELETE FROM pg_task.schedule").await?;
    assert_eq!(copy.ask(WHOLE).await?, "");
    Ok(())
}

#[tokio::test]
async fn a_clock_that_was_set_back_doubles_no_tick_and_is_told_of() -> Result<()> {
    let db = database().await?;
    // As if the clock had been a day ahead: its ticks of today have been dealt with.
    db.run(&format!("SELECT pg_task.set_schedule('s', '* * * * * *', {NOTE}), pg_task.pause_schedule('s')"))
        .await?;
    db.run("DELETE FROM pg_task.task; UPDATE pg_task.schedule SET last_at = date_trunc('second', now()) + interval '1 day'").await?;
    db.run("SELECT pg_task.resume_schedule('s')").await?;
    assert_eq!(db.ask("SELECT next_at > last_at AND wake_at = next_at FROM pg_task.schedule").await?, "t");
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.problems WHERE problem = 'schedule ahead'").await?, "1");
    // Somebody decides otherwise.
    db.run("UPDATE pg_task.schedule SET next_at = date_trunc('second', now()), last_at = NULL").await?;
    db.until("SELECT fired > 1 FROM pg_task.schedules").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.problems WHERE problem = 'schedule ahead'").await?, "0");
    Ok(())
}

#[tokio::test]
async fn jitter_makes_a_task_due_within_its_bound_after_the_tick() -> Result<()> {
    let db = database().await?;
    behind(&db, "s", "missed, jitter = 'all', '1 day'").await?;
    assert_eq!(
        db.ask(
            "SELECT count(DISTINCT late) FILTER (WHERE late BETWEEN interval '0' AND interval '1 day') FROM (
                SELECT wakeup_at - (step->'Test'->'Note'->>'key')::timestamptz AS late FROM pg_task.task) AS t"
        )
        .await?,
        "4"
    );
    Ok(())
}

#[tokio::test]
async fn the_server_s_time_zones_say_when_clocks_change() -> Result<()> {
    let db = database().await?;
    let ticks = |cron: &str, zone: &str, after: &str| {
        format!(
            "SELECT string_agg(to_char(tick AT TIME ZONE 'UTC', 'MM-DD HH24:MI'), ', ') FROM unnest(pg_task.next_ticks('{cron}', '{zone}', '{after}', 3)) AS tick"
        )
    };
    for (cron, zone, after, expected) in [
        // Forward: what is skipped comes at the end of the gap, what follows time keeps its distance.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00Z", "03-28 01:30, 03-29 01:00, 03-30 00:30"),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29 00:15Z", "03-29 00:30, 03-29 01:00, 03-29 01:30"),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-29 00:00Z", "03-30 00:00, 03-30 00:30, 03-31 00:00"),
        // Back: the first of two; and both.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 00:00Z", "10-24 00:30, 10-25 00:30, 10-26 01:30"),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25 00:15Z", "10-25 00:30, 10-25 01:00, 10-25 01:30"),
        ("30 1 * * *", "america/new_york", "2026-10-31 12:00Z", "11-01 05:30, 11-02 06:30, 11-03 06:30"),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00Z", "10-03 15:30, 10-04 15:15, 10-05 15:15"),
        ("0 0 29 2 *", "UTC", "2026-01-01 00:00Z", "02-29 00:00, 02-29 00:00, 02-29 00:00"),
        ("every 25 hours", "Europe/Berlin", "1970-01-01 00:00Z", "01-02 01:00, 01-03 02:00, 01-04 03:00"),
    ] {
        assert_eq!(db.ask(&ticks(cron, zone, after)).await?, expected, "{cron} {zone} {after}");
    }
    // Whatever the session's own time zone is.
    let mut session = db.session().await?;
    session.run("SET TimeZone = 'Asia/Tokyo'").await?;
    assert_eq!(
        session.ask(&ticks("0 12 * * *", "Europe/Berlin", "2026-01-01 00:00Z")).await?,
        "01-01 11:00, 01-02 11:00, 01-03 11:00"
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_a_schedule_is_refused_with_a_reason() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let set = |cron: &str, rest: &str| format!("SELECT pg_task.set_schedule('s', '{cron}', {NOTE}{rest})");
    for (sql, code, word) in [
        (set("* * * *", ""), "22023", "It has 4 fields"),
        (set("61 * * * *", ""), "22023", "The minutes"),
        (set("0 0 30 2 *", ""), "22023", "No day fits it"),
        (set("every fortnight", ""), "22023", "fortnight"),
        (set("@daily", ", time_zone => 'Europe/Berlim'"), "22023", "pg_timezone_names"),
        (set("@daily", ", time_zone => 'Europe/Berlin1'"), "22023", "pg_timezone_names"),
        (set("@daily", ", time_zone => ''"), "22023", "pg_timezone_names"),
        (set("@daily", ", missed => 'never'"), "22023", "skip, once, all"),
        (set("@daily", ", overlap => 'kill'"), "22023", "allow, skip, queue"),
        (set("@daily", ", missed_limit => 0"), "22023", "1 to 1000"),
        (set("@daily", ", priority => 40000"), "22023", "32767"),
        (set("@daily", ", jitter => '2 days'"), "22023", "86400"),
        (set("@daily", ", queue => ''"), "22023", "queue"),
        (set("@daily", ", starts_at => 'infinity'"), "22008", "finite"),
        (set("@daily", ", starts_at => '2026-02-01', ends_at => '2026-01-01'"), "23514", "schedule_ends_after_its_start"),
        (set("@daily", ", missed => NULL"), "22004", "missed"),
        (set("@daily", ", options => '{\"none\": 1}'"), "22023", "none"),
        ("SELECT pg_task.set_schedule('s', '@daily', '{\"A\": 1}')".into(), "22023", "{\"Task\": {\"Step\": payload}}"),
        ("SELECT pg_task.set_schedule('s', '@daily', '{\"A\": {\"B\": 1}}', tick_field => 'x')".into(), "22023", "object"),
        ("SELECT pg_task.set_schedule(repeat('x', 201), '@daily', '{\"A\": {\"B\": 1}}')".into(), "22023", "201"),
        ("SELECT pg_task.set_schedule(NULL, '@daily', '{\"A\": {\"B\": 1}}')".into(), "22004", "name"),
        ("SELECT pg_task.pause_schedule('none')".into(), "42704", "pg_task.schedules"),
        ("SELECT pg_task.resume_schedule('none')".into(), "42704", "none"),
        ("SELECT pg_task.run_schedule('none')".into(), "42704", "none"),
        ("SELECT pg_task.next_ticks('@daily', count => 0)".into(), "22023", "1 to 1000"),
        ("INSERT INTO pg_task.schedule (name, cron, step) VALUES ('s', 'x', '{\"A\": {\"B\": 1}}')".into(), "22023", "1 fields"),
        ("INSERT INTO pg_task.schedule (name, cron, step, missed) VALUES ('s', '@daily', '{\"A\": {\"B\": 1}}', 'x')".into(), "23514", "schedule_missed"),
        ("SELECT pg_task.on_schedule()".into(), "39P01", "trigger"),
    ] {
        let refusal = session.refusal(&sql).await?;
        let all = format!("{} {} {}", refusal.message, refusal.detail, refusal.hint);
        assert!(refusal.code == code && all.contains(word), "{sql}: {refusal:?}");
    }
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.schedule").await?, "0");
    // A table of the user's own cannot borrow the trigger.
    session.run("CREATE TABLE schedule (LIKE pg_task.schedule); CREATE TRIGGER t BEFORE INSERT ON schedule FOR EACH ROW EXECUTE FUNCTION pg_task.on_schedule()").await?;
    assert_eq!(session.refusal("INSERT INTO schedule (name) VALUES ('x')").await?.code, "39P01");
    Ok(())
}

/// A program's schedule, with the Rust client.
fn declared(name: &str, cron: &str) -> Result<Schedule> {
    Ok(Schedule::new(name, cron, &json!({ "Test": { "Note": { "key": "" } } }))?.tick_field("key"))
}

const STANDS: &str =
    "SELECT coalesce(string_agg(name || ' ' || cron, ', ' ORDER BY name), '') FROM pg_task.schedule";

#[tokio::test]
async fn a_program_declares_its_schedules_and_leaves_those_of_others_alone() -> Result<()> {
    let db = database().await?;
    db.run(&format!("SELECT pg_task.set_schedule('by sql', '@daily', {NOTE})")).await?;
    Schedules::new("other", [declared("theirs", "@daily")?]).declare(&db.pool).await?;
    let first = Schedules::new(
        "app",
        [
            declared("b", "@daily")?,
            declared("a", "@hourly")?,
            declared("by sql", "@yearly")?,
            declared("theirs", "@yearly")?,
        ],
    );
    let found = first.declare(&db.pool).await?;
    assert_eq!((found.removed.len(), found.untouched), (0, vec!["by sql".to_owned(), "theirs".to_owned()]));
    assert_eq!(db.ask(STANDS).await?, "a @hourly, b @daily, by sql @daily, theirs @daily");
    // Again: nothing is written, what is due or paused stays so.
    db.run("SELECT pg_task.pause_schedule('a')").await?;
    let rows = "SELECT string_agg(s::text || s.xmin, ', ' ORDER BY name) FROM pg_task.schedule AS s";
    let before = db.ask(rows).await?;
    first.declare(&db.pool).await?;
    assert_eq!(db.ask(rows).await?, before);
    // A later version has one less and one that is another.
    let second = || Ok::<_, anyhow::Error>([declared("b", "@weekly")?, declared("c", "@monthly")?]);
    Schedules::new("app", second()?).keep_undeclared().declare(&db.pool).await?;
    assert_eq!(db.ask(STANDS).await?, "a @hourly, b @weekly, by sql @daily, c @monthly, theirs @daily");
    assert_eq!(Schedules::new("app", second()?).declare(&db.pool).await?.removed, ["a"]);
    assert_eq!(db.ask(STANDS).await?, "b @weekly, by sql @daily, c @monthly, theirs @daily");
    // One that the server refuses takes all back.
    let bad = Schedules::new("app", [declared("a", "@daily")?, declared("z", "now and then")?]);
    let error = bad.declare(&db.pool).await.expect_err("it is no expression");
    assert!(format!("{error:?}").contains("3 fields"), "{error:?}");
    assert_eq!(db.ask(STANDS).await?, "b @weekly, by sql @daily, c @monthly, theirs @daily");
    Ok(())
}

#[tokio::test]
async fn a_worker_declares_its_schedules_when_it_starts_and_runs_what_they_enqueue() -> Result<()> {
    let db = database().await?;
    let stop = pg_task::CancellationToken::new();
    let start = |cron: &str| -> Result<_> {
        let schedules =
            Schedules::new("app", [declared("often", cron)?.overlap(Overlap::Queue).missed(Missed::All(5))]);
        let worker = pg_task::Worker::<Tasks>::new(db.pool.clone())
            .with_schedules(schedules)
            .with_cancellation(stop.clone());
        Ok(tokio::spawn(async move { worker.run().await }))
    };
    // Several workers of one program start together.
    let workers = [start("every 1 s")?, start("every 1 s")?, start("every 1 s")?];
    db.until("SELECT fired > 2 FROM pg_task.schedules").await?;
    assert_eq!(
        db.ask("SELECT concat_ws(' ', declared_by, overlap, missed, missed_limit) FROM pg_task.schedule")
            .await?,
        "app queue all 5"
    );
    // By the functions of the client.
    assert!(pg_task::pause_schedule(&db.pool, "often").await?);
    assert!(!pg_task::pause_schedule(&db.pool, "often").await?);
    db.until_done().await?;
    let id = pg_task::run_schedule(&db.pool, "often").await?;
    db.until(&format!("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE id = '{id}')")).await?;
    assert!(pg_task::resume_schedule(&db.pool, "often").await?);
    assert!(pg_task::drop_schedule(&db.pool, "often").await?);
    assert!(!pg_task::drop_schedule(&db.pool, "often").await?);
    // A worker whose declaration is refused ends with the reason.
    let error = start("at noon")?.await?.expect_err("it is no expression");
    assert!(format!("{error:?}").contains("2 fields"), "{error:?}");
    stop.cancel();
    for worker in workers {
        worker.await??;
    }
    // One by SQL's own rights, with everything that a task can have.
    let meta = json!({ "tenant": "acme" });
    let tasks = Enqueue::new().queue("q").priority(-2).meta(meta.as_object().expect("an object"));
    let next = declared("sql", "@yearly")?.tasks(tasks)?.set(&db.pool).await?.expect("there is a next year");
    assert_eq!(
        db.ask("SELECT extract(epoch FROM next_at)::bigint FROM pg_task.schedule").await?,
        next.timestamp().to_string()
    );
    Ok(())
}

#[tokio::test]
async fn a_role_needs_the_right_to_schedule_and_gets_no_other_with_it() -> Result<()> {
    let db = database().await?;
    db.run("CREATE ROLE schedules_maker; GRANT USAGE ON SCHEMA pg_task TO schedules_maker; SELECT pg_task.grant_work('schedules_maker')").await?;
    let mut session = db.session().await?;
    session.run("SET ROLE schedules_maker").await?;
    let set = format!("SELECT pg_task.set_schedule('s', '* * * * * *', {NOTE})");
    assert_eq!(session.refusal(&set).await?.code, "42501");
    db.run("SELECT pg_task.grant_schedule('schedules_maker')").await?;
    session.run(&set).await?;
    session.run("SELECT pg_task.run_schedule('s')").await?;
    db.until("SELECT fired > 1 FROM pg_task.schedule").await?;
    for sql in [
        "SELECT step FROM pg_task.task",
        "SELECT pg_task.cancel(pg_task.uuid7())",
        "TRUNCATE pg_task.schedule",
    ] {
        assert_eq!(session.refusal(sql).await?.code, "42501", "{sql}");
    }
    Ok(())
}
