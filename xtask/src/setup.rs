//! Makes sure that PostgreSQL with its headers and clang are there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::DEFAULT_MAJOR as MAJOR;
use pg_task_cluster::PgInstall;

/// Finds what is needed, installs what is missing where it can, and says what to install where it cannot.
pub fn ensure() -> anyhow::Result<PgInstall> {
    let missing = pg_task_cluster::missing(MAJOR);
    if !missing.is_empty() {
        install(&missing)?;
    }
    PgInstall::find(MAJOR)
        .context("PostgreSQL was installed but is not found: set PG_CONFIG to its pg_config")
}

/// Makes sure that a program is there, by the Debian package that has it.
pub fn ensure_program(program: &str, package: &str) -> anyhow::Result<()> {
    if Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    install(&[package.to_owned()])
}

/// Installs Debian packages, or says what to install.
pub fn install(packages: &[String]) -> anyhow::Result<()> {
    let list = packages.join(" ");
    let is_root = pg_task_cluster::Account::for_server().map_or(true, |account| account.is_some());
    if !is_root || !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "missing: {list}\n\nOn Debian 12 or its like, run:\n\n    sudo apt-get update && sudo apt-get install -y {list}\n\n\
             Elsewhere, install PostgreSQL {MAJOR} with its server headers, clang with libclang, and pkg-config, and set PG_CONFIG."
        );
    }
    println!("Missing: {list}. Installing with apt-get, which takes a minute or two.");
    keep_packages_quiet()?;
    apt(&["update"])?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages.iter().map(String::as_str));
    apt(&arguments)
}

/// Installs packages that something can do without, where this can be done without asking anyone. Their services are not started.
pub fn install_if_possible(packages: &[&str]) -> anyhow::Result<()> {
    let is_root = pg_task_cluster::Account::for_server().is_ok_and(|account| account.is_some());
    if packages.is_empty() || !is_root || !Path::new("/usr/bin/apt-get").exists() {
        return Ok(());
    }
    // Debian's way to say that no service is to be started; taken away again unless it was there.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let mine = !policy.exists();
    if mine {
        fs::write(policy, "#!/bin/sh\nexit 101\n").context("failed to write policy-rc.d")?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
    }
    println!("Missing: {}. Installing with apt-get.", packages.join(" "));
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    let installed = apt(&["update"]).and_then(|()| apt(&arguments));
    if mine {
        fs::remove_file(policy).context("failed to remove policy-rc.d")?;
    }
    if let Err(error) = installed {
        println!("Not installed, so that some faults are skipped: {error:#}");
    }
    Ok(())
}

/// Debian's package makes and starts a cluster of its own unless it is told not to.
fn keep_packages_quiet() -> anyhow::Result<()> {
    let folder = Path::new("/etc/postgresql-common");
    let file = folder.join("createcluster.conf");
    if !file.exists() {
        fs::create_dir_all(folder)?;
        fs::write(&file, "create_main_cluster = false\n").context("failed to write createcluster.conf")?;
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("-q").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // The file above is older than the package's own: keep it without asking.
    command.args(["-o", "Dpkg::Options::=--force-confold"]);
    run(&mut command)
}

/// Runs a command and fails when it fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("failed to run {shown}"))?;
    if !status.success() {
        bail!("{status}: {shown}");
    }
    Ok(())
}
