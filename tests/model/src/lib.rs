//! What must hold whatever happens in whatever order: nothing lost, no transition doubled, no attempt uncounted.
//!
//! [`model`] is a small abstract copy of the hand-out, of which every order of events is tried, with faults. [`simulator`] runs the real rules of
//! `pg_task_rules` through millions of events in one random order that a seed decides. `ARCHITECTURE.md` says which part of the code
//! each action stands for.

pub mod model;
pub mod simulator;
