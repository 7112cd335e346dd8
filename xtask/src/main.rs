//! Development commands: `cargo xtask demo|test|lint|cluster|bench|fault`.
#![expect(clippy::print_stdout, reason = "commands speak to people")]

mod bench;
mod build;
mod cluster;
mod demo;
mod endpoint;
mod fault;
mod lint;
mod python;
mod setup;
mod test;

use clap::Parser;

/// Development commands of pg_task.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Command {
    /// Show the main job: SQL and a trigger enqueue, a worker in another process runs the steps.
    Demo {
        /// Leave the server running.
        #[arg(long)]
        keep: bool,
    },
    /// Run every test of the project.
    Test,
    /// Check formatting, clippy and the shape of the tree.
    Lint,
    /// A private server of your own, with the extension.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Measure; `--help` names the shapes of work.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Break things under load and check that nothing is lost or doubled: `--help` tells the options.
    #[command(disable_help_flag = true)]
    Fault {
        /// The options of the fault runs.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Demo { keep } => demo::run(keep),
        Command::Test => test::run(),
        Command::Lint => lint::run(),
        Command::Cluster(command) => cluster::run(command),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Fault { arguments } => fault::run(&arguments),
    }
}
