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
use pg_task_cluster::workspace_root;
use pg_task_e2e::Database;
use pg_task_e2e::seed;
use pg_task_e2e::shared_server;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pg_task::task!(Test { Child, Parent, Pool, Transaction, With });
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

/// Enqueues children, in every way that there is, and goes on.
#[derive(Debug, Deserialize, Serialize)]
pub struct Parent {
    again: bool,
}

impl Step<Test, Context> for Parent {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::ZERO;

    async fn step(self, cx: &Context) -> StepResult<Test> {
        let children = pg_task::Enqueue::new().queue("children").tags(&["child"]);
        if self.again && cx.attempt() == 1 {
            return Err("once more".into());
        }
        if self.again {
            children.enqueue(cx.db(), &child("enqueue")).await?;
            children.delay(cx.db(), &child("delay"), Duration::from_secs(1)).await?;
            children.enqueue_many(cx.db(), &[child("many")]).await?;
            let mut connection = cx.db().acquire().await?;
            children.enqueue_copy(&mut connection, [child("copy")]).await?;
            return NextStep::now(Self { again: false });
        }
        children.enqueue(cx.db(), &child("later step")).await?;
        children.traceparent(OTHER).enqueue(cx.db(), &child("another")).await?;
        pg_task::with_traceparent(OTHER, children.enqueue(cx.db(), &child("within"))).await?;
        NextStep::none()
    }
}

fn child(name: &str) -> Tasks {
    Tasks::Test(Child { name: name.to_owned() }.into())
}

/// Is only looked at.
#[derive(Debug, Deserialize, Serialize)]
pub struct Child {
    name: String,
}

impl Step<Test> for Child {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        NextStep::none()
    }
}

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

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
        if let Some(written) = cx.extension::<Notify>() {
            written.notify_one();
        }
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

/// Drops the first attempt when its transaction has written.
struct DropFirst;

impl Layer for DropFirst {
    async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
        if cx.attempt() > 1 {
            return next.run().await;
        }
        cx.insert(Notify::new());
        let written = cx.extension::<Notify>().ok_or("it was inserted")?;
        tokio::select! {
            result = next.run() => result,
            () = written.notified() => Err("it took too long".into()),
        }
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
async fn a_step_that_a_layer_drops_leaves_nothing_and_is_an_attempt() -> Result<()> {
    let (db, log) = (database().await?, Log::default());
    let worker = Worker::<Tasks>::new(db.pool.clone()).with_layer(Note(log.clone())).with_layer(DropFirst);
    let running = Running::start(worker);
    pg_task::enqueue(&db.pool, &transaction("a", true)).await?;
    // The second attempt waits, in a transaction of its own.
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE tried = 1").await?;
    db.run("INSERT INTO gate VALUES (true)").await?;
    db.until_done().await?;
    running.end().await?;
    assert_eq!(db.ask("SELECT string_agg(key, ',') FROM effect").await?, "a");
    assert_eq!(
        lines(&log),
        ["a default Test/Transaction 1: it took too long; again", "a default Test/Transaction 2: Done"]
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

/// Notes the options of each attempt.
struct NoteOptions(Log);

impl Layer for NoteOptions {
    async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
        let line = format!("{} {:?} {:?} {}", cx.attempt(), cx.traceparent(), cx.tags(), cx.meta());
        self.0.lock().expect("no holder panics").push(line);
        next.run().await
    }
}

/// The children and what they carry: name, trace context, tags.
const CHILDREN: &str = "SELECT string_agg(concat_ws(' ', step #>> '{Test,Child,name}', options ->> 'traceparent', options -> 'tags'),
    '; ' ORDER BY step #>> '{Test,Child,name}' COLLATE \"C\") FROM pg_task.task WHERE queue = 'children'";

fn expected(names: &[(&str, &str)]) -> String {
    let line = |(name, trace): &(&str, &str)| match *trace {
        "" => format!(r#"{name} ["child"]"#),
        trace => format!(r#"{name} {trace} ["child"]"#),
    };
    names.iter().map(line).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn a_trace_context_is_carried_from_the_producer_to_the_steps_and_what_they_enqueue() -> Result<()> {
    // With layers and without.
    for layered in [true, false] {
        let (db, log) = (database().await?, Log::default());
        let worker = Worker::<Tasks>::new(db.pool.clone()).with_queues(["default"]);
        let worker = if layered { worker.with_layer(NoteOptions(log.clone())) } else { worker };
        let parent = Tasks::Test(Parent { again: true }.into());
        let enqueue = pg_task::Enqueue::new().tags(&["a", "b"]);
        pg_task::with_traceparent(TRACE, enqueue.enqueue(&db.pool, &parent)).await?;
        let running = Running::start(worker);
        db.until("SELECT count(*) = 0 FROM pg_task.task WHERE queue = 'default'").await?;
        running.end().await?;
        let all = ["copy", "delay", "enqueue", "later step", "many"].map(|name| (name, TRACE));
        let mut all = [&[("another", OTHER)], &all[..], &[("within", OTHER)]].concat();
        all.sort_unstable();
        let children = db.ask(&CHILDREN.replace("\\", "")).await?.replace("\"\"", "\"");
        assert_eq!(children, expected(&all), "layered: {layered}");
        let seen = |attempt| format!(r#"{attempt} Some("{TRACE}") ["a", "b"] null"#);
        let seen = if layered { vec![seen(1), seen(1), seen(2)] } else { Vec::new() };
        assert_eq!(lines(&log), seen);
    }
    Ok(())
}

#[tokio::test]
async fn without_a_trace_context_nothing_is_carried() -> Result<()> {
    let (db, log) = (database().await?, Log::default());
    let worker = Worker::<Tasks>::new(db.pool.clone()).with_queues(["default"]);
    let running = Running::start(worker.with_layer(NoteOptions(log.clone())));
    pg_task::enqueue(&db.pool, &Tasks::Test(Parent { again: true }.into())).await?;
    db.until("SELECT count(*) = 0 FROM pg_task.task WHERE queue = 'default'").await?;
    running.end().await?;
    let without = "SELECT count(*) FROM pg_task.task WHERE NOT options ? 'traceparent' AND options ? 'tags'";
    assert_eq!(db.ask(without).await?, "5");
    assert_eq!(lines(&log), ["1 None [] null", "1 None [] null", "2 None [] null"]);
    Ok(())
}

#[tokio::test]
async fn tasks_are_found_by_tags_meta_and_trace_and_an_index_of_the_user_s_is_used() -> Result<()> {
    let db = database().await?;
    for (name, options) in [
        ("one", json!({ "tags": ["a", "b"], "meta": { "tenant": "acme", "n": 1 } })),
        ("two", json!({ "tags": ["b"], "meta": { "tenant": "other" }, "traceparent": TRACE })),
        ("three", json!({ "tags": ["A"], "traceparent": OTHER })),
        ("four", json!({})),
    ] {
        let step = serde_json::to_string(&child(name))?;
        db.run(&format!("SELECT pg_task.enqueue('{step}', options => '{options}')")).await?;
    }
    pg_task::enqueue(&db.pool, &child("five")).await?;
    let found = async |call: &str| {
        let names = "string_agg(step #>> '{Test,Child,name}', ' ' ORDER BY id)";
        db.ask(&format!("SELECT {names} FROM pg_task.find({call})")).await
    };
    for again in [false, true] {
        assert_eq!(found("tags => '{b}'").await?, "one two");
        assert_eq!(found("tags => '{b,a}'").await?, "one");
        assert_eq!(found("tags => '{b}', meta => '{\"tenant\": \"other\"}'").await?, "two");
        assert_eq!(found("meta => '{\"n\": 1}'").await?, "one");
        assert_eq!(found("trace => '0af7651916cd43dd8448eb211c80319c'").await?, "two");
        assert_eq!(found("trace => '0af7651916cd43dd8448eb211c80319c', tags => '{a}'").await?, "");
        assert_eq!(found("tags => '{}'").await?, "one two three");
        // Whatever has options.
        assert_eq!(found("").await?, "one two three four");
        if !again {
            db.run(
                "CREATE INDEX task_options ON pg_task.task USING gin (options jsonb_path_ops) WHERE options IS NOT NULL",
            )
            .await?;
        }
    }
    let mut connection = db.pool.acquire().await?;
    sqlx::query("SET enable_seqscan = off").execute(&mut *connection).await?;
    let id = "SELECT id FROM pg_task.find(tags => '{b}')";
    assert_eq!(sqlx::query(id).fetch_all(&mut *connection).await?.len(), 2);
    // Its counters are sent at the latest when the session ends.
    sqlx::Connection::close(connection.detach()).await?;
    db.until("SELECT idx_scan > 0 FROM pg_stat_user_indexes WHERE indexrelname = 'task_options'").await?;
    // What waits and what is parked shows its options.
    db.run("UPDATE pg_task.task SET error = 'by hand' WHERE options @> '{\"tags\": [\"a\"]}'").await?;
    assert_eq!(db.ask("SELECT options #>> '{meta,tenant}' FROM pg_task.failed").await?, "acme");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_with_opentelemetry_shows_one_trace_from_the_request_to_the_task_of_a_task() -> Result<()>
{
    let db = database().await?;
    let mut cargo = seed::cargo(&workspace_root().join("Cargo.toml"), "run");
    cargo.args(["-p", "pg_task_examples", "--features", "opentelemetry", "--example", "opentelemetry"]);
    let said = seed::run(cargo.env("DATABASE_URL", &db.url).env_remove("CARGO_MANIFEST_DIR"))?;
    let mut lines: Vec<&str> =
        said.lines().filter_map(|line| line.split_once(", in trace ").map(|(span, _)| span)).collect();
    lines.sort_unstable();
    let expected = [
        "Order/Charge is part of request",
        "Order/Mail is part of Order/Charge",
        "request is part of nothing",
    ];
    assert_eq!(lines, expected, "{said}");
    let traces: std::collections::BTreeSet<&str> =
        said.lines().filter_map(|line| line.split_once(", in trace ").map(|(_, trace)| trace)).collect();
    assert_eq!(traces.len(), 1, "{said}");
    Ok(())
}
