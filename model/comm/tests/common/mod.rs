//! What ranks do in tests, the same on threads and under MPI.

pub mod failures;
pub mod pipeline;
pub mod program;
