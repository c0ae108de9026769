//! Products of blocks on a CPU with AVX-512 BF16 (Intel SDM, volume 2, `VDPBF16PS`; AMD64 manual, volume 4).
//!
//! `vdpbf16ps` adds to 16 sums in f32 the products of two numbers in bf16 each. Zen 4 does as many of these a cycle as
//! products in f32, so that it multiplies bf16 twice as fast.

use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::gemm::Accumulate;
use super::panels::block::{DEPTH, LINES, Line, Multiplier, TILE, Target, depths};

/// That this machine has AVX-512 with bf16, and what prepares blocks for it.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Bf16(());

impl Avx512Bf16 {
    /// The same answer each time.
    pub fn get() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        found.then_some(Self(()))
    }

    /// Whether this multiplies faster than f32 does: measured on Zen 4 and taken to be so on AMD's later processors; on
    /// Intel's Sapphire Rapids it does not.
    pub fn is_fast(self) -> bool {
        static AMD: LazyLock<bool> = LazyLock::new(|| {
            let vendor = __cpuid(0);
            let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
            name.as_flattened() == b"AuthenticAMD"
        });
        *AMD
    }
}

/// Rows of a block whose sums are kept in registers at a time, each of two vectors: enough of them that none waits for the
/// one before, and that a vector of the right matrix is loaded once for all.
const ROWS: usize = 8;

impl Multiplier for Avx512Bf16 {
    #[allow(unsafe_code)]
    unsafe fn multiply(&self, left: &[Line], right: &[Line], into: Accumulate, target: &Target) {
        let depths = depths(left, right);
        for first in (0..target.rows).step_by(ROWS) {
            let left = left.as_ptr().wrapping_add(first);
            let right = right.as_ptr();
            let part = Target {
                first: target.first.wrapping_add(first * target.stride),
                rows: ROWS.min(target.rows - first),
                ..*target
            };
            // SAFETY: the machine has the instructions, as `self` says; the operands have the lines, as was asserted; the
            // target is the caller's promise.
            unsafe {
                match (part.rows, part.columns > TILE) {
                    (1, false) => strip::<1, 1>(left, right, depths, into, part),
                    (2, false) => strip::<2, 1>(left, right, depths, into, part),
                    (3, false) => strip::<3, 1>(left, right, depths, into, part),
                    (4, false) => strip::<4, 1>(left, right, depths, into, part),
                    (5, false) => strip::<5, 1>(left, right, depths, into, part),
                    (6, false) => strip::<6, 1>(left, right, depths, into, part),
                    (7, false) => strip::<7, 1>(left, right, depths, into, part),
                    (_, false) => strip::<ROWS, 1>(left, right, depths, into, part),
                    (1, true) => strip::<1, 2>(left, right, depths, into, part),
                    (2, true) => strip::<2, 2>(left, right, depths, into, part),
                    (3, true) => strip::<3, 2>(left, right, depths, into, part),
                    (4, true) => strip::<4, 2>(left, right, depths, into, part),
                    (5, true) => strip::<5, 2>(left, right, depths, into, part),
                    (6, true) => strip::<6, 2>(left, right, depths, into, part),
                    (7, true) => strip::<7, 2>(left, right, depths, into, part),
                    (_, true) => strip::<ROWS, 2>(left, right, depths, into, part),
                }
            }
        }
    }
}

/// `target ← left · right`, or added to it, of rows that begin at the line `left` and `VECTORS` vectors of columns.
///
/// # Safety
///
/// The machine must have the instructions, the operands the lines of [`Multiplier::multiply`], and the target the values of
/// as many rows and columns.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn strip<const ROWS: usize, const VECTORS: usize>(
    left: *const Line,
    right: *const Line,
    depths: usize,
    into: Accumulate,
    target: Target,
) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for depth in 0..depths {
        for pair in 0..DEPTH / 2 {
            // SAFETY: the lines are the caller's promise: of each depth, those of the left rows one after the other, and of
            // the right ones a line for each pair of the inner dimension, tile after tile.
            unsafe {
                let line = |vector: usize| depth * LINES + vector * TILE + pair;
                let columns: [__m512bh; VECTORS] = std::array::from_fn(|vector| {
                    std::mem::transmute(_mm512_load_si512(right.add(line(vector)).cast()))
                });
                for (row, sums) in sums.iter_mut().enumerate() {
                    let values = left.add(depth * LINES + row).cast::<i32>();
                    let both = _mm512_set1_epi32(values.add(pair).read());
                    let both: __m512bh = std::mem::transmute(both);
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, both, columns);
                    }
                }
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (vector, sum) in sums.into_iter().enumerate() {
            let columns = (target.columns - vector * TILE).min(TILE);
            let there = ((1u32 << columns) - 1) as u16;
            let place = target
                .first
                .wrapping_add(row * target.stride + vector * TILE);
            // SAFETY: the target is the caller's promise; what is masked is neither read nor written.
            unsafe {
                let sum = match into {
                    Accumulate::Replace => sum,
                    Accumulate::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(there, place), sum),
                };
                _mm512_mask_storeu_ps(place, there, sum);
            }
        }
    }
}
