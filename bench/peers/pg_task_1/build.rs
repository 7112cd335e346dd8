//! Finds the migrations that the crate pg_task brings: its users copy them.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=Cargo.lock");
    let output = Command::new(std::env::var_os("CARGO").expect("cargo runs this"))
        .args(["metadata", "--format-version", "1"])
        .output()
        .expect("cargo answers");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "pg_task")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("pg_task is a dependency");
    let folder = manifest.trim_end_matches("Cargo.toml");
    println!("cargo:rustc-env=PG_TASK_MIGRATIONS={folder}migrations");
}
