//! Messages between processes: the calls of MPI that carry them. None of them waits.
//!
//! MPI counts the bytes of a message in an `i32`. A longer one goes in pieces of [`PIECE`] bytes and a last one of fewer,
//! possibly of none, by which the receiver knows that the message is complete: a short message is its own last piece.

#![allow(unsafe_code)]

use std::mem;

use mpi::ffi::{self, MPI_Comm, MPI_Message, MPI_Request, MPI_Status};

/// Bytes of a piece: a count that MPI can express, and large enough that its own costs do not matter.
pub(super) const PIECE: usize = 1 << 30;

/// Bytes on their way, which belong to MPI until they have arrived.
#[derive(Debug)]
struct Transfer {
    /// Of the pieces that have not arrived.
    requests: Vec<MPI_Request>,
    bytes: Vec<u8>,
}

// SAFETY: requests are handles of the process, which any of its threads may use, one at a time (the level
// MPI_THREAD_SERIALIZED, which `World::start` asks for). All uses are methods of `Transport`, which has a lock.
unsafe impl Send for Transfer {}

impl Drop for Transfer {
    fn drop(&mut self) {
        // MPI may still write to the bytes of a piece that has not arrived, or read them.
        if !self.requests.is_empty() {
            mem::forget(mem::take(&mut self.bytes));
        }
    }
}

/// A message that is being received.
#[derive(Debug)]
pub(super) struct Incoming {
    from: i32,
    tag: u32,
    transfer: Transfer,
    /// Bytes of its latest piece.
    piece: usize,
}

/// All messages of this process.
#[derive(Debug)]
pub(super) struct Transport {
    comm: MPI_Comm,
    piece: usize,
    /// Those that were sent and have not left yet, with their receivers.
    leaving: Vec<(usize, Transfer)>,
    /// Senders and tags of the messages of which more pieces are to come: the next piece is of no other message.
    joining: Vec<(i32, u32)>,
}

// SAFETY: as of `Transfer`.
unsafe impl Send for Transport {}

impl Transport {
    /// Between all processes of a communicator, in pieces of so many bytes, which is [`PIECE`] but in tests.
    ///
    /// # Safety
    ///
    /// `comm` lives as long as this does, and nothing else sends over it. MPI has been started, at least at the level
    /// MPI_THREAD_SERIALIZED, and is not called anywhere else in the meantime.
    ///
    /// # Panics
    ///
    /// When a piece has no bytes, or more than MPI can count.
    pub(super) unsafe fn new(comm: MPI_Comm, piece: usize) -> Self {
        assert!(piece > 0 && i32::try_from(piece).is_ok());
        Self {
            comm,
            piece,
            leaving: Vec::new(),
            joining: Vec::new(),
        }
    }

    /// Sends a message of any length, without waiting until it has left.
    pub(super) fn send(&mut self, to: usize, tag: u32, bytes: Vec<u8>) {
        let mut transfer = Transfer {
            requests: Vec::with_capacity(1),
            bytes,
        };
        // The last piece of a message of whole pieces begins at its end, and is empty.
        for start in (0..=transfer.bytes.len()).step_by(self.piece) {
            let piece = &transfer.bytes[start..];
            // SAFETY: the bytes stay where they are until the request is complete, see `Transfer`.
            unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                ffi::MPI_Isend(
                    piece.as_ptr().cast(),
                    piece.len().min(self.piece) as i32,
                    ffi::RSMPI_UINT8_T,
                    to as i32,
                    tag as i32,
                    self.comm,
                    &raw mut request,
                );
                transfer.requests.push(request);
            }
        }
        if !self.has_arrived(&mut transfer) {
            self.leaving.push((to, transfer));
        }
    }

    /// Begins to receive the next message from a process, if there is one.
    pub(super) fn receive(&mut self, from: usize, tag: u32) -> Option<Incoming> {
        self.receive_from(from as i32, tag)
    }

    /// Begins to receive the next message of one piece from any process, if there is one.
    pub(super) fn receive_from_any(&mut self, tag: u32) -> Option<Incoming> {
        // SAFETY: the constant is one that MPI has set when it was loaded.
        self.receive_from(unsafe { ffi::RSMPI_ANY_SOURCE }, tag)
    }

    fn receive_from(&mut self, from: i32, tag: u32) -> Option<Incoming> {
        if self.joining.contains(&(from, tag)) {
            return None;
        }
        let mut message = Incoming {
            from,
            tag,
            transfer: Transfer {
                requests: Vec::with_capacity(1),
                bytes: Vec::new(),
            },
            piece: 0,
        };
        if !self.receive_piece(&mut message) {
            return None;
        }
        if message.piece == self.piece {
            self.joining.push((message.from, message.tag));
        }
        Some(message)
    }

    /// Begins to receive the next piece of a message, if it is here.
    fn receive_piece(&mut self, message: &mut Incoming) -> bool {
        // Open MPI first looks among what it has taken in, and then takes in what has come: twice is needed.
        self.try_piece(message) || self.try_piece(message)
    }

    fn try_piece(&mut self, message: &mut Incoming) -> bool {
        let bytes = &mut message.transfer.bytes;
        // SAFETY: MPI writes to these variables only, and to the bytes until the request is complete, see `Transfer`;
        // they do not move before, as this is called when all earlier pieces have arrived.
        unsafe {
            let (mut flag, mut length) = (0, 0);
            let mut matched: MPI_Message = ffi::RSMPI_MESSAGE_NULL;
            let mut status: MPI_Status = mem::zeroed();
            ffi::MPI_Improbe(
                message.from,
                message.tag as i32,
                self.comm,
                &raw mut flag,
                &raw mut matched,
                &raw mut status,
            );
            if flag == 0 {
                return false;
            }
            ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut length);
            message.from = status.MPI_SOURCE;
            message.piece = length as usize;
            let start = bytes.len();
            bytes.resize(start + message.piece, 0);
            let mut request = ffi::RSMPI_REQUEST_NULL;
            ffi::MPI_Imrecv(
                bytes[start..].as_mut_ptr().cast(),
                length,
                ffi::RSMPI_UINT8_T,
                &raw mut matched,
                &raw mut request,
            );
            message.transfer.requests.push(request);
        }
        true
    }

    /// The bytes of a message, when all of them have arrived.
    pub(super) fn arrived(&mut self, message: &mut Incoming) -> Option<Vec<u8>> {
        while self.has_arrived(&mut message.transfer) {
            if message.piece < self.piece {
                let joined = (message.from, message.tag);
                self.joining.retain(|&other| other != joined);
                return Some(mem::take(&mut message.transfer.bytes));
            }
            if !self.receive_piece(message) {
                return None;
            }
        }
        None
    }

    fn has_arrived(&mut self, transfer: &mut Transfer) -> bool {
        transfer.requests.retain_mut(|request| {
            let mut flag = 0;
            // SAFETY: the request is one that MPI made; MPI writes to these two variables only.
            unsafe {
                ffi::MPI_Test(request, &raw mut flag, ffi::RSMPI_STATUS_IGNORE);
            }
            flag == 0
        });
        transfer.requests.is_empty()
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

#[cfg(test)]
mod tests {
    use super::super::alone::transport;

    /// Of different bytes.
    fn message(length: usize) -> Vec<u8> {
        (0..length).map(|place| place as u8).collect()
    }

    #[test]
    fn messages_longer_than_a_piece_arrive_whole_and_in_order() {
        transport(16, |mut transport| {
            let lengths = [5, 16, 0, 15, 17, 32, 1_000, 48, 3];
            for length in lengths {
                transport.send(0, 7, message(length));
                transport.send(0, 8, message(length + 1));
            }
            for length in lengths {
                for (tag, length) in [(7, length), (8, length + 1)] {
                    let mut received = transport.receive(0, tag).unwrap();
                    let bytes = std::iter::from_fn(|| Some(transport.arrived(&mut received)));
                    let bytes = bytes.take(1_000).find_map(|bytes| bytes);
                    assert_eq!(bytes.unwrap(), message(length));
                }
            }
            assert!(transport.receive_from_any(7).is_none());
        });
    }

    #[test]
    fn the_pieces_of_a_message_go_to_the_receiver_that_has_its_first_one() {
        transport(4, |mut transport| {
            transport.send(0, 7, message(10));
            transport.send(0, 7, message(3));
            let mut first = transport.receive(0, 7).unwrap();
            assert!(transport.receive(0, 7).is_none());
            assert_eq!(transport.arrived(&mut first).unwrap(), message(10));
            let mut second = transport.receive(0, 7).unwrap();
            assert_eq!(transport.arrived(&mut second).unwrap(), message(3));
        });
    }
}
