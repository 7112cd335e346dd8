//! `cargo xtask fault`: a load under a seeded schedule of faults, and the check that nothing was lost or doubled.

use crate::build;
use crate::setup;

/// Builds everything and hands the arguments on.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    // The server's files with the extension; the program finds them.
    let _tree = build::tree()?;
    setup::run(build::cargo().args(["build", "--quiet", "--package", "pg_task_fault", "--bins"]))?;
    let mut command = build::cargo();
    command.args(["run", "--quiet", "--package", "pg_task_fault", "--bin", "fault", "--"]).args(arguments);
    setup::run(command.env_remove("RUST_LOG"))
}
