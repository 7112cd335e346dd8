//! Programs of `examples/` that no other test runs do what they say.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::Result;
use anyhow::ensure;
use pg_task_cluster::workspace_root;
use pg_task_e2e::Database;
use pg_task_e2e::seed;
use pg_task_e2e::shared_server;

const NAMES: [&str; 6] = ["operator", "progress", "retries", "schedules", "time_limits", "unique"];

/// Where the programs are; they are built once.
fn programs() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut cargo = seed::cargo(&workspace_root().join("Cargo.toml"), "build");
        cargo.args(["-p", "pg_task_examples"]).env_remove("CARGO_MANIFEST_DIR");
        cargo.args(NAMES.iter().flat_map(|name| ["--example", name]));
        seed::run(&mut cargo).expect("the examples build");
        seed::target().join("debug/examples")
    })
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-examples")).await
}

/// A program that runs; killed when the value is dropped.
struct Example {
    process: Child,
    output: PathBuf,
}

impl Example {
    async fn start(name: &'static str, db: &Database) -> Result<Self> {
        let program = tokio::task::spawn_blocking(programs).await?.join(name);
        let output = std::env::temp_dir().join(format!("pg_task-example-{name}-{}", std::process::id()));
        let process = Command::new(program)
            .env("DATABASE_URL", &db.url)
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::from(fs::File::create(&output)?))
            .spawn()?;
        Ok(Self { process, output })
    }

    /// Waits until the program has ended well; what it has printed.
    async fn lines(mut self) -> Result<Vec<String>> {
        let (status, ended) = tokio::task::spawn_blocking(move || (self.process.wait(), self)).await?;
        ensure!(status?.success(), "it did not end well");
        Ok(fs::read_to_string(&ended.output)?.lines().map(str::to_owned).collect())
    }

    /// The same of a worker, which is asked to stop.
    async fn stopped(self, db: &Database) -> Result<Vec<String>> {
        db.run("SELECT pg_task.stop_workers()").await?;
        self.lines().await
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.output);
    }
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn the_operator_mends_moves_and_cancels() -> Result<()> {
    let db = database().await?;
    let lines = Example::start("operator", &db).await?.lines().await?;
    let expected = [
        "2500 are there",
        "1500 wait until tomorrow",
        "1000 are urgent",
        "1000 have a queue of their own",
        "mended: true",
        "and once more: true",
        "1501 are cancelled",
        "1000 of the other queue too",
    ];
    assert_eq!(lines, expected);
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    Ok(())
}

#[tokio::test]
async fn an_import_is_seen_while_it_runs() -> Result<()> {
    let db = database().await?;
    let worker = Example::start("progress", &db).await?;
    db.until("SELECT count(*) = 1 FROM pg_task.history WHERE outcome = 'done'").await?;
    let lines = worker.stopped(&db).await?;
    ensure!(lines.iter().any(|line| line.ends_with(" of 1000 rows")), "{lines:?}");
    ensure!(lines.iter().all(|line| line.contains(" %  ")), "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn a_charge_is_retried_and_refunded() -> Result<()> {
    let db = database().await?;
    let worker = Example::start("retries", &db).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.failed").await?;
    let lines = worker.stopped(&db).await?;
    let expected = [
        "Charging order 7, attempt 1",
        "Charging order 7, attempt 2",
        "Charging order 7, attempt 3",
        "Charging order 7, attempt 4",
        "Charging order 8, attempt 1",
        "Order 7 is refunded",
        "Order 8 is refunded",
        "When both are refunded, TABLE pg_task.task_errors shows what happened",
    ];
    assert_eq!(sorted(lines), expected);
    assert_eq!(
        db.ask("SELECT string_agg(DISTINCT error, '; ' ORDER BY error) FROM pg_task.task_errors").await?,
        "and someone has to look at it; still no answer; the network is down; too many requests"
    );
    Ok(())
}

#[tokio::test]
async fn a_program_declares_its_schedules() -> Result<()> {
    let db = database().await?;
    let worker = Example::start("schedules", &db).await?;
    db.until("SELECT count(*) >= 2 FROM pg_task.history WHERE outcome = 'done'").await?;
    assert_eq!(
        db.ask("SELECT (next_at AT TIME ZONE 'Europe/Berlin')::time FROM pg_task.schedules WHERE name = 'nightly report'").await?,
        "03:30:00"
    );
    let lines = worker.stopped(&db).await?;
    ensure!(
        lines.len() >= 2 && lines.iter().all(|line| line.starts_with("The frequent report for 2")),
        "{lines:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_report_has_only_its_time() -> Result<()> {
    let db = database().await?;
    let worker = Example::start("time_limits", &db).await?;
    db.until("SELECT count(*) = 2 FROM pg_task.failed").await?;
    db.until("SELECT count(*) = 2 FROM pg_task.task").await?;
    assert_eq!(
        db.ask("SELECT string_agg(split_part(error, ',', 1), '; ' ORDER BY error) FROM pg_task.failed")
            .await?,
        "the task was not begun before its deadline; there was no time to render the long one"
    );
    let lines = worker.stopped(&db).await?;
    let expected = [
        "Rendered the one with time",
        "Rendering the long one",
        "Rendering the one with time",
        "TABLE pg_task.failed shows which were not rendered, and why",
    ];
    assert_eq!(sorted(lines), expected);
    Ok(())
}

#[tokio::test]
async fn of_tasks_of_one_key_one_is_run() -> Result<()> {
    let db = database().await?;
    let worker = Example::start("unique", &db).await?;
    db.until("SELECT count(*) = 4 FROM pg_task.history WHERE outcome = 'done'").await?;
    let (indexed, answers): (Vec<String>, Vec<String>) =
        worker.stopped(&db).await?.into_iter().partition(|line| line.starts_with("Indexing "));
    let expected = ["Indexing \"Hello\"", "Indexing \"once\"", "Indexing \"ordered\"", "Indexing \"report\""];
    assert_eq!(sorted(indexed), expected);
    assert_eq!(answers.len(), 7, "{answers:?}");
    Ok(())
}
