//! The worker protocol of docs/protocol.md, spoken in plain SQL.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::shared_server;

const WORKER: &str = "'0190aaaa-0000-7000-8000-00000000000a'";

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-protocol")).await
}

#[tokio::test]
async fn a_claim_that_was_written_down_is_taken_back_when_its_worker_leaves_or_returns_it() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    for give_back in [
        format!("SELECT pg_task.leave({WORKER})"),
        format!(
            "SELECT pg_task.exchange({WORKER}, 0, ARRAY[c.id], ARRAY[c.fence], ARRAY[c.token], '{{5}}') FROM pg_task.claims() AS c"
        ),
        // It has forgotten what it holds: the answer of the last exchange was lost on its way.
        format!("SELECT pg_task.register({WORKER})"),
    ] {
        session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
        session.run(r#"SELECT pg_task.enqueue('{"A":{"B":1}}')"#).await?;
        db.until(&format!("SELECT count(*) = 1 FROM pg_task.exchange({WORKER}, 1) WHERE event = 0")).await?;
        db.until("SELECT count(*) = 1 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
        session.run(&give_back).await?;
        assert_eq!(
            session.ask("SELECT (tried, fence, locked_by, locked_at) FROM pg_task.task").await?,
            "(0,0,,)",
            "{give_back}"
        );
        assert_eq!(session.ask("SELECT count(*) FROM pg_task.running").await?, "0", "{give_back}");
        session.run("DELETE FROM pg_task.task").await?;
        session.run(&format!("SELECT pg_task.leave({WORKER})")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn more_queues_than_memory_has_names_for_are_served_one_after_the_other() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    session.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    let done = format!(
        "WITH task AS (SELECT array_agg(id) AS ids, array_agg(fence) AS fences, array_agg(token) AS tokens
            FROM pg_task.exchange({WORKER}, 100) WHERE event = 0)
         SELECT count(*) FROM task, pg_task.exchange({WORKER}, 0, ids, fences, tokens)"
    );
    // There is place for 1024 names.
    for round in 0..4 {
        session
            .run(&format!(
                "SELECT pg_task.enqueue_many(ARRAY['{{\"A\":{{\"B\":1}}}}'::jsonb], 'queue-{round}-' || n) FROM generate_series(1, 400) AS n"
            ))
            .await?;
        db.until(&format!("SELECT ({done}) >= 0 AND NOT EXISTS (SELECT FROM pg_task.task)")).await?;
    }
    // A worker that names queues gets those, whatever names were given up for theirs.
    session.run(&format!("SELECT pg_task.leave({WORKER})")).await?;
    let names: Vec<String> = (0..32).map(|n| format!("mine-{n}")).collect();
    session.run(&format!("SELECT pg_task.register({WORKER}, queues => '{{{}}}')", names.join(","))).await?;
    assert_eq!(
        session.ask("SELECT array_to_string(queues, ',') FROM pg_task.workers").await?,
        names.join(",")
    );
    Ok(())
}
