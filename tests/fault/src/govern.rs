//! Operators who pause schedules and queues and change their settings, while everything else goes on. What was begun is brought to its end,
//! whatever becomes of the server meanwhile.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::ledger::Entry;
use crate::ledger::Rest;
use crate::queues;
use crate::queues::HEIR_LIMITS;
use crate::queues::METERED;
use crate::queues::TENANTS;
use crate::scene::PATIENCE;
use crate::scene::Patience;
use crate::scene::Scene;
use crate::ticks::RESTED;
use crate::ticks::SCHEDULES;
use crate::ticks::Schedule;

/// What an operator looks after.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Duty {
    /// Pauses of queues.
    Pauses,
    /// Pauses of a schedule.
    Rests,
    /// Settings of queues, and what is to be seen of progress.
    Settings,
}

impl Duty {
    /// Every duty.
    pub const ALL: [Self; 3] = [Self::Pauses, Self::Rests, Self::Settings];
}

/// Goes on until the scene says that the run is over.
pub async fn govern(scene: Arc<Scene>, seed: u64, duty: Duty) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x90e4_11a7 ^ duty as u64);
    loop {
        tokio::time::sleep(Duration::from_millis(rng.u64(50..1_000))).await;
        let _pass = scene.gate.read().await;
        let done = match duty {
            Duty::Pauses => pause(&scene, &mut rng).await,
            Duty::Rests => rest(&scene, &mut rng).await,
            Duty::Settings => match rng.u32(0..4) {
                0 => set_again(&scene, &mut rng).await,
                1 => rule(&scene, &mut rng).await,
                _ => watch(&scene).await,
            },
        };
        if let Err(error) = done {
            // What it has left behind would be taken for something else.
            let _ = scene.ledger.note(0, Entry::Wrong(format!("an operator gave up: {error:#}")));
        }
    }
}

/// Pauses a schedule for some seconds. Which of its ticks lie in that is told by the server's clock.
async fn rest(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let dealt =
        format!("SELECT extract(epoch FROM last_at)::bigint FROM pg_task.schedule WHERE name = '{RESTED}'");
    // One that has not ticked yet has none.
    let dealt = answer(scene, &dealt).await?.parse().unwrap_or(0);
    scene.insist(&format!("SELECT pg_task.pause_schedule('{RESTED}')")).await?;
    let since = answer(scene, "SELECT ceil(extract(epoch FROM clock_timestamp()))::bigint").await?.parse()?;
    tokio::time::sleep(Duration::from_millis(rng.u64(0..4_000))).await;
    let until =
        answer(scene, "SELECT floor(extract(epoch FROM clock_timestamp()))::bigint").await?.parse()?;
    scene.insist(&format!("SELECT pg_task.resume_schedule('{RESTED}')")).await?;
    let over = answer(scene, "SELECT ceil(extract(epoch FROM clock_timestamp()))::bigint").await?.parse()?;
    let rest = Rest { schedule: RESTED.to_owned(), dealt, since, until, over };
    Ok(scene.ledger.note(0, Entry::Rested(rest))?)
}

/// Pauses a queue for a moment. That ends before a check, which waits for all that runs.
async fn pause(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let queue = ["*", METERED, TENANTS][rng.usize(0..3)];
    let longest = if queue == "*" { 1_200 } else { 4_000 };
    scene.insist(&format!("SELECT pg_task.pause_queue('{queue}')")).await?;
    scene.ledger.note(0, Entry::Paused(queue.to_owned()))?;
    tokio::time::sleep(Duration::from_millis(rng.u64(0..longest))).await;
    scene.ledger.note(0, Entry::Unpausing(queue.to_owned()))?;
    scene.insist(&format!("SELECT pg_task.resume_queue('{queue}')")).await
}

/// Says once more what holds already: nothing changes by that.
async fn set_again(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let again: Vec<String> = SCHEDULES.iter().map(Schedule::set).chain(queues::lasting()).collect();
    scene.insist(&rng.choice(again).context("there are settings")?).await
}

/// Gives queues other settings for their tasks.
async fn rule(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let limit = HEIR_LIMITS[rng.usize(0..HEIR_LIMITS.len())];
    scene.ledger.note(0, Entry::Ruling)?;
    scene.insist(&queues::for_heirs(limit, rng.u32(50..200))).await?;
    Ok(scene.ledger.note(0, Entry::Ruled(limit))?)
}

/// Looks at what running steps say of how far they are: each says it of itself, and of this attempt.
async fn watch(scene: &Scene) -> anyhow::Result<()> {
    let say = "SELECT count(*) || ' ' || coalesce(string_agg(concat(id, ' ', token, ': ', progress_text), ', ')
             FILTER (WHERE split_part(progress_text, ' ', 1) <> id::text OR split_part(progress_text, ' ', 2) <> token::text), '')
         FROM pg_task.running WHERE progress_text IS NOT NULL";
    // The server may be down: then nothing is to be seen.
    let Ok(said) = scene.ask(say).await else { return Ok(()) };
    let Some((count, wrong)) = said.split_once(' ') else { return Ok(()) };
    if !wrong.is_empty() {
        scene.ledger.note(0, Entry::Wrong(format!("steps say how far others are: {wrong}")))?;
    }
    Ok(scene.ledger.note(0, Entry::Watched(count.parse()?))?)
}

/// The answer of a server that may have to come back first.
async fn answer(scene: &Scene, sql: &str) -> anyhow::Result<String> {
    let mut patience = Patience::new(PATIENCE);
    loop {
        match scene.ask(sql).await {
            Ok(answer) => return Ok(answer),
            Err(error) if !patience.lasts() => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
