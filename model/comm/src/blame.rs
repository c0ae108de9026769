//! Finds the rank responsible for a timeout.

use std::time::Duration;

use crate::{Cause, Operation};

/// What one rank knows of another that it waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activity {
    /// The operation that the rank is waiting in, and for whom. `None` if it computes, or if this is not known.
    pub(crate) waits: Option<(Operation, usize)>,
    /// How long ago the rank last entered or completed an operation, if this is known.
    pub(crate) idle: Option<Duration>,
}

/// Decides what happens when `waiter` has waited in an operation for `other` until the deadline: how much longer it
/// waits, or which rank fails the run, and why.
///
/// Follows the chain of waiting ranks. Blames its last rank, which does not wait, or reports a deadlock if the chain is
/// a cycle, in the name of its lowest rank. But no rank is blamed that has entered or completed an operation within the
/// deadline: then the chain moves, and the waiter waits until this is a deadline ago. A rank of which nothing is known is
/// blamed when the one before it in the chain has waited for a deadline.
///
/// What other ranks do changes meanwhile. That is harmless: a rank that has made no step for a deadline has neither
/// sent what the others wait for, nor could it have received what it waits for itself.
pub(crate) fn blame(
    (operation, waiter, other): (Operation, usize, usize),
    deadline: Duration,
    activity: impl Fn(usize) -> Activity,
) -> Result<Duration, (usize, Cause)> {
    let mut chain = vec![(operation, waiter, other)];
    loop {
        let &(operation, waiter, next) = chain.last().expect("the chain begins with the waiter");
        if let Some(start) = chain.iter().position(|&(_, rank, _)| rank == next) {
            let cycle = &chain[start..];
            let idle = cycle.iter().map(|&(_, rank, _)| activity(rank).idle);
            let idle = idle.min().flatten();
            let lowest = cycle.iter().min_by_key(|&&(_, rank, _)| rank);
            let &(operation, rank, other) = lowest.expect("a cycle has ranks");
            let cause = Cause::Deadlock {
                operation,
                other,
                deadline,
            };
            return remaining(deadline, idle).ok_or((rank, cause));
        }
        let Activity { waits, idle } = activity(next);
        let Some((operation_of_next, other)) = waits else {
            let cause = Cause::Late {
                operation,
                waiter,
                deadline,
            };
            let idle = idle.or_else(|| activity(waiter).idle);
            return remaining(deadline, idle).ok_or((next, cause));
        };
        chain.push((operation_of_next, next, other));
    }
}

/// What is left of the deadline, if anything.
fn remaining(deadline: Duration, idle: Option<Duration>) -> Option<Duration> {
    deadline.checked_sub(idle?).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// What is decided when `waiter` has waited for `other` in a barrier. `ranks` are those that each rank waits for, in
    /// a receive, and the seconds since its last step, where 0 is that this is not known.
    fn decide(
        (waiter, other): (usize, usize),
        ranks: &[(Option<usize>, u64)],
    ) -> Result<u64, (usize, Cause)> {
        let activity = |rank: usize| Activity {
            waits: ranks[rank].0.map(|other| (Operation::Recv, other)),
            idle: Some(Duration::from_secs(ranks[rank].1)).filter(|idle| !idle.is_zero()),
        };
        blame((Operation::Barrier, waiter, other), DEADLINE, activity).map(|left| left.as_secs())
    }

    fn late(operation: Operation, waiter: usize) -> Cause {
        Cause::Late {
            operation,
            waiter,
            deadline: DEADLINE,
        }
    }

    fn deadlock(operation: Operation, other: usize) -> Cause {
        Cause::Deadlock {
            operation,
            other,
            deadline: DEADLINE,
        }
    }

    #[test]
    fn the_end_of_a_chain_of_waiting_ranks_is_to_blame() {
        // Rank 1 has begun to wait just now, which is no excuse for rank 0.
        let chain = [(None, 10), (Some(0), 1), (Some(1), 11), (None, 12)];
        assert_eq!(decide((3, 2), &chain), Err((0, late(Operation::Recv, 1))));
        assert_eq!(
            decide((2, 3), &chain),
            Err((3, late(Operation::Barrier, 2)))
        );
    }

    #[test]
    fn the_lowest_rank_of_a_cycle_tells_of_the_deadlock() {
        let cycle = [
            (None, 0),
            (Some(3), 12),
            (Some(1), 10),
            (Some(2), 11),
            (None, 0),
        ];
        let expected = Err((1, deadlock(Operation::Recv, 3)));
        assert_eq!(decide((2, 1), &cycle), expected);
        assert_eq!(decide((3, 2), &cycle), expected);
        // A rank that waits for one of the cycle is not part of it.
        assert_eq!(decide((4, 2), &cycle), expected);
        let expected = Err((1, deadlock(Operation::Barrier, 3)));
        assert_eq!(decide((1, 3), &cycle), expected);
    }

    #[test]
    fn a_chain_that_moves_is_waited_for() {
        let chain = [(None, 4), (Some(0), 30), (Some(1), 30)];
        assert_eq!(decide((2, 1), &chain), Ok(6));
        let cycle = [(Some(1), 30), (Some(2), 7), (Some(0), 30)];
        assert_eq!(decide((0, 1), &cycle), Ok(3));
    }

    #[test]
    fn a_rank_of_which_nothing_is_known_is_to_blame_when_it_was_waited_for_until_the_deadline() {
        let ranks = |idle| [(None, 0), (Some(0), idle), (Some(1), 30)];
        assert_eq!(decide((2, 1), &ranks(4)), Ok(6));
        let expected = Err((0, late(Operation::Recv, 1)));
        assert_eq!(decide((2, 1), &ranks(10)), expected);
        let expected = Err((0, late(Operation::Barrier, 1)));
        assert_eq!(decide((1, 0), &ranks(10)), expected);
    }
}
