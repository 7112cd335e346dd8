//! `cargo xtask snapshot`: keeps the install script of the version that is about to be released.
//!
//! `sql/snapshots/pg_task--VERSION.sql` is what that version's `CREATE EXTENSION` did, for ever. `sql/upgrades/pg_task--OLD--NEW.sql` leads
//! from one to the next. The tests update from every snapshot and compare the outcome with a fresh installation.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::install_script;
use pg_task_cluster::workspace_root;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn run() -> anyhow::Result<()> {
    let file = path(VERSION);
    if file.exists() && fs::read_to_string(&file)? != install_script()? {
        bail!("{} is released and differs from sql/: raise the version in Cargo.toml first", file.display());
    }
    fs::create_dir_all(folder())?;
    fs::write(&file, install_script()?).context("failed to write the snapshot")?;
    println!("{}", file.display());
    Ok(())
}

/// What is wrong with the snapshots: the released one of this version was changed, or an older one leads nowhere.
pub fn complaints() -> anyhow::Result<Vec<String>> {
    let mut complaints = Vec::new();
    let upgrades: Vec<String> = names("sql/upgrades");
    for name in names("sql/snapshots") {
        let Some(version) = name.strip_prefix("pg_task--").and_then(|name| name.strip_suffix(".sql")) else {
            complaints.push(format!("sql/snapshots/{name}: not the name of a snapshot"));
            continue;
        };
        if version == VERSION {
            if fs::read_to_string(path(version))? != install_script()? {
                complaints.push(format!(
                    "sql/snapshots/{name} is released, and sql/ has changed since: raise the version in Cargo.toml and write an upgrade"
                ));
            }
        } else if !upgrades.iter().any(|upgrade| upgrade.starts_with(&format!("pg_task--{version}--"))) {
            complaints.push(format!("sql/snapshots/{name}: no script in sql/upgrades leads on from it"));
        }
    }
    Ok(complaints)
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(workspace_root().join(folder)).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".sql"))
        .collect()
}

fn folder() -> PathBuf {
    workspace_root().join("sql/snapshots")
}

fn path(version: &str) -> PathBuf {
    folder().join(format!("pg_task--{version}.sql"))
}
