//! A worker of this program's own that takes tasks, falls silent beyond its lease, and then brings its results: what the client crate is too
//! careful to do, and what the fence and the tokens are for.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use sqlx::AssertSqlSafe;
use sqlx::PgConnection;
use sqlx::Row;
use sqlx::types::Json;
use uuid::Uuid;

use super::Outcome;
use crate::ledger::End;
use crate::ledger::Entry;
use crate::ledger::Run;
use crate::load;
use crate::plan::Kind;
use crate::plan::Plan;
use crate::plan::registration;
use crate::scene::DATABASE;
use crate::scene::Scene;

/// A result as the protocol has it.
struct Finished {
    id: Uuid,
    fence: i64,
    token: i64,
    outcome: i16,
    step: Option<Value>,
}

pub(super) async fn results(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let mut brought = 0;
    for _ in 0..rng.u32(2..4) {
        // A server that a large fault has taken away meanwhile: nothing is brought.
        brought += once(scene, rng).await.unwrap_or(0);
    }
    Ok(Outcome::Done(brought))
}

async fn once(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<u32> {
    let mut connection = scene.connect(DATABASE).await?;
    let worker = Uuid::from_u128(u128::from(rng.u64(..)) << 64 | u128::from(rng.u64(..)));
    let register = format!(
        "SELECT pg_task.register($1, {}, lease => '1 s', bind => false, name => 'stale')",
        registration()
    );
    sqlx::query(AssertSqlSafe(register)).bind(worker).execute(&mut connection).await?;
    // Tasks that take so long that they are still on their way when the results come late.
    let tasks = (0..20)
        .map(|_| load::note_intent(scene, Plan::new(Kind::Slow, 3)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    sqlx::raw_sql(AssertSqlSafe(load::inserts(&tasks))).execute(&mut connection).await?;
    load::committed(scene, &tasks)?;
    let mut rows = Vec::new();
    // The other workers are awake by now: it takes what it can get before them.
    for _ in 0..50 {
        let call = "SELECT id, fence, token, tried, step FROM pg_task.exchange($1, 10) WHERE event = 0";
        rows.extend(sqlx::query(call).bind(worker).fetch_all(&mut connection).await?);
        if rows.len() >= 10 {
            break;
        }
    }
    let mut results = Vec::new();
    for row in rows {
        let (id, fence, token) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let Json(step) = row.try_get::<Json<Value>, _>(4)?;
        let (outcome, step) = run(scene, &step, token, row.try_get(3)?)?;
        results.push(Finished { id, fence, token, outcome, step });
    }
    // Long enough to be given up, most of the time; others have run the tasks then, or are running them.
    tokio::time::sleep(Duration::from_millis(rng.u64(0..7_000))).await;
    bring(&mut connection, worker, &results).await?;
    Ok(results.len() as u32)
}

/// Does what the step is meant to do, and notes it.
fn run(scene: &Scene, step: &Value, token: i64, tried: i32) -> anyhow::Result<(i16, Option<Value>)> {
    const GIVE_BACK: i16 = 5;
    let named =
        Kind::ALL.into_iter().find_map(|kind| Some((kind, step.pointer(&format!("/Load/{}", kind.name()))?)));
    let number = |payload: &Value, name: &str| payload.get(name).and_then(Value::as_i64);
    let Some((kind, payload)) = named
        .filter(|(kind, _)| matches!(kind, Kind::Chain | Kind::Later | Kind::Nap | Kind::Noop | Kind::Slow))
    else {
        return Ok((GIVE_BACK, None));
    };
    let (Some(key), Some(seq), Some(last), Some(via)) =
        (number(payload, "key"), number(payload, "seq"), number(payload, "last"), number(payload, "via"))
    else {
        return Ok((GIVE_BACK, None));
    };
    let (key, seq) = (key as u64, seq as u32);
    let worker = std::process::id();
    scene.ledger.note(key, Entry::Began(Run { seq, token, attempt: tried + 1, via, worker }))?;
    let ends = i64::from(seq) == last;
    scene.ledger.note(key, Entry::Ended(seq, token, if ends { End::Done } else { End::Next }))?;
    let next = json!({ "Load": { kind.name(): { "key": key, "seq": seq + 1, "last": last, "via": token, "mark": payload.get("mark").unwrap_or(&json!(0)) } } });
    Ok(if ends { (0, None) } else { (1, Some(next)) })
}

async fn bring(connection: &mut PgConnection, worker: Uuid, results: &[Finished]) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_task.exchange($1, 0, $2, $3, $4, $5, $6)")
        .bind(worker)
        .bind(results.iter().map(|result| result.id).collect::<Vec<_>>())
        .bind(results.iter().map(|result| result.fence).collect::<Vec<_>>())
        .bind(results.iter().map(|result| result.token).collect::<Vec<_>>())
        .bind(results.iter().map(|result| result.outcome).collect::<Vec<_>>())
        .bind(results.iter().map(|result| result.step.clone().map(Json)).collect::<Vec<_>>())
        .execute(connection)
        .await
        .map(|_| ())
}
