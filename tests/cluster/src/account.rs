//! Whom the server runs as: PostgreSQL refuses to run as root.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// An account of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// The account to run the server as when this process is root; none otherwise.
    ///
    /// # Errors
    /// When this is root and there is no account `postgres`.
    pub fn for_server() -> anyhow::Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").context("failed to read /etc/passwd")?;
        let fields = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&"postgres"))
            .context("PostgreSQL does not run as root, and there is no account \"postgres\" to run it as")?;
        let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
        Ok(Some(Self {
            uid: number(2).context("the account \"postgres\" has no uid")?,
            gid: number(3).context("the account \"postgres\" has no gid")?,
        }))
    }

    /// Makes a command run under the account.
    pub fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives a file or an empty folder to the account.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn own(self, path: &Path) -> anyhow::Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("failed to give {} to the account \"postgres\"", path.display()))
    }

    /// Whether the account can reach a folder.
    pub fn can_reach(self, path: &Path) -> bool {
        let mut command = Command::new("test");
        command.arg("-x").arg(path);
        self.apply(&mut command);
        command.status().is_ok_and(|status| status.success())
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| {
        use std::os::unix::fs::MetadataExt;
        metadata.uid() == 0
    })
}
