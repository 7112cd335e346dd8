//! The measurements, the same for every system.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use clap::Parser;
use hdrhistogram::Histogram;
use tokio::time::sleep;

use crate::Answer;
use crate::Command;
use crate::Fill;
use crate::System;
use crate::answer::latency;
use crate::counters;
use crate::now_us;

/// A system that has not done its work by then has failed.
const PATIENCE: Duration = Duration::from_secs(280);

/// Tasks of the latency command that are not counted: connections, plans and caches are warm after them.
const WARM_UP: u64 = 50;

/// Runs the command of the command line on a system and prints the answer.
///
/// # Errors
/// What went wrong.
pub fn main<S: System>() -> anyhow::Result<()> {
    let command = Command::parse();
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let answer = runtime.block_on(async { run::<S>(url, command).await })?;
    #[expect(clippy::print_stdout, reason = "the answer")]
    {
        println!("{}", serde_json::to_string(&answer)?);
    }
    // What a system leaves running in the background ends with the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(())
}

async fn run<S: System>(url: String, command: Command) -> anyhow::Result<Answer> {
    let system = Arc::new(S::connect(url).await?);
    match command {
        Command::Setup => {
            system.setup().await?;
            Ok(Answer::default())
        }
        Command::Fill { count, steps, payload } => {
            let began = Instant::now();
            system.fill(Fill { count, steps, payload }).await?;
            Ok(Answer { count, seconds: began.elapsed().as_secs_f64(), ..Answer::default() })
        }
        Command::Drain { count, concurrency, marks } => drain(&*system, count, concurrency, marks).await,
        Command::Latency { count, pause_us } => idle_latency(&*system, count, pause_us).await,
        Command::Load { rate, seconds, clients, concurrency } => {
            load(&system, rate, seconds, clients, concurrency).await
        }
        Command::Produce { clients, seconds } => produce(&system, clients, seconds).await,
        Command::Serve { concurrency } => serve(&*system, concurrency).await,
    }
}

async fn drain<S: System>(system: &S, count: u64, concurrency: usize, marks: u64) -> anyhow::Result<Answer> {
    counters::expect(count, marks);
    let began_us = now_us();
    let began = Instant::now();
    let worker = system.start(concurrency).await?;
    if tokio::time::timeout(PATIENCE, counters::reached()).await.is_err() {
        bail!("{} of {count} steps ran within {} s", counters::count(), PATIENCE.as_secs());
    }
    until_done(system).await?;
    let seconds = began.elapsed().as_secs_f64();
    system.stop(worker).await?;
    let marks = counters::marks().iter().map(|mark| (mark - began_us) as f64 / 1e6).collect();
    let latency = counters::take_latency().map(|histogram| latency(&histogram));
    Ok(Answer { count: counters::count(), seconds, marks, latency, call: None })
}

async fn until_done<S: System>(system: &S) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !system.is_done().await? {
        if Instant::now() > deadline {
            bail!("the steps have run, but the system is not done within {} s", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn idle_latency<S: System>(system: &S, count: u64, pause_us: u64) -> anyhow::Result<Answer> {
    let worker = system.start(std::thread::available_parallelism()?.get()).await?;
    let mut producer = system.producer().await?;
    let mut calls = counters::histogram();
    let began = Instant::now();
    for task in 0..WARM_UP + count {
        if task == WARM_UP {
            let _ = counters::take_latency();
            calls.reset();
        }
        counters::expect_one();
        let at = now_us();
        let call = Instant::now();
        system.enqueue(&mut producer, at).await?;
        calls.saturating_record(u64::try_from(call.elapsed().as_micros())?);
        if tokio::time::timeout(Duration::from_secs(60), counters::reached()).await.is_err() {
            bail!("task {task} has not started within 60 s");
        }
        sleep(Duration::from_micros(pause_us)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    system.stop(worker).await?;
    let measured = counters::take_latency().context("no step has run")?;
    Ok(Answer {
        count,
        seconds,
        marks: Vec::new(),
        latency: Some(latency(&measured)),
        call: Some(latency(&calls)),
    })
}

async fn load<S: System>(
    system: &Arc<S>,
    rate: u64,
    seconds: u64,
    clients: u64,
    concurrency: usize,
) -> anyhow::Result<Answer> {
    let worker = system.start(concurrency).await?;
    let total = rate * seconds;
    let gap = Duration::from_secs_f64(clients as f64 / rate as f64);
    let began = Instant::now() + Duration::from_millis(200);
    let began_us = now_us() + 200_000;
    let mut producers = Vec::new();
    for client in 0..clients {
        let system = Arc::clone(system);
        let tasks = total / clients + u64::from(client < total % clients);
        producers.push(tokio::spawn(async move {
            let mut producer = system.producer().await?;
            let mut calls = counters::histogram();
            // Planned moments, not those of the last answer: a system that falls behind does not get away with it.
            let offset = gap.mul_f64(client as f64 / clients as f64);
            for task in 0..tasks {
                let planned = offset + gap.mul_f64(task as f64);
                tokio::time::sleep_until((began + planned).into()).await;
                let call = Instant::now();
                let at = began_us + i64::try_from(planned.as_micros())?;
                system.enqueue(&mut producer, at).await?;
                calls.saturating_record(u64::try_from(call.elapsed().as_micros())?);
            }
            anyhow::Ok(calls)
        }));
    }
    let mut calls = counters::histogram();
    for producer in producers {
        calls.add(producer.await??)?;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while counters::count() < total {
        if Instant::now() > deadline {
            bail!("{} of {total} tasks have run a minute after the last was enqueued", counters::count());
        }
        sleep(Duration::from_millis(5)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    system.stop(worker).await?;
    let measured = counters::take_latency().context("no step has run")?;
    Ok(Answer {
        count: total,
        seconds,
        marks: Vec::new(),
        latency: Some(latency(&measured)),
        call: Some(latency(&calls)),
    })
}

async fn produce<S: System>(system: &Arc<S>, clients: u64, seconds: u64) -> anyhow::Result<Answer> {
    let mut opened = Vec::new();
    for _ in 0..clients {
        opened.push(system.producer().await?);
    }
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let producers: Vec<_> = opened
        .into_iter()
        .map(|mut producer| {
            let system = Arc::clone(system);
            tokio::spawn(async move {
                let mut calls: Histogram<u64> = counters::histogram();
                while Instant::now() < end {
                    let call = Instant::now();
                    system.enqueue(&mut producer, now_us()).await?;
                    calls.saturating_record(u64::try_from(call.elapsed().as_micros())?);
                }
                anyhow::Ok(calls)
            })
        })
        .collect();
    let mut calls = counters::histogram();
    for producer in producers {
        calls.add(producer.await??)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Answer { count: calls.len(), seconds, marks: Vec::new(), latency: None, call: Some(latency(&calls)) })
}

async fn serve<S: System>(system: &S, concurrency: usize) -> anyhow::Result<Answer> {
    let began = Instant::now();
    let worker = system.start(concurrency).await?;
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    system.stop(worker).await?;
    let latency = counters::take_latency().map(|histogram| latency(&histogram));
    let seconds = began.elapsed().as_secs_f64();
    Ok(Answer { count: counters::count(), seconds, marks: Vec::new(), latency, call: None })
}
