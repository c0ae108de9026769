//! The threads that a rank computes with, and how it ends.

use std::error::Error;
use std::time::Duration;

use firebox_console::advice::{Advice, Advise};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::{Cause, Failure};

/// How long a rank may take to notice a failure, once it is known, before it is left behind.
pub(crate) fn grace(failure: &Failure) -> Duration {
    match failure.cause {
        // Open MPI sends SIGTERM to all ranks a second after one has died: they are to report before that.
        Cause::Died => Duration::from_millis(400),
        _ => Duration::from_secs(2),
    }
}

/// The stack of a rank: as much as a main thread has.
const STACK_BYTES: usize = 8 << 20;

/// The system gives a rank no threads.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct NoThreads<E: Error + 'static>(pub E);

impl<E: Error> Advise for NoThreads<E> {
    fn advice(&self) -> Advice {
        Advice::FAILURE
    }
}

/// So many threads for one rank.
///
/// # Errors
///
/// When the system gives no more.
pub(crate) fn pool(rank: usize, threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK_BYTES)
        .thread_name(move |thread| format!("rank-{rank}.{thread}"))
        .build()
}

/// Turns a rank's outcome, which [`caught`](firebox_console::panics::caught) returns, into its result, and records a
/// failure. `fail` fails the run, and returns whether this is what the run failed by: only then the error is kept.
pub(crate) fn settle<T, E: Advise>(
    outcome: Result<Result<T, E>, String>,
    fail: impl FnOnce(Cause) -> bool,
) -> Option<Result<T, E>> {
    match outcome {
        Ok(Ok(value)) => Some(Ok(value)),
        Ok(Err(error)) => fail(Cause::failed(&error)).then_some(Err(error)),
        Err(message) => {
            fail(Cause::Panicked(message));
            None
        }
    }
}
