//! `pg_task::testing`: tasks are run in a transaction of which nothing is left, by a clock that is moved by hand.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use pg_task::Context;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::Tx;
use pg_task::testing::Bench;
use pg_task::testing::End;
use pg_task_cluster::workspace_root;
use pg_task_e2e::Database;
use pg_task_e2e::own_server;
use pg_task_e2e::seed;
use pg_task_e2e::shared_server;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

mod account {
    use super::*;

    pg_task::task!(Account { Break, Close, Crash, Export, Warn });
    pg_task::scheduler!(Tasks { Account });

    /// Warns the user, and closes the account after a week.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Warn {
        pub user: i64,
    }

    impl Step<Account> for Warn {
        async fn step(self, db: &PgPool) -> StepResult<Account> {
            let mut transaction = db.begin().await?;
            sqlx::query("INSERT INTO log VALUES ('warned')").execute(&mut *transaction).await?;
            transaction.commit().await?;
            NextStep::delay(Close { user: self.user }, 7 * DAY)
        }
    }

    #[derive(Debug, Deserialize, Serialize)]
    pub struct Close {
        pub user: i64,
    }

    impl Step<Account, Tx> for Close {
        async fn step(self, tx: &Tx) -> StepResult<Account> {
            sqlx::query("INSERT INTO log VALUES ('closed')").execute(tx).await?;
            let export = Tasks::Account(Export { user: self.user }.into());
            pg_task::Enqueue::new().queue("slow").delay(tx, &export, DAY).await?;
            NextStep::none()
        }
    }

    /// Fails twice.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Export {
        pub user: i64,
    }

    impl Step<Account, Context> for Export {
        const RETRY_LIMIT: i32 = 2;
        const RETRY_DELAY: Duration = Duration::from_secs(3_600);

        async fn step(self, cx: &Context) -> StepResult<Account> {
            cx.state::<AtomicU32>().fetch_add(1, Ordering::Relaxed);
            sqlx::query("INSERT INTO log VALUES ('exported')").execute(cx.db()).await?;
            if cx.attempt() < 3 { Err("the disk is full".into()) } else { NextStep::none() }
        }
    }

    #[derive(Debug, Deserialize, Serialize)]
    pub struct Crash;

    impl Step<Account> for Crash {
        async fn step(self, _db: &PgPool) -> StepResult<Account> {
            panic!("not ready for this")
        }
    }

    /// Goes on after a statement that failed.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Break;

    impl Step<Account> for Break {
        async fn step(self, db: &PgPool) -> StepResult<Account> {
            let _ = sqlx::query("SELECT 1 / 0").execute(db).await;
            NextStep::none()
        }
    }
}

use account::Tasks;

async fn database() -> Result<Database> {
    let db = Database::create(shared_server("e2e-testing")).await?;
    db.run("CREATE TABLE log (what text)").await?;
    Ok(db)
}

async fn log(bench: &Bench<Tasks>) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("SELECT what FROM log").fetch_all(bench.db()).await?)
}

#[tokio::test]
async fn a_task_of_weeks_is_run_to_its_end_at_once_and_nothing_is_left() -> Result<()> {
    let (db, began) = (database().await?, Instant::now());
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?.with_state(AtomicU32::new(0));
    let id = pg_task::enqueue(bench.db(), &Tasks::Account(account::Warn { user: 7 }.into())).await?;
    assert_eq!(bench.run_due().await?, 1);
    let waiting = bench.tasks().await?;
    assert!(matches!(&waiting[0].step, Tasks::Account(account::Account::Close(close)) if close.user == 7));
    assert_eq!((waiting.len(), waiting[0].id, waiting[0].due_in), (1, id, 7 * DAY));
    bench.advance(7 * DAY - Duration::from_secs(1)).await?;
    assert_eq!(bench.run_due().await?, 0);
    assert_eq!(bench.run_to_end(id).await?, End::Done);
    assert_eq!(log(&bench).await?, ["warned", "closed"]);
    // What was enqueued by it.
    let waiting = bench.tasks().await?;
    assert_eq!((waiting.len(), waiting[0].queue.as_str(), waiting[0].due_in), (1, "slow", DAY));
    assert_eq!(bench.run_to_end(waiting[0].id).await?, End::Done);
    assert_eq!(log(&bench).await?, ["warned", "closed", "exported"]);
    // Others saw nothing of it, and nothing is left.
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "0");
    drop(bench);
    db.until("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'")
        .await?;
    assert_eq!(db.ask("SELECT (SELECT count(*) FROM log) + (SELECT count(*) FROM pg_task.task)").await?, "0");
    assert!(began.elapsed() < DAY);
    Ok(())
}

#[test]
fn the_example_with_sqlx_test_passes_and_leaves_no_database() -> Result<()> {
    let server = shared_server("e2e-testing");
    let mut cargo = seed::cargo(&workspace_root().join("Cargo.toml"), "test");
    cargo.args(["-p", "pg_task_examples", "--features", "sqlx-test", "--test", "sqlx_test"]);
    let said = seed::run(cargo.env("DATABASE_URL", server.url("postgres")).env_remove("CARGO_MANIFEST_DIR"))?;
    assert!(said.contains("2 passed"), "{said}");
    let left =
        server.psql("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE '%sqlx_test%'")?;
    assert_eq!(left.trim(), "0");
    Ok(())
}

#[tokio::test]
async fn a_bench_runs_tasks_in_a_database_that_has_no_scheduler() -> Result<()> {
    let server = own_server("e2e-testing-full", &["pg_task.max_databases = 1"])?;
    let _taken = Database::create(&server).await?;
    let db = Database::empty(&server).await?;
    db.run("CREATE EXTENSION pg_task; CREATE TABLE log (what text)").await?;
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?.with_state(AtomicU32::new(0));
    let id = pg_task::enqueue(bench.db(), &Tasks::Account(account::Warn { user: 7 }.into())).await?;
    pg_task::assert_enqueued!(bench.tasks().await?, Tasks::Account(account::Account::Warn(warn)) if warn.user == 7);
    assert_eq!(bench.run_to_end(id).await?, End::Done);
    assert_eq!(log(&bench).await?, ["warned", "closed"]);
    let export = pg_task::assert_enqueued!(bench.tasks().await?, Tasks::Account(account::Account::Export(_)));
    pg_task::assert_not_enqueued!(bench.tasks().await?, Tasks::Account(account::Account::Close(_)));
    assert_eq!(bench.run_to_end(export.id).await?, End::Done);
    drop(bench);
    // It has none, indeed.
    assert_ne!(db.ask("SELECT state FROM pg_task.scheduler").await?, "running");
    Ok(())
}

#[tokio::test]
async fn retries_are_counted_and_their_delays_are_the_steps_own() -> Result<()> {
    let db = database().await?;
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?.with_state(AtomicU32::new(0));
    let id = pg_task::enqueue(bench.db(), &Tasks::Account(account::Export { user: 1 }.into())).await?;
    for tried in 1..3 {
        assert_eq!(bench.run_due().await?, 1);
        let waiting = bench.tasks().await?;
        assert_eq!((waiting[0].tried, waiting[0].due_in), (tried, Duration::from_secs(3_600)));
        bench.advance(Duration::from_secs(3_600)).await?;
    }
    // What failed attempts wrote is not there.
    assert_eq!(log(&bench).await?, Vec::<String>::new());
    assert_eq!(bench.run_to_end(id).await?, End::Done);
    assert_eq!(log(&bench).await?, ["exported"]);
    Ok(())
}

#[tokio::test]
async fn what_goes_wrong_parks_the_task_with_the_reason() -> Result<()> {
    let db = database().await?;
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?;
    let mut end = async |task: &Tasks| {
        let id = pg_task::enqueue(bench.db(), task).await?;
        match bench.run_to_end(id).await? {
            End::Parked(error) => Ok(error),
            End::Done => anyhow::bail!("it is done"),
        }
    };
    let crash = end(&Tasks::Account(account::Crash.into())).await?;
    assert_eq!(crash, "the step panicked: not ready for this");
    // No state was given to the bench.
    let state = end(&Tasks::Account(account::Export { user: 1 }.into())).await?;
    assert!(state.contains("with_state"), "{state}");
    let swallowed = end(&Tasks::Account(account::Break.into())).await?;
    assert!(swallowed.starts_with("a statement of the step failed, and the step went on"), "{swallowed}");
    let waiting = bench.tasks().await?;
    assert_eq!(waiting.iter().filter(|task| task.error.is_some()).count(), 3);
    sqlx::query(r#"SELECT pg_task.enqueue('{"Account": {"Unheard": 1}}')"#).execute(bench.db()).await?;
    assert_eq!(bench.run_due().await?, 1);
    assert!(matches!(bench.tasks().await, Err(pg_task::Error::DeserializeStep(..))));
    Ok(())
}
