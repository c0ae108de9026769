//! This process as one of several that an MPI launcher has started: each is a rank.

use std::sync::Arc;
use std::time::Duration;

use firebox_comm::{Comm, Options, mpi};
use firebox_runtime::device;

use crate::InferError;

/// How long a rank waits for another one in the middle of a step.
const DEADLINE: Duration = Duration::from_secs(300);

/// How ranks run that have so many threads each, at least one.
pub(crate) fn options(threads: usize) -> Options {
    Options {
        threads: threads.max(1),
        deadline: DEADLINE,
    }
}

/// Runs `body` as this process's rank, which is given the messages between all of them. `threads` are those of this process;
/// `None` for its share of the machine's physical cores.
///
/// # Errors
///
/// As [`mpi::program`].
pub(crate) fn run(
    threads: Option<usize>,
    body: impl FnOnce(Arc<dyn Comm>) -> Result<(), InferError> + Send + 'static,
) -> Result<(), InferError> {
    let share = |ranks_here| threads.unwrap_or_else(|| device::threads() / ranks_here);
    Ok(mpi::program(|ranks_here| options(share(ranks_here)), body)?)
}

/// Prints what a command line asks for or has wrong, once for all processes, and returns the error that stands for it.
pub(crate) fn reported(error: clap::Error) -> InferError {
    // 0 for help, 2 for what is wrong.
    let exit_code = error.exit_code() as u8;
    match mpi::once(move || error.print().map_err(InferError::Output)) {
        Ok(()) => InferError::Reported { exit_code },
        Err(error) => error.into(),
    }
}
