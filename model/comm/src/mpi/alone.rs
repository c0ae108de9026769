//! MPI in the process of a test, which is its own only rank and sends messages to itself.

#![allow(unsafe_code)]

use std::mem;
use std::sync::{Mutex, PoisonError};

use mpi::Threading;
use mpi::ffi;

use super::transport::Transport;

/// Works with a transport whose only rank is this process, in pieces of so many bytes; one test at a time.
pub(super) fn transport<T>(piece: usize, work: impl FnOnce(Transport) -> T) -> T {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !mem::replace(&mut *started, true) {
        let (universe, threads) = mpi::initialize_with_threading(Threading::Serialized).unwrap();
        assert!(threads >= Threading::Serialized);
        // MPI is to last as long as the process, whose tests end in any order.
        mem::forget(universe);
        // SAFETY: the function is there as long as the process; no test runs any more when it is called.
        unsafe { libc::atexit(finalize) };
    }
    // SAFETY: this communicator lasts as long as MPI, and the lock is held while the transport is in use.
    work(unsafe { Transport::new(ffi::RSMPI_COMM_SELF, piece) })
}

extern "C" fn finalize() {
    // SAFETY: MPI has been started, and no other thread calls it.
    unsafe { ffi::MPI_Finalize() };
}
