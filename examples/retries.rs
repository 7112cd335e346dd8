//! A charge that fails in several ways, and is refunded when it has failed too often.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::time::Duration;

use pg_task::Context;
use pg_task::RetryPolicy;
use pg_task::Step;
use pg_task::StepError;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Order { Charge, Refund });
pg_task::scheduler!(Tasks { Order });

#[derive(Debug, Deserialize, Serialize)]
pub struct Charge {
    order: i64,
}

impl Step<Order, Context> for Charge {
    const RETRY: RetryPolicy = RetryPolicy::exponential(3, Duration::from_millis(200)).jitter(0.2);

    async fn step(self, cx: &Context) -> StepResult<Order> {
        println!("Charging order {}, attempt {}", self.order, cx.attempt());
        match cx.attempt() {
            1 => Err("the network is down".into()),
            2 => Err(pg_task::retry_after("too many requests", Duration::from_secs(1))),
            _ => Err("still no answer".into()),
        }
    }

    fn give_up(self, _error: &StepError) -> Option<Order> {
        Some(Refund { order: self.order }.into())
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Refund {
    order: i64,
}

impl Step<Order> for Refund {
    async fn step(self, _db: &PgPool) -> StepResult<Order> {
        println!("Order {} is refunded", self.order);
        Err(pg_task::non_retryable("and someone has to look at it"))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let task = Tasks::Order(Charge { order: 7 }.into());
    pg_task::enqueue(&db, &task).await?;
    // Another one gives up at once: its own policy says so.
    let task = Tasks::Order(Charge { order: 8 }.into());
    pg_task::Enqueue::new().retry(RetryPolicy::constant(0, Duration::ZERO)).enqueue(&db, &task).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    println!("When both are refunded, TABLE pg_task.task_errors shows what happened");
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
