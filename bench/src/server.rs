//! The server that everything runs on, and what it counts.

use std::collections::HashSet;

use anyhow::Context;
use pg_task_bench::bare;
use pg_task_cluster::Cluster;
use pg_task_cluster::PgInstall;
use pg_task_cluster::Tree;
use tokio_postgres::Client;

/// Stock settings but for the first two; fsync and synchronous_commit stay on. `pg_stat_statements` is loaded to count the queries of
/// the idle minute, and counts nothing else. The history has a shape of its own, and is off in the others: the bare loops keep none.
pub const SETTINGS: &[&str] = &[
    "shared_buffers = '1GB'",
    "max_wal_size = '8GB'",
    "shared_preload_libraries = 'pg_stat_statements, pg_task'",
    "pg_stat_statements.track = none",
    "pg_task.history = off",
];

pub struct Server {
    pub cluster: Cluster,
    databases: HashSet<&'static str>,
}

impl Server {
    /// A new server.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> anyhow::Result<Self> {
        let install =
            PgInstall::find(15).context("PostgreSQL 15 is missing: `cargo xtask bench` installs it")?;
        let tree = Tree::prepare(&install, "pg")?;
        let cluster = Cluster::create(&tree, "bench", SETTINGS)?;
        Ok(Self { cluster, databases: HashSet::new() })
    }

    pub fn url(&self, database: &str) -> String {
        self.cluster.url(database)
    }

    /// Makes a database unless it is there. True when it was made now.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn ensure_database(&mut self, name: &'static str) -> anyhow::Result<bool> {
        if !self.databases.insert(name) {
            return Ok(false);
        }
        self.cluster.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(true)
    }

    /// A connection to pg_task's database.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        bare::connect(&self.url("pg_task")).await.context("failed to connect")
    }
}

/// What the server has counted so far.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub wal_bytes: i64,
    /// The next transaction id.
    pub xid: i64,
    /// Results that pg_task has taken.
    pub finished: i64,
    /// Ticks of the scheduler.
    pub ticks: i64,
}

/// Reads the counters.
///
/// # Errors
/// When the server refuses.
pub async fn counts(client: &Client) -> anyhow::Result<Counts> {
    let row = client
        .query_one(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint, \
                    s.finished, s.ticks \
             FROM pg_task.scheduler_state() AS s",
            &[],
        )
        .await?;
    Ok(Counts { wal_bytes: row.get(0), xid: row.get(1), finished: row.get(2), ticks: row.get(3) })
}
