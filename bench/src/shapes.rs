//! The shapes of work, by name.

mod asleep;
mod backlogs;
mod drain;
mod features;
mod idle;
mod latency;
mod operate;
mod produce;
mod snapshot;
mod steps;
mod timed;

use crate::bench::Bench;

/// A shape of work: its name on the command line, the figures it gives, and what it is.
pub struct Shape {
    pub name: &'static str,
    pub ids: &'static [&'static str],
    pub what: &'static str,
}

/// All shapes, in the order in which they run.
pub const SHAPES: &[Shape] = &[
    Shape { name: "drain", ids: &["P1"], what: "drain of preloaded no-ops, one worker process" },
    Shape { name: "chains", ids: &["P2"], what: "ten-step chains, 1,000 at a time" },
    Shape { name: "latency", ids: &["P3"], what: "one task at a time beside an idle worker" },
    Shape { name: "load", ids: &["P3"], what: "the same at 30 % of what steady producers reach" },
    Shape { name: "delayed", ids: &["P4"], what: "delayed tasks, 1,000 due each second among sleepers" },
    Shape { name: "herd", ids: &[], what: "100,000 tasks due in the same millisecond" },
    Shape { name: "produce", ids: &["P5"], what: "16 clients that enqueue single rows; enqueue_many" },
    Shape { name: "steady", ids: &["P11"], what: "16 clients enqueue while one worker process drains" },
    Shape { name: "snapshot", ids: &["P6"], what: "a drain while a REPEATABLE READ transaction stays open" },
    Shape { name: "idle", ids: &["P7"], what: "what idle workers and an idle scheduler cost" },
    Shape { name: "wal", ids: &["P9"], what: "WAL of a no-op task from enqueue to gone" },
    Shape { name: "waits", ids: &[], what: "steps that take 5 ms and 1 s, 1,000 at a time" },
    Shape { name: "payload", ids: &[], what: "payloads of 100 B and 10 kB" },
    Shape { name: "processes", ids: &[], what: "four worker processes" },
    Shape { name: "queues", ids: &[], what: "ten queues with different priorities" },
    Shape { name: "history", ids: &[], what: "a drain with and without a row of history for each task" },
    Shape {
        name: "options",
        ids: &[],
        what: "drains of tasks with options: tags, a time limit, a key, a group",
    },
    Shape { name: "limits", ids: &[], what: "drains under limits and rates that hold nothing back" },
    Shape {
        name: "around",
        ids: &[],
        what: "drains within layers, with progress, with a failure of each task",
    },
    Shape { name: "transactional", ids: &[], what: "steps that write a row, transactional and ordinary" },
    Shape { name: "bulk", ids: &[], what: "enqueue_copy; tasks changed by a filter" },
    Shape { name: "wait", ids: &[], what: "waiting for the end of a task" },
    Shape { name: "schedules", ids: &[], what: "1,000 schedules that tick each second" },
    Shape { name: "unique", ids: &[], what: "16 clients that enqueue unique tasks" },
    Shape { name: "asleep", ids: &["P8", "P12"], what: "10 M tasks asleep, a restart, and all due at once" },
];

/// Runs a shape.
///
/// # Errors
/// When pg_task or a bare loop fails; peers that fail leave their rows empty.
pub async fn run(bench: &mut Bench, shape: &Shape) -> anyhow::Result<()> {
    bench.say(&format!("{}: {}", shape.name, shape.what));
    match shape.name {
        "drain" => drain::drain(bench).await,
        "chains" => drain::chains(bench).await,
        "latency" => latency::idle(bench).await,
        "load" => latency::load(bench).await,
        "delayed" => timed::delayed(bench).await,
        "herd" => timed::herd(bench).await,
        "produce" => produce::produce(bench).await,
        "steady" => produce::steady(bench).await,
        "snapshot" => snapshot::snapshot(bench).await,
        "idle" => idle::idle(bench).await,
        "wal" => drain::wal(bench).await,
        "waits" => steps::waits(bench).await,
        "payload" => steps::payload(bench).await,
        "processes" => steps::processes(bench).await,
        "queues" => steps::queues(bench).await,
        "history" => features::history(bench).await,
        "options" => backlogs::options(bench).await,
        "limits" => backlogs::limits(bench).await,
        "around" => backlogs::around(bench).await,
        "transactional" => backlogs::transactional(bench).await,
        "bulk" => operate::bulk(bench).await,
        "wait" => operate::wait(bench).await,
        "schedules" => timed::schedules(bench).await,
        "unique" => features::unique(bench).await,
        "asleep" => asleep::asleep(bench).await,
        other => anyhow::bail!("the shape {other} has no code"),
    }
}
