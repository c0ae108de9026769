//! Failures in words.

use std::fmt;
use std::time::Duration;

use firebox_console::advice::{Advice, Advise};
use firebox_console::terminal::sentence;
use thiserror::Error;

use crate::Operation;

/// Why a run ended: the first rank that failed, what it was doing, and what happened to it.
///
/// Every rank reports the same. Only under MPI, when ranks on different machines fail at nearly the same time, each
/// machine may report its own.
#[cfg_attr(feature = "mpi", derive(serde::Deserialize, serde::Serialize))]
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Failure {
    /// The rank, in the whole run.
    pub rank: usize,
    /// What it had said that it was doing; empty if it said nothing.
    pub doing: String,
    /// What happened.
    pub cause: Cause,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "rank {}", self.rank)?;
        if !self.doing.is_empty() {
            write!(formatter, " ({})", self.doing)?;
        }
        write!(formatter, " {}", self.cause)
    }
}

impl Failure {
    /// In words for people: what went wrong on the first rank is told as if it were the only one.
    pub fn told(&self) -> String {
        match &self.cause {
            Cause::Failed { error, .. } if self.rank == 0 => error.clone(),
            _ => self.to_string(),
        }
    }
}

/// What happened to a rank.
#[cfg_attr(feature = "mpi", derive(serde::Deserialize, serde::Serialize))]
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Cause {
    /// It panicked, with this message.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It returned an error.
    #[error("failed: {error}")]
    Failed {
        /// The error and its causes, as text.
        error: String,
        /// What to do about it.
        hint: Option<String>,
        /// The exit code of the process.
        exit_code: u8,
    },
    /// Another rank waited for it, and it made no progress within the deadline.
    #[error("did not answer within {deadline:?}: rank {waiter} waited for it in {}", operation.with_article())]
    Late {
        /// The operation that waited.
        operation: Operation,
        /// The rank that waited.
        waiter: usize,
        /// The deadline.
        deadline: Duration,
    },
    /// It waited for ranks that waited for it, until the deadline. It is the lowest of these ranks.
    #[error(
        "is in a deadlock: it waited {deadline:?} in {} for rank {other}, which, directly or through others, waited for it",
        operation.with_article()
    )]
    Deadlock {
        /// The operation in which it waited.
        operation: Operation,
        /// The next rank of those that wait for each other.
        other: usize,
        /// The deadline.
        deadline: Duration,
    },
    /// It had finished its work, while another rank waited for it.
    #[error("had already finished when rank {waiter} waited for it in {}", operation.with_article())]
    Ended {
        /// The operation that waited.
        operation: Operation,
        /// The rank that waited.
        waiter: usize,
    },
    /// Its process exited without reporting an error.
    #[error("was killed: its process exited without reporting an error (SIGKILL, out of memory)")]
    Died,
    /// It called an operation that does not fit that of another rank, or in a way that no rank may. The text is the
    /// predicate of the sentence "rank N …".
    #[error("{0}")]
    Misuse(String),
}

impl Cause {
    /// The error that a rank returned.
    pub(crate) fn failed(error: &impl Advise) -> Self {
        let Advice {
            hint, exit_code, ..
        } = error.advice();
        Self::Failed {
            error: sentence(error),
            hint,
            exit_code,
        }
    }
}

impl Advise for Failure {
    /// That of the error that the rank returned, on every rank.
    fn advice(&self) -> Advice {
        match &self.cause {
            Cause::Failed {
                hint, exit_code, ..
            } => Advice {
                hint: hint.clone(),
                ..Advice::FAILURE.exit_code(*exit_code)
            },
            _ => Advice::FAILURE,
        }
    }
}

/// An operation that failed on one rank, since that rank or another has failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct CommError {
    /// The rank whose operation it was, in the whole run.
    pub rank: usize,
    /// The operation.
    pub operation: Operation,
    /// The cause, with the rank that is at the root of it.
    pub failure: Failure,
}

impl CommError {
    /// Ends the work of this rank from inside a function that returns no error, by a panic that prints nothing: the
    /// run reports the failure anyway.
    pub fn unwind(self) -> ! {
        std::panic::resume_unwind(Box::new(self))
    }
}

impl Advise for CommError {
    fn advice(&self) -> Advice {
        self.failure.advice()
    }
}

impl fmt::Display for CommError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rank != self.failure.rank {
            write!(formatter, "rank {} stopped in ", self.rank)?;
            write!(formatter, "{}: ", self.operation.with_article())?;
        }
        write!(formatter, "{}", self.failure)
    }
}

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{failure}")]
pub struct RunError<E> {
    /// The first failure; those that followed from it are left out.
    pub failure: Failure,
    /// The error that the failed rank returned, if that was the failure and the rank is of this process.
    pub error: Option<E>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_rank_and_what_it_was_doing() {
        let failure = |doing: &str, cause| Failure {
            rank: 3,
            doing: doing.to_owned(),
            cause,
        };
        let late = Cause::Late {
            operation: Operation::AllReduceSum,
            waiter: 0,
            deadline: Duration::from_secs(60),
        };
        let late = failure("layer 7 of 120", late);
        assert_eq!(
            late.to_string(),
            "rank 3 (layer 7 of 120) did not answer within 60s: rank 0 waited for it in an all-reduce"
        );
        let panicked = failure("", Cause::Panicked("no room".to_owned()));
        assert_eq!(panicked.to_string(), "rank 3 panicked: no room");
        let error = |rank| CommError {
            rank,
            operation: Operation::Recv,
            failure: panicked.clone(),
        };
        assert_eq!(error(3).to_string(), "rank 3 panicked: no room");
        assert_eq!(
            error(5).to_string(),
            "rank 5 stopped in a receive: rank 3 panicked: no room"
        );
    }
}
