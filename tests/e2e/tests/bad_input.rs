//! What is refused, with SQLSTATE, message, DETAIL and HINT; and nothing is half done.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use anyhow::ensure;
use pg_task_e2e::Database;
use pg_task_e2e::Session;
use pg_task_e2e::shared_server;

const STEP: &str = r#"'{"A":{"B":1}}'"#;
const WORKER: &str = "'0190aaaa-0000-7000-8000-00000000000b'";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-bad-input")).await
}

/// Each statement is refused with the SQLSTATE, a message that holds the text, a DETAIL and a HINT.
async fn refused(session: &mut Session, cases: &[(&str, &str, &str)]) -> Result<()> {
    for (sql, code, text) in cases {
        let refusal = session.refusal(sql).await?;
        ensure!(
            refusal.code == *code && refusal.message.contains(text),
            "{sql}\nwas to be refused with {code} \"{text}\", but: {refusal:?}"
        );
        ensure!(
            !refusal.detail.is_empty() && !refusal.hint.is_empty(),
            "{sql}\nhas no DETAIL or HINT: {refusal:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn null_is_refused_wherever_it_has_no_meaning() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let nulls = [
        ("enqueue(NULL)", "step"),
        (&*format!("enqueue({STEP}, queue => NULL)"), "queue"),
        (&format!("enqueue({STEP}, priority => NULL)"), "priority"),
        ("delay(NULL, '1 s')", "step"),
        (&format!("delay({STEP}, NULL)"), "delay"),
        (&format!("delay({STEP}, '1 s', queue => NULL)"), "queue"),
        (&format!("delay({STEP}, '1 s', priority => NULL)"), "priority"),
        ("schedule(NULL, now())", "step"),
        (&format!("schedule({STEP}, NULL)"), "wakeup_at"),
        (&format!("schedule({STEP}, now(), queue => NULL)"), "queue"),
        (&format!("schedule({STEP}, now(), priority => NULL)"), "priority"),
        ("enqueue_many(NULL)", "steps"),
        (&format!("enqueue_many(ARRAY[{STEP}::jsonb, NULL])"), "\"steps\" has a NULL at position 2"),
        (&format!("enqueue_many(ARRAY[{STEP}::jsonb], queue => NULL)"), "queue"),
        (&format!("enqueue_many(ARRAY[{STEP}::jsonb], priority => NULL)"), "priority"),
        ("resume(NULL)", "id"),
        ("cancel(NULL)", "id"),
        ("register(NULL)", "worker"),
        (&format!("register({WORKER}, queues => '{{a,NULL}}')"), "\"queues\" has a NULL at position 2"),
        (&format!("register({WORKER}, steps => '{{A/B,NULL}}')"), "\"steps\" has a NULL at position 2"),
        (&format!("register({WORKER}, lease => NULL)"), "lease"),
        (&format!("register({WORKER}, bind => NULL)"), "bind"),
        (&format!("register({WORKER}, protocol => NULL)"), "protocol"),
        (&format!("register({WORKER}, held_ids => ARRAY[{WORKER}::uuid])"), "held_fences"),
        (
            &format!("register({WORKER}, held_ids => ARRAY[{WORKER}::uuid], held_fences => '{{1}}')"),
            "held_tokens",
        ),
        (
            &format!(
                "register({WORKER}, held_ids => '{{NULL}}', held_fences => '{{1}}', held_tokens => '{{1}}')"
            ),
            "\"held_ids\" has a NULL at position 1",
        ),
        (
            &format!(
                "register({WORKER}, held_ids => ARRAY[{WORKER}::uuid], held_fences => '{{NULL}}', held_tokens => '{{1}}')"
            ),
            "\"held_fences\" has a NULL at position 1",
        ),
        (
            &format!(
                "register({WORKER}, held_ids => ARRAY[{WORKER}::uuid], held_fences => '{{1}}', held_tokens => '{{NULL}}')"
            ),
            "\"held_tokens\" has a NULL at position 1",
        ),
        ("heartbeat(NULL)", "worker"),
        ("set_progress(NULL, NULL, NULL)", "worker"),
        (&format!("set_progress({WORKER}, NULL, 1)"), "id"),
        (&format!("set_progress({WORKER}, {WORKER}, NULL)"), "token"),
        ("set_progress_many(NULL, '{}', '{}')", "worker"),
        (&format!("set_progress_many({WORKER}, NULL, '{{}}')"), "ids"),
        (&format!("set_progress_many({WORKER}, '{{}}', NULL)"), "tokens"),
        (&format!("set_progress_many({WORKER}, '{{NULL}}', '{{1}}')"), "\"ids\" has a NULL at position 1"),
        (
            &format!("set_progress_many({WORKER}, ARRAY[{WORKER}::uuid], '{{NULL}}')"),
            "\"tokens\" has a NULL at position 1",
        ),
        ("leave(NULL)", "worker"),
        ("finish(NULL, NULL, NULL, NULL)", "worker"),
        ("exchange(NULL)", "worker"),
        (&format!("exchange({WORKER}, NULL)"), "want"),
        (&format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid])"), "fences"),
        (&format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}')"), "tokens"),
        (&format!("exchange({WORKER}, 0, '{{NULL}}', '{{1}}', '{{1}}')"), "\"ids\" has a NULL at position 1"),
        (
            &format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{NULL}}', '{{1}}')"),
            "\"fences\" has a NULL at position 1",
        ),
        (
            &format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{NULL}}')"),
            "\"tokens\" has a NULL at position 1",
        ),
        (
            &format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{NULL}}')"),
            "\"outcomes\" has a NULL at position 1",
        ),
        (
            &format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{1}}')"),
            "\"steps\" has a NULL at position 1",
        ),
        (
            &format!(
                "exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{2}}', ARRAY[{STEP}::jsonb])"
            ),
            "\"delays\" has a NULL at position 1",
        ),
        (
            &format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{3}}')"),
            "\"delays\" has a NULL at position 1",
        ),
        (
            &format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{4}}')"),
            "\"errors\" has a NULL at position 1",
        ),
        (
            &format!("exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{7}}')"),
            "\"errors\" has a NULL at position 1",
        ),
        ("grant_produce(NULL)", "role"),
        ("grant_work(NULL)", "role"),
        ("grant_schedule(NULL)", "role"),
        ("grant_administer(NULL)", "role"),
    ];
    for (call, text) in nulls {
        refused(&mut session, &[(&format!("SELECT pg_task.{call}"), "22004", text)]).await?;
    }
    // Where NULL means "any".
    session.run("SELECT pg_task.resume_all(NULL, NULL, NULL), pg_task.stop_workers(NULL)").await?;
    assert_eq!(session.ask("SELECT pg_task.step_is_valid(NULL)").await?, "");
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.workers").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_step_of_the_wrong_shape_or_size_is_refused_by_every_way_in() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let shapes = [
        "1",
        "\"A\"",
        "true",
        "null",
        "[]",
        "[{\"A\":{\"B\":1}}]",
        "{}",
        "{\"A\":{}}",
        "{\"A\":1}",
        "{\"A\":null}",
        "{\"A\":\"B\"}",
        "{\"A\":[{\"B\":1}]}",
        "{\"A\":{\"B\":1,\"C\":2}}",
        "{\"A\":{\"B\":1},\"C\":{\"D\":1}}",
    ];
    session.run("CREATE TABLE source (step jsonb)").await?;
    session.run(&format!("INSERT INTO pg_task.task (step) VALUES ({STEP})")).await?;
    for shape in shapes {
        let text = "a step must be an object with one key";
        for sql in [
            format!("SELECT pg_task.enqueue('{shape}')"),
            format!("SELECT pg_task.delay('{shape}', '1 s')"),
            format!("SELECT pg_task.schedule('{shape}', now())"),
            format!("SELECT pg_task.enqueue_many(ARRAY[{STEP}, '{shape}']::jsonb[])"),
            format!("INSERT INTO pg_task.task (step) VALUES ({STEP}), ('{shape}')"),
            format!("UPDATE pg_task.task SET step = '{shape}'"),
        ] {
            let refusal = session.refusal(&sql).await?;
            assert_eq!(
                (&*refusal.code, refusal.message.contains(text)),
                ("22023", true),
                "{sql}: {refusal:?}"
            );
            assert!(
                refusal.detail.starts_with("The value is ") && refusal.hint.contains("payload"),
                "{refusal:?}"
            );
        }
        assert_eq!(
            session.ask(&format!("SELECT pg_task.step_is_valid('{shape}')")).await?,
            "false",
            "{shape}"
        );
    }
    let large = "jsonb_build_object('A', jsonb_build_object('B', repeat('x', 2000000)))";
    refused(
        &mut session,
        &[
            (&format!("SELECT pg_task.enqueue({large})"), "54000", "more than the limit of 1048576"),
            (&format!("SELECT pg_task.enqueue_many(ARRAY[{large}])"), "54000", "more than the limit"),
            (&format!("INSERT INTO pg_task.task (step) SELECT {large}"), "54000", "more than the limit"),
        ],
    )
    .await?;
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    Ok(())
}

#[tokio::test]
async fn times_delays_queues_priorities_and_arrays_out_of_range_are_refused() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    let long = "q".repeat(64);
    let enqueue = |more: &str| format!("SELECT pg_task.enqueue({STEP}, {more})");
    let cases = [
        (format!("SELECT pg_task.schedule({STEP}, 'infinity')"), "22008", "must be a finite time"),
        (format!("SELECT pg_task.schedule({STEP}, '-infinity')"), "22008", "must be a finite time"),
        (
            format!("SELECT pg_task.enqueue_many(ARRAY[{STEP}::jsonb], wakeup_at => 'infinity')"),
            "22008",
            "must be a finite time",
        ),
        (
            format!("INSERT INTO pg_task.task (step, wakeup_at) VALUES ({STEP}, 'infinity')"),
            "22008",
            "must be a finite time",
        ),
        (format!("SELECT pg_task.delay({STEP}, '-1 microsecond')"), "22023", "must not be negative"),
        (format!("SELECT pg_task.delay({STEP}, '-1 month')"), "22023", "must not be negative"),
        (enqueue("queue => ''"), "22023", "1 to 63 bytes, not 0"),
        (enqueue(&format!("queue => '{long}'")), "22023", "1 to 63 bytes, not 64"),
        (enqueue("queue => repeat('é', 32)"), "22023", "1 to 63 bytes, not 64"),
        (format!("INSERT INTO pg_task.task (step, queue) VALUES ({STEP}, '')"), "22023", "1 to 63 bytes"),
        (enqueue("priority => 32768"), "22023", "between -32768 and 32767"),
        (enqueue("priority => -32769"), "22023", "between -32768 and 32767"),
        (
            format!("SELECT pg_task.enqueue_many(ARRAY[ARRAY[{STEP}::jsonb], ARRAY[{STEP}::jsonb]])"),
            "2202E",
            "one dimension, not 2",
        ),
        (format!("SELECT pg_task.register({WORKER}, queues => '{{}}')"), "22023", "must not be empty"),
        (format!("SELECT pg_task.register({WORKER}, queues => '{{{long}}}')"), "22023", "1 to 63 bytes"),
        (
            format!("SELECT pg_task.register({WORKER}, queues => array_fill('q'::text, '{{33}}'))"),
            "54000",
            "at most 32 queues",
        ),
        (
            format!("SELECT pg_task.register({WORKER}, steps => '{{noslash}}')"),
            "22023",
            "is not the name of a step",
        ),
        (
            format!("SELECT pg_task.register({WORKER}, steps => array_fill('A/B'::text, '{{513}}'))"),
            "54000",
            "at most 512 steps",
        ),
        (
            format!("SELECT pg_task.register({WORKER}, steps => '{{A/B}}', retry_limits => '{{1,2}}')"),
            "22023",
            "\"retry_limits\" has 2 elements",
        ),
        (format!("SELECT pg_task.register({WORKER}, lease => '0.5 s')"), "22023", "lease"),
        (format!("SELECT pg_task.register({WORKER}, lease => '25 hours')"), "22023", "lease"),
        (format!("SELECT pg_task.register({WORKER}, name => repeat('n', 64))"), "22023", "at most 63 bytes"),
        (format!("SELECT pg_task.register({WORKER}, protocol => 2)"), "0A000", "protocol 2"),
        (format!("SELECT pg_task.exchange({WORKER}, -1)"), "22023", "between 0 and 10000"),
        (format!("SELECT pg_task.exchange({WORKER}, 10001)"), "22023", "between 0 and 10000"),
        (
            format!("SELECT pg_task.exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1,2}}', '{{1}}')"),
            "22023",
            "\"fences\" has 2 elements",
        ),
        (
            format!(
                "SELECT pg_task.exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{12}}')"
            ),
            "22023",
            "between 0 and 11",
        ),
        (
            format!(
                "SELECT pg_task.exchange({WORKER}, 0, ARRAY[{WORKER}::uuid, {WORKER}], '{{1,1}}', '{{1,2}}')"
            ),
            "22023",
            "results for one id",
        ),
        (
            format!(
                "SELECT pg_task.exchange({WORKER}, 0, ARRAY[{WORKER}::uuid], '{{1}}', '{{1}}', '{{3}}', NULL, '{{-1}}')"
            ),
            "22023",
            "must not be negative",
        ),
        (format!("BEGIN; SAVEPOINT s; SELECT pg_task.exchange({WORKER})"), "25001", "savepoint"),
        ("ROLLBACK; UPDATE pg_task.task SET id = pg_task.uuid7()".to_owned(), "23000", "cannot be changed"),
        (
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_task.exchange({WORKER})"),
            "25001",
            "REPEATABLE READ",
        ),
    ];
    session.run(&format!("SELECT pg_task.delay({STEP}, '1 hour')")).await?;
    for (sql, code, text) in &cases {
        refused(&mut session, &[(sql, code, text)]).await?;
    }
    session.run("ROLLBACK").await?;
    // An interval is infinite from PostgreSQL 17 on; before, its text is no interval.
    let infinite = session.refusal(&format!("SELECT pg_task.delay({STEP}, 'infinity')")).await?;
    assert!(["22007", "22008"].contains(&&*infinite.code), "{infinite:?}");
    let far = session.refusal(&format!("SELECT pg_task.delay({STEP}, '300000 years')")).await?;
    assert_eq!(far.code, "22008", "{far:?}");
    let unknown = session.refusal("SELECT pg_task.grant_work('nobody_at_all')").await?;
    assert_eq!(unknown.code, "42704", "{unknown:?}");
    assert_eq!(session.refusal("SELECT pg_task.grant_work('1')").await?.code, "42704");
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    // The limits themselves are fine.
    session
        .run(&format!(
            "SELECT pg_task.enqueue({STEP}, repeat('q', 63), -32768), pg_task.delay({STEP}, '0'), pg_task.enqueue({STEP}, priority => 32767),
                pg_task.register({WORKER}, queues => array_fill('q'::text, '{{32}}'), steps => array_fill('A/B'::text, '{{512}}'),
                    lease => '1 day', name => repeat('n', 63)), pg_task.leave({WORKER})"
        ))
        .await
}

#[tokio::test]
async fn enqueue_row_says_how_it_is_meant_to_be_used() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run("CREATE TABLE t (id int); CREATE VIEW v AS SELECT id FROM t").await?;
    let trigger = |when: &str, each: &str, arguments: &str| {
        format!(
            "DROP TRIGGER IF EXISTS x ON t;
             CREATE TRIGGER x {when} FOR EACH {each} EXECUTE FUNCTION pg_task.enqueue_row({arguments});"
        )
    };
    let insert = "INSERT INTO t VALUES (1)";
    let cases = [
        (trigger("AFTER INSERT ON t", "ROW", ""), "22023", "names of a task and a step", "0 arguments"),
        (trigger("AFTER INSERT ON t", "ROW", "'A'"), "22023", "names of a task and a step", "1 arguments"),
        (
            trigger("AFTER INSERT ON t", "ROW", "'A', 'B', 'q', '1', 'x'"),
            "22023",
            "names of a task and a step",
            "5 arguments",
        ),
        (
            trigger("AFTER INSERT ON t", "ROW", "'A', 'B', 'q', 'high'"),
            "22023",
            "names of a task and a step",
            "\"high\"",
        ),
        (trigger("AFTER INSERT ON t", "ROW", "'A', 'B', ''"), "22023", "1 to 63 bytes", "bytes"),
        (
            trigger("AFTER INSERT ON t", "STATEMENT", "'A', 'B'"),
            "39P01",
            "AFTER trigger FOR EACH ROW",
            "each statement",
        ),
        (trigger("BEFORE INSERT ON t", "ROW", "'A', 'B'"), "39P01", "AFTER trigger FOR EACH ROW", "BEFORE"),
    ];
    for (create, code, text, detail) in &cases {
        session.run(create).await?;
        let refusal = session.refusal(insert).await?;
        assert_eq!((&*refusal.code, refusal.message.contains(text)), (*code, true), "{create}: {refusal:?}");
        assert!(refusal.detail.contains(detail) && !refusal.hint.is_empty(), "{create}: {refusal:?}");
    }
    session.run("DROP TRIGGER x ON t").await?;
    session.run("CREATE TRIGGER x INSTEAD OF INSERT ON v FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row('A', 'B')").await?;
    let refusal = session.refusal("INSERT INTO v VALUES (1)").await?;
    assert_eq!((&*refusal.code, refusal.detail.contains("INSTEAD OF")), ("39P01", true), "{refusal:?}");
    refused(&mut session, &[("SELECT pg_task.enqueue_row()", "39P01", "AFTER trigger FOR EACH ROW")]).await?;
    assert_eq!(
        session.ask("SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM pg_task.task)").await?,
        "0"
    );
    Ok(())
}

#[tokio::test]
async fn the_table_s_own_trigger_functions_refuse_other_tables() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session
        .run("CREATE TABLE t (id int, step text); CREATE SCHEMA other; CREATE TABLE other.task (id int)")
        .await?;
    for table in ["t", "other.task"] {
        for (function, when) in [
            ("on_insert", "BEFORE"),
            ("on_update", "BEFORE"),
            ("on_options", "BEFORE"),
            ("on_error", "AFTER"),
        ] {
            session
                .run(&format!("CREATE TRIGGER x {when} INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION pg_task.{function}()"))
                .await?;
            refused(
                &mut session,
                &[(&format!("INSERT INTO {table} DEFAULT VALUES"), "39P01", "pg_task.task")],
            )
            .await?;
            session.run(&format!("DROP TRIGGER x ON {table}")).await?;
        }
    }
    session.run("CREATE TRIGGER x BEFORE INSERT ON pg_task.task FOR EACH STATEMENT EXECUTE FUNCTION pg_task.on_insert()").await?;
    refused(&mut session, &[(&format!("SELECT pg_task.enqueue({STEP})"), "39P01", "pg_task.task")]).await
}
