//! Layers: what a program does around every step.

use std::any::Any;
use std::any::TypeId;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::Context;
use crate::StepError;
use crate::worker::caught;

/// Something that is done around every step of a worker: [`crate::Worker::with_layer`].
///
/// ```rust
/// # use pg_task_client as pg_task;
/// use pg_task::{Context, Layer, LayerResult, Next};
///
/// struct SlowSteps(std::time::Duration);
///
/// impl Layer for SlowSteps {
///     async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
///         let began = std::time::Instant::now();
///         let result = next.run().await;
///         if began.elapsed() > self.0 {
///             println!("{} of {} took {:?}: {result:?}", cx.step_name(), cx.task_id(), began.elapsed());
///         }
///         result
///     }
/// }
/// ```
///
/// The first layer that a worker was given is the outermost. A layer sees every attempt of every step that could be read from its row, transactional
/// ones with their commit; it may fail the attempt by returning an error, before or after the step.
///
/// An error or a panic of a layer counts as one of the step: it is retried, and then parks the task. What a transactional step has committed
/// stays so, whatever the layers return after it.
pub trait Layer: Send + Sync + 'static {
    /// Runs what is within, by [`Next::run`], and whatever the layer does before and after.
    fn call(&self, cx: &Context, next: Next<'_>) -> impl Future<Output = LayerResult> + Send;
}

/// What a layer sees of an attempt, and returns.
pub type LayerResult = Result<Ending, StepError>;

/// What a step ended in when it did not fail; of an error, [`Context::retry_after`] tells what becomes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Ending {
    /// The task is done.
    Done,
    /// The next step follows at once.
    Next,
    /// The next step follows after this time.
    Delayed(Duration),
    /// The step was transactional, and its transaction was rolled back: the task had been changed, cancelled or given to another worker.
    Refused,
}

/// What is within a layer: further layers, then the step.
pub struct Next<'a> {
    cx: &'a Context,
    layers: &'a [Arc<dyn AnyLayer>],
    step: &'a mut dyn Innermost,
}

impl<'a> Next<'a> {
    pub(crate) fn new(cx: &'a Context, step: &'a mut dyn Innermost) -> Self {
        Self { cx, layers: &cx.shared.layers, step }
    }

    /// Runs it. A panic within is an error here.
    ///
    /// # Errors
    /// That of the step, of its commit, or of a layer within.
    pub async fn run(self) -> LayerResult {
        let Self { cx, layers, step } = self;
        match layers.split_first() {
            Some((layer, layers)) => caught("a layer", layer.call(cx, Next { cx, layers, step })).await,
            None => caught("the step", step.run(cx)).await,
        }
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

/// The step, whatever its type.
pub(crate) trait Innermost: Send {
    fn run<'a>(&'a mut self, cx: &'a Context) -> BoxFuture<'a, LayerResult>;
}

/// A layer, whatever its type.
pub(crate) trait AnyLayer: Send + Sync {
    fn call<'a>(&'a self, cx: &'a Context, next: Next<'a>) -> BoxFuture<'a, LayerResult>;
}

impl<L: Layer> AnyLayer for L {
    fn call<'a>(&'a self, cx: &'a Context, next: Next<'a>) -> BoxFuture<'a, LayerResult> {
        // Within the future, so that whatever panics is caught where it is polled.
        Box::pin(async move { Layer::call(self, cx, next).await })
    }
}

/// Values that layers and the step of one attempt leave for each other, one of a type.
#[derive(Default)]
pub(crate) struct Extensions(Mutex<Vec<(TypeId, Arc<dyn Any + Send + Sync>)>>);

impl Extensions {
    pub(crate) fn insert<V: Any + Send + Sync>(&self, value: V) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.retain(|(kind, _)| *kind != TypeId::of::<V>());
        values.push((TypeId::of::<V>(), Arc::new(value)));
    }

    pub(crate) fn value<V: Any + Send + Sync>(&self) -> Option<Arc<V>> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, value) = values.iter().find(|(kind, _)| *kind == TypeId::of::<V>())?;
        value.clone().downcast().ok()
    }
}
