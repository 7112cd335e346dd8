//! Private PostgreSQL clusters with pg_task: a copy of the server's files, a data directory and a port of their own.
//!
//! Nothing outside the project's `target/` folder is touched, so that clusters of several runs, and the machine's own
//! server, do not meet.

mod account;
mod cargo;
mod clock;
mod cluster;
mod install;
mod standby;
mod tree;

pub use account::Account;
pub use cargo::cargo;
pub use clock::Clock;
pub use cluster::Cluster;
pub use cluster::Stop;
pub use install::DEFAULT_MAJOR;
pub use install::PgInstall;
pub use install::major_folder;
pub use install::missing;
pub use install::tested_major;
pub use tree::Tree;
pub use tree::install_script;
pub use tree::workspace_root;
