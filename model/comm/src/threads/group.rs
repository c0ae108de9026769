//! A group of ranks that meet in shared memory.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::board::{Board, lock};
use super::mailbox::Mailbox;
use super::meeting::{Load, Meeting, Outcome};
use super::member::Member;
use super::reduction::Reduction;
use crate::call::Call;
use crate::{Cause, Comm, CommError, Operation};

/// How long a rank sleeps at a time that waits without a deadline.
const LONG: Duration = Duration::from_secs(3600);

/// Some ranks of a run.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) board: Arc<Board>,
    /// The ranks of this group, by their names in the whole run.
    pub(super) ranks: Vec<usize>,
    pub(super) mailboxes: Vec<Mailbox>,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

impl Group {
    pub(super) fn new(board: Arc<Board>, ranks: Vec<usize>) -> Arc<Self> {
        let size = ranks.len();
        let group = Arc::new(Self {
            board,
            ranks,
            mailboxes: (0..size).map(|_| Mailbox::default()).collect(),
            meeting: Mutex::new(Meeting::new(size)),
            changed: Condvar::new(),
        });
        group.board.register(&group);
        group
    }

    /// The handle of one of its ranks.
    pub(super) fn member(self: Arc<Self>, rank: usize) -> Arc<dyn Comm> {
        Arc::new(Member::new(self, rank))
    }

    /// Makes all waiting ranks look up.
    pub(super) fn wake(&self) {
        let meeting = lock(&self.meeting);
        self.changed.notify_all();
        drop(meeting);
        self.mailboxes.iter().for_each(Mailbox::wake);
    }

    /// Comes to the group's next collective operation, and waits for its outcome.
    pub(super) fn meet(&self, rank: usize, call: Call, load: Load) -> Result<Outcome, CommError> {
        let (own, operation) = (self.ranks[rank], call.operation());
        let mut meeting = lock(&self.meeting);
        let number = meeting.number();
        if !meeting.bring(rank, call, load) {
            drop(meeting);
            let twice = "called two operations of one group at once, on different threads";
            self.board.fail(own, Cause::Misuse(twice.to_owned()));
            return Err(self.board.error(own, operation));
        }
        if meeting.missing().next().is_none() {
            match meeting.assemble(self) {
                Ok(()) => self.wake_meeting(&meeting),
                Err((rank, mistake)) => {
                    drop(meeting);
                    self.board.fail(rank, Cause::Misuse(mistake));
                    meeting = lock(&self.meeting);
                }
            }
        }
        let deadline = Instant::now() + self.board.deadline();
        loop {
            meeting = self.help(meeting);
            if meeting.number() > number {
                return Ok(meeting.outcome());
            }
            if self.board.failure().is_some() {
                self.leave(rank, meeting);
                return Err(self.board.error(own, operation));
            }
            let missing = meeting.missing().map(|rank| self.ranks[rank]);
            let missing: Vec<usize> = missing.collect();
            let ended = missing.iter().find(|&&rank| self.board.ended(rank));
            let mut left = deadline.saturating_duration_since(Instant::now());
            if let Some(&first) = missing.first() {
                if ended.is_some() || left.is_zero() {
                    drop(meeting);
                    match ended {
                        Some(&ended) => self.board.fail_ended(operation, own, ended),
                        None => self.board.fail_late(operation, own, first),
                    }
                    meeting = lock(&self.meeting);
                    continue;
                }
                self.board.waits(own, Some((operation, first)));
            } else {
                // The others are summing, and wait for nobody.
                left = self.board.deadline();
            }
            (meeting, _) = self
                .changed
                .wait_timeout(meeting, left)
                .unwrap_or_else(PoisonError::into_inner);
            self.board.waits(own, None);
        }
    }

    /// Wakes the ranks of a meeting that is over, or in which there is work for several.
    fn wake_meeting(&self, meeting: &Meeting) {
        if meeting.sum().is_none_or(Reduction::is_shared) {
            self.changed.notify_all();
        }
    }

    /// Sums what nobody else is summing.
    fn help<'a>(&'a self, mut meeting: MutexGuard<'a, Meeting>) -> MutexGuard<'a, Meeting> {
        while self.board.failure().is_none()
            && let Some(mut part) = meeting.take_part()
        {
            drop(meeting);
            part.sum();
            meeting = lock(&self.meeting);
            // The last one is what the others wait for, those that leave a failed run too.
            if meeting.give_back(part) {
                self.changed.notify_all();
            }
        }
        meeting
    }

    /// Takes back what a rank has brought, as soon as nobody works on it.
    fn leave(&self, rank: usize, meeting: MutexGuard<'_, Meeting>) {
        let busy = |meeting: &mut Meeting| meeting.sum().is_some_and(|sum| !sum.is_idle());
        let mut meeting = self
            .changed
            .wait_while(meeting, busy)
            .unwrap_or_else(PoisonError::into_inner);
        meeting.withdraw(rank);
    }

    /// Waits for the next message that another rank has sent; `None` as the deadline is that there is none.
    pub(super) fn receive(
        &self,
        rank: usize,
        from: usize,
        deadline: Option<Duration>,
    ) -> Result<Vec<u8>, CommError> {
        let (own, other, operation) = (self.ranks[rank], self.ranks[from], Operation::Recv);
        let hopeless = || self.board.failure().is_some() || self.board.ended(other);
        self.board.waits(own, Some((operation, other)));
        let message = loop {
            let message = self.mailboxes[rank].take(from, deadline.unwrap_or(LONG), hopeless);
            if message.is_some() || deadline.is_some() || hopeless() {
                break message;
            }
        };
        self.board.waits(own, None);
        message.ok_or_else(|| {
            match self.board.ended(other) {
                true => self.board.fail_ended(operation, own, other),
                false => self.board.fail_late(operation, own, other),
            }
            self.board.error(own, operation)
        })
    }
}
