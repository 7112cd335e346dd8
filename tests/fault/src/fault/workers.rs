//! Faults of the workers and of their way to the server.

use std::time::Duration;

use super::Outcome;
use crate::proxy::Mode;
use crate::scene::LEASE_MS;
use crate::scene::Scene;

/// Some of the workers by chance: each with one chance in two, at least one.
async fn chosen(scene: &Scene, rng: &mut fastrand::Rng) -> Vec<usize> {
    let count = scene.crew.lock().await.members.len();
    let mut chosen: Vec<usize> = (0..count).filter(|_| rng.bool()).collect();
    if chosen.is_empty() && count > 0 {
        chosen.push(rng.usize(0..count));
    }
    chosen
}

pub(super) async fn kill(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let chosen = chosen(scene, rng).await;
    for &index in &chosen {
        scene.crew.lock().await.members[index].kill();
        tokio::time::sleep(Duration::from_millis(rng.u64(0..300))).await;
    }
    scene.crew.lock().await.revive()?;
    Ok(Outcome::Done(chosen.len() as u32))
}

pub(super) async fn stop(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let chosen = chosen(scene, rng).await;
    for &index in &chosen {
        scene.crew.lock().await.members[index].stop();
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(200..LEASE_MS * 2))).await;
    for &index in &chosen {
        scene.crew.lock().await.members[index].go_on();
    }
    Ok(Outcome::Done(chosen.len() as u32))
}

pub(super) async fn partition(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let chosen = chosen(scene, rng).await;
    for &index in &chosen {
        scene.crew.lock().await.members[index].proxy.set(Mode::Silent);
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(200..LEASE_MS * 2))).await;
    for &index in &chosen {
        scene.crew.lock().await.members[index].proxy.set(Mode::Open);
    }
    // What fell into the partition stays dead for a while, and then its ends hear of it, as they do when a network comes back.
    if rng.bool() {
        tokio::time::sleep(Duration::from_millis(rng.u64(0..3_000))).await;
    }
    for &index in &chosen {
        scene.crew.lock().await.members[index].proxy.cut();
    }
    Ok(Outcome::Done(chosen.len() as u32))
}

pub(super) async fn delay(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let chosen = chosen(scene, rng).await;
    for &index in &chosen {
        let delay = Duration::from_millis(rng.u64(5..400));
        scene.crew.lock().await.members[index].proxy.set(Mode::Slow(delay));
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(500..3_000))).await;
    for &index in &chosen {
        scene.crew.lock().await.members[index].proxy.set(Mode::Open);
    }
    Ok(Outcome::Done(chosen.len() as u32))
}

pub(super) async fn cut(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let times = rng.u32(1..8);
    for _ in 0..times {
        match rng.u32(0..3) {
            0 => scene.producers.cut(),
            _ => {
                for index in chosen(scene, rng).await {
                    scene.crew.lock().await.members[index].proxy.cut();
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(10..400))).await;
    }
    Ok(Outcome::Done(times))
}
