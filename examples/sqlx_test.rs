//! Tests of a program's tasks with `#[sqlx::test]`: each test has a database of its own, made by the migrations, and nothing runs in it but the test.
//!
//! `cargo test -p pg_task_examples --features sqlx-test --test sqlx_test`, with `DATABASE_URL`.
#![expect(missing_docs, clippy::tests_outside_test_module, reason = "an example")]

use std::time::Duration;

use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::Tx;
use pg_task::assert_enqueued;
use pg_task::assert_not_enqueued;
use pg_task::testing;
use pg_task::testing::Bench;
use pg_task::testing::End;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;

pg_task::task!(Account { Close, Warn });
pg_task::scheduler!(Tasks { Account });

const DAY: Duration = Duration::from_secs(86_400);

/// Enqueues a warning for each account that nobody uses: what the program calls, here from two connections at a time.
async fn warn_idle_accounts(db: &PgPool) -> anyhow::Result<()> {
    let idle: Vec<i64> =
        sqlx::query_scalar("SELECT id FROM account WHERE seen_at < now() - interval '1 year' ORDER BY id")
            .fetch_all(db)
            .await?;
    let warn = async |user: &i64| {
        let task = Tasks::Account(Warn { user: *user }.into());
        pg_task::Enqueue::new().queue("mail").enqueue(db, &task).await
    };
    let (even, odd): (Vec<_>, Vec<_>) = idle.iter().partition(|id| **id % 2 == 0);
    let both = async |users: Vec<&i64>| {
        for user in users {
            warn(user).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(both(even), both(odd))?;
    Ok(())
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Warn {
    user: i64,
}

impl Step<Account> for Warn {
    async fn step(self, _db: &PgPool) -> StepResult<Account> {
        NextStep::delay(Close { user: self.user }, 7 * DAY)
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Close {
    user: i64,
}

impl Step<Account, Tx> for Close {
    async fn step(self, tx: &Tx) -> StepResult<Account> {
        sqlx::query("UPDATE account SET closed = true WHERE id = $1").bind(self.user).execute(tx).await?;
        NextStep::none()
    }
}

async fn accounts(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO account (id, seen_at) VALUES (7, now() - interval '2 years'), (8, now())")
        .execute(db)
        .await?;
    Ok(())
}

/// The code under test has the whole pool; what it enqueued is looked at.
#[sqlx::test]
async fn an_idle_account_is_warned(db: PgPool) -> anyhow::Result<()> {
    accounts(&db).await?;
    warn_idle_accounts(&db).await?;
    let task =
        assert_enqueued!(testing::tasks(&db).await?, Tasks::Account(Account::Warn(warn)) if warn.user == 7);
    assert_eq!((task.queue.as_str(), task.due_in), ("mail", Duration::ZERO));
    assert_not_enqueued!(testing::tasks(&db).await?, Tasks::Account(Account::Warn(warn)) if warn.user == 8);
    Ok(())
}

/// Tasks are run by the bench, in a transaction, by its clock.
#[sqlx::test]
async fn an_account_is_closed_a_week_after_the_warning(db: PgPool) -> anyhow::Result<()> {
    accounts(&db).await?;
    let mut bench = Bench::<Tasks>::begin(&db).await?;
    let id = pg_task::enqueue(bench.db(), &Tasks::Account(Warn { user: 7 }.into())).await?;
    assert_eq!(bench.run_due().await?, 1);
    let task = assert_enqueued!(bench.tasks().await?, Tasks::Account(Account::Close(_)));
    assert_eq!(task.due_in, 7 * DAY);
    bench.advance(6 * DAY).await?;
    assert_eq!(bench.run_due().await?, 0);
    assert_eq!(bench.run_to_end(id).await?, End::Done);
    let closed: Vec<i64> =
        sqlx::query_scalar("SELECT id FROM account WHERE closed").fetch_all(bench.db()).await?;
    assert_eq!(closed, [7]);
    Ok(())
}
