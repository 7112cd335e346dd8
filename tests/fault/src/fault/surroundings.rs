//! Faults of what surrounds a worker: its pooler and its clock.

use std::time::Duration;

use super::Outcome;
use crate::scene::Scene;

/// PgBouncer is killed and started again.
pub(super) async fn restart_bouncer(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let mut bouncer = scene.bouncer.lock().await;
    let Some(bouncer) = &mut *bouncer else {
        return Ok(Outcome::Skipped("PgBouncer is not installed".to_owned()));
    };
    let times = rng.u32(1..4);
    for _ in 0..times {
        bouncer.restart().await?;
        tokio::time::sleep(Duration::from_millis(rng.u64(100..1_000))).await;
    }
    Ok(Outcome::Done(times))
}

/// A worker's clock jumps: hours and days, forward and back.
pub(super) async fn jump(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let Some(clock) = &scene.clock else {
        return Ok(Outcome::Skipped("libfaketime is not installed".to_owned()));
    };
    let times = rng.u32(1..6);
    for _ in 0..times {
        let sign = if rng.bool() { '+' } else { '-' };
        std::fs::write(clock, format!("{sign}{}s\n", rng.u32(1..200_000)))?;
        tokio::time::sleep(Duration::from_millis(rng.u64(100..1_000))).await;
    }
    std::fs::write(clock, "+0s\n")?;
    Ok(Outcome::Done(times))
}
