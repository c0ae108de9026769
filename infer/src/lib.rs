//! Evaluates and samples Firebox checkpoints on any Burn backend.
//!
//! [`engine`] opens a checkpoint on a device; [`eval`] measures it on text, [`generate`] lets it write, [`trace`]
//! writes down everything that it computes, [`compare`] finds what differs between devices, and [`export`] stores it in
//! another type or in shards.
//! [`cli`] is the command line around them.

pub mod bench;
pub mod cli;
pub mod compare;
pub mod devices;
pub mod engine;
mod error;
pub mod eval;
pub mod export;
pub mod generate;
#[cfg(test)]
mod testing;
pub mod trace;
mod trace_input;

pub use error::{InferError, LESS_MEMORY};
