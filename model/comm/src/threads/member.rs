//! One rank's handle of a group.

use std::fmt;
use std::sync::Arc;

use super::group::Group;
use super::meeting::{Load, Outcome};
use super::reduction::Lent;
use crate::call::Call;
use crate::traffic::Counters;
use crate::{Cause, Comm, CommError, Operation, Traffic};

/// One rank of a group.
#[derive(Debug)]
pub(super) struct Member {
    group: Arc<Group>,
    rank: usize,
    counters: Counters,
}

impl Member {
    pub(super) fn new(group: Arc<Group>, rank: usize) -> Self {
        Self {
            group,
            rank,
            counters: Counters::default(),
        }
    }

    /// This rank in the whole run.
    fn own(&self) -> usize {
        self.group.ranks[self.rank]
    }

    /// # Errors
    ///
    /// When the run has failed, or there is no rank `other` in this group.
    fn check(&self, operation: Operation, other: usize) -> Result<(), CommError> {
        let board = &self.group.board;
        if other >= self.size() {
            let size = self.size();
            let mistake = format!(
                "named rank {other} of a group of {size} in {}",
                operation.with_article()
            );
            board.fail(self.own(), Cause::Misuse(mistake));
        }
        match board.failure() {
            Some(_) => Err(board.error(self.own(), operation)),
            None => Ok(()),
        }
    }

    /// Calls a collective operation, of whose load so many bytes count.
    fn meet(&self, call: Call, load: Load, bytes: usize) -> Result<Outcome, CommError> {
        self.check(call.operation(), self.rank)?;
        let outcome = self.group.meet(self.rank, call, load)?;
        self.counters.add(call.operation(), bytes);
        Ok(outcome)
    }
}

impl Comm for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.ranks.len()
    }

    fn split(&self, color: usize) -> Result<Arc<dyn Comm>, CommError> {
        let Outcome::Groups(groups) = self.meet(Call::Split, Load::Color(color), 0)? else {
            unreachable!("a split gives groups")
        };
        let group = Arc::clone(&groups[&color]);
        let rank = group.ranks.binary_search(&self.own());
        let rank = rank.expect("the group of a rank's color has this rank, and is sorted");
        Ok(group.member(rank))
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CommError> {
        let length = values.len();
        let load = Load::Vector(Lent::new(values));
        self.meet(Call::AllReduceSum { length }, load, size_of_val(values))?;
        Ok(())
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        match self.meet(Call::AllGather, Load::Bytes(bytes.to_vec()), bytes.len())? {
            Outcome::All(all) => Ok(Arc::unwrap_or_clone(all)),
            _ => unreachable!("an all-gather gives the bytes of all"),
        }
    }

    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), CommError> {
        self.check(Operation::Broadcast, root)?;
        let is_root = root == self.rank;
        let (load, length) = match is_root {
            true => (Load::Bytes(bytes.clone()), bytes.len()),
            false => (Load::Nothing, 0),
        };
        match self.meet(Call::Broadcast { root }, load, length)? {
            Outcome::One(_) if is_root => Ok(()),
            Outcome::One(one) => {
                bytes.clone_from(&one);
                Ok(())
            }
            _ => unreachable!("a broadcast gives the bytes of one"),
        }
    }

    fn send(&self, to: usize, bytes: &[u8]) -> Result<(), CommError> {
        self.check(Operation::Send, to)?;
        self.group.mailboxes[to].put(self.rank, bytes.to_vec());
        self.counters.add(Operation::Send, bytes.len());
        Ok(())
    }

    fn recv(&self, from: usize) -> Result<Vec<u8>, CommError> {
        self.check(Operation::Recv, from)?;
        let deadline = self.group.board.deadline();
        let bytes = self.group.receive(self.rank, from, Some(deadline))?;
        self.counters.add(Operation::Recv, 0);
        Ok(bytes)
    }

    fn wait(&self, from: usize) -> Result<Vec<u8>, CommError> {
        self.check(Operation::Recv, from)?;
        let bytes = self.group.receive(self.rank, from, None)?;
        self.counters.add(Operation::Recv, 0);
        Ok(bytes)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.meet(Call::Barrier, Load::Nothing, 0)?;
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.counters.traffic()
    }

    fn doing(&self, what: fmt::Arguments<'_>) {
        self.group.board.doing(self.own(), what);
    }

    fn abort(&self, reason: &str) {
        self.group
            .board
            .fail(self.own(), Cause::Aborted(reason.to_owned()));
    }
}
