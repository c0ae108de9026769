//! What ranks do in tests, the same on threads and under MPI.

pub mod failures;
pub mod pipeline;
pub mod program;

use firebox_console::advice::{Advice, Advise};

/// The error of a rank, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Words(pub String);

impl Advise for Words {
    fn advice(&self) -> Advice {
        Advice::FAILURE
    }
}
