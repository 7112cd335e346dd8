//! The command behind `cargo xtask soak`.

use std::time::Duration;

use clap::Parser;
use pg_task_fault::soak;
use pg_task_fault::soak::Order;

/// The load without faults, with reloads of the configuration: memory, descriptors and the log must stay flat.
#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// What everything by chance comes from; by default a fresh one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// The mean time between two pieces of work of one producer, in milliseconds.
    #[arg(long, default_value_t = 40)]
    pace: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    soak::run(Order {
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000)),
        time: Duration::from_secs_f64(arguments.minutes * 60.0),
        pace: Duration::from_millis(arguments.pace),
    })
    .await
}
