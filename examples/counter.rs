//! One task of a thousand steps, each of which counts one further: how fast is a lone chain?
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use chrono::DateTime;
use chrono::Utc;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Count { Start, Proceed, Finish });
pg_task::scheduler!(Tasks { Count });

#[derive(Debug, Deserialize, Serialize)]
pub struct Start {
    up_to: usize,
}

impl Step<Count> for Start {
    async fn step(self, _db: &PgPool) -> StepResult<Count> {
        println!("1..{}: start", self.up_to);
        NextStep::now(Proceed { up_to: self.up_to, started_at: Utc::now(), current: 0 })
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Proceed {
    up_to: usize,
    started_at: DateTime<Utc>,
    current: usize,
}

impl Step<Count> for Proceed {
    async fn step(self, _db: &PgPool) -> StepResult<Count> {
        let Self { up_to, started_at, current } = self;
        let current = current + 1;
        if current < up_to {
            NextStep::now(Proceed { up_to, started_at, current })
        } else {
            NextStep::now(Finish { up_to, started_at })
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Finish {
    up_to: usize,
    started_at: DateTime<Utc>,
}

impl Step<Count> for Finish {
    async fn step(self, _db: &PgPool) -> StepResult<Count> {
        let seconds = (Utc::now() - self.started_at).as_seconds_f64();
        println!("1..{}: done in {seconds:.3} s, {:.0} steps/s", self.up_to, self.up_to as f64 / seconds);
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    pg_task::enqueue(&db, &Tasks::Count(Start { up_to: 1000 }.into())).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
