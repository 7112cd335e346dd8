//! The command line.

use clap::Parser;

/// What to do. The database is in `DATABASE_URL`.
#[derive(Clone, Debug, Parser)]
pub enum Command {
    /// Make the tables.
    Setup,
    /// Enqueue a backlog.
    Fill {
        /// Tasks.
        #[arg(long)]
        count: u64,
        /// Steps of each.
        #[arg(long, default_value_t = 1)]
        steps: u32,
        /// Bytes of payload of each.
        #[arg(long, default_value_t = 0)]
        payload: usize,
    },
    /// Run a worker until so many steps have run and the system has nothing left to do.
    Drain {
        /// Steps.
        #[arg(long)]
        count: u64,
        /// Steps at a time.
        #[arg(long, default_value_t = 1000)]
        concurrency: usize,
        /// Moments to note on the way, evenly spread over the steps.
        #[arg(long, default_value_t = 10)]
        marks: u64,
    },
    /// Run an idle worker, enqueue tasks one at a time, and measure from the call to the start of the step.
    Latency {
        /// Tasks.
        #[arg(long)]
        count: u64,
        /// The pause after each.
        #[arg(long, default_value_t = 3000)]
        pause_us: u64,
    },
    /// Enqueue at a fixed rate beside a worker, and measure from the planned moment to the start of the step.
    Load {
        /// Tasks per second.
        #[arg(long)]
        rate: u64,
        /// How long.
        #[arg(long)]
        seconds: u64,
        /// Producers.
        #[arg(long, default_value_t = 16)]
        clients: u64,
        /// Steps at a time.
        #[arg(long, default_value_t = 100)]
        concurrency: usize,
    },
    /// Enqueue single tasks from many clients, each as fast as it can; no worker.
    Produce {
        /// Producers.
        #[arg(long, default_value_t = 16)]
        clients: u64,
        /// How long.
        #[arg(long)]
        seconds: u64,
    },
    /// Run a worker until standard input ends.
    Serve {
        /// Steps at a time.
        #[arg(long, default_value_t = 1000)]
        concurrency: usize,
    },
}
