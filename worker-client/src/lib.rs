#![doc = include_str!("docs/lib.md")]
#![forbid(unsafe_code)]

mod assertions;
mod context;
mod enqueue;
mod error;
mod handle;
mod layer;
mod macros;
mod next_step;
mod operate;
mod queue;
mod retry;
mod source_chain;
mod step;
mod task_error;
pub mod testing;
mod trace;
mod transaction;
mod worker;

pub use context::Context;
pub use enqueue::Enqueue;
pub use enqueue::OnConflict;
pub use enqueue::Unique;
pub use enqueue::UniqueOutcome;
pub use enqueue::UniqueScope;
pub use enqueue::delay;
pub use enqueue::enqueue;
pub use enqueue::enqueue_copy;
pub use enqueue::enqueue_many;
pub use enqueue::schedule;
pub use error::Error;
pub use error::Result;
pub use error::StepError;
pub use error::StepResult;
pub use handle::Handle;
pub use handle::Outcome;
pub use handle::wait;
pub use layer::Ending;
pub use layer::Layer;
pub use layer::LayerResult;
pub use layer::Next;
pub use next_step::NextStep;
pub use operate::Bulk;
pub use operate::TaskState;
pub use operate::cancel;
pub use operate::clone_task;
pub use operate::edit;
pub use operate::edit_payload;
pub use operate::resume;
pub use operate::resume_at;
pub use queue::ALL_QUEUES;
pub use queue::QueueLimits;
pub use queue::drop_queue;
pub use queue::limit_step;
pub use queue::pause_queue;
pub use queue::resume_queue;
pub use queue::set_queue;
pub use retry::Retry;
pub use retry::RetryPolicy;
pub use retry::non_retryable;
pub use retry::retry_after;
pub use step::Scheduler;
pub use step::Step;
pub use step::StepArgument;
pub use step::StepName;
pub use task_error::TaskError;
pub use task_error::TaskErrorListener;
pub use task_error::listen_for_task_errors;
pub use tokio_util::sync::CancellationToken;
pub use trace::with_traceparent;
pub use transaction::Tx;
pub use worker::Worker;

/// What the macros expand to; not for direct use.
#[doc(hidden)]
pub mod __private {
    pub use crate::assertions::enqueued;
    pub use crate::assertions::not_enqueued;
    pub use crate::step::RetryRule;
    pub use crate::step::StepInfo;
    pub use crate::step::give_up;
    pub use crate::step::retry_delay;
    pub use crate::step::retry_limit;
    pub use crate::step::retry_rule;
    pub use crate::step::run;
    pub use crate::step::steps_of;
    pub use crate::step::timeout;
    pub use crate::step::variant;
}
