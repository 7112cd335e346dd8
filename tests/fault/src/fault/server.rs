//! Faults of the whole server.

use std::time::Duration;

use anyhow::Context;
use pg_task_cluster::Stop;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use super::Outcome;
use crate::scene::Scene;

pub(super) async fn immediate(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    restart(scene, rng, Stop::Immediate).await
}

pub(super) async fn fast(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    restart(scene, rng, Stop::Fast).await
}

async fn restart(scene: &Scene, rng: &mut fastrand::Rng, how: Stop) -> anyhow::Result<Outcome> {
    tokio::task::block_in_place(|| scene.cluster().stop(how))?;
    away(rng).await;
    scene.start_server().await?;
    scene.until_up().await?;
    Ok(Outcome::Done(1))
}

pub(super) async fn kill_postmaster(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let pid = scene.cluster().postmaster_pid().and_then(|pid| Pid::from_raw(pid as i32));
    kill_process(pid.context("the server does not run")?, Signal::KILL)?;
    // Its end takes a moment, and until then it looks like a server that runs.
    while scene.cluster().postmaster_pid().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    away(rng).await;
    scene.start_server().await?;
    scene.until_up().await?;
    Ok(Outcome::Done(1))
}

/// How long the server stays away: it is part of the fault.
async fn away(rng: &mut fastrand::Rng) {
    tokio::time::sleep(Duration::from_millis(rng.u64(0..1_500))).await;
}
