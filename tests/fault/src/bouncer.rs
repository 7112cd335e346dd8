//! PgBouncer in transaction mode before the server, for a worker that neither listens nor keeps anything in a session.

use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::Account;

/// A running PgBouncer; killed when the value is dropped.
pub struct Bouncer {
    child: Child,
    config: PathBuf,
    port: u16,
}

impl Bouncer {
    /// Starts it, if it is installed: clients reach `database` at `upstream` through it without a password.
    ///
    /// # Errors
    /// When it is installed and does not start.
    pub async fn start(
        folder: &Path,
        upstream: u16,
        database: &str,
        user: &str,
        password: &str,
    ) -> anyhow::Result<Option<Self>> {
        if Command::new("pgbouncer").arg("--version").output().is_err() {
            return Ok(None);
        }
        // Reachable for the account that it runs as, which the run's folder may not be.
        let folder = std::env::temp_dir()
            .join(format!("pg_task-bouncer-{}", std::process::id()))
            .join(folder.file_name().unwrap_or_default());
        std::fs::create_dir_all(&folder)?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let config = folder.join("pgbouncer.ini");
        std::fs::write(
            &config,
            format!(
                "[databases]\n{database} = host=127.0.0.1 port={upstream} user={user} password={password}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\ndefault_pool_size = 3\nserver_lifetime = 5\nserver_login_retry = 1\n\
                 ignore_startup_parameters = extra_float_digits\nmax_client_conn = 100\n"
            ),
        )?;
        let child = launch(&config)?;
        let bouncer = Self { child, config, port };
        bouncer.until_it_listens().await?;
        Ok(Some(bouncer))
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it and starts it again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = launch(&self.config)?;
        self.until_it_listens().await
    }

    async fn until_it_listens(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("PgBouncer does not listen")
    }
}

fn launch(config: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new("pgbouncer");
    command.arg("-q").arg(config).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    // Like PostgreSQL it refuses to run as root.
    if let Some(account) = Account::for_server()? {
        account.apply(&mut command);
    }
    command.spawn().context("failed to start PgBouncer")
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(folder) = self.config.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
