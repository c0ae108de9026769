//! What all ranks know of each other: who does what, who waits for whom, and the first failure.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::group::Group;
use crate::blame::late;
use crate::{Cause, CommError, Failure, Operation};

/// Locks what stays whole when a thread panics in between.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state of one rank.
#[derive(Debug, Default)]
struct Status {
    doing: String,
    /// The operation that it waits in, and for whom.
    waits: Option<(Operation, usize)>,
    ended: bool,
}

/// The state of a run, which all its groups share.
#[derive(Debug)]
pub(super) struct Board {
    deadline: Duration,
    ranks: Vec<Mutex<Status>>,
    failure: OnceLock<Failure>,
    /// Those whose waiting ranks are to be woken by a failure.
    groups: Mutex<Vec<Weak<Group>>>,
}

impl Board {
    pub(super) fn new(size: usize, deadline: Duration) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            ranks: (0..size).map(|_| Mutex::default()).collect(),
            failure: OnceLock::new(),
            groups: Mutex::default(),
        })
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn register(&self, group: &Arc<Group>) {
        let mut groups = lock(&self.groups);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(group));
    }

    pub(super) fn doing(&self, rank: usize, what: fmt::Arguments<'_>) {
        let doing = &mut lock(&self.ranks[rank]).doing;
        doing.clear();
        // Writing to a string fails only if a caller's own `Display` does; what there is so far remains.
        let _ = doing.write_fmt(what);
    }

    /// Notes in which operation a rank waits, and for whom.
    pub(super) fn waits(&self, rank: usize, waits: Option<(Operation, usize)>) {
        lock(&self.ranks[rank]).waits = waits;
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Fails the run, unless it has failed before, and wakes everyone. Says whether this is what it failed by.
    pub(super) fn fail(&self, rank: usize, cause: Cause) -> bool {
        let failure = Failure {
            rank,
            doing: lock(&self.ranks[rank]).doing.clone(),
            cause,
        };
        let first = self.failure.set(failure).is_ok();
        self.wake();
        first
    }

    /// Notes that a rank has finished. It sends no more messages, so ranks that wait for one fail.
    pub(super) fn end(&self, rank: usize) {
        lock(&self.ranks[rank]).ended = true;
        self.wake();
    }

    pub(super) fn ended(&self, rank: usize) -> bool {
        lock(&self.ranks[rank]).ended
    }

    fn wake(&self) {
        let groups = lock(&self.groups).clone();
        groups
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|group| group.wake());
    }

    /// The error of an operation of `rank`.
    ///
    /// # Panics
    ///
    /// When nothing has failed.
    pub(super) fn error(&self, rank: usize, operation: Operation) -> CommError {
        CommError {
            rank,
            operation,
            failure: self.failure().expect("the run has failed").clone(),
        }
    }

    /// Fails the run since a rank waits for another that has ended.
    pub(super) fn fail_ended(&self, operation: Operation, waiter: usize, ended: usize) {
        self.fail(ended, Cause::Ended { operation, waiter });
    }

    /// Fails the run since a rank has waited for another until the deadline.
    pub(super) fn fail_late(&self, operation: Operation, waiter: usize, other: usize) {
        let waits = |rank: usize| lock(&self.ranks[rank]).waits;
        let (rank, cause) = late((operation, waiter, other), self.deadline, waits);
        self.fail(rank, cause);
    }
}
