//! A hundred thousand tasks, enqueued in one call and one transaction.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pg_task::Context;
use pg_task::Enqueue;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;

const TASKS: usize = 100_000;

pg_task::task!(Mail { Invoice });
pg_task::scheduler!(Tasks { Mail });

#[derive(Debug, Deserialize, Serialize)]
pub struct Invoice {
    customer: usize,
}

impl Step<Mail, Context> for Invoice {
    async fn step(self, cx: &Context) -> StepResult<Mail> {
        let sent = cx.state::<AtomicUsize>().fetch_add(1, Ordering::Relaxed) + 1;
        if sent.is_multiple_of(TASKS) {
            println!("sent {sent} invoices");
        }
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let began = Instant::now();
    let mut transaction = db.begin().await?;
    let invoices = (0..TASKS).map(|customer| Tasks::Mail(Invoice { customer }.into()));
    let ids = Enqueue::new().queue("mail").enqueue_copy(&mut transaction, invoices).await?;
    transaction.commit().await?;
    println!("enqueued {} tasks in {:.2} s", ids.len(), began.elapsed().as_secs_f64());
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db)
        .with_queues(["mail"])
        .with_concurrency(NonZeroUsize::new(1_000).expect("not zero"))
        .with_state(AtomicUsize::new(0))
        .with_cancellation(stop)
        .run()
        .await?;
    Ok(())
}
