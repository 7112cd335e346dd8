//! Layers of a worker: what they see, and what they can and cannot change.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Result;
use pg_task::CancellationToken;
use pg_task::Context;
use pg_task::Ending;
use pg_task::Layer;
use pg_task::LayerResult;
use pg_task::Next;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::Tx;
use pg_task::Worker;
use pg_task_e2e::Database;
use pg_task_e2e::shared_server;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;
use tokio::task::JoinHandle;

pg_task::task!(Test { Pool, Transaction, With });
pg_task::scheduler!(Tasks { Test });

/// Waits for a moment, then does what it is told.
#[derive(Debug, Deserialize, Serialize)]
pub struct With {
    how: String,
}

impl Step<Test, Context> for With {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::ZERO;

    async fn step(self, cx: &Context) -> StepResult<Test> {
        tokio::task::yield_now().await;
        assert_eq!(cx.extension::<Greeting>().map(|greeting| greeting.0), Some("hello"));
        match self.how.as_str() {
            "fails" => Err("not today".into()),
            "next" => NextStep::now(Pool),
            _ => NextStep::none(),
        }
    }
}

/// Does nothing.
#[derive(Debug, Deserialize, Serialize)]
pub struct Pool;

impl Step<Test> for Pool {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        NextStep::none()
    }
}

/// Writes a row; ends when it is told to.
#[derive(Debug, Deserialize, Serialize)]
pub struct Transaction {
    key: String,
    waits: bool,
}

impl Step<Test, Tx> for Transaction {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::ZERO;

    async fn step(self, tx: &Tx) -> StepResult<Test> {
        let cx = tx.context();
        cx.insert(Key(self.key.clone()));
        sqlx::query("INSERT INTO effect VALUES ($1)").bind(&self.key).execute(tx).await?;
        while self.waits && !open(cx.db()).await? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        NextStep::none()
    }
}

async fn open(db: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM gate)").fetch_one(db).await
}

struct Greeting(&'static str);
struct Key(String);

type Log = Arc<Mutex<Vec<String>>>;

/// Notes what it sees.
struct Note(Log);

impl Layer for Note {
    async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
        cx.insert(Greeting("hello"));
        let result = next.run().await;
        let ending = match &result {
            Ok(ending) => format!("{ending:?}"),
            Err(error) => format!("{error}; {}", cx.retry_after(error).map_or("parked", |_| "again")),
        };
        let key = cx.extension::<Key>().map(|key| format!("{} ", key.0)).unwrap_or_default();
        let line = format!("{key}{} {} {}: {ending}", cx.queue(), cx.step_name(), cx.attempt());
        self.0.lock().expect("no holder panics").push(line);
        result
    }
}

/// Fails after the step.
struct Late(bool);

impl Layer for Late {
    async fn call(&self, _cx: &Context, next: Next<'_>) -> LayerResult {
        let ending = next.run().await?;
        assert!(!self.0 || ending == Ending::Refused, "a late fault");
        Ok(ending)
    }
}

/// A worker in this process.
struct Running {
    stop: CancellationToken,
    worker: JoinHandle<pg_task::Result<()>>,
}

impl Running {
    fn start(worker: Worker<Tasks>) -> Self {
        let stop = CancellationToken::new();
        let worker = worker.with_cancellation(stop.clone());
        Self { stop, worker: tokio::spawn(async move { worker.run().await }) }
    }

    async fn end(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.worker.await??)
    }
}

async fn database() -> Result<Database> {
    let db = Database::create(shared_server("e2e-layers")).await?;
    db.run("CREATE TABLE effect (key text); CREATE TABLE gate (open bool)").await?;
    Ok(db)
}

fn lines(log: &Log) -> Vec<String> {
    let mut lines = log.lock().expect("no holder panics").clone();
    lines.sort_unstable();
    lines
}

fn with(how: &str) -> Tasks {
    Tasks::Test(With { how: how.to_owned() }.into())
}

fn transaction(key: &str, waits: bool) -> Tasks {
    Tasks::Test(Transaction { key: key.to_owned(), waits }.into())
}

#[tokio::test]
async fn a_layer_sees_every_attempt_of_every_kind_of_step_and_what_becomes_of_it() -> Result<()> {
    let (db, log) = (database().await?, Log::default());
    let running = Running::start(Worker::<Tasks>::new(db.pool.clone()).with_layer(Note(log.clone())));
    for task in [with("fails"), with("next"), transaction("a", false)] {
        pg_task::Enqueue::new().queue("q").enqueue(&db.pool, &task).await?;
    }
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"With": {"how": 1}}}')"#).await?;
    db.until("SELECT count(*) = 0 FROM pg_task.task WHERE error IS NULL").await?;
    running.end().await?;
    // One that cannot be read is no step, and no layer sees it.
    assert_eq!(
        lines(&log),
        [
            "a q Test/Transaction 1: Done",
            "q Test/Pool 1: Done",
            "q Test/With 1: Next",
            "q Test/With 1: not today; again",
            "q Test/With 2: not today; parked",
        ]
    );
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.failed").await?, "2");
    assert_eq!(db.ask("SELECT string_agg(key, ',') FROM effect").await?, "a");
    Ok(())
}

#[tokio::test]
async fn a_layer_that_fails_after_a_step_fails_the_attempt_but_not_what_has_committed() -> Result<()> {
    let (db, log) = (database().await?, Log::default());
    let worker = Worker::<Tasks>::new(db.pool.clone()).with_layer(Note(log.clone())).with_layer(Late(true));
    let running = Running::start(worker);
    for task in [with(""), transaction("a", false)] {
        pg_task::enqueue(&db.pool, &task).await?;
    }
    db.until("SELECT count(*) = 0 FROM pg_task.task WHERE error IS NULL").await?;
    db.until("SELECT count(*) = 0 FROM pg_task.running").await?;
    running.end().await?;
    assert_eq!(db.ask("SELECT string_agg(key, ',') FROM effect").await?, "a");
    assert_eq!(db.ask("SELECT error FROM pg_task.failed").await?, "a layer panicked: a late fault");
    assert_eq!(
        lines(&log),
        [
            "a default Test/Transaction 1: a layer panicked: a late fault; again",
            "default Test/With 1: a layer panicked: a late fault; again",
            "default Test/With 2: a layer panicked: a late fault; parked",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_layer_sees_that_a_transaction_was_taken_back() -> Result<()> {
    let (db, log) = (database().await?, Log::default());
    let running = Running::start(
        Worker::<Tasks>::new(db.pool.clone()).with_layer(Note(log.clone())).with_layer(Late(false)),
    );
    let id = pg_task::enqueue(&db.pool, &transaction("a", true)).await?;
    db.until("SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'")
        .await?;
    db.run(&format!("UPDATE pg_task.task SET priority = 7 WHERE id = '{id}'")).await?;
    db.run("INSERT INTO gate VALUES (true)").await?;
    db.until_done().await?;
    running.end().await?;
    assert_eq!(lines(&log), ["a default Test/Transaction 1: Done", "a default Test/Transaction 1: Refused"]);
    assert_eq!(db.ask("SELECT count(*) FROM effect").await?, "1");
    Ok(())
}
