//! Who may do what, and that nobody gets further: attempts with only the rights that pg_task grants.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::roles;
use pg_task_e2e::shared_server;
use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::postgres::PgDatabaseError;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-security")).await
}

/// A session that has really logged in as the role: it cannot go back to another one.
async fn login(db: &Database, role: &str) -> Result<PgConnection> {
    db.run(&format!(
        "DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD '{role}'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    ))
    .await?;
    let (_, place) = db.url.split_once('@').context("the URL has a user")?;
    Ok(PgConnection::connect(&format!("postgres://{role}:{role}@{place}")).await?)
}

async fn run(session: &mut PgConnection, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(session).await.with_context(|| sql.to_owned())?;
    Ok(())
}

/// The SQLSTATE with which a statement fails.
async fn refused(session: &mut PgConnection, sql: &str) -> Result<String> {
    match sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(session).await {
        Ok(_) => bail!("allowed: {sql}"),
        Err(sqlx::Error::Database(error)) => Ok(error.downcast_ref::<PgDatabaseError>().code().to_owned()),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn every_cell_of_the_table_in_the_documentation_is_what_happens() -> Result<()> {
    let db = database().await?;
    roles::grant(&db).await?;
    // Rows to be read and changed.
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    let found = roles::table(&db).await?;
    let path = pg_task_cluster::workspace_root().join("docs/security.md");
    let text = std::fs::read_to_string(&path)?;
    let (begin, end) = ("<!-- rights begin -->\n", "<!-- rights end -->");
    let (before, rest) = text.split_once(begin).context("no mark for the begin")?;
    let (documented, after) = rest.split_once(end).context("no mark for the end")?;
    if std::env::var_os("PG_TASK_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{found}{end}{after}"))?;
        return Ok(());
    }
    let differences: Vec<String> = documented
        .lines()
        .filter(|line| !found.lines().any(|other| other == *line))
        .map(|line| format!("documented: {line}"))
        .chain(
            found
                .lines()
                .filter(|line| !documented.lines().any(|other| other == *line))
                .map(|line| format!("found:      {line}")),
        )
        .collect();
    assert!(differences.is_empty(), "docs/security.md is not true:\n{}", differences.join("\n"));
    Ok(())
}

/// Functions and operators that would shadow PostgreSQL's own for a statement that does not say where its own are. Each notes whom it
/// ran as, but for the harness, which is not what is tested.
const TRAPS: &str = r#"
    CREATE SCHEMA trap; GRANT ALL ON SCHEMA trap TO PUBLIC;
    CREATE TABLE trap.log (who name, what text); GRANT INSERT ON trap.log TO PUBLIC;
    CREATE FUNCTION trap.note(what text) RETURNS void LANGUAGE sql AS
        $$INSERT INTO trap.log SELECT current_user, what WHERE current_setting('application_name') OPERATOR(pg_catalog.<>) 'pg_task test harness'$$;
    DO $do$
    DECLARE
        kind text;
    BEGIN
        FOREACH kind IN ARRAY ARRAY['uuid', 'bigint', 'integer', 'smallint', 'text', 'timestamptz', 'boolean', 'name', 'oid'] LOOP
            EXECUTE format($$CREATE FUNCTION trap.compare(%1$s, %1$s) RETURNS boolean LANGUAGE plpgsql AS
                'BEGIN PERFORM trap.note(''compared %1$s''); RETURN true; END'$$, kind);
            EXECUTE (SELECT string_agg(format('CREATE OPERATOR trap.%s (FUNCTION = trap.compare, LEFTARG = %s, RIGHTARG = %s)',
                operator, kind, kind), ';') FROM unnest(ARRAY['=', '<', '>', '<=', '>=', '<>']) AS operator);
        END LOOP;
        FOREACH kind IN ARRAY ARRAY['bigint', 'integer'] LOOP
            EXECUTE format($$CREATE FUNCTION trap.add(%1$s, %1$s) RETURNS %1$s LANGUAGE plpgsql AS
                'BEGIN PERFORM trap.note(''added %1$s''); RETURN $1; END'$$, kind);
            EXECUTE format('CREATE OPERATOR trap.+ (FUNCTION = trap.add, LEFTARG = %1$s, RIGHTARG = %1$s)', kind);
            EXECUTE format('CREATE OPERATOR trap.- (FUNCTION = trap.add, LEFTARG = %1$s, RIGHTARG = %1$s)', kind);
        END LOOP;
    END $do$;
    CREATE FUNCTION trap.has(jsonb, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''?''); RETURN true; END';
    CREATE OPERATOR trap.? (FUNCTION = trap.has, LEFTARG = jsonb, RIGHTARG = text);
    CREATE FUNCTION trap.field(jsonb, text) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''->''); RETURN $1; END';
    CREATE OPERATOR trap.-> (FUNCTION = trap.field, LEFTARG = jsonb, RIGHTARG = text);
    CREATE FUNCTION trap.ago(timestamptz, interval) RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''ago''); RETURN $1; END';
    CREATE OPERATOR trap.- (FUNCTION = trap.ago, LEFTARG = timestamptz, RIGHTARG = interval);
    CREATE FUNCTION trap.count() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''count''); RETURN 1; END';
    CREATE OPERATOR trap.~~ (FUNCTION = trap.compare, LEFTARG = text, RIGHTARG = text);
    CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''now''); RETURN ''epoch''; END';
    CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''clock''); RETURN ''epoch''; END';
    CREATE FUNCTION trap.format(text, VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_format';
    CREATE FUNCTION trap.format(text, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''format''); RETURN $1; END';
    CREATE FUNCTION trap.format(text, regrole) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''format''); RETURN $1; END';
    CREATE FUNCTION trap.to_jsonb(anyelement) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''to_jsonb''); RETURN ''1''; END';
    CREATE FUNCTION trap.jsonb_build_object(VARIADIC "any") RETURNS jsonb LANGUAGE internal AS 'jsonb_build_object';
    CREATE FUNCTION trap.isfinite(timestamptz) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''isfinite''); RETURN true; END';
    CREATE FUNCTION trap.octet_length(text) RETURNS integer LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''octet_length''); RETURN 1; END';
    CREATE FUNCTION trap.setval(regclass, bigint) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''setval''); RETURN 1; END';
    CREATE FUNCTION trap.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''unnest''); END';
    CREATE FUNCTION trap.greatest(integer, integer) RETURNS integer LANGUAGE plpgsql AS 'BEGIN PERFORM trap.note(''greatest''); RETURN 1; END';
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA trap TO PUBLIC;
"#;

/// Everything that pg_task offers, called under the trapped search_path by whoever runs the session.
const EVERYTHING: &[&str] = &[
    r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "a"}}}')"#,
    r#"SELECT pg_task.delay('{"Test": {"Note": {"key": "a"}}}', '1 hour')"#,
    r#"SELECT pg_task.schedule('{"Test": {"Note": {"key": "a"}}}', '2020-01-01')"#,
    r#"SELECT pg_task.enqueue_many(ARRAY['{"Test": {"Note": {"key": "a"}}}', '{"Test": {"Note": {"key": "b"}}}']::jsonb[])"#,
    r#"SELECT pg_task.enqueue_unique('{"Test": {"Note": {"key": "a"}}}', 'trapped', 'done', 'replace_and_move', '1 day') FROM generate_series(1, 2)"#,
    "SELECT pg_task.step_is_valid('{}'), pg_task.uuid7()",
    "SELECT pg_task.register('00000000-0000-0000-0000-00000000000a', steps => '{Test/Odd}', retry_limits => '{1}', queues => '{odd}')",
    "SELECT pg_task.exchange('00000000-0000-0000-0000-00000000000a', 5)",
    "SELECT pg_task.exchange('00000000-0000-0000-0000-00000000000a', 0, ARRAY[pg_task.uuid7()], '{0}', '{1}', '{1}', ARRAY['{\"A\": {\"B\": 1}}'::jsonb])",
    "SELECT pg_task.finish('00000000-0000-0000-0000-00000000000a', pg_task.uuid7(), 0, 1, 2, '{\"A\": {\"B\": 1}}', 1)",
    "SELECT pg_task.heartbeat('00000000-0000-0000-0000-00000000000a')",
    "SELECT pg_task.set_progress('00000000-0000-0000-0000-00000000000a', pg_task.uuid7(), 1, 0.5, 'half')",
    "SELECT pg_task.set_progress_many('00000000-0000-0000-0000-00000000000a', ARRAY[pg_task.uuid7()], '{1}', '{0.5}', '{half}')",
    "SELECT pg_task.leave('00000000-0000-0000-0000-00000000000a')",
    "SELECT pg_task.resume(pg_task.uuid7()), pg_task.cancel(pg_task.uuid7()), pg_task.resume_all('q', 'T', 'x%')",
    "SELECT pg_task.cancel_all('q', 'T/S', 'x%', 'running', '1 day', -1, 1, ARRAY[pg_task.uuid7()], 5), pg_task.move_all('q', 'nobody', 'T/S', 'x%', 'due', '1 day', -1, 1, ARRAY[pg_task.uuid7()], 5)",
    "SELECT pg_task.reprioritize_all(3, 'nobody', 'T', state => 'asleep'), pg_task.reschedule_all('2030-01-01', 'nobody', 'T', state => 'parked'), pg_task.cancel_all('nobody', 'T/S', dry_run => true)",
    r#"SELECT pg_task.edit(pg_task.schedule('{"A": {"B": 1}}', '2030-01-01'), payload => '2'), pg_task.resume_at(pg_task.uuid7(), '2030-01-01'), pg_task.clone(pg_task.schedule('{"A": {"B": 1}}', '2030-01-01'), '2030-01-01')"#,
    r#"WITH t AS (SELECT pg_task.schedule('{"A": {"B": 1}}', '2030-01-01', 'trapped') FROM pg_catalog.generate_series(1, 3)) SELECT pg_task.move_all('trapped 2', 'trapped'), pg_task.cancel_all('trapped 2') FROM t"#,
    "SELECT pg_task.stop_workers('00000000-0000-0000-0000-00000000000b')",
    "SELECT id FROM pg_task.find(tags => '{a}', meta => '{}', trace => '0af7651916cd43dd8448eb211c80319c')",
    r#"SELECT pg_task.set_queue('trapped', 3, 5, '1 s', 2, 1, '{"limit": 1}', '1 s', '0', 4, '1 s', 2, '{"a": 2}'), pg_task.key_opens_at('trapped', 1), pg_task.pause_queue('trapped'), pg_task.resume_queue('trapped'), pg_task.drop_queue('trapped')"#,
    "SELECT pg_task.limit_step('Test/Trapped', 3), pg_task.limit_step('Test/Trapped', NULL), pg_task.step_running('Test/Note')",
    r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "a"}}}', options => '{"group": "trapped"}')"#,
    r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "a"}}}', options => '{"key": "trapped"}')"#,
    "TABLE pg_task.groups",
    "TABLE pg_task.keys",
    r#"SELECT pg_task.set_schedule('trapped', 'every 1 s', '{"Test": {"Note": {"key": "a"}}}', tick_field => 'key', overlap => 'queue', missed => 'all', starts_at => '2020-01-01')"#,
    "SELECT pg_task.pause_schedule('trapped'), pg_task.resume_schedule('trapped'), pg_task.run_schedule('trapped'), pg_task.next_ticks('@daily')",
    "TABLE pg_task.schedules",
    "TABLE pg_task.problems",
    "TABLE pg_task.step_limits",
    r#"INSERT INTO pg_task.task (id, step) VALUES ('00000000-0000-0000-0000-0000000000de', '{"Test": {"Ended": 1}}')"#,
    "DELETE FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) '00000000-0000-0000-0000-0000000000de'",
    "SELECT pg_task.wait(pg_task.uuid7(), '1 s')",
    "TABLE pg_task.history",
    "TABLE pg_task.unique_keys",
    "TABLE pg_task.queues",
    "TABLE pg_task.running",
    "TABLE pg_task.failed",
    "TABLE pg_task.workers",
    "TABLE pg_task.scheduler",
    r#"INSERT INTO pg_task.task (step) VALUES ('{"Test": {"Note": {"key": "c"}}}')"#,
    "UPDATE pg_task.task SET priority = 3",
    "UPDATE pg_task.task SET error = 'x'",
    "UPDATE pg_task.task SET error = NULL",
];

#[tokio::test]
async fn traps_early_in_the_search_path_never_run() -> Result<()> {
    let db = database().await?;
    db.run(TRAPS).await?;
    db.run("CREATE TABLE orders (id int); CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row('Order', 'Deliver')")
        .await?;
    // The trap works: an unqualified statement falls into it.
    let mut session = PgConnection::connect(&db.url).await?;
    run(&mut session, "SET search_path = trap, pg_catalog, public").await?;
    run(&mut session, "SELECT 1 = 2").await?;
    assert_eq!(db.ask("SELECT string_agg(what, ',') FROM trap.log").await?, "compared integer");
    db.run("TRUNCATE trap.log").await?;
    // The superuser himself, in a session whose plans are all made here.
    for statement in EVERYTHING {
        run(&mut session, statement).await?;
    }
    run(&mut session, "INSERT INTO public.orders VALUES (1)").await?;
    run(&mut session, "CREATE ROLE trap_granted; SELECT pg_task.grant_administer('trap_granted')").await?;
    // The scheduler, under a path that the database's owner sets.
    let name = db.ask("SELECT current_database()").await?;
    db.run(&format!("ALTER DATABASE {name} SET search_path = trap, pg_catalog")).await?;
    let pid = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until(&format!("SELECT pid <> {pid} AND state = 'running' FROM pg_task.scheduler")).await?;
    let ledger = Ledger::new("traps")?;
    let options =
        WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) };
    let worker = db.known_worker(options).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Sleep": {"key": "s", "millis": 600000}}}')"#).await?;
    db.until("SELECT count(*) OPERATOR(pg_catalog.=) 1 FROM pg_task.task WHERE locked_by IS NOT NULL")
        .await?;
    // Schedules are served by the scheduler, too.
    db.until("SELECT fired OPERATOR(pg_catalog.>) 1 FROM pg_task.schedule").await?;
    db.run("SELECT pg_task.drop_schedule('trapped')").await?;
    // A lost worker is written down by the scheduler, too.
    worker.signal("KILL")?;
    db.until("SELECT tried OPERATOR(pg_catalog.=) 1 FROM pg_task.task WHERE step::text OPERATOR(pg_catalog.~~) '%Sleep%'").await?;
    // A role with rights of its own: what runs as the extension's owner must not run the traps.
    roles::grant(&db).await?;
    let mut worker = login(&db, "cell_work").await?;
    run(&mut worker, "SET search_path = trap, pg_catalog").await?;
    for statement in EVERYTHING.iter().filter(|statement| {
        ["register", "exchange", "finish", "heartbeat", "progress", "leave"]
            .iter()
            .any(|name| statement.contains(name))
    }) {
        run(&mut worker, statement).await?;
    }
    assert_eq!(db.ask("SELECT pg_catalog.string_agg(who || ' ' || what, ', ') FROM trap.log").await?, "");
    Ok(())
}

#[tokio::test]
async fn what_runs_as_the_owner_pins_its_search_path_and_is_not_for_everyone() -> Result<()> {
    let db = database().await?;
    assert_eq!(
        db.ask("SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc WHERE pronamespace = 'pg_task'::regnamespace AND prosecdef AND (NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false) OR has_function_privilege('public', oid, 'EXECUTE'))").await?,
        ""
    );
    assert_eq!(
        db.ask("SELECT count(*) FROM pg_proc WHERE pronamespace = 'pg_task'::regnamespace AND prosecdef")
            .await?,
        "10"
    );
    // Names in the schema of temporary objects come first for tables: none of ours is looked for without its schema.
    let mut session = login(&db, "temp_attacker").await?;
    db.run("SELECT pg_task.grant_work('temp_attacker')").await?;
    run(
        &mut session,
        "CREATE TEMP TABLE task (LIKE pg_catalog.pg_class); CREATE TEMP VIEW unnest AS SELECT 1",
    )
    .await?;
    run(&mut session, r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    run(&mut session, "SELECT pg_task.register('00000000-0000-0000-0000-00000000000c')").await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    run(&mut session, "SELECT pg_task.exchange('00000000-0000-0000-0000-00000000000c', 1)").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.running").await?, "1");
    Ok(())
}

#[tokio::test]
async fn a_producer_learns_nothing_of_the_steps_of_others() -> Result<()> {
    let db = database().await?;
    db.run(r#"INSERT INTO pg_task.task (id, step, error) VALUES ('00000000-0000-0000-0000-000000000001', '{"A": {"Secret": "s3cret"}}', 's3cret')"#).await?;
    let mut session = login(&db, "curious").await?;
    db.run("SELECT pg_task.grant_produce('curious')").await?;
    for statement in [
        "SELECT step FROM pg_task.task",
        "SELECT t FROM pg_task.task AS t",
        "COPY pg_task.task TO STDOUT",
        r#"INSERT INTO pg_task.task (id, step) VALUES ('00000000-0000-0000-0000-000000000001', '{"A": {"B": 1}}') ON CONFLICT (id) DO UPDATE SET priority = 1"#,
        r#"INSERT INTO pg_task.task (step) VALUES ('{"A": {"B": 1}}') RETURNING error"#,
        "SELECT id FROM pg_task.task WHERE step::text LIKE '%s3cret%'",
        "SELECT id FROM pg_task.task ORDER BY created_at",
        "SELECT * FROM pg_task.failed",
        "SELECT * FROM pg_task.running",
        "SELECT most_common_vals FROM pg_task.task, pg_stats WHERE step IS NULL",
        "DO $$ BEGIN LOCK pg_task.task IN ACCESS EXCLUSIVE MODE; END $$",
    ] {
        assert_eq!(refused(&mut session, statement).await?, "42501", "{statement}");
    }
    // Statistics show samples of columns: none of a table that the role may not read.
    db.run("ANALYZE pg_task.task").await?;
    let seen: (i64,) =
        sqlx::query_as("SELECT count(*) FROM pg_stats WHERE schemaname = 'pg_task' AND attname <> 'id'")
            .fetch_one(&mut session)
            .await?;
    assert_eq!(seen.0, 0);
    // A row with the id of another is refused without a word about that one.
    let error = sqlx::raw_sql(r#"INSERT INTO pg_task.task (id, step) VALUES ('00000000-0000-0000-0000-000000000001', '{"A": {"B": 1}}')"#)
        .execute(&mut session).await.expect_err("the id is taken");
    let error = format!("{error:?}");
    assert!(error.contains("23505") && !error.contains("s3cret"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_worker_cannot_speak_for_another_role_s_worker_or_end_what_another_worker_runs() -> Result<()> {
    let db = database().await?;
    let (mut one, mut two) = (login(&db, "worker_one").await?, login(&db, "worker_two").await?);
    db.run("SELECT pg_task.grant_work('worker_one'), pg_task.grant_work('worker_two')").await?;
    let (own, other) = ("00000000-0000-0000-0000-0000000000a1", "00000000-0000-0000-0000-0000000000a2");
    run(&mut one, &format!("SELECT pg_task.register('{own}')")).await?;
    run(&mut two, &format!("SELECT pg_task.register('{other}', queues => '{{elsewhere}}')")).await?;
    for call in [
        "register('W')",
        "exchange('W', 1)",
        "finish('W', 'W', 0, 1)",
        "heartbeat('W')",
        "set_progress('W', 'W', 1)",
        "set_progress_many('W', '{W}', '{1}')",
        "leave('W')",
    ] {
        let call = format!("SELECT pg_task.{}", call.replace('W', own));
        assert_eq!(refused(&mut two, &call).await?, "42501", "{call}");
    }
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    let (id, fence, token): (String, i64, i64) = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT id::text, fence, token FROM pg_task.exchange('{own}', 1)"
    )))
    .fetch_one(&mut one)
    .await?;
    // The same id, fence and token, brought by a worker that was not given the task.
    for (worker, outcomes) in
        [(other, "{0}"), (other, "{5}"), (other, "{6}"), ("00000000-0000-0000-0000-0000000000a3", "{0}")]
    {
        let event: (i16,) = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT event FROM pg_task.exchange('{worker}', 0, '{{{id}}}', '{{{fence}}}', '{{{token}}}', '{outcomes}') WHERE event <> 5"
        ))).fetch_one(&mut two).await?;
        assert_eq!(event.0, 2, "the result of {worker} is refused");
    }
    // Nor can it say that it holds the task.
    let refused: (i64,) = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT cardinality(refused)::bigint FROM pg_task.register('{other}', held_ids => '{{{id}}}', held_fences => '{{{fence}}}', held_tokens => '{{{token}}}')"
    ))).fetch_one(&mut two).await?;
    assert_eq!(refused.0, 1);
    assert_eq!(db.ask(&format!("SELECT worker = '{own}' FROM pg_task.running")).await?, "t");
    run(&mut one, &format!("SELECT pg_task.exchange('{own}', 0, '{{{id}}}', '{{{fence}}}', '{{{token}}}')"))
        .await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_role_with_every_grant_of_ours_becomes_nobody_else() -> Result<()> {
    let db = database().await?;
    let mut session = login(&db, "climber").await?;
    db.run("SELECT pg_task.grant_administer('climber')").await?;
    for (statement, code) in [
        // What would run as the scheduler, a superuser, when it writes to the table.
        (
            "CREATE TRIGGER t BEFORE UPDATE ON pg_task.task FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "42501",
        ),
        ("CREATE RULE r AS ON UPDATE TO pg_task.task DO ALSO SELECT 1", "42501"),
        ("ALTER TABLE pg_task.task ADD COLUMN x int DEFAULT 1", "42501"),
        ("ALTER TABLE pg_task.task ENABLE ROW LEVEL SECURITY", "42501"),
        ("CREATE INDEX ON pg_task.task ((step->>'x'))", "42501"),
        ("CREATE TABLE public.child () INHERITS (pg_task.task)", "42501"),
        ("CREATE PUBLICATION p FOR TABLE pg_task.task", "42501"),
        ("COMMENT ON TABLE pg_task.task IS 'x'", "42501"),
        ("ALTER FUNCTION pg_task.exchange SECURITY INVOKER", "42501"),
        ("ALTER FUNCTION pg_task.exchange RESET search_path", "42501"),
        ("ALTER SCHEMA pg_task OWNER TO climber", "42501"),
        ("ALTER EXTENSION pg_task ADD FUNCTION now()", "42501"),
        ("ALTER EXTENSION pg_task UPDATE", "42501"),
        ("GRANT SELECT ON pg_task.task TO PUBLIC", "01007"),
        ("SELECT pg_task.grant_produce('climber')", "42501"),
        ("SELECT pg_task.start_scheduler(), pg_task.require_preload()", "42501"),
        ("SET pg_task.max_step_size = 1", "42501"),
        ("SET pg_task.enabled = off", "55P02"),
        ("ALTER SYSTEM SET pg_task.enabled = off", "42501"),
        ("SET ROLE postgres", "42501"),
        ("SET session_replication_role = replica", "42501"),
        ("SELECT pg_task.on_insert()", "42501"),
    ] {
        if code == "01007" {
            // Only a warning; that nothing was granted is what counts.
            run(&mut session, statement).await?;
            assert_eq!(db.ask("SELECT has_table_privilege('public', 'pg_task.task', 'SELECT')").await?, "f");
            continue;
        }
        let got = refused(&mut session, statement).await?;
        assert!(got == code || got == "42501" || got == "0A000", "{statement}: {got}");
    }
    // A function of the role's own in a trigger of its own table runs as whoever writes there, never as the scheduler.
    run(
        &mut session,
        r#"INSERT INTO pg_task.task (step) VALUES ('{"A": {"B": "'' ; DROP TABLE pg_task.task; --"}}')"#,
    )
    .await?;
    run(&mut session, "UPDATE pg_task.task SET error = '%s %n'; SELECT pg_task.resume_all(error_like => '%'), pg_task.resume_all(queue => $$x' OR true$$)").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    Ok(())
}

#[tokio::test]
async fn names_with_quotes_and_the_owner_s_triggers_change_nothing_about_who_a_row_s_task_is_from()
-> Result<()> {
    let db = database().await?;
    db.run(r#"CREATE ROLE "a"";drop table x;--"; SELECT pg_task.grant_produce('"a"";drop table x;--"')"#)
        .await?;
    assert_eq!(db.ask(r#"SELECT has_function_privilege('a";drop table x;--', 'pg_task.enqueue(jsonb, text, integer, jsonb)', 'EXECUTE')"#).await?, "t");
    // A role that may write to a table with a trigger needs the right to enqueue itself: the trigger lends it nothing.
    db.run("CREATE TABLE public.orders (id int); CREATE TRIGGER t AFTER INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row('A', 'B'); GRANT USAGE ON SCHEMA public TO PUBLIC").await?;
    let mut session = login(&db, "customer").await?;
    db.run("GRANT INSERT ON public.orders TO customer").await?;
    assert_eq!(refused(&mut session, "INSERT INTO public.orders VALUES (1)").await?, "42501");
    db.run("SELECT pg_task.grant_produce('customer')").await?;
    run(&mut session, "INSERT INTO public.orders VALUES (1)").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    Ok(())
}
