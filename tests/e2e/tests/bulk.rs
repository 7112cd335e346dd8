//! Many tasks in one call.
#![expect(
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    reason = "an integration test that reports figures"
)]

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::shared_server;
use serde::Serialize;
use serde::Serializer;
use serde::ser::Error as _;
use serde_json::Value;
use serde_json::json;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-bulk")).await
}

fn note(key: &str) -> Value {
    json!({ "Test": { "Note": { "key": key } } })
}

#[tokio::test]
async fn a_hundred_thousand_tasks_are_enqueued_by_one_copy_in_the_caller_s_transaction() -> Result<()> {
    const TASKS: usize = 100_000;
    let db = database().await?;
    let steps: Vec<Value> = (0..TASKS).map(|number| note(&format!("task {number}"))).collect();
    let mut seconds = [0.0; 3];
    for (way, seconds) in seconds.iter_mut().enumerate() {
        let began = Instant::now();
        let mut transaction = db.pool.begin().await?;
        let ids = match way {
            0 => pg_task::enqueue_copy(&mut transaction, &steps).await?,
            1 => pg_task::Enqueue::new().enqueue_many(&mut *transaction, &steps).await?,
            _ => {
                let mut ids = Vec::new();
                for steps in steps.chunks(10_000) {
                    ids.extend(pg_task::Enqueue::new().enqueue_many(&mut *transaction, steps).await?);
                }
                ids
            }
        };
        // Nobody else sees them yet.
        assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0");
        transaction.commit().await?;
        *seconds = began.elapsed().as_secs_f64();
        assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (TASKS, TASKS));
        assert!(ids.is_sorted());
        let third: String = db
            .ask(&format!("SELECT step #>> '{{Test,Note,key}}' FROM pg_task.task WHERE id = '{}'", ids[3]))
            .await?;
        assert_eq!(third, "task 3");
        assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, TASKS.to_string());
        db.run("TRUNCATE pg_task.task").await?;
    }
    println!(
        "{TASKS} tasks: COPY {:.2} s, enqueue_many {:.2} s, ten times enqueue_many {:.2} s",
        seconds[0], seconds[1], seconds[2]
    );
    Ok(())
}

#[tokio::test]
async fn what_is_enqueued_by_copy_runs_and_what_is_rolled_back_does_not() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("bulk")?);
    let options = WorkerOptions {
        ledger: Some(ledger.path()),
        concurrency: 100,
        queues: "bulk",
        ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker"))
    };
    let _worker = db.known_worker(options).await?;
    // Whatever JSON can hold comes through; more than one chunk.
    let keys: Vec<String> =
        (0..2_000).map(|number| format!("{number} \\ \t \" \u{1f980} {}", "x".repeat(100))).collect();
    let tasks = pg_task::Enqueue::new().queue("bulk").priority(-3);
    let mut rolled_back = db.pool.begin().await?;
    tasks.enqueue_copy(&mut rolled_back, [note("never")]).await?;
    rolled_back.rollback().await?;
    let mut connection = db.pool.acquire().await?;
    tasks.enqueue_copy(&mut connection, keys.iter().map(|key| note(key))).await?;
    assert!(tasks.enqueue_copy(&mut connection, Vec::<Value>::new()).await?.is_empty());
    db.until_done().await?;
    let (mut ran, mut expected) = (ledger.lines(), keys);
    ran.sort();
    expected.sort();
    assert_eq!(ran, expected);
    Ok(())
}

struct NoJson;

impl Serialize for NoJson {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("not today"))
    }
}

#[tokio::test]
async fn one_bad_task_refuses_them_all_and_leaves_the_connection_as_it_was() -> Result<()> {
    let db = database().await?;
    let mut connection = db.pool.acquire().await?;
    let tasks = pg_task::Enqueue::new();
    let refused = |error: pg_task::Error| match error {
        pg_task::Error::AddTask(sqlx::Error::Database(error)) => {
            error.code().unwrap_or_default().into_owned()
        }
        error => format!("{error:?}"),
    };
    let good = (0..5_000).map(|_| note("good"));
    let shape = tasks.enqueue_copy(&mut connection, good.clone().chain([json!([1])])).await;
    assert_eq!(refused(shape.expect_err("no step")), "22023");
    let queue = tasks.queue("").enqueue_copy(&mut connection, good).await;
    assert_eq!(refused(queue.expect_err("no name")), "22023");
    let json = tasks.enqueue_copy(&mut connection, (0..5_000).map(|_| NoJson)).await;
    assert!(matches!(json, Err(pg_task::Error::SerializeStep(..))), "{json:?}");
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    assert_eq!(tasks.enqueue_copy(&mut connection, [note("good")]).await?.len(), 1);
    Ok(())
}
