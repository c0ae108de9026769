//! A whole program as one of the ranks that a launcher has started.

use std::sync::Arc;

use firebox_console::advice::{Advice, Advise};
use firebox_console::terminal;
use thiserror::Error;

use super::{MpiError, World};
use crate::{Comm, Failure, Options, RunError};

/// Why a program that is a rank ends.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// MPI cannot be used.
    #[error(transparent)]
    Mpi(#[from] MpiError),
    /// A rank has failed, this one or another. On each machine, the process that learns of the failure first has then
    /// printed the reason.
    #[error("a rank failed, as was reported")]
    Reported {
        /// The exit code of the process.
        exit_code: u8,
    },
}

impl Advise for ProgramError {
    fn advice(&self) -> Advice {
        match self {
            Self::Mpi(error) => error.advice(),
            Self::Reported { exit_code } => Advice {
                is_printed: true,
                ..Advice::FAILURE.exit_code(*exit_code)
            },
        }
    }
}

/// Runs `body` as this process's rank, which is given the messages between all of them. How it runs, `options` says, which is
/// given the number of ranks on this machine.
///
/// # Errors
///
/// When MPI cannot be used; and, on every rank, when `body` fails on one of them.
pub fn program<E: Advise + Send + 'static>(
    options: impl FnOnce(usize) -> Options,
    body: impl FnOnce(Arc<dyn Comm>) -> Result<(), E> + Send + 'static,
) -> Result<(), ProgramError> {
    let world = World::start()?;
    let options = options(world.local_size());
    let report = |error: &RunError<E>, is_first| {
        if is_first {
            terminal::report(&Told(&error.failure));
        }
    };
    let ended = world.run(&options, body, report);
    ended.map_err(|RunError { failure, .. }| ProgramError::Reported {
        exit_code: failure.exit_code(),
    })
}

/// Does something, such as printing what is wrong with the command line, in one of the processes for all.
///
/// # Errors
///
/// As [`program`].
pub fn once<E: Advise + Send + 'static>(
    work: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), ProgramError> {
    let options = |_| Options::default();
    program(options, move |world| match world.rank() {
        0 => work(),
        _ => Ok(()),
    })
}

/// A failure as people are told of it.
#[derive(Debug, Error)]
#[error("{}", .0.told())]
struct Told<'a>(&'a Failure);

impl Advise for Told<'_> {
    fn advice(&self) -> Advice {
        self.0.advice()
    }
}
