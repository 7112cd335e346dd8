//! Cargo, called by a program that cargo runs.

use std::process::Command;

/// A cargo command that behaves as one from a shell: without what cargo has told this program about itself. Build scripts that look at it
/// (that of ring does) would run again otherwise, and all that depends on them be built again, and it is not meant for another package.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let told = ["CARGO_BIN_", "CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        if told.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}
