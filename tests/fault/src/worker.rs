//! The worker of the fault runs, in a process of its own: the real client crate, with steps that note in the ledger what they do.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::Tx;
use pg_task::Worker;
use pg_task_fault::ledger;
use pg_task_fault::ledger::End;
use pg_task_fault::ledger::Entry;
use pg_task_fault::ledger::Ledger;
use pg_task_fault::ledger::Run;
use pg_task_fault::plan::Kind;
use serde::Deserialize;
use serde::Serialize;

pg_task::task!(Load {
    Chain,
    Collect,
    Doomed,
    Exact,
    Expired,
    Fenced,
    Flaky,
    Future,
    Hasty,
    Heir,
    Later,
    Nap,
    Noop,
    Patient,
    Slow,
    Tardy,
    Twin,
});
pg_task::task!(Clock { Tick });
pg_task::scheduler!(Tasks { Clock, Load });

/// What the steps share.
struct World {
    ledger: Ledger,
    mended: PathBuf,
}

/// Notes that the step begins.
fn begin(cx: &Context, key: u64, seq: u32, via: i64) -> std::io::Result<()> {
    let (token, attempt, worker) = (cx.token(), cx.attempt(), std::process::id());
    cx.state::<World>().ledger.note(key, Entry::Began(Run { seq, token, attempt, via, worker }))
}

/// Notes what the step ends in.
fn end(cx: &Context, key: u64, seq: u32, end: End) -> std::io::Result<()> {
    cx.state::<World>().ledger.note(key, Entry::Ended(seq, cx.token(), end))
}

macro_rules! payload {
    ($(#[$doc:meta] $name:ident)*) => {
        $(
            #[$doc]
            #[derive(Debug, Deserialize, Serialize)]
            pub struct $name {
                key: u64,
                seq: u32,
                last: u32,
                via: i64,
                #[serde(default)]
                mark: u64,
            }

            impl $name {
                /// The step after this one. What an operator has marked stays marked.
                #[allow(dead_code, reason = "some have none")]
                fn next(&self, cx: &Context) -> Self {
                    let Self { key, seq, last, mark, .. } = *self;
                    Self { key, seq: seq + 1, last, via: cx.token(), mark }
                }
            }
        )*
    };
}

payload! {
    /// Goes on at once until its last step.
    Chain
    /// Takes away all that was wished for by a name, which is in `last`.
    Collect
    /// Fails until the world is mended.
    Doomed
    /// Writes a row in the transaction of its transition.
    Exact
    /// Does nothing, when it is allowed to begin.
    Expired
    /// Writes with its token as a fence.
    Fenced
    /// Fails in its first attempts.
    Flaky
    /// Must not run.
    Future
    /// Does nothing, if it begins.
    Hasty
    /// Fails in its first attempts, and says nothing of retries and time.
    Heir
    /// Goes on after delays.
    Later
    /// Takes a few hundredths of a second.
    Nap
    /// Does nothing.
    Noop
    /// Fails in its first attempts, and says nothing of retries.
    Patient
    /// Takes its time.
    Slow
    /// Takes too much time in its first attempts.
    Tardy
    /// Writes its id in the transaction of its transition.
    Twin
}

macro_rules! does_nothing {
    ($($name:ident)*) => {
        $(
            impl Step<Load, Context> for $name {
                async fn step(self, cx: &Context) -> StepResult<Load> {
                    begin(cx, self.key, self.seq, self.via)?;
                    end(cx, self.key, self.seq, End::Done)?;
                    NextStep::none()
                }
            }
        )*
    };
}

does_nothing! { Expired Hasty Noop }

impl Step<Load, Context> for Chain {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        let Self { key, seq, last, via, .. } = self;
        begin(cx, key, seq, via)?;
        if seq == last {
            end(cx, key, seq, End::Done)?;
            return NextStep::none();
        }
        end(cx, key, seq, End::Next)?;
        NextStep::now(self.next(cx))
    }
}

impl Step<Load, Context> for Later {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        let Self { key, seq, last, via, .. } = self;
        begin(cx, key, seq, via)?;
        if seq == last {
            end(cx, key, seq, End::Done)?;
            return NextStep::none();
        }
        end(cx, key, seq, End::Next)?;
        let delay = Duration::from_millis(key % 7 * 100);
        NextStep::delay(self.next(cx), delay)
    }
}

impl Step<Load, Context> for Nap {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        let Self { key, seq, last, via, .. } = self;
        begin(cx, key, seq, via)?;
        tokio::time::sleep(Duration::from_millis(10 + key % 6 * 10)).await;
        if seq == last {
            end(cx, key, seq, End::Done)?;
            return NextStep::none();
        }
        end(cx, key, seq, End::Next)?;
        NextStep::now(self.next(cx))
    }
}

impl Step<Load, Context> for Flaky {
    const RETRY_LIMIT: i32 = 6;
    const RETRY_DELAY: Duration = Duration::from_millis(50);

    async fn step(self, cx: &Context) -> StepResult<Load> {
        begin(cx, self.key, self.seq, self.via)?;
        if cx.attempt() <= self.last as i32 {
            end(cx, self.key, self.seq, End::Failed)?;
            return Err("not in this attempt".into());
        }
        end(cx, self.key, self.seq, End::Done)?;
        NextStep::none()
    }
}

impl Step<Load, Context> for Patient {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        begin(cx, self.key, self.seq, self.via)?;
        if cx.attempt() <= self.last as i32 {
            end(cx, self.key, self.seq, End::Failed)?;
            return Err("not in this attempt".into());
        }
        end(cx, self.key, self.seq, End::Done)?;
        NextStep::none()
    }
}

/// Notes that a step failed when it is dropped in its middle.
struct Dropped<'a> {
    cx: &'a Context,
    key: u64,
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        let _ = end(self.cx, self.key, 0, End::Failed);
    }
}

impl Step<Load, Context> for Tardy {
    const RETRY_LIMIT: i32 = 6;
    const RETRY_DELAY: Duration = Duration::from_millis(50);
    const TIMEOUT: Option<Duration> = Some(Duration::from_millis(80));

    async fn step(self, cx: &Context) -> StepResult<Load> {
        begin(cx, self.key, self.seq, self.via)?;
        if cx.attempt() <= self.last as i32 {
            let _noted = Dropped { cx, key: self.key };
            // Now and then it does not hear that its time is up.
            if !self.key.is_multiple_of(8) {
                cx.cancelled().await;
                return Err("there was no time".into());
            }
            std::future::pending::<()>().await;
        }
        end(cx, self.key, self.seq, End::Done)?;
        NextStep::none()
    }
}

impl Step<Load, Context> for Heir {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        begin(cx, self.key, self.seq, self.via)?;
        let mended = cx.state::<World>().mended.join(self.key.to_string()).exists();
        if !mended && cx.attempt() <= self.last as i32 {
            let _noted = Dropped { cx, key: self.key };
            if self.key.is_multiple_of(2) {
                return Err("not in this attempt".into());
            }
            // Its queue says how long it may take.
            cx.cancelled().await;
            return Err("there was no time".into());
        }
        end(cx, self.key, self.seq, End::Done)?;
        NextStep::none()
    }
}

impl Step<Load, Tx> for Twin {
    const RETRY_LIMIT: i32 = 20;
    const RETRY_DELAY: Duration = Duration::from_millis(200);

    async fn step(self, tx: &Tx) -> StepResult<Load> {
        let Self { key, seq, via, .. } = self;
        let cx = tx.context();
        begin(cx, key, seq, via)?;
        let mended = cx.state::<World>().mended.join(key.to_string()).exists();
        if !mended && key.is_multiple_of(2) {
            end(cx, key, seq, End::Failed)?;
            return Err(pg_task::non_retryable("the world is broken"));
        }
        let written = sqlx::query("INSERT INTO twin (key, id) VALUES ($1, $2)")
            .persistent(false)
            .bind(key as i64)
            .bind(cx.task_id())
            .execute(tx)
            .await;
        if let Err(error) = written {
            end(cx, key, seq, End::Failed)?;
            return Err(error.into());
        }
        end(cx, key, seq, End::Done)?;
        NextStep::none()
    }
}

impl Step<Load, Context> for Doomed {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::from_millis(20);

    async fn step(self, cx: &Context) -> StepResult<Load> {
        begin(cx, self.key, self.seq, self.via)?;
        if !cx.state::<World>().mended.join(self.key.to_string()).exists() {
            end(cx, self.key, self.seq, End::Failed)?;
            return Err("the world is broken".into());
        }
        end(cx, self.key, self.seq, End::Done)?;
        NextStep::none()
    }
}

impl Step<Load, Context> for Slow {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        let Self { key, seq, last, via, .. } = self;
        begin(cx, key, seq, via)?;
        let millis = 300 + key % 10 * 300;
        // Whose progress it is can be told by whoever sees it.
        let tell = async {
            for part in 1..=10 {
                tokio::time::sleep(Duration::from_millis(millis / 10)).await;
                cx.set_progress(f64::from(part) / 10.0, format_args!("{} {}", cx.task_id(), cx.token()));
            }
        };
        tokio::select! {
            () = tell => {}
            () = cx.cancellation().cancelled() => {
                // Its result is refused, whatever it says.
                end(cx, key, seq, End::Cancelled)?;
                return NextStep::none();
            }
        }
        if seq == last {
            end(cx, key, seq, End::Done)?;
            return NextStep::none();
        }
        // A worker that was away meanwhile brings this when others may have gone on.
        end(cx, key, seq, End::Next)?;
        let next = self.next(cx);
        if key.is_multiple_of(2) {
            NextStep::now(next)
        } else {
            NextStep::delay(next, Duration::from_millis(millis))
        }
    }
}

impl Step<Load, Context> for Fenced {
    const RETRY_LIMIT: i32 = 20;
    const RETRY_DELAY: Duration = Duration::from_millis(200);

    async fn step(self, cx: &Context) -> StepResult<Load> {
        begin(cx, self.key, self.seq, self.via)?;
        let written = write(cx, self.key).await;
        let written = match written {
            Ok(rows) => rows == 1,
            Err(error) => {
                end(cx, self.key, self.seq, End::Failed)?;
                return Err(error.into());
            }
        };
        if !written {
            // A later attempt has written: this one's result will be refused.
            end(cx, self.key, self.seq, End::Failed)?;
            return Err("a larger token has written before".into());
        }
        end(cx, self.key, self.seq, End::Done)?;
        NextStep::none()
    }
}

/// Writes the token unless a larger one is there; returns how many rows were written. In a transaction, because the worker may be behind
/// a pooler that gives each transaction another session.
async fn write(cx: &Context, key: u64) -> sqlx::Result<u64> {
    let mut transaction = cx.db().begin().await?;
    let written = sqlx::query(
        "INSERT INTO effect (key, token) VALUES ($1, $2) \
         ON CONFLICT (key) DO UPDATE SET token = EXCLUDED.token WHERE effect.token < EXCLUDED.token",
    )
    .persistent(false)
    .bind(key as i64)
    .bind(cx.token())
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(written.rows_affected())
}

impl Step<Load, Tx> for Exact {
    const RETRY_LIMIT: i32 = 20;
    const RETRY_DELAY: Duration = Duration::from_millis(200);

    async fn step(self, tx: &Tx) -> StepResult<Load> {
        let Self { key, seq, last, via, .. } = self;
        let cx = tx.context();
        begin(cx, key, seq, via)?;
        let written = sqlx::query("INSERT INTO exact (key, seq, token) VALUES ($1, $2, $3)")
            .persistent(false)
            .bind(key as i64)
            .bind(i64::from(seq))
            .bind(cx.token())
            .execute(tx)
            .await;
        if let Err(error) = written {
            end(cx, key, seq, End::Failed)?;
            return Err(error.into());
        }
        if seq == last {
            end(cx, key, seq, End::Done)?;
            return NextStep::none();
        }
        end(cx, key, seq, End::Next)?;
        NextStep::now(self.next(cx))
    }
}

impl Step<Load, Tx> for Collect {
    const RETRY_LIMIT: i32 = 20;
    const RETRY_DELAY: Duration = Duration::from_millis(200);

    async fn step(self, tx: &Tx) -> StepResult<Load> {
        let Self { key, seq, last, via, .. } = self;
        let cx = tx.context();
        begin(cx, key, seq, via)?;
        let taken = sqlx::query("DELETE FROM wish WHERE name = $1")
            .persistent(false)
            .bind(i64::from(last))
            .execute(tx)
            .await;
        if let Err(error) = taken {
            end(cx, key, seq, End::Failed)?;
            return Err(error.into());
        }
        end(cx, key, seq, End::Done)?;
        NextStep::none()
    }
}

impl Step<Load, Context> for Future {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        begin(cx, self.key, self.seq, self.via)?;
        NextStep::none()
    }
}

/// What a schedule enqueues: writes its tick into a table, in the transaction of its transition.
#[derive(Debug, Deserialize, Serialize)]
pub struct Tick {
    schedule: String,
    at: sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc>,
}

impl Step<Clock, Tx> for Tick {
    // Never parked: a parked task would not hold up the next tick.
    const RETRY_LIMIT: i32 = 1_000;
    const RETRY_DELAY: Duration = Duration::from_millis(200);

    async fn step(self, tx: &Tx) -> StepResult<Clock> {
        let Self { schedule, at } = self;
        let (task, second) = (tx.context().task_id(), at.timestamp());
        let note = |ends| {
            let tick = ledger::Tick { schedule: schedule.clone(), at: second, task, ends };
            tx.context().state::<World>().ledger.note(0, Entry::Ticked(tick))
        };
        note(false)?;
        if ["alone", "in-turn"].contains(&&*schedule) {
            // Now and then longer than the time to the next tick.
            tokio::time::sleep(Duration::from_millis(second as u64 % 4 * 400)).await;
        }
        sqlx::query("INSERT INTO ticked (schedule, at, task) VALUES ($1, $2, $3)")
            .persistent(false)
            .bind(&schedule)
            .bind(at)
            .bind(task)
            .execute(tx)
            .await?;
        note(true)?;
        NextStep::none()
    }
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

fn millis(name: &str) -> anyhow::Result<Duration> {
    Ok(Duration::from_millis(variable(name)?.parse()?))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    // The plans' retry limits are the steps': the check relies on it.
    assert_eq!(Kind::Flaky.retry_limit(), Flaky::RETRY_LIMIT);
    assert_eq!(Kind::Tardy.retry_limit(), Tardy::RETRY_LIMIT);
    assert_eq!(Kind::Doomed.retry_limit(), Doomed::RETRY_LIMIT);
    assert_eq!(Kind::Collect.retry_limit(), Collect::RETRY_LIMIT);
    assert_eq!(Kind::Exact.retry_limit(), Exact::RETRY_LIMIT);
    assert_eq!(Kind::Fenced.retry_limit(), Fenced::RETRY_LIMIT);
    assert_eq!(Kind::Twin.retry_limit(), Twin::RETRY_LIMIT);
    let db = sqlx::postgres::PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy(&variable("DATABASE_URL")?)?;
    let world =
        World { ledger: Ledger::open(variable("LEDGER")?.as_ref())?, mended: variable("MENDED")?.into() };
    let lease = millis("LEASE_MS")?;
    let mut worker = Worker::<Tasks>::new(db)
        .with_name(variable("NAME")?)
        .with_concurrency(variable("CONCURRENCY")?.parse::<NonZeroUsize>()?)
        .with_lease_timeout(lease)
        .with_heartbeat_interval(lease / 5)
        .with_state(world);
    let queues = variable("QUEUES")?;
    if !queues.is_empty() {
        worker = worker.with_queues(queues.split(','));
    }
    if let Ok(polling) = millis("POLLING_MS") {
        worker = worker.with_polling(polling);
    }
    worker.run().await?;
    Ok(())
}
