//! The crate pg_task 1.0.0, from the registry: its folder, and a program on it.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::workspace_root;

/// The old crate and the program `tests/seed`.
pub struct Seed {
    /// The crate's folder, with its migrations and examples.
    pub folder: PathBuf,
    /// The program.
    pub program: PathBuf,
}

impl Seed {
    /// Builds the program, once for each test program; cargo fetches the crate.
    pub fn get() -> &'static Self {
        static SEED: OnceLock<Seed> = OnceLock::new();
        SEED.get_or_init(|| Self::build().expect("the old crate builds"))
    }

    fn build() -> anyhow::Result<Self> {
        let manifest = workspace_root().join("tests/seed/Cargo.toml");
        run(cargo(&manifest, "build").arg("--locked"))?;
        Ok(Self {
            folder: package_folder(&manifest, "pg_task", "1.0.0")?,
            program: target().join("debug/pg_task_seed"),
        })
    }
}

/// The folder of this test program's build, which other builds of the tests share: their dependencies are the same.
pub fn target() -> PathBuf {
    // The program is in `debug/deps`.
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(3).map_or_else(|| workspace_root().join("target"), Path::to_owned)
}

/// A cargo command on a manifest.
pub fn cargo(manifest: &Path, command: &str) -> Command {
    let mut cargo = pg_task_cluster::cargo();
    cargo.args([command, "--quiet", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(target());
    cargo
}

/// A package below `target/` with programs that use the client crate under the name `pg_task`, as its users do.
///
/// # Errors
/// When its files cannot be written.
pub fn package(name: &str, programs: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    let folder = target().join("pg_task/packages").join(name);
    let client = workspace_root().join("worker-client");
    let manifest = format!(
        "[workspace]

[package]
name = \"{name}\"
version = \"0.0.0\"
edition = \"2021\"

[dependencies]
anyhow = \"1\"
chrono = {{ version = \"0.4\", default-features = false, features = [\"clock\", \"serde\", \"std\"] }}
dotenv = \"0.15\"
pg_task = {{ package = \"pg_task_client\", path = {client:?} }}
serde = {{ version = \"1\", features = [\"derive\"] }}
sqlx = {{ version = \"0.9\", default-features = false }}
tokio = {{ version = \"1\", features = [\"macros\", \"rt-multi-thread\"] }}
tracing = \"0.1\"
tracing-subscriber = {{ version = \"0.3\", features = [\"env-filter\"] }}
"
    );
    fs::create_dir_all(folder.join("src/bin"))?;
    fs::write(folder.join("Cargo.toml"), manifest)?;
    // The versions of this workspace, not the newest ones; cargo drops what is not needed.
    fs::copy(workspace_root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    for (name, text) in programs {
        let place = folder.join("src/bin").join(name).with_extension("rs");
        fs::create_dir_all(place.parent().context("a program has a folder")?)?;
        fs::write(place, text)?;
    }
    Ok(folder)
}

/// Runs a command to its end.
///
/// # Errors
/// When it fails: what it said is in the error.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    if !output.status.success() {
        bail!("{}: {command:?}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where cargo keeps the source of a dependency.
fn package_folder(manifest: &Path, name: &str, version: &str) -> anyhow::Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]).arg(manifest);
    let metadata: serde_json::Value = serde_json::from_str(&run(&mut command)?)?;
    let package = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == name && package["version"] == version)
        .with_context(|| format!("cargo does not know {name} {version}"))?;
    let manifest = package["manifest_path"].as_str().context("a package without a manifest")?;
    Ok(Path::new(manifest).parent().context("a manifest without a folder")?.to_owned())
}
