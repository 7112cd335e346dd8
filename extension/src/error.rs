//! What can go wrong in a call: a value until the boundary, with its SQLSTATE, its detail and what to do about it.

use pgrx::PgLogLevel;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

use crate::options;

/// An error of a function that SQL calls.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An array with more than one dimension.
    #[error("\"{name}\" must have one dimension, not {got}")]
    Dimensions {
        /// The argument.
        name: &'static str,
        /// Its dimensions.
        got: i32,
    },
    /// `edit` was given nothing to change, or two things.
    #[error("pass either \"step\" or \"payload\"")]
    EditWhat,
    /// A word that is none of those that an argument can be.
    #[error("\"{name}\" cannot be \"{got}\"")]
    Choice {
        /// The argument.
        name: &'static str,
        /// The word.
        got: String,
        /// What it can be.
        choices: String,
    },
    /// A list that may be left out but not be empty.
    #[error("\"{name}\" must not be empty")]
    Empty {
        /// The argument.
        name: &'static str,
    },
    /// The database's encoding is another one than UTF8.
    #[error("pg_task needs a database with the encoding UTF8")]
    Encoding {
        /// The database's encoding.
        got: String,
    },
    /// `enqueue_row` was given the wrong arguments.
    #[error("pg_task.enqueue_row needs the names of a task and a step")]
    EnqueueRowArguments {
        /// What is wrong with them.
        got: String,
    },
    /// `enqueue_row` is not the function of a row trigger that fires after the event.
    #[error("pg_task.enqueue_row must be the function of an AFTER trigger FOR EACH ROW")]
    EnqueueRowUse {
        /// What it is instead.
        got: &'static str,
    },
    /// An id may not change.
    #[error("the id of a task cannot be changed")]
    IdChanged,
    /// A unique task is there, and the caller wants an error then.
    #[error("a task holds the key \"{key}\"")]
    KeyHeld {
        /// The key.
        key: String,
        /// The task.
        task: String,
        /// Until when it holds it.
        scope: &'static str,
    },
    /// Arrays that describe the same things differ in length.
    #[error("\"{name}\" has {got} elements, \"{other}\" has {want}")]
    LengthMismatch {
        /// The array.
        name: &'static str,
        /// Its length.
        got: usize,
        /// The array that it should be as long as.
        other: &'static str,
        /// That one's length.
        want: usize,
    },
    /// Not an expression that says when a schedule ticks.
    #[error("\"{got}\" does not say when a schedule ticks")]
    BadCron {
        /// The text.
        got: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A burst without the rate that it belongs to.
    #[error("\"{burst}\" needs a \"{rate}\"")]
    BurstWithoutRate {
        /// The argument.
        burst: &'static str,
        /// The one that it needs.
        rate: &'static str,
    },
    /// A delay below zero.
    #[error("a delay must not be negative")]
    NegativeDelay,
    /// The extension's library is not preloaded.
    #[error("pg_task is not in shared_preload_libraries")]
    NotPreloaded,
    /// No scheduler has taken this database yet.
    #[error("the scheduler of this database is not running")]
    NoScheduler,
    /// There is no such schedule.
    #[error("there is no schedule \"{name}\"")]
    NoSchedule {
        /// The name.
        name: String,
    },
    /// A time that is infinite.
    #[error("\"{name}\" must be a finite time")]
    NotFinite {
        /// The argument.
        name: &'static str,
    },
    /// A NULL where a value is needed.
    #[error("\"{name}\" must not be NULL")]
    NullArgument {
        /// The argument.
        name: &'static str,
    },
    /// A NULL within an array.
    #[error("\"{name}\" has a NULL at position {position}")]
    NullElement {
        /// The argument.
        name: &'static str,
        /// Counted from 1.
        position: usize,
    },
    /// Weights of keys that are none.
    #[error("\"key_weights\" must be an object with a whole number from 1 to 100 for each key")]
    KeyWeights {
        /// What is wrong.
        got: String,
    },
    /// A limit by key for all queues together.
    #[error("\"{name}\" cannot be set for all queues together")]
    KeysOfAllQueues {
        /// The argument.
        name: &'static str,
    },
    /// A key of `options` that there is not.
    #[error("there is no option \"{key}\"")]
    OptionUnknown {
        /// The key.
        key: String,
    },
    /// A value of `options` that does not fit its key.
    #[error("the option \"{key}\" must be {takes}")]
    OptionValue {
        /// The key.
        key: &'static str,
        /// What it takes.
        takes: &'static str,
        /// What is wrong.
        got: String,
    },
    /// `options` that are no object.
    #[error("\"options\" must be an object")]
    OptionsShape {
        /// The start of what was given.
        got: String,
    },
    /// `options` that are too large.
    #[error("the options have {size} bytes, more than the limit of {limit}")]
    OptionsTooLarge {
        /// Their stored size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A number out of its range.
    #[error("\"{name}\" must be between {low} and {high}, not {got}")]
    OutOfRange {
        /// The argument.
        name: &'static str,
        /// The least value.
        low: i64,
        /// The largest value.
        high: i64,
        /// The value.
        got: i64,
    },
    /// A key that is to be held for a period that is not given.
    #[error("the scope \"period\" needs a \"period\"")]
    PeriodMissing,
    /// A period that ends when it begins, or before.
    #[error("a period must be longer than zero")]
    PeriodNotPositive,
    /// A negative time in the history.
    #[error("\"retention\" must not be negative")]
    RetentionNegative,
    /// A queue whose history would be kept longer than the partitions.
    #[error(
        "\"retention\" must not be longer than pg_task.history_retention, {longest} seconds, but is {got} seconds"
    )]
    RetentionTooLong {
        /// What was asked for, in seconds.
        got: i64,
        /// The setting, in seconds.
        longest: i32,
    },
    /// A transaction that was given tasks cannot be prepared.
    #[error("cannot PREPARE a transaction that called pg_task.exchange or pg_task.finish")]
    Prepare,
    /// A progress that is none.
    #[error("a progress must be between 0 and 1, not {got}")]
    Progress {
        /// The value.
        got: f64,
    },
    /// A protocol version that this server does not speak.
    #[error("worker protocol {got} is not supported")]
    Protocol {
        /// What the worker asked for.
        got: i32,
    },
    /// Not a queue's name.
    #[error("a queue's name must have 1 to 63 bytes, not {got}")]
    QueueName {
        /// Its length in bytes.
        got: usize,
    },
    /// A worker runs the task.
    #[error("a worker runs the task")]
    Running,
    /// Not a state of tasks.
    #[error("\"{got}\" is not a state of tasks")]
    State {
        /// The text.
        got: String,
    },
    /// Not a schedule's name.
    #[error("a schedule's name must have 1 to 200 bytes, not {got}")]
    ScheduleName {
        /// Its length in bytes.
        got: usize,
    },
    /// The server is a standby.
    #[error("pg_task is read-only while the server is a standby")]
    Standby,
    /// Not a step's name.
    #[error("\"{got}\" is not the name of a step")]
    StepName {
        /// The text.
        got: String,
    },
    /// Not a step.
    #[error(
        "a step must be an object with one key, the task's name, that holds an object with one key, the step's name"
    )]
    StepShape {
        /// The start of what was given.
        got: String,
    },
    /// A step that is too large.
    #[error("the step has {size} bytes, more than the limit of {limit}")]
    StepTooLarge {
        /// Its stored size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The payload has no place for the time of a tick.
    #[error("\"tick_field\" needs a step whose payload is an object")]
    TickField,
    /// Not a time zone.
    #[error("the server knows no time zone \"{got}\"")]
    TimeZone {
        /// The name.
        got: String,
    },
    /// Too many of something that a worker may name.
    #[error("a worker can name at most {limit} {name}, not {got}")]
    TooMany {
        /// What.
        name: &'static str,
        /// The limit.
        limit: usize,
        /// The number.
        got: usize,
    },
    /// `exchange` or `finish` in a transaction that it cannot run in.
    #[error("pg_task.exchange and pg_task.finish cannot run {0}")]
    Transaction(&'static str),
    /// A trigger function was called in another way.
    #[error("the function can only be called as a trigger of pg_task.task")]
    TriggerOnly,
    /// A result that is too large.
    #[error("the result has {size} bytes, more than the limit of {limit}")]
    ResultTooLarge {
        /// Its stored size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// All places for sessions that wait are taken.
    #[error("all {limit} places for sessions that wait for a task are taken")]
    WaitersFull {
        /// How many there are.
        limit: usize,
    },
    /// `wait` where the end of the task cannot be seen or cannot come.
    #[error("pg_task.wait cannot wait {0}")]
    WaitTransaction(&'static str),
    /// Not a key.
    #[error("a key must have 1 to 255 bytes, not {got}")]
    UniqueKey {
        /// Its length in bytes.
        got: usize,
    },
    /// A worker's name that is too long.
    #[error("a worker's name must have at most {limit} bytes, not {got}")]
    WorkerName {
        /// The limit.
        limit: usize,
        /// Its length in bytes.
        got: usize,
    },
    /// No place for another queue's name.
    #[error("there is no place for another queue's name")]
    QueuesFull,
    /// No place for the settings of another queue.
    #[error("there is no place for the settings of another queue")]
    QueueRulesFull,
    /// No place for the limit of another step.
    #[error("there is no place for the limit of another step")]
    StepLimitsFull,
    /// No place for another worker.
    #[error("all {limit} places for workers are taken")]
    WorkersFull {
        /// The setting.
        limit: i32,
    },
    /// The worker belongs to another role.
    #[error("the worker was registered by another role")]
    WorkerRole,
}

impl Error {
    /// Raises the error in PostgreSQL.
    pub fn raise(self) -> ! {
        ErrorReport::from(self).report(PgLogLevel::ERROR);
        unreachable!("reporting at level ERROR does not return")
    }

    fn code(&self) -> PgSqlErrorCode {
        use PgSqlErrorCode::*;
        match self {
            Self::BadCron { .. }
            | Self::BurstWithoutRate { .. }
            | Self::Choice { .. }
            | Self::EditWhat
            | Self::Empty { .. }
            | Self::EnqueueRowArguments { .. }
            | Self::LengthMismatch { .. }
            | Self::NegativeDelay
            | Self::KeyWeights { .. }
            | Self::KeysOfAllQueues { .. }
            | Self::OptionUnknown { .. }
            | Self::OptionValue { .. }
            | Self::OptionsShape { .. }
            | Self::OutOfRange { .. }
            | Self::PeriodMissing
            | Self::PeriodNotPositive
            | Self::Progress { .. }
            | Self::QueueName { .. }
            | Self::RetentionNegative
            | Self::RetentionTooLong { .. }
            | Self::State { .. }
            | Self::ScheduleName { .. }
            | Self::TickField
            | Self::TimeZone { .. }
            | Self::StepName { .. }
            | Self::StepShape { .. }
            | Self::UniqueKey { .. }
            | Self::WorkerName { .. } => ERRCODE_INVALID_PARAMETER_VALUE,
            Self::Dimensions { .. } => ERRCODE_ARRAY_ELEMENT_ERROR,
            Self::EnqueueRowUse { .. } | Self::TriggerOnly => ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            Self::NoSchedule { .. } => ERRCODE_UNDEFINED_OBJECT,
            Self::IdChanged => ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION,
            Self::KeyHeld { .. } => ERRCODE_UNIQUE_VIOLATION,
            Self::NotPreloaded | Self::NoScheduler => ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::Running => ERRCODE_OBJECT_IN_USE,
            Self::NotFinite { .. } => ERRCODE_DATETIME_FIELD_OVERFLOW,
            Self::NullArgument { .. } | Self::NullElement { .. } => ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Self::Encoding { .. } | Self::Prepare | Self::Protocol { .. } => ERRCODE_FEATURE_NOT_SUPPORTED,
            Self::Standby => ERRCODE_READ_ONLY_SQL_TRANSACTION,
            Self::OptionsTooLarge { .. } | Self::StepTooLarge { .. } | Self::TooMany { .. } => {
                ERRCODE_PROGRAM_LIMIT_EXCEEDED
            }
            Self::Transaction(_) => ERRCODE_ACTIVE_SQL_TRANSACTION,
            Self::QueuesFull | Self::QueueRulesFull | Self::StepLimitsFull | Self::WorkersFull { .. } => {
                ERRCODE_CONFIGURATION_LIMIT_EXCEEDED
            }
            Self::ResultTooLarge { .. } => ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::WaitersFull { .. } => ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            Self::WaitTransaction(_) => ERRCODE_ACTIVE_SQL_TRANSACTION,
            Self::WorkerRole => ERRCODE_INSUFFICIENT_PRIVILEGE,
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::BurstWithoutRate { .. } => "It says how many hand-outs of a rate may gather. The call had no effect.".into(),
            Self::Choice { .. } => "The call had no effect.".into(),
            Self::BadCron { reason, .. } => {
                let (first, rest) = reason.split_at(reason.chars().next().map_or(0, char::len_utf8));
                format!("{}{rest}.", first.to_uppercase())
            }
            Self::NoSchedule { .. } => "Names of schedules are compared as they are written.".into(),
            Self::ScheduleName { .. } => "The length is counted in bytes, not in characters.".into(),
            Self::TickField => "The time of the tick is written into a field of it.".into(),
            Self::TimeZone { .. } => "It takes the names of pg_timezone_names: daylight-saving rules belong to a place, not to an abbreviation.".into(),
            Self::Dimensions { .. } => "The ids come back in one dimension, in the order of the steps.".into(),
            Self::EditWhat => "A step is the whole {\"Task\": {\"Step\": payload}}, a payload what is within it. The call had no effect.".into(),
            Self::Empty { .. } => "A worker that takes from nowhere would wait for ever.".into(),
            Self::Encoding { got } => {
                format!("The encoding of this database is {got}; names of queues and steps are kept as UTF-8.")
            }
            Self::EnqueueRowArguments { got } => got.clone(),
            Self::EnqueueRowUse { got } => (*got).into(),
            Self::IdChanged => "A worker may hold the task under its id.".into(),
            Self::KeyHeld { task, scope, .. } => {
                format!("It is held by the task {task}, with the scope \"{scope}\". The call had no effect.")
            }
            Self::LengthMismatch { .. } => "The elements at one position belong together.".into(),
            Self::NegativeDelay => "The task would have been due before it was enqueued.".into(),
            Self::NotFinite { .. } => "An infinite time has no place in the order of what is due.".into(),
            Self::NullArgument { .. } => "NULL is not the same as leaving an argument out.".into(),
            Self::NullElement { .. } => "Positions are counted from 1. The call had no effect.".into(),
            Self::KeyWeights { got } => got.clone(),
            Self::KeysOfAllQueues { .. } => "A key belongs to its queue: the same name in two queues is two keys.".into(),
            Self::OptionUnknown { .. } => "A key that nothing reads would be a setting without effect.".into(),
            Self::OptionValue { got, .. } => got.clone(),
            Self::OptionsShape { got } => format!("The value is {got}"),
            Self::OptionsTooLarge { .. } => "The size is that of the stored jsonb, with numbers and escapes as long as they are written. They are read with every hand-out.".into(),
            Self::OutOfRange { .. } => "The call had no effect.".into(),
            Self::PeriodMissing => "Without one there is nothing that ends it. The call had no effect.".into(),
            Self::PeriodNotPositive => "The key would be free before it was taken. The call had no effect.".into(),
            Self::Progress { .. } => "It is the part that is done: 0.4 for 40 per cent. The call had no effect.".into(),
            Self::RetentionNegative => "It says how long the history keeps what became of the queue's tasks. The call had no effect.".into(),
            Self::RetentionTooLong { .. } => "The history is emptied partition by partition, all queues at once. The call had no effect.".into(),
            Self::Prepare => "Whoever commits it later could not settle its claims in shared memory.".into(),
            Self::Protocol { .. } => "This server speaks version 1.".into(),
            Self::QueueName { .. } => "The length is counted in bytes, not in characters.".into(),
            Self::StepLimitsFull => "At most 64 steps can have a limit: they are kept in shared memory.".into(),
            Self::QueueRulesFull => "At most 512 queues can have settings: they are kept in shared memory.".into(),
            Self::QueuesFull => "Names of queues that have no tasks and no workers make room.".into(),
            Self::Running => "The result of a step that was changed meanwhile is refused, and the step is run again. The call had no effect.".into(),
            Self::State { .. } => "The states are parked, due, asleep and running.".into(),
            Self::Standby => "A task is a row, and a standby writes none.".into(),
            Self::StepName { .. } => "There is no slash in it.".into(),
            Self::TooMany { .. } => "A worker has a place of fixed size in shared memory.".into(),
            Self::Transaction(_) => "Claims are settled when the transaction ends, and every row is read as it is at that moment.".into(),
            Self::TriggerOnly => "It reads the columns of that table.".into(),
            Self::ResultTooLarge { .. } => "The size is that of the stored jsonb, with numbers and escapes as long as they are written.".into(),
            Self::WaitersFull { .. } => "A session that waits has a place in shared memory, from which the end of the task wakes it.".into(),
            Self::WaitTransaction(_) => "The end of a task is another transaction's work, and shows when that has committed.".into(),
            Self::UniqueKey { .. } => "The length is counted in bytes, not in characters.".into(),
            Self::WorkerRole => "A worker belongs to the role that registered it first.".into(),
            Self::WorkerName { .. } => "The length is counted in bytes, not in characters.".into(),
            Self::WorkersFull { .. } => "A worker has a place of fixed size in shared memory.".into(),
            Self::NotPreloaded => {
                "The scheduler lives in background workers and shared memory, which exist only from the server's start.".into()
            }
            Self::NoScheduler => "It starts within a second after CREATE EXTENSION, a restart or a promotion.".into(),
            Self::StepShape { got } => format!("The value is {got}"),
            Self::StepTooLarge { .. } => "The size is that of the stored jsonb, with numbers and escapes as long as they are written.".into(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::BurstWithoutRate { burst, rate } => {
                format!("Pass a rate too, for example {rate} => 100, {burst} => 10.")
            }
            Self::Choice { choices, .. } => format!("Pass one of: {choices}."),
            Self::BadCron { .. } => {
                "Write five fields (minutes, hours, days of the month, months, days of the week), six with seconds before them, @daily or its like, or \"every 15 minutes\"; pg_task.next_ticks shows what follows from it."
                    .into()
            }
            Self::NoSchedule { .. } => "Look at pg_task.schedules; pg_task.set_schedule makes one.".into(),
            Self::ScheduleName { .. } => "Use a short name.".into(),
            Self::TickField => r#"Write the payload as an object, for example {"Report": {"Build": {}}}, or leave tick_field out."#.into(),
            Self::TimeZone { .. } => "Pass a name such as Europe/Berlin, America/New_York or UTC.".into(),
            Self::Dimensions { .. } => "Write the array in one dimension, or unnest it.".into(),
            Self::EditWhat => "For example: SELECT pg_task.edit(id, payload => '{\"name\": \"you\"}').".into(),
            Self::Empty { .. } => "Pass NULL, or leave the argument out, for all.".into(),
            Self::Encoding { .. } => {
                "Make a database of that encoding: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.".into()
            }
            Self::EnqueueRowArguments { .. } => {
                "Write EXECUTE FUNCTION pg_task.enqueue_row('Task', 'Step'), optionally with a queue and a priority.".into()
            }
            Self::EnqueueRowUse { .. } => {
                "Write CREATE TRIGGER … AFTER INSERT ON … FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row('Task', 'Step').".into()
            }
            Self::IdChanged => "Enqueue a new task and cancel this one.".into(),
            Self::KeyHeld { .. } => "To be answered with the id of that task instead, pass on_conflict => 'skip'; pg_task.unique_keys shows what holds a key.".into(),
            Self::LengthMismatch { .. } => "Pass arrays of equal lengths, or NULL for one that is not needed.".into(),
            Self::NegativeDelay => "Pass zero for a task that is due now.".into(),
            Self::NotPreloaded => {
                "Add the line shared_preload_libraries = 'pg_task' to postgresql.conf (with a comma after other libraries) and restart the server."
                    .into()
            }
            Self::NoScheduler => "Try again; if it lasts, look at the server's log and at pg_task.scheduler.".into(),
            Self::NotFinite { .. } => "Pass a moment; to keep a task from running, do not enqueue it.".into(),
            Self::NullArgument { .. } => "Leave the argument out for its default, or pass a value.".into(),
            Self::NullElement { .. } => "Replace or remove the NULL.".into(),
            Self::KeyWeights { .. } => r#"For example {"large tenant": 3}; a key that is not named has the weight 1."#.into(),
            Self::KeysOfAllQueues { .. } => "Set it for each queue whose tasks have keys.".into(),
            Self::OptionUnknown { .. } => format!("Options are {}.", options::names()),
            Self::OptionValue { .. } => "docs/options.md tells what each option takes.".into(),
            Self::OptionsShape { .. } => format!("Write an object with some of the keys {}, or leave it out.", options::names()),
            Self::OptionsTooLarge { .. } => "Keep large data in the step or in a table of your own.".into(),
            Self::OutOfRange { low, high, .. } => format!("Pass a value from {low} to {high}."),
            Self::PeriodMissing => "Pass a period too, for example scope => 'period', period => '1 hour'.".into(),
            Self::PeriodNotPositive => "Leave it out to hold the key as long as the scope says.".into(),
            Self::Progress { .. } => "Leave it NULL when it is not known how much there is to do.".into(),
            Self::RetentionNegative => "Pass '0' for a queue whose tasks are to leave nothing in the history.".into(),
            Self::RetentionTooLong { .. } => {
                "Pass a shorter time, or let pg_task.history_retention be longer, and give the other queues a retention of their own.".into()
            }
            Self::Prepare => "End the transaction by COMMIT; call exchange outside a transaction block.".into(),
            Self::Protocol { .. } => "This server speaks protocol 1: update the extension or the worker.".into(),
            Self::QueueName { .. } => "Use a short name, or leave the argument out for the queue \"default\".".into(),
            Self::StepLimitsFull => "Forget a limit that is not needed any more: SELECT pg_task.limit_step(step, NULL).".into(),
            Self::QueueRulesFull => "Forget settings that are not needed any more: SELECT pg_task.drop_queue(name).".into(),
            Self::QueuesFull => {
                "1,024 queues can have tasks in memory or be named by workers at a time: let workers take all queues, or use fewer.".into()
            }
            Self::Running => "Wait until it has ended, or pass interrupt => true: its worker is told to stop, and the new step is run.".into(),
            Self::State { .. } => "Pass one of them, or leave the argument out.".into(),
            Self::Standby => "Connect to the primary.".into(),
            Self::StepName { .. } => "Write it as Task/Step.".into(),
            Self::StepShape { .. } => r#"Write {"Task": {"Step": payload}}, for example {"Greeter": {"SayHello": {"name": "you"}}}."#.into(),
            Self::StepTooLarge { .. } => {
                "Keep large data in a table of your own and its key in the step, or raise pg_task.max_step_size.".into()
            }
            Self::TooMany { .. } => "Start several workers, each for some of them, or pass NULL for all.".into(),
            Self::Transaction(_) => "Call it in a READ COMMITTED transaction and outside savepoints.".into(),
            Self::TriggerOnly => "For a table of your own use pg_task.enqueue_row.".into(),
            Self::UniqueKey { .. } => "Use a short text that says what the task is about, such as 'invoice:7', or a hash of a long one.".into(),
            Self::WorkerName { .. } => "Use a short name; it is for people only.".into(),
            Self::WorkersFull { .. } => "Raise pg_task.max_workers and restart the server.".into(),
            Self::ResultTooLarge { .. } => {
                "Keep large data in a table of your own and return its key, or raise pg_task.max_step_size.".into()
            }
            Self::WaitersFull { .. } => "Wait in fewer sessions, or look at pg_task.task and pg_task.history now and then.".into(),
            Self::WaitTransaction(_) => "Commit first, and wait in a READ COMMITTED transaction of its own.".into(),
            Self::WorkerRole => "Register with a UUID of your own.".into(),
        }
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string(), "pg_task")
            .set_detail(error.detail())
            .set_hint(error.hint())
    }
}
