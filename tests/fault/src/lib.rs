//! A load of many kinds of tasks under a seeded schedule of faults, and the check that nothing was lost or doubled.
//!
//! The *scene* holds the server, the worker processes (the real client crate) and a TCP proxy before each of them. The *load* enqueues,
//! changes and cancels. The *faults* break things, one round after another. All of them note in the *ledger*, a file, what they are about
//! to do and what came of it; the *check* holds the ledger against the rows that are left.

#![expect(clippy::print_stdout, reason = "it reports to people")]

pub mod bouncer;
pub mod campaign;
pub mod check;
pub mod crew;
pub mod fault;
pub mod govern;
pub mod ledger;
pub mod load;
pub mod measure;
pub mod operate;
pub mod plan;
pub mod proxy;
pub mod queues;
pub mod scene;
pub mod server_log;
pub mod soak;
pub mod ticks;
