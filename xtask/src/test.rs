//! `cargo xtask test`: every test of the project, from nothing.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use pg_task_cluster::Account;
use pg_task_cluster::DEFAULT_MAJOR;
use pg_task_cluster::PgInstall;
use pg_task_cluster::Tree;

use crate::audit;
use crate::build;
use crate::build::cargo;
use crate::fault;
use crate::majors;
use crate::python;
use crate::setup;

/// pgrx, pgrx-tests and cargo-pgrx must have the same version.
const CARGO_PGRX: &str = "0.18.1";

pub fn run(majors: &[u32]) -> anyhow::Result<()> {
    let mut stages = Stages::begin();
    stages.say("what is needed");
    let installs =
        majors.iter().map(|&major| majors::ensure(major)).collect::<anyhow::Result<Vec<PgInstall>>>()?;
    stages.run("unit, property and documentation tests", || {
        setup::run(cargo().args([
            "test",
            "--workspace",
            "--no-fail-fast",
            "--exclude",
            "pg_task",
            "--exclude",
            "pg_task_e2e",
        ]))
    });
    stages.run("the SQL and the dependencies, audited", audit::run);
    stages.say("a Python environment");
    python::ensure()?;
    for install in &installs {
        let major = install.major;
        stages.say(&format!("PostgreSQL {major}: the extension, built and put into a private tree"));
        build::tree_of(install)?;
        stages.run(
            &format!("PostgreSQL {major}: end-to-end tests with real clusters and real worker processes"),
            || {
                setup::run(
                    cargo()
                        .args(["test", "--no-fail-fast", "--package", "pg_task_e2e"])
                        .env("PG_TASK_MAJOR", major.to_string()),
                )
            },
        );
        stages.run(&format!("PostgreSQL {major}: tests inside the server"), || inside_the_server(install));
    }
    if majors.contains(&DEFAULT_MAJOR) {
        stages.run("faults under load: a fixed seed and a fresh one", fault::test);
    }
    if [16, 18].iter().all(|major| majors.contains(major)) {
        stages.run("pg_upgrade from PostgreSQL 16 to 18", || {
            let upgrade = ["test", "--package", "pg_task_e2e", "--test", "upgrade", "--", "--ignored"];
            setup::run(cargo().args(upgrade))
        });
    }
    stages.end()
}

/// The stages of a run. One that fails does not keep the others from being run.
struct Stages {
    began: Instant,
    passed: usize,
    failed: Vec<String>,
}

impl Stages {
    fn begin() -> Self {
        Self { began: Instant::now(), passed: 0, failed: Vec::new() }
    }

    fn say(&self, name: &str) {
        println!("\n== {name} ({} s so far)", self.began.elapsed().as_secs());
    }

    fn run(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<()>) {
        self.say(name);
        match work() {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("\n{name}: FAILED: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    fn end(self) -> anyhow::Result<()> {
        let Self { began, passed, failed } = self;
        let (word, seconds) = (if failed.is_empty() { "ok" } else { "FAILED" }, began.elapsed().as_secs());
        println!(
            "\ntest result: {word}. {passed} stages passed; {} failed; finished in {seconds} s",
            failed.len()
        );
        anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
        Ok(())
    }
}

/// The `#[pg_test]`s, through cargo-pgrx.
fn inside_the_server(install: &PgInstall) -> anyhow::Result<()> {
    ensure_cargo_pgrx()?;
    // A tree of their own: cargo-pgrx writes the library in place, which would crash a server that runs on it.
    let tree = Tree::prepare(install, "pgtest")?;
    let home = tree.root().join("pgrx");
    let data = tree.root().join("data");
    fs::create_dir_all(&home)?;
    let pg = format!("pg{}", install.major);
    let pg_config = tree.program("pg_config");
    setup::run(cargo().args(["pgrx", "init", &format!("--{pg}")]).arg(&pg_config).env("PGRX_HOME", &home))
        .context("failed to set cargo-pgrx up")?;
    let mut command = cargo();
    command
        .args(["pgrx", "test", &pg, "--package", "pg_task"])
        .env("PGRX_HOME", &home)
        .env_remove("RUST_BACKTRACE");
    if let Some(account) = Account::for_server()? {
        let _ = fs::remove_dir_all(&data);
        fs::create_dir_all(&data)?;
        account.own(&data)?;
        command.args(["--runas", "postgres", "--pgdata"]).arg(&data);
    }
    setup::run(&mut command)
}

fn ensure_cargo_pgrx() -> anyhow::Result<()> {
    let version =
        Command::new("cargo").args(["pgrx", "--version"]).output().context("failed to run cargo")?;
    if String::from_utf8_lossy(&version.stdout).trim().ends_with(&format!(" {CARGO_PGRX}")) {
        return Ok(());
    }
    println!("Installing cargo-pgrx {CARGO_PGRX}, which takes some minutes.");
    setup::run(cargo().args(["install", "--locked", "cargo-pgrx", "--version", &format!("={CARGO_PGRX}")]))
}
