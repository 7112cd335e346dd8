//! Tasks that were enqueued with a mistake: looked at, moved, mended, cancelled. It needs no worker.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use chrono::TimeDelta;
use chrono::Utc;
use pg_task::Bulk;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::TaskState;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Mailer { Send });
pg_task::scheduler!(Tasks { Mailer });

#[derive(Debug, Deserialize, Serialize)]
pub struct Send {
    to: String,
}

impl Step<Mailer> for Send {
    async fn step(self, _db: &PgPool) -> StepResult<Mailer> {
        println!("Dear {}", self.to);
        NextStep::none()
    }
}

fn send(to: &str) -> Tasks {
    Tasks::Mailer(Send { to: to.to_owned() }.into())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    let tasks: Vec<Tasks> = (0..2_500).map(|number| send(&format!("customer {number}"))).collect();
    // Nobody takes this queue.
    let ids = pg_task::Enqueue::new().queue("operator example").enqueue_many(&db, &tasks).await?;

    let mut connection = db.acquire().await?;
    let mine = Bulk::new().queue("operator example");
    println!("{} are there", mine.dry_run(true).cancel(&mut connection).await?);
    let tomorrow = Utc::now() + TimeDelta::days(1);
    println!("{} wait until tomorrow", mine.max(1_500).reschedule(&mut connection, tomorrow).await?);
    println!("{} are urgent", mine.state(TaskState::Due).reprioritize(&mut connection, -10).await?);
    println!(
        "{} have a queue of their own",
        mine.priorities(-10..=-10).move_to(&mut connection, "operator example 2").await?
    );

    println!("mended: {}", pg_task::edit(&db, ids[0], &send("Ann")).await?);
    println!("and once more: {:?}", pg_task::clone_task(&db, ids[0]).await?.is_some());

    println!("{} are cancelled", mine.cancel(&mut connection).await?);
    println!(
        "{} of the other queue too",
        Bulk::new().queue("operator example 2").cancel(&mut connection).await?
    );
    Ok(())
}
