//! Faults by sessions: long ones, many, deep ones, prepared ones, and all the places for workers taken.

use std::time::Duration;

use pg_task_cluster::Stop;
use sqlx::AssertSqlSafe;
use sqlx::Connection;

use super::Outcome;
use crate::ledger::Entry;
use crate::load;
use crate::scene::DATABASE;
use crate::scene::PATIENCE;
use crate::scene::Scene;

/// A large fault has just taken the server away: nothing was done.
const SERVER_AWAY: Outcome = Outcome::Done(0);

pub(super) async fn long_snapshot(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let Ok(mut connection) = scene.connect(DATABASE).await else { return Ok(SERVER_AWAY) };
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_task.task";
    if sqlx::raw_sql(begin).execute(&mut connection).await.is_err() {
        return Ok(SERVER_AWAY);
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(2_000..8_000))).await;
    // It may have been ended with its server.
    let _ = sqlx::raw_sql("COMMIT").execute(&mut connection).await;
    Ok(Outcome::Done(1))
}

/// Opens connections until the server refuses more, and holds them.
pub(super) async fn many(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    scene.excuse("sorry, too many clients already");
    scene.excuse("remaining connection slots are reserved");
    let mut held = Vec::new();
    while let Ok(connection) = scene.connect_as_producer().await {
        held.push(connection);
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(500..2_500))).await;
    for connection in held {
        let _ = connection.close().await;
    }
    Ok(Outcome::Done(1))
}

/// A transaction with hundreds of savepoints, half of them rolled back.
pub(super) async fn savepoints(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let Ok(mut connection) = scene.connect(DATABASE).await else { return Ok(SERVER_AWAY) };
    let (mut script, mut kept, mut dropped) = ("BEGIN; ".to_owned(), Vec::new(), Vec::new());
    for number in 0..400 {
        let tasks = load::intend(scene, rng, 1)?;
        script += &format!("SAVEPOINT s{number}; {}", load::inserts(&tasks));
        match rng.u32(0..4) {
            0 | 1 => {
                script += &format!("ROLLBACK TO s{number}; ");
                dropped.extend(tasks);
            }
            2 => {
                script += &format!("RELEASE s{number}; ");
                kept.extend(tasks);
            }
            // Stays open: the next ones nest in it.
            _ => kept.extend(tasks),
        }
    }
    let call = sqlx::raw_sql(AssertSqlSafe(format!("{script} COMMIT"))).execute(&mut connection).await;
    for task in &dropped {
        scene.ledger.note(task.key, Entry::RolledBack)?;
    }
    if call.is_ok() {
        load::committed(scene, &kept)?;
    }
    Ok(Outcome::Done(1))
}

/// Prepared transactions that are committed or rolled back after a restart.
pub(super) async fn prepared(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let mut prepared = Vec::new();
    for _ in 0..8 {
        let tasks = load::intend(scene, rng, 3)?;
        let name = format!("fault-{}", tasks[0].key);
        let script = format!("BEGIN; {} PREPARE TRANSACTION '{name}'", load::inserts(&tasks));
        let mut connection = scene.connect(DATABASE).await?;
        if sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut connection).await.is_ok() {
            prepared.push((name, tasks));
        }
    }
    let how = if rng.bool() { Stop::Immediate } else { Stop::Fast };
    tokio::task::block_in_place(|| scene.cluster().stop(how))?;
    scene.start_server().await?;
    scene.until_up().await?;
    for (name, tasks) in &prepared {
        if rng.bool() {
            scene.insist(&format!("COMMIT PREPARED '{name}'")).await?;
            load::committed(scene, tasks)?;
        } else {
            scene.insist(&format!("ROLLBACK PREPARED '{name}'")).await?;
            for task in tasks {
                scene.ledger.note(task.key, Entry::RolledBack)?;
            }
        }
    }
    Ok(Outcome::Done(1))
}

/// Workers of this program's own take every place; one of the others is killed and finds none until they are gone.
pub(super) async fn all_places(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    scene.excuse("places for workers are taken");
    let Ok(mut connection) = scene.connect(DATABASE).await else { return Ok(SERVER_AWAY) };
    let mut taken = 0;
    loop {
        let worker = uuid::Uuid::from_u128(u128::from(rng.u64(..)) << 64 | u128::from(rng.u64(..)));
        let call = format!("SELECT pg_task.register('{worker}', queues => '{{none}}', name => 'phantom')");
        match sqlx::raw_sql(AssertSqlSafe(call)).execute(&mut connection).await {
            Ok(_) => taken += 1,
            Err(_) => break,
        }
        if taken == 1 {
            let mut crew = scene.crew.lock().await;
            crew.members[0].kill();
        }
    }
    scene.crew.lock().await.revive()?;
    tokio::time::sleep(Duration::from_millis(rng.u64(500..2_000))).await;
    let _ = connection.close().await;
    scene
        .until(
            "SELECT count(*) > 0 FROM pg_task.workers WHERE name = 'fault-0' AND state <> 'gone'",
            PATIENCE,
        )
        .await?;
    Ok(Outcome::Done(1))
}
