//! The tasks that are measured.

use std::time::Instant;

use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;
use tokio::sync::mpsc::UnboundedSender;

pg_task::task!(Load { Chain, Nothing, Report });
pg_task::scheduler!(Tasks { Load });

/// Does nothing.
#[derive(Debug, Deserialize, Serialize)]
pub struct Nothing;

impl Step<Load> for Nothing {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        NextStep::none()
    }
}

/// Goes on with itself.
#[derive(Debug, Deserialize, Serialize)]
pub struct Chain {
    left: u32,
}

impl Step<Load> for Chain {
    async fn step(self, _db: &PgPool) -> StepResult<Load> {
        match self.left {
            0 => NextStep::none(),
            left => NextStep::now(Chain { left: left - 1 }),
        }
    }
}

/// Says when it started.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report;

impl Step<Load, Context> for Report {
    async fn step(self, cx: &Context) -> StepResult<Load> {
        cx.state::<UnboundedSender<Instant>>().send(Instant::now())?;
        NextStep::none()
    }
}
