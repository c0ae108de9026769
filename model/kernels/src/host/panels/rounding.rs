//! Panels from matrices: rounding to bf16, in the order of blocks.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};

use super::Side;
use super::block::{BLOCK, DEPTH, LINES, Line, TILE};
use crate::dtype::StorageFloat;
use crate::host::avx512::Avx512Bf16;
use crate::host::gemm::Matrix;

/// Fills panels from the one at `first` on with `inner` of the inner dimension of a source `[width, depth]`.
///
/// # Safety
///
/// The machine must have the instructions that are enabled, as the token says.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code)]
pub unsafe fn fill<T: Load>(
    _: Avx512Bf16,
    source: Matrix<'_, T>,
    side: Side,
    first: usize,
    inner: Range<usize>,
    lines: &mut [MaybeUninit<Line>],
) {
    let [width, _] = source.shape();
    let [along_width, along_depth] = source.strides();
    let by_row = along_depth == 1;
    assert!(by_row || along_width == 1, "values side by side");
    let depths = inner.len().div_ceil(DEPTH);
    let size = depths * LINES;
    let panels = lines.len() / size.max(1);
    let tile = |panel: usize, depth: usize, half: usize, lines: &mut [MaybeUninit<Line>]| {
        let place = first + panel * BLOCK + half * TILE;
        let start = inner.start + depth * DEPTH;
        let widths = width.saturating_sub(place).min(TILE);
        let depths = (inner.end - start).min(DEPTH);
        let from = Corner {
            first: source.pointer(place, start),
            stride: along_width.max(along_depth),
            widths,
            depths,
        };
        // SAFETY: the matrix has `widths` × `depths` values at the corner, possibly none, and nothing else is read; the
        // features are enabled here.
        let mut vectors = unsafe {
            match by_row {
                true => from.rows(),
                false => from.columns(),
            }
        };
        // Rows lie as a left matrix needs them, columns as a right one does, in pairs of values.
        if by_row != (side == Side::Left) {
            transpose(&mut vectors);
        }
        let lines = &mut lines[panel * size + depth * LINES + half * TILE..][..TILE];
        for (line, vector) in lines.iter_mut().zip(vectors) {
            // SAFETY: a line is as large as a vector, and aligned as one.
            unsafe { _mm512_store_si512(line.as_mut_ptr().cast(), vector) };
        }
    };
    // In the order in which the source lies, so that few pages are open at a time.
    match by_row {
        true => {
            for panel in 0..panels {
                for half in 0..2 {
                    (0..depths).for_each(|depth| tile(panel, depth, half, lines));
                }
            }
        }
        false => {
            for depth in 0..depths {
                for panel in 0..panels {
                    (0..2).for_each(|half| tile(panel, depth, half, lines));
                }
            }
        }
    }
}

/// Where a tile's values begin in a matrix, and how many there are.
struct Corner<T> {
    first: *const T,
    /// Of the direction in which values do not stand side by side.
    stride: usize,
    /// Up to [`TILE`].
    widths: usize,
    /// Up to [`DEPTH`].
    depths: usize,
}

/// The lowest `count` of 16 bits.
fn mask(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

impl<T: Load> Corner<T> {
    /// Of values side by side in the inner dimension: a vector for each place of the width.
    ///
    /// # Safety
    ///
    /// The values must be there, and the machine must have the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn rows(&self) -> [__m512i; TILE] {
        let masks = [mask(self.depths), mask(self.depths.saturating_sub(TILE))];
        let mut vectors = [_mm512_setzero_si512(); TILE];
        for (row, vector) in vectors.iter_mut().enumerate().take(self.widths) {
            let values = self.first.wrapping_add(row * self.stride);
            // SAFETY: the caller's promise; what is masked is not read.
            *vector = unsafe {
                let low = T::load(values, masks[0]);
                let high = T::load(values.wrapping_add(TILE), masks[1]);
                rounded(low, high)
            };
        }
        vectors
    }

    /// Of values side by side in the width: a vector for each pair of the inner dimension, value by value in turn.
    ///
    /// # Safety
    ///
    /// The values must be there, and the machine must have the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn columns(&self) -> [__m512i; TILE] {
        const IN_TURN: [u16; DEPTH] = {
            let mut places = [0; DEPTH];
            let mut place = 0;
            while place < DEPTH {
                places[place] = (place / 2 + place % 2 * TILE) as u16;
                place += 1;
            }
            places
        };
        // SAFETY: as long as a vector.
        let in_turn = unsafe { _mm512_loadu_si512(IN_TURN.as_ptr().cast()) };
        let widths = mask(self.widths);
        let mut vectors = [_mm512_setzero_si512(); TILE];
        for (pair, vector) in vectors.iter_mut().enumerate() {
            let row = |depth: usize| {
                let there = if depth < self.depths { widths } else { 0 };
                let values = self.first.wrapping_add(depth * self.stride);
                // The next tile's, a stretch of memory away, which the processor does not foresee.
                let ahead = values.wrapping_add(DEPTH * self.stride);
                // SAFETY: the caller's promise; what is masked is not read; a hint reads nothing.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    T::load(values, there)
                }
            };
            let both = rounded(row(2 * pair), row(2 * pair + 1));
            *vector = _mm512_permutexvar_epi16(in_turn, both);
        }
        vectors
    }
}

/// Both in bf16, the first in the lower half.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    let both = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: 32 numbers of 16 bits, by another name.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute::<__m512bh, __m512i>(both)
    }
}

/// Of 16 × 16 values of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; TILE]) {
    let mut pairs = *rows;
    for i in (0..TILE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Quarter l of vector 4 i + c: rows 4 i to 4 i + 3 of column 4 l + c.
    let mut fours = pairs;
    for i in (0..TILE).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let even = [(a, b), (d, e)].map(|(x, y)| _mm512_shuffle_i32x4::<0x88>(x, y));
        let odd = [(a, b), (d, e)].map(|(x, y)| _mm512_shuffle_i32x4::<0xdd>(x, y));
        rows[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        rows[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        rows[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        rows[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
}

/// A type that panels are filled from.
pub trait Load: StorageFloat {
    /// As many of 16 values as the mask has ones, and zeros.
    ///
    /// # Safety
    ///
    /// Those values must be there, and the machine must have the instructions.
    #[allow(unsafe_code)]
    unsafe fn load(values: *const Self, there: u16) -> __m512;
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(unsafe_code)]
    unsafe fn load(values: *const Self, there: u16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(there, values) }
    }
}

/// 16 numbers of 16 bits.
///
/// # Safety
///
/// Those that the mask marks must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code)]
unsafe fn halves(values: *const i16, there: u16) -> __m256i {
    // SAFETY: the caller's promise; of the 32 values, the upper 16 are masked.
    _mm512_castsi512_si256(unsafe { _mm512_maskz_loadu_epi16(u32::from(there), values) })
}

impl Load for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    #[allow(unsafe_code)]
    unsafe fn load(values: *const Self, there: u16) -> __m512 {
        // SAFETY: the caller's promise.
        let halves = unsafe { halves(values.cast(), there) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}

impl Load for f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    #[allow(unsafe_code)]
    unsafe fn load(values: *const Self, there: u16) -> __m512 {
        // SAFETY: the caller's promise.
        _mm512_cvtph_ps(unsafe { halves(values.cast(), there) })
    }
}
