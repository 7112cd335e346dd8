//! A task whose last step returns something, and someone who waits for it.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use pg_task::Context;
use pg_task::Handle;
use pg_task::NextStep;
use pg_task::Outcome;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;

pg_task::task!(Report { Count, Sum });
pg_task::scheduler!(Tasks { Report });

#[derive(Debug, Deserialize, Serialize)]
pub struct Count {
    up_to: u64,
}

impl Step<Report, Context> for Count {
    async fn step(self, _cx: &Context) -> StepResult<Report> {
        NextStep::now(Sum { numbers: (1..=self.up_to).collect() })
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Sum {
    numbers: Vec<u64>,
}

impl Step<Report, Context> for Sum {
    async fn step(self, cx: &Context) -> StepResult<Report> {
        cx.set_result(&self.numbers.iter().sum::<u64>())?;
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let stop = pg_task_examples::stop_on_signal()?;
    let worker = pg_task::Worker::<Tasks>::new(db.clone()).with_cancellation(stop.clone());
    let ask = async {
        let id = pg_task::enqueue(&db, &Tasks::Report(Count { up_to: 100 }.into())).await?;
        match Handle::new(&db, id).result::<u64>().await? {
            Outcome::Done(sum) => println!("The sum: {sum:?}"),
            other => println!("No sum: {other:?}"),
        }
        stop.cancel();
        anyhow::Ok(())
    };
    let (ran, asked) = tokio::join!(worker.run(), ask);
    ran?;
    asked
}
