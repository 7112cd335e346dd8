//! P6: a backlog goes through while a transaction holds an old snapshot, so that nothing can be vacuumed.

use crate::bench::Bench;
use crate::bench::Rounds;
use crate::bench::delays;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Plot;
use crate::figure::Series;
use crate::programs::GRAPHILE;
use crate::programs::Who;

/// Moments that are noted: the first is left out, since it holds the start of the worker.
const MARKS: usize = 101;

pub async fn snapshot(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(1_000_000, 200_000);
    let (mut first, mut last) = (Series::default(), Series::default());
    let (mut before, mut during) = (Series::default(), Series::default());
    let mut lines = Vec::new();
    for round in 0..bench.rounds {
        bench.sql(&["TRUNCATE pg_task.task"]).await?;
        before.0.push(delays(bench.run(Who::Ours, "latency --count 300").await?)?.p50 as f64);
        let holder = bench.connect().await?;
        holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class").await?;
        let marks = through(bench, Who::Ours, count).await?;
        let (begin, end) = tenths(&marks, count)?;
        first.0.push(begin);
        last.0.push(end);
        during.0.push(delays(bench.run(Who::Ours, "latency --count 300").await?)?.p50 as f64);
        holder.batch_execute("COMMIT").await?;
        if round == 0 {
            lines.push(("pg_task".to_owned(), progress(&marks, count)));
        }
    }
    bench.sql(&["VACUUM pg_task.task"]).await?;
    let kept: Series = first.0.iter().zip(&last.0).map(|(first, last)| last / first).collect();
    let what = format!("{count} no-ops under an open snapshot");
    bench.add(
        Figure::new("P6", format!("{what}: the last tenth"), "tasks/s", last)
            .beside("the first tenth", first)
            .bar(Bar::RatioAtLeast(0.9)),
    );
    bench.add(
        Figure::new("P6", format!("{what}: idle latency after them, p50"), "µs", during)
            .beside("before the snapshot", before)
            .bar(Bar::RatioAtMost(1.2)),
    );
    peer(bench, &mut lines, kept).await?;
    bench.plots.push(Plot {
        name: "snapshot",
        title: "Drain under an open snapshot".to_owned(),
        x: "% done",
        y: "tasks/s",
        log: true,
        lines,
        bars: Vec::new(),
    });
    Ok(())
}

/// The same with a queue that looks for work in an index, for comparison. It takes its tasks in bursts, so that a tenth must be many
/// of them.
async fn peer(
    bench: &mut Bench,
    lines: &mut Vec<(String, Vec<(f64, f64)>)>,
    ours: Series,
) -> anyhow::Result<()> {
    const COUNT: u64 = 300_000;
    let peers = if bench.quick { Vec::new() } else { bench.peers(&[GRAPHILE]) };
    for who in peers {
        let mut kept = Rounds::of(who);
        kept.take(peer_under_snapshot(bench, who, COUNT, lines).await)?;
        bench.add(
            Figure::new("P6", "under an open snapshot: the last tenth over the first", "×", ours.clone())
                .beside(format!("{} ({COUNT} no-ops)", who.name()), kept.series)
                .note(kept.trouble),
        );
    }
    Ok(())
}

async fn peer_under_snapshot(
    bench: &mut Bench,
    who: Who,
    count: u64,
    lines: &mut Vec<(String, Vec<(f64, f64)>)>,
) -> anyhow::Result<f64> {
    // The tables must be there before the snapshot is taken.
    bench.run(who, "fill --count 1").await?;
    bench.run(who, "drain --count 1").await?;
    let holder = pg_task_bench::bare::connect(&bench.server.url(who.database())).await?;
    holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class").await?;
    let marks = through(bench, who, count).await?;
    holder.batch_execute("COMMIT").await?;
    lines.push((who.name().to_owned(), progress(&marks, count)));
    let (first, last) = tenths(&marks, count)?;
    Ok(last / first)
}

/// Enqueues and drains, and returns the moments at which each hundredth was done.
async fn through(bench: &mut Bench, who: Who, count: u64) -> anyhow::Result<Vec<f64>> {
    bench.run(who, &format!("fill --count {count}")).await?;
    bench.sql(&["CHECKPOINT"]).await?;
    Ok(bench.run(who, &format!("drain --count {count} --marks {MARKS}")).await?.marks)
}

/// Tasks per second in the first and in the last tenth.
fn tenths(marks: &[f64], count: u64) -> anyhow::Result<(f64, f64)> {
    anyhow::ensure!(marks.len() >= MARKS, "{} of {MARKS} moments were noted", marks.len());
    let tenth = count as f64 / MARKS as f64 * 10.0;
    Ok((tenth / (marks[10] - marks[0]), tenth / (marks[MARKS - 1] - marks[MARKS - 11])))
}

fn progress(marks: &[f64], count: u64) -> Vec<(f64, f64)> {
    let part = count as f64 / MARKS as f64 * 5.0;
    marks.windows(6).step_by(5).enumerate().map(|(at, m)| (at as f64 * 5.0, part / (m[5] - m[0]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_leave_out_the_start() {
        // The start takes a second, each hundredth 10 ms, those of the last tenth 20 ms.
        let mut at = 1.0;
        let marks: Vec<f64> = (0..MARKS)
            .map(|mark| {
                let now = at;
                at += if mark >= MARKS - 11 { 0.02 } else { 0.01 };
                now
            })
            .collect();
        let (first, last) = tenths(&marks, MARKS as u64 * 100).expect("all moments are there");
        assert!((first - 10_000.0).abs() < 1.0, "{first}");
        assert!((last - 5_000.0).abs() < 1.0, "{last}");
        assert!(tenths(&marks[1..], 100).is_err());
    }
}
