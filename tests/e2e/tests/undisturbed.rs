//! What one role writes, one row refuses or one session locks holds up nothing else: the scheduler goes on, and so do the tasks of others.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use pg_task_cluster::Cluster;
use pg_task_e2e::Database;
use pg_task_e2e::PATIENCE;
use pg_task_e2e::Session;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

const WORKER: &str = "'00000000-0000-0000-0000-000000000001'";
const OTHER: &str = "'00000000-0000-0000-0000-000000000002'";
const STEP: &str = r#"'{"A": {"B": 1}}'"#;

/// A server that notes claims in their rows soon and waits for no lost worker.
fn hasty_server(name: &str, more: &[&str]) -> Result<Cluster> {
    let settings = ["pg_task.worker_grace = 0", "pg_task.write_behind_after = 50"];
    own_server(name, &[&settings, more].concat())
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-undisturbed")).await
}

/// A session that registers a worker for all queues, bound to it.
async fn registered(db: &Database, more: &str) -> Result<Session> {
    registered_as(db, WORKER, more).await
}

async fn registered_as(db: &Database, worker: &str, more: &str) -> Result<Session> {
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({worker}, bind => true{more})")).await?;
    Ok(session)
}

/// Takes so many tasks, when they are there, into the table `claim` of the session.
async fn take(session: &mut Session, count: u32) -> Result<()> {
    take_as(session, WORKER, count).await
}

async fn take_as(session: &mut Session, worker: &str, count: u32) -> Result<()> {
    session.run(&format!("CREATE TEMP TABLE claim AS SELECT * FROM pg_task.exchange({worker}, 0)")).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let taken: u32 = session.ask("SELECT count(*) FROM claim").await?.parse()?;
        if taken >= count {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "only {taken} of {count} tasks were handed out");
        let want = count - taken;
        let exchange = format!("SELECT * FROM pg_task.exchange({worker}, {want}) WHERE event = 0");
        session.run(&format!("INSERT INTO claim {exchange}")).await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn numbers_count_as_long_as_they_are_written_in_a_step_in_options_and_in_an_answer() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let long = |count: u32| {
        format!(
            "jsonb_build_object('A', jsonb_build_object('B', (SELECT jsonb_agg('1e131071'::numeric) FROM generate_series(1, {count}))))"
        )
    };
    for sql in [
        format!("SELECT pg_task.enqueue({})", long(9_000)),
        format!("SELECT pg_task.enqueue({})", long(9)),
        format!("SELECT pg_task.enqueue_many(ARRAY[{STEP}, {}])", long(9)),
        format!("INSERT INTO pg_task.task (step) VALUES ({})", long(9)),
        format!("SELECT pg_task.set_schedule('long', '@daily', {})", long(9)),
        format!("SELECT pg_task.enqueue({STEP}, options => '{{\"meta\": {{\"a\": 1e-16383}}}}')"),
    ] {
        assert_eq!(session.refusal(&sql).await?.code, "54000", "{sql}");
    }
    // Escapes too: a control character takes six bytes.
    let controls = r#"SELECT pg_task.enqueue(jsonb_build_object('A', jsonb_build_object('B', repeat(E'\x01', 200000))))"#;
    assert_eq!(session.refusal(controls).await?.code, "54000");
    // Two hundred that are short as they are stored would make an answer of 180 MB.
    session.run(&format!("SELECT count(pg_task.enqueue({})) FROM generate_series(1, 200)", long(7))).await?;
    db.until("SELECT ready = 200 FROM pg_task.scheduler").await?;
    let mut worker = registered(&db, "").await?;
    let mut taken = 0;
    while taken < 200 {
        let answer = "count(*) FILTER (WHERE event = 0) || ' ' || count(*) FILTER (WHERE event = 6)";
        let got = worker.ask(&format!("SELECT {answer} FROM pg_task.exchange({WORKER}, 200)")).await?;
        let (count, more) = got.split_once(' ').unwrap_or_default();
        let count: u32 = count.parse()?;
        assert!(count <= 10, "{count} at a time");
        taken += count;
        assert!(more == "1" || taken >= 190, "{got} after {taken}");
    }
    Ok(())
}

#[tokio::test]
async fn a_deadline_that_postgresql_cannot_read_is_refused() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    for deadline in ["2020-01-01T00:00:00+23:59", "2020-01-01T00:00:00-16:00", "0000-05-05T00:00:00Z"] {
        let sql = format!(r#"SELECT pg_task.enqueue({STEP}, options => '{{"deadline": "{deadline}"}}')"#);
        assert_eq!(session.refusal(&sql).await?.code, "22023", "{deadline}");
    }
    session
        .run(&format!(
            r#"SELECT pg_task.enqueue({STEP}, options => '{{"deadline": "2020-01-01T00:00:00+15:59"}}')"#
        ))
        .await
}

#[tokio::test]
async fn words_that_the_server_would_keep_as_rules_of_a_zone_are_no_zones() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let ticks = |zone: &str| format!("SELECT pg_task.next_ticks('@daily', '{zone}')");
    for zone in ["GMT1AAA", "GMT+123", "Etc/GMT1AAA", "Europe/Berlin1", "<A1>1"] {
        assert_eq!(session.refusal(&ticks(zone)).await?.code, "22023", "{zone}");
    }
    for zone in ["GMT", "GMT0", "gmt-0", "Etc/GMT+12", "Etc/GMT-14", "EST5EDT", "Europe/Berlin"] {
        session.run(&ticks(zone)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_lost_when_it_was_asked_about_a_deadline_is_written_down() -> Result<()> {
    let server = hasty_server("e2e-undisturbed-asked", &[])?;
    let db = Database::create(&server).await?;
    let deadline = "2020-01-01T00:00:00+15:59";
    db.run(&format!(r#"SELECT pg_task.enqueue({STEP}, options => '{{"deadline": "{deadline}"}}')"#)).await?;
    let mut worker = registered(&db, ", gives_up => true").await?;
    take(&mut worker, 1).await?;
    drop(worker);
    db.until("SELECT count(*) = 1 FROM pg_task.failed WHERE error LIKE '%not begun before its deadline, 2019-12-31 08:01:00+00'").await
}

#[tokio::test]
async fn a_lost_task_that_refuses_to_be_written_holds_up_no_other() -> Result<()> {
    let server = hasty_server("e2e-undisturbed-refusing", &[])?;
    let db = Database::create(&server).await?;
    db.run(&format!(
        "ALTER TABLE pg_task.task ADD CONSTRAINT unlucky CHECK (tried < 1 OR queue <> 'odd');
         SELECT pg_task.enqueue({STEP}, 'odd'), pg_task.enqueue({STEP}), pg_task.enqueue({STEP})"
    ))
    .await?;
    let mut worker = registered(&db, "").await?;
    take(&mut worker, 3).await?;
    drop(worker);
    db.until("SELECT count(*) = 2 FROM pg_task.task WHERE tried = 1").await?;
    db.until("SELECT last_error LIKE '%unlucky%' FROM pg_task.scheduler").await?;
    // What sleeps is woken all the same.
    db.run(&format!("SELECT pg_task.delay({STEP}, '1.5 s')")).await?;
    let mut other = registered_as(&db, OTHER, "").await?;
    take_as(&mut other, OTHER, 3).await?;
    assert_eq!(db.ask("SELECT state FROM pg_task.scheduler").await?, "running");
    drop(other);
    db.run("ALTER TABLE pg_task.task DROP CONSTRAINT unlucky").await?;
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE tried = 1 AND queue = 'odd'").await
}

/// Lets each UPDATE of a task of the queue `odd` take its time and fail.
async fn refuse_slowly(db: &Database) -> Result<()> {
    db.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.2); RAISE 'unlucky'; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON pg_task.task FOR EACH ROW WHEN (OLD.queue = 'odd') EXECUTE FUNCTION refuse()",
    )
    .await
}

#[tokio::test]
async fn a_lost_task_that_takes_its_time_to_refuse_holds_up_no_other() -> Result<()> {
    let server = hasty_server("e2e-undisturbed-slow", &[])?;
    let db = Database::create(&server).await?;
    refuse_slowly(&db).await?;
    db.run(&format!("SELECT pg_task.enqueue({STEP}, 'odd'), pg_task.enqueue({STEP}, 'odd')")).await?;
    let mut worker = registered(&db, "").await?;
    take(&mut worker, 2).await?;
    drop(worker);
    db.until("SELECT last_error LIKE '%unlucky%' FROM pg_task.scheduler").await?;
    // Not the lost one once more: what that held would be given back, when its loss has not been noticed yet.
    let mut other = registered_as(&db, OTHER, "").await?;
    for _ in 0..3 {
        db.run(&format!("SELECT pg_task.delay({STEP}, '100 ms')")).await?;
        take_as(&mut other, OTHER, 1).await?;
        other.run("DROP TABLE claim").await?;
    }
    db.run("DROP TRIGGER refuse ON pg_task.task").await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task WHERE tried = 1 AND queue = 'odd'").await
}

#[tokio::test]
async fn a_claim_that_refuses_to_be_written_down_hides_no_other() -> Result<()> {
    let server = hasty_server("e2e-undisturbed-unwritten", &[])?;
    let db = Database::create(&server).await?;
    refuse_slowly(&db).await?;
    db.run(&format!(
        "SELECT pg_task.enqueue({STEP}, 'odd'), pg_task.enqueue({STEP}), pg_task.enqueue({STEP})"
    ))
    .await?;
    let mut worker = registered(&db, "").await?;
    take(&mut worker, 3).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
    assert_eq!(db.ask("SELECT locked_by IS NULL FROM pg_task.task WHERE queue = 'odd'").await?, "t");
    Ok(())
}

#[tokio::test]
async fn a_deletion_of_very_many_is_told_to_those_who_run_some() -> Result<()> {
    let db = database().await?;
    db.run(&format!("SELECT pg_task.enqueue({STEP})")).await?;
    let mut worker = registered(&db, "").await?;
    take(&mut worker, 1).await?;
    // The one that runs comes last.
    db.run("BEGIN; INSERT INTO pg_task.task (id, step) SELECT gen_random_uuid(), '{\"A\": {\"B\": 2}}' FROM generate_series(1, 12000);
         DELETE FROM pg_task.task WHERE step = '{\"A\": {\"B\": 2}}'; DELETE FROM pg_task.task; COMMIT")
        .await?;
    let told = format!("SELECT string_agg(event::text, ',') FROM pg_task.exchange({WORKER}, 0)");
    assert_eq!(worker.ask(&told).await?, "3");
    Ok(())
}

#[tokio::test]
async fn a_count_at_the_end_of_its_range_is_no_end_of_the_scheduler() -> Result<()> {
    let server = hasty_server("e2e-undisturbed-counts", &[])?;
    let db = Database::create(&server).await?;
    db.run(&format!("SELECT pg_task.enqueue({STEP}); UPDATE pg_task.task SET tried = 2147483647")).await?;
    let mut worker = registered(&db, "").await?;
    take(&mut worker, 1).await?;
    drop(worker);
    db.until("SELECT count(*) = 1 FROM pg_task.failed WHERE tried = 2147483647").await
}

#[tokio::test]
async fn a_lock_of_the_table_of_schedules_holds_up_no_task() -> Result<()> {
    let db = database().await?;
    db.run(&format!("SELECT pg_task.set_schedule('s', 'every 1 second', {STEP}, queue => 'ticks')")).await?;
    db.until("SELECT fired > 0 FROM pg_task.schedule").await?;
    for mode in ["EXCLUSIVE", "ACCESS EXCLUSIVE"] {
        let mut locker = db.session().await?;
        locker.run(&format!("BEGIN; LOCK TABLE pg_task.schedule IN {mode} MODE")).await?;
        db.until("SELECT last_error LIKE '%locked%pg_task.schedule%' FROM pg_task.scheduler").await?;
        let mut worker = registered(&db, ", queues => '{default}'").await?;
        // One after another: each waits for a tick of the scheduler.
        for _ in 0..5 {
            db.run(&format!("SELECT pg_task.delay({STEP}, '200 ms')")).await?;
            take(&mut worker, 1).await?;
            worker.run("DROP TABLE claim").await?;
        }
        let fired = locker.ask("SELECT fired FROM pg_task.schedule").await?;
        locker.run("COMMIT").await?;
        db.until(&format!("SELECT fired > {fired} FROM pg_task.schedule")).await?;
        db.run("DELETE FROM pg_task.task").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_schedule_with_odd_numbers_is_served() -> Result<()> {
    let db = database().await?;
    db.run(&format!(
        "INSERT INTO pg_task.schedule (name, cron, step, fired, skipped, failures)
            VALUES ('counts', 'every 1 second', {STEP}, 9223372036854775807, 9223372036854775807, 2147483647);
         INSERT INTO pg_task.schedule (name, cron, step, waiting, overlap)
            VALUES ('waiting', 'every 1 second', {STEP}, '{{infinity,-infinity}}', 'queue');
         INSERT INTO pg_task.schedule (name, cron, step, ends_at, next_at)
            VALUES ('over', 'every 1 second', {STEP}, '1897-01-01', '1700-01-01');
         INSERT INTO pg_task.schedule (name, cron, step, starts_at)
            VALUES ('never', 'every 1 second', {STEP}, '294276-12-31 23:59:59.5+00')"
    ))
    .await?;
    db.until("SELECT last_run_at IS NOT NULL AND fired = 9223372036854775807 AND failures = 0 FROM pg_task.schedule WHERE name = 'counts'").await?;
    db.until(
        "SELECT fired > 0 AND waiting <> '{infinity,-infinity}' FROM pg_task.schedule WHERE name = 'waiting'",
    )
    .await?;
    // A thousand are counted, the last one runs.
    db.until("SELECT next_at IS NULL AND fired = 1 AND skipped = 999 AND last_at = '1896-12-31 23:59:59+00' FROM pg_task.schedule WHERE name = 'over'").await?;
    db.until("SELECT next_at IS NULL FROM pg_task.schedule WHERE name = 'never'").await?;
    assert_eq!(db.ask("SELECT count(s::text) FROM pg_task.schedules AS s").await?, "4");
    assert_eq!(db.ask("SELECT count(t::text) = count(*) FROM pg_task.task AS t").await?, "t");
    Ok(())
}

#[tokio::test]
async fn a_unique_task_at_the_end_of_time_can_be_dumped() -> Result<()> {
    let db = database().await?;
    db.run(&format!(
        "SELECT pg_task.enqueue_unique({STEP}, 'k', wakeup_at => '294276-12-31 23:59:30+00');
         SELECT pg_task.enqueue_unique({STEP}, 'p', scope => 'period', period => '292000 years')"
    ))
    .await?;
    // What is written can be read again.
    let read = "SELECT count(check_at::text::timestamptz) FROM pg_task.unique_key";
    assert_eq!(db.ask(read).await?, "2");
    Ok(())
}

#[tokio::test]
async fn what_a_trigger_enqueues_when_the_scheduler_writes_is_handed_out() -> Result<()> {
    // Nothing but the hint leads to it.
    let server =
        hasty_server("e2e-undisturbed-trigger", &["pg_task.max_sleep = 3600", "pg_task.lost_limit = 0"])?;
    let db = Database::create(&server).await?;
    db.run(&format!(
        r#"CREATE FUNCTION alert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_task.enqueue('{{"Alert": {{"Mail": 1}}}}', 'alerts');
            RETURN NULL;
         END $$;
         CREATE TRIGGER alert AFTER UPDATE OF error ON pg_task.task FOR EACH ROW WHEN (NEW.error IS NOT NULL) EXECUTE FUNCTION alert();
         SELECT pg_task.enqueue({STEP})"#
    ))
    .await?;
    let mut worker = registered(&db, "").await?;
    take(&mut worker, 1).await?;
    drop(worker);
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    db.until("SELECT ready = 1 FROM pg_task.lanes() WHERE queue = 'alerts'").await
}

#[tokio::test]
async fn a_worker_registers_and_leaves_beside_a_row_that_is_locked() -> Result<()> {
    let server = hasty_server("e2e-undisturbed-locked", &[])?;
    let db = Database::create(&server).await?;
    for how in ["register", "leave"] {
        db.run(&format!("SELECT pg_task.enqueue({STEP}), pg_task.enqueue({STEP})")).await?;
        let mut worker = registered(&db, "").await?;
        take(&mut worker, 2).await?;
        db.until("SELECT count(*) = 2 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
        let mut locker = db.session().await?;
        locker.run("BEGIN; SELECT FROM pg_task.task FOR UPDATE LIMIT 1").await?;
        // It says that it holds nothing. It would wait for as long as the lock is held.
        worker.run(&format!("SET statement_timeout = '20 s'; SELECT pg_task.{how}({WORKER})")).await?;
        db.until("SELECT claimed = 0 FROM pg_task.scheduler").await?;
        let mut other = registered(&db, "").await?;
        take(&mut other, 1).await?;
        locker.run("ROLLBACK").await?;
        db.run("DELETE FROM pg_task.task").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_task_that_takes_the_id_of_a_deleted_one_is_not_ended_by_its_result() -> Result<()> {
    let db = database().await?;
    const ID: &str = "'0193f2a0-0000-7000-8000-000000000001'";
    let insert = |step: &str| {
        format!(r#"INSERT INTO pg_task.task (id, step) VALUES ({ID}, '{{"A": {{"{step}": 1}}}}')"#)
    };
    for delete in
        [format!("DELETE FROM pg_task.task WHERE id = {ID}"), format!("SELECT pg_task.cancel({ID})")]
    {
        let mut worker = registered(&db, "").await?;
        db.run(&insert("Old")).await?;
        take(&mut worker, 1).await?;
        db.run(&delete).await?;
        db.run(&insert("New")).await?;
        let bring = format!(
            "SELECT string_agg(e.event::text, ',' ORDER BY e.event) FROM claim AS c,
                pg_task.exchange({WORKER}, 0, ARRAY[c.id], ARRAY[c.fence], ARRAY[c.token]) AS e"
        );
        assert_eq!(worker.ask(&bring).await?, "2,3", "{delete}");
        worker.run("DROP TABLE claim").await?;
        take(&mut worker, 1).await?;
        assert_eq!(
            worker.ask("SELECT string_agg(step::text, ',') FROM claim").await?,
            r#"{"A": {"New": 1}}"#
        );
        worker.run(&bring).await?;
        db.until_done().await?;
    }
    Ok(())
}

#[tokio::test]
async fn tables_that_anybody_drops_do_not_make_the_scheduler_begin_anew() -> Result<()> {
    let db = database().await?;
    db.run(&format!("SELECT pg_task.delay({STEP}, '1 h')")).await?;
    let mut session = db.session().await?;
    let rescans = "SELECT rescans FROM pg_task.scheduler";
    db.until("SELECT next_wake IS NOT NULL FROM pg_task.scheduler").await?;
    let ticks: u64 = db.ask("SELECT ticks FROM pg_task.scheduler").await?.parse()?;
    let before = db.ask(rescans).await?;
    for _ in 0..200 {
        session.run("CREATE TEMP TABLE t (); DROP TABLE t").await?;
    }
    let after: u64 = db.ask("SELECT ticks FROM pg_task.scheduler").await?.parse()?;
    assert!(after - ticks < 100, "{} ticks", after - ticks);
    assert_eq!(db.ask(rescans).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_call_that_fails_has_not_told_of_a_cancelled_task() -> Result<()> {
    let db = database().await?;
    db.run(&format!("SELECT pg_task.enqueue({STEP})")).await?;
    let mut worker = registered(&db, "").await?;
    take(&mut worker, 1).await?;
    db.run("SELECT pg_task.cancel(id) FROM pg_task.task").await?;
    let told = "string_agg(concat(event, ' ', token = (SELECT token FROM claim)), ',')";
    let exchange = format!("SELECT {told} FROM pg_task.exchange({WORKER}, 0)");
    worker.run("BEGIN").await?;
    assert_eq!(worker.ask(&exchange).await?, "3 t");
    worker.run("ROLLBACK").await?;
    assert_eq!(worker.ask(&exchange).await?, "3 t");
    assert_eq!(worker.ask(&exchange).await?, "");
    Ok(())
}
