//! From one version to the next: of the extension, of the worker protocol, of PostgreSQL.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use pg_task_cluster::Account;
use pg_task_cluster::Cluster;
use pg_task_cluster::Stop;
use pg_task_cluster::install_script;
use pg_task_cluster::workspace_root;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::catalog;
use pg_task_e2e::server_in;
use pg_task_e2e::shared_server;
use pg_task_e2e::tree_of;

const NOTE: &str = r#"{"Test": {"Note": {"key": "a"}}}"#;

/// A version that never was: today's, without two columns, what belongs to them, an index and a view, and with another comment.
const ARTIFICIAL: &str = "0.0.9";

/// Takes a part out of a script; returns the part.
fn take(script: &mut String, from: &str, to: &str) -> Result<String> {
    let start = script.find(from).with_context(|| format!("the install script has no {from}"))?;
    let len = script[start..].find(to).with_context(|| format!("no {to} after {from}"))? + to.len();
    let part = script[start..start + len].to_owned();
    script.replace_range(start..start + len, "");
    Ok(part)
}

/// The scripts of [`ARTIFICIAL`]: to install it, and to update it.
fn artificial() -> Result<(String, String)> {
    let mut old = install_script()?;
    let mut update = take(&mut old, "CREATE INDEX task_failed", ";")?;
    update += &take(&mut old, "COMMENT ON INDEX pg_task.task_failed", "';")?;
    update += &take(&mut old, "COMMENT ON COLUMN pg_task.task.tried", "';")?;
    take(&mut old, "    errors     jsonb,", "options    jsonb,\n")?;
    let checks = take(&mut old, ",\n    CONSTRAINT task_errors_are_a_list", "'object')")?;
    let checks = checks.trim_start_matches(',').replace("CONSTRAINT", "ADD CONSTRAINT");
    update +=
        &format!("ALTER TABLE pg_task.task ADD COLUMN errors jsonb, ADD COLUMN options jsonb, {checks};");
    // With the comments on its columns.
    update += &take(
        &mut old,
        "CREATE VIEW pg_task.failed",
        "COMMENT ON COLUMN pg_task.failed.options IS 'The task''s own options: tags, meta, traceparent';",
    )?;
    update += &take(&mut old, "CREATE FUNCTION pg_task.find", "$$;")?;
    update += &take(&mut old, "COMMENT ON FUNCTION pg_task.find", "';")?;
    update += "REVOKE ALL ON FUNCTION pg_task.find(text[], jsonb, text) FROM PUBLIC;";
    let start = old.find("CREATE VIEW pg_task.running").context("no such view")?;
    let end = old[start..].find("COMMENT ON VIEW").context("it has a comment")?;
    update += &old[start..start + end].replace("CREATE VIEW", "CREATE OR REPLACE VIEW");
    update += &take(&mut old, "COMMENT ON COLUMN pg_task.running.options", "';")?;
    for column in ["progress", "progress_text", "progress_at"] {
        update += &take(&mut old, &format!("COMMENT ON COLUMN pg_task.running.{column} "), "';")?;
    }
    // The view's last columns.
    take(&mut old, ", t.options", "c.progress_at")?;
    update += &take(&mut old, "COMMENT ON COLUMN pg_task.task.errors", "';")?;
    // With the comments on its columns.
    update += &take(&mut old, "CREATE VIEW pg_task.task_errors", "IS 'Whether the task is parked now';")?;
    update += &take(&mut old, "COMMENT ON COLUMN pg_task.task.options", "';")?;
    update += &take(&mut old, "COMMENT ON CONSTRAINT task_errors_are_a_list", "';")?;
    update += &take(&mut old, "COMMENT ON CONSTRAINT task_options_are_an_object", "';")?;
    update += &take(&mut old, "CREATE INDEX task_group", ";")?;
    update += &take(&mut old, "COMMENT ON INDEX pg_task.task_group", "';")?;
    update += &take(&mut old, "CREATE TRIGGER task_gone", ";")?;
    update += &take(&mut old, "COMMENT ON TRIGGER task_gone", "';")?;
    update += &take(&mut old, "ALTER TABLE pg_task.task ENABLE ALWAYS TRIGGER task_gone", ";")?;
    update += &take(&mut old, "CREATE VIEW pg_task.groups", "IS 'Tasks behind it';")?;
    update += &take(&mut old, "CREATE INDEX task_key", ";")?;
    update += &take(&mut old, "COMMENT ON INDEX pg_task.task_key", "';")?;
    update += &take(
        &mut old,
        "CREATE VIEW pg_task.keys",
        "lets the next task go; NULL when neither holds it back now';",
    )?;
    // The view of problems looks at groups.
    let start = old.find("CREATE VIEW pg_task.problems").context("no such view")?;
    let end = old[start..].find("COMMENT ON VIEW").context("it has a comment")?;
    update += &old[start..start + end].replace("CREATE VIEW", "CREATE OR REPLACE VIEW");
    let blocked = old.find("    UNION ALL\n    SELECT 'groups blocked'").context("no such problem")?;
    let last = old[blocked..].find(";\nCOMMENT ON VIEW pg_task.problems").context("it ends")?;
    old.replace_range(blocked..blocked + last, "");
    update += &take(&mut old, "CREATE TRIGGER task_options", ";")?;
    update += &take(&mut old, "COMMENT ON TRIGGER task_options", "';")?;
    update += &take(&mut old, "ALTER TABLE pg_task.task ENABLE ALWAYS TRIGGER task_options", ";")?;
    Ok((old, update))
}

/// A server whose tree has the scripts of every older version beside today's.
fn server(name: &str) -> Result<Cluster> {
    /// The tests of this file share one tree: one makes it.
    static TREE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = TREE.lock();
    let tree = tree_of(pg_task_cluster::tested_major(), "pgold")?;
    tree.install_extension(&tree_of(tree.major, "pg")?.library())?;
    let (old, update) = artificial()?;
    let current = env!("CARGO_PKG_VERSION");
    fs::write(tree.extension_folder().join(format!("pg_task--{ARTIFICIAL}.sql")), old)?;
    fs::write(tree.extension_folder().join(format!("pg_task--{ARTIFICIAL}--{current}.sql")), update)?;
    server_in(&tree, name, &[])
}

async fn attach_new(server: &Cluster, name: &str) -> Result<Database> {
    server.psql("postgres", &format!("CREATE DATABASE {name}"))?;
    Database::attach(server, name).await
}

/// Versions of which a snapshot was kept when they were released.
fn snapshots() -> Vec<String> {
    let files = fs::read_dir(workspace_root().join("sql/snapshots")).into_iter().flatten().flatten();
    let name = |file: fs::DirEntry| {
        let name = file.file_name().to_string_lossy().into_owned();
        Some(name.strip_prefix("pg_task--")?.strip_suffix(".sql")?.to_owned())
    };
    files.filter_map(name).collect()
}

#[tokio::test]
async fn an_update_from_every_older_version_gives_what_a_fresh_installation_gives() -> Result<()> {
    let server = server("e2e-update")?;
    let fresh = attach_new(&server, "fresh").await?;
    fresh.run("CREATE EXTENSION pg_task").await?;
    let expected = catalog::objects(&fresh).await?;
    for (number, version) in snapshots().iter().map(String::as_str).chain([ARTIFICIAL]).enumerate() {
        let db = attach_new(&server, &format!("old_{number}")).await?;
        db.run(&format!("CREATE EXTENSION pg_task VERSION '{version}'")).await?;
        db.run(&format!("SELECT pg_task.enqueue('{NOTE}', 'kept', 7)")).await?;
        let before = catalog::differences(&expected, &catalog::objects(&db).await?);
        assert_eq!(before.is_empty(), version == env!("CARGO_PKG_VERSION"), "{version}");
        db.run("ALTER EXTENSION pg_task UPDATE").await?;
        let after = catalog::differences(&expected, &catalog::objects(&db).await?);
        assert!(after.is_empty(), "after the update from {version}:\n{}", after.join("\n"));
        assert_eq!(
            db.ask("SELECT count(*) FROM pg_task.task WHERE queue = 'kept' AND priority = 7").await?,
            "1"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_library_serves_an_older_extension_and_says_so_until_it_is_updated() -> Result<()> {
    let server = server("e2e-rolling")?;
    let (db, ledger) = (attach_new(&server, "d").await?, Ledger::new("rolling")?);
    db.run(&format!("CREATE EXTENSION pg_task VERSION '{ARTIFICIAL}'")).await?;
    db.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    let _worker = db
        .known_worker(WorkerOptions {
            ledger: Some(ledger.path()),
            ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
        })
        .await?;
    db.run(&format!("SELECT pg_task.enqueue('{NOTE}') FROM generate_series(1, 100)")).await?;
    db.until_done().await?;
    db.until("SELECT last_error LIKE '%run ALTER EXTENSION pg_task UPDATE%' FROM pg_task.scheduler").await?;
    assert_eq!(
        db.ask("SELECT detail FROM pg_task.problems WHERE problem = 'versions differ'").await?,
        format!("the extension is {ARTIFICIAL}, the library {}", env!("CARGO_PKG_VERSION"))
    );
    // In the middle of work: what was begun before the update ends after it.
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Sleep": {"key": "s", "millis": 1500}}}') FROM generate_series(1, 5)"#).await?;
    db.until("SELECT count(*) = 5 FROM pg_task.running").await?;
    db.run("ALTER EXTENSION pg_task UPDATE").await?;
    db.run(&format!("SELECT pg_task.enqueue('{NOTE}') FROM generate_series(1, 100)")).await?;
    db.until_done().await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.problems)").await?;
    assert_eq!(ledger.lines().iter().filter(|line| *line == "s ends").count(), 5);
    assert_eq!(ledger.lines().len(), 210);
    Ok(())
}

#[tokio::test]
async fn a_protocol_that_the_other_side_does_not_speak_is_refused_with_what_to_do() -> Result<()> {
    let server = shared_server("e2e-protocol");
    let db = Database::create(server).await?;
    let name = db.ask("SELECT current_database()").await?;
    let call = "SELECT pg_task.register(pg_task.uuid7(), protocol => 2)";
    let output = server.psql_command(&name).args(["-X", "-v", "VERBOSITY=verbose", "-c", call]).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("0A000") && text.contains("This server speaks protocol 1"), "{text}");
    // A server of the future, which speaks protocol 2 only.
    db.run(
        "CREATE OR REPLACE FUNCTION pg_task.register(worker uuid, queues text[] DEFAULT NULL, steps text[] DEFAULT NULL, retry_limits integer[] DEFAULT NULL,
            lease interval DEFAULT '60 s', name text DEFAULT NULL, bind boolean DEFAULT true, held_ids uuid[] DEFAULT NULL,
            held_fences bigint[] DEFAULT NULL, held_tokens bigint[] DEFAULT NULL, protocol integer DEFAULT 1, weights integer[] DEFAULT NULL,
            gives_up boolean DEFAULT false, OUT channel text, OUT refused uuid[], OUT registration bigint)
         LANGUAGE plpgsql AS $$ BEGIN
            RAISE feature_not_supported USING MESSAGE = format('worker protocol %s is not supported', protocol); END $$",
    )
    .await?;
    let output = Command::new(env!("CARGO_BIN_EXE_e2e_worker"))
        .env("DATABASE_URL", &db.url)
        .env("LEDGER", "/dev/null")
        .env("CONCURRENCY", "1")
        .env("QUEUES", "")
        .env("LEASE_MS", "60000")
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("protocol 1") && text.contains("ALTER EXTENSION pg_task UPDATE"), "{text}");
    Ok(())
}

/// The tasks of a database, as text.
async fn tasks(db: &Database) -> Result<String> {
    db.ask("SELECT string_agg(t::text, '; ' ORDER BY t.id) FROM pg_task.task AS t").await
}

#[tokio::test]
async fn a_dump_carries_tasks_and_grants_into_a_new_database() -> Result<()> {
    let server = shared_server("e2e-dump");
    let db = Database::create(server).await?;
    fill(&db, "dump_producer").await?;
    let name = db.ask("SELECT current_database()").await?;
    server.psql("postgres", "CREATE DATABASE restored")?;
    let dump = server.program("pg_dump").arg(server.url(&name)).output()?;
    ensure!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let file = server.data().with_file_name("dump.sql");
    fs::write(&file, &dump.stdout)?;
    let restore =
        server.psql_command("restored").args(["-qX", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file).output()?;
    ensure!(restore.status.success(), "{}", String::from_utf8_lossy(&restore.stderr));
    let restored = Database::attach(server, "restored").await?;
    check_filled(&db, &restored, "dump_producer").await
}

/// Tasks of every kind, and a grant.
async fn fill(db: &Database, producer: &str) -> Result<()> {
    db.run(&format!(
        r#"CREATE ROLE {producer}; SELECT pg_task.grant_produce('{producer}');
           SELECT pg_task.enqueue('{{"A": {{"B": [1e300, "ü", null]}}}}', 'q', -5), pg_task.delay('{NOTE}', '1 year');
           INSERT INTO pg_task.task (step, error, tried, fence) VALUES ('{NOTE}', 'parked', 3, 9)"#
    ))
    .await
}

async fn check_filled(before: &Database, after: &Database, producer: &str) -> Result<()> {
    assert_eq!(tasks(after).await?, tasks(before).await?);
    let differences = catalog::differences(&catalog::objects(before).await?, &catalog::objects(after).await?);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let granted = format!(
        "SELECT has_function_privilege('{producer}', 'pg_task.enqueue(jsonb, text, integer, jsonb)', 'EXECUTE')"
    );
    assert_eq!(after.ask(&granted).await?, "t");
    // Tokens go on to grow: the sequence came along.
    after.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    let epoch = "SELECT last_value FROM pg_task.epoch";
    assert!(after.ask(epoch).await?.parse::<i64>()? >= before.ask(epoch).await?.parse::<i64>()?);
    Ok(())
}

/// Run by `cargo xtask test --all-majors`: it needs two versions of PostgreSQL.
#[tokio::test]
#[ignore = "needs PostgreSQL 16 and 18; cargo xtask test --all-majors runs it"]
async fn pg_upgrade_from_16_to_18_carries_tasks_grants_and_functions() -> Result<()> {
    let old_server = server_in(&tree_of(16, "pg")?, "e2e-upgrade-16", &[])?;
    let old = Database::create(&old_server).await?;
    fill(&old, "upgrade_producer").await?;
    let (name, kept) = (old.ask("SELECT current_database()").await?, tasks(&old).await?);
    let epoch: i64 = old.ask("SELECT last_value FROM pg_task.epoch").await?.parse()?;
    old.pool.close().await;
    old_server.stop(Stop::Fast)?;
    let new_tree = tree_of(18, "pg")?;
    // pg_upgrade takes one password for both.
    let password = format!("--pwfile={}", old_server.data().with_file_name("password").display());
    let options = ["--no-data-checksums", &password];
    let new_server =
        Cluster::create_empty(&new_tree, "e2e-upgrade-18", pg_task_e2e::SETTINGS, &options)?.temporary();
    let work = new_server.data().with_file_name("pg_upgrade");
    fs::create_dir_all(&work)?;
    let mut command = Command::new(new_tree.program("pg_upgrade"));
    if let Some(account) = Account::for_server()? {
        account.own(&work)?;
        account.apply(&mut command);
    }
    let folder = |program: std::path::PathBuf| {
        program.parent().map(Path::to_owned).context("a program is in a folder")
    };
    command
        .current_dir(&work)
        .env("PGPASSWORD", old_server.password())
        .args(["-U", "postgres", "-b"])
        .arg(folder(tree_of(16, "pg")?.program("postgres"))?)
        .arg("-B")
        .arg(folder(new_tree.program("postgres"))?)
        .arg("-d")
        .arg(old_server.data())
        .arg("-D")
        .arg(new_server.data())
        .args(["-s"])
        .arg(&work);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let new_server = new_server.with_password(old_server.password());
    new_server.start()?;
    let new = Database::attach(&new_server, &name).await?;
    assert_eq!(tasks(&new).await?, kept);
    new.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
    assert!(new.ask("SELECT last_value FROM pg_task.epoch").await?.parse::<i64>()? > epoch);
    let fresh = attach_new(&new_server, "fresh").await?;
    fresh.run("CREATE EXTENSION pg_task").await?;
    let granted = |line: &String| line.contains("upgrade_producer");
    let differences = catalog::differences(&catalog::objects(&fresh).await?, &catalog::objects(&new).await?);
    let others: Vec<&String> = differences.iter().filter(|line| !granted(line)).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(differences.iter().any(granted));
    // What was due goes on to run.
    let ledger = Ledger::new("upgrade")?;
    let _worker = new
        .known_worker(WorkerOptions {
            ledger: Some(ledger.path()),
            ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
        })
        .await?;
    new.run("UPDATE pg_task.task SET error = NULL; UPDATE pg_task.task SET wakeup_at = now()").await?;
    new.until("SELECT count(*) = 1 FROM pg_task.task").await?;
    assert_eq!(ledger.lines().len(), 2);
    Ok(())
}
