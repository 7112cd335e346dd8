//! Builds the extension and the programs, and puts the extension into a private tree.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use pg_task_cluster::PgInstall;
use pg_task_cluster::Tree;
use pg_task_cluster::workspace_root;

use crate::setup;

/// A private tree with the extension, built in the release profile.
pub fn tree() -> anyhow::Result<Tree> {
    tree_of(&setup::ensure()?)
}

/// The same for any installed version.
pub fn tree_of(install: &PgInstall) -> anyhow::Result<Tree> {
    let library = extension(install)?;
    let tree = Tree::prepare(install, "pg")?;
    tree.install_extension(&library)?;
    Ok(tree)
}

/// Builds the extension's library. It needs no cargo-pgrx: the SQL is written by hand.
pub fn extension(install: &PgInstall) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--release", "--package", "pg_task", "--lib", "--no-default-features"])
        .args(["--features", &format!("pg{}", install.major)])
        .env("PGRX_PG_CONFIG_PATH", &install.pg_config);
    setup::run(&mut command).context("failed to build the extension")?;
    Ok(target().join("release/libpg_task.so"))
}

/// Builds an example program and returns its path.
pub fn example(name: &str) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", "pg_task_examples", "--example", name]);
    setup::run(&mut command).context("failed to build the worker")?;
    Ok(target().join("release/examples").join(name))
}

/// Cargo, in the project's root.
pub fn cargo() -> Command {
    let mut command = pg_task_cluster::cargo();
    command.current_dir(workspace_root());
    command
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace_root().join(folder),
        None => workspace_root().join("target"),
    }
}
