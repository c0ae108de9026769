//! Text in memory that another process reads, even after its writer has been killed.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
use std::thread;

/// Up to `N` bytes, written by one process and read by others.
///
/// There are two buffers, which are written in turn. A reader takes the one that is complete; it tries again only if the
/// writer has completed the other one meanwhile and may have begun to overwrite this one. So a writer that is killed or
/// stopped in the middle of a text leaves the one before.
#[derive(Debug)]
#[repr(C)]
pub(super) struct SharedText<const N: usize> {
    /// How many texts have been written. The last one is in the buffer of this number's lowest bit.
    written: AtomicU32,
    buffers: [Buffer<N>; 2],
}

#[derive(Debug)]
#[repr(C)]
struct Buffer<const N: usize> {
    length: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> SharedText<N> {
    fn buffer(&self, number: u32) -> &Buffer<N> {
        &self.buffers[number as usize % 2]
    }

    /// Writes what fits. One thread at a time may do so.
    pub(super) fn write(&self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(N)];
        let next = self.written.load(Ordering::Relaxed).wrapping_add(1);
        // Who sees a byte of this text sees as well that the one before is complete.
        fence(Ordering::Release);
        let buffer = self.buffer(next);
        buffer.length.store(bytes.len() as u32, Ordering::Relaxed);
        for (shared, &byte) in buffer.bytes.iter().zip(bytes) {
            shared.store(byte, Ordering::Relaxed);
        }
        self.written.store(next, Ordering::Release);
    }

    /// What was written last.
    pub(super) fn read(&self) -> Vec<u8> {
        loop {
            let written = self.written.load(Ordering::Acquire);
            let buffer = self.buffer(written);
            let length = buffer.length.load(Ordering::Relaxed) as usize;
            let bytes = buffer.bytes.iter().take(length);
            let text = bytes.map(|byte| byte.load(Ordering::Relaxed)).collect();
            fence(Ordering::Acquire);
            if written == self.written.load(Ordering::Relaxed) {
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

    fn text() -> SharedText<16> {
        let buffer = || Buffer {
            length: AtomicU32::new(0),
            bytes: [const { AtomicU8::new(0) }; 16],
        };
        SharedText {
            written: AtomicU32::new(0),
            buffers: [buffer(), buffer()],
        }
    }

    #[test]
    fn what_fits_is_kept() {
        let text = text();
        assert_eq!(text.read(), b"");
        text.write(b"more than sixteen bytes");
        assert_eq!(text.read(), b"more than sixtee");
        text.write(b"few");
        assert_eq!(text.read(), b"few");
    }

    #[test]
    fn a_writer_that_stops_in_the_middle_leaves_the_text_before() {
        let text = text();
        text.write(b"whole");
        let next = text.buffer(2);
        next.length.store(9, Ordering::Relaxed);
        next.bytes[0].store(b'?', Ordering::Relaxed);
        assert_eq!(text.read(), b"whole");
    }

    #[test]
    fn a_text_is_read_whole_while_it_is_written() {
        let text = text();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..20_000_usize {
                    text.write(&[round as u8; 16][..round % 17]);
                    // A rank computes between two texts.
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
