//! The rules of pg_task that need no database: who gets which task, who holds it, when a worker is lost, what is due.
//!
//! **Architecture invariants.** This crate knows no clock (every moment is an argument), no PostgreSQL, no thread and no lock.
//! Everything in [`board`] is plain data of fixed size that works at any address, because the extension lays it into
//! shared memory; whoever calls it holds the lock.
#![forbid(unsafe_code)]

pub mod board;
pub mod bucket;
pub mod due;
pub mod inbox;
pub mod names;
pub mod place;
pub mod retry;
pub mod token;
pub mod traceparent;
pub mod turns;

/// How many values a test takes: under Miri, which is some hundred times slower than the processor, a tenth of them.
#[cfg(test)]
const fn up_to(most: usize) -> usize {
    if cfg!(miri) { most.div_ceil(10) } else { most }
}

/// A moment: microseconds since 2000-01-01 00:00 UTC, as PostgreSQL keeps a `timestamptz`.
pub type Micros = i64;

/// The 16 bytes of a task's UUID.
pub type TaskId = [u8; 16];

/// The 16 bytes of a worker's UUID.
pub type WorkerId = [u8; 16];
