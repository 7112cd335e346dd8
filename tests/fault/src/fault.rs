//! The faults: what each is called, how it is chosen, and where it is done.

mod backends;
mod calls;
mod clock;
mod databases;
mod disk;
mod replication;
mod server;
mod sessions;
mod stale;
mod surroundings;
mod table;
mod workers;

use crate::ledger;
use crate::scene::Scene;

/// What a fault came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was done so many times.
    Done(u32),
    /// It could not be done here, for this reason.
    Skipped(String),
}

/// How much of the server a fault takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Size {
    /// Others may go on beside it.
    Small,
    /// The only one of its kind at a time.
    Large,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident: $size:ident, $name:literal, $path:path;)*) => {
        /// A fault.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Fault {
            $($(#[$doc])* $variant,)*
        }

        impl Fault {
            /// Every fault.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in the summary.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether others may go on beside it.
            pub fn size(self) -> Size {
                match self { $(Self::$variant => Size::$size,)* }
            }

            async fn act(self, scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
                match self { $(Self::$variant => $path(scene, rng).await,)* }
            }
        }
    };
}

faults! {
    /// SIGKILL to worker processes.
    WorkerKill: Small, "worker: kill -9", workers::kill;
    /// SIGSTOP to worker processes, SIGCONT later, within the lease or beyond it.
    WorkerStop: Small, "worker: SIGSTOP, SIGCONT", workers::stop;
    /// A worker's connections fall into a partition.
    Partition: Small, "worker: partition", workers::partition;
    /// A worker's connections become slow.
    Delay: Small, "worker: slow network", workers::delay;
    /// A worker's or the producers' connections are cut.
    Cut: Small, "connections cut", workers::cut;
    /// `pg_terminate_backend` of workers' sessions.
    TerminateWorkers: Small, "terminate: worker sessions", backends::terminate_workers;
    /// `pg_terminate_backend` of producers' sessions.
    TerminateProducers: Small, "terminate: producer sessions", backends::terminate_producers;
    /// `pg_terminate_backend` of the scheduler.
    TerminateScheduler: Small, "terminate: scheduler", backends::terminate_scheduler;
    /// `pg_terminate_backend` of the launcher.
    TerminateLauncher: Small, "terminate: launcher", backends::terminate_launcher;
    /// `pg_cancel_backend` of the scheduler.
    CancelScheduler: Small, "cancel: scheduler", backends::cancel_scheduler;
    /// `pg_cancel_backend` of protocol calls that wait for a lock.
    CancelCalls: Small, "cancel: calls in their middle", calls::cancel;
    /// `pg_terminate_backend` of protocol calls that wait for a lock.
    TerminateCalls: Small, "terminate: calls in their middle", calls::terminate;
    /// `lock_timeout` ends protocol calls.
    LockTimeout: Small, "lock_timeout in calls", calls::lock_timeout;
    /// `statement_timeout` ends protocol calls of a worker that vanishes.
    StatementTimeout: Small, "statement_timeout in calls", calls::statement_timeout;
    /// A worker that was given up brings its results.
    StaleResults: Small, "worker: results after the lease", stale::results;
    /// PgBouncer is killed under its worker.
    RestartBouncer: Small, "pooler: kill -9", surroundings::restart_bouncer;
    /// The clock of a worker jumps.
    ClockJump: Small, "worker: clock jumps", surroundings::jump;
    /// `VACUUM FULL` of the table.
    VacuumFull: Small, "table: VACUUM FULL", table::vacuum_full;
    /// `CLUSTER` of the table.
    Cluster: Small, "table: CLUSTER", table::cluster;
    /// `REINDEX` of the table, plain or concurrent.
    Reindex: Small, "table: REINDEX", table::reindex;
    /// A snapshot that is held for seconds.
    LongSnapshot: Small, "sessions: long snapshot", sessions::long_snapshot;
    /// Connections until the server takes no more.
    ManyConnections: Small, "sessions: hundreds of connections", sessions::many;
    /// Hundreds of savepoints in a transaction.
    Savepoints: Small, "sessions: savepoints", sessions::savepoints;
    /// Every place for workers is taken.
    AllPlaces: Small, "shared memory: max_workers", sessions::all_places;
    /// The table and its index go to another tablespace and back.
    MoveTable: Large, "table: SET TABLESPACE", table::move_away;
    /// The clock of a server of its own is set forward and back, while schedules tick and a worker works.
    ClockSteps: Large, "clock of a server: steps", clock::steps;
    /// Prepared transactions are committed after a restart.
    Prepared: Large, "sessions: prepared across a restart", sessions::prepared;
    /// The extension and its database are dropped and made again under a worker.
    Extension: Large, "DROP, CREATE EXTENSION and DATABASE", databases::extension;
    /// More databases than places.
    TooManyDatabases: Large, "shared memory: max_databases", databases::too_many;
    /// A standby is promoted.
    Promote: Large, "replication: promotion of a standby", replication::promote;
    /// Rows arrive by logical replication.
    Logical: Large, "replication: logical apply", replication::logical;
    /// No room for WAL.
    WalFull: Large, "disk full: WAL", disk::wal;
    /// No room for the table.
    TablespaceFull: Large, "disk full: tablespace", disk::tablespace;
    /// SIGKILL to a backend: the server restarts itself.
    KillBackend: Large, "kill -9: a backend", backends::kill;
    /// SIGKILL to the scheduler.
    KillScheduler: Large, "kill -9: scheduler", backends::kill_scheduler;
    /// SIGKILL to the launcher.
    KillLauncher: Large, "kill -9: launcher", backends::kill_launcher;
    /// An immediate stop and a start.
    StopImmediate: Large, "server: immediate stop", server::immediate;
    /// A fast stop and a start.
    StopFast: Large, "server: fast stop", server::fast;
    /// SIGKILL to the postmaster.
    KillPostmaster: Large, "server: kill -9 of the postmaster", server::kill_postmaster;
}

impl Fault {
    /// The fault of a name, or the start of one.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|fault| fault.name().starts_with(name) || format!("{fault:?}") == name)
    }

    /// Does it, and remembers when that was.
    ///
    /// # Errors
    /// When the scene does not recover from it, or cannot be brought to it.
    pub async fn inject(self, scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
        let from = ledger::now()?;
        let outcome = self.act(scene, rng).await;
        scene.note_fault(self.name().to_owned(), from, ledger::now()?);
        outcome
    }
}
