//! This process as a rank: how it waits, and what it does when something fails.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::node::{Node, Stage, encoded};
use super::transport::{Incoming, Transport};
use crate::blame::late;
use crate::{Cause, CommError, Failure, Operation};

/// The tag of messages by which all ranks come to their end together.
pub(super) const END: u32 = 0;

/// The tag of failures, to ranks on other machines.
const FAILED: u32 = 1;

/// The first group's tag; each has two.
const WORLD: u32 = 2;

/// The longest time that a rank sleeps for which its neighbours have news: they wake it, but MPI may hold back a
/// message that they have sent.
const LONGEST: Duration = Duration::from_millis(16);

/// The longest time that a rank sleeps that takes part in a message which is on its way.
const LONGEST_ON_ITS_WAY: Duration = Duration::from_micros(200);

/// The longest time that a rank sleeps for which another machine has news.
const LONGEST_ELSEWHERE: Duration = Duration::from_millis(1);

/// How long the last message of a rank that has ended may take.
const LAST_MESSAGE: Duration = Duration::from_millis(500);

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
}

impl Process {
    pub(super) fn new(
        [rank, size]: [usize; 2],
        node: Node,
        transport: Transport,
        deadline: Duration,
    ) -> Self {
        Self {
            rank,
            size,
            node,
            deadline,
            transport: Mutex::new(transport),
            failure: OnceLock::new(),
            next_tag: AtomicU32::new(WORLD),
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
            if let Some(failure) = self.failure_elsewhere() {
                self.node.publish(&failure);
                return Some(self.failure.get_or_init(|| failure));
            }
        }
        self.failure.get()
    }

    /// A failure that another machine tells of.
    fn failure_elsewhere(&self) -> Option<Failure> {
        self.node.elsewhere().first()?;
        let mut transport = self.transport();
        let mut message = transport.receive_from_any(FAILED)?;
        // So few bytes come in one piece.
        let bytes = transport.arrived(&mut message)?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Fails the run, unless it has failed before. Says whether this is what it failed by.
    pub(super) fn fail(&self, rank: usize, cause: Cause) -> bool {
        let mut transport = self.transport();
        if self.failure.get().is_some() {
            return false;
        }
        let doing = self.node.doing_of(rank);
        let failure = Failure { rank, doing, cause };
        if !self.node.publish(&failure) {
            return false;
        }
        for &other in self.node.elsewhere() {
            transport.send(other, FAILED, encoded(&failure));
        }
        // Another thread that has read there what was published has the same.
        self.failure.get_or_init(|| failure);
        true
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
        self.node.notify(to);
    }

    /// The next message of a rank, waited for until the deadline if `patience` is one.
    ///
    /// # Errors
    ///
    /// When the run fails.
    pub(super) fn receive(
        &self,
        operation: Operation,
        from: usize,
        tag: u32,
        patience: Option<Duration>,
    ) -> Result<Vec<u8>, CommError> {
        let started = Instant::now();
        let mut message: Option<Incoming> = None;
        let mut ended: Option<Instant> = None;
        let mut longest = Duration::from_micros(50);
        loop {
            let seen = self.node.news();
            if let Some(bytes) = self.poll(&mut message, from, tag) {
                self.node.waits(None);
                return Ok(bytes);
            }
            if self.failure().is_some() {
                return Err(self.error(operation));
            }
            if let Some(patience) = patience {
                if self.node.has_reached(from, Stage::Ended)
                    && ended.get_or_insert_with(Instant::now).elapsed() > LAST_MESSAGE
                {
                    let waiter = self.rank;
                    self.fail(from, Cause::Ended { operation, waiter });
                } else if started.elapsed() >= patience {
                    let waits = |rank| self.node.waits_of(rank);
                    let (rank, cause) = late((operation, self.rank, from), patience, waits);
                    self.fail(rank, cause);
                }
            }
            self.node.waits(Some((operation, from)));
            let left = patience.map_or(LONGEST, |patience| {
                patience.saturating_sub(started.elapsed())
            });
            self.node.sleep(seen, longest.min(left));
            longest *= 2;
            if self.node.news() == seen && self.urge(message.is_some().then_some(from)) {
                longest = longest.min(LONGEST_ON_ITS_WAY);
            }
            longest = longest.min(match self.node.has(from) {
                true => LONGEST,
                false => LONGEST_ELSEWHERE,
            });
        }
    }

    /// Wakes those whose part it is to move on a message that is on its way: MPI may take a large one across in steps,
    /// each of which is taken by a process that looks for messages. Says whether there is such a message.
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
