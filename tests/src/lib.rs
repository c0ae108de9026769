//! What the tests of several crates share: devices, errors of tensors, and the binaries.

pub mod binaries;
pub mod devices;
pub mod fixtures;
pub mod models;
pub mod runs;
pub mod tensors;
