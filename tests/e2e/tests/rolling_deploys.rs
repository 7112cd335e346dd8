//! Two versions of a program side by side, and tasks of the older one under the newer: the ways of docs/rolling-deploys.md.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task::CancellationToken;
use pg_task::Context;
use pg_task::Step;
use pg_task::Worker;
use pg_task_e2e::Database;
use pg_task_e2e::shared_server;
use sqlx::PgPool;

/// Notes what a step saw.
async fn note(db: &PgPool, what: String) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO seen VALUES ($1)").bind(what).execute(db).await.map(|_| ())
}

/// The program before the change.
mod old {
    use pg_task::NextStep;
    use pg_task::Step;
    use pg_task::StepResult;
    use serde::Deserialize;
    use serde::Serialize;
    use sqlx::PgPool;

    pg_task::task!(Order { Charge, Ship });
    pg_task::scheduler!(Tasks { Order });

    #[derive(Debug, Deserialize, Serialize)]
    pub struct Charge {
        amount: i64,
    }

    impl Step<Order> for Charge {
        async fn step(self, db: &PgPool) -> StepResult<Order> {
            super::note(db, format!("old charges {}", self.amount)).await?;
            NextStep::none()
        }
    }

    #[derive(Debug, Deserialize, Serialize)]
    pub struct Ship {
        user: String,
    }

    impl Step<Order> for Ship {
        async fn step(self, db: &PgPool) -> StepResult<Order> {
            super::note(db, format!("old ships to {}", self.user)).await?;
            NextStep::none()
        }
    }
}

/// The program after it.
mod new {
    use pg_task::NextStep;
    use pg_task::Step;
    use pg_task::StepResult;
    use serde::Deserialize;
    use serde::Serialize;
    use sqlx::PgPool;

    pg_task::task!(Order { Bill, Charge, Ship });
    pg_task::scheduler!(Tasks { Order });

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(from = "AnyBill")]
    pub struct Bill {
        pub cents: i64,
        pub currency: String,
    }

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
        async fn step(self, db: &PgPool) -> StepResult<Order> {
            super::note(db, format!("new bills {} {}", self.cents, self.currency)).await?;
            NextStep::none()
        }
    }

    #[derive(Debug, Deserialize, Serialize)]
    pub struct Charge {
        amount: i64,
    }

    impl Step<Order> for Charge {
        async fn step(self, _db: &PgPool) -> StepResult<Order> {
            NextStep::now(Bill { cents: self.amount * 100, currency: "EUR".to_owned() })
        }
    }

    #[derive(Debug, Deserialize, Serialize)]
    pub struct Ship {
        #[serde(rename = "user", alias = "customer")]
        pub customer: String,
        #[serde(default)]
        pub gift: bool,
    }

    impl Step<Order> for Ship {
        async fn step(self, db: &PgPool) -> StepResult<Order> {
            super::note(db, format!("new ships to {}, gift: {}", self.customer, self.gift)).await?;
            NextStep::none()
        }
    }
}

async fn database() -> Result<Database> {
    let db = Database::create(shared_server("e2e-rolling-deploys")).await?;
    db.run("CREATE TABLE seen (what text)").await?;
    Ok(db)
}

/// A worker of one version; the token stops it.
fn start<T: Step<T, Context> + 'static>(db: &Database, name: &str) -> CancellationToken {
    let stop = CancellationToken::new();
    let worker = Worker::<T>::new(db.pool.clone()).with_name(name).with_cancellation(stop.clone());
    tokio::spawn(async move { worker.run().await });
    stop
}

async fn known(db: &Database, name: &str) -> Result<()> {
    db.until(&format!("SELECT count(*) = 1 FROM pg_task.workers WHERE name = '{name}'")).await
}

async fn seen(db: &Database) -> Result<String> {
    db.ask("SELECT string_agg(what, '; ' ORDER BY what) FROM seen").await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_old_shape_go_on_under_the_new_program() -> Result<()> {
    let db = database().await?;
    db.run(
        r#"SELECT pg_task.enqueue_many(ARRAY['{"Order": {"Ship": {"user": "Ada"}}}', '{"Order": {"Ship": {"customer": "Grace", "gift": true}}}',
             '{"Order": {"Bill": {"euros": 7}}}', '{"Order": {"Bill": {"cents": 8, "currency": "USD"}}}', '{"Order": {"Charge": {"amount": 9}}}']::jsonb[])"#,
    )
    .await?;
    let stop = start::<new::Tasks>(&db, "new");
    db.until_done().await?;
    stop.cancel();
    assert_eq!(
        seen(&db).await?,
        "new bills 700 EUR; new bills 8 USD; new bills 900 EUR; new ships to Ada, gift: false; new ships to Grace, gift: true"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_step_waits_for_the_new_program_and_the_old_one_reads_what_the_new_one_writes() -> Result<()> {
    let db = database().await?;
    let old = start::<old::Tasks>(&db, "old");
    known(&db, "old").await?;
    let bill = new::Bill { cents: 5, currency: "EUR".to_owned() };
    let ship = new::Ship { customer: "Ada".to_owned(), gift: true };
    pg_task::enqueue(&db.pool, &new::Tasks::Order(bill.into())).await?;
    pg_task::enqueue(&db.pool, &new::Tasks::Order(ship.into())).await?;
    db.until("SELECT count(*) = 1 FROM seen").await?;
    // Old workers go on without the step that they do not know, and without an attempt of it.
    db.until("SELECT count(*) = 1 FROM pg_task.task WHERE error IS NULL AND tried = 0").await?;
    assert_eq!(seen(&db).await?, "old ships to Ada");
    let new = start::<new::Tasks>(&db, "new");
    db.until_done().await?;
    assert_eq!(seen(&db).await?, "new bills 5 EUR; old ships to Ada");
    old.cancel();
    new.cancel();
    Ok(())
}
