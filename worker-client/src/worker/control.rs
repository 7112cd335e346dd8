//! The line between the dispatcher and a step that runs.

use std::fmt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use serde_json::value::RawValue;
use sqlx::types::Json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::progress::Said;

/// How the dispatcher reaches a step that runs, and the step hears of it. Most steps never ask: the token is made when it is needed.
#[derive(Debug, Default)]
pub(crate) struct Control {
    token: OnceLock<CancellationToken>,
    drop: Notify,
    /// The task was given to another worker: nothing that the step ends in counts.
    refused: AtomicBool,
    /// What the task returns, if the step ends it.
    result: Mutex<Option<Box<RawValue>>>,
    /// How far the step says that it is.
    progress: Mutex<Option<Box<Said>>>,
}

impl Control {
    /// The token that is cancelled when the step is to end.
    pub(crate) fn token(&self) -> &CancellationToken {
        self.token.get_or_init(CancellationToken::new)
    }

    /// Keeps what the task returns.
    pub(crate) fn set_result(&self, result: Box<RawValue>) {
        *lock(&self.result) = Some(result);
    }

    pub(super) fn take_result(&self) -> Option<Json<Box<RawValue>>> {
        lock(&self.result).take().map(Json)
    }

    /// Keeps how far the step says that it is.
    pub(crate) fn set_progress(&self, value: Option<f64>, text: impl fmt::Display) {
        // Taken out meanwhile: foreign code makes the text.
        let mut said = lock(&self.progress).take().unwrap_or_default();
        said.say(value, text);
        *lock(&self.progress) = Some(said);
    }

    /// What the step has said of how far it is, if that is new.
    pub(super) fn take_progress(&self) -> Option<(Option<f64>, String)> {
        lock(&self.progress).as_mut().and_then(|said| said.news())
    }

    /// What the step has said last is to be brought again; false when it has said nothing.
    pub(super) fn say_again(&self) -> bool {
        lock(&self.progress).as_mut().map(|said| said.again()).is_some()
    }

    /// Asks the step to end.
    pub(super) fn cancel(&self) {
        self.token().cancel();
    }

    /// Asks the step to end, whose task was given to another worker: nothing that it ends in counts.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
        self.cancel();
    }

    /// Whether nothing that the step ends in counts.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Drops the step at its next point of waiting.
    pub(super) fn drop_step(&self) {
        self.drop.notify_one();
    }

    /// Waits until the step is to be dropped.
    pub(super) async fn dropped(&self) {
        self.drop.notified().await;
    }
}

/// No holder of these locks runs foreign code: a poisoned one is as good as any.
pub(super) fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
