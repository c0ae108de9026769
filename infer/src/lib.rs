//! Evaluates and samples Firebox checkpoints on any Burn backend.
//!
//! [`engine`] opens a checkpoint on a device; [`eval`] measures it on text, [`generate`] lets it write.
//! [`cli`] is the command line around them.

pub mod cli;
pub mod devices;
pub mod engine;
mod error;
pub mod eval;
pub mod generate;
#[cfg(test)]
mod testing;

pub use error::InferError;
