//! A row of one's own and a task about it, in one transaction: both are there, or neither.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use pg_task::Enqueue;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(User { Welcome });
pg_task::scheduler!(Tasks { User });

#[derive(Debug, Deserialize, Serialize)]
pub struct Welcome {
    id: i64,
}

impl Step<User> for Welcome {
    async fn step(self, db: &PgPool) -> StepResult<User> {
        let name: String = sqlx::query_scalar("SELECT name FROM example_user WHERE id = $1")
            .bind(self.id)
            .fetch_one(db)
            .await?;
        println!("Welcome, {name}");
        NextStep::none()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS example_user (id bigint GENERATED ALWAYS AS IDENTITY, name text)",
    )
    .execute(&db)
    .await?;
    for (name, commit) in [("Ada", true), ("Nobody", false)] {
        let mut transaction = db.begin().await?;
        let id = sqlx::query_scalar("INSERT INTO example_user (name) VALUES ($1) RETURNING id")
            .bind(name)
            .fetch_one(&mut *transaction)
            .await?;
        let task = Tasks::User(Welcome { id }.into());
        Enqueue::new().queue("mail").priority(-1).enqueue(&mut *transaction, &task).await?;
        if commit {
            transaction.commit().await?;
        }
    }
    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_queues(["mail"]).with_cancellation(stop).run().await?;
    Ok(())
}
