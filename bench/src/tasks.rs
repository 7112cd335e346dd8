//! The tasks that are measured, by pg_task and by the bare client alike.
#![expect(missing_docs, reason = "the macros' enums and fields speak for themselves")]

use std::time::Duration;

use bench_driver::Fill;
use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::Tx;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Load { Chain, Due, Fail, Nothing, Payload, Progress, Stamped, Wait, Write, WriteOnce });
pg_task::scheduler!(Tasks { Load });

/// Does nothing.
#[derive(Debug, Deserialize, Serialize)]
pub struct Nothing;

impl Step<Load> for Nothing {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        bench_driver::ran();
        NextStep::none()
    }
}

/// Fails, and ends at the second attempt.
#[derive(Debug, Deserialize, Serialize)]
pub struct Fail;

impl Step<Load, Context> for Fail {
    const RETRY_LIMIT: i32 = 1;
    const RETRY_DELAY: Duration = Duration::ZERO;

    async fn step(self, cx: &Context) -> StepResult<Load> {
        bench_driver::ran();
        if cx.attempt() == 1 {
            return Err("the first attempt fails".into());
        }
        NextStep::none()
    }
}

/// Says how far it is.
#[derive(Debug, Deserialize, Serialize)]
pub struct Progress;

impl Step<Load, Context> for Progress {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        cx.set_progress(0.5, "half of it");
        bench_driver::ran();
        NextStep::none()
    }
}

/// Writes a row.
#[derive(Debug, Deserialize, Serialize)]
pub struct Write;

impl Step<Load> for Write {
    async fn step(self, db: &PgPool) -> StepResult<Load> {
        sqlx::query(WRITE).execute(db).await?;
        bench_driver::ran();
        NextStep::none()
    }
}

/// Writes a row in the transaction of its transition.
#[derive(Debug, Deserialize, Serialize)]
pub struct WriteOnce;

impl Step<Load, Tx> for WriteOnce {
    async fn step(self, tx: &Tx) -> StepResult<Load> {
        sqlx::query(WRITE).execute(tx).await?;
        bench_driver::ran();
        NextStep::none()
    }
}

const WRITE: &str = "INSERT INTO written VALUES (now())";

/// Goes on with itself.
#[derive(Debug, Deserialize, Serialize)]
pub struct Chain {
    pub left: u32,
}

impl Step<Load> for Chain {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        bench_driver::ran();
        match self.left {
            0 => NextStep::none(),
            left => NextStep::now(Chain { left: left - 1 }),
        }
    }
}

/// Measures from a moment of the producer's.
#[derive(Debug, Deserialize, Serialize)]
pub struct Stamped {
    pub at: i64,
}

impl Step<Load> for Stamped {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        bench_driver::started(self.at);
        NextStep::none()
    }
}

/// Measures from the moment when it was due.
#[derive(Debug, Deserialize, Serialize)]
pub struct Due;

impl Step<Load, Context> for Due {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        bench_driver::started(cx.due_at().timestamp_micros());
        NextStep::none()
    }
}

/// Takes its time.
#[derive(Debug, Deserialize, Serialize)]
pub struct Wait {
    pub ms: u64,
}

impl Step<Load> for Wait {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        tokio::time::sleep(Duration::from_millis(self.ms)).await;
        bench_driver::ran();
        NextStep::none()
    }
}

/// Carries text.
#[derive(Debug, Deserialize, Serialize)]
pub struct Payload {
    pub text: String,
}

impl Step<Load> for Payload {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        std::hint::black_box(self.text.len());
        bench_driver::ran();
        NextStep::none()
    }
}

/// The SQL expression of a backlog's first step.
pub fn first_step(fill: Fill) -> String {
    match fill {
        Fill { payload: 0, steps: 1, .. } => r#"'{"Load":{"Nothing":null}}'::jsonb"#.to_owned(),
        Fill { payload: 0, steps, .. } => {
            format!(r#"'{{"Load":{{"Chain":{{"left":{}}}}}}}'::jsonb"#, steps.saturating_sub(1))
        }
        // Text that hardly compresses, each another: 32 characters for each number.
        Fill { payload, .. } => format!(
            "jsonb_build_object('Load', jsonb_build_object('Payload', jsonb_build_object('text', \
             left((SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, {}) AS j), {payload}))))",
            payload.div_ceil(32)
        ),
    }
}
