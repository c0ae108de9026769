//! What a rank hands to a group's operations.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of operation of a [`Comm`](crate::Comm).
#[cfg_attr(feature = "mpi", derive(serde::Deserialize, serde::Serialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`split`](crate::Comm::split)
    Split,
    /// [`all_reduce_sum`](crate::Comm::all_reduce_sum)
    AllReduceSum,
    /// [`reduce_scatter_sum`](crate::Comm::reduce_scatter_sum)
    ReduceScatterSum,
    /// [`all_gather`](crate::Comm::all_gather)
    AllGather,
    /// [`all_gather_parts`](crate::Comm::all_gather_parts)
    AllGatherParts,
    /// [`all_to_all`](crate::Comm::all_to_all)
    AllToAll,
    /// [`send`](crate::Comm::send)
    Send,
    /// [`recv`](crate::Comm::recv)
    Recv,
    /// [`barrier`](crate::Comm::barrier)
    Barrier,
}

impl Operation {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Split,
        Self::AllReduceSum,
        Self::ReduceScatterSum,
        Self::AllGather,
        Self::AllGatherParts,
        Self::AllToAll,
        Self::Send,
        Self::Recv,
        Self::Barrier,
    ];

    /// With an article, for sentences.
    pub(crate) fn with_article(self) -> &'static str {
        match self {
            Self::Split => "a split",
            Self::AllReduceSum => "an all-reduce",
            Self::ReduceScatterSum => "a reduce-scatter",
            Self::AllGather => "an all-gather",
            Self::AllGatherParts => "an all-gather of parts",
            Self::AllToAll => "an all-to-all",
            Self::Send => "a send",
            Self::Recv => "a receive",
            Self::Barrier => "a barrier",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Split => "split",
            Self::AllReduceSum => "all-reduce",
            Self::ReduceScatterSum => "reduce-scatter",
            Self::AllGather => "all-gather",
            Self::AllGatherParts => "all-gather of parts",
            Self::AllToAll => "all-to-all",
            Self::Send => "send",
            Self::Recv => "receive",
            Self::Barrier => "barrier",
        })
    }
}

/// How often a rank called an operation, and how much it handed to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Calls that did not fail.
    pub calls: u64,
    /// Bytes that the caller handed over in them.
    pub bytes: u64,
}

/// What one rank handed to the operations of one group, by kind.
///
/// Counted is the payload at the call, not what a transport makes of it: 4 bytes a value of an all-reduce and of a
/// reduce-scatter, this rank's own bytes of an all-gather, the bytes of a send, those to all ranks of an all-to-all. A
/// receive, a barrier and a split are calls without bytes. So the bytes of a layout can be predicted to the last one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    counts: [Count; Operation::ALL.len()],
}

impl Traffic {
    /// One kind of operation.
    pub fn of(&self, operation: Operation) -> Count {
        self.counts[operation as usize]
    }

    /// What came after an earlier state of the same counters.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (count, earlier) in counts.iter_mut().zip(earlier.counts) {
            count.calls -= earlier.calls;
            count.bytes -= earlier.bytes;
        }
        Self { counts }
    }
}

/// [`Traffic`] as it is counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    calls: [AtomicU64; Operation::ALL.len()],
    bytes: [AtomicU64; Operation::ALL.len()],
}

impl Counters {
    pub(crate) fn add(&self, operation: Operation, bytes: usize) {
        self.calls[operation as usize].fetch_add(1, Ordering::Relaxed);
        self.bytes[operation as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            counts: std::array::from_fn(|kind| Count {
                calls: self.calls[kind].load(Ordering::Relaxed),
                bytes: self.bytes[kind].load(Ordering::Relaxed),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart_and_differences_are_taken() {
        let counters = Counters::default();
        counters.add(Operation::Send, 5);
        let earlier = counters.traffic();
        counters.add(Operation::Send, 7);
        counters.add(Operation::Barrier, 0);
        let traffic = counters.traffic();
        let count = |calls, bytes| Count { calls, bytes };
        assert_eq!(traffic.of(Operation::Send), count(2, 12));
        assert_eq!(traffic.of(Operation::Recv), count(0, 0));
        assert_eq!(traffic.of(Operation::Barrier), count(1, 0));
        let later = traffic.since(&earlier);
        assert_eq!(later.of(Operation::Send), count(1, 7));
        assert_eq!(later.of(Operation::Barrier), count(1, 0));
        for (place, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, place);
        }
    }
}
