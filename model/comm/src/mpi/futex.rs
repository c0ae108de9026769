//! Sleeping until another process changes a word of shared memory.

#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` is `seen`, but not longer than `longest`. It may also return without a cause.
#[cfg(target_os = "linux")]
pub(super) fn wait(word: &AtomicU32, seen: u32, longest: Duration) {
    let longest = libc::timespec {
        tv_sec: longest.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: longest.subsec_nanos().into(),
    };
    // Without FUTEX_PRIVATE_FLAG, since the word is shared between processes.
    // SAFETY: `word` and `longest` live through the call; the kernel only reads them. Every error (the word has
    // changed, a signal, time is over) means to look again.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            seen,
            &raw const longest,
        );
    }
}

/// Wakes whoever sleeps on `word`.
#[cfg(target_os = "linux")]
pub(super) fn wake(word: &AtomicU32) {
    // SAFETY: `word` lives through the call, which neither reads nor writes it.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}

/// Sleeps for a while: other systems have no such call between processes.
#[cfg(not(target_os = "linux"))]
pub(super) fn wait(_word: &AtomicU32, _seen: u32, longest: Duration) {
    std::thread::sleep(longest.min(Duration::from_micros(200)));
}

/// Does nothing: a rank that sleeps looks up by itself.
#[cfg(not(target_os = "linux"))]
pub(super) fn wake(_word: &AtomicU32) {}
