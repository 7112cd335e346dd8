//! A program that declares its schedules: each of its workers may start with it, and nothing runs twice for that.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use pg_task::Missed;
use pg_task::NextStep;
use pg_task::Overlap;
use pg_task::Schedule;
use pg_task::Schedules;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Report { Build });
pg_task::scheduler!(Tasks { Report });

#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Build {
    kind: String,
    /// The tick that the report is for; RFC 3339.
    at: String,
}

impl Step<Report> for Build {
    async fn step(self, _db: &PgPool) -> StepResult<Report> {
        println!("The {} report for {}", self.kind, self.at);
        NextStep::none()
    }
}

fn report(kind: &str) -> Tasks {
    Tasks::Report(Build { kind: kind.to_owned(), ..Build::default() }.into())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let schedules = Schedules::new(
        "reports",
        [
            Schedule::new("nightly report", "30 3 * * *", &report("nightly"))?
                .time_zone("Europe/Berlin")
                .missed(Missed::All(7))
                .tick_field("at"),
            Schedule::new("report every two seconds", "every 2 seconds", &report("frequent"))?
                .overlap(Overlap::Skip)
                .tick_field("at"),
        ],
    );
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_schedules(schedules).with_cancellation(stop).run().await?;
    Ok(())
}
