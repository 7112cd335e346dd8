//! Trace context: what links a task to whoever enqueued it.

use std::future::Future;
use std::sync::Arc;

tokio::task_local! {
    static TRACEPARENT: Arc<str>;
}

/// Runs a future in which every task that is enqueued by this crate carries a trace context, unless it is given another one
/// ([`crate::Enqueue::traceparent`]).
///
/// Within a step there is no need to: what it enqueues carries that of its own task. A [`crate::Layer`] that makes a span for each step hands
/// it on by `with_traceparent(traceparent, next.run())`. A runtime task that the future spawns is not part of it.
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # async fn demo<T: pg_task::Scheduler>(db: sqlx::PgPool, task: T, traceparent: String) -> pg_task::Result<()> {
/// pg_task::with_traceparent(traceparent, pg_task::enqueue(&db, &task)).await?;
/// # Ok(())
/// # }
/// ```
pub async fn with_traceparent<F: Future>(traceparent: impl Into<Arc<str>>, future: F) -> F::Output {
    TRACEPARENT.scope(traceparent.into(), future).await
}

/// The same, if there is one.
pub(crate) async fn carrying<F: Future>(traceparent: Option<Arc<str>>, future: F) -> F::Output {
    match traceparent {
        Some(traceparent) => with_traceparent(traceparent, future).await,
        None => future.await,
    }
}

/// The one that surrounds the caller.
pub(crate) fn current() -> Option<Arc<str>> {
    TRACEPARENT.try_with(Arc::clone).ok()
}
