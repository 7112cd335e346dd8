//! The load: producers that enqueue in every way, and a meddler that cancels, changes and resumes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use sqlx::PgConnection;
use sqlx::Row;
use sqlx::postgres::PgDatabaseError;
use sqlx::types::Json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::ledger::Entry;
use crate::plan::Answer;
use crate::plan::Bond;
use crate::plan::Kind;
use crate::plan::PERIOD;
use crate::plan::Plan;
use crate::plan::Scope;
use crate::plan::Unique;
use crate::scene::Scene;

/// How long a producer waits for an answer before it gives the connection up; what became of the call is not known then.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is known of an enqueueing.
enum Fate {
    Committed,
    RolledBack,
    Unknown,
}

/// Enqueues until the scene says that the run is over.
pub async fn produce(scene: Arc<Scene>, seed: u64, pace: Duration) {
    // Whoever wants an error for a key that is held gets one.
    scene.excuse("a task holds the key");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut connection: Option<PgConnection> = None;
    loop {
        // The pace of the load, not a wait for anything.
        tokio::time::sleep(pace.mul_f64(rng.f64() * 2.0)).await;
        let _pass = scene.gate.read().await;
        if connection.is_none() {
            connection = scene.connect_as_producer().await.ok();
        }
        let Some(open) = &mut connection else { continue };
        let work = timeout(PATIENCE, enqueue(&scene, open, &mut rng)).await;
        if !matches!(work, Ok(Ok(()))) {
            connection = None;
        }
    }
}

/// One piece of work in one of the ways to enqueue. An error means that the connection is of no more use.
async fn enqueue(
    scene: &Scene,
    connection: &mut PgConnection,
    rng: &mut fastrand::Rng,
) -> anyhow::Result<()> {
    match rng.u32(0..110) {
        0..25 => {
            let tasks = intend(scene, rng, 1)?;
            let call = sqlx::query("SELECT pg_task.enqueue($1, queue => $2, priority => $3, options => $4)")
                .bind(Json(&tasks[0].step))
                .bind(tasks[0].queue.unwrap_or(["a", "b", "default"][rng.usize(0..3)]))
                .bind(rng.i32(-2..3))
                .bind(tasks[0].options.as_ref().map(Json))
                .execute(connection)
                .await;
            settle(scene, &tasks, call)
        }
        25..50 => {
            let tasks = intend(scene, rng, 5)?;
            let insert = "INSERT INTO pg_task.task (step, queue, options, priority) \
                 SELECT step, queue, options, $4 FROM unnest($1, $2, $3) AS new (step, queue, options)";
            let call = sqlx::query(insert)
                .bind(steps(&tasks))
                .bind(tasks.iter().map(|task| task.queue.unwrap_or("default")).collect::<Vec<_>>())
                .bind(tasks.iter().map(|task| task.options.as_ref().map(Json)).collect::<Vec<_>>())
                .bind(rng.i16(-2..3))
                .execute(connection)
                .await;
            settle(scene, &tasks, call)
        }
        50..60 => {
            let tasks = intend_alike(scene, rng, 10)?;
            let call = sqlx::query("SELECT pg_task.enqueue_many($1, queue => $2, options => $3)")
                .bind(steps(&tasks))
                .bind(tasks[0].queue.unwrap_or("default"))
                .bind(tasks[0].options.as_ref().map(Json))
                .execute(connection)
                .await;
            settle(scene, &tasks, call)
        }
        60..63 => {
            let tasks = vec![note_intent(scene, Plan::new(Kind::Future, 0))?];
            let call = sqlx::query("SELECT pg_task.schedule($1, now() + interval '1 day')")
                .bind(Json(&tasks[0].step))
                .execute(connection)
                .await;
            settle(scene, &tasks, call)
        }
        63..65 => {
            let tasks = vec![note_intent(scene, Plan::new(Kind::Hasty, 0))?];
            let delay = "SELECT pg_task.delay($1, $2 * interval '1 ms', \
                 options => jsonb_build_object('deadline', now() + $3 * interval '1 ms'))";
            let call = sqlx::query(delay)
                .bind(Json(&tasks[0].step))
                .bind(f64::from(rng.u32(0..600)))
                .bind(f64::from(rng.u32(0..900)))
                .execute(connection)
                .await;
            settle(scene, &tasks, call)
        }
        65..75 => {
            let tasks = intend(scene, rng, 1)?;
            // What is due later blocks its group.
            let longest = if tasks[0].options.is_some() { 400 } else { 3_000 };
            let delay = "SELECT pg_task.delay($1, $2 * interval '1 ms', queue => $3, options => $4)";
            let call = sqlx::query(delay)
                .bind(Json(&tasks[0].step))
                .bind(f64::from(rng.u32(0..longest)))
                .bind(tasks[0].queue.unwrap_or("default"))
                .bind(tasks[0].options.as_ref().map(Json))
                .execute(connection)
                .await;
            settle(scene, &tasks, call)
        }
        75..85 => {
            // Whatever comes of it, it is not committed.
            let tasks = intend(scene, rng, 3)?;
            let call = run(connection, &format!("BEGIN; {} ROLLBACK", inserts(&tasks))).await;
            conclude(scene, &tasks, &Fate::RolledBack)?;
            Ok(call?)
        }
        85..95 => {
            let (kept, dropped) = (intend(scene, rng, 2)?, intend(scene, rng, 2)?);
            let script = format!(
                "BEGIN; SAVEPOINT a; {} ROLLBACK TO a; SAVEPOINT b; {} RELEASE b; COMMIT",
                inserts(&dropped),
                inserts(&kept)
            );
            let call = run(connection, &script).await;
            conclude(scene, &dropped, &Fate::RolledBack)?;
            settle(scene, &kept, call)
        }
        95..105 => unique(scene, connection, rng).await,
        _ => {
            let tasks = intend(scene, rng, 2)?;
            let name = format!("load-{}", tasks[0].key);
            run(connection, &format!("BEGIN; {} PREPARE TRANSACTION '{name}'", inserts(&tasks))).await?;
            if rng.bool() {
                let call = run(connection, &format!("COMMIT PREPARED '{name}'")).await;
                return settle(scene, &tasks, call);
            }
            run(connection, &format!("ROLLBACK PREPARED '{name}'")).await?;
            conclude(scene, &tasks, &Fate::RolledBack)
        }
    }
}

/// One call of `enqueue_unique`, with what it wishes for in the same transaction.
async fn unique(scene: &Scene, connection: &mut PgConnection, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let key = scene.next_key.fetch_add(1, Relaxed);
    let plan = Plan::unique(rng, key);
    let Bond::Unique(unique) = plan.bond else { return Ok(()) };
    let tasks = note_all(scene, std::iter::once((key, plan)))?;
    let call = ask_unique(connection, &tasks[0], unique, rng.u32(0..600)).await;
    let (id, answer) = match call {
        Ok(answered) => answered,
        Err(error) => {
            // The transaction was not told to commit.
            conclude(scene, &tasks, &Fate::RolledBack)?;
            let holder = holder_of(&error).context(error)?;
            scene.ledger.note(key, Entry::Refused(holder))?;
            return Ok(run(connection, "ROLLBACK").await?);
        }
    };
    let committed = match rng.u32(0..10) {
        0 => {
            conclude(scene, &tasks, &Fate::RolledBack)?;
            return Ok(run(connection, "ROLLBACK").await?);
        }
        1 => {
            let name = format!("load-{key}");
            run(connection, &format!("PREPARE TRANSACTION '{name}'")).await?;
            if rng.bool() {
                run(connection, &format!("ROLLBACK PREPARED '{name}'")).await?;
                return conclude(scene, &tasks, &Fate::RolledBack);
            }
            run(connection, &format!("COMMIT PREPARED '{name}'")).await
        }
        _ => run(connection, "COMMIT").await,
    };
    if committed.is_ok() {
        scene.ledger.note(key, Entry::Answered(answer, id))?;
    }
    settle(scene, &tasks, committed)
}

/// In a transaction that is left open.
async fn ask_unique(
    connection: &mut PgConnection,
    task: &Task,
    unique: Unique,
    later: u32,
) -> anyhow::Result<(Uuid, Answer)> {
    run(connection, "BEGIN").await?;
    if unique.scope == Scope::Queued {
        let wish = "INSERT INTO wish (name, key) VALUES ($1, $2)";
        let wish = sqlx::query(wish).bind(i64::from(unique.name)).bind(task.key as i64);
        wish.execute(&mut *connection).await?;
    }
    let call = "SELECT id, outcome FROM pg_task.enqueue_unique($1, $2, scope => $3, on_conflict => $4, \
         wakeup_at => now() + $5 * interval '1 ms', period => $6 * interval '1 ms')";
    let row = sqlx::query(call)
        .bind(Json(&task.step))
        .bind(format!("unique {}", unique.name))
        .bind(unique.scope.word())
        .bind(unique.on_conflict.word())
        .bind(f64::from(later))
        .bind((unique.scope == Scope::Period).then_some(PERIOD as f64 * 10.0))
        .fetch_one(connection)
        .await?;
    Ok((row.try_get(0)?, row.try_get::<&str, _>(1)?.parse()?))
}

/// The task of which an error says that it holds the key.
fn holder_of(error: &anyhow::Error) -> Option<Uuid> {
    let error = error.downcast_ref::<sqlx::Error>()?.as_database_error()?;
    let error = error.try_downcast_ref::<PgDatabaseError>().filter(|error| error.code() == "23505")?;
    let (_, task) = error.detail()?.split_once("by the task ")?;
    task.split(',').next()?.parse().ok()
}

/// A task that is about to be enqueued.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its key in the ledger.
    pub key: u64,
    /// Its first step.
    pub step: Value,
    /// The queue, if it has to be a certain one.
    pub queue: Option<&'static str>,
    /// Its options.
    pub options: Option<Value>,
}

impl Task {
    /// A task after a plan.
    pub fn new(key: u64, plan: Plan) -> Self {
        Self { key, step: plan.step(key), queue: plan.queue(), options: plan.options() }
    }
}

fn steps(tasks: &[Task]) -> Vec<Json<&Value>> {
    tasks.iter().map(|task| Json(&task.step)).collect()
}

/// Chooses tasks for one transaction and notes that they are about to be enqueued.
///
/// # Errors
/// When the ledger cannot be written.
pub fn intend(scene: &Scene, rng: &mut fastrand::Rng, count: u64) -> anyhow::Result<Vec<Task>> {
    let batch = scene.next_key.fetch_add(count, Relaxed);
    let plan = |key| (key, Plan::choose(rng).tie(rng, key, batch));
    note_all(scene, (batch..batch + count).map(plan))
}

/// The same with one plan for all.
fn intend_alike(scene: &Scene, rng: &mut fastrand::Rng, count: u64) -> anyhow::Result<Vec<Task>> {
    let batch = scene.next_key.fetch_add(count, Relaxed);
    let plan = Plan::choose(rng).tie(rng, batch, batch);
    note_all(scene, (batch..batch + count).map(|key| (key, plan)))
}

/// The same with none.
///
/// # Errors
/// When the ledger cannot be written.
pub fn intend_untied(scene: &Scene, rng: &mut fastrand::Rng, count: u64) -> anyhow::Result<Vec<Task>> {
    let batch = scene.next_key.fetch_add(count, Relaxed);
    note_all(scene, (batch..batch + count).map(|key| (key, Plan::choose(rng))))
}

fn note_all(scene: &Scene, plans: impl Iterator<Item = (u64, Plan)>) -> anyhow::Result<Vec<Task>> {
    plans
        .map(|(key, plan)| {
            scene.ledger.note(key, Entry::Intended(plan))?;
            Ok(Task::new(key, plan))
        })
        .collect()
}

/// Chooses a key for a task and notes that it is about to be enqueued.
///
/// # Errors
/// When the ledger cannot be written.
pub fn note_intent(scene: &Scene, plan: Plan) -> anyhow::Result<Task> {
    let key = scene.next_key.fetch_add(1, Relaxed);
    scene.ledger.note(key, Entry::Intended(plan))?;
    Ok(Task::new(key, plan))
}

/// Statements that insert the tasks.
pub fn inserts(tasks: &[Task]) -> String {
    let insert = |task: &Task| {
        let queue = task.queue.unwrap_or("default");
        let options = task.options.as_ref().map_or("NULL".to_owned(), |options| format!("'{options}'"));
        format!(
            "INSERT INTO pg_task.task (step, queue, options) VALUES ('{}', '{queue}', {options}); ",
            task.step
        )
    };
    tasks.iter().map(insert).collect()
}

/// Notes that the tasks are committed.
///
/// # Errors
/// When the ledger cannot be written.
pub fn committed(scene: &Scene, tasks: &[Task]) -> anyhow::Result<()> {
    conclude(scene, tasks, &Fate::Committed)
}

fn settle<T>(scene: &Scene, tasks: &[Task], call: Result<T, sqlx::Error>) -> anyhow::Result<()> {
    let fate = match &call {
        Ok(_) => Fate::Committed,
        // An answer of the server that is an error means that nothing was committed; the end of a session may follow a commit.
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| !code.starts_with("57")) => {
            Fate::RolledBack
        }
        Err(_) => Fate::Unknown,
    };
    conclude(scene, tasks, &fate)?;
    call?;
    Ok(())
}

fn conclude(scene: &Scene, tasks: &[Task], fate: &Fate) -> anyhow::Result<()> {
    for task in tasks {
        match fate {
            Fate::Committed => scene.ledger.note(task.key, Entry::Committed)?,
            Fate::RolledBack => scene.ledger.note(task.key, Entry::RolledBack)?,
            Fate::Unknown => {}
        }
    }
    Ok(())
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|_| ())
}

/// Cancels and changes tasks now and then, and mends and resumes what is parked.
pub async fn meddle(scene: Arc<Scene>, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    loop {
        tokio::time::sleep(Duration::from_millis(rng.u64(50..400))).await;
        let _pass = scene.gate.read().await;
        // The server may be down: then there is nothing to meddle with.
        let _ = match rng.u32(0..4) {
            0 => cancel_one(&scene).await,
            1 => change_one(&scene).await,
            2 => {
                end_prepared(&scene, "prepared < now() - interval '3 s' AND gid ~ '^(load|operator)-'").await
            }
            _ => resume_parked(&scene).await.map(|_| ()),
        };
    }
}

async fn cancel_one(scene: &Scene) -> anyhow::Result<()> {
    let Some((id, key)) = some_task(scene, "step->'Load' ?| '{Slow,Later}'").await? else { return Ok(()) };
    scene.ledger.note(key, Entry::Cancelling)?;
    if scene.ask(&format!("SELECT pg_task.cancel('{id}')")).await? == "t" {
        scene.ledger.note(key, Entry::Cancelled)?;
    }
    Ok(())
}

async fn change_one(scene: &Scene) -> anyhow::Result<()> {
    let Some((id, key)) = some_task(scene, "NOT step->'Load' ?| '{Future,Heir}'").await? else {
        return Ok(());
    };
    scene.ledger.note(key, Entry::Changing)?;
    scene
        .run(&format!(
            "UPDATE pg_task.task SET queue = 'changed', priority = -1, wakeup_at = now() WHERE id = '{id}'"
        ))
        .await
}

/// Rolls back what producers have prepared that lost their connection: it holds locks, and nobody knows what was to become of it.
///
/// # Errors
/// When the server is not there.
pub async fn end_prepared(scene: &Scene, which: &str) -> anyhow::Result<()> {
    for name in scene.column(&format!("SELECT gid FROM pg_prepared_xacts WHERE {which}")).await? {
        // Its producer may be about to commit it after all: then one of the two finds it gone.
        let _ = scene.run(&format!("ROLLBACK PREPARED '{name}'")).await;
    }
    Ok(())
}

async fn some_task(scene: &Scene, which: &str) -> anyhow::Result<Option<(String, u64)>> {
    let task = scene
        .ask(&format!(
            "SELECT id || ' ' || (jsonb_path_query_first(step, '$.*.*.key'))::text \
             FROM pg_task.task WHERE error IS NULL AND {which} ORDER BY random() LIMIT 1"
        ))
        .await?;
    Ok(task.split_once(' ').and_then(|(id, key)| Some((id.to_owned(), key.parse().ok()?))))
}

/// Mends the world for what is parked and resumes it; returns how many tasks that were.
///
/// # Errors
/// When the server is not there.
pub async fn resume_parked(scene: &Scene) -> anyhow::Result<usize> {
    let parked = scene
        .column(
            "SELECT id || ' ' || (jsonb_path_query_first(step, '$.*.*.key'))::text || ' ' || tried || ' ' || error \
             FROM pg_task.failed LIMIT 100",
        )
        .await?;
    for task in &parked {
        let [id, key, tried, error] = task.splitn(4, ' ').collect::<Vec<_>>()[..] else { continue };
        let key: u64 = key.parse()?;
        scene.ledger.note(key, Entry::Parked(tried.parse()?, error.to_owned()))?;
        std::fs::write(scene.mended.join(key.to_string()), "")?;
        scene.ledger.note(key, Entry::Resuming)?;
        scene
            .run(&format!(
                "UPDATE pg_task.task SET error = NULL, options = nullif(options - 'deadline', '{{}}') \
                 WHERE id = '{id}' AND error IS NOT NULL"
            ))
            .await?;
    }
    Ok(parked.len())
}
