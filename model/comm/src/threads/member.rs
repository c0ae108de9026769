//! One rank's handle of a group.

#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::collective::{Contribution, Outcome};
use super::group::Group;
use super::reduction::Lent;
use crate::call::Call;
use crate::parts::{check_parts, part};
use crate::timeout::Timeout;
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

    /// Calls a collective operation, of whose contribution so many bytes count.
    fn collective(
        &self,
        call: Call,
        own: Contribution,
        bytes: usize,
    ) -> Result<Outcome, CommError> {
        self.check(call.operation(), self.rank)?;
        let outcome = self.group.collective(self.rank, call, own)?;
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
        let Outcome::Groups(groups) =
            self.collective(Call::Split, Contribution::Color(color), 0)?
        else {
            unreachable!("a split gives groups")
        };
        let group = Arc::clone(&groups[&color]);
        let rank = group.ranks.binary_search(&self.own());
        let rank = rank.expect("the group of a rank's color has this rank, and is sorted");
        Ok(group.member(rank))
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CommError> {
        let length = values.len();
        let bytes = size_of_val(values);
        // SAFETY: `values` are not accessed before `collective` returns, which it does when the sum is complete, or has
        // been abandoned and no part is in use.
        let own = Contribution::Vector(unsafe { Lent::new(values) });
        self.collective(Call::AllReduceSum { length }, own, bytes)?;
        Ok(())
    }

    fn reduce_scatter_sum(&self, values: &mut [f32], ends: &[usize]) -> Result<(), CommError> {
        check_parts(ends, self.size(), values.len());
        let length = values.len();
        let bytes = size_of_val(values);
        // SAFETY: as in `all_reduce_sum`.
        let own = Contribution::Parts(unsafe { Lent::new(values) }, ends.into());
        self.collective(Call::ReduceScatterSum { length }, own, bytes)?;
        Ok(())
    }

    fn all_gather_parts(&self, values: &mut [f32], ends: &[usize]) -> Result<(), CommError> {
        check_parts(ends, self.size(), values.len());
        let length = values.len();
        let bytes = size_of::<f32>() * part(ends, self.rank).len();
        // SAFETY: as in `all_reduce_sum`.
        let own = Contribution::Parts(unsafe { Lent::new(values) }, ends.into());
        self.collective(Call::AllGatherParts { length }, own, bytes)?;
        Ok(())
    }

    fn all_to_all(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        assert_eq!(parts.len(), self.size(), "a part for each rank");
        let bytes = parts.iter().map(Vec::len).sum();
        let outcome = self.collective(Call::AllToAll, Contribution::ToEach(parts), bytes)?;
        Ok(outcome.dealt(self.rank))
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let own = Contribution::Bytes(bytes.to_vec());
        match self.collective(Call::AllGather, own, bytes.len())? {
            Outcome::All(all) => Ok(Arc::unwrap_or_clone(all)),
            _ => unreachable!("an all-gather gives the bytes of all"),
        }
    }

    fn send(&self, to: usize, bytes: &[u8]) -> Result<(), CommError> {
        self.check(Operation::Send, to)?;
        self.group.mailboxes[to].put(self.rank, bytes.to_vec());
        self.group.board.step(self.own());
        self.counters.add(Operation::Send, bytes.len());
        Ok(())
    }

    fn recv(&self, from: usize) -> Result<Vec<u8>, CommError> {
        self.check(Operation::Recv, from)?;
        let timeout = Timeout::after(self.group.board.deadline());
        let bytes = self.group.receive(self.rank, from, timeout)?;
        self.counters.add(Operation::Recv, 0);
        Ok(bytes)
    }

    fn wait(&self, from: usize) -> Result<Vec<u8>, CommError> {
        self.check(Operation::Recv, from)?;
        let bytes = self.group.receive(self.rank, from, Timeout::NEVER)?;
        self.counters.add(Operation::Recv, 0);
        Ok(bytes)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.collective(Call::Barrier, Contribution::Nothing, 0)?;
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.counters.traffic()
    }

    fn doing(&self, what: fmt::Arguments<'_>) {
        self.group.board.doing(self.own(), what);
    }
}
