//! What features cost a drain that uses them, beside one that uses none.

use crate::bench::Bench;
use crate::bench::rate;
use crate::figure::Figure;
use crate::figure::Series;
use crate::programs;
use crate::programs::Who;

/// A backlog of tasks of one kind.
pub struct Backlog {
    what: &'static str,
    /// SQL of a task's step; `i` is its number.
    step: &'static str,
    /// SQL of its options.
    options: &'static str,
    /// What is set before it, and taken back after it.
    settings: (&'static str, &'static str),
    /// Steps of each task.
    steps: u64,
    /// Layers of the worker.
    layers: &'static str,
}

/// No-ops without options, of a queue without settings.
pub const PLAIN: Backlog = Backlog {
    what: "no-ops",
    step: r#"'{"Load":{"Nothing":null}}'"#,
    options: "NULL",
    settings: ("", ""),
    steps: 1,
    layers: "0",
};

impl Backlog {
    const fn of_options(what: &'static str, options: &'static str) -> Self {
        Self { what, options, ..PLAIN }
    }

    const fn of_queue(what: &'static str, options: &'static str, set: &'static str) -> Self {
        Self { what, options, settings: (set, "SELECT pg_task.drop_queue('bench')"), ..PLAIN }
    }

    /// The statement that enqueues so many of its tasks.
    pub fn insert(&self, count: u64) -> String {
        let Self { step, options, .. } = self;
        format!(
            "INSERT INTO pg_task.task (queue, step, options)
             SELECT 'bench', {step}, {options} FROM generate_series(1, {count}) AS i"
        )
    }
}

/// Enqueues a backlog and writes all of it to disk.
///
/// # Errors
/// When the server refuses.
pub async fn fill(bench: &mut Bench, insert: &str) -> anyhow::Result<()> {
    bench.sql(&[insert, "VACUUM ANALYZE pg_task.task", "CHECKPOINT"]).await
}

/// Drains each backlog in turns. The figures of all but the first, beside the first.
async fn drains(
    bench: &mut Bench,
    name: &'static str,
    count: u64,
    reference: &Backlog,
    backlogs: &[Backlog],
) -> anyhow::Result<()> {
    let mut without = Series::default();
    let mut with: Vec<Series> = backlogs.iter().map(|_| Series::default()).collect();
    for _ in 0..bench.side_rounds() {
        without.0.push(drain(bench, count, reference).await?);
        for (backlog, series) in backlogs.iter().zip(&mut with) {
            series.0.push(drain(bench, count, backlog).await?);
        }
    }
    for (backlog, series) in backlogs.iter().zip(with) {
        let unit = if backlog.steps == 1 { "tasks/s" } else { "steps/s" };
        bench.add(
            Figure::new(name, format!("drain of {}", backlog.what), unit, series)
                .beside(reference.what, without.clone()),
        );
    }
    Ok(())
}

/// Steps per second.
async fn drain(bench: &mut Bench, count: u64, backlog: &Backlog) -> anyhow::Result<f64> {
    let (set, reset) = backlog.settings;
    bench.sql(&[set]).await?;
    fill(bench, &backlog.insert(count)).await?;
    let arguments = format!("drain --count {}", count * backlog.steps);
    let child = bench.spawn(Who::Ours, &arguments, &[("BENCH_LAYERS", backlog.layers)]).await?;
    let answer = programs::answer(child).await?;
    bench.sql(&[reset]).await?;
    Ok(rate(answer))
}

/// Options of tasks.
pub async fn options(bench: &mut Bench) -> anyhow::Result<()> {
    const KINDS: [Backlog; 6] = [
        Backlog::of_options(
            "tasks with tags and meta",
            r#"'{"tags": ["bench"], "meta": {"tenant": "acme"}}'"#,
        ),
        Backlog::of_options(
            "tasks with a trace context",
            r#"'{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'"#,
        ),
        Backlog::of_options("tasks with a time limit", r#"'{"timeout": "1 minute"}'"#),
        Backlog::of_options("tasks with a retry policy", r#"'{"retry": {"limit": 5, "delay": "1 second"}}'"#),
        Backlog::of_options("tasks of 1,000 keys", "jsonb_build_object('key', 'tenant ' || i % 1000)"),
        Backlog::of_options(
            "tasks of 1,000 FIFO groups",
            "jsonb_build_object('group', 'group ' || i % 1000)",
        ),
    ];
    let count = bench.scale(300_000, 50_000);
    drains(bench, "options", count, &PLAIN, &KINDS).await
}

/// Limits and rates that hold nothing back: what it costs to ask them.
pub async fn limits(bench: &mut Bench) -> anyhow::Result<()> {
    const KEY: &str = "jsonb_build_object('key', 'tenant ' || i % 1000)";
    const KINDS: [Backlog; 5] = [
        Backlog::of_queue(
            "a queue with a concurrency",
            "NULL",
            "SELECT pg_task.set_queue('bench', concurrency => 1000000)",
        ),
        Backlog::of_queue(
            "a queue with a rate",
            "NULL",
            "SELECT pg_task.set_queue('bench', rate => 1000000, burst => 1000000)",
        ),
        Backlog {
            what: "a step with a concurrency",
            settings: (
                "SELECT pg_task.limit_step('Load/Nothing', 1000000)",
                "SELECT pg_task.limit_step('Load/Nothing', NULL)",
            ),
            ..PLAIN
        },
        Backlog::of_queue(
            "1,000 keys with a concurrency",
            KEY,
            "SELECT pg_task.set_queue('bench', key_concurrency => 1000000)",
        ),
        Backlog::of_queue(
            "1,000 keys with a rate",
            KEY,
            "SELECT pg_task.set_queue('bench', key_rate => 1000000, key_burst => 1000000)",
        ),
    ];
    let count = bench.scale(300_000, 50_000);
    drains(bench, "limits", count, &PLAIN, &KINDS).await
}

/// What is done around steps, and what they do beside their work.
pub async fn around(bench: &mut Bench) -> anyhow::Result<()> {
    const KINDS: [Backlog; 3] = [
        Backlog { what: "no-ops within two layers", layers: "2", ..PLAIN },
        Backlog { what: "steps that say how far they are", step: r#"'{"Load":{"Progress":null}}'"#, ..PLAIN },
        Backlog {
            what: "steps that fail once and are tried again at once",
            step: r#"'{"Load":{"Fail":null}}'"#,
            steps: 2,
            ..PLAIN
        },
    ];
    let count = bench.scale(200_000, 50_000);
    drains(bench, "around", count, &PLAIN, &KINDS).await
}

/// A row written by each step: in the transaction of its transition, beside one of its own before that.
pub async fn transactional(bench: &mut Bench) -> anyhow::Result<()> {
    const ORDINARY: Backlog =
        Backlog { what: "the same as ordinary steps", step: r#"'{"Load":{"Write":null}}'"#, ..PLAIN };
    const TRANSACTIONAL: Backlog = Backlog {
        what: "transactional steps that write a row",
        step: r#"'{"Load":{"WriteOnce":null}}'"#,
        ..PLAIN
    };
    bench.sql(&["CREATE TABLE IF NOT EXISTS written (at timestamptz)"]).await?;
    let count = bench.scale(20_000, 5_000);
    drains(bench, "steps", count, &ORDINARY, &[TRANSACTIONAL]).await?;
    bench.sql(&["DROP TABLE written"]).await
}
