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
use pg_task::StepError;
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

    pg_task::task!(Account { Add, Break, Close, Crash, Export, Hang, Offer, Pay, Wait, Warn });
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

    /// Returns a sum, at its second attempt and second step.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Add {
        pub numbers: Vec<u32>,
        pub again: bool,
    }

    impl Step<Account, Context> for Add {
        const RETRY_LIMIT: i32 = 1;
        const RETRY_DELAY: Duration = Duration::from_secs(60);

        async fn step(self, cx: &Context) -> StepResult<Account> {
            if cx.attempt() == 1 {
                cx.set_result(&"of an attempt that failed")?;
                return Err("not yet".into());
            }
            cx.set_result(&self.numbers.iter().sum::<u32>())?;
            match self.again {
                true => NextStep::now(Add { again: false, ..self }),
                false => NextStep::none(),
            }
        }
    }

    /// Returns what it is given, in a transaction.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Pay {
        pub cents: i64,
    }

    impl Step<Account, Tx> for Pay {
        async fn step(self, tx: &Tx) -> StepResult<Account> {
            sqlx::query("INSERT INTO log VALUES ('paid')").execute(tx).await?;
            tx.context().set_result(&self)?;
            NextStep::none()
        }
    }

    /// Ends when it is asked to: `well`, `fails`; or never.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Hang {
        pub how: String,
    }

    impl Step<Account, Context> for Hang {
        const TIMEOUT: Option<Duration> = Some(Duration::from_secs(3_600));

        async fn step(self, cx: &Context) -> StepResult<Account> {
            sqlx::query("INSERT INTO log VALUES ('begun')").execute(cx.db()).await?;
            match self.how.as_str() {
                "well" => cx.cancelled().await,
                "fails" => {
                    cx.cancelled().await;
                    return Err("it took too long".into());
                }
                _ => std::future::pending().await,
            }
            NextStep::none()
        }
    }

    /// Never ends.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Wait;

    impl Step<Account> for Wait {
        async fn step(self, _db: &PgPool) -> StepResult<Account> {
            std::future::pending().await
        }
    }

    /// Warns when it comes too late.
    #[derive(Debug, Deserialize, Serialize)]
    pub struct Offer {
        pub user: i64,
    }

    impl Step<Account> for Offer {
        async fn step(self, db: &PgPool) -> StepResult<Account> {
            sqlx::query("INSERT INTO log VALUES ('offered')").execute(db).await?;
            NextStep::none()
        }

        fn give_up(self, error: &StepError) -> Option<Account> {
            error.to_string().contains("deadline").then(|| Warn { user: self.user }.into())
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

/// Enqueues a task with options in a bench.
async fn enqueue(bench: &Bench<Tasks>, task: &Tasks, options: &str) -> Result<uuid::Uuid> {
    let step = serde_json::to_value(task)?;
    let sql = format!("SELECT pg_task.enqueue($1, options => {options})");
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(step).fetch_one(bench.db()).await?)
}

#[tokio::test]
async fn the_options_of_a_task_decide_about_its_retries_in_a_bench_too() -> Result<()> {
    let db = database().await?;
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?.with_state(AtomicU32::new(0));
    let seconds = Duration::from_secs;
    let export = Tasks::Account(account::Export { user: 1 }.into());
    let crash = Tasks::Account(account::Crash.into());
    // The times after its failures, and whether it is done in the end.
    let cases: [(&Tasks, &str, &[Duration], bool); 7] = [
        (&export, r#"{"delays": [10, "1 min"]}"#, &[seconds(10), seconds(60)], true),
        (
            &export,
            r#"{"delay": "2 s", "backoff": "exponential", "factor": 5}"#,
            &[seconds(2), seconds(10)],
            true,
        ),
        (
            &export,
            r#"{"delay": 60, "backoff": "exponential", "max_delay": 90}"#,
            &[seconds(60), seconds(90)],
            true,
        ),
        // Fewer than the step's own, and more than those of one that has none.
        (&export, r#"{"limit": 1}"#, &[seconds(3_600)], false),
        (&export, r#"{"limit": 0}"#, &[], false),
        (&crash, r#"{"limit": 2, "delay": 5}"#, &[seconds(5), seconds(5)], false),
        (&crash, r#"{"limit": 1}"#, &[seconds(1)], false),
    ];
    for (task, policy, delays, done) in cases {
        let id = enqueue(&bench, task, &format!(r#"'{{"retry": {policy}}}'"#)).await?;
        for delay in delays {
            assert_eq!(bench.run_due().await?, 1, "{policy}");
            let waiting = bench.tasks().await?;
            let task = waiting.iter().find(|task| task.id == id).expect("it waits");
            assert_eq!((task.due_in, &task.error), (*delay, &None), "{policy}");
            bench.advance(*delay).await?;
        }
        assert_eq!(bench.run_due().await?, 1, "{policy}");
        let waiting = bench.tasks().await?;
        let parked = waiting.iter().find(|task| task.id == id);
        assert_eq!(parked.is_none(), done, "{policy}: {parked:?}");
        assert!(parked.is_none_or(|task| task.error.is_some()), "{policy}: {parked:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_task_whose_deadline_has_passed_by_the_bench_s_clock_is_not_begun() -> Result<()> {
    let db = database().await?;
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?.with_state(AtomicU32::new(0));
    let warn = Tasks::Account(account::Warn { user: 7 }.into());
    let in_an_hour = "jsonb_build_object('deadline', now() + interval '1 hour')";
    let (late, minute) = (enqueue(&bench, &warn, in_an_hour).await?, Duration::from_secs(60));
    bench.advance(61 * minute).await?;
    assert_eq!(bench.run_due().await?, 0);
    let waiting = bench.tasks().await?;
    let error = waiting[0].error.clone().unwrap_or_default();
    assert!(error.starts_with("the task was not begun before its deadline, "), "{error}");
    assert_eq!((waiting[0].tried, bench.run_to_end(late).await?), (0, End::Parked(error)));
    assert_eq!(log(&bench).await?, Vec::<String>::new());
    // One that is enqueued now has an hour from now. Its second step is a week too late.
    let id = enqueue(&bench, &warn, in_an_hour).await?;
    bench.advance(59 * minute).await?;
    assert_eq!(bench.run_due().await?, 1);
    assert!(matches!(bench.run_to_end(id).await?, End::Parked(error) if error.contains("deadline")));
    assert_eq!(log(&bench).await?, ["warned"]);
    Ok(())
}

#[tokio::test]
async fn a_step_whose_deadline_has_passed_says_in_a_bench_what_to_do_instead() -> Result<()> {
    let db = database().await?;
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?;
    let offer = Tasks::Account(account::Offer { user: 7 }.into());
    let id = enqueue(&bench, &offer, "jsonb_build_object('deadline', now() + interval '1 hour')").await?;
    bench.advance(2 * Duration::from_secs(3_600)).await?;
    assert_eq!(bench.run_due().await?, 0);
    // The deadline is the task's: the next step is late as well, and has nothing to say.
    assert!(matches!(bench.run_to_end(id).await?, End::Parked(error) if error.contains("deadline")));
    let waiting = bench.tasks().await?;
    assert!(matches!(&waiting[0].step, Tasks::Account(account::Account::Warn(warn)) if warn.user == 7));
    assert_eq!(log(&bench).await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn what_a_queue_says_for_its_tasks_holds_in_a_bench_too() -> Result<()> {
    let db = database().await?;
    let bench = Bench::<Tasks>::begin(&db.pool).await?.with_patience(Duration::from_millis(200));
    let mut bench = bench.with_state(AtomicU32::new(0));
    for set in [
        r#"SELECT pg_task.set_queue('*', retry => '{"limit": 1, "delay": "3 h"}', timeout => '1 h')"#,
        r#"SELECT pg_task.set_queue('slow', retry => '{"limit": 2, "delay": "10 s"}')"#,
    ] {
        sqlx::query(set).execute(bench.db()).await?;
    }
    let crash = Tasks::Account(account::Crash.into());
    let own = serde_json::json!({ "retry": { "limit": 1, "delay": 5 } });
    // Its own, its queue's, that of all queues; the last attempt parks it.
    let cases: [(&str, Option<&serde_json::Value>, &[u64]); 3] =
        [("slow", Some(&own), &[5]), ("slow", None, &[10, 10]), ("default", None, &[10_800])];
    for (queue, options, delays) in cases {
        let id: uuid::Uuid = sqlx::query_scalar("SELECT pg_task.enqueue($1, $2, options => $3)")
            .bind(serde_json::to_value(&crash)?)
            .bind(queue)
            .bind(options)
            .fetch_one(bench.db())
            .await?;
        for &delay in delays {
            bench.run_due().await?;
            let waiting = bench.tasks().await?;
            let task = waiting.iter().find(|task| task.id == id).expect("it waits");
            assert_eq!((task.due_in, &task.error), (Duration::from_secs(delay), &None), "{queue}");
            bench.advance(task.due_in).await?;
        }
        assert!(matches!(bench.run_to_end(id).await?, End::Parked(_)), "{queue}");
    }
    // A time limit: the step has none of its own and never ends.
    let id = pg_task::enqueue(bench.db(), &Tasks::Account(account::Wait.into())).await?;
    assert_eq!(
        bench.run_to_end(id).await?,
        End::Parked("the step did not end within 3600s, nor when it was asked to".to_owned())
    );
    Ok(())
}

#[tokio::test]
async fn a_step_that_hangs_in_a_bench_is_asked_to_end_and_then_dropped_and_the_clock_has_moved() -> Result<()>
{
    let db = database().await?;
    let patience = Duration::from_millis(500);
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?.with_patience(patience);
    let hour = Duration::from_secs(3_600);
    let later = Tasks::Account(account::Warn { user: 7 }.into());
    pg_task::delay(bench.db(), &later, 48 * hour).await?;
    let mut ends = Vec::new();
    for (how, options) in [
        ("well", "NULL"),
        ("fails", "NULL"),
        ("never", "NULL"),
        ("never", r#"'{"timeout": "2 h"}'"#),
        ("never", r#"'{"timeout": 0.01}'"#),
        ("fails", r#"'{"retry": {"limit": 1, "delay": "3 h"}}'"#),
    ] {
        let id =
            enqueue(&bench, &Tasks::Account(account::Hang { how: how.to_owned() }.into()), options).await?;
        ends.push(match bench.run_to_end(id).await? {
            End::Done => "done".to_owned(),
            End::Parked(error) => error,
        });
    }
    let dropped = |limit: &str| format!("the step did not end within {limit}, nor when it was asked to");
    assert_eq!(
        ends,
        [
            "done",
            "it took too long",
            &dropped("3600s"),
            &dropped("7200s"),
            &dropped("10ms"),
            "it took too long"
        ]
    );
    // What failed attempts wrote is not there, and the connection is as good as before.
    assert_eq!(log(&bench).await?, ["begun"]);
    // 1 + 1 + 1 + 2 + 0 + (1 + 3 + 1) hours of 48 have passed, and 10 milliseconds.
    let waiting = bench.tasks().await?;
    assert_eq!(waiting[0].due_in, 38 * hour - Duration::from_millis(10));
    Ok(())
}

#[tokio::test]
async fn a_bench_keeps_what_its_tasks_return() -> Result<()> {
    let db = database().await?;
    let mut bench = Bench::<Tasks>::begin(&db.pool).await?;
    let add = Tasks::Account(account::Add { numbers: vec![2, 3], again: true }.into());
    let id = pg_task::enqueue(bench.db(), &add).await?;
    assert_eq!(bench.result::<u32>(id)?, None);
    // An attempt that failed; then one that went on, and one of the next step that failed.
    for ran in [1, 2] {
        assert_eq!(bench.run_due().await?, ran);
        assert_eq!(bench.result::<u32>(id)?, None);
        bench.advance(Duration::from_secs(60)).await?;
    }
    assert_eq!(bench.run_to_end(id).await?, End::Done);
    assert_eq!(bench.result::<u32>(id)?, Some(5));
    assert!(matches!(bench.result::<String>(id), Err(pg_task::Error::DeserializeResult(..))));
    let id = pg_task::enqueue(bench.db(), &Tasks::Account(account::Pay { cents: 7 }.into())).await?;
    assert_eq!(bench.run_to_end(id).await?, End::Done);
    assert_eq!(bench.result::<account::Pay>(id)?.map(|pay| pay.cents), Some(7));
    // One that returns nothing.
    let id = pg_task::enqueue(bench.db(), &Tasks::Account(account::Warn { user: 7 }.into())).await?;
    bench.run_to_end(id).await?;
    assert_eq!(bench.result::<serde_json::Value>(id)?, None);
    Ok(())
}
