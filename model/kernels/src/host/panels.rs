//! Matrices in bf16, in the order in which the tiles of [`amx`](super::amx) read them.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::amx::{Amx, BLOCK, DEPTH, LINES, Line, TILE, Tiles};
use super::gemm::{Accumulate, Matrix};
use crate::dtype::StorageFloat;

/// Values of the inner dimension that are worked on at a time: a panel of one matrix stays in a core's first level of cache
/// while those of the other pass.
const INNER: usize = 512;

/// Columns of the output that are worked on at a time: so many panels of the right matrix stay in a core's second level of
/// cache while those of the left pass.
const COLUMNS: usize = 512;

/// Panels that are filled by one task.
const GROUP: usize = 8;

/// Which factor a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// a of a · b.
    Left,
    /// b of a · b.
    Right,
}

/// A matrix in bf16, rounded to the nearest number, of two equally near the even one; NaN and infinity stay what they are,
/// and numbers below 2⁻¹²⁶ become zero.
///
/// Panels of [`BLOCK`] rows of a left matrix, or columns of a right one, [`INNER`] of the inner dimension at a time: block by
/// block, within it panel by panel. What is missing at the ends is zero.
#[derive(Debug, Clone)]
pub struct Panels {
    lines: Vec<Line>,
    /// Rows of a left matrix, columns of a right one.
    width: usize,
    /// Of the inner dimension.
    depth: usize,
}

impl Panels {
    /// Rounds a matrix; on all threads if `parallel`.
    ///
    /// # Panics
    ///
    /// When values stand side by side in neither direction.
    pub fn new<T: Load>(amx: Amx, matrix: Matrix<'_, T>, side: Side, parallel: bool) -> Self {
        let source = match side {
            Side::Left => matrix,
            Side::Right => matrix.t(),
        };
        let [width, depth] = source.shape();
        let panels = width.div_ceil(BLOCK);
        let mut lines = Vec::with_capacity(panels * depth.div_ceil(DEPTH) * LINES);
        let length = lines.capacity();
        let mut rest = &mut lines.spare_capacity_mut()[..length];
        let mut tasks = Vec::new();
        for inner in blocks(depth) {
            let size = inner.len().div_ceil(DEPTH) * LINES;
            for first in (0..panels).step_by(GROUP) {
                let count = GROUP.min(panels - first);
                let part = rest.split_off_mut(..count * size);
                let part = part.expect("lines for every panel");
                tasks.push((first * BLOCK, inner.clone(), part));
            }
        }
        assert!(rest.is_empty(), "every line belongs to a panel");
        let fill = |(first, inner, lines): (usize, Range<usize>, &mut [MaybeUninit<Line>])| {
            // SAFETY: the machine has the instructions, as the token says.
            #[allow(unsafe_code)]
            unsafe {
                fill(amx, source, side, first, inner, lines);
            }
        };
        match parallel {
            true => tasks.into_par_iter().with_max_len(1).for_each(fill),
            false => tasks.into_iter().for_each(fill),
        }
        // SAFETY: the tasks have all lines among them, and each fills its own.
        #[allow(unsafe_code)]
        unsafe {
            lines.set_len(length);
        }
        Self {
            lines,
            width,
            depth,
        }
    }

    /// Rows of a left matrix, columns of a right one.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A panel's lines of a block of the inner dimension.
    #[inline(always)]
    fn panel(&self, inner: &Range<usize>, panel: usize) -> &[Line] {
        let panels = self.width.div_ceil(BLOCK);
        let size = inner.len().div_ceil(DEPTH) * LINES;
        let start = inner.start / DEPTH * LINES * panels + panel * size;
        &self.lines[start..start + size]
    }
}

/// The blocks of the inner dimension.
fn blocks(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth)
        .step_by(INNER)
        .map(move |start| start..(start + INNER).min(depth))
}

/// `output ← scale · left[rows] right`, or added to it. Each sum is taken in the order of the inner dimension, whatever the
/// other sizes.
///
/// # Safety
///
/// `output` must be valid for writes of the rows, `stride` values apart, each of `right.width()` values, and hold values
/// where the product is added.
///
/// # Panics
///
/// When the inner dimensions differ, or the rows do not begin with a panel or are not there.
#[allow(unsafe_code)]
pub unsafe fn multiply(
    amx: Amx,
    (left, rows): (&Panels, Range<usize>),
    right: &Panels,
    scale: f32,
    into: Accumulate,
    output: *mut f32,
    stride: usize,
) {
    assert_eq!(left.depth, right.depth, "the inner dimension");
    assert!(rows.start.is_multiple_of(BLOCK) && rows.end <= left.width);
    let columns = right.width;
    let target = |row: usize, column: usize| Target {
        // Within the output, as the block's first value is.
        first: output.wrapping_add(row * stride + column),
        stride,
        rows: BLOCK.min(rows.len() - row),
        columns: BLOCK.min(columns - column),
    };
    let panel_of_row = |row: usize| (rows.start + row) / BLOCK;
    amx.with_tiles(|tiles| {
        if scale != 1.0 || left.depth == 0 {
            for row in (0..rows.len()).step_by(BLOCK) {
                for column in (0..columns).step_by(BLOCK) {
                    let mut sums = Sums::ZERO;
                    for inner in blocks(left.depth) {
                        let left = left.panel(&inner, panel_of_row(row));
                        let right = right.panel(&inner, column / BLOCK);
                        sums.add(tiles, left, right);
                    }
                    // SAFETY: the caller's promise.
                    unsafe { target(row, column).take(&sums, scale, into) };
                }
            }
            return;
        }
        for first in (0..columns).step_by(COLUMNS) {
            let columns = first..(first + COLUMNS).min(columns);
            for inner in blocks(left.depth) {
                let into = match inner.start {
                    0 => into,
                    _ => Accumulate::Add,
                };
                for row in (0..rows.len()).step_by(BLOCK) {
                    let left = left.panel(&inner, panel_of_row(row));
                    for column in columns.clone().step_by(BLOCK) {
                        let right = right.panel(&inner, column / BLOCK);
                        // SAFETY: the caller's promise; later blocks of the inner dimension add to what the first wrote.
                        unsafe { target(row, column).multiply(tiles, left, right, into) };
                    }
                }
            }
        }
    });
}

/// Where a block of an output lies.
struct Target {
    first: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
}

impl Target {
    /// # Safety
    ///
    /// The values must be there to be written, and to be read where the product is added.
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply(&self, tiles: &Tiles, left: &[Line], right: &[Line], into: Accumulate) {
        if self.rows == BLOCK && self.columns == BLOCK {
            let add = into == Accumulate::Add;
            // SAFETY: the caller's promise.
            unsafe { tiles.multiply(left, right, add, self.first, self.stride) };
            return;
        }
        let mut sums = Sums::ZERO;
        // SAFETY: the caller's promise.
        unsafe {
            if into == Accumulate::Add {
                self.give(&mut sums);
            }
            sums.add(tiles, left, right);
            self.take(&sums, 1.0, Accumulate::Replace);
        }
    }

    /// Copies the values into sums.
    ///
    /// # Safety
    ///
    /// The values must be there.
    #[allow(unsafe_code)]
    unsafe fn give(&self, sums: &mut Sums) {
        for (row, sums) in sums.0.iter_mut().enumerate().take(self.rows) {
            for (column, sum) in sums.iter_mut().enumerate().take(self.columns) {
                // SAFETY: the caller's promise.
                *sum = unsafe { self.first.add(row * self.stride + column).read() };
            }
        }
    }

    /// Makes the values those of sums, scaled, or adds these to them.
    ///
    /// # Safety
    ///
    /// The values must be there to be written, and to be read where the sums are added.
    #[allow(unsafe_code)]
    unsafe fn take(&self, sums: &Sums, scale: f32, into: Accumulate) {
        for (row, sums) in sums.0.iter().enumerate().take(self.rows) {
            for (column, sum) in sums.iter().enumerate().take(self.columns) {
                // SAFETY: the caller's promise.
                unsafe {
                    let value = self.first.add(row * self.stride + column);
                    match into {
                        Accumulate::Replace => value.write(scale * sum),
                        Accumulate::Add => value.write(value.read() + scale * sum),
                    }
                }
            }
        }
    }
}

/// A block of sums outside of an output.
#[repr(C, align(64))]
struct Sums([[f32; BLOCK]; BLOCK]);

impl Sums {
    const ZERO: Self = Self([[0.0; BLOCK]; BLOCK]);

    #[inline(always)]
    fn add(&mut self, tiles: &Tiles, left: &[Line], right: &[Line]) {
        let first = self.0.as_flattened_mut().as_mut_ptr();
        // SAFETY: a whole block of values is there, with rows of its own width.
        #[allow(unsafe_code)]
        unsafe {
            tiles.multiply(left, right, true, first, BLOCK);
        }
    }
}

/// Fills panels from the one at `first` on with `inner` of the inner dimension of a source `[width, depth]`.
///
/// # Safety
///
/// The machine must have the instructions that are enabled, as the token says.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn fill<T: Load>(
    _: Amx,
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
        // SAFETY: the corner lies within the matrix, and has as many rows and columns as are there; the features are
        // enabled here.
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
