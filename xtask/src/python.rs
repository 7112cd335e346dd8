//! A Python environment below `target/`, for the test of the worker in Python.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::build;
use crate::setup;

/// What `examples/worker.py` needs.
const PSYCOPG: &str = "psycopg[binary]>=3.2,<4";

/// Makes the environment if it is not there.
pub fn ensure() -> anyhow::Result<()> {
    let folder = build::target().join("pg_task/venv");
    let python = folder.join("bin/python");
    if has_psycopg(&python) {
        return Ok(());
    }
    if !runs(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        setup::install(&["python3".to_owned(), "python3-venv".to_owned()])?;
    }
    println!("Making a Python environment in {} with psycopg.", folder.display());
    setup::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    setup::run(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        PSYCOPG,
    ]))
    .context("failed to install psycopg")
}

fn has_psycopg(python: &PathBuf) -> bool {
    runs(Command::new(python).args(["-c", "import psycopg"]))
}

fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
