//! Faults of the server's processes: terminated, cancelled, killed.

use std::time::Duration;

use anyhow::Context;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use super::Outcome;
use crate::scene::DATABASE;
use crate::scene::Scene;

/// Sessions of the workers, of their steps too.
const WORKERS: &str = "usename = 'fault_worker'";
const PRODUCERS: &str = "application_name = 'producer'";
const SCHEDULER: &str = "backend_type = 'pg_task scheduler' AND datname = 'load'";
const LAUNCHER: &str = "backend_type = 'pg_task launcher'";

/// Does something to server processes, some of them by chance, several times.
async fn several(
    scene: &Scene,
    rng: &mut fastrand::Rng,
    function: &str,
    which: &str,
) -> anyhow::Result<Outcome> {
    let mut count = 0;
    for _ in 0..rng.u32(1..6) {
        // A server that is just restarting, for another fault's sake, has no such process.
        let done = scene
            .ask(&format!(
                "SELECT count({function}(pid)) FROM pg_stat_activity WHERE {which} AND random() < 0.6"
            ))
            .await;
        count += done.ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(rng.u64(20..500))).await;
    }
    Ok(Outcome::Done(count))
}

pub(super) async fn terminate_workers(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    several(scene, rng, "pg_terminate_backend", WORKERS).await
}

pub(super) async fn terminate_producers(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    several(scene, rng, "pg_terminate_backend", PRODUCERS).await
}

pub(super) async fn terminate_scheduler(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    several(scene, rng, "pg_terminate_backend", SCHEDULER).await
}

pub(super) async fn terminate_launcher(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    several(scene, rng, "pg_terminate_backend", LAUNCHER).await
}

pub(super) async fn cancel_scheduler(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    several(scene, rng, "pg_cancel_backend", SCHEDULER).await
}

pub(super) async fn kill(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let which = if rng.bool() { WORKERS } else { PRODUCERS };
    kill_one(scene, which).await
}

pub(super) async fn kill_scheduler(scene: &Scene, _rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    kill_one(scene, SCHEDULER).await
}

pub(super) async fn kill_launcher(scene: &Scene, _rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    kill_one(scene, LAUNCHER).await
}

/// Kills one process of the server, which then restarts itself.
async fn kill_one(scene: &Scene, which: &str) -> anyhow::Result<Outcome> {
    scene
        .until(&format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE {which}"), crate::scene::PATIENCE)
        .await?;
    let pid = scene
        .ask(&format!("SELECT pid FROM pg_stat_activity WHERE {which} ORDER BY random() LIMIT 1"))
        .await?;
    let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) else { return Ok(Outcome::Done(0)) };
    if kill_process(pid, Signal::KILL).is_err() {
        return Ok(Outcome::Done(0));
    }
    // The postmaster stays and everything else is new: another scheduler in the database of the load.
    scene.until_up().await.with_context(|| format!("after a process of {DATABASE} was killed"))?;
    Ok(Outcome::Done(1))
}
