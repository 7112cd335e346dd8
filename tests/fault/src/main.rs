//! The command behind `cargo xtask fault`.

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use pg_task_fault::campaign;
use pg_task_fault::campaign::Order;
use pg_task_fault::fault::Fault;

/// A load under a seeded schedule of faults, and the check that nothing was lost or doubled.
#[derive(Parser)]
struct Arguments {
    /// What everything by chance comes from; by default a fresh one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Rounds of faults.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// No round begins after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// No round begins after so many faults.
    #[arg(long)]
    faults: Option<u32>,
    /// Only these faults, by name or the start of it, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds between two checks.
    #[arg(long, default_value_t = 10)]
    check_every: u32,
    /// The mean time between two pieces of work of one producer, in milliseconds.
    #[arg(long, default_value_t = 40)]
    pace: u64,
    /// The name of its server and its folder: runs of different names can go on side by side.
    #[arg(long, default_value = "fault")]
    name: String,
    /// Measure at the end how long it takes until a lost worker's task runs elsewhere (P10).
    #[arg(long)]
    measure: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let only =
        arguments.only.iter().map(|name| Fault::find(name).with_context(|| format!("no fault: {name}")));
    let only: Vec<Fault> = only.collect::<Result<_, _>>()?;
    campaign::run(Order {
        name: arguments.name,
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000)),
        rounds: arguments.rounds,
        time: arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
        enough: arguments.faults,
        faults: if only.is_empty() { Fault::ALL.to_vec() } else { only },
        check_every: arguments.check_every.max(1),
        pace: Duration::from_millis(arguments.pace),
        measure: arguments.measure,
    })
    .await
}
