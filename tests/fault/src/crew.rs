//! The worker processes: started, killed, stopped and started again.

use std::fs::File;
use std::fs::OpenOptions;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use anyhow::Context;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use crate::proxy::Proxy;

/// How worker processes are started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The ledger's file.
    pub ledger: PathBuf,
    /// The folder of what was mended.
    pub mended: PathBuf,
    /// Where their messages go.
    pub log: PathBuf,
    /// The lease, in milliseconds.
    pub lease_ms: u64,
}

/// A worker process behind its own proxy.
pub struct Member {
    /// Its name.
    pub name: String,
    /// The way to the server.
    pub proxy: Arc<Proxy>,
    /// Its surroundings: more variables, and a program that runs it.
    pub special: Special,
    child: Option<Child>,
    stopped: bool,
    /// Whether its end was our doing.
    killed: bool,
}

/// What is special about a worker.
#[derive(Clone, Debug, Default)]
pub struct Special {
    /// The port that it connects to, instead of its proxy's.
    pub port: Option<u16>,
    /// More environment variables.
    pub variables: Vec<(String, String)>,
}

/// The workers of a run.
pub struct Crew {
    settings: Settings,
    /// The user, the password and the database of the connections.
    login: (String, String, String),
    /// The workers.
    pub members: Vec<Member>,
    /// Workers that ended though nobody killed them.
    pub deserters: Vec<String>,
}

impl Crew {
    /// No worker yet.
    pub fn new(settings: Settings, user: &str, password: &str, database: &str) -> Self {
        let login = (user.to_owned(), password.to_owned(), database.to_owned());
        Self { settings, login, members: Vec::new(), deserters: Vec::new() }
    }

    /// Starts one more worker.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn add(&mut self, upstream: Arc<AtomicU16>, special: Special) -> anyhow::Result<()> {
        let name = format!("fault-{}", self.members.len());
        let proxy = Arc::new(Proxy::start(upstream).await?);
        let mut member = Member { name, proxy, special, child: None, stopped: false, killed: false };
        self.start(&mut member)?;
        self.members.push(member);
        Ok(())
    }

    fn start(&self, member: &mut Member) -> anyhow::Result<()> {
        let (user, password, database) = &self.login;
        let port = member.special.port.unwrap_or(member.proxy.port());
        let url = format!("postgres://{user}:{password}@127.0.0.1:{port}/{database}?sslmode=disable");
        let variables = member.special.variables.iter().map(|(name, value)| (name, value));
        let child =
            self.command()?.env("DATABASE_URL", url).env("NAME", &member.name).envs(variables).spawn();
        let child = child.context("failed to start a worker")?;
        member.child = Some(child);
        (member.stopped, member.killed) = (false, false);
        Ok(())
    }

    /// A worker of another database with a ledger of its own; killed when the value is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn stray(&self, url: &str, ledger: &Path) -> anyhow::Result<Stray> {
        File::create(ledger)?;
        let child =
            self.command()?.env("DATABASE_URL", url).env("LEDGER", ledger).env("NAME", "stray").spawn();
        Ok(Stray(child.context("failed to start a worker")?))
    }

    fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(worker_program()?);
        command
            .env("LEDGER", &self.settings.ledger)
            .env("MENDED", &self.settings.mended)
            .env("CONCURRENCY", "16")
            .env("QUEUES", "")
            .env("LEASE_MS", self.settings.lease_ms.to_string())
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::null())
            .stderr(self.log()?);
        Ok(command)
    }

    fn log(&self) -> anyhow::Result<File> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.settings.log)
            .context("failed to open the workers' log")
    }

    /// Starts those again that have ended, and lets those go on that were stopped.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn revive(&mut self) -> anyhow::Result<()> {
        let mut members = std::mem::take(&mut self.members);
        for member in &mut members {
            member.go_on();
            let ended = match &mut member.child {
                Some(child) => child.try_wait()?,
                None => continue,
            };
            if let Some(status) = ended {
                if !member.killed {
                    self.deserters.push(format!("{} ended by itself: {status}", member.name));
                }
                self.start(member)?;
            }
        }
        self.members = members;
        Ok(())
    }
}

impl Member {
    /// Sends it SIGKILL.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            self.killed = true;
            let _ = child.kill();
            // To its end: a process that is still ending would be taken for one that lives, and not be started again.
            let _ = child.wait();
        }
    }

    /// Sends it SIGSTOP.
    pub fn stop(&mut self) {
        self.stopped = self.signal(Signal::STOP);
    }

    /// Sends it SIGCONT if it was stopped.
    pub fn go_on(&mut self) {
        if std::mem::take(&mut self.stopped) {
            self.signal(Signal::CONT);
        }
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) -> bool {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid as i32));
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A worker that does not belong to the crew.
pub struct Stray(Child);

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The worker's program: built beside this one.
fn worker_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program has no path")?;
    // A test's program is one folder deeper.
    let found =
        own.ancestors().skip(1).take(2).map(|folder| folder.join("fault_worker")).find(|path| path.exists());
    found.context("the program fault_worker is not there: cargo build --package pg_task_fault")
}
