//! More queues, or more tasks of a queue, than the board has room for: what a worker takes is served whatever waits beside it.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Session;
use pg_task_e2e::shared_server;

const WORKER: &str = "'0190aaaa-0000-7000-8000-0000000000c1'";

const STEP: &str = r#"'{"A": {"B": 1}}'::jsonb"#;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-crowded")).await
}

/// The queue of the task that the worker is given next; it is finished at once.
async fn next_queue(session: &mut Session) -> Result<String> {
    let done = format!(
        "WITH task AS MATERIALIZED (SELECT queue, id, fence, token FROM pg_task.exchange({WORKER}, 1) WHERE event = 0)
         SELECT string_agg(queue, '') FROM task, LATERAL (SELECT count(*) FROM pg_task.exchange({WORKER}, 0, ARRAY[id], ARRAY[fence], ARRAY[token])) AS x"
    );
    session.ask(&done).await
}

async fn until_given(session: &mut Session, queue: &str) -> Result<()> {
    for _ in 0..3_000 {
        match next_queue(session).await?.as_str() {
            "" => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            given => {
                assert_eq!(given, queue);
                return Ok(());
            }
        }
    }
    anyhow::bail!("the worker is not given the task in the queue {queue}")
}

#[tokio::test]
async fn a_queue_is_served_beside_hundreds_that_nobody_takes() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER}, queues => '{{mine}}')")).await?;
    // The board has 512 lanes. These are due before, and of better priority.
    session
        .run(&format!(
            "SELECT pg_task.enqueue({STEP}, 'abandoned ' || n, -1) FROM generate_series(1, 700) AS n"
        ))
        .await?;
    db.until("SELECT ready >= 200 FROM pg_task.scheduler").await?;
    session.run(&format!("SELECT pg_task.enqueue({STEP}, 'mine')")).await?;
    until_given(&mut session, "mine").await
}

#[tokio::test]
async fn a_queue_is_served_beside_long_ones_that_nobody_takes() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    // The board has room for 4,096 tasks, and half of it for these.
    session
        .run(&format!(
            "SELECT pg_task.enqueue_many(array_agg({STEP}), 'abandoned ' || q, -1)
             FROM generate_series(1, 6) AS q, generate_series(1, 2000) GROUP BY q"
        ))
        .await?;
    db.until("SELECT ready >= 2000 FROM pg_task.scheduler").await?;
    session.run(&format!("SELECT pg_task.register({WORKER}, queues => '{{mine}}')")).await?;
    session
        .run(&format!("SELECT pg_task.enqueue_many(array_agg({STEP}), 'mine') FROM generate_series(1, 3000)"))
        .await?;
    for _ in 0..3_000 {
        until_given(&mut session, "mine").await?;
    }
    // A worker that takes all of them finds them, too.
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    for _ in 0..100 {
        db.until("SELECT ready > 0 FROM pg_task.scheduler").await?;
        assert!(next_queue(&mut session).await?.starts_with("abandoned"));
    }
    Ok(())
}

#[tokio::test]
async fn the_oldest_task_comes_first_though_its_queue_is_one_of_many_and_the_last_by_name() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    session
        .run(&format!(
            "SELECT pg_task.schedule({STEP}, now() - n * interval '1 s', 'queue ' || lpad(n::text, 4, '0')) FROM generate_series(1, 700) AS n"
        ))
        .await?;
    // The board holds 512 of them. They are read queue by queue: when the last one is there, all have been offered.
    db.until("SELECT EXISTS (SELECT FROM pg_task.lanes() WHERE queue = 'queue 0700')").await?;
    assert_eq!(db.ask("SELECT ready FROM pg_task.scheduler").await?, "512");
    for n in (1..=700).rev() {
        until_given(&mut session, &format!("queue {n:04}")).await?;
    }
    Ok(())
}
