//! A tenant with many tasks and one with few: they take turns, of which the large one has longer ones; of each two run at once, and ten are
//! begun in a second.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::time::Duration;

use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Import { File });
pg_task::scheduler!(Tasks { Import });

#[derive(Debug, Deserialize, Serialize)]
pub struct File {
    tenant: String,
    number: u32,
}

impl Step<Import> for File {
    async fn step(self, _db: &PgPool) -> StepResult<Import> {
        println!("{}: file {}", self.tenant, self.number);
        tokio::time::sleep(Duration::from_millis(100)).await;
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let weights = [("large tenant", 3)];
    let limits = pg_task::QueueLimits::new().key_concurrency(2).key_weights(&weights);
    pg_task::set_queue(&db, "import", limits.key_rate(10, Duration::from_secs(1)).key_burst(2)).await?;
    for (tenant, count) in [("large tenant", 40), ("small tenant", 4)] {
        for number in 1..=count {
            let task = Tasks::Import(File { tenant: tenant.to_owned(), number }.into());
            pg_task::Enqueue::new().queue("import").key(tenant).enqueue(&db, &task).await?;
        }
    }
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
