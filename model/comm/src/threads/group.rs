//! A group of ranks that exchange data in shared memory.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::board::{Board, lock};
use super::collective::{Collective, Contribution, Outcome};
use super::mailbox::Mailbox;
use super::member::Member;
use super::reduction::Reduction;
use crate::call::Call;
use crate::timeout::Timeout;
use crate::{Cause, Comm, CommError, Operation};

type Guard<'a> = MutexGuard<'a, Collective>;

/// Some ranks of a run.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) board: Arc<Board>,
    /// The ranks of this group, as world ranks.
    pub(super) ranks: Vec<usize>,
    pub(super) mailboxes: Vec<Mailbox>,
    collective: Mutex<Collective>,
    changed: Condvar,
}

impl Group {
    pub(super) fn new(board: Arc<Board>, ranks: Vec<usize>) -> Arc<Self> {
        let size = ranks.len();
        let group = Arc::new(Self {
            board,
            ranks,
            mailboxes: (0..size).map(|_| Mailbox::default()).collect(),
            collective: Mutex::new(Collective::new(size)),
            changed: Condvar::new(),
        });
        group.board.register(&group);
        group
    }

    /// The handle of one of its ranks.
    pub(super) fn member(self: Arc<Self>, rank: usize) -> Arc<dyn Comm> {
        Arc::new(Member::new(self, rank))
    }

    /// Wakes waiting ranks so that they check their condition again.
    pub(super) fn wake(&self) {
        let collective = lock(&self.collective);
        self.changed.notify_all();
        drop(collective);
        self.mailboxes.iter().for_each(Mailbox::wake);
    }

    /// Enters the group's next collective operation, and waits for its outcome.
    pub(super) fn collective(
        &self,
        rank: usize,
        call: Call,
        contribution: Contribution,
    ) -> Result<Outcome, CommError> {
        let (own, operation) = (self.ranks[rank], call.operation());
        self.board.step(own);
        let mut collective = lock(&self.collective);
        let number = collective.number();
        if !collective.contribute(rank, call, contribution) {
            drop(collective);
            let twice = "called two operations of one group at once, on different threads";
            self.board.fail(own, Cause::Misuse(twice.to_owned()));
            return Err(self.board.error(own, operation));
        }
        if collective.missing().next().is_none() {
            match collective.combine(self) {
                Ok(()) => self.wake_all_for(&collective),
                Err((rank, mistake)) => {
                    drop(collective);
                    self.board.fail(rank, Cause::Misuse(mistake));
                    collective = lock(&self.collective);
                }
            }
        }
        let mut timeout = Timeout::after(self.board.deadline());
        loop {
            collective = self.help(collective);
            if collective.number() > number {
                let outcome = collective.outcome();
                drop(collective);
                self.board.complete(own);
                return Ok(outcome);
            }
            if self.board.failure().is_some() {
                self.leave(rank, collective);
                return Err(self.board.error(own, operation));
            }
            let missing = collective.missing().map(|rank| self.ranks[rank]);
            let missing: Vec<usize> = missing.collect();
            let finished = missing.iter().find(|&&rank| self.board.ended(rank));
            let longest = match missing.first() {
                Some(&first) => {
                    self.board.waits(own, operation, first);
                    timeout.left()
                }
                // The others are at work, and wait for nobody.
                None => self.board.deadline(),
            };
            if finished.is_some() || longest.is_zero() {
                drop(collective);
                match finished {
                    Some(&finished) => self.board.fail_ended(operation, own, finished),
                    None => {
                        let left = self.board.time_out(operation, own, &missing);
                        timeout = Timeout::after(left);
                    }
                }
                collective = lock(&self.collective);
                continue;
            }
            (collective, _) = self
                .changed
                .wait_timeout(collective, longest)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes the ranks of an operation that is complete, or in which there is work for several.
    fn wake_all_for(&self, collective: &Collective) {
        if collective.sum().is_none_or(Reduction::is_shared) {
            self.changed.notify_all();
        }
    }

    /// Does what nobody else is doing.
    fn help<'a>(&'a self, mut collective: Guard<'a>) -> Guard<'a> {
        while self.board.failure().is_none()
            && let Some(mut part) = collective.take_part()
        {
            drop(collective);
            part.work();
            collective = lock(&self.collective);
            // The last one is what the others wait for, those that leave a failed run too.
            if collective.give_back(part) {
                self.changed.notify_all();
            }
        }
        collective
    }

    /// Withdraws a rank's contribution, as soon as nobody works on it.
    fn leave(&self, rank: usize, collective: Guard<'_>) {
        let busy = |collective: &mut Collective| collective.sum().is_some_and(|sum| !sum.is_idle());
        let mut collective = self
            .changed
            .wait_while(collective, busy)
            .unwrap_or_else(PoisonError::into_inner);
        collective.withdraw(rank);
    }

    /// Waits for the next message that another rank has sent.
    pub(super) fn receive(
        &self,
        rank: usize,
        from: usize,
        mut timeout: Timeout,
    ) -> Result<Vec<u8>, CommError> {
        let (own, other, operation) = (self.ranks[rank], self.ranks[from], Operation::Recv);
        let hopeless = || self.board.failure().is_some() || self.board.ended(other);
        self.board.step(own);
        self.board.waits(own, operation, other);
        loop {
            // Before the mailbox: a rank that has finished by now has put its last message there.
            let finished = self.board.ended(other);
            if let Some(message) = self.mailboxes[rank].take(from, timeout.left(), hopeless) {
                self.board.complete(own);
                return Ok(message);
            }
            if self.board.failure().is_some() {
                return Err(self.board.error(own, operation));
            }
            if finished {
                self.board.fail_ended(operation, own, other);
            } else if timeout.is_over() {
                timeout = Timeout::after(self.board.time_out(operation, own, &[other]));
            }
        }
    }
}
