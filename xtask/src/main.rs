//! Development commands: `cargo xtask demo|test|lint|audit|cluster|bench|fault|soak|fuzz|miri` and a few more.
#![expect(clippy::print_stdout, reason = "commands speak to people")]

mod audit;
mod bench;
mod build;
mod cluster;
mod demo;
mod endpoint;
mod fault;
mod fuzz;
mod lint;
mod majors;
mod miri;
mod python;
mod setup;
mod snapshot;
mod test;

use clap::Parser;
use pg_task_cluster::DEFAULT_MAJOR;

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
    Test {
        /// On every supported version of PostgreSQL, not only on Debian 12's; what is missing is downloaded.
        #[arg(long)]
        all_majors: bool,
        /// On these versions only, separated by commas.
        #[arg(long, value_delimiter = ',', conflicts_with = "all_majors")]
        majors: Vec<u32>,
    },
    /// Build the extension for one version and put it into the private tree that the tests use.
    BuildTree {
        /// The major version.
        #[arg(default_value_t = DEFAULT_MAJOR)]
        major: u32,
    },
    /// Check the SQL for what a hostile search_path could shadow, and the dependencies' licences, sources and versions.
    Audit,
    /// Run the tests of the crates that need no server under Miri, in some minutes; a nightly toolchain is installed if it is missing.
    Miri {
        /// Names of tests, and options of the test runner.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Keep the install script of the version that is about to be released, for the tests of later upgrades.
    Snapshot,
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
    /// Random and hostile calls of every SQL function: each gets an answer, and the server stays whole.
    Fuzz {
        /// How many calls.
        #[arg(long, default_value_t = 100_000)]
        calls: u32,
        /// What the calls come from; by default a fresh one, which is printed.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Load without faults and with reloads, for half an hour: memory, descriptors and the log must stay flat.
    #[command(disable_help_flag = true)]
    Soak {
        /// The options of the soak.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Demo { keep } => demo::run(keep),
        Command::Test { all_majors: true, .. } => test::run(&majors::ALL),
        Command::Test { majors, .. } if majors.is_empty() => test::run(&[DEFAULT_MAJOR]),
        Command::Test { majors, .. } => test::run(&majors),
        Command::BuildTree { major } => build::tree_of(&majors::ensure(major)?).map(drop),
        Command::Audit => audit::run(),
        Command::Miri { arguments } => miri::run(&arguments),
        Command::Snapshot => snapshot::run(),
        Command::Lint => lint::run(),
        Command::Cluster(command) => cluster::run(command),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Fault { arguments } => fault::run(&arguments),
        Command::Fuzz { calls, seed } => fuzz::run(calls, seed),
        Command::Soak { arguments } => fault::soak(&arguments),
    }
}
