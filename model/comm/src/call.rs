//! What all ranks of a group have to agree on when they call a collective operation.

use std::fmt;

use crate::Operation;

/// A collective operation, with what has to be the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Split,
    AllReduceSum { length: usize },
    ReduceScatterSum { length: usize },
    AllGather,
    AllGatherParts { length: usize },
    AllToAll,
    Barrier,
}

impl Call {
    pub(crate) fn operation(self) -> Operation {
        match self {
            Self::Split => Operation::Split,
            Self::AllReduceSum { .. } => Operation::AllReduceSum,
            Self::ReduceScatterSum { .. } => Operation::ReduceScatterSum,
            Self::AllGather => Operation::AllGather,
            Self::AllGatherParts { .. } => Operation::AllGatherParts,
            Self::AllToAll => Operation::AllToAll,
            Self::Barrier => Operation::Barrier,
        }
    }

    /// The length of the vectors, if it has any.
    fn length(self) -> Option<usize> {
        match self {
            Self::AllReduceSum { length }
            | Self::ReduceScatterSum { length }
            | Self::AllGatherParts { length } => Some(length),
            Self::Split | Self::AllGather | Self::AllToAll | Self::Barrier => None,
        }
    }
}

#[cfg(feature = "mpi")]
impl Call {
    /// Bytes of a call in a message.
    pub(crate) const BYTES: usize = 9;

    /// Bits of a call in a number.
    pub(crate) const BITS: u32 = 48;

    /// Those of the length.
    const LENGTH_BITS: u32 = 40;

    /// As it goes along with a message.
    pub(crate) fn encoded(self) -> [u8; Self::BYTES] {
        let number = self.length().unwrap_or_default();
        let mut bytes = [self.operation() as u8; Self::BYTES];
        bytes[1..].copy_from_slice(&(number as u64).to_le_bytes());
        bytes
    }

    /// From [`encoded`](Self::encoded).
    ///
    /// # Panics
    ///
    /// When it is not from there.
    pub(crate) fn decoded(bytes: &[u8]) -> Self {
        let (&operation, number) = bytes.split_first().expect("a call has 9 bytes");
        let length = u64::from_le_bytes(number.try_into().expect("a call has 9 bytes")) as usize;
        Self::new(Operation::ALL[operation as usize], length)
    }

    /// As a number of [`BITS`](Self::BITS) bits.
    pub(crate) fn word(self) -> u64 {
        let length = self.length().unwrap_or_default() as u64;
        assert!(length < 1 << Self::LENGTH_BITS);
        (self.operation() as u64) << Self::LENGTH_BITS | length
    }

    /// From the low bits of a number that has a [`word`](Self::word) there.
    pub(crate) fn of_word(word: u64) -> Self {
        let operation = (word >> Self::LENGTH_BITS) as u8;
        let length = word & ((1 << Self::LENGTH_BITS) - 1);
        Self::new(Operation::ALL[operation as usize], length as usize)
    }

    fn new(operation: Operation, length: usize) -> Self {
        match operation {
            Operation::Split => Self::Split,
            Operation::AllReduceSum => Self::AllReduceSum { length },
            Operation::ReduceScatterSum => Self::ReduceScatterSum { length },
            Operation::AllGather => Self::AllGather,
            Operation::AllGatherParts => Self::AllGatherParts { length },
            Operation::AllToAll => Self::AllToAll,
            Operation::Barrier => Self::Barrier,
            Operation::Send | Operation::Recv => {
                unreachable!("only collective operations are encoded")
            }
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.operation().with_article())?;
        match self.length() {
            Some(length) => write!(formatter, " of {length} values"),
            None => Ok(()),
        }
    }
}

#[cfg(all(test, feature = "mpi"))]
mod tests {
    use super::*;

    #[test]
    fn a_call_under_mpi_is_read_as_it_was_written() {
        let calls = [
            Call::Split,
            Call::AllReduceSum { length: 5_376 },
            Call::ReduceScatterSum { length: 7 },
            Call::AllGather,
            Call::AllGatherParts { length: 0 },
            Call::AllToAll,
            Call::Barrier,
        ];
        for call in calls {
            assert_eq!(Call::decoded(&call.encoded()), call);
            assert_eq!(call.word() >> Call::BITS, 0);
            assert_eq!(Call::of_word(7 << Call::BITS | call.word()), call);
        }
    }
}
