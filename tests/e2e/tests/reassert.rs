//! What memory has forgotten or the row has outgrown: histories that the model found.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;
use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgConnection;

const WORKER: &str = "00000000-0000-0000-0000-0000000000b1";

/// What a task is claimed by: its id, fence and token.
type Held = (String, i64, i64);

async fn session(db: &Database) -> Result<PgConnection> {
    let mut session = PgConnection::connect(&db.url).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("SELECT pg_task.register('{WORKER}')")))
        .execute(&mut session)
        .await?;
    Ok(session)
}

/// Asks for one task until there is one.
async fn claim(db: &Database, session: &mut PgConnection) -> Result<Held> {
    db.until("SELECT ready > 0 FROM pg_task.scheduler").await?;
    let sql = format!("SELECT id::text, fence, token FROM pg_task.exchange('{WORKER}', 1) WHERE event = 0");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).fetch_one(session).await?)
}

#[tokio::test]
async fn a_task_that_its_worker_is_told_to_drop_is_handed_out_again() -> Result<()> {
    let db = Database::create(shared_server("e2e-reassert")).await?;
    let mut session = session(&db).await?;
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    let (id, fence, token) = claim(&db, &mut session).await?;
    // A user changes the row under the claim; then the worker's connection blinks.
    db.run(r#"UPDATE pg_task.task SET step = '{"A": {"B": 2}}'"#).await?;
    let sql = format!(
        "SELECT refused::text FROM pg_task.register('{WORKER}', held_ids => '{{{id}}}', held_fences => '{{{fence}}}', held_tokens => '{{{token}}}')"
    );
    let refused: (String,) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut session).await?;
    assert_eq!(refused.0, format!("{{{id}}}"));
    let (again, fence, later) = claim(&db, &mut session).await?;
    assert_eq!((again, fence), (id, 1 << 32), "a change by a user counts in the upper half");
    assert!(later > token);
    Ok(())
}

#[tokio::test]
async fn an_attempt_that_was_counted_when_it_was_made_is_not_counted_again_after_a_restart() -> Result<()> {
    let server = own_server("e2e-counted", &["pg_task.settle_time = 0"])?;
    let db = Database::create(&server).await?;
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}') FROM generate_series(1, 2)"#).await?;
    // The row may be what took the server down: its next attempt is counted in advance.
    let db = db.restarted(&server, Stop::Immediate).await?;
    let mut one = session(&db).await?;
    let (done, its_fence, its_token) = claim(&db, &mut one).await?;
    let (id, fence, token) = claim(&db, &mut one).await?;
    assert_eq!(db.ask("SELECT string_agg(tried::text, ' ') FROM pg_task.task").await?, "1 1");
    drop(one);
    // The server has forgotten the claims; the worker lives on and brings a failure, and what has succeeded.
    let db = db.restarted(&server, Stop::Fast).await?;
    db.run(&format!(
        "SELECT pg_task.exchange('{WORKER}', 0, '{{{id},{done}}}', '{{{fence},{its_fence}}}', '{{{token},{its_token}}}', '{{3,0}}', NULL, '{{0,0}}')"
    ))
    .await?;
    assert_eq!(db.ask("SELECT attempts FROM pg_task.history").await?, "1");
    assert_eq!(db.ask("SELECT tried = 1 AND locked_by IS NULL FROM pg_task.task").await?, "t");
    // And the task goes on.
    let mut one = session(&db).await?;
    let (id, fence, token) = claim(&db, &mut one).await?;
    assert_eq!(db.ask(&format!("SELECT tried = 1 AND fence = {fence} FROM pg_task.task")).await?, "t");
    let finish = format!("SELECT pg_task.exchange('{WORKER}', 0, '{{{id}}}', '{{{fence}}}', '{{{token}}}')");
    sqlx::raw_sql(AssertSqlSafe(finish)).execute(&mut one).await?;
    db.until_done().await
}

#[tokio::test]
async fn an_attempt_that_was_counted_after_a_crash_stays_counted_when_it_is_given_back() -> Result<()> {
    let server = own_server("e2e-given-back", &["pg_task.settle_time = 0"])?;
    let mut db = Database::create(&server).await?;
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    let mut crashes = 0;
    for give_back in ["leave", "result", "forgotten"] {
        crashes += 1;
        db = db.restarted(&server, Stop::Immediate).await?;
        let mut one = session(&db).await?;
        let (id, fence, token) = claim(&db, &mut one).await?;
        let row = "SELECT tried || ' ' || (locked_by IS NULL)::text FROM pg_task.task";
        assert_eq!(db.ask(row).await?, format!("{crashes} false"));
        db.run(&match give_back {
            "leave" => format!("SELECT pg_task.leave('{WORKER}')"),
            "result" => format!(
                "SELECT pg_task.exchange('{WORKER}', 0, '{{{id}}}', '{{{fence}}}', '{{{token}}}', '{{5}}')"
            ),
            _ => format!("SELECT pg_task.register('{WORKER}')"),
        })
        .await?;
        assert_eq!(db.ask(row).await?, format!("{crashes} true"), "{give_back}");
        // It is handed out again, and a crash is counted once however often that happens.
        let mut one = session(&db).await?;
        claim(&db, &mut one).await?;
        assert_eq!(db.ask("SELECT tried FROM pg_task.task").await?, crashes.to_string(), "{give_back}");
    }
    Ok(())
}

#[tokio::test]
async fn tokens_outgrow_those_of_a_server_whose_dump_was_restored() -> Result<()> {
    let db = Database::create(shared_server("e2e-reassert")).await?;
    let mut one = session(&db).await?;
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}')"#).await?;
    let (.., before) = claim(&db, &mut one).await?;
    // What pg_restore does with the epoch of a server whose clock was ahead. The rows came before.
    db.run("SELECT setval('pg_task.epoch', last_value + 1000000) FROM pg_task.epoch").await?;
    let kept: i64 = db.ask("SELECT last_value FROM pg_task.epoch").await?.parse()?;
    // Many rows at once make the scheduler read the table, as the passing of a minute does.
    db.run(r#"INSERT INTO pg_task.task (step) SELECT '{"A": {"B": 2}}' FROM generate_series(1, 300)"#)
        .await?;
    db.until(&format!("SELECT last_value > {kept} FROM pg_task.epoch")).await?;
    let (.., after) = claim(&db, &mut one).await?;
    assert!(before >> 32 < kept && after >> 32 > kept, "{before} {kept} {after}");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_only_asked_about_a_task_says_so_after_a_crash_of_the_server() -> Result<()> {
    let server = own_server("e2e-asked", &["pg_task.settle_time = 0"])?;
    let db = Database::create(&server).await?;
    db.run(r#"SELECT pg_task.enqueue('{"A": {"B": 1}}', options => '{"deadline": "2020-01-01T00:00:00Z"}')"#)
        .await?;
    let register = format!("SELECT pg_task.register('{WORKER}', gives_up => true");
    let mut one = PgConnection::connect(&db.url).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("{register})"))).execute(&mut one).await?;
    let (id, fence, token) = claim(&db, &mut one).await?;
    drop(one);
    let db = db.restarted(&server, Stop::Immediate).await?;
    let mut one = PgConnection::connect(&db.url).await?;
    let held = format!(
        "{register}, held_ids => '{{{id}}}', held_fences => '{{{fence}}}', held_tokens => '{{{token}}}')"
    );
    sqlx::raw_sql(AssertSqlSafe(held)).execute(&mut one).await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.running").await?, "1");
    // Its connection ends: it has lost nothing that it ran.
    drop(one);
    db.until("SELECT error LIKE 'the task was not begun before its deadline, %' FROM pg_task.task").await?;
    assert_eq!(db.ask("SELECT tried FROM pg_task.task").await?, "0");
    Ok(())
}

#[tokio::test]
async fn after_a_crash_no_call_hands_out_more_than_was_asked_for_or_than_an_answer_holds() -> Result<()> {
    let server = own_server("e2e-no-more", &["pg_task.settle_time = 0"])?;
    let db = Database::create(&server).await?;
    db.run(
        r#"SELECT pg_task.enqueue('{"A": {"B": 1}}') FROM generate_series(1, 9);
        SELECT pg_task.enqueue(jsonb_build_object('A', jsonb_build_object('B', repeat('x', 1000000)))) FROM generate_series(1, 20)"#,
    )
    .await?;
    let db = db.restarted(&server, Stop::Immediate).await?;
    db.until("SELECT ready = 29 FROM pg_task.scheduler").await?;
    let mut one = session(&db).await?;
    let mut ask = async |want: u32| {
        let sql = format!("SELECT count(*) FROM pg_task.exchange('{WORKER}', {want}) WHERE event = 0");
        sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).fetch_one(&mut one).await
    };
    assert_eq!((ask(2).await?, ask(7).await?), (2, 7));
    // Each was counted before it was handed out, and no other.
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task WHERE tried = 1").await?, "9");
    // Nine of 1 MB fill an answer: the one that goes over the limit is the last.
    assert_eq!((ask(100).await?, ask(100).await?), (9, 9));
    Ok(())
}
