//! Steps whose shape has changed while tasks of the old shape were waiting: each of the ways of docs/rolling-deploys.md.
#![expect(clippy::print_stdout, reason = "an example")]

use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Order { Bill, Charge, Ship });
pg_task::scheduler!(Tasks { Order });

/// Had no `gift`, and its `customer` was called `user`: programs of both versions read what either writes, because the old name
/// is still the one that is written.
#[derive(Debug, Deserialize, Serialize)]
pub struct Ship {
    #[serde(rename = "user", alias = "customer")]
    customer: String,
    #[serde(default)]
    gift: bool,
}

impl Step<Order> for Ship {
    async fn step(self, _db: &PgPool) -> StepResult<Order> {
        println!("shipped to {}, gift: {}", self.customer, self.gift);
        NextStep::none()
    }
}

/// Had an amount in whole euros.
#[derive(Debug, Deserialize, Serialize)]
#[serde(from = "AnyBill")]
pub struct Bill {
    cents: i64,
    currency: String,
}

/// Every shape that a waiting row may have: the hook from the old ones to the one of today.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnyBill {
    V2 { cents: i64, currency: String },
    V1 { euros: i64 },
}

impl From<AnyBill> for Bill {
    fn from(bill: AnyBill) -> Self {
        match bill {
            AnyBill::V2 { cents, currency } => Self { cents, currency },
            AnyBill::V1 { euros } => Self { cents: euros * 100, currency: "EUR".to_owned() },
        }
    }
}

impl Step<Order> for Bill {
    async fn step(self, _db: &PgPool) -> StepResult<Order> {
        println!("billed {} cents in {}", self.cents, self.currency);
        NextStep::none()
    }
}

/// What `Bill` was called before. It stays until no row has it, and goes on as what it is now.
#[derive(Debug, Deserialize, Serialize)]
pub struct Charge {
    amount: i64,
}

impl Step<Order> for Charge {
    async fn step(self, _db: &PgPool) -> StepResult<Order> {
        NextStep::now(Bill { cents: self.amount * 100, currency: "EUR".to_owned() })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    // As programs of older versions have left them.
    for step in [
        r#"{"Order": {"Ship": {"user": "Ada"}}}"#,
        r#"{"Order": {"Bill": {"euros": 7}}}"#,
        r#"{"Order": {"Charge": {"amount": 9}}}"#,
    ] {
        sqlx::query("SELECT pg_task.enqueue($1::jsonb)").bind(step).execute(&db).await?;
    }
    pg_task::enqueue(&db, &Tasks::Order(Ship { customer: "Grace".to_owned(), gift: true }.into())).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
