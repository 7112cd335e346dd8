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
