//! An operator who changes many tasks by a filter, edits single ones, and resumes what is parked, while everything else goes on.
//!
//! What a call has changed is asked in its own transaction, of the rows that this has written, and noted before the commit.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::PgConnection;
use sqlx::Row;
use sqlx::types::Json;
use tokio::time::timeout;

use crate::ledger::Entry;
use crate::plan::Kind;
use crate::scene::DATABASE;
use crate::scene::Scene;

/// How long the operator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What may be cancelled and changed: not what has to stay where it is, nor what others wait for.
const KINDS: &[Kind] = &[
    Kind::Chain,
    Kind::Exact,
    Kind::Fenced,
    Kind::Flaky,
    Kind::Later,
    Kind::Nap,
    Kind::Noop,
    Kind::Patient,
    Kind::Slow,
    Kind::Tardy,
];

/// The tasks whose rows a transaction has written.
const CHANGED: &str = "SELECT (jsonb_path_query_first(step, '$.*.*.key'))::bigint FROM pg_task.task WHERE xmin = pg_current_xact_id()::xid";

/// The tasks that a transaction has ended.
const ENDED: &str = "SELECT (jsonb_path_query_first(step, '$.*.*.key'))::bigint FROM pg_task.history WHERE xmin = pg_current_xact_id()::xid";

/// Goes on until the scene says that the run is over.
pub async fn operate(scene: Arc<Scene>, seed: u64) {
    // An edit of a task that runs.
    scene.excuse("a worker runs the task");
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x0be7_a704);
    loop {
        tokio::time::sleep(Duration::from_millis(rng.u64(20..300))).await;
        let _pass = scene.gate.read().await;
        // The server may be down, or a row be locked: then nothing is changed.
        let _ = timeout(PATIENCE, act(&scene, &mut rng)).await;
    }
}

async fn act(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let mut connection = scene.connect(DATABASE).await?;
    match rng.u32(0..10) {
        0..2 => edit(scene, &mut connection, rng).await,
        2 => resume_later(scene, &mut connection, rng).await,
        3..5 => copy(scene, &mut connection, rng).await,
        _ => change_many(scene, &mut connection, rng).await,
    }
}

/// One call of a function that takes a filter.
async fn change_many(
    scene: &Scene,
    connection: &mut PgConnection,
    rng: &mut fastrand::Rng,
) -> anyhow::Result<()> {
    let there = "SELECT kind FROM pg_task.task, jsonb_object_keys(step -> 'Load') AS kind WHERE kind = ANY ($1) ORDER BY random() LIMIT 1";
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
    let kind: Option<String> = sqlx::query_scalar(there).bind(kinds).fetch_optional(&mut *connection).await?;
    let Some(kind) = kind else { return Ok(()) };
    let state = ["NULL", "NULL", "NULL", "'due'", "'asleep'", "'running'", "'parked'"][rng.usize(0..7)];
    let filter = format!("task => 'Load/{kind}', state => {state}, max => {}", rng.u32(1..12));
    let (call, which, before, after) = match rng.u32(0..10) {
        0..2 => (format!("cancel_all({filter})"), ENDED, Some(Entry::Cancelling), Some(Entry::Cancelled)),
        2..4 => (format!("move_all('moved', {filter})"), CHANGED, Some(Entry::Changing), None),
        4..6 => (format!("reprioritize_all({}, {filter})", rng.i32(-4..5)), CHANGED, None, None),
        6..9 => {
            let at = format!("now() + {} * interval '1 ms'", rng.u32(0..700));
            (format!("reschedule_all({at}, {filter})"), CHANGED, None, None)
        }
        _ => {
            let max = rng.u32(1..5);
            (
                format!("resume_all(error_like => 'the world is%', max => {max})"),
                CHANGED,
                Some(Entry::Resuming),
                None,
            )
        }
    };
    // The result of a run is refused when its row is changed.
    let before = before.or((state == "'running'").then_some(Entry::Changing));
    run(connection, "BEGIN").await?;
    let call = format!("SELECT pg_task.{call}");
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(call.clone())).fetch_one(&mut *connection).await?;
    let keys: Vec<i64> = sqlx::query_scalar(which).fetch_all(&mut *connection).await?;
    if keys.len() as i64 != count {
        scene.ledger.note(0, Entry::Wrong(format!("{call} says {count}, and has changed {keys:?}")))?;
    }
    let end = rng.u32(0..10);
    if end == 0 {
        return Ok(run(connection, "ROLLBACK").await?);
    }
    if let Some(entry) = before {
        note(scene, &keys, &entry)?;
    }
    match end {
        1 | 2 => {
            let name = format!("operator-{}", scene.next_key.fetch_add(1, Relaxed));
            run(connection, &format!("PREPARE TRANSACTION '{name}'")).await?;
            // Results of the tasks wait for it meanwhile.
            tokio::time::sleep(Duration::from_millis(rng.u64(0..400))).await;
            if end == 1 {
                return Ok(run(connection, &format!("ROLLBACK PREPARED '{name}'")).await?);
            }
            run(connection, &format!("COMMIT PREPARED '{name}'")).await?;
        }
        _ => run(connection, "COMMIT").await?,
    }
    after.map_or(Ok(()), |entry| note(scene, &keys, &entry))
}

fn note(scene: &Scene, keys: &[i64], entry: &Entry) -> anyhow::Result<()> {
    for key in keys {
        scene.ledger.note(*key as u64, entry.clone())?;
    }
    Ok(())
}

/// Puts a mark into the payload of a task, which its steps hand on: an edit that is lost shows by it.
async fn edit(scene: &Scene, connection: &mut PgConnection, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    run(connection, "BEGIN").await?;
    let kind = if rng.bool() { "Slow" } else { "Later" };
    // The row is held: its step is the same until it is edited.
    let find = format!(
        "SELECT id, step #> '{{Load,{kind}}}' FROM pg_task.task WHERE step -> 'Load' ? '{kind}' ORDER BY random() LIMIT 1 \
         FOR UPDATE SKIP LOCKED"
    );
    let Some(row) = sqlx::query(AssertSqlSafe(find)).fetch_optional(&mut *connection).await? else {
        return Ok(());
    };
    let (id, Json(mut payload)): (uuid::Uuid, Json<serde_json::Value>) = (row.try_get(0)?, row.try_get(1)?);
    let Some(key) = payload.get("key").and_then(serde_json::Value::as_u64) else { return Ok(()) };
    let mark = scene.next_key.fetch_add(1, Relaxed);
    if let Some(payload) = payload.as_object_mut() {
        payload.insert("mark".to_owned(), mark.into());
    }
    // One that runs is left alone, with an error, unless it is to be interrupted.
    let edited: bool = sqlx::query_scalar("SELECT pg_task.edit($1, payload => $2, interrupt => $3)")
        .bind(id)
        .bind(Json(&payload))
        .bind(rng.bool())
        .fetch_one(&mut *connection)
        .await?;
    if !edited {
        scene.ledger.note(0, Entry::Wrong(format!("{id} was locked, and edit says that it is not there")))?;
    }
    scene.ledger.note(key, Entry::Editing(mark))?;
    run(connection, "COMMIT").await?;
    Ok(scene.ledger.note(key, Entry::Edited(mark))?)
}

/// Copies a task, parked or not: the copy is one of its own.
async fn copy(scene: &Scene, connection: &mut PgConnection, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let find = "SELECT id, (step #> '{Load,Twin,key}')::bigint FROM pg_task.task WHERE step -> 'Load' ? 'Twin' ORDER BY random() LIMIT 1";
    let Some(row) = sqlx::query(find).fetch_optional(&mut *connection).await? else { return Ok(()) };
    let (id, key): (uuid::Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
    run(connection, "BEGIN").await?;
    let copy: Option<uuid::Uuid> =
        sqlx::query_scalar("SELECT pg_task.clone($1)").bind(id).fetch_one(&mut *connection).await?;
    let Some(copy) = copy else { return Ok(()) };
    if rng.u32(0..8) == 0 {
        return Ok(run(connection, "ROLLBACK").await?);
    }
    scene.ledger.note(key as u64, Entry::Copying)?;
    run(connection, "COMMIT").await?;
    Ok(scene.ledger.note(key as u64, Entry::Copied(copy))?)
}

/// Resumes a parked task in a moment. The world is mended for it.
async fn resume_later(
    scene: &Scene,
    connection: &mut PgConnection,
    rng: &mut fastrand::Rng,
) -> anyhow::Result<()> {
    let find = "SELECT id, (jsonb_path_query_first(step, '$.*.*.key'))::bigint FROM pg_task.failed \
         WHERE error NOT LIKE '%deadline%' LIMIT 1";
    let Some(row) = sqlx::query(find).fetch_optional(&mut *connection).await? else { return Ok(()) };
    let (id, key): (uuid::Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
    std::fs::write(scene.mended.join(key.to_string()), "")?;
    scene.ledger.note(key as u64, Entry::Resuming)?;
    let millis = rng.u32(0..1_500);
    let resumed: bool = sqlx::query_scalar("SELECT pg_task.resume_at($1, now() + $2 * interval '1 ms')")
        .bind(id)
        .bind(f64::from(millis))
        .fetch_one(connection)
        .await?;
    if resumed {
        scene.ledger.note(key as u64, Entry::Resumed(u64::from(millis)))?;
    }
    Ok(())
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|_| ())
}
