//! What every shape of work needs: the server, the programs, the scale, and where figures go.

use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use bench_driver::Answer;
use bench_driver::Latency;
use tokio::process::Child;
use tokio_postgres::Client;

use crate::figure::Figure;
use crate::figure::Plot;
use crate::figure::Series;
use crate::figure::number;
use crate::programs;
use crate::programs::Programs;
use crate::programs::Who;
use crate::server;
use crate::server::Counts;
use crate::server::Server;

pub struct Bench {
    pub server: Server,
    pub programs: Programs,
    pub quick: bool,
    pub rounds: usize,
    /// Whether the other systems are measured too.
    pub peers: bool,
    pub figures: Vec<Figure>,
    pub plots: Vec<Plot>,
    began: Instant,
}

impl Bench {
    pub fn new(server: Server, quick: bool, peers: bool) -> Self {
        Self {
            server,
            programs: Programs::default(),
            quick,
            rounds: 3,
            peers,
            figures: Vec::new(),
            plots: Vec::new(),
            began: Instant::now(),
        }
    }

    /// A count for the whole run, or a smaller one for a quick run.
    pub fn scale(&self, whole: u64, quick: u64) -> u64 {
        if self.quick { quick } else { whole }
    }

    /// How often a shape is measured that has no bar to hold: once in a quick run.
    pub fn side_rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    /// The systems of a list that take part.
    pub fn peers(&self, peers: &[Who]) -> Vec<Who> {
        if self.peers { peers.to_vec() } else { Vec::new() }
    }

    /// Says what is going on.
    pub fn say(&self, text: &str) {
        println!("[{:>4} s] {text}", self.began.elapsed().as_secs());
    }

    /// Keeps a figure and shows it.
    pub fn add(&mut self, figure: Figure) {
        let reference = match figure.reference_values.median() {
            Some(_) => format!("; {}: {}", figure.reference, figure.reference_values.shown()),
            None if figure.reference.is_empty() => String::new(),
            None => format!("; {}: –", figure.reference),
        };
        let ratio = figure.ratio().map(|ratio| format!("; ratio {}", number(ratio))).unwrap_or_default();
        let bar =
            figure.bar.map(|bar| format!("; bar {} {}", bar.shown(), figure.verdict())).unwrap_or_default();
        let note = if figure.note.is_empty() { String::new() } else { format!("; {}", figure.note) };
        println!(
            "         {:<4} {}: {} {}{reference}{ratio}{bar}{note}",
            figure.id,
            figure.what,
            figure.ours.shown(),
            figure.unit
        );
        self.figures.push(figure);
    }

    /// Starts a program on its database, which is made and set up first if need be.
    ///
    /// # Errors
    /// When it cannot be built, set up or started.
    pub async fn spawn(&mut self, who: Who, arguments: &str, env: &[(&str, &str)]) -> anyhow::Result<Child> {
        let url = self.server.url(who.database());
        if self.programs.path(who).is_ok() && self.server.ensure_database(who.database())? {
            let ours = who.database() == Who::Ours.database();
            if ours {
                self.server.cluster.psql(who.database(), "CREATE EXTENSION pg_task")?;
            }
            // The bare loops have a table beside pg_task's; each peer makes its own tables.
            let who = if ours { Who::Bare } else { who };
            let child = self.programs.command(who, &url, "setup")?.spawn()?;
            programs::answer(child).await.with_context(|| format!("{} cannot be set up", who.name()))?;
        }
        let mut command = self.programs.command(who, &url, arguments)?;
        command.envs(env.iter().copied());
        command.spawn().with_context(|| format!("failed to start {}", who.name()))
    }

    /// Runs a program and returns its answer.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run(&mut self, who: Who, arguments: &str) -> anyhow::Result<Answer> {
        let child = self.spawn(who, arguments, &[]).await?;
        programs::answer(child).await.with_context(|| format!("{}: {arguments}", who.name()))
    }

    /// A connection to pg_task's database, which is made first if need be.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn connect(&mut self) -> anyhow::Result<Client> {
        // Makes the database.
        drop(self.spawn(Who::Ours, "--help", &[]).await?);
        self.server.connect().await
    }

    /// Runs statements in pg_task's database, each in a transaction of its own.
    ///
    /// # Errors
    /// When one fails.
    pub async fn sql(&mut self, statements: &[&str]) -> anyhow::Result<()> {
        let client = self.connect().await?;
        for &statement in statements {
            client.batch_execute(statement).await.with_context(|| statement.to_owned())?;
        }
        Ok(())
    }

    /// Enqueues a backlog, writes all of it to disk, and drains it. The answer of the drain.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn drain(&mut self, who: Who, count: u64, fill: &str, steps: u64) -> anyhow::Result<Answer> {
        self.run(who, &format!("fill --count {count} {fill}")).await?;
        self.sql(&["CHECKPOINT"]).await?;
        self.run(who, &format!("drain --count {}", count * steps)).await
    }
}

/// The values of one system over all rounds, or why it has none.
pub struct Rounds {
    pub who: Who,
    pub series: Series,
    pub trouble: String,
}

impl Rounds {
    pub fn of(who: Who) -> Self {
        Self { who, series: Series::default(), trouble: String::new() }
    }

    /// Whether it is to be measured in a round: not after it failed, and a peer only once in a quick run.
    pub fn takes_part(&self, round: usize, quick: bool) -> bool {
        let is_peer = matches!(self.who, Who::Peer(_));
        self.trouble.is_empty() && (round == 0 || !is_peer || !quick)
    }

    /// Takes a round's value. A peer that fails leaves its row empty; pg_task and the bare loops must not fail.
    ///
    /// # Errors
    /// What went wrong with those.
    pub fn take(&mut self, value: anyhow::Result<f64>) -> anyhow::Result<()> {
        match (value, self.who) {
            (Ok(value), _) => self.series.0.push(value),
            (Err(error), Who::Peer(_)) => {
                self.trouble = format!("{error:#}");
                self.series.0.clear();
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }
}

/// Steps per second.
#[expect(clippy::needless_pass_by_value, reason = "used as a function of a result's value")]
pub fn rate(answer: Answer) -> f64 {
    answer.count as f64 / answer.seconds
}

/// The delays of an answer.
///
/// # Errors
/// When it has none.
pub fn delays(answer: Answer) -> anyhow::Result<Latency> {
    answer.latency.context("the answer has no delays")
}

/// A latency as the points of a line.
pub fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    latency.curve.iter().map(|&(percentile, us)| (percentile, us as f64)).collect()
}

/// Waits until pg_task has taken so many results.
///
/// # Errors
/// When that does not happen within the time.
pub async fn until_finished(client: &Client, results: i64, patience: Duration) -> anyhow::Result<Counts> {
    let deadline = Instant::now() + patience;
    loop {
        let counts = server::counts(client).await?;
        if counts.finished >= results {
            return Ok(counts);
        }
        if Instant::now() > deadline {
            anyhow::bail!("{} of {results} results within {} s", counts.finished, patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
