//! A report that takes too long, one that has more time of its own, and one that is no longer wanted.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::time::Duration;

use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;

pg_task::task!(Report { Render });
pg_task::scheduler!(Tasks { Report });

#[derive(Debug, Deserialize, Serialize)]
pub struct Render {
    name: String,
}

impl Step<Report, Context> for Render {
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(1));

    async fn step(self, cx: &Context) -> StepResult<Report> {
        println!("Rendering {}", self.name);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(3)) => println!("Rendered {}", self.name),
            () = cx.cancelled() => return Err(format!("there was no time to render {}", self.name).into()),
        }
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let report = |name: &str| Tasks::Report(Render { name: name.to_owned() }.into());
    pg_task::enqueue(&db, &report("the long one")).await?;
    let patient = pg_task::Enqueue::new().timeout(Duration::from_secs(10));
    patient.enqueue(&db, &report("the one with time")).await?;
    let late = pg_task::Enqueue::new().deadline(chrono::Utc::now() - Duration::from_secs(60));
    late.enqueue(&db, &report("yesterday's")).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    println!("TABLE pg_task.failed shows which were not rendered, and why");
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
