//! Which rank is to blame when another has waited for it until the deadline.

use std::time::Duration;

use crate::{Cause, Operation};

/// The rank to blame, and the cause, when `waiter` has waited in an operation for `other` until the deadline. If `other` is
/// waiting too, the chain of waiting ranks is followed: the rank at its end is to blame, and a chain that closes is a
/// deadlock. `waits` gives the operation that a rank is waiting in, and for whom.
pub(crate) fn late(
    (operation, waiter, other): (Operation, usize, usize),
    deadline: Duration,
    waits: impl Fn(usize) -> Option<(Operation, usize)>,
) -> (usize, Cause) {
    let mut seen = vec![waiter];
    let mut last = (operation, waiter, other);
    loop {
        let (_, _, next) = last;
        if seen.contains(&next) {
            let cause = Cause::Deadlock {
                operation,
                other,
                deadline,
            };
            return (waiter, cause);
        }
        match waits(next) {
            Some((operation, other)) => {
                seen.push(next);
                last = (operation, next, other);
            }
            None => {
                let (operation, waiter, late) = last;
                let cause = Cause::Late {
                    operation,
                    waiter,
                    deadline,
                };
                return (late, cause);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_chain_of_waiting_ranks_is_to_blame() {
        let deadline = Duration::from_secs(1);
        let next = [None, Some(0), Some(1), Some(2), Some(5), Some(4)];
        let waits = |rank: usize| next[rank].map(|next| (Operation::Recv, next));
        let late = |waiter, other| late((Operation::Barrier, waiter, other), deadline, waits);
        let cause = Cause::Late {
            operation: Operation::Recv,
            waiter: 1,
            deadline,
        };
        assert_eq!(late(3, 2), (0, cause));
        let cause = Cause::Deadlock {
            operation: Operation::Barrier,
            other: 4,
            deadline,
        };
        assert_eq!(late(5, 4), (5, cause));
    }
}
