//! A step that moves money: its SQL, the receipt that it enqueues and its own transition commit together, or not at all.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::Tx;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Money { Receipt, Transfer });
pg_task::scheduler!(Tasks { Money });

#[derive(Debug, Deserialize, Serialize)]
pub struct Transfer {
    from: i64,
    to: i64,
    cents: i64,
}

impl Step<Money, Tx> for Transfer {
    const RETRY_LIMIT: i32 = 3;

    async fn step(self, tx: &Tx) -> StepResult<Money> {
        let Self { from, to, cents } = self;
        for (account, change) in [(from, -cents), (to, cents)] {
            sqlx::query("UPDATE example_account SET cents = cents + $2 WHERE id = $1")
                .bind(account)
                .bind(change)
                .execute(tx)
                .await?;
        }
        if tx.context().attempt() == 1 {
            // Both updates are taken back.
            return Err("the first attempt fails".into());
        }
        pg_task::enqueue(tx, &Tasks::Money(Receipt { account: to, cents }.into())).await?;
        NextStep::none()
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Receipt {
    account: i64,
    cents: i64,
}

impl Step<Money> for Receipt {
    async fn step(self, db: &PgPool) -> StepResult<Money> {
        let balance: i64 = sqlx::query_scalar("SELECT cents FROM example_account WHERE id = $1")
            .bind(self.account)
            .fetch_one(db)
            .await?;
        println!("account {} was given {} and has {balance}", self.account, self.cents);
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    sqlx::raw_sql(
        "DROP TABLE IF EXISTS example_account;
         CREATE TABLE example_account (id bigint PRIMARY KEY, cents bigint NOT NULL CHECK (cents >= 0));
         INSERT INTO example_account VALUES (1, 1000), (2, 0)",
    )
    .execute(&db)
    .await?;
    pg_task::enqueue(&db, &Tasks::Money(Transfer { from: 1, to: 2, cents: 300 }.into())).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
