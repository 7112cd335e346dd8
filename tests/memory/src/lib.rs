//! How a slot of shared memory is divided: the extension's own file, outside the server, so that it runs under a checker of memory
//! accesses (Miri) as well.

#[path = "../../../extension/src/memory.rs"]
pub mod memory;

#[cfg(test)]
mod tests;
