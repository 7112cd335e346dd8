//! `cargo xtask fault`: a load under a seeded schedule of faults, and the check that nothing was lost or doubled.

use std::path::Path;

use crate::build;
use crate::setup;

/// What some of the faults need beside the server; without them they are skipped.
const PACKAGES: &[(&str, &str)] = &[
    ("pgbouncer", "/usr/sbin/pgbouncer"),
    ("libfaketime", "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
];

/// The seed that every run of the tests repeats, beside a fresh one.
const FIXED_SEED: u64 = 20_260_101;

/// The runs of `cargo xtask test`: about two minutes, half of them with a seed that nobody has seen. A run that fails prints its seed.
pub fn test() -> anyhow::Result<()> {
    let options = ["--minutes", "0.8", "--check-every", "100"].map(str::to_owned);
    run(&[&options[..], &["--seed".to_owned(), FIXED_SEED.to_string()]].concat())?;
    run(&[&options[..], &["--measure".to_owned()]].concat())
}

/// Builds everything and hands the arguments on.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    play("fault", arguments)
}

/// The same load without faults, for long.
pub fn soak(arguments: &[String]) -> anyhow::Result<()> {
    play("soak", arguments)
}

fn play(program: &str, arguments: &[String]) -> anyhow::Result<()> {
    let missing = PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name);
    setup::install_if_possible(&missing.collect::<Vec<_>>())?;
    // The server's files with the extension; the program finds them.
    let _tree = build::tree()?;
    setup::run(build::cargo().args(["build", "--quiet", "--package", "pg_task_fault", "--bins"]))?;
    let mut command = build::cargo();
    command.args(["run", "--quiet", "--package", "pg_task_fault", "--bin", program, "--"]).args(arguments);
    setup::run(command.env_remove("RUST_LOG"))
}
