//! This process as one of several that an MPI launcher has started: each is a rank.

use std::sync::Arc;
use std::time::Duration;

use firebox_comm::{Comm, Options, RunError, mpi};
use firebox_console::advice::Advise as _;
use firebox_console::terminal;
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
/// When MPI cannot be used; and [`InferError::Reported`] on every rank when `body` fails on one of them: on each machine, the
/// process that learns of the failure first has then printed the reason.
pub(crate) fn run(
    threads: Option<usize>,
    body: impl FnOnce(Arc<dyn Comm>) -> Result<(), InferError> + Send + 'static,
) -> Result<(), InferError> {
    let world = mpi::World::start()?;
    let threads = threads.unwrap_or_else(|| device::threads() / world.local_size());
    let report = |RunError { failure, .. }: &RunError<InferError>, is_first| {
        if is_first {
            terminal::report(&InferError::Rank(Box::new(failure.clone())));
        }
    };
    let ended = world.run(&options(threads), body, report);
    ended.map_err(|RunError { failure, .. }| InferError::Reported {
        exit_code: failure.exit_code(),
    })
}

/// Prints what a command line asks for or has wrong, once for all processes, and returns the error that stands for it.
pub(crate) fn reported(error: clap::Error) -> InferError {
    // 0 for help, 2 for what is wrong.
    let exit_code = error.exit_code() as u8;
    let printed = run(Some(1), move |comm| match comm.rank() {
        0 => error.print().map_err(InferError::Output),
        _ => Ok(()),
    });
    match printed {
        Ok(()) => InferError::Reported { exit_code },
        Err(error) => error,
    }
}
