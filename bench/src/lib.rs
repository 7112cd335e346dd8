//! What the measured programs of this crate share.

pub mod bare;
pub mod tasks;
