//! A cluster: a data directory with a server of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use anyhow::Context;
use anyhow::bail;

use crate::Account;
use crate::Tree;
use crate::tree::private_folder;

/// How to stop a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Sessions are ended, everything is written.
    Fast,
    /// As if it crashed.
    Immediate,
}

/// A private cluster. It is stopped when the value is dropped, unless [`Cluster::keep`] was called, and its data is removed if it
/// is [temporary](Cluster::temporary).
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    tree: Tree,
    account: Option<Account>,
    port: Port,
    password: String,
    keep: bool,
    temporary: bool,
}

/// The ports that are tried, in this order.
const PORTS: std::ops::Range<u16> = 54_329..54_529;

/// A port, kept for as long as this process has the cluster: also while the server is down.
#[derive(Debug)]
struct Port {
    number: u16,
    /// Locked against other processes that look for ports. None for a cluster that was found, or where no file can be made.
    _claim: Option<fs::File>,
}

/// The environment variable that keeps the data of [temporary](Cluster::temporary) clusters.
const KEEP_DATA: &str = "PG_TASK_KEEP_DATA";

const USER: &str = "postgres";

impl Cluster {
    /// Makes a new cluster (an old one of the name is removed) and starts it. `settings` are lines for postgresql.conf.
    ///
    /// # Errors
    /// When the server does not start: its log is in the error.
    pub fn create(tree: &Tree, name: &str, settings: &[&str]) -> anyhow::Result<Self> {
        let cluster = Self::create_empty(tree, name, settings, &[])?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Makes a new cluster and does not start it. `options` are for initdb.
    ///
    /// # Errors
    /// When initdb fails.
    pub fn create_empty(
        tree: &Tree,
        name: &str,
        settings: &[&str],
        options: &[&str],
    ) -> anyhow::Result<Self> {
        let (cluster, password_file) = Self::prepare(tree, name, random_password()?)?;
        cluster.init(&password_file, settings, options)?;
        Ok(cluster)
    }

    /// A cluster of a name with the same password, of which only the folder is there. An old one is removed.
    pub(crate) fn sibling(&self, name: &str) -> anyhow::Result<Self> {
        let (mut sibling, _) = Self::prepare(&self.tree, name, self.password.clone())?;
        sibling.temporary = self.temporary;
        Ok(sibling)
    }

    fn prepare(tree: &Tree, name: &str, password: String) -> anyhow::Result<(Self, PathBuf)> {
        let account = Account::for_server()?;
        let folder = private_folder()?.join("clusters").join(name);
        if let Ok(old) = Self::attach(tree, name) {
            old.stop(Stop::Immediate)?;
        }
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        if let Some(account) = account {
            account.own(&folder)?;
        }
        let password_file = folder.join("password");
        fs::write(&password_file, &password)?;
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600))?;
        if let Some(account) = account {
            account.own(&password_file)?;
        }
        let cluster = Self {
            folder,
            tree: tree.clone(),
            account,
            port: free_port()?,
            password,
            keep: false,
            temporary: false,
        };
        Ok((cluster, password_file))
    }

    /// The cluster of a name that was made before, running or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(tree: &Tree, name: &str) -> anyhow::Result<Self> {
        let folder = private_folder()?.join("clusters").join(name);
        let port = fs::read_to_string(folder.join("port")).with_context(|| {
            format!("there is no cluster \"{name}\"; `cargo xtask cluster start` makes one")
        })?;
        let password = fs::read_to_string(folder.join("password"))?;
        let account = Account::for_server()?;
        Ok(Self {
            folder,
            tree: tree.clone(),
            account,
            port: Port { number: port.trim().parse()?, _claim: None },
            password,
            keep: true,
            temporary: false,
        })
    }

    /// The connection URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port.number)
    }

    /// The password of the superuser.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The cluster under the password that it has taken over from another one.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        password.clone_into(&mut self.password);
        self
    }

    /// The port on the loopback address.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The server's log file.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder that holds everything of the cluster.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leaves the server running when the value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Lets the data directory go when the value is dropped: a hundred test servers that are over would fill a small disk. The log
    /// stays. `PG_TASK_KEEP_DATA` in the environment keeps all.
    #[must_use]
    pub fn temporary(mut self) -> Self {
        self.temporary = std::env::var_os(KEEP_DATA).is_none();
        self
    }

    /// Whether the data directory goes when the value is dropped.
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// Runs SQL through psql, in one session, stopping at the first error; returns what it printed, without alignment or headings.
    ///
    /// # Errors
    /// When a statement fails.
    pub fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let output =
            self.psql_command(database).args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql]).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// psql, connected to a database.
    pub fn psql_command(&self, database: &str) -> Command {
        let mut command = self.program("psql");
        command.arg(self.url(database));
        command
    }

    /// A program of the server's release, such as `pg_dump`, under the account of this process.
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.tree.program(name))
    }

    /// Takes another port if someone else listens on this one by now. For a server that is down.
    ///
    /// # Errors
    /// When no port is free, or its settings cannot be written.
    pub fn ensure_port(&mut self) -> anyhow::Result<()> {
        if TcpListener::bind(("127.0.0.1", self.port.number)).is_ok() {
            return Ok(());
        }
        self.port = free_port()?;
        self.write_port()
    }

    /// Makes the server listen on the cluster's port from its next start on.
    pub(crate) fn write_port(&self) -> anyhow::Result<()> {
        let conf = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&conf)?;
        fs::write(&conf, format!("{text}\nport = {}\n", self.port.number))?;
        fs::write(self.folder.join("port"), self.port.number.to_string())?;
        Ok(())
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not: the end of its log is in the error.
    pub fn start(&self) -> anyhow::Result<()> {
        self.start_with(&[])
    }

    /// The same with more environment variables.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start_with(&self, variables: &[(&str, &str)]) -> anyhow::Result<()> {
        let log = self.log();
        let mut command = self.command("pg_ctl");
        command.envs(variables.iter().copied());
        command.arg("-D").arg(self.data()).arg("-l").arg(&log).args(["-w", "-t", "60", "start"]);
        let output =
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().context("failed to run pg_ctl")?;
        if !output.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            bail!(
                "the server did not start; the end of {}:\n{}",
                log.display(),
                lines[lines.len().saturating_sub(20)..].join("\n")
            );
        }
        Ok(())
    }

    /// Stops the server if it runs.
    ///
    /// # Errors
    /// When it does not stop within a minute.
    pub fn stop(&self, how: Stop) -> anyhow::Result<()> {
        if self.postmaster_pid().is_none() {
            return Ok(());
        }
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        };
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(self.data()).args(["-m", mode, "-w", "-t", "60", "stop"]).stdout(Stdio::null());
        if !command.status().context("failed to run pg_ctl")?.success() {
            bail!("the server did not stop");
        }
        Ok(())
    }

    /// Removes the cluster with all its data.
    ///
    /// # Errors
    /// When it cannot be stopped or removed.
    pub fn remove(self) -> anyhow::Result<()> {
        self.stop(Stop::Immediate)?;
        fs::remove_dir_all(&self.folder).context("failed to remove the cluster")
    }

    /// The server's first process, if it runs.
    pub fn postmaster_pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid: u32 = text.lines().next()?.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    fn init(&self, password_file: &Path, settings: &[&str], options: &[&str]) -> anyhow::Result<()> {
        let mut command = self.command("initdb");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-U", USER, "-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"])
            .arg(format!("--pwfile={}", password_file.display()))
            .args(options);
        let output = command.output().context("failed to run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            "unix_socket_directories = ''".to_owned(),
            "shared_preload_libraries = 'pg_task'".to_owned(),
            "max_prepared_transactions = 10".to_owned(),
            "log_line_prefix = '%m [%p] %d '".to_owned(),
        ];
        lines.extend(settings.iter().map(|&line| line.to_owned()));
        let conf = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&conf)?;
        fs::write(&conf, format!("{text}\n{}\n", lines.join("\n")))?;
        self.write_port()
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.tree.program(program));
        // A backtrace in every error's DETAIL is not what a user would see.
        command.env_remove("RUST_BACKTRACE").current_dir("/");
        if let Some(account) = self.account {
            account.apply(&mut command);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing more can be done about a server that does not stop.
            let stopped = self.stop(Stop::Fast);
            if self.temporary && stopped.is_ok() {
                // The next server of the name removes what is left.
                let _ = fs::remove_dir_all(self.data());
            }
        }
    }
}

/// A port that nobody listens on and no other cluster has.
fn free_port() -> anyhow::Result<Port> {
    /// Several clusters may be made at the same moment: each looks somewhere else.
    static NEXT: AtomicU16 = AtomicU16::new(0);

    // Other processes look for ports too, perhaps at this moment: each begins somewhere else.
    let begin = std::process::id() * 7;
    let count = u32::from(PORTS.end - PORTS.start);
    std::iter::repeat_with(|| begin + u32::from(NEXT.fetch_add(1, Ordering::Relaxed)))
        .take(PORTS.len())
        .filter_map(|number| claim(PORTS.start + (number % count) as u16))
        .find(|port| TcpListener::bind(("127.0.0.1", port.number)).is_ok())
        .context("every port from 54329 to 54528 is in use")
}

/// A port, unless another cluster has it.
fn claim(number: u16) -> Option<Port> {
    let path = std::env::temp_dir().join(format!("pg_task_port_{number}"));
    // Another user's file cannot be opened: then who listens has the port.
    let claim = fs::File::options().create(true).append(true).open(path).ok();
    match claim.as_ref().map(fs::File::try_lock) {
        Some(Err(_)) => None,
        _ => Some(Port { number, _claim: claim }),
    }
}

fn random_password() -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
