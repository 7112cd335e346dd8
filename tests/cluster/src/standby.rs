//! A standby: a copy of a cluster that follows it.

use anyhow::Context;
use anyhow::bail;

use crate::Cluster;

impl Cluster {
    /// Makes a streaming standby of this cluster (an old one of the name is removed) and starts it.
    ///
    /// # Errors
    /// When the copy cannot be made, or the standby does not start.
    pub fn standby(&self, name: &str) -> anyhow::Result<Self> {
        let standby = self.sibling(name)?;
        let mut command = standby.command("pg_basebackup");
        command
            .args([
                "--no-sync",
                "--checkpoint=fast",
                "--wal-method=stream",
                "--write-recovery-conf",
                "--dbname",
            ])
            .arg(self.url("postgres"))
            .arg("--pgdata")
            .arg(standby.data());
        let output = command.output().context("failed to run pg_basebackup")?;
        if !output.status.success() {
            bail!("pg_basebackup failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        standby.write_port()?;
        standby.start()?;
        Ok(standby)
    }

    /// Makes a standby a server of its own.
    ///
    /// # Errors
    /// When it does not come out of recovery within a minute.
    pub fn promote(&self) -> anyhow::Result<()> {
        if self.psql("postgres", "SELECT pg_promote(true, 60)")? != "t" {
            bail!("the standby was not promoted");
        }
        Ok(())
    }
}
