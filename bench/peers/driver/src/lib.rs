//! What every measured program shares: the command line, the clock, the counters that steps touch, and the answer.
//!
//! pg_task, the bare loops and each peer are programs of their own that implement [`System`] and call [`main`]. Each
//! command prints one line of JSON. So all of them are timed by the same code, in the same way.
#![forbid(unsafe_code)]

mod answer;
mod command;
mod counters;
mod measure;

use std::future::Future;

pub use answer::Answer;
pub use answer::Latency;
pub use answer::latency;
pub use command::Command;
pub use counters::count;
pub use counters::now_us;
pub use counters::ran;
pub use counters::started;
pub use measure::main;

/// A task system that is measured.
pub trait System: Send + Sized + Sync + 'static {
    /// A worker that runs; it is stopped by [`System::stop`].
    type Worker: Send;

    /// What enqueues tasks one at a time, over a connection of its own.
    type Producer: Send;

    /// Connects.
    fn connect(url: String) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Makes the tables by the system's own migrations.
    fn setup(&self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Enqueues many tasks in the fastest documented way. A task that has `steps` steps goes on with itself.
    fn fill(&self, fill: Fill) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Starts a worker; its steps call [`ran`] or [`started`].
    fn start(&self, concurrency: usize) -> impl Future<Output = anyhow::Result<Self::Worker>> + Send;

    /// Whether the system has nothing left to do: asked once all steps have run.
    fn is_done(&self) -> impl Future<Output = anyhow::Result<bool>> + Send;

    /// Stops a worker.
    fn stop(&self, worker: Self::Worker) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Opens a producer.
    fn producer(&self) -> impl Future<Output = anyhow::Result<Self::Producer>> + Send;

    /// Enqueues one task, committed, whose step calls [`started`] with `at_us`.
    fn enqueue(
        &self,
        producer: &mut Self::Producer,
        at_us: i64,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// A backlog.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Tasks.
    pub count: u64,
    /// Steps of each.
    pub steps: u32,
    /// Bytes of payload of each, or none for a step without fields. Only pg_task and the bare client heed it.
    pub payload: usize,
}
