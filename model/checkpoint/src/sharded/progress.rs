//! How far the work on a sharded checkpoint is, and whether it goes on.

use std::ops::ControlFlow;

use crate::CheckpointError;

/// Tells how many bytes are done.
#[derive(Debug)]
pub(super) struct Progress<F> {
    report: F,
    done: u64,
    total: u64,
}

impl<F: FnMut(u64, u64) -> ControlFlow<()>> Progress<F> {
    /// Of so many bytes, none is done. `report` is called with the bytes that are done and their total.
    pub fn new(report: F, total: u64) -> Self {
        Self {
            report,
            done: 0,
            total,
        }
    }

    /// So many bytes more are to be done.
    pub fn expect(&mut self, bytes: u64) {
        self.total += bytes;
    }

    /// So many bytes more are done.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Stopped`] if the work is to end.
    pub fn advance(&mut self, bytes: usize) -> Result<(), CheckpointError> {
        self.done += bytes as u64;
        match (self.report)(self.done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CheckpointError::Stopped),
        }
    }
}
