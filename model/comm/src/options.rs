//! What may be chosen of a run.

use std::time::Duration;

/// How ranks run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Threads of each rank's rayon pool; 0 is as many as the machine has.
    pub threads: usize,
    /// How long an operation waits for other ranks before the run fails. It has to exceed what the slowest rank
    /// computes between two operations.
    pub deadline: Duration,
}

impl Default for Options {
    /// One thread a rank, and a minute.
    fn default() -> Self {
        Self {
            threads: 1,
            deadline: Duration::from_secs(60),
        }
    }
}
