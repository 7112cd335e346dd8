//! `cargo xtask bench`: measurements on a private server, by the program in `bench/`.

use crate::build;
use crate::setup;

/// Puts the extension into a private tree and passes the arguments on.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    build::tree()?;
    let mut command = build::cargo();
    command
        .args(["run", "--quiet", "--package", "pg_task_bench", "--bin", "pg_task_bench", "--"])
        .args(arguments);
    setup::run(&mut command)
}
