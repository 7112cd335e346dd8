//! Faults of the table: rewritten, moved and re-indexed under the load.

use super::Outcome;
use crate::scene::Scene;

pub(super) async fn vacuum_full(scene: &Scene, _rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    once(scene, "VACUUM FULL pg_task.task").await
}

pub(super) async fn cluster(scene: &Scene, _rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    once(scene, "CLUSTER pg_task.task USING task_pkey").await
}

pub(super) async fn reindex(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let how = if rng.bool() { "CONCURRENTLY " } else { "" };
    let outcome = once(scene, &format!("REINDEX TABLE {how}pg_task.task")).await?;
    if outcome == Outcome::Done(0) {
        scene.insist(DROP_WHAT_IS_LEFT).await?;
    }
    Ok(outcome)
}

/// REINDEX CONCURRENTLY that is interrupted leaves indexes which nobody uses, perhaps in a tablespace that is to be dropped.
const DROP_WHAT_IS_LEFT: &str = r"DO $$
    DECLARE
        left_over regclass;
    BEGIN
        FOR left_over IN
            SELECT indexrelid FROM pg_index WHERE indrelid = 'pg_task.task'::regclass AND NOT indisvalid
        LOOP
            EXECUTE format('DROP INDEX %s', left_over);
        END LOOP;
    END $$";

/// A terminated session or a deadlock is no failure of ours: then it was not done.
async fn once(scene: &Scene, sql: &str) -> anyhow::Result<Outcome> {
    Ok(Outcome::Done(u32::from(scene.run(sql).await.is_ok())))
}

pub(super) async fn move_away(scene: &Scene, _rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let folder = scene.server_folder("spare")?;
    scene.insist(&format!("CREATE TABLESPACE spare LOCATION '{}'", folder.display())).await?;
    scene.insist("ALTER TABLE pg_task.task SET TABLESPACE spare").await?;
    scene.insist("ALTER INDEX pg_task.task_due SET TABLESPACE spare").await?;
    scene.insist("ALTER TABLE pg_task.task SET TABLESPACE pg_default").await?;
    scene.insist("ALTER INDEX pg_task.task_due SET TABLESPACE pg_default").await?;
    scene.insist("DROP TABLESPACE spare").await?;
    Ok(Outcome::Done(1))
}
