//! Messages that wait for a rank to receive them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::board::lock;

/// The messages to one rank of a group, by sender and in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    messages: Mutex<BTreeMap<usize, VecDeque<Vec<u8>>>>,
    changed: Condvar,
}

impl Mailbox {
    pub(super) fn put(&self, from: usize, bytes: Vec<u8>) {
        let mut messages = lock(&self.messages);
        messages.entry(from).or_default().push_back(bytes);
        self.changed.notify_all();
    }

    /// The next message of a sender. Returns `None` on timeout, or when the mailbox is empty and `hopeless` returns true
    /// (checked at every wake-up).
    pub(super) fn take(
        &self,
        from: usize,
        longest: Duration,
        hopeless: impl Fn() -> bool,
    ) -> Option<Vec<u8>> {
        let messages = lock(&self.messages);
        let empty = |messages: &mut BTreeMap<usize, VecDeque<Vec<u8>>>| {
            messages.get(&from).is_none_or(VecDeque::is_empty) && !hopeless()
        };
        let (mut messages, _) = self
            .changed
            .wait_timeout_while(messages, longest, empty)
            .unwrap_or_else(PoisonError::into_inner);
        messages.get_mut(&from)?.pop_front()
    }

    /// Wakes a waiting rank so that it checks its condition again.
    pub(super) fn wake(&self) {
        let _messages = lock(&self.messages);
        self.changed.notify_all();
    }
}
