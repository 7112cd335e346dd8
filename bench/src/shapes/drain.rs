//! Backlogs: no-ops, chains, and the WAL that they cost.

use crate::bench::Bench;
use crate::bench::Rounds;
use crate::bench::rate;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Plot;
use crate::figure::Series;
use crate::programs::AWA;
use crate::programs::GRAPHILE;
use crate::programs::PG_TASK_1;
use crate::programs::PG_TASK_1_TUNED;
use crate::programs::RIVER;
use crate::programs::Who;
use crate::server;

/// P1.
pub async fn drain(bench: &mut Bench) -> anyhow::Result<()> {
    let counts = |who: Who, bench: &Bench| match who {
        Who::Ours | Who::Bare => bench.scale(1_000_000, 200_000),
        PG_TASK_1 | PG_TASK_1_TUNED => bench.scale(2_000, 500),
        AWA => bench.scale(50_000, 10_000),
        _ => bench.scale(300_000, 50_000),
    };
    let mut all: Vec<Rounds> = [Who::Ours, Who::Bare].map(Rounds::of).into();
    all.extend(bench.peers(&[GRAPHILE, PG_TASK_1, PG_TASK_1_TUNED, RIVER, AWA]).into_iter().map(Rounds::of));
    let quick = bench.quick;
    for round in 0..bench.rounds {
        for rounds in all.iter_mut().filter(|rounds| rounds.takes_part(round, quick)) {
            let count = counts(rounds.who, bench);
            let answer = bench.drain(rounds.who, count, "", 1).await;
            rounds.take(answer.map(rate))?;
        }
    }
    let ours = all[0].series.clone();
    bench.plots.push(Plot {
        name: "drain",
        title: "Drain of no-op tasks, one worker process".to_owned(),
        x: "",
        y: "tasks/s",
        log: true,
        lines: Vec::new(),
        bars: all.iter().filter_map(|r| Some((r.who.name().to_owned(), r.series.median()?))).collect(),
    });
    for rounds in &all[1..] {
        let figure = Figure::new("P1", "drain of no-ops", "tasks/s", ours.clone())
            .beside(rounds.who.name(), rounds.series.clone())
            .note(rounds.trouble.clone());
        bench.add(match rounds.who {
            Who::Bare => figure.bar(Bar::RatioAtLeast(0.8)),
            GRAPHILE => figure.bar(Bar::RatioAtLeast(5.0)),
            PG_TASK_1 => figure.bar(Bar::RatioAtLeast(800.0)),
            _ => figure,
        });
    }
    Ok(())
}

/// P2.
pub async fn chains(bench: &mut Bench) -> anyhow::Result<()> {
    const STEPS: u64 = 10;
    let counts = |who: Who, bench: &Bench| match who {
        Who::Ours => bench.scale(50_000, 10_000),
        PG_TASK_1 | PG_TASK_1_TUNED => bench.scale(200, 50),
        _ => bench.scale(2_000, 500),
    };
    let mut all = vec![Rounds::of(Who::Ours)];
    all.extend(bench.peers(&[PG_TASK_1, PG_TASK_1_TUNED, GRAPHILE, RIVER, AWA]).into_iter().map(Rounds::of));
    let quick = bench.quick;
    for round in 0..bench.rounds {
        for rounds in all.iter_mut().filter(|rounds| rounds.takes_part(round, quick)) {
            let count = counts(rounds.who, bench);
            let answer = bench.drain(rounds.who, count, &format!("--steps {STEPS}"), STEPS).await;
            rounds.take(answer.map(rate))?;
        }
    }
    let ours = all[0].series.clone();
    if all.len() == 1 {
        bench.add(Figure::new("P2", "ten-step chains", "steps/s", ours));
        return Ok(());
    }
    for rounds in &all[1..] {
        let figure = Figure::new("P2", "ten-step chains", "steps/s", ours.clone())
            .beside(rounds.who.name(), rounds.series.clone())
            .note(rounds.trouble.clone());
        bench.add(if rounds.who == PG_TASK_1 { figure.bar(Bar::RatioAtLeast(300.0)) } else { figure });
    }
    Ok(())
}

/// P9.
pub async fn wal(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.scale(300_000, 100_000);
    let (mut ours, mut bare) = (Series::default(), Series::default());
    let client = bench.connect().await?;
    for _ in 0..bench.rounds {
        for (who, table, series) in [(Who::Ours, "pg_task.task", &mut ours), (Who::Bare, "bare", &mut bare)] {
            // New pages and no checkpoint on the way: no page is written whole to the WAL, for either.
            client.batch_execute(&format!("TRUNCATE {table}; CHECKPOINT")).await?;
            let before = server::counts(&client).await?;
            let insert = format!(
                r#"INSERT INTO {table} (step) SELECT '{{"Load":{{"Nothing":null}}}}' FROM generate_series(1, {count})"#
            );
            client.batch_execute(&insert).await?;
            bench.run(who, &format!("drain --count {count}")).await?;
            let after = server::counts(&client).await?;
            series.0.push((after.wal_bytes - before.wal_bytes) as f64 / count as f64);
        }
    }
    bench.add(
        Figure::new("P9", "WAL of a no-op, enqueue to gone", "B/task", ours)
            .beside("bare INSERT + DELETE", bare)
            .bar(Bar::RatioAtMost(1.3)),
    );
    Ok(())
}
