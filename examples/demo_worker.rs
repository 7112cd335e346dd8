//! The worker of `cargo xtask demo`.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::time::Duration;

use anyhow::Context as _;
use chrono::DateTime;
use chrono::Utc;
use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Greeter { ReadName, SayHello });
pg_task::task!(Order { Deliver });
pg_task::task!(Probe { Lateness, Latency, Sum });
pg_task::scheduler!(Tasks { Greeter, Order, Probe });

/// What the steps share.
struct Application {
    endpoint: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct ReadName {
    filename: String,
}

impl Step<Greeter> for ReadName {
    const RETRY_LIMIT: i32 = 2;
    const RETRY_DELAY: Duration = Duration::from_millis(200);

    async fn step(self, _db: &PgPool) -> StepResult<Greeter> {
        let name = std::fs::read_to_string(self.filename)?;
        NextStep::now(SayHello { name })
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct SayHello {
    name: String,
}

impl Step<Greeter> for SayHello {
    async fn step(self, _db: &PgPool) -> StepResult<Greeter> {
        println!("Hello, {}", self.name.trim());
        NextStep::none()
    }
}

/// A row of `orders`, as the trigger wrote it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Deliver {
    id: i64,
    item: String,
    price: serde_json::Number,
}

impl Step<Order, Context> for Deliver {
    const RETRY_LIMIT: i32 = 5;
    const RETRY_DELAY: Duration = Duration::from_millis(300);

    async fn step(self, cx: &Context) -> StepResult<Order> {
        let endpoint = cx.state::<Application>().endpoint.clone();
        let body = serde_json::to_string(&self)?;
        // ureq waits for the answer on its thread: not on one of those that run the other steps.
        tokio::task::spawn_blocking(move || ureq::post(&endpoint).send(body)).await??;
        println!("{} delivered in attempt {}", self.item, cx.attempt());
        NextStep::none()
    }
}

/// Says how late it is.
#[derive(Debug, Deserialize, Serialize)]
pub struct Lateness;

impl Step<Probe, Context> for Lateness {
    async fn step(self, cx: &Context) -> StepResult<Probe> {
        let late = (Utc::now() - cx.due_at()).num_microseconds().unwrap_or(i64::MAX);
        println!("the delayed task ran {:.3} ms after it was due", late as f64 / 1000.0);
        NextStep::none()
    }
}

/// Says how long ago it was enqueued.
#[derive(Debug, Deserialize, Serialize)]
pub struct Latency {
    enqueued_at: DateTime<Utc>,
}

impl Step<Probe> for Latency {
    async fn step(self, _db: &PgPool) -> StepResult<Probe> {
        let micros = (Utc::now() - self.enqueued_at).num_microseconds().unwrap_or(i64::MAX);
        println!("started after {micros} us");
        NextStep::none()
    }
}

/// Returns something: the first time it only fails.
#[derive(Debug, Deserialize, Serialize)]
pub struct Sum {
    numbers: Vec<i64>,
}

impl Step<Probe, Context> for Sum {
    async fn step(self, cx: &Context) -> StepResult<Probe> {
        if cx.attempt() == 1 {
            return Err(std::io::Error::other("the abacus has jammed").into());
        }
        cx.set_result(&self.numbers.iter().sum::<i64>())?;
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let endpoint = std::env::var("DEMO_ENDPOINT").context("DEMO_ENDPOINT is not set")?;
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db)
        .with_name("demo")
        .with_state(Application { endpoint })
        .with_cancellation(stop)
        .run()
        .await?;
    Ok(())
}
