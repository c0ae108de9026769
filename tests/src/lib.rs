//! What the tests of several crates share: errors of tensors, small models and runs, and the binaries.

pub mod binaries;
pub mod fixtures;
pub mod models;
pub mod runs;
pub mod tensors;
