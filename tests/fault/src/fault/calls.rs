//! Faults in the middle of protocol calls: cancelled, terminated or timed out while they wait for a lock, or anywhere.

use std::time::Duration;
use std::time::Instant;

use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgConnection;

use super::Outcome;
use crate::plan::registration;
use crate::scene::DATABASE;
use crate::scene::Scene;
use crate::scene::WORKER_ROLE;

/// Calls of the protocol and of producers that wait for a lock.
const WAITING: &str = "wait_event_type = 'Lock' AND query ~ 'pg_task\\.(exchange|register|heartbeat|leave|enqueue|delay)|INSERT INTO pg_task'";

pub(super) async fn cancel(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    end_waiting(scene, rng, "pg_cancel_backend").await
}

pub(super) async fn terminate(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    end_waiting(scene, rng, "pg_terminate_backend").await
}

/// Holds a lock that calls run into, at their first statement or at a row, and ends those that wait.
async fn end_waiting(scene: &Scene, rng: &mut fastrand::Rng, function: &str) -> anyhow::Result<Outcome> {
    let mut count = 0;
    for _ in 0..rng.u32(1..4) {
        let Ok(lock) = hold(scene, rng).await else { continue };
        let until = Instant::now() + Duration::from_millis(rng.u64(200..1_200));
        while Instant::now() < until {
            let ended = scene
                .ask(&format!("SELECT count({function}(pid)) FROM pg_stat_activity WHERE {WAITING}"))
                .await;
            count += ended.ok().and_then(|count| count.parse().ok()).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(rng.u64(5..60))).await;
        }
        let _ = lock.close().await;
    }
    Ok(Outcome::Done(count))
}

/// A transaction that holds the table, or some of its rows. It waits for no row, so that it has no part in a deadlock.
async fn hold(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<PgConnection> {
    let mut connection = scene.connect(DATABASE).await?;
    let lock = if rng.bool() {
        "BEGIN; SET LOCAL lock_timeout = '3s'; LOCK TABLE pg_task.task IN ACCESS EXCLUSIVE MODE"
    } else {
        "BEGIN; SET LOCAL lock_timeout = '3s'; SELECT FROM pg_task.task LIMIT 300 FOR UPDATE SKIP LOCKED"
    };
    sqlx::raw_sql(lock).execute(&mut connection).await?;
    Ok(connection)
}

pub(super) async fn lock_timeout(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let set = format!("ALTER ROLE {WORKER_ROLE} SET lock_timeout = '{}ms'", rng.u32(5..60));
    scene.insist(&set).await?;
    // New sessions get the setting.
    for member in &scene.crew.lock().await.members {
        member.proxy.cut();
    }
    let mut locks = 0;
    for _ in 0..rng.u32(3..10) {
        if let Ok(lock) = hold(scene, rng).await {
            tokio::time::sleep(Duration::from_millis(rng.u64(30..250))).await;
            let _ = lock.close().await;
            locks += 1;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(30..250))).await;
    }
    reset(scene).await?;
    Ok(Outcome::Done(locks))
}

/// The workers' sessions have no time limits any more. Tried until the server is there.
async fn reset(scene: &Scene) -> anyhow::Result<()> {
    scene.until_up().await?;
    scene.insist(&format!("ALTER ROLE {WORKER_ROLE} RESET ALL")).await?;
    for member in &scene.crew.lock().await.members {
        member.proxy.cut();
    }
    Ok(())
}

/// A worker of this program's own whose calls run out of time anywhere, and which vanishes with what it was given.
pub(super) async fn statement_timeout(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let mut ended = 0;
    for _ in 0..rng.u32(1..4) {
        let Ok(mut connection) = scene.connect(DATABASE).await else { continue };
        let worker = uuid::Uuid::from_u128(u128::from(rng.u64(..)) << 64 | u128::from(rng.u64(..)));
        for _ in 0..rng.u32(5..30) {
            let limit = rng.u32(1..6);
            let call = match rng.u32(0..10) {
                0..3 => {
                    format!("SELECT pg_task.register('{worker}', {}, bind => {})", registration(), rng.bool())
                }
                3..7 => format!("SELECT count(*) FROM pg_task.exchange('{worker}', {})", rng.u32(0..40)),
                7 => format!("SELECT count(*) FROM pg_task.heartbeat('{worker}')"),
                8 => format!(
                    "SELECT count(x.event) FROM (SELECT array_agg(id) AS i, array_agg(fence) AS f, array_agg(1::bigint) AS t, \
                     array_agg(5::smallint) AS o FROM (SELECT id, fence FROM pg_task.task LIMIT 20) AS few) AS r \
                     CROSS JOIN LATERAL pg_task.exchange('{worker}', 1, ids => r.i, fences => r.f, tokens => r.t, outcomes => r.o) AS x"
                ),
                _ => format!("SELECT pg_task.leave('{worker}')"),
            };
            let script = format!("SET statement_timeout = {limit}; {call}; SET statement_timeout = 0");
            match sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut connection).await {
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("57014") => ended += 1,
                // Not registered yet, or the server is restarting.
                Err(sqlx::Error::Database(_)) | Ok(_) => {}
                Err(_) => break,
            }
        }
        let _ = connection.close().await;
    }
    Ok(Outcome::Done(ended))
}
