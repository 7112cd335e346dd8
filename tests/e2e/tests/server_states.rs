//! Servers on which pg_task cannot work: each function says so, and what to do. And what becomes of them when they can.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::fs;

use anyhow::Result;
use pg_task_cluster::Cluster;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

const STEP: &str = r#"'{"Test":{"Note":{"key":"kept"}}}'"#;

/// A call of each C function of the extension with NULL for every argument, but trigger functions; and the two that need no memory.
async fn calls(session: &mut Session) -> Result<Vec<String>> {
    let calls = session
        .ask(
            "SELECT string_agg(format('SELECT * FROM pg_task.%I(%s)', p.proname, (
                SELECT string_agg('NULL::' || format_type(a.type, NULL), ', ' ORDER BY a.n)
                FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n))), ';' ORDER BY p.proname)
             FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
             WHERE p.pronamespace = 'pg_task'::regnamespace AND l.lanname = 'c' AND p.prorettype <> 'trigger'::regtype
               AND p.proname NOT IN ('library_version', 'require_encoding', 'step_is_valid', 'uuid7')",
        )
        .await?;
    Ok(calls.split(';').map(str::to_owned).collect())
}

fn restart_with(server: &Cluster, line: &str) -> Result<()> {
    let conf = server.data().join("postgresql.conf");
    let text = fs::read_to_string(&conf)?;
    fs::write(&conf, format!("{text}\n{line}\n"))?;
    server.stop(Stop::Fast)?;
    server.start()
}

#[tokio::test]
async fn without_preloading_every_function_names_the_line_to_add_and_tasks_wait_for_it() -> Result<()> {
    let server = own_server("e2e-not-preloaded", &[])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("not-preloaded")?);
    db.run(&format!("SELECT pg_task.enqueue({STEP})")).await?;
    restart_with(&server, "shared_preload_libraries = ''")?;

    let mut session = db.session().await?;
    let calls = calls(&mut session).await?;
    assert!(calls.len() > 15, "{calls:?}");
    let views = ["running", "workers", "scheduler"].map(|view| format!("TABLE pg_task.{view}"));
    let writes = [
        format!("INSERT INTO pg_task.task (step) VALUES ({STEP})"),
        "UPDATE pg_task.task SET wakeup_at = now()".to_owned(),
    ];
    for sql in calls.iter().chain(&views).chain(&writes) {
        let refusal = session.refusal(sql).await?;
        assert_eq!(
            (&*refusal.code, &*refusal.message),
            ("55000", "pg_task is not in shared_preload_libraries"),
            "{sql}: {refusal:?}"
        );
        assert!(
            refusal.hint.contains("shared_preload_libraries = 'pg_task'") && !refusal.detail.is_empty(),
            "{refusal:?}"
        );
    }
    assert_eq!(session.ask("SELECT count(*) FROM pg_task.task").await?, "1");
    assert_eq!(session.ask("SELECT pg_task.step_is_valid('{}')").await?, "false");

    let bare = Database::empty(&server).await?;
    let refusal = bare.session().await?.refusal("CREATE EXTENSION pg_task").await?;
    assert_eq!(
        (&*refusal.code, refusal.hint.contains("shared_preload_libraries = 'pg_task'")),
        ("55000", true),
        "{refusal:?}"
    );
    assert_eq!(bare.ask("SELECT count(*) FROM pg_namespace WHERE nspname = 'pg_task'").await?, "0");
    // It can be dropped all the same.
    session.run("BEGIN; DROP EXTENSION pg_task; ROLLBACK").await?;

    restart_with(&server, "shared_preload_libraries = 'pg_task'")?;
    let options =
        WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) };
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    let _worker = db.known_worker(options).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["kept"]);
    Ok(())
}

#[tokio::test]
async fn a_standby_shows_tasks_refuses_to_write_and_hands_out_after_its_promotion() -> Result<()> {
    let server = own_server("e2e-primary", &[])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("standby")?);
    db.run(&format!("SELECT pg_task.enqueue({STEP})")).await?;
    let standby = server.standby("e2e-standby")?;
    let name = db.url.rsplit('/').next().unwrap_or_default();
    let copy = Database::attach(&standby, name).await?;
    copy.until("SELECT count(*) = 1 FROM pg_task.task").await?;

    let mut session = copy.session().await?;
    let reads = [
        "claims",
        "key_opens_at",
        "lanes",
        "next_ticks",
        "queue_states",
        "require_preload",
        "scheduler_state",
        "step_running",
        "worker_states",
    ];
    for call in calls(&mut session).await? {
        if reads.iter().any(|read| call.contains(&format!(".{read}("))) {
            session.run(&call).await?;
            continue;
        }
        let refusal = session.refusal(&call).await?;
        assert_eq!(
            (&*refusal.code, refusal.message.contains("read-only")),
            ("25006", true),
            "{call}: {refusal:?}"
        );
        assert!(!refusal.detail.is_empty() && refusal.hint.contains("primary"), "{call}: {refusal:?}");
    }
    for view in ["running", "failed", "workers", "queues", "scheduler"] {
        session.run(&format!("TABLE pg_task.{view}")).await?;
    }
    assert_eq!(session.ask("SELECT due FROM pg_task.queues").await?, "1");
    assert_eq!(session.ask("SELECT state FROM pg_task.scheduler").await?, "absent");
    assert_eq!(
        session.refusal(&format!("INSERT INTO pg_task.task (step) VALUES ({STEP})")).await?.code,
        "25006"
    );

    server.stop(Stop::Fast)?;
    standby.promote()?;
    let options =
        WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) };
    let _worker = copy.worker(options)?;
    copy.until_done().await?;
    assert_eq!(ledger.lines(), ["kept"]);
    Ok(())
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() -> Result<()> {
    let server = shared_server("e2e-server-states");
    server.psql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")?;
    let latin = Database::attach(server, "latin").await?;
    let refusal = latin.session().await?.refusal("CREATE EXTENSION pg_task").await?;
    assert_eq!((&*refusal.code, refusal.detail.contains("LATIN1")), ("0A000", true), "{refusal:?}");
    assert!(refusal.hint.contains("ENCODING 'UTF8'"), "{refusal:?}");
    Ok(())
}
