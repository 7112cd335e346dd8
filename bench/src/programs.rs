//! The measured programs: building them, running them, reading their answers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use bench_driver::Answer;
use pg_task_cluster::workspace_root;
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::process::Command;

/// A run that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who is measured.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Who {
    /// pg_task.
    Ours,
    /// The bare loops.
    Bare,
    /// Another system, by the folder in `bench/peers`, and after a space the way it is set up.
    Peer(&'static str),
}

pub const GRAPHILE: Who = Who::Peer("graphile_worker");
pub const RIVER: Who = Who::Peer("riverqueue");
pub const AWA: Who = Who::Peer("awa");
pub const PG_TASK_1: Who = Who::Peer("pg_task_1");
/// The same with more steps at a time than it takes by default.
pub const PG_TASK_1_TUNED: Who = Who::Peer("pg_task_1 tuned");

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "pg_task",
            Self::Bare => "bare client",
            Self::Peer("graphile_worker") => "graphile_worker 0.14.1",
            Self::Peer("riverqueue") => "riverqueue 0.5.0",
            Self::Peer("awa") => "awa 0.6.9",
            Self::Peer("pg_task_1") => "pg_task 1.0.0, its default: a step per core",
            Self::Peer("pg_task_1 tuned") => "pg_task 1.0.0, 100 steps at a time",
            Self::Peer(name) => name,
        }
    }

    /// The database that it lives in.
    pub fn database(self) -> &'static str {
        match self {
            Self::Ours | Self::Bare => "pg_task",
            Self::Peer(name) => name.split_once(' ').map_or(name, |(folder, _)| folder),
        }
    }
}

/// Builds programs when they are first needed.
#[derive(Default)]
pub struct Programs {
    built: HashMap<Who, Result<PathBuf, String>>,
}

impl Programs {
    /// The path of a program.
    ///
    /// # Errors
    /// Why it cannot be built; the same again when asked again.
    pub fn path(&mut self, who: Who) -> anyhow::Result<PathBuf> {
        let path = self.built.entry(who).or_insert_with(|| build(who).map_err(|error| format!("{error:#}")));
        path.clone().map_err(anyhow::Error::msg)
    }

    /// A program to be run on a database.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn command(&mut self, who: Who, url: &str, arguments: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.path(who)?);
        let serves = arguments.starts_with("serve");
        command
            .args(arguments.split_whitespace())
            .env("DATABASE_URL", url)
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE")
            .envs((who == PG_TASK_1_TUNED).then_some(("CONCURRENCY", "100")))
            // A worker that serves runs until its input ends.
            .stdin(if serves { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            // What goes wrong is said in the result; one that serves may say more than anyone reads meanwhile.
            .stderr(if serves { Stdio::inherit() } else { Stdio::piped() })
            .kill_on_drop(true);
        Ok(command)
    }
}

fn build(who: Who) -> anyhow::Result<PathBuf> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace_root().join(folder),
        None => workspace_root().join("target"),
    };
    let mut command = pg_task_cluster::cargo();
    command.args(["build", "--quiet", "--release"]);
    let path = match who {
        Who::Ours | Who::Bare => {
            command.current_dir(workspace_root()).args(["--package", "pg_task_bench"]);
            command.args(["--bin", "bench_worker", "--bin", "bench_bare"]);
            target.join("release").join(if who == Who::Ours { "bench_worker" } else { "bench_bare" })
        }
        Who::Peer(_) => {
            let name = who.database();
            // Its own lock file, and a folder that all peers share for what they build.
            let peers = target.join("peers");
            command.current_dir(workspace_root().join("bench/peers").join(name)).arg("--locked");
            command.env("CARGO_TARGET_DIR", &peers);
            peers.join("release").join(format!("peer_{name}"))
        }
    };
    let output = command.output().context("failed to run cargo")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().find(|line| line.starts_with("error")).unwrap_or("no reason given");
        bail!("{} does not build here: {first}", who.name());
    }
    Ok(path)
}

/// Waits for a program's answer.
///
/// # Errors
/// When it fails, says nothing that is understood, or takes too long.
pub async fn answer(child: Child) -> anyhow::Result<Answer> {
    let output =
        tokio::time::timeout(PATIENCE, finish(child)).await.context("no answer within 5 minutes")??;
    let line = output.lines().last().context("no answer")?;
    serde_json::from_str(line).with_context(|| format!("not an answer: {line}"))
}

async fn finish(mut child: Child) -> anyhow::Result<String> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (text, complaints) = tokio::try_join!(read(stdout), read(stderr))?;
    let status = child.wait().await?;
    if !status.success() {
        let reason = complaints.lines().rfind(|line| !line.trim().is_empty());
        bail!("the program failed: {}", reason.map_or_else(|| status.to_string(), str::to_owned));
    }
    Ok(text)
}

async fn read(stream: Option<impl AsyncReadExt + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
