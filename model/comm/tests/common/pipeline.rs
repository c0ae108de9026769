//! A pipeline that takes longer than the deadline, although every stage of it takes less.

use std::sync::Arc;
use std::time::Duration;

use firebox_comm::{Comm, CommError};

use super::failures::DEADLINE;

/// For how long a stage works: half the deadline or less, so that the whole pipeline takes twice the deadline where there
/// are four stages or more.
pub fn work(stages: usize) -> Duration {
    DEADLINE * 2 / stages.max(4) as u32
}

/// Every rank works when the one before it has done so; the first one then waits for the last.
pub fn pass_through(comm: &Arc<dyn Comm>, work: impl FnOnce(usize)) -> Result<(), CommError> {
    let (rank, size) = (comm.rank(), comm.size());
    if rank > 0 {
        comm.recv(rank - 1)?;
    }
    work(rank);
    comm.send((rank + 1) % size, b"stream")?;
    if rank == 0 {
        comm.recv(size - 1)?;
    }
    Ok(())
}
