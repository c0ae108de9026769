//! How fast this machine reads its memory.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::host::simd::{sum, vectorized};

/// Bytes that are read: several times what caches hold.
const BYTES: usize = 256 << 20;

/// Bytes that a thread reads at a time.
const PART: usize = 1 << 20;

/// The best of several sums over a large buffer by all threads of the CPU backends, in bytes a second: what no
/// token can be faster than that has to read its weights from memory.
pub fn read_bandwidth() -> f64 {
    let values = vec![1.0f32; BYTES / size_of::<f32>()];
    let once = || {
        let started = Instant::now();
        let parts = values.par_chunks(PART / size_of::<f32>());
        let total: f32 = parts
            .map(|part| {
                vectorized(
                    #[inline(always)]
                    || sum(part, |value| value),
                )
            })
            .sum();
        black_box(total);
        BYTES as f64 / started.elapsed().as_secs_f64()
    };
    (0..8).map(|_| once()).fold(0.0, f64::max)
}
