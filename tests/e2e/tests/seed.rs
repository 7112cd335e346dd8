//! Users of the crate pg_task 1.0.0 move over: their tables, their programs, every name that they use.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use pg_task_cluster::Cluster;
use pg_task_cluster::workspace_root;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::blocks::blocks;
use pg_task_e2e::seed;
use pg_task_e2e::seed::Seed;
use pg_task_e2e::shared_server;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

#[path = "../../seed/src/api.rs"]
mod api;

pg_task::task!(Test { Fail, Note });
pg_task::scheduler!(Tasks { Test });

/// A step of the same name and shape as in the old program.
#[derive(Debug, Deserialize, Serialize)]
pub struct Fail {
    until_attempt: i32,
}

impl pg_task::Step<Test> for Fail {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::from_millis(10);

    async fn step(self, _db: &PgPool) -> pg_task::StepResult<Test> {
        Err(format!("not before attempt {}", self.until_attempt).into())
    }
}

/// Another one.
#[derive(Debug, Deserialize, Serialize)]
pub struct Note {
    key: String,
}

impl pg_task::Step<Test> for Note {
    async fn step(self, _db: &PgPool) -> pg_task::StepResult<Test> {
        pg_task::NextStep::none()
    }
}

fn server() -> &'static Cluster {
    shared_server("e2e-seed")
}

/// A process that is killed when the value is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn old(db: &Database, arguments: &[&str]) -> Command {
    let mut command = Command::new(&Seed::get().program);
    command.args(arguments).env("DATABASE_URL", &db.url).env_remove("RUST_LOG");
    command
}

/// Gives the database the old crate's table, as its migrations make it.
fn make_old_table(db: &Database) -> Result<()> {
    let migrations = Seed::get().folder.join("migrations");
    seed::run(old(db, &["migrate"]).arg(migrations))?;
    Ok(())
}

/// Moves the rows by the command of the documentation; returns what psql said.
fn migrate(db: &Database) -> Result<String> {
    let page = fs::read_to_string(workspace_root().join("docs/migrating-from-pg_task-1.md"))?;
    let commands =
        blocks(&page).into_iter().find(|block| block.language == "sh").context("the page has no command")?;
    let psql = server().program("psql");
    let folder = Path::new(psql.get_program()).parent().context("a program without a folder")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-ec", &commands.text])
        .current_dir(workspace_root())
        .env("DATABASE_URL", &db.url)
        .env("PATH", format!("{}:{path}", folder.display()))
        .env("PGOPTIONS", "-c client_min_messages=notice")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(said) } else { Err(anyhow::anyhow!(said)) }
}

/// Nothing was moved, and the script says why.
async fn refused(db: &Database, code: &str, message: &str, detail: &str) -> Result<()> {
    let before = db.ask("SELECT count(*) FROM public.pg_task").await?;
    let script = fs::read_to_string(workspace_root().join("sql/migrate-from-pg_task-1.sql"))?;
    let refusal = db.session().await?.refusal(&script).await?;
    assert_eq!((&*refusal.code, &*refusal.message), (code, message), "{refusal:?}");
    assert!(refusal.detail.contains(detail) && !refusal.hint.is_empty(), "{refusal:?}");
    assert!(migrate(db).is_err());
    assert_eq!(db.ask("SELECT count(*) FROM public.pg_task").await?, before);
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    Ok(())
}

#[tokio::test]
async fn the_tasks_of_the_old_table_are_moved_all_or_none_and_the_new_worker_finishes_them() -> Result<()> {
    let (db, ledger) = (Database::create(server()).await?, Ledger::new("seed")?);
    let said = migrate(&db).expect_err("there is no old table").to_string();
    assert!(said.contains("there is no table pg_task") && said.contains("HINT:"), "{said}");
    make_old_table(&db)?;

    // The old worker parks one, and holds another when it is killed.
    seed::run(&mut old(&db, &["enqueue", "failing"]))?;
    seed::run(&mut old(&db, &["enqueue", "delayed"]))?;
    let worker = Process(old(&db, &["work"]).spawn()?);
    db.until("SELECT count(*) = 1 FROM public.pg_task WHERE error IS NOT NULL").await?;
    seed::run(&mut old(&db, &["enqueue", "endless"]))?;
    db.until("SELECT count(*) = 1 FROM public.pg_task WHERE lock_expires_at > now()").await?;
    let held = "1 tasks of the old table are being run";
    refused(&db, "55006", held, "Nothing was moved. Workers ").await?;
    drop(worker);
    refused(&db, "55006", held, "hold leases until").await?;
    db.run("UPDATE public.pg_task SET lock_expires_at = now() WHERE lock_expires_at IS NOT NULL").await?;
    seed::run(&mut old(&db, &["enqueue", "ready"]))?;

    let broken = "INSERT INTO public.pg_task (id, step) VALUES
        ('00000000-0000-0000-0000-000000000001', '{\"Test\"'), ('00000000-0000-0000-0000-000000000002', '{\"Test\":1}')";
    db.run(broken).await?;
    refused(
        &db,
        "22023",
        "2 tasks of the old table have no valid step or no finite time",
        "00000000-0000-0000-0000-000000000001, 00000000-0000-0000-0000-000000000002",
    )
    .await?;
    db.run("UPDATE public.pg_task SET step = replace(step, '\"millis\":3600000', '\"millis\":1')").await?;
    db.run("DELETE FROM public.pg_task WHERE id < '00000000-0000-0000-0000-0000000000ff'").await?;

    db.run("CREATE TABLE before AS SELECT id, step::jsonb, wakeup_at, tried, error, created_at, updated_at FROM public.pg_task")
        .await?;
    let said = migrate(&db)?;
    assert!(said.contains("4 tasks were moved; 1 are parked now"), "{said}");
    assert_eq!(db.ask("SELECT count(*) FROM public.pg_task").await?, "0");
    let kept = "SELECT count(*) FROM (
        SELECT * FROM before INTERSECT SELECT id, step, wakeup_at, tried, error, created_at, updated_at FROM pg_task.task) AS x";
    assert_eq!(db.ask(kept).await?, "4");
    assert_eq!(db.ask("SELECT tried || ' ' || error FROM pg_task.failed").await?, "2 not before attempt 1");

    let options =
        WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) };
    let _worker = db.known_worker(options).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task").await?;
    assert_eq!(
        db.ask("SELECT wakeup_at > now() + interval '50 minutes' FROM pg_task.task WHERE error IS NULL")
            .await?,
        "t"
    );
    db.run("UPDATE pg_task.task SET error = NULL WHERE error IS NOT NULL").await?;
    db.run("UPDATE pg_task.task SET wakeup_at = now() WHERE wakeup_at > now()").await?;
    db.until_done().await?;
    let mut lines = ledger.lines();
    lines.sort();
    assert_eq!(lines, ["attempt 1", "delayed", "endless begins", "endless ends", "ready"]);

    // A producer that was forgotten: the script can be run again.
    seed::run(&mut old(&db, &["enqueue", "ready"]))?;
    migrate(&db)?;
    db.until_done().await?;
    assert_eq!(ledger.lines().last().map(String::as_str), Some("ready"));
    Ok(())
}

#[tokio::test]
async fn every_public_item_of_the_old_crate_works_under_its_name() -> Result<()> {
    let db = Database::create(server()).await?;
    make_old_table(&db)?;
    seed::run(&mut old(&db, &["api"])).context("the old crate itself")?;
    api::use_everything(db.pool.clone()).await.context("this crate")?;
    // Both left the task that fails, parked; the others are done.
    db.until("SELECT count(*) = 1 FROM pg_task.task").await
}

/// The old crate's examples, with the changes that docs/migrating-from-pg_task-1.md names and no others.
fn generate_examples() -> Result<PathBuf> {
    let example = |name: &str| -> Result<String> {
        changed(&fs::read_to_string(Seed::get().folder.join("examples").join(name).with_extension("rs"))?)
    };
    seed::package(
        "seed_examples",
        &[
            ("tutorial", &example("tutorial")?),
            ("counter", &example("counter")?),
            ("delay", &example("delay")?),
            ("util/mod", &example("util")?),
        ],
    )
}

/// `#[async_trait]` and its import are removed; the migrations are replaced by the extension.
fn changed(text: &str) -> Result<String> {
    let mut changed = String::new();
    for line in text.lines() {
        match line.trim() {
            "#[async_trait]" | "use async_trait::async_trait;" => {}
            "sqlx::migrate!().run(&db).await?;" => {
                changed.push_str(
                    "    sqlx::query(\"CREATE EXTENSION IF NOT EXISTS pg_task\").execute(&db).await?;\n",
                );
            }
            _ => {
                changed.push_str(line);
                changed.push('\n');
            }
        }
    }
    anyhow::ensure!(
        !changed.contains("async_trait") && !changed.contains("migrate!()"),
        "something is left of the old crate"
    );
    Ok(changed)
}

/// Starts an example; what it prints is in a file, so that it never waits for a reader.
fn example(folder: &Path, name: &str, db: &Database) -> Result<Process> {
    let output = fs::File::create(folder.join(name).with_extension("out"))?;
    let child = Command::new(seed::target().join("debug").join(name))
        .env("DATABASE_URL", &db.url)
        .env("RUST_LOG", "pg_task=info")
        // There the tutorial looks for name.txt.
        .current_dir(folder)
        .stderr(output.try_clone()?)
        .stdout(output)
        .spawn()?;
    Ok(Process(child))
}

/// Stops the worker as the old crate's documentation says, and returns what it printed.
async fn stopped(db: &Database, mut example: Process, folder: &Path, name: &str) -> Result<String> {
    db.run("SELECT pg_notify('pg_task_changed', 'stop_worker')").await?;
    let ended = tokio::task::spawn_blocking(move || example.0.wait());
    let status = tokio::time::timeout(Duration::from_secs(60), ended)
        .await
        .context("the worker did not stop")???;
    let said = fs::read_to_string(folder.join(name).with_extension("out"))?;
    anyhow::ensure!(status.success(), "{name} ended with an error: {said}");
    Ok(said)
}

#[tokio::test]
async fn the_examples_of_the_old_crate_run_after_the_two_changes() -> Result<()> {
    let folder = generate_examples()?;
    seed::run(&mut seed::cargo(&folder.join("Cargo.toml"), "build"))?;

    // Six attempts, one second apart; parked; resumed by its user; greeted.
    let db = Database::empty(server()).await?;
    let name = folder.join("name.txt");
    let _ = fs::remove_file(&name);
    let tutorial = example(&folder, "tutorial", &db)?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    assert_eq!(
        db.ask("SELECT tried || ' ' || (step->'Greeter'->'ReadName'->>'filename') || ' ' || error FROM pg_task.task").await?,
        "6 name.txt No such file or directory (os error 2)"
    );
    fs::write(&name, "Fixed World")?;
    db.run("UPDATE pg_task.task SET error = NULL").await?;
    db.until_done().await?;
    let said = stopped(&db, tutorial, &folder, "tutorial").await?;
    assert!(said.contains("Hello, Fixed World"), "{said}");
    assert!(said.contains("failed at step Greeter(ReadName(ReadName { filename: \"name.txt\" }))"), "{said}");

    let db = Database::empty(server()).await?;
    let counter = example(&folder, "counter", &db)?;
    db.until("SELECT finished >= 1002 FROM pg_task.scheduler").await?;
    db.until_done().await?;
    let said = stopped(&db, counter, &folder, "counter").await?;
    assert!(said.contains("1..1000: start") && said.contains("1..1000: done in"), "{said}");

    let db = Database::empty(server()).await?;
    let delay = example(&folder, "delay", &db)?;
    db.until("SELECT finished >= 6 FROM pg_task.scheduler").await?;
    db.until_done().await?;
    let said = stopped(&db, delay, &folder, "delay").await?;
    // On a machine that stands still for a second the third may come before the second.
    let mut woke: Vec<&str> = said.lines().filter(|line| line.starts_with("Woke up")).collect();
    woke.sort_unstable();
    assert_eq!(woke, ["Woke up after 1 sec", "Woke up after 2 sec", "Woke up after 3 sec"], "{said}");
    assert_eq!(said.matches("Sleeping for").count(), 3, "{said}");
    Ok(())
}
