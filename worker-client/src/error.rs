//! Errors of the crate and of steps.

use crate::NextStep;

/// An error of the crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task could not be enqueued.
    #[error("can't add task")]
    AddTask(#[source] sqlx::Error),
    /// A step could not be turned into JSON.
    #[error("can't serialize step: {1}")]
    SerializeStep(#[source] serde_json::Error, String),
    /// The JSON in a row is not a step of this program.
    #[error("can't deserialize step (was it changed since the task was enqueued?): {1}")]
    DeserializeStep(#[source] serde_json::Error, String),
    /// What a step returns could not be turned into JSON.
    #[error("can't serialize the result of a step")]
    SerializeResult(#[source] serde_json::Error),
    /// What a task has returned is of another type.
    #[error("can't deserialize the result of a task: {1}")]
    DeserializeResult(#[source] serde_json::Error, String),
    /// The connection for notifications could not be opened.
    #[error("listener can't connect to the db")]
    ListenerConnect(#[source] sqlx::Error),
    /// `LISTEN` failed.
    #[error("can't start listening for notifications")]
    ListenerListen(#[source] sqlx::Error),
    /// The connection for notifications failed.
    #[error("listener can't receive notifications")]
    ListenerReceive(#[source] sqlx::Error),
    /// Never returned; it has the name of an error of the crate pg_task 1.0, so that programs that match on it compile.
    #[error("unreachable: the worker's semaphore is closed")]
    UnreachableWorkerSemaphoreClosed(#[source] tokio::sync::AcquireError),
    /// Never returned: a worker whose lease has run out drops its steps and goes on. Of the crate pg_task 1.0, as above.
    #[error("the task's lease has run out")]
    TaskLeaseExpired,
    /// The server does not speak this crate's version of the worker protocol.
    #[error(
        "the server refuses a worker that speaks protocol {0}: update the extension (ALTER EXTENSION pg_task UPDATE) or this program, whichever is older"
    )]
    Protocol(i32, #[source] sqlx::Error),
    /// The worker's settings do not fit together.
    #[error("the worker can't start: {0}")]
    Settings(&'static str),
    /// Another statement failed; the text says what it was for.
    #[error("db error: {1}")]
    Db(#[source] sqlx::Error, String),
}

/// A step's transaction could not begin: nothing was run.
#[derive(Debug, thiserror::Error)]
#[error("the step's transaction could not begin")]
pub(crate) struct BeginError(#[source] pub(crate) sqlx::Error);

/// A step's transaction did not commit, as far as is known.
#[derive(Debug, thiserror::Error)]
#[error("the step's transaction did not commit")]
pub(crate) struct CommitError(#[source] pub(crate) sqlx::Error);

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a step: anything that `?` turns into a boxed error.
pub type StepError = Box<dyn std::error::Error + 'static + Send + Sync>;

/// What a step returns.
pub type StepResult<T> = std::result::Result<NextStep<T>, StepError>;

/// Whether a database error says that trying again as it is cannot help: the role, the database or the protocol are wrong.
pub(crate) fn is_configuration(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Authorization, a missing database, a missing extension (no such schema, no such function), privileges, a feature that is
            // not supported (a protocol version).
            code.starts_with("28") || ["3D000", "3F000", "42883", "42501", "0A000", "22023"].contains(&&*code)
        }),
        _ => false,
    }
}

/// Whether the server has understood a statement and will not do it: an older one without the function, a role without the right.
pub(crate) fn is_refusal(error: &sqlx::Error) -> bool {
    has_class(error, &["0A", "22", "42", "54"])
}

/// Whether a database error is about the data of a call, so that the same call cannot succeed later.
pub(crate) fn is_data(error: &sqlx::Error) -> bool {
    // Data exceptions, integrity, program limits.
    has_class(error, &["22", "23", "54"])
}

/// Whether a database error may be about one of several results: someone keeps its row locked, a trigger of the user's objects.
pub(crate) fn is_about_a_result(error: &sqlx::Error) -> bool {
    is_data(error) || has_class(error, &["09", "0A", "21", "38", "39", "44", "55P03", "P0"])
}

/// Whether the connection can be used after the error: the server has said what was wrong and goes on.
pub(crate) fn leaves_connection(error: &sqlx::Error) -> bool {
    is_about_a_result(error) || has_class(error, &["40", "55"])
}

/// Whether a statement failed for the surroundings, not for what it is: the connection, the server or a lock.
pub(crate) fn is_about_surroundings(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => has_class(error, &["08", "25006", "40", "53", "55", "57", "58"]),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

fn has_class(error: &sqlx::Error, classes: &[&str]) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
}
