//! Shared state of a run: what each rank is doing, what it waits for, and the first failure.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::group::Group;
use crate::blame::{Activity, blame};
use crate::{Cause, CommError, Failure, Operation};

/// Locks a mutex and ignores poisoning; the data stays consistent if a holder panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state of one rank.
#[derive(Debug)]
struct Status {
    doing: String,
    /// The operation that it waits in, and for whom.
    waits: Option<(Operation, usize)>,
    /// When it last entered or completed an operation.
    stepped: Instant,
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
        let status = || Status {
            doing: String::new(),
            waits: None,
            stepped: Instant::now(),
            ended: false,
        };
        Arc::new(Self {
            deadline,
            ranks: (0..size).map(|_| Mutex::new(status())).collect(),
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

    /// Notes that a rank enters or completes an operation.
    pub(super) fn step(&self, rank: usize) {
        lock(&self.ranks[rank]).stepped = Instant::now();
    }

    /// Notes in which operation a rank waits, and for whom. This holds until the operation is complete or the run has
    /// failed, also while the rank itself decides about a timeout: others that do so at the same time must not take it
    /// for one that computes.
    pub(super) fn waits(&self, rank: usize, operation: Operation, other: usize) {
        lock(&self.ranks[rank]).waits = Some((operation, other));
    }

    /// Notes that a rank has completed an operation in which it may have waited.
    pub(super) fn complete(&self, rank: usize) {
        let mut status = lock(&self.ranks[rank]);
        status.waits = None;
        status.stepped = Instant::now();
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

    /// Marks a rank as finished and wakes the others; waits for it then fail.
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

    /// Fails the run since a rank has waited for others until the deadline, if one of these makes no progress. Returns
    /// for how much longer the rank waits if all do.
    pub(super) fn time_out(
        &self,
        operation: Operation,
        waiter: usize,
        others: &[usize],
    ) -> Duration {
        let activity = |rank: usize| {
            let status = lock(&self.ranks[rank]);
            Activity {
                waits: status.waits,
                idle: Some(status.stepped.elapsed()),
            }
        };
        let wait = |&other: &usize| blame((operation, waiter, other), self.deadline, activity);
        match others.iter().map(wait).collect::<Result<Vec<_>, _>>() {
            Ok(left) => left.into_iter().min().unwrap_or(self.deadline),
            Err((rank, cause)) => {
                self.fail(rank, cause);
                Duration::ZERO
            }
        }
    }
}
