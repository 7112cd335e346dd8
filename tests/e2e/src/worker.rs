//! The worker that the end-to-end tests start in processes of its own. What its steps do, they note in the file `LEDGER`.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use pg_task::Context;
use pg_task::NextStep;
use pg_task::Retry;
use pg_task::RetryPolicy;
use pg_task::Step;
use pg_task::StepError;
use pg_task::StepResult;
use pg_task::Tx;
use pg_task::Worker;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Test {
    Abort,
    Chain,
    CrashMachine,
    Exact,
    Fail,
    Flaky,
    Hang,
    Later,
    Linger,
    Meta,
    Note,
    Panic,
    Report,
    Return,
    Sleep,
    Slow,
    Turn
});
pg_task::scheduler!(Tasks { Test });

/// The ledger's file.
struct Ledger(Mutex<std::fs::File>);

impl Ledger {
    fn note(&self, line: &str) -> std::io::Result<()> {
        let mut file = self.0.lock().expect("no holder of the lock panics");
        file.write_all(format!("{line}\n").as_bytes())
    }
}

/// Notes its key.
#[derive(Debug, Deserialize, Serialize)]
pub struct Note {
    key: String,
}

impl Step<Test, Context> for Note {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        cx.state::<Ledger>().note(&self.key)?;
        NextStep::none()
    }
}

/// Returns its value.
#[derive(Debug, Deserialize, Serialize)]
pub struct Return {
    value: serde_json::Value,
}

impl Step<Test, Context> for Return {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        cx.set_result(&"replaced")?;
        cx.set_result(&self.value)?;
        NextStep::none()
    }
}

/// Says of its progress what the table `say` has for its key, again and again, until that is `end`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    key: String,
}

impl Step<Test, Context> for Report {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        cx.state::<Ledger>().note(&format!("{} begins", self.key))?;
        let mut said = 0;
        loop {
            let row: Result<Option<(Option<f64>, String)>, _> =
                sqlx::query_as("SELECT value, text FROM say WHERE key = $1")
                    .bind(&self.key)
                    .fetch_optional(cx.db())
                    .await;
            match row {
                Ok(Some((_, text))) if text == "end" => break,
                Ok(Some((value, text))) => {
                    cx.set_progress(value, text);
                    said += 1;
                }
                // There is nothing to say yet, or the server is being restarted.
                Ok(None) | Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cx.state::<Ledger>().note(&format!("{} {said}", self.key))?;
        NextStep::none()
    }
}

/// Notes the task's own metadata, twice: also that of a next step which stays with the worker.
#[derive(Debug, Deserialize, Serialize)]
pub struct Meta {
    again: bool,
}

impl Step<Test, Context> for Meta {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        cx.state::<Ledger>().note(&cx.meta().to_string())?;
        if self.again { NextStep::now(Meta { again: false }) } else { NextStep::none() }
    }
}

/// Notes its key and how many steps are left, then goes on.
#[derive(Debug, Deserialize, Serialize)]
pub struct Chain {
    key: String,
    left: u32,
}

impl Step<Test, Context> for Chain {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        let Self { key, left } = self;
        cx.state::<Ledger>().note(&format!("{key} {left} {}", cx.token()))?;
        match left {
            0 => NextStep::none(),
            left => {
                cx.set_result(&left)?;
                NextStep::now(Chain { key, left: left - 1 })
            }
        }
    }
}

/// Goes on with a note after a delay.
#[derive(Debug, Deserialize, Serialize)]
pub struct Later {
    key: String,
    millis: u64,
}

impl Step<Test> for Later {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        NextStep::delay(Note { key: self.key }, Duration::from_millis(self.millis))
    }
}

/// Goes on for a while after it was asked to end, which is well within what it is given for that, and ends well.
#[derive(Debug, Deserialize, Serialize)]
pub struct Linger {
    key: String,
}

impl Step<Test, Context> for Linger {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        let ledger = cx.state::<Ledger>();
        ledger.note(&format!("{} begins", self.key))?;
        cx.cancelled().await;
        ledger.note(&format!("{} cancelled", self.key))?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        NextStep::none()
    }
}

/// Notes that it began, and never ends, nor when it is asked to.
#[derive(Debug, Deserialize, Serialize)]
pub struct Hang {
    key: String,
}

impl Step<Test, Context> for Hang {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        cx.state::<Ledger>().note(&format!("{} begins", self.key))?;
        std::future::pending().await
    }
}

/// Fails until the attempt of the given number.
#[derive(Debug, Deserialize, Serialize)]
pub struct Fail {
    until_attempt: i32,
}

impl Step<Test, Context> for Fail {
    const RETRY_LIMIT: i32 = 2;
    const RETRY_DELAY: Duration = Duration::from_millis(50);

    async fn step(self, cx: &Context) -> StepResult<Test> {
        cx.state::<Ledger>().note(&format!("attempt {}", cx.attempt()))?;
        if cx.attempt() < self.until_attempt {
            let cause = std::io::Error::other("the disk is on fire");
            return Err(Box::new(Outer(cause)));
        }
        NextStep::none()
    }
}

/// Takes too long: it ends when it is asked to (`ends`, well; `fails`, not), or never.
#[derive(Debug, Deserialize, Serialize)]
pub struct Slow {
    how: String,
}

impl Step<Test, Context> for Slow {
    const TIMEOUT: Option<Duration> = Some(Duration::from_millis(100));

    async fn step(self, cx: &Context) -> StepResult<Test> {
        let ledger = cx.state::<Ledger>();
        ledger.note(&format!("{} begins", self.how))?;
        match self.how.as_str() {
            "ends" => cx.cancelled().await,
            "fails" => {
                cx.cancelled().await;
                return Err("it took too long".into());
            }
            "patient" => tokio::time::sleep(Duration::from_millis(300)).await,
            _ => std::future::pending().await,
        }
        ledger.note(&format!("{} ends", self.how))?;
        NextStep::none()
    }
}

/// Fails in every way there is: `plain`, `never` (for good), `after` (again after an hour), `snooze` (is not ready at its first run), `undo` (goes
/// on with a note instead of being parked), `undo abort` (the same, and takes its process down).
#[derive(Debug, Deserialize, Serialize)]
pub struct Flaky {
    how: String,
}

#[derive(Debug)]
struct Busy;

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("busy")
    }
}

impl std::error::Error for Busy {}

impl Step<Test, Context> for Flaky {
    const RETRY: RetryPolicy =
        RetryPolicy::exponential(3, Duration::from_millis(10)).max_delay(Duration::from_millis(20));

    async fn step(self, cx: &Context) -> StepResult<Test> {
        let ledger = cx.state::<Ledger>();
        ledger.note(&format!("{} {}", self.how, cx.attempt()))?;
        match self.how.as_str() {
            "never" => Err(pg_task::non_retryable("no such order")),
            "after" => Err(pg_task::retry_after("come back later", Duration::from_secs(3_600))),
            "busy" => Err(Busy.into()),
            "snooze" if cx.due_at().timestamp_subsec_micros().is_multiple_of(2) => {
                NextStep::snooze(Duration::from_millis(1))
            }
            "snooze" => NextStep::none(),
            "undo abort" => std::process::abort(),
            _ => Err("not today".into()),
        }
    }

    fn retry(attempt: i32, error: &StepError) -> Retry {
        match error.is::<Busy>() {
            // One that it knows does not wait as long, and not as often.
            true if attempt > 1 => Retry::GiveUp,
            true => Retry::After(Duration::from_millis(1)),
            false => Self::RETRY.after(attempt),
        }
    }

    fn give_up(self, error: &StepError) -> Option<Test> {
        self.how.starts_with("undo").then(|| Note { key: format!("undone: {error}") }.into())
    }
}

#[derive(Debug)]
struct Outer(std::io::Error);

impl std::fmt::Display for Outer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the report could not be written")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Panics.
#[derive(Debug, Deserialize, Serialize)]
pub struct Panic;

impl Step<Test> for Panic {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        panic!("the step was not ready for this")
    }
}

/// Takes the whole process down.
#[derive(Debug, Deserialize, Serialize)]
pub struct Abort;

impl Step<Test> for Abort {
    async fn step(self, _db: &PgPool) -> StepResult<Test> {
        std::process::abort()
    }
}

/// Takes the server and its own process down, as the end of their machine would.
#[derive(Debug, Deserialize, Serialize)]
pub struct CrashMachine;

impl Step<Test, Context> for CrashMachine {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        cx.state::<Ledger>().note(&format!("attempt {}", cx.attempt()))?;
        // The shell's parent is the backend; when that is killed the postmaster restarts everything.
        let _ = sqlx::query("COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'").execute(cx.db()).await;
        std::process::abort()
    }
}

/// Writes a row into the table `effect` and enqueues a child, in the transaction of its transition.
#[derive(Debug, Deserialize, Serialize)]
pub struct Exact {
    key: String,
    left: u32,
    /// What goes wrong in its first attempt: nothing, `fails`, `panics`, `breaks` (a statement whose error it swallows), `savepoint`, `large`
    /// (the next step), `waits` (until the table `gate` has a row).
    how: String,
}

impl Step<Test, Tx> for Exact {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::from_millis(50);

    async fn step(self, tx: &Tx) -> StepResult<Test> {
        let Self { key, left, how } = self;
        let (ledger, first) = (tx.context().state::<Ledger>(), tx.context().attempt() == 1);
        ledger.note(&format!("{key} {left} {}", tx.context().token()))?;
        sqlx::query("INSERT INTO effect (key, seq) VALUES ($1, $2)")
            .bind(&key)
            .bind(i64::from(left))
            .execute(tx)
            .await?;
        let child = Tasks::Test(Note { key: format!("child of {key} {left}") }.into());
        pg_task::Enqueue::new().queue("children").enqueue(tx, &child).await?;
        match how.as_str() {
            "fails" if first => return Err("not in this attempt".into()),
            "panics" if first => panic!("the step was not ready for this"),
            "breaks" if first => assert!(sqlx::query("SELECT 1 / 0").execute(tx).await.is_err()),
            "savepoint" if first => _ = sqlx::query("SAVEPOINT open").execute(tx).await?,
            "large" if first => {
                return NextStep::now(Exact { key: "x".repeat(9 << 20), left, how });
            }
            "waits" => loop {
                // On other connections: this one's statements belong to the step.
                let open: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM gate)")
                    .fetch_one(tx.context().db())
                    .await?;
                if open {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            },
            _ => {}
        }
        // What a step that goes on, or fails, sets is not what the task returns.
        tx.context().set_result(&key)?;
        match left {
            0 => NextStep::none(),
            left => NextStep::now(Exact { key, left: left - 1, how }),
        }
    }
}

/// One of a group: notes that it began and how it ended. Fails so often before each step's end.
#[derive(Debug, Deserialize, Serialize)]
pub struct Turn {
    key: String,
    left: u32,
    fails: i32,
    millis: u64,
}

impl Step<Test, Context> for Turn {
    const RETRY_LIMIT: i32 = 2;
    const RETRY_DELAY: Duration = Duration::from_millis(50);

    async fn step(self, cx: &Context) -> StepResult<Test> {
        let Self { key, left, fails, millis } = self;
        cx.state::<Ledger>().note(&format!("{key} begins"))?;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        if cx.attempt() <= fails {
            cx.state::<Ledger>().note(&format!("{key} fails"))?;
            return Err("not in this attempt".into());
        }
        match left {
            0 => {
                cx.state::<Ledger>().note(&format!("{key} ends"))?;
                NextStep::none()
            }
            left if left % 2 == 0 => {
                NextStep::delay(Turn { key, left: left - 1, fails, millis }, Duration::from_millis(20))
            }
            left => NextStep::now(Turn { key, left: left - 1, fails, millis }),
        }
    }
}

/// Notes that it began, waits, and notes how it ended.
#[derive(Debug, Deserialize, Serialize)]
pub struct Sleep {
    key: String,
    millis: u64,
}

impl Step<Test, Context> for Sleep {
    async fn step(self, cx: &Context) -> StepResult<Test> {
        let ledger = cx.state::<Ledger>();
        ledger.note(&format!("{} begins", self.key))?;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(self.millis)) => ledger.note(&format!("{} ends", self.key))?,
            () = cx.cancellation().cancelled() => ledger.note(&format!("{} cancelled", self.key))?,
        }
        NextStep::none()
    }
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    let db =
        sqlx::postgres::PgPoolOptions::new().max_connections(2).connect(&variable("DATABASE_URL")?).await?;
    let ledger = std::fs::OpenOptions::new().append(true).open(variable("LEDGER")?)?;
    let lease = Duration::from_millis(variable("LEASE_MS")?.parse()?);
    let mut worker = Worker::<Tasks>::new(db)
        .with_name("e2e")
        .with_concurrency(variable("CONCURRENCY")?.parse::<NonZeroUsize>()?)
        .with_lease_timeout(lease)
        .with_heartbeat_interval(lease / 3)
        .with_state(Ledger(Mutex::new(ledger)));
    let queues = variable("QUEUES")?;
    if queues.contains('=') {
        // A queue and its weight.
        let weighted = queues.split(',').map(|queue| {
            let (queue, weight) = queue.split_once('=').context("a queue without a weight")?;
            anyhow::Ok((queue, weight.parse::<u16>()?))
        });
        worker = worker.with_queue_weights(weighted.collect::<anyhow::Result<Vec<_>>>()?);
    } else if !queues.is_empty() {
        worker = worker.with_queues(queues.split(','));
    }
    if let Ok(polling) = variable("POLLING_MS") {
        worker = worker.with_polling(Duration::from_millis(polling.parse()?));
    }
    worker.run().await?;
    Ok(())
}
