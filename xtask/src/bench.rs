//! `cargo xtask bench`: measurements on a private server.

use clap::Subcommand;
use pg_task_cluster::Cluster;

use crate::build;
use crate::cluster::DATABASE;
use crate::setup;

/// What to measure.
#[derive(Subcommand)]
pub enum Command {
    /// Drain, chains and latency, each beside a bare loop of the same run; about a minute.
    Quick,
}

pub fn run(command: Command) -> anyhow::Result<()> {
    let Command::Quick = command;
    let tree = build::tree()?;
    // Stock settings but for these two; fsync and synchronous_commit stay on.
    let cluster = Cluster::create(&tree, "bench", &["shared_buffers = '1GB'", "max_wal_size = '8GB'"])?;
    cluster.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
    cluster.psql(DATABASE, "CREATE EXTENSION pg_task")?;
    let mut command = build::cargo();
    command
        .args(["run", "--quiet", "--release", "--package", "pg_task_bench"])
        .env("DATABASE_URL", cluster.url(DATABASE))
        .env_remove("RUST_LOG");
    setup::run(&mut command)
}
