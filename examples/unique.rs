//! Tasks of which one is enough: once per key, a debounce, a throttle, and a request that is repeated.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::time::Duration;

use pg_task::Enqueue;
use pg_task::NextStep;
use pg_task::OnConflict;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::UniqueScope;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Search { Index });
pg_task::scheduler!(Tasks { Search });

#[derive(Debug, Deserialize, Serialize)]
pub struct Index {
    text: String,
}

impl Step<Search> for Index {
    async fn step(self, _db: &PgPool) -> StepResult<Search> {
        println!("Indexing \"{}\"", self.text);
        NextStep::none()
    }
}

fn index(text: &str) -> Tasks {
    Tasks::Search(Index { text: text.to_owned() }.into())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let db = pg_task_examples::init().await?;

    // Once: as long as the first one is not done, the second is skipped.
    let once = Enqueue::new().unique("once");
    println!("{:?}", once.enqueue(&db, &index("once")).await?);
    println!("{:?}", once.enqueue(&db, &index("once more")).await?);

    // Debounce: the last text, a second after the last change.
    let debounce =
        Enqueue::new().unique("page:7").scope(UniqueScope::Queued).on_conflict(OnConflict::ReplaceAndMove);
    for text in ["H", "He", "Hello"] {
        println!("{:?}", debounce.delay(&db, &index(text), Duration::from_secs(1)).await?);
    }

    // Throttle: the first at once, and no other for an hour.
    let throttle =
        Enqueue::new().unique("report:7").scope(UniqueScope::Period).period(Duration::from_secs(3600));
    println!("{:?}", throttle.enqueue(&db, &index("report")).await?);
    println!("{:?}", throttle.enqueue(&db, &index("report again")).await?);

    // A request that may come twice: its key is held for a day, and longer if the task takes longer.
    let request = Enqueue::new().unique("request:4f1d").period(Duration::from_secs(86_400));
    let first = request.enqueue(&db, &index("ordered")).await?;
    assert_eq!(request.enqueue(&db, &index("ordered")).await?.id(), first.id());

    let stop = pg_task_examples::stop_on_signal()?;
    pg_task::Worker::<Tasks>::new(db).with_cancellation(stop).run().await?;
    Ok(())
}
