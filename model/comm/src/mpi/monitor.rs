//! Watches the other processes of this machine, to detect ranks that are killed.

use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::node::Shutdown;
use super::process::Process;
use crate::Cause;
use crate::pool::grace;

/// How often a process looks for a failure while its rank is at work.
const TICK: Duration = Duration::from_millis(100);

/// Watches until the rank has closed its end of the pipe, or has not noticed a failure for too long.
pub(super) fn watch(process: &Process, rank_ends: &PipeReader) {
    let mut alive: Vec<(usize, OwnedFd)> = Vec::new();
    for (rank, number) in process.node.neighbours() {
        match open(number) {
            Ok(descriptor) => alive.push((rank, descriptor)),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => lost(process, rank),
            // Not to be had here: its death is noticed when it does not answer.
            Err(_) => (),
        }
    }
    let mut end = None;
    loop {
        if end.is_none()
            && let Some(failure) = process.failure()
        {
            end = Some(Instant::now() + grace(failure));
            process.node.notify(process.rank);
        }
        let left = end.map(|end: Instant| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return;
        }
        let descriptors = alive.iter().map(|(_, descriptor)| descriptor.as_raw_fd());
        let mut all = vec![rank_ends.as_raw_fd()];
        all.extend(descriptors);
        let ready = poll(&all, left.unwrap_or(TICK).min(TICK));
        if ready[0] {
            return;
        }
        let mut ready = ready[1..].iter();
        alive.retain(|&(rank, _)| {
            let died = ready.next() == Some(&true);
            if died {
                lost(process, rank);
            }
            !died
        });
    }
}

/// A rank's process is not there any more.
fn lost(process: &Process, rank: usize) {
    if !process.node.has_reached(rank, Shutdown::Complete) {
        process.fail(rank, Cause::Died);
    }
}

/// A descriptor that becomes readable when a process ends.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn open(process: u32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;

    // SAFETY: the call takes two numbers, and gives a new descriptor that nobody else has, or −1.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, process, 0) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor as i32)),
        }
    }
}

/// Other systems have no such descriptors.
#[cfg(not(target_os = "linux"))]
fn open(_process: u32) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Which of the descriptors can be read or are closed, as soon as one is, or after a while none.
#[allow(unsafe_code)]
fn poll(descriptors: &[i32], longest: Duration) -> Vec<bool> {
    let request = |&fd: &i32| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut requests: Vec<_> = descriptors.iter().map(request).collect();
    let milliseconds = longest.as_millis() as i32 + 1;
    // SAFETY: the call writes to these requests only. An error, such as a signal, leaves nothing ready.
    unsafe {
        libc::poll(
            requests.as_mut_ptr(),
            requests.len() as libc::nfds_t,
            milliseconds,
        );
    }
    requests
        .iter()
        .map(|request| request.revents != 0)
        .collect()
}
