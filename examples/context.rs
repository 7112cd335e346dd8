//! A step that is given more than the pool: which attempt it is, its token, and the application's state.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;

pg_task::task!(Order { Charge });
pg_task::scheduler!(Tasks { Order });

/// What the application shares with its steps: here, a payment service that is down for the first call.
#[derive(Debug, Default)]
struct Payments {
    calls: AtomicU32,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Charge {
    order: u32,
}

impl Step<Order, Context> for Charge {
    const RETRY_LIMIT: i32 = 3;

    async fn step(self, cx: &Context) -> StepResult<Order> {
        let payments: &Payments = cx.state();
        if payments.calls.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err("the payment service is down".into());
        }
        println!("charged order {} in attempt {} of task {}", self.order, cx.attempt(), cx.task_id());
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    pg_task::enqueue(&db, &Tasks::Order(Charge { order: 7 }.into())).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_state(Payments::default()).with_cancellation(stop).run().await?;
    Ok(())
}
