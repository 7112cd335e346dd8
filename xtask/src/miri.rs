//! `cargo xtask miri`: the crates that need no server under Miri, which sees every wrong access to memory that they make.

use std::process::Command;

use anyhow::Context;
use pg_task_cluster::workspace_root;

use crate::setup;

const TOOLCHAIN: &str = "nightly";

/// The rules of the hand-out, and the layout of shared memory.
const PACKAGES: [&str; 2] = ["pg_task_rules", "pg_task_memory"];

/// Values that a property test is tried with: Miri is some hundred times slower than the processor.
const CASES: &str = "3";

pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let there = cargo().args(["miri", "--version"]).output().is_ok_and(|output| output.status.success());
    if !there {
        let mut install = Command::new("rustup");
        install
            .args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal"])
            .args(["--component", "miri,rust-src"]);
        setup::run(&mut install).context("Miri comes with a nightly toolchain of rustup's")?;
    }
    let mut command = cargo();
    command
        .args(["miri", "test", "--lib"])
        .args(PACKAGES.iter().flat_map(|package| ["--package", *package]))
        .arg("--")
        .args(arguments)
        .env("PROPTEST_CASES", CASES)
        // The property tests look for the folder in which they keep what failed.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation");
    setup::run(&mut command).context("Miri has found something, or could not run")
}

/// The nightly toolchain's cargo, without what the one that runs this program has told it.
fn cargo() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", TOOLCHAIN, "cargo"]).current_dir(workspace_root());
    for told in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(told);
    }
    command
}
