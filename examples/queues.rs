//! A queue of which two tasks run at once and five are begun in a second, and a pause.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::num::NonZeroUsize;
use std::time::Duration;

use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Mailer { Send });
pg_task::scheduler!(Tasks { Mailer });

#[derive(Debug, Deserialize, Serialize)]
pub struct Send {
    to: String,
}

impl Step<Mailer> for Send {
    async fn step(self, _db: &PgPool) -> StepResult<Mailer> {
        println!("Dear {}", self.to);
        tokio::time::sleep(Duration::from_millis(300)).await;
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    // What its tasks do not say themselves, the queue says for them.
    let limits = pg_task::QueueLimits::new()
        .concurrency(2)
        .rate(5, Duration::from_secs(1))
        .burst(1)
        .retry(pg_task::RetryPolicy::constant(3, Duration::from_secs(1)))
        .timeout(Duration::from_secs(5));
    pg_task::set_queue(&db, "mail", limits).await?;
    pg_task::pause_queue(&db, "mail").await?;
    for to in ["Ann", "Bob", "Cid", "Dot", "Eve", "Fay"] {
        let task = Tasks::Mailer(Send { to: to.to_owned() }.into());
        pg_task::Enqueue::new().queue("mail").enqueue(&db, &task).await?;
    }
    let resume = {
        let db = db.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            println!("Resumed: {}", pg_task::resume_queue(&db, "mail").await?);
            anyhow::Ok(())
        }
    };
    let stop = pg_task_examples::stop_on_signal()?;
    let worker = pg_task::Worker::<Tasks>::new(db)
        .with_concurrency(NonZeroUsize::new(20).expect("not zero"))
        .with_cancellation(stop);
    let (ran, resumed) = tokio::join!(worker.run(), resume);
    ran?;
    resumed
}
