//! The harness of the end-to-end tests: a server, databases, worker processes, and waiting on conditions with a deadline.

pub mod blocks;
pub mod catalog;
pub mod interleave;
pub mod roles;
pub mod seed;
mod session;

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::Cluster;
use pg_task_cluster::PgInstall;
use pg_task_cluster::Stop;
use pg_task_cluster::Tree;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgPoolOptions;

pub use session::Refusal;
pub use session::Session;

/// How long a condition may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How the tests' own sessions are called.
pub const HARNESS: &str = "pg_task test harness";

/// Settings that let many databases and short waits live in one server.
pub const SETTINGS: &[&str] = &[
    "pg_task.max_databases = 40",
    "pg_task.max_workers = 16",
    "pg_task.ready_capacity = 4096",
    "pg_task.inbox_capacity = 1024",
    "max_worker_processes = 60",
    "max_connections = 300",
    "fsync = off",
];

/// The tree that `cargo xtask test` has put the extension into.
fn tree() -> anyhow::Result<Tree> {
    tree_of(pg_task_cluster::tested_major(), "pg")
}

/// A tree of a version and a purpose.
pub fn tree_of(major: u32, purpose: &str) -> anyhow::Result<Tree> {
    let install = PgInstall::find(major)
        .with_context(|| format!("PostgreSQL {major} is missing; `cargo xtask test` installs it"))?;
    Tree::prepare(&install, purpose)
}

/// A server of the test's own, for tests that stop it.
pub fn own_server(name: &str, more: &[&str]) -> anyhow::Result<Cluster> {
    server_in(&tree()?, name, more)
}

/// The same, of a tree.
pub fn server_in(tree: &Tree, name: &str, more: &[&str]) -> anyhow::Result<Cluster> {
    let settings: Vec<&str> = SETTINGS.iter().chain(more).copied().collect();
    Ok(Cluster::create(tree, name, &settings)?.temporary())
}

/// A server that the tests of one program share. It is stopped by the next run, or with the program by the system.
pub fn shared_server(name: &str) -> &'static Cluster {
    static SERVER: OnceLock<Cluster> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = own_server(name, &[]).expect("the shared server starts");
        stop_with_this_process(&server);
        server
    })
}

/// A static is never dropped: a small shell waits for the end of this process, stops the server then and removes its data.
fn stop_with_this_process(server: &Cluster) {
    // Another run may have made a server of the same name meanwhile: its folder is another one.
    const SCRIPT: &str = r#"
        folder=$(stat -c %i "$3")
        while kill -0 "$1"; do sleep 0.2; done
        kill -INT "$2"
        while kill -0 "$2"; do sleep 0.2; done
        if [ -n "$folder" ] && [ "$folder" = "$(stat -c %i "$3")" ]; then rm -rf -- "$3"; fi"#;

    let Some(postmaster) = server.postmaster_pid() else { return };
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT, "sh", &std::process::id().to_string(), &postmaster.to_string()]);
    if server.is_temporary() {
        shell.arg(server.data());
    }
    let _ = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
}

/// A database with the extension.
pub struct Database {
    /// Its connection URL.
    pub url: String,
    /// A pool.
    pub pool: PgPool,
}

impl Database {
    /// A new database in a server, without the extension.
    pub async fn empty(server: &Cluster) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        server.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        Self::attach(server, &name).await
    }

    /// A new database in a server, with the extension.
    pub async fn create(server: &Cluster) -> anyhow::Result<Self> {
        let database = Self::empty(server).await?;
        database.run("CREATE EXTENSION pg_task").await?;
        database.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
        Ok(database)
    }

    /// A database that is there.
    pub async fn attach(server: &Cluster, name: &str) -> anyhow::Result<Self> {
        let url = server.url(name);
        let options = url.parse::<PgConnectOptions>()?.application_name(HARNESS);
        let pool =
            PgPoolOptions::new().max_connections(4).acquire_timeout(PATIENCE).connect_with(options).await?;
        Ok(Self { url, pool })
    }

    /// The same database after its server was stopped and started, with a scheduler that runs.
    pub async fn restarted(self, server: &Cluster, how: Stop) -> anyhow::Result<Self> {
        self.pool.close().await;
        server.stop(how)?;
        server.start()?;
        let name = self.url.rsplit_once('/').context("the URL names no database")?.1;
        let database = Self::attach(server, name).await?;
        database.until("SELECT state = 'running' FROM pg_task.scheduler").await?;
        Ok(database)
    }

    /// Runs statements.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .with_context(|| sql.to_owned())?;
        Ok(())
    }

    /// The single value of a query, as text; empty for NULL or no row.
    pub async fn ask(&self, sql: &str) -> anyhow::Result<String> {
        let sql = format!("SELECT (x.*)::text FROM ({sql}) AS x (v)");
        let row: Option<(Option<String>,)> = sqlx::query_as(sqlx::AssertSqlSafe(sql.clone()))
            .fetch_optional(&self.pool)
            .await
            .with_context(|| sql)?;
        let text = row.and_then(|row| row.0).unwrap_or_default();
        // A row of one column prints as (value).
        Ok(text.trim_start_matches('(').trim_end_matches(')').trim_matches('"').to_owned())
    }

    /// Waits until a query's value is true.
    pub async fn until(&self, sql: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < deadline {
            match self.ask(sql).await {
                Ok(answer) if answer == "t" => return Ok(()),
                Ok(answer) => last = answer,
                // A server that is being restarted.
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("not within {} s: {sql} (last answer: {last})", PATIENCE.as_secs())
    }

    /// Waits until there is no task.
    pub async fn until_done(&self) -> anyhow::Result<()> {
        self.until("SELECT NOT EXISTS (SELECT FROM pg_task.task)").await
    }

    /// Starts a worker in a process of its own.
    pub fn worker(&self, options: WorkerOptions<'_>) -> anyhow::Result<WorkerProcess> {
        let program = options.program;
        let child = Command::new(program)
            .env("DATABASE_URL", &self.url)
            .env("LEDGER", options.ledger.unwrap_or(Path::new("/dev/null")))
            .env("CONCURRENCY", options.concurrency.to_string())
            .env("QUEUES", options.queues)
            .env("LEASE_MS", options.lease.as_millis().to_string())
            .envs(options.polling.map(|polling| ("POLLING_MS", polling.as_millis().to_string())))
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start the worker")?;
        Ok(WorkerProcess { child })
    }

    /// Starts a worker and waits until the server knows it.
    pub async fn known_worker(&self, options: WorkerOptions<'_>) -> anyhow::Result<WorkerProcess> {
        let before: u64 = self.ask("SELECT count(*) FROM pg_task.workers").await?.parse()?;
        let worker = self.worker(options)?;
        self.until(&format!("SELECT count(*) > {before} FROM pg_task.workers")).await?;
        Ok(worker)
    }
}

/// How a worker process is started.
#[derive(Clone, Copy)]
pub struct WorkerOptions<'a> {
    /// The program: `env!("CARGO_BIN_EXE_e2e_worker")`.
    pub program: &'a str,
    /// Where it writes what it ran.
    pub ledger: Option<&'a Path>,
    /// Steps at a time.
    pub concurrency: usize,
    /// Queues, separated by commas; empty for all.
    pub queues: &'a str,
    /// Its lease.
    pub lease: Duration,
    /// How often it looks for work, if it does not listen.
    pub polling: Option<Duration>,
}

impl<'a> WorkerOptions<'a> {
    /// The defaults.
    pub fn new(program: &'a str) -> Self {
        Self {
            program,
            ledger: None,
            concurrency: 20,
            queues: "",
            lease: Duration::from_secs(60),
            polling: None,
        }
    }
}

/// A worker process; killed when the value is dropped.
pub struct WorkerProcess {
    child: Child,
}

impl WorkerProcess {
    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status()?;
        if status.success() { Ok(()) } else { bail!("failed to send {name}") }
    }

    /// Waits until the process has ended; whether it ended well.
    pub async fn ended(&mut self) -> anyhow::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("the worker did not end")
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file, outside the database, in which workers note what they did.
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("pg_task-ledger-{name}-{}", std::process::id()));
        std::fs::write(&path, "")?;
        Ok(Self { path })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its lines.
    pub fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.path).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
