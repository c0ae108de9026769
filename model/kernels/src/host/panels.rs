//! Matrices in bf16, in the order in which the units for them read them: the tiles of [`amx`](super::amx) and the
//! vectors of [`avx512`](super::avx512).

pub mod block;
mod rounding;

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::amx::Amx;
use super::avx512::Avx512Bf16;
use super::gemm::{Accumulate, Matrix};
use block::{BLOCK, DEPTH, LINES, Line, Multiplier, Target};
pub use rounding::Load;
use rounding::fill;

/// Values of the inner dimension that are worked on at a time: a panel of one matrix stays in a core's first level of cache
/// while those of the other pass.
const INNER: usize = 512;

/// Columns of the output that are worked on at a time: so many panels of the right matrix stay in a core's second level of
/// cache while those of the left pass.
const COLUMNS: usize = 512;

/// Panels that are filled by one task.
const GROUP: usize = 8;

/// What multiplies panels.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    /// Tiles.
    Amx(Amx),
    /// Vectors.
    Avx512(Avx512Bf16),
}

impl Unit {
    /// The vectors that fill panels.
    fn vectors(self) -> Avx512Bf16 {
        match self {
            Self::Amx(amx) => amx.vectors(),
            Self::Avx512(vectors) => vectors,
        }
    }
}

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
    pub fn new<T: Load>(unit: Unit, matrix: Matrix<'_, T>, side: Side, parallel: bool) -> Self {
        let source = match side {
            Side::Left => matrix,
            Side::Right => matrix.t(),
        };
        let [width, depth] = source.shape();
        let panels = width.div_ceil(BLOCK);
        let length = panels * depth.div_ceil(DEPTH) * LINES;
        let mut lines = Vec::with_capacity(length);
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
                fill(unit.vectors(), source, side, first, inner, lines);
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

/// `output ← left[rows] right`, or added to it. Each sum is taken in the order of the inner dimension, whatever the other
/// sizes.
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
    unit: Unit,
    factors: (&Panels, Range<usize>),
    right: &Panels,
    into: Accumulate,
    output: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match unit {
            Unit::Amx(amx) => amx.with_tiles(|tiles| {
                multiply_by(tiles, factors, right, into, output, stride);
            }),
            Unit::Avx512(vectors) => multiply_by(&vectors, factors, right, into, output, stride),
        }
    }
}

/// # Safety
///
/// That of [`multiply`].
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn multiply_by(
    multiplier: &impl Multiplier,
    (left, rows): (&Panels, Range<usize>),
    right: &Panels,
    into: Accumulate,
    output: *mut f32,
    stride: usize,
) {
    assert_eq!(left.depth, right.depth, "the inner dimension");
    assert!(rows.start.is_multiple_of(BLOCK) && rows.end <= left.width);
    let columns = right.width;
    if left.depth == 0 && into == Accumulate::Replace {
        for row in 0..rows.len() {
            // SAFETY: the caller's promise; zeros are numbers.
            unsafe { output.add(row * stride).write_bytes(0, columns) };
        }
    }
    for first in (0..columns).step_by(COLUMNS) {
        let of_cache = first..(first + COLUMNS).min(columns);
        for inner in blocks(left.depth) {
            let into = match inner.start {
                0 => into,
                _ => Accumulate::Add,
            };
            for row in (0..rows.len()).step_by(BLOCK) {
                let left = left.panel(&inner, (rows.start + row) / BLOCK);
                for column in of_cache.clone().step_by(BLOCK) {
                    let right = right.panel(&inner, column / BLOCK);
                    let target = Target {
                        // Within the output, as the block's first value is.
                        first: output.wrapping_add(row * stride + column),
                        stride,
                        rows: BLOCK.min(rows.len() - row),
                        columns: BLOCK.min(columns - column),
                    };
                    // SAFETY: the caller's promise; later blocks of the inner dimension add to what the first wrote.
                    unsafe { multiplier.multiply(left, right, into, &target) };
                }
            }
        }
    }
}
