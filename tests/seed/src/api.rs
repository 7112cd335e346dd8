//! Every public item of the crate pg_task 1.0.0, used as its users may use it.
//!
//! Compiled and run twice: against that crate, so that the list is true, and against this project's, so that it is kept. `super` has
//! the tasks `Tasks`, `Test`, `Fail` and `Note`.

use std::num::NonZeroUsize;
use std::time::Duration;

use pg_task::Error;
use pg_task::NextStep;
use pg_task::Scheduler;
use pg_task::Step;
use pg_task::StepError;
use pg_task::StepResult;
use pg_task::TaskError;
use pg_task::TaskErrorListener;
use pg_task::Worker;
use sqlx::PgPool;

use super::Fail;
use super::Note;
use super::Tasks;
use super::Test;

/// Enqueues in every way, runs a worker, hears of the task that it parks, and stops it.
pub async fn use_everything(db: PgPool) -> anyhow::Result<()> {
    steps(&db).await?;
    errors().await;

    let mut listener: TaskErrorListener = pg_task::listen_for_task_errors(&db).await?;
    let task = Tasks::Test(Test::Note(Note { key: "api".into() }));
    let soon = Duration::from_millis(10);
    let mut transaction = db.begin().await?;
    pg_task::enqueue(&mut *transaction, &task).await?;
    pg_task::delay(&mut *transaction, &task, soon).await?;
    transaction.commit().await?;
    // Moments are of the chrono that the crate uses.
    let moment = TaskError::clone(&task_error()).created_at;
    pg_task::schedule(&db, &task, moment).await?;
    task.enqueue(&db).await?;
    task.delay(&db, soon).await?;
    task.schedule(&db, moment).await?;
    let id = pg_task::enqueue(&db, &Tasks::Test(Fail { until_attempt: 9 }.into())).await?;

    let worker = Worker::<Tasks>::new(db.clone())
        .with_concurrency(NonZeroUsize::MIN)
        .with_lease_timeout(Duration::from_secs(3))
        .with_heartbeat_interval(Duration::from_secs(1));
    let worker = tokio::spawn(async move { worker.run().await });
    let error: TaskError = listener.recv().await?;
    assert_eq!((error.id, error.tried), (id, 2));
    assert!(!error.error.is_empty());
    assert!(error.updated_at >= error.created_at);
    assert!(matches!(error.deserialize_step()?, Tasks::Test(Test::Fail(Fail { until_attempt: 9 }))));
    sqlx::query("SELECT pg_notify('pg_task_changed', 'stop_worker')").execute(&db).await?;
    let result: pg_task::Result<()> = worker.await?;
    Ok(result?)
}

async fn steps(db: &PgPool) -> anyhow::Result<()> {
    let fail = Fail { until_attempt: 9 };
    assert_eq!((<Fail as Step<Test>>::RETRY_LIMIT, fail.retry_limit()), (1, 1));
    assert_eq!(<Fail as Step<Test>>::RETRY_DELAY, fail.retry_delay());
    assert_eq!(<Note as Step<Test>>::RETRY_DELAY, Duration::from_secs(1));
    let task = Tasks::from(Test::from(fail));
    assert_eq!((task.retry_limit(), task.retry_delay()), (1, Duration::from_millis(10)));
    let failed: Result<_, StepError> = Fail { until_attempt: 9 }.step(db).await;
    assert!(failed.is_err());

    let note = || Note { key: "api".into() };
    let each: [StepResult<Test>; 3] =
        [NextStep::none(), NextStep::now(note()), NextStep::delay(note(), Duration::from_secs(1))];
    for next in each {
        match next.map_err(|error| anyhow::anyhow!(error))? {
            NextStep::None => {}
            NextStep::Now(step) => assert!(matches!(step, Test::Note(_))),
            NextStep::Delayed(step, delay) => {
                assert!(matches!(step, Test::Note(_)));
                assert_eq!(delay, Duration::from_secs(1));
            }
        }
    }
    Ok(())
}

async fn errors() {
    let database = || sqlx::Error::PoolClosed;
    let json = || serde_json::from_str::<u8>("x").expect_err("no number");
    let closed = tokio::sync::Semaphore::new(0);
    closed.close();
    let permit = closed.acquire().await.expect_err("closed");
    let errors = [
        Error::AddTask(database()),
        Error::SerializeStep(json(), "step".into()),
        Error::DeserializeStep(json(), "step".into()),
        Error::ListenerConnect(database()),
        Error::ListenerListen(database()),
        Error::ListenerReceive(database()),
        Error::UnreachableWorkerSemaphoreClosed(permit),
        Error::Db(database(), "read".into()),
    ];
    for error in errors {
        assert!(std::error::Error::source(&error).is_some(), "{error:?}");
        assert!(!error.to_string().is_empty());
    }
    assert!(std::error::Error::source(&Error::TaskLeaseExpired).is_none());
    assert_eq!(task_error(), task_error());
}

fn task_error() -> TaskError {
    let at = std::time::SystemTime::UNIX_EPOCH.into();
    TaskError {
        id: Default::default(),
        step: "{}".into(),
        tried: 1,
        error: "x".into(),
        created_at: at,
        updated_at: at,
    }
}
