//! Faults of other databases: the extension and the database dropped and made again under a worker, more databases than places.

use std::time::Duration;

use super::Outcome;
use crate::ledger;
use crate::ledger::Entry;
use crate::load;
use crate::load::Task;
use crate::plan::Kind;
use crate::plan::Plan;
use crate::scene::PATIENCE;
use crate::scene::Patience;
use crate::scene::Scene;

const SIDE: &str = "side";

/// A database of its own with a worker: DROP and CREATE EXTENSION, then DROP DATABASE.
pub(super) async fn extension(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    // Whatever the side's sessions complain of while their tables come and go.
    scene.excuse("] side ");
    // Its scheduler has no database in its lines.
    scene.excuse("a tick failed and will be tried again: relation \"pg_task.");
    scene.insist(&format!("DROP DATABASE IF EXISTS {SIDE} WITH (FORCE)")).await?;
    scene.insist(&format!("CREATE DATABASE {SIDE}")).await?;
    let path = scene.folder.join("side-ledger");
    let _ = std::fs::remove_file(&path);
    // A worker that finds no extension at its start says so and ends; one that has worked before lives through it.
    scene.insist_in(SIDE, "CREATE EXTENSION IF NOT EXISTS pg_task").await?;
    let _worker = scene.crew.lock().await.stray(&scene.cluster().url(SIDE), &path)?;
    let known =
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_task.workers) THEN RAISE 'not yet'; END IF; END $$";
    scene.insist_in(SIDE, known).await?;
    let tasks = |rng: &mut fastrand::Rng| -> Vec<_> {
        let plans = (0..50).map(|_| Plan::choose(rng)).collect::<Vec<_>>();
        // No queue says anything here, and heirs would wait for their time limit.
        let plans = plans.into_iter().filter(|plan| plan.kind != Kind::Heir);
        plans.map(|plan| Task::new(rng.u64(1..1 << 40), plan)).collect()
    };
    let mut count = 0;
    for _ in 0..rng.u32(1..4) {
        scene.insist_in(SIDE, "CREATE EXTENSION IF NOT EXISTS pg_task; CREATE TABLE IF NOT EXISTS effect (key bigint PRIMARY KEY, token bigint NOT NULL); \
             CREATE TABLE IF NOT EXISTS exact (key bigint NOT NULL, seq bigint NOT NULL, token bigint NOT NULL); \
             CREATE TABLE IF NOT EXISTS twin (key bigint NOT NULL, id uuid NOT NULL)").await?;
        let _ = scene.run_in(SIDE, &load::inserts(&tasks(rng))).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..800))).await;
        scene.insist_in(SIDE, "DROP EXTENSION IF EXISTS pg_task CASCADE").await?;
        count += 1;
    }
    // Made again, it works under the worker that has lived through it.
    scene.insist_in(SIDE, "CREATE EXTENSION IF NOT EXISTS pg_task").await?;
    let plan = Plan::new(Kind::Chain, 3);
    let last: Vec<_> = (1..21).map(|key| Task::new(key, plan)).collect();
    scene.insist_in(SIDE, &load::inserts(&last)).await?;
    let mut patience = Patience::new(PATIENCE);
    loop {
        let lines = ledger::read(&path)?;
        let done =
            |key: u64| lines.iter().any(|line| line.key == key && matches!(line.entry, Entry::Ended(3, ..)));
        if (1..21).all(done) {
            break;
        }
        anyhow::ensure!(patience.lasts(), "tasks of a re-made extension are not run");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scene.insist(&format!("DROP DATABASE {SIDE} WITH (FORCE)")).await?;
    Ok(Outcome::Done(count + 1))
}

/// More databases with the extension than there are places for schedulers.
pub(super) async fn too_many(scene: &Scene, _rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    scene.excuse("no place for a scheduler in database");
    scene.excuse("] crowd_");
    for number in 0..6 {
        scene.insist(&format!("DROP DATABASE IF EXISTS crowd_{number} WITH (FORCE)")).await?;
        scene.insist(&format!("CREATE DATABASE crowd_{number}")).await?;
        scene.insist_in(&format!("crowd_{number}"), "CREATE EXTENSION IF NOT EXISTS pg_task").await?;
        let step = "INSERT INTO pg_task.task (step) VALUES ('{\"A\": {\"B\": null}}')";
        scene.insist_in(&format!("crowd_{number}"), step).await?;
    }
    for number in 0..6 {
        scene.insist(&format!("DROP DATABASE IF EXISTS crowd_{number} WITH (FORCE)")).await?;
    }
    scene.until_up().await?;
    Ok(Outcome::Done(1))
}
