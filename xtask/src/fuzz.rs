//! `cargo xtask fuzz`: random and hostile calls of every SQL function, as many as are asked for.

use anyhow::Context;

use crate::build;
use crate::setup;

/// Puts the extension into the tree of the tests and lets the test of `tests/e2e/tests/hostile.rs` make so many calls.
pub fn run(calls: u32, seed: Option<u64>) -> anyhow::Result<()> {
    build::tree()?;
    let mut command = build::cargo();
    command
        .args(["test", "--quiet", "--package", "pg_task_e2e", "--test", "hostile", "--", "--nocapture"])
        .arg("random_calls_of_every_function_get_an_answer_and_leave_the_server_whole")
        .env("HOSTILE_CALLS", calls.to_string());
    if let Some(seed) = seed {
        command.env("SEED", seed.to_string());
    }
    setup::run(&mut command).context("a call was not answered, or the server was harmed")
}
