//! Faults of replication: a standby is promoted under the load; rows arrive by logical replication.

use std::time::Duration;

use anyhow::Context;
use pg_task_cluster::Stop;

use super::Outcome;
use crate::load;
use crate::scene::PATIENCE;
use crate::scene::Scene;

/// A synchronous standby takes the place of its primary, which ends as if its machine did.
pub(super) async fn promote(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    scene.excuse("terminating walreceiver");
    scene.excuse("could not connect to the primary server");
    scene.excuse("could not receive data from WAL stream");
    let servers = scene.logs.lock().expect("no holder of the lock panics").len();
    let name = format!("{}-{servers}", scene.name());
    let primary = scene.cluster_again()?;
    let standby = tokio::task::block_in_place(|| primary.standby(&name))?;
    // From here on what is acknowledged is there as well.
    scene.insist("ALTER SYSTEM SET synchronous_standby_names = '*'").await?;
    scene.insist("SELECT pg_reload_conf()").await?;
    scene.until("SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'", PATIENCE).await?;
    tokio::time::sleep(Duration::from_millis(rng.u64(300..2_000))).await;
    tokio::task::block_in_place(|| {
        scene.cluster().stop(Stop::Immediate)?;
        standby.promote()
    })?;
    let old = scene.replace_cluster(standby);
    tokio::task::block_in_place(|| old.remove())?;
    scene.until_up().await.context("after the promotion")?;
    Ok(Outcome::Done(1))
}

const SLOT: &str = "fault_source";

/// Rows are written in another database and arrive by logical replication; its worker is ended meanwhile.
pub(super) async fn logical(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    scene.excuse("terminating logical replication worker");
    scene.excuse("logical replication apply worker");
    scene.excuse("replication slot \"fault_source\" is active");
    scene.excuse("could not receive data from WAL stream");
    scene.insist("DROP DATABASE IF EXISTS source WITH (FORCE)").await?;
    scene.insist("CREATE DATABASE source").await?;
    scene.insist_in("source", "CREATE EXTENSION IF NOT EXISTS pg_task").await?;
    scene
        .insist_in("source", "CREATE PUBLICATION fault FOR TABLE pg_task.task WITH (publish = 'insert')")
        .await?;
    scene
        .insist_in("source", &format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"))
        .await?;
    let url = scene.cluster().url("source");
    scene
        .insist(&format!(
            "CREATE SUBSCRIPTION fault CONNECTION '{url}' PUBLICATION fault \
             WITH (slot_name = '{SLOT}', create_slot = false, copy_data = false)"
        ))
        .await?;
    let mut ended = 0;
    for _ in 0..rng.u32(5..20) {
        // Tied to none: what is committed there is here later, and its place in an order cannot be told.
        let tasks = load::intend_untied(scene, rng, 5)?;
        scene.run_in("source", &format!("BEGIN; {} COMMIT", load::inserts(&tasks))).await?;
        load::committed(scene, &tasks)?;
        if rng.u32(0..4) == 0 {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication worker'";
            ended += scene.ask(end).await.ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..200))).await;
    }
    let written = scene.ask("SELECT pg_current_wal_lsn()").await?;
    let arrived = format!(
        "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
    );
    scene.until(&arrived, PATIENCE).await?;
    scene.insist("ALTER SUBSCRIPTION fault DISABLE").await?;
    scene.insist("ALTER SUBSCRIPTION fault SET (slot_name = NONE)").await?;
    scene.insist("DROP SUBSCRIPTION fault").await?;
    scene
        .until(&format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'"), PATIENCE)
        .await?;
    scene.insist(&format!("SELECT pg_drop_replication_slot('{SLOT}')")).await?;
    scene.insist("DROP DATABASE source WITH (FORCE)").await?;
    Ok(Outcome::Done(1 + ended))
}
