//! The rules of schedules: when they tick, and what becomes of ticks that were missed or that come while the last run goes on.
//!
//! No clock and no database: moments are arguments, in whole seconds since 1970 (UTC), and what a time zone's clocks show is asked of a
//! [`Zone`]. The server answers from its own time zones, so that a schedule and `AT TIME ZONE` cannot disagree.
#![forbid(unsafe_code)]

mod expression;
mod plan;
mod policy;
mod zone;

/// A moment: whole seconds since 1970, UTC.
pub type Seconds = i64;

pub use expression::BadExpression;
pub use expression::Expression;
pub use expression::MAX_LEN;
pub use plan::Due;
pub use plan::Plan;
pub use policy::Missed;
pub use policy::Overlap;
pub use policy::Placed;
pub use policy::TOLERANCE;
pub use policy::choose;
pub use policy::jitter;
pub use policy::place;
pub use zone::Utc;
pub use zone::Zone;
