//! Finding the server, its headers and clang; saying what is missing.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::tree::private_folder;

/// An installed PostgreSQL with its headers.
#[derive(Clone, Debug)]
pub struct PgInstall {
    /// The major version.
    pub major: u32,
    /// The program `pg_config`.
    pub pg_config: PathBuf,
}

impl PgInstall {
    /// Finds an installation of a major version that has server headers: `PG_CONFIG`, Debian's folders, those of
    /// [`major_folder`], then `PATH`.
    pub fn find(major: u32) -> Option<Self> {
        let debian = format!("/usr/lib/postgresql/{major}/bin/pg_config");
        let from_env = std::env::var_os("PG_CONFIG").map(PathBuf::from);
        let own = major_folder(major).ok();
        let own_debian = own.as_ref().map(|folder| folder.join(debian.trim_start_matches('/')));
        let own = own.map(|folder| folder.join("bin/pg_config"));
        let places =
            [from_env, Some(PathBuf::from(&debian)), own, own_debian, Some(PathBuf::from("pg_config"))];
        places.into_iter().flatten().find_map(|pg_config| {
            let install = Self { major, pg_config };
            let version = install.ask("--version").ok()?;
            let found = version.split_whitespace().nth(1)?.split('.').next()?.parse::<u32>().ok()?;
            let headers = install.ask("--includedir-server").ok()?;
            let server = install.ask("--bindir").ok()?;
            let whole = found == major
                && Path::new(&headers).join("postgres.h").exists()
                && Path::new(&server).join("postgres").exists();
            whole.then_some(install)
        })
    }

    /// What `pg_config` answers.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn ask(&self, option: &str) -> anyhow::Result<String> {
        let output = Command::new(&self.pg_config)
            .arg(option)
            .output()
            .with_context(|| format!("failed to run {}", self.pg_config.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The major version that everything is built for by default: Debian 12's.
pub const DEFAULT_MAJOR: u32 = 15;

/// The major version that tests run on: `PG_TASK_MAJOR`, which `cargo xtask test` sets, or [`DEFAULT_MAJOR`].
///
/// # Panics
/// When the variable is not a number.
pub fn tested_major() -> u32 {
    std::env::var("PG_TASK_MAJOR")
        .map_or(DEFAULT_MAJOR, |major| major.parse().expect("PG_TASK_MAJOR is a number"))
}

/// Where a major version is put that the machine does not have.
///
/// # Errors
/// When the folder above it cannot be made.
pub fn major_folder(major: u32) -> anyhow::Result<PathBuf> {
    Ok(private_folder()?.join("majors").join(major.to_string()))
}

/// The Debian packages that are needed and not there.
pub fn missing(major: u32) -> Vec<String> {
    let mut packages = Vec::new();
    if PgInstall::find(major).is_none() {
        packages.extend([format!("postgresql-{major}"), format!("postgresql-server-dev-{major}")]);
    }
    let runs = |program: &str| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    if !runs("clang") {
        packages.extend(["clang".to_owned(), "libclang-dev".to_owned()]);
    } else if !has_libclang() {
        packages.push("libclang-dev".to_owned());
    }
    if !runs("pkg-config") {
        packages.push("pkg-config".to_owned());
    }
    if crate::account::is_root() && !runs("sudo") {
        // The #[pg_test] runner starts its server through sudo when it is root.
        packages.push("sudo".to_owned());
    }
    packages
}

/// The library that makes the bindings: where LIBCLANG_PATH says, or in the folders of Debian and its like.
fn has_libclang() -> bool {
    let has = |folder: &Path| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libclang") && name.contains(".so")
        })
    };
    let llvm = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm-"))
        .map(|entry| entry.path().join("lib"));
    std::env::var_os("LIBCLANG_PATH")
        .map(PathBuf::from)
        .into_iter()
        .chain(llvm)
        .chain(["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"].map(PathBuf::from))
        .any(|folder| has(&folder))
}
