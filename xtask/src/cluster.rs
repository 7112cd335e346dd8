//! `cargo xtask cluster`: a private server of one's own.

use std::os::unix::process::CommandExt;

use clap::Subcommand;
use pg_task_cluster::Cluster;
use pg_task_cluster::Stop;
use pg_task_cluster::Tree;

use crate::build;
use crate::setup;

/// The database in which the extension is.
pub const DATABASE: &str = "pg_task";

const DEFAULT_NAME: &str = "main";

/// Names the cluster where `--name` is not given: the tests run the README's commands as they stand.
const NAME: &str = "PG_TASK_CLUSTER";

/// What to do with the cluster.
#[derive(Subcommand)]
pub enum Command {
    /// Build the extension, make the cluster if there is none, and start it.
    Start {
        /// Which of your clusters.
        #[arg(long, env = NAME, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Print the connection URL alone.
    Url {
        /// Which of your clusters.
        #[arg(long, env = NAME, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Open psql; further arguments are psql's.
    Psql {
        /// Which of your clusters.
        #[arg(long, env = NAME, default_value = DEFAULT_NAME)]
        name: String,
        /// Arguments for psql.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Say whether it runs.
    Status {
        /// Which of your clusters.
        #[arg(long, env = NAME, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Stop it.
    Stop {
        /// Which of your clusters.
        #[arg(long, env = NAME, default_value = DEFAULT_NAME)]
        name: String,
        /// Delete it with its data.
        #[arg(long)]
        remove: bool,
    },
}

pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Start { name } => start(&name),
        Command::Url { name } => {
            println!("{}", attach(&name)?.url(DATABASE));
            Ok(())
        }
        Command::Psql { name, arguments } => {
            let error = attach(&name)?.psql_command(DATABASE).args(arguments).exec();
            Err(error.into())
        }
        Command::Status { name } => {
            let cluster = attach(&name)?;
            match cluster.postmaster_pid() {
                Some(pid) => {
                    println!(
                        "running: process {pid}, port {}, {}",
                        cluster.port(),
                        cluster.psql(DATABASE, "SELECT version()")?
                    );
                }
                None => println!("stopped: `cargo xtask cluster start` starts it"),
            }
            Ok(())
        }
        Command::Stop { name, remove } => {
            let cluster = attach(&name)?;
            if remove { cluster.remove() } else { cluster.stop(Stop::Fast) }
        }
    }
}

fn start(name: &str) -> anyhow::Result<()> {
    let tree = build::tree()?;
    let cluster = match Cluster::attach(&tree, name) {
        Ok(mut cluster) => {
            // A new build of the library is loaded at the server's start only.
            cluster.stop(Stop::Fast)?;
            cluster.ensure_port()?;
            cluster.start()?;
            cluster
        }
        Err(_) => {
            let mut cluster = Cluster::create(&tree, name, &[])?;
            cluster.keep();
            cluster.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
            cluster.psql(DATABASE, "CREATE EXTENSION pg_task")?;
            cluster
        }
    };
    println!("{}", cluster.url(DATABASE));
    println!("\nNext: export DATABASE_URL=$(cargo xtask cluster url)");
    println!("      cargo run -p pg_task_examples --example tutorial");
    println!("      cargo xtask cluster psql");
    println!("      cargo xtask cluster stop");
    Ok(())
}

fn attach(name: &str) -> anyhow::Result<Cluster> {
    Cluster::attach(&Tree::prepare(&setup::ensure()?, "pg")?, name)
}
