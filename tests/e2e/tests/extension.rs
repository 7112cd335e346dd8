//! The extension as an object: made, made twice, dropped, in several databases, dumped and restored.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use anyhow::bail;
use pg_task_cluster::Cluster;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

fn server() -> &'static Cluster {
    shared_server("e2e-extension")
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

fn note(key: &str) -> String {
    format!(r#"{{"Test":{{"Note":{{"key":"{key}"}}}}}}"#)
}

#[tokio::test]
async fn it_is_made_once_and_dropped_with_all_that_is_its_own() -> Result<()> {
    let db = Database::create(server()).await?;
    let mut session = db.session().await?;
    assert_eq!(session.refusal("CREATE EXTENSION pg_task").await?.code, "42710");
    session.run("CREATE EXTENSION IF NOT EXISTS pg_task").await?;
    assert_eq!(session.refusal("CREATE SCHEMA pg_task").await?.code, "42939", "the name is the server's");

    session
        .run(
            "CREATE TABLE orders (id int);
             CREATE TRIGGER deliver AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row('Test', 'Note');
             CREATE VIEW mine AS SELECT id, step FROM pg_task.task",
        )
        .await?;
    let refusal = session.refusal("DROP EXTENSION pg_task").await?;
    assert_eq!(refusal.code, "2BP01");
    assert!(
        refusal.detail.contains("trigger deliver on table orders") && refusal.detail.contains("view mine"),
        "{refusal:?}"
    );
    assert_eq!(session.ask("SELECT state FROM pg_task.scheduler").await?, "running");
    session.run(&format!("SELECT pg_task.enqueue('{}')", note("dropped"))).await?;
    session.run("DROP EXTENSION pg_task CASCADE").await?;
    assert_eq!(
        session
            .ask(
                "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'pg_task') + (SELECT count(*) FROM pg_class WHERE relname = 'mine')
                    + (SELECT count(*) FROM pg_trigger WHERE tgname = 'deliver') + (SELECT count(*) FROM pg_proc WHERE probin = '$libdir/pg_task')"
            )
            .await?,
        "0"
    );
    session.run("INSERT INTO orders VALUES (1)").await?;
    let pid = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_task scheduler' AND datname = current_database()";
    db.until(&format!("SELECT ({pid}) = 0")).await?;

    // In a transaction that is rolled back nothing is left, and nothing runs.
    session.run("BEGIN; CREATE EXTENSION pg_task; ROLLBACK").await?;
    assert_eq!(session.ask("SELECT count(*) FROM pg_namespace WHERE nspname = 'pg_task'").await?, "0");
    session.run("CREATE EXTENSION pg_task").await?;
    let ledger = Ledger::new("again")?;
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    session.run(&format!("SELECT pg_task.enqueue('{}')", note("again"))).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["again"]);
    Ok(())
}

#[tokio::test]
async fn a_worker_says_at_its_start_that_the_extension_is_missing_and_ends() -> Result<()> {
    let db = Database::empty(server()).await?;
    let ledger = Ledger::new("missing")?;
    assert!(!db.worker(options(&ledger))?.ended().await?, "it ends with an error");
    Ok(())
}

#[tokio::test]
async fn two_databases_do_not_meet() -> Result<()> {
    let (one, two) = (Database::create(server()).await?, Database::create(server()).await?);
    let (first, second) = (Ledger::new("one")?, Ledger::new("two")?);
    let _one = one.known_worker(options(&first)).await?;
    let mut stopped = two.known_worker(options(&second)).await?;
    one.run(&format!("SELECT pg_task.enqueue('{}')", note("one"))).await?;
    two.run(&format!("SELECT pg_task.enqueue('{}')", note("two"))).await?;
    one.until_done().await?;
    two.until_done().await?;
    assert_eq!((first.lines(), second.lines()), (vec!["one".to_owned()], vec!["two".to_owned()]));
    two.run("SELECT pg_notify('pg_task_changed', 'stop_worker')").await?;
    assert!(stopped.ended().await?);
    two.run("DROP EXTENSION pg_task").await?;
    one.run(&format!("SELECT pg_task.enqueue('{}')", note("still"))).await?;
    one.until_done().await?;
    assert_eq!(first.lines(), ["one", "still"]);
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Restores a dump into a new database; its tasks wait until the server is told to hand out.
async fn restore(dump: &Path, server: &Cluster) -> Result<Database> {
    let db = Database::empty(server).await?;
    run(server.program("pg_restore").args(["--exit-on-error", "--dbname", &db.url]).arg(dump))?;
    Ok(db)
}

/// What must be the same: every row with all its columns, the epoch, and what a role may do.
async fn look(db: &Database) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    for query in [
        "SELECT string_agg(t::text, E'\\n' ORDER BY t.id) FROM pg_task.task AS t",
        "SELECT string_agg(s::text, E'\\n' ORDER BY s.name) FROM pg_task.schedule AS s",
        "SELECT string_agg(q::text, E'\\n' ORDER BY q.name) FROM pg_task.queue AS q",
        "SELECT count(*) FROM pg_task.failed",
        "SELECT string_agg(queue || due || asleep || failed, ' ' ORDER BY queue) FROM pg_task.queues",
        "SELECT string_agg(format('%s %s %s', relname, relacl, (SELECT string_agg(attname || attacl::text, ',' ORDER BY attnum)
            FROM pg_attribute WHERE attrelid = c.oid AND attacl IS NOT NULL)), E'\\n' ORDER BY relname)
            FROM pg_class AS c WHERE relnamespace = 'pg_task'::regnamespace AND relkind IN ('r', 'v', 'S')",
        "SELECT string_agg(proname || coalesce(proacl::text, ''), ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'pg_task'::regnamespace",
        "SELECT nspacl FROM pg_namespace WHERE nspname = 'pg_task'",
    ] {
        seen.push(db.ask(query).await?);
    }
    Ok(seen)
}

#[tokio::test]
async fn a_dump_carries_tasks_grants_and_the_epoch_into_another_database_and_another_server() -> Result<()> {
    let other = own_server("e2e-restore", &[])?;
    let roles = "CREATE ROLE dump_producer; CREATE ROLE dump_worker; CREATE ROLE dump_administrator";
    server().psql("postgres", roles)?;
    other.psql("postgres", roles)?;
    let db = Database::create(server()).await?;
    db.run(
        "SELECT pg_task.grant_produce('dump_producer'); SELECT pg_task.grant_work('dump_worker'); SELECT pg_task.grant_administer('dump_administrator')",
    )
    .await?;
    db.run(&format!(
        "SELECT pg_task.enqueue('{}'), pg_task.enqueue('{}', queue => 'mail', priority => -3), pg_task.delay('{}', '1 day');
         INSERT INTO pg_task.task (step, tried, error) VALUES ('{}', 4, 'it broke');
         UPDATE pg_task.task SET wakeup_at = wakeup_at - interval '1 hour' WHERE queue = 'mail';
         SELECT pg_task.set_schedule('yearly', '@yearly', '{}'), pg_task.set_schedule('paused', 'every 1 s', '{}'), pg_task.pause_schedule('paused')",
        note("due"),
        note("mail"),
        note("tomorrow"),
        note("parked"),
        note("yearly"),
        note("paused"),
    ))
    .await?;
    db.run(r#"SELECT pg_task.set_queue('mail', retry => '{"limit": 9}', timeout => '1 min', retention => '1 day')"#).await?;
    let before = look(&db).await?;
    assert!(before[0].lines().count() == 4 && before[5].contains("dump_producer"), "{before:?}");
    assert!(before[2].contains("00:01:00"), "{before:?}");
    let epoch = db.ask("SELECT last_value FROM pg_task.epoch").await?;

    let folder = tempfile(&format!("pg_task-dump-{}", std::process::id()));
    run(server().program("pg_dump").args(["--format=custom", "--dbname", &db.url, "--file"]).arg(&folder))?;
    for (place, target) in [("another database", server()), ("another server", &other)] {
        let restored = restore(&folder, target).await?;
        assert_eq!(look(&restored).await?, before, "{place}");
        restored.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
        let found = restored.ask("SELECT last_value FROM pg_task.epoch").await?;
        assert!(
            found.parse::<i64>()? >= epoch.parse::<i64>()?,
            "{place}: the tokens went back from {epoch} to {found}"
        );

        let ledger = Ledger::new("restored")?;
        let _worker = restored.known_worker(options(&ledger)).await?;
        restored.until("SELECT count(*) = 2 FROM pg_task.task").await?;
        restored.run("SELECT pg_task.resume_all()").await?;
        restored.run("UPDATE pg_task.task SET wakeup_at = now() WHERE wakeup_at > now()").await?;
        restored.until_done().await?;
        let mut lines = ledger.lines();
        lines.sort();
        assert_eq!(lines, ["due", "mail", "parked", "tomorrow"], "{place}");
        restored
            .run(&format!("SET ROLE dump_producer; SELECT pg_task.enqueue('{}'); RESET ROLE", note("role")))
            .await?;
        restored.until_done().await?;
    }
    std::fs::remove_file(&folder)?;
    Ok(())
}

fn tempfile(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(name)
}

/// A scheduler that looks into a new database before the extension is there ends; one that is wanted meanwhile comes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn databases_that_are_made_at_once_all_get_their_scheduler() -> Result<()> {
    let server: &'static Cluster = shared_server("e2e-extension-many");
    let mut makers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        makers.spawn(async move {
            for _ in 0..4 {
                let db = Database::create(server).await?;
                db.run("DROP EXTENSION pg_task").await?;
                db.run("CREATE EXTENSION pg_task").await?;
                db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
                db.pool.close().await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(made) = makers.join_next().await {
        made??;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_left_out_gets_no_scheduler() -> Result<()> {
    let server = own_server("e2e-extension-left-out", &["pg_task.databases = 'postgres'"])?;
    let left_out = Database::empty(&server).await?;
    left_out.run("CREATE EXTENSION pg_task").await?;
    // The launcher has looked at both when the other one has its scheduler.
    let listed = Database::attach(&server, "postgres").await?;
    listed.run("CREATE EXTENSION pg_task").await?;
    listed.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    left_out.until("SELECT state = 'absent' FROM pg_task.scheduler").await?;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_task scheduler' AND datname <> 'postgres'";
    assert_eq!(listed.ask(others).await?, "0");
    Ok(())
}
