//! `cargo xtask audit`: what the SQL lets others do to it, and what the dependencies bring along.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::install_script;
use pg_task_cluster::workspace_root;

use crate::build;
use crate::build::cargo;
use crate::setup;

/// Looks for what a hostile search_path could shadow in a script that a superuser runs.
const PGSPOT: &str = "pgspot==0.9.4";

const CARGO_DENY: &str = "0.20.2";

/// What others build.
const SHIPPED: [&str; 2] = ["Cargo.toml", "worker-client/Cargo.toml"];

pub fn run() -> anyhow::Result<()> {
    println!("== the SQL that a superuser runs");
    sql()?;
    println!("== licences, sources and versions of the dependencies");
    ensure_cargo_deny()?;
    deny(&["--workspace", "--all-features"], &["licenses", "sources"])?;
    for manifest in SHIPPED {
        let manifest = workspace_root().join(manifest).display().to_string();
        deny(&["--exclude-dev", "--manifest-path", &manifest], &["bans"])?;
    }
    println!("== advisories");
    advisories()
}

/// pgspot over the install script and every upgrade script.
fn sql() -> anyhow::Result<()> {
    let pgspot = ensure_pgspot()?;
    let script = build::target().join("pg_task/install.sql");
    fs::write(&script, install_script()?).context("failed to write the install script")?;
    let mut scripts = vec![script];
    scripts.extend(sql_files(&workspace_root().join("sql/upgrades")));
    for script in scripts {
        let output = Command::new(&pgspot).arg(&script).output().context("failed to run pgspot")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !text.contains("Errors: 0 Warnings: 0 Unknown: 0") {
            bail!("{}:\n{text}{}", script.display(), String::from_utf8_lossy(&output.stderr));
        }
        println!("{}: nothing found", script.display());
    }
    Ok(())
}

fn ensure_pgspot() -> anyhow::Result<PathBuf> {
    let folder = build::target().join("pg_task/pgspot");
    let program = folder.join("bin/pgspot");
    let stamp = folder.join("version");
    if fs::read_to_string(&stamp).is_ok_and(|version| version == PGSPOT) {
        return Ok(program);
    }
    let _ = fs::remove_dir_all(&folder);
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&folder);
    if !venv.status().is_ok_and(|status| status.success()) {
        setup::install(&["python3-venv".to_owned()])?;
        setup::run(&mut venv)?;
    }
    setup::run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", PGSPOT]))?;
    fs::write(&stamp, PGSPOT)?;
    Ok(program)
}

fn ensure_cargo_deny() -> anyhow::Result<()> {
    let version = cargo().args(["deny", "--version"]).output().context("failed to run cargo")?;
    if String::from_utf8_lossy(&version.stdout).trim().ends_with(&format!(" {CARGO_DENY}")) {
        return Ok(());
    }
    println!("Installing cargo-deny {CARGO_DENY}, which takes some minutes.");
    setup::run(cargo().args([
        "install",
        "--quiet",
        "--locked",
        "cargo-deny",
        "--version",
        &format!("={CARGO_DENY}"),
    ]))
}

fn deny(scope: &[&str], checks: &[&str]) -> anyhow::Result<()> {
    let config = workspace_root().join("deny.toml");
    let mut command = cargo();
    command.arg("deny").args(scope).arg("--config").arg(&config).arg("check").args(checks);
    setup::run(&mut command)
}

/// Known holes in the dependencies. Their database lives on the network; without it the check is skipped, and says so.
fn advisories() -> anyhow::Result<()> {
    let config = workspace_root().join("deny.toml");
    let output = cargo()
        .args(["deny", "--workspace", "--config"])
        .arg(&config)
        .args(["check", "advisories"])
        .output()
        .context("failed to run cargo-deny")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        println!("no advisory concerns the dependencies");
        return Ok(());
    }
    if text.contains("failed to fetch advisory database") {
        println!(
            "SKIPPED: the advisory database cannot be reached from here. Run `cargo deny check advisories` where it can."
        );
        return Ok(());
    }
    bail!("{text}{}", String::from_utf8_lossy(&output.stdout))
}

fn sql_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    files
}
