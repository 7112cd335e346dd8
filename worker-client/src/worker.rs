//! The worker: its settings, and how its parts fit together.
//!
//! - The *session* holds the connection that registers the worker, listens for wake-ups and beats its heart.
//! - Two *lanes* hold a connection each and carry `exchange` calls.
//! - The *executor* runs steps and sends their results.
//! - The *dispatcher* owns all state and talks to the others by messages: it decides what to ask for, gathers results while calls are
//!   under way, and keeps the list of what the worker holds.

mod caught;
mod control;
mod dispatcher;
mod executor;
mod lane;
mod layered;
mod link;
mod packed;
mod session;

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Context;
use crate::Error;
use crate::Layer;
use crate::Result;
use crate::Schedules;
use crate::Step;
use crate::context::Shared;
use crate::layer::AnyLayer;
use crate::schedules;
pub(crate) use caught::caught;
pub(crate) use control::Control;
use dispatcher::Dispatcher;
pub(crate) use executor::Attempt;
pub(crate) use executor::Trial;
pub(crate) use executor::Tried;

const DEFAULT_LEASE_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(20);

/// Runs the steps of the tasks `T`, an enum made by [`crate::scheduler!`].
pub struct Worker<T> {
    db: PgPool,
    settings: Settings,
    state: Option<Arc<dyn Any + Send + Sync>>,
    layers: Vec<Arc<dyn AnyLayer>>,
    schedules: Option<Schedules>,
    tasks: PhantomData<fn() -> T>,
}

/// A worker's settings.
#[derive(Clone, Debug)]
struct Settings {
    concurrency: usize,
    lease: Duration,
    heartbeat: Duration,
    queues: Option<Vec<String>>,
    weights: Option<Vec<i32>>,
    name: Option<String>,
    /// Behind a pooler: how often to look for work.
    polling: Option<Duration>,
    cancellation: CancellationToken,
}

impl<T: Step<T, Context> + 'static> Worker<T> {
    /// A worker that runs as many steps at a time as there are processors.
    ///
    /// It opens three connections of its own with the pool's options; the pool itself is left to the steps.
    pub fn new(db: PgPool) -> Self {
        let concurrency = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let settings = Settings {
            concurrency,
            lease: DEFAULT_LEASE_TIMEOUT,
            heartbeat: DEFAULT_HEARTBEAT_INTERVAL,
            queues: None,
            weights: None,
            name: None,
            polling: None,
            cancellation: CancellationToken::new(),
        };
        Self { db, settings, state: None, layers: Vec::new(), schedules: None, tasks: PhantomData }
    }

    /// How many steps run at a time; by default the number of processors. Steps that wait for something else than the
    /// processor allow hundreds.
    #[must_use]
    pub fn with_concurrency(mut self, concurrency: NonZeroUsize) -> Self {
        self.settings.concurrency = concurrency.get();
        self
    }

    /// How long the server waits for a worker of which it hears nothing, before it gives its tasks to others: 1 second to 1 day, by default
    /// 60 seconds. A worker whose process ends is noticed at once, whatever the lease.
    #[must_use]
    pub fn with_lease_timeout(mut self, lease_timeout: Duration) -> Self {
        self.settings.lease = lease_timeout;
        self
    }

    /// How often an idle worker says that it is there; by default every 20 seconds. Must be shorter than the lease.
    #[must_use]
    pub fn with_heartbeat_interval(mut self, heartbeat_interval: Duration) -> Self {
        self.settings.heartbeat = heartbeat_interval;
        self
    }

    /// The queues to take tasks from; by default all.
    #[must_use]
    pub fn with_queues<S: Into<String>>(mut self, queues: impl IntoIterator<Item = S>) -> Self {
        self.settings.queues = Some(queues.into_iter().map(Into::into).collect());
        self.settings.weights = None;
        self
    }

    /// The queues to take tasks from, each with its weight of 1 to 1000: as long as they all have tasks, the worker takes of each in this
    /// proportion; what one does not need goes to the others. Priorities order the tasks of a queue then, not those of two.
    ///
    /// ```rust,no_run
    /// # use pg_task_client as pg_task;
    /// # fn demo<T: pg_task::Step<T, pg_task::Context> + 'static>(worker: pg_task::Worker<T>) -> pg_task::Worker<T> {
    /// worker.with_queue_weights([("mail", 3), ("default", 1)])
    /// # }
    /// ```
    #[must_use]
    pub fn with_queue_weights<S: Into<String>>(mut self, queues: impl IntoIterator<Item = (S, u16)>) -> Self {
        let (queues, weights) =
            queues.into_iter().map(|(queue, weight)| (queue.into(), i32::from(weight))).unzip();
        self.settings.queues = Some(queues);
        self.settings.weights = Some(weights);
        self
    }

    /// A name for people, shown in `pg_task.workers`.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// For a worker behind a connection pooler in transaction mode, such as PgBouncer: it does not listen but looks for work so often, and
    /// keeps nothing in a server session. Only its lease says then that it is alive, and `pg_task_changed` does not reach it:
    /// stop it by `SELECT pg_task.stop_workers()` or its cancellation token.
    ///
    /// The pooler has to accept the start-up parameter `extra_float_digits` (PgBouncer: `ignore_startup_parameters`). Steps that use the
    /// pool through such a pooler must work in transactions, with statements that are not kept: `.persistent(false)`.
    #[must_use]
    pub fn with_polling(mut self, interval: Duration) -> Self {
        self.settings.polling = Some(interval);
        self
    }

    /// Stops the worker gracefully when the token is cancelled.
    #[must_use]
    pub fn with_cancellation(mut self, cancellation: CancellationToken) -> Self {
        self.settings.cancellation = cancellation;
        self
    }

    /// The application's state, for [`Context::state`].
    #[must_use]
    pub fn with_state<S: Any + Send + Sync>(mut self, state: S) -> Self {
        self.state = Some(Arc::new(state));
        self
    }

    /// Adds a layer around every step, within those that were added before: see [`Layer`].
    #[must_use]
    pub fn with_layer(mut self, layer: impl Layer) -> Self {
        self.layers.push(Arc::new(layer));
        self
    }

    /// The schedules that the program declares: brought to the table when the worker starts, as [`Schedules::declare`] does. The role needs the rights of
    /// `pg_task.grant_schedule`. While two versions of the program run side by side, the one that started last has its way.
    #[must_use]
    pub fn with_schedules(mut self, schedules: Schedules) -> Self {
        self.schedules = Some(schedules);
        self
    }

    /// Runs steps until the worker is asked to stop: by the cancellation token, by `SELECT pg_task.stop_workers()`, or by `SELECT
    /// pg_notify('pg_task_changed', 'stop_worker')`. It finishes what runs before it returns.
    ///
    /// A connection that is lost is made again, however long that takes; steps that run go on meanwhile, as long as the lease lasts.
    ///
    /// # Errors
    /// Only at the start: when the settings do not fit together, or the server refuses the worker for a reason that trying again
    /// does not cure, such as a missing privilege or a database without the extension.
    pub async fn run(&self) -> Result<()> {
        let settings = &self.settings;
        if settings.lease < Duration::from_secs(1) || settings.lease > Duration::from_secs(86_400) {
            return Err(Error::Settings("the lease must be between 1 second and 1 day"));
        }
        if settings.heartbeat.is_zero() || settings.heartbeat >= settings.lease {
            return Err(Error::Settings("the heartbeat interval must be shorter than the lease"));
        }
        if settings.polling.is_some_and(|interval| interval.is_zero()) {
            return Err(Error::Settings("the polling interval must not be zero"));
        }
        if let Some(schedules) = &self.schedules
            && !declare(schedules, &self.db, &settings.cancellation).await?
        {
            return Ok(());
        }
        let (worker, pooled) = (Uuid::new_v4(), settings.polling.is_some());
        let (db, state, layers) = (self.db.clone(), self.state.clone(), self.layers.clone());
        let shared = Arc::new(Shared { db, worker, pooled, state, layers, bell: Arc::default() });
        Dispatcher::<T>::start(shared, settings.clone()).run().await
    }
}

impl<T> fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Declares the schedules, however long the server cannot be reached; false when the worker is asked to stop before.
async fn declare(schedules: &Schedules, db: &PgPool, cancellation: &CancellationToken) -> Result<bool> {
    let mut failures = 0;
    loop {
        let declared = tokio::select! {
            declared = schedules.declare(db) => declared,
            () = cancellation.cancelled() => return Ok(false),
        };
        match declared {
            Ok(declared) => {
                if !declared.untouched.is_empty() {
                    let names = declared.untouched.join(", ");
                    tracing::warn!(
                        "schedules that SQL has made, or another program, stay as they are: {names}"
                    );
                }
                return Ok(true);
            }
            Err(error) if schedules::is_passing(&error) => {
                tracing::warn!("{}, trying again", crate::source_chain::text(&error));
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff(failures)) => {}
            () = cancellation.cancelled() => return Ok(false),
        }
        failures += 1;
    }
}

/// The time before the next try of something that failed `failures` times in a row: 100 ms doubling to 5 s, less up to a half by
/// chance, so that many workers do not come back at the same moment.
fn backoff(failures: u32) -> Duration {
    let longest = Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5));
    let chance = f64::from(Uuid::new_v4().as_bytes()[0]) / 255.0;
    longest.mul_f64(1.0 - chance / 2.0)
}
