//! This process as a rank: how it waits, and what it does when something fails.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::node::{Node, Shutdown, encoded};
use super::transport::{Incoming, Transport};
use crate::blame::blame;
use crate::timeout::Timeout;
use crate::{Cause, CommError, Failure, Operation};

/// The tag of messages by which all ranks finish together.
pub(super) const END: u32 = 0;

/// The tag of failures, to ranks on other machines.
const FAILED: u32 = 1;

/// The first group's tag; each has two.
const WORLD: u32 = 2;

/// First sleep while waiting for a message; each one is twice as long as the one before.
const FIRST: Duration = Duration::from_micros(50);

/// Maximum sleep while waiting for a rank on the same machine: it wakes this one, but MPI may hold back its message.
const LONGEST: Duration = Duration::from_millis(16);

/// Maximum sleep while a transfer is in progress.
const LONGEST_IN_TRANSFER: Duration = Duration::from_micros(200);

/// Maximum sleep while waiting for a rank on another machine.
const LONGEST_ELSEWHERE: Duration = Duration::from_millis(1);

/// How long the last message of a rank that has finished may take.
const LAST_MESSAGE: Duration = Duration::from_secs(2);

/// This process among those of a run.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) node: Node,
    pub(super) deadline: Duration,
    transport: Mutex<Transport>,
    failure: OnceLock<Failure>,
    /// Tags from here on are in no group of this rank.
    next_tag: AtomicU32,
    /// Cells of this rank from here on are those of no group.
    next_cell: AtomicUsize,
}

/// What a rank waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaited {
    /// The rank that is to do something.
    pub(super) rank: usize,
    /// Whether a message of that rank has begun to arrive.
    pub(super) arrives: bool,
}

impl Process {
    pub(super) fn new(
        [rank, size]: [usize; 2],
        node: Node,
        transport: Transport,
        deadline: Duration,
    ) -> Self {
        // From here on, the others can wait for this rank.
        node.step();
        Self {
            rank,
            size,
            node,
            deadline,
            transport: Mutex::new(transport),
            failure: OnceLock::new(),
            next_tag: AtomicU32::new(WORLD),
            next_cell: AtomicUsize::new(0),
        }
    }

    /// The node, when nothing else is needed any more.
    pub(super) fn into_node(self) -> Node {
        self.node
    }

    pub(super) fn next_tag(&self) -> u32 {
        self.next_tag.load(Ordering::Relaxed)
    }

    /// Tags below are in use.
    pub(super) fn reserve_tags(&self, below: u32) {
        self.next_tag.fetch_max(below, Ordering::Relaxed);
    }

    /// The number of a cell for a new group.
    pub(super) fn take_cell(&self) -> usize {
        self.next_cell.fetch_add(1, Ordering::Relaxed)
    }

    fn transport(&self) -> MutexGuard<'_, Transport> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The first failure of the run that this process knows of.
    pub(super) fn failure(&self) -> Option<&Failure> {
        if self.failure.get().is_none() {
            if let Some(failure) = self.node.failure() {
                return Some(self.failure.get_or_init(|| failure));
            }
            if !self.node.elsewhere().is_empty() {
                let mut transport = self.transport();
                if let Some(failure) = failure_elsewhere(&mut transport) {
                    self.adopt(&mut transport, failure);
                }
            }
        }
        self.failure.get()
    }

    /// Makes this the failure of the run for the ranks of this machine, unless there is another one already, which is
    /// then what this process reports too. Returns whether it is the first. Only one thread can have the transport.
    fn adopt(&self, _transport: &mut Transport, failure: Failure) -> bool {
        if self.failure.get().is_some() {
            return false;
        }
        let is_first = self.node.publish(&failure);
        let failure = match is_first {
            true => failure,
            false => self.node.failure().unwrap_or(failure),
        };
        self.failure.get_or_init(|| failure);
        is_first
    }

    /// Fails the run, unless it has failed before. Says whether this is what it failed by.
    pub(super) fn fail(&self, rank: usize, cause: Cause) -> bool {
        let mut transport = self.transport();
        let doing = self.node.doing_of(rank);
        let failure = Failure { rank, doing, cause };
        let message = encoded(&failure);
        let is_first = self.adopt(&mut transport, failure);
        if is_first {
            for &other in self.node.elsewhere() {
                transport.send(other, FAILED, message.clone());
            }
        }
        is_first
    }

    /// The error of an operation of this rank.
    ///
    /// # Panics
    ///
    /// When nothing has failed.
    pub(super) fn error(&self, operation: Operation) -> CommError {
        CommError {
            rank: self.rank,
            operation,
            failure: self.failure().expect("the run has failed").clone(),
        }
    }

    /// Sends a message, without waiting for anybody.
    pub(super) fn send(&self, to: usize, tag: u32, bytes: Vec<u8>) {
        self.transport().send(to, tag, bytes);
        self.node.step();
        self.node.notify(to);
    }

    /// Waits for the next message of a rank.
    ///
    /// # Errors
    ///
    /// When the run fails.
    pub(super) fn receive(
        &self,
        operation: Operation,
        from: usize,
        tag: u32,
        timeout: Timeout,
    ) -> Result<Vec<u8>, CommError> {
        let mut message: Option<Incoming> = None;
        // Those that have finished wait for each other.
        let may_finish = tag == END;
        self.wait(operation, timeout, may_finish, FIRST, || {
            self.poll(&mut message, from, tag).ok_or(Awaited {
                rank: from,
                arrives: message.is_some(),
            })
        })
    }

    /// Waits for what the ranks of this machine do in shared memory: until `look` is given something. Who does it is to wake
    /// this rank.
    ///
    /// # Errors
    ///
    /// When the run fails.
    pub(super) fn wait_here<T>(
        &self,
        operation: Operation,
        timeout: Timeout,
        mut look: impl FnMut() -> Result<T, usize>,
    ) -> Result<T, CommError> {
        // Others may wait for a message of this rank meanwhile.
        let sends = || {
            let mut transport = self.transport();
            let sends = transport.receivers().next().is_some();
            if sends {
                transport.progress();
            }
            sends
        };
        let first = if sends() { FIRST } else { LONGEST };
        self.wait(operation, timeout, false, first, || {
            look().map_err(|rank| {
                sends();
                Awaited {
                    rank,
                    arrives: false,
                }
            })
        })
    }

    /// Waits until `look` is given something; before, it says what this rank waits for. `may_finish`: whether a rank may be
    /// waited for that has finished. `longest` is that of the first sleep.
    fn wait<T>(
        &self,
        operation: Operation,
        mut timeout: Timeout,
        may_finish: bool,
        mut longest: Duration,
        mut look: impl FnMut() -> Result<T, Awaited>,
    ) -> Result<T, CommError> {
        let mut finished: Option<Instant> = None;
        let mut waits_for = None;
        loop {
            let seen = self.node.news();
            let Awaited { rank, arrives } = match look() {
                Ok(found) => {
                    self.node.waits_no_more();
                    return Ok(found);
                }
                Err(awaited) => awaited,
            };
            if waits_for != Some(rank) {
                self.node.waits(operation, rank);
                (waits_for, finished) = (Some(rank), None);
            }
            if self.failure().is_some() {
                return Err(self.error(operation));
            }
            if !may_finish
                && self.node.has_reached(rank, Shutdown::Finished)
                && finished.get_or_insert_with(Instant::now).elapsed() > LAST_MESSAGE
            {
                let waiter = self.rank;
                self.fail(rank, Cause::Ended { operation, waiter });
                continue;
            }
            if timeout.is_over() {
                timeout = Timeout::after(self.time_out(operation, rank));
                continue;
            }
            self.node.sleep(seen, longest.min(timeout.left()));
            longest *= 2;
            if self.node.news() == seen && self.urge(arrives.then_some(rank)) {
                longest = longest.min(LONGEST_IN_TRANSFER);
            }
            longest = longest.min(match self.node.has(rank) {
                true => LONGEST,
                false => LONGEST_ELSEWHERE,
            });
        }
    }

    /// Fails the run since this rank has waited for another until the deadline, if that one makes no progress. Returns
    /// for how much longer this rank waits if it does.
    fn time_out(&self, operation: Operation, other: usize) -> Duration {
        let wait = (operation, self.rank, other);
        let decision = blame(wait, self.deadline, |rank| self.node.activity(rank));
        decision.unwrap_or_else(|(rank, cause)| {
            self.fail(rank, cause);
            Duration::ZERO
        })
    }

    /// Wakes the peers of transfers in progress: MPI advances a large message only while both sides poll. Returns whether
    /// there is such a transfer.
    fn urge(&self, sender: Option<usize>) -> bool {
        let transport = self.transport();
        let partners: Vec<usize> = transport.receivers().chain(sender).collect();
        drop(transport);
        partners.iter().for_each(|&rank| self.node.notify(rank));
        !partners.is_empty()
    }

    /// Moves on what was sent, and looks for a message.
    fn poll(&self, message: &mut Option<Incoming>, from: usize, tag: u32) -> Option<Vec<u8>> {
        let mut transport = self.transport();
        transport.progress();
        if message.is_none() {
            *message = transport.receive(from, tag);
        }
        transport.arrived(message.as_mut()?)
    }
}

/// A failure that another machine tells of.
fn failure_elsewhere(transport: &mut Transport) -> Option<Failure> {
    let mut message = transport.receive_from_any(FAILED)?;
    // So few bytes come in one piece.
    let bytes = transport.arrived(&mut message)?;
    serde_json::from_slice(&bytes).ok()
}
