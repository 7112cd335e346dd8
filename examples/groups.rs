//! Three accounts, each of which sees its bookings in order although they fail now and then: the tasks of a group run one at a time.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::time::Duration;

use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;

pg_task::task!(Account { Book });
pg_task::scheduler!(Tasks { Account });

#[derive(Debug, Deserialize, Serialize)]
pub struct Book {
    account: u32,
    booking: u32,
}

impl Step<Account, Context> for Book {
    const RETRY_LIMIT: i32 = 3;
    const RETRY_DELAY: Duration = Duration::from_millis(300);

    async fn step(self, cx: &Context) -> StepResult<Account> {
        let Self { account, booking } = self;
        if booking % 3 == 1 && cx.attempt() == 1 {
            println!("account {account}: booking {booking} fails, and those behind it wait");
            return Err("the bank is closed".into());
        }
        println!("account {account}: booking {booking}");
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    for booking in 0..5 {
        for account in 1..=3 {
            let group = format!("account {account}");
            let task = Tasks::Account(Book { account, booking }.into());
            pg_task::Enqueue::new().group(&group).enqueue(&db, &task).await?;
        }
    }
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
