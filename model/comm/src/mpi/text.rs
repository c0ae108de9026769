//! Text in memory that another process reads, even after its writer has been killed.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

/// How long a reader tries again that was disturbed by the writer: one that lives has written by then.
const PATIENCE: Duration = Duration::from_millis(100);

/// Up to `N` bytes, written by one process and read by others.
#[derive(Debug)]
#[repr(C)]
pub(super) struct SharedText<const N: usize> {
    /// Odd while the text is being written.
    version: AtomicU32,
    length: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> SharedText<N> {
    /// Writes what fits. One thread at a time may do so.
    pub(super) fn write(&self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(N)];
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (shared, &byte) in self.bytes.iter().zip(bytes) {
            shared.store(byte, Ordering::Relaxed);
        }
        let length = bytes.len() as u32;
        self.length.store(length, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// What was written last. If the writer was killed while it wrote, there is some of the text before in it.
    pub(super) fn read(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(N);
        let started = Instant::now();
        loop {
            let version = self.version.load(Ordering::Acquire);
            let length = self.length.load(Ordering::Relaxed) as usize;
            text.clear();
            let bytes = self.bytes.iter().take(length);
            text.extend(bytes.map(|byte| byte.load(Ordering::Relaxed)));
            fence(Ordering::Acquire);
            let is_whole =
                version.is_multiple_of(2) && version == self.version.load(Ordering::Relaxed);
            if is_whole || started.elapsed() > PATIENCE {
                return text;
            }
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint;

    use super::*;

    #[test]
    fn a_text_is_read_whole_while_it_is_written() {
        let text = SharedText::<16> {
            version: AtomicU32::new(0),
            length: AtomicU32::new(0),
            bytes: [const { AtomicU8::new(0) }; 16],
        };
        assert_eq!(text.read(), b"");
        text.write(b"more than sixteen bytes");
        assert_eq!(text.read(), b"more than sixtee");
        text.write(&[]);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..20_000_usize {
                    text.write(&[round as u8; 16][..round % 17]);
                    // A rank computes between two texts, and is mostly interrupted there.
                    (0..100).for_each(|_| hint::spin_loop());
                }
            });
            while !writer.is_finished() {
                let read = text.read();
                assert!(read.iter().all(|&byte| byte == read[0]), "{read:?}");
            }
        });
    }
}
