//! `cargo xtask lint`: formatting, clippy with warnings denied, and the shape of the tree.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use anyhow::bail;
use pg_task_cluster::workspace_root;

use crate::build::cargo;
use crate::setup;
use crate::snapshot;

/// A file longer than this is two things.
const MAX_LINES: usize = 800;

pub fn run() -> anyhow::Result<()> {
    let install = setup::ensure()?;
    println!("== formatting");
    setup::run(cargo().args(["fmt", "--all", "--check"]))?;
    // Outside the workspace.
    setup::run(cargo().args(["fmt", "--manifest-path", "tests/seed/Cargo.toml", "--check"]))?;
    println!("== the shape of the tree");
    tidy()?;
    println!("== clippy");
    // The extension apart: its tests cannot be linked outside cargo-pgrx, and it is told where the server is.
    setup::run(cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--exclude",
        "pg_task",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    setup::run(
        cargo()
            .args(["clippy", "--quiet", "--package", "pg_task", "--lib", "--", "-D", "warnings"])
            .env("PGRX_PG_CONFIG_PATH", &install.pg_config),
    )
}

/// Every Rust file says at its top what it is for, and none is too long.
fn tidy() -> anyhow::Result<()> {
    let mut complaints = Vec::new();
    for folder in ["bench", "examples", "extension", "rules", "tests", "worker-client", "xtask"] {
        for file in rust_files(&workspace_root().join(folder)) {
            let text = fs::read_to_string(&file)?;
            let name = file.strip_prefix(workspace_root()).unwrap_or(&file).display().to_string();
            if !text.starts_with("//!") && !text.starts_with("#![doc") {
                complaints.push(format!("{name}: does not begin with a //! line that says what it is for"));
            }
            let lines = text.lines().count();
            if lines > MAX_LINES {
                complaints.push(format!("{name}: {lines} lines, more than {MAX_LINES}"));
            }
        }
    }
    complaints.extend(snapshot::complaints()?);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(())
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
