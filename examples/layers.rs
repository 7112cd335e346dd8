//! Layers around every step: figures, a breaker for a service that is down, and a value that the steps find in their context.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use pg_task::Context;
use pg_task::Ending;
use pg_task::Layer;
use pg_task::LayerResult;
use pg_task::Next;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepName;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;

pg_task::task!(Order { Charge, Thank });
pg_task::scheduler!(Tasks { Order });

/// Counts what became of the attempts of each step, and adds up their time.
#[derive(Clone, Default)]
struct Metrics(Arc<Mutex<BTreeMap<(StepName, &'static str), Figures>>>);

#[derive(Default)]
struct Figures {
    count: u32,
    time: Duration,
}

impl Layer for Metrics {
    async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
        let began = Instant::now();
        let result = next.run().await;
        let ending = match &result {
            Ok(Ending::Done) => "done",
            Ok(_) => "went on",
            Err(error) if cx.retry_after(error).is_some() => "retried",
            Err(_) => "parked",
        };
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = figures.entry((cx.step_name(), ending)).or_default();
        figures.count += 1;
        figures.time += began.elapsed();
        result
    }
}

/// Fails attempts without running them after one has failed, and lets the next but one try again.
#[derive(Default)]
struct Breaker {
    open: AtomicBool,
}

impl Layer for Breaker {
    async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
        if self.open.swap(false, Ordering::Relaxed) {
            return Err(format!("{} is not tried: the service was down a moment ago", cx.step_name()).into());
        }
        let result = next.run().await;
        self.open.store(result.is_err(), Ordering::Relaxed);
        result
    }
}

/// What the steps find in their context: here, a payment service that is down for the first call.
#[derive(Default)]
struct Payments {
    calls: AtomicU32,
}

struct WithPayments(Arc<Payments>);

impl Layer for WithPayments {
    async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
        cx.insert(self.0.clone());
        next.run().await
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Charge {
    order: u32,
}

impl Step<Order, Context> for Charge {
    const RETRY_LIMIT: i32 = 3;
    const RETRY_DELAY: Duration = Duration::from_millis(100);

    async fn step(self, cx: &Context) -> StepResult<Order> {
        let payments = cx.extension::<Arc<Payments>>().ok_or("there is no such layer")?;
        if payments.calls.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err("the payment service is down".into());
        }
        NextStep::now(Thank { order: self.order })
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Thank {
    order: u32,
}

impl Step<Order> for Thank {
    async fn step(self, _db: &sqlx::PgPool) -> StepResult<Order> {
        println!("Thank you for order {}", self.order);
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    pg_task::enqueue(&db, &Tasks::Order(Charge { order: 7 }.into())).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    let metrics = Metrics::default();
    // The first is the outermost: it counts what the breaker refuses too.
    pg_task::Worker::<Tasks>::new(db)
        .with_layer(metrics.clone())
        .with_layer(Breaker::default())
        .with_layer(WithPayments(Arc::default()))
        .with_cancellation(stop)
        .run()
        .await?;
    for ((step, ending), figures) in &*metrics.0.lock().unwrap_or_else(PoisonError::into_inner) {
        println!("{step} {ending}: {} in {:?}", figures.count, figures.time);
    }
    Ok(())
}
