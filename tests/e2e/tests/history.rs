//! What became of tasks whose rows are gone: one row in the history for each, kept for a time and up to a size.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-history")).await
}

fn options<'a>() -> WorkerOptions<'a> {
    WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
}

/// Enqueues tasks that only note something.
fn notes(count: usize) -> String {
    format!(
        r#"SELECT pg_task.enqueue('{{"Test":{{"Note":{{"key":"a"}}}}}}') FROM generate_series(1, {count})"#
    )
}

/// How many rows the history has, of how many tasks, by outcome.
async fn counts(db: &Database) -> Result<String> {
    db.ask(
        "SELECT string_agg(format('%s %s/%s', outcome, rows, tasks), ', ' ORDER BY outcome)
         FROM (SELECT outcome, count(*) AS rows, count(DISTINCT id) AS tasks FROM pg_task.history GROUP BY outcome) AS x",
    )
    .await
}

#[tokio::test]
async fn every_end_leaves_one_row_that_says_how_when_and_by_whom() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("history")?);
    db.run(&notes(300)).await?;
    db.run(
        r#"SELECT pg_task.enqueue('{"Test":{"Chain":{"key":"c","left":3}}}', 'chains', 5), pg_task.enqueue('{"Test":{"Fail":{"until_attempt":3}}}', 'failing'),
                  pg_task.enqueue('{"Test":{"Later":{"key":"l","millis":10}}}', 'later'), pg_task.delay('{"Test":{"Note":{"key":"never"}}}', '1 day', 'asleep'),
                  pg_task.delay('{"Test":{"Note":{"key":"never"}}}', '1 day', 'deleted'), pg_task.enqueue('{"Test":{"Panic":null}}', 'parked')"#,
    )
    .await?;
    assert_eq!(counts(&db).await?, "");
    let _worker = db.known_worker(WorkerOptions { ledger: Some(ledger.path()), ..options() }).await?;
    db.until("SELECT count(*) = 3 AND count(error) = 1 FROM pg_task.task").await?;
    assert_eq!(counts(&db).await?, "done 303/303");
    // Parked, asleep: no end yet. What a user deletes, by whatever statement, was cancelled.
    assert_eq!(
        db.ask("SELECT bool_and(pg_task.cancel(id)) FROM pg_task.task WHERE queue <> 'deleted'").await?,
        "t"
    );
    db.run("DELETE FROM pg_task.task").await?;
    assert_eq!(counts(&db).await?, "cancelled 3/3, done 303/303");
    let of = |what: &str, queue: &str| {
        let sql = format!("SELECT {what} FROM pg_task.history WHERE queue = '{queue}'");
        let db = &db;
        async move { db.ask(&sql).await }
    };
    assert_eq!(of("attempts || ' ' || priority", "chains").await?, "1 5");
    assert_eq!(of("step #>> '{Test,Chain,left}'", "chains").await?, "0");
    assert_eq!(of("attempts", "failing").await?, "3");
    assert_eq!(of("step->'Test' ? 'Note'", "later").await?, "t");
    assert_eq!(
        of("attempts || coalesce(worker::text, '') || coalesce(started_at::text, '')", "asleep").await?,
        "0"
    );
    assert!(of("error", "parked").await?.contains("not ready for this"));
    let in_order = "SELECT bool_and(created_at <= started_at AND started_at <= ended_at AND ended_at <= now() AND wakeup_at <= started_at
        AND worker = (SELECT id FROM pg_task.workers)) FROM pg_task.history WHERE outcome = 'done'";
    assert_eq!(db.ask(in_order).await?, "t");
    Ok(())
}

#[tokio::test]
async fn what_is_rolled_back_leaves_no_row_and_what_is_left_to_sql_leaves_one() -> Result<()> {
    let db = database().await?;
    db.run(
        "SELECT pg_task.delay('{\"Test\":{\"Note\":{\"key\":\"a\"}}}', '1 day') FROM generate_series(1, 3)",
    )
    .await?;
    db.run("BEGIN; DELETE FROM pg_task.task; ROLLBACK").await?;
    db.run("BEGIN; SAVEPOINT a; DELETE FROM pg_task.task; ROLLBACK TO a; COMMIT").await?;
    assert_eq!(counts(&db).await?, "");
    // A trigger of the user's: rows are deleted by SQL, which must not take an end for a deletion. This one deletes another task with each.
    db.run(
        "CREATE TABLE pairs (id uuid, other uuid);
         CREATE FUNCTION take_along() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             DELETE FROM pg_task.task WHERE id = (SELECT other FROM public.pairs WHERE id = old.id); RETURN NULL; END $$;
         CREATE TRIGGER take_along AFTER DELETE ON pg_task.task FOR EACH ROW EXECUTE FUNCTION take_along()",
    )
    .await?;
    db.run(&format!(
        "WITH asleep AS (SELECT id, row_number() OVER () AS n FROM pg_task.task),
              due AS (SELECT id, row_number() OVER () AS n FROM ({}) AS x (id))
         INSERT INTO pairs SELECT due.id, asleep.id FROM due LEFT JOIN asleep USING (n)",
        notes(50)
    ))
    .await?;
    let _worker = db.known_worker(options()).await?;
    db.until_done().await?;
    assert_eq!(counts(&db).await?, "cancelled 3/3, done 50/50");
    let known = "SELECT count(worker) || ' ' || count(started_at) FROM pg_task.history";
    assert_eq!(db.ask(known).await?, "50 50");
    Ok(())
}

#[tokio::test]
async fn switched_off_nothing_is_written() -> Result<()> {
    let db = database().await?;
    let name = db.ask("SELECT current_database()").await?;
    db.run(&format!("ALTER DATABASE {name} SET pg_task.history = off")).await?;
    let off = Database::attach(shared_server("e2e-history"), &name).await?;
    let _worker = off.known_worker(options()).await?;
    off.run(&notes(200)).await?;
    off.until_done().await?;
    off.run(&format!("SELECT pg_task.stop_workers(); {}; DELETE FROM pg_task.task", notes(20))).await?;
    let pages = "SELECT sum(pg_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'pg_task.history'::regclass";
    assert_eq!(off.ask(pages).await?, "0");
    Ok(())
}

#[tokio::test]
async fn rows_go_with_their_partition_when_their_time_is_over_and_readers_hold_up_nobody() -> Result<()> {
    let server = own_server("e2e-history-age", &["pg_task.history_retention = 7s"])?;
    let db = Database::create(&server).await?;
    let _worker = db.known_worker(options()).await?;
    db.run(&notes(100)).await?;
    db.until_done().await?;
    // All partitions are locked by a reader: nothing is emptied, tasks go on, and nothing is wrong.
    let mut reader = db.session().await?;
    reader.run("BEGIN; TABLE pg_task.history").await?;
    db.until("SELECT max(ended_at) < clock_timestamp() - interval '9 s' FROM pg_task.history").await?;
    db.run(&notes(100)).await?;
    db.until_done().await?;
    assert_eq!(counts(&db).await?, "done 200/200");
    assert_eq!(db.ask("SELECT last_error FROM pg_task.scheduler").await?, "");
    reader.run("COMMIT").await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.history)").await?;
    // Another scheduler goes on where this one was.
    let part = "SELECT last_value & 7 FROM pg_task.history_part";
    assert_ne!(db.ask(part).await?, "0");
    let pid = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until(&format!("SELECT pid <> {pid} AND state = 'running' FROM pg_task.scheduler")).await?;
    db.run(&notes(1)).await?;
    db.until_done().await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.history)").await
}

#[tokio::test]
async fn the_oldest_rows_go_when_the_history_has_its_size() -> Result<()> {
    let server =
        own_server("e2e-history-size", &["pg_task.history_retention = 0", "pg_task.history_max_size = 1MB"])?;
    let db = Database::create(&server).await?;
    let mut seen = 0;
    // Half a megabyte each time, more than a partition may have.
    for round in 1..=9 {
        db.run(&format!(
            "INSERT INTO pg_task.task (step) SELECT jsonb_build_object('Test', jsonb_build_object('Round', {round}, 'x', null) - 'x') FROM generate_series(1, 4000);
             DELETE FROM pg_task.task"
        ))
        .await?;
        // The scheduler looks at the size now and then; a notice of something due makes it look soon.
        db.until(&format!("SELECT last_value & 7 <> {seen} FROM pg_task.history_part")).await?;
        seen = db.ask("SELECT last_value & 7 FROM pg_task.history_part").await?.parse()?;
    }
    db.until("SELECT min((step #>> '{Test,Round}')::int) > 1 FROM pg_task.history").await?;
    assert_eq!(db.ask("SELECT max((step #>> '{Test,Round}')::int) FROM pg_task.history").await?, "9");
    Ok(())
}

#[tokio::test]
async fn a_history_that_cannot_be_tidied_up_stops_nothing_and_is_told() -> Result<()> {
    let server = own_server("e2e-history-fails", &["pg_task.history_retention = 7s"])?;
    let db = Database::create(&server).await?;
    let _worker = db.known_worker(options()).await?;
    db.run("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'this is kept'; END $$")
    .await?;
    for part in 0..8 {
        db.run(&format!(
            "CREATE TRIGGER keep BEFORE TRUNCATE ON pg_task.history_{part} EXECUTE FUNCTION keep()"
        ))
        .await?;
    }
    db.run(&notes(10)).await?;
    db.until("SELECT last_error LIKE '%this is kept%' FROM pg_task.scheduler").await?;
    db.run(&notes(10)).await?;
    db.until_done().await?;
    assert_eq!(counts(&db).await?, "done 20/20");
    assert_eq!(db.ask("SELECT state FROM pg_task.scheduler").await?, "running");
    for part in 0..8 {
        db.run(&format!("DROP TRIGGER keep ON pg_task.history_{part}")).await?;
    }
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.history)").await
}

#[tokio::test]
async fn every_row_is_found_by_its_id_and_by_an_index_of_the_user_s() -> Result<()> {
    let db = database().await?;
    let _worker = db.known_worker(options()).await?;
    db.run("CREATE INDEX ON pg_task.history_7 (queue)").await?;
    // Ids in no order; the second half is written into ranges of pages that have their bounds already.
    for round in 0..4 {
        db.run(&format!(
            r#"INSERT INTO pg_task.task (id, step, queue) SELECT gen_random_uuid(), '{{"Test":{{"Note":{{"key":"a"}}}}}}', 'q{round}' FROM generate_series(1, 1500)"#
        ))
        .await?;
        db.until_done().await?;
        db.run("VACUUM pg_task.history").await?;
        if round == 1 {
            db.run("CREATE INDEX ON pg_task.history (queue)").await?;
        }
    }
    let mut session = db.session().await?;
    session.run("CREATE TEMP TABLE ids AS SELECT id FROM pg_task.history; SET enable_seqscan = off").await?;
    // By the index: nothing else can look up an id without reading all rows.
    let found = "SELECT count(*) FROM ids, LATERAL (SELECT FROM pg_task.history AS h WHERE h.id = ids.id OFFSET 0) AS h";
    assert_eq!(session.ask(found).await?, "6000");
    let by_queue = "SELECT string_agg((SELECT count(*) FROM pg_task.history WHERE queue = q)::text, ' ') FROM unnest(ARRAY['q0', 'q1', 'q2', 'q3']) AS q";
    assert_eq!(session.ask(by_queue).await?, "1500 1500 1500 1500");
    Ok(())
}

#[tokio::test]
async fn a_history_with_columns_of_another_type_is_left_alone_and_tasks_go_on() -> Result<()> {
    let db = database().await?;
    let _worker = db.known_worker(options()).await?;
    db.run("ALTER TABLE pg_task.history ALTER COLUMN attempts TYPE text").await?;
    db.run(&notes(10)).await?;
    db.until_done().await?;
    assert_eq!(counts(&db).await?, "");
    // A column that was added is NULL.
    db.run("ALTER TABLE pg_task.history ALTER COLUMN attempts TYPE integer USING attempts::integer; ALTER TABLE pg_task.history ADD COLUMN note text").await?;
    db.run(&notes(10)).await?;
    db.until_done().await?;
    assert_eq!(counts(&db).await?, "done 10/10");
    assert_eq!(db.ask("SELECT count(note) FROM pg_task.history").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_large_step_is_kept_whole_and_so_are_errors_and_options() -> Result<()> {
    let db = database().await?;
    db.run(
        r#"INSERT INTO pg_task.task (step, errors, options) SELECT jsonb_build_object('Test', jsonb_build_object('Note', jsonb_build_object('key', string_agg(md5(n::text), '')))),
             '["once"]', '{"meta": {"customer": 7}}' FROM generate_series(1, 5000) AS n;
         CREATE TABLE before AS SELECT id, step, errors, options FROM pg_task.task"#,
    )
    .await?;
    let _worker = db.known_worker(options()).await?;
    db.until_done().await?;
    db.run("VACUUM pg_task.task").await?;
    assert_eq!(db.ask("SELECT (before.step, before.errors, before.options) = (h.step, h.errors, h.options) AND outcome = 'done' FROM before JOIN pg_task.history AS h USING (id)").await?, "t");
    Ok(())
}
