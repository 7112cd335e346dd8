//! One call may look for tasks in many rounds; each has to see the rows as they are then.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::own_server;
use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgConnection;

const SLOW: &str = "00000000-0000-0000-0000-0000000000d1";
const QUICK: &str = "00000000-0000-0000-0000-0000000000d2";

/// Tasks whose rows are gone, a thousand a round: the call looks for each in vain, and takes long enough to be met.
const GONE: u32 = 60_000;

/// A task as it was handed out: id, fence, token, step.
type Given = (String, i64, i64, String);

async fn exchange(session: &mut PgConnection, worker: &str, want: u32) -> Result<Vec<Given>> {
    let sql = format!(
        "SELECT id::text, fence, token, step::text FROM pg_task.exchange('{worker}', {want}) WHERE event = 0"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).fetch_all(session).await?)
}

async fn ready_at_least(db: &Database, count: u32) -> Result<()> {
    db.until(&format!("SELECT ready >= {count} FROM pg_task.scheduler")).await
}

#[tokio::test]
async fn a_task_that_goes_on_while_a_call_looks_for_others_is_handed_out_as_it_is_now() -> Result<()> {
    let server = own_server("e2e-rounds", &["pg_task.ready_capacity = 262144", "autovacuum = off"])?;
    let db = Database::create(&server).await?;
    let (mut slow, mut quick) =
        (PgConnection::connect(&db.url).await?, PgConnection::connect(&db.url).await?);
    for (worker, session) in [(SLOW, &mut slow), (QUICK, &mut quick)] {
        sqlx::raw_sql(AssertSqlSafe(format!("SELECT pg_task.register('{worker}')"))).execute(session).await?;
    }
    for _ in 0..50 {
        db.run(r#"SELECT pg_task.enqueue('{"A": {"First": 1}}', priority => 5::smallint)"#).await?;
        ready_at_least(&db, 1).await?;
        let (id, fence, token, _) = exchange(&mut quick, QUICK, 1).await?.remove(0);
        db.run(&format!(
            r#"SELECT pg_task.enqueue_many(array_agg('{{"A": {{"Gone": 1}}}}'::jsonb)) FROM generate_series(1, {GONE})"#
        ))
        .await?;
        ready_at_least(&db, GONE).await?;
        db.run("DELETE FROM pg_task.task WHERE priority = 0").await?;
        let looking = tokio::spawn(async move {
            let given = exchange(&mut slow, SLOW, 10_000).await;
            (slow, given)
        });
        // The call is at it. Meanwhile the other task goes on, and waits behind those that the call looks for.
        while db.ask(&format!("SELECT ready < {GONE} FROM pg_task.scheduler")).await? == "f" {
            if looking.is_finished() {
                break;
            }
        }
        let next = format!(
            r#"SELECT pg_task.exchange('{QUICK}', 0, '{{{id}}}', '{{{fence}}}', '{{{token}}}', '{{2}}', ARRAY['{{"A": {{"Second": 1}}}}'::jsonb], '{{0}}')"#
        );
        sqlx::raw_sql(AssertSqlSafe(next)).execute(&mut quick).await?;
        let given;
        (slow, given) = looking.await?;
        let met = given?;
        if let Some((again, fence_now, _, step)) = met.first() {
            assert_eq!((again, *fence_now), (&id, fence + 1));
            assert_eq!(step, r#"{"A": {"Second": 1}}"#);
            return Ok(());
        }
        // The call was over too soon to meet it: once more.
        db.run("DELETE FROM pg_task.task").await?;
    }
    anyhow::bail!("no call met the task")
}
