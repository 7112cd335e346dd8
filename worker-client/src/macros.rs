//! `task!` and `scheduler!`.

/// Makes an enum of a task's steps.
///
/// `task!(Greeter { ReadName, SayHello })` makes `pub enum Greeter` with a variant for each step, `From` each of them, and what a
/// worker needs to run them. In the row a step reads `{"Greeter":{"ReadName":{…}}}`. Attributes and another visibility can be
/// given: `task!(#[derive(Clone)] pub(crate) Greeter { … })`.
#[macro_export]
macro_rules! task {
    ($(#[$attribute:meta])* $enum:ident { $($variant:ident),* $(,)? }) => {
        $crate::task!($(#[$attribute])* pub $enum { $($variant),* });
    };
    ($(#[$attribute:meta])* $visibility:vis $enum:ident { $($variant:ident),* $(,)? }) => {
        $(#[$attribute])*
        #[derive(Debug, ::serde::Deserialize, ::serde::Serialize)]
        #[allow(missing_docs)]
        $visibility enum $enum {
            $($variant($variant),)*
        }

        $(
            impl ::core::convert::From<$variant> for $enum {
                fn from(step: $variant) -> Self {
                    Self::$variant(step)
                }
            }
        )*

        impl $crate::Step<$enum, $crate::Context> for $enum {
            async fn step(self, cx: &$crate::Context) -> $crate::StepResult<$enum> {
                match self {
                    $(Self::$variant(step) => $crate::__private::run(step, cx).await,)*
                }
            }

            fn retry_limit(&self) -> i32 {
                match self {
                    $(Self::$variant(step) => $crate::__private::retry_limit(step),)*
                }
            }

            fn retry_delay(&self) -> ::core::time::Duration {
                match self {
                    $(Self::$variant(step) => $crate::__private::retry_delay(step),)*
                }
            }

            fn variant(&self) -> [&'static str; 2] {
                match self {
                    $(Self::$variant(step) => {
                        [::core::stringify!($variant), $crate::__private::variant(step)]
                    })*
                }
            }

            fn retry_rule(&self) -> $crate::__private::RetryRule {
                match self {
                    $(Self::$variant(step) => $crate::__private::retry_rule(step),)*
                }
            }

            fn timeout(&self) -> ::core::option::Option<::core::time::Duration> {
                match self {
                    $(Self::$variant(step) => $crate::__private::timeout(step),)*
                }
            }

            fn give_up(self, error: &$crate::StepError) -> ::core::option::Option<$enum> {
                match self {
                    $(Self::$variant(step) => $crate::__private::give_up(step, error),)*
                }
            }

            fn steps(name: &str, out: &mut ::std::vec::Vec<$crate::__private::StepInfo>) {
                $($crate::__private::steps_of::<_, _, $variant>(name, ::core::stringify!($variant), out);)*
            }
        }
    };
}

/// Asserts that a task waits whose step matches a pattern, and returns it: a [`Waiting`](crate::testing::Waiting), the first in the order in which they
/// are due.
///
/// ```rust,no_run
/// # use pg_task_client as pg_task;
/// # use pg_task::{NextStep, Step, StepResult};
/// # #[derive(Debug, serde::Deserialize, serde::Serialize)]
/// # pub struct Remind { user: i64 }
/// # impl Step<Mail> for Remind { async fn step(self, _db: &sqlx::PgPool) -> StepResult<Mail> { NextStep::none() } }
/// # pg_task_client::task!(Mail { Remind });
/// # pg_task_client::scheduler!(Tasks { Mail });
/// # async fn test(db: sqlx::PgPool) -> pg_task::Result<()> {
/// # let bench = pg_task::testing::Bench::<Tasks>::begin(&db).await?;
/// let task = pg_task::assert_enqueued!(bench.tasks().await?, Tasks::Mail(Mail::Remind(remind)) if remind.user == 7);
/// assert_eq!(task.queue, "mail");
/// pg_task::assert_not_enqueued!(bench.tasks().await?, Tasks::Mail(_) if task.tried > 0);
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// When there is none; the text shows what waits.
#[macro_export]
macro_rules! assert_enqueued {
    ($tasks:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        $crate::__private::enqueued(
            $tasks,
            |step| ::core::matches!(step, $pattern $(if $guard)?),
            ::core::stringify!($pattern $(if $guard)?),
        )
    };
}

/// Asserts that no task waits whose step matches a pattern: as [`assert_enqueued!`](crate::assert_enqueued).
///
/// # Panics
/// When there is one; the text shows it.
#[macro_export]
macro_rules! assert_not_enqueued {
    ($tasks:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        $crate::__private::not_enqueued(
            $tasks,
            |step| ::core::matches!(step, $pattern $(if $guard)?),
            ::core::stringify!($pattern $(if $guard)?),
        )
    };
}

/// Makes the enum of all tasks that a worker runs: `scheduler!(Tasks { Greeter, Order })`.
#[macro_export]
macro_rules! scheduler {
    ($(#[$attribute:meta])* $enum:ident { $($variant:ident),* $(,)? }) => {
        $crate::scheduler!($(#[$attribute])* pub $enum { $($variant),* });
    };
    ($(#[$attribute:meta])* $visibility:vis $enum:ident { $($variant:ident),* $(,)? }) => {
        $crate::task!($(#[$attribute])* $visibility $enum { $($variant),* });
        impl $crate::Scheduler for $enum {}
    };
}
