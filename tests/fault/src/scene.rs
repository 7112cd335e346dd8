//! The scene of a run: the server, the workers, the proxies, the ledger, and how the driver talks to the server.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::Account;
use pg_task_cluster::Cluster;
use pg_task_cluster::PgInstall;
use pg_task_cluster::Tree;
use pg_task_cluster::workspace_root;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::Row;
use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

use crate::bouncer::Bouncer;
use crate::check::Span;
use crate::crew::Crew;
use crate::crew::Settings;
use crate::crew::Special;
use crate::ledger;
use crate::ledger::Ledger;
use crate::proxy::Proxy;
use crate::queues;
use crate::queues::HEIR_LIMITS;
use crate::ticks;
use crate::ticks::Standing;

/// The database of the load.
pub const DATABASE: &str = "load";

/// The role of the workers.
pub const WORKER_ROLE: &str = "fault_worker";

const WORKER_PASSWORD: &str = "fault";

/// What gives a process a wrong clock, in Debian's package.
const FAKE_TIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The lease of the workers, in milliseconds.
pub const LEASE_MS: u64 = 4_000;

/// How long the server may take to come back, on a machine that has other work too.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How long one statement of the driver may take: the server ends it sooner, if it has the time to.
const CALL_TIME: Duration = Duration::from_secs(90);

/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(50);

/// How much longer to wait. A machine, or all of its processes, may stand still meanwhile: of each look only so much counts as a call may take.
pub struct Patience {
    left: Duration,
    looked_at: Instant,
}

impl Patience {
    /// From now on, so long.
    pub fn new(left: Duration) -> Self {
        Self { left, looked_at: Instant::now() }
    }

    /// Whether to look again.
    pub fn lasts(&mut self) -> bool {
        let since = std::mem::replace(&mut self.looked_at, Instant::now()).elapsed();
        self.left = self.left.saturating_sub(since.min(CALL_TIME));
        !self.left.is_zero()
    }
}

/// Waits for a call as long as it may take. Seconds are counted, so that a standstill is one of them.
async fn in_time<T>(call: impl Future<Output = T>) -> anyhow::Result<T> {
    const TICK: Duration = Duration::from_secs(1);
    let mut call = std::pin::pin!(call);
    for _ in 0..CALL_TIME.as_secs() {
        if let Ok(answer) = timeout(TICK, &mut call).await {
            return Ok(answer);
        }
    }
    bail!("no answer in {} s", CALL_TIME.as_secs())
}

/// Small memory, so that its limits are reached; small WAL, so that checkpoints are many.
const SETTINGS: &[&str] = &[
    "pg_task.max_databases = 4",
    "pg_task.max_workers = 12",
    "pg_task.ready_capacity = 2048",
    "pg_task.inbox_capacity = 256",
    "max_worker_processes = 24",
    "max_connections = 150",
    "max_prepared_transactions = 60",
    "wal_level = logical",
    "max_wal_senders = 8",
    "max_replication_slots = 8",
    "wal_keep_size = 64MB",
    "wal_sender_timeout = 10s",
    // A connection that a silent network has begun while the server stops is waited for this long.
    "authentication_timeout = 10s",
    "max_wal_size = 128MB",
    "min_wal_size = 32MB",
    "checkpoint_timeout = 30s",
    // Processes are killed here, not the machine: what was written to its cache is not lost.
    "fsync = off",
];

/// The scene of a run.
pub struct Scene {
    /// Where everything of the run is kept.
    pub folder: PathBuf,
    /// The server's files.
    pub tree: Tree,
    /// The ledger of the driver.
    pub ledger: Ledger,
    /// The ledger's file.
    pub ledger_path: PathBuf,
    /// The folder of what was mended.
    pub mended: PathBuf,
    /// The port of the server that the load is against.
    pub upstream: Arc<AtomicU16>,
    /// The way of the producers.
    pub producers: Proxy,
    /// The workers.
    pub crew: tokio::sync::Mutex<Crew>,
    /// The key of the next task.
    pub next_key: AtomicU64,
    /// Held for reading by whoever works on the load; for writing while it is to hold its breath.
    pub gate: tokio::sync::RwLock<()>,
    /// The servers' logs.
    pub logs: Mutex<Vec<PathBuf>>,
    /// The pooler before the last worker, if it is installed.
    pub bouncer: tokio::sync::Mutex<Option<Bouncer>>,
    /// The file that says how wrong the clock of one worker is, if there is one.
    pub clock: Option<PathBuf>,
    cluster: Mutex<Cluster>,
    excuses: Mutex<BTreeSet<&'static str>>,
    standing: Mutex<Standing>,
    spans: Mutex<Vec<Span>>,
}

impl Scene {
    /// Its name, which is that of its folder.
    pub fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Makes a server with the extension and starts workers.
    ///
    /// # Errors
    /// When anything of that fails.
    pub async fn set(name: &str, workers: usize) -> anyhow::Result<Self> {
        let install =
            PgInstall::find(15).context("PostgreSQL 15 is missing; `cargo xtask fault` installs it")?;
        let tree = Tree::prepare(&install, "pg")?;
        let folder = workspace_root().join("target/pg_task/fault").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        let mended = folder.join("mended");
        std::fs::create_dir_all(&mended)?;
        let cluster = tokio::task::block_in_place(|| Cluster::create(&tree, name, SETTINGS))?;
        let upstream = Arc::new(AtomicU16::new(cluster.port()));
        let ledger_path = folder.join("ledger");
        let settings = Settings {
            ledger: ledger_path.clone(),
            mended: mended.clone(),
            log: folder.join("workers.log"),
            lease_ms: LEASE_MS,
        };
        let scene = Self {
            tree,
            ledger: Ledger::open(&ledger_path)?,
            ledger_path,
            mended,
            producers: Proxy::start(upstream.clone()).await?,
            crew: Crew::new(settings, WORKER_ROLE, WORKER_PASSWORD, DATABASE).into(),
            next_key: AtomicU64::new(1),
            gate: tokio::sync::RwLock::default(),
            logs: vec![cluster.log()].into(),
            spans: Mutex::default(),
            excuses: Mutex::default(),
            standing: Mutex::default(),
            bouncer: tokio::sync::Mutex::default(),
            clock: Path::new(FAKE_TIME).exists().then(|| folder.join("clock")),
            cluster: cluster.into(),
            folder,
            upstream,
        };
        scene.prepare().await?;
        for _ in 0..workers {
            scene.crew.lock().await.add(scene.upstream.clone(), Special::default()).await?;
        }
        scene.add_special_workers().await?;
        Ok(scene)
    }

    /// One worker whose clock jumps, and one behind a pooler.
    async fn add_special_workers(&self) -> anyhow::Result<()> {
        let mut crew = self.crew.lock().await;
        if let Some(clock) = &self.clock {
            std::fs::write(clock, "+0s\n")?;
            let variables = [
                ("LD_PRELOAD", FAKE_TIME.to_owned()),
                ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
                // A step of the time of day is what a machine can suffer; its monotonic clock does not go back.
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("NO_FAKE_STAT", "1".to_owned()),
            ];
            let variables = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
            crew.add(self.upstream.clone(), Special { port: None, variables }).await?;
        }
        let upstream = self.producers.port();
        let bouncer = Bouncer::start(&self.folder, upstream, DATABASE, WORKER_ROLE, WORKER_PASSWORD).await?;
        if let Some(bouncer) = bouncer {
            let variables = vec![("POLLING_MS".to_owned(), "100".to_owned())];
            crew.add(self.upstream.clone(), Special { port: Some(bouncer.port()), variables }).await?;
            *self.bouncer.lock().await = Some(bouncer);
        }
        Ok(())
    }

    async fn prepare(&self) -> anyhow::Result<()> {
        self.run_in("postgres", &format!("CREATE DATABASE {DATABASE}")).await?;
        self.run("CREATE EXTENSION pg_task").await?;
        self.run("CREATE TABLE effect (key bigint PRIMARY KEY, token bigint NOT NULL)").await?;
        // No constraint: a row that is written twice is to show.
        self.run("CREATE TABLE exact (key bigint NOT NULL, seq bigint NOT NULL, token bigint NOT NULL)")
            .await?;
        // What unique tasks are to take away: each producer's wish is part of its transaction.
        self.run("CREATE TABLE wish (name bigint NOT NULL, key bigint NOT NULL)").await?;
        // Copies of one task are told apart by their ids.
        self.run("CREATE TABLE twin (key bigint NOT NULL, id uuid NOT NULL)").await?;
        self.run(&format!("CREATE ROLE {WORKER_ROLE} LOGIN PASSWORD '{WORKER_PASSWORD}'")).await?;
        self.run(&format!("GRANT SELECT, INSERT, UPDATE ON effect, exact, twin TO {WORKER_ROLE}")).await?;
        self.run(&format!("GRANT SELECT, DELETE ON wish TO {WORKER_ROLE}")).await?;
        self.run(&format!("SELECT pg_task.grant_work('{WORKER_ROLE}')")).await?;
        for settings in queues::lasting() {
            self.run(&settings).await?;
        }
        self.run(&queues::for_heirs(HEIR_LIMITS[0], 100)).await?;
        ticks::prepare(self, WORKER_ROLE).await?;
        self.until("SELECT state = 'running' FROM pg_task.scheduler", PATIENCE).await
    }

    /// The server. Held only while its files or processes are dealt with.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().expect("no holder of the lock panics")
    }

    /// The server once more, for what takes so long that nobody else should wait for it.
    ///
    /// # Errors
    /// When its files are not there.
    pub fn cluster_again(&self) -> anyhow::Result<Cluster> {
        let name = self.cluster().folder().file_name().map(|name| name.to_string_lossy().into_owned());
        Cluster::attach(&self.tree, &name.context("the cluster's folder has no name")?)
    }

    /// Another server takes the place of the one so far; the old one is given back.
    pub fn replace_cluster(&self, cluster: Cluster) -> Cluster {
        self.upstream.store(cluster.port(), Relaxed);
        self.logs.lock().expect("no holder of the lock panics").push(cluster.log());
        std::mem::replace(&mut *self.cluster(), cluster)
    }

    /// A connection of the driver, past all proxies.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn connect(&self, database: &str) -> anyhow::Result<PgConnection> {
        let url = format!("{}?sslmode=disable", self.cluster().url(database));
        // What waits for a lock holds up all that comes after it: the server itself ends it.
        let limits = [("lock_timeout", "3s"), ("statement_timeout", "25s")];
        let options = url.parse::<PgConnectOptions>()?.options(limits);
        let mut patience = Patience::new(PATIENCE);
        loop {
            match in_time(PgConnection::connect_with(&options)).await? {
                // A fault has taken all places, and gives them back.
                Err(sqlx::Error::Database(error))
                    if error.code().as_deref() == Some("53300") && patience.lasts() =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                connection => return Ok(connection?),
            }
        }
    }

    /// A connection by the way of the producers.
    ///
    /// # Errors
    /// When the proxy or the server does not take it.
    pub async fn connect_as_producer(&self) -> anyhow::Result<PgConnection> {
        let url = self.cluster().url(DATABASE);
        let (start, _) = url.rsplit_once(':').context("the URL has no port")?;
        let port = self.producers.port();
        let url = format!("{start}:{port}/{DATABASE}?sslmode=disable&application_name=producer");
        Ok(timeout(Duration::from_secs(5), PgConnection::connect(&url)).await??)
    }

    /// Runs statements in the database of the load.
    ///
    /// # Errors
    /// When one fails.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        self.run_in(DATABASE, sql).await
    }

    /// Runs statements in a database.
    ///
    /// # Errors
    /// When one fails.
    pub async fn run_in(&self, database: &str, sql: &str) -> anyhow::Result<()> {
        let mut connection = self.connect(database).await?;
        let call = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection);
        in_time(call).await.with_context(|| sql.to_owned())?.with_context(|| sql.to_owned())?;
        let _ = connection.close().await;
        Ok(())
    }

    /// Runs a statement in the database of the load, again and again until it has been done.
    ///
    /// # Errors
    /// When it is not done in time.
    pub async fn insist(&self, sql: &str) -> anyhow::Result<()> {
        self.insist_in(DATABASE, sql).await
    }

    /// Runs a statement in a database, again and again until it has been done: by this call, or by an earlier one of which nothing
    /// was heard.
    ///
    /// # Errors
    /// When it is not done in time.
    pub async fn insist_in(&self, database: &str, sql: &str) -> anyhow::Result<()> {
        let mut patience = Patience::new(PATIENCE);
        loop {
            let Err(error) = self.run_in(database, sql).await else { return Ok(()) };
            let code =
                error.downcast_ref::<sqlx::Error>().and_then(|error| error.as_database_error()?.code());
            if code.is_some_and(|code| ["42704", "42710", "42P04", "42P07"].contains(&&*code)) {
                return Ok(());
            }
            if !patience.lasts() {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lines of the server's log with this in them are of our making.
    pub fn excuse(&self, part: &'static str) {
        self.excuses.lock().expect("no holder of the lock panics").insert(part);
    }

    /// What the server's log may say.
    pub fn excuses(&self) -> Vec<&'static str> {
        self.excuses.lock().expect("no holder of the lock panics").iter().copied().collect()
    }

    /// An empty folder beside the server's data that belongs to its account.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn server_folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.cluster().folder().join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        if let Some(account) = Account::for_server()? {
            account.own(&folder)?;
        }
        Ok(folder)
    }

    /// The first column of a query's rows, as text; NULLs are empty.
    ///
    /// # Errors
    /// When it fails.
    pub async fn column(&self, sql: &str) -> anyhow::Result<Vec<String>> {
        let mut connection = self.connect(DATABASE).await?;
        let call = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection);
        let rows = in_time(call).await.with_context(|| sql.to_owned())?.with_context(|| sql.to_owned())?;
        let _ = connection.close().await;
        let text = |row: &sqlx::postgres::PgRow| {
            // The simple protocol brings every type as text.
            let value = row.try_get_raw(0).ok()?;
            value.as_str().ok().map(str::to_owned)
        };
        Ok(rows.iter().map(|row| text(row).unwrap_or_default()).collect())
    }

    /// The single value of a query, as text; empty for no row.
    ///
    /// # Errors
    /// When it fails.
    pub async fn ask(&self, sql: &str) -> anyhow::Result<String> {
        Ok(self.column(sql).await?.into_iter().next().unwrap_or_default())
    }

    /// Waits until a query's value is true; failures on the way are those of a server that is not there.
    ///
    /// # Errors
    /// When it does not come true in time.
    pub async fn until(&self, sql: &str, patience: Duration) -> anyhow::Result<()> {
        let (mut last, mut left) = (String::new(), Patience::new(patience));
        while left.lasts() {
            match self.ask(sql).await {
                Ok(answer) if answer == "t" => return Ok(()),
                Ok(answer) => last = answer,
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("not within {} s: {sql} (last answer: {last})", patience.as_secs())
    }

    /// Waits until the server takes connections and its scheduler runs.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_up(&self) -> anyhow::Result<()> {
        self.until("SELECT state = 'running' FROM pg_task.scheduler", PATIENCE).await
    }

    /// Starts the server, again and again while processes of its last life are still about.
    ///
    /// # Errors
    /// When it does not start in time.
    pub async fn start_server(&self) -> anyhow::Result<()> {
        let mut patience = Patience::new(PATIENCE);
        loop {
            let started = tokio::task::block_in_place(|| {
                let cluster = self.cluster();
                if cluster.postmaster_pid().is_some() { Ok(()) } else { cluster.start() }
            });
            match started {
                Ok(()) => return Ok(()),
                Err(error) if !patience.lasts() => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// How far the schedules were at the last check.
    pub fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().expect("no holder of the lock panics")
    }

    /// Remembers a fault for the accounts of violations.
    pub fn note_fault(&self, name: String, from: ledger::Moment, to: ledger::Moment) {
        self.spans.lock().expect("no holder of the lock panics").push(Span { name, from, to });
    }

    /// The faults so far.
    pub fn faults(&self) -> Vec<Span> {
        self.spans.lock().expect("no holder of the lock panics").clone()
    }
}
