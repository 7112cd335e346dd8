//! An import that says how far it is, and what an operator sees of it meanwhile.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::time::Duration;

use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;

pg_task::task!(Import { ReadRows, CheckRows });
pg_task::scheduler!(Tasks { Import });

#[derive(Debug, Deserialize, Serialize)]
pub struct ReadRows {
    rows: u32,
}

impl Step<Import, Context> for ReadRows {
    async fn step(self, cx: &Context) -> StepResult<Import> {
        for row in 0..self.rows {
            cx.set_progress(
                f64::from(row) / f64::from(self.rows),
                format_args!("{row} of {} rows", self.rows),
            );
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        NextStep::now(CheckRows)
    }
}

/// How long it takes is not known: it says only what it does.
#[derive(Debug, Deserialize, Serialize)]
pub struct CheckRows;

impl Step<Import, Context> for CheckRows {
    async fn step(self, cx: &Context) -> StepResult<Import> {
        cx.set_progress(None, "waiting for the checks");
        tokio::time::sleep(Duration::from_secs(3)).await;
        NextStep::none()
    }
}

/// Prints what the view shows, once a second.
async fn watch(db: sqlx::PgPool) -> sqlx::Result<()> {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let shown: Vec<(Option<f64>, Option<String>)> =
            sqlx::query_as("SELECT progress, progress_text FROM pg_task.running").fetch_all(&db).await?;
        for (progress, text) in shown {
            let percent = progress.map_or_else(|| "  ?".to_owned(), |part| format!("{:3.0}", part * 100.0));
            println!("{percent} %  {}", text.unwrap_or_default());
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    pg_task::enqueue(&db, &Tasks::Import(ReadRows { rows: 1000 }.into())).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    tokio::spawn(watch(db.clone()));
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
