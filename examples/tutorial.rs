//! A greeter in two steps. The first one fails until someone writes `name.txt`.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Greeter { ReadName, SayHello });
pg_task::scheduler!(Tasks { Greeter });

#[derive(Debug, Deserialize, Serialize)]
pub struct ReadName {
    filename: String,
}

impl Step<Greeter> for ReadName {
    const RETRY_LIMIT: i32 = 5;

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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let errors = tokio::spawn(print_errors(db.clone()));

    let first = ReadName { filename: "name.txt".into() };
    pg_task::enqueue(&db, &Tasks::Greeter(first.into())).await?;

    let stop = pg_task_examples::stop_on_signal()?;
    let worker = pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await;
    errors.abort();
    Ok(worker?)
}

/// Prints each task that is parked, and how to run it again.
async fn print_errors(db: PgPool) -> pg_task::Result<()> {
    let mut errors = pg_task::listen_for_task_errors(&db).await?;
    loop {
        let task = errors.recv().await?;
        let step: Tasks = task.deserialize_step()?;
        println!("parked after {} attempts at {step:?}: {}", task.tried, task.error);
        println!("fix it, then: UPDATE pg_task.task SET error = NULL WHERE id = '{}'", task.id);
    }
}
