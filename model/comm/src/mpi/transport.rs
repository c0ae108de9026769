//! Messages between processes: the calls of MPI that carry them. None of them waits.

#![allow(unsafe_code)]

use std::mem;

use mpi::ffi::{self, MPI_Comm, MPI_Message, MPI_Request, MPI_Status};

/// A message on its way. Its bytes belong to MPI until it has arrived.
#[derive(Debug)]
pub(super) struct Transfer {
    request: MPI_Request,
    bytes: Vec<u8>,
}

// SAFETY: requests are handles of the process, which any of its threads may use, one at a time (the level
// MPI_THREAD_SERIALIZED, which `World::start` asks for). All uses are methods of `Transport`, which has a lock.
unsafe impl Send for Transfer {}

impl Drop for Transfer {
    fn drop(&mut self) {
        // MPI may still write to the bytes of a message that has not arrived, or read them.
        // SAFETY: the constant is one that MPI has set when it was loaded.
        if self.request != unsafe { ffi::RSMPI_REQUEST_NULL } {
            mem::forget(mem::take(&mut self.bytes));
        }
    }
}

/// All messages of this process.
#[derive(Debug)]
pub(super) struct Transport {
    comm: MPI_Comm,
    /// Those that were sent and have not left yet, with their receivers.
    leaving: Vec<(usize, Transfer)>,
}

// SAFETY: as of `Transfer`.
unsafe impl Send for Transport {}

impl Transport {
    /// Between all processes of a communicator.
    ///
    /// # Safety
    ///
    /// `comm` lives as long as this does, and nothing else sends over it. MPI has been started, at least at the level
    /// MPI_THREAD_SERIALIZED, and is not called anywhere else in the meantime.
    pub(super) unsafe fn new(comm: MPI_Comm) -> Self {
        Self {
            comm,
            leaving: Vec::new(),
        }
    }

    /// Sends a message, without waiting until it has left.
    ///
    /// # Panics
    ///
    /// When it has more bytes than MPI can count.
    pub(super) fn send(&mut self, to: usize, tag: u32, bytes: Vec<u8>) {
        let mut transfer = Transfer {
            // SAFETY: as in `drop`.
            request: unsafe { ffi::RSMPI_REQUEST_NULL },
            bytes,
        };
        // SAFETY: the bytes stay where they are until the request is complete, see `Transfer`.
        unsafe {
            ffi::MPI_Isend(
                transfer.bytes.as_ptr().cast(),
                count(transfer.bytes.len()),
                ffi::RSMPI_UINT8_T,
                to as i32,
                tag as i32,
                self.comm,
                &raw mut transfer.request,
            );
        }
        if !self.has_arrived(&mut transfer) {
            self.leaving.push((to, transfer));
        }
    }

    /// Begins to receive the next message from a process, if there is one.
    pub(super) fn receive(&mut self, from: usize, tag: u32) -> Option<Transfer> {
        let from = from as i32;
        // Open MPI first looks among what it has taken in, and then takes in what has come: twice is needed.
        let message = self.receive_from(from, tag);
        message.or_else(|| self.receive_from(from, tag))
    }

    /// Begins to receive the next message from any process, if there is one.
    pub(super) fn receive_from_any(&mut self, tag: u32) -> Option<Transfer> {
        // SAFETY: as in `Transfer::drop`.
        self.receive_from(unsafe { ffi::RSMPI_ANY_SOURCE }, tag)
    }

    fn receive_from(&mut self, from: i32, tag: u32) -> Option<Transfer> {
        // SAFETY: MPI writes to these variables only, and to the bytes until the request is complete, see `Transfer`.
        unsafe {
            let (mut flag, mut length) = (0, 0);
            let mut message: MPI_Message = ffi::RSMPI_MESSAGE_NULL;
            let mut status: MPI_Status = mem::zeroed();
            let tag = tag as i32;
            ffi::MPI_Improbe(
                from,
                tag,
                self.comm,
                &raw mut flag,
                &raw mut message,
                &raw mut status,
            );
            if flag == 0 {
                return None;
            }
            ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut length);
            let mut transfer = Transfer {
                request: ffi::RSMPI_REQUEST_NULL,
                bytes: vec![0; length as usize],
            };
            ffi::MPI_Imrecv(
                transfer.bytes.as_mut_ptr().cast(),
                length,
                ffi::RSMPI_UINT8_T,
                &raw mut message,
                &raw mut transfer.request,
            );
            Some(transfer)
        }
    }

    /// The bytes of a message, when it has arrived.
    pub(super) fn arrived(&mut self, transfer: &mut Transfer) -> Option<Vec<u8>> {
        self.has_arrived(transfer)
            .then(|| mem::take(&mut transfer.bytes))
    }

    fn has_arrived(&mut self, transfer: &mut Transfer) -> bool {
        let mut flag = 0;
        // SAFETY: the request is one that MPI made, or none; MPI writes to these two variables only.
        unsafe {
            ffi::MPI_Test(
                &raw mut transfer.request,
                &raw mut flag,
                ffi::RSMPI_STATUS_IGNORE,
            );
        }
        flag != 0
    }

    /// Who is to receive what has not left yet.
    pub(super) fn receivers(&self) -> impl Iterator<Item = usize> {
        self.leaving.iter().map(|&(to, _)| to)
    }

    /// Moves on what was sent.
    pub(super) fn progress(&mut self) {
        let mut leaving = mem::take(&mut self.leaving);
        leaving.retain_mut(|(_, transfer)| !self.has_arrived(transfer));
        self.leaving = leaving;
    }
}

/// # Panics
///
/// When it does not fit.
fn count(length: usize) -> i32 {
    i32::try_from(length).expect("a message has less than 2 GiB")
}
