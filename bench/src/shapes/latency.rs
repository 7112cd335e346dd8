//! From the call of enqueue to the start of the step.

use crate::bench::Bench;
use crate::bench::Rounds;
use crate::bench::curve;
use crate::bench::delays;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::Plot;
use crate::figure::Series;
use crate::hops;
use crate::programs::AWA;
use crate::programs::GRAPHILE;
use crate::programs::PG_TASK_1;
use crate::programs::RIVER;
use crate::programs::Who;

/// P3: one at a time, everything idle in between.
pub async fn idle(bench: &mut Bench) -> anyhow::Result<()> {
    let mut p50: Vec<Rounds> = [Who::Ours, Who::Bare].map(Rounds::of).into();
    p50.extend(bench.peers(&[GRAPHILE, PG_TASK_1, RIVER, AWA]).into_iter().map(Rounds::of));
    let mut p99: Vec<Series> = vec![Series::default(); p50.len()];
    let mut lines = Vec::new();
    let quick = bench.quick;
    for round in 0..bench.rounds {
        for (rounds, p99) in
            p50.iter_mut().zip(&mut p99).filter(|(rounds, _)| rounds.takes_part(round, quick))
        {
            // River waits for its next poll between tasks that come slower than its notifications are suppressed.
            let count = if matches!(rounds.who, Who::Peer(_)) { 100 } else { bench.scale(1_000, 300) };
            let answer = bench.run(rounds.who, &format!("latency --count {count}")).await;
            let latency = answer.and_then(delays);
            if let Ok(latency) = &latency {
                p99.0.push(latency.p99 as f64);
                if round == 0 {
                    lines.push((rounds.who.name().to_owned(), curve(latency)));
                }
            }
            rounds.take(latency.map(|latency| latency.p50 as f64))?;
        }
    }
    bench.plots.push(Plot {
        name: "latency",
        title: "Idle: call of enqueue to start of step (bare client: INSERT committed)".to_owned(),
        x: "percentile",
        y: "µs",
        log: true,
        lines,
        bars: Vec::new(),
    });
    let (ours, bare) = (p50[0].series.clone(), p50[1].series.clone());
    bench.add(
        Figure::new("P3", "idle: enqueue called → step starts, p50", "µs", ours.clone())
            .beside("p50 of a bare durable INSERT", bare.clone())
            .bar(Bar::RatioAtMost(2.0)),
    );
    bench.add(
        Figure::new("P3", "idle: enqueue called → step starts, p99", "µs", p99[0].clone())
            .beside("p50 of a bare durable INSERT", bare.clone())
            .bar(Bar::RatioAtMost(5.0))
            // A disk that stalls now and then shows in both.
            .note(p99[1].median().map(|p99| format!("its p99: {p99:.0} µs")).unwrap_or_default()),
    );
    hops(bench, &bare).await?;
    for (rounds, p99) in p50.iter().zip(p99).skip(2) {
        bench.add(
            Figure::new("P3", "idle: enqueue called → step starts, p50", "µs", ours.clone())
                .beside(rounds.who.name(), rounds.series.clone())
                .note(match p99.median() {
                    Some(p99) => format!("its p99: {p99:.0} µs"),
                    None => rounds.trouble.clone(),
                }),
        );
    }
    Ok(())
}

/// Where the time goes.
async fn hops(bench: &mut Bench, bare: &Series) -> anyhow::Result<()> {
    let hops = hops::measure(&bench.server.url("pg_task"), 300).await?;
    let median = |values: Vec<f64>| Series(Series(values).median().into_iter().collect());
    for (what, values) in [
        ("hop: enqueue called → committed, p50", hops.committed),
        ("hop: enqueue called → an idle worker is notified, p50", hops.notified),
        ("hop: the exchange that fetches the task, p50", hops.fetched),
    ] {
        bench.add(
            Figure::new("P3", what, "µs", median(values))
                .beside("p50 of a bare durable INSERT", bare.clone()),
        );
    }
    Ok(())
}

/// At 30 % of the rate that 16 producers reach beside a worker.
pub async fn load(bench: &mut Bench) -> anyhow::Result<()> {
    let seconds = bench.scale(8, 3);
    let top = bench.run(Who::Bare, "produce --seconds 3").await?;
    let rate = (top.count as f64 / top.seconds * 0.3) as u64;
    bench.sql(&["TRUNCATE bare"]).await?;
    let arguments = format!("load --rate {rate} --seconds {seconds}");
    let mut all: Vec<Rounds> = [Who::Ours, Who::Bare].map(Rounds::of).into();
    // Those that do not keep up take long to get through what has gathered: not in a quick run.
    let peers = if bench.quick { Vec::new() } else { bench.peers(&[GRAPHILE, RIVER]) };
    all.extend(peers.into_iter().map(Rounds::of));
    let mut p99: Vec<Series> = vec![Series::default(); all.len()];
    let mut lines = Vec::new();
    let quick = bench.quick;
    for round in 0..bench.side_rounds() {
        for (rounds, p99) in
            all.iter_mut().zip(&mut p99).filter(|(rounds, _)| rounds.takes_part(round, quick))
        {
            let latency = bench.run(rounds.who, &arguments).await.and_then(delays);
            if let Ok(latency) = &latency {
                p99.0.push(latency.p99 as f64);
                if round == 0 {
                    lines.push((rounds.who.name().to_owned(), curve(latency)));
                }
            }
            rounds.take(latency.map(|latency| latency.p50 as f64))?;
        }
    }
    bench.sql(&["TRUNCATE bare"]).await?;
    bench.plots.push(Plot {
        name: "load",
        title: format!("{rate} tasks/s from 16 producers: planned moment to start of step"),
        x: "percentile",
        y: "µs",
        log: true,
        lines,
        bars: Vec::new(),
    });
    for (rounds, reference_p99) in all.iter().zip(&p99).skip(1) {
        let at = format!("at {rate} tasks/s (30 % of 16 bare producers)");
        bench.add(
            Figure::new("load", format!("{at}: p50"), "µs", all[0].series.clone())
                .beside(rounds.who.name(), rounds.series.clone())
                .note(rounds.trouble.clone()),
        );
        bench.add(
            Figure::new("load", format!("{at}: p99"), "µs", p99[0].clone())
                .beside(rounds.who.name(), reference_p99.clone()),
        );
    }
    Ok(())
}
