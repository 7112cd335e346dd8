//! Settings that a database or a role gives to its sessions: the scheduler does its work under any of them.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Context;
use anyhow::Result;
use pg_task_cluster::tested_major;
use pg_task_e2e::Database;
use pg_task_e2e::Session;
use pg_task_e2e::own_server;

const WORKER: &str = "'0190aaaa-0000-7000-8000-0000000000d1'";

/// Settings, and from which major version on there are such.
const HOSTILE: &[(&str, &str, u32)] = &[
    ("default_transaction_deferrable", "on", 15),
    ("default_transaction_isolation", "serializable", 15),
    ("default_transaction_isolation", "'repeatable read'", 15),
    ("default_transaction_read_only", "on", 15),
    ("enable_indexscan", "off", 15),
    ("enable_nestloop", "off", 15),
    ("exit_on_error", "on", 15),
    ("idle_in_transaction_session_timeout", "1", 15),
    ("idle_session_timeout", "1", 15),
    ("lock_timeout", "1", 15),
    ("plan_cache_mode", "force_generic_plan", 15),
    ("role", "nobody", 15),
    ("row_security", "off", 15),
    ("search_path", "trap, pg_catalog", 15),
    ("session_replication_role", "replica", 15),
    ("statement_timeout", "1", 15),
    ("transaction_timeout", "1", 17),
];

/// A session to which the settings of the database do not apply.
async fn session(db: &Database) -> Result<Session> {
    let own = [
        "default_transaction_isolation=read\\%20committed",
        "default_transaction_read_only=off",
        "exit_on_error=off",
        "idle_in_transaction_session_timeout=0",
        "idle_session_timeout=0",
        "lock_timeout=0",
        "role=none",
        "search_path=public",
        "session_replication_role=origin",
        "statement_timeout=0",
    ];
    let mut options = own.map(|setting| format!("-c%20{setting}")).join("%20");
    if tested_major() >= 17 {
        options += "%20-c%20transaction_timeout=0";
    }
    Session::connect(&format!("{}?options={options}", db.url)).await
}

async fn until(session: &mut Session, sql: &str) -> Result<()> {
    for _ in 0..3_000 {
        if session.ask(sql).await? == "true" {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let state = session.ask("SELECT s::text FROM pg_task.scheduler AS s").await?;
    anyhow::bail!("never true: {sql}; {state}")
}

/// The scheduler reads the table, writes down a claim and a lost worker, and takes an epoch.
async fn works(db: &Database) -> Result<()> {
    let mut user = session(db).await?;
    let old = user.ask("SELECT pid FROM pg_task.scheduler").await?;
    user.run(&format!("SELECT pg_terminate_backend({old})")).await?;
    until(&mut user, &format!("SELECT pid <> {old} AND state = 'running' FROM pg_task.scheduler")).await?;
    let began = user.ask("SELECT pid FROM pg_task.scheduler").await?;
    let mut worker = session(db).await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    user.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    // Loaded without a hint: it is found by a read of the table.
    user.run("ALTER TABLE pg_task.task DISABLE TRIGGER task_insert").await?;
    user.run(r#"INSERT INTO pg_task.task (step, queue) VALUES ('{"A": {"B": 2}}', 'unseen')"#).await?;
    user.run("ALTER TABLE pg_task.task ENABLE ALWAYS TRIGGER task_insert").await?;
    user.run(
        r#"SELECT pg_task.enqueue_many(array_agg('{"A": {"B": 3}}'::jsonb)) FROM generate_series(1, 300)"#,
    )
    .await?;
    until(
        &mut user,
        &format!(
            "SELECT count(*) >= 0 AND (SELECT count(*) = 302 FROM pg_task.running) FROM pg_task.exchange({WORKER}, 400)"
        ),
    )
    .await?;
    until(&mut user, "SELECT count(*) = 302 FROM pg_task.task WHERE locked_by IS NOT NULL").await?;
    drop(worker);
    until(&mut user, "SELECT count(*) = 302 FROM pg_task.task WHERE tried = 1").await?;
    assert_eq!(user.ask("SELECT pid FROM pg_task.scheduler").await?, began, "it ended on the way");
    assert_eq!(user.ask("SELECT failures FROM pg_task.scheduler").await?, "0");
    user.run("DELETE FROM pg_task.task").await
}

#[tokio::test]
async fn a_scheduler_works_whatever_its_database_sets_for_its_sessions() -> Result<()> {
    let more =
        ["pg_task.worker_grace = 0", "pg_task.write_behind_after = '100ms'", "pg_task.max_sleep = '1s'"];
    let server = own_server("e2e-settings", &more)?;
    let db = Database::create(&server).await?;
    let name = db.ask("SELECT current_database()").await?;
    db.run(
        "CREATE ROLE nobody; CREATE SCHEMA trap;
         CREATE FUNCTION trap.unnest(uuid[], bigint[]) RETURNS TABLE (id uuid, fence bigint) LANGUAGE sql AS 'SELECT NULL::uuid, 0::bigint WHERE false'",
    )
    .await?;
    for (setting, value, since) in HOSTILE {
        if tested_major() < *since {
            continue;
        }
        for target in [format!("DATABASE {name}"), format!("ROLE postgres IN DATABASE {name}")] {
            let mut user = session(&db).await?;
            user.run(&format!("ALTER {target} SET {setting} = {value}")).await?;
            works(&db).await.with_context(|| format!("ALTER {target} SET {setting} = {value}"))?;
            user.run(&format!("ALTER {target} RESET {setting}")).await?;
        }
    }
    Ok(())
}
