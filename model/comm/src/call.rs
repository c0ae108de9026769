//! What all ranks of a group have to agree on when they call a collective operation.

use std::fmt;

use crate::Operation;

/// A collective operation, with what has to be the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Split,
    AllReduceSum { length: usize },
    AllGather,
    Broadcast { root: usize },
    Barrier,
}

impl Call {
    pub(crate) fn operation(self) -> Operation {
        match self {
            Self::Split => Operation::Split,
            Self::AllReduceSum { .. } => Operation::AllReduceSum,
            Self::AllGather => Operation::AllGather,
            Self::Broadcast { .. } => Operation::Broadcast,
            Self::Barrier => Operation::Barrier,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.operation().with_article())?;
        match self {
            Self::AllReduceSum { length } => write!(formatter, " of {length} values"),
            Self::Broadcast { root } => write!(formatter, " from rank {root} of the group"),
            Self::Split | Self::AllGather | Self::Barrier => Ok(()),
        }
    }
}
