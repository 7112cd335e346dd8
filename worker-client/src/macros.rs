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

            fn steps(name: &str, out: &mut ::std::vec::Vec<$crate::__private::StepInfo>) {
                $($crate::__private::steps_of::<_, _, $variant>(name, ::core::stringify!($variant), out);)*
            }
        }
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
