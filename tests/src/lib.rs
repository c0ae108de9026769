//! What the tests of several crates share: devices, errors of tensors, and the binaries.

pub mod devices;
pub mod tensors;
