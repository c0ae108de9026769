//! What may be chosen of a run.

use std::time::Duration;

/// How ranks run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Threads of each rank's rayon pool; 0 is as many as the machine has.
    pub threads: usize,
    /// How long a rank may compute between two operations while another one waits for it: the run fails when a rank has
    /// waited in an operation for so long, and the rank that it waits for has neither entered nor completed an operation
    /// for as long. If that rank waits itself, what counts is the rank that it waits for, and so on. So a rank may wait
    /// for a long pipeline as long as one stage after the other makes progress, and a stage that hangs is named.
    ///
    /// Under MPI, ranks see the progress of those on the same machine only. A rank that waits for one on another machine
    /// fails the run at the deadline, which therefore has to exceed the whole time until that one answers.
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
